"""Where a GPU is at hand: what is fitted there is what the CPU fits, and works without one."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from torch import distributed, nn

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer, columns
from skvae.networks import Convolutional
from skvae.rows import DistinctRows
from skvae.settings import Settings
from skvae.world import Copies, Group

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA")

DIGITS = load_digits().data
IRIS = load_iris().data
RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(np.exp(RNG.normal(size=(400, 1)) @ RNG.normal(size=(1, 6)))).astype(float)
GAPS = IRIS.copy()
GAPS[::5, 1] = np.nan
TABLE = pd.DataFrame({"a": IRIS[:, 0], "b": IRIS[:, 1], "c": np.repeat(["x", "y", "z"], 50)})


def both(X, **params):
    params = {"random_state": 0, "max_iter": 5, "early_stopping": False} | params
    return [VAETransformer(device=device, **params).fit(X) for device in ("cpu", "cuda")]


@pytest.mark.filterwarnings("ignore:max_iter=")
@pytest.mark.parametrize(
    ("X", "params"),
    [
        # a separate spread is sensitive to rounding where pixels are nearly constant
        (DIGITS, {"noise": "homoscedastic"}),
        (DIGITS, {"early_stopping": True, "batch_size": 256, "noise": "homoscedastic"}),
        (DIGITS, {"noise": "heteroscedastic", "batch_size": 500}),
        (DIGITS / 16, {"likelihood": "bernoulli", "n_importance_samples": 3}),
        (COUNTS, {"likelihood": "poisson"}),
        (COUNTS, {"likelihood": "negative_binomial", "exposure": "total"}),
        (COUNTS, {"likelihood": "multinomial"}),
        (IRIS, {"likelihood": "student_t"}),
        (GAPS, {}),
        (TABLE, {}),
        (IRIS, {"prior": "mixture"}),
        (IRIS, {"prior": "vamp"}),
        (DIGITS, {"beta": 0.5, "free_bits": 0.01, "kl_warmup": 2, "noise": "homoscedastic"}),
        (DIGITS, {"encoder": lambda a, b: nn.Linear(a, b), "max_grad_norm": 1.0}),
    ],
)
def test_a_fit_is_that_of_the_cpu(X, params):
    cpu, cuda = both(X, **params)
    np.testing.assert_allclose(cuda.loss_curve_, cpu.loss_curve_, rtol=2e-3, atol=2e-2)
    np.testing.assert_allclose(cuda.transform(X), cpu.transform(X), atol=0.05)
    assert cuda.score(X) == pytest.approx(cpu.score(X), abs=0.1, rel=2e-3)


@pytest.mark.filterwarnings("ignore:max_iter=")
@pytest.mark.parametrize(
    "params", [{"dropout": 0.2}, {"network": Convolutional((8, 8)), "hidden_layer_sizes": (8, 16)}]
)
def test_other_networks_train_there(params):
    _, cuda = both(DIGITS[:300], noise="homoscedastic", **params)
    assert cuda.loss_curve_[-1] < cuda.loss_curve_[0]


@pytest.mark.filterwarnings("ignore:max_iter=")
def test_going_on_continues_there():
    for params in ({"warm_start": True}, {}):
        cpu, cuda = both(IRIS, **params)
        for vae in (cpu, cuda):
            vae.fit(IRIS) if params else vae.partial_fit(IRIS)
        assert cuda.score(IRIS) == pytest.approx(cpu.score(IRIS), abs=0.02)


@pytest.mark.filterwarnings("ignore:max_iter=")
def test_threads_share_it():
    model = VAETransformer(device="cuda", random_state=0, max_iter=10, noise="homoscedastic")
    alone = clone(model).fit(DIGITS).loss_curve_
    with ThreadPoolExecutor(3) as pool:
        fits = list(pool.map(lambda _: clone(model).fit(DIGITS), range(3)))
    for fit in fits:
        np.testing.assert_allclose(fit.loss_curve_, alone, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:max_iter=")
def test_a_stream_trains_there(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "IN_MEMORY", 1000)
    X = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, DIGITS.shape)
    X[:] = DIGITS
    cpu, cuda = both(X)
    assert cuda.score(DIGITS) == pytest.approx(cpu.score(DIGITS), rel=2e-3)


@pytest.mark.filterwarnings("ignore:max_iter=")
def test_the_other_estimators_work_there():
    model = VAETransformer(device="cuda", random_state=0, max_iter=3)
    assert np.isfinite(VAEImputer(model).fit_transform(GAPS)).all()
    assert set(VAEOutlierDetector(model).fit_predict(IRIS)) <= {-1, 1}


@pytest.mark.filterwarnings("ignore:max_iter=")
def test_what_is_kept_works_without_a_gpu(tmp_path):
    vae = both(IRIS)[1]
    vae.save(tmp_path / "model.skvae")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(vae))
    np.save(tmp_path / "z.npy", vae.transform(IRIS))
    code = f"""
import pickle, numpy as np, torch
from sklearn.datasets import load_iris
from skvae import VAETransformer
assert not torch.cuda.is_available()
X, z = load_iris().data, np.load(r"{tmp_path / "z.npy"}")
for vae in (
    VAETransformer.load(r"{tmp_path / "model.skvae"}"),
    pickle.loads(open(r"{tmp_path / "model.pickle"}", "rb").read()),
):
    assert np.array_equal(vae.transform(X), z)
    vae.sample(3)
    vae.set_params(device="cpu").partial_fit(X)
"""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_nccl_carries_what_lies_on_the_gpu():
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60))
    group = Group(store, 0, 1, timeout=60, nccl=True)
    try:
        tensor = torch.arange(4.0, device="cuda")
        group.sum_(tensor)
        group.lead_(tensor)
        assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert group.gather(tensor[:, None]).tolist() == [[0.0], [1.0], [2.0], [3.0]]
        vae = VAETransformer(random_state=0, max_iter=3, device="cuda")
        vae._columns = columns.Columns.read(IRIS, "auto", "from_dtype")
        rows = DistinctRows(vae._columns, IRIS, np.ones(len(IRIS)), world=Copies(group))
        vae.n_features_in_ = 4
        fit = vae._fresh(Settings.checked(vae.get_params(deep=False)))
        vae._train(fit, rows, lambda *told: False, go_on=False)
        assert np.isfinite(vae.score(IRIS))
    finally:
        group.close()
