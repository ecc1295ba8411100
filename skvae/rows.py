"""The rows that a model is fitted on: distinct, in an order of their own, a block at a time.

A table is never copied as a whole: its cells are encoded as T where they are read, some columns or
some rows at a time, so that a fit needs little more memory than its float32 targets.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CHUNK = 4096  # rows at a time in sums: temporary arrays stay small
BLOCK = 2**18  # cells that a block holds at most, one column or 256 rows at least


class DistinctRows:
    """Distinct rows of a table in an order that their content alone decides, and their weights.

    Rows of weight zero are dropped and equal rows merged, so that a permutation of the rows gives
    the same result, and an integer weight means repetition, to the bit.

    The order is that of a 64-bit hash of each row. Each column is first divided by a power of two
    near its largest magnitude: exact, so a change of unit by a power of two changes no order.

    Parameters
    ----------
    schema : Columns
        How X becomes T: ``encode(X, which)`` and ``take(X, rows)``.
    X : table or matrix of shape (n_rows, n_columns)
    weights : ndarray of shape (n_rows,)
    check : callable, default=None
        ``check(j, cells)`` of each column before anything else, in X's own order; may raise.

    Attributes
    ----------
    weights : ndarray of shape (len(self),)
        Summed over equal rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.columns import Columns
    >>> from skvae.rows import DistinctRows
    >>> X = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0]])
    >>> rows = DistinctRows(Columns.read(X, "auto", None), X, np.ones(3))
    >>> dict(zip(map(tuple, rows.block(slice(2)).tolist()), rows.weights.tolist())) == {
    ...     (1, 2): 2,
    ...     (0, 1): 1,
    ... }
    True
    """

    def __init__(
        self,
        schema: Any,
        X: Any,
        weights: Floats,
        check: Callable[[int, Floats], None] | None = None,
    ) -> None:
        self.schema, self.X, self.n_columns = schema, X, X.shape[1]
        kept = np.flatnonzero(weights > 0)
        key, weights = self._keys(kept, check), weights[kept]
        order = np.argsort(key, kind="stable")
        if (key[order[1:]] == key[order[:-1]]).any():
            # the weight breaks ties, so that floating sums do not depend on the order of rows
            order = np.lexsort((weights, key))
        key, weights, self._order = key[order], weights[order], kept[order]
        first = np.flatnonzero(self._new(key))
        self._order = self._order[first]
        self.weights: Floats = np.add.reduceat(weights, first) if len(first) else weights

    def __len__(self) -> int:
        return len(self._order)

    def column_blocks(self, which: Sequence[int]) -> Iterator[Sequence[int]]:
        """These columns, as many at a time as a block may hold."""
        size = max(1, BLOCK // max(len(self.X), 1))
        for start in range(0, len(which), size):
            yield which[start : start + size]

    def columns(self, which: Sequence[int]) -> Floats:
        """Whole columns of T: (n_rows, len(which))."""
        return np.asfortranarray(_canonical(self.schema.encode(self.X, which))[self._order])

    def block(self, rows: slice) -> Floats:
        """Some rows of T: (len, n_columns)."""
        return self._read(self._order[rows])

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """All rows of T, a block at a time."""
        for start in range(0, len(self), self._height):
            rows = slice(start, min(start + self._height, len(self)))
            yield rows, self.block(rows)

    @property
    def _height(self) -> int:
        return max(256, BLOCK // max(self.n_columns, 1))

    def _read(self, rows: NDArray[np.intp]) -> Floats:
        return _canonical(self.schema.encode(self.schema.take(self.X, rows)))

    def _keys(
        self, kept: NDArray[np.intp], check: Callable[[int, Floats], None] | None
    ) -> NDArray[np.uint64]:
        """A hash of each of these rows of X; columns are checked on the way."""
        key = np.zeros(len(kept), dtype=np.uint64)
        for which in self.column_blocks(range(self.n_columns)):
            cells = np.asfortranarray(_canonical(self.schema.encode(self.X, which)))
            for j, column in zip(which, cells.T, strict=True):
                if check is not None:
                    check(j, column)
                _mix(key, column if len(kept) == len(column) else column[kept])
        # splitmix64's finaliser
        key ^= key >> np.uint64(30)
        key *= np.uint64(0xBF58476D1CE4E5B9)
        key ^= key >> np.uint64(27)
        key *= np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
        return key

    def _new(self, key: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows, in the present order, differ from the one before."""
        new = np.ones(len(key), dtype=bool)
        alike = np.flatnonzero(key[1:] == key[:-1])
        for start in range(0, len(alike), self._height):
            at = alike[start : start + self._height]
            one, two = self._read(self._order[at]), self._read(self._order[at + 1])
            # bits: NaN equals itself
            new[at + 1] = (one.view(np.uint64) != two.view(np.uint64)).any(axis=1)
        return new


def _canonical(T: Floats) -> Floats:
    """T, in place, with one zero and one NaN."""
    T += 0.0  # -0.0 becomes 0.0
    T[np.isnan(T)] = np.nan
    return T


def _mix(key: NDArray[np.uint64], column: Floats) -> None:
    """Take a column into the rows' hashes."""
    _, exponent = np.frexp(np.fmax.reduce(np.abs(column), initial=0.0))
    # quicker where the power of two is itself a normal number, and as exact
    near = abs(exponent) < 1000
    scaled = column * np.ldexp(1.0, -exponent) if near else np.ldexp(column, -exponent)
    key *= np.uint64(0x9E3779B97F4A7C15)
    key += scaled.view(np.uint64)
    key ^= key >> np.uint64(29)


def location_and_scale(T: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted mean and standard deviation (divisor: the weights' sum) of each column's cells.

    NaN is left out. A column that is constant, up to rounding, has scale 1; one without any cell
    has mean 0.
    """
    # divide by a power of two near the largest magnitude first: 1e300 squared overflows
    lowest, highest = np.fmin.reduce(T, axis=0), np.fmax.reduce(T, axis=0)
    empty = np.isnan(lowest)
    lowest, highest = np.where(empty, 0.0, lowest), np.where(empty, 0.0, highest)
    largest = np.maximum(np.abs(lowest), np.abs(highest))
    _, exponent = np.frexp(largest)
    unit = np.ldexp(1.0, exponent - 1)
    slices = [slice(start, start + CHUNK) for start in range(0, len(T), CHUNK)]
    share = (weights / weights.sum())[:, None]
    gaps = np.isnan(T).any(axis=0)
    if gaps.any():
        total = np.sum([(share[c] * ~np.isnan(T[c])).sum(axis=0) for c in slices], axis=0)
        # (n_rows, n_columns); a column without gaps is summed as it is alone, to the bit
        share = np.asfortranarray(share / np.where(gaps & ~empty, total, 1.0))

    def weighted(rows: slice, cells: Floats) -> Any:
        # plain sums: a product with BLAS would depend on its number of threads
        return (np.nansum if gaps.any() else np.sum)(share[rows] * cells, axis=0)

    mean = np.sum([weighted(c, T[c] / unit) for c in slices], axis=0)
    first, second = np.zeros_like(mean), np.zeros_like(mean)
    for c in slices:
        residual = T[c] / unit - mean
        first += weighted(c, residual)
        second += weighted(c, residual**2)
    # the first sums' rounding, mended: else a constant column of many rows seems to vary
    mean += first
    deviation = np.sqrt((second - first**2).clip(min=0.0))
    constant = lowest == highest
    mean = np.where(constant, lowest / unit, mean)
    constant |= deviation <= 10 * np.finfo(float).eps * (largest / unit)
    return mean * unit, np.where(constant, 1.0, deviation * unit)
