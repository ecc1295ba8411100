"""VAETransformer: what it promises, and what it says to input that cannot be."""

import ast
import copy
import inspect
import math
import re
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import nn

import skvae.estimator
from skvae import VAETransformer
from skvae.networks import mlp

X = load_iris().data
BINARY = (X > X.mean(0)).astype(float)
EIGHTHS = np.random.RandomState(0).randint(4, 9, len(X)) / 8  # weights


def quick(**parameters):
    """A model that trains, and whose training ends after few epochs."""
    small = {"hidden_layer_sizes": (8,), "n_iter_no_change": 2, "tol": 0.1, "max_iter": 200}
    return VAETransformer(**{"random_state": 0} | small | parameters)


@pytest.fixture(scope="module")
def vae():
    """A fitted model, for tests that only read it."""
    return quick().fit(X)


class Faulty(nn.Module):
    """A decoder whose output passes ``fault`` while it is trained."""

    def __init__(self, n_in, n_out, fault):
        super().__init__()
        self.linear, self.fault = nn.Linear(n_in, n_out), fault

    def forward(self, z):
        out = self.linear(z)
        return self.fault(out) if self.training else out


def with_fault(fault):
    """A factory of such decoders; a function is not copied, so that its counters are shared."""
    return lambda n_in, n_out: Faulty(n_in, n_out, fault)


# ------------------------------------------------------------------ bad input


def assert_refused(estimator, call, error, *parts):
    """The call fails with these words, and nothing about the estimator changes."""
    before = dict(vars(estimator))
    fitted = hasattr(estimator, "module_")
    latents = estimator.transform(X) if fitted else None
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    assert vars(estimator).keys() == before.keys()
    assert all(vars(estimator)[name] is before[name] for name in before)
    if fitted:
        np.testing.assert_array_equal(estimator.transform(X), latents)


BAD_PARAMETERS = [
    ("n_components", 0, ValueError, "n_components must be an integer of at least 1, got 0."),
    ("n_components", -2, ValueError, "at least 1, got -2."),
    ("n_components", 2.5, ValueError, "n_components must be an integer", "got 2.5."),
    ("n_components", "two", TypeError, "n_components must be an integer", "got 'two'."),
    ("n_components", True, TypeError, "n_components must be an integer", "got True."),
    ("n_components", 0.95, ValueError, "got 0.95: unlike PCA", "GridSearchCV over n_components."),
    ("n_components", None, TypeError, "got None: unlike PCA", "held-out log-likelihood"),
    ("n_components", "mle", ValueError, "got 'mle': unlike PCA"),
    ("hidden_layer_sizes", 64, TypeError, "a sequence of integers, such as (64, 32), got 64."),
    ("hidden_layer_sizes", None, TypeError, "hidden_layer_sizes must be", "got None."),
    ("hidden_layer_sizes", "64", TypeError, "hidden_layer_sizes must be", "got '64'."),
    ("hidden_layer_sizes", (64, 0), ValueError, "each of hidden_layer_sizes", "1, got 0."),
    ("decoder_layer_sizes", (3.5,), ValueError, "each of decoder_layer_sizes", "got 3.5."),
    ("activation", "swish", ValueError, "('relu', 'silu', 'gelu', 'tanh', 'elu'), got 'swish'."),
    ("encoder", 3, TypeError, "encoder must be an nn.Module, a callable", "got 3."),
    ("decoder", "mlp", TypeError, "decoder must be an nn.Module, a callable", "got 'mlp'."),
    ("init", "pca", ValueError, "init must be one of ('linear', 'random'), got 'pca'."),
    ("precision_power", 1.5, ValueError, "a number in [0, 1] or 'auto', got 1.5."),
    ("precision_power", "pca", TypeError, "a number in [0, 1] or 'auto', got 'pca'."),
    ("likelihood", "poison", ValueError, "or a mapping from columns to families, got 'poison'."),
    ("likelihood", {0: "none"}, ValueError, "likelihood of column 0 must be", "got 'none'."),
    ("exposure", "size", ValueError, "exposure must be one of ('total',) or None, got 'size'."),
    ("noise", "low", ValueError, "'isotropic') or a positive number, got 'low'."),
    (
        "noise",
        0,
        ValueError,
        "noise must be a number in [0.001, 10000] or one of ('auto',",
        "got 0.",
    ),
    ("noise", -0.5, ValueError, "noise must be a number in [0.001, 10000]", "got -0.5."),
    ("noise", math.nan, ValueError, "noise must be a number in [0.001, 10000]", "got nan."),
    ("noise", math.inf, ValueError, "noise must be a number in [0.001, 10000]", "got inf."),
    ("noise", None, TypeError, "noise must be a number in [0.001, 10000]", "got None."),
    ("noise_floor", 0.0, ValueError, "noise_floor must be a number in [0.001, 1], got 0.0."),
    ("beta", "1", TypeError, "beta must be a number of at least 0, got '1'."),
    ("beta", -1.0, ValueError, "beta must be a number of at least 0, got -1.0."),
    ("kl_warmup", -1, ValueError, "kl_warmup must be an integer of at least 0, got -1."),
    ("n_score_samples", 0, ValueError, "n_score_samples must be an integer of at least 1, got 0."),
    ("alpha", -1e-3, ValueError, "alpha must be a number of at least 0, got -0.001."),
    ("dropout", 1.0, ValueError, "dropout must be a number in [0, 1), got 1.0."),
    ("learning_rate_init", 0.0, ValueError, "learning_rate_init must be a positive", "got 0.0."),
    ("batch_size", 0, ValueError, "batch_size must be an integer of at least 1 or 'auto', got 0."),
    ("batch_size", "all", TypeError, "of at least 1 or 'auto', got 'all'."),
    ("max_iter", -1, ValueError, "max_iter must be an integer of at least 0, got -1."),
    ("tol", -1.0, ValueError, "tol must be a number of at least 0, got -1.0."),
    ("early_stopping", "yes", TypeError, "early_stopping must be True or False, got 'yes'."),
    ("validation_fraction", 0.0, ValueError, "a number in (0, 1), got 0.0."),
    ("validation_fraction", 1.0, ValueError, "a number in (0, 1), got 1.0."),
    ("n_iter_no_change", 0, ValueError, "n_iter_no_change must be an integer", "got 0."),
    ("max_grad_norm", 0.0, ValueError, "max_grad_norm must be a positive number, got 0.0."),
    ("warm_start", 1, TypeError, "warm_start must be True or False, got 1."),
    ("random_state", "seed", ValueError, "'seed' cannot be used to seed"),
    ("device", "abacus", ValueError, "device='abacus' is not available here", "device='auto'"),
    ("device", None, ValueError, "device=None is not available here", "device='auto'"),
    ("device", "meta", ValueError, "device='meta' is not available here", "'cpu'"),
    ("verbose", -1, ValueError, "verbose must be an integer of at least 0, got -1."),
    ("verbose", "yes", TypeError, "verbose must be an integer of at least 0, got 'yes'."),
    ("device", "cuda:99", ValueError, "device='cuda:99' is not available here", "'cpu'"),
]


