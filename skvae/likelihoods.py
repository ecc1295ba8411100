"""p(x | z): one class per family, and ``Mixed``, which joins groups of columns.

A likelihood reads the decoder's raw output, of width ``n_params``, and speaks about *targets*: T
after ``standardize``, NaN where a cell is missing. Its log-densities are those of the targets;
``log_unit`` turns them into original units, ``log p(x) = log p(target) - log_unit`` per cell.
Everything that evaluates, draws or summarises p(x | z) goes through these methods, so the density
is written once.

=====================  ===================================================================
``standardize(T)``     T in original units -> targets, NaN kept (numpy); of float32 maybe float32
``restore(t)``         the inverse, for draws (numpy)
``log_unit(T)``        nats per cell that original units cost, 0 where missing (numpy)
``embed(t)``           targets -> what the encoder reads, (n, n_inputs), NaN kept (torch)
``start(noise, mean)`` of a linear model of the inputs, both (n_inputs,): takes over the noise's
                       variance; the raw output's bias (n_params,), and how much the first n_inputs
                       of it move when inputs do: what a linear path reaches, and no more
``log_prob``           (raw, targets) -> nats per cell, (..., n_columns); missing cells give 0
``nll_vjp``            (raw, targets, weights (n,)) -> minus the weighted sum of all, a number, and
                       its gradient with respect to raw, while that of the parameters is set;
                       optional, for speed
``whiten``             (raw, jacobian (n, k, n_params), targets) -> A (n, k, n_params): A A' is the
                       expected information of the observed cells about k directions
``mean(raw)``          what averages over z: means or, of categories, probabilities, (..., n_stats)
``restore_mean(s)``    these -> T in original units, the most probable category (numpy); of float32
                       maybe float32
``sample``             raw -> one draw of the targets, (..., n_columns)
=====================  ===================================================================

``mean`` and ``sample`` take the targets of the same rows as well: what is observed of a row may
say how large the rest is (an exposure).

Ranges are part of the family: ``support`` is the closed interval its data may lie in, ``integers``
whether only whole numbers are allowed; validation reads them from there.
"""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skvae.gradients import LOG_2PI as LOG_2PI
from skvae.gradients import gradient_of, nll_vjp

Floats = NDArray[np.float64]


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
    if value.device.type == "cpu" and torch.equal(value, clamped):
        return grad
    return grad.masked_fill((clamped - value) * grad > 0, 0.0)


