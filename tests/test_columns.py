"""columns: tables to T and back, and what is refused."""

import numpy as np
import pytest

from skvae import VAETransformer
from skvae.columns import (
    Columns,
    check_no_dates,
    check_no_infinity,
    check_support,
    missing,
    text_column,
)

RNG = np.random.RandomState(0)


# ------------------------------------------------------------------ refusals


def test_support_error_names_column_value_row_and_remedy():
    cells = np.array([1.0, np.nan, 1.25])
    with pytest.raises(ValueError) as caught:
        check_support(cells, 0.0, 1.0, False, "bernoulli", "'b'")
    for part in ("'bernoulli'", "between 0 and 1", "column 'b' holds 1.25 (row 2)", "MinMaxScaler"):
        assert part in str(caught.value)
    check_support(cells[:2], 0.0, 1.0, False, "bernoulli", "'b'")  # the ends belong to it
    check_support(cells * 1e300, -np.inf, np.inf, False, "gaussian", "'b'")
    with pytest.raises(ValueError, match=r"whole numbers of at least 0, .* holds 1.25 \(row 2\)"):
        check_support(cells, 0.0, np.inf, True, "poisson", "'b'")
    check_support(cells[:2], 0.0, np.inf, True, "poisson", "'b'")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinities_are_refused_by_name(value):
    cells = np.array([np.nan, 2.0])
    check_no_infinity(cells, "'b'")
    cells[1] = value
    with pytest.raises(ValueError) as caught:
        check_no_infinity(cells, "'b'")
    assert f"Column 'b' of X holds {value} (row 1)" in str(caught.value)
    assert "NaN where the value is not known" in str(caught.value)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_text_column_is_found(library):
    frame = pytest.importorskip(library).DataFrame(
        {"size": [1.0, 2.0], "digits": ["1", "2"], "kind": ["x", "y"]}
    )
    assert text_column(frame) == "Column 'kind': "  # text that reads as numbers is let through
    assert text_column(frame[["size"]]) == ""
    assert text_column(np.zeros((2, 2))) == ""


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("kind", ["datetime64[ms]", "timedelta64[ms]"])
def test_dates_are_refused_by_name(library, kind):
    when = np.arange(3).astype(kind)
    frame = pytest.importorskip(library).DataFrame({"size": [1.0, 2.0, 3.0], "when": when})
    with pytest.raises(TypeError, match=r"Column 'when' of X holds .*days since the first"):
        VAETransformer().fit(frame)
    with pytest.raises(TypeError, match=r"X' of X holds .*64\[ms\]\. Convert it to numbers"):
        check_no_dates(when[:, None])


def test_masked_cells_are_no_data():
    X = np.ma.masked_greater(np.random.default_rng(0).normal(size=(30, 2)), 2.0)
    with pytest.raises(TypeError, match=r"X has masked cells: pass X.astype\(float\).filled\(np.n"):
        VAETransformer(1).fit(np.ma.masked_less(X, 0.0))
    vae = VAETransformer(1, max_iter=0).fit(X.filled(np.nan))
    with pytest.raises(TypeError, match="X has masked cells"):
        vae.transform(np.ma.masked_less(X, 0.0))
    np.testing.assert_array_equal(vae.transform(np.ma.array(X.data)), vae.transform(X.data))


def test_objects_are_refused_by_name():
    frame = pytest.importorskip("pandas").DataFrame({"a": [1.0, 2.0], "b": [object(), object()]})
    with pytest.raises(TypeError, match=r"Column 'b' of X holds object objects, which are no cat"):
        VAETransformer().fit(frame)
    frame["b"] = [[1], [2]]
    with pytest.raises(TypeError, match=r"Column 'b' of X holds list objects, which are no categ"):
        VAETransformer().fit(frame)


# ------------------------------------------------------------------ tables


