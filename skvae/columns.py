"""Rows of T: checked, distinct and in a canonical order, with their columns' location and scale.

``T`` is the one currency of the package: a float64 matrix (n_rows, n_columns). Arrays of numbers
are T already; this file is where tables with types will become T, and be restored from it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CHUNK = 4096  # rows at a time: temporary arrays stay small


def text_column(X: Any) -> str:
    """How an error message begins about a table's first column that does not read as numbers."""
    for name in getattr(X, "columns", ()):
        try:
            np.asarray(X[name], dtype=np.float64)
        except (TypeError, ValueError):
            return f"Column {name!r}: "
    return ""


def check_no_dates(X: Any) -> None:
    """Refuse columns of dates and durations, naming the first.

    Raises
    ------
    TypeError
    """
    named: list[tuple[str, Any]] = []
    if isinstance(X, np.ndarray) and X.ndim == 2:
        named = [("X", X.dtype)]
    elif hasattr(X, "__array__") and hasattr(X, "columns") and hasattr(X, "dtypes"):
        named = [(f"Column {n!r} of X", d) for n, d in zip(X.columns, X.dtypes, strict=True)]
    for name, dtype in named:
        if str(dtype).lower().startswith(("date", "time", "duration", "period")):
            raise TypeError(
                f"{name} holds {dtype}. Convert dates and durations to numbers first, for example "
                "to days since the first: (dates - dates.min()) / np.timedelta64(1, 'D')."
            )


def check_finite(X: NDArray[Any], names: list[str]) -> None:
    """Refuse NaN and infinities, naming the column and the row.

    Raises
    ------
    ValueError
    """
    wrong = ~np.isfinite(X)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        value = X[row, column]
        if np.isnan(value):
            what = "NaN"
            remedy = "Fill missing values first, for example with SimpleImputer, or drop such rows."
        else:
            what, remedy = f"{value}", "Replace infinities or drop such rows."
        raise ValueError(f"Column {names[column]} of X holds {what} (row {row}). {remedy}")


def check_support(T: Floats, low: float, high: float, family: str, names: list[str]) -> None:
    """Refuse cells outside a family's interval, naming the column and the value.

    Raises
    ------
    ValueError
    """
    outside = (T < low) | (T > high)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"likelihood={family!r} needs values between {low:g} and {high:g}, but column "
            f"{names[column]} holds {T[row, column]:g} (row {row}). Scale that column, for "
            "example with MinMaxScaler(clip=True), or use likelihood='gaussian'."
        )


def distinct_rows(T: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Distinct rows in an order that their content alone decides, and their summed weights.

    Rows of weight zero are dropped and equal rows merged, so that a permutation of the rows gives
    the same result, and an integer weight means repetition, to the bit.

    The order is that of a 64-bit hash of each row. Each column is first divided by a power of two
    near its largest magnitude: exact, so a change of unit by a power of two changes no order.

    Examples
    --------
    >>> import numpy as np
    >>> T = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0]])
    >>> rows, weights = distinct_rows(T, np.ones(3))
    >>> dict(zip(map(tuple, rows.tolist()), weights.tolist())) == {(1, 2): 2, (0, 1): 1}
    True
    """
    T, weights = T[weights > 0], weights[weights > 0]
    T = T + 0.0  # -0.0 becomes 0.0
    _, exponent = np.frexp(np.abs(T).max(axis=0, initial=0.0))
    key = np.zeros(len(T), dtype=np.uint64)
    for j in range(T.shape[1]):
        bits = np.ldexp(T[:, j], -exponent[j]).view(np.uint64)
        # splitmix64's finaliser over a running sum
        key = key * np.uint64(0x9E3779B97F4A7C15) + bits
        key ^= key >> np.uint64(30)
        key *= np.uint64(0xBF58476D1CE4E5B9)
        key ^= key >> np.uint64(27)
        key *= np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    # the weight breaks ties, so that floating sums do not depend on the order of rows either
    order = np.lexsort((weights, key))
    T, weights = T[order], weights[order]
    new = np.ones(len(T), dtype=bool)
    new[1:] = (T[1:] != T[:-1]).any(axis=1)
    first = np.flatnonzero(new)
    return np.ascontiguousarray(T[first]), np.add.reduceat(weights, first)


def location_and_scale(T: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted mean and standard deviation (divisor: the weights' sum) of each column.

    A column that is constant, up to rounding, has scale 1.
    """
    # divide by a power of two near the largest magnitude first: 1e300 squared overflows
    lowest, highest = T.min(axis=0), T.max(axis=0)
    largest = np.maximum(np.abs(lowest), np.abs(highest))
    _, exponent = np.frexp(largest)
    unit = np.ldexp(1.0, exponent - 1)
    share = (weights / weights.sum())[:, None]
    slices = [slice(start, start + CHUNK) for start in range(0, len(T), CHUNK)]
    # plain sums: a product with BLAS would depend on its number of threads
    mean = np.sum([(share[c] * (T[c] / unit)).sum(axis=0) for c in slices], axis=0)
    first, second = np.zeros_like(mean), np.zeros_like(mean)
    for c in slices:
        residual = T[c] / unit - mean
        first += (share[c] * residual).sum(axis=0)
        second += (share[c] * residual**2).sum(axis=0)
    # the first sums' rounding, mended: else a constant column of many rows seems to vary
    mean += first
    deviation = np.sqrt((second - first**2).clip(min=0.0))
    constant = lowest == highest
    mean = np.where(constant, lowest / unit, mean)
    constant |= deviation <= 10 * np.finfo(float).eps * (largest / unit)
    return mean * unit, np.where(constant, 1.0, deviation * unit)
