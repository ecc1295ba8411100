"""Outlier detection: thresholds, contributions of cells, and scikit-learn's checks."""

import math

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAEOutlierDetector, VAETransformer
from skvae.outlier import _offset

X = load_iris().data
UNFINISHED = pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning")


def quick(**parameters):
    return VAETransformer(
        **{"max_iter": 5, "hidden_layer_sizes": (8,), "random_state": 0, **parameters}
    )


@UNFINISHED
@parametrize_with_checks(
    [
        VAEOutlierDetector(quick()),
        VAEOutlierDetector(quick(noise="homoscedastic"), contamination=0.1),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
def test_contamination_is_the_share_of_training_rows(share):
    detector = VAEOutlierDetector(quick(max_iter=0), contamination=share).fit(X)
    scores = detector.score_samples(X)
    outliers = detector.predict(X) == -1
    assert outliers.sum() == int(share * 150)
    assert scores[outliers].max() < detector.offset_ < scores[~outliers].min()
    np.testing.assert_array_equal(detector.decision_function(X), scores - detector.offset_)
    np.testing.assert_array_equal(detector.fit_predict(X), detector.predict(X))


def test_the_fence_is_tukeys():
    scores = np.arange(101.0)
    assert _offset(scores, np.ones(101), None) == pytest.approx(25 - 1.5 * 50, abs=2.6)
    detector = VAEOutlierDetector(quick(max_iter=0)).fit(X)
    low, high = np.quantile(detector.score_samples(X), [0.25, 0.75])
    assert detector.offset_ == pytest.approx(low - 1.5 * (high - low), abs=0.1)


@pytest.mark.parametrize("share", [None, 0.2])
def test_weights_are_repetitions_in_the_threshold(share):
    random = np.random.default_rng(0)
    scores, weights = random.normal(size=40), random.integers(0, 4, 40)
    repeated = np.repeat(scores, weights)
    expected = _offset(repeated, np.ones(len(repeated)), share)
    assert _offset(scores, weights.astype(float), share) == expected


def test_the_model_is_a_clone_with_the_detectors_seed():
    model = VAETransformer(3, max_iter=0)
    detector = VAEOutlierDetector(model, random_state=7).fit(X)
    assert model.random_state is None
    assert not hasattr(model, "module_")
    assert detector.estimator_.random_state == 7
    assert VAEOutlierDetector(quick(max_iter=0), random_state=7).fit(X).estimator_.random_state == 0


def test_the_default_models():
    for n_columns, sizes in ((1, [2]), (2, [2]), (3, [2]), (7, [2, 4]), (90, [2, 15])):
        models = VAEOutlierDetector()._models(np.ones((9, n_columns)))
        assert [m.n_components for m in models] == [*sizes, 1]
    *models, wide = VAEOutlierDetector(n_components=[1, 3], random_state=7)._models(X)
    assert [m.n_components for m in models] == [1, 3]
    assert {(m.prior, m.noise_floor, m.n_score_samples) for m in models} == {("mixture", 0.1, 64)}
    assert (wide.prior, wide.max_iter, wide.noise, wide.n_score_samples) == ("normal", 0, 1.5, 64)
    assert len({m.random_state for m in (*models, wide)}) == 1
    again, _ = VAEOutlierDetector(n_components=np.int64(1), random_state=7)._models(X)
    assert (again.n_components, again.random_state) == (1, models[0].random_state)


def test_no_size_is_refused():
    with pytest.raises(ValueError, match="n_components must name one size at least, got none"):
        VAEOutlierDetector(n_components=[]).fit(X)


def test_the_wide_model_is_one_direction_and_much_noise():
    """In closed form: of the correlations' eigenvalues the largest counts, where above 1.5^2."""
    wide = VAEOutlierDetector(random_state=0)._models(X)[-1].fit(X)
    values, vectors = np.linalg.eigh(np.corrcoef(X.T))
    assert values[-1] > 1.5**2 > values[-2]
    loadings = vectors[:, -1:] * np.sqrt(values[-1] - 1.5**2)
    scale = X.std(0)
    covariance = (loadings @ loadings.T + 1.5**2 * np.eye(4)) * np.outer(scale, scale)
    expected = stats.multivariate_normal(X.mean(0), covariance).logpdf(X)
    np.testing.assert_allclose(wide.score_samples(X), expected, rtol=1e-6)


def test_a_group_of_outliers_among_the_rows_of_fit():
    """The trained models learn a third grower's wines as one more group; the wide one does not."""
    wine, grower = load_wine(return_X_y=True)
    some = np.random.default_rng(3).permutation(wine[grower == 2])[:13]
    rows = np.vstack([wine[grower < 2], some])
    y = np.repeat([0, 1], [130, 13])
    detector = VAEOutlierDetector(random_state=0).fit(rows)
    *trained, wide = (-model.score_samples(rows) for model in detector.estimators_)
    without = roc_auc_score(y, sum(trained))
    together = roc_auc_score(y, -detector.score_samples(rows))
    assert without + 0.05 < together < roc_auc_score(y, wide)


def test_scores_are_the_models_mean():
    detector = VAEOutlierDetector(n_components=(1, 2), random_state=0).fit(X[:60])
    each = [model.score_samples(X) for model in detector.estimators_]
    np.testing.assert_allclose(detector.score_samples(X), np.mean(each, 0), rtol=1e-12)
    assert detector.estimator_ is detector.estimators_[0]
    rows = X[:2]
    one = [
        m.score_cells(m.sample(64, random_state=0)).mean(0) - m.score_cells(rows)
        for m in detector.estimators_
    ]
    np.testing.assert_allclose(detector.contributions(rows), np.mean(one, 0), rtol=1e-9)


def test_few_points_put_rows_in_the_order_of_many():
    detector = VAEOutlierDetector(n_components=(1, 2), random_state=0).fit(X[:60])
    few = detector.score_samples(X)
    for model in detector.estimators_:
        model.set_params(n_score_samples=1024)
    many = detector.score_samples(X)
    assert (few != many).any()
    assert stats.spearmanr(few, many).statistic > 0.99
    assert abs(few - many).mean() < 0.1 * many.std()


def test_rows_that_break_a_dependence_stand_out():
    """Neither column alone tells; a forest that cuts columns one by one sees less."""
    random = np.random.default_rng(0)
    angle = random.uniform(0, 2 * np.pi, 600)
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) + 0.05 * random.normal(size=(600, 2))
    middle = random.uniform(-0.5, 0.5, (60, 2))
    test = np.vstack([ring[300:], middle])
    y = np.repeat([0, 1], [300, 60])
    # a ring has its middle where N(0, I) is densest
    detector = VAEOutlierDetector(VAETransformer(prior="mixture", random_state=0)).fit(ring[:300])
    forest = IsolationForest(random_state=0).fit(ring[:300])
    ours = roc_auc_score(y, -detector.score_samples(test))
    assert ours > 0.99
    assert ours > roc_auc_score(y, -forest.score_samples(test))
    assert (detector.predict(middle) == -1).mean() > 0.8
    assert (detector.predict(ring[300:]) == -1).mean() < 0.05


# ---------------------------------------------------------------- cells


def test_cells_given_the_others_are_the_normal_conditionals():
    """Of a linear model, in closed form, in original units."""
    table = X * [1.0, 1e3, 1e-3, 1.0]
    vae = quick(max_iter=0, noise="homoscedastic", precision_power=1.0).fit(table)
    module, part = vae.module_, vae.module_.likelihood
    W = module.decoder.weight.detach().numpy() * part.scale[:, None]
    covariance = W @ W.T + np.diag(vae.noise_variance_)
    mean = part.scale * module.decoder.bias.detach().numpy()[:4] + part.shift
    precision = np.linalg.inv(covariance)
    deviation = table - mean
    var = 1 / precision.diagonal()
    residual = deviation @ precision * var
    expected = stats.norm.logpdf(residual, scale=np.sqrt(var))
    np.testing.assert_allclose(vae.score_cells(table), expected, rtol=1e-6, atol=1e-6)
    detector = VAEOutlierDetector(vae).fit(table)
    surprise = detector.contributions(table)
    # -log p less the entropy of the conditional: (residual^2 / variance - 1) / 2
    np.testing.assert_allclose(surprise.mean(0), 0.0, atol=0.4)
    drawn = detector.estimator_.sample(64, random_state=0)
    usual = detector.estimator_.score_cells(drawn).mean(0)
    np.testing.assert_allclose(surprise, usual - expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(usual, stats.norm(scale=np.sqrt(var)).entropy() * -1, atol=0.4)


def test_contributions_do_not_depend_on_units():
    detector = VAEOutlierDetector(quick(max_iter=0))
    one = detector.fit(X).contributions(X[:5])
    other = detector.fit(X * [1.0, 1024.0, 1 / 64, 2.0]).contributions(
        X[:5] * [1.0, 1024.0, 1 / 64, 2.0]
    )
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_the_changed_cell_contributes_most():
    detector = VAEOutlierDetector(random_state=0).fit(X)
    rows = X[:4].copy()
    rows[np.arange(4), np.arange(4)] += 4 * X.std(0)
    assert detector.contributions(rows).argmax(1).tolist() == [0, 1, 2, 3]


def test_gaps_have_no_contribution():
    gappy = X.copy()
    gappy[::3, 1] = np.nan
    detector = VAEOutlierDetector(quick(max_iter=0)).fit(gappy)
    cells = detector.estimator_.score_cells(gappy[:6])
    assert (np.isnan(cells) == np.isnan(gappy[:6])).all()
    surprise = detector.contributions(gappy[:6])
    assert (np.isnan(surprise) == np.isnan(gappy[:6])).all()
    one = gappy[:1].copy()
    one[0, 0] = math.nan
    whole, without = detector.score_samples(gappy[:1]), detector.score_samples(one)
    assert cells[0, 0] == pytest.approx(whole[0] - without[0], rel=1e-9)


def test_categories_contribute_too():
    pd = pytest.importorskip("pandas")
    random = np.random.default_rng(0)
    kind = random.choice(["a", "b"], 200)
    table = pd.DataFrame({"x": np.where(kind == "a", -2.0, 2.0) + random.normal(size=200) / 4})
    table["kind"] = kind
    detector = VAEOutlierDetector(random_state=0).fit(table)
    strange = pd.DataFrame({"x": [-2.0, -2.0], "kind": ["a", "b"]})
    usual, odd = detector.contributions(strange)
    assert abs(usual).max() < 1
    assert odd[1] > 2
    assert detector.score_samples(strange)[1] < detector.score_samples(strange)[0] - 2


# ---------------------------------------------------------------- the interface


def test_pipelines_sparse_rows_and_tables():
    detector = VAEOutlierDetector(quick(max_iter=0), contamination=0.1)
    scaled = make_pipeline(StandardScaler(), clone(detector)).fit(X)
    assert (scaled.predict(X) == -1).sum() == 15
    dense = clone(detector).fit(X).score_samples(X)
    rows = sparse.csr_array(X)
    np.testing.assert_array_equal(clone(detector).fit(rows).score_samples(rows), dense)
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(X, columns=list("abcd"))
    fitted = clone(detector).fit(table)
    np.testing.assert_array_equal(fitted.score_samples(table), dense)
    assert fitted.feature_names_in_.tolist() == list("abcd")
    assert not hasattr(fitted.fit(X), "feature_names_in_")


def test_a_saved_detector_is_the_same(tmp_path):
    detector = VAEOutlierDetector(quick(max_iter=0), contamination=0.1).fit(X)
    detector.save(tmp_path / "detector.skvae")
    loaded = VAEOutlierDetector.load(tmp_path / "detector.skvae")
    assert loaded.offset_ == detector.offset_
    np.testing.assert_array_equal(loaded.predict(X), detector.predict(X))
    np.testing.assert_array_equal(loaded.contributions(X[:3]), detector.contributions(X[:3]))
    with pytest.raises(ValueError, match="VAEOutlierDetector"):
        VAETransformer.load(tmp_path / "detector.skvae")
    two = VAEOutlierDetector(n_components=(1, 2), random_state=0).fit(X[:40])
    two.estimators_[1].module_.n_components = 3  # of which the first model knows nothing
    two.save(tmp_path / "detector.skvae")
    with pytest.raises(ValueError, match="it has 2 components, and its module 3"):
        VAEOutlierDetector.load(tmp_path / "detector.skvae")


@pytest.mark.parametrize(
    ("detector", "error", "message"),
    [
        (VAEOutlierDetector(contamination=0), ValueError, "contamination must be .*got 0"),
        (VAEOutlierDetector(contamination=0.6), ValueError, "contamination must be .*got 0.6"),
        (VAEOutlierDetector(contamination="half"), TypeError, "or 'auto', got 'half'"),
        (VAEOutlierDetector(n_components=0), ValueError, "each of n_components must be .*got 0"),
        (VAEOutlierDetector(n_components="2"), TypeError, "n_components must be .*got '2'"),
        (VAEOutlierDetector(VAETransformer(beta=0)), ValueError, "beta=0: a plain autoencoder"),
        (VAEOutlierDetector(VAETransformer(alpha=-1)), ValueError, "alpha must be .*got -1"),
    ],
)
def test_what_is_refused(detector, error, message):
    with pytest.raises(error, match=message):
        detector.fit(X)
    assert not hasattr(detector, "offset_")
    assert not hasattr(detector, "estimator_")


def test_a_failed_fit_leaves_the_detector_as_it_was():
    detector = VAEOutlierDetector(quick(max_iter=0)).fit(X)
    before = detector.score_samples(X)
    with pytest.raises(ValueError, match="Column 0 of X holds inf"):
        detector.fit(np.where(X > 7, np.inf, X))
    np.testing.assert_array_equal(detector.score_samples(X), before)


def test_before_fit():
    for method in ("predict", "decision_function", "score_samples", "contributions"):
        with pytest.raises(NotFittedError, match="VAEOutlierDetector instance is not fitted yet"):
            getattr(VAEOutlierDetector(), method)(X)
