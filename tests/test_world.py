"""Several processes train one model: what they agree on is what one process finds alone."""

import multiprocessing
import pickle
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from torch import distributed

import skvae.columns
from skvae import VAETransformer
from skvae.families import build
from skvae.rows import DistinctRows, location_and_scale
from skvae.settings import Settings
from skvae.world import ALONE, Copies, Group

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4)) @ RNG.normal(size=(4, 4)) * [1e3, 1.0, 1e-3, 1.0] + [1e4, 0, 0, 5]
X[:, 3] = 7.0  # constant, in all processes
X[::7, 1] = np.nan
CUT = 90  # processes have uneven parts


@pytest.fixture(scope="module")
def run():
    """What ``task(group, *args)`` returns in each of two processes, as ``run(task, *args)``."""
    context = multiprocessing.get_context("spawn")
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False
    )
    results, tasks = context.Queue(), [context.Queue() for _ in range(2)]
    processes = [
        context.Process(target=_serve, args=(rank, store.port, tasks[rank], results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()

    def run(task, *args):
        for queue in tasks:
            queue.put((task, args))
        told = dict(results.get(timeout=300) for _ in processes)
        found = {rank: pickle.loads(outcome) for rank, outcome in told.items()}
        for outcome in found.values():
            if isinstance(outcome, Exception):
                raise outcome
        return found[0], found[1]

    yield run
    for queue in tasks:
        queue.put(None)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def _serve(rank, port, tasks, results):
    torch.set_num_threads(1)
    store = distributed.TCPStore(
        "127.0.0.1", port, timeout=timedelta(seconds=60), wait_for_workers=False
    )
    for number, (task, args) in enumerate(iter(tasks.get, None)):
        group = Group(distributed.PrefixStore(f"task {number}", store), rank, 2, timeout=60)
        group.other_store = distributed.PrefixStore(f"another group of {number}", store)
        try:
            outcome = task(group, *args)
        except Exception as error:  # for the test that asked for this
            outcome = error
        # as bytes: torch would send handles of memory that goes away with this process
        results.put((rank, pickle.dumps(outcome)))


def of_two_devices(group):
    with pytest.raises(ValueError, match="Some processes train on GPUs and others do not"):
        Group(group.other_store, group.rank, 2, 60.0, nccl=group.rank == 0)


def test_devices_must_be_alike(run):
    run(of_two_devices)


def half(table, group):
    """The part of a table that this process has."""
    part = slice(None, CUT) if group.rank == 0 else slice(CUT, None)
    return table.iloc[part] if hasattr(table, "iloc") else table[part]


def rows_of(table, world, likelihood="auto", **params):
    schema = skvae.columns.Columns.read(table, likelihood, "from_dtype")
    own = half(table, world) if isinstance(world, Group) else table
    return schema, DistinctRows(schema, own, np.ones(len(own)), world=world)


def sums(group):
    a = group.rank + 1.0
    return {
        "sum": group.sum(np.array([a, 10 * a])).tolist(),
        "number": float(group.sum(np.float64(a))),
        "min": group.min(torch.tensor([a, -a])).tolist(),
        "max": group.max(torch.tensor([a, -a])).tolist(),
        "lead": group.lead(a),
        "gather": group.gather(torch.full((group.rank, 2), a)).tolist(),
        "none": list(group.gather(torch.zeros(0, 3)).shape),
        "counts": int(group.sum(np.array([3]))[0]),
    }


def test_what_processes_agree_on(run):
    one, two = run(sums)
    assert one == two
    assert one == {
        "sum": [3.0, 30.0],
        "number": 3.0,
        "min": [1.0, -2.0],
        "max": [2.0, -1.0],
        "lead": 1.0,
        "gather": [[2.0, 2.0]],
        "none": [0, 3],
        "counts": 6,
    }


def test_one_process_alone_changes_nothing():
    value = torch.arange(3.0)
    assert ALONE.sum(value) is ALONE.gather(value) is ALONE.max(value) is ALONE.min(value) is value
    ALONE.sum_(value)
    ALONE.lead_(value)
    assert value.tolist() == [0.0, 1.0, 2.0] and ALONE.lead(2.0) == 2.0


def moments(group):
    own = half(X, group)
    return np.array(location_and_scale(own, np.ones(len(own)), group))


def test_location_and_scale_are_those_of_all_rows(run):
    one, two = run(moments)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one, location_and_scale(X, np.ones(len(X))), rtol=1e-12)
    assert one[1, 3] == 1.0


def table(n=400):
    """Columns of most families, with gaps."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=n)
    found = pd.DataFrame(
        {
            "normal": 3 * a + rng.normal(size=n),
            "heavy": a + rng.standard_t(2, size=n),
            "positive": np.exp(a + 0.5 * rng.normal(size=n)),
            "count": rng.poisson(np.exp(1 + 0.5 * a)).astype(float),
            "few": rng.negative_binomial(2, 0.4, size=n).astype(float),
            "flag": (a + rng.normal(size=n) > 0).astype(float),
            "level": np.array(["low", "middle", "high"])[np.digitize(a, [-0.5, 0.5])],
            "code": rng.integers(80, size=n).astype(str),
        }
    )
    found.loc[::9, "normal"] = np.nan
    return found


KINDS = {
    "heavy": "student_t",
    "positive": "log_normal",
    "count": "poisson",
    "few": "negative_binomial",
    "flag": "bernoulli",
}


def likelihood_of(world):
    schema, rows = rows_of(table(), world, KINDS)
    levels = {j: len(found) for j, found in schema.levels.items()}
    model = build(rows, schema.families, levels, True, True, _gaussian)
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def _gaussian(shift, scale, log):
    from skvae.likelihoods import Gaussian

    log_var = torch.zeros(len(scale), dtype=torch.float64)
    return Gaussian(shift, scale, log_var, "common", False, 0.01, log)


def test_statistics_of_all_families_are_those_of_all_rows(run):
    one, two = run(likelihood_of)
    alone = likelihood_of(ALONE)
    assert one.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
        np.testing.assert_allclose(one[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


def trained(world, rows_and_schema, params):
    """A model that this process has trained with the others."""
    vae = VAETransformer(**({"random_state": 0} | params))
    vae._columns, rows = rows_and_schema
    vae.n_features_in_ = rows.n_columns
    if vae._columns.library is not None:
        vae.feature_names_in_ = np.array(vae._columns.names, dtype=object)
    fit = vae._fresh(Settings.checked(vae.get_params(deep=False)))
    vae._train(fit, rows, lambda *told: False, go_on=False)
    return vae


def fitted(group, data, params):
    vae = trained(group, rows_of(data, group, params.get("likelihood", "auto")), params)
    state = {name: value.numpy() for name, value in vae.module_.state_dict().items()}
    seen = vae.loss_curve_, vae.validation_scores_, vae.kl_per_component_.tolist(), vae.n_iter_
    return state, seen, vae


def check_equal(one, two):
    """To the bit."""
    assert one[1] == two[1]
    for name, value in one[0].items():
        np.testing.assert_array_equal(value, two[0][name], err_msg=name)


def test_the_start_is_that_of_all_rows(run):
    data = X[:, :3]
    one, two = run(fitted, data, {"max_iter": 0})
    check_equal(one, two)
    alone = VAETransformer(random_state=0, max_iter=0).fit(data)
    np.testing.assert_allclose(one[2].transform(data), alone.transform(data), atol=1e-6)
    np.testing.assert_allclose(one[2].score_samples(data), alone.score_samples(data), atol=1e-6)


def copies_fitted(group, data, params):
    return fitted(Copies(group), data, params)


@pytest.mark.filterwarnings("ignore:max_iter=")
@pytest.mark.parametrize("kind", ["digits", "table", "dropout"])
def test_processes_with_all_rows_fit_what_one_fits(run, one_thread, kind):
    params, data = {"max_iter": 12}, load_digits().data[:500]
    if kind == "table":
        params["likelihood"] = {k: KINDS[k] for k in ("positive", "count", "flag")}
        data = table(500)
    elif kind == "dropout":
        params |= {"dropout": 0.1, "max_iter": 5, "n_components": 1}
    one, two = run(copies_fitted, data, params)
    check_equal(one, two)
    alone = VAETransformer(random_state=0, **params).fit(data)
    assert one[1][0] == alone.loss_curve_ and one[1][1] == alone.validation_scores_
    for name, value in alone.module_.state_dict().items():
        np.testing.assert_array_equal(one[0][name], value, err_msg=name)


@pytest.mark.filterwarnings("ignore:max_iter=")
def test_processes_with_rows_of_their_own_fit_as_well_as_one(run):
    data = table(3000).drop(columns="code")
    params = {"likelihood": {k: KINDS[k] for k in ("positive", "count", "flag")}, "max_iter": 10}
    # so short a fit of a spread that z changes differs by 0.1 nats between seeds, and this by 0.006
    params["noise"] = "homoscedastic"
    one, two = run(fitted, data[:2000], params)
    check_equal(one, two)
    alone = VAETransformer(random_state=0, **params).fit(data[:2000])
    assert one[2].score(data[2000:]) == pytest.approx(alone.score(data[2000:]), abs=0.02)


def lost(group):
    vae = VAETransformer(random_state=0, max_iter=50, early_stopping=False)
    vae._columns, rows = rows_of(X[:, :3], group)
    vae.n_features_in_ = 3
    fit = vae._fresh(Settings.checked(vae.get_params(deep=False)))

    def on_epoch(epoch, loss, score, model):
        if group.rank == 1 and epoch == 3:
            group.close()
            raise SystemExit
        return False

    try:
        vae._train(fit, rows, on_epoch, go_on=False)
    except ConnectionError as error:
        return str(error), error.history.n_iter
    except SystemExit:
        return "gone", 3
    return "went on", 0


def test_a_lost_process_is_an_error_that_says_how_far_training_came(run):
    (message, n_iter), other = run(lost)
    assert message.startswith("Process 0 of 2 has lost another one: ")
    assert n_iter == 3 and other == ("gone", 3)
