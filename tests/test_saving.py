"""A saved model is the model, to the bit; a file that is anything else is refused."""

import copy
import functools
import hashlib
import importlib
import inspect
import json
import pickle
import pkgutil
import random
import re
import tempfile
import threading
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import skops.io as skops
import torch
from safetensors import safe_open
from scipy import sparse
from sklearn import config_context
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import skvae
from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae.networks import Convolutional, Graph, Perceptron, TemporalConvolutional
from skvae.priors import Mixture, StandardNormal, Vamp
from skvae.saving import DIGITS, FILE, FORMAT, MODULES

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

random_state = np.random.default_rng(0)
NUMBERS = random_state.normal(size=(40, 16)) @ random_state.normal(size=(16, 16))
COUNTS = random_state.poisson(3, size=(40, 16)).astype(float)
FLAGS = (NUMBERS > 0).astype(float)
GAPS = np.where(random_state.uniform(size=NUMBERS.shape) < 0.1, np.nan, NUMBERS)
CODES = np.column_stack([random_state.integers(0, 3, size=40), NUMBERS[:, :3]])
PANDAS = pd.DataFrame(
    {
        "number": NUMBERS[:, 0],
        "single": NUMBERS[:, 1].astype("float32"),
        "text": ["u", "v", "w", None] * 10,
        "flag": NUMBERS[:, 2] > 0,
        "category": pd.Categorical(["x", "y"] * 20, ["x", "y", "z"], ordered=True),
        "whole": pd.Categorical([1, 2] * 20),
        "binned": pd.cut(NUMBERS[:, 3], 3),
        "count": random_state.poisson(2, size=40),
        "with_gaps": pd.array([1, None, 3, 4] * 10, dtype="Int64"),
        "string": pd.array(["q", "r"] * 20, dtype=pd.StringDtype("python")),
        "levels": [f"k{i % 20}" for i in range(40)],
        "sparse": pd.arrays.SparseArray([0.0, 1.5, 0.0, 2.5] * 10),
    }
)
POLARS = pl.DataFrame(
    {
        "number": NUMBERS[:, 0],
        "text": ["u", "v"] * 20,
        "flag": [True, None, False, True] * 10,
        "enum": pl.Series(["x", "y"] * 20, dtype=pl.Enum(["x", "y", "z"])),
        "category": pl.Series(["x", "y"] * 20, dtype=pl.Categorical),
        "small": pl.Series([1, 2] * 20, dtype=pl.Int8),
        "decimal": pl.Series([1, 2] * 20, dtype=pl.Decimal(10, 2)),
    }
)


class Own(nn.Module):
    """An encoder or decoder with attributes of many kinds, some of them shared."""

    def __init__(self, n_in, n_out, width=4):
        super().__init__()
        self.first = nn.Linear(n_in, width)
        self.again = self.first
        self.batch = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, n_out)
        self.register_buffer("kept", torch.ones(width))
        self.register_buffer("passing", torch.ones(width).t(), persistent=False)
        self.kinds = {
            1: (torch.float32, torch.device("cpu")),
            "set": {3, 1, 2},
            "numbers": [float("inf"), -0.0, 2**70, np.float32(0.1), b"ab", complex],
            "dates": np.array(["2020-01-01"], dtype="M8[D]"),
        }
        self.kinds["numbers"].pop()
        self.parent = (self,)
        self.act = nn.functional.softsign

    def forward(self, x):
        return self.last(self.batch(self.act(self.again(x)) * self.kept.to(x)))


class OwnPrior(StandardNormal):
    pass


def own_encoder(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, 4), nn.Tanh(), nn.Linear(4, n_out))


OWN = f"{__name__}:Own"
SOFT = "torch.nn.functional:softsign"


def model(**parameters):
    # without early stopping networks do not stay silent
    few = {"hidden_layer_sizes": (8,), "max_iter": 3, "early_stopping": False, "random_state": 0}
    return VAETransformer(2, **few | parameters)


