"""``save`` and ``load``: a fitted model as one file of data, which loading reads and never runs.

The file is a safetensors file: any reader of that format lists its tensors, which are named by the
attributes that hold them. Its metadata have one entry, ``skvae``, a JSON text::

    {"sha256": "...",       of the whole file, with zeros in the place of these 64 digits
     "format": 1,           raised when older versions of skvae could no longer read the file
     "versions": {...},     of skvae and what it builds on, for people to read
     "estimator": {...}}    the estimator's attributes: parameters, columns, networks

What JSON has no word for is an object whose first key says what it is, as written by `_Writer`
and read by `_Reader`: ``{"tuple": [128, 128]}``, ``{"tensor": "module_.encoder.weight"}``, or
``{"class": "Columns", "state": {...}}``, which becomes an instance without a call of its
constructor. Something that is met again is ``{"ref": 3}``, where the first has ``"id": 3``: what
was shared stays shared, and two tensors of one memory are one in the file.

Classes of `CLASSES` are known by these names. All other code, networks or functions of a user's
own, is named by its import path, ``module:qualname``, and imported only where ``trusted`` lists it.
"""

import contextlib
import functools
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import platform
import re
import secrets
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import safetensors
import sklearn
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

FORMAT = 1
FILE = "skvae file"  # what skops holds, by this name: no attribute is called so
# how each file goes on after the 8 bytes that say how long its header is
MAGIC = b'{"__metadata__":{"skvae":"{\\"sha256\\":\\"'
DIGITS = slice(8 + len(MAGIC), 8 + len(MAGIC) + 64)  # of the hash
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
CHUNK = 2**20  # bytes that are hashed at a time

# What may be made from a file without being asked for: nothing here runs what it is given.
CLASSES = {
    "estimator": "VAETransformer",
    "imputer": "VAEImputer",
    "columns": "Columns",
    "outlier": "VAEOutlierDetector",
    "fitting": "Fit",
    "settings": "Settings",
    "vae": "VAE",
    "likelihoods": "Gaussian StudentT Bernoulli Categorical ManyLevels Poisson NegativeBinomial "
    "Multinomial Mixed",
    "priors": "StandardNormal Mixture Vamp",
    "networks": "MLP Linear Dropout WithLinear Completion Spread Block Perceptron Convolutional "
    "TemporalConvolutional Graph _Perceptron _Grid _GridEncoder _GridDecoder _Messages "
    "_GraphEncoder _GraphDecoder",
}
TORCH_CLASSES = (
    "Sequential ModuleList ModuleDict Identity Flatten Linear Conv1d Conv2d LayerNorm BatchNorm1d "
    "Dropout ReLU LeakyReLU PReLU ELU SELU GELU SiLU Mish Tanh Sigmoid Softplus"
)
SKLEARN_CLASSES = "MetadataRequest MethodMetadataRequest"  # who takes sample_weight
MODULES = {name: f"skvae.{file}" for file, names in CLASSES.items() for name in names.split()}
MODULES |= {f"nn.{name}": "torch.nn" for name in TORCH_CLASSES.split()}
MODULES |= {f"sklearn.{n}": "sklearn.utils._metadata_requests" for n in SKLEARN_CLASSES.split()}

POLARS = "Boolean Int8 Int16 Int32 Int64 Int128 UInt8 UInt16 UInt32 UInt64 Float32 Float64 Decimal "
POLARS += "String Categorical Enum Null"
PLAIN = (bool, int, str, type(None))  # JSON's own
# whether pickle or a copy asks for an estimator's state
_PICKLING: ContextVar[bool] = ContextVar("_PICKLING", default=False)
OF_MODULES = {*vars(nn.Module())}  # attributes of torch's own, in every module


