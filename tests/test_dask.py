"""A model of a cluster's rows: equal to that of one machine, and workers that die."""

import contextlib
import functools
import gc
import math
import os
import pickle
import signal
import threading
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import skops.io as skops
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

pytest.importorskip("distributed")

import dask
import dask.array as da
import dask.dataframe as dd
import distributed
import torch
from scipy.sparse import csr_matrix

from skvae import VAETransformer
from skvae import dask as skvae_dask
from skvae.columns import Columns
from skvae.dask import DaskVAETransformer
from skvae.fitting import Fit
from skvae.member import forget, memory_limit, write
from skvae.partitions import stage

pytestmark = [
    pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning"),
    # what Dask leaves to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

DIGITS = load_digits().data[np.random.default_rng(0).permutation(1797)]
RNG = np.random.default_rng(0)
QUICK = {"noise": "homoscedastic", "random_state": 0}  # no separate spread
MANY = np.tanh(RNG.normal(size=(6500, 3))) @ RNG.normal(size=(3, 12))
MANY = (MANY + 0.2 * RNG.normal(size=MANY.shape)).astype(np.float32)  # no few-rows' rules
CURVED = MANY[:3000]
BENT = RNG.uniform(-2, 2, (3000, 1))  # along a line that no plane holds: each epoch gains
BENT = np.hstack([BENT, BENT**2, np.sin(2 * BENT), np.cos(3 * BENT), BENT**3 / 4])
BENT = (BENT + 0.1 * RNG.normal(size=BENT.shape)).astype(np.float32)
NUMBERS = list(range(12))  # of its columns


@pytest.fixture(scope="module")
def client():
    with cluster() as client:
        yield client


@pytest.fixture
def mortal():
    """Of a cluster of its own, whose workers may die."""
    with cluster() as client:
        yield client


@contextlib.contextmanager
def cluster(**options):
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"} | options
    dask.config.set({"distributed.comm.timeouts.connect": "20s"})
    with (
        distributed.LocalCluster(**options) as workers,
        distributed.Client(workers, set_as_default=True) as client,
    ):
        yield client


def mixed_table(n_rows):
    """Columns of several kinds, with gaps."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=n_rows)
    table = pd.DataFrame(
        {
            "normal": 3 * a + rng.normal(size=n_rows),
            "count": rng.poisson(np.exp(1 + 0.5 * a)).astype(float),
            "flag": a + rng.normal(size=n_rows) > 0,
            "level": pd.Series(np.array(["low", "middle", "high"])[np.digitize(a, [-0.5, 0.5])]),
            "kind": pd.Categorical.from_codes(
                rng.integers(2, size=n_rows), ["b", "a", "never"], ordered=True
            ),
        }
    )
    table.loc[::9, "normal"] = np.nan
    table.loc[::11, "level"] = None
    return table


MIXED = mixed_table(800)
KINDS = {"count": "poisson"}


def test_digits_are_fitted_as_on_one_machine(client, one_thread):
    train, test = DIGITS[:1300], DIGITS[1300:]
    params = {"random_state": 0, "max_iter": 12}
    X = da.from_array(train, chunks=(400, 40))
    vae = DaskVAETransformer(**params).fit(X)
    alone = VAETransformer(**params).fit(train)
    assert vae.loss_curve_ == alone.loss_curve_
    assert vae.score(test) == pytest.approx(alone.score(test), abs=1e-6)
    assert vae.n_features_in_ == 64 and vae.transform(test).shape == (497, 2)


def test_a_mixed_table_is_fitted_as_on_one_machine(client, one_thread):
    train, test = MIXED[:600], MIXED[600:]
    X = dd.from_pandas(train, npartitions=3)
    params = {"likelihood": KINDS, "max_iter": 20, "random_state": 0}
    vae = DaskVAETransformer(**params).fit(X)
    alone = VAETransformer(**params).fit(train)
    assert vae.score(test) == pytest.approx(alone.score(test), abs=1e-6)
    assert vae.feature_names_in_.tolist() == list(MIXED)
    for j, levels in alone._columns.levels.items():
        assert vae._columns.levels[j].tolist() == levels.tolist()
    assert vae.loss_curve_ == alone.loss_curve_


def test_the_start_is_that_of_one_machine(client, monkeypatch):
    for copied in (0, 2**22):
        monkeypatch.setattr(skvae_dask, "COPIED", copied)
        X = da.from_array(CURVED.astype(float), chunks=(1100, 12))
        params = {"max_iter": 0, "random_state": 0}
        vae, alone = DaskVAETransformer(**params).fit(X), VAETransformer(**params).fit(CURVED)
        np.testing.assert_allclose(vae.transform(CURVED), alone.transform(CURVED), atol=1e-6)


@pytest.mark.parametrize("kind", ["held", "streamed"])
def test_workers_with_rows_of_their_own_fit_as_well(client, monkeypatch, kind):
    monkeypatch.setattr(skvae_dask, "COPIED", 0)
    if kind == "streamed":
        monkeypatch.setattr(skvae_dask, "HELD", 0)
    train, test = MANY[:5500], MANY[5500:]
    params = QUICK | {"n_components": 3, "max_iter": 6, "batch_size": 128}
    X = da.from_array(train, chunks=(1500, 12))
    vae, alone = DaskVAETransformer(**params).fit(X), VAETransformer(**params).fit(train)
    assert vae.score(test) == pytest.approx(alone.score(test), abs=0.1)
    again = DaskVAETransformer(**params | {"max_iter": 3}).fit(X)
    assert again.loss_curve_ == vae.loss_curve_[:3]
    if kind == "held":
        table = dd.from_pandas(MIXED, npartitions=5)
        scores = [
            estimator.fit(X).score(MIXED)
            for estimator, X in (
                (DaskVAETransformer(likelihood=KINDS, max_iter=20, **QUICK), table),
                (VAETransformer(likelihood=KINDS, max_iter=20, **QUICK), MIXED),
            )
        ]
        assert scores[0] == pytest.approx(scores[1], abs=0.1)


def test_how_workers_hold_rows_and_how_large_batches_are(client, monkeypatch):
    X = da.zeros((30_000, 12), chunks=(5_000, 12), dtype=np.float32)
    parameters = DaskVAETransformer(**QUICK)._parameters()
    parts = skvae_dask._partitions(X, None)
    with skvae_dask._Fleet(client, parts, parameters, NUMBERS) as fleet:
        schema, limits = fleet.stage(), fleet._ask(list(client.nthreads()), memory_limit)

        def planned():
            plan, members = fleet._plan(None, schema, limits, 0, {}, False, 0)
            assert [sum(part.n_rows for part in of) for of in members.values()] == [15_000] * 2
            return plan

        plan = planned()
        assert plan.kind == "copied" and plan.parameters["batch_size"] == "auto"
        monkeypatch.setattr(skvae_dask, "COPIED", 30_000 * 12 - 1)
        plan = planned()
        assert plan.kind == "held" and plan.parameters["batch_size"] == 30_000 // 64
        monkeypatch.setattr(skvae_dask, "LEAST_STEPS", 2)
        assert planned().parameters["batch_size"] == 2 * 1024
        parameters["batch_size"] = 100
        assert planned().parameters["batch_size"] == 100
        least = min(limits.values())
        needed = 15_000 * 12 * (4 + 4)  # as they were read, and as targets
        for share, kind in ((1.01, "held"), (0.99, "streamed")):
            monkeypatch.setattr(skvae_dask, "HELD", share * needed / least)
            plan = planned()
            assert plan.kind == kind
            assert plan.room == int(skvae_dask.ROOM * least) // 8


@pytest.mark.parametrize("copied", [0, 2**22])
def test_workers_train_the_same_weights_to_the_bit(client, monkeypatch, copied):
    """Before the first one leads after each epoch, which would hide that they had not."""
    monkeypatch.setattr(skvae_dask, "COPIED", copied)

    def watch():
        from skvae.world import Group

        Group.led, Group.lead_without_watch = [], Group.lead_

        def lead_(self, tensor):
            before = tensor.clone()
            Group.lead_without_watch(self, tensor)
            if self.rank and tensor.dtype == torch.float32 and tensor.numel() > 1:
                Group.led.append((tensor.numel(), torch.equal(tensor, before)))

        Group.lead_ = lead_

    def watched():
        from skvae.world import Group

        found, Group.lead_ = Group.led, Group.lead_without_watch
        del Group.led, Group.lead_without_watch
        return found

    client.run(watch)
    try:
        params = QUICK | {"n_components": 3, "max_iter": 3, "batch_size": 128}
        DaskVAETransformer(**params).fit(da.from_array(CURVED, chunks=((1000, 2000), 12)))
    finally:
        told = client.run(watched)
    led = max(told.values(), key=len)  # of the worker that does not lead
    # each of three epochs, weights, average and squares; and the weights of the result
    assert len([n for n, _ in led if n > 1000]) >= 3 * 3
    assert all(equal for _, equal in led)


def test_weights_that_differ_between_workers_would_be_noticed(client, monkeypatch):
    monkeypatch.setattr(skvae_dask, "digest", lambda vae: "of other weights")  # here, not there
    with pytest.raises(RuntimeError, match="The workers ended with different weights"):
        DaskVAETransformer(max_iter=1, **QUICK).fit(da.from_array(CURVED, chunks=(1500, 12)))


def unknown(X):
    """The same rows, with sizes of chunks that Dask does not know."""
    return dd.from_pandas(pd.DataFrame(X), npartitions=3).to_dask_array()


@functools.cache
def fitted_alone(n_rows, max_iter):
    params = QUICK | {"n_components": 3, "batch_size": 128}
    return VAETransformer(max_iter=max_iter, **params).fit(CURVED[:n_rows])


@pytest.mark.parametrize(
    ("chunks", "copied"),
    [
        ((2400,), 0),
        ((100, 2300), 0),
        ((100, 2300), 2**22),
        ((0, 1200, 0, 1200), 0),
        ((300,) * 8, 2**22),
        ("unknown", 0),
    ],
    ids=["one", "uneven", "uneven, copied", "empty", "many, copied", "unknown"],
)
def test_each_row_weighs_the_same_however_they_lie(client, monkeypatch, chunks, copied):
    monkeypatch.setattr(skvae_dask, "COPIED", copied)
    train, test = CURVED[:2400], CURVED[2400:]
    X = unknown(train) if chunks == "unknown" else da.from_array(train, chunks=(chunks, 12))
    params = QUICK | {"n_components": 3, "max_iter": 5, "batch_size": 128}
    vae, alone = DaskVAETransformer(**params).fit(X), fitted_alone(2400, 5)
    assert vae.score(test) == pytest.approx(alone.score(test), abs=0.1)
    Z = vae.transform(X)
    assert isinstance(Z, da.Array)
    np.testing.assert_allclose(Z.compute(), alone.transform(train), atol=0.2)


def test_weights_count_as_repetitions(client):
    weights = np.random.default_rng(2).integers(0, 3, size=len(CURVED))
    params = QUICK | {"max_iter": 3}
    X, w = (da.from_array(a, chunks=(1000, *a.shape[1:])) for a in (CURVED, weights * 1.0))
    weighted = DaskVAETransformer(**params).fit(X, sample_weight=w)
    alone = VAETransformer(**params).fit(np.repeat(CURVED, weights, axis=0))
    assert weighted.score(CURVED) == pytest.approx(alone.score(CURVED), abs=0.02)
    assert weighted.score(X, sample_weight=w) == pytest.approx(
        alone.score(CURVED, sample_weight=weights), abs=0.02
    )


@pytest.fixture(scope="module")
def fitted(client):
    params = QUICK | {"max_iter": 3, "likelihood": KINDS, "n_score_samples": 32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        vae = DaskVAETransformer(**params).fit(dd.from_pandas(MIXED, npartitions=3))
    return vae, vae.to_local()


def test_methods_give_collections_that_are_what_one_machine_gives(client, fitted):
    vae, local = fitted
    X = dd.from_pandas(MIXED, npartitions=4)
    # fewer rows at once round otherwise on some processors, and the forward differences by which a
    # score places its points make seventy million times as much of it
    for name, rtol in (("transform", 1e-12), ("score_samples", 1e-8), ("score_cells", 1e-8)):
        found = getattr(vae, name)(X)
        assert isinstance(found, da.Array)
        np.testing.assert_allclose(found.compute(), getattr(local, name)(MIXED), rtol=rtol)
        assert found.ndim == found.compute().ndim
    for found, wanted in zip(vae.posterior(X), local.posterior(MIXED), strict=True):
        np.testing.assert_allclose(found.compute(), wanted, rtol=1e-12)
    pd.testing.assert_frame_equal(vae.impute(X).compute(), local.impute(X.compute()))
    assert vae.score(X) == pytest.approx(local.score(MIXED), rel=1e-8)
    Z = vae.transform(X)
    back = vae.inverse_transform(Z)
    assert isinstance(back, dd.DataFrame)
    wanted = local.inverse_transform(local.transform(MIXED))
    pd.testing.assert_frame_equal(back.compute().reset_index(drop=True), wanted, check_dtype=False)
    as_table = dd.from_pandas(pd.DataFrame(Z.compute()), npartitions=3)
    again = vae.inverse_transform(as_table).compute().reset_index(drop=True)
    pd.testing.assert_frame_equal(again, wanted, check_dtype=False)
    single = X.astype(dict.fromkeys(("normal", "count"), np.float32))[["normal", "count"]]
    small = DaskVAETransformer(1, max_iter=0, **QUICK).fit(single.fillna(0))
    Z = small.transform(single)
    assert Z.dtype == Z.compute().dtype == np.float32
    few = small.transform(single[single.normal > np.inf])  # partitions without any row
    assert few.dtype == few.compute().dtype == np.float32
    drawn = vae.impute(X, n_draws=2, random_state=0)
    assert [len(table.compute()) for table in drawn] == [800, 800]
    assert not drawn[0].compute().equals(drawn[1].compute())
    pd.testing.assert_frame_equal(
        drawn[0].compute(), vae.impute(X, n_draws=2, random_state=0)[0].compute()
    )


def test_arrays_keep_their_type_and_their_chunks(client):
    X = da.from_array(CURVED, chunks=(1000, 5))
    vae = DaskVAETransformer(max_iter=2, **QUICK).fit(X)
    local = vae.to_local()
    Z, scores = vae.transform(X), vae.score_samples(X)
    assert Z.dtype == scores.dtype == np.float32 and Z.chunks == ((1000,) * 3, (2,))
    np.testing.assert_array_equal(Z.compute(), local.transform(CURVED))
    # to the bit those of its own rows: single precision rounds by how many are scored together
    alone = [local.score_samples(CURVED[start : start + 1000]) for start in (0, 1000, 2000)]
    np.testing.assert_array_equal(scores.compute(), np.concatenate(alone))
    np.testing.assert_allclose(scores.compute(), local.score_samples(CURVED), rtol=1e-5)
    assert Z.compute().dtype == scores.compute().dtype == np.float32
    back = vae.inverse_transform(Z)
    np.testing.assert_array_equal(back.compute(), local.inverse_transform(Z.compute()))
    gaps = X.copy()
    gaps[::5, 3] = np.nan
    np.testing.assert_array_equal(vae.impute(gaps).compute(), local.impute(gaps.compute()))
    assert vae.transform(unknown(CURVED)).compute().shape == (3000, 2)


def test_nothing_is_computed_before_it_is_asked_for(client, fitted):
    vae, _ = fitted

    def never(part):
        raise AssertionError("computed")

    X = dd.from_pandas(MIXED, npartitions=2).map_partitions(never, meta=MIXED.iloc[:0])
    found = vae.transform(X), vae.score_samples(X), vae.impute(X), vae.posterior(X)
    assert found[0].shape[1] == 2
    with pytest.raises(AssertionError, match="computed"):
        found[0].compute()


def test_to_local_and_back(client, fitted, tmp_path):
    vae, local = fitted
    assert type(local) is VAETransformer and not hasattr(local, "client")
    lifted = DaskVAETransformer.from_local(local)
    X = dd.from_pandas(MIXED, npartitions=2)
    np.testing.assert_array_equal(lifted.transform(X).compute(), local.transform(MIXED))
    assert lifted.get_params() == vae.get_params()
    vae.save(tmp_path / "model.skvae")
    again = VAETransformer.load(tmp_path / "model.skvae")
    np.testing.assert_array_equal(again.transform(MIXED), local.transform(MIXED))
    vae.client = client
    trusted = ["skvae.dask.DaskVAETransformer"]
    several = pickle.loads(pickle.dumps(vae)), skops.loads(skops.dumps(vae), trusted=trusted)
    vae.client = None
    for kept in several:
        assert kept.client is None
        np.testing.assert_array_equal(kept.transform(MIXED), local.transform(MIXED))
    assert clone(vae).get_params() == vae.get_params()
    assert DaskVAETransformer(5).n_components == 5
    assert local.summary().startswith("VAETransformer(")


def test_warm_start_goes_on(client):
    X = da.from_array(CURVED, chunks=(1000, 12))
    params = QUICK | {"max_iter": 3, "early_stopping": False, "warm_start": True}
    vae, alone = DaskVAETransformer(**params), VAETransformer(**params)
    for _ in range(2):
        vae.fit(X)
        alone.fit(CURVED)
    assert vae.score(CURVED) == pytest.approx(alone.score(CURVED), abs=0.02)


def test_warm_start_keeps_its_categories(client):
    """Of others that come, some are known by other positions, and some count as missing."""
    params = QUICK | {"max_iter": 20, "warm_start": True}
    vae, alone = DaskVAETransformer(**params), VAETransformer(**params)
    first, second = (table.reset_index(drop=True) for table in categories("abc", "bcd"))
    for table in (first, second):
        vae.fit(dd.from_pandas(table, npartitions=3))
        alone.fit(table)
    assert vae._columns.levels[1].tolist() == ["a", "b", "c"]
    known = second[second.kind != "d"].reset_index(drop=True)
    assert (vae.inverse_transform(vae.transform(known)).kind == known.kind).mean() > 0.95
    # rounding has some tenths after forty epochs; with other codes, eight nats are lost
    assert vae.score(second) == pytest.approx(alone.score(second), abs=0.2)
    with pytest.raises(ValueError, match="'kind' is numeric, but categorical in the fit to go on"):
        vae.fit(dd.from_pandas(first.assign(kind=1.0), npartitions=2))


def test_warm_start_keeps_its_kinds_of_columns(client):
    """A column of which the model knows two values may not hold others."""
    params = QUICK | {"max_iter": 2, "warm_start": True}
    vae, alone = DaskVAETransformer(**params), VAETransformer(**params)
    first = MIXED[["normal", "flag"]]
    row = np.arange(len(first))  # others in the first of two partitions alone
    second = first.assign(flag=np.where(row < len(row) // 2, row % 2 * 5, first.flag))
    message = r"likelihood='bernoulli' needs .*, but column 'flag' holds 5 \(row 1\)"
    for model, before in ((alone, ""), (vae, "Partition 0: ")):
        of = functools.partial(dd.from_pandas, npartitions=2) if before else pd.DataFrame
        model.fit(of(first))
        loss = model.loss_curve_
        with pytest.raises(ValueError, match=f"^{before}{message}"):
            model.fit(of(second))
        assert model.loss_curve_ is loss
        model.fit(of(first.assign(flag=first.flag.astype(int))))  # other words for the same


def categories(*choices):
    """A column that tells categories apart, and these."""
    random = np.random.default_rng(0)
    for letters in choices:
        kind = random.choice(list(letters), 300)
        at = np.array([ord(letter) for letter in kind]) - 98.0
        yield pd.DataFrame({"x": 3 * at + 0.1 * random.normal(size=300), "kind": kind})


@pytest.mark.parametrize("X", [CURVED, MIXED])
def test_a_staged_part_holds_nothing_of_its_partition(X, tmp_path):
    schema = Columns.read(X, "auto", "from_dtype")
    part = stage(X, None, schema, str(tmp_path), "name", lambda *_: None)
    for table in (part.first, *part.seen.values()):
        assert len(table) < len(X)
        cells = table if isinstance(table, np.ndarray) else table.iloc[:, 0].to_numpy()
        whole = X if isinstance(X, np.ndarray) else X.iloc[:, 0].to_numpy()
        assert not np.shares_memory(cells, whole)


def test_rows_of_no_weight_add_no_categories(client):
    (table,) = categories("abc")
    X = dd.from_pandas(table, npartitions=2)
    weights = (X.kind != "a").astype(float)
    vae = DaskVAETransformer(max_iter=0, **QUICK).fit(X, sample_weight=weights)
    alone = VAETransformer(max_iter=0, **QUICK).fit(table, sample_weight=table.kind != "a")
    assert vae._columns.levels[1].tolist() == alone._columns.levels[1].tolist() == ["b", "c"]


@pytest.mark.parametrize("types", [("float32", "float64"), ("int64", "float64")])
def test_chunks_of_several_types_are_one_array(client, types):
    chunks = [np.rint(10 * CURVED[:200]).astype(dtype) for dtype in types]
    X = da.concatenate(
        [da.from_delayed(dask.delayed(chunk), chunk.shape, dtype=float) for chunk in chunks]
    )
    vae = DaskVAETransformer(max_iter=2, **QUICK).fit(X)
    alone = VAETransformer(max_iter=2, **QUICK).fit(np.vstack(chunks))
    assert vae.score(CURVED) == pytest.approx(alone.score(CURVED), abs=1e-3)


BAD = [
    (CURVED, {}, TypeError, "X is ndarray, and fit takes Dask arrays and DataFrames"),
    (da.ones((10, 2)).astype(str), {}, TypeError, "X holds <U32: convert it to numbers"),
    (da.ones(10), {}, ValueError, r"X has shape \(10,\): reshape it"),
    (da.ones((1, 2)), {}, ValueError, "Found 1 rows of positive weight in 1 partitions"),
    (
        da.from_array(np.full((4, 2), np.inf), chunks=2),
        {},
        ValueError,
        r"Partition \d: Column 0 of X holds inf \(row 0\)",
    ),
    (
        da.from_array(-CURVED, chunks=(1500, 12)),
        {"likelihood": "poisson"},
        ValueError,
        r"Partition \d: likelihood='poisson' needs whole numbers between 0 and 1e\+13",
    ),
    (
        da.ma.masked_greater(da.from_array(CURVED, chunks=(1500, 12)), 1.0),
        {},
        TypeError,
        r"X has masked chunks: fill what is masked, da.ma.filled\(X, np.nan\)",
    ),
    (da.ones((10, 2)), {"max_iter": -1}, ValueError, "max_iter"),
    (da.ones((10, 2)), {"exposure": "total"}, ValueError, "exposure='total' is of counts"),
    (da.ones((10, 0)), {}, ValueError, "X has 0 columns"),
    (da.ones((9, 2), chunks=3), QUICK, ValueError, "Found 1 distinct row of positive weight"),
    (
        da.ones((10, 2)).map_blocks(csr_matrix, meta=np.empty((0, 0))),
        {},
        TypeError,
        "Partition 0: it is a csr_matrix and not a 2-dimensional array of numbers",
    ),
    (
        da.ones((10, 2)).map_blocks(lambda part: part.astype(object), meta=np.empty((0, 0))),
        {},
        TypeError,
        "Partition 0: it is an array of object and not",
    ),
]


@pytest.mark.parametrize(("X", "params", "kind", "message"), BAD)
def test_bad_input_is_named_and_changes_nothing(client, X, params, kind, message):
    vae = DaskVAETransformer(**params)
    before = dict(vars(vae))
    with pytest.raises(kind, match=message):
        vae.fit(X)
    assert vars(vae) == before


def test_more_that_is_refused(client, fitted, monkeypatch):
    vae, _ = fitted
    X = da.from_array(CURVED, chunks=(1000, 12))
    with pytest.raises(TypeError, match="sample_weight is ndarray: pass a Dask array"):
        DaskVAETransformer().fit(X, sample_weight=np.ones(3000))
    with pytest.raises(ValueError, match="sample_weight has 1 partitions, but X has 3"):
        DaskVAETransformer().fit(X, sample_weight=da.ones(3000, chunks=3000))
    with pytest.raises(ValueError, match="Partition 1: sample_weight must be finite and not neg"):
        weights = np.ones(3000)
        weights[1200] = -1
        DaskVAETransformer().fit(X, sample_weight=da.from_array(weights, chunks=1000))
    with pytest.raises(TypeError, match=r"sample_weight must be numbers: could not .*'a'"):
        words = da.from_array(np.full(3000, "a"), chunks=1000)
        DaskVAETransformer().fit(X, sample_weight=words)
    with dask.config.set({"skvae.timeout": 1}):
        assert DaskVAETransformer(max_iter=2, **QUICK).fit(X).n_iter_ == 2
    for seconds in ("soon", 0.1, None, math.inf):
        with (
            dask.config.set({"skvae.timeout": seconds}),
            pytest.raises(ValueError, match=f"number of seconds, 1 at least, got {seconds!r}"),
        ):
            DaskVAETransformer().fit(X)
    with pytest.raises(ValueError, match=r"Z has shape \(3000,\): reshape it to .*n_components"):
        vae.inverse_transform(X[:, 0])
    for method in (vae.transform, vae.score_samples, vae.impute):
        with pytest.raises(ValueError, match=r"X has shape \(3000,\): reshape it to .*n_features"):
            method(X[:, 0])
    with pytest.raises(ValueError, match="'a' cannot be used to seed"):
        vae.impute(X, 1, "a")
    with pytest.raises(TypeError, match="estimator must be a VAETransformer, got 'x'"):
        DaskVAETransformer.from_local("x")
    with monkeypatch.context() as patch:
        patch.setattr(distributed.Client, "asynchronous", True)  # as one would be in a coroutine
        with pytest.raises(TypeError, match=r"client is asynchronous: pass .*asynchronous=False"):
            DaskVAETransformer(client=client).fit(X)
    with pytest.raises(TypeError, match=r"partial_fit takes a batch in memory"):
        DaskVAETransformer().partial_fit(X)
    with pytest.raises(ValueError, match="names should match those that were passed during fit"):
        vae.transform(dd.from_pandas(pd.DataFrame(CURVED).rename(columns=str), npartitions=1))
    with pytest.raises(TypeError, match=r"X has chunks of scipy\.sparse"):
        DaskVAETransformer().fit(X.map_blocks(csr_matrix))
    as_pandas = DaskVAETransformer(max_iter=0, **QUICK).fit(X).set_output(transform="pandas")
    with pytest.raises(ValueError, match="transform_output='pandas' would compute all of a Dask"):
        as_pandas.transform(X)
    assert isinstance(as_pandas.transform(CURVED[:3]), pd.DataFrame)


def partitions_of(*tables):
    return dd.from_map(lambda i: tables[i], range(len(tables)), meta=tables[0].iloc[:0])


def test_partitions_that_are_not_what_they_are_said_to_be(client):
    vae = DaskVAETransformer(max_iter=1, **QUICK)
    table = pd.DataFrame(CURVED[:200, :4], columns=list("abcd"))
    for other in (table[list("dcba")], table.assign(e=5.0), table[list("abc")]):
        with pytest.raises(
            ValueError, match=r"Partition 1: its columns are \[.*but those of X are"
        ):
            vae.fit(partitions_of(table, other))
    X = da.from_array(CURVED[:200], chunks=(100, 12)).map_blocks(
        lambda part, block_id=None: part[:, : 12 - block_id[0]], meta=np.empty((0, 0), np.float32)
    )
    with pytest.raises(
        ValueError, match=r"Partition 1: its columns are \[0, .*10\], but those of X"
    ):
        vae.fit(X)
    for one, other in ((table.a > 0, table.a), (table.a.astype(str), table.a)):
        with pytest.raises(
            ValueError, match=r"Column 'a' is read as .* in partition 0 and as gaus"
        ):
            vae.fit(partitions_of(table.assign(a=one), table.assign(a=other)))
    ordered = [
        table.assign(a=pd.Categorical(["x", "y"] * 100, categories=list(levels), ordered=True))
        for levels in ("xy", "yx")
    ]
    with pytest.raises(
        ValueError, match=r"'a' is ordered as \['x', 'y'\] in partition 0 and ordered as \['y', 'x"
    ):
        vae.fit(partitions_of(*ordered))
    loose = table.assign(a=ordered[0].a.cat.as_unordered())
    with pytest.raises(ValueError, match=r"'a' is not ordered in partition 0 and ordered as"):
        vae.fit(partitions_of(loose, ordered[0]))


def test_types_and_categories_are_those_of_all_partitions(client):
    table = pd.DataFrame(CURVED[:400, :3].astype(float), columns=list("abc"))
    table["kind"] = np.where(np.arange(400) < 200, "late", "early")  # one in each partition
    whole = table.assign(a=np.where(np.arange(400) < 200, 3.0, table.a))
    halves = whole[:200].assign(a=3), whole[200:]  # whole numbers in the first one
    vae = DaskVAETransformer(max_iter=3, **QUICK).fit(partitions_of(*halves))
    alone = VAETransformer(max_iter=3, **QUICK).fit(whole)
    assert vae._columns.levels[3].tolist() == alone._columns.levels[3].tolist() == ["early", "late"]
    assert vae.loss_curve_ == pytest.approx(alone.loss_curve_, rel=1e-4)
    back = vae.to_local().inverse_transform(vae.to_local().transform(whole))
    assert back.dtypes["a"] == np.float64
    assert (back["kind"] == whole["kind"]).mean() > 0.95


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("other", ["plain", "missing", "integers"])
def test_categories_of_several_types_are_those_of_all(client, other, first):
    """Beside plain cells, where one partition has missing cells alone, or other kinds of cells."""
    one, two = categories("ba", "ca")
    text = one.kind.dtype
    one["kind"] = one.kind.astype(pd.CategoricalDtype(pd.Index(["b", "a"], dtype=text)))
    if other == "missing":
        two["kind"] = pd.Series([np.nan] * 300).astype("category")
        same = two.assign(kind=two.kind.astype(one.kind.dtype))
    elif other == "plain":
        same = two
    else:
        two["kind"] = (two.kind == "a").astype(int).astype("category")
        same = two.assign(kind=two.kind.astype(object))
    whole = pd.concat([one, same][:: 1 - 2 * first], ignore_index=True)
    vae = DaskVAETransformer(max_iter=2, **QUICK)
    vae.fit(partitions_of(*[one, two][:: 1 - 2 * first]))
    alone = VAETransformer(max_iter=2, **QUICK).fit(whole)
    assert vae._columns.levels[1].tolist() == alone._columns.levels[1].tolist()
    if other != "plain":  # where Dask may turn text into a type of its own
        assert vae._columns.dtypes == alone._columns.dtypes
    assert vae.score(one) == pytest.approx(alone.score(one), abs=0.05)


@pytest.mark.parametrize("name", ["likelihood", "categorical_features"])
def test_unknown_columns_are_told_of_before_anything_is_computed(client, name):
    def refuse(part):
        raise AssertionError

    X = dd.from_pandas(MIXED, npartitions=2).map_partitions(refuse, meta=MIXED.iloc[:0])
    value = {"heights": "poisson"} if name == "likelihood" else ["heights"]
    with pytest.raises(ValueError, match=f"^{name} names column 'heights', but X has columns"):
        DaskVAETransformer(**{name: value}).fit(X)


def test_an_error_does_not_wait_for_partitions_that_have_not_begun(client, tmp_path):
    def touch(part, block_info=None):
        first = not any(tmp_path.iterdir())
        (tmp_path / str(block_info[0]["chunk-location"][0])).touch()
        time.sleep(0.2)
        return part * np.inf if first else part

    meta = np.empty((0, 0), np.float32)
    X = da.from_array(CURVED, chunks=(100, 12)).map_blocks(touch, meta=meta)
    with pytest.raises(ValueError, match=r"^Partition \d+: Column 0 of X holds -?inf"):
        DaskVAETransformer(**QUICK).fit(X)
    begun = len(list(tmp_path.iterdir()))
    time.sleep(1.0)
    assert 1 <= begun == len(list(tmp_path.iterdir())) < 30
    assert no_files_are_left(client)


def test_what_is_written_after_a_fit_is_over_is_deleted(client):
    (one, *_), name = client.nthreads(), f"skvae-{os.getpid()}-over"
    options = VAETransformer().get_params(), NUMBERS, None
    for is_over in (False, True):
        if is_over:
            client.run(forget, name, workers=[one])
            assert no_files_are_left(client)
        task = client.submit(write, CURVED, None, 0, name, *options, workers=[one], pure=False)
        _, part = task.result()
        assert client.run(os.path.exists, part.path, workers=[one]) == {one: not is_over}


def test_who_does_not_answer_is_silent(mortal, monkeypatch):
    monkeypatch.setattr(skvae_dask, "PATIENCE", 4.0)
    fleet, pids = skvae_dask._Fleet(mortal, [], {}, []), mortal.run(os.getpid)
    (silent, its_pid), (other, other_pid) = pids.items()
    os.kill(its_pid, signal.SIGSTOP)
    try:
        assert fleet._ask([silent, other], os.getpid) == {other: other_pid}
        assert fleet.silent == {silent} and fleet._left() == [other]
    finally:
        os.kill(its_pid, signal.SIGCONT)


def test_clones_have_the_same_client(client):
    vae = DaskVAETransformer(3, client=client, **QUICK).set_output(transform="default")
    for found in (clone(vae), clone(make_pipeline(vae))[0]):
        assert found.client is client and found.get_params() == vae.get_params()
    assert DaskVAETransformer.from_local(vae).client is None
    with pytest.raises(TypeError, match=r"client must be a distributed\.Client or None, got 'x'"):
        DaskVAETransformer(client="x").fit(da.from_array(CURVED, chunks=(1500, 12)))


def test_scores_need_weights_that_are_weights(client):
    X = da.from_array(CURVED[:200], chunks=(100, 12))
    vae = DaskVAETransformer(max_iter=0, **QUICK).fit(X)
    assert vae.score(X) == pytest.approx(vae.score(CURVED[:200]), rel=1e-6)
    ones = da.ones(200, chunks=100)
    with pytest.raises(ValueError, match=r"Partition .: sample_weight has shape \(100, 1\)"):
        vae.score(X, sample_weight=da.ones((200, 1), chunks=(100, 1)))
    with pytest.raises(ValueError, match=r"Partition .: sample_weight must be finite and not neg"):
        vae.score(X, sample_weight=-ones)
    with pytest.raises(ValueError, match="no row of positive weight"):
        vae.score(X, sample_weight=0 * ones)
    with pytest.raises(TypeError, match="sample_weight is ndarray: pass a Dask array"):
        vae.score(X, sample_weight=np.ones(200))


def test_a_plain_autoencoder_has_no_density_here_either(client):
    X = da.from_array(CURVED[:200], chunks=(100, 12))
    vae = DaskVAETransformer(max_iter=1, beta=0, **QUICK).fit(X)
    for name in ("score", "score_samples", "score_cells", "impute", "posterior"):
        assert not hasattr(vae, name)


@pytest.mark.parametrize("kind", ["array", "table"])
def test_partitions_are_imputed_by_draws_of_their_own(client, kind):
    rows = np.tile(CURVED[:100], (2, 1)).astype(float)
    rows[:, 3] = np.nan
    X, fitted_on = (da.from_array(a, chunks=(100, 12)) for a in (rows, CURVED[:200]))
    if kind == "table":
        X, fitted_on = (
            dd.from_pandas(pd.DataFrame(a), npartitions=2) for a in (rows, CURVED[:200])
        )
    vae = DaskVAETransformer(max_iter=0, **QUICK).fit(fitted_on)
    draws = [np.asarray(x.compute())[:, 3] for x in vae.impute(X, 2, random_state=0)]
    noise = (draws[0] - draws[1]).reshape(2, 100)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.4
    again = [np.asarray(x.compute())[:, 3] for x in vae.impute(X, 2, random_state=0)]
    np.testing.assert_array_equal(draws, again)


def test_without_a_client_it_says_what_to_do(monkeypatch):
    def none():
        raise ValueError("No global client found")

    monkeypatch.setattr(distributed, "get_client", none)
    with pytest.raises(ValueError, match="There is no Dask client: make one"):
        DaskVAETransformer().fit(da.ones((10, 2)))


def test_verbose_prints_here_and_once(client, capfd):
    X = da.from_array(CURVED, chunks=(1500, 12))
    DaskVAETransformer(max_iter=3, verbose=1, **QUICK).fit(X)
    time.sleep(0.5)
    out = capfd.readouterr().out
    assert [out.count(f"epoch {i:4d} ") for i in range(1, 5)] == [1, 1, 1, 0]


def test_two_fits_at_once_do_not_meet(client):
    X = da.from_array(CURVED, chunks=(1500, 12))
    params = {"max_iter": 3, "noise": "homoscedastic"}
    seeds = range(2)
    wanted = [DaskVAETransformer(random_state=s, **params).fit(X).loss_curve_ for s in seeds]
    found = {}

    def fit(seed):
        vae = DaskVAETransformer(random_state=seed, client=client, **params)
        found[seed] = vae.fit(X).loss_curve_

    threads = [threading.Thread(target=fit, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[seed] for seed in seeds] == wanted


def linear(n_in, n_out):
    return torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(n_in, n_out))


def test_fits_with_own_networks_take_turns(client):
    """Each has torch's global generator to itself on all workers, or on none."""
    X = da.from_array(CURVED, chunks=(1500, 12))
    found = []

    def fit():
        vae = DaskVAETransformer(max_iter=3, encoder=linear, client=client, **QUICK)
        found.append(vae.fit(X).loss_curve_)

    threads = [threading.Thread(target=fit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 2 and found[0] == found[1]


def test_own_networks_need_processes_of_their_own(monkeypatch):
    options = {"processes": False, "n_workers": 2, "dashboard_address": ":0"}
    with distributed.Client(set_as_default=False, **options) as threads:
        vae = DaskVAETransformer(max_iter=3, encoder=linear, client=threads, **QUICK)
        with pytest.raises(ValueError, match=r"workers share a process: start them as processes"):
            vae.fit(da.from_array(CURVED, chunks=(1500, 12)))
        assert vae.set_params(encoder=None).fit(da.from_array(CURVED, chunks=(1500, 12))).n_iter_


def test_a_grid_is_searched_by_the_cluster(client):
    from joblib import parallel_config
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(VAETransformer(max_iter=2, **QUICK), {"n_components": [1, 3]}, cv=2)
    alone = clone(search).fit(CURVED[:500])
    with parallel_config("dask"):
        search.fit(CURVED[:500])
    assert search.best_params_ == alone.best_params_ == {"n_components": 3}
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"], rtol=1e-6
    )


def no_files_are_left(client):
    def left(dask_worker):
        return [f for f in os.listdir(dask_worker.local_directory) if f.startswith("skvae")]

    end = time.monotonic() + 20
    while any(client.run(left).values()) and time.monotonic() < end:
        time.sleep(0.2)
    return not any(client.run(left).values())


def test_nothing_is_left_behind(client):
    gc.collect()
    gc.disable()
    before = set(client.futures)  # of errors elsewhere
    try:
        X = client.persist(da.from_array(CURVED, chunks=(1500, 12)))
        DaskVAETransformer(max_iter=5, **QUICK).fit(X)
        del X
        time.sleep(0.1)
        assert set(client.futures) <= before  # neither rows nor results wait for a collection
    finally:
        gc.enable()
    assert no_files_are_left(client)


# -- workers that die ---------------------------------------------------------------------------


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def after(seconds, act):
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


@pytest.mark.parametrize("copied", [0, 2**22])
def test_a_worker_that_dies_in_training_is_survived(mortal, monkeypatch, copied):
    monkeypatch.setattr(skvae_dask, "COPIED", copied)
    pids = list(mortal.run(os.getpid).values())
    train, test = BENT[:2400], BENT[2400:]
    X = da.from_array(train, chunks=(600, 5))
    params = QUICK | {"batch_size": 64, "max_iter": 40, "n_iter_no_change": 40}
    epochs = []

    def watch(event):
        epochs.append(event)
        if len(epochs) == 10:
            kill(pids[0])

    monkeypatch.setattr(skvae_dask, "print", lambda line: watch(line), raising=False)
    with pytest.warns(RuntimeWarning, match="was lost during fit. It goes on with"):
        vae = DaskVAETransformer(verbose=1, client=mortal, **params).fit(X)
    alone = VAETransformer(**params).fit(train)
    assert vae.score(test) == pytest.approx(alone.score(test), abs=0.15)
    # it went on, not from the start, which would take 50 epochs and more
    assert vae.n_iter_ == 40 == len(vae.loss_curve_) == len(vae.validation_scores_)
    assert 40 <= len(epochs) <= 45
    again = DaskVAETransformer(max_iter=2, client=mortal, **QUICK).fit(X)
    assert np.isfinite(again.score(test))
    assert no_files_are_left(mortal)


def test_a_worker_that_falls_silent_is_left_alone(mortal, monkeypatch):
    monkeypatch.setattr(skvae_dask, "PATIENCE", 4.0)
    address, pid = min(mortal.run(os.getpid).items())
    X = da.from_array(CURVED, chunks=(600, 12))
    epochs = []

    def watch(line):
        epochs.append(line)
        if len(epochs) == 10:
            os.kill(pid, signal.SIGSTOP)

    monkeypatch.setattr(skvae_dask, "print", watch, raising=False)
    params = QUICK | {"max_iter": 40, "n_iter_no_change": 40, "batch_size": 64}
    try:
        with (
            dask.config.set({"skvae.timeout": 3}),
            pytest.warns(RuntimeWarning, match=f"{address} was lost during fit"),
        ):
            vae = DaskVAETransformer(verbose=1, client=mortal, **params).fit(X)
        assert vae.n_iter_ == 40
        assert address in mortal.nthreads()  # Dask has not noticed
    finally:
        os.kill(pid, signal.SIGCONT)


def test_paused_workers_get_no_part(client):
    def pause_beyond(share, dask_worker):
        dask_worker.memory_manager.memory_pause_fraction = share

    one = min(client.nthreads())
    X = da.from_array(CURVED, chunks=(600, 12))
    with skvae_dask._Fleet(client, [], {}, []) as fleet:
        assert one in fleet._left()
        client.run(pause_beyond, 1e-9, workers=[one])
        try:
            end = time.monotonic() + 20  # a worker looks at its memory now and then
            while one in fleet._left() and time.monotonic() < end:
                time.sleep(0.05)
            paused = one not in fleet._left()
            fleet.partitions = skvae_dask._partitions(X, None)
            fleet.parameters, fleet.names = VAETransformer().get_params(), NUMBERS
            fleet.stage()
            used = {address for address, _ in fleet.staged.values()}
            vae = DaskVAETransformer(max_iter=2, client=client, **QUICK).fit(X)
        finally:
            client.run(pause_beyond, 0.8, workers=[one])
    assert paused and one not in used and vae.n_iter_ == 2
    end = time.monotonic() + 20
    while one not in fleet._left() and time.monotonic() < end:
        time.sleep(0.05)
    assert one in fleet._left()


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_worker_lost_after_the_last_epoch_costs_the_spread_alone(monkeypatch, early_stopping):
    """In this process, whose fit can be disturbed."""
    fit_spread, calls = Fit._fit_spread, []

    def lost_at_first(self, *args, **kwargs):
        calls.append(len(self.losses))
        if len(calls) == 1:
            raise ConnectionError("another one is lost")
        return fit_spread(self, *args, **kwargs)

    X = da.from_array(CURVED, chunks=(1500, 12))
    params = {"max_iter": 3, "random_state": 0, "early_stopping": early_stopping}
    with distributed.Client(processes=False, n_workers=1, dashboard_address=":0") as one:
        alone = DaskVAETransformer(client=one, **params).fit(X)
        monkeypatch.setattr(Fit, "_fit_spread", lost_at_first)
        with pytest.warns(RuntimeWarning, match="was lost during fit"):
            vae = DaskVAETransformer(client=one, **params).fit(X)
    assert calls == [3, 0]
    assert vae.n_iter_ == 3 and vae.loss_curve_ == alone.loss_curve_
    assert vae.best_validation_score_ == alone.best_validation_score_
    np.testing.assert_array_equal(vae.transform(CURVED), alone.transform(CURVED))
    assert vae.score(CURVED) == pytest.approx(alone.score(CURVED), abs=0.5)


@pytest.mark.parametrize("stage, nth", [("fit", 2), ("replay", 1)])
def test_a_worker_lost_once_training_is_over_costs_no_epoch(lose, stage, nth):
    """Lost while the decoder is tried alone, or while all rows are trained on."""
    X = da.from_array(CURVED, chunks=(1500, 12))
    with distributed.Client(processes=False, n_workers=1, dashboard_address=":0") as one:
        alone = DaskVAETransformer(client=one, max_iter=3, **QUICK).fit(X)
        calls = lose(stage, nth)
        with pytest.warns(RuntimeWarning, match="was lost during fit"):
            vae = DaskVAETransformer(client=one, max_iter=3, **QUICK).fit(X)
    assert len(calls) == nth  # and no epoch is left for another call
    assert vae.n_iter_ == 3 and vae._fit.n_epochs == 3
    if stage == "replay":
        assert vae.loss_curve_ == alone.loss_curve_
        assert vae._fit.linear_encoder == alone._fit.linear_encoder
    else:
        assert not vae._fit.linear_encoder
    assert vae.score(CURVED) == pytest.approx(alone.score(CURVED), abs=0.1)


def slowly(part):
    time.sleep(0.5)
    return part


def test_a_worker_that_dies_in_the_start_is_survived(mortal):
    pids = list(mortal.run(os.getpid).values())
    X = da.from_array(CURVED, chunks=(750, 12)).map_blocks(slowly)
    timer = after(1.5, lambda: kill(pids[1]))
    with pytest.warns(RuntimeWarning, match="was lost during fit"):
        vae = DaskVAETransformer(max_iter=2, client=mortal, **QUICK).fit(X)
    timer.join()
    alone = VAETransformer(max_iter=2, **QUICK).fit(CURVED)
    assert vae.score(CURVED) == pytest.approx(alone.score(CURVED), abs=0.05)


def test_a_worker_that_dies_in_transform_is_made_up_for(mortal):
    pids = list(mortal.run(os.getpid).values())
    vae = DaskVAETransformer(max_iter=2, client=mortal, **QUICK)
    vae.fit(da.from_array(CURVED, chunks=(1500, 12)))
    X = da.from_array(CURVED, chunks=(500, 12)).map_blocks(slowly)
    timer = after(1.5, lambda: kill(pids[0]))
    Z = vae.transform(X).compute()
    timer.join()
    np.testing.assert_array_equal(Z, vae.to_local().transform(CURVED))


def deadly(part):
    # one of several partitions
    if len(part) == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def test_what_kills_each_worker_is_an_error_not_a_hang(mortal):
    X = da.from_array(CURVED[:400], chunks=((100, 300), 12)).map_blocks(
        deadly, meta=np.empty((0, 0), np.float32)
    )
    vae = DaskVAETransformer(max_iter=2, client=mortal, **QUICK)
    with pytest.warns(RuntimeWarning), pytest.raises((ConnectionError, distributed.KilledWorker)):
        vae.fit(X)
    assert not hasattr(vae, "module_")


class Held:
    """A finished future whose result does not come, or only at the third time."""

    status = "finished"

    def __init__(self, times):
        self.times, self.waits = times, []

    def result(self, timeout):
        self.waits.append(timeout)
        if len(self.waits) < self.times:
            raise TimeoutError
        return "result"


def test_the_result_of_a_worker_that_is_gone_is_not_waited_for(client):
    fleet = skvae_dask._Fleet(client, [], {}, [])
    gone, slow = Held(100), Held(3)
    here = next(iter(client.nthreads()))
    assert fleet._results([gone, slow], ["tcp://127.0.0.1:1", here]) == [None, "result"]
    assert gone.waits == [5.0]
    assert slow.waits == [5.0, 10.0, 20.0]
    fleet.timeout = 20.0
    silent = Held(100)
    assert fleet._results([silent], [here]) == [None]
    assert silent.waits == [5.0, 10.0, 20.0]


def test_a_task_may_fit_and_score(client):
    def fit(named):
        X = da.from_array(CURVED, chunks=(1500, 12))
        vae = DaskVAETransformer(max_iter=2, **QUICK)
        vae.set_params(client=distributed.get_client() if named else None).fit(X)
        return vae.to_local(), vae.score(X)

    here = DaskVAETransformer(max_iter=2, **QUICK).fit(da.from_array(CURVED, chunks=(1500, 12)))
    for named in (False, True):
        # on a worker of one thread, which the fit needs, too
        local, score = client.submit(fit, named, pure=False).result(timeout=120)
        assert score == pytest.approx(local.score(CURVED), abs=1e-5)
        assert score == pytest.approx(here.score(CURVED), abs=1e-5)


def test_ctrl_c_keeps_the_best_weights_so_far(client, monkeypatch):
    lines = []

    def ctrl_c(line):
        lines.append(line)
        if len(lines) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(skvae_dask, "print", ctrl_c, raising=False)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # others may ignore it
    X = da.from_array(CURVED, chunks=(1500, 12))
    vae = DaskVAETransformer(max_iter=400, n_iter_no_change=400, verbose=1, **QUICK)
    try:
        with pytest.warns(ConvergenceWarning, match="Interrupted after"):
            vae.fit(X)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert 5 <= vae.n_iter_ < 400
    assert np.isfinite(vae.score(CURVED))
    assert DaskVAETransformer(max_iter=2, **QUICK).fit(X).n_iter_ == 2


def test_ctrl_c_outlasts_a_lost_worker(mortal, monkeypatch):
    pids, lines = list(mortal.run(os.getpid).values()), []

    def lose_one_and_press(line):
        lines.append(line)
        if len(lines) == 40:  # whichever comes first, more than a few epochs are kept
            kill(pids[1])
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(skvae_dask, "print", lose_one_and_press, raising=False)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    X = da.from_array(BENT, chunks=(1500, 5))
    vae = DaskVAETransformer(max_iter=400, n_iter_no_change=400, verbose=1, client=mortal, **QUICK)
    try:
        with (
            pytest.warns(RuntimeWarning, match="was lost during fit"),
            pytest.warns(ConvergenceWarning, match="Interrupted after"),
        ):
            vae.fit(X)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert 5 <= vae.n_iter_ < 100
    assert np.isfinite(vae.score(BENT))
