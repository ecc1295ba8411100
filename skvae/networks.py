"""Networks, the linear path beside them, and their gradients.

The contract for a user's own network: an encoder maps (n, n_in) to (n, 2 * n_components), the
posterior's means and log-variances side by side; a decoder maps (n, n_components) to
(n, n_params), the likelihood's raw parameters. Neither needs to know about the linear path:
``WithLinear`` adds it.

The modules here offer, beside ``forward``, the same with its gradient in closed form: ``out, back =
module.vjp(x)``, where ``back(grad, True)`` sets the gradients of the parameters and returns the
gradient with respect to x. What ``back(grad, False)`` returns is of no use.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from skvae.gradients import Back, gradient_of, through_clamp

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": functools.partial(nn.ReLU, inplace=True),  # no gradient needs the layer's output
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}

# (gradient of the output, input, output) -> gradient of the input
_aten = torch.ops.aten
_DERIVATIVES: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda grad, x, out: _aten.threshold_backward(grad, out, 0),
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
    return layer


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


def silence(network: MLP) -> MLP:
    """Set the last layer to zero: the network is there, and says nothing yet."""
    with torch.no_grad():
        for parameter in network[-1].parameters():
            parameter.zero_()
    return network


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
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())
        self.network, self.reach = network, reach
        self.gate = nn.Parameter(weight.new_zeros(())) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        near = x if math.isinf(self.reach) else x.clamp(-self.reach, self.reach)
        out: Tensor = self.network(near)  # (n, n_out)
        if self.gate is not None:
            out = self.gate * out
        out = out + self.bias
        n_linear = len(self.weight)
        reached = torch.addmm(out[:, :n_linear], x, self.weight.T)
        return reached if n_linear == out.shape[1] else torch.cat([reached, out[:, n_linear:]], 1)

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


def width(network: nn.Module) -> int:
    """Most numbers that a row becomes inside a network of dense layers."""
    return max((size for p in network.parameters() for size in p.shape), default=1)


def slices(n_rows: int, each: int, workspace: int, most: int | None = None) -> Iterator[slice]:
    """Parts of so many rows, ``most`` at a time, whose arrays of ``each`` numbers a row stay small.

    Arrays hold ``workspace`` numbers at most, one row at least.
    """
    size = max(1, workspace // max(each, 1))
    size = size if most is None else min(size, most)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


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
        inside = z.clamp(-self.reach, self.reach)
        excess = (z - inside).square().sum(-1, keepdim=True)
        out: Tensor = self.network(inside)
        return out + 2 * excess.log1p()

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([self.decoder(z), self.log_var(z)], -1)