@pytest.mark.parametrize("fitted", [False, True], ids=["new", "fitted"])
@pytest.mark.parametrize(
    ("name", "value", "error", "parts"), [(*b[:3], b[3:]) for b in BAD_PARAMETERS]
)
def test_bad_parameters(vae, fitted, name, value, error, parts):
    estimator = quick()
    if fitted:
        estimator.__dict__.update(vars(vae))
    estimator.set_params(**{name: value})
    assert_refused(estimator, lambda: estimator.fit(X), error, *parts)
    if name == "random_state" and fitted:
        return  # going on draws nothing anew
    assert_refused(estimator, lambda: estimator.partial_fit(X), error, *parts)


def with_cell(value, dtype=float):
    out = X.astype(dtype)
    out[7, 2] = value
    return out


BAD_DATA = {
    "inf": (with_cell(-np.inf), ValueError, "Column 2 of X holds -inf (row 7)", "Replace"),
    "no rows": (X[:0], ValueError, "0 sample(s) (shape=(0, 4))", "minimum of 1 is required"),
    "no columns": (X[:, :0], ValueError, "0 feature(s) (shape=(150, 0))"),
    "text": (with_cell("long", object), ValueError, "to float: 'long'. Arrays hold numbers"),
    "complex": (X + 2j, ValueError, "Complex data not supported. Pass both parts as columns"),
    "sparse inf": (sparse.csr_array(with_cell(np.inf)), ValueError, "Column 2 of X holds inf (row"),
    "one dimension": (X[0], ValueError, "Expected 2D array, got 1D array instead"),
    "three dimensions": (X[None], ValueError, "Found array with dim 3"),
}
ONE_ROW = {
    "one row": (X[:1], "Found array with 1 sample (", "of 1 given", "a minimum of 2 is required"),
    "one distinct row": (np.ones((9, 4)), "Found array with 1 sample (", "of 9 given"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(vae, case):
    data, error, *parts = BAD_DATA[case]
    new, fitted = quick(), quick()
    fitted.__dict__.update(vars(vae))
    for estimator in (new, fitted):
        assert_refused(estimator, lambda e=estimator: e.fit(data), error, *parts)
    assert_refused(new, lambda: new.partial_fit(data), error, *parts)
    for method in ("partial_fit", "transform", "posterior", "score_samples", "score"):
        if case != "no columns":  # then the number of columns is complained about
            assert_refused(fitted, lambda m=method: getattr(fitted, m)(data), error, *parts)


@pytest.mark.parametrize("case", ONE_ROW)
def test_one_row_is_not_enough(vae, case):
    data, *parts = ONE_ROW[case]
    new, fitted = quick(), quick()
    fitted.__dict__.update(vars(vae))
    for estimator in (new, fitted):
        assert_refused(estimator, lambda e=estimator: e.fit(data), ValueError, *parts)
    assert_refused(new, lambda: new.partial_fit(data), ValueError, *parts)
    fitted.partial_fit(data)  # where there are statistics already, a row is welcome
    assert fitted.n_iter_ == vae.n_iter_ + 1


def test_one_row_of_positive_weight_is_not_enough():
    weights = np.zeros(len(X))
    weights[3] = 2.0
    parts = "Found array with 1 sample (distinct rows of positive weight, of 150 given)"
    assert_refused(quick(), lambda: quick().fit(X, sample_weight=weights), ValueError, parts)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        (-1.5, ["sample_weight must not be negative, but holds -1.5 (row 0)."]),
        (np.r_[np.ones(149), -2.5], ["must not be negative, but holds -2.5 (row 149)."]),
        (np.zeros(150), ["sample_weight is all zero: at least one weight must be positive."]),
        (0, ["sample_weight is all zero"]),
        (np.r_[np.ones(149), np.nan], ["sample_weight contains NaN"]),
        (np.r_[np.ones(149), np.inf], ["sample_weight contains infinity"]),
        (np.ones(149), ["sample_weight has shape (149,), expected (150,)."]),
        (np.ones((150, 2)), ["sample_weight has shape (150, 2), expected (150,)."]),
    ],
    ids=["negative number", "negative", "all zero", "zero", "nan", "inf", "short", "wide"],
)
def test_bad_weights(vae, weights, parts):
    new, fitted = quick(), quick()
    fitted.__dict__.update(vars(vae))
    for estimator in (new, fitted):
        for method in (estimator.fit, estimator.partial_fit):
            call = lambda m=method: m(X, sample_weight=weights)  # noqa: E731
            assert_refused(estimator, call, ValueError, *parts)
    call = lambda: fitted.score(X, sample_weight=weights)  # noqa: E731
    assert_refused(fitted, call, ValueError, *parts)


def test_weights_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="could not convert string to float: 'heavy'"):
        quick().fit(X, sample_weight=["heavy"] * 150)


