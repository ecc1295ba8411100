"""What a fitted model says about itself: per component, per column, and in words.

Sums over rows, a block at a time. Knows a `VAE` and targets, and nothing of how it was fitted.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .families import gaussian_part, gaussian_raw
from .targets import Stored, Streamed
from .workspace import how_many, slices, width

Floats = NDArray[np.float64]
ACTIVE_KL = 0.01  # nats: a component that says less about a row is counted as collapsed
LEFT_OUT = 256, 1_000  # rows that components are left out of, at least and at most
WEIGHED = 32  # rows whose importance weights are looked at
FEW_POINTS = 0.05  # share of a score's points below which it is called degenerate


def moments(vae: Any, rows: Stored) -> tuple[Floats, Floats]:
    """KL per component, (n_components,), and spread per column as a variance, (n_columns,).

    Means over the rows, nats and standardised units; NaN for columns that are not normal, 0 where
    the spread does not vary with the rows and is a parameter of the likelihood. Of a
    prior without a KL in closed form, to the normal distribution of the component's own moments.
    """
    likelihood, k = vae.likelihood, vae.n_components
    normal = gaussian_part(likelihood)
    size = how_many(8 * width(vae))
    closed = getattr(vae.prior, "kl", None)
    # sums of KL, or of mean, mean^2, variance and log-variance
    sums = torch.zeros(1 if closed else 4, k, dtype=torch.float64)
    variance = torch.full((likelihood.n_columns,), math.nan, dtype=torch.float64)
    if normal is not None:
        part, columns = normal
        variance[columns] = 0.0
    with torch.no_grad():
        for (targets, _), share in zip(rows.parts(size), rows.share.split(size), strict=True):
            mean, log_var = vae.posterior(targets)
            each = [closed(mean, log_var)] if closed else _squares(mean, log_var)
            sums += torch.stack([share @ cells.double() for cells in each])
            if normal is not None and part.varies:
                raw = gaussian_raw(likelihood, vae.decoder(mean))
                variance[columns] += share @ part.log_var(raw).exp().double()
    if closed:
        return sums[0].numpy(), variance.numpy()
    mean, square, var, log_var = sums
    kl = 0.5 * ((var + square - mean.square()).log() - log_var)
    return kl.numpy(), variance.numpy()


def _squares(mean: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
    return mean, mean.square(), log_var.exp(), log_var


def explained_share(vae: Any, rows: Stored | Streamed) -> Floats:
    """What each component explains, as a share of what all do: (n_components,).

    The rise of ``-log p(x | z)`` at the encoder's mean when the component is set to 0, over the
    rise when all are. NaN where the components together explain nothing. Of so many rows that they
    are decoded half as often in all as there are rows.
    """
    k, (least, most) = vae.n_components, LEFT_OUT
    some = rows.head(min(max(least, rows.n_in_all // (2 * (k + 2))), most))
    size = how_many((k + 2) * width(vae))
    total = torch.zeros(k + 2, dtype=torch.float64)
    # which components stay: all, all but one, none
    kept = torch.cat([torch.ones(1, k), 1 - torch.eye(k), torch.zeros(1, k)])
    with torch.no_grad():
        for (targets, _), share in zip(some.parts(size), some.share.split(size), strict=True):
            z = vae.posterior(targets)[0]
            z = kept.to(z)[:, None] * z  # (k + 2, n, k)
            raw = vae.decoder(z.reshape(-1, k)).reshape(k + 2, len(targets), -1)
            total += vae.likelihood.log_prob(raw, targets).sum(-1).double() @ share
    rise = total[0] - total[1:]
    explained = rise[:-1] / rise[-1] if rise[-1] > 0 else torch.full((k,), math.nan)
    return explained.double().numpy()


def efficiency(vae: Any, rows: Stored | Streamed, points: Tensor, draws: Tensor | None) -> float:
    """Share of a score's points that count, ``1 / (m sum of squared weights)``: median of rows.

    None count of a row so far out that its weights are no numbers.
    """
    targets, _ = rows.head(WEIGHED)[:]
    n_draws = 0 if draws is None else len(draws)
    m, found = len(points) + n_draws, []
    with torch.no_grad():
        for part in slices(len(targets), vae.weighed_width(len(points), n_draws)):
            _, log_weights, log_share = vae.log_weights(targets[part].to(points), points, draws)
            # of the density that points are drawn from, each has the same share
            weights = (log_weights + log_share[:, None]).softmax(0)
            found.append(1 / (m * weights.square().sum(0)))
    return float(torch.cat(found).nan_to_num(0.0).median())


def summary(vae: Any) -> str:
    """A fitted `VAETransformer` in words, a line for each thing worth knowing.

    Parameters
    ----------
    vae : VAETransformer
        Fitted.

    Returns
    -------
    text : str
    """
    lines = [" ".join(repr(vae).split()), *_training(vae), *_components(vae)]
    if vae.score_efficiency_ is not None:
        share = vae.score_efficiency_
        found = "enough"
        if share < FEW_POINTS:
            found = "few: single scores are rough. Raise n_score_samples, or lower n_components"
        lines.append(f"Scores: {share:.0%} of {vae.n_score_samples} points count, {found}.")
    return "\n".join(lines)


def _training(vae: Any) -> list[str]:
    n = vae.n_iter_
    if n == 0:
        return ["Training: none, this is the start."]
    lines = [f"Training: {n} epoch{'s' if n > 1 else ''}."]
    best = vae.best_validation_score_
    if best is not None:
        scores = vae.validation_scores_
        epoch = scores.index(best) + 1 if best in scores else 0
        when = f"in epoch {epoch}" if epoch else "at the start"
        lines[0] += f" Best held-out ELBO {best:.3f} nats per row, {when}."
    gain, error = vae.linear_gain_, vae.linear_gain_error_
    if gain is not None:
        of_mean = "" if vae.spread_gain_ is None else " of the mean"
        lines.append(f"  Gain{of_mean} over the linear start: {_with_error(gain, error)}.")
        if gain <= 2 * error < math.inf:
            what = "a linear model (PCA, FactorAnalysis) does as well"
            if vae.spread_gain_ is not None:
                what = "codes and reconstructions are about as good as a linear model's"
            lines.append(f"  No clear gain: {what} on these rows.")
    if vae.spread_gain_ is not None:
        gain, error = vae.spread_gain_, vae.spread_gain_error_
        clear = ", not a clear one" if gain <= 2 * error < math.inf else ""
        more = _with_error(gain, error)
        lines.append(f"  Gain of the density by a spread that depends on z: {more}{clear}.")
    if vae.linear_encoder_:
        lines.append("  The encoder is linear: held-out rows did not prove that more helps.")
    return lines


def _with_error(gain: float, error: float) -> str:
    if math.isinf(error):
        return f"{gain:.3f} nats, of one held-out row"
    return f"{gain:.3f} ± {error:.3f} nats per held-out row"


def _components(vae: Any) -> list[str]:
    k, active = len(vae.kl_per_component_), vae.n_active_components_
    beta = vae._fit.settings.beta  # the parameter may have changed since
    if beta == 0:
        return [f"Components: {k}, of a plain autoencoder (beta=0)."]
    total = vae.kl_per_component_.sum()
    lines = [f"Components: {active} of {k} active, {total:.2f} nats per row."]
    for j in np.argsort(-vae.kl_per_component_, kind="stable")[: max(active, 1)][:10]:
        nats = vae.kl_per_component_[j]
        share = math.nan if vae.explained_share_ is None else vae.explained_share_[j]
        lost = "" if math.isnan(share) else f", {share:.0%} of the fit is lost without it"
        lines.append(f"  component {j}: {nats:.2f} nats{lost}.")
    if active > 10:
        lines.append(f"  and {active - 10} more.")
    if active < k:
        lines.append(
            f"  {k - active} say less than {ACTIVE_KL} nats: these data do not need them, at "
            f"beta={beta:g}. Fewer components, or a smaller beta, if they should."
        )
    return lines
