"""VAETransformer keeps scikit-learn's contract: its own checks, and life among other estimators."""

import functools
import pickle
import threading

import joblib
import numpy as np
import pytest
import sklearn
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from skvae import VAEImputer, VAETransformer

IRIS, SPECIES = load_iris(return_X_y=True)
BINARY = (IRIS[:, [0, 1, 2, 3, 0]] > [5, 3, 4, 1, 6]).astype(float)


def quick(**parameters):
    """A model that trains, and whose training ends after few epochs."""
    small = {"hidden_layer_sizes": (8,), "n_iter_no_change": 2, "tol": 0.1, "max_iter": 200}
    return VAETransformer(**{"random_state": 0} | small | parameters)


class TinyNetwork(nn.Sequential):  # a function's address would be in the names of its tests
    def __init__(self, n_in, n_out):
        super().__init__(nn.Linear(n_in, 4), nn.Tanh(), nn.Linear(4, n_out))


def cell_by_cell(function, X):
    """The function of each cell, of a sparse matrix of those that it holds."""
    if not issparse(X):
        return function(X)
    X = X.copy()
    X.data = function(X.data)
    return X


class Squashed(VAETransformer):
    """Carries any data into [0, 1] first, cell by cell, so that it suits a Bernoulli model."""

    def _validated(self, X, reset):
        X = super()._validated(X, reset)
        return cell_by_cell(lambda cells: 0.5 + np.arctan(cells) / np.pi, X)


class Counted(VAETransformer):
    """Makes counts of any data first, so that it suits a multinomial model."""

    def _validated(self, X, reset):
        X = super()._validated(X, reset)
        return cell_by_cell(lambda cells: np.minimum(np.rint(5 * np.abs(cells)), 1e12), X)


def instances():
    yield VAETransformer()
    yield quick(random_state=None, n_components=3)
    one_stage = {"random_state": None, "noise": "homoscedastic"}  # the others have a second
    yield quick(random_state=None, init="random")
    yield quick(**one_stage, early_stopping=False)
    for noise in ("heteroscedastic", "homoscedastic", "isotropic", 0.5):
        yield quick(random_state=None, noise=noise)
    yield quick(**one_stage, encoder=TinyNetwork, decoder=TinyNetwork)
    bernoulli = quick(random_state=None, likelihood="bernoulli")
    yield Squashed(**bernoulli.get_params())
    multinomial = quick(random_state=None, likelihood="multinomial")
    yield Counted(**multinomial.get_params())


def imputers():
    yield VAEImputer(quick(random_state=None))
    yield VAEImputer(quick(random_state=None, noise="homoscedastic"), add_indicator=True)


@parametrize_with_checks([*instances(), *imputers()])
def test_contract(estimator, check):
    check(estimator)


# not among those that parametrize_with_checks runs
FURTHER_CHECKS = [
    "check_dataframe_column_names_consistency",
    "check_estimators_partial_fit_n_features",
    "check_get_feature_names_out_error",
    "check_global_output_transform_pandas",
    "check_inplace_ensure_writeable",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
]


# some of these checks mix tables and arrays, and look at the result alone
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.filterwarnings("ignore:X has feature names, but:UserWarning")
@pytest.mark.parametrize("name", FURTHER_CHECKS)
@pytest.mark.parametrize("n_components", [2, 3])
def test_further_contract(name, n_components):
    estimator = quick(n_components=n_components, noise="homoscedastic")
    getattr(estimator_checks, name)("VAETransformer", estimator)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.filterwarnings("ignore:X has feature names, but:UserWarning")
@pytest.mark.parametrize("name", [name for name in FURTHER_CHECKS if "partial_fit" not in name])
def test_further_contract_of_the_imputer(name):
    getattr(estimator_checks, name)("VAEImputer", VAEImputer(quick(noise="homoscedastic")))


@pytest.mark.parametrize("estimator", instances(), ids=repr)
def test_results_are_finite(estimator):
    # NaN equals NaN in scikit-learn's comparisons: its checks would not see it
    estimator = clone(estimator).set_params(random_state=0).fit(IRIS)
    assert np.isfinite(estimator.transform(IRIS)).all()
    assert np.isfinite(estimator.score_samples(IRIS)).all()
    assert np.isfinite(estimator.sample(100, random_state=0)).all()
    assert np.isfinite(estimator.inverse_transform(estimator.transform(IRIS))).all()


