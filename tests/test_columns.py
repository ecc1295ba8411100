"""columns: rows in canonical order, their statistics, and what is refused."""

import numpy as np
import pytest

from skvae import VAETransformer
from skvae.columns import (
    CHUNK,
    check_finite,
    check_no_dates,
    check_support,
    distinct_rows,
    location_and_scale,
    text_column,
)

RNG = np.random.RandomState(0)


def as_dict(rows, weights):
    return dict(zip(map(tuple, rows.tolist()), weights.tolist(), strict=True))


# ------------------------------------------------------------------ distinct rows


def test_order_of_rows_does_not_matter():
    T, weights = RNG.normal(size=(500, 3)).round(1), RNG.uniform(size=500)
    expected = distinct_rows(T, weights)
    for seed in range(5):
        order = np.random.RandomState(seed).permutation(500)
        for found, wanted in zip(distinct_rows(T[order], weights[order]), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)  # to the bit: sums of floats included


def test_integer_weights_are_repetition():
    T, weights = RNG.normal(size=(200, 2)).round(1), RNG.randint(0, 5, 200)
    weighted = distinct_rows(T, weights.astype(float))
    repeated = distinct_rows(np.repeat(T, weights, axis=0), np.ones(weights.sum()))
    for found, wanted in zip(weighted, repeated, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_agrees_with_numpy_unique():
    T = RNG.randint(0, 3, (300, 4)).astype(float)
    rows, counts = np.unique(T, axis=0, return_counts=True)
    assert as_dict(*distinct_rows(T, np.ones(300))) == as_dict(rows, counts)


def test_rows_of_weight_zero_are_dropped():
    T = np.array([[1.0], [2.0], [3.0]])
    assert as_dict(*distinct_rows(T, np.array([0.0, 2.0, 0.5]))) == {(2.0,): 2.0, (3.0,): 0.5}


def test_negative_zero_is_zero():
    rows, weights = distinct_rows(np.array([[-0.0, 1.0], [0.0, 1.0]]), np.ones(2))
    assert as_dict(rows, weights) == {(0.0, 1.0): 2.0}
    assert not np.signbit(rows).any()


@pytest.mark.parametrize("factor", [2.0**-300, 0.5, 2.0, 2.0**300])
def test_units_that_are_powers_of_two_keep_the_order(factor):
    T = RNG.normal(size=(100, 3))
    rows, _ = distinct_rows(T, np.ones(100))
    scaled, _ = distinct_rows(T * [factor, 1.0, 1 / factor], np.ones(100))
    np.testing.assert_array_equal(scaled, rows * [factor, 1.0, 1 / factor])


def test_order_looks_random():
    # a trend in the rows as they came is no trend in their canonical order
    T = np.arange(1000.0)[:, None]
    rows, _ = distinct_rows(T, np.ones(1000))
    assert sorted(rows[:, 0]) == T[:, 0].tolist()
    correlation = np.corrcoef(rows[:, 0], np.arange(1000))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(1000)


def test_rows_that_differ_in_one_column_alone_stay_apart():
    T = np.eye(50)
    rows, weights = distinct_rows(T, np.ones(50))
    assert len(rows) == 50
    assert (weights == 1).all()


# ------------------------------------------------------------------ location and scale


def test_location_and_scale_are_weighted_mean_and_deviation():
    n = 2 * CHUNK + 100  # more than one piece
    T, weights = RNG.normal(size=(n, 3)), RNG.uniform(size=n)
    T[-100:] += 50.0
    mean, scale = location_and_scale(T, weights)
    expected = np.average(T, weights=weights, axis=0)
    variance = np.average((T - expected) ** 2, weights=weights, axis=0)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(scale, np.sqrt(variance), rtol=1e-13)


@pytest.mark.parametrize("exponent", [-1000, -500, 500, 1000])
def test_scale_is_exact_in_any_unit(exponent):
    T, unit = RNG.normal(size=(50, 2)), 2.0**exponent
    mean, scale = location_and_scale(T, np.ones(50))
    far_mean, far_scale = location_and_scale(T * unit, np.ones(50))
    np.testing.assert_array_equal(far_mean, mean * unit)
    np.testing.assert_array_equal(far_scale, scale * unit)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e300, 1e-300, 1e12])
