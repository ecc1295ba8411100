"""The loop: batches, schedule-free Adam, clipping, early stopping, best weights.

Nothing in this file knows what a variational autoencoder is: it trains any module through a
function that gives a loss and its gradient.

References
----------
Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, "The Road Less Scheduled", NeurIPS 2024.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .recording import Recording
from .world import ALONE, World

MAX_RECOVERIES = 5  # times that one fit may go back to its best weights after a non-finite loss
DECAY = 5.0  # the learning rate is divided by this where the loss does not stay finite
WARM_UP = 50  # steps over which the learning rate rises
# Squared gradients count 0.9 times what they did, after each ten steps: much as by a decay of 0.99
# in each, at a tenth of the passes over memory.
MEMORY, STRETCH = 0.9, 10
NEARNESS = 0.9  # of the weights that gradients are taken at, to the average of the iterates
LATENESS = 2  # step t counts in that average like t to this power
TINY = 1e-7  # what keeps the root of their sum from zero
# After so many steps, one iterate of so many is averaged, with as much weight: this saves passes
# over memory. An odd number: the iterate may go to and fro around an optimum, and an even number
# would find it on the same side each time.
SOON, OFTEN = 100, 5


@dataclass
class History:
    """What happened, one entry an epoch."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_score: float = -math.inf
    best_iter: int = 0
    rose: bool = False  # since the start, by as much as counts
    converged: bool = False
    interrupted: bool = False
    stopped: bool = False  # by `on_epoch`
    # learning rate of each epoch on the way to the best weights, detours left out
    path: list[float] = field(default_factory=list)

    @property
    def n_iter(self) -> int:
        """Epochs run."""
        return len(self.losses)


@dataclass
class Rows:
    """The rows to train on, and how to learn from them.

    Parameters
    ----------
    n_rows : int
        Of all processes.
    n_batches : int
        Of an epoch, the same in all processes.
    read : callable
        ``read()``: an epoch's rows in random order, a part at a time: how many batches it is, and
        the tensors that training needs, of which batches are slices.
    backward : callable
        ``backward(epoch, *slices)``: a batch's mean loss; its gradient is left in the parameters'.
    steady : float, default=inf
        Epoch from which it depends on the slices and parameters alone, does nothing but compute
        with tensors, and never waits for their values: a GPU may then record it.
    """

    n_rows: int
    n_batches: int
    read: Callable[[], Iterator[tuple[int, tuple[Tensor, ...]]]]
    backward: Callable[..., Tensor]
    steady: float = math.inf

    @classmethod
    def stored(
        cls,
        n_rows: int,
        gather: Callable[[Tensor], tuple[Tensor, ...]],
        backward: Callable[..., Tensor],
        batch_size: int,
        generator: torch.Generator,
        at_once: int = 4096,
    ) -> "Rows":
        """Rows that ``gather(order)`` finds in memory, in an order that the generator draws."""
        n_batches = math.ceil(n_rows / batch_size)

        def read() -> Iterator[tuple[int, tuple[Tensor, ...]]]:
            for n, order in shuffled(n_rows, n_batches, generator, at_once):
                yield n, gather(order)

        return cls(n_rows, n_batches, read, backward)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """An epoch's batches; of few rows, some may be empty."""
        for n_batches, part in self.read():
            # sizes differ by one at most: the last batch is never a crumb
            cuts = even_cuts(len(part[0]), n_batches)
            sizes = [stop - start for start, stop in itertools.pairwise(cuts)]
            yield from zip(*(t.split(sizes) for t in part), strict=True)


