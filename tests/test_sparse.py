"""Sparse rows are the dense ones, to the bit, and are never dense as a whole."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import skvae.columns
from skvae import VAEImputer, VAETransformer
from skvae.targets import GATHERED, Unread

RANDOM = np.random.default_rng(0)
TOPICS = RANDOM.dirichlet(np.full(40, 0.2), 3)  # of 40 words
SHARES = RANDOM.dirichlet(np.full(3, 0.3), 300)
COUNTS = RANDOM.multinomial(RANDOM.poisson(30, 300), SHARES @ TOPICS).astype(float)
FLAGS = (COUNTS > 0).astype(float)
LIKELIHOODS = {
    "gaussian": COUNTS,
    "student_t": COUNTS,
    "bernoulli": FLAGS,
    "poisson": COUNTS,
    "negative_binomial": COUNTS,
    "multinomial": COUNTS,
}
FORMATS = {
    "csr_array": sparse.csr_array,
    "csr_matrix": sparse.csr_matrix,
    "csc_array": sparse.csc_array,
    "coo_array": sparse.coo_array,
}


def quick(**parameters):
    small = {"hidden_layer_sizes": (8,), "n_iter_no_change": 2, "tol": 0.1, "max_iter": 5}
    return VAETransformer(**{"n_components": 2, "random_state": 0} | small | parameters)


def equal(one, other, X, S):
    """Whether two models say the same, to the bit, one of dense rows and one of sparse ones."""
    for method in ("transform", "score_samples"):
        np.testing.assert_array_equal(getattr(one, method)(X), getattr(other, method)(S))
    for a, b in zip(one.posterior(X), other.posterior(S), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.score(X) == other.score(S)
    assert one.loss_curve_ == other.loss_curve_
    assert one.validation_scores_ == other.validation_scores_
    np.testing.assert_array_equal(one.kl_per_component_, other.kl_per_component_)


# ---------------------------------------------------------------- the same as dense


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sparse_rows_are_the_dense_ones(likelihood):
    X = LIKELIHOODS[likelihood]
    S = sparse.csr_array(X)
    weights = np.arange(300.0) % 3
    dense = quick(likelihood=likelihood).fit(X, sample_weight=weights)
    equal(dense, quick(likelihood=likelihood).fit(S, sample_weight=weights), X, S)
    assert dense.n_iter_ > 0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, bool])
def test_formats_and_dtypes(name, dtype):
    X = LIKELIHOODS["bernoulli" if dtype is bool else "multinomial"].astype(dtype)
    S = FORMATS[name](X)
    single = dtype is np.float32
    dense, other = (quick(likelihood="multinomial").fit(rows) for rows in (X, S))
    equal(dense, other, X, S)
    assert other.transform(S).dtype == (np.float32 if single else np.float64)
    assert isinstance(other.inverse_transform(other.transform(S)), np.ndarray)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_many_columns():
    """Beyond what a covariance matrix is made for, where the start comes from products."""
    X = np.zeros((200, 1100))
    X[:, ::28] = COUNTS[:200]
    S = sparse.csr_array(X)
    equal(*(quick(likelihood="multinomial").fit(rows) for rows in (X, S)), X, S)


def test_passes_over_sparse_batches():
    dense, other = quick(likelihood="poisson"), quick(likelihood="poisson")
    S = sparse.csr_array(COUNTS)
    for _ in range(2):
        for part in (slice(0, 150), slice(150, 300)):
            dense.partial_fit(COUNTS[part])
            other.partial_fit(S[part])
    equal(dense, other, COUNTS, S)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_nan_that_a_sparse_matrix_holds_is_missing():
    X = COUNTS.copy()
    X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    S = sparse.csr_array(X)
    equal(*(quick(likelihood="poisson").fit(rows) for rows in (X, S)), X, S)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_cells_given_twice_add_up_and_nothing_is_changed():
    row, column = COUNTS.nonzero()
    cells = COUNTS[row, column]
    twice = np.concatenate([row, row]), np.concatenate([column, column])
    coo = sparse.coo_array((np.concatenate([cells - 1, np.ones_like(cells)]), twice), COUNTS.shape)
    model = quick(likelihood="poisson").fit(coo)
    equal(quick(likelihood="poisson").fit(COUNTS), model, COUNTS, coo)
    assert coo.nnz == 2 * len(cells)
    unsorted = sparse.csr_array(COUNTS)
    unsorted.data[:2] = unsorted.data[1::-1].copy()
    unsorted.indices[:2] = unsorted.indices[1::-1].copy()
    unsorted.has_sorted_indices = False
    before = unsorted.indices.copy()
    np.testing.assert_array_equal(model.transform(unsorted), model.transform(COUNTS))
    np.testing.assert_array_equal(unsorted.indices, before)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_categories_in_sparse_columns():
    X = np.column_stack([COUNTS[:, :3], RANDOM.integers(0, 3, 300)])
    S = sparse.csr_array(X)
    equal(*(quick(categorical_features=[3]).fit(rows) for rows in (X, S)), X, S)


# ---------------------------------------------------------------- never dense as a whole


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_no_more_than_a_part_is_dense_at_a_time(monkeypatch):
    S = sparse.random_array((6000, 1500), density=0.01, rng=0, format="csr")
    S.data = np.rint(1 + 3 * S.data)
    sizes, original = [], skvae.columns.dense

    def watched(cells):
        sizes.append(cells.shape[0] * cells.shape[1])
        return original(cells)

    monkeypatch.setattr(skvae.columns, "dense", watched)
    vae = quick(likelihood="multinomial", max_iter=1).fit(S)
    vae.transform(S)
    vae.score_samples(S[:100])
    assert max(sizes) <= 2 * GATHERED < S.shape[0] * S.shape[1] / 4


# ---------------------------------------------------------------- what is refused


def test_gaps_need_dense_rows():
    S, model = sparse.csr_array(COUNTS), quick(max_iter=0).fit(COUNTS)
    message = "Sparse data was passed for X, but gaps need dense data: a cell that a sparse"
    for call in (model.impute, VAEImputer().fit, VAEImputer(model).fit(COUNTS).transform):
        with pytest.raises(TypeError, match=message):
            call(S)
    with pytest.raises(TypeError, match=r"passed for given.*Use '.toarray\(\)'"):
        model.sample(given=S)


@pytest.mark.parametrize("likelihood", ["poisson", "multinomial"])
@pytest.mark.parametrize("value, shown", [(-2.0, "-2"), (0.5, "0.5")])
def test_counts_are_checked(likelihood, value, shown):
    X = COUNTS.copy()
    X[17, 5] = value
    S = sparse.csr_array(X)
    message = (
        f"likelihood='{likelihood}' needs whole numbers between 0 and 1e\\+13, but column 5 holds"
    )
    fitted = quick(likelihood=likelihood, max_iter=0).fit(COUNTS)
    for call in (quick(likelihood=likelihood).fit, fitted.transform):
        with pytest.raises(ValueError, match=f"{message} {shown} \\(row 17\\)"):
            call(S)


# ---------------------------------------------------------------- at work

TEXTS = [
    "the cat sat on the mat",
    "a cat and a dog",
    "dogs chase cats and cats chase mice",
    "stocks fell and bonds rose",
    "the market fell on rate fears",
    "bonds and stocks on the market",
] * 5
KIND = np.array([0, 0, 0, 1, 1, 1] * 5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_texts_in_a_pipeline():
    model = quick(likelihood="multinomial", max_iter=50)
    pipeline = make_pipeline(CountVectorizer(), model, LogisticRegression()).fit(TEXTS, KIND)
    assert pipeline.score(TEXTS, KIND) == 1.0
    words = pipeline[0].get_feature_names_out()
    drawn = pipeline[1].sample(5, random_state=0)
    assert drawn.shape == (5, len(words))
    assert (drawn == np.rint(drawn)).all() and drawn.min() >= 0 and drawn.sum() > 0
    make_pipeline(TfidfVectorizer(), quick(), LogisticRegression()).fit(TEXTS, KIND)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_indicators_in_a_search():
    levels = np.column_stack([KIND, KIND[::-1], np.arange(30) % 4]).astype(str)
    X = make_column_transformer((OneHotEncoder(), [0, 1, 2])).fit_transform(levels)
    X = sparse.csr_array(X)
    search = GridSearchCV(quick(likelihood="bernoulli"), {"n_components": [1, 2]}, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    expected = clone(search.best_estimator_).fit(X.toarray()).score(X)
    assert search.best_estimator_.score(X) == expected


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_columns_of_many_digits_are_read_in_double_precision():
    S = sparse.random_array((80, 5), density=0.5, rng=np.random.default_rng(0), format="csr")
    S.data = 1e8 + S.data  # 17 digits, of which single precision keeps 8
    one = quick(likelihood="gaussian").fit(S)
    other = quick(likelihood="gaussian").fit(S.toarray())
    np.testing.assert_array_equal(one.module_.likelihood.scale, other.module_.likelihood.scale)
    np.testing.assert_array_equal(one.score_samples(S), other.score_samples(S.toarray()))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_targets_of_sparse_rows_are_read_when_wanted(monkeypatch):
    reads = []
    read = Unread.__getitem__
    monkeypatch.setattr(Unread, "__getitem__", lambda self, at: reads.append(1) or read(self, at))
    S = sparse.csr_array(np.random.default_rng(0).poisson(0.5, (60, 4)).astype(float))
    quick(likelihood="poisson").fit(S.toarray())
    assert not reads
    quick(likelihood="poisson").fit(S)
    assert reads


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_totals_vary_as_those_of_the_rows():
    """All of their variance is the size's, rows without counts included."""
    random = np.random.default_rng(0)
    X = random.multinomial(random.poisson(20, 300), [0.2, 0.3, 0.5]).astype(float)
    X[::10] = 0
    part = quick(likelihood="multinomial").fit(X).module_.likelihood
    total = X.sum(1)
    assert part.spread_of_log_total == pytest.approx(
        np.sqrt(np.log1p(total.var() / total.mean() ** 2)), rel=1e-6
    )
    assert part.log_total == pytest.approx(-0.5 * part.spread_of_log_total**2, abs=1e-3)
