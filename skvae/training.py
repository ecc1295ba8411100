"""The loop: batches, warm-up, clipping, early stopping, best weights.

Nothing in this file knows what a variational autoencoder is: it trains any module through a
function that gives a loss per row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# how often a fit may go back to its best weights after a non-finite loss
MAX_RECOVERIES = 5


@dataclass
class History:
    """What happened, one entry an epoch; ``n_iter`` is the number of epochs."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_score: float = -math.inf
    best_iter: int = 0
    converged: bool = False
    interrupted: bool = False
    # learning rate of each epoch on the way to the best weights, detours left out
    path: list[float] = field(default_factory=list)

    @property
    def n_iter(self) -> int:
        return len(self.losses)


class Trainer:
    """Adam over the parameters of ``module``, kept in one flat tensor.

    Parameters
    ----------
    module : Module
        Its parameters that require a gradient are moved into one buffer, of which they become
        views: a step, a reset or a copy of all of them is then one operation.
    learning_rate : float
    max_grad_norm : float
        Gradients longer than this are scaled down to it.
    alpha : float
        Strength of the L2 penalty ``alpha / 2 * ||parameter||^2`` per row on ``penalised``.
    penalised : list of parameters
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        max_grad_norm: float = math.inf,
        alpha: float = 0.0,
        penalised: tuple[Tensor, ...] = (),
    ) -> None:
        self.module, self.max_grad_norm = module, max_grad_norm
        parameters = [p for p in module.parameters() if p.requires_grad]
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.flat.grad = torch.zeros_like(self.flat)
        self.decay = torch.zeros_like(self.flat) if alpha else None
        offset = 0
        chosen = {id(p) for p in penalised}
        for p in parameters:
            part = slice(offset, offset + p.numel())
            p.data = self.flat[part].view_as(p)
            p.grad = self.flat.grad[part].view_as(p)
            if self.decay is not None and id(p) in chosen:
                self.decay[part] = alpha
            offset += p.numel()
        self.reset(learning_rate)

    def reset(self, learning_rate: float) -> None:
        """Start Adam afresh."""
        self.optimizer = torch.optim.Adam([self.flat], lr=learning_rate, fused=True)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer.param_groups[0]["lr"] = value

    def epoch(
        self,
        row_losses: Callable[[Tensor], Tensor],
        order: Tensor,
        weights: Tensor,
        batch_size: int,
    ) -> float:
        """One pass over the rows in ``order``; the mean loss per unit of weight."""
        self.module.train()
        total = torch.zeros((), dtype=torch.float64, device=self.flat.device)
        grad = self.flat.grad
        assert grad is not None
        # the last batch is never a crumb: rows are spread over the batches evenly
        for rows in order.tensor_split(max(1, math.ceil(len(order) / batch_size))):
            grad.zero_()
            loss = (row_losses(rows) * weights[rows]).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            if self.decay is not None:
                grad.addcmul_(self.decay, self.flat)
            if self.max_grad_norm < math.inf:
                grad.mul_((self.max_grad_norm / (grad.norm() + 1e-12)).clamp_max(1.0))
            self.optimizer.step()
            total += loss.detach() * len(rows)
        return float(total / weights[order].sum())

    def replay(
        self,
        row_losses: Callable[[Tensor, int], Tensor],
        path: list[float],
        *,
        n_rows: int,
        weights: Tensor,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        """Train for ``len(path)`` epochs at these learning rates, as an earlier fit did."""
        for epoch, learning_rate in enumerate(path):
            if learning_rate != self.learning_rate:
                self.reset(learning_rate)
            order = torch.randperm(n_rows, generator=generator)
            self.epoch(lambda r, e=epoch: row_losses(r, e), order, weights, batch_size)  # type: ignore[misc]
        self.module.eval()

    def fit(
        self,
        row_losses: Callable[[Tensor, int], Tensor],
        evaluate: Callable[[], float] | None,
        *,
        n_rows: int,
        weights: Tensor,
        batch_size: int,
        max_iter: int,
        tol: float,
        n_iter_no_change: int,
        n_decays: int,
        generator: torch.Generator,
        on_epoch: Callable[[History], bool] = lambda history: False,
    ) -> History:
        """Train until the score stops rising; leave the best weights in the module.

        Parameters
        ----------
        row_losses : callable
            ``row_losses(rows, epoch)``: the loss of each row of a batch.
        evaluate : callable or None
            Score to raise, evaluated before the first epoch and after each. None: the negative
            training loss, with the last weights kept.
        tol : float
            Smallest rise that counts.
        n_iter_no_change : int
            Epochs without a rise after which the learning rate drops to a fifth, going back to
            the best weights; after ``n_decays`` drops, training stops.
        """
        history = History()
        best = self.flat.clone()
        if evaluate is not None:
            self.module.eval()
            history.best_score = evaluate()
        waited = drops = recoveries = 0
        path: list[float] = []
        reference = history.best_score
        try:
            while history.n_iter < max_iter:
                order = torch.randperm(n_rows, generator=generator)
                epoch = history.n_iter
                loss = self.epoch(lambda r, e=epoch: row_losses(r, e), order, weights, batch_size)  # type: ignore[misc]
                self.module.eval()
                score = evaluate() if evaluate is not None and math.isfinite(loss) else -loss
                if not (math.isfinite(score) and math.isfinite(loss)):
                    recoveries += 1
                    if recoveries > MAX_RECOVERIES:
                        raise FloatingPointError(
                            f"the loss was not finite {recoveries} times, the last time in epoch "
                            f"{epoch + 1} at a learning rate of {self.learning_rate:.1e}"
                        )
                    self.flat.copy_(best)
                    path = list(history.path)
                    self.reset(self.learning_rate / 5)
                    history.losses.append(math.nan)
                    history.scores.append(math.nan)
                    continue
                path.append(self.learning_rate)
                history.losses.append(loss)
                history.scores.append(score)
                if score > history.best_score:
                    history.best_score, history.best_iter = score, history.n_iter
                    history.path = list(path)
                    best.copy_(self.flat)
                if score > reference + tol:
                    reference, waited = score, 0
                else:
                    waited += 1
                if on_epoch(history):
                    break
                if waited >= n_iter_no_change:
                    if drops == n_decays:
                        history.converged = True
                        break
                    drops, waited = drops + 1, 0
                    if evaluate is not None:
                        self.flat.copy_(best)
                        path = list(history.path)
                    self.reset(self.learning_rate / 5)
        except KeyboardInterrupt:
            history.interrupted = True
        if evaluate is not None:
            self.flat.copy_(best)
        self.module.eval()
        return history