def shuffled(
    n_rows: int, n_batches: int, generator: torch.Generator, at_once: int
) -> Iterator[tuple[int, Tensor]]:
    """The numbers of so many rows in random order, whole batches of about ``at_once`` at a time.

    The number of batches beside each part.
    """
    order = torch.randperm(n_rows, generator=generator)
    cuts = even_cuts(n_rows, n_batches)
    step = max(1, at_once * n_batches // max(n_rows, 1))
    for first in range(0, n_batches, step):
        last = min(first + step, n_batches)
        yield last - first, order[cuts[first] : cuts[last]]


def even_cuts(n_rows: int, n_batches: int) -> list[int]:
    """Where to cut so many rows into batches, as even as can be."""
    return [n_rows * i // n_batches for i in range(n_batches + 1)]


@contextlib.contextmanager
def _no_denormals() -> Iterator[None]:
    """Numbers below 1e-38 are zero in this thread, as long as the block takes.

    Weights that nothing but a penalty moves shrink towards zero, and a processor takes many times
    longer where a number is too small for its usual form.
    """
    before = not torch.tensor(1e-40).add(0.0).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@dataclass
class Group:
    """Parameters that are trained alike; of a parameter in several groups, the last counts.

    Parameters
    ----------
    parameters : sequence of parameters
    alpha : float, default=0
        Strength of the L2 penalty ``alpha / 2 * ||parameter||^2`` on them. Its gradient is not
        clipped, and is taken where Adam's step starts, see ``Trainer._step``.
    factor : float, default=1
        How many times the learning rate is theirs.
    """

    parameters: Sequence[Tensor]
    alpha: float = 0.0
    factor: float = 1.0


class Trainer:
    """Schedule-free Adam over the parameters of ``module``, kept in one flat tensor.

    Steps are Adam's without momentum; what counts is their running average, and gradients are
    taken between the two. The learning rate need not fall, and it need not be known when training
    will end: the average is at any time about as good as a rate that had fallen to zero by then.

    Parameters
    ----------
    module : Module
        Its parameters that require a gradient become views of one buffer: a step, a reset or a
        copy of all of them is then one operation.
    learning_rate : float
    max_grad_norm : float
        Gradients longer than this are scaled down to it.
    groups : sequence of Group, default=()
        The other parameters have no penalty, and the learning rate as it is.
    world : World, default=ALONE
        The processes that train copies of the module, each on rows of its own.
    modes : bool, default=True
        Whether the module is another one while it is trained, and has to be told: of a small one,
        that takes as long as a step.

    Attributes
    ----------
    flat : Tensor
        The parameters: the average after an epoch, and within one the point between.
    beside : Tensor
        The iterate after an epoch, and within one the average.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        max_grad_norm: float = math.inf,
        groups: Sequence[Group] = (),
        world: World = ALONE,
        modes: bool = True,
    ) -> None:
        self.module, self.max_grad_norm, self.world = module, max_grad_norm, world
        self.modes = modes
        groups = [*groups, Group(())]
        number = {id(p): i for i, group in enumerate(groups) for p in group.parameters}

        def number_of(p: Tensor) -> int:
            return number.get(id(p), len(groups) - 1)

        # a group after the other
        parameters = sorted((p for p in module.parameters() if p.requires_grad), key=number_of)
        self._parts, start = [], 0
        for i, own in itertools.groupby(parameters, key=number_of):
            stop = start + sum(p.numel() for p in own)
            self._parts.append((slice(start, stop), groups[i].alpha, groups[i].factor))
            start = stop
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.grad = self.flat.grad = torch.zeros_like(self.flat)
        self.on_cpu = self.flat.device.type == "cpu"
        offset = 0
        for p in parameters:
            part = slice(offset, offset + p.numel())
            layout = p.shape, torch.empty_like(p).stride()  # its own, as dense
            p.data = self.flat[part].as_strided(*layout).copy_(p.detach())
            p.grad = self.grad[part].as_strided(*layout)
            offset += p.numel()
        self.reset(learning_rate)

    def reset(self, learning_rate: float) -> None:
        """Start the optimiser afresh, from the present weights."""
        self.learning_rate = learning_rate
        self.beside = self.flat.clone()
        self.squares = torch.zeros_like(self.flat)
        self.n_steps, self.total = 0, 0.0
        self._recorded: tuple[Rows, Recording] | None = None  # it refers to tensors
        precise = torch.float32 if self.flat.device.type == "mps" else torch.float64
        self._losses = self.flat.new_zeros((), dtype=precise)
        self._floor = self.squares.new_tensor(TINY**2)
        self._adam = [(self._fused(part, alpha), factor) for part, alpha, factor in self._parts]

    def _fused(self, part: slice, alpha: float) -> Callable[..., Any]:
        """Adam's step of these parameters, clipping and penalty included, in one pass.

        It is torch's Adagrad, which divides by the root of a sum of squares: with the sum's weight
        in the rate, this is their mean. Without momentum it passes over less memory than torch's
        Adam, and divides once where that one divides twice.
        """
        return functools.partial(
            torch._fused_adagrad_,
            [self.flat[part]],
            [self.grad[part]],
            [self.squares[part]],
            [torch.tensor(1.0, dtype=torch.float32)],  # steps so far, of no matter without decay
            lr_decay=0.0,
            weight_decay=alpha,
            eps=TINY,
            maximize=False,
        )

    def state(self) -> dict[str, Any]:
        """What another trainer of the same module needs to go on, on the CPU."""
        steps = {"n_steps": self.n_steps, "total": self.total}
        return {"iterate": self.beside.cpu(), "squares": self.squares.cpu(), **steps}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from another trainer's `state`, at the present learning rate."""
        self.beside.copy_(state["iterate"])
        self.squares.copy_(state["squares"])
        self.n_steps, self.total = state["n_steps"], state["total"]

    def _lengths(self, n_batches: int) -> Iterator[tuple[float, float, float, float]]:
        """``fade``, ``pull``, ``rate`` and ``push`` of each `_step` of an epoch.

        Where the average stays as it is, ``pull`` and ``push`` are 0. It never does so in an
        epoch's last step, nor where an epoch has few: what has been learned always shows.
        """
        stride = OFTEN if self.n_steps >= SOON and n_batches >= 2 * OFTEN else 1
        n_left_over = n_batches % stride  # each of them is averaged
        for step in range(1, n_batches + 1):
            n_stretches, n_since = divmod(self.n_steps, STRETCH)
            fade = 0.0 if n_since else 1 - MEMORY
            # what the squares in the sum weigh, this step's included
            n_squares = n_since + 1 + STRETCH * MEMORY * (1 - MEMORY**n_stretches) / (1 - MEMORY)
            self.n_steps += 1
            rate = self.learning_rate * min(1.0, self.n_steps / WARM_UP)
            n_alike = stride if step % stride == 0 else 0
            if step > n_batches - n_left_over:
                n_alike = 1
            weight = n_alike * self.n_steps**LATENESS * rate**2
            self.total += weight
            rise = weight / self.total
            share = 1 - NEARNESS * (1 - rise)
            corrected = rate * math.sqrt(n_squares)
            yield fade, 1 - share / (1 - NEARNESS), share * corrected, rise / share

    def _step(self, fade: Any, pull: Any, rate: Any, push: Any) -> None:
        """Move the iterate z along the gradient, the average x towards it, and y between them.

        As published, with Adam's step without momentum; ``rate`` is times the root of what the
        squares weigh together::

            squares += gradient**2  # before that they fade, now and then
            z -= rate * gradient / root(squares)
            x += rise * (z - x)
            y = (1 - NEARNESS) * z + NEARNESS * x

        Kept are y, in ``flat``, and x, ``beside`` it; z follows from them, and each tensor more
        costs a pass through memory. With the old x, y lies a ``share`` of the way to the new z::

            y += pull * (x - y)  # a share of the way to the old z
            y -= share * rate * gradient / root(squares)
            x += push * (y - x)

        The middle one is fused with the sum, see `_fused`: clipping and the penalty cost no pass of
        their own, and the penalty's gradient is of that y. Steps below some 1e-7 of a weight are
        lost to rounding. On other devices than the CPU, the lengths lie there: a GPU that has to be
        told numbers cannot record the step.
        """
        if self.on_cpu:
            too_long = self._too_long()
            if fade:
                self.squares.lerp_(self._floor, fade)
            if pull:
                self.flat.lerp_(self.beside, pull)
            for adam, factor in self._adam:
                adam(lr=factor * rate, grad_scale=too_long)
        else:
            if self.max_grad_norm != math.inf:  # to ask for the number would wait for the step
                length = torch.linalg.vector_norm(self.grad)
                self.grad.mul_((self.max_grad_norm / length).clamp_max(1.0))
            self.flat.lerp_(self.beside, pull)
            for part, alpha, _ in self._parts:
                if alpha:
                    self.grad[part].add_(self.flat[part], alpha=alpha)
            self.squares.lerp_(self._floor, fade).addcmul_(self.grad, self.grad)
            direction = self.grad / self.squares.sqrt().clamp_min_(TINY)
            for part, _, factor in self._parts:
                self.flat[part].addcmul_(direction[part], rate, value=-factor)
        if not self.on_cpu or push:
            self.beside.lerp_(self.flat, push)

    def _too_long(self) -> Tensor | None:
        """How many times as long as allowed the gradient is; None where it is not."""
        if self.max_grad_norm == math.inf:
            return None
        norm = math.sqrt(self.grad.dot(self.grad))  # the fastest pass of all
        if norm <= self.max_grad_norm:
            return None
        return torch.tensor(norm / self.max_grad_norm, dtype=torch.float32)  # all that torch reads

    def _snapshot(self) -> tuple[list[Tensor], tuple[int, float]]:
        """All that another epoch depends on, as it is between epochs."""
        return [tensor.clone() for tensor in self._tensors()], (self.n_steps, self.total)

    def _restore(self, snapshot: tuple[list[Tensor], tuple[int, float]]) -> None:
        for tensor, kept in zip(self._tensors(), snapshot[0], strict=True):
            tensor.copy_(kept)
        self.n_steps, self.total = snapshot[1]

    def _tensors(self) -> list[Tensor]:
        # buffers: what else the module keeps, running statistics, say
        return [self.flat, self.beside, self.squares, *self.module.buffers()]

    def epoch(self, rows: Rows, epoch: int = 0) -> float:
        """One pass over the rows in random order; the mean loss, NaN if the weights are not finite.

        The gradient of the last step shows in no loss.
        """
        if self.modes:
            self.module.train()
        self.beside.lerp_(self.flat, NEARNESS)
        self._trade_places()
        total = self._pass_on_cpu(rows, epoch) if self.on_cpu else self._pass_on_gpu(rows, epoch)
        self.flat.lerp_(self.beside, 1 - 1 / (1 - NEARNESS))
        self._trade_places()
        if self.modes:
            self.module.eval()
        if self.world is not ALONE:
            for tensor in self._tensors():
                self.world.lead_(tensor)  # statistics that a module keeps; the others are equal
        self.world.sum_(total)
        # five times as fast as torch.isfinite
        finite = math.isfinite(self.flat.amin()) and math.isfinite(self.flat.amax())
        return float(total) / rows.n_rows if finite else math.nan

    def _trade_places(self) -> None:
        """What was beside becomes ``flat``, and the other way round."""
        flat = self.flat.clone()
        self.flat.copy_(self.beside)
        self.beside.copy_(flat)

    def _pass_on_cpu(self, rows: Rows, epoch: int) -> Tensor:
        """The steps of an epoch; the sum of this process's losses."""
        losses, sizes = [], []
        with _no_denormals():
            for now, batch in zip(self._lengths(rows.n_batches), rows.batches(), strict=True):
                loss, n = self._find_gradient(rows, epoch, batch)
                losses.append(loss)
                sizes.append(n)
                self._step(*now)
        means = torch.stack(losses).detach().double()
        return means @ means.new_tensor(sizes)

    def _pass_on_gpu(self, rows: Rows, epoch: int) -> Tensor:
        """The same, without waiting for any number."""
        lengths = torch.tensor(list(self._lengths(rows.n_batches))).to(self.flat)

        def as_it_is(lengths: Tensor, *batch: Tensor) -> None:
            loss, n = self._find_gradient(rows, epoch, batch)
            self._losses.add_(loss.detach(), alpha=n)
            self._step(*lengths.unbind())

        step: Callable[..., None] = as_it_is
        if epoch >= rows.steady and self.world.size == 1:
            if self._recorded is None or self._recorded[0] is not rows:
                self._recorded = rows, Recording(as_it_is)
            step = self._recorded[1]
        self._losses.zero_()
        for now, batch in zip(lengths, rows.batches(), strict=True):
            step(now, *batch)
        return self._losses.clone()

    def _find_gradient(
        self, rows: Rows, epoch: int, batch: tuple[Tensor, ...]
    ) -> tuple[Tensor, int]:
        """That of a batch, over all processes; the mean loss of the rows that are this one's."""
        n = len(batch[0])
        if n:
            loss = rows.backward(epoch, *batch)
        else:
            loss = self.grad.zero_().sum()
        if self.world.size > 1:
            # batches of processes are not equally large, and rows weigh the same
            self.grad.mul_(n * rows.n_batches / rows.n_rows)
            self.world.sum_(self.grad)
        return loss, n

    def replay(self, rows: Rows, path: list[float]) -> bool:
        """Train for ``len(path)`` epochs at these learning rates, as an earlier fit did.

        Returns whether all stayed finite.
        """
        for epoch, learning_rate in enumerate(path):
            if learning_rate != self.learning_rate:
                self.reset(learning_rate)
            if not math.isfinite(self.epoch(rows, epoch)):
                return False
        return True

    def fit(
        self,
        rows: Rows,
        evaluate: Callable[[], float] | None,
        *,
        max_iter: int,
        tol: float,
        n_iter_no_change: int,
        on_epoch: Callable[[History], bool] | None = None,
    ) -> History:
        """Train until the score stops rising; leave the best weights in the module.

        Parameters
        ----------
        rows : Rows
        evaluate : callable or None
            Score to raise, evaluated before the first epoch and after each. None: the negative
            training loss, and the last weights are kept.
        max_iter : int
            Most epochs.
        tol : float
            Smallest rise that counts.
        n_iter_no_change : int
            Epochs without a rise after which training stops.
        on_epoch : callable or None
            Called with the history after each epoch; True stops the training.

        Raises
        ------
        FloatingPointError
            If the loss stays non-finite however small the learning rate.
        ConnectionError
            If another process is lost. The module has the best weights so far, and the history,
            the error's ``history``, says of which epoch.
        """
        history = History()
        path: list[float] = []
        best = self._snapshot()
        waited = recoveries = 0
        try:
            if evaluate is not None:
                history.best_score = evaluate()
            reference = history.best_score
            while history.n_iter < max_iter:
                loss = self.epoch(rows, history.n_iter)
                path.append(self.learning_rate)
                finite = math.isfinite(loss)
                score = evaluate() if evaluate is not None and finite else -loss
                history.losses.append(loss)
                history.scores.append(score)
                if not (finite and math.isfinite(score)):
                    recoveries += 1
                    if recoveries > MAX_RECOVERIES:
                        raise FloatingPointError(
                            f"the loss was not finite {recoveries} times, the last time in epoch "
                            f"{history.n_iter} at a learning rate of {self.learning_rate:.1e}"
                        )
                    self._restore(best)
                    path[:] = history.path
                    self.reset(self.learning_rate / DECAY)
                else:
                    if score > history.best_score:
                        history.best_score, history.best_iter = score, history.n_iter
                        history.path = list(path)
                        best = self._snapshot()
                    waited += 1
                    if score > reference + tol:
                        reference, waited, history.rose = score, 0, True
                if on_epoch is not None and on_epoch(history):
                    history.stopped = True
                    break
                if waited >= n_iter_no_change:
                    history.converged = True
                    break
        except KeyboardInterrupt:
            history.interrupted = True
        except ConnectionError as error:
            self._restore(best)
            error.history = history  # type: ignore[attr-defined]
            raise
        if evaluate is not None or history.interrupted:
            self._restore(best)
        self.module.eval()
        return history