# scikit-learn 1.7 does not read the names of today's polars
NAMED = ["pandas", "polars"] if hasattr(VAETransformer, "set_callbacks") else ["pandas"]


@pytest.mark.parametrize("library", NAMED)
def test_tables_are_refused_by_name_and_names_survive(library):
    frames = pytest.importorskip(library)
    table = {name: X[:, j] for j, name in enumerate(["a", "b", "c", "d"])}
    estimator = quick().fit(frames.DataFrame(table))
    assert estimator.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    latents = estimator.transform(frames.DataFrame(table))

    other = {"z": X[:, 0]} | {name: table[name] for name in "bcd"}
    text = table | {"c": ["long"] * 150}
    infinite = table | {"c": with_cell(np.inf)[:, 2]}
    refused = [
        ("transform", other, ["Feature names unseen at fit time:\n- z"]),
        ("score_samples", {name: table[name] for name in "dcba"}, ["in the same order"]),
        ("transform", text, ["Column 'c' needs numbers", "categorical_features"]),
        ("fit", other | infinite, ["Column 'c' of X holds inf (row 7)"]),
        ("partial_fit", other, ["Feature names unseen at fit time:\n- z"]),
    ]
    for method, data, parts in refused:
        before = dict(vars(estimator))
        with pytest.raises(ValueError) as caught:
            getattr(estimator, method)(frames.DataFrame(data))
        for part in parts:
            assert part in str(caught.value)
        assert vars(estimator) == before
        assert estimator.feature_names_in_.tolist() == ["a", "b", "c", "d"]
        np.testing.assert_array_equal(estimator.transform(frames.DataFrame(table)), latents)


def test_bernoulli_data_outside_the_unit_interval():
    estimator = quick(likelihood="bernoulli").fit(BINARY)
    latents = estimator.transform(BINARY)
    wrong = BINARY.copy()
    wrong[5, 1] = 1.5
    for method in ("fit", "partial_fit", "transform", "score_samples"):
        with pytest.raises(ValueError) as caught:
            getattr(estimator, method)(wrong)
        for part in ("between 0 and 1", "column 1 holds 1.5 (row 5)", "likelihood='gaussian'"):
            assert part in str(caught.value)
    np.testing.assert_array_equal(estimator.transform(BINARY), latents)
    # what a fitted model accepts is up to its own family, not to a parameter changed since
    estimator.set_params(likelihood="gaussian")
    with pytest.raises(ValueError, match=r"column 1 holds 1\.5"):
        estimator.transform(wrong)


def test_bernoulli_error_names_the_column():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(BINARY.copy(), columns=["a", "b", "c", "d"])
    frame.loc[3, "c"] = -0.25
    with pytest.raises(ValueError, match=r"column 'c' holds -0\.25 \(row 3\)"):
        quick(likelihood="bernoulli").fit(frame)


@pytest.mark.parametrize("method", ["transform", "posterior", "score_samples", "score"])
def test_wrong_number_of_columns(vae, method):
    with pytest.raises(ValueError, match="X has 3 features, but VAETransformer is expecting 4"):
        getattr(vae, method)(X[:, :3])


def test_latents_that_are_not(vae):
    with pytest.raises(ValueError, match="Z has 3 columns, but this model has 2 components"):
        vae.inverse_transform(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="Input Z contains NaN"):
        vae.inverse_transform(np.full((5, 2), np.nan))
    for wrong, error in ((0, ValueError), (2.5, ValueError), ("two", TypeError)):
        with pytest.raises(
            error, match=re.escape(f"n_samples must be an integer of at least 1, got {wrong!r}.")
        ):
            vae.sample(wrong)


@pytest.mark.parametrize(
    "use",
    [
        lambda vae: vae.transform(X),
        lambda vae: vae.posterior(X),
        lambda vae: vae.inverse_transform(X[:, :2]),
        lambda vae: vae.sample(),
        lambda vae: vae.score_samples(X),
        lambda vae: vae.score(X),
        lambda vae: vae.get_feature_names_out(),
    ],
)
def test_unfitted_use(use):
    with pytest.raises(NotFittedError, match="This VAETransformer instance is not fitted yet"):
        use(quick())


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (
            {"decoder": nn.Linear(2, 3)},
            ValueError,
            "decoder must map (n, 2) to (n, 4), but (2, 2) became (2, 3), expected (2, 4).",
        ),
        (
            {"decoder": nn.Linear(2, 4), "noise": "heteroscedastic"},
            ValueError,
            "decoder must map (n, 2) to (n, 8), but (2, 2) became (2, 4), expected (2, 8).",
        ),
        (
            {"encoder": lambda n_in, n_out: nn.Linear(n_in, n_out // 2)},
            ValueError,
            "encoder must map (n, 4) to (n, 4), but (2, 4) became (2, 2), expected (2, 4).",
        ),
        (
            {"encoder": nn.Linear(7, 4)},
            ValueError,
            "encoder failed on an input of shape (2, 4)",
        ),
        (
            {"encoder": lambda n_in, n_out: "network"},
            TypeError,
            "encoder must return an nn.Module from (4, 4), got 'network'.",
        ),
    ],
    ids=["decoder", "decoder of spreads", "encoder", "input", "factory"],
)
def test_own_networks_that_do_not_fit(vae, parameters, error, message):
    new, fitted = quick(**parameters), quick()
    fitted.__dict__.update(vars(vae))
    fitted.set_params(**parameters)
    for estimator in (new, fitted):
        assert_refused(estimator, lambda e=estimator: e.fit(X), error, message)


# ------------------------------------------------------------------ what comes out


def test_transform_is_the_posterior_mean_and_never_a_draw(vae):
    latents = vae.transform(X)
    np.testing.assert_array_equal(vae.transform(X), latents)
    mean, std = vae.posterior(X)
    np.testing.assert_array_equal(mean, latents)
    assert std.shape == (150, 2)
    assert (std > 0).all()