class SaveLoadMixin:
    """``save`` and ``load`` of a fitted estimator."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a file, whole or not at all.

        Equal models give equal bytes. Callbacks are not kept.

        Parameters
        ----------
        path : str or path-like
            Of the file; one that is there is replaced.

        Raises
        ------
        NotFittedError
        ValueError
            Where something cannot be kept, such as a network that a lambda makes. It says what.

        Examples
        --------
        >>> import os, tempfile
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> X = load_iris().data
        >>> vae = VAETransformer(2, random_state=0).fit(X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "iris.skvae")
        ...     vae.save(path)
        ...     again = VAETransformer.load(path)
        >>> bool((again.transform(X) == vae.transform(X)).all())
        True
        """
        check_is_fitted(self)
        data, target = _to_bytes(self, _Writer()), Path(path)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], trusted: Iterable[str] = ()) -> Self:
        """Read a model that `save` has written.

        No code in the file is run, for there is none, and none is imported but skvae's own and what
        ``trusted`` names. See SECURITY.md.

        Parameters
        ----------
        path : str or path-like
        trusted : iterable of str, default=()
            Import paths ``"module:qualname"`` of networks, priors and functions of your own which
            the model is made of. They are imported and run.

        Returns
        -------
        estimator : instance of this class
            Gives what the saved one gives, to the bit, and can be fitted further.

        Raises
        ------
        ValueError
            Where the file is none of skvae's, damaged, too new, not of this class, or needs code
            that is not in ``trusted``.
        """
        if isinstance(trusted, str):
            raise TypeError(f"trusted must be a list of names, got {trusted!r}: use [{trusted!r}].")
        names = {*trusted}
        with open(path, "rb") as file, _refusing(os.fspath(path)):
            size, text = _verified(file)
            with safetensors.safe_open(path, "pt") as tensors:
                return _made(cls, text, tensors.get_tensor, size, names)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What pickle and copies begin with."""
        token = _PICKLING.set(True)
        try:
            return super().__reduce_ex__(protocol)
        finally:
            _PICKLING.reset(token)

    def __getstate__(self) -> Any:
        """All attributes to pickle and copies; to skops, which holds no tensors, a file of `save`.

        An unfitted estimator has none.
        """
        if _PICKLING.get():
            return super().__getstate__()
        try:
            check_is_fitted(self)
        except NotFittedError:
            return super().__getstate__()
        writer = _Writer()
        file = _to_bytes(self, writer)
        if code := sorted(writer.code - {_name(type(self), "")}):
            raise ValueError(
                f"skops cannot hold a model that needs {code}, not skvae's own: keep it by save."
            )
        return {FILE: file}

    def __setstate__(self, state: Any) -> None:
        """Take what `__getstate__` gave either of them."""
        if isinstance(state, dict) and state.keys() == {FILE}:
            data = state[FILE]
            with _refusing("what skops holds"):
                size, text = _verified(io.BytesIO(data))
                get_tensor = tensors_from_bytes(data).__getitem__
                state = vars(_made(type(self), text, get_tensor, size, set()))
        super().__setstate__(state)  # type: ignore[misc]


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn whatever is found wrong with a file into one kind of error, that names it."""
    # what may be wrong with a file that was made to be wrong has no end
    try:
        with np.errstate(all="ignore"):
            yield
    except OSError:
        raise
    except ValueError as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{name} cannot be loaded: it does not hold a model that works "
            f"({type(error).__name__}: {error})."
        ) from error


