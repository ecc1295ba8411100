"""Networks, the linear path beside them, and their gradients.

The contract for a user's own network: an encoder maps (n, n_in) to (n, 2 * n_components), the
posterior's means and log-variances side by side; a decoder maps (n, n_components) to
(n, n_params), the likelihood's raw parameters. Neither needs to know about the linear path:
``WithLinear`` adds it.

The modules here offer, beside ``forward``, the same with its gradient in closed form: ``out, back =
module.vjp(x)``, where ``back(grad, True)`` sets the gradients of the parameters and returns the
gradient with respect to x. What ``back(grad, False)`` returns is of no use.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from skvae.checks import check_integer, check_sizes
from skvae.gradients import Back, clear, gradient_of, network_vjp, through_clamp
from skvae.workspace import Sized

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": functools.partial(nn.ReLU, inplace=True),  # no gradient needs the layer's output
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}

# (gradient of the output, input, output) -> gradient of the input
_aten = torch.ops.aten
_threshold_backward = _aten.threshold_backward.grad_input  # chosen once: half of a call
_DERIVATIVES: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    # in place: an MLP ends in a linear layer, so that the gradient is a product made for this one
    nn.ReLU: lambda grad, x, out: _threshold_backward(grad, out, 0, grad_input=grad),
    nn.SiLU: lambda grad, x, out: _aten.silu_backward(grad, x),
    nn.GELU: lambda grad, x, out: _aten.gelu_backward(grad, x),
    nn.Tanh: lambda grad, x, out: _aten.tanh_backward(grad, out),
    nn.ELU: lambda grad, x, out: _aten.elu_backward(grad, 1.0, 1.0, 1.0, True, out),
}


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own, never from torch's global one.

    ``generator`` is set for the time of training and None otherwise: then nothing is dropped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if (kept := self._kept(x)) is None else x * kept

    def vjp(self, x: Tensor) -> tuple[Tensor, Back]:
        if (kept := self._kept(x)) is None:
            return x, lambda grad, wanted: grad
        return x * kept, lambda grad, wanted: grad * kept

    def _kept(self, x: Tensor) -> Tensor | None:
        """What units are multiplied by; None where nothing is dropped."""
        if self.generator is None or not self.training:
            return None
        uniform = torch.rand(x.shape, generator=self.generator, dtype=x.dtype)
        return (uniform >= self.p).to(x) / (1 - self.p)


class MLP(nn.Sequential):
    """Linear layers, activations and `Dropout` in turn, as `mlp` builds it, a linear layer last."""

    @property
    def last(self) -> nn.Module:
        """The layer that can be silenced."""
        return self[-1]

    def vjp(self, x: Tensor) -> tuple[Tensor, Back]:
        backs = []
        for layer in self:
            x, back = _vjp(layer, x)
            backs.append(back)

        def back_through(grad: Tensor, wanted: bool) -> Tensor:
            for back in backs[:0:-1]:
                grad = back(grad, True)
            return backs[0](grad, wanted)

        return x, back_through


def _vjp(layer: nn.Module, x: Tensor) -> tuple[Tensor, Back]:
    if isinstance(layer, nn.Linear):
        weight, bias = layer.weight, layer.bias

        def back(grad: Tensor, wanted: bool) -> Tensor:
            torch.mm(grad.t(), x, out=gradient_of(weight))
            if bias is not None:
                torch.sum(grad, 0, out=gradient_of(bias))
            return grad.mm(weight) if wanted else grad

        return nn.functional.linear(x, weight, bias), back
    if isinstance(layer, Dropout):
        return layer.vjp(x)
    out: Tensor = layer.forward(x)  # no hooks to call
    derivative = _DERIVATIVES[type(layer)]
    return out, lambda grad, wanted: derivative(grad, x, out)


class Linear(nn.Linear):
    """``nn.Linear`` whose weights are not set: its own come from torch's global generator."""

    def reset_parameters(self) -> None:
        pass