def table(library):
    """Columns of all kinds, with gaps in each that can have them."""
    if library == "pandas":
        pd = pytest.importorskip("pandas")
        return pd.DataFrame(
            {
                "float": [0.5, np.nan, 2.5, -1.0],
                "single": np.array([1, 2, 3, np.nan], dtype=np.float32),
                "int": np.array([3, 1, 2, 2], dtype=np.int16),
                "Int": pd.array([2**40, None, 5, 6], dtype="Int64"),
                "bool": [True, False, True, True],
                "boolean": pd.array([True, None, False, True], dtype="boolean"),
                "text": ["b", None, "a", "b"],
                "kind": pd.Categorical(["y", "x", None, "y"], ["z", "y", "x"], ordered=True),
                "object": np.array([1, "one", None, 1], dtype=object),
            },
            index=[7, 5, 3, 1],
        )
    pl = pytest.importorskip("polars")
    return pl.DataFrame(
        {
            "float": [0.5, float("nan"), None, -1.0],
            "single": pl.Series([1.0, 2.0, 3.0, None], dtype=pl.Float32),
            "int": pl.Series([3, 1, 2, 2], dtype=pl.Int16),
            "Int": [2**40, None, 5, 6],
            "bool": [True, False, True, True],
            "boolean": [True, None, False, True],
            "text": ["b", None, "a", "b"],
            "kind": pl.Series(["y", "x", None, "y"], dtype=pl.Categorical),
            "enum": pl.Series(["y", "x", None, "y"], dtype=pl.Enum(["z", "y", "x"])),
        }
    )


LIBRARIES = pytest.mark.parametrize("library", ["pandas", "polars"])


def whole(frame):
    """The rows without gaps, twice."""
    rows = np.flatnonzero(~missing(frame).any(axis=1))
    return frame.iloc[rows] if hasattr(frame, "iloc") else frame[rows]


@LIBRARIES
def test_dtypes_decide_the_family(library):
    frame = table(library)
    schema = Columns.read(frame, "auto", "from_dtype")
    expected = ["gaussian"] * 4 + ["bernoulli"] * 2 + ["categorical"] * 3
    assert schema.families == expected
    assert schema.levels[6].tolist() == ["a", "b"]
    # declared levels keep their order, unused ones included; others are sorted
    assert schema.levels[8 if library == "polars" else 7].tolist() == ["z", "y", "x"]
    assert schema.levels[7 if library == "polars" else 8].tolist() in (["x", "y"], [1, "one"])


@LIBRARIES
def test_a_table_survives_the_way_to_T_and_back(library):
    frame = table(library)
    schema = Columns.read(frame, "auto", "from_dtype")
    T = schema.encode(frame)
    np.testing.assert_array_equal(np.isnan(T), missing(frame))
    assert T[0, 6] == 1.0 and T[2, 6] == 0.0
    rows = np.flatnonzero(~np.isnan(T).any(axis=1))
    back = schema.decode(T[rows])
    expected = whole(frame)
    assert type(back) is type(frame)
    assert list(back.columns) == list(frame.columns)
    assert list(back.dtypes) == list(frame.dtypes)
    for name in frame.columns:
        assert list(back[name]) == list(expected[name]), name


@LIBRARIES
def test_filling_leaves_observed_cells_alone(library):
    frame = table(library)
    schema = Columns.read(frame, "auto", "from_dtype")
    gaps = missing(frame)
    T = np.where(gaps, np.where(np.arange(9) < 4, 9.4, 0.0), -1.0)
    filled = schema.fill(frame, T)
    assert not missing(filled).any()
    assert list(filled.dtypes) == list(frame.dtypes)
    for j, name in enumerate(frame.columns):
        for i, (old, new) in enumerate(zip(frame[name], filled[name], strict=True)):
            if not gaps[i, j]:
                assert old == new and type(old) is type(new)
    assert list(filled["Int"])[1] == 9  # whole numbers stay whole
    assert list(filled["float"])[1] == 9.4
    assert list(filled["boolean"])[1] is False or not list(filled["boolean"])[1]
    assert list(filled["text"])[1] == "a"
    if library == "pandas":
        assert filled.index.tolist() == [7, 5, 3, 1]
    np.testing.assert_array_equal(missing(frame), gaps)  # the input is as it was