def _to_bytes(estimator: Any, writer: "_Writer") -> bytes:
    tree = writer.node(estimator, "")
    header = {
        "sha256": "0" * 64,
        "format": FORMAT,
        "versions": {
            "skvae": importlib.import_module("skvae").__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "python": platform.python_version(),
        },
        "estimator": tree,
    }
    text = json.dumps(header, separators=(",", ":"), allow_nan=False)
    data = bytearray(tensors_to_bytes(writer.tensors, {"skvae": text}))
    assert data[8:].startswith(MAGIC)
    size = int.from_bytes(data[:8], "little")
    if size > LONGEST_HEADER:
        raise ValueError(
            f"The model's description takes {size} bytes, more than the {LONGEST_HEADER} that a "
            "file can hold: are there columns of very many categories?"
        )
    data[DIGITS] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def _made(cls: type, text: str, get_tensor: Any, size: int, trusted: set[str]) -> Any:
    """The instance of this class which a file's text describes."""
    # a user's own subclass is trusted, since it is what the user calls
    reader = _Reader(get_tensor, size, {*trusted, f"{cls.__module__}:{cls.__qualname__}"})
    header = json.loads(text)
    if not isinstance(header.get("format"), int) or header["format"] > FORMAT:
        raise ValueError(
            f"it has format {header.get('format')!r}, and this version of skvae reads formats up "
            f"to {FORMAT}. Update skvae: pip install --upgrade skvae."
        )
    found = header["estimator"].get("class")
    if reader.named(found) is not cls:
        raise ValueError(f"it holds a {found}: use {found.split(':')[-1]}.load.")
    estimator = reader.value(header["estimator"])
    _check_works(estimator)
    return estimator