def linear_layer(n_in: int, n_out: int, generator: torch.Generator, bias: bool = True) -> Linear:
    """``nn.Linear`` with torch's own initial distribution, drawn from ``generator``."""
    layer = Linear(n_in, n_out, bias, dtype=torch.float32)
    limit = 1 / math.sqrt(max(n_in, 1))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-limit, limit, generator=generator)
        layer.weight.data = by_columns(layer.weight)
    return layer


def by_columns(matrix: Tensor) -> Tensor:
    """A copy whose columns, not rows, lie one after another in memory.

    So laid out, weights need not be turned round where rows of data meet them: of 128 rows, a
    layer's output takes up to a quarter less time.
    """
    return matrix.detach().t().clone(memory_format=torch.contiguous_format).t()


def mlp(
    n_in: int,
    n_out: int,
    hidden_layer_sizes: Sequence[int],
    activation: str,
    dropout: float,
    generator: torch.Generator,
) -> MLP:
    """A multi-layer perceptron; no hidden layer leaves a linear map.

    The last layer has no bias: what the network is added to has one of its own.

    Examples
    --------
    >>> import torch
    >>> from skvae.networks import mlp
    >>> net = mlp(4, 2, (8,), "relu", 0.0, torch.Generator().manual_seed(0))
    >>> net(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """
    layers: list[nn.Module] = []
    for size in hidden_layer_sizes:
        layers += [linear_layer(n_in, size, generator), ACTIVATIONS[activation]()]
        if dropout:
            layers.append(Dropout(dropout))
        n_in = size
    return MLP(*layers, linear_layer(n_in, n_out, generator, bias=False))


def silence(network: "MLP | Shaped") -> "MLP | Shaped":
    """Set the last layer to zero: the network is there, and says nothing yet."""
    with torch.no_grad():
        for parameter in network.last.parameters():
            parameter.zero_()
    return network


