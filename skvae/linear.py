"""The linear start: probabilistic PCA, factor analysis, and the line between them.

All arithmetic is in float64 and in torch, whose number of threads is the one that the results
depend on. Columns are standardised; ``S`` is their covariance, weighted by the rows' weights.

The linear model is ``x = W z + e``, ``z ~ N(0, I)``, ``e ~ N(0, diag(noise))``.

References
----------
Tipping and Bishop, "Probabilistic Principal Component Analysis", JRSS B, 1999.
Joreskog, "Some contributions to maximum likelihood factor analysis", Psychometrika, 1967.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from .world import ALONE, World

DUST = 1e-14  # loadings this much smaller than the largest are zero
DENSE = 256  # columns up to which all eigenvectors are found at once
WIDE = 1024  # columns up to which covariances are matrices
WIDE_ROUNDS = 20  # of `refit` beyond, at most


@dataclass
class LinearModel:
    """Loadings ``W`` (n_columns, n_components) and noise variances (n_columns,).

    The components are rotated so that ``W' diag(1/noise) W`` is diagonal, falling: given x they
    are then independent, and the encoder's diagonal Gaussian is the exact posterior.
    """

    loadings: Tensor
    noise: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """Diagonal of ``W' diag(1/noise) W``: (n_components,)."""
        return (self.loadings.square() / self.noise[:, None]).sum(0)

    @property
    def encoder(self) -> Tensor:
        """E[z | x] = encoder @ x: (n_components, n_columns)."""
        return (self.loadings / self.noise[:, None]).T / (1 + self.eigenvalues)[:, None]

    @property
    def projection(self) -> Tensor:
        """Least squares, what the encoder becomes as noise vanishes: (n_components, n_columns)."""
        values = self.eigenvalues
        inverse = torch.where(values > 0, 1 / values, 0.0)
        return (self.loadings / self.noise[:, None]).T * inverse[:, None]

    @property
    def log_var(self) -> Tensor:
        """log Var[z | x], the same for every x: (n_components,)."""
        return -(1 + self.eigenvalues).log()

    def reconstruction_error(self, S: "Covariance") -> float:
        """Mean over the columns of E (x - W E[z | x])^2 under covariance ``S``."""
        SE, WW = S @ self.encoder.T, self.loadings.T @ self.loadings  # (d, k), (k, k)
        cross = (SE * self.loadings).sum()
        return float((S.diagonal().sum() - 2 * cross + (WW * (self.encoder @ SE)).sum()) / len(S))


class Moments:
    """Weighted mean (d,) and covariance (d, d) of rows that come in parts.

    In one pass: of standardised rows, whose mean is near zero, nothing cancels.

    Parameters
    ----------
    n_inputs : int
    device : str, default="cpu"
        Where the products are computed; it needs double precision.
    """

    def __init__(self, n_inputs: int, device: str = "cpu") -> None:
        self.first = torch.zeros(n_inputs, dtype=torch.float64, device=device)
        self.second = torch.zeros(n_inputs, n_inputs, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor, share: Tensor) -> None:
        """Rows (n, d) and their shares (n,), which sum to one over all parts."""
        inputs, share = inputs.to(self.first.device), share.to(self.first.device)
        self.first += share @ inputs
        rooted = share.sqrt()[:, None] * inputs
        if rooted.device.type == "cpu":  # NumPy sees that a triangle will do: half the time
            cells = rooted.numpy()
            self.second += torch.from_numpy(cells.T @ cells)
        else:
            self.second.addmm_(rooted.T, rooted)

    def result(self, world: World = ALONE) -> tuple[Tensor, Tensor]:
        """Mean and covariance, of the rows of all processes."""
        first, second = world.sum(self.first.cpu()), world.sum(self.second.cpu())
        S = second - first[:, None] * first
        return first, 0.5 * (S + S.T)