@pytest.mark.parametrize("max_iter", [0, 200])
def test_kl_per_component_is_the_mean_over_the_training_rows(max_iter):
    estimator = quick(max_iter=max_iter, init="random").fit(X)
    mean, std = estimator.posterior(X)
    expected = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std)).mean(0)
    # computed in float32
    np.testing.assert_allclose(estimator.kl_per_component_, expected, rtol=1e-6, atol=1e-6)
    assert estimator.n_active_components_ == (expected > 0.01).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inverse_transform_has_shape_dtype_and_units(dtype):
    data = (X * [1e-3, 1.0, 1e3, 1e6] + [1e-2, -5.0, 1e5, 0.0]).astype(dtype)
    estimator = quick(n_components=4).fit(data)
    back = estimator.inverse_transform(estimator.transform(data))
    assert back.shape == data.shape
    assert back.dtype == dtype
    # as many components as columns: little is lost, in units of each column
    assert (np.abs(back - data).mean(0) < 0.35 * data.std(0)).all()


def test_integers_become_float64():
    data = np.round(X * 10).astype(int)
    estimator = quick().fit(data)
    assert estimator.transform(data).dtype == np.float64
    assert estimator.inverse_transform([[0, 1], [1, 0]]).dtype == np.float64
    np.testing.assert_array_equal(
        estimator.transform(data), quick().fit(data.astype(float)).transform(data)
    )


def test_float32_agrees_with_float64(vae):
    narrow = X.astype(np.float32)
    np.testing.assert_allclose(vae.transform(narrow), vae.transform(X), atol=1e-5)
    np.testing.assert_allclose(vae.score_samples(narrow), vae.score_samples(X), atol=1e-3)
    assert vae.score_samples(narrow).dtype == np.float32


def test_score_is_the_mean_of_score_samples(vae):
    log_prob = vae.score_samples(X)
    assert log_prob.shape == (150,)
    assert type(vae.score(X)) is float
    assert vae.score(X) == float(np.average(log_prob))
    weights = np.arange(150.0)
    assert vae.score(X, sample_weight=weights) == pytest.approx(weights @ log_prob / weights.sum())
    assert type(vae.score(X.astype(np.float32))) is float


def test_number_of_score_samples_is_read_at_the_call():
    estimator = quick().fit(X)
    many = estimator.score_samples(X)
    few = estimator.set_params(n_score_samples=1).score_samples(X)
    assert not np.array_equal(few, many)
    estimator.set_params(n_score_samples=0)
    with pytest.raises(ValueError, match="n_score_samples must be an integer of at least 1, got 0"):
        estimator.score_samples(X)


def test_samples():
    estimator = quick(max_iter=0, noise="homoscedastic", precision_power=1.0).fit(X)
    assert estimator.sample().shape == (1, 4)
    assert estimator.sample(7).shape == (7, 4)
    same = estimator.sample(7, random_state=3)
    np.testing.assert_array_equal(estimator.sample(7, random_state=3), same)
    assert not np.array_equal(estimator.sample(7, random_state=4), same)
    assert not np.array_equal(estimator.sample(7), estimator.sample(7))
    state = np.random.RandomState(0)
    assert not np.array_equal(
        estimator.sample(7, random_state=state), estimator.sample(7, random_state=state)
    )
    # the linear start's marginal is N(mean, W W' + noise), and its diagonal the data's variance
    n = 20_000
    draws = estimator.sample(n, random_state=0)
    error = X.std(0) / math.sqrt(n)
    assert (np.abs(draws.mean(0) - X.mean(0)) < 4 * error).all()
    assert (np.abs(draws.var(0) / X.var(0) - 1) < 4 * math.sqrt(2 / n) + 1e-2).all()


def test_bernoulli_samples_and_means():
    estimator = quick(likelihood="bernoulli").fit(BINARY)
    assert set(np.unique(estimator.sample(200, random_state=0))) == {0.0, 1.0}
    means = estimator.inverse_transform(estimator.transform(BINARY))
    assert ((means > 0) & (means < 1)).all()
    assert (estimator.score_samples(BINARY) < 0).all()
    assert not hasattr(estimator, "noise_variance_")


def test_attributes_of_another_family_do_not_linger():
    estimator = quick().fit(BINARY)
    assert estimator.noise_variance_.shape == (4,)
    estimator.set_params(likelihood="bernoulli").fit(BINARY)
    assert not hasattr(estimator, "noise_variance_")


def test_batches_do_not_show(vae, monkeypatch):
    results = [vae.transform(X), vae.score_samples(X), vae.inverse_transform(vae.transform(X))]
    draws = vae.sample(50, random_state=0)
    monkeypatch.setattr("skvae.workspace.WORKSPACE", 40)  # a few rows at a time
    again = [vae.transform(X), vae.score_samples(X), vae.inverse_transform(results[0])]
    for one, other in zip(results, again, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9)
    assert vae.sample(50, random_state=0).shape == draws.shape


def test_units_that_are_powers_of_two():
    factors = 2.0 ** np.array([-20, 3, 0, 40])
    estimator, scaled = quick().fit(X), quick().fit(X * factors)
    np.testing.assert_array_equal(scaled.transform(X * factors), estimator.transform(X))
    shift = np.log(factors).sum()
    np.testing.assert_allclose(
        scaled.score_samples(X * factors), estimator.score_samples(X) - shift, rtol=1e-12
    )
    np.testing.assert_allclose(
        scaled.noise_variance_, estimator.noise_variance_ * factors**2, rtol=1e-12
    )
    np.testing.assert_allclose(scaled.loss_curve_, np.add(estimator.loss_curve_, shift), rtol=1e-9)
    assert scaled.best_validation_score_ == pytest.approx(
        estimator.best_validation_score_ - shift, rel=1e-9
    )


def test_histories():
    estimator = quick().fit(X)
    assert len(estimator.loss_curve_) == len(estimator.validation_scores_) == estimator.n_iter_ > 0
    assert all(type(value) is float for value in estimator.loss_curve_)
    assert estimator.best_validation_score_ >= max(estimator.validation_scores_)
    estimator = quick(early_stopping=False).fit(X)
    assert estimator.validation_scores_ == []
    assert estimator.best_validation_score_ is None


