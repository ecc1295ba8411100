"""The rows that a model is fitted on, read a block at a time.

`DistinctRows` of a table in memory: distinct, in an order of their own. A table is never copied as
a whole: its cells are encoded as T where they are read, some columns or some rows at a time, so
that a fit needs little more memory than its float32 targets. `StreamedRows` of an array that is
larger than memory: as they lie there, and a sample of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse

from .world import ALONE, World

Floats = NDArray[np.float64]
SUMMED = 4096  # rows at a time in sums: temporary arrays stay small
BLOCK = 2**18  # cells that a block holds at most, one column or 16 rows at least
CHUNK_CELLS = 2**17  # cells of a stream's chunk, at most: rows that are read together
LEAST_CHUNKS = 64  # and no fewer chunks than these, so that some can be held out
SAMPLE = 2**25  # cells of a stream's sample


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
        A sparse one in CSR format.
    weights : ndarray of shape (n_rows,)
    check : callable, default=None
        ``check(j, cells)`` of each column before anything else, in X's own order; may raise.
    world : World, default=ALONE
        The processes that have the other rows.

    Attributes
    ----------
    is_sparse : bool
        Whether X is.
    weights : ndarray of shape (len(self),)
        Summed over equal rows.
    n_in_all : int
        Rows of all processes.
    total : float
        Weight of these.

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
        world: World = ALONE,
    ) -> None:
        self.schema, self.X, self.n_columns, self.world = schema, X, X.shape[1], world
        self.is_sparse = issparse(X)
        # sums over columns that are read together: all processes take the same ones
        self._height_of_columns = int(world.max(np.float64(X.shape[0])))
        # columns of CSR can only be found by reading all of it
        self._by_column = X.tocsc() if self.is_sparse else X
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
        self.n_in_all = int(world.sum(np.float64(len(first))))
        self.total = float(world.sum(self.weights.sum()))

    @property
    def share(self) -> Floats:
        """Of each row in the weight of all: over all processes they sum to one."""
        return np.asarray(self.weights / self.total)

    def __len__(self) -> int:
        return len(self._order)

    def column_blocks(self, which: Sequence[int]) -> Iterator[Sequence[int]]:
        """These columns, as many at a time as a block may hold."""
        size = max(1, BLOCK // max(self._height_of_columns, 1))
        for start in range(0, len(which), size):
            yield which[start : start + size]

    def columns(self, which: Sequence[int]) -> Floats:
        """Whole columns of T: (n_rows, len(which))."""
        cells = _canonical(self.schema.encode(self._by_column, which))
        return np.asfortranarray(cells[self._order])

    def block(self, rows: slice | NDArray[np.intp]) -> Floats:
        """Some rows of T: (len, n_columns)."""
        return self._read(self._order[rows])

    def head(self, n_rows: int) -> tuple[Floats, Floats]:
        """The first rows of T, and their shares: of each process as large a part.

        All processes get the same ones. Their order is random.
        """
        n_own = -(-min(n_rows, self.n_in_all) * len(self) // max(self.n_in_all, 1))
        n_own = n_rows if self.world.size == 1 else n_own
        some = slice(min(n_own, len(self)))
        stands_for = len(self) / max(some.stop, 1)
        T, weights = self.block(some), self.weights[some] * stands_for
        if self.world.size > 1:
            T, weights = (self.world.gather(torch.from_numpy(a)).numpy() for a in (T, weights))
        return T, np.asarray(weights / weights.sum())

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """All rows of T, a block at a time."""
        for start in range(0, len(self), self._height):
            rows = slice(start, min(start + self._height, len(self)))
            yield rows, self.block(rows)

    @property
    def _height(self) -> int:
        return max(16, BLOCK // max(self.n_columns, 1))

    @property
    def sample(self) -> "DistinctRows":
        """All of them: they are in memory."""
        return self

    def _read(self, rows: NDArray[np.intp]) -> Floats:
        return _canonical(self.schema.encode(self.schema.take(self.X, rows)))

    def _keys(
        self, kept: NDArray[np.intp], check: Callable[[int, Floats], None] | None
    ) -> NDArray[np.uint64]:
        """A hash of each of these rows of X; columns are checked on the way."""
        key = np.zeros(len(kept), dtype=np.uint64)
        for which in self.column_blocks(range(self.n_columns)):
            cells = np.asfortranarray(_canonical(self.schema.encode(self._by_column, which)))
            if check is not None:
                for j, column in zip(which, cells.T, strict=True):
                    check(j, column)
            _mix(key, cells if len(kept) == len(cells) else np.asfortranarray(cells[kept]))
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


class StreamedRows:
    """Rows of an array that is larger than memory, as they lie there, and a sample of them.

    One pass over the array, in order, checks all cells and takes the sample: random rows.

    Parameters
    ----------
    schema : Columns
        How X becomes T: ``encode(X)``; and ``release(X)``, after a part of it was read.
    X : array-like of shape (n_rows, n_columns)
        Whose slices are arrays.
    weights : ndarray of shape (n_rows,), default=None
    check : callable, default=None
        ``check(T, first_row)`` of each block; may raise.
    world : World, default=ALONE
        The processes that have the other rows.
    room : int
        Cells that may be in memory of the sample, and of the rows that are read at a time.

    Attributes
    ----------
    sample : DistinctRows
    n_in_all : int
        Rows of all processes.
    weights : ndarray of shape (n_rows,) or None
        Their mean is one.
    n_chunks : int
    """

    def __init__(
        self,
        schema: Any,
        X: Any,
        weights: Floats | None = None,
        check: Callable[[Floats, int], None] | None = None,
        world: World = ALONE,
        room: int = SAMPLE,
    ) -> None:
        self.schema, self.X, self.world, self.room = schema, X, world, room
        self.n_rows, self.n_columns = X.shape
        self.n_in_all = int(world.sum(np.float64(self.n_rows)))
        self.weights = None
        if weights is not None:
            self.weights = weights / (world.sum(weights.sum()) / self.n_in_all)
        self._height = max(1, min(CHUNK_CELLS // self.n_columns, self.n_rows // LEAST_CHUNKS))
        self.n_chunks = -(-self.n_rows // self._height)
        size = min(self.n_rows, max(min(room, SAMPLE) // self.n_columns, 2))
        random = np.random.default_rng(0)
        cells = np.empty((size, self.n_columns), dtype=X.dtype)
        sampled = np.ones(size)
        for number in range(self.n_chunks):
            start, stop = self.chunk(number)
            raw = self._raw(start, stop)
            if check is not None:
                check(self._encoded(raw), start)
            # of each chunk its share
            first, last = size * start // self.n_rows, size * stop // self.n_rows
            chosen = random.choice(stop - start, last - first, replace=False)
            cells[first:last] = raw[chosen]
            if self.weights is not None:
                sampled[first:last] = self.weights[start + chosen]
        # each process' sample stands for all of its rows
        self.sample = DistinctRows(schema, cells, sampled * (self.n_rows / size), world=world)

    def __len__(self) -> int:
        return self.n_rows

    def chunk(self, number: int) -> tuple[int, int]:
        """First row of a chunk, and the first behind it."""
        start = number * self._height
        return start, min(start + self._height, self.n_rows)

    def block(self, start: int, stop: int) -> Floats:
        """Some rows of T, float32 where X is: (stop - start, n_columns)."""
        return self._encoded(self._raw(start, stop))

    def _raw(self, start: int, stop: int) -> NDArray[Any]:
        raw = np.array(self.X[start:stop])
        self.schema.release(self.X)
        return raw

    def _encoded(self, raw: NDArray[Any]) -> Floats:
        dtype = np.float32 if raw.dtype == np.float32 else np.float64
        T: Floats = self.schema.encode(raw, dtype=dtype)
        return T


def _canonical(T: Floats) -> Floats:
    """T, in place, with one zero and one NaN."""
    T += 0.0  # -0.0 becomes 0.0
    T[np.isnan(T)] = np.nan
    return T


def _mix(key: NDArray[np.uint64], cells: Floats) -> None:
    """Take columns, (n_rows, n_columns), into the rows' hashes, one after the other."""
    _, exponent = np.frexp(np.fmax.reduce(np.abs(cells), axis=0, initial=0.0))
    # quicker where powers of two are themselves normal numbers, and as exact
    near = (np.abs(exponent) < 1000).all()
    scaled = cells * np.ldexp(1.0, -exponent) if near else np.ldexp(cells, -exponent)
    for column in scaled.T:
        key *= np.uint64(0x9E3779B97F4A7C15)
        key += column.view(np.uint64)
        key ^= key >> np.uint64(29)