CASES = {
    "numbers": (model(), NUMBERS, ()),
    "float32": (model(), NUMBERS.astype("float32"), ()),
    "early stopping": (model(early_stopping=True), NUMBERS, ()),
    "gaps": (model(noise="heteroscedastic"), GAPS, ()),
    "isotropic": (model(noise="isotropic", activation="gelu"), NUMBERS, ()),
    "homoscedastic": (model(noise="homoscedastic", activation="elu"), NUMBERS, ()),
    "fixed noise": (model(noise=0.1, activation="silu", init="random"), NUMBERS, ()),
    "student_t": (model(likelihood="student_t", activation="tanh"), NUMBERS, ()),
    "log_normal": (model(likelihood="log_normal"), COUNTS + 1, ()),
    "bernoulli": (model(likelihood="bernoulli"), FLAGS, ()),
    "poisson": (model(likelihood="poisson"), COUNTS, ()),
    "exposure": (model(likelihood="poisson", exposure="total"), COUNTS, ()),
    "negative_binomial": (model(likelihood="negative_binomial"), COUNTS, ()),
    "multinomial": (model(likelihood="multinomial"), COUNTS, ()),
    "sparse": (model(likelihood="multinomial"), sparse.csr_array(COUNTS), ()),
    "codes": (model(categorical_features=np.array([0])), CODES, ()),
    "pandas": (model(likelihood={"count": "negative_binomial"}), PANDAS, ()),
    "many levels": (
        model(),
        pd.DataFrame({"a": np.arange(140.0), "b": [f"k{i % 70}" for i in range(140)]}),
        (),
    ),
    "numbered": (model(), pd.DataFrame({7: NUMBERS[:, 0], 3: ["a", "b"] * 20}), ()),
    "polars": (model(likelihood={"small": "poisson"}), POLARS, ()),
    "mixture": (model(prior="mixture"), NUMBERS, ()),
    "importance samples": (
        model(prior=Mixture(3), n_importance_samples=2, dropout=0.1),
        NUMBERS,
        (),
    ),
    "vamp": (model(prior=Vamp(5)), NUMBERS, ()),
    "autoencoder": (model(beta=0), GAPS, ()),
    "perceptron": (model(network=Perceptron(), dropout=0.2), NUMBERS, ()),
    "convolutional": (model(network=Convolutional((4, 4), channels=(4,))), NUMBERS, ()),
    "temporal": (model(network=TemporalConvolutional(16, channels=(4,))), NUMBERS, ()),
    "graph": (model(network=Graph(np.eye(16, k=1) + np.eye(16))), NUMBERS, ()),
    "own class": (model(encoder=Own), NUMBERS, (OWN, SOFT)),
    "own instance": (model(decoder=Own(2, 16)), NUMBERS, (OWN, SOFT)),
    "own partial": (model(encoder=functools.partial(Own, width=3)), NUMBERS, (OWN, SOFT)),
    "own function": (model(encoder=own_encoder), NUMBERS, (f"{__name__}:own_encoder",)),
    "own prior": (model(prior=OwnPrior(2)), NUMBERS, (f"{__name__}:OwnPrior",)),
    "modules of torch": (model(encoder=own_encoder(16, 4)), NUMBERS, ()),
    "random state": (model(random_state=np.random.RandomState(3)), NUMBERS, ()),
}


def bits(value):
    """What is equal where two results are equal to the bit."""
    if isinstance(value, list | tuple):
        return [bits(each) for each in value]
    if isinstance(value, pd.DataFrame):
        return [*value.dtypes], [*value.columns], value.to_dict("list").__repr__()
    if isinstance(value, pl.DataFrame):
        return value.schema, value.to_dict(as_series=False).__repr__()
    value = np.asarray(value)
    cells = value.tolist() if value.dtype == object else value.tobytes()
    return value.dtype, value.shape, cells


