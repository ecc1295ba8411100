"""The spread of a density around a mean that stays as it is: sigma_j(z) of each column.

Expectation-maximisation. The posteriors of rows under the present spread are `VAE.laplace`'s: the
encoder's would not do, since they belong to the one spread common to all columns that the mean was
trained with, and blur what some columns say precisely. Given them, first one variance per column,
in closed form, then the network of log-variances, by gradient.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .likelihoods import Gaussian, split_gaps
from .training import Rows, Trainer
from .vae import MOST_STEPS, VAE
from .workspace import how_many, slices, width

VARIANCE_ROWS = 1_000  # that these are found from, at most
N_VARIANCE_STEPS = 6  # of expectation-maximisation for one variance per column
LEARNED_STEPS = 3  # towards the modes of rows that are learned from, each round
N_DRAWS = 8  # of z, wherever an expectation over a row's posterior is taken


@dataclass
class Sample:
    """Targets (n, n_columns), float32, and their shares of the weight, which sum to one."""

    targets: Tensor
    share: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def head(self, n_rows: int) -> "Sample":
        """The first rows."""
        share = self.share[:n_rows]
        return Sample(self.targets[:n_rows], share / share.sum())


class SpreadFit:
    """Fit the spread of a model whose mean stays as it is.

    An error as large as the largest seen in its column counts once more, spread over all rows:
    the next row may be the next such row, and a spread that has seen none near its z must not
    exclude it. ``excess`` holds these, (n_columns,).

    Parameters
    ----------
    model : VAE
        float32; its decoder is a `Spread`.
    constant : VAE
        The same model without the network of the spread, of the same parameters.
    part : Gaussian
        The part of the model's likelihood that varies, the last one.
    columns : slice or list of int
        That it speaks about.
    rows, others : Sample
        To learn from, and held-out ones to judge by; without others the last spread is kept.
    floor : float
        Lowest standard deviation, in standardised units.
    generator : Generator
    excess : Tensor of shape (n_columns,), default=None
        That of an earlier fit to go on from, whose spread is then the start.

    Attributes
    ----------
    gains : Tensor of shape (n_others,) or None
        How much the log-density of each held-out row rose over one variance per column. None before
        that was tried, and where the fit goes on from another.
    """

    def __init__(
        self,
        model: VAE,
        constant: VAE,
        part: Gaussian,
        columns: slice | list[int],
        rows: Sample,
        others: Sample,
        floor: float,
        generator: torch.Generator,
        excess: Tensor | None = None,
    ) -> None:
        self.model, self.constant, self.rows, self.others = model, constant, rows, others
        self.part, self.columns = part, columns
        self.floor, self.generator = floor, generator
        self.spread = model.decoder
        self.goes_on = excess is not None
        self.excess = torch.zeros(part.n_columns) if excess is None else excess
        self.points = self._noise(64, model.n_components)
        self.modes: Tensor | None = None  # of the rows, as they were last found
        self.posterior: tuple[Tensor, Tensor] | None = None  # of held-out rows, as last judged by
        self.moving = nn.ModuleList([self.spread.network, self.part])
        self.best, self.best_score = copy.deepcopy(self.moving.state_dict()), -math.inf
        self.best_rows = torch.zeros(len(others))
        self.gains: Tensor | None = None

    def run(
        self,
        n_rounds: int,
        n_epochs: int,
        batch_size: int,
        learning_rate: float,
        max_grad_norm: float,
        tol: float,
        n_iter_no_change: int,
    ) -> bool:
        """Fit, leave the best spread in the model, and return whether all went to its end."""
        finished = True
        try:
            if self.goes_on:
                self.modes = self._note_errors(self.rows)
            else:
                self._judge()
                self._fit_variances()
            self._judge()
            plain = self.best_rows
            for _ in range(n_rounds):
                trainer = Trainer(self.moving, learning_rate, max_grad_norm, modes=False)
                history = trainer.fit(
                    self._training_rows(batch_size),
                    self._evaluation() if len(self.others) else None,
                    max_iter=n_epochs,
                    tol=tol,
                    n_iter_no_change=n_iter_no_change,
                )
                self._judge()
                if not self.goes_on:
                    self.gains = self.best_rows - plain
                if history.interrupted:
                    finished = False
                    break
        except KeyboardInterrupt:
            finished = False
        self.moving.load_state_dict(self.best)
        for parameter in self.moving.parameters():
            parameter.data = parameter.data.clone()  # out of the trainer's buffer
            parameter.grad = None
        return finished

    def _judge(self) -> None:
        """Keep the present spread if the held-out rows' density is the best so far."""
        score, log_prob = math.inf, self.best_rows
        if len(self.others):
            targets, each = self.others.targets, self.model.weighed_width(len(self.points))
            # not from where modes were found before: scores are found without
            mode, factor = self.posterior = posteriors(self.model, targets)
            with torch.no_grad():
                found = [
                    self.model.log_prob(
                        targets[rows], self.points, posterior=(mode[rows], factor[rows])
                    )
                    for rows in slices(len(targets), each, 64)
                ]
            log_prob = torch.cat(found)
            score = float((self.others.share * log_prob).sum())
        if score > self.best_score or not len(self.others):
            self.best, self.best_score = copy.deepcopy(self.moving.state_dict()), score
            self.best_rows = log_prob

    def _note_errors(self, sample: Sample) -> Tensor:
        """Take the largest errors at the modes into account, and return these."""
        mode, _ = posteriors(self.model, sample.targets)
        with torch.no_grad():
            self._note(sample, mode)
        return mode

    def mean(self, z: Tensor) -> Tensor:
        """Of these columns, (..., n_columns)."""
        end = self.model.likelihood.n_inputs
        out: Tensor = self.spread.decoder(z)[..., end - self.part.n_columns : end]
        return out

    def _note(self, sample: Sample, z: Tensor) -> Tensor:
        """Take errors at z into account; returns the sum of the columns' squares, (n_columns,)."""
        total = torch.zeros_like(self.excess)
        for rows in slices(len(sample), width(self.model)):
            cells, observed = split_gaps(sample.targets[rows][:, self.columns])
            error = (cells - self.mean(z[rows])).square()
            error = error if observed is None else error * observed
            self.excess = torch.maximum(self.excess, error.amax(0) / len(self.rows))
            total += sample.share[rows] @ error
        return total

    def _fit_variances(self) -> None:
        """One variance per column."""
        some, base = self.rows.head(VARIANCE_ROWS), self.part.base
        targets = some.targets
        seen = some.share @ (~targets[:, self.columns].isnan()).to(some.share)  # (n_columns,)
        mode, factor = posteriors(self.constant, targets)
        for _ in range(N_VARIANCE_STEPS):
            with torch.no_grad():
                moment = torch.zeros_like(self.excess)
                for _ in range(N_DRAWS):
                    z = mode + (factor @ self._noise(*mode.shape, 1))[..., 0]
                    moment += self._note(some, z) / N_DRAWS
                moment /= seen.clamp_min(1e-12)
                base.copy_((moment + self.excess).clamp_min(self.floor**2).log())
            mode, factor = posteriors(self.constant, targets, mode, 1)
        if len(self.others):
            self._note_errors(self.others)
            with torch.no_grad():
                base.copy_(torch.maximum(base, self.excess.log()))

    def _training_rows(self, batch_size: int) -> Rows:
        """The rows at draws from their posteriors under the present spread."""
        n_rows = len(self.rows)
        mode, factor = posteriors(self.model, self.rows.targets, self.modes, LEARNED_STEPS)
        self.modes = mode
        with torch.no_grad():
            self._note(self.rows, mode)
        cells, observed = split_gaps(self.rows.targets[:, self.columns])
        stored = [mode, factor, self.rows.share * n_rows, cells]
        stored += [] if observed is None else [observed]

        @torch.no_grad()
        def gather(order: Tensor) -> tuple[Tensor, ...]:
            center, root, weight, *rest = (tensor.index_select(0, order) for tensor in stored)
            z = center + (root @ self._noise(len(order), mode.shape[1], 1))[..., 0]
            square = (rest[0] - self.mean(z)).square_()
            if len(rest) > 1:
                square *= rest[1]
            square += self.excess
            return square, weight, z, *rest[1:]

        @torch.no_grad()
        def backward(
            epoch: int, square: Tensor, weight: Tensor, z: Tensor, observed: Tensor | None = None
        ) -> Tensor:
            added, back = self.spread.log_var_vjp(z)
            loss, gradient = self.part.spread_vjp(added, square, weight / len(z), observed)
            back(gradient, False)
            return loss

        at_once = how_many(width(self.model))
        return Rows.stored(n_rows, gather, backward, batch_size, self.generator, at_once)

    def _evaluation(self) -> Callable[[], float]:
        """Held-out expected log-likelihood, at fixed draws from the posteriors last judged by."""
        assert self.posterior is not None
        share, (mode, factor) = self.others.share, self.posterior
        cells, observed = split_gaps(self.others.targets[:, self.columns])
        z = mode + (factor @ self._noise(N_DRAWS, *mode.shape, 1))[..., 0]  # (draws, n, k)
        with torch.no_grad():
            means = self.mean(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:2], -1)
            square = (cells - means).square_()  # (draws, n, n_columns)
        each = N_DRAWS * width(self.model)

        def evaluate() -> float:
            total = 0.0
            with torch.no_grad():
                for rows in slices(len(cells), each):
                    added = self.spread.log_var(z[:, rows])
                    found = self.part.spread_log_prob(added, square[:, rows])
                    found = found if observed is None else found * observed[rows]
                    total += float(share[rows] @ found.sum(-1).mean(0))
            return total

        return evaluate

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float32)


def posteriors(
    model: VAE, targets: Tensor, start: Tensor | None = None, n_steps: int = MOST_STEPS
) -> tuple[Tensor, Tensor]:
    """`VAE.laplace` of many rows, in batches: modes (n, k) and factors (n, k, k)."""
    parts = []
    with torch.no_grad():
        each = width(model) * (model.n_components + 1)
        for rows in slices(len(targets), each, 128):
            begin = None if start is None else start[rows]
            parts.append(model.laplace(targets[rows], begin, n_steps))
    return torch.cat([mode for mode, _ in parts]), torch.cat([factor for _, factor in parts])
