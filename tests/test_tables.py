"""Rows with gaps and tables of mixed types, from `fit` to `impute` and `sample(given=)`."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae.vae
from skvae import VAETransformer
from skvae.columns import missing
from skvae.likelihoods import ManyLevels

pytestmark = pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning")

LIBRARIES = pytest.mark.parametrize("library", ["pandas", "polars"])


def model(n_components=2, **parameters):
    defaults = {"hidden_layer_sizes": (8,), "random_state": 0, "batch_size": 32}
    defaults |= {"n_iter_no_change": 2, "tol": 0.1, "max_iter": 5}
    return VAETransformer(n_components, **defaults | parameters)


def linear_model(n_components=2, **parameters):
    """Factor analysis, exactly: no network speaks."""
    start = {"max_iter": 0, "noise": "homoscedastic", "precision_power": 1.0}
    return model(n_components, **start | parameters)


def numbers(n=150, share=0.15, seed=0):
    """Rows of two factors in columns of very different units, with gaps."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, 2)) @ random.normal(size=(2, 5))
    X = (X + 0.5 * random.normal(size=X.shape)) * [1, 10, 0.1, 1, 3] + [0, 5, 1, -2, 100]
    X[random.random(X.shape) < share] = np.nan
    return X


# ---------------------------------------------------------------- the linear model, by brute force


def linear_truth(vae):
    """Mean, loadings and covariance of x, in original units."""
    part, decoder = vae.module_.likelihood, vae.module_.decoder
    W = part.scale[:, None] * decoder.weight.detach().numpy()
    mean = part.shift + part.scale * decoder.bias.detach().numpy()
    return mean, W, W @ W.T + np.diag(vae.noise_variance_)


def conditional(mean, S, row):
    """Mean and covariance of all of x given the observed cells of a row."""
    seen = ~np.isnan(row)
    gain = S[:, seen] @ np.linalg.inv(S[np.ix_(seen, seen)])
    return mean + gain @ (row - mean)[seen], S - gain @ S[seen]


@pytest.fixture(scope="module", params=[1, 2, 3])
def linear(request):
    return linear_model(request.param).fit(numbers())


def patterns():
    """Rows with every pattern of gaps, most of them never seen at fit, the empty one included."""
    observed = (np.arange(32)[:, None] >> np.arange(5)) & 1
    return np.where(observed == 1, numbers(32, share=0, seed=1), np.nan)


def test_imputation_is_the_conditional_mean(linear):
    X = patterns()
    mean, _, S = linear_truth(linear)
    expected = [np.where(np.isnan(x), conditional(mean, S, x)[0], x) for x in X]
    unit = linear.module_.likelihood.scale
    filled = linear.impute(X)
    np.testing.assert_allclose(filled / unit, expected / unit, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])
    np.testing.assert_allclose(filled[0] / unit, mean / unit, rtol=0, atol=1e-6)  # nothing is known


def test_scores_are_densities_of_the_observed_cells(linear):
    X = patterns()
    mean, _, S = linear_truth(linear)
    expected = [0.0]
    for x in X[1:]:
        seen = ~np.isnan(x)
        part = multivariate_normal(mean[seen], S[np.ix_(seen, seen)])
        expected.append(part.logpdf(x[seen]))
    log_prob = linear.score_samples(X)
    np.testing.assert_allclose(log_prob, expected, rtol=0, atol=1e-7)
    assert abs(log_prob[0]) < 1e-12
    np.testing.assert_allclose(linear.score(X), np.mean(expected), rtol=1e-8)