def outputs(vae, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Z = vae.transform(X)
        found = [Z, vae.inverse_transform(Z), vae.get_feature_names_out(), vae.loss_curve_]
        if hasattr(vae, "sample"):
            found += [vae.sample(5, random_state=0), vae.score_samples(X), vae.posterior(X)]
            if not sparse.issparse(X):
                found.append(vae.impute(X))
    return bits(found)


def again(estimator, folder, trusted=()):
    path = folder / "model.skvae"
    estimator.save(path)
    return type(estimator).load(path, trusted=trusted)


@pytest.mark.parametrize("case", CASES)
def test_what_is_loaded_is_what_was_saved(case, tmp_path):
    estimator, X, trusted = CASES[case]
    vae = estimator.fit(X)
    loaded = again(vae, tmp_path, trusted)
    assert outputs(loaded, X) == outputs(vae, X)
    assert re.sub("0x.*", "", repr(loaded)) == re.sub("0x.*", "", repr(vae))
    assert loaded.get_params().keys() == vae.get_params().keys()
    first = (tmp_path / "model.skvae").read_bytes()
    loaded.save(tmp_path / "again.skvae")  # inference has left no trace, and neither has loading
    vae.save(tmp_path / "model.skvae")
    assert first == (tmp_path / "again.skvae").read_bytes()
    assert first == (tmp_path / "model.skvae").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_fitting_goes_on_as_without_saving(case, tmp_path):
    estimator, X, trusted = CASES[case]
    vae = estimator.fit(X)
    loaded = again(vae, tmp_path, trusted)
    for each in (vae, loaded):
        each.partial_fit(X)
    assert outputs(loaded, X) == outputs(vae, X)
    loaded = again(vae, tmp_path, trusted)
    for each in (vae, loaded):
        each.set_params(warm_start=True).fit(X)
        each.set_params(warm_start=False)
    assert outputs(loaded, X) == outputs(vae, X)
    assert loaded.loss_curve_ == vae.loss_curve_


def test_parts_of_a_model_stay_one(tmp_path):
    vae = model(prior="vamp", warm_start=True).fit(NUMBERS)
    loaded = again(vae, tmp_path)
    fit = loaded._fit
    assert fit.module is loaded.module_
    assert fit.density.encoder is fit.mean.encoder is loaded.module_.prior._encoder[0]
    assert loaded.module_.prior.pseudo_inputs is fit.mean.prior.pseudo_inputs
    with safe_open(tmp_path / "model.skvae", "pt") as file:
        names = [*file.keys()]
    assert sum("network.0.weight" in name and "encoder" in name for name in names) == 1


def test_tensors_of_one_memory_stay_so(tmp_path):
    own = Own(2, 16)
    own.view = own.first.weight.detach()
    own.register_buffer("turned", torch.arange(6.0).reshape(2, 3).t())
    vae = model(decoder=own).fit(NUMBERS)
    loaded = again(vae, tmp_path, (OWN, SOFT)).decoder
    assert loaded.first is loaded.again and loaded.parent == (loaded,)
    assert loaded.view.data_ptr() == loaded.first.weight.data_ptr()
    assert loaded.turned.stride() == (1, 3) and torch.equal(loaded.turned, own.turned)
    assert [*loaded.state_dict()] == [*own.state_dict()]
    assert loaded.kinds["numbers"] == [float("inf"), -0.0, 2**70, np.float32(0.1), b"ab"]
    assert str(loaded.kinds["numbers"][1]) == "-0.0"
    assert type(loaded.kinds["numbers"][3]) is np.float32
    assert loaded.kinds["set"] == {1, 2, 3} and loaded.kinds[1] == own.kinds[1]
    assert loaded.kinds["dates"] == own.kinds["dates"] and loaded.act is nn.functional.softsign


@pytest.mark.parametrize("X", [GAPS, PANDAS, POLARS], ids=["array", "pandas", "polars"])
def test_imputer(X, tmp_path):
    imputer = VAEImputer(model(), add_indicator=True).fit(X)
    loaded = again(imputer, tmp_path)
    assert bits(loaded.transform(X)) == bits(imputer.transform(X))
    names = loaded.get_feature_names_out()
    assert names.tolist() == imputer.get_feature_names_out().tolist()
    assert repr(loaded) == repr(imputer)


def test_the_last_step_of_a_pipeline(tmp_path):
    pipeline = make_pipeline(StandardScaler(), model()).fit(NUMBERS)
    loaded = again(pipeline[-1], tmp_path)
    scaled = pipeline[:-1].transform(NUMBERS)
    assert bits(loaded.transform(scaled)) == bits(pipeline.transform(NUMBERS))


def test_output_and_routing_are_kept(tmp_path):
    with config_context(enable_metadata_routing=True):
        vae = model().set_fit_request(sample_weight=True).set_output(transform="pandas")
        loaded = again(vae.fit(NUMBERS), tmp_path)
        assert bits(loaded.transform(NUMBERS)) == bits(vae.transform(NUMBERS))
        assert loaded.get_metadata_routing().fit.requests == {"sample_weight": True}
        assert loaded._metadata_request.owner is loaded


def test_callbacks_are_not_kept(tmp_path):
    vae = model()
    if not hasattr(vae, "set_callbacks"):
        pytest.skip("this scikit-learn has no callbacks")
    from sklearn.callback import ProgressBar

    vae.set_callbacks(ProgressBar()).fit(NUMBERS)
    assert [n for n in vars(again(vae, tmp_path)) if "callback" in n] == []
    assert [n for n in vars(vae) if "callback" in n] != []


@pytest.mark.parametrize("kind", [VAETransformer, VAEImputer, VAEOutlierDetector])
def test_skops_keeps_a_pipeline_to_the_bit(kind):
    part = model() if kind is VAETransformer else kind(model())
    pipeline = make_pipeline(StandardScaler(), part).fit(GAPS)
    data = skops.dumps(pipeline)
    trusted = skops.get_untrusted_types(data=data)
    assert trusted == [f"{kind.__module__}.{kind.__name__}"]  # and nothing that it is made of
    loaded = skops.loads(data, trusted=trusted)
    scaled = pipeline[:-1].transform(GAPS)
    for method in ("transform", "score_samples", "predict"):
        if hasattr(part, method):
            expected = bits(getattr(part, method)(scaled))
            assert bits(getattr(loaded[-1], method)(scaled)) == expected
    assert loaded[-1].get_params().keys() == part.get_params().keys()
    assert repr(skops.loads(skops.dumps(kind(random_state=3)), trusted)) == repr(
        kind(random_state=3)
    )


def test_skops_holds_no_code_of_ones_own():
    kept = Subclass(2, max_iter=0, random_state=0).fit(NUMBERS)
    trusted = [f"{__name__}.Subclass"]
    loaded = skops.loads(skops.dumps(kept), trusted=trusted)
    assert type(loaded) is Subclass  # which its user trusts by name
    assert bits(loaded.transform(NUMBERS)) == bits(kept.transform(NUMBERS))
    vae = model(encoder=Own).fit(NUMBERS)
    with pytest.raises(ValueError, match=rf"needs \['{__name__}:Own', .*keep it by save"):
        skops.dumps(vae)
    assert bits(pickle.loads(pickle.dumps(vae)).transform(NUMBERS)) == bits(vae.transform(NUMBERS))
    with pytest.raises(ValueError, match=rf"needs \['{__name__}:Subclass'\]"):
        skops.dumps(VAEImputer(Subclass(2, max_iter=0, random_state=0)).fit(NUMBERS))


class Locked(VAETransformer):
    """Has what cannot be pickled, and an attribute of a name that could be taken for another."""

    def fit(self, X, y=None):
        self.lock, self.file = threading.Lock(), "train.csv"
        return super().fit(X, y)

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("lock", None)
        return state


def unpickled(estimator):
    return pickle.loads(pickle.dumps(estimator))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, unpickled])