def test_constant_columns_have_scale_one_and_their_own_value(value):
    T = np.full((7, 1), value)
    mean, scale = location_and_scale(T, np.array([0.1, 0.2, 0.3, 1.0, 3.0, 7.0, 0.7]))
    assert mean[0] == value
    assert scale[0] == 1.0


def test_columns_constant_up_to_rounding_have_scale_one():
    T = np.array([[1.0], [1.0 + 2.0**-52], [1.0]])
    assert location_and_scale(T, np.ones(3))[1][0] == 1.0
    T = np.array([[1.0], [1.0 + 1e-9], [1.0]])
    np.testing.assert_allclose(location_and_scale(T, np.ones(3))[1], np.std(T), rtol=1e-6)


# ------------------------------------------------------------------ refusals


def test_support_error_names_column_value_row_and_remedy():
    T = np.array([[0.0, 1.0], [0.5, 1.25]])
    with pytest.raises(ValueError) as caught:
        check_support(T, 0.0, 1.0, "bernoulli", ["'a'", "'b'"])
    for part in ("'bernoulli'", "between 0 and 1", "column 'b' holds 1.25 (row 1)", "MinMaxScaler"):
        assert part in str(caught.value)
    check_support(T[:1], 0.0, 1.0, "bernoulli", ["'a'", "'b'"])  # the ends belong to it
    check_support(T * 1e300, -np.inf, np.inf, "gaussian", ["'a'", "'b'"])


@pytest.mark.parametrize(
    ("value", "shown", "remedy"),
    [
        (np.nan, "holds NaN (row 2)", "SimpleImputer"),
        (np.inf, "holds inf (row 2)", "infinities"),
        (-np.inf, "holds -inf (row 2)", "infinities"),
    ],
)
def test_finite_error_names_column_value_row_and_remedy(value, shown, remedy):
    X = np.zeros((3, 2))
    check_finite(X, ["'a'", "'b'"])
    X[2, 1] = value
    with pytest.raises(ValueError) as caught:
        check_finite(X, ["'a'", "'b'"])
    assert f"Column 'b' of X {shown}" in str(caught.value)
    assert remedy in str(caught.value)


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
    with pytest.raises(TypeError, match=r"Column 'when' of X holds .*Convert dates"):
        check_no_dates(frame)
    check_no_dates(frame[["size"]])
    with pytest.raises(TypeError, match=r"X holds .*64\[ms\]\. Convert dates"):
        check_no_dates(when[:, None])


def test_a_table_with_dates_is_refused_by_the_estimator():
    frame = pytest.importorskip("pandas").DataFrame({"a": [1.0, 2.0], "when": np.arange(2)})
    frame["when"] = frame["when"].astype("datetime64[s]")
    with pytest.raises(TypeError, match="Column 'when' of X holds"):
        VAETransformer().fit(frame)


@pytest.mark.parametrize("n", [3, 500, 20_000])
def test_a_column_constant_up_to_rounding_has_scale_one(n):
    column = np.full(n, 0.3)
    column[::2] = 0.1 + 0.2  # the next number
    T = np.c_[RNG.normal(size=(n, 2)), column]
    assert location_and_scale(T, np.ones(n))[1][2] == 1.0


def test_objects_are_refused_by_name():
    frame = pytest.importorskip("pandas").DataFrame({"a": [1.0, 2.0], "b": [None, object()]})
    with pytest.raises(TypeError, match=r"Column 'b': float\(\) argument must be"):
        VAETransformer().fit(frame)


def test_tables_of_other_makes_pass_the_check_of_dates():
    pa = pytest.importorskip("pyarrow")
    check_no_dates(pa.table({"a": [1.0, 2.0], "b": [3.0, 4.0]}))
    pandas = pytest.importorskip("pandas")
    check_no_dates(pandas.DataFrame(np.zeros((2, 2)), columns=["a", "a"]))