# ------------------------------------------------------------------ Bernoulli, on data made for it


def test_bernoulli_weights_are_repetition():
    weights = np.random.RandomState(0).randint(0, 4, len(BINARY))
    weighted = quick(likelihood="bernoulli").fit(BINARY, sample_weight=weights)
    repeated = quick(likelihood="bernoulli").fit(np.repeat(BINARY, weights, axis=0))
    np.testing.assert_array_equal(weighted.transform(BINARY), repeated.transform(BINARY))


def test_bernoulli_rows_do_not_depend_on_each_other():
    vae = quick(likelihood="bernoulli").fit(BINARY)
    order = np.random.RandomState(0).permutation(len(BINARY))
    for method in (vae.transform, vae.score_samples):
        together = method(BINARY)
        np.testing.assert_allclose(method(BINARY[order]), together[order], atol=1e-9)
        alone = np.concatenate([method(row[None]) for row in BINARY])
        np.testing.assert_allclose(alone, together, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bernoulli_keeps_the_dtype(dtype):
    X = BINARY.astype(dtype)
    vae = quick(likelihood="bernoulli").fit(X)
    assert vae.transform(X).dtype == dtype
    assert vae.score_samples(X).dtype == dtype
    assert vae.inverse_transform(vae.transform(X)).dtype == dtype


# ------------------------------------------------------------------ in pipelines and searches


def test_pipeline_predicts_and_pickles():
    pipeline = make_pipeline(StandardScaler(), quick(), LogisticRegression()).fit(IRIS, SPECIES)
    assert pipeline.score(IRIS, SPECIES) > 0.9
    copy = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(copy.predict_proba(IRIS), pipeline.predict_proba(IRIS))


def test_grid_search_through_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), quick(), LogisticRegression())
    grid = {"vaetransformer__n_components": [1, 3], "vaetransformer__beta": [0.5, 4.0]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2, error_score="raise").fit(IRIS, SPECIES)
    alone = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(IRIS, SPECIES)
    for key in ("split0_test_score", "split1_test_score"):
        np.testing.assert_array_equal(search.cv_results_[key], alone.cv_results_[key])


def test_grid_search_by_likelihood_needs_neither_scoring_nor_y():
    search = GridSearchCV(quick(), {"n_components": [1, 2]}, cv=KFold(3), error_score="raise")
    search.fit(IRIS)
    train, test = next(KFold(3).split(IRIS))
    for i, k in enumerate([1, 2]):
        expected = quick(n_components=k).fit(IRIS[train]).score(IRIS[test])
        assert search.cv_results_["split0_test_score"][i] == expected


def test_cross_val_score():
    scores = cross_val_score(quick(), IRIS, cv=KFold(3), error_score="raise")
    splits = KFold(3).split(IRIS)
    expected = [quick().fit(IRIS[train]).score(IRIS[test]) for train, test in splits]
    assert scores.tolist() == expected


def test_feature_union():
    union = FeatureUnion([("vae", quick(n_components=3)), ("pca", PCA(2))]).fit(IRIS)
    expected = np.hstack(
        [quick(n_components=3).fit_transform(IRIS), PCA(2).fit(IRIS).transform(IRIS)]
    )
    np.testing.assert_allclose(union.transform(IRIS), expected, rtol=1e-12)
    names = ["vae__vaetransformer0", "vae__vaetransformer1", "vae__vaetransformer2"]
    assert union.get_feature_names_out().tolist()[:3] == names


def test_column_transformer_hands_over_chosen_columns():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(IRIS, columns=list("abcd")).assign(text="x")
    chosen = ColumnTransformer([("vae", quick(), ["d", "a", "b"])]).fit(frame)
    alone = quick().fit_transform(IRIS[:, [3, 0, 1]])
    np.testing.assert_array_equal(chosen.transform(frame), alone)
    assert chosen.named_transformers_["vae"].feature_names_in_.tolist() == ["d", "a", "b"]