def test_pickle_and_copies_ask_a_subclass(again):
    vae = Locked(2, max_iter=0, random_state=0).fit(NUMBERS)
    kept = again(vae)
    assert not hasattr(kept, "lock") and kept.file == "train.csv"
    assert bits(kept.transform(NUMBERS)) == bits(vae.transform(NUMBERS))
    assert again(Locked(3)).n_components == 3


def test_what_skops_holds_is_verified():
    vae = model().fit(NUMBERS)
    data = vae.__getstate__()[FILE]
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data[:100], b"", "text", None):
        empty = VAETransformer()
        with pytest.raises(ValueError, match="what skops holds cannot be loaded: it "):
            empty.__setstate__({FILE: wrong})
        assert vars(empty) == vars(VAETransformer())
    with pytest.raises(ValueError, match="it holds a VAETransformer: use VAETransformer"):
        VAEImputer().__setstate__(vae.__getstate__())


class Subclass(VAETransformer):
    pass


def test_a_subclass_of_ones_own(tmp_path):
    vae = Subclass(2, max_iter=0, random_state=0).fit(NUMBERS)
    assert type(again(vae, tmp_path)) is Subclass
    with pytest.raises(ValueError, match=rf"it needs {__name__}:Subclass, which is not part"):
        VAETransformer.load(tmp_path / "model.skvae")


