"""The same rows give the same bits, whatever their order, their neighbours and the thread."""

import pickle
import threading

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone

from skvae import VAETransformer

pytestmark = pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning")

RANDOM = np.random.default_rng(0)
X = (RANDOM.normal(size=(40, 2)) @ RANDOM.normal(size=(2, 4))) + 0.3 * RANDOM.normal(size=(40, 4))
X[:, 3] = X[:, 3].round()  # ties, and zeros of both signs
PARAMETERS = (
    {},
    {"noise": "homoscedastic"},
    {"noise": "heteroscedastic", "dropout": 0.2, "early_stopping": False},
    {"likelihood": "bernoulli", "init": "random"},
)


def model(**parameters):
    defaults = {"hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0, "batch_size": 16}
    defaults["n_iter_no_change"] = 2  # the spread of noise="auto" is trained as patiently
    return VAETransformer(2, **defaults | parameters)


def rows(parameters):
    return (X > 0).astype(float) if "likelihood" in parameters else X


def bits(vae):
    """All that a fit has learned, to the bit."""
    state = {name: value.numpy().tobytes() for name, value in vae.module_.state_dict().items()}
    curves = (vae.loss_curve_, vae.validation_scores_, vae.kl_per_component_.tolist())
    Z = np.linspace(-2, 2, 10).reshape(5, 2)
    made = vae.inverse_transform(Z).tobytes(), vae.sample(3, random_state=0).tobytes()
    scores = vae.score_samples(vae.sample(4, random_state=1)).tobytes()
    return state, curves, made, scores


@pytest.fixture(params=PARAMETERS, ids=str)
def parameters(request):
    return request.param


# ---------------------------------------------------------------- fits that must be equal


def test_twice(parameters):
    data = rows(parameters)
    assert bits(model(**parameters).fit(data)) == bits(model(**parameters).fit(data))


def test_a_second_fit_of_the_same_object(parameters):
    vae = model(**parameters).fit(rows(parameters))
    assert bits(vae) == bits(clone(vae).fit(rows(parameters)))
    before = bits(vae)
    assert before == bits(vae.fit(rows(parameters)))


def test_another_seed_is_another_fit(parameters):
    one, two = (model(**parameters | {"random_state": s}).fit(rows(parameters)) for s in (0, 1))
    assert bits(one) != bits(two)


def test_rows_in_another_order(parameters):
    data = rows(parameters)
    expected = bits(model(**parameters).fit(data))
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(data))
        assert bits(model(**parameters).fit(data[order])) == expected
    assert bits(model(**parameters).fit(np.asfortranarray(data[::-1]))) == expected


def test_integer_weights_are_repetition(parameters):
    data = rows(parameters)
    weights = np.random.default_rng(1).integers(0, 4, len(data))
    weighted = model(**parameters).fit(data, sample_weight=weights)
    repeated = model(**parameters).fit(np.repeat(data, weights, axis=0))
    assert bits(weighted) == bits(repeated)
    assert bits(weighted) != bits(model(**parameters).fit(data))


def test_rows_of_weight_zero_are_not_there(parameters):
    data = rows(parameters)
    weights = np.ones(len(data))
    weights[::3] = 0.0
    dropped = model(**parameters).fit(data[weights > 0])
    assert bits(model(**parameters).fit(data, sample_weight=weights)) == bits(dropped)


@pytest.mark.parametrize("parameters", PARAMETERS[:3], ids=str)
def test_weights_count_by_their_ratios(parameters):
    weights = np.random.default_rng(1).integers(1, 4, len(X)).astype(float)
    one, four = (model(**parameters).fit(X, sample_weight=f * weights) for f in (1, 4))
    assert bits(one) == bits(four)
    unit = model(**parameters).fit(X)
    assert bits(unit) == bits(model(**parameters).fit(X, sample_weight=np.full(len(X), 0.25)))


def test_the_sign_of_zero_does_not_count(parameters):
    data = rows(parameters)
    negative = np.where(data == 0, -0.0, data)
    assert np.signbit(negative[data == 0]).all()
    assert (data == 0).sum() > 3
    assert bits(model(**parameters).fit(negative)) == bits(model(**parameters).fit(data))


def test_numbers_of_another_type_are_the_same_numbers():
    data = (X * 8).round()
    expected = bits(model().fit(data))
    assert bits(model().fit(data.astype(np.float32))) == expected
    assert bits(model().fit(data.astype(np.int64))) == expected
    assert bits(model().fit(data.tolist())) == expected


def test_passes_over_permuted_batches():
    one, two = model(), model()
    for seed in range(3):
        batch = np.random.default_rng(seed).normal(size=(40, 4))
        one.partial_fit(batch)
        two.partial_fit(batch[::-1])
    assert bits(one) == bits(two)


# ---------------------------------------------------------------- wherever it runs