def location_and_scale(T: Floats, weights: Floats, world: World = ALONE) -> tuple[Floats, Floats]:
    """Weighted mean and standard deviation (divisor: the weights' sum) of each column's cells.

    NaN is left out. A column that is constant, up to rounding, has scale 1; one without any cell
    has mean 0. Of the rows of all processes.
    """
    # divide by a power of two near the largest magnitude first: 1e300 squared overflows
    lowest = world.min(np.fmin.reduce(T, axis=0, initial=np.inf))
    highest = world.max(np.fmax.reduce(T, axis=0, initial=-np.inf))
    empty = lowest > highest
    lowest, highest = np.where(empty, 0.0, lowest), np.where(empty, 0.0, highest)
    largest = np.maximum(np.abs(lowest), np.abs(highest))
    _, exponent = np.frexp(largest)
    unit = np.ldexp(1.0, exponent - 1)
    slices = [slice(start, start + SUMMED) for start in range(0, len(T), SUMMED)]
    share = (weights / world.sum(weights.sum()))[:, None]
    none = np.zeros(T.shape[1])  # so that sums over no rows have a shape

    def in_all(parts: list[Floats]) -> Floats:
        return world.sum(np.sum([none, *parts], axis=0))

    gaps = world.sum(np.isnan(T).sum(axis=0)) > 0
    if gaps.any():
        total = in_all([(share[c] * ~np.isnan(T[c])).sum(axis=0) for c in slices])
        # (n_rows, n_columns); a column without gaps is summed as it is alone, to the bit
        share = np.asfortranarray(share / np.where(gaps & ~empty, total, 1.0))

    def weighted(rows: slice, cells: Floats) -> Any:
        # plain sums: a product with BLAS would depend on its number of threads
        return (np.nansum if gaps.any() else np.sum)(share[rows] * cells, axis=0)

    mean = in_all([weighted(c, T[c] / unit) for c in slices])
    first, second = np.zeros_like(mean), np.zeros_like(mean)
    for c in slices:
        residual = T[c] / unit - mean
        first += weighted(c, residual)
        second += weighted(c, residual**2)
    first, second = world.sum(first), world.sum(second)
    # the first sums' rounding, mended: else a constant column of many rows seems to vary
    mean += first
    deviation = np.sqrt((second - first**2).clip(min=0.0))
    constant = lowest == highest
    mean = np.where(constant, lowest / unit, mean)
    constant |= deviation <= 10 * np.finfo(float).eps * (largest / unit)
    return mean * unit, np.where(constant, 1.0, deviation * unit)