def test_latents_are_posterior_means(linear):
    X = patterns()
    mean, W, S = linear_truth(linear)
    latents, std = linear.posterior(X)
    for x, z, sigma in zip(X, latents, std, strict=True):
        seen = ~np.isnan(x)
        gain = W[seen].T @ np.linalg.inv(S[np.ix_(seen, seen)])
        np.testing.assert_allclose(z, gain @ (x - mean)[seen], rtol=0, atol=1e-11)
        variance = 1 - (gain * W[seen].T).sum(1)
        np.testing.assert_allclose(sigma**2, variance, rtol=1e-9)
    np.testing.assert_allclose(latents[0], 0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(std[0], 1, rtol=1e-12)


def test_means_of_whole_columns_fill_empty_rows():
    X = numbers(share=0)
    filled = linear_model().fit(X).impute(np.full((1, 5), np.nan))
    np.testing.assert_allclose((filled[0] - X.mean(0)) / X.std(0), 0, rtol=0, atol=1e-6)


def test_row_by_row_is_batched(linear):
    X = patterns()
    unit = linear.module_.likelihood.scale
    for method in (linear.transform, linear.score_samples, lambda X: linear.impute(X) / unit):
        alone = np.concatenate([method(x[None]) for x in X])
        np.testing.assert_allclose(alone, method(X), rtol=1e-9, atol=1e-9)


@LIBRARIES
def test_a_table_of_numbers_is_an_array(library):
    frames = pytest.importorskip(library)
    names = list("abcde")
    X, new = numbers(), patterns()

    def table(X):
        return frames.DataFrame(dict(zip(names, X.T, strict=True)))

    one, two = linear_model().fit(X), linear_model().fit(table(X))
    np.testing.assert_array_equal(one.transform(new), two.transform(table(new)))
    np.testing.assert_array_equal(one.score_samples(new), two.score_samples(table(new)))
    np.testing.assert_array_equal(one.impute(new), two.impute(table(new)).to_numpy())


# ---------------------------------------------------------------- draws given cells


def test_imputations_scatter_around_the_expectation():
    n_draws = 2000
    vae = linear_model().fit(numbers())
    mean, _, S = linear_truth(vae)
    X = patterns()[[5, 9, 30]]
    tables = vae.impute(X, n_draws=n_draws, random_state=0)
    gaps = np.isnan(X)
    assert len(tables) == n_draws
    assert all((table[~gaps] == X[~gaps]).all() for table in tables)
    vae.sample(n_draws, given=X[:1], random_state=0)
    points = vae.effective_sample_size_[0]  # the same points stand for each posterior
    for x, gap, drawn in zip(X, gaps, np.stack(tables, 1), strict=True):
        center, cov = conditional(mean, S, x)
        error = np.sqrt(cov.diagonal()[gap] * (1 / n_draws + 1 / points))
        assert (np.abs(drawn.mean(0) - center)[gap] < 4 * error).all()


@pytest.mark.parametrize("given", [{0: 1.5}, {1: 30.0, 4: 95.0}, {}])
def test_draws_given_cells_have_the_conditional_moments(given):
    n = 20_000
    vae = linear_model().fit(numbers())
    row = np.full(5, np.nan)
    row[list(given)] = list(given.values())
    mean, cov = conditional(*linear_truth(vae)[::2], row)
    drawn = vae.sample(n, given=given, random_state=0)
    assert drawn.shape == (n, 5) and vae.effective_sample_size_.shape == (1,)
    np.testing.assert_array_equal(drawn[:, list(given)], np.tile(row[list(given)], (n, 1)))
    free = np.isnan(row)
    mean, cov = mean[free], cov[np.ix_(free, free)]
    # the points' own error, and that of drawing from them
    share = 1 / n + 1 / vae.effective_sample_size_[0]
    variance = cov.diagonal()
    assert (np.abs(drawn[:, free].mean(0) - mean) < 4 * np.sqrt(share * variance)).all()
    error = np.sqrt(share * (np.outer(variance, variance) + cov**2))
    assert (np.abs(np.cov(drawn[:, free].T) - cov) < 4 * error).all()


def test_a_table_of_givens():
    vae = linear_model().fit(numbers())
    X = patterns()[[3, 0, 31]]
    drawn = vae.sample(4, given=X, random_state=0)
    known = np.repeat(X, 4, axis=0)
    seen = ~np.isnan(known)
    assert drawn.shape == (12, 5) and np.isfinite(drawn).all()
    np.testing.assert_array_equal(drawn[seen], known[seen])
    assert len(np.unique(drawn[:8, 4])) == 8  # each is a draw of its own
    assert vae.effective_sample_size_.shape == (3,)
    np.testing.assert_array_equal(drawn, vae.sample(4, given=X, random_state=0))
    assert (drawn != vae.sample(4, given=X, random_state=1))[~seen].all()


def test_the_absurd_is_reported():
    random = np.random.default_rng(0)
    X = random.normal(size=(200, 3)) @ random.normal(size=(3, 4)) + 0.1 * random.normal(
        size=(200, 4)
    )
    vae = linear_model(3, likelihood="student_t", noise="auto").fit(X)
    with pytest.warns(UserWarning, match=r"Row 1 .* so improbable that only (\d+\.\d) points") as w:
        vae.sample(5, given=[[0.5, *[np.nan] * 3], [30.0, -30.0, 30.0, 30.0]], random_state=0)
    one, two = vae.effective_sample_size_
    assert two < 10 <= one
    assert f"only {two:.1f} points" in str(w[0].message)
    assert w[0].filename == __file__


# ---------------------------------------------------------------- trained on rows with gaps


def bits(vae):
    state = {name: value.numpy().tobytes() for name, value in vae.module_.state_dict().items()}
    curves = vae.loss_curve_, vae.validation_scores_, vae.kl_per_component_.tolist()
    return state, curves, vae.impute(patterns()).tobytes(), vae.score_samples(patterns()).tobytes()


@pytest.mark.parametrize("noise", ["auto", "homoscedastic"])
def test_weights_repeat_rows_and_order_is_nothing(noise):
    X = numbers(60)
    X[3] = np.nan
    weights = np.random.default_rng(0).integers(0, 4, len(X))
    vae = model(noise=noise, max_iter=2)
    expected = bits(clone(vae).fit(X, sample_weight=weights))
    repeated = np.repeat(X, weights, axis=0)
    assert bits(clone(vae).fit(repeated)) == expected
    order = np.random.default_rng(1).permutation(len(repeated))
    assert bits(clone(vae).fit(repeated[order])) == expected


@pytest.mark.parametrize("parameters", [{}, {"max_iter": 0}, {"likelihood": "student_t"}])
def test_a_column_without_any_value(parameters):
    X = numbers(80)
    X[:, 2] = np.nan
    vae = model(**parameters).fit(X)
    fitted = {name: value.numpy() for name, value in vae.module_.state_dict().items()}
    assert all(np.isfinite(value).all() for value in fitted.values())
    filled = vae.impute(X)
    assert np.isfinite(filled).all() and (filled[:, 2] == 0).all()
    X[::2, 2] = 1.0  # it stays usable
    for out in (vae.transform(X), vae.score_samples(X), vae.impute(X), vae.sample(5)):
        assert np.isfinite(out).all()
    assert np.isfinite(vae.sample(5, given={2: 1.0})).all()


@LIBRARIES
def test_a_column_of_nulls_in_a_table(library):
    frames = pytest.importorskip(library)
    values = {"a": [0.5, None, 1.5, 3.0] * 5, "b": [None] * 20, "c": [1, 2, 2, 4] * 5}
    vae = model(1, max_iter=1).fit(frames.DataFrame(values))
    filled = vae.impute(frames.DataFrame(values))
    np.testing.assert_array_equal(missing(filled).any(0), [False, True, False])
    assert np.isfinite(vae.score_samples(filled)).all()


@LIBRARIES
def test_a_column_of_categories_without_any_stays_missing(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"a": [0.5, None, 1.5, 3.0] * 5, "b": [None] * 20})
    if library == "pandas":
        frame = frame.astype({"b": "category"})
    else:
        frame = frame.cast({"b": pytest.importorskip("polars").Categorical})
    vae = model(1, max_iter=0).fit(frame)
    for filled in (vae.impute(frame), vae.impute(frame, 2)[1], vae.sample(20, given={"a": 1.0})):
        same_kind(filled, frame)
        np.testing.assert_array_equal(missing(filled).mean(0), [0, 1])