def test_the_file_can_be_read_by_people(tmp_path):
    vae = VAETransformer(2, max_iter=0, random_state=0).fit(PANDAS)
    vae.save(tmp_path / "model.skvae")
    with safe_open(tmp_path / "model.skvae", "pt") as file:
        header = json.loads(file.metadata()["skvae"])
        bias = file.get_tensor("_fit.mean.encoder.bias")
    assert torch.equal(bias, vae.module_.encoder.bias)
    assert header["format"] == FORMAT and header["versions"]["torch"] == torch.__version__
    state = header["estimator"]["state"]
    assert state["n_components"] == 2 and state["hidden_layer_sizes"] == {"tuple": [128, 128]}
    columns = state["_columns"]["state"]
    assert columns["names"]["list"] == [*PANDAS.columns]
    assert columns["families"]["list"][:4] == ["gaussian", "gaussian", "categorical", "bernoulli"]
    levels = dict(columns["levels"]["items"])
    assert levels[4]["objects"] == ["x", "y", "z"]


def test_every_module_of_skvae_has_a_name_in_files():
    abstract = {"Shaped", "_Components"}
    for info in pkgutil.iter_modules(skvae.__path__):
        if info.name != "onnx":  # whose modules live for the time of an export
            file = importlib.import_module(f"skvae.{info.name}")
            for name, found in inspect.getmembers(file, inspect.isclass):
                if issubclass(found, nn.Module) and found.__module__ == file.__name__:
                    assert name in MODULES or name in abstract, name
    for name, module in MODULES.items():
        assert isinstance(getattr(importlib.import_module(module), name.split(".")[-1]), type)