def silence_fresh(network: nn.Module, n_in: int) -> bool:
    """Set the last linear layer of a user's new network to zero, or the last two, if of two heads.

    Returns whether that silences the network, in evaluation mode, and each of these layers can
    learn to speak: behind another layer of zeros or a ReLU none would. If not, it is as it was.
    """
    x = torch.randn(8, n_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for heads in (layers[-1:], layers[-2:]):
        before = copy.deepcopy([layer.state_dict() for layer in heads])
        zeroed = [parameter for layer in heads for parameter in layer.parameters()]
        learning = [parameter for parameter in zeroed if parameter.requires_grad]
        with torch.no_grad():
            for parameter in zeroed:
                parameter.zero_()
        with torch.enable_grad():
            out = network(x)
            if learning and out.requires_grad and not out.any():
                gradients = torch.autograd.grad(
                    out.square().sum() + out.sum(), learning, allow_unused=True
                )
                if all(g is not None and bool(g.any()) for g in gradients):
                    return True
        for layer, state in zip(heads, before, strict=True):
            layer.load_state_dict(state)
    return False


class WithLinear(nn.Module):
    """A linear path and a network side by side: ``weight x + bias + gate * network(x)``.

    Parameters
    ----------
    weight : Tensor of shape (n_linear, n_in)
        The linear path. It reaches the first ``n_linear`` outputs; the others have a bias alone.
    bias : Tensor of shape (n_out,)
        Bias of all outputs.
    network : Module
        Maps (n, n_in) to (n, n_out).
    gate : bool, default=False
        Whether the network passes a gate that starts at zero, so that a network whose last layer
        is not zero does not disturb the start.
    closed_form : bool, default=False
        Whether the network is an `MLP` just as `mlp` built it, whose gradient is known. Autograd
        alone knows that of a network which a user may have edited: its layers, hooks, weights.
    reach : float, default=inf
        The network reads its input clamped to [-reach, reach]: beyond the training data it goes
        on level, and the linear path alone extrapolates. One cell a million standard deviations
        out would else steer all hidden units.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        network: nn.Module,
        gate: bool = False,
        closed_form: bool = False,
        reach: float = math.inf,
    ) -> None:
        super().__init__()
        self.closed_form = closed_form
        self.weight = nn.Parameter(by_columns(weight))
        self.bias = nn.Parameter(bias.clone())
        self.network, self.reach = network, reach
        self.gate = nn.Parameter(weight.new_zeros(())) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        near = x if math.isinf(self.reach) else x.clamp(-self.reach, self.reach)
        out: Tensor = self.network(near)  # (n, n_out)
        if self.gate is not None:
            out = self.gate * out
        n_linear = len(self.weight)
        # the network's output may be remembered elsewhere: what is added to is this one
        reached = nn.functional.linear(x, self.weight, self.bias[:n_linear])
        reached.add_(out[:, :n_linear])
        if n_linear == len(self.bias):
            return reached
        return torch.cat([reached, out[:, n_linear:] + self.bias[n_linear:]], 1)

    @property
    def vjp(self) -> Callable[[Tensor], tuple[Tensor, Back]] | None:
        """None where autograd has to find the gradient."""
        return self._vjp if self.closed_form else None

    def _vjp(self, x: Tensor) -> tuple[Tensor, Back]:
        weight, bias, reach = self.weight, self.bias, self.reach
        far, narrow = not math.isinf(reach), len(weight) < len(bias)
        out, back_network = cast(MLP, self.network).vjp(x.clamp(-reach, reach) if far else x)
        out.add_(bias)  # the last layer is linear: nothing remembers its output
        (out[:, : len(weight)] if narrow else out).addmm_(x, weight.t())

        def back(grad: Tensor, wanted: bool) -> Tensor:
            through = grad[:, : len(weight)] if narrow else grad
            torch.mm(through.t(), x, out=gradient_of(weight))
            torch.sum(grad, 0, out=gradient_of(bias))
            inner = back_network(grad, wanted)
            if not wanted:
                return grad
            inner = through_clamp(inner, x, -reach, reach) if far else inner
            return inner.addmm_(through, weight)

        return out, back


def recast(module: Any, dtype: torch.dtype) -> Any:
    """A copy of a module in this dtype, as `deepcopy` and `to` make it, several times as fast."""
    # what is no module of ours or torch's was copied as it is
    return _copied(module, dtype, {}).to(dtype)


def _copied(module: nn.Module, dtype: torch.dtype, known: dict[int, Any]) -> Any:
    """The copy of a module; ``known`` are those of its parts, as in `deepcopy`."""
    if id(module) in known:
        return known[id(module)]
    kind = type(module)
    if not kind.__module__.startswith(("skvae.", "torch.nn.modules.")):
        return copy.deepcopy(module, known)  # which may have its own idea of a copy
    new = known[id(module)] = kind.__new__(kind)

    def tensor(given: Tensor | None) -> Tensor | None:
        if given is not None and id(given) not in known:
            wanted = dtype if given.is_floating_point() else given.dtype
            made = given.detach().to(wanted, copy=True)
            learned = isinstance(given, nn.Parameter)
            known[id(given)] = nn.Parameter(made, given.requires_grad) if learned else made
        return None if given is None else known[id(given)]

    parts: dict[str, Any] = {
        "_parameters": {name: tensor(each) for name, each in module._parameters.items()},
        "_buffers": {name: tensor(each) for name, each in module._buffers.items()},
        "_modules": {
            name: None if each is None else _copied(each, dtype, known)
            for name, each in module._modules.items()
        },
    }
    for name, value in vars(module).items():
        # torch's own copies are not compiled either
        if name in parts or name == "_compiled_call_impl":
            continue
        # a module has a dozen dictionaries for hooks, which are empty: most of what deepcopy does
        empty = isinstance(value, dict | set) and not value
        parts[name] = value.copy() if empty else copy.deepcopy(value, known)
    new.__dict__.update(parts)
    return new


class Completion(nn.Module):
    """What an encoder reads where cells are missing: their mean under the linear model.

    The linear model ``x = center + W z + e`` knows E[z | what is observed] for any pattern of gaps.
    Gaps are filled with ``center + W E[z | observed]``: a linear encoder that is exact on whole
    rows is then exact on these as well. Gaps also leave z less certain, by factors that the
    encoder's log-variances are given.

    Parameters
    ----------
    weight : Tensor of shape (n_inputs, n_components)
    noise : Tensor of shape (n_inputs,)
        Variances of e.
    center : Tensor of shape (n_inputs,)
    """

    CHUNK = 4096  # rows at a time

    def __init__(self, weight: Tensor, noise: Tensor, center: Tensor) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("noise", noise), ("center", center)):
            self.register_buffer(name, value.clone())
        self.weight: Tensor
        self.noise: Tensor
        self.center: Tensor

    def hints(self, inputs: Tensor) -> Tensor:
        """E[z | observed] and log of (Var[z | observed] / Var[z | all]): (n, 2 * n_components).

        Inputs are (n, n_inputs), NaN where missing.
        """
        k = self.weight.shape[1]
        scaled = self.weight / self.noise[:, None]
        products = (scaled[:, :, None] * self.weight[:, None]).reshape(-1, k * k)
        eye = torch.eye(k, dtype=inputs.dtype, device=inputs.device)
        whole = (1 + products.sum(0).reshape(k, k).diagonal()).log()
        observed = ~inputs.isnan()
        deviation = torch.where(observed, inputs - self.center, 0.0) @ scaled
        # rows with the same gaps share the precision of z
        patterns, pattern = observed.to(inputs).unique(dim=0, return_inverse=True)
        variances = [
            torch.linalg.inv(eye + (part @ products).reshape(-1, k, k))
            for part in patterns.split(self.CHUNK)
        ]
        variance = torch.cat(variances)
        extra = variance.diagonal(dim1=1, dim2=2).log() + whole
        means = [
            (variance[at] @ rows[..., None])[..., 0]
            for at, rows in zip(pattern.split(self.CHUNK), deviation.split(self.CHUNK), strict=True)
        ]
        return torch.cat([torch.cat(means), extra[pattern]], -1)

    def forward(self, inputs: Tensor, mean: Tensor) -> Tensor:
        """Inputs (n, n_inputs) without gaps, given E[z | observed] (n, n_components)."""
        return torch.where(inputs.isnan(), torch.addmm(self.center, mean, self.weight.T), inputs)


class Spread(nn.Module):
    """A decoder of means, and beside it a network of log-variances that shares nothing with it.

    Beyond ``reach`` standard deviations of the prior, where no training row was, log-variances
    grow: a row that is strange in one column should not meet a spread learned elsewhere.
    """

    def __init__(self, decoder: nn.Module, network: nn.Module, reach: float = 3.0) -> None:
        super().__init__()
        self.decoder, self.network, self.reach = decoder, network, reach

    def log_var(self, z: Tensor) -> Tensor:
        inside, growth = self._read(z)
        out: Tensor = self.network(inside) + growth
        return out

    def log_var_vjp(self, z: Tensor) -> tuple[Tensor, Back]:
        """`log_var`, and what takes a gradient back to the network's parameters, no further."""
        clear(self.network)
        inside, growth = self._read(z)
        out, back = network_vjp(self.network, inside)
        return out + growth, back

    def _read(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the network reads, and what its output grows by."""
        inside = z.clamp(-self.reach, self.reach)
        return inside, 2 * (z - inside).square().sum(-1, keepdim=True).log1p()

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([self.decoder(z), self.log_var(z)], -1)


# ---------------------------------------------------------------- networks by the data's shape


DENSE_NODES = 1024  # up to so many, the adjacency of a graph is a dense matrix


class Block(nn.Module):
    """A hidden layer with a shortcut around it where sizes allow: ``x + f(x)``, or ``f(x)``."""

    def __init__(self, n_in: int, n_out: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.shortcut = n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.shortcut else out


class Shaped(Sized, nn.Module):
    """A network whose last layer is linear, and can be silenced.

    Attributes
    ----------
    last : Module
    """

    last: nn.Module


@dataclass(frozen=True)
class Perceptron:
    """A multi-layer perceptron of ``hidden_layer_sizes`` with normalised or residual layers.

    Parameters
    ----------
    residual : bool, default=True
        Whether layers between hidden layers of equal size add to their input.
    norm : {"layer", None}, default="layer"
        Layer normalisation before each activation, which is the same for batches of any size.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.networks import Perceptron
    >>> vae = VAETransformer(2, network=Perceptron(), hidden_layer_sizes=(64, 64, 64))
    """

    residual: bool = True
    norm: str | None = "layer"

    def __post_init__(self) -> None:
        if not isinstance(self.residual, bool):
            raise TypeError(f"residual must be True or False, got {self.residual!r}.")
        if self.norm not in ("layer", None):
            raise ValueError(f"norm must be 'layer' or None, got {self.norm!r}.")

    def encoder(self, n_in: int, n_out: int, layers: "Layers") -> Shaped:
        return _Perceptron(n_in, n_out, layers, self)

    decoder = encoder


class _Perceptron(Shaped):
    def __init__(self, n_in: int, n_out: int, layers: "Layers", options: Perceptron) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for size in layers.sizes:
            inner: list[nn.Module] = [nn.Linear(n_in, size)]
            if options.norm:
                inner.append(nn.LayerNorm(size))
            inner += layers.after()
            blocks.append(Block(n_in if options.residual else -1, size, inner))
            n_in = size
        self.hidden = nn.Sequential(*blocks)
        self.last = nn.Linear(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.hidden(x))
        return out


def _check_channels(channels: Any) -> tuple[int, ...]:
    sizes = check_sizes("channels", channels)
    if not sizes:
        raise ValueError(f"channels must name at least one layer, got {channels!r}.")
    return sizes


class _OnGrid:
    """Both sides of a network whose columns are cells of a grid."""

    def _grid(self) -> "_Grid":
        raise NotImplementedError

    def encoder(self, n_in: int, n_out: int, layers: "Layers") -> Shaped:
        return _GridEncoder(n_in, n_out, layers, self._grid())

    def decoder(self, n_in: int, n_out: int, layers: "Layers") -> Shaped:
        return _GridDecoder(n_in, n_out, layers, self._grid())


@dataclass(frozen=True)
class Convolutional(_OnGrid):
    """Convolutions for images, given as flat rows.

    Each convolution of the encoder halves height and width; ``hidden_layer_sizes`` are the dense
    layers after them. The decoder goes the same way back, enlarging before it convolves.

    Parameters
    ----------
    image_shape : tuple of int
        (height, width) or (height, width, channels), in the order in which ``image.reshape(-1)``
        lays out the cells.
    channels : sequence of int, default=(32, 64)
        Of the convolutions.

    References
    ----------
    Odena, Dumoulin and Olah, "Deconvolution and Checkerboard Artifacts", Distill 2016.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.networks import Convolutional
    >>> vae = VAETransformer(10, network=Convolutional(image_shape=(28, 28)))
    """

    image_shape: tuple[int, ...]
    channels: tuple[int, ...] = (32, 64)

    def __post_init__(self) -> None:
        shape = check_sizes("image_shape", self.image_shape)
        if len(shape) not in (2, 3):
            raise ValueError(
                f"image_shape must be (height, width) or (height, width, channels), got {shape}."
            )
        object.__setattr__(self, "image_shape", shape)
        object.__setattr__(self, "channels", _check_channels(self.channels))

    def _grid(self) -> "_Grid":
        height, width, *colours = self.image_shape
        return _Grid((height, width), (*colours, 1)[0], self.channels)

    @property
    def columns(self) -> tuple[int, str]:
        """How many columns of X it reads, and what says so."""
        return math.prod(self.image_shape), f"image_shape={self.image_shape}"


@dataclass(frozen=True)
class TemporalConvolutional(_OnGrid):
    """Convolutions over time for series, given as flat rows.

    Parameters
    ----------
    n_steps : int
    n_channels : int, default=1
        Values at each step. Columns are those of the first step, then those of the second, as
        ``series.reshape(-1)`` of an array (n_steps, n_channels) lays them out.
    channels : sequence of int, default=(16, 32, 32, 32)
        Of the convolutions, each of which halves the number of steps: four see 31 steps at once.

    References
    ----------
    Bai, Kolter and Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks
    for Sequence Modeling", arXiv 1803.01271, 2018.
    """

    n_steps: int
    n_channels: int = 1
    channels: tuple[int, ...] = (16, 32, 32, 32)

    def __post_init__(self) -> None:
        check_integer("n_steps", self.n_steps, 1)
        check_integer("n_channels", self.n_channels, 1)
        object.__setattr__(self, "channels", _check_channels(self.channels))

    def _grid(self) -> "_Grid":
        return _Grid((self.n_steps,), self.n_channels, self.channels)

    @property
    def columns(self) -> tuple[int, str]:
        """How many columns of X it reads, and what says so."""
        what = f"n_steps={self.n_steps} times n_channels={self.n_channels}"
        return self.n_steps * self.n_channels, what


@dataclass(frozen=True, eq=False)  # arrays do not compare as one
class Graph:
    """Message passing for columns that are the nodes of a graph, which is the same for all rows.

    Each layer adds up a node's own features and the average of its neighbours', through weights
    that all nodes share.

    Parameters
    ----------
    adjacency : sparse array or ndarray of shape (n_columns, n_columns)
        Weights of the edges, not negative; symmetric or not.
    channels : sequence of int, default=(16, 16)
        Features of a node after each layer.

    References
    ----------
    Hamilton, Ying and Leskovec, "Inductive Representation Learning on Large Graphs", NeurIPS 2017.
    """

    adjacency: Any
    channels: tuple[int, ...] = (16, 16)

    def __post_init__(self) -> None:
        given = self.adjacency if sparse.issparse(self.adjacency) else np.asarray(self.adjacency)
        if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.shape[0]:
            raise ValueError(f"adjacency must be a square matrix, got shape {given.shape}.")
        if given.dtype.kind not in "fiub":
            raise TypeError(f"adjacency must hold real numbers, got dtype {given.dtype}.")
        edges = sparse.csr_array(given, copy=True)
        object.__setattr__(self, "adjacency", edges)
        if not np.isfinite(edges.data).all() or (edges.data < 0).any():
            wrong = edges.data[~np.isfinite(edges.data) | (edges.data < 0)][0]
            raise ValueError(f"adjacency must hold finite weights of at least 0, got {wrong}.")
        object.__setattr__(self, "channels", _check_channels(self.channels))

    def __eq__(self, other: object) -> bool:
        """Whether edges, weights and channels are the same."""
        if not isinstance(other, Graph):
            return NotImplemented
        mine, theirs = self.adjacency, other.adjacency
        same = self.channels == other.channels and mine.shape == theirs.shape
        return same and (mine != theirs).nnz == 0

    def __hash__(self) -> int:
        return hash((self.channels, self.adjacency.shape))

    @property
    def columns(self) -> tuple[int, str]:
        """How many columns of X it reads, and what says so."""
        n_nodes = self.adjacency.shape[0]
        return n_nodes, f"adjacency of {n_nodes} nodes"

    def encoder(self, n_in: int, n_out: int, layers: "Layers") -> Shaped:
        return _GraphEncoder(n_in, n_out, layers, self)

    def decoder(self, n_in: int, n_out: int, layers: "Layers") -> Shaped:
        return _GraphDecoder(n_in, n_out, layers, self)


NETWORKS = (Perceptron, Convolutional, TemporalConvolutional, Graph)


@dataclass(frozen=True)
class Layers:
    """What all networks of a model have in common: dense layers, activation, dropout."""

    sizes: tuple[int, ...]
    activation: str
    dropout: float

    def after(self) -> list[nn.Module]:
        """What follows a layer."""
        dropped = [Dropout(self.dropout)] if self.dropout else []
        return [ACTIVATIONS[self.activation](), *dropped]

    def dense(self, n_in: int) -> tuple[nn.Sequential, int]:
        """The hidden layers, and the size of the last."""
        inner: list[nn.Module] = []
        for size in self.sizes:
            inner += [nn.Linear(n_in, size), *self.after()]
            n_in = size
        return nn.Sequential(*inner), n_in


def build_network(
    network: Any, side: str, n_in: int, n_out: int, layers: Layers, silent: bool
) -> Shaped:
    """One side of a network by the data's shape; silent: it says nothing yet."""
    built: Shaped = getattr(network, side)(n_in, n_out, layers)
    keep_scale(built)
    if silent:
        silence(built)
    return built


def keep_scale(network: nn.Module) -> None:
    """Draw weights under which a layer's output varies as its input does, and no biases.

    torch's own make it three times smaller in variance: after a few layers little is left, and the
    last one, which starts at zero, hardly learns (LeCun et al., "Efficient BackProp", 1998).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, 0.0, 1 / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_columns(network: Any, families: Sequence[str]) -> None:
    """Refuse columns that are not the cells of a network by the data's shape."""
    if not hasattr(network, "columns"):
        return
    n_columns, what = network.columns
    if len(families) != n_columns:
        raise ValueError(
            f"network: {what} is {n_columns} columns, but X has {len(families)}. All columns must "
            "be cells of it, in its order."
        )
    if len(set(families)) > 1 or "categorical" in families:
        raise ValueError(
            f"network: columns that are cells of {what} must be numbers of one family, got "
            f"{sorted(set(families))}."
        )


class _Grid:
    """Cells on a line or in a plane, each with channels, and their sizes halved again and again."""

    def __init__(self, shape: tuple[int, ...], n_channels: int, channels: tuple[int, ...]) -> None:
        self.n_channels, self.channels = n_channels, channels
        self.sizes = [shape]
        for _ in channels:
            self.sizes.append(tuple(math.ceil(size / 2) for size in self.sizes[-1]))
        self.conv = nn.Conv1d if len(shape) == 1 else nn.Conv2d
        self.n_cells = math.prod(shape) * n_channels
        inside = zip([n_channels, *channels], self.sizes, strict=True)
        self.n_units = max(c * math.prod(size) for c, size in inside)


class _GridEncoder(Shaped):
    def __init__(self, n_in: int, n_out: int, layers: Layers, grid: _Grid) -> None:
        super().__init__()
        self.grid, self.n_units = grid, grid.n_units
        self.n_maps = n_in // grid.n_cells
        inner: list[nn.Module] = []
        before = self.n_maps * grid.n_channels
        for channels in grid.channels:
            inner += [grid.conv(before, channels, 3, stride=2, padding=1), *layers.after()]
            before = channels
        self.convolutions = nn.Sequential(*inner)
        self.dense, size = layers.dense(before * math.prod(grid.sizes[-1]))
        self.last = nn.Linear(size, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid
        # (n, maps, *shape, channels) -> (n, maps * channels, *shape)
        cells = x.reshape(x.shape[0], self.n_maps, *grid.sizes[0], grid.n_channels).movedim(-1, 2)
        features = self.convolutions(cells.flatten(1, 2)).flatten(1)
        out: Tensor = self.last(self.dense(features))
        return out


class _GridDecoder(Shaped):
    def __init__(self, n_in: int, n_out: int, layers: Layers, grid: _Grid) -> None:
        super().__init__()
        self.grid, self.n_units = grid, grid.n_units * 4
        self.n_maps = n_out // grid.n_cells
        self.dense, size = layers.dense(n_in)
        self.n_first = grid.channels[-1]
        n_small = self.n_first * math.prod(grid.sizes[-1])
        self.first = nn.Sequential(nn.Linear(size, n_small), *layers.after())
        # from c channels to those of the next larger size
        steps = itertools.pairwise([*grid.channels[::-1], grid.channels[0]])
        self.convolutions = nn.ModuleList(
            nn.Sequential(grid.conv(a, b, 3, padding=1), *layers.after()) for a, b in steps
        )
        self.last = grid.conv(grid.channels[0], self.n_maps * grid.n_channels, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        grid = self.grid
        features = self.first(self.dense(z)).reshape(z.shape[0], self.n_first, *grid.sizes[-1])
        for size, convolution in zip(grid.sizes[-2::-1], self.convolutions, strict=True):
            features = convolution(nn.functional.interpolate(features, size=size))
        cells: Tensor = self.last(features)  # (n, maps * channels, *shape)
        split = cells.reshape(z.shape[0], self.n_maps, grid.n_channels, *grid.sizes[0])
        return split.movedim(2, -1).flatten(1)


class _Messages(nn.Module):
    """``own(x) + neighbours(average of x over the edges)`` at each node: (n, nodes, features)."""

    def __init__(self, n_in: int, n_out: int, adjacency: Any) -> None:
        super().__init__()
        edges = sparse.coo_array(adjacency)
        total = np.maximum(np.asarray(edges.sum(axis=1)).ravel(), np.finfo(float).tiny)
        edges = sparse.coo_array((edges.data / total[edges.row], edges.coords), edges.shape)
        # of few nodes, one product is far quicker than as many sums as there are edges
        self.dense = edges.shape[0] <= DENSE_NODES
        share = edges.toarray() if self.dense else edges.data
        self.register_buffer("share", torch.tensor(share).float())
        self.register_buffer("to_node", torch.tensor(edges.row.astype(np.int64)))
        self.register_buffer("from_node", torch.tensor(edges.col.astype(np.int64)))
        self.share: Tensor
        self.to_node: Tensor
        self.from_node: Tensor
        self.own, self.neighbours = nn.Linear(n_in, n_out), nn.Linear(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        own, sent = self.own(x), self.neighbours(x)
        if self.dense:
            received: Tensor = own + self.share @ sent
            return received
        messages = sent.index_select(1, self.from_node) * self.share[:, None]
        out: Tensor = own.index_add(1, self.to_node, messages)
        return out


class _GraphEncoder(Shaped):
    def __init__(self, n_in: int, n_out: int, layers: Layers, graph: Graph) -> None:
        super().__init__()
        self.n_nodes = graph.adjacency.shape[0]
        before = self.n_maps = n_in // self.n_nodes
        inner: list[nn.Module] = []
        for channels in graph.channels:
            inner += [_Messages(before, channels, graph.adjacency), *layers.after()]
            before = channels
        self.messages = nn.Sequential(*inner)
        self.n_units = max(graph.channels) * max(self.n_nodes, graph.adjacency.nnz)
        self.dense, size = layers.dense(before * self.n_nodes)
        self.last = nn.Linear(size, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        nodes = x.reshape(x.shape[0], self.n_maps, -1).movedim(1, 2)  # (n, nodes, maps)
        out: Tensor = self.last(self.dense(self.messages(nodes).flatten(1)))
        return out


class _GraphDecoder(Shaped):
    def __init__(self, n_in: int, n_out: int, layers: Layers, graph: Graph) -> None:
        super().__init__()
        self.n_nodes = graph.adjacency.shape[0]
        n_maps = n_out // self.n_nodes
        self.dense, size = layers.dense(n_in)
        first, *channels = graph.channels[::-1]
        self.first = nn.Sequential(nn.Linear(size, first * self.n_nodes), *layers.after())
        inner: list[nn.Module] = []
        for before, after in itertools.pairwise([first, *channels, graph.channels[0]]):
            inner += [_Messages(before, after, graph.adjacency), *layers.after()]
        self.messages = nn.Sequential(*inner)
        self.n_units = max(graph.channels) * max(self.n_nodes, graph.adjacency.nnz)
        self.last = nn.Linear(graph.channels[0], n_maps, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        nodes = self.first(self.dense(z)).reshape(z.shape[0], self.n_nodes, -1)
        cells: Tensor = self.last(self.messages(nodes))  # (n, nodes, maps)
        return cells.movedim(2, 1).flatten(1)
