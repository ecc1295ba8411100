"""From the cells of T to a likelihood: each family's statistics, columns grouped by family."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    ManyLevels,
    Mixed,
    Multinomial,
    NegativeBinomial,
    Poisson,
    StudentT,
    split_gaps,
)
from .linear import upright
from .rows import DistinctRows, Floats, location_and_scale

# name -> class that validation reads the range of values from
FAMILIES: dict[str, Any] = {
    "gaussian": Gaussian,
    "student_t": StudentT,
    "log_normal": Gaussian,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "multinomial": Multinomial,
}
POSITIVE = float(np.finfo(np.float64).tiny)  # the least that "log_normal" takes
NORMAL = ("gaussian", "log_normal")  # families that are one `Gaussian`
COUNTS = ("poisson", "negative_binomial")
RAREST = 1e-3  # the start's lowest probability of a column in [0, 1]: its logit stays finite
MAX_LEVELS = 64  # categorical columns of more levels are `ManyLevels`
BASIS = 8  # numbers that then describe a level, at most
ROBUST_ROWS = 2**20  # of several processes, that a median is taken of
SHRINK = 5.0  # rows that a level's description is worth before its own are counted

# (shift, scale, which columns are logarithms) -> the likelihood of normal columns
MakeGaussian = Callable[[Floats, Floats, Any], Gaussian]
# (positions of columns, their cells) -> what statistics are taken of
Values = Callable[[Sequence[int], Floats], Floats]


def support(family: str) -> tuple[float, float, bool]:
    """Lowest and highest value that a family takes, and whether it takes whole numbers alone."""
    low, high = FAMILIES[family].support
    return POSITIVE if family == "log_normal" else low, high, FAMILIES[family].integers


def build(
    rows: DistinctRows,
    families: Sequence[str],
    n_levels: Mapping[int, int],
    exposure: bool,
    dispersions_vary: bool,
    gaussian: MakeGaussian,
) -> Any:
    """The likelihood of columns of these families.

    Parameters
    ----------
    rows : DistinctRows
    families : sequence of str
        One per column.
    n_levels : mapping
        Number of levels of each categorical column.
    exposure : bool
        Whether counts are relative to the row's total.
    dispersions_vary : bool
        Whether those of negative binomial columns are functions of z.
    gaussian : callable
        Makes the likelihood of the normal columns, which comes last.
    """
    groups: dict[str, list[int]] = {}
    for j, family in enumerate(families):
        if family == "categorical" and n_levels[j] > MAX_LEVELS:
            family = f"many levels {j}"
        groups.setdefault("gaussian" if family in NORMAL else family, []).append(j)
    parts: dict[str, Any] = {}
    for family, group in groups.items():
        if family == "gaussian":
            log = np.array([families[j] == "log_normal" for j in group])
            shift, scale = _statistics(rows, group, _logs_of(families))
            parts[family] = gaussian(shift, scale, log)
        elif family == "student_t":
            shift, scale = np.hstack([_robust(rows, j) for j in group])
            parts[family] = StudentT(shift, scale)
        elif family == "bernoulli":
            mean, _ = _statistics(rows, group)
            parts[family] = Bernoulli(mean.clip(RAREST, 1 - RAREST))
        elif family == "categorical":
            parts[family] = Categorical([_shares(rows, j, n_levels[j]) for j in group])
        elif family in COUNTS:
            parts[family] = _counts(family, rows, group, exposure, dispersions_vary)
        elif family == "multinomial":
            parts[family] = _counts(family, rows, group, True, False)
    known = [(part, groups[name]) for name, part in parts.items()]
    for family, (j, *_) in groups.items():
        if family not in parts:
            probability = _shares(rows, j, n_levels[j])
            parts[family] = ManyLevels(probability, _basis(rows, j, probability, known))
    order = sorted(parts, key=lambda name: name == "gaussian")
    columns = [groups[name] for name in order]
    if len(order) == 1:
        return parts[order[0]]
    return Mixed([parts[name] for name in order], columns)


def _logs_of(families: Sequence[str]) -> Values:
    """What is normal in each column: the logarithm of those that are log-normal."""

    def values(which: Sequence[int], cells: Floats) -> Floats:
        for i, j in enumerate(which):
            if families[j] == "log_normal":
                cells[:, i] = np.log(cells[:, i])
        return cells

    return values


def _statistics(
    rows: DistinctRows,
    group: Sequence[int],
    values: Values = lambda which, cells: cells,
) -> Floats:
    """Location and scale of what ``values`` makes of these columns: (2, n_columns)."""
    found = [
        location_and_scale(values(which, rows.columns(which)), rows.weights, rows.world)
        for which in rows.column_blocks(group)
    ]
    return np.hstack(found)


def gaussian_part(likelihood: Any) -> tuple[Gaussian, slice | list[int]] | None:
    """The `Gaussian` of a likelihood, whose last part it is, and its columns of T."""
    if isinstance(likelihood, Gaussian):
        return likelihood, slice(None)  # a view of targets, where a list would copy them
    if isinstance(likelihood, Mixed) and isinstance(likelihood.parts[-1], Gaussian):
        return likelihood.parts[-1], likelihood.columns[-1]
    return None


def gaussian_raw(likelihood: Any, raw: Tensor) -> Tensor:
    """What of the raw output speaks about the `Gaussian` of a likelihood."""
    return likelihood.raw(raw)[-1] if isinstance(likelihood, Mixed) else raw


def _robust(rows: DistinctRows, j: int) -> Floats:
    """Weighted median, and half the range of the middle 68%; 1 where that is zero: (2, 1)."""
    cells = rows.columns([j])
    _, deviation = location_and_scale(cells, rows.weights, rows.world)
    each = np.column_stack([cells, rows.share])
    if rows.world.size > 1:
        # quantiles need the cells themselves: of some rows, whose order is random
        some = each[: max(1, ROBUST_ROWS // rows.world.size)]
        some[:, 1] *= len(each) / max(len(some), 1)
        each = rows.world.gather(torch.from_numpy(some)).numpy()
    each = each[~np.isnan(each[:, 0])]
    values, share = each[np.argsort(each[:, 0], kind="stable")].T
    below = share.cumsum()
    at = np.searchsorted(below, np.array([0.16, 0.5, 0.84]) * below[-1:].sum())
    low, middle, high = values[at.clip(max=len(values) - 1)] if len(values) else np.zeros(3)
    half = 0.5 * (high - low)
    return np.array([[middle], [half if half > 0 else deviation[0]]])


def _shares(rows: DistinctRows, j: int, n_levels: int) -> Floats:
    """Share of each level; half a row more each, so that none is impossible."""
    codes, n_levels = rows.columns([j])[:, 0], max(n_levels, 1)
    seen = ~np.isnan(codes)
    counted = np.bincount(codes[seen].astype(int), rows.share[seen], n_levels)
    found = rows.world.sum(counted) + 0.5 / rows.n_in_all
    return np.asarray(found / found.sum())


def _counts(
    family: str, rows: DistinctRows, group: Sequence[int], exposure: bool, dispersions_vary: bool
) -> Any:
    mean, deviation = _statistics(rows, group)
    world = rows.world
    mean = mean.clip(min=0.5 / rows.n_in_all)
    # by moments: variance = mean + mean^2 / size
    size = 1 / ((deviation / mean) ** 2 - 1 / mean).clip(1e-3, 20.0)
    spread = None
    sizes = np.ones((len(rows), 1))
    if exposure:
        usual, total = np.zeros((len(rows), 1)), np.zeros((len(rows), 1))
        for which in rows.column_blocks(range(len(group))):
            cells = rows.columns([group[i] for i in which])
            for i, column in zip(which, cells.T, strict=True):  # one by one: blocks do not show
                usual[:, 0] += np.where(np.isnan(column), 0.0, mean[i])
                total[:, 0] += np.nan_to_num(column)
        sizes = total.clip(min=0.5) / np.where(usual > 0, usual, np.nan)
        relative = total / np.where(usual > 0, usual, np.nan)
        center, deviation_of_total = location_and_scale(relative, rows.weights, world)
        lowest = world.min(np.fmin.reduce(relative, axis=None, initial=np.inf))
        varies = world.max(np.fmax.reduce(relative, axis=None, initial=-np.inf)) > lowest
        center = np.where(center > 0, center, 1.0)
        # of totals' variation, what the counts' own noise brings is no exposure
        noise = (mean + (family != "poisson") * mean**2 / size).sum() / mean.sum() ** 2
        if family == "multinomial":  # whose totals are given, and have no noise
            noise = 0.0
        # log-normal of these moments: a few rows without any count do not make its tails long
        left = ((deviation_of_total / center) ** 2 * varies - noise).clip(min=0.0)
        spread = np.concatenate([np.log(center) - 0.5 * np.log1p(left), np.sqrt(np.log1p(left))])
    shift, scale = _statistics(rows, group, lambda which, cells: np.log1p(cells / sizes))
    if family in ("poisson", "multinomial"):
        return FAMILIES[family](mean, shift, scale, spread)
    return NegativeBinomial(mean, shift, scale, spread, size, dispersions_vary)


def _basis(
    rows: DistinctRows, j: int, probability: Floats, others: Sequence[tuple[Any, list[int]]]
) -> Floats:
    """What the other columns say about each level: leading directions of the levels' means."""
    n_levels = len(probability)
    n_inputs = sum(part.n_inputs for part, _ in others)
    weight, counted = np.zeros(n_levels), np.zeros(n_levels, dtype=np.int64)
    total = torch.zeros(n_levels, n_inputs, dtype=torch.float64)
    for part_of, T in rows.blocks():
        seen = ~np.isnan(T[:, j])
        at, shares = T[seen, j].astype(int), rows.weights[part_of][seen]
        weight += np.bincount(at, shares, n_levels)
        counted += np.bincount(at, minlength=n_levels)
        inputs = [
            split_gaps(part.embed(torch.from_numpy(part.standardize(T[seen][:, group]))))[0]
            for part, group in others
        ]
        if inputs:
            cells = torch.cat(inputs, 1) * torch.from_numpy(shares)[:, None]
            total.index_add_(0, torch.from_numpy(at), cells)
    weight, counted = rows.world.sum(weight), rows.world.sum(counted)
    total = rows.world.sum(total)
    if n_inputs and counted.any():
        means = total.numpy() / weight.clip(min=1e-300)[:, None]
        means *= (counted / (counted + SHRINK))[:, None]
        means -= probability @ means
        root = np.sqrt(probability)[:, None]
        vectors, values, _ = np.linalg.svd(root * means, full_matrices=False)
        kept = values[:BASIS] > 0.05 * values[0]
        if values[0] > 0:
            leading = upright(torch.from_numpy(vectors[:, : len(kept)][:, kept]))
            return np.asarray(leading.numpy() / root)
    # nothing else is known: how frequent it is
    log_share = np.log(probability)
    log_share -= probability @ log_share
    scale = np.sqrt(probability @ log_share**2)
    return np.asarray((log_share / (scale if scale > 0 else 1.0))[:, None])