def test_verbose_prints_what_the_histories_say(capsys):
    estimator = quick(verbose=1).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == estimator.n_iter_
    for i, line in enumerate(lines):
        epoch, loss, score, kl, left = map(float, re.findall(r"-?\d+(?:\.\d+)?", line))
        assert epoch == i + 1
        assert loss == pytest.approx(-estimator.loss_curve_[i], abs=1e-4)
        assert score == pytest.approx(estimator.validation_scores_[i], abs=1e-4)
        assert 0 < kl < 20
        assert left >= 0
    assert len({len(line) for line in lines}) == 1  # aligned
    whole = quick(verbose=1, max_iter=2, early_stopping=False, tol=0)
    with pytest.warns(ConvergenceWarning, match="max_iter=2 was reached"):
        whole.fit(X)
    assert capsys.readouterr().out.splitlines()[-1].endswith("at most      0 s left")
    quick().fit(X)
    assert capsys.readouterr().out == ""


def test_partial_fit_learns_and_keeps_the_first_batch_statistics():
    parts = np.array_split(X[np.random.RandomState(0).permutation(150)], 3)
    estimator = quick(init="random", learning_rate_init=1e-2, noise="homoscedastic")
    for _ in range(10):
        for part in parts:
            estimator.partial_fit(part)
    assert estimator.n_iter_ == len(estimator.loss_curve_) == 30
    assert np.mean(estimator.loss_curve_[-3:]) < np.mean(estimator.loss_curve_[:3]) - 1
    np.testing.assert_allclose(estimator.module_.likelihood.shift, parts[0].mean(0), rtol=1e-14)
    np.testing.assert_allclose(estimator.module_.likelihood.scale, parts[0].std(0), rtol=1e-13)


def test_partial_fit_repeats_no_warning_of_the_fit_before():
    estimator = quick(max_iter=1, tol=0.0, early_stopping=False)
    with pytest.warns(ConvergenceWarning):
        estimator.fit(X)
    estimator.partial_fit(X)  # a warning would be an error


# ------------------------------------------------------------------ hard data

RNG = np.random.RandomState(0)
NORMAL = RNG.normal(size=(60, 4))
HARD = {
    "constant column": np.c_[NORMAL, np.full(60, 3.7)],
    "all but one column constant": np.c_[np.arange(60.0), np.zeros((60, 3))],
    "duplicated column": np.c_[NORMAL, NORMAL[:, 0]],
    "collinear columns": np.c_[NORMAL, NORMAL @ [1.0, 2.0, 3.0, 4.0]],
    "fewer rows than columns": RNG.normal(size=(6, 20)),
    "one column": NORMAL[:, :1],
    "two rows": NORMAL[:2],
    "three rows": NORMAL[:3],
    "outlier": np.vstack([NORMAL, [1e6, 0.0, 0.0, -1e6]]),
    "huge": NORMAL * 1e300,
    "tiny": NORMAL * 1e-300,
    "subnormal": NORMAL * 1e-310,
    "all units": NORMAL * [1e-300, 1e-100, 1e100, 1e300],
    "far from zero": NORMAL + 1e12,
    "booleans": NORMAL > 0,
    "integers": RNG.randint(0, 4, (60, 4)),
}
MODELS = {
    "default": {},
    "start": {"max_iter": 0},
    "wide": {"n_components": 7, "noise": "homoscedastic"},
    "heteroscedastic": {"noise": "heteroscedastic"},
    "squared error": {"noise": 0.5, "early_stopping": False},
    "random": {"init": "random", "tol": 1e6},
}


@pytest.mark.parametrize("data", HARD)
@pytest.mark.parametrize("model", MODELS)
def test_hard_data(data, model):
    rows = HARD[data]
    estimator = quick(**{"tol": 1.0} | MODELS[model]).fit(rows)
    latents = estimator.transform(rows)
    results = {
        "latents": latents,
        "density": estimator.score_samples(rows),
        "reconstruction": estimator.inverse_transform(latents),
        "draws": estimator.sample(50, random_state=0),
        "kl": estimator.kl_per_component_,
        "losses": estimator.loss_curve_,
        "scores": estimator.validation_scores_,
    }
    assert [name for name, values in results.items() if not np.isfinite(values).all()] == []
    assert (estimator.noise_variance_ >= 0).all()


def test_constant_columns_come_back_exactly_from_the_start():
    estimator = quick(max_iter=0).fit(HARD["constant column"])
    back = estimator.inverse_transform(estimator.transform(HARD["constant column"]))
    assert (back[:, 4] == 3.7).all()


def test_components_beyond_the_columns_stay_at_the_prior():
    estimator = quick(n_components=7, max_iter=0).fit(NORMAL)
    mean, std = estimator.posterior(NORMAL)
    idle = estimator.kl_per_component_ == 0
    assert idle.sum() >= 3
    assert (mean[:, idle] == 0).all()
    assert (std[:, idle] == 1).all()
    assert estimator.n_active_components_ <= 4


# ------------------------------------------------------------------ when training goes wrong


@pytest.mark.parametrize(
    ("early_stopping", "what"),
    [(True, "the held-out bound still rose"), (False, "the loss still fell")],
)
def test_too_few_epochs_warn_at_the_callers_line(early_stopping, what):
    estimator = quick(init="random", max_iter=2, tol=0.0, early_stopping=early_stopping)
    with pytest.warns(ConvergenceWarning) as caught:
        estimator.fit(X)
    (warning,) = caught
    message = f"max_iter=2 was reached while {what}. Raise max_iter or learning_rate_init."
    assert str(warning.message) == message
    assert warning.filename == __file__
    assert estimator.n_iter_ == 2


def test_a_rise_that_does_not_count_warns_of_nothing():
    estimator = quick(init="random", max_iter=2, tol=100.0).fit(X)
    first, last = estimator.validation_scores_
    assert first < last < first + 100
    assert estimator.n_iter_ == 2


