import copy
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skvae import VAETransformer
from skvae.linear import rotated
from skvae.networks import (
    ACTIVATIONS,
    Completion,
    Dropout,
    Spread,
    WithLinear,
    by_columns,
    linear_layer,
    mlp,
    recast,
    silence,
    silence_fresh,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def net(n_in=3, n_out=2, sizes=(8,), activation="relu", dropout=0.0, seed=0):
    return mlp(n_in, n_out, sizes, activation, dropout, generator(seed)).to(F64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_layers_and_activations_in_turn(activation):
    network = net(sizes=(8, 5), activation=activation)
    x = randn(7, 3)
    layers = [m for m in network if isinstance(m, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(8, 3), (5, 8), (2, 5)]
    function = getattr(torch.nn.functional, activation)
    out = x
    for layer in layers[:-1]:
        out = function(out @ layer.weight.T + layer.bias)
    out = out @ layers[-1].weight.T  # what it is added to has a bias
    torch.testing.assert_close(network(x), out, rtol=1e-12, atol=1e-12)


def test_no_hidden_layer_is_an_affine_map():
    network, x = net(sizes=()), randn(5, 3)
    zero = network(torch.zeros(1, 3, dtype=F64))
    torch.testing.assert_close(network(2 * x) - zero, 2 * (network(x) - zero))


def test_weights_come_from_the_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = (net(seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name in first:
        assert torch.equal(first[name], second[name])
        assert not torch.equal(first[name], other[name])


def test_weights_have_torchs_own_distribution():
    layer = linear_layer(25, 400, generator())
    assert float(layer.weight.detach().abs().max()) == pytest.approx(0.2, rel=1e-3)
    # uniform in (-a, a) has variance a^2 / 3; the standard error of that mean square is known
    square = 25 * layer.weight.detach().double().square()
    standard_error = math.sqrt((1 / 5 - 1 / 9) / square.numel())
    assert abs(float(square.mean()) - 1 / 3) < 4 * standard_error


@pytest.mark.parametrize("matrix", [randn(1, 4), randn(4, 1), randn(4, 3), randn(3, 4).t()])
def test_by_columns_is_a_copy(matrix):
    copied = by_columns(matrix)
    assert torch.equal(copied, matrix)
    assert copied.t().is_contiguous()
    assert copied.data_ptr() != matrix.data_ptr()


def test_matrices_lie_by_columns():
    """From birth on, in double precision and in copies: results are then alike."""
    X = np.random.default_rng(0).normal(size=(60, 5))
    vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        vae.fit(X)
    twins = vae, copy.deepcopy(vae)
    born = mlp(4, 3, (8,), "relu", 0.0, torch.Generator().manual_seed(0))
    for module in (born, born.double(), *(twin.module_ for twin in twins)):
        matrices = [p for p in module.parameters() if p.dim() == 2]
        assert matrices
        assert all(p.t().is_contiguous() for p in matrices)


class Own(nn.Module):
    """A user's module, which refers to its parts in ways that torch knows nothing of."""

    def __init__(self, tied):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=F64))
        self.tied, self.unlisted = tied, (tied,)

    def forward(self, x):
        return self.scale * self.unlisted[0](x)


def test_recast_is_a_deep_copy_in_another_dtype():
    shared = linear_layer(3, 3, generator()).to(F64)
    shared.register_forward_hook(lambda module, given, out: out + 1.0)
    recurrent = nn.GRU(3, 3, dtype=F64)
    batch_norm = nn.BatchNorm1d(3, dtype=F64).eval()
    batch_norm.running_mean += 0.5
    network = nn.Sequential(net(3, 3, activation="tanh"), shared, nn.Tanh(), Own(shared), shared)
    module = nn.Sequential(WithLinear(randn(3, 3), randn(3), network, gate=True), batch_norm)
    with torch.no_grad():
        module[0].gate.fill_(0.5)
    x = randn(5, 3, seed=4)
    before = copy.deepcopy(module.state_dict())

    found, expected = recast(module, torch.float32), copy.deepcopy(module).to(torch.float32)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
        assert found.state_dict()[name].stride() == value.stride()
        assert found.state_dict()[name].dtype == value.dtype
    assert torch.equal(found(x.float()), expected(x.float()))
    assert not torch.equal(expected(x.float()), expected(x.float() + 1))
    assert not any(m.training for m in found[1].modules())

    # one layer in three places stays one, also where torch does not know of it
    inside = found[0].network
    assert inside[1] is inside[4] is inside[3].tied is inside[3].unlisted[0]
    assert inside[1] is not shared

    # and the original is as it was, whatever becomes of the copy
    with torch.no_grad():
        for value in (*found.parameters(), *found.buffers()):
            value.zero_()
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])

    many = recast(recurrent, torch.float32)
    assert torch.equal(many(x.float())[0], copy.deepcopy(recurrent).float()(x.float())[0])
    assert recurrent(x)[0].dtype == F64


def test_recast_keeps_what_is_said_about_parameters():
    one, two = nn.Linear(3, 3, dtype=F64), nn.Linear(3, 3, dtype=F64)
    two.weight = one.weight
    one.bias.requires_grad_(False)
    module, heard = nn.Sequential(one, two), []
    copied = recast(module, torch.float32)
    assert copied[0].weight is copied[1].weight
    assert not copied[0].bias.requires_grad and copied[1].bias.requires_grad
    copied[0].register_forward_hook(lambda *_: heard.append("copy"))
    module(randn(2, 3))
    assert heard == []
    copied(randn(2, 3).float())
    assert heard == ["copy"]


def test_recast_of_what_was_made_in_inference_mode_and_of_what_is_compiled():
    with torch.inference_mode():
        module = nn.Sequential(nn.Linear(3, 3, dtype=F64), nn.BatchNorm1d(3, dtype=F64)).eval()
        expected = module(randn(5, 3)).float()
    torch.testing.assert_close(recast(module, torch.float32)(randn(5, 3).float()), expected)
    module.compile(backend="eager")
    torch.testing.assert_close(recast(module, torch.float32)(randn(5, 3).float()), expected)


def test_recast_leaves_parts_in_their_places():
    """A prior that is made of the encoder refers to that of the copy."""
    X = np.random.default_rng(0).normal(size=(60, 5))
    vae = VAETransformer(2, prior="vamp", hidden_layer_sizes=(8,), max_iter=0, random_state=0)
    module = vae.fit(X).module_
    copied = recast(module, torch.float32)
    assert copied.prior._encoder[0] is copied.encoder
    assert module.prior._encoder[0] is module.encoder
    assert {p.dtype for p in module.parameters()} == {F64}
    assert {p.dtype for p in copied.parameters()} == {torch.float32}


def test_what_a_network_says_is_not_written_to():
    """A hook may keep it."""
    kept = []
    network = net(3, 4)
    network.register_forward_hook(lambda module, given, out: kept.append(out))
    x = randn(6, 3, seed=3)
    with torch.no_grad():
        for n_linear in (2, 4):
            WithLinear(randn(n_linear, 3), randn(4), network)(x)
        expected = network(x)
    assert torch.equal(kept[0], expected)
    assert torch.equal(kept[1], expected)


def test_silence_keeps_the_hidden_layers():
    loud, network = net(), silence(net())
    assert torch.equal(network(randn(5, 3)), torch.zeros(5, 2, dtype=F64))
    assert torch.equal(network[0].weight, loud[0].weight)


@pytest.mark.parametrize("n_linear", [2, 4])
@pytest.mark.parametrize("gate", [False, True])
def test_with_linear_starts_as_its_linear_path(n_linear, gate):
    weight, bias = randn(n_linear, 3, seed=1), randn(4, seed=2)
    # behind a gate the network may speak from the start: nobody hears it
    network = net(3, 4) if gate else silence(net(3, 4))
    module = WithLinear(weight, bias, network, gate=gate)
    x = 10 * randn(6, 3, seed=3)
    expected = bias.expand(6, -1).clone()
    expected[:, :n_linear] += x @ weight.T
    torch.testing.assert_close(module(x), expected, rtol=1e-13, atol=1e-13)


def test_with_linear_adds_its_network():
    weight, bias, network, x = randn(2, 3, seed=1), randn(2, seed=2), net(), randn(6, 3, seed=3)
    expected = x @ weight.T + bias + network(x)
    torch.testing.assert_close(WithLinear(weight, bias, network)(x), expected)
    gated = WithLinear(weight, bias, network, gate=True)
    with torch.no_grad():
        gated.gate.fill_(-0.5)
    torch.testing.assert_close(gated(x), x @ weight.T + bias - 0.5 * network(x))


def test_with_linear_copies_what_it_is_given():
    weight, bias = randn(2, 3), randn(2)
    module = WithLinear(weight, bias, net())
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
    assert weight.all()
    assert bias.all()


def test_a_silent_network_still_learns():
    module = WithLinear(randn(2, 3), randn(2), silence(net()))
    module(randn(6, 3)).square().sum().backward()
    assert module.network[-1].weight.grad.any()
    gated = WithLinear(randn(2, 3), randn(2), net(), gate=True)
    gated(randn(6, 3)).square().sum().backward()
    assert float(gated.gate.grad) != 0


def test_beyond_reach_the_linear_path_alone_goes_on():
    weight, bias = randn(2, 3, seed=1), randn(2, seed=2)
    module = WithLinear(weight, bias, net(), reach=2.0)
    free = WithLinear(weight, bias, module.network)
    inside = 2 * torch.rand(5, 3, generator=generator(), dtype=F64)
    assert torch.equal(module(inside), free(inside))
    edge = torch.tensor([[2.0, -2.0, 2.0]], dtype=F64)
    step = torch.tensor([[3.0, -1e6, 0.0]], dtype=F64)
    torch.testing.assert_close(module(edge + step) - module(edge), step @ weight.T)
    assert not torch.allclose(free(edge + step) - free(edge), step @ weight.T)


def test_dropout_keeps_the_mean_and_is_off_without_a_generator():
    x = torch.ones(100, 200, dtype=F64)
    layer = Dropout(0.3)
    assert torch.equal(layer(x), x)
    layer.generator = generator()
    before = torch.random.get_rng_state()
    out = layer(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(out.unique().tolist()) == {0.0, 1 / 0.7}
    kept = float((out > 0).double().mean())
    assert abs(kept - 0.7) < 4 * math.sqrt(0.3 * 0.7 / x.numel())
    layer.generator = generator()
    assert torch.equal(layer(x), out)
    layer.eval()
    assert torch.equal(layer(x), x)


def test_dropout_follows_every_hidden_layer():
    network = net(sizes=(8, 5), dropout=0.2)
    assert [m.p for m in network if isinstance(m, Dropout)] == [0.2, 0.2]
    assert not [m for m in net(sizes=(8, 5)) if isinstance(m, Dropout)]


def test_spread_puts_means_and_log_variances_side_by_side():
    decoder, network = net(2, 3, seed=0), net(2, 3, seed=1)
    spread = Spread(decoder, network, reach=3.0)
    z = 3 * torch.rand(6, 2, generator=generator(), dtype=F64)
    torch.testing.assert_close(spread(z), torch.cat([decoder(z), network(z)], 1))


def test_spread_grows_beyond_reach():
    spread = Spread(net(2, 3), net(2, 3, seed=1), reach=3.0)
    distance = torch.tensor([0.0, 1e-6, 1.0, 10.0, 1e6], dtype=F64)
    z = torch.stack([3 + distance, -3 - distance], 1)
    growth = spread.log_var(z) - spread.log_var(z[:1])
    assert (growth[1:] > growth[:-1]).all()
    assert (growth[1] < 1e-9).all()  # and begins without a step
    # no mean that goes on linearly leaves such a spread behind: sigma grows as the square
    torch.testing.assert_close(
        growth[4], (4 * torch.log(distance[4]) + 2 * math.log(2)).expand(3), rtol=1e-6, atol=0.0
    )


# ---------------------------------------------------------------- completion


def completion():
    """A linear model of 6 columns by 3 independent components, and what completes its rows."""
    noise = 0.2 + torch.rand(6, generator=generator(1), dtype=F64)
    model = rotated(randn(6, 3), noise)
    return model, Completion(model.loadings, noise, randn(6, seed=2))


def rows_with_gaps(n=9):
    """One without gaps, one of nothing but gaps, others with some."""
    gaps = torch.rand(n, 6, generator=generator(3)) < 0.5
    gaps[0], gaps[1] = False, True
    return 2 * randn(n, 6, seed=4).masked_fill(gaps, math.nan)


@pytest.mark.parametrize("chunk", [1, 30, 2**20])
def test_hints_are_the_gaussian_conditional(chunk):
    model, module = completion()
    module.CHUNK = chunk
    rows, W = rows_with_gaps(), model.loadings
    means, ratios = [], []
    for row in rows:
        seen = ~row.isnan()
        gain = W[seen].T @ torch.linalg.inv(W[seen] @ W[seen].T + model.noise[seen].diag())
        means.append(gain @ (row - module.center)[seen])
        variance = 1 - (gain @ W[seen]).diagonal()
        ratios.append(variance.log() - model.log_var)
    mean, ratio = module.hints(rows).chunk(2, -1)
    torch.testing.assert_close(mean, torch.stack(means), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ratio, torch.stack(ratios), rtol=1e-10, atol=1e-12)
    assert (ratio[1:] > 0).all()  # gaps leave z less certain
    assert ratio[0].abs().max() < 1e-12


def test_completion_fills_gaps_alone():
    model, module = completion()
    rows, mean = rows_with_gaps(), randn(9, 3, seed=5)
    filled, gaps = module(rows, mean), rows.isnan()
    assert torch.equal(filled[~gaps], rows[~gaps])
    expected = module.center + mean @ model.loadings.T
    torch.testing.assert_close(filled[gaps], expected[gaps], rtol=1e-12, atol=1e-12)


def test_a_completed_row_says_what_its_observed_cells_do():
    _, module = completion()
    rows = rows_with_gaps()
    mean, _ = module.hints(rows).chunk(2, -1)
    again, _ = module.hints(module(rows, mean)).chunk(2, -1)
    torch.testing.assert_close(again, mean, rtol=1e-10, atol=1e-12)


def test_completion_copies_what_it_is_given_and_learns_nothing():
    weight, noise, center = randn(6, 3), torch.ones(6, dtype=F64), randn(6)
    module = Completion(weight, noise, center)
    before = module.hints(rows_with_gaps())
    for part in (weight, noise, center):
        part.zero_()
    assert torch.equal(module.hints(rows_with_gaps()), before)
    assert not list(module.parameters())
    assert set(module.state_dict()) == {"weight", "noise", "center"}


# ---------------------------------------------------------------- gradients in closed form


def by_autograd(module, x, grad):
    """Output, gradient of the input, and gradients of the parameters."""
    leaf = x.clone().requires_grad_()
    out = module(leaf)
    grads = torch.autograd.grad(out, [leaf, *module.parameters()], grad)
    return out.detach(), grads[0], list(grads[1:])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(), (8,), (8, 5)])
