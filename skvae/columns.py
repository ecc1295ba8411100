"""Tables <-> T, and what is refused.

``T`` is the one currency of the package: a float64 matrix (n_rows, n_columns), NaN where a value is
missing, categories as codes. `Columns` is a table's schema: how its columns become T, and how T
becomes a table of the same kind, names and types again.
"""

import functools
import mmap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .workspace import CACHED, how_many

Floats = NDArray[np.float64]
IN_MEMORY = 2**28  # cells: arrays on disk with more are read a part at a time, 1 GiB of float32
ID_LIKE = 0.5  # a categorical column with more levels than this share of its cells names rows


def table_library(X: Any) -> str | None:
    """Which of pandas and polars X is a DataFrame of, if any."""
    library = type(X).__module__.split(".")[0]
    found = library in ("pandas", "polars") and type(X).__name__.endswith("DataFrame")
    return library if found else None


def is_sliced(X: Any) -> bool:
    """Whether X is an array that is read by slices, such as those of h5py and zarr."""
    own = isinstance(X, np.ndarray) or table_library(X) is not None
    names = "shape", "dtype", "chunks", "__getitem__", "__len__"
    return not own and all(hasattr(X, name) for name in names)


def is_large(X: Any) -> bool:
    """Whether X lies on disk and is too large to be read as a whole."""
    on_disk = isinstance(X, np.memmap) or is_sliced(X)
    return on_disk and len(X.shape) == 2 and X.shape[0] * X.shape[1] > IN_MEMORY


def dense(cells: Any) -> NDArray[Any]:
    """Part of a matrix as an array, where it is sparse."""
    return cells.toarray() if issparse(cells) else np.asarray(cells)


def float_of(X: Any) -> np.dtype[Any]:
    """The dtype of what methods give for such rows: float32 for rows of it alone, else float64."""
    own = getattr(X, "dtype", None)
    dtypes = X.dtypes if own is None else [own]  # of a DataFrame, one for each column
    single = all(str(dtype).lower() == "float32" for dtype in dtypes)
    return np.dtype(np.float32 if single else np.float64)


def column_at(X: Any, j: int) -> Any:
    """A DataFrame's column by position: names may repeat."""
    return X.iloc[:, j] if table_library(X) == "pandas" else X.to_series(j)


