"""Partitions of a table that no one process holds: each becomes a file of T on its worker.

`stage` writes a partition and says what is in it, `merge` finds the schema of all, and `Files` is
what one worker has, read as one array. Below are the methods of a model, for one partition each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from .columns import Columns, float_of, table_library, warn_of_identifiers

Floats = NDArray[np.float64]


@dataclass
class Part:
    """A partition, as it was staged.

    Attributes
    ----------
    path : str
        Of its cells, in row-major order.
    n_rows : int
        Of positive weight.
    dtype : dtype
        Of the cells.
    weights : ndarray of shape (n_rows,) or None
    schema : Columns
        By which its categories have codes.
    first : object
        Its first row, if there is one, for its types.
    seen : dict of object
        Of each categorical column a table of it alone, in which each category occurs once.
    n_cells : dict of int
        Of each categorical column, those that are not missing.
    """

    path: str
    n_rows: int
    dtype: Any
    weights: Floats | None
    schema: Columns
    first: Any
    seen: dict[int, Any]
    n_cells: dict[int, int]
    recoded: dict[int, Floats] = field(default_factory=dict)  # of each old code, the new one


def stage(
    X: Any,
    weights: Floats | None,
    schema: Columns,
    folder: str,
    name: str,
    check: Callable[..., None],
) -> Part:
    """Write a partition as T into a folder, for the fit of this name.

    ``schema`` is of the partition alone; ``check(T)`` may refuse cells.
    """
    T = schema.encode(X, dtype=float_of(X) if table_library(X) is None else None)
    check(T)
    kept = np.arange(len(T)) if weights is None else np.flatnonzero(weights)
    if weights is not None:
        T, weights = T[kept], weights[kept]
    n_cells, seen = {}, {}
    for j in schema.levels:
        _, at = np.unique(T[:, j], return_index=True)
        known = np.isfinite(T[:, j])
        n_cells[j], rows = int(known.sum()), kept[at[known[at]]]
        seen[j] = X[rows, j : j + 1] if table_library(X) is None else X.iloc[rows, [j]]
    first = Columns.take(X, np.arange(min(len(X), 1)))  # a copy: a view would hold all of X
    path = Path(folder) / f"{name}-{uuid4().hex}"
    T.tofile(path)
    return Part(str(path), len(T), T.dtype, weights, schema, first, seen, n_cells)


def merge(
    parts: Sequence[Part], likelihood: Any, categorical_features: Any, known: Columns | None = None
) -> Columns:
    """The schema of all parts, whose codes are from now on its own.

    Categories are those of the whole table, in the order that they would have there; or the schema
    is a ``known`` one, whose categories they are, and others count as missing.

    Raises
    ------
    ValueError
        Where a column is of one family in one part and of another in another one.
    """
    _check_kinds(parts)
    filled = [part for part in parts if len(part.first)]
    if known is not None:
        schema = known
        if filled:
            _check_known(filled[0].schema, known)
    else:
        types = _concatenated([_typed(part, filled) for part in filled] or [parts[0].first])
        schema = Columns.read(types, likelihood, categorical_features, whole=False)
        for j in schema.levels if filled else ():
            column = Columns([schema.names[j]], ["categorical"], schema.library)
            n_cells = sum(part.n_cells[j] for part in filled)
            cells = _concatenated([p.seen[j] for p in filled if p.n_cells[j] or not n_cells])
            schema.levels[j], n_found, _ = column.find_levels(cells, 0)
            warn_of_identifiers(schema.names[j], n_found, n_cells)
    for j, levels in schema.levels.items():
        positions = {level: code for code, level in enumerate(levels.tolist())}
        for part in filled:
            old = part.schema.levels[j].tolist()
            part.recoded[j] = np.array([positions.get(level, np.nan) for level in old], dtype=float)
    return schema


def _typed(part: Part, parts: Sequence[Part]) -> Any:
    """Its first row, where columns of which it knows no cell have the categories of another one."""
    types = {}
    for j, n in part.n_cells.items():
        others = (other.schema for other in parts if other.n_cells[j])
        if not n and (known := next(others, None)) and hasattr(known.dtypes[j], "categories"):
            types[known.names[j]] = known.dtypes[j]
    return part.first.astype(types) if types else part.first


def _concatenated(tables: list[Any]) -> Any:
    if table_library(tables[0]) is None:
        return np.concatenate(tables)
    # pandas forgets that columns are categorical where their categories differ
    from dask.dataframe.dispatch import concat

    # Dask fails where these are of several types, or beside plain cells
    plain = {}
    for name, *types in zip(tables[0].columns, *(list(t.dtypes) for t in tables), strict=True):
        categorical = {hasattr(t, "categories") for t in types}
        kinds: list[Any] = []  # no set: equal types of text have other hashes where NaN is another
        for t in types:
            kind = t.categories.dtype if hasattr(t, "categories") else t
            if kind not in kinds:
                kinds.append(kind)
        if True in categorical and len(categorical) + len(kinds) > 2:
            whole = not any(table[name].hasnans for table in tables)
            plain[name] = kinds[0] if len(kinds) == 1 and whole else object
    return concat([table.astype(plain) for table in tables] if plain else tables)


def _check_known(schema: Columns, known: Columns) -> None:
    """Refuse to go on from a model whose categorical columns are others."""
    for j, name in enumerate(schema.names):
        if (j in schema.levels) != (j in known.levels):
            now, before = (
                "categorical" if j in each.levels else "numeric" for each in (schema, known)
            )
            raise ValueError(
                f"Column {name!r} is {now}, but {before} in the fit to go on from: convert it, or "
                "set warm_start=False."
            )


def _check_kinds(parts: Sequence[Part]) -> None:
    first: dict[int, tuple[int, Part]] = {}
    for number, part in enumerate(parts):
        if not len(part.first):
            continue
        for j, family in enumerate(part.schema.families):
            at, other = first.setdefault(j, (number, part))
            if other.schema.families[j] != family:
                kinds = [
                    f"{p.schema.families[j]} ({p.schema.dtypes[j]}) in partition {i}"
                    for i, p in ((at, other), (number, part))
                ]
                raise ValueError(
                    f"Column {part.schema.names[j]!r} is read as {kinds[0]} and as {kinds[1]}: "
                    "convert it to one type with astype, or name its family in likelihood."
                )
            types = [p.schema.dtypes[j] if p.schema.dtypes else None for p in (other, part)]
            ordered = [getattr(t, "ordered", False) for t in types]
            if any(ordered) and types[0] != types[1]:
                orders = [
                    f"ordered as {list(getattr(t, 'categories', []))}" if o else "not ordered"
                    for o, t in zip(ordered, types, strict=True)
                ]
                raise ValueError(
                    f"Column {part.schema.names[j]!r} is {orders[0]} in partition {at} and "
                    f"{orders[1]} in partition {number}: give all of X one type, "
                    f"X.astype({{{part.schema.names[j]!r}: dtype}})."
                )


class Files:
    """What is in the files of one worker, as an array whose slices are read when they are needed.

    Parameters
    ----------
    parts : sequence of Part
        With rows.
    n_columns : int
    dtype : dtype
        That cells are read as.
    """

    def __init__(self, parts: Sequence[Part], n_columns: int, dtype: Any) -> None:
        self.parts, self.dtype = list(parts), np.dtype(dtype)
        self._ends = np.cumsum([part.n_rows for part in parts])
        self.shape = int(self._ends[-1]), n_columns

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def weights(self) -> Floats | None:
        """Of the rows; None where all are alike."""
        if self.parts[0].weights is None:
            return None
        return np.concatenate([part.weights for part in self.parts if part.weights is not None])

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        out = np.empty((max(stop - start, 0), self.shape[1]), dtype=self.dtype)
        end, at = 0, 0
        for part in self.parts:
            begin, end = end, end + part.n_rows
            first, last = max(start, begin), min(stop, end)
            if first < last:
                out[at : at + last - first] = self._read(part, first - begin, last - first)
                at += last - first
        return out

    def _read(self, part: Part, first: int, n_rows: int) -> NDArray[Any]:
        # read, not mapped: pages of a map would count as this process's memory
        n, size = self.shape[1], part.dtype.itemsize
        cells = np.fromfile(part.path, part.dtype, n_rows * n, offset=first * n * size)
        T = cells.reshape(n_rows, n)
        for j, new in part.recoded.items():
            known = ~np.isnan(T[:, j])
            T[known, j] = new[T[known, j].astype(int)]
        return T


def remove(folder: str, name: str) -> None:
    """Delete what `stage` has written there for one fit."""
    for path in Path(folder).glob(f"{name}-*"):
        path.unlink(missing_ok=True)


def coded(schema: Columns) -> Columns:
    """The schema of T itself: an array of numbers and of codes."""
    levels = {j: np.arange(float(len(found))) for j, found in schema.levels.items()}
    return Columns(schema.names, schema.families, None, [], levels)


def names_of(X: Any) -> list[Any]:
    """Of a table's columns; an array's numbers."""
    return list(X.columns) if hasattr(X, "columns") else list(range(X.shape[1]))


def check_partition(X: Any, names: list[Any]) -> None:
    """Refuse what is not of the kind that its collection says, or has other columns."""
    trust = "map_blocks, map_partitions and from_delayed trust the meta that they are given."
    if table_library(X) is None and not (
        isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "fiub"
    ):
        kind = f"an array of {X.dtype}" if isinstance(X, np.ndarray) else f"a {type(X).__name__}"
        raise TypeError(f"it is {kind} and not a 2-dimensional array of numbers: {trust}")
    if (its_names := names_of(X)) != names:
        raise ValueError(f"its columns are {its_names}, but those of X are {names}: {trust}")


def matrix(X: Any, name: str = "X") -> Any:
    """An array of whole rows of floats."""
    if X.ndim != 2:
        wanted = "n_features" if name == "X" else "n_components"
        raise ValueError(f"{name} has shape {X.shape}: reshape it to (n_samples, {wanted}).")
    if isinstance(X._meta, np.ma.MaskedArray):
        raise TypeError(
            f"{name} has masked chunks: fill what is masked, da.ma.filled({name}, np.nan)."
        )
    if not isinstance(X._meta, np.ndarray):
        kind = f"{type(X._meta).__module__}.{type(X._meta).__name__}"
        raise TypeError(
            f"{name} has chunks of {kind}: convert them, "
            f"{name}.map_blocks(lambda chunk: chunk.toarray())."
        )
    if np.dtype(X.dtype).kind not in "fiub":
        raise TypeError(f"{name} holds {X.dtype}: convert it to numbers, float32 for example.")
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float64)
    return X.rechunk({1: -1})


def checked_weights(weights: Any, n_rows: int) -> Any:
    """The weights of so many rows, unless they are none."""
    try:
        weights = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"sample_weight must be numbers: {error}.") from error
    if weights.shape != (n_rows,):
        raise ValueError(f"sample_weight has shape {weights.shape}, expected ({n_rows},).")
    if not np.isfinite(weights).all() or (weights < 0).any():
        wrong = int(np.argmin(np.where(np.isfinite(weights), weights, -np.inf)))
        raise ValueError(
            f"sample_weight must be finite and not negative, but holds {weights[wrong]} "
            f"(row {wrong})."
        )
    return weights


def apply(X: Any, model: Any, method: str, width: Any, kind: Any = np.float64) -> Any:
    """What a method gives for one partition, of which nothing may be left."""
    if not len(X):
        if not isinstance(width, tuple):
            return width  # an example
        return np.empty((0, *width), kind)
    if method == "_stacked_posterior":
        return np.stack(model.posterior(X), axis=1)
    return getattr(model, method)(X)


def impute(
    X: Any,
    model: Any,
    n_draws: int | None,
    seed: int,
    block_id: tuple[int, ...] | None = None,
    partition_info: dict[str, Any] | None = None,
) -> Any:
    """A partition with its gaps filled, by means or by a draw."""
    if not len(X):
        return X
    if n_draws is None:
        return model.impute(X)
    # partitions draw differently, and the same each time that they are computed
    number = block_id[0] if block_id else (partition_info or {}).get("number", 0)
    own = np.random.SeedSequence([seed, number]).generate_state(1)[0]
    return model.impute(X, 1, int(own))[0]


def summed(scores: Any, weights: Any = None, number: int = 0) -> tuple[float, float]:
    """Weighted sum of a partition's scores, and of its weights."""
    if weights is None:
        return float(scores.sum()), float(len(scores))
    try:
        weights = checked_weights(weights, len(scores))
    except (ValueError, TypeError) as error:
        raise type(error)(f"Partition {number}: {error}") from error
    return float(scores @ weights), float(weights.sum())
