"""What a runtime makes of an exported model is what the model makes, in original units."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from skvae import VAETransformer
from skvae.networks import Convolutional

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

random_state = np.random.default_rng(0)
NUMBERS = random_state.normal(size=(150, 16)) @ random_state.normal(size=(16, 16)) + 1e5
GAPS = np.where(random_state.uniform(size=NUMBERS.shape) < 0.2, np.nan, NUMBERS)
TABLE = pd.DataFrame(
    {
        "number": NUMBERS[:, 0],
        "positive": np.exp(0.2 * (NUMBERS[:, 1] - 1e5)),
        "tailed": random_state.standard_t(2, size=150),
        "text": ["u", "v", None] * 50,
        "flag": random_state.uniform(size=150) > 0.5,
        "count": random_state.poisson(2, size=150),
        "more": random_state.poisson(20, size=150),
        "levels": [f"k{i % 70}" for i in range(150)],
    }
)
FAMILIES = {"positive": "log_normal", "tailed": "student_t", "more": "poisson"}
FAMILIES |= {"count": "negative_binomial"}


def model(**parameters):
    few = {"hidden_layer_sizes": (8,), "max_iter": 3, "early_stopping": False, "random_state": 0}
    return VAETransformer(2, **few | parameters)


def run(vae, part, folder, rows):
    path = folder / f"{part}.onnx"
    vae.to_onnx(path, part)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return session.run(None, {given.name: rows})[0], session


@pytest.mark.parametrize(
    ("vae", "X"),
    [
        (model(), GAPS),
        (model(beta=0), NUMBERS),
        (model(network=Convolutional((4, 4), channels=(4,))), NUMBERS),
        (model(likelihood=FAMILIES, exposure="total", noise="heteroscedastic"), TABLE),
        (model(likelihood="multinomial"), random_state.poisson(3, size=(150, 16)).astype(float)),
    ],
    ids=["gaps", "autoencoder", "convolutional", "table", "multinomial"],
)
def test_a_runtime_gives_the_same(vae, X, tmp_path):
    vae.fit(X)
    T = vae._columns.encode(X)
    Z = vae.transform(X)
    exported, session = run(vae, "encoder", tmp_path, T)
    np.testing.assert_allclose(exported, Z, rtol=0, atol=1e-5 * Z.std())
    single = session.run(None, {"X": T[:1]})[0]
    np.testing.assert_allclose(single, Z[:1], rtol=0, atol=1e-5 * Z.std())
    back, _ = run(vae, "decoder", tmp_path, Z)
    likelihood = vae.module_.likelihood
    with torch.no_grad():
        stats = likelihood.mean(vae.module_.decoder(torch.tensor(Z)))
    expected = likelihood.restore_mean(stats.numpy())
    assert (np.abs(back - expected) <= 1e-5 * np.nanstd(T, axis=0)).all()
    if X is not TABLE:
        np.testing.assert_array_equal(vae.inverse_transform(Z), expected)


def test_the_columns_are_in_the_metadata(tmp_path):
    vae = model(likelihood=FAMILIES, max_iter=0).fit(TABLE)
    Z = vae.transform(TABLE)
    back, session = run(vae, "decoder", tmp_path, Z)
    columns = json.loads(session.get_modelmeta().custom_metadata_map["skvae.columns"])
    assert [column["name"] for column in columns] == [*TABLE.columns]
    assert columns[0] == {"name": "number", "family": "gaussian"}
    assert columns[3] == {"name": "text", "family": "categorical", "levels": ["u", "v"]}
    table = vae.inverse_transform(Z)
    assert [columns[3]["levels"][int(code)] for code in back[:, 3]] == table["text"].tolist()
    assert ((back[:, 4] >= 0.5) == table["flag"]).all()
    assert (back[:, 5].round() == table["count"]).all()


class Fixed(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, x):
        return self.linear(x).reshape(len(x), -1)


class Looking(Fixed):
    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    with pytest.raises(NotFittedError, match="VAETransformer instance is not fitted yet"):
        model().to_onnx(tmp_path / "model.onnx")
    vae = model(decoder=Fixed).fit(NUMBERS)
    with pytest.raises(ValueError, match=r"part must be one of \('encoder', 'decoder'\), got 'al"):
        vae.to_onnx(tmp_path / "model.onnx", "all")
    with pytest.raises(ValueError, match=r"Use x.shape\[0\] in place of len\(x\) there"):
        vae.to_onnx(tmp_path / "model.onnx", "decoder")
    vae = model(decoder=Looking).fit(NUMBERS)
    with pytest.raises(ValueError, match=r"^The decoder has no form in ONNX: Failed to export"):
        vae.to_onnx(tmp_path / "model.onnx", "decoder")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "skvae\[onnx\]"'):
        vae.to_onnx(tmp_path / "model.onnx")
    assert [*tmp_path.iterdir()] == []