@LIBRARIES
def test_unseen_levels_are_missing(library):
    frames = pytest.importorskip(library)
    schema = Columns.read(frames.DataFrame({"a": ["x", "y", "x"]}), "auto", "from_dtype")
    T = schema.encode(frames.DataFrame({"a": ["y", "new", None]}))
    np.testing.assert_array_equal(T[:, 0], [1.0, np.nan, np.nan])


def test_integers_are_rounded_and_stay_inside_their_dtype():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.array([1, 2], np.uint8), "b": np.array([1, 2], np.int64)})
    back = Columns.read(frame, "auto", None).decode(np.array([[-0.7, 1e30], [255.6, -2.5]]))
    assert back["a"].tolist() == [0, 255]
    assert back["b"].tolist() == [2**63 - 1, -2]


def test_arrays_with_categories():
    X = np.array([[3.0, 0.1], [7.0, 0.2], [np.nan, 0.3], [3.0, np.nan]])
    for chosen in ([0], [True, False], [-2]):
        schema = Columns.read(X, "auto", chosen)
        assert schema.families == ["categorical", "gaussian"]
        assert schema.levels[0].tolist() == [3.0, 7.0]
        T = schema.encode(np.vstack([X, [[5.0, 0.0]]]))
        np.testing.assert_array_equal(T[:, 0], [0.0, 1.0, np.nan, 0.0, np.nan])
        np.testing.assert_array_equal(schema.decode(T[:2]), X[:2])


@LIBRARIES
def test_names_indices_and_mappings_choose_families(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"a": [1, 2, 2], "b": [0.5, 1.0, 2.0], "c": [True, False, True]})
    likelihood = {"b": "log_normal", 2: "categorical"}
    schema = Columns.read(frame, likelihood, ["a"])
    assert schema.families == ["categorical", "log_normal", "categorical"]
    assert Columns.read(frame, "student_t", None).families == ["student_t"] * 2 + ["bernoulli"]
    with pytest.raises(ValueError, match=r"likelihood names column 'z', but X has columns \['a'"):
        Columns.read(frame, {"z": "poisson"}, None)
    with pytest.raises(ValueError, match="categorical_features names column 7, but"):
        Columns.read(frame, "auto", [7])
    with pytest.raises(ValueError, match="mask of 2 columns, but X has 3"):
        Columns.read(frame, "auto", [True, False])
    with pytest.raises(ValueError, match=r"categorical_features must be .*, got 'a'"):
        Columns.read(frame, "auto", "a")


@LIBRARIES
def test_identifiers_are_named(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"id": [f"row {i}" for i in range(30)], "k": ["x", "y", "z"] * 10})
    with pytest.warns(UserWarning, match="Column 'id' has 30 categories in 30 cells"):
        Columns.read(frame, "auto", None)


def test_names_may_repeat():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([[1.0, "x"], [np.nan, "y"]], columns=["a", "a"])
    schema = Columns.read(frame, "auto", None)
    T = schema.encode(frame)
    np.testing.assert_array_equal(T, [[1.0, 0.0], [np.nan, 1.0]])
    filled = schema.fill(frame, np.array([[0.0, 0.0], [5.0, 0.0]]))
    assert filled.to_numpy().tolist() == [[1.0, "x"], [5.0, "y"]]


def test_tables_of_other_makes_are_arrays():
    pa = pytest.importorskip("pyarrow")
    arrow = pa.table({"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 9.0]})
    check_no_dates(arrow)
    assert VAETransformer(1, max_iter=0).fit(arrow).sample(2).shape == (2, 2)


def test_given_cells():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]})
    schema = Columns.read(frame, "auto", None)
    np.testing.assert_array_equal(schema.encode_cells({"a": "y"}), [[1.0, np.nan]])
    np.testing.assert_array_equal(schema.encode_cells({1: 3}), [[np.nan, 3.0]])
    with pytest.raises(ValueError, match=r"'z' for column 'a', whose categories are 'x', 'y'\."):
        schema.encode_cells({"a": "z"})
    with pytest.raises(ValueError, match="given says 'many' for column 'b', which holds numbers"):
        schema.encode_cells({"b": "many"})