def bound(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp ``value`` to [low, high]; gradients that point back inside survive."""
    clamped: Tensor = _Bound.apply(value, low, high)
    return clamped


def split_gaps(targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Targets with gaps filled by 0, which lies in every support, and 1 where observed, else 0.

    Fill first, compute, then mask: a NaN that has entered gives NaN gradients. Without gaps the
    second is None.
    """
    # for any targets where a model is exported, and where the answer would have to be waited for
    unseen = torch.compiler.is_compiling() or targets.device.type != "cpu"
    # the quickest way to see that there is no gap
    if not unseen and not math.isnan(float(targets.detach().sum())):
        return targets, None
    gaps = targets.isnan()
    if not unseen and not gaps.any():
        return targets, None
    return targets.masked_fill(gaps, 0.0), (~gaps).to(targets.dtype)


def _masked(cells: Tensor, observed: Tensor | None) -> Tensor:
    return cells if observed is None else cells * observed


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
    log : ndarray of bool of shape (n_columns,), default=None
        Columns whose logarithm is normal: all above is about ``log(T)`` there.

    References
    ----------
    Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders",
    ICML 2021.
    """

    support = (-math.inf, math.inf)
    integers = False
    HIGHEST = 1e4  # standard deviation, standardised units

    def __init__(
        self,
        shift: Floats,
        scale: Floats,
        log_var: Tensor,
        learn: str = "each",
        varies: bool = False,
        floor: float = 0.01,
        log: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__()
        self.shift, self.scale = np.asarray(shift), np.asarray(scale)
        self.n_columns = self.n_inputs = self.n_stats = len(self.scale)
        self.log = log if log is not None and np.any(log) else None
        self.varies = varies
        self.n_params = self.n_columns * (2 if varies else 1)
        self.low, self.high = 2 * math.log(floor), 2 * math.log(self.HIGHEST)
        # log-variance of column j = base_j + common; `learn` says which of the two moves
        self.base = nn.Parameter(log_var.clone(), requires_grad=learn == "each")
        self.common = nn.Parameter(log_var.new_zeros(()), requires_grad=learn == "common")

    @property
    def plain(self) -> bool:
        """Whether means have nothing to do with spreads, as those of logarithms have."""
        return self.log is None

    def constant(self) -> "Gaussian":
        """The same columns, spreads no longer functions of z; the parameters are these."""
        other = copy.copy(self)
        other.varies, other.n_params = False, self.n_columns
        return other

    def log_unit(self, T: Floats) -> Floats:
        unit = np.broadcast_to(np.log(self.scale), T.shape)
        if self.log is not None:
            unit = unit + np.where(self.log, _logs(T, self.log), 0.0)
        return np.where(np.isnan(T), 0.0, unit)

    def standardize(self, T: Floats) -> Floats:
        if self.log is not None:
            T = np.where(self.log, _logs(T, self.log), T)
        # a tensor, so that all threads have their part; of memory that torch takes as it is
        whole = all(stride >= 0 and stride % T.itemsize == 0 for stride in T.strides)
        taken = whole and T.flags.writeable
        cells = torch.from_numpy(T if taken else T.copy())
        shifts, scale = (self.shift,), self.scale
        if T.dtype == np.float32 and self._single is not None:
            shifts, scale = self._single
        for shift in shifts:
            cells = cells - torch.tensor(shift)
        out: Floats = cells.div_(torch.tensor(scale)).numpy()
        return out

    @functools.cached_property
    def _single(self) -> tuple[tuple[Any, ...], Any] | None:
        """The shift in parts and the scale, in single precision; None where these lie far out.

        The second part is what rounding has left of the shift, where it is something beside the
        scale.
        """
        inside = (np.abs(self.shift) < 1e30) & (self.scale < 1e30) & (self.scale > 1e-30)
        if not inside.all():
            return None
        high = self.shift.astype(np.float32)
        low = self.shift - high
        matters = (np.abs(low) > np.finfo(np.float32).eps * self.scale).any()
        shifts = (high, low.astype(np.float32)) if matters else (high,)
        return shifts, self.scale.astype(np.float32)

    def restore(self, targets: Floats) -> Floats:
        T: Floats = targets * self.scale + self.shift
        if self.log is not None:
            with np.errstate(over="ignore"):
                T[..., self.log] = np.exp(T[..., self.log])
        return T

    def embed(self, targets: Tensor) -> Tensor:
        return targets

    def start(self, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.base.copy_(noise.log())
        bias = nn.functional.pad(mean, (0, self.n_params - self.n_inputs))
        return bias, torch.ones_like(noise)

    def log_var(self, raw: Tensor) -> Tensor:
        """Log-variances, standardised units: (..., n_columns), or (n_columns,) if constant."""
        return bound(self._unbounded(self._added(raw)), self.low, self.high)

    def _added(self, raw: Tensor) -> Tensor | None:
        """What the decoder adds to log-variances."""
        return raw[..., self.n_columns :] if self.varies else None

    def _unbounded(self, added: Tensor | None) -> Tensor:
        log_var = self.base + self.common
        return log_var if added is None else log_var + added

    def location(self, raw: Tensor) -> Tensor:
        """Mean of the targets: (..., n_columns)."""
        return raw[..., : self.n_columns]

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        targets, observed = split_gaps(targets)
        log_var = self.log_var(raw)
        error = (targets - self.location(raw)) * (-0.5 * log_var).exp()
        cells = torch.addcmul(-0.5 * (LOG_2PI + log_var), error, error, value=-0.5)
        return _masked(cells, observed)

    def nll_vjp(self, raw: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        targets, observed = split_gaps(targets)
        value = self._unbounded(self._added(raw))
        log_var = value.clamp(self.low, self.high)
        root = (-0.5 * log_var).exp()  # of the precision
        error = (self.location(raw) - targets).mul_(root)  # in units of sigma
        if observed is not None:
            error.mul_(observed)
        nll, to_log_var = self._log_var_vjp(error.square(), value, log_var, weights, observed)
        to_raw = error.mul_(root).mul_(weights[:, None])
        if self.varies:
            to_raw = torch.cat([to_raw, to_log_var], -1)
        return nll, to_raw

    def spread_log_prob(self, added: Tensor, square: Tensor) -> Tensor:
        """Log-densities of cells by their squared errors, given what is added to log-variances."""
        log_var = self._unbounded(added).clamp(self.low, self.high)
        return torch.addcmul(-0.5 * (LOG_2PI + log_var), square, (-log_var).exp(), value=-0.5)

    def spread_vjp(
        self, added: Tensor, square: Tensor, weights: Tensor, observed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`nll_vjp` of squared errors, and its gradient with respect to ``added``: means stay."""
        value = self._unbounded(added)
        log_var = value.clamp(self.low, self.high)
        square = (-log_var).exp_().mul_(square)
        return self._log_var_vjp(square, value, log_var, weights, observed)

    def _log_var_vjp(
        self,
        square: Tensor,
        value: Tensor,
        log_var: Tensor,
        weights: Tensor,
        observed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of squared errors in units of sigma, and its gradient to log-variances.

        Those of their parameters are set.
        """
        half = 0.5 * weights
        if self.varies:  # these two are of the shape of log_var, or broadcast to it
            half = half[:, None]
            each = half if observed is None else half * observed
            squares = half * square
        else:
            each = half.sum() if observed is None else half @ observed
            squares = half @ square
        nll = torch.addcmul(squares, each, log_var + LOG_2PI).sum()
        to_log_var = _inwards(each - squares, value, log_var)
        for parameter in (self.base, self.common):
            if parameter.requires_grad:
                whole = to_log_var.shape == parameter.shape
                own = to_log_var if whole else to_log_var.sum_to_size(parameter.shape)
                gradient_of(parameter).copy_(own)
        return nll, to_log_var

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        root = (-0.5 * self.log_var(raw)).exp().expand(self.location(raw).shape)
        root = _masked(root, split_gaps(targets)[1])
        if self.varies:
            half = _masked(torch.full_like(root, math.sqrt(0.5)), split_gaps(targets)[1])
            root = torch.cat([root, half], -1)
        return jacobian * root[:, None]

    def mean(self, raw: Tensor, targets: Tensor | None = None) -> Tensor:
        mean = self.location(raw)
        if self.log is None:
            return mean
        # of exp(scale * t), in units of exp(shift): means of logarithms would give medians
        scale = torch.as_tensor(np.where(self.log, self.scale, 0.0), dtype=raw.dtype)
        original = (scale * mean + 0.5 * scale.square() * self.log_var(raw).exp()).exp()
        return torch.where(torch.as_tensor(self.log), original, mean)

    def restore_mean(self, stats: Floats) -> Floats:
        if stats.dtype == np.float32 and self.log is None and self._single is not None:
            shifts, scale = self._single
            T: Floats = stats * scale
            for shift in shifts[::-1]:
                T += shift
            return T
        T = stats * self.scale + self.shift
        if self.log is not None:
            with np.errstate(over="ignore"):
                T[..., self.log] = stats[..., self.log] * np.exp(self.shift[self.log])
        return T

    def sample(
        self, raw: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        mean = self.location(raw)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return torch.addcmul(mean, (0.5 * self.log_var(raw)).exp(), noise)


def _logs(T: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """log(T), where chosen."""
    out = np.zeros(T.shape)  # in double precision: logarithms differ less than their numbers do
    return np.log(T, where=np.broadcast_to(chosen, T.shape), out=out, dtype=np.float64)


class StudentT(nn.Module):
    """Columns with heavy tails: ``(x_j - location_j(z)) / s_j ~ t(df_j)``, s and df learned.

    The encoder reads cells clipped at `CLIP` units: one wild cell should not move the latent more
    than the density lets it.

    Parameters
    ----------
    shift, scale : ndarray of shape (n_columns,)
        Robust location and unit of each column: targets are ``(T - shift) / scale``.
    floor : float, default=0.01
        Lowest s, in units of ``scale``.

    References
    ----------
    Lange, Little and Taylor, "Robust Statistical Modeling Using the t Distribution", JASA 1989.
    """

    support = (-math.inf, math.inf)
    integers = False
    CLIP = 5.0
    DF = (1.5, 200.0)  # above 1 a mean exists

    def __init__(self, shift: Floats, scale: Floats, floor: float = 0.01) -> None:
        super().__init__()
        self.shift, self.scale = np.asarray(shift), np.asarray(scale)
        self.n_columns = self.n_inputs = self.n_params = self.n_stats = len(self.scale)
        self.low, self.high = math.log(floor), math.log(Gaussian.HIGHEST)
        self.log_s = nn.Parameter(torch.zeros(self.n_columns, dtype=torch.float64))
        df = torch.full((self.n_columns,), math.log(5.0), dtype=torch.float64)
        self.log_df = nn.Parameter(df)

    def log_unit(self, T: Floats) -> Floats:
        return np.where(np.isnan(T), 0.0, np.log(self.scale))

    def standardize(self, T: Floats) -> Floats:
        return (T - self.shift) / self.scale

    def restore(self, targets: Floats) -> Floats:
        return targets * self.scale + self.shift

    restore_mean = restore

    def embed(self, targets: Tensor) -> Tensor:
        return targets.clamp(-self.CLIP, self.CLIP)

    def start(self, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # t(5) has 5/3 times the variance of its unit
            self.log_s.copy_((0.5 * (0.6 * noise).log()).clamp_min(self.low))
        return mean, torch.ones_like(noise)

    def _spread(self) -> tuple[Tensor, Tensor]:
        """Log of s, and degrees of freedom."""
        low, high = (math.log(end) for end in self.DF)
        return bound(self.log_s, self.low, self.high), bound(self.log_df, low, high).exp()

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        targets, observed = split_gaps(targets)
        log_s, df = self._spread()
        # log1p of a square that may overflow: |t| large enough is handled by its logarithm
        t = (targets - raw).abs() * (-log_s).exp()
        log_tail = torch.where(
            t < 1e6, (t.clamp(max=1e6).square() / df).log1p(), 2 * t.clamp(min=1.0).log() - df.log()
        )
        norm = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()
        return _masked(norm - log_s - 0.5 * (df + 1) * log_tail, observed)

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        log_s, df = self._spread()
        root = (0.5 * ((df + 1) / (df + 3)).log() - log_s).exp().expand(raw.shape)
        return jacobian * _masked(root, split_gaps(targets)[1])[:, None]

    def mean(self, raw: Tensor, targets: Tensor | None = None) -> Tensor:
        return raw

    def sample(
        self, raw: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        log_s, df = self._spread()
        normal = torch.randn(raw.shape, generator=generator, dtype=raw.dtype)
        half = (df / 2).expand(raw.shape).contiguous()
        chi_square = torch._standard_gamma(half, generator=generator) / half
        return raw + log_s.exp() * normal / chi_square.sqrt()


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
    integers = False
    DAMPING = (
        0.02  # the start moves columns whose variance is below less than the link's slope says
    )

    def __init__(self, probability: Floats) -> None:
        super().__init__()
        self.n_columns = self.n_inputs = self.n_params = self.n_stats = len(probability)
        p = torch.from_numpy(np.asarray(probability, dtype=np.float64))
        self.register_buffer("center", p)
        self.register_buffer("spread", (p * (1 - p)).sqrt())
        self.center: Tensor
        self.spread: Tensor

    def log_unit(self, T: Floats) -> Floats:
        """Zero: probabilities have no unit."""
        return np.zeros_like(T)

    def standardize(self, T: Floats) -> Floats:
        return T

    restore = restore_mean = standardize

    def embed(self, targets: Tensor) -> Tensor:
        return (targets - self.center) / self.spread

    def start(self, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        # x is about p + p (1 - p) * (raw - logit p): the link's slope
        return self.center.logit(), self.spread / self.spread.square().clamp_min(self.DAMPING)

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        targets, observed = split_gaps(targets)
        return _masked(targets * raw - nn.functional.softplus(raw), observed)

    def nll_vjp(self, raw: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        targets, observed = split_gaps(targets)
        cells = torch.addcmul(nn.functional.softplus(raw), targets, raw, value=-1.0)
        to_raw = (raw.sigmoid() - targets).mul_(weights[:, None])
        return (weights @ _masked(cells, observed)).sum(), _masked(to_raw, observed)

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        p = raw.sigmoid()
        root = (p * (1 - p)).sqrt()
        return jacobian * _masked(root, split_gaps(targets)[1])[:, None]

    def mean(self, raw: Tensor, targets: Tensor | None = None) -> Tensor:
        return raw.sigmoid()

    def sample(
        self, raw: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        uniform = torch.rand(raw.shape, generator=generator, dtype=raw.dtype)
        return (uniform < raw.sigmoid()).to(raw.dtype)


class Categorical(nn.Module):
    """Columns of codes 0 ... K_j - 1: ``x_j | z ~ Categorical(softmax(raw_j))``, K_j logits each.

    The encoder reads indicators, centred, and divided by one number per column, so that all of a
    column's indicators together have variance 1: a column of many levels weighs as one column.

    Parameters
    ----------
    probabilities : sequence of ndarrays of shape (K_j,)
        Share of each level, positive, one array per column.
    """

    support = (0.0, math.inf)
    integers = True
    DAMPING = 0.05  # the start moves levels rarer than this less than the link's slope says

    def __init__(self, probabilities: Sequence[Floats]) -> None:
        super().__init__()
        self.n_levels = [len(p) for p in probabilities]
        self.n_columns = len(self.n_levels)
        self.n_inputs = self.n_params = self.n_stats = sum(self.n_levels)
        offsets = np.cumsum([0, *self.n_levels[:-1]])
        column = torch.from_numpy(np.repeat(np.arange(self.n_columns), self.n_levels))
        p = torch.from_numpy(np.concatenate(probabilities))
        spread = torch.stack([(part * (1 - part)).sum() for part in p.split(self.n_levels)])
        self.register_buffer("offsets", torch.from_numpy(offsets))
        self.register_buffer("column", column)  # of each level
        self.register_buffer("center", p)
        self.register_buffer("spread", spread.clamp_min(1e-12).sqrt()[column])
        self.offsets: Tensor
        self.column: Tensor
        self.center: Tensor
        self.spread: Tensor

    def log_unit(self, T: Floats) -> Floats:
        """Zero: probabilities have no unit."""
        return np.zeros_like(T)

    def standardize(self, T: Floats) -> Floats:
        return T

    restore = standardize

    def restore_mean(self, stats: Floats) -> Floats:
        """The most probable level."""
        parts = np.split(stats, np.cumsum(self.n_levels)[:-1], axis=-1)
        return np.stack([part.argmax(-1) for part in parts], -1).astype(np.float64)

    def _indicators(self, codes: Tensor, observed: Tensor | None) -> Tensor:
        """(n, n_levels), zeros where missing."""
        out = codes.new_zeros(codes.shape[0], self.n_params)
        ones = torch.ones_like(codes) if observed is None else observed
        return out.scatter_(1, codes.long() + self.offsets, ones)

    def embed(self, targets: Tensor) -> Tensor:
        codes, observed = split_gaps(targets)
        inputs = (self._indicators(codes, observed) - self.center) / self.spread
        if observed is not None:
            inputs.masked_fill_(observed[:, self.column] == 0, math.nan)
        return inputs

    def start(self, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        return self.center.log(), self.spread / (self.center + self.DAMPING)

    def _log_total(self, raw: Tensor) -> Tensor:
        """log sum exp of each column's logits: (..., n_columns)."""
        return torch.stack([part.logsumexp(-1) for part in raw.split(self.n_levels, -1)], -1)

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        codes, observed = split_gaps(targets)
        at = (codes.long() + self.offsets).expand(*raw.shape[:-1], -1)
        return _masked(raw.gather(-1, at) - self._log_total(raw), observed)

    def nll_vjp(self, raw: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        codes, observed = split_gaps(targets)
        log_total = self._log_total(raw)
        indicators = self._indicators(codes, observed)
        nll = _masked(log_total, observed).sum(-1) - (raw * indicators).sum(-1)
        p = (raw - log_total[:, self.column]).exp_()
        if observed is not None:
            p *= observed[:, self.column]
        return weights @ nll, (p - indicators).mul_(weights[:, None])

    def _probabilities(self, raw: Tensor) -> Tensor:
        return torch.cat([part.softmax(-1) for part in raw.split(self.n_levels, -1)], -1)

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        # information diag(p) - p p': the spread of the jacobian around its mean over levels
        p = self._probabilities(raw)[:, None]
        weighted = (p * jacobian).split(self.n_levels, -1)
        center = torch.stack([part.sum(-1) for part in weighted], -1)[..., self.column]
        observed = split_gaps(targets)[1]
        root = p.sqrt() if observed is None else p.sqrt() * observed[:, None, self.column]
        return (jacobian - center) * root

    def mean(self, raw: Tensor, targets: Tensor | None = None) -> Tensor:
        return self._probabilities(raw)

    def sample(
        self, raw: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        # the largest of logits with Gumbel noise is a draw from their softmax
        uniform = torch.rand(raw.shape, generator=generator, dtype=raw.dtype)
        noisy = (raw - (-uniform.clamp_min(1e-30).log()).log()).split(self.n_levels, -1)
        return torch.stack([part.argmax(-1) for part in noisy], -1).to(raw.dtype)


class ManyLevels(nn.Module):
    """One column of codes with many levels, described by few numbers each.

    ``p(level | z)`` is proportional to ``probability_level * exp(raw . basis_level)``: an
    exponential family over levels. The encoder reads ``basis_level``. Neither ever holds one
    number per row and level except where probabilities themselves are asked for.

    Parameters
    ----------
    probability : ndarray of shape (n_levels,)
        Share of each level, positive.
    basis : ndarray of shape (n_levels, n_inputs)
        What is known about each level, mean 0 and variance 1 under ``probability``.
    """

    support = (0.0, math.inf)
    integers = True

    def __init__(self, probability: Floats, basis: Floats) -> None:
        super().__init__()
        self.n_columns = 1
        self.n_stats, self.n_inputs = basis.shape
        self.n_params = self.n_inputs
        self.register_buffer("log_share", torch.from_numpy(np.log(probability)))
        self.register_buffer("basis", torch.from_numpy(np.asarray(basis, dtype=np.float64)))
        self.log_share: Tensor
        self.basis: Tensor

    log_unit = Categorical.log_unit
    standardize = Categorical.standardize
    restore = Categorical.standardize

    def restore_mean(self, stats: Floats) -> Floats:
        """The most probable level."""
        return stats.argmax(-1, keepdims=True).astype(np.float64)

    def embed(self, targets: Tensor) -> Tensor:
        codes, observed = split_gaps(targets)
        inputs = self.basis[codes[:, 0].long()].to(targets.dtype)
        return inputs if observed is None else inputs.masked_fill(observed == 0, math.nan)

    def start(self, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        # the mean of the basis moves by its variance, 1, times raw
        return torch.zeros_like(noise), torch.ones_like(noise)

    def _log_p(self, raw: Tensor) -> Tensor:
        return (self.log_share + raw @ self.basis.T).log_softmax(-1)

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        codes, observed = split_gaps(targets)
        logits = self.log_share + raw @ self.basis.T  # (..., n_levels)
        at = codes.long().expand(*raw.shape[:-1], 1)
        cells = logits.gather(-1, at) - logits.logsumexp(-1, keepdim=True)
        return _masked(cells, observed)

    def nll_vjp(self, raw: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        codes, observed = split_gaps(targets)
        at = codes[:, 0].long()
        log_p = self._log_p(raw)
        cells = _masked(log_p.gather(-1, at[:, None]), observed)[:, 0]
        to_raw = (log_p.exp() @ self.basis - self.basis[at]) * weights[:, None]
        return -(weights @ cells), _masked(to_raw, observed)

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        p, r = self._log_p(raw).exp(), self.n_inputs
        center = p @ self.basis  # (n, r)
        products = (self.basis[:, :, None] * self.basis[:, None]).reshape(-1, r * r)
        information = (p @ products).reshape(-1, r, r) - center[:, :, None] * center[:, None]
        values, vectors = torch.linalg.eigh(information)
        root = vectors * values.clamp_min(0.0).sqrt()[:, None]
        observed = split_gaps(targets)[1]
        return _masked(jacobian @ root, None if observed is None else observed[:, None])

    def mean(self, raw: Tensor, targets: Tensor | None = None) -> Tensor:
        return self._log_p(raw).exp()

    def sample(
        self, raw: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        below = self._log_p(raw).exp().cumsum(-1)
        uniform = torch.rand((*raw.shape[:-1], 1), generator=generator, dtype=raw.dtype)
        # rounding may leave the last sum below 1
        codes = torch.searchsorted(below, uniform * below[..., -1:])
        return codes.clamp_max(self.n_stats - 1).to(raw.dtype)


class Poisson(nn.Module):
    """Counts: ``x_j | z ~ Poisson(exposure * exp(raw_j))``.

    The encoder reads ``log(1 + x / exposure)``, standardised, clipped at `CLIP` units: of a column
    that is zero but for few rows, these lie far out.

    Parameters
    ----------
    mean : ndarray of shape (n_columns,)
        Mean of each column, positive.
    shift, scale : ndarray of shape (n_columns,)
        Location and unit of ``log(1 + x / exposure)``.
    exposure : ndarray of shape (2,), default=None
        Without it every row's exposure is 1. With it a row's exposure is its total count over
        what the columns' means would give it, as for the library size of a cell: the density is
        then that of the counts at rates which their own total sets, and draws of new rows take
        exposures from a log-normal distribution with this mean and standard deviation of the
        logarithm.
    """

    support = (0.0, 1e13)  # about the highest rate
    integers = True
    LOG_RATE = (-30.0, 30.0)
    CLIP = 5.0  # a count that few rows have should not move the latent as far as it lies out
    DAMPING = 0.02  # the start moves rates below this less than the link's slope says

    def __init__(
        self, mean: Floats, shift: Floats, scale: Floats, exposure: Floats | None = None
    ) -> None:
        super().__init__()
        self.n_columns = self.n_inputs = self.n_params = self.n_stats = len(mean)
        self.exposure = exposure
        for name, value in (("center", mean), ("shift", shift), ("scale", scale)):
            self.register_buffer(name, torch.from_numpy(np.asarray(value, dtype=np.float64)))
        self.center: Tensor
        self.shift: Tensor
        self.scale: Tensor

    def log_unit(self, T: Floats) -> Floats:
        """Zero: counts have no unit."""
        return np.zeros_like(T)

    def standardize(self, T: Floats) -> Floats:
        return T

    restore = restore_mean = standardize

    def log_exposure(self, targets: Tensor) -> Tensor:
        """Of each row, by its observed cells: (n, 1)."""
        counts, observed = split_gaps(targets)
        if self.exposure is None:
            return counts.new_zeros(counts.shape[0], 1)
        usual = _masked(self.center.expand(counts.shape), observed).sum(-1, keepdim=True)
        # half a count where there is none; 1 where nothing is observed
        total = counts.sum(-1, keepdim=True).clamp_min(0.5)
        return torch.where(usual > 0, total / usual, 1.0).log()

    def embed(self, targets: Tensor) -> Tensor:
        # NaN kept: a missing cell stays missing
        share = targets * (-self.log_exposure(targets)).exp()
        return ((share.log1p() - self.shift) / self.scale).clamp_max(self.CLIP)

    def start(self, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        # d log(1 + x) = x / (1 + x) d log x
        slope = (1 + self.center) / self.center.clamp_min(self.DAMPING)
        return self.center.log(), self.scale * slope

    def _log_rate(self, raw: Tensor, log_exposure: Tensor | None) -> Tensor:
        log_rate = raw[..., : self.n_columns]
        if log_exposure is not None:
            log_rate = log_rate + log_exposure
        return bound(log_rate, *self.LOG_RATE)

    def _known(self, targets: Tensor | None) -> Tensor | None:
        """Log-exposures of these rows, None if all are 1 or not known."""
        if targets is None or self.exposure is None:
            return None
        return self.log_exposure(targets)

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        # in double precision: what large counts cancel is large
        log_rate = self._log_rate(raw, self._known(targets)).double()
        counts, observed = split_gaps(targets.double())
        cells = counts * log_rate - log_rate.exp() - torch.lgamma(counts + 1)
        return _masked(cells, observed).to(raw)

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        root = (0.5 * self._log_rate(raw, self._known(targets))).exp()
        return jacobian * _masked(root, split_gaps(targets)[1])[:, None]

    def mean(self, raw: Tensor, targets: Tensor | None = None) -> Tensor:
        return self._log_rate(raw, self._known(targets)).exp()

    def sample(
        self, raw: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        log_exposure = self._known(targets)
        if targets is None and self.exposure is not None:
            noise = torch.randn((*raw.shape[:-1], 1), generator=generator, dtype=raw.dtype)
            log_exposure = float(self.exposure[0]) + float(self.exposure[1]) * noise
        rate = self._log_rate(raw, log_exposure).exp()
        return torch.poisson(self._varied(rate, raw, generator), generator)

    def _varied(self, rate: Tensor, raw: Tensor, generator: torch.Generator) -> Tensor:
        """The rate that the count's own noise is added to."""
        return rate


class NegativeBinomial(Poisson):
    """Counts that vary more: Poisson whose rate is itself gamma distributed.

    Variance ``mean + mean^2 / size_j``; the size (inverse dispersion) of each column is learned.

    Parameters
    ----------
    mean, shift, scale, exposure
        As for `Poisson`.
    size : ndarray of shape (n_columns,), default=None
        Sizes at the start; 1 without them.
    varies : bool, default=False
        Whether the decoder adds to the size's logarithm as a function of z: the raw output is then
        (log-rate, addition), twice as wide.

    References
    ----------
    Lopez et al., "Deep generative modeling for single-cell transcriptomics", Nature Methods 2018.
    """

    LOG_SIZE = (-7.0, 12.0)

    def __init__(
        self,
        mean: Floats,
        shift: Floats,
        scale: Floats,
        exposure: Floats | None = None,
        size: Floats | None = None,
        varies: bool = False,
    ) -> None:
        super().__init__(mean, shift, scale, exposure)
        start = np.ones(len(mean)) if size is None else size
        self.varies = varies
        self.n_params = self.n_columns * (2 if varies else 1)
        self.base = nn.Parameter(torch.from_numpy(np.log(start)).clamp(*self.LOG_SIZE))

    def start(self, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        bias, slope = super().start(noise, mean)
        return nn.functional.pad(bias, (0, self.n_params - self.n_inputs)), slope

    def log_size(self, raw: Tensor) -> Tensor:
        """Logarithm of the sizes: (..., n_columns), or (n_columns,) if constant."""
        added = raw[..., self.n_columns :] if self.varies else 0.0
        return bound(self.base + added, *self.LOG_SIZE)

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        log_rate = self._log_rate(raw, self._known(targets)).double()
        counts, observed = split_gaps(targets.double())
        log_size = self.log_size(raw).double()
        size = log_size.exp()
        log_total = torch.logaddexp(log_rate, log_size.expand(log_rate.shape))
        ways = torch.lgamma(counts + size) - torch.lgamma(size) - torch.lgamma(counts + 1)
        cells = ways + size * (log_size - log_total) + counts * (log_rate - log_total)
        return _masked(cells, observed).to(raw)

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        log_rate, log_size = self._log_rate(raw, self._known(targets)), self.log_size(raw)
        # log of the share of the variance that is Poisson's own: size / (mean + size)
        log_own = -nn.functional.softplus(log_rate - log_size)
        root, (_, observed) = (0.5 * (log_rate + log_own)).exp(), split_gaps(targets)
        root = _masked(root, observed)
        if self.varies:
            # no closed form: a normal's of this variance, 1/2 (mean / (mean + size))^2, and where
            # mean + size is not large a factor that is right as the mean goes to zero
            total = torch.logaddexp(log_rate, log_size)
            about_size = (0.5 * total.sigmoid()).sqrt() * (1 - log_own.exp())
            root = torch.cat([root, _masked(about_size, observed)], -1)
        return jacobian * root[:, None]

    def _varied(self, rate: Tensor, raw: Tensor, generator: torch.Generator) -> Tensor:
        size = self.log_size(raw).exp().expand(rate.shape).contiguous()
        return rate * torch._standard_gamma(size, generator=generator) / size


class Multinomial(Poisson):
    """Counts that are draws from one distribution: ``x | z ~ Multinomial(total, softmax(raw))``.

    As of words in a text or items in a basket. The density is that of a row's counts given their
    total, and where cells are missing, given the total of the observed ones: nothing is said about
    how long a text is. A cell has of the number of orders, ``total! / (x_1! x_2! ...)``, its own
    part: per count, an equal share of the logarithm of ``total!``.

    What the row's size has to be known for, draws and means of missing cells, takes it from the
    observed cells and from totals of other rows: log-normal in draws of new rows, with the same
    mean and variation as a gamma prior on the size otherwise. There the observed total says
    something about z, too (`log_prob_of_total`): how many counts these cells have says how probable
    they are.

    Parameters
    ----------
    mean, shift, scale
        As for `Poisson`.
    exposure : ndarray of shape (2,)
        Mean and standard deviation of the logarithm of a row's total, in units of the usual one.

    References
    ----------
    Liang, Krishnan, Hoffman and Jebara, "Variational Autoencoders for Collaborative Filtering",
    WWW 2018.
    """

    def __init__(self, mean: Floats, shift: Floats, scale: Floats, exposure: Floats) -> None:
        super().__init__(mean, shift, scale, exposure)
        self.log_total, self.spread_of_log_total = (float(part) for part in exposure)

    def _log_p(self, raw: Tensor, observed: Tensor | None) -> Tensor:
        """Log-probabilities among the observed cells, zero elsewhere: (..., n_columns)."""
        if observed is None:
            return raw.log_softmax(-1)
        inside = observed > 0
        # not -inf: a row without any cell would have NaN
        log_total = raw.masked_fill(~inside, -1e30).logsumexp(-1, keepdim=True)
        return _masked(raw - log_total, observed)

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        counts, observed = split_gaps(targets.double())
        log_p = self._log_p(raw.double(), observed)
        total = counts.sum(-1, keepdim=True)
        each = torch.lgamma(total + 1) / total.clamp_min(1.0)
        return (counts * (log_p + each) - torch.lgamma(counts + 1)).to(raw)

    def nll_vjp(self, raw: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        counts, observed = split_gaps(targets)
        log_p = self._log_p(raw, observed)
        total = counts.sum(-1)
        ways = torch.lgamma(total + 1)
        if counts.device.type == "cpu":
            several = counts > 1  # most cells of a row are 0 or 1, whose factorial is 1
            rows = several.nonzero()[:, 0]
            ways.index_add_(0, rows, torch.lgamma(counts[several] + 1), alpha=-1)
        else:  # how many they are would have to be waited for
            ways -= torch.lgamma(counts + 1).sum(-1)
        nll = -(weights @ ((counts * log_p).sum(-1) + ways))
        p = _masked(log_p.exp_(), observed)
        to_raw = p.mul_(total[:, None]).sub_(counts).mul_(weights[:, None])
        return nll, to_raw

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        # information total * (diag(p) - p p'), as for `Categorical`
        counts, observed = split_gaps(targets)
        p = _masked(self._log_p(raw, observed).exp(), observed)[:, None]  # (n, 1, n_columns)
        center = (p * jacobian).sum(-1, keepdim=True)
        return (jacobian - center) * (counts.sum(-1)[:, None, None] * p).sqrt()

    @property
    def _usual(self) -> tuple[Tensor, float]:
        """Mean total, and the shape of its gamma prior: infinite where all totals are the same."""
        mean = self.center.sum() * math.exp(self.log_total + 0.5 * self.spread_of_log_total**2)
        return mean, 1 / max(math.expm1(self.spread_of_log_total**2), 1e-9)

    def _size(self, p: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gamma distribution of a row's size given its observed cells: shape and rate, (..., 1)."""
        usual, shape = self._usual
        counts, observed = split_gaps(targets)
        seen = p if observed is None else p * observed
        return shape + counts.sum(-1, keepdim=True), shape / usual + seen.sum(-1, keepdim=True)

    def log_prob_of_total(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of the observed total given z, but for what does not depend on z: (...).

        The size is gamma distributed and the total Poisson, so the total is negative binomial.
        """
        usual, shape = self._usual
        counts, observed = split_gaps(targets.double())
        if observed is None:
            return raw.new_zeros(raw.shape[:-1])
        total = counts.sum(-1)
        rate = usual * (raw.double().softmax(-1) * observed).sum(-1).clamp_min(1e-300)
        out = total * rate.log() - (shape + total) * torch.log1p(rate / shape)
        return out.to(raw)

    def mean(self, raw: Tensor, targets: Tensor | None = None) -> Tensor:
        p = raw.softmax(-1)
        if targets is None:
            return p * self._usual[0]
        shape, rate = self._size(p, targets)
        return p * (shape / rate)

    def sample(
        self, raw: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        p = raw.softmax(-1)
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if targets is not None:  # the missing cells of a row whose observed ones are known
            shape, rate = self._size(p, targets)
            size = torch.from_numpy(random.standard_gamma(shape.double().numpy())).to(p) / rate
            return torch.poisson(p * size, generator)
        noise = torch.randn((*raw.shape[:-1], 1), generator=generator, dtype=raw.dtype)
        total = self.center.sum() * (self.log_total + self.spread_of_log_total * noise).exp()
        # beyond 2^53 a float does not count in ones
        total = total.double().round().clamp_max(2.0**53)[..., 0]
        shares = p.double().numpy()
        shares /= shares.sum(-1, keepdims=True)  # numpy refuses what rounding leaves above 1
        drawn = random.multinomial(total.long().numpy(), shares)
        return torch.from_numpy(drawn).to(raw.dtype)


Likelihood = Gaussian | StudentT | Bernoulli | Categorical | ManyLevels | Poisson


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
    The encoder's input and the means are the parts' own, one after the other; targets and draws are
    in the order of T. The raw output is first what a linear path reaches, of all parts, and then
    what is left of each: additions to a spread.
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
        self.n_stats = sum(part.n_stats for part in parts)
        self._order = np.argsort(flat)  # from the parts' order to T's
        # as tensors: a list would have to be sent to the device each time
        for i, group in enumerate(self.columns):
            self.register_buffer(f"_group_{i}", torch.tensor(group), persistent=False)
        self.register_buffer("_back", torch.from_numpy(self._order), persistent=False)
        self._inputs = [part.n_inputs for part in parts]
        # of the raw output: what a linear path reaches of each part, then what is left of each
        self._widths = [*self._inputs, *(part.n_params - part.n_inputs for part in parts)]

    def log_unit(self, T: Floats) -> Floats:
        return self._each_array("log_unit", T)

    def standardize(self, T: Floats) -> Floats:
        return self._each_array("standardize", T)

    def restore(self, targets: Floats) -> Floats:
        return self._each_array("restore", targets)

    def restore_mean(self, stats: Floats) -> Floats:
        cuts = np.cumsum([part.n_stats for part in self.parts])[:-1]
        parts = zip(self.parts, np.split(stats, cuts, axis=-1), strict=True)
        return np.concatenate([p.restore_mean(s) for p, s in parts], -1)[..., self._order]

    def embed(self, targets: Tensor) -> Tensor:
        parts = zip(self.parts, self._cells(targets), strict=True)
        return torch.cat([part.embed(cells) for part, cells in parts], -1)

    def start(self, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(self.parts, noise.split(self._inputs), mean.split(self._inputs), strict=True)
        found = [part.start(own, center) for part, own, center in parts]
        return self._joined([bias for bias, _ in found]), torch.cat([slope for _, slope in found])

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        return self._join([p.log_prob(r, t) for p, r, t in self._each(raw, targets)])

    def nll_vjp(self, raw: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        found = [nll_vjp(part, r, t, weights) for part, r, t in self._each(raw, targets)]
        return torch.stack([nll for nll, _ in found]).sum(), self._joined([g for _, g in found])

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        parts = zip(self._each(raw, targets), self.raw(jacobian), strict=True)
        return self._joined([part.whiten(r, j, t) for (part, r, t), j in parts])

    def mean(self, raw: Tensor, targets: Tensor | None = None) -> Tensor:
        return torch.cat([p.mean(r, t) for p, r, t in self._each(raw, targets)], -1)

    def sample(
        self, raw: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        return self._join([p.sample(r, generator, t) for p, r, t in self._each(raw, targets)])

    def _each(self, raw: Tensor, targets: Tensor | None) -> list[tuple[Any, Tensor, Any]]:
        cells = [None] * len(self.columns) if targets is None else self._cells(targets)
        return list(zip(self.parts, self.raw(raw), cells, strict=True))

    def raw(self, raw: Tensor) -> list[Tensor]:
        """Each part's own raw output."""
        both, n = raw.split(self._widths, -1), len(self._inputs)
        left = zip(both[:n], both[n:], strict=True)
        return [torch.cat([a, b], -1) if b.shape[-1] else a for a, b in left]

    def _joined(self, raws: list[Tensor]) -> Tensor:
        """The inverse of `raw`."""
        both = [raw.tensor_split([n], -1) for raw, n in zip(raws, self._inputs, strict=True)]
        return torch.cat([first for first, _ in both] + [left for _, left in both], -1)

    def _cells(self, targets: Tensor) -> list[Tensor]:
        groups = (getattr(self, f"_group_{i}") for i in range(len(self.columns)))
        return [targets.index_select(-1, group) for group in groups]

    def _join(self, cells: list[Tensor]) -> Tensor:
        back: Any = self._back
        return torch.cat(cells, -1).index_select(-1, back)

    def log_prob_of_total(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Of the parts that are given a row's size: (...)."""
        out = raw.new_zeros(raw.shape[:-1])
        for part, own, cells in zip(self.parts, self.raw(raw), self._cells(targets), strict=True):
            if hasattr(part, "log_prob_of_total"):
                out = out + part.log_prob_of_total(own, cells)
        return out

    def _each_array(self, method: str, T: Floats) -> Floats:
        out = np.empty_like(T)
        for part, group in zip(self.parts, self.columns, strict=True):
            out[:, group] = getattr(part, method)(T[:, group])
        return out
