"""What displays share: what they are given, and how things are drawn.

matplotlib is imported where something is drawn, and nowhere else.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from scipy.stats import norm
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from .checks import check_integer, check_sizes

Array = NDArray[Any]
# Petroff's ten, which the colour-blind can tell apart (arXiv:2107.02270); his greys come last
COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#92dadd",
    "#94a4a2",
    "#717581",
)
BLUE, ORANGE = COLORS[0], COLORS[5]
GREY = "0.82"  # what has no label, and what does not count
TINT = "#cfe2f3"  # of pixels that are missing
DISTINCT = 20  # more levels than this are not told apart, more whole numbers are a scale
BARS = 10  # levels of a marginal that have a bar of their own
PANELS = 12  # marginals that are drawn where none are named


# ---------------------------------------------------------------------------- what is given


def pyplot() -> Any:
    """matplotlib.pyplot, imported where something is drawn and nowhere else."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'Displays draw with matplotlib, which is not installed: pip install "skvae[plot]".'
        ) from error
    return plt


def last_step(estimator: Any, X: Any = None, names: Any = None) -> tuple[Any, Any, Any]:
    """The last step of a fitted pipeline, the rows that reach it, and their columns' names."""
    check_is_fitted(estimator)
    if hasattr(estimator, "best_estimator_"):  # a search
        return last_step(estimator.best_estimator_, X, names)
    if hasattr(estimator, "steps"):
        if len(estimator) > 1:
            before = estimator[:-1]
            X = None if X is None else before.transform(X)
            try:
                names = before.get_feature_names_out()
            except (AttributeError, ValueError):  # a step knows none
                names = None
        return last_step(estimator[-1], X, names)
    return estimator, X, names


def find_model(estimator: Any, X: Any = None, names: Any = None) -> tuple[Any, Any, list[str]]:
    """The fitted VAE in an estimator, the rows that reach it, and their columns' names."""
    last, X, names = last_step(estimator, X, names)
    if hasattr(last, "estimator_"):
        return find_model(last.estimator_, X, names)
    if not hasattr(last, "kl_per_component_"):
        raise TypeError(
            "estimator must be a fitted VAETransformer, a Pipeline that ends in one, or an "
            f"estimator that holds one as estimator_, got {last!r}. Of a longer pipeline pass the "
            "part up to the model, such as pipeline[:2]."
        )
    if X is not None and not hasattr(X, "shape"):
        X = np.asarray(X)
    X = X.tocsr() if issparse(X) else X  # which has rows and columns to take
    if names is None:
        names = getattr(X, "columns", getattr(last, "feature_names_in_", None))
    if names is None:
        names = [f"x{j}" for j in range(last.n_features_in_)]
    return last, X, [str(name) for name in names]


def need(model: Any, name: str) -> Any:
    """A method that plain autoencoders lack, or the reason why it is absent."""
    try:
        return getattr(model, name)
    except AttributeError as error:
        reason = error.__cause__ or error
        raise AttributeError(
            f"This display needs the estimator's {name}, which is absent. {reason}"
        ) from error


def choose_components(model: Any, components: Any, n_default: int) -> list[int]:
    """Components by number; None: those that carry most nats."""
    n_components = len(model.kl_per_component_)
    if components is None:
        most: list[int] = np.argsort(-model.kl_per_component_, kind="stable").tolist()
        return most[:n_default]
    chosen: list[Any] = [components] if isinstance(components, Integral | str) else list(components)
    for component in chosen:
        check_integer("each of components", component, 0)
        if int(component) >= n_components:
            raise ValueError(
                "each of components must be below the number of components, "
                f"{n_components}, got {component}."
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"components must name at least one, each once, got {components!r}.")
    return [int(component) for component in chosen]


def component_label(model: Any, component: int) -> str:
    """Its number, and what it says about a row."""
    nats = model.kl_per_component_[component]
    return f"component {component}" + ("" if math.isnan(nats) else f" ({nats:.2f} nats)")