@pytest.mark.parametrize("n_linear", [2, 4])
@pytest.mark.parametrize("reach", [math.inf, 1.0])
def test_the_vjp_is_autograds(activation, sizes, n_linear, reach):
    network = net(3, 4, sizes, activation)
    module = WithLinear(
        randn(n_linear, 3, seed=1), randn(4, seed=2), network, closed_form=True, reach=reach
    )
    x, grad = 2 * randn(6, 3, seed=3), randn(6, 4, seed=4)
    out, to_x, to_parameters = by_autograd(module, x, grad)
    close = {"rtol": 1e-12, "atol": 1e-12}
    for _ in range(2):  # gradients are set, not added
        with torch.no_grad():
            got, back = module.vjp(x)
            torch.testing.assert_close(got, out, **close)
            torch.testing.assert_close(back(grad, True), to_x, **close)
    for parameter, expected in zip(module.parameters(), to_parameters, strict=True):
        torch.testing.assert_close(parameter.grad, expected, **close)
        parameter.grad = None
    with torch.no_grad():
        _, back = module.vjp(x)
        back(grad, False)
    for parameter, expected in zip(module.parameters(), to_parameters, strict=True):
        torch.testing.assert_close(parameter.grad, expected, **close)


@pytest.mark.parametrize("dropping", [False, True])
def test_the_vjp_drops_what_forward_drops(dropping):
    network, x, grad = net(sizes=(8, 5), dropout=0.5), randn(6, 3), randn(6, 2)
    layers = [layer for layer in network if isinstance(layer, Dropout)]

    def reseed():
        for seed, layer in enumerate(layers):
            layer.generator = generator(seed) if dropping else None

    reseed()
    out, to_x, _ = by_autograd(network, x, grad)
    reseed()
    with torch.no_grad():
        got, back = network.vjp(x)
        torch.testing.assert_close(got, out, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(back(grad, True), to_x, rtol=1e-12, atol=1e-12)


def test_gradients_are_left_to_autograd_unless_the_network_is_ours():
    assert WithLinear(randn(2, 3), randn(2), net()).vjp is None
    assert WithLinear(randn(2, 3), randn(2), net(), closed_form=True).vjp is not None


# ---------------------------------------------------------------- networks of users


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mean, self.log_var = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.body(x).tanh()
        return torch.cat([self.mean(hidden), self.log_var(hidden)], -1)


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(8, 2), nn.Linear(3, 8)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def weights_of(network):
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize("make, n_zero", [(net, 1), (Heads, 2)])
def test_a_fresh_network_is_silenced_by_its_last_layers(make, n_zero):
    network = make().to(F64)
    before = weights_of(network)
    assert silence_fresh(network, 3)
    assert not network(randn(5, 3, seed=1)).any()
    changed = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(changed) == 2 * n_zero - (make is net)  # the last layer of `mlp` has no bias


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()),
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.Softplus()),
        nn.Sequential(nn.Tanh(), nn.Softmax(-1)),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.ReLU()),  # would stay silent
        HeadFirst(),  # whose last layers by name are one behind the other
    ],
)
def test_what_zeros_do_not_silence_stays_as_it_was(network):
    before = weights_of(network.to(F64))
    assert not silence_fresh(network, 3)
    for one, other in zip(before, network.parameters(), strict=True):
        assert torch.equal(one, other)