def test_a_warning_made_an_error_leaves_the_estimator_as_it_was():
    estimator = quick(init="random", max_iter=2, tol=0.0)
    before = dict(vars(estimator))
    with pytest.raises(ConvergenceWarning):  # pytest turns warnings into errors
        estimator.fit(X)
    assert vars(estimator) == before


def elbo(estimator):
    """What training raises: nats per row, standardised units."""
    targets = torch.from_numpy(estimator.module_.likelihood.standardize(X))
    noise = torch.randn(150, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        return -float(estimator.module_(targets, noise).mean())


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("noise", ["auto", "homoscedastic"])
def test_interruption_keeps_the_best_weights(early_stopping, noise):
    calls = []

    def interrupt(out):
        calls.append(1)
        if len(calls) == 400:
            raise KeyboardInterrupt
        return out

    parameters = {
        "init": "random",
        "early_stopping": early_stopping,
        "noise": noise,
        "batch_size": 32,
        "n_iter_no_change": 50,
    }
    estimator = quick(decoder=with_fault(interrupt), **parameters)
    with pytest.warns(ConvergenceWarning) as caught:
        estimator.fit(X)
    assert len(calls) == 400  # nothing is trained afterwards
    epochs = len(estimator.loss_curve_)
    assert estimator.n_iter_ == epochs > 1
    (warning,) = caught
    message = f"Interrupted after {epochs} epochs: the best weights so far are kept."
    assert str(warning.message) == message
    assert warning.filename == __file__
    if early_stopping:
        assert estimator.best_validation_score_ == max(estimator.validation_scores_)
    start = quick(decoder=with_fault(lambda out: out), **parameters, max_iter=0).fit(X)
    assert np.isfinite(estimator.score(X))
    if noise == "homoscedastic":  # "auto" trains another spread than the one it ends with
        assert elbo(estimator) > elbo(start) + 1


@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_loss_that_is_not_finite_at_times_is_overcome(early_stopping):
    calls = []

    def break_down(out):
        calls.append(1)
        return out * math.nan if len(calls) in (7, 30) else out

    parameters = {
        "init": "random",
        "early_stopping": early_stopping,
        "batch_size": 32,
        "learning_rate_init": 1e-2,
        "n_iter_no_change": 6,
    }
    estimator = quick(decoder=with_fault(break_down), **parameters).fit(X)
    assert np.isnan(estimator.loss_curve_).sum() == 2
    assert np.isfinite(estimator.transform(X)).all()
    # it goes on learning after that
    curve = estimator.validation_scores_ if early_stopping else -np.array(estimator.loss_curve_)
    assert np.nanmax(curve[6:]) > curve[0]


@pytest.mark.parametrize("fitted", [False, True], ids=["new", "fitted"])
def test_a_loss_that_is_never_finite_is_an_error(vae, fitted):
    estimator = quick()
    if fitted:
        estimator.__dict__.update(vars(vae))
    estimator.set_params(decoder=with_fault(lambda out: out * math.nan), n_iter_no_change=20)
    parts = (
        "Training did not stay finite: the loss was not finite 6 times",
        "at a learning rate of",
        "Try a smaller learning_rate_init",
        "noise_floor",
    )
    assert_refused(estimator, lambda: estimator.fit(X), ValueError, *parts)
    if not fitted:
        parts = ("did not stay finite: the loss of this pass was nan", "learning_rate_init")
        assert_refused(estimator, lambda: estimator.partial_fit(X), ValueError, *parts)


def test_an_error_in_an_own_network_at_inference_leaves_torch_alone():
    broken = []

    class Breaking(nn.Linear):
        def forward(self, x):
            if broken:
                raise RuntimeError("broken")
            return super().forward(x)

    estimator = quick(encoder=Breaking(4, 4)).fit(X)
    broken.append(True)
    for method in (estimator.transform, estimator.score_samples):
        with pytest.raises(RuntimeError, match="broken"):
            method(X)
        assert torch.is_grad_enabled()


# ------------------------------------------------------------------ no side effects


def dropping_network(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 8), nn.Dropout(0.5), nn.Linear(8, n_out))


def use_all(**parameters):
    estimator = quick(**parameters).fit(X)
    estimator.partial_fit(X)
    estimator.transform(X)
    estimator.score(X)
    estimator.sample(3)
    return estimator


@pytest.mark.parametrize("random_state", [None, 0], ids=repr)
@pytest.mark.parametrize(
    "networks",
    [{}, {"encoder": dropping_network, "decoder": dropping_network}, {"dropout": 0.5}],
    ids=["built in", "own", "dropout"],
)
def test_global_generators_are_left_alone(random_state, networks):
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    use_all(random_state=random_state, **networks)
    for now, before in zip(np.random.get_state(), numpy_state, strict=True):
        np.testing.assert_array_equal(now, before)
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(
    "networks", [{}, {"encoder": dropping_network, "decoder": dropping_network}]
)
def test_global_generators_are_not_read(networks):
    torch_state = torch.get_rng_state()
    try:
        torch.manual_seed(1)
        first = quick(**networks).fit(X).transform(X)
        torch.manual_seed(2)
        second = quick(**networks).fit(X).transform(X)
    finally:
        torch.set_rng_state(torch_state)
    np.testing.assert_array_equal(first, second)


def test_no_random_state_means_a_fresh_one():
    one, other = (quick(random_state=None, init="random").fit(X).transform(X) for _ in range(2))
    assert not np.array_equal(one, other)


def test_a_random_state_instance_is_drawn_from():
    state = np.random.RandomState(0)
    one, other = (quick(random_state=state, init="random").fit(X).transform(X) for _ in range(2))
    assert not np.array_equal(one, other)
    again = quick(random_state=np.random.RandomState(0), init="random").fit(X).transform(X)
    np.testing.assert_array_equal(again, one)