def cells_of(column: Any) -> tuple[Array, NDArray[np.bool_]]:
    """The cells of a column that are there, as numbers, flags or text; and which these are."""
    if hasattr(column, "isna"):  # pandas
        there = ~np.asarray(column.isna())
    elif hasattr(column, "is_null"):  # polars
        there = ~column.is_null().to_numpy()
    else:
        if not isinstance(column, np.ndarray):  # of a list, NaN beside text would be text
            column = np.asarray(column, dtype=object)
        there = np.ones(len(column), dtype=bool)
        if column.dtype == object:
            there = np.array([cell is not None and cell == cell for cell in column], dtype=bool)
    if isinstance(column, np.ndarray) and column.dtype != object:
        cells = column
    else:
        cells = np.array([c for c, here in zip(column, there, strict=True) if here])
    if cells.dtype.kind == "f":
        number = ~np.isnan(cells)
        there[there] = number
        cells = cells[number]
    return cells, there


def column_of(X: Any, j: int) -> tuple[Array, NDArray[np.bool_]]:
    """`cells_of` of column j of a table or matrix."""
    if issparse(X):
        return cells_of(X[:, [j]].toarray()[:, 0])
    return cells_of(_safe_indexing(X, j, axis=1))


def numbers(X: Any, which: Sequence[int] | None = None) -> tuple[Array, list[int]]:
    """Columns of numbers and flags as a matrix, NaN in gaps, and which columns these are."""
    X = X.toarray() if issparse(X) else X
    columns = {j: column_of(X, j) for j in (range(X.shape[1]) if which is None else which)}
    kept = [j for j, (cells, _) in columns.items() if which or cells.dtype.kind in "biuf"]
    if not kept:
        raise ValueError("X holds text alone: there are no numbers to draw.")
    out = np.full((X.shape[0], len(kept)), np.nan)
    for i, j in enumerate(kept):
        cells, there = columns[j]
        out[there, i] = cells
    return out, kept