@dataclass
class Columns:
    """The schema of a table.

    Parameters
    ----------
    names : list
        Of the columns; indices for an array.
    families : list of str
        Of the columns, keys of `skvae.likelihoods`' families.
    library : {"pandas", "polars", None}
        What X was; None for arrays.
    dtypes : list
        Of the table's columns; empty for an array.
    levels : dict of ndarray
        Categories of column j, in the order of their codes.
    """

    names: list[Any]
    families: list[str]
    library: str | None = None
    dtypes: list[Any] = field(default_factory=list)
    levels: dict[int, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def read(
        cls, X: Any, likelihood: Any, categorical_features: Any, whole: bool = True
    ) -> "Columns":
        """The schema of X: a DataFrame or a matrix of floats.

        Columns of identifiers are warned of where X is the ``whole`` table.

        Raises
        ------
        ValueError, TypeError
            Where a column's type, ``likelihood`` or ``categorical_features`` do not fit.
        """
        library = table_library(X)
        if library is None:
            names: list[Any] = list(range(X.shape[1]))
            dtypes, families = [], ["gaussian"] * X.shape[1]
        else:
            names, dtypes = list(X.columns), list(X.dtypes)
            families = [_family(n, d) for n, d in zip(names, dtypes, strict=True)]
        schema = cls(names, families, library, dtypes)
        for j in schema._chosen(categorical_features):
            families[j] = "categorical"
        if isinstance(likelihood, Mapping):
            for name, family in likelihood.items():
                families[schema._index(name, "likelihood")] = family
        elif likelihood != "auto":
            families[:] = [likelihood if f == "gaussian" else f for f in families]
        for j, family in enumerate(families):
            if family == "categorical":
                schema.levels[j], n_found, n_cells = schema.find_levels(X, j)
                if whole:
                    warn_of_identifiers(names[j], n_found, n_cells)
            elif library is not None and _family(names[j], dtypes[j]) == "categorical":
                raise ValueError(
                    f"Column {names[j]!r} is of type {dtypes[j]}, and likelihood says {family!r}, "
                    "which is of numbers. Convert it to numbers first, or leave it categorical."
                )
        return schema

    @functools.cached_property
    def restricted(self) -> list[int]:
        """Columns that may not hold any number."""
        return [j for j, family in enumerate(self.families) if family != "gaussian"]

    def _index(self, name: Any, parameter: str) -> int:
        """Position of a column given by name or index."""
        if name in self.names:
            return self.names.index(name)
        if isinstance(name, int | np.integer) and -len(self.names) <= name < len(self.names):
            return int(name) % len(self.names)
        raise ValueError(f"{parameter} names column {name!r}, but X has columns {self.names}.")

    def check_names(self, likelihood: Any, categorical_features: Any) -> None:
        """Refuse parameters that name columns which are not there."""
        self._chosen(categorical_features)
        for name in likelihood if isinstance(likelihood, Mapping) else ():
            self._index(name, "likelihood")

    def _chosen(self, categorical: Any) -> Iterable[int]:
        """Positions that ``categorical_features`` names, beside what dtypes say."""
        if categorical is None or (isinstance(categorical, str) and categorical == "from_dtype"):
            return []
        chosen = np.asarray(categorical)
        if isinstance(categorical, str) or chosen.ndim != 1:
            raise ValueError(
                "categorical_features must be 'from_dtype', None, a boolean mask or a list of "
                f"names or indices, got {categorical!r}."
            )
        if chosen.dtype == bool:
            if len(chosen) != len(self.names):
                raise ValueError(
                    f"categorical_features is a mask of {len(chosen)} columns, but X has "
                    f"{len(self.names)}."
                )
            return np.flatnonzero(chosen).tolist()
        return [self._index(name, "categorical_features") for name in chosen.tolist()]

    # ---------------------------------------------------------------- table -> T

    @staticmethod
    def take(X: Any, rows: NDArray[np.intp] | slice) -> Any:
        """Some rows of a table or matrix."""
        return X.iloc[rows] if table_library(X) == "pandas" else X[rows]

    @staticmethod
    def release(X: Any) -> None:
        """Let go of what reading a file mapped into memory has left there."""
        # a map of its own copy may hold changes
        if not isinstance(X, np.memmap) or X.mode not in ("r", "r+", "w+"):
            return
        mapped = X.base
        while isinstance(mapped, np.ndarray):
            mapped = mapped.base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            _let_go(mapped)

    def encode(self, X: Any, which: Sequence[int] | None = None, dtype: Any = None) -> Floats:
        """X, of this schema, or some of its columns, as T, a copy.

        Levels that were not seen at fit are missing. With a dtype, an array's T has it, and may be
        the array itself.
        """
        which = range(len(self.names)) if which is None else which
        if table_library(X) is None:
            if self.library is not None and self.levels:
                raise TypeError(
                    f"X is {type(X).__name__}, but column {self.names[min(self.levels)]!r} was "
                    f"fitted as categories of a {self.library} DataFrame. Pass such a DataFrame."
                )
            at = slice(which.start, which.stop) if isinstance(which, range) else which
            cells = dense(X[:, at])
            copy = dtype is None or bool(self.levels) or None
            T: Floats = np.array(cells, dtype=dtype or np.float64, order="C", copy=copy)
            for i, j in enumerate(which if self.levels else ()):
                if j in self.levels:
                    T[:, i] = self._codes_of(T[:, i], self.levels[j])
            return T
        T = np.empty((len(X), len(which)))
        for i, j in enumerate(which):
            T[:, i] = self._codes(X, j) if j in self.levels else self._numbers(X, j)
        return T

    @staticmethod
    def _codes_of(cells: Floats, levels: NDArray[Any]) -> Floats:
        """Positions of numbers among sorted levels."""
        if not len(levels):
            return np.full(len(cells), np.nan)
        code = np.searchsorted(levels, cells).clip(max=len(levels) - 1)
        return np.where(levels[code] == cells, code, np.nan)

    def _numbers(self, X: Any, j: int) -> Floats:
        name, column = self.names[j], column_at(X, j)
        _family(name, column.dtype)  # refuses dates
        try:
            if table_library(X) == "pandas":
                if _family(name, column.dtype) == "categorical":
                    column = column.astype(object).where(column.notna(), np.nan)
                numbers: Floats = column.to_numpy(dtype=np.float64, na_value=np.nan)
                return numbers
            import polars as pl

            if str(column.dtype).startswith(("Categorical", "Enum")):
                column = column.cast(pl.String)
            return np.array(column.cast(pl.Float64).to_numpy(), dtype=np.float64)
        except Exception as error:  # polars has its own
            raise ValueError(
                f"Column {name!r} needs numbers: {str(error).splitlines()[0]}. Convert it, or fit "
                "with it in categorical_features."
            ) from error

    def _codes(self, X: Any, j: int) -> Floats:
        column, levels = column_at(X, j), self.levels[j]
        if table_library(X) == "pandas":
            import pandas as pd

            index = pd.Index(levels, dtype=object)
            if isinstance(column.dtype, pd.CategoricalDtype):
                found = np.append(index.get_indexer(column.cat.categories.astype(object)), -1)
                code = found[column.cat.codes.to_numpy()]
            else:
                code = index.get_indexer(column.astype(object))
            return np.where((code < 0) | column.isna().to_numpy(), np.nan, code)
        import polars as pl

        if not len(levels):
            return np.full(len(column), np.nan)
        old, codes = pl.Series(levels.tolist()), np.arange(len(levels), dtype=np.float64)
        column = _plain(column).cast(old.dtype, strict=False)
        found = column.replace_strict(old, codes, default=None, return_dtype=pl.Float64)
        return np.array(found.to_numpy(), dtype=np.float64)

    def find_levels(self, X: Any, j: int) -> tuple[NDArray[Any], int, int]:
        """Categories of column j, how many of them occur, and in how many cells."""
        name = self.names[j]
        found: Any
        if self.library is None:
            found, n_cells = np.empty(0), 0
            size = how_many(X.shape[1], CACHED)
            for start in range(0, X.shape[0], size):
                part = dense(X[start : start + size, j]).ravel().astype(np.float64)
                part = part[~np.isnan(part)]
                found, n_cells = np.union1d(found, part), n_cells + len(part)
            levels = found
        else:
            column = column_at(X, j)
            cells = column.dropna() if self.library == "pandas" else _plain(column).drop_nulls()
            try:
                found = list(cells.unique())
                declared: Any = getattr(column.dtype, "categories", None)
                if not hasattr(declared, "__len__"):  # none, or polars' open set
                    # mixed types have no order of their own
                    declared = sorted(found, key=lambda level: (type(level).__name__, level))
            except TypeError as error:
                raise TypeError(
                    f"Column {name!r} of X holds {type(cells.tolist()[0]).__name__} objects, which "
                    "are no categories. Convert them to numbers or text."
                ) from error
            levels = np.empty(len(declared), dtype=object)
            levels[:] = list(declared)
            n_cells = len(cells)
        return levels, len(found), n_cells

    def encode_cells(self, given: Mapping[Any, Any]) -> Floats:
        """Some cells of one row, by name or index, as T (1, n_columns), NaN elsewhere.

        Raises
        ------
        ValueError
            Where a column or a level is not known, or a number is none.
        """
        T = np.full((1, len(self.names)), np.nan)
        for name, value in given.items():
            j = self._index(name, "given")
            if j in self.levels:
                levels = self.levels[j].tolist()
                if value not in levels:
                    # numpy's own strings and numbers as Python's: not np.str_('a')
                    plain = [v.item() if isinstance(v, np.generic) else v for v in levels[:10]]
                    shown = ", ".join(map(repr, plain)) + (", ..." * (len(levels) > 10))
                    raise ValueError(
                        f"given says {value!r} for column {name!r}, whose categories are {shown}."
                    )
                T[0, j] = levels.index(value)
                continue
            try:
                T[0, j] = float(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"given says {value!r} for column {name!r}, which holds numbers."
                ) from error
        return T

    # ---------------------------------------------------------------- T -> table

    def decode(self, T: Floats) -> Any:
        """T, without gaps, as a table of this schema: numbers in their dtypes, codes as levels.

        An array of numbers is T itself.
        """
        if self.library is None:
            T = T.copy() if self.levels else T
            for j, levels in self.levels.items():
                T[:, j] = levels[T[:, j].astype(int)] if len(levels) else np.nan
            return T
        columns = [self._column(T[:, j], j) for j in range(len(self.names))]
        if self.library == "pandas":
            import pandas as pd

            return pd.concat(columns, axis=1).set_axis(pd.Index(self.names), axis=1)
        import polars as pl

        return pl.DataFrame(dict(zip(self.names, columns, strict=True)))

    def _column(self, cells: Floats, j: int) -> Any:
        return self._series(self._values(cells, j, str(self.dtypes[j])), self.dtypes[j])

    def _values(self, cells: Floats, j: int, kind: str) -> NDArray[Any]:
        """Cells of T as what a column of this dtype holds."""
        if j in self.levels:
            if not len(self.levels[j]):
                return np.full(len(cells), None, dtype=object)
            return self.levels[j][cells.astype(int)]
        kind = kind.lower().split("[")[0]
        if kind.startswith("bool"):
            return cells >= 0.5
        if kind.startswith(("int", "uint")):
            limits = np.iinfo(kind)
            # of a log-normal column 0 would be no value
            least = 1 if self.families[j] == "log_normal" else limits.min
            whole = np.rint(cells).clip(least, limits.max)
            inside = whole < limits.max  # the largest int64 is no float64
            values = np.full(len(cells), limits.max, dtype=kind)
            values[inside] = whole[inside].astype(kind)
            return values
        return cells

    def _series(self, values: Any, dtype: Any) -> Any:
        if self.library == "pandas":
            import pandas as pd

            return pd.Series(values, dtype=dtype)
        import polars as pl

        if isinstance(values, np.ndarray):
            values = values.tolist() if values.dtype == object else values
        return pl.Series(values, strict=False).cast(dtype)

    def fill(self, X: Any, T: Floats) -> Any:
        """X with its missing cells taken from T; the others as they are."""
        library, gaps = table_library(X), missing(X)
        if library is None:
            out = np.array(X)
            for j in np.flatnonzero(gaps.any(axis=0)).tolist():
                out[gaps[:, j], j] = self._values(T[gaps[:, j], j], j, "float")
            return out
        out = X.copy() if library == "pandas" else X.clone()
        for j in np.flatnonzero(gaps.any(axis=0)).tolist():
            column, at = column_at(X, j), np.flatnonzero(gaps[:, j])
            kind = str(column.dtype).lower()
            if kind in ("object", "null") and self.dtypes:  # it says nothing: as at fit
                kind = str(self.dtypes[j])
            values = self._values(T[at, j], j, kind).tolist()
            if library == "pandas":
                out.isetitem(j, _scattered_pandas(column, at, values))
            else:
                out = out.with_columns(_scattered_polars(column, at, values))
        return out


def _scattered_pandas(column: Any, at: NDArray[np.intp], values: list[Any]) -> Any:
    """A column with these values put in, categories added where it does not declare them."""
    dtype, column = column.dtype, column.copy()
    if hasattr(column, "sparse"):  # takes no single cells
        return _scattered_pandas(column.sparse.to_dense(), at, values).astype(dtype)
    if isinstance(values[0], str) and dtype.kind in "biuf":  # text of which nothing is there
        column = column.astype(object)
    if hasattr(column, "cat"):
        known = set(column.cat.categories)
        extra = [v for v in dict.fromkeys(values) if v is not None and v not in known]
        column = column.cat.add_categories(extra)
    column.iloc[at] = values
    return column


def _scattered_polars(column: Any, at: NDArray[np.intp], values: list[Any]) -> Any:
    import polars as pl

    if column.dtype == pl.Null or (isinstance(values[0], str) and column.dtype.is_numeric()):
        return pl.Series(column.name, values)
    new = _plain(column).clone().scatter(at.tolist(), values)
    if isinstance(column.dtype, pl.Enum):
        levels = [*column.dtype.categories, *values]
        return new.cast(pl.Enum(list(dict.fromkeys(v for v in levels if v is not None))))
    return new.cast(column.dtype)


def _let_go(mapped: mmap.mmap) -> None:
    mapped.madvise(mmap.MADV_DONTNEED)


def missing(X: Any) -> NDArray[np.bool_]:
    """Which cells of an array of floats or a DataFrame are missing: (n_rows, n_columns)."""
    library = table_library(X)
    if library is None:
        return np.isnan(X)
    out = np.empty(X.shape, dtype=bool)
    for j in range(X.shape[1]):
        column = column_at(X, j)
        if library == "pandas":
            out[:, j] = column.isna()
        else:
            out[:, j] = column.is_null()
            if column.dtype.is_float():
                out[:, j] |= column.is_nan().fill_null(True).to_numpy()
    return out


def _family(name: Any, dtype: Any) -> str:
    """The family that a table's dtype stands for."""
    kind = str(dtype).lower().removeprefix("sparse[")
    if kind.startswith("bool"):
        return "bernoulli"
    if kind.startswith(("int", "uint", "float", "double", "decimal", "halffloat")):
        return "gaussian"
    if kind.startswith(("categor", "enum", "str", "object", "large_string", "null", "dictionary")):
        return "categorical"
    raise TypeError(
        f"Column {name!r} of X holds {dtype}. Convert it to numbers or text first; dates and "
        "durations for example to days since the first: (dates - dates.min()) / "
        "np.timedelta64(1, 'D')."
    )


def _plain(column: Any) -> Any:
    """A polars column, categories as text."""
    import polars as pl

    text = str(column.dtype).startswith(("Categorical", "Enum"))
    return column.cast(pl.String) if text else column


def warn_of_identifiers(name: Any, n_levels: int, n_cells: int) -> None:
    """Warn where nearly each cell of a column has a category of its own."""
    if n_cells > 20 and n_levels > ID_LIKE * n_cells:
        warnings.warn(
            f"Column {name!r} has {n_levels} categories in {n_cells} cells, as an identifier has: "
            "it says nothing about other rows. Drop it, or convert it to numbers if it is one.",
            UserWarning,
            stacklevel=2,
        )


def text_column(X: Any) -> str:
    """How an error message begins about a table's first column that does not read as numbers."""
    for name in getattr(X, "columns", ()):
        try:
            np.asarray(X[name], dtype=np.float64)
        except (TypeError, ValueError):
            return f"Column {name!r}: "
    return ""


def check_no_dates(X: Any) -> None:
    """Refuse matrices of dates and durations.

    Raises
    ------
    TypeError
    """
    if isinstance(X, np.ndarray) and X.dtype.kind in "mM":
        _family("X", X.dtype)


def check_dense(X: Any, name: str) -> None:
    """Refuse sparse matrices.

    Raises
    ------
    TypeError
    """
    if issparse(X):
        raise TypeError(
            f"Sparse data was passed for {name}, but gaps need dense data: a cell that a sparse "
            "matrix leaves out is zero, not missing. Use '.toarray()' to convert it."
        )


def check_no_infinity(cells: Floats, name: str, first_row: int = 0) -> None:
    """Refuse infinities, naming the column and the row.

    Raises
    ------
    ValueError
    """
    wrong = np.isinf(cells)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"Column {name} of X holds {cells[row]} (row {first_row + row}). Replace infinities, "
            "by NaN where the value is not known, or drop such rows."
        )


def check_support(
    cells: Floats,
    low: float,
    high: float,
    integers: bool,
    family: str,
    name: str,
    first_row: int = 0,
) -> None:
    """Refuse cells outside a family's interval, naming the column and the value.

    Raises
    ------
    ValueError
    """
    outside = (cells < low) | (cells > high)
    if integers:
        outside |= (cells != np.rint(cells)) & ~np.isnan(cells)
    if outside.any():
        row = int(outside.argmax())
        what = "whole numbers" if integers else "values"
        remedy = "Convert that column, or use"
        if high < np.inf:
            wanted = f"{what} between {low:g} and {high:g}"
            if not integers:
                remedy = "Scale that column, for example with MinMaxScaler(clip=True), or use"
        else:
            wanted = f"positive {what}" if low > 0 else f"{what} of at least {low:g}"
        raise ValueError(
            f"likelihood={family!r} needs {wanted}, but column {name} holds {cells[row]:g} "
            f"(row {first_row + row}). {remedy} likelihood='gaussian'."
        )