def test_torch_settings_are_left_alone():
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    plain = use_all()
    try:
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        other = use_all()
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    assert torch.is_grad_enabled()
    # small models are trained in one thread and in float32, whatever the settings
    np.testing.assert_allclose(other.transform(X), plain.transform(X), rtol=1e-9)


def test_warning_filters_are_left_alone():
    before = list(warnings.filters)
    use_all()
    assert warnings.filters == before


def test_inputs_are_left_alone():
    data, weights = X.copy(), np.arange(1.0, 151.0)
    data.flags.writeable = weights.flags.writeable = False
    estimator = quick().fit(data, sample_weight=weights)
    estimator.partial_fit(data, sample_weight=weights)
    estimator.inverse_transform(estimator.transform(data))
    estimator.score(data, sample_weight=weights)


# ------------------------------------------------------------------ the documentation


def documented(section):
    """Names and descriptions of types in a section of the class's docstring."""
    doc = re.sub(r"\\\n +", "", inspect.cleandoc(VAETransformer.__doc__))  # long lines joined
    body = re.search(rf"^{section}\n-+\n(.*?)(?=^\w[^\n]*\n---)", doc, re.M | re.S).group(1)
    entries = re.findall(r"^(\w+(?:, \w+)*) : (.+)$", body, re.M)
    return {name: kind for names, kind in entries for name in names.split(", ")}


def test_every_parameter_is_documented_with_its_default():
    signature = inspect.signature(VAETransformer).parameters
    parameters = documented("Parameters")
    assert list(parameters) == list(signature)
    for name, kind in parameters.items():
        default = ast.literal_eval(re.search(r"default=(.+)$", kind).group(1))
        assert default == signature[name].default, name
        assert type(default) is type(signature[name].default), name


def test_every_option_is_documented():
    parameters = documented("Parameters")
    options = {
        "activation": tuple(skvae.settings.ACTIVATIONS),
        "init": skvae.settings.INITS,
        "noise": skvae.settings.NOISES,
    }
    for name, values in options.items():
        listed = ast.literal_eval(re.match(r"\{.*?\}", parameters[name]).group(0))
        assert listed == set(values), name
    text = inspect.getdoc(VAETransformer)
    families = text.split("likelihood : ")[1].split("categorical_features : ")[0]
    named = set(re.findall(r'"(\w+)"', families))
    assert named == {"auto", *skvae.settings.FAMILIES}


def test_every_attribute_is_documented():
    pd = pytest.importorskip("pandas")
    estimator = quick().fit(pd.DataFrame(X, columns=list("abcd")))
    fitted = {name for name in vars(estimator) if name.endswith("_") and not name.startswith("_")}
    estimator.sample(given={"a": 5.0})
    sampled = {"effective_sample_size_"}
    assert set(documented("Attributes")) == fitted | sampled


# ------------------------------------------------------------------ what a sceptic tried


def test_far_rows_are_impossible_not_undefined():
    estimator = quick().fit(X)
    for dtype, far in ((np.float32, 1e20), (np.float64, 1e170)):
        assert estimator.score_samples(np.full((1, X.shape[1]), far, dtype))[0] == -np.inf


@pytest.mark.parametrize("exponent", [1023, -1060, -3])
def test_only_the_ratios_of_weights_matter(exponent):
    # eighths: exact in every unit, where floats are subnormal too
    other = np.ldexp(EIGHTHS, exponent)
    assert np.isfinite(other).all() and (other > 0).all()
    estimator = quick().fit(X, sample_weight=EIGHTHS)
    far = quick().fit(X, sample_weight=other)
    np.testing.assert_array_equal(far.score_samples(X), estimator.score_samples(X))
    assert far.score(X, sample_weight=other) == estimator.score(X, sample_weight=EIGHTHS)


def test_a_factor_of_all_weights_does_not_matter():
    linear = {"max_iter": 0, "noise": "isotropic", "precision_power": 0}  # in closed form
    estimator = quick(**linear).fit(X, sample_weight=EIGHTHS)
    other = quick(**linear).fit(X, sample_weight=0.3 * EIGHTHS)
    np.testing.assert_allclose(other.score_samples(X), estimator.score_samples(X), rtol=1e-9)


def test_partial_fit_takes_the_present_learning_rate():
    estimator = quick(noise="isotropic").partial_fit(X)
    before = estimator.transform(X)
    estimator.set_params(learning_rate_init=1e-12).partial_fit(X)
    np.testing.assert_allclose(estimator.transform(X), before, rtol=0, atol=1e-8)


def test_a_score_that_only_fell_asks_for_no_more_epochs(monkeypatch):
    monkeypatch.setattr(skvae.judging, "judge", lambda *args: next(falling))
    falling = (torch.full((15,), float(-i)) for i in range(1000))
    quick(max_iter=3).fit(X)  # a warning would be an error


@pytest.mark.parametrize("training", [2, 3])
def test_interruption_of_a_later_training_keeps_the_first(training, monkeypatch):
    """The second training is the decoder's alone, the third on all rows."""
    X, trainer = curved(), skvae.training.Trainer
    original, seen, kept = trainer.epoch, [], []

    def epoch(self, rows, number=0):
        if isinstance(self.module, skvae.vae.VAE) and self.module not in seen:
            seen.append(self.module)
        if len(seen) == training:
            kept.extend(copy.deepcopy(module) for module in seen[:1])
            raise KeyboardInterrupt
        return original(self, rows, number)

    monkeypatch.setattr(trainer, "epoch", epoch)
    monkeypatch.setattr(skvae.judging, "proven", lambda gains: True)
    estimator = quick(n_components=1, max_iter=30, n_iter_no_change=30, learning_rate_init=2e-2)
    estimator.set_params(noise="isotropic")
    with pytest.warns(ConvergenceWarning, match="Interrupted"):
        estimator.fit(X)
    assert len(seen) == training
    assert estimator.n_iter_ > 1 and not estimator.linear_encoder_
    for found, first in zip(
        estimator.module_.parameters(), kept[0].double().parameters(), strict=True
    ):
        torch.testing.assert_close(found, first)