def mean_and_scale(cells: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of columns with gaps; 1 where a column is constant."""
    masked = np.ma.masked_invalid(cells)
    scale = masked.std(0).filled(0)
    return masked.mean(0).filled(0), np.where(scale > 0, scale, 1.0)


def check_y(y: Any, n_rows: int) -> Any:
    """y with one entry for each row, or an error that says how many it has."""
    if y is None:
        return None
    shape = getattr(y, "shape", None) or np.shape(y)
    if len(shape) != 1:
        raise ValueError(f"y must be one label or number for each row, but has shape {shape}.")
    if shape[0] != n_rows:
        raise ValueError(f"y has {shape[0]} entries, but X has {n_rows} rows.")
    return y


def is_scale(cells: Array) -> bool:
    """Whether these are numbers on a scale, in place of a few levels."""
    if cells.dtype.kind not in "iuf":
        return False
    return len(np.unique(cells)) > DISTINCT or bool((cells != np.round(cells)).any())


def levels_of(cells: Array, most: int) -> tuple[list[str], NDArray[np.intp]]:
    """Names of levels, and each cell's number among them.

    In their order, but of text beyond ``most`` the most frequent ones, and one that holds the rest.
    """
    levels, codes, counts = np.unique(cells, return_inverse=True, return_counts=True)
    names = [f"{x:g}" if cells.dtype.kind == "f" else str(x) for x in levels]
    if len(levels) <= most:
        return names, codes
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(levels), dtype=np.intp)
    rank[order] = np.arange(len(levels)).clip(max=most - 1)
    rest = f"{len(levels) - most + 1} others"
    return [names[i] for i in order[: most - 1]] + [rest], rank[codes]


# ---------------------------------------------------------------------------- how it is drawn


def axes(ax: Any, **figure: Any) -> Any:
    """The given axes, or those of a new figure."""
    if ax is None:
        _, ax = pyplot().subplots(layout="constrained", **figure)
    return ax


def styled(defaults: dict[str, Any], kwargs: dict[str, Any], artist: str) -> dict[str, Any]:
    """How something looks, overruled by keywords in any spelling that matplotlib knows."""
    from matplotlib import cbook, collections, lines, patches

    kinds = {"line": lines.Line2D, "patch": patches.Patch, "points": collections.PathCollection}
    given = cbook.normalize_kwargs(kwargs, kinds[artist])
    # one colour for all in place of those of face and edge
    parts = {"facecolor", "edgecolor"} if "color" in given else set()
    return {name: value for name, value in defaults.items() if name not in parts} | given


def panels_in(
    ax: Any, shape: tuple[int, int], n_panels: int, figsize: tuple[float, float], shared: bool
) -> tuple[Any, Array, Any]:
    """Axes in a grid inside of the given ones, or of a new figure's; and axes for a legend.

    The legend's stand to the right of all rows: it would stretch the row of a panel of its own.
    """
    ax = axes(ax, figsize=figsize)
    figure, spec = ax.figure, ax.get_subplotspec()
    if spec is None:
        raise ValueError(f"ax must be made by subplots, to be divided into panels, got {ax!r}.")
    current = figure.gca()
    ax.set_axis_off()
    n_rows, n_columns = shape
    width, space = 0.01, {}
    if figure.get_layout_engine() is None:  # else it finds the space between panels itself
        width, space = 0.6, {"hspace": 0.6, "wspace": 0.4}
    grid = spec.subgridspec(
        n_rows, n_columns + 1, width_ratios=[1.0] * n_columns + [width], **space
    )
    panels: list[Any] = []
    for i in range(n_panels):
        first = panels[0] if shared and panels else None
        cell = grid[divmod(i, n_columns)]
        panels.append(figure.add_subplot(cell, sharex=first, sharey=first))
    side = figure.add_subplot(grid[:, -1])
    side.set_axis_off()
    figure.sca(current)
    return ax, np.array(panels), side


def legend_outside(ax: Any, handles: Any, title: str | None = None, **kwargs: Any) -> Any:
    """A legend to the right of the axes, where nothing else is drawn."""
    return ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        frameon=False,
        title=title,
        alignment="left",
        **kwargs,
    )


def bin_edges(values: Array, n_bins: int, tail: float, whole: bool = False) -> Array:
    """Edges of bins without far tails, which would squeeze everything else into one bin.

    They span the values between the quantiles of ``tail`` and 1 - ``tail``, and so much on either
    side that they reached six standard deviations if the values were normal; all values where those
    are not twice as wide, or where the quantiles are equal.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.array([-0.5, 0.5])
    smallest, largest = finite.min(), finite.max()
    low, high = np.quantile(finite, [tail, 1 - tail])
    z = norm.isf(tail)
    reach = (high - low) * (6 - z) / (2 * z)
    low, high = max(smallest, low - reach), min(largest, high + reach)
    if low == high or largest - smallest <= 2 * (high - low):
        low, high = smallest, largest
    if whole or low == high:  # bins in the middle of which whole numbers lie
        step = max(1, math.ceil((high - low + 1) / n_bins))
        return np.arange(math.floor(low) - 0.5, high + step, step)
    return np.linspace(low, high, n_bins + 1)


def shares_in(values: Array, edges: Array) -> Array:
    """Shares of values in bins; the outermost ones hold what lies beyond them."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / max(len(values), 1)


def check_image_shape(image_shape: Any, n_features: int) -> tuple[int, ...]:
    """Refuse what is not the shape of an image of so many cells."""
    shape = check_sizes("image_shape", image_shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise ValueError(
            "image_shape must be (height, width) or (height, width, channels) with 1 or 3 "
            f"channels, got {shape}."
        )
    if math.prod(shape) != n_features:
        raise ValueError(
            f"image_shape={shape} has {math.prod(shape)} cells, but rows have {n_features} columns."
        )
    return shape


def draw_images(
    ax: Any, images: Array, image_shape: Sequence[int], row_labels: Sequence[str], kwargs: Any
) -> tuple[Any, Any]:
    """Images in a grid, (n_rows, n_columns, n_cells), as one picture with gaps between them."""
    n_rows, n_columns = images.shape[:2]
    height, width, *channels = image_shape
    gap = max(1, min(height, width) // 8)
    if channels == [3]:  # colours are not scaled by imshow
        low, high = np.nanmin(images), np.nanmax(images)
        images = ((images - low) / (high - low or 1.0)).clip(0, 1)
    grid = images.reshape(n_rows, n_columns, height, width, -1)
    shape = n_rows * (height + gap) - gap, n_columns * (width + gap) - gap
    sheet = np.full((*shape, grid.shape[-1]), np.nan)
    tops, lefts = np.arange(n_rows) * (height + gap), np.arange(n_columns) * (width + gap)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            sheet[top : top + height, left : left + width] = grid[i, j]
    sheet = np.nan_to_num(sheet, nan=1.0) if channels == [3] else sheet[..., 0]
    each = min(1.0, 12 / n_columns)
    ax = axes(ax, figsize=(n_columns * each + 1.5, n_rows * each * height / width + 0.6))
    image = ax.imshow(sheet, **{"cmap": "gray", "interpolation": "nearest"} | kwargs)
    if np.isnan(images).any():  # missing cells would look like the brightest ones
        image.set_cmap(image.get_cmap().with_extremes(bad=TINT))
    ax.set_yticks(tops + (height - 1) / 2, row_labels)
    ax.set_xticks(lefts + (width - 1) / 2, [""] * n_columns)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax, image


def strip_widths(x: Array, codes: Array) -> Array:
    """Distances from the middle of strips that are as wide as points are dense there."""
    out = np.zeros(len(x))
    for code in np.unique(codes):
        of = codes == code
        counts, edges = np.histogram(x[of], 20)
        dense = np.interp(x[of], (edges[1:] + edges[:-1]) / 2, counts / counts.max())
        # multiples of the golden ratio, which fill an interval evenly, from left to right
        even = np.argsort(np.argsort(x[of])) * 0.6180339887 % 1 - 0.5
        out[of] = 0.8 * dense * even
    return out


def check_images(kept: Sequence[int], names: Sequence[str]) -> None:
    """Refuse text where pixels are drawn."""
    text = [names[j] for j in range(len(names)) if j not in kept]
    if text:
        raise ValueError(f"image_shape is of numbers, but these columns hold text: {text}.")


def noise_std(model: Any, names: Sequence[str]) -> Array:
    """Standard deviations of cells given the latent; NaN where they are of no cell's own units."""
    variance = getattr(model, "noise_variance_", np.full(len(names), np.nan))
    std: Array = np.where(np.isfinite(variance), np.sqrt(np.abs(variance)), np.nan)
    likelihood = model.likelihood  # that of log-normal columns is a spread of logarithms
    if likelihood == "log_normal":
        return np.full(len(names), np.nan)
    if isinstance(likelihood, Mapping):
        for name, family in likelihood.items():
            if family == "log_normal":
                std[names.index(str(name)) if str(name) in names else name] = np.nan
    return std


def without(left_out: Sequence[str]) -> str:
    """Lines of a legend's title, where columns of text are not drawn."""
    return f"\nnot drawn (text): {', '.join(left_out)}" if left_out else ""


def name_features(ax: Any, names: Sequence[str]) -> None:
    """Names along the x-axis, as many as can be read."""
    step = math.ceil(len(names) / 40)
    at = range(0, len(names), step)
    upright = len(names) > 6 or max(map(len, names)) * len(names) > 60
    ax.set_xticks(at, [names[j] for j in at], rotation=90 if upright else 0)
    ax.set_xlim(-0.5, len(names) - 0.5)


def choose_features(features: Any, names: list[str]) -> list[int]:
    """Columns by name or index, as indices."""
    if features is None:
        return list(range(min(len(names), PANELS)))
    chosen = []
    for feature in [features] if isinstance(features, str | Integral) else features:
        if isinstance(feature, Integral) and 0 <= int(feature) < len(names):
            chosen.append(int(feature))
        elif str(feature) in names:
            chosen.append(names.index(str(feature)))
        else:
            raise ValueError(f"features names column {feature!r}, but X has columns {names}.")
    if not chosen:
        raise ValueError(f"features must name at least one column, got {features!r}.")
    return chosen


def marginal(cells: Array, there: Array, drawn: Array) -> tuple[Any, Array, Array, str]:
    """Bins or levels of a column, shares of observed and of drawn cells, what is not seen."""
    n_gaps = int((~there).sum())
    notes = [f"{n_gaps} gaps"] if n_gaps else []
    both = np.concatenate([cells, drawn])
    if both.dtype.kind not in "iuf" or len(np.unique(both)) <= BARS:
        names, codes = levels_of(both, BARS)
        counts = [np.bincount(c, minlength=len(names)) for c in np.split(codes, [len(cells)])]
        observed, sampled = (c / max(c.sum(), 1) for c in counts)
        return names, observed, sampled, "\n".join(notes)
    n_bins = int(np.clip(2 * min(len(cells), len(drawn)) ** (1 / 3), 10, 40))
    edges = bin_edges(both, n_bins, 0.01, bool((cells == np.round(cells)).all()))
    for name, values in ("observed", cells), ("sampled", drawn):
        beyond = ((values < edges[0]) | (values > edges[-1])).sum()
        if beyond:
            notes.append(f"{name}: {beyond / len(values):.1%} beyond")
    return edges, shares_in(cells, edges), shares_in(drawn, edges), "\n".join(notes)
