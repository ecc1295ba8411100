"""How held-out rows judge a model: the bound of each, and whether they prove that one gains."""

import itertools
import math

import numpy as np
import torch
from scipy.stats import t as student_t
from scipy.stats import wilcoxon
from torch import Tensor

from .families import gaussian_part, gaussian_raw
from .likelihoods import LOG_2PI, Mixed, split_gaps
from .settings import Settings
from .targets import Stored
from .vae import VAE
from .workspace import CACHED, how_many, width

PROOF = 0.001  # level of the tests that held-out rows gain


def judge(
    model: VAE,
    data: Stored,
    share: Tensor,
    noise: Tensor,
    hints: Tensor | None,
    settings: Settings,
) -> Tensor:
    """ELBO of held-out rows (n,) under fixed noise (n_draws, n, k); shares sum to one.

    Each process has its own rows and their noise, and all get the results of all.

    Where one spread is common to all normal columns, the held-out rows get the one that suits
    them best: a wild held-out cell then costs its logarithm, at every epoch alike, instead of
    outweighing all that the mean learns.
    """
    at_once = how_many(len(noise) * width(model), CACHED)
    some = itertools.repeat(None) if hints is None else hints.split(at_once)
    targets = (part.to(noise.device) for part, _ in data.parts(at_once))
    parts = zip(targets, noise.split(at_once, 1), some, strict=False)
    with torch.no_grad():
        judged = [torch.stack(_judge_part(model, *part, settings), 1) for part in parts]
    # a process may have none
    found = torch.cat([noise.new_zeros(0, 3), *judged])
    nats, error, n_cells = data.world.gather(found).T.contiguous()
    floor = settings.noise_floor**2
    best = ((share @ error) / (share @ n_cells).clamp_min(1e-12)).clamp_min(floor)
    return nats - 0.5 * (n_cells * (LOG_2PI + best.log()) + error / best)


def _judge_part(
    model: VAE, targets: Tensor, noise: Tensor, hints: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """The ELBO but for cells of common spread, their squared error and number: each (n,)."""
    n_draws, n, k = noise.shape
    likelihood = model.likelihood
    if settings.n_importance_samples > 1:
        bound = -model(targets, noise, settings.beta, hints)
        return bound, torch.zeros_like(bound), torch.zeros_like(bound)
    mean, log_var = model.posterior(targets, hints)
    z = mean + (0.5 * log_var).exp() * noise
    kl = model.divergence(mean, log_var, z, settings.free_bits)
    kl = settings.beta * (kl if kl.dim() == 1 else kl.mean(0))
    raw = model.decoder(z.reshape(-1, k)).reshape(n_draws, n, -1)
    normal, nothing = gaussian_part(likelihood), torch.zeros_like(kl)
    if normal is None or settings.noise not in ("auto", "isotropic"):
        return likelihood.log_prob(raw, targets).sum(-1).mean(0) - kl, nothing, nothing
    part, columns = normal
    nats = nothing
    if isinstance(likelihood, Mixed):
        cells = likelihood.log_prob(raw, targets).mean(0)
        cells[:, columns] = 0.0
        nats = cells.sum(-1)
    cells, observed = split_gaps(targets[:, columns])
    squares = (cells - part.location(gaussian_raw(likelihood, raw))).square_()
    if observed is None:
        base, n_cells = part.base.sum(), torch.full_like(kl, cells.shape[1])
    else:
        squares, base, n_cells = squares * observed, observed @ part.base, observed.sum(-1)
    return nats - 0.5 * base - kl, (squares @ (-part.base).exp()).mean(0), n_cells


def mean_and_error(values: Tensor, share: Tensor) -> tuple[float, float]:
    """Weighted mean, and its standard error; infinite of a single row."""
    mean, n = share @ values, len(values)
    if n == 1:
        return float(mean), math.inf
    return float(mean), math.sqrt(share.square() @ (values - mean).square() * n / (n - 1))


def proven(gains: Tensor) -> bool:
    """Whether rows gain on average, by Student's test, or most of them do, by Wilcoxon's.

    Neither lets a few wild rows decide.
    """
    moved = gains[gains != 0].double().cpu().numpy()
    n = len(moved)
    if n < 2:
        return False
    with np.errstate(divide="ignore"):
        statistic = moved.mean() / (moved.std(ddof=1) / math.sqrt(n))
    by_mean = student_t.sf(statistic, n - 1)
    return bool(min(by_mean, wilcoxon(moved, alternative="greater").pvalue) < PROOF)