class Wide:
    """The covariance of rows with many columns, of which there are only products.

    A matrix would have the square of their number. Products are in single precision on the
    CPU, their sums over parts in double.

    Parameters
    ----------
    parts : callable
        ``parts()``: the rows, (n, d) in all, a part at a time, on whichever device.
    share : Tensor of shape (n,)
        Sums to one.
    extra : Tensor of shape (d,), default=None
        What the diagonal has beyond the rows' own.

    Attributes
    ----------
    mean : Tensor of shape (d,)

    References
    ----------
    Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011.
    """

    MORE = 10  # directions than are asked for
    N_FIRST, N_LATER = 8, 3  # rounds, from random directions and from those found before

    def __init__(
        self, parts: Callable[[], Iterable[Tensor]], share: Tensor, extra: Tensor | None = None
    ) -> None:
        self.parts, self.share = parts, share
        first: Tensor | float = 0.0
        second: Tensor | float = 0.0
        for rows, weights in self._rows():
            first = first + weights @ rows.double()
            second = second + weights @ rows.double().square()
        assert isinstance(first, Tensor) and isinstance(second, Tensor)
        self.mean, self.extra = first.cpu(), extra
        own = (second - first.square()).clamp_min(0.0).cpu()
        self._diagonal = own if extra is None else own + extra
        self._found: Tensor | None = None

    def _rows(self) -> Iterable[tuple[Tensor, Tensor]]:
        end = 0
        for rows in self.parts():
            start, end = end, end + len(rows)
            yield rows, self.share[start:end].to(rows.device)

    def __len__(self) -> int:
        return len(self.mean)

    def diagonal(self) -> Tensor:
        """Variances: (d,)."""
        return self._diagonal

    def __matmul__(self, other: Tensor) -> Tensor:
        """(d, c) -> (d, c)."""
        out = -self.mean[:, None] * (self.mean @ other)
        if self.extra is not None:
            out += self.extra[:, None] * other
        for rows, weights in self._rows():
            # a GPU's single precision may be TF32, whose three digits are too few
            dtype = torch.float32 if rows.device.type == "cpu" else torch.float64
            part = rows.to(dtype)
            product = part @ other.to(rows.device, dtype)
            out += (part.T @ (weights[:, None].to(dtype) * product)).cpu()
        return out

    def leading(self, scale: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `_leading` returns, by subspace iteration."""
        Q, n_rounds = self._found, self.N_LATER
        size = min(k + self.MORE, len(self))
        if Q is None or Q.shape[1] < size:
            generator = torch.Generator().manual_seed(0)
            Q = torch.randn(len(self), size, generator=generator, dtype=scale.dtype)
            n_rounds = self.N_FIRST
        for _ in range(n_rounds):
            Q = torch.linalg.qr(scale[:, None] * (self @ (scale[:, None] * Q))).Q
        self._found = Q
        image = scale[:, None] * (self @ (scale[:, None] * Q))
        values, R = torch.linalg.eigh(0.5 * (Q.T @ image + image.T @ Q))
        values, vectors = values.flip(0)[:k].clamp_min(0.0), Q @ R.flip(1)[:, :k]
        rest = (scale.square() @ self.diagonal() - values.sum()).clamp_min(0.0)
        return values, vectors, rest


Covariance = Tensor | Wide  # both have `diagonal()`, a length and products


def completed_covariance(
    inputs: Tensor, share: Tensor, n_components: int, floor: float, n_iter: int = 200
) -> tuple[Tensor, Covariance]:
    """Mean (d,) and covariance (d, d) of rows with gaps, as factor analysis would complete them.

    Expectation-maximisation for ``x = center + W z + e`` with cells missing at random. Rows of W
    have the prior ``N(0, I / (2 n_components))``, half of a column's variance: few rows and many
    gaps leave loadings open. The covariance is the expected one given what is observed; of wide
    rows, one draw of z for each stands for its expectation.

    Parameters
    ----------
    inputs : Tensor of shape (n, d)
        Standardised, NaN where missing.
    share : Tensor of shape (n,)
        Sums to one.

    References
    ----------
    Rubin and Thayer, "EM algorithms for ML factor analysis", Psychometrika, 1982.
    """
    n, d = inputs.shape
    k = min(n_components, d)
    chunk = max(1, 2**22 // ((k + 1) * max(k + 1, d)))
    gaps = inputs.isnan()
    observed = (~gaps).to(inputs)
    count = n * share[:, None]
    total = (count * observed).sum(0)  # (d,)
    center = torch.where(gaps, 0.0, count * inputs).sum(0) / total.clamp_min(1e-12)
    X = torch.where(gaps, 0.0, inputs - center)
    # start: the leading part of the covariances of pairs, shrunk where pairs are few
    pairs: Covariance
    if d > WIDE:
        known = (share @ observed).clamp_min(0.5 / n)  # as if gaps came independently
        pairs = Wide(lambda: (part / known for part in X.split(chunk)), share)
    else:
        pairs = X.T @ (count * X) / (observed.T @ (count * observed) + 1)
    values, vectors, _ = _leading(pairs, torch.ones(d, dtype=X.dtype), k)
    W = vectors * values.sqrt()
    variance = (count * X.square()).sum(0) / total.clamp_min(1e-12)
    noise = (0.5 * variance).clamp_min(floor**2)
    offset = torch.zeros(d, dtype=X.dtype)  # of the center
    eye = torch.eye(k, dtype=X.dtype)
    # rows with the same gaps share the precision of z
    patterns, pattern = observed.unique(dim=0, return_inverse=True)  # (p, d), (n,)
    step = (k + 1) ** 2 * (d * len(patterns) + n)
    budget = int(min(n_iter, max(10, 2e10 // step)))

    def moments() -> tuple[Tensor, Tensor]:
        """E[z, 1] of each row, (n, k + 1), and Var[z] of each pattern, (p, k, k)."""
        scaled = W / noise[:, None]
        products = (scaled[:, :, None] * W[:, None]).reshape(d, k * k)
        cov = torch.linalg.inv(eye + (patterns @ products).reshape(-1, k, k))
        deviation = (X - offset * observed) @ scaled
        z = [
            (cov[at] @ rows[..., None])[..., 0]
            for at, rows in zip(pattern.split(chunk), deviation.split(chunk), strict=True)
        ]
        return torch.nn.functional.pad(torch.cat(z), (0, 1), value=1.0), cov

    slices = [slice(start, start + chunk) for start in range(0, n, chunk)]
    ridge = 2 * k * torch.nn.functional.pad(eye, (0, 1, 0, 1))
    weight = X.new_zeros(len(patterns)).index_add_(0, pattern, count[:, 0])
    for _ in range(budget):
        first, cov = moments()
        # of each pattern: sum of E[(z, 1) (z, 1)']
        second = X.new_zeros(len(patterns), (k + 1) ** 2)
        for rows in slices:
            outer = first[rows, :, None] * (count[rows] * first[rows])[:, None]
            second.index_add_(0, pattern[rows], outer.reshape(-1, (k + 1) ** 2))
        second = second.reshape(-1, k + 1, k + 1)
        second[:, :k, :k] += weight[:, None, None] * cov
        left = (patterns.T @ second.reshape(len(patterns), -1)).reshape(d, k + 1, k + 1)
        right = (count * X).T @ first
        penalised = left + noise[:, None, None] * ridge
        penalised[:, -1, -1] += 1e-9  # a column without a single cell
        A = torch.linalg.solve(penalised, right[..., None])[..., 0]
        # mean square of what is left of the observed cells; of an empty column, 1
        rest = variance * total - 2 * (A * right).sum(1)
        rest = rest + torch.einsum("di,dij,dj->d", A, left, A)
        previous, noise = noise, (rest / total.clamp_min(1e-12)).clamp_min(floor**2)
        noise = torch.where(total > 0, noise, 1.0)
        W, offset = A[:, :-1], A[:, -1]
        if ((noise / previous).log().abs() < 1e-4).all():
            break
    if d > WIDE:
        first, cov = moments()
        lower = torch.linalg.cholesky(cov)[pattern]
        noise_of_z = torch.randn(n, k, 1, generator=torch.Generator().manual_seed(0)).to(X)
        z = first[:, :-1] + (lower @ noise_of_z)[..., 0]
        for rows in slices:
            X[rows] = torch.where(gaps[rows], z[rows] @ W.T + offset, X[rows])
        wide = Wide(lambda: X.split(chunk), share, (share @ gaps.to(X)) * noise)
        return center + wide.mean, wide
    S = torch.zeros(d, d, dtype=X.dtype)
    mean = torch.zeros(d, dtype=X.dtype)
    missing = torch.zeros(d, dtype=X.dtype)
    A = torch.cat([W, offset[:, None]], 1)
    first, cov = moments()
    for rows in slices:
        fill = torch.where(gaps[rows], first[rows] @ A.T, X[rows])
        mean += share[rows] @ fill
        S.addmm_(fill.T, share[rows, None] * fill)
        missing += share[rows] @ gaps[rows].to(X)
    # the uncertainty of z, where a gap meets a gap
    for at in torch.arange(len(patterns)).split(chunk):
        open_W = (1 - patterns[at, :, None]) * W  # (p, d, k)
        spread = (open_W @ cov[at]).transpose(1, 2).reshape(-1, d)
        weighted = (weight[at, None, None] / n * open_W.transpose(1, 2)).reshape(-1, d)
        S.addmm_(weighted.T, spread)
    S += (missing * noise).diag() - mean[:, None] * mean
    return center + mean, 0.5 * (S + S.T)


def rotated(loadings: Tensor, noise: Tensor) -> LinearModel:
    """The same model with its components rotated, falling by information, signs fixed."""
    _, R = torch.linalg.eigh((loadings / noise[:, None]).T @ loadings)
    W = loadings @ R.flip(1)
    # rounding's dust: a column that goes with no other has loadings of exactly zero
    W = W.masked_fill(W.abs() <= DUST * W.abs().max(), 0.0)
    return LinearModel(upright(W), noise)


def upright(vectors: Tensor) -> Tensor:
    """These columns (n, k), each times 1 or -1, so that the largest number is positive.

    Of several that are about as large, the first: rounding is not to choose.
    """
    size = vectors.abs()
    first = (size > 0.999 * size.amax(0)).int().argmax(0, keepdim=True)
    return vectors * torch.where(vectors.gather(0, first) < 0, -1.0, 1.0)


def _leading(S: Covariance, scale: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading part of the spectrum of ``diag(scale) S diag(scale)``.

    Returns the k largest eigenvalues, falling, their eigenvectors, and the others' sum.
    """
    if isinstance(S, Wide):
        return S.leading(scale, k)
    A = S * scale[:, None] * scale
    if len(A) <= DENSE or k > len(A) // 8:
        found = eigh(A.numpy(), subset_by_index=(len(A) - k, len(A) - 1), driver="evx")
    else:
        operator = LinearOperator(
            A.shape, lambda v: (A @ torch.from_numpy(v.ravel())).numpy(), dtype=np.float64
        )
        start = np.random.RandomState(0).standard_normal(len(A))  # ARPACK's own would be unseeded
        found = eigsh(operator, k, v0=start)
    values, vectors = (torch.from_numpy(part[..., ::-1].copy()) for part in found)
    values = values.clamp_min(0.0)
    return values, vectors, (A.diagonal().sum() - values.sum()).clamp_min(0.0)


def factor_analysis(S: Covariance, n_components: int, floor: float) -> Tensor:
    """Noise variances of maximum-likelihood factor analysis, none below ``floor**2``: (d,).

    Joreskog's profile likelihood: given the noise the best loadings are in closed form, so that
    only the d log-variances are searched, by L-BFGS with the floor as a bound.
    """
    d = len(S)
    k = min(n_components, d)
    variance = S.diagonal()

    def loss(log_noise: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        precision = torch.from_numpy(-log_noise).exp_()
        values, vectors, rest = _leading(S, precision.sqrt(), k)
        top = values.clamp_min(1.0)
        value = (top.log() + values / top).sum() + rest + log_noise.sum()
        gradient = 1 - variance * precision + vectors.square() @ (top - 1)
        return 0.5 * float(value), 0.5 * gradient.numpy()

    low = 2 * math.log(floor)
    if isinstance(S, Wide):
        values, vectors, _ = S.leading(torch.ones_like(variance), k)
        start = (variance - vectors.square() @ values).clamp(math.exp(low), 1.0).log()
    else:
        # 1 / diag(S^-1) bounds each column's noise from below in the population
        inverse = torch.linalg.inv(S + 1e-3 * torch.eye(d, dtype=S.dtype)).diagonal()
        start = ((1 - k / (2 * d)) / inverse).clamp(math.exp(low), 1.0).log()
    # an evaluation costs d^3: wide tables get a start that is good rather than converged
    budget = int(min(2000, max(10, 2e9 / d**3)))
    result = minimize(
        loss,
        start.numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, None)] * d,
        options={"maxfun": budget, "maxiter": budget, "ftol": 1e-10, "gtol": 1e-7},
    )
    return torch.from_numpy(result.x).exp()