@LIBRARIES
def test_infinities_are_refused_by_name(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"a": [0.5, None, 1.5], "b": [1.0, 2.0, -np.inf]})
    with pytest.raises(ValueError, match=r"Column 'b' of X holds -inf \(row 2\)"):
        model().fit(frame)
    vae = linear_model(1).fit(frames.DataFrame({"a": [0.5, None, 1.5], "b": [1.0, 2.0, 3.0]}))
    for method in (vae.transform, vae.impute, vae.score_samples, lambda X: vae.sample(given=X)):
        with pytest.raises(ValueError, match="Column 'b' of X holds -inf"):
            method(frame)
    with pytest.raises(ValueError, match="Column 'b' of X holds inf"):
        vae.sample(given={"b": np.inf})


def test_partial_fit_with_gaps():
    X = numbers()
    vae = model()
    for batch in np.split(X, 3):
        vae.partial_fit(batch)
    assert vae.n_iter_ == 3 and np.isfinite(vae.loss_curve_).all()
    assert np.isfinite(vae.impute(X)).all()
    vae.partial_fit(numbers(20, share=0, seed=1)).partial_fit(X[:20])  # whole rows in between
    assert np.isfinite(vae.score_samples(X)).all()


def test_single_precision_comes_back():
    X = numbers().astype(np.float32)
    vae = model().fit(X)
    for method in (vae.transform, vae.score_samples, vae.impute):
        assert method(X).dtype == np.float32
    assert all(table.dtype == np.float32 for table in vae.impute(X, n_draws=2))
    seen = ~np.isnan(X)
    np.testing.assert_array_equal(vae.impute(X)[seen], X[seen])
    double = vae.transform(X.astype(float))
    np.testing.assert_allclose(vae.transform(X), double, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- tables of mixed types

FAMILIES = {"wait": "log_normal", "visits": "poisson"}
LEVELS = {"city": ["Bern", "Genf", "Thun"], "size": ["S", "M", "L"]}


def mixed(library, n=60, gaps=True, seed=0):
    """Columns of every type, with gaps where the type may have them."""
    random = np.random.default_rng(seed)
    z = random.normal(size=n)
    plain = {
        "height": z + 0.3 * random.normal(size=n),
        "year": (2000 + 5 * z + random.normal(size=n)).round().astype(np.int64),
        "member": z + random.normal(size=n) > 0,
        "visits": random.poisson(np.exp(0.5 * z)),
        "wait": np.exp(0.5 * z + 0.2 * random.normal(size=n)),
        "stock": (10 * z).round().astype(np.int64),
        "city": np.array(LEVELS["city"])[np.clip((z + 1.5).astype(int), 0, 2)],
        "size": np.array(LEVELS["size"])[random.integers(0, 3, n)],
    }
    holes = {name: list(values) for name, values in plain.items()}
    for k, name in enumerate(("height", "wait", "stock", "city", "size")):
        for i in range(k, n if gaps else 0, 7):
            holes[name][i] = None
    if library == "pandas":
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame({**plain, "wait": holes["wait"], "height": holes["height"]})
        frame["stock"] = pd.array(holes["stock"], dtype="Int64")
        frame["city"] = pd.Series(holes["city"])
        frame["size"] = pd.Categorical(holes["size"], categories=LEVELS["size"], ordered=True)
        return frame.set_index(np.arange(n)[::-1] + 100)
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({**holes, "year": plain["year"], "visits": plain["visits"]})
    return frame.with_columns(pl.col("size").cast(pl.Enum(LEVELS["size"])))


def same_kind(one, two):
    assert type(one) is type(two)
    assert list(one.columns) == list(two.columns)
    assert list(one.dtypes) == list(two.dtypes)


def cells(frame, j):
    return list(frame[frame.columns[j]])


def agree(filled, frame):
    """Observed cells are the same."""
    same_kind(filled, frame)
    for j, gaps in enumerate(missing(frame).T):
        for old, new, gap in zip(cells(frame, j), cells(filled, j), gaps, strict=True):
            assert gap or (old == new and type(old) is type(new))


@pytest.fixture(scope="module", params=["pandas", "polars"])
def fitted(request):
    frame = mixed(request.param)
    return request.param, frame, model(likelihood=FAMILIES).fit(frame)


def test_tables_come_back_as_they_were(fitted):
    library, frame, vae = fitted
    Z = vae.transform(frame)
    assert np.isfinite(Z).all() and np.isfinite(vae.score_samples(frame)).all()
    for made in (vae.inverse_transform(Z), vae.sample(60, random_state=0), vae.impute(frame)):
        same_kind(made, frame)
        assert not missing(made).any()
        assert set(made["city"]) <= set(LEVELS["city"])
        assert set(made["size"]) <= set(LEVELS["size"])
        assert min(made["wait"]) > 0 and min(made["visits"]) >= 0
    agree(vae.impute(frame), frame)
    if library == "pandas":
        assert vae.impute(frame).index.equals(frame.index)
    np.testing.assert_array_equal(missing(frame), missing(mixed(library)))  # the input is as it was


def test_a_table_without_gaps_is_left_alone(fitted):
    library, _, vae = fitted
    whole = mixed(library, gaps=False)
    agree(vae.impute(whole), whole)


def test_multiple_imputation(fitted):
    _, frame, vae = fitted
    gaps = missing(frame)
    one, two, three = tables = vae.impute(frame, n_draws=3, random_state=0)
    for table in tables:
        agree(table, frame)
        assert not missing(table).any()
    for j in np.flatnonzero(gaps.any(0)):
        drawn = [[x for x, gap in zip(cells(t, j), gaps[:, j], strict=True) if gap] for t in tables]
        assert drawn[0] != drawn[1] or drawn[0] != drawn[2]
    for table, again in zip(tables, vae.impute(frame, 3, random_state=0), strict=True):
        assert table.equals(again)
    assert not one.equals(vae.impute(frame, 1, random_state=1)[0])
    for wrong, kind in ((0, ValueError), (2.5, ValueError), (True, TypeError)):
        with pytest.raises(kind, match="n_draws must be an integer of at least 1 or None"):
            vae.impute(frame, wrong)
    assert not two.equals(three)


def replaced(frame, name, values):
    if hasattr(frame, "assign"):
        return frame.assign(**{name: values})
    pl = pytest.importorskip("polars")
    return frame.with_columns(pl.Series(name, values))


def test_levels_not_seen_at_fit_are_missing_and_left_alone(fitted):
    _, frame, vae = fitted
    none = replaced(frame, "city", [None] * 60)
    new = replaced(frame, "city", ["Basel", *[None] * 59])
    np.testing.assert_array_equal(vae.transform(new), vae.transform(none))
    np.testing.assert_array_equal(vae.score_samples(new), vae.score_samples(none))
    filled, expected = vae.impute(new), vae.impute(none)
    assert cells(filled, 6)[0] == "Basel"
    assert cells(filled, 6)[1:] == cells(expected, 6)[1:]
    assert all(table["city"].to_list()[0] == "Basel" for table in vae.impute(new, 2))
    drawn = vae.sample(5, given=new[:1], random_state=0)
    assert set(drawn["city"]) <= set(LEVELS["city"])


def test_other_declared_levels(fitted):
    # a slice of the rows often declares fewer categories than the table that was fitted
    library, frame, vae = fitted
    if library == "pandas":
        pd = pytest.importorskip("pandas")
        few = pd.Categorical(["M", None] * 30, categories=["M"])
    else:
        pl = pytest.importorskip("polars")
        few = pl.Series(["M", None] * 30, dtype=pl.Enum(["M"]))
    filled = vae.impute(replaced(frame, "size", few))["size"].to_list()
    assert filled[::2] == ["M"] * 30
    expected = replaced(frame, "size", frame["size"].to_list())
    expected = vae.impute(replaced(expected, "size", ["M", None] * 30))["size"].to_list()
    assert filled == expected and set(filled) <= set(LEVELS["size"])


@pytest.mark.parametrize("at_fit", [None, "pandas", "polars"])
@pytest.mark.parametrize("later", [None, "pandas", "polars"])
@pytest.mark.filterwarnings("ignore:X (has|does not have) .*feature names:UserWarning")
def test_tables_of_another_library(at_fit, later):
    names = list("abcde")

    def made(library, X):
        if library is None:
            return X
        frames = pytest.importorskip(library)
        return frames.DataFrame(dict(zip(names, X.T, strict=True)))

    vae = linear_model().fit(made(at_fit, numbers()))
    new = made(later, patterns())
    expected = linear_model().fit(numbers()).impute(patterns())
    filled = vae.impute(new)
    assert type(filled) is type(new)
    np.testing.assert_array_equal(np.asarray(filled), expected)
    assert type(vae.impute(new, 2, random_state=0)[1]) is type(new)


@LIBRARIES
def test_columns_whose_own_type_says_little(library):
    # flags with gaps are objects in pandas, and columns of gaps alone are floats or nulls
    frames = pytest.importorskip(library)
    values = {"x": [0.5, 1.0, 2.0] * 7, "flag": [True, False, True] * 7, "text": list("aba") * 7}
    frame = frames.DataFrame(values)
    vae = model(1, max_iter=0).fit(frame)
    new = replaced(frame, "flag", [None, *[True] * 20])
    for filled in (vae.impute(new), *vae.impute(new, 2, random_state=0)):
        assert all(isinstance(flag, bool) for flag in filled["flag"].to_list())
    filled = vae.impute(replaced(frame, "flag", [None] * 21))
    assert all(isinstance(flag, bool) for flag in filled["flag"].to_list())
    filled = vae.impute(replaced(frame, "text", [None] * 21))
    assert set(filled["text"].to_list()) <= {"a", "b"}
    numbers = frame["x"] * math.nan if library == "pandas" else frame["x"].clear(21).cast(int)
    filled = vae.impute(replaced(frame, "text", numbers))
    assert set(filled["text"].to_list()) <= {"a", "b"}


def test_sparse_columns():
    pd = pytest.importorskip("pandas")
    cells = pd.arrays.SparseArray([0.5, np.nan, 1.5, np.nan, 0.25])
    frame = pd.DataFrame({"a": cells, "b": [1.0, 2.0, 3.0, 4.0, 0.0]})
    filled = model(1, max_iter=0).fit(frame).impute(frame)
    agree(filled, frame)
    assert not missing(filled).any()


def test_given_cells_of_a_table(fitted):
    _, frame, vae = fitted
    given = {"city": "Thun", "member": True, "year": 2003, "wait": 0.7, 0: -0.25}
    drawn = vae.sample(50, given=given, random_state=0)
    same_kind(drawn, frame)
    assert not missing(drawn).any() and drawn.shape == (50, 8)
    for name, value in {**given, "height": given[0]}.items():
        if name:
            assert set(drawn[name]) == {value}
    assert len(set(drawn["visits"])) > 1 and len(set(drawn["size"])) == 3
    drawn = vae.sample(2, given=frame[:20], random_state=0)
    same_kind(drawn, frame)
    twice = np.repeat(missing(frame[:20]), 2, axis=0)
    for j in range(8):
        pairs = zip(np.repeat(np.array(cells(frame[:20], j), object), 2), cells(drawn, j))  # noqa: B905
        assert all(gap or old == new for (old, new), gap in zip(pairs, twice[:, j], strict=True))


def test_what_cannot_be_given(fitted):
    _, _, vae = fitted
    for given, message in (
        ({"town": "Bern"}, r"given names column 'town', but X has columns \['height', 'year'"),
        ({9: 1.0}, "given names column 9, but X has columns"),
        ({"city": "Basel"}, "given says 'Basel' for column 'city', whose categories are 'Bern', "),
        ({"size": "XL"}, "given says 'XL' for column 'size', whose categories are 'S', 'M', 'L'"),
        ({"year": "late"}, "given says 'late' for column 'year', which holds numbers"),
        ({"visits": -1}, "likelihood='poisson' needs .* but column 'visits' holds -1"),
        ({"wait": 0}, "likelihood='log_normal' needs positive values, but column 'wait' holds 0"),
        ({"member": 2}, "needs values between 0 and 1, but column 'member' holds 2"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.sample(given=given)


# ---------------------------------------------------------------- a joint that is known

SHIFTS, FLAGS, SHARES = np.array([-2.0, 0.0, 2.0]), np.array([0.1, 0.5, 0.9]), [0.3, 0.4, 0.3]


def known_joint(library, n, seed):
    """A category, which shifts a number and a flag; and log p of each row."""
    frames = pytest.importorskip(library)
    random = np.random.default_rng(seed)
    kind = random.choice(3, n, p=SHARES)
    number = SHIFTS[kind] + random.normal(size=n)
    flag = random.random(n) < FLAGS[kind]
    log_p = np.log(np.take(SHARES, kind)) + norm.logpdf(number - SHIFTS[kind])
    log_p += np.log(np.where(flag, FLAGS[kind], 1 - FLAGS[kind]))
    columns = {"kind": np.array(["x", "y", "z"])[kind].tolist(), "number": number, "flag": flag}
    return frames.DataFrame(columns), log_p


@LIBRARIES
def test_draws_given_a_category_follow_the_truth(library):
    n = 4000
    train, _ = known_joint(library, 2000, 0)
    test, log_p = known_joint(library, n, 1)
    # "tol" decides how far it is trained, which is what this test needs
    patient = {"max_iter": 30, "tol": 1e-3, "n_iter_no_change": 5, "learning_rate_init": 1e-2}
    vae = model(noise="homoscedastic", batch_size=128, n_score_samples=64, **patient).fit(train)
    gap = log_p - vae.score_samples(test)
    divergence = gap.mean() + 4 * gap.std() / math.sqrt(n)  # KL(truth | model), from above
    assert divergence < 0.1  # of independent columns it is 0.8
    for level, (kind, shift) in enumerate(zip("xyz", SHIFTS, strict=True)):
        drawn = vae.sample(n, given={"kind": kind}, random_state=0)
        assert set(drawn["kind"]) == {kind}
        # The joint divergence is at least the category's share times the conditional one, and
        # by Pinsker's inequality no event's probability is further off than its root says.
        bias = math.sqrt(divergence / (2 * SHARES[level]))
        error = math.sqrt(0.25 * (1 / n + 1 / vae.effective_sample_size_[0]))
        flag, number = np.asarray(drawn["flag"]), np.asarray(drawn["number"])
        for event, truth in (
            (flag, FLAGS[level]),
            (number > shift, 0.5),
            (number > shift + 1, norm.sf(1)),
            (number < shift - 1, norm.sf(1)),
        ):
            assert abs(event.mean() - truth) < bias + 4 * error
    # backwards: a flag is true with probability 0.5, and then says something about the category
    drawn = vae.sample(n, given={"flag": True}, random_state=0)
    bias = math.sqrt(divergence / (2 * 0.5))
    error = math.sqrt(0.25 * (1 / n + 1 / vae.effective_sample_size_[0]))
    for level, kind in enumerate("xyz"):
        share = np.mean([found == kind for found in drawn["kind"]])
        assert abs(share - SHARES[level] * FLAGS[level] / 0.5) < bias + 4 * error


@pytest.mark.filterwarnings("ignore:Row 0 of what is given:UserWarning")
def test_draws_are_right_where_few_points_count(monkeypatch):
    """One component, and a row that one point of 256 stands for: draws still have its posterior."""
    random = np.random.default_rng(0)
    X = random.normal(size=(200, 1)) @ random.normal(size=(1, 20)) + random.normal(size=(200, 20))
    vae = linear_model(1).fit(X)
    shifted = skvae.vae.VAE.log_weights

    def poor(self, targets, points, *args, **more):
        return shifted(self, targets, points + 40.0, *args, **more)  # none where the posterior is

    monkeypatch.setattr(skvae.vae.VAE, "log_weights", poor)
    row = np.where(np.arange(20) < 10, X[0], np.nan)
    n = 1000
    drawn = vae.sample(n, given=row[None], random_state=0)
    assert vae.effective_sample_size_[0] < 5
    mean, covariance = conditional(*(linear_truth(vae)[i] for i in (0, 2)), row)
    error = np.sqrt(np.diag(covariance)[10:] / n)
    assert (np.abs(drawn[:, 10:].mean(0) - mean[10:]) < 4.5 * error).all()
    np.testing.assert_array_equal(drawn[:, :10], np.tile(X[0, :10], (n, 1)))


# ---------------------------------------------------------------- counts and many levels


@pytest.mark.parametrize("family", ["poisson", "negative_binomial"])
def test_counts_relative_to_the_total(family):
    random = np.random.default_rng(0)
    size = np.exp(random.normal(size=(200, 1)))
    rates = np.exp(1 + 0.5 * random.normal(size=(200, 1)) * np.array([1, -1, 0.5, 0]))
    X = random.poisson(size * rates).astype(float)
    vae = model(1, likelihood=family, exposure="total").fit(X)
    filled = vae.impute(np.where(random.random(X.shape) < 0.2, np.nan, X))
    assert np.isfinite(filled).all() and (filled >= 0).all()
    # Ten times the counts are ten times the library: what is expected of a gap follows.
    row = np.array([[6.0, 3.0, 4.0, np.nan], [60.0, 30.0, 40.0, np.nan]])
    small, large = vae.impute(row)[:, 3]
    plain = model(1, likelihood=family).fit(X).impute(row)[:, 3]
    assert abs(math.log(large / small) - math.log(10)) < abs(math.log(plain[1] / plain[0] / 10))
    drawn = vae.sample(100, random_state=0)
    assert (drawn == drawn.round()).all() and (drawn >= 0).all()
    assert vae.score_samples(row).shape == (2,)


@pytest.mark.parametrize(
    "noise, varies",
    [("auto", True), ("heteroscedastic", True), ("homoscedastic", False), ("isotropic", False)],
)
def test_dispersions_are_functions_of_z_as_noise_says(noise, varies):
    """Rows of a high rate are dispersed more than others: sizes exp(-1) and exp(1)."""
    random = np.random.default_rng(0)
    z = np.sign(random.normal(size=(400, 1)))
    size, rate = np.exp(z), np.exp(2.5 - 1.0 * z)
    X = random.negative_binomial(size, size / (size + rate), size=(400, 6)).astype(float)
    vae = model(1, likelihood="negative_binomial", noise=noise, max_iter=60, n_iter_no_change=30)
    vae.set_params(learning_rate_init=1e-2, hidden_layer_sizes=(32, 32), alpha=0.0).fit(X)
    likelihood = vae.module_.likelihood
    assert likelihood.varies == varies
    assert likelihood.n_params == (12 if varies else 6)
    if varies:
        raw = vae.module_.decoder(torch.from_numpy(vae.transform(X)))
        sizes = likelihood.log_size(raw).detach().numpy()
        low, high = (sizes[z[:, 0] == sign].mean() for sign in (-1, 1))
        assert -1.3 < low < -0.5 and 0.4 < high < 1.3


@pytest.mark.parametrize("family", ["poisson", "negative_binomial"])
def test_totals_of_draws_vary_as_the_data_do(family):
    """Rows without an exposure of their own: what totals vary by is the counts' own noise."""
    X = np.random.default_rng(0).poisson(30.0, size=(1000, 3)).astype(float)
    vae = model(1, likelihood=family, exposure="total", max_iter=0).fit(X)
    drawn = vae.sample(4000, random_state=0)
    assert 0.8 < drawn.sum(1).var() / X.sum(1).var() < 1.25


@pytest.mark.parametrize("cell", [0.5, -1.0, 1e14])
def test_counts_are_whole_and_finite(cell):
    with pytest.raises(ValueError) as error:
        model(1, likelihood="poisson").fit([[1.0], [2.0], [cell]])
    assert str(error.value) == (
        "likelihood='poisson' needs whole numbers between 0 and 1e+13, but column 0 holds "
        f"{cell:g} (row 2). Convert that column, or use likelihood='gaussian'."
    )


def test_dispersions_start_at_the_moments():
    """Sizes of 1 and 4: variances are mean + mean^2 / size."""
    random, size = np.random.default_rng(0), np.array([1.0, 4.0])
    X = random.negative_binomial(size, size / (size + 20.0), size=(20_000, 2)).astype(float)
    vae = model(1, likelihood="negative_binomial", max_iter=0).fit(X)
    start = vae.module_.likelihood.base.exp().detach().numpy()
    np.testing.assert_allclose(start, size, rtol=0.1)


def test_an_exposure_is_of_counts():
    with pytest.raises(ValueError) as error:
        model(1, exposure="total").fit(numbers())
    assert str(error.value).startswith("exposure='total' is of counts, and no column has")
    assert "likelihood='poisson' or 'negative_binomial'" in str(error.value)


@LIBRARIES
def test_levels_of_weight_zero_are_dropped(library):
    frames = pytest.importorskip(library)
    random = np.random.default_rng(0)
    frame = frames.DataFrame({"a": [*("xy" * 30), "z"], "b": random.normal(size=61)})
    weights = np.ones(61)
    weights[-1] = 0.0
    one = model(1, max_iter=2).fit(frame, sample_weight=weights)
    other = model(1, max_iter=2).fit(frame[:60])
    assert one._columns.levels[0].tolist() == ["x", "y"]
    np.testing.assert_array_equal(one.score_samples(frame), other.score_samples(frame))


@LIBRARIES
def test_categories_are_no_numbers(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"c": ["1", "2", "3", "9"] * 10, "x": np.arange(40.0)})
    with pytest.raises(ValueError) as error:
        model(1, likelihood={"c": "negative_binomial"}).fit(frame)
    assert str(error.value).startswith("Column 'c' is of type ")
    assert "likelihood says 'negative_binomial'" in str(error.value)


def test_exposure_is_scale_free_to_the_encoder():
    X = np.random.default_rng(0).poisson(5.0, size=(100, 3)) + 1.0
    vae = model(1, likelihood="poisson", exposure="total", max_iter=0).fit(X)
    np.testing.assert_allclose(vae.transform(7 * X), vae.transform(X), rtol=1e-9, atol=1e-12)


@LIBRARIES
def test_three_thousand_levels(library):
    frames = pytest.importorskip(library)
    random = np.random.default_rng(0)
    code = np.concatenate([np.arange(3000), random.integers(0, 300, 3000)])  # most appear once
    names = [f"level {i:04d}" for i in range(3000)]
    number = code % 2 + 0.1 * random.normal(size=len(code))
    frame = frames.DataFrame({"who": [names[i] for i in code], "number": number})
    vae = model(1, max_iter=1, noise="homoscedastic", n_score_samples=64).fit(frame)
    part = vae.module_.likelihood.parts[0]
    assert isinstance(part, ManyLevels)
    assert vae.module_.likelihood.n_inputs <= 8 + 1
    assert vae.module_.encoder.weight.shape[1] == vae.module_.likelihood.n_inputs
    assert vae._columns.levels[0].tolist() == names  # the rare ones included
    assert np.isfinite(vae.score_samples(frame[:50])).all()
    assert set(vae.sample(20, random_state=0)["who"]) <= set(names)
    given = vae.sample(5, given={"who": names[2999]}, random_state=0)
    assert set(given["who"]) == {names[2999]}
    holes = replaced(frame[:50], "who", [None] * 50)
    assert set(vae.impute(holes)["who"]) <= set(names)


# ---------------------------------------------------------------- among scikit-learn's tools


@LIBRARIES
def test_a_search_over_families(library):
    frame = mixed(library)
    options = ["auto", FAMILIES, {"wait": "log_normal", "visits": "negative_binomial"}]
    vae = model(1, max_iter=1, noise="homoscedastic", n_score_samples=32)
    search = GridSearchCV(vae, {"likelihood": options}, cv=2, error_score="raise").fit(frame)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_["likelihood"] != "auto"  # waits are log-normal, with no doubt
    same_kind(search.best_estimator_.sample(3, random_state=0), frame)


def test_pandas_out_of_a_column_transformer():
    pd = pytest.importorskip("pandas")
    frame = mixed("pandas")
    columns = ColumnTransformer(
        [("scaled", StandardScaler(), ["height", "year"])],
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    pipeline = make_pipeline(columns, model(likelihood=FAMILIES, max_iter=1))
    latents = pipeline.fit_transform(frame)
    assert latents.shape == (60, 2) and np.isfinite(latents).all()
    vae = pipeline[-1]
    assert vae._columns.families.count("categorical") == 2
    assert vae.sample(2, random_state=0)["size"].dtype == frame["size"].dtype
    out = pipeline.set_output(transform="pandas").transform(frame)
    assert isinstance(out, pd.DataFrame) and out.index.equals(frame.index)
    assert list(out.columns) == ["vaetransformer0", "vaetransformer1"]


def test_clones_and_pickles_of_mappings(fitted):
    _, frame, vae = fitted
    again = clone(vae)
    assert again.likelihood == FAMILIES and again.likelihood is not vae.likelihood
    expected = vae.transform(frame)
    np.testing.assert_array_equal(again.fit(frame).transform(frame), expected)
    back = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(back.transform(frame), expected)
    assert back.sample(3, random_state=0).equals(vae.sample(3, random_state=0))
    assert back.impute(frame).equals(vae.impute(frame))


@LIBRARIES
def test_going_on_with_a_table(library):
    frame, more = mixed(library), mixed(library, seed=1)
    vae = model(likelihood=FAMILIES, warm_start=True, max_iter=1).fit(frame)
    levels = vae._columns.levels
    vae.fit(replaced(more, "city", ["Basel"] * 60))  # a level that the model does not know
    assert vae._columns.levels is levels
    assert np.isfinite(vae.score_samples(more)).all()
    vae.partial_fit(frame)
    same_kind(vae.impute(more), more)
    with pytest.raises(ValueError, match=r"likelihood='auto', but the model to go on from was"):
        vae.set_params(likelihood="auto").fit(more)