def _verified(file: BinaryIO) -> tuple[int, str]:
    """The file's size and its JSON text, once its hash is found to be right."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(DIGITS.stop)
    if start[8 : DIGITS.start] != MAGIC:
        raise ValueError("it is not a file that skvae has saved.")
    length = int.from_bytes(start[:8], "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header claims {length} bytes, more than {LONGEST_HEADER}.")
    if 8 + length > size or len(start) < DIGITS.stop:
        raise ValueError(f"it is truncated, at {size} bytes. Copy it again.")
    expected = start[DIGITS]
    found = hashlib.sha256(start[: DIGITS.start] + b"0" * 64)
    while chunk := file.read(CHUNK):
        found.update(chunk)
    if found.hexdigest().encode() != expected:
        raise ValueError(
            f"it is corrupted or truncated: its SHA-256 is {found.hexdigest()}, and was "
            f"{expected.decode('ascii', 'replace')} when it was saved. Copy it again."
        )
    file.seek(8)
    header = json.loads(file.read(length))
    return size, header["__metadata__"]["skvae"]


# ---------------------------------------------------------------- objects -> JSON and tensors


class _Writer:
    """Objects as JSON, tensors apart.

    Attributes
    ----------
    tensors : dict of Tensor
        By the names that the JSON calls them.
    code : set of str
        Import paths of what is not skvae's own.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.code: set[str] = set()
        self._names: dict[Any, str] = {}  # memory -> name
        self._seen: dict[int, tuple[Any, Any]] = {}  # id -> the object, lest it go, and its node
        self._n_shared = 0

    def node(self, value: Any, path: str) -> Any:
        """What stands for this value, which is found at this path of attributes."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is tuple:
            return {"tuple": self._nodes(value, path)}
        if id(value) in self._seen:
            node = self._seen[id(value)][1]
            if node is None:
                raise ValueError(f"{path} is part of itself, which a file cannot hold.")
            if "id" not in node:
                node["id"] = self._n_shared
                self._n_shared += 1
            return {"ref": node["id"]}
        self._seen[id(value)] = value, None
        node = self._object(value, path)
        self._seen[id(value)] = value, node
        return node

    def _nodes(self, values: Iterable[Any], path: str) -> list[Any]:
        return [self.node(value, f"{path}[{i}]") for i, value in enumerate(values)]

    def _named_nodes(self, values: dict[str, Any], path: str) -> dict[str, Any]:
        start = f"{path}." if path else ""
        return {name: self.node(value, start + name) for name, value in values.items()}

    def _object(self, value: Any, path: str) -> dict[str, Any]:
        kind = type(value)
        if kind is list:
            return {"list": self._nodes(value, path)}
        if kind in (set, frozenset):
            return {kind.__name__: sorted(self._nodes(value, path), key=json.dumps)}
        if kind is dict and all(type(key) is str for key in value):
            return {"dict": self._named_nodes(value, path)}
        if kind in (dict, OrderedDict):
            items = [[self.node(k, path), self.node(v, f"{path}[{k!r}]")] for k, v in value.items()]
            return {"items": items, "ordered": kind is OrderedDict}
        if kind is bytes:
            return {"bytes": value.hex()}
        if isinstance(value, np.generic):
            cell = np.asarray(value)
            return {"scalar": cell.tobytes().hex(), "dtype": self._dtype(cell.dtype, path)}
        if kind is np.ndarray and value.dtype == object:
            return {"objects": self._nodes(value.ravel(), path), "shape": list(value.shape)}
        if kind is np.ndarray:
            return self._array(value, path)
        if kind in (Tensor, nn.Parameter):
            return self._tensor(value, path)
        if isinstance(value, torch.dtype):
            return {"torch": str(value).removeprefix("torch.")}
        if kind is torch.device:
            return {"device": str(value)}
        if kind is np.random.RandomState:
            state = value.get_state(legacy=True)
            return {"random": self._nodes(state, path)}
        if kind is sparse.csr_array:
            parts = value.data, value.indices, value.indptr
            return {"csr": self._nodes(parts, path), "shape": list(value.shape)}
        if kind is functools.partial:
            return {"partial": self._nodes((value.func, value.args, value.keywords), path)}
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            return {"code": self._code(value, path)}
        if (dtype := _from_tables(self, value, path)) is not None:
            return dtype
        return self._instance(value, path)

    def _code(self, code: Any, path: str) -> str:
        name = _name(code, path)
        if name not in MODULES:
            self.code.add(name)
        return name

    def _dtype(self, dtype: np.dtype[Any], path: str) -> str:
        if dtype.kind not in "biufcmMSU":
            raise ValueError(f"{path} is of type {dtype}, which a file cannot hold.")
        return dtype.str

    def _array(self, value: Any, path: str) -> dict[str, Any]:
        """Numbers as they are, other cells as bytes."""
        dtype = self._dtype(value.dtype, path)
        cells = np.ascontiguousarray(value).reshape(value.shape)
        if dtype[0] == ">" or value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            cells = np.frombuffer(cells.tobytes(), np.uint8)
        memory = value.__array_interface__["data"][0], value.shape, value.strides, dtype
        name = self._stored(torch.tensor(cells), memory, path)
        return {"array": name, "dtype": dtype, "shape": list(value.shape)}

    def _tensor(self, value: Tensor, path: str) -> dict[str, Any]:
        """In the order of its numbers in memory: products may depend on it in the last bit."""
        if value.layout != torch.strided or value.is_quantized or vars(value):
            raise ValueError(
                f"{path} is a tensor of layout {value.layout} with attributes {[*vars(value)]}, "
                "which a file cannot hold: keep a dense one."
            )
        cells = value.detach().cpu().resolve_conj().resolve_neg()
        order = sorted(range(cells.dim()), key=cells.stride, reverse=True)
        if not cells.permute(order).is_contiguous():
            order, cells = [*range(cells.dim())], cells.contiguous()
        memory = value.data_ptr(), tuple(value.shape), value.stride(), value.dtype
        node: dict[str, Any] = {"tensor": self._stored(cells.permute(order), memory, path)}
        if order != sorted(order):
            node["order"] = order
        if isinstance(value, nn.Parameter):
            node["parameter"] = True
        if value.requires_grad:
            node["trained"] = True
        return node

    def _stored(self, cells: Tensor, memory: tuple[Any, ...], path: str) -> str:
        """The name of these cells in the file, under which they may be already."""
        if memory not in self._names or not cells.numel():
            name = path if path not in self.tensors else f"{path}#{len(self.tensors)}"
            self._names[memory] = name
            self.tensors[name] = cells.clone()
        return self._names[memory]

    def _instance(self, value: Any, path: str) -> dict[str, Any]:
        cls = type(value)
        state = getattr(value, "__dict__", None)
        if state is None or hasattr(cls, "__slots__"):
            raise ValueError(
                f"{path} is a {cls.__module__}.{cls.__qualname__}, which a file cannot hold: only "
                "its attributes could be kept, and it has others. Use numbers, arrays or modules."
            )
        node: dict[str, Any] = {"class": self._code(cls, path)}
        self._seen[id(value)] = value, node  # what it holds may refer to it
        if isinstance(value, nn.Module):
            for name in ("parameters", "buffers", "modules"):
                node[name] = self._named_nodes(state[f"_{name}"], path)
            node["training"] = value.training
            if value._non_persistent_buffers_set:
                node["transient"] = sorted(value._non_persistent_buffers_set)
            for name in OF_MODULES:
                if "hooks" in name and state[name]:
                    raise ValueError(
                        f"{path} has {name}, which a file cannot hold. Remove the hook first."
                    )
            state = {n: v for n, v in state.items() if n not in OF_MODULES}
        kept = {}
        for name, each in state.items():
            if isinstance(value, BaseEstimator) and "callback" in name:
                continue
            if isinstance(_defined(cls, name), functools.cached_property):
                continue  # found again when it is needed
            if _is_code(cls, name):
                raise ValueError(f"{path}.{name} replaces a method, which a file cannot hold.")
            kept[name] = each
        node["state"] = self._named_nodes(kept, path)
        return node


def _defined(cls: type, name: str) -> Any:
    return inspect.getattr_static(cls, name, None)


def _is_code(cls: type, name: str) -> bool:
    """Whether the class defines this name as something to be run."""
    found = _defined(cls, name)
    return callable(found) or hasattr(type(found), "__get__")


def _name(code: Any, path: str) -> str:
    """What a class or function is called in a file."""
    name = getattr(code, "__name__", "")
    for known in (name, f"nn.{name}", f"sklearn.{name}"):
        if known in MODULES and _known(known) is code:
            return known
    module, qualname = code.__module__, code.__qualname__
    try:
        found = _imported(f"{module}:{qualname}")
    except (ImportError, AttributeError, ValueError):
        found = None
    if found is not code:
        raise ValueError(
            f"{path} is made by {qualname} of {module}, which cannot be imported by that name, so "
            "that a file cannot hold it. Define it with def or class at the top level of a module; "
            "functools.partial may fix some of its arguments."
        )
    return f"{module}:{qualname}"


def _known(name: str) -> Any:
    return getattr(importlib.import_module(MODULES[name]), name.split(".")[-1])


def _imported(name: str) -> Any:
    module, qualname = name.split(":")
    return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))


def _from_tables(writer: _Writer, value: Any, path: str) -> dict[str, Any] | None:
    """What a table's schema may hold: dtypes of numpy, pandas and polars, pandas' intervals."""
    library = type(value).__module__.split(".")[0]
    if isinstance(value, np.dtype):
        return {"numpy": value.str}
    if library == "pandas":
        import pandas as pd

        if value is pd.NA:
            return {"pandas": "NA"}
        if isinstance(value, pd.Interval):
            ends = writer._nodes((value.left, value.right, value.closed), path)
            return {"pandas": "Interval", "of": ends}
        if isinstance(value, pd.CategoricalDtype):
            if value.categories is None:
                return {"pandas": "category"}
            levels = writer._nodes(value.categories, path)
            inner = writer.node(value.categories.dtype, path)
            return {"pandas": "Categorical", "of": [levels, inner, value.ordered]}
        if isinstance(value, pd.StringDtype):
            missing = value.na_value is pd.NA
            return {"pandas": "String", "of": [value.storage, missing]}
        if isinstance(value, pd.SparseDtype):
            parts = writer._nodes((value.subtype, value.fill_value), path)
            return {"pandas": "Sparse", "of": parts}
        node: dict[str, Any] = {"pandas": str(value)}
    elif library == "polars":
        node = {"polars": type(value).__name__}
        if node["polars"] == "Enum":
            node["of"] = [value.categories.to_list()]
        elif node["polars"] == "Decimal":
            node["of"] = [value.precision, value.scale]
    else:
        return None
    try:
        same = _Reader(None, 0, set()).value(node) == value
    except (TypeError, ValueError, AttributeError):
        same = False
    if not same:
        raise ValueError(
            f"{path} is {value!r}, a type of {library} that a file cannot hold. Convert the column "
            "to numbers or text before fit."
        )
    return node


# ---------------------------------------------------------------- JSON and tensors -> objects


class _Reader:
    """The inverse of `_Writer`, which takes nothing for granted.

    Parameters
    ----------
    get_tensor : callable
        Gives the tensor of a name.
    size : int
        Of the file: no number that a module holds as a size may be larger.
    trusted : set of str
        Import paths of what may be imported.
    """

    def __init__(self, get_tensor: Any, size: int, trusted: set[str]) -> None:
        self.get_tensor, self.size, self.trusted = get_tensor, size, trusted
        self._cells: dict[str, Tensor] = {}
        self._arrays: dict[str, Any] = {}
        self._shared: dict[int, Any] = {}
        self._kinds: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
            "float": lambda text, node: float(text),
            "tuple": lambda nodes, node: tuple(self._values(nodes)),
            "list": lambda nodes, node: self._values(nodes),
            "set": lambda nodes, node: set(self._values(nodes)),
            "frozenset": lambda nodes, node: frozenset(self._values(nodes)),
            "dict": lambda nodes, node: self._named(nodes),
            "items": self._items,
            "bytes": lambda text, node: bytes.fromhex(text),
            "scalar": lambda t, n: np.frombuffer(bytes.fromhex(t), _dtype(n["dtype"]), 1)[0],
            "objects": self._objects,
            "array": self._array,
            "tensor": self._tensor,
            "torch": self._torch_dtype,
            "device": lambda text, node: torch.device(text),
            "random": self._random,
            "csr": self._csr,
            "partial": self._partial,
            "code": lambda name, node: self.named(name),
            "numpy": lambda text, node: np.dtype("O") if text == "|O" else _dtype(text),
            "pandas": self._pandas,
            "polars": self._polars,
            "class": self._instance,
        }

    def value(self, node: Any) -> Any:
        """What this node stands for."""
        if type(node) in (*PLAIN, float):
            return node
        if not isinstance(node, dict) or not node:
            raise ValueError(f"it says {str(node)[:50]} where it should say what that is.")
        kind = next(iter(node))
        if kind == "ref":
            return self._shared[node["ref"]]
        if kind not in self._kinds:
            raise ValueError(f"it holds {kind[:50]!r}, and no such thing is known.")
        found = self._kinds[kind](node[kind], node)
        if "id" in node:
            self._shared[node["id"]] = found
        return found

    def _values(self, nodes: Any) -> list[Any]:
        if not isinstance(nodes, list):
            raise ValueError(f"it says {str(nodes)[:50]} where it should give a list.")
        return [self.value(node) for node in nodes]

    def _named(self, nodes: Any) -> dict[str, Any]:
        if not isinstance(nodes, dict):
            raise ValueError(f"it says {str(nodes)[:50]} where it should give names and values.")
        return {name: self.value(node) for name, node in nodes.items()}

    def _items(self, nodes: Any, node: dict[str, Any]) -> Any:
        items = [(self.value(key), self.value(value)) for key, value in nodes]
        return OrderedDict(items) if node["ordered"] else dict(items)

    def _objects(self, nodes: Any, node: dict[str, Any]) -> Any:
        cells = self._values(nodes)
        flat = np.empty(len(cells), dtype=object)
        flat[:] = cells
        return flat.reshape(_shape(node))

    def _stored(self, name: str) -> Tensor:
        if name not in self._cells:
            # into memory of its own: the file's is not aligned, and products may depend on that
            self._cells[name] = self.get_tensor(name).clone()
        return self._cells[name]

    def _array(self, name: str, node: dict[str, Any]) -> Any:
        if name not in self._arrays:
            self._arrays[name] = self.get_tensor(name).numpy().copy()
        # a view: however often a file names an array, it is in memory once
        return self._arrays[name].view(_dtype(node["dtype"])).reshape(_shape(node))

    def _tensor(self, name: str, node: dict[str, Any]) -> Tensor:
        cells = self._stored(name).detach()
        if "order" in node:
            cells = cells.permute(*np.argsort(node["order"]).tolist())
        trained = node.get("trained", False)
        if node.get("parameter"):
            return nn.Parameter(cells, trained)
        return cells.requires_grad_(trained)

    def _torch_dtype(self, name: str, node: dict[str, Any]) -> torch.dtype:
        dtype = vars(torch)[name]
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"torch.{name} is no type of numbers.")
        return dtype

    def _random(self, nodes: Any, node: dict[str, Any]) -> np.random.RandomState:
        random, state = np.random.RandomState(), tuple(self._values(nodes))
        if not 0 <= state[2] <= 624:  # numpy would read beyond its numbers
            raise ValueError(f"a random state in it is at position {state[2]} of 624.")
        random.set_state(state)
        return random

    def _csr(self, nodes: Any, node: dict[str, Any]) -> Any:
        data, indices, indptr = self._values(nodes)
        if any(not isinstance(part, np.ndarray) for part in (data, indices, indptr)):
            raise ValueError("a sparse array in it has no arrays.")
        found = sparse.csr_array((data, indices, indptr), shape=_shape(node))
        found.check_format(full_check=True)
        return found

    def _partial(self, nodes: Any, node: dict[str, Any]) -> Any:
        function, args, keywords = self._values(nodes)
        return functools.partial(function, *args, **keywords)

    def named(self, name: Any) -> Any:
        """The class or function of this name, if it is skvae's own or trusted."""
        if not isinstance(name, str):
            raise ValueError(f"it names {str(name)[:50]} as code.")
        if name in MODULES:
            return _known(name)
        if not re.fullmatch(r"[\w.]+:[\w.]+", name):
            raise ValueError(f"it holds a {name[:200]!r}, and no such class is known.")
        if name not in self.trusted:
            raise ValueError(
                f"it needs {name}, which is not part of skvae: importing it runs code. If you "
                f"trust that code, name it: load(path, trusted=[{name!r}])."
            )
        return _imported(name)

    def _instance(self, name: Any, node: dict[str, Any]) -> Any:
        cls = self.named(name)
        if not isinstance(cls, type):
            raise ValueError(f"{name} is no class.")
        made: Any = cls.__new__(cls)  # type: ignore[call-overload]
        if "id" in node:
            self._shared[node["id"]] = made  # what it holds may refer to it
        own = name in MODULES and (issubclass(cls, nn.Module) or cls.__name__ == "_Grid")
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
            for part, kind in (("parameters", nn.Parameter), ("buffers", Tensor)):
                found = self._named(node[part])
                _check_kinds(found, kind)
                getattr(made, f"_{part}").update(found)
            found = self._named(node["modules"])
            _check_kinds(found, nn.Module)
            made._modules.update(found)
            made.training = bool(node["training"])
            transient = node.get("transient", [])
            if any(each not in made._buffers for each in transient):
                raise ValueError(f"{name} has no buffers {str(transient)[:50]}.")
            made._non_persistent_buffers_set.update(transient)
        state = self._named(node["state"])
        for attribute, value in state.items():
            if _is_code(cls, attribute) or attribute in vars(made) or attribute.startswith("__"):
                raise ValueError(f"{name} has no attribute {attribute[:50]!r} to set.")
            if own:
                self._check_sizes(value)
        vars(made).update(state)
        if isinstance(made, nn.Conv1d | nn.Conv2d):
            _check_padding(made)
        return made

    def _check_sizes(self, value: Any) -> None:
        """Refuse sizes, and shapes, of more numbers than the file has bytes."""
        if isinstance(value, int) and abs(value) > self.size:
            raise ValueError(f"it says {value} is a size, and has {self.size} bytes itself.")
        if isinstance(value, list | tuple):
            for each in value:
                self._check_sizes(each)
            if isinstance(value, tuple) and all(isinstance(each, int) for each in value):
                self._check_sizes(math.prod(value))

    def _pandas(self, name: str, node: dict[str, Any]) -> Any:
        import pandas as pd

        of = node.get("of", ())
        if name == "NA":
            return pd.NA
        if name == "Interval":
            return pd.Interval(*self._values(of))
        if name == "Categorical":
            levels, inner, ordered = of
            index = pd.Index(self._values(levels), dtype=self.value(inner))
            return pd.CategoricalDtype(index, ordered)
        if name == "String":
            storage, missing = of
            return pd.StringDtype(storage) if missing else pd.StringDtype(storage, np.nan)
        if name == "Sparse":
            return pd.SparseDtype(*self._values(of))
        if not re.fullmatch(r"[\w\[\], ]+", name):
            raise ValueError(f"it names {name[:50]!r} as a type of pandas.")
        return pd.api.types.pandas_dtype(name)

    def _polars(self, name: str, node: dict[str, Any]) -> Any:
        import polars as pl

        if name not in POLARS.split():
            raise ValueError(f"it names {name[:50]!r} as a type of polars.")
        return getattr(pl, name)(*node.get("of", ()))


