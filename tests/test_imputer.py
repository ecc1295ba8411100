"""``VAEImputer``: the model's imputation as a transformer."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from skvae import VAEImputer, VAETransformer
from skvae.columns import missing

pytestmark = pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning")

LIBRARIES = pytest.mark.parametrize("library", ["pandas", "polars"])
LINEAR = VAETransformer(
    2, hidden_layer_sizes=(8,), max_iter=0, noise="homoscedastic", precision_power=1.0
)
QUICK = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=2, n_iter_no_change=2, random_state=0)
NOISE = 0.5


def rows(n=120, share=0.15, seed=0):
    """Whole rows of two factors, and the same with gaps; column 1 has none."""
    random = np.random.default_rng(seed)
    loadings = np.array([[1.0, 1, 1, 0, 0], [0, 0, 1, 1, -1]])
    X = random.normal(size=(n, 2)) @ loadings + NOISE * random.normal(size=(n, 5))
    gaps = random.random(X.shape) < share
    gaps[:, 1] = False
    return X, np.where(gaps, np.nan, X)


def table(library, X):
    frames = pytest.importorskip(library)
    columns = dict(zip("abcde", X.T, strict=True))
    return frames.DataFrame({**columns, "kind": np.where(X[:, 1] > 0, "up", "down").tolist()})


def test_it_is_the_models_imputation():
    _, X = rows()
    weights = np.random.default_rng(0).integers(0, 3, len(X))
    imputer = VAEImputer(QUICK).fit(X, sample_weight=weights)
    expected = clone(QUICK).fit(X, sample_weight=weights).impute(X)
    np.testing.assert_array_equal(imputer.transform(X), expected)
    np.testing.assert_array_equal(imputer.estimator_.impute(X), expected)
    assert not hasattr(QUICK, "module_")  # it was cloned
    new = rows(seed=1)[1]
    np.testing.assert_array_equal(imputer.transform(new), imputer.estimator_.impute(new))
    seen = ~np.isnan(new)
    np.testing.assert_array_equal(imputer.transform(new)[seen], new[seen])
    assert np.isfinite(imputer.transform(new)).all()


@pytest.mark.parametrize(("d", "expected"), [(1, 1), (2, 1), (5, 3), (30, 15), (40, 15)])
def test_components_by_default(d, expected, monkeypatch):
    monkeypatch.setattr(VAETransformer, "fit", lambda self, *args, **kwargs: self)
    for X in (np.zeros((3, d)), np.zeros((3, d)).tolist()):
        model = VAEImputer(random_state=3)._model(X)
        assert model.n_components == expected and model.random_state == 3
        assert (model.noise, model.precision_power) == ("homoscedastic", 1.0)
    assert VAEImputer(n_components=4)._model(X).n_components == 4


def test_the_seed_reaches_the_model():
    _, X = rows()
    own = clone(QUICK).set_params(random_state=None)
    one, two = (VAEImputer(own, random_state=s).fit_transform(X) for s in (0, 0))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, VAEImputer(QUICK, random_state=5).fit_transform(X))
    assert (one != VAEImputer(own, random_state=1).fit_transform(X)).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.filterwarnings("ignore:.*Early stopping:sklearn.exceptions.ConvergenceWarning")
def test_indicators_are_those_of_scikit_learn(dtype):
    X = rows()[1].astype(dtype)
    theirs = IterativeImputer(add_indicator=True, max_iter=1).fit(X)
    ours = VAEImputer(LINEAR, add_indicator=True, random_state=0).fit(X)
    names = theirs.get_feature_names_out()
    assert list(ours.get_feature_names_out()) == list(names)
    assert list(ours.get_feature_names_out(list("abcde"))) == list(
        theirs.get_feature_names_out(list("abcde"))
    )
    out = ours.transform(X)
    assert out.dtype == dtype and out.shape == (120, 9)
    np.testing.assert_array_equal(out[:, 5:], theirs.transform(X)[:, 5:])
    np.testing.assert_array_equal(out[:, :5], VAEImputer(LINEAR, random_state=0).fit_transform(X))
    # a column without gaps in fit has no indicator later on either
    X = X.copy()
    X[0, 1] = np.nan
    assert ours.transform(X).shape == (120, 9) and np.isfinite(ours.transform(X)).all()
    assert list(ours.indicated_) == [0, 2, 3, 4]
    assert len(VAEImputer(LINEAR).fit(X).indicated_) == 0


@LIBRARIES
def test_tables_with_indicators(library):
    frame = table(library, rows()[1])
    gaps = missing(frame)
    imputer = VAEImputer(QUICK, add_indicator=True).fit(frame)
    out = imputer.transform(frame)
    assert type(out) is type(frame)
    names = [*"abcde", "kind", *(f"missingindicator_{name}" for name in "acde")]
    assert list(out.columns) == names == list(imputer.get_feature_names_out())
    assert imputer.n_features_in_ == 6
    if hasattr(imputer.estimator_, "feature_names_in_"):  # scikit-learn 1.7 reads none of polars 2
        assert list(imputer.feature_names_in_) == names[:6]
    assert list(out.dtypes)[:6] == list(frame.dtypes)
    assert not missing(out).any()
    for j, name in zip((0, 2, 3, 4), names[6:], strict=True):
        assert [bool(flag) for flag in out[name]] == gaps[:, j].tolist()
    for j, name in enumerate(names[:6]):
        old, new = frame[name].to_numpy(), out[name].to_numpy()
        assert (old[~gaps[:, j]] == new[~gaps[:, j]]).all()


@LIBRARIES
@pytest.mark.parametrize("add_indicator", [False, True])
def test_set_output(library, add_indicator):
    frames = pytest.importorskip(library)
    _, X = rows()
    imputer = VAEImputer(LINEAR, add_indicator=add_indicator)
    expected = imputer.fit_transform(X)
    out = imputer.set_output(transform=library).transform(X)
    assert isinstance(out, frames.DataFrame)
    assert list(out.columns) == list(imputer.get_feature_names_out())
    np.testing.assert_array_equal(out.to_numpy(), expected)


def test_before_a_classifier():
    whole, X = rows(200)
    y = whole @ [1, 1, 0, 0, 1] > 0
    pipeline = make_pipeline(VAEImputer(LINEAR, add_indicator=True), LogisticRegression())
    scores = cross_val_score(pipeline, X, y, cv=3, error_score="raise")
    # better than the larger class by more than chance: 4 standard errors of a share
    share = max(y.mean(), 1 - y.mean())
    assert scores.mean() > share + 4 * np.sqrt(share * (1 - share) / len(y))


@pytest.mark.parametrize("estimator", [LINEAR, None], ids=["linear", "default"])
def test_better_than_the_mean(estimator):
    whole, X = rows(600)
    gaps = np.isnan(X)
    loadings = np.array([[1.0, 1, 1, 0, 0], [0, 0, 1, 1, -1]])
    S = loadings.T @ loadings + NOISE**2 * np.eye(5)
    known = np.zeros(X.shape)  # conditional variance of each missing cell: no one can do better
    for i in np.flatnonzero(gaps.any(1)):
        seen = ~gaps[i]
        gain = S[:, seen] @ np.linalg.inv(S[np.ix_(seen, seen)])
        known[i] = (S - gain @ S[seen]).diagonal()
    if estimator is None:
        imputer = VAEImputer(random_state=0)
    else:
        imputer = VAEImputer(estimator, random_state=0)
    square = ((imputer.fit_transform(X) - whole) ** 2)[gaps]
    simple = ((SimpleImputer().fit_transform(X) - whole) ** 2)[gaps]
    best = known[gaps].mean()
    # squares of normal errors have variance 2 v^2; and 10% for what 600 rows leave open
    assert square.mean() < 1.1 * best + 4 * np.sqrt(2 * (known[gaps] ** 2).mean() / gaps.sum())
    assert square.mean() < 0.5 * simple.mean()


def test_rows_without_gaps_are_fine():
    whole, X = rows()
    imputer = VAEImputer(LINEAR, add_indicator=True)
    np.testing.assert_array_equal(imputer.fit_transform(whole), whole)
    assert np.isfinite(imputer.transform(X)).all() and imputer.transform(X).shape == X.shape
    np.testing.assert_array_equal(VAEImputer(LINEAR).fit(X).transform(whole), whole)


def test_a_failed_fit_leaves_it_as_it_was():
    _, X = rows()
    imputer = VAEImputer(LINEAR, add_indicator=True, random_state=0)
    bad = X.copy()
    bad[3, 2] = np.inf
    with pytest.raises(ValueError, match="Column 2 of X holds inf"):
        imputer.fit(bad)
    assert [name for name in vars(imputer) if name.endswith("_")] == []
    imputer.fit(X)
    before, expected = dict(vars(imputer)), imputer.transform(X)
    with pytest.raises(ValueError, match="Column 2 of X holds inf"):
        imputer.fit(bad)
    assert vars(imputer) == before
    np.testing.assert_array_equal(imputer.transform(X), expected)


@LIBRARIES
def test_names_go_with_the_fit(library):
    _, X = rows()
    imputer = VAEImputer(QUICK, add_indicator=True).fit(table(library, X))
    assert imputer.n_features_in_ == 6
    imputer.fit(X)
    assert imputer.n_features_in_ == 5 and not hasattr(imputer, "feature_names_in_")
    assert list(imputer.get_feature_names_out())[-1] == "missingindicator_x4"


def test_what_is_refused():
    _, X = rows()
    words = X.astype(object)
    words[2, 1] = "many"
    message = r"could not convert string to float.* Arrays hold numbers"
    with pytest.raises(ValueError, match=message):
        VAEImputer(LINEAR).fit(words)
    imputer = VAEImputer(LINEAR).fit(X)
    with pytest.raises(ValueError, match=message):
        imputer.transform(words)
    with pytest.raises(ValueError, match=r"X has 4 features, but .* is expecting 5 features"):
        imputer.transform(X[:, :4])
    with pytest.raises(ValueError, match="n_components must be an integer of at least 1"):
        VAEImputer(n_components=0).fit(X)
    with pytest.raises(ValueError, match="This VAEImputer instance is not fitted yet"):
        VAEImputer().transform(X)
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        VAEImputer().fit(X[:, 0])


def test_a_plain_autoencoder_cannot_impute():
    imputer = VAEImputer(VAETransformer(beta=0))
    with pytest.raises(ValueError, match="beta=0: a plain autoencoder has no density"):
        imputer.fit(np.ones((5, 2)))
    assert not hasattr(imputer, "estimator_")


@LIBRARIES
def test_columns_without_any_value_are_told_of(library):
    X = rows()[1]
    X[:, 1] = np.nan
    with pytest.warns(UserWarning, match=r"Columns without any value in fit: \['b'\]\. transform"):
        imputer = VAEImputer(QUICK).fit(table(library, X))
    filled = imputer.transform(table(library, rows()[1]))
    observed = np.asarray(filled["b"])  # what is there stays
    np.testing.assert_array_equal(observed, rows()[1][:, 1])
    with pytest.warns(UserWarning, match=r"\[1\]\. transform fills theirs with 0"):
        imputer = VAEImputer(QUICK).fit(X)
    assert (imputer.transform(X)[:, 1] == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        strict = VAEImputer(QUICK)
        with pytest.raises(UserWarning, match="without any value"):
            strict.fit(X)
    assert not hasattr(strict, "estimator_")