def test_clone_is_unfitted_and_alike():
    network = nn.Linear(4, 4)
    vae = quick(encoder=network, n_components=2).fit(IRIS)
    copy = clone(vae)
    assert not hasattr(copy, "module_")
    assert copy.encoder is not network  # a parameter is copied, as scikit-learn does
    np.testing.assert_array_equal(copy.fit_transform(IRIS), vae.transform(IRIS))


def test_own_modules_are_left_alone():
    network = nn.Linear(4, 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    vae = quick(encoder=network, max_iter=3, tol=0.0, early_stopping=False, n_iter_no_change=9)
    with pytest.warns(sklearn.exceptions.ConvergenceWarning):
        vae.fit(IRIS)
    assert vae.encoder is network
    assert all((network.state_dict()[name] == before[name]).all() for name in before)
    assert network.training  # the fitted copy is in evaluation mode, the user's is as it was


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_joblib_and_pickle_carry_everything(tmp_path, likelihood):
    X = IRIS if likelihood == "gaussian" else BINARY
    vae = quick(likelihood=likelihood, warm_start=True).fit(X)
    joblib.dump(vae, tmp_path / "vae.joblib")
    for copy in (joblib.load(tmp_path / "vae.joblib"), pickle.loads(pickle.dumps(vae))):
        for method in ("transform", "score_samples"):
            np.testing.assert_array_equal(getattr(copy, method)(X), getattr(vae, method)(X))
        draws = copy.sample(3, random_state=1)
        np.testing.assert_array_equal(draws, vae.sample(3, random_state=1))
        # and a copy goes on from where the original would
        on = clone(copy)
        on.__dict__.update(copy.__dict__)
        original = pickle.loads(pickle.dumps(vae))
        np.testing.assert_array_equal(on.fit(X).transform(X), original.fit(X).transform(X))


def test_set_output():
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    frame = pd.DataFrame(IRIS, columns=list("abcd"), index=range(1000, 1150))
    vae = quick().fit(frame)
    plain = vae.transform(frame)
    names = ["vaetransformer0", "vaetransformer1"]
    out = vae.set_output(transform="pandas").transform(frame)
    pd.testing.assert_frame_equal(out, pd.DataFrame(plain, columns=names, index=frame.index))
    # latents come back in as they went out
    np.testing.assert_array_equal(vae.inverse_transform(out), vae.inverse_transform(plain))
    out = vae.set_output(transform="polars").transform(frame)
    assert isinstance(out, pl.DataFrame)
    assert out.columns == names
    np.testing.assert_array_equal(out.to_numpy(), plain)
    np.testing.assert_array_equal(vae.inverse_transform(out), vae.inverse_transform(plain))


# ------------------------------------------------------------------ metadata routing


def test_weights_are_routed_through_a_pipeline():
    weights = np.random.RandomState(0).randint(0, 4, len(IRIS))
    with sklearn.config_context(enable_metadata_routing=True):
        vae = quick().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        pipeline = make_pipeline(FunctionTransformer(), vae).fit(IRIS, sample_weight=weights)
        score = pipeline.score(IRIS, sample_weight=weights)
    repeated = np.repeat(IRIS, weights, axis=0)
    alone = quick().fit(repeated)
    np.testing.assert_array_equal(pipeline.transform(IRIS), alone.transform(IRIS))
    assert score == pytest.approx(alone.score(repeated), rel=1e-12)


def test_weights_are_routed_through_a_search():
    weights = np.random.RandomState(0).randint(1, 4, len(IRIS))
    with sklearn.config_context(enable_metadata_routing=True):
        vae = quick().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(vae, {"n_components": [1]}, cv=KFold(3), error_score="raise")
        search.fit(IRIS, sample_weight=weights)
    train, test = next(KFold(3).split(IRIS))
    alone = quick(n_components=1).fit(IRIS[train], sample_weight=weights[train])
    expected = alone.score(IRIS[test], sample_weight=weights[test])
    assert search.cv_results_["split0_test_score"][0] == expected


# ------------------------------------------------------------------ going on


def test_warm_start_goes_on_from_the_weights_and_statistics():
    vae = quick(warm_start=True).fit(IRIS)
    first, scale = vae.transform(IRIS), vae.module_.likelihood.scale
    half = IRIS[:75]
    vae.set_params(max_iter=0).fit(half)  # no epochs: the model stays
    np.testing.assert_array_equal(vae.transform(IRIS), first)
    np.testing.assert_array_equal(vae.module_.likelihood.scale, scale)
    assert vae.n_iter_ == 0
    vae.set_params(max_iter=50, early_stopping=False).fit(half)
    assert vae.n_iter_ > 0
    assert not np.array_equal(vae.transform(IRIS), first)
    np.testing.assert_array_equal(vae.module_.likelihood.scale, scale)


def test_without_warm_start_fit_starts_afresh():
    vae = quick().fit(IRIS[:75] * 7)
    fresh = quick().fit(IRIS)
    np.testing.assert_array_equal(vae.fit(IRIS).transform(IRIS), fresh.transform(IRIS))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", 3),
        ("hidden_layer_sizes", (9,)),
        ("decoder_layer_sizes", (9,)),
        ("activation", "tanh"),
        ("encoder", TinyNetwork),
        ("decoder", TinyNetwork),
        ("dropout", 0.5),
        ("noise", "homoscedastic"),
        ("noise_floor", 0.1),
        ("likelihood", "bernoulli"),
        ("categorical_features", [0]),
        ("exposure", "total"),
    ],
)
def test_another_architecture_cannot_go_on(name, value):
    vae = quick(warm_start=True).fit(BINARY)
    old = getattr(vae, name)
    vae.set_params(**{name: value})
    for method in (vae.fit, vae.partial_fit):
        with pytest.raises(ValueError) as caught:
            method(BINARY)
        assert f"{name}={value!r}, but" in str(caught.value)
        assert f"was fitted with {old!r}" in str(caught.value)
        assert "warm_start=False" in str(caught.value)
    if name == "exposure":
        vae.set_params(likelihood="poisson")
    vae.set_params(warm_start=False).fit(BINARY)


