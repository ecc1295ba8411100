"""Tables of any shape, type, scale and memory layout; threads and processes; hard ground."""

import copy
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae.outlier import _offset

pytestmark = pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning")


def few(n):
    """So many examples, the same ones each time."""
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=slow
    )


def quick(**parameters):
    options = {"max_iter": 2, "hidden_layer_sizes": (4,), "noise": "homoscedastic"}
    return VAETransformer(**{**options, "n_score_samples": 16, "random_state": 0, **parameters})


def distinct(X):
    """Whether two rows differ."""
    return len({row.tobytes() for row in np.where(np.isnan(X), np.nan, X + 0.0)}) > 1


@st.composite
def tables(draw, dtypes=("float64", "float32", "int64", "int8", "bool"), gaps=True):
    """Columns of one type, each in a unit of its own; copies, constants and gaps among them."""
    n, d = draw(st.integers(2, 60)), draw(st.integers(1, 6))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    X = random.normal(size=(n, d))
    if dtype.kind == "f":
        most = 300 if dtype == np.float64 else 30
        X *= 10.0 ** np.array(draw(st.lists(st.integers(-most, most), min_size=d, max_size=d)))
    elif dtype.kind == "i":
        X = (X * 20).round().clip(-100, 100)
    else:
        X = X > 0
    X = X.astype(dtype)
    if draw(st.booleans()):
        X[:, -1] = X[0, -1]  # constant
    if draw(st.booleans()):
        X[:, -1] = X[:, 0]
    if draw(st.booleans()):
        X[n // 2 :] = X[: n - n // 2]
    if gaps and dtype.kind == "f" and draw(st.booleans()):
        X[random.uniform(size=X.shape) < 0.2] = np.nan
    assume(distinct(X))
    return X


def results(model, X):
    Z = model.transform(X)
    return {
        "latents": Z,
        "reconstruction": model.inverse_transform(Z),
        "density": model.score_samples(X),
        "cells": model.score_cells(X[:3]),
        "draws": model.sample(3, random_state=0),
    }


def assert_same(one, other):
    for name, values in one.items():
        np.testing.assert_array_equal(other[name], values, err_msg=name)


# ---------------------------------------------------------------- any table


@few(40)
@given(tables(), st.sampled_from(["homoscedastic", "heteroscedastic", "isotropic"]))
def test_any_table_is_fitted_and_all_results_are_numbers(X, noise):
    model = quick(noise=noise).fit(X)
    dtype = np.float32 if X.dtype == np.float32 else np.float64
    found = results(model, X)
    n, d = X.shape
    for name, shape in {"latents": (n, 2), "reconstruction": (n, d), "density": (n,)}.items():
        assert found[name].shape == shape
        assert found[name].dtype == dtype
        assert np.isfinite(found[name]).all(), name
    assert found["draws"].shape == (3, d)
    assert np.isfinite(found["draws"]).all()
    np.testing.assert_array_equal(np.isfinite(found["cells"]), ~np.isnan(X[:3].astype(float)))
    assert model.summary().startswith("VAETransformer(")
    assert "nan" not in model.summary()


@few(20)
@given(tables(), st.data())
def test_memory_layouts_give_the_same_bits(X, data):
    n, d = X.shape
    wide = np.zeros((2 * n, 3 * d), dtype=X.dtype)
    wide[::2, ::3] = X
    read_only = X.copy()
    read_only.flags.writeable = False
    layouts = {
        "F": np.asfortranarray(X),
        "strided": wide[::2, ::3],
        "backwards": X[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": read_only,
    }
    name = data.draw(st.sampled_from(sorted(layouts)))
    Y = layouts[name]
    expected = results(quick().fit(X), X)
    model = quick().fit(Y)
    assert_same(expected, results(model, Y))
    Z = expected["latents"]
    for view in (Z[::-1].copy()[::-1], np.asfortranarray(Z)):
        np.testing.assert_array_equal(model.inverse_transform(view), expected["reconstruction"])


@few(25)
@given(tables(("float64",)), st.data())
def test_a_unit_that_is_a_power_of_two_shifts_scores_by_its_logarithm(X, data):
    d = X.shape[1]
    powers = np.array(data.draw(st.lists(st.integers(-30, 30), min_size=d, max_size=d)))
    assume(np.nanmax(np.abs(X)) < 1e290 and np.nanmin(np.abs(X[X != 0]), initial=1) > 1e-290)
    one = quick().fit(X)
    other = quick().fit(np.ldexp(X, powers))
    np.testing.assert_array_equal(other.transform(np.ldexp(X, powers)), one.transform(X))
    # a constant column has no unit
    lowest, highest = np.fmin.reduce(X), np.fmax.reduce(X)
    shift = ((~np.isnan(X)) & (lowest < highest)) @ (powers * np.log(2))
    scores = one.score_samples(X)
    np.testing.assert_allclose(
        other.score_samples(np.ldexp(X, powers)), scores - shift, rtol=1e-11, atol=1e-9
    )


@few(25)
@given(tables(("float64", "float32")), st.data())
def test_constant_columns_are_reproduced(X, data):
    value = X.dtype.type(data.draw(st.sampled_from([0.0, 3.7, -1e-12, 1e20])))
    j = data.draw(st.integers(0, X.shape[1] - 1))
    X[:, j] = np.where(np.isnan(X[:, j]), np.nan, value)
    assume(distinct(X) and not np.isnan(X[:, j]).all())
    model = quick(max_iter=0).fit(X)
    back = model.inverse_transform(model.transform(X))[:, j]
    assert (back == value).all()


@few(25)
@given(tables(("float64", "float32")), st.data())
def test_a_refused_fit_names_the_column_and_changes_nothing(X, data):
    row, j = (data.draw(st.integers(0, size - 1)) for size in X.shape)
    wrong = X.copy()
    wrong[row, j] = data.draw(st.sampled_from([np.inf, -np.inf]))
    fitted = quick(max_iter=0).fit(X)
    for estimator in (fitted, quick(), VAEOutlierDetector(quick()), VAEImputer(quick())):
        before = dict(vars(estimator))
        with pytest.raises(ValueError, match=rf"Column {j} of X holds -?inf \(row {row}\)"):
            estimator.fit(wrong)
        assert vars(estimator) == before


@few(25)
@given(tables(), st.sampled_from(["auto", 0.05, 0.3, 0.5]))
def test_outliers_are_rows_below_the_threshold_whatever_is_beside_them(X, contamination):
    detector = VAEOutlierDetector(quick(), contamination=contamination).fit(X)
    predicted, decision = detector.predict(X), detector.decision_function(X)
    np.testing.assert_array_equal(predicted, np.where(decision < 0, -1, 1))
    assert np.isfinite(detector.offset_)
    if contamination != "auto":
        assert (predicted == -1).mean() <= contamination
    alone = [int(detector.predict(row[None])[0]) for row in X[:5]]
    assert alone == predicted[:5].tolist()
    surprise = detector.contributions(X[:3])
    np.testing.assert_array_equal(np.isnan(surprise), np.isnan(X[:3].astype(float)))


@few(25)
@given(tables(("float64", "float32")), st.booleans())
def test_observed_cells_are_kept_to_the_bit(X, backwards):
    X = X[::-1] if backwards else X
    filled = VAEImputer(quick()).fit(X).transform(X)
    assert filled.dtype == X.dtype
    seen = ~np.isnan(X)
    assert filled[seen].tobytes() == X[seen].tobytes()
    assert np.isfinite(filled).all()


# ---------------------------------------------------------------- threads and processes

NUMBERS = np.random.default_rng(0).normal(size=(60, 3))
NUMBERS[::7, 1] = np.nan


def network(n_in, n_out):
    """Draws its weights and its dropout from torch's global generator."""
    return torch.nn.Sequential(
        torch.nn.Linear(n_in, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, n_out)
    )


JOBS = [{}, {"prior": "vamp"}, {"encoder": network}, {"random_state": 1}]


def job(parameters):
    with warnings.catch_warnings():  # in a process, pytest's filters are not there
        warnings.simplefilter("ignore", ConvergenceWarning)
        return results(quick(**parameters).fit(NUMBERS), NUMBERS)


def threaded(parameters):
    return results(quick(**parameters).fit(NUMBERS), NUMBERS)


@pytest.mark.parametrize("backend", ["threading", "loky", "multiprocessing"])
def test_threads_and_processes_give_the_same_bits(backend):
    plain = [threaded(parameters) for parameters in JOBS]
    task = threaded if backend == "threading" else job
    found = Parallel(n_jobs=2, backend=backend)(delayed(task)(parameters) for parameters in JOBS)
    for one, other in zip(plain, found, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("prior", ["normal", "vamp"])
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "cloudpickle"])
def test_copies_are_the_same_model_and_go_on_alike(how, prior):
    model = quick(prior=prior, warm_start=True).fit(NUMBERS)
    if how == "cloudpickle":
        cloudpickle = pytest.importorskip("cloudpickle")
        twin = pickle.loads(cloudpickle.dumps(model))
    else:
        twin = pickle.loads(pickle.dumps(model)) if how == "pickle" else copy.deepcopy(model)
    assert twin.module_ is twin._fit.module
    assert_same(results(model, NUMBERS), results(twin, NUMBERS))
    before = results(model, NUMBERS)
    further = results(twin.fit(NUMBERS), NUMBERS)
    assert_same(before, results(model, NUMBERS))  # nothing is shared
    assert_same(further, results(model.fit(NUMBERS), NUMBERS))


def test_one_model_serves_many_threads():
    model = quick(prior="vamp").fit(NUMBERS)
    expected, found = results(model, NUMBERS), []

    def work():
        found.extend(results(model, NUMBERS) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for other in found:
        assert_same(expected, other)


def test_loading_silences_no_warnings(tmp_path, monkeypatch):
    """Filters are of the whole process: of two threads, one would put back the other's."""
    model = quick().fit(NUMBERS)
    model.save(tmp_path / "model.skvae")
    actions = []
    set_filter = warnings.simplefilter

    def note(action, *args, **kwargs):
        actions.append(action)
        set_filter(action, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(warnings, "simplefilter", note)
        loaded = VAETransformer.load(tmp_path / "model.skvae")
    assert "ignore" not in actions
    assert_same(results(model, NUMBERS), results(loaded, NUMBERS))


def test_a_fresh_interpreter_warns_of_nothing(tmp_path):
    code = f"""
import numpy as np
from skvae import VAETransformer
X = np.random.default_rng(0).normal(size=(40, 3))
X[::5, 1] = np.nan
vae = VAETransformer(max_iter=0, random_state=0).fit(X)
vae.save({str(tmp_path / "model.skvae")!r})
again = VAETransformer.load({str(tmp_path / "model.skvae")!r})
assert (again.sample(3, random_state=0) == vae.sample(3, random_state=0)).all()
assert (again.score_samples(X) == vae.score_samples(X)).all()
print(vae.summary())
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Training: none, this is the start." in done.stdout


# ---------------------------------------------------------------- cells, by quadrature

GRID = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]


def counts(n=120):
    random = np.random.default_rng(0)
    return random.poisson(np.exp(np.outer(random.normal(size=n), [0.8, -0.5, 0.3]) + 1.0))


def family(name):
    """Rows and parameters of a family."""
    table = counts().astype(float)
    if name == "categorical":
        return table.clip(max=2), {"categorical_features": [0, 1, 2]}
    if name == "bernoulli":
        return (table > 2).astype(float), {"likelihood": name}
    if name in ("gaussian", "student_t", "log_normal"):
        return np.log1p(table) + 0.1, {"likelihood": name}
    return table, {"likelihood": name}


FAMILIES = ["gaussian", "student_t", "log_normal", "bernoulli", "categorical", "poisson"]


@pytest.mark.parametrize("name", [*FAMILIES, "negative_binomial"])
@pytest.mark.parametrize(("prior", "tolerance"), [("normal", 1e-4), ("mixture", 0.2)])
def test_cells_given_the_others_by_quadrature(name, prior, tolerance):
    X, parameters = family(name)
    model = quick(n_components=1, prior=prior, n_score_samples=256, **parameters).fit(X)
    likelihood = model.module_.likelihood

    def exact(T):
        targets = torch.tensor(likelihood.standardize(T))
        with torch.no_grad():
            joint = model.module_.log_joint(GRID[:, None].expand(-1, len(T), -1), targets)
        step = float(GRID[1, 0] - GRID[0, 0])
        return logsumexp(joint.numpy(), axis=0) + np.log(step) - likelihood.log_unit(T).sum(1)

    T = model._encode(X[:6])
    rows = X[:6].copy()
    rows[1, 0] = T[1, 0] = np.nan
    rows[2, 1:] = T[2, 1:] = np.nan
    found = model.score_cells(rows)
    for j in range(3):
        others = T.copy()
        others[:, j] = np.nan
        expected = np.where(np.isnan(T[:, j]), np.nan, exact(T) - exact(others))
        np.testing.assert_allclose(found[:, j], expected, rtol=0, atol=tolerance)
    # where nothing else is known, the marginal
    assert found[2, 0] == pytest.approx(model.score_samples(rows[2:3])[0], rel=1e-9)
    if name == "bernoulli" and prior == "normal":
        both = np.array([[0.0, *X[0, 1:]], [1.0, *X[0, 1:]]])
        assert np.exp(model.score_cells(both)[:, 0]).sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "multinomial", "bernoulli"])
@pytest.mark.parametrize("prior", ["normal", "mixture", "vamp"])
def test_gaps_are_filled_by_expectations_and_draws_have_them(name, prior):
    """By quadrature over one latent; of multinomial rows the seen total counts, too."""
    X, parameters = family(name)
    model = quick(n_components=1, prior=prior, n_score_samples=512, **parameters).fit(X)
    rows = X[:4].copy()
    rows[:, 0] = np.nan
    rows[2, 1] = np.nan
    targets = torch.tensor(model.module_.likelihood.standardize(rows))
    with torch.no_grad():
        z = GRID[:, None].expand(-1, 4, -1)
        share = model.module_.log_joint(z, targets, sized=True).softmax(0)
        raw = model.module_.decoder(GRID)[:, None].expand(-1, 4, -1)
        mean = (share[..., None] * model.module_.likelihood.mean(raw, targets)).sum(0).numpy()
    filled = model.impute(rows)
    gaps = np.isnan(rows)
    np.testing.assert_allclose(filled[gaps], mean[gaps], rtol=1e-4 if prior == "normal" else 0.1)
    known = {1: X[0, 1], 2: X[0, 2]}
    drawn = model.sample(4000, given=known, random_state=0)
    assert (drawn[:, 1:] == X[0, 1:]).all()
    # four standard errors; of the mixtures' draws, some are the same latent
    assert abs(drawn[:, 0].mean() - mean[0, 0]) < 0.1 * mean[0, 0] + 4 * drawn[:, 0].std() / 63


def test_a_row_without_any_cell_has_probability_one():
    for prior in ("normal", "mixture", "vamp"):
        model = quick(prior=prior).fit(NUMBERS)
        assert model.score_samples(np.full((2, 3), np.nan)).tolist() == [0.0, 0.0]


def test_the_cell_that_is_far_out_beyond_numbers_is_found():
    rows = np.array([[1e200, 0.0, 0.0], [1e200, 1e200, 0.0]])
    cells = quick().fit(NUMBERS).score_cells(rows)
    assert cells[0, 0] == -np.inf
    # the others are no more improbable with them than without
    assert np.isnan(cells[0, 1:]).all()
    assert np.isnan(cells[1]).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("prior", ["normal", "vamp"])
def test_results_in_inference_mode_are_the_same(prior, dtype):
    X = NUMBERS.astype(dtype)
    model = quick(prior=prior).fit(X)
    expected = results(model, X)
    expected["filled"] = model.impute(X)
    expected["given"] = model.sample(3, given={0: 1.0}, random_state=0)
    with torch.inference_mode():
        found = results(model, X)
        found["filled"] = model.impute(X)
        found["given"] = model.sample(3, given={0: 1.0}, random_state=0)
    assert_same(expected, found)


@pytest.mark.parametrize("use", ["score_samples", "score_cells", "impute", "sample"])
def test_the_number_of_points_is_checked_at_each_use(use):
    model = quick().fit(NUMBERS).set_params(n_score_samples=0)
    arguments = {"given": {0: 1.0}} if use == "sample" else {"X": NUMBERS}
    with pytest.raises(ValueError, match=r"n_score_samples must be .* of at least 1, got 0"):
        getattr(model, use)(**arguments)


# ---------------------------------------------------------------- thresholds and draws


@pytest.mark.parametrize(("dtype", "rounding"), [(np.float64, 1e-13), (np.float32, 1e-6)])
@pytest.mark.parametrize("share", [None, 0.1, 0.5])
def test_rows_alike_are_on_one_side_of_the_threshold(dtype, rounding, share):
    """Scores of equal rows may differ in their last bits."""
    scores = -5 * (1 + rounding * np.linspace(-1, 1, 20)).astype(dtype)
    assert len(set(scores)) > 5
    assert (scores >= _offset(scores, np.ones(20), share)).all()
    lower = np.append(scores, dtype(-7))
    assert (lower < _offset(lower, np.ones(21), share)).sum() == 1


@pytest.mark.parametrize("share", [None, 0.2])
def test_impossible_rows_are_outliers(share):
    scores = np.array([-np.inf, -1.0, -2.0, -1.0, -1.5])
    offset = _offset(scores, np.ones(5), share)
    assert np.isfinite(np.float32(offset))
    assert (scores < offset).tolist() == [True, False, False, False, False]
    assert np.isfinite(_offset(np.full(5, -np.inf), np.ones(5), share))


def test_draws_of_log_normal_whole_numbers_are_positive():
    pd = pytest.importorskip("pandas")
    random = np.random.default_rng(0)
    visits = np.where(random.uniform(size=300) < 0.7, 1, random.integers(2, 60, 300))
    table = pd.DataFrame({"visits": visits, "x": random.normal(size=300)})
    detector = VAEOutlierDetector(quick(likelihood={"visits": "log_normal"})).fit(table)
    drawn = detector.estimator_.sample(500, random_state=0)
    assert drawn["visits"].min() == 1
    assert drawn["visits"].dtype == np.int64
    assert np.isfinite(detector.estimator_.score_samples(drawn)).all()
    assert np.isfinite(detector.contributions(table[:2])).all()


@pytest.mark.parametrize("kind", [VAEOutlierDetector, VAEImputer])
def test_what_is_no_model_is_refused(kind):
    with pytest.raises(TypeError, match="estimator must be a VAETransformer or None, got 5"):
        kind(5).fit(NUMBERS)


# ---------------------------------------------------------------- what a fit says about itself


def test_a_gain_over_the_linear_start_needs_one():
    random = quick(init="random").fit(NUMBERS)
    further = quick(warm_start=True).fit(NUMBERS)
    assert further.linear_gain_ is not None
    further.fit(NUMBERS)
    for model in (random, further):
        assert model.best_validation_score_ is not None
        assert model.linear_gain_ is None
        assert model.linear_gain_error_ is None
        assert "linear model" not in model.summary()


def test_summaries_of_little():
    start = quick(max_iter=0).fit(NUMBERS).summary()
    assert start.splitlines()[1] == "Training: none, this is the start."
    assert "prove" not in start
    pair = quick(max_iter=1).fit(NUMBERS[1:3])
    assert pair.linear_gain_error_ == np.inf
    assert f": {pair.linear_gain_:.3f} nats, of one held-out row." in pair.summary()
    assert "1 epoch." in pair.summary()
    assert "No clear gain" not in pair.summary()
    assert "  " not in pair.summary().splitlines()[0]
    plain = quick(beta=0).fit(NUMBERS).set_params(beta=1)
    assert "of a plain autoencoder" in plain.summary()


class AtTheThird:
    """A callback that does something at the end of the third epoch."""

    def __init__(self, act):
        self.act, self.n_calls = act, 0

    def setup(self, estimator, context):
        """Nothing to prepare."""

    teardown = setup

    def on_fit_task_begin(self, estimator, context, **given):
        """Nothing to do."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "epoch":
            self.n_calls += 1
            if self.n_calls == 3:
                self.act(fitted_estimator)


callbacks = pytest.mark.skipif(
    not hasattr(VAETransformer, "set_callbacks"), reason="scikit-learn before 1.9 has no callbacks"
)


@callbacks
@pytest.mark.parametrize("parameters", [{}, {"early_stopping": False}, {"beta": 0}, {"noise": 0.5}])
def test_an_interruption_in_a_callback_leaves_a_usable_model(parameters):
    def interrupt(estimator):
        raise KeyboardInterrupt

    model = quick(max_iter=9, tol=0.0, **parameters).set_callbacks(AtTheThird(interrupt))
    with pytest.warns(ConvergenceWarning, match="Interrupted after 3 epochs: the best weights"):
        model.fit(NUMBERS)
    assert model.n_iter_ == 3
    assert np.isfinite(model.transform(NUMBERS)).all()
    assert "Training: 3 epochs." in model.summary()
    model.set_callbacks().fit(NUMBERS)
    assert model.n_iter_ == 9


@callbacks
def test_there_is_no_summary_before_the_end():
    """Of an earlier fit's attributes, beside a later one's weights."""
    refused = []

    def ask(estimator):
        with pytest.raises(NotFittedError, match="The fit still goes on"):
            estimator.summary()
        refused.append(estimator.transform(NUMBERS).shape)

    model = quick(max_iter=4, tol=0.0).fit(NUMBERS)
    model.set_params(n_components=3).set_callbacks(AtTheThird(ask)).fit(NUMBERS)
    assert refused == [(60, 3)]
