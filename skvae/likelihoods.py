"""p(x | z): one class per family, and ``Mixed``, which joins groups of columns.

A likelihood reads the decoder's raw output, of width ``n_params``, and speaks about *targets*: T
after ``standardize``. Its log-densities are in standardised units; ``log_scale`` holds what turns
them into original ones, ``log p(x) = log p(standardised x) - log_scale`` per cell. Everything that
evaluates, draws or summarises p(x | z) goes through these methods, so the density is written once.

==================  ======================================================================
``standardize(T)``  T in original units -> targets, float64, NaN kept (numpy)
``restore(t)``      the inverse, for means and draws (numpy)
``embed(t)``        targets -> what the encoder reads (torch)
``log_prob``        (raw, targets) -> nats per cell, (..., n_columns)
``nll_vjp``         (raw, targets) -> minus their sum per row, (n,), and its gradient backwards;
                    optional, for speed
``fisher``          raw -> expected information per raw parameter, (..., n_params)
``mean``            raw -> E[x | z], standardised units, (..., n_columns)
``sample``          raw -> one draw, standardised units, (..., n_columns)
==================  ======================================================================

Ranges are part of the family: ``support`` is the closed interval its data may lie in, and
validation reads it from there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LOG_2PI = math.log(2 * math.pi)


class _Bound(torch.autograd.Function):
    """``clamp`` whose gradient still passes where it leads back inside the interval.

    The plain clamp has zero gradient outside: a variance that once fell below its floor would
    stay there for good.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        clamped = value.clamp(low, high)
        ctx.save_for_backward(value, clamped)
        return clamped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        value, clamped = ctx.saved_tensors
        return _inwards(grads[0], value, clamped), None, None


def _inwards(grad: Tensor, value: Tensor, clamped: Tensor) -> Tensor:
    """The gradient, zero where descent along it would lead further out of the interval."""
    return grad.masked_fill((clamped - value) * grad > 0, 0.0)