def test_sizes_may_be_any_sequence_on_the_way():
    vae = quick(warm_start=True, hidden_layer_sizes=[8]).fit(IRIS)
    vae.set_params(hidden_layer_sizes=np.array([8])).fit(IRIS)


# ------------------------------------------------------------------ callbacks

callbacks = pytest.mark.skipif(
    not hasattr(VAETransformer, "set_callbacks"), reason="scikit-learn before 1.9 has no callbacks"
)
trained = functools.partial(quick, tol=0.0, n_iter_no_change=4, early_stopping=False)


class Recorder:
    """Writes down what it is told; stops, or fails, after a given epoch."""

    def __init__(self, stop=None, fail=None):
        self.stop, self.fail = stop, fail
        self.events, self.estimators, self.given = [], [], []

    def setup(self, estimator, context):
        self.events.append(("setup", context.task_name))

    def teardown(self, estimator, context):
        self.events.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.events.append(("begin", context.task_name))
        self.given.append((X, y, metadata))

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.events.append(("end", context.task_name))
        if context.task_name == "epoch":
            self.estimators.append(fitted_estimator)
            if len(self.estimators) == self.fail:
                raise OSError("the disk is full")
            return len(self.estimators) == self.stop
        return False


@callbacks
def test_callbacks_hear_of_every_epoch():
    recorder = Recorder(stop=3)
    weights = np.ones(len(IRIS))
    vae = trained(noise="homoscedastic").set_callbacks(recorder)
    vae.fit(IRIS, SPECIES, sample_weight=weights)
    assert vae.n_iter_ == len(vae.loss_curve_) == 3
    epoch = [("begin", "epoch"), ("end", "epoch")]
    begin, end = [("setup", "fit"), ("begin", "fit")], [("end", "fit"), ("teardown", "fit")]
    assert recorder.events == begin + 3 * epoch + end
    for X, y, metadata in recorder.given:
        assert X is IRIS
        assert y is SPECIES
        assert metadata["sample_weight"] is weights
    # each is a model of its own, ready for use, as if training had stopped there
    final = recorder.estimators[-1]
    np.testing.assert_array_equal(final.transform(IRIS), vae.transform(IRIS))
    np.testing.assert_array_equal(final.score_samples(IRIS), vae.score_samples(IRIS))
    scores = [estimator.score(IRIS) for estimator in recorder.estimators]
    assert len(set(scores)) == 3
    assert [estimator.n_iter_ for estimator in recorder.estimators] == [1, 2, 3]
    assert not [name for name in vars(vae) if "context" in name or "teardown" in name]