def _dtype(text: Any) -> np.dtype[Any]:
    """numpy's dtype of this name, of cells that are bytes and nothing else."""
    if not (isinstance(text, str) and re.fullmatch(r"[<>|=][biufcmMSU]\d+(\[\w+\])?", text)):
        raise ValueError(f"it names {str(text)[:50]!r} as a type of numbers.")
    return np.dtype(text)


def _shape(node: dict[str, Any]) -> tuple[int, ...]:
    shape = tuple(node["shape"])
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"it names {str(shape)[:50]} as a shape.")
    return shape


def _check_kinds(values: dict[str, Any], kind: type) -> None:
    for name, value in values.items():
        if not (value is None or isinstance(value, kind)):
            raise ValueError(f"{name[:50]} is a {type(value).__name__}, not a {kind.__name__}.")


def _check_padding(layer: Any) -> None:
    """Refuse paddings wider than the kernel, beside which the file could be small."""
    kernel, padding = layer.weight.shape[2:], layer.padding
    if not isinstance(padding, str):
        if any(not 0 <= p <= k for p, k in zip(padding, kernel, strict=True)):
            raise ValueError(f"a convolution of kernel {tuple(kernel)} has padding {padding}.")
        both = [p for p in reversed(padding) for _ in range(2)]
        if layer.padding_mode != "zeros" and layer._reversed_padding_repeated_twice != both:
            raise ValueError(f"a convolution has padding {padding}, and {both} elsewhere.")