def weighted_pca(S: Covariance, n_components: int, precision: Tensor, floor: float) -> LinearModel:
    """Probabilistic PCA where column j counts ``precision_j``: noise proportional to 1/precision.

    Parameters
    ----------
    precision : Tensor of shape (d,)
        Relative weights; only their ratios matter. All ones: probabilistic PCA itself. The
        inverse noise variances of factor analysis: factor analysis.
    """
    d, k = len(S), min(n_components, len(S))
    scale = (0.5 * (precision.log() - precision.log().mean())).exp()
    values, vectors, rest = _leading(S, scale, k)
    # the floor holds in every column: noise_j = common / scale_j^2 >= floor^2
    common = max(float(rest) / max(d - k, 1), floor**2 * float(scale.square().max()))
    W = vectors * (values - common).clamp_min(0.0).sqrt() / scale[:, None]
    W = torch.nn.functional.pad(W, (0, n_components - k))
    return rotated(W, common / scale.square())


def refit(
    S: Covariance, model: LinearModel, floor: float, learn: bool = True, n_iter: int = 200
) -> LinearModel:
    """Best noise per column, and best scale of the components, within the span of the loadings.

    Alternates two exact conditional maxima of the likelihood: given the noise, the components'
    covariance within their span has a closed form; given the loadings, EM moves the noise. With
    ``learn=False`` the noise stays, and the first of the two is the answer.
    """
    # a component without loadings spans nothing, and stays so
    live = model.loadings.square().sum(0) > 0
    W, noise = model.loadings[:, live], model.noise
    eye = torch.eye(W.shape[1], dtype=W.dtype)
    if isinstance(S, Wide):
        n_iter = min(n_iter, WIDE_ROUNDS)
    for _ in range(n_iter if learn else 1):
        # in units of the noise: covariance I outside the span, Q C Q' inside
        root = noise.sqrt()[:, None]
        Q = torch.linalg.qr(W / root).Q
        values, vectors = torch.linalg.eigh(Q.T @ ((S @ (Q / root)) / root))
        W = root * (Q @ vectors) * (values - 1).clamp_min(1e-12).sqrt()
        if not learn:
            break
        weighted = (W / noise[:, None]).T
        B = torch.linalg.solve(eye + weighted @ W, weighted)  # E[z | x] = B x
        SB = S @ B.T  # (d, k)
        zz = eye - B @ W + B @ SB  # E[z z']
        previous = noise
        noise = S.diagonal() - 2 * (SB * W).sum(1) + ((W @ zz) * W).sum(1)
        noise = noise.clamp_min(floor**2)
        if ((noise / previous).log().abs() < 1e-5).all():
            break
    loadings = torch.zeros_like(model.loadings)
    loadings[:, : W.shape[1]] = W
    return rotated(loadings, noise)


def choose_power(
    S: Covariance,
    n_components: int,
    noise: Tensor,
    floor: float,
    tolerance: float,
    limit: float = 1.0,
) -> float:
    """Largest power in [0, limit] whose reconstruction costs at most ``tolerance`` over PCA's.

    ``weighted_pca`` with precision ``noise**-power`` is probabilistic PCA at 0 and factor analysis
    at 1. The likelihood rises on the way, and so does the reconstruction error of standardised
    columns: go as far as is nearly free, by bisection on the training rows.
    """

    def error(power: float) -> float:
        return weighted_pca(S, n_components, noise**-power, floor).reconstruction_error(S)

    allowed = (1 + tolerance) * error(0.0) + 1e-12
    if error(limit) <= allowed:
        return limit
    low, high = 0.0, limit
    for _ in range(6):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if error(middle) <= allowed else (low, middle)
    return low
