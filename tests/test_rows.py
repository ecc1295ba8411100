"""rows: distinct rows in canonical order, and the statistics of columns."""

import numpy as np
import pytest

import skvae.rows
from skvae import VAETransformer
from skvae.columns import Columns
from skvae.rows import SUMMED, DistinctRows, _mix, location_and_scale

RNG = np.random.RandomState(0)


def distinct_rows(T, weights):
    """All distinct rows of a matrix, and their weights."""
    rows = DistinctRows(Columns.read(T, "auto", None), T, weights)
    return rows.block(slice(None)), rows.weights


def as_dict(rows, weights):
    return dict(zip(map(tuple, rows.tolist()), weights.tolist(), strict=True))


# ------------------------------------------------------------------ distinct rows


def test_order_of_rows_does_not_matter():
    T, weights = RNG.randint(0, 5, (500, 2)).astype(float), RNG.uniform(size=500)
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


@pytest.mark.parametrize("exponent", [-1074, -1050, 1023])
def test_the_largest_and_the_least_numbers(exponent):
    T = np.ldexp(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]), exponent)
    rows, weights = distinct_rows(T, np.ones(4))
    assert sorted(weights) == [1.0, 1.0, 2.0]
    assert set(rows.ravel()) == {0.0, np.ldexp(1.0, exponent)}


@pytest.mark.parametrize("block", [1, 700, 2**20])
def test_blocks_do_not_show(block, monkeypatch):
    T = RNG.randint(0, 9, (2000, 3)).astype(float)
    T[::7, 1] = np.nan
    expected, weights = distinct_rows(T, np.ones(2000))
    monkeypatch.setattr(skvae.rows, "BLOCK", block)
    rows = DistinctRows(Columns.read(T, "auto", None), T, np.ones(2000))
    np.testing.assert_array_equal(rows.weights, weights)
    parts = list(rows.blocks())
    np.testing.assert_array_equal(np.vstack([part for _, part in parts]), expected)
    assert [part.start for part, _ in parts] == list(range(0, len(rows), max(16, block // 3)))
    np.testing.assert_array_equal(rows.columns([2, 0]), expected[:, [2, 0]])
    groups = list(rows.column_blocks([0, 2, 1]))
    assert [j for group in groups for j in group] == [0, 2, 1]
    assert len(groups) == (1 if block == 2**20 else 3)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_are_read_like_matrices(library):
    frames = pytest.importorskip(library)
    codes, numbers = RNG.randint(0, 3, 300), RNG.normal(size=300).round(1)
    frame = frames.DataFrame({"kind": [f"level {code}" for code in codes], "size": numbers})
    rows = DistinctRows(Columns.read(frame, "auto", "from_dtype"), frame, np.ones(300))
    found = rows.block(slice(None)), rows.weights
    wanted = distinct_rows(np.column_stack([codes, numbers]), np.ones(300))
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(rows.columns([1])[:, 0], wanted[0][:, 1])


def test_each_column_is_checked_as_it_came():
    T, seen = RNG.normal(size=(20, 3)), {}
    schema = Columns.read(T, "auto", None)
    DistinctRows(schema, T, np.arange(20.0) % 2, lambda j, cells: seen.update({j: cells.copy()}))
    assert list(seen) == [0, 1, 2]
    np.testing.assert_array_equal(np.column_stack(list(seen.values())), T)


def test_rows_that_differ_in_one_column_alone_stay_apart():
    T = np.eye(50)
    rows, weights = distinct_rows(T, np.ones(50))
    assert len(rows) == 50
    assert (weights == 1).all()


# ------------------------------------------------------------------ location and scale


def test_location_and_scale_are_weighted_mean_and_deviation():
    n = 2 * SUMMED + 100  # more than one piece
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


@pytest.mark.parametrize("n", [3, 500, 20_000])
def test_a_column_constant_up_to_rounding_has_scale_one(n):
    column = np.full(n, 0.3)
    column[::2] = 0.1 + 0.2  # the next number
    T = np.c_[RNG.normal(size=(n, 2)), column]
    assert location_and_scale(T, np.ones(n))[1][2] == 1.0


# ------------------------------------------------------------------ gaps


def test_rows_with_gaps_are_merged_and_ordered_by_their_content():
    T = RNG.randint(0, 3, (200, 3)).astype(float)
    T[RNG.uniform(size=T.shape) < 0.3] = np.nan
    rows, weights = distinct_rows(T, np.ones(200))
    keys = [tuple(row) for row in np.nan_to_num(rows, nan=-1).tolist()]
    found, counts = np.unique(np.nan_to_num(T, nan=-1), axis=0, return_counts=True)
    wanted = dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))
    assert dict(zip(keys, weights.tolist(), strict=True)) == wanted
    order = RNG.permutation(200)
    np.testing.assert_array_equal(distinct_rows(T[order], np.ones(200))[0], rows)
    flipped = np.where(np.isnan(T), -T, T)  # NaN of the other sign
    np.testing.assert_array_equal(distinct_rows(flipped, np.ones(200))[0], rows)


def test_location_and_scale_are_those_of_the_observed_cells():
    T, weights = RNG.normal(5, 2, (10_000, 4)), RNG.uniform(size=10_000)
    T[RNG.uniform(size=T.shape) < 0.4] = np.nan
    T[:, 3] = np.nan
    mean, scale = location_and_scale(T, weights)
    for j in range(3):
        seen = ~np.isnan(T[:, j])
        expected = np.average(T[seen, j], weights=weights[seen])
        second = np.average((T[seen, j] - expected) ** 2, weights=weights[seen])
        assert mean[j] == pytest.approx(expected, rel=1e-13)
        assert scale[j] == pytest.approx(np.sqrt(second), rel=1e-12)
    assert (mean[3], scale[3]) == (0.0, 1.0)


@pytest.mark.parametrize("gap", [False, True])
def test_a_columns_statistics_do_not_depend_on_its_neighbours(gap):
    """To the bit: blocks are cut by the table's size, and a gap is one column's own."""
    T, weights = np.asfortranarray(RNG.normal(size=(9000, 5))), RNG.uniform(size=9000)
    if gap:
        T[5, 3] = np.nan
    together = np.array(location_and_scale(T, weights))
    for j in range(5):
        alone = np.array(location_and_scale(np.asfortranarray(T[:, [j]]), weights))
        np.testing.assert_array_equal(together[:, [j]], alone)


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_statistics_by_any_blocks_are_the_same_to_the_bit(family, monkeypatch):
    T = RNG.poisson(3.0, (600, 40)).astype(float)
    T[7, 35] = np.nan

    def statistics(block):
        monkeypatch.setattr(skvae.rows, "BLOCK", block)
        exposure = None if family == "gaussian" else "total"
        vae = VAETransformer(1, max_iter=0, likelihood=family, exposure=exposure, random_state=0)
        likelihood = vae.fit(T).module_.likelihood
        return [np.asarray(x) for x in (likelihood.shift, likelihood.scale)]

    for found, expected in zip(statistics(3000), statistics(2**18), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_columns_are_mixed_one_after_the_other():
    """Together as each by itself, tiny and huge ones beside others."""
    random = np.random.default_rng(0)
    cells = np.asfortranarray(random.normal(size=(50, 4)) * [1.0, 1e-310, 1e300, 1.0])
    cells[::7, 1] = 0.0
    together, alone = (np.arange(50, dtype=np.uint64) for _ in range(2))
    _mix(together, cells)
    for j in range(4):
        _mix(alone, cells[:, [j]])
    np.testing.assert_array_equal(together, alone)
    assert len(set(together.tolist())) == 50