def _check_works(estimator: Any) -> None:
    """Let one row go through the model; whatever fails says that it is none."""
    if hasattr(estimator, "estimators_"):
        for each in estimator.estimators_:
            _check_works(each)
    model = estimator if hasattr(estimator, "_fit") else estimator.estimator_
    module, columns = model.module_, model._columns
    k, n = model._n_features_out, len(columns.names)
    if k != module.n_components:
        raise ValueError(f"it has {k} components, and its module {module.n_components}.")
    # a cell that each family takes
    T = np.array([[0.0 if f == "categorical" else 1.0 for f in columns.families]])
    mean, _ = model._posterior(columns.decode(T))
    back = model.inverse_transform(mean)
    with torch.no_grad():
        targets = torch.tensor(module.likelihood.standardize(T))
        score = module.log_prob(targets, torch.zeros(2, k, dtype=torch.float64))
        of_gaps, _ = module.posterior(torch.full_like(targets, math.nan))
        drawn = module.prior.sample(1, torch.Generator().manual_seed(0), torch.float64)
    for each in (model, estimator):
        if hasattr(each, "get_feature_names_out"):
            each.get_feature_names_out()
    shapes = [tuple(each.shape) for each in (mean, of_gaps, drawn, back, score)]
    if shapes != [(1, k), (1, k), (1, k), (1, n), (1,)]:
        raise ValueError(f"what it makes of a row has the shapes {shapes}.")