def test_files_of_each_format_can_be_read():
    """A file of each format that was ever released, and what its model said then.

    ``VAETransformer(1, hidden_layer_sizes=(4,), likelihood={"count": "poisson"}, max_iter=3)``,
    fitted on 60 rows with gaps.
    """
    assert FORMAT == 1, "Keep a file of the new format, too."
    vae = VAETransformer.load(Path(__file__).with_name("format_1.skvae"))
    X = pd.DataFrame(
        {
            "size": [np.nan, -1.5661164976467696, 3.6606358284599803, 0.8076641288182653],
            "count": [3.0, 2.0, 5.0, 4.0],
            "flag": [False, False, True, False],
            "kind": [None, "middle", "high", None],
        }
    )
    Z = [-0.41913429940610947, -0.6563418658841398, 1.236970303034131, -0.090965890079864]
    np.testing.assert_allclose(vae.transform(X).ravel(), Z, rtol=1e-9)
    assert vae.summary().startswith("VAETransformer(")
    nats = [-2.3044890295748726, -4.9192998639929115, -5.289198687519651, -4.353532829806902]
    np.testing.assert_allclose(vae.score_samples(X), nats, rtol=1e-9)
    means = vae.inverse_transform(vae.transform(X))
    assert means["flag"].tolist() == [False, False, True, False]
    assert means["kind"].tolist() == ["low", "low", "high", "middle"]
    expected = [2.67441331782319, 2.3685989931505795, 6.2433223720828455, 3.1636491494967753]
    np.testing.assert_allclose(means["count"], expected, rtol=1e-8)
    assert vae.get_params()["likelihood"] == {"count": "poisson"}
    assert vae.partial_fit(X).n_iter_ == 4  # and the model goes on learning


# ---------------------------------------------------------------- what is refused


def test_save_refuses_an_unfitted_model_and_leaves_nothing(tmp_path):
    with pytest.raises(NotFittedError, match="VAETransformer instance is not fitted yet"):
        model().save(tmp_path / "model.skvae")
    assert [*tmp_path.iterdir()] == []


def test_save_names_what_it_cannot_keep_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.skvae"
    path.write_text("old")
    vae = model(encoder=lambda n, m: nn.Linear(n, m)).fit(NUMBERS)
    with pytest.raises(ValueError, match=r"^encoder is made by .*<lambda> of test_saving, which"):
        vae.save(path)
    vae = model(prior=OwnPrior(2)).fit(NUMBERS)
    vae.prior.register_forward_hook(print)
    with pytest.raises(ValueError, match=r"^prior has _forward_hooks, which a file cannot hold"):
        vae.save(path)
    vae = model(decoder=Own(2, 16)).fit(NUMBERS)
    vae.decoder.forward = print
    with pytest.raises(ValueError, match=r"^decoder\.forward replaces a method"):
        vae.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.skvae"]
    assert path.read_text() == "old"


def test_save_names_the_path_of_what_it_cannot_keep(tmp_path):
    own = Own(2, 16)
    own.kinds = {"open": [1, iter([])]}
    vae = model(decoder=own).fit(NUMBERS)
    with pytest.raises(ValueError, match=r"^decoder\.kinds\.open\[1\] is a builtins.list_iterator"):
        vae.save(tmp_path / "model.skvae")
    own.kinds = [1]
    own.kinds.append(own.kinds)
    vae = model(decoder=own).fit(NUMBERS)
    with pytest.raises(ValueError, match=r"^decoder\.kinds\[1\] is part of itself"):
        vae.save(tmp_path / "model.skvae")


def test_own_code_is_imported_only_where_it_is_trusted(tmp_path):
    vae = model(encoder=Own).fit(NUMBERS)
    path = tmp_path / "model.skvae"
    vae.save(path)
    message = rf"cannot be loaded: it needs {OWN}, .* load\(path, trusted=\['{OWN}'\]\)"
    with pytest.raises(ValueError, match=message):
        VAETransformer.load(path)
    with pytest.raises(ValueError, match=f"it needs {SOFT}"):
        VAETransformer.load(path, trusted=[OWN])
    with pytest.raises(TypeError, match=rf"trusted must be a list of names, got '{OWN}'"):
        VAETransformer.load(path, trusted=OWN)


def test_files_of_others(tmp_path):
    path = tmp_path / "model.skvae"
    with pytest.raises(FileNotFoundError):
        VAETransformer.load(path)
    with pytest.raises(IsADirectoryError):
        VAETransformer.load(tmp_path)
    for content in (b"", b"\x80\x04.", b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} cannot be loaded: it is not a file that skv"):
            VAETransformer.load(path)
    model(max_iter=0).fit(NUMBERS).save(path)
    with pytest.raises(ValueError, match=r"it holds a VAETransformer: use VAETransformer\.load"):
        VAEImputer.load(path)