def bound(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp ``value`` to [low, high]; gradients that point back inside survive."""
    clamped: Tensor = _Bound.apply(value, low, high)
    return clamped


class Gaussian(nn.Module):
    """Columns that are normal given z: ``x_j | z ~ N(mean_j(z), sigma_j(z)^2)``.

    Parameters
    ----------
    shift, scale : ndarray of shape (n_columns,)
        Location and unit of each column: targets are ``(T - shift) / scale``.
    log_var : Tensor of shape (n_columns,)
        Log-variances at the start, in standardised units.
    learn : {"each", "common", "none"}
        What is learned about them: each column's, one amount common to all, or nothing.
    varies : bool, default=False
        Whether the decoder adds a log-variance of its own as a function of z: the raw output is
        then (mean, addition), twice as wide.
    floor : float, default=0.01
        Lowest standard deviation, in units of the column's own.

    References
    ----------
    Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders",
    ICML 2021.
    """

    support = (-math.inf, math.inf)
    HIGHEST = 1e4  # standard deviation, standardised units

    def __init__(
        self,
        shift: NDArray[np.float64],
        scale: NDArray[np.float64],
        log_var: Tensor,
        learn: str = "each",
        varies: bool = False,
        floor: float = 0.01,
    ) -> None:
        super().__init__()
        self.shift, self.scale = np.asarray(shift), np.asarray(scale)
        self.n_columns = self.n_inputs = len(self.scale)
        self.varies = varies
        self.n_params = self.n_columns * (2 if varies else 1)
        self.low, self.high = 2 * math.log(floor), 2 * math.log(self.HIGHEST)
        # log-variance of column j = base_j + common; `learn` says which of the two moves
        self.base = nn.Parameter(log_var.clone(), requires_grad=learn == "each")
        self.common = nn.Parameter(log_var.new_zeros(()), requires_grad=learn == "common")

    @property
    def log_scale(self) -> NDArray[np.float64]:
        """Log of each column's unit: nats to subtract per cell for original units."""
        return np.log(self.scale)

    def standardize(self, T: NDArray[np.float64]) -> NDArray[np.float64]:
        return (T - self.shift) / self.scale

    def restore(self, targets: NDArray[np.float64]) -> NDArray[np.float64]:
        return targets * self.scale + self.shift

    def embed(self, targets: Tensor) -> Tensor:
        return targets

    def log_var(self, raw: Tensor) -> Tensor:
        """Log-variances, standardised units: (..., n_columns), or (n_columns,) if constant."""
        return bound(self._unbounded(raw), self.low, self.high)

    def _unbounded(self, raw: Tensor) -> Tensor:
        log_var = self.base + self.common
        return log_var + raw[..., self.n_columns :] if self.varies else log_var

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        log_var = self.log_var(raw)
        error = (targets - self.mean(raw)) * (-0.5 * log_var).exp()
        return torch.addcmul(-0.5 * (LOG_2PI + log_var), error, error, value=-0.5)

    def nll_vjp(self, raw: Tensor, targets: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        value = self._unbounded(raw)
        log_var = value.clamp(self.low, self.high)
        root = (-0.5 * log_var).exp()  # of the precision
        error = (self.mean(raw) - targets).mul_(root)  # in units of sigma
        square = error.square()
        nll = 0.5 * (square.sum(-1) + (log_var + LOG_2PI).sum(-1))

        def back(grad: Tensor) -> Tensor:
            grad = grad[:, None]
            to_mean = (error * root).mul_(grad)
            learned = [p for p in (self.base, self.common) if p.requires_grad]
            if not (learned or self.varies):
                return to_mean
            weight = 0.5 * grad
            if self.varies:
                to_log_var = weight - weight * square  # (n, n_columns)
            else:
                to_log_var = weight.sum() - weight[:, 0] @ square
            to_log_var = _inwards(to_log_var, value, log_var)
            for parameter in learned:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad += to_log_var.sum_to_size(parameter.shape)
            return torch.cat([to_mean, to_log_var], -1) if self.varies else to_mean

        return nll, back

    def fisher(self, raw: Tensor) -> Tensor:
        precision = (-self.log_var(raw)).exp().expand(self.mean(raw).shape)
        if not self.varies:
            return precision
        return torch.cat([precision, torch.full_like(precision, 0.5)], -1)

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., : self.n_columns]

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        mean = self.mean(raw)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return mean + (0.5 * self.log_var(raw)).exp() * noise


class Bernoulli(nn.Module):
    """Columns in [0, 1]: ``x_j | z ~ Bernoulli(sigmoid(raw_j))``, the cross-entropy.

    Values strictly between 0 and 1 are read as probabilities, ``x log p + (1 - x) log(1 - p)``:
    the usual convention for grey images, not a density over [0, 1].

    Parameters
    ----------
    probability : ndarray of shape (n_columns,)
        Mean of each column, in (0, 1): centres and scales what the encoder reads.
    """

    support = (0.0, 1.0)

    def __init__(self, probability: NDArray[np.float64]) -> None:
        super().__init__()
        self.n_columns = self.n_inputs = self.n_params = len(probability)
        p = torch.from_numpy(np.asarray(probability, dtype=np.float64))
        self.register_buffer("center", p)
        self.register_buffer("spread", (p * (1 - p)).sqrt())
        self.center: Tensor
        self.spread: Tensor

    @property
    def log_scale(self) -> NDArray[np.float64]:
        """Zero: probabilities have no unit."""
        return np.zeros(self.n_columns)

    def standardize(self, T: NDArray[np.float64]) -> NDArray[np.float64]:
        return T

    def restore(self, targets: NDArray[np.float64]) -> NDArray[np.float64]:
        return targets

    def embed(self, targets: Tensor) -> Tensor:
        return (targets - self.center) / self.spread

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        return targets * raw - nn.functional.softplus(raw)

    def nll_vjp(self, raw: Tensor, targets: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        nll = (nn.functional.softplus(raw) - targets * raw).sum(-1)
        return nll, lambda grad: (raw.sigmoid() - targets) * grad[:, None]

    def fisher(self, raw: Tensor) -> Tensor:
        p = raw.sigmoid()
        return p * (1 - p)

    def mean(self, raw: Tensor) -> Tensor:
        return raw.sigmoid()

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(raw.shape, generator=generator, dtype=raw.dtype)
        return (uniform < raw.sigmoid()).to(raw.dtype)


Likelihood = Gaussian | Bernoulli


class Mixed(nn.Module):
    """Groups of columns side by side, each with its own family.

    Parameters
    ----------
    parts : sequence of likelihoods
        One per group.
    columns : sequence of sequences of int
        The columns of T that each part speaks about; together a partition of all columns.

    Notes
    -----
    The raw output and the encoder's input are the parts' own, one after the other; targets, means
    and draws are in the order of T.
    """

    def __init__(self, parts: Sequence[Likelihood], columns: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.parts: Any = nn.ModuleList(parts)
        self.columns = [list(group) for group in columns]
        flat = [j for group in self.columns for j in group]
        if sorted(flat) != list(range(len(flat))):
            raise ValueError(f"columns must be a partition of all columns, got {self.columns}.")
        self.n_columns = len(flat)
        self.n_inputs = sum(part.n_inputs for part in parts)
        self.n_params = sum(part.n_params for part in parts)
        self._order = np.argsort(flat)  # from the parts' order to T's
        self._widths = [part.n_params for part in parts]

    @property
    def log_scale(self) -> NDArray[np.float64]:
        return np.concatenate([part.log_scale for part in self.parts])[self._order]

    def standardize(self, T: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._each_array("standardize", T)

    def restore(self, targets: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._each_array("restore", targets)

    def embed(self, targets: Tensor) -> Tensor:
        parts = zip(self.parts, self.columns, strict=True)
        return torch.cat([part.embed(targets[..., group]) for part, group in parts], -1)

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        parts = zip(self.parts, self._split(raw), self.columns, strict=True)
        return self._join([p.log_prob(r, targets[..., group]) for p, r, group in parts])

    def fisher(self, raw: Tensor) -> Tensor:
        parts = zip(self.parts, self._split(raw), strict=True)
        return torch.cat([part.fisher(r) for part, r in parts], -1)

    def mean(self, raw: Tensor) -> Tensor:
        return self._join([p.mean(r) for p, r in zip(self.parts, self._split(raw), strict=True)])

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        parts = zip(self.parts, self._split(raw), strict=True)
        return self._join([part.sample(r, generator) for part, r in parts])

    def _split(self, raw: Tensor) -> tuple[Tensor, ...]:
        return raw.split(self._widths, -1)

    def _join(self, cells: list[Tensor]) -> Tensor:
        return torch.cat(cells, -1)[..., self._order]

    def _each_array(self, method: str, T: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty_like(T)
        for part, group in zip(self.parts, self.columns, strict=True):
            out[:, group] = getattr(part, method)(T[:, group])
        return out