@callbacks
@pytest.mark.parametrize("noise", ["auto", "heteroscedastic", "isotropic", 0.5])
def test_callbacks_see_a_usable_model_with_every_noise(noise):
    recorder = Recorder(stop=2)
    vae = trained(noise=noise).set_callbacks(recorder).fit(IRIS)
    np.testing.assert_array_equal(recorder.estimators[-1].transform(IRIS), vae.transform(IRIS))
    assert np.isfinite(recorder.estimators[0].score(IRIS))


@callbacks
def test_a_failing_callback_is_torn_down_and_leaves_no_trace():
    recorder = Recorder(fail=2)
    vae = trained().set_callbacks(recorder)
    before = dict(vars(vae))
    with pytest.raises(OSError, match="the disk is full"):
        vae.fit(IRIS)
    assert vars(vae) == before
    assert recorder.events[-2:] == [("end", "epoch"), ("teardown", "fit")]
    recorder.fail = None
    recorder.stop = 5
    vae.fit(IRIS)
    assert vae.n_iter_ == 3  # two before it failed, three more until it stopped
    assert vae.set_callbacks() is vae
    assert not [name for name in vars(vae) if "callback" in name]


@callbacks
def test_a_refused_fit_asks_no_callback():
    recorder = Recorder()
    vae = quick(n_components=0).set_callbacks(recorder)
    with pytest.raises(ValueError, match="n_components"):
        vae.fit(IRIS)
    assert recorder.events == []


@callbacks
def test_progress_bar(capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    trained().set_callbacks(ProgressBar(), Recorder(stop=2)).fit(IRIS)
    shown = capsys.readouterr().out
    assert "VAETransformer - fit" in shown
    assert "100%" in shown
    with pytest.raises(OSError, match="disk"):
        trained().set_callbacks(ProgressBar(), Recorder(fail=2)).fit(IRIS)
    monitors = [t for t in threading.enumerate() if type(t).__name__ == "RichProgressMonitor"]
    assert monitors == []


@callbacks
def test_scoring_monitor():
    from sklearn.callback import ScoringMonitor

    # it scores only where there is a y
    monitor = ScoringMonitor(scoring={"nats": lambda estimator, X, y: estimator.score(X)})
    recorder = Recorder(stop=3)
    trained().set_callbacks(monitor, recorder).fit(IRIS, SPECIES)
    rows = monitor.get_logs().data
    expected = [estimator.score(IRIS) for estimator in recorder.estimators]
    assert [row["nats"] for row in rows if row["task_name"] == "epoch"] == expected


@callbacks
def test_callbacks_through_a_search():
    recorder = Recorder(stop=2)
    search = GridSearchCV(trained().set_callbacks(recorder), {"n_components": [1, 2]}, cv=2)
    search.set_params(error_score="raise").fit(IRIS)
    assert np.isfinite(search.best_score_)


class OfAll(Recorder):
    """Set on whatever is outermost, it hears of every estimator within."""

    max_propagation_depth = None


@callbacks
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_callbacks_of_a_pipeline_and_of_a_search_hear_of_its_epochs():
    recorder = OfAll()
    pipeline = make_pipeline(StandardScaler(), trained(max_iter=3))
    pipeline.set_callbacks(recorder).fit(IRIS)
    assert recorder.events.count(("end", "epoch")) == 3
    assert [each.n_iter_ for each in recorder.estimators] == [1, 2, 3]
    recorder = OfAll()
    search = GridSearchCV(trained(max_iter=3), {"n_components": [1, 2]}, cv=2)
    search.set_callbacks(recorder).fit(IRIS)
    assert recorder.events.count(("end", "epoch")) == (2 * 2 + 1) * 3  # with the best, once more