def test_damaged_files(tmp_path):
    path = tmp_path / "model.skvae"
    model(max_iter=0).fit(NUMBERS).save(path)
    data = path.read_bytes()
    for content, message in (
        (data[:500], "it is truncated, at 500 bytes"),
        (data[:-1], "it is corrupted or truncated: its SHA-256 is"),
        (data[:-1] + b"x", "it is corrupted or truncated: its SHA-256 is"),
        (data + b"x", "it is corrupted or truncated: its SHA-256 is"),
        ((2**40).to_bytes(8, "little") + data[8:], "its header claims 1099511627776 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            VAETransformer.load(path)


def altered(data, change):
    """A file whose JSON is changed, by somebody who knows how."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = change(header["__metadata__"]["skvae"], header)
    header["__metadata__"] = {"skvae": text}
    start = {"__metadata__": header.pop("__metadata__")}
    return sealed(json.dumps(start | header, separators=(",", ":")).encode(), data[8 + length :])


def sealed(header, tensors):
    data = bytearray(len(header).to_bytes(8, "little") + header + tensors)
    data[DIGITS] = b"0" * 64
    data[DIGITS] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format":1', '"format":2', "it has format 2, and this version of skvae reads formats up"),
        ('"class":"Columns"', '"class":"os.system"', "it holds a 'os.system', and no such class"),
        ('"class":"Columns"', '"class":"os:system"', "it needs os:system, which is not part of"),
        ('"list":[', '"lost":[', "it holds 'lost', and no such thing is known"),
        ('"ref":', '"ref":1', "it does not hold a model that works .KeyError"),
        ('"encoder_stays":false', '"encoder_stays":false,"forward":1', "VAE has no attribute 'for"),
        ('"encoder_stays":false', '"encoder_stays":false,"_modules":{"dict":{}}', "no attribute"),
        ('"n_columns":16', '"n_columns":99999999999', "it says 99999999999 is a size, and has"),
        ('"n_components":2', '"n_components":' + DEEP, "Error"),
        ('"tensor":"_fit.mean.encoder.bias"', '"tensor":"_fit.excess"', "model that works"),
        ('"tensor":"_fit.mean.encoder.bias"', '"tensor":"none"', "model that works"),
    ],
)
def test_files_altered_by_somebody_who_knows_how(old, new, message, tmp_path):
    path = tmp_path / "model.skvae"
    model(max_iter=0).fit(NUMBERS).save(path)

    def change(text, header):
        assert old in text
        return text.replace(old, new)

    data = altered(path.read_bytes(), change)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        VAETransformer.load(path)
    empty = VAETransformer()
    with pytest.raises(ValueError, match=message):
        empty.__setstate__({FILE: data})  # as skops would
    assert vars(empty) == vars(VAETransformer())


def test_wide_paddings_are_refused(tmp_path):
    path = tmp_path / "model.skvae"
    model(network=Convolutional((4, 4), channels=(4,)), max_iter=0).fit(NUMBERS).save(path)
    old = '"padding":{"tuple":[1,1]}'

    def change(text, header):
        assert old in text
        return text.replace(old, '"padding":{"tuple":[40,40]}')

    path.write_bytes(altered(path.read_bytes(), change))
    with pytest.raises(ValueError, match=r"a convolution of kernel \(3, 3\) has padding \(40"):
        VAETransformer.load(path)


# ---------------------------------------------------------------- fuzz

ODD = [None, True, 0, -1, 7, 2**70, 1e308, "", "x", "VAE", [], {}, [[]], {"ref": 0}, {"list": [1]}]
ODD += [{"tuple": [1, 2]}, {"float": "nan"}, {"dict": {}}, {"code": "VAE"}, {"scalar": "00"}]
ODD += [{"class": "nn.Conv2d", "state": {}}, {"numpy": "|O"}, {"pandas": "x"}, {"polars": "Enum"}]


def places(node, found):
    """All (container, key) of a tree."""
    for key in node if isinstance(node, dict) else range(len(node)):
        found.append((node, key))
        if isinstance(node[key], dict | list):
            places(node[key], found)
    return found


def damage(data, draw):
    """Bytes that change, go, come or swap places; the hash is no longer right."""
    data, at = bytearray(data), draw.randrange(len(data))
    kind = draw.choice(["flip", "truncate", "insert", "swap"])
    if kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "truncate":
        del data[at:]
    elif kind == "insert":
        data[at:at] = draw.randbytes(draw.choice([1, 8, 100]))
    else:
        other = draw.randrange(len(data))
        data[at], data[other] = data[other], data[at]
    return bytes(data)


def forge(data, draw):
    """A tree or a text that is changed, and the hash made right."""

    def change(text, header):
        kind = draw.choice(["tree", "tree", "tree", "tree", "text", "header"])
        if kind == "text":
            letters = list(text)
            for _ in range(draw.choice([1, 5])):
                letters[draw.randrange(80, len(letters))] = chr(draw.randrange(32, 127))
            return "".join(letters)
        tree = json.loads(text)
        every = places(header if kind == "header" else tree, [])
        every = [place for place in every if place[1] not in ("sha256", "skvae", "__metadata__")]
        for _ in range(draw.choice([1, 1, 3])):
            container, key = draw.choice(every)
            how = draw.choice(["odd", "odd", "other", "gone", "near"])
            try:
                if how == "gone":
                    del container[key]
                elif how == "other":
                    container[key] = json.loads(json.dumps(container[draw.choice([*container])]))
                elif how == "near" and type(container[key]) is int:
                    container[key] += draw.choice([-1, 1, 1000])
                elif how == "near":
                    source, name = draw.choice(every)
                    container[key] = json.loads(json.dumps(source[name]))
                else:
                    container[key] = draw.choice(ODD)
            except (LookupError, TypeError):
                continue  # it went with what was changed before
        return json.dumps(tree, separators=(",", ":"))

    try:
        return altered(data, change)
    except (KeyError, TypeError):
        return damage(data, draw)


def fuzz(n, seed=0):
    """Load so many damaged and forged files; what came of them, as counts.

    Anything but a ValueError, or a model that works, is raised.
    """
    draw, counts = random.Random(seed), Counter()
    originals = [
        (model().fit(PANDAS), PANDAS),
        (model(network=Convolutional((4, 4), channels=(4,)), max_iter=1).fit(NUMBERS), NUMBERS),
        (model(prior=Vamp(3), random_state=np.random.RandomState(0)).fit(GAPS), GAPS),
        (
            model(likelihood="multinomial", network=Graph(np.eye(16)), max_iter=1).fit(COUNTS),
            COUNTS,
        ),
        (VAEImputer(model(), add_indicator=True).fit(POLARS), POLARS),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.skvae"
        saved = []
        for estimator, X in originals:
            estimator.save(path)
            saved.append((estimator, X, path.read_bytes(), bits(estimator.transform(X))))
        for _ in range(n):
            estimator, X, data, expected = draw.choice(saved)
            attack = draw.choice([damage, forge])
            changed = attack(data, draw)
            path.write_bytes(changed)
            try:
                loaded = type(estimator).load(path)
            except ValueError as error:
                assert str(error).startswith(f"{path} cannot be loaded: "), error
                counts[attack.__name__, "refused"] += 1
                continue
            if attack is damage:
                assert changed == data
                counts["damage", "unchanged"] += 1
                continue
            loaded.save(path)
            same = path.read_bytes() == data
            assert not same or bits(loaded.transform(X)) == expected
            counts["forge", "the same model" if same else "another model that works"] += 1
    return counts


def test_fuzz():
    counts = fuzz(300)
    assert counts["damage", "refused"] > 100 and counts["forge", "refused"] > 50
    assert sum(counts.values()) == 300