@pytest.mark.parametrize("parameters", PARAMETERS[:3], ids=str)
def test_two_threads_at_once(parameters):
    expected = bits(model(**parameters).fit(X))
    results, barrier = {}, threading.Barrier(2)

    def work(i):
        barrier.wait()
        results[i] = bits(model(**parameters).fit(X))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: expected, 1: expected}


def test_a_worker_process():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = bits(model().fit(X))
    finally:
        torch.set_num_threads(before)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        fitted = joblib.Parallel(n_jobs=2)(joblib.delayed(model().fit)(X) for _ in range(2))
    for vae in fitted:
        assert bits(vae) == expected


def test_a_pickled_model_is_the_model(parameters):
    data = rows(parameters)
    vae = model(**parameters).fit(data)
    again = pickle.loads(pickle.dumps(vae))
    assert bits(again) == bits(vae)
    for method in ("transform", "score_samples"):
        np.testing.assert_array_equal(getattr(again, method)(data), getattr(vae, method)(data))
    # and it goes on as the model would
    assert bits(again.partial_fit(data)) == bits(vae.partial_fit(data))


# ---------------------------------------------------------------- what is left alone


def everything(parameters):
    """Use each method once."""
    data = rows(parameters)
    vae = model(**parameters).fit(data)
    vae.inverse_transform(vae.transform(data))
    vae.score(data)
    vae.sample(3)
    vae.partial_fit(data)
    model(**parameters | {"random_state": None, "max_iter": 1}).fit(data)


def test_global_generators_and_settings_are_left_alone(parameters):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    position = np.random.get_state()[2]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        everything(parameters)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), expected[0])
    np.testing.assert_array_equal(np.random.get_state()[1], expected[1])
    assert np.random.get_state()[2] == position
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_global_generators_are_not_read(parameters):
    torch.manual_seed(0)
    np.random.seed(0)
    one = bits(model(**parameters).fit(rows(parameters)))
    torch.manual_seed(1)
    np.random.seed(1)
    assert bits(model(**parameters).fit(rows(parameters))) == one


def test_own_networks_leave_the_global_generator_alone():
    def factory(n_in, n_out):
        hidden = torch.nn.Linear(n_in, 6), torch.nn.Dropout(0.2), torch.nn.Tanh()
        return torch.nn.Sequential(*hidden, torch.nn.Linear(6, n_out))

    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    one = model(encoder=factory, decoder=factory).fit(X)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    assert bits(model(encoder=factory, decoder=factory).fit(X)) == bits(one)


# ---------------------------------------------------------------- rows and their neighbours

METHODS = ("transform", "score_samples")


@pytest.mark.parametrize("method", METHODS)
def test_row_by_row_is_the_batch(parameters, method):
    data = rows(parameters)
    call = getattr(model(**parameters).fit(data), method)
    alone = np.concatenate([call(data[i : i + 1]) for i in range(len(data))])
    np.testing.assert_allclose(alone, call(data), rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_does_not_depend_on_its_neighbours(parameters, method):
    data = rows(parameters)
    call = getattr(model(**parameters).fit(data), method)
    others = 1 - data if "likelihood" in parameters else -1e3 * data
    beside = call(np.vstack([data[:5], others]))[:5]
    np.testing.assert_allclose(beside, call(data)[:5], rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_calls_repeat_to_the_bit(parameters, method):
    data = rows(parameters)
    call = getattr(model(**parameters).fit(data), method)
    np.testing.assert_array_equal(call(data), call(data))


def test_single_precision_agrees_with_double(parameters):
    data = rows(parameters).astype(np.float32)
    vae = model(**parameters).fit(data)
    for method in METHODS:
        single, double = getattr(vae, method)(data), getattr(vae, method)(data.astype(float))
        assert (single.dtype, double.dtype) == (np.float32, np.float64)
        np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)
        assert not np.array_equal(single, double)
    Z = vae.transform(data)
    single, double = vae.inverse_transform(Z), vae.inverse_transform(Z.astype(float))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)


def test_sample_is_seeded_or_fresh():
    vae = model().fit(X)
    np.testing.assert_array_equal(vae.sample(5, random_state=7), vae.sample(5, random_state=7))
    assert not np.array_equal(vae.sample(5, random_state=7), vae.sample(5, random_state=8))
    assert not np.array_equal(vae.sample(5), vae.sample(5))


def test_a_pickled_model_holds_no_rows():
    def size(n_rows):
        X = np.random.default_rng(0).normal(size=(n_rows, 3))
        options = {"max_iter": 1, "early_stopping": False, "noise": "homoscedastic"}
        vae = VAETransformer(1, hidden_layer_sizes=(4,), random_state=0, **options)
        return len(pickle.dumps(vae.fit(X)))

    assert abs(size(2000) - size(50)) < 200