def test_a_callback_that_stops_stops_all_training(monkeypatch):
    trainings = []
    original = skvae.training.Trainer.fit

    def fit(self, *args, **options):
        trainings.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(skvae.training.Trainer, "fit", fit)
    monkeypatch.setattr(
        VAETransformer, "_on_epoch", lambda self, *args: lambda *epoch: epoch[0] == 3
    )
    estimator = quick(n_components=1, max_iter=30, n_iter_no_change=30, learning_rate_init=2e-2)
    estimator.set_params(noise="isotropic")
    estimator.fit(curved())
    assert estimator.n_iter_ == 3
    assert len(trainings) == 1


@pytest.mark.parametrize("stage", ["replay", "spread"])
def test_interruption_in_a_later_stage_keeps_a_usable_model(stage, monkeypatch):
    trainer = skvae.training.Trainer
    original, fits = trainer.epoch, []

    def epoch(self, rows, number=0):
        later = self.module is not fits[0] if fits else False
        if not fits:
            fits.append(self.module)
        is_vae = isinstance(self.module, skvae.vae.VAE)
        if later and is_vae == (stage == "replay"):
            raise KeyboardInterrupt
        return original(self, rows, number)

    monkeypatch.setattr(trainer, "epoch", epoch)
    estimator = quick(max_iter=30, learning_rate_init=1e-2, random_state=5)
    with pytest.warns(ConvergenceWarning, match="Interrupted"):
        estimator.fit(curved())
    assert np.isfinite(estimator.transform(curved())).all()
    assert np.isfinite(estimator.score(curved()))


@pytest.mark.parametrize("call", [0, 3, 7])
def test_interruption_between_trainings_keeps_a_usable_model(call, monkeypatch):
    original, calls = skvae.spread.posteriors, []

    def posteriors(*args):
        calls.append(args)
        if len(calls) > call:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(skvae.spread, "posteriors", posteriors)
    estimator = quick(max_iter=30, learning_rate_init=1e-2, random_state=5)
    with pytest.warns(ConvergenceWarning, match="Interrupted"):
        estimator.fit(curved())
    assert len(calls) == call + 1
    assert np.isfinite(estimator.transform(curved())).all()
    assert np.isfinite(estimator.score(curved()))


def curved():
    random = np.random.RandomState(0)
    t = random.normal(size=300)
    return np.c_[t, t**2, np.sin(2 * t)] + 0.1 * random.normal(size=(300, 3))


def test_a_second_training_that_diverges_leaves_the_first(monkeypatch):
    monkeypatch.setattr(skvae.training.Trainer, "replay", lambda self, rows, path: False)
    estimator = quick(
        max_iter=30, n_iter_no_change=9, learning_rate_init=1e-2, noise="isotropic"
    ).fit(curved())
    assert estimator.best_validation_score_ > estimator.validation_scores_[0]
    assert np.isfinite(estimator.transform(curved())).all()


@pytest.mark.filterwarnings("ignore:max_iter=3 was reached")
def test_a_users_edited_network_is_trained_as_it_is():
    network = mlp(4, 4, (8,), "relu", 0.0, torch.Generator().manual_seed(0))
    torch.nn.utils.parametrizations.weight_norm(network[0])
    network[1] = torch.nn.LeakyReLU()
    network.append(torch.nn.Tanh())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    estimator = quick(encoder=network, init="random", max_iter=3).fit(X)
    after = estimator.module_.encoder.network.state_dict()
    for name, value in before.items():
        assert not torch.equal(after[name].float(), value), name


def test_fit_works_where_the_caller_switched_gradients_off():
    expected = quick().fit(X).transform(X)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            estimator = quick().fit(X)
        np.testing.assert_array_equal(estimator.transform(X), expected)


# ---------------------------------------------------------------- single precision


@pytest.mark.parametrize("likelihood", ["auto", "log_normal", "student_t"])
def test_float32_rows_far_from_zero(likelihood):
    """Their differences are exact in single precision, whatever the mean."""
    noise = np.random.default_rng(0).normal(size=(300, 4))
    noise[:, 1] += noise[:, 0]
    rows = (1e6 + 1e3 * noise).astype(np.float32)
    vae = quick(likelihood=likelihood, max_iter=0).fit(rows)
    np.testing.assert_allclose(vae.transform(rows), vae.transform(rows.astype(float)), atol=2e-5)
    np.testing.assert_allclose(
        vae.score_samples(rows), vae.score_samples(rows.astype(float)), atol=2e-3
    )
    Z = vae.transform(rows)
    expected = vae.inverse_transform(Z.astype(float))
    np.testing.assert_allclose(vae.inverse_transform(Z), expected, rtol=3e-7)


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli", "gaussian"])
def test_rows_in_any_memory_order(likelihood):
    rows = np.random.default_rng(0).integers(0, 2, (70, 3)).astype(np.float32)
    vae = quick(likelihood=likelihood, max_iter=0).fit(rows)
    expected = vae.transform(rows)
    np.testing.assert_array_equal(vae.transform(rows[::-1]), expected[::-1])
    np.testing.assert_allclose(vae.transform(rows[::-1][:1]), expected[-1:], atol=1e-6)
    fields = np.zeros(2, dtype=[("name", "S1"), ("cells", "f4", (3,))])  # 13 bytes a row
    fields["cells"] = rows[:2]
    np.testing.assert_allclose(vae.transform(fields["cells"][1:]), expected[1:2], atol=1e-6)
    frozen = np.asfortranarray(rows)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(vae.transform(frozen), expected)


def test_a_function_s_network_is_a_copy():
    """What a function gives may be kept elsewhere, and be trained already."""
    kept = torch.nn.Linear(2, 4)
    before = [p.detach().clone() for p in kept.parameters()]
    quick(decoder=lambda n_in, n_out: kept, max_iter=2, noise="homoscedastic").fit(X)
    for one, other in zip(before, kept.parameters(), strict=True):
        assert torch.equal(one, other)
