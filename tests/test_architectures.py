"""Networks by the data's shape: what they map, what they share, and that they work in a model."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits

import skvae.networks
from skvae import VAETransformer
from skvae.networks import (
    Convolutional,
    Graph,
    Layers,
    Perceptron,
    TemporalConvolutional,
    build_network,
)
from skvae.workspace import width

F64 = torch.float64
UNFINISHED = pytest.mark.filterwarnings("ignore:max_iter=")
DIGITS = load_digits().data[:200]
RING = sparse.csr_array(np.roll(np.eye(64), 1, 0) + np.roll(np.eye(64), -1, 0))
NETWORKS = [
    Perceptron(),
    Perceptron(residual=False, norm=None),
    Convolutional((8, 8), channels=(4, 6)),
    Convolutional(image_shape=(8, 4, 2), channels=(4,)),
    TemporalConvolutional(n_steps=64, channels=(4, 6)),
    TemporalConvolutional(n_steps=16, n_channels=4, channels=(5,)),
    Graph(RING, channels=(4, 3)),
]
IDS = [repr(network)[:40] for network in NETWORKS]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def built(network, side, n_in, n_out, silent=False, sizes=(7, 7)):
    torch.manual_seed(0)
    return build_network(network, side, n_in, n_out, Layers(sizes, "tanh", 0.0), silent).to(F64)


def quick(**parameters):
    small = {"hidden_layer_sizes": (8, 8), "max_iter": 2, "random_state": 0}
    return VAETransformer(3, **small | parameters)


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
@pytest.mark.parametrize("sizes", [(), (7, 7)])
def test_rows_are_mapped_one_by_one(network, sizes):
    for side, n_in, n_out in (("encoder", 64, 6), ("decoder", 3, 64), ("decoder", 3, 128)):
        module = built(network, side, n_in, n_out, sizes=sizes).eval()
        x = randn(5, n_in)
        out = module(x)
        assert out.shape == (5, n_out)
        torch.testing.assert_close(module(x[2:3])[0], out[2])  # also alone
        assert width(module) >= max(n_in, n_out)


@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
def test_a_silent_network_says_nothing_and_learns(network):
    module = built(network, "decoder", 3, 64, silent=True)
    out = module(randn(4, 3))
    assert not out.any()
    (out - 1).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in module.last.parameters())


@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
def test_all_parameters_have_a_gradient(network):
    for side, n_in, n_out in (("encoder", 64, 6), ("decoder", 3, 128)):
        module = built(network, side, n_in, n_out)
        module(randn(4, n_in)).square().sum().backward()
        idle = [name for name, p in module.named_parameters() if not p.grad.any()]
        # layers of one size of their own pass no gradient where normalised inputs are constant
        assert idle == []


def test_convolutions_are_local():
    """A cell of an image moves features of its surroundings alone."""
    encoder = built(Convolutional((16, 16), channels=(3,)), "encoder", 256, 4)
    image = randn(1, 256)
    other = image.clone()
    other[0, 5 * 16 + 9] += 1.0  # row 5, column 9
    with torch.no_grad():
        reshaped = [x.reshape(1, 1, 16, 16) for x in (image, other)]
        one, two = (encoder.convolutions(x)[0] for x in reshaped)
    moved = (one != two).any(0).nonzero()
    assert set(map(tuple, moved.tolist())) <= {(r, c) for r in (2, 3) for c in (4, 5)}
    assert len(moved) > 0


def test_channels_of_an_image_come_last_in_a_row():
    """As ``image.reshape(-1)`` lays them out: the first convolution sees each as a map."""
    encoder = built(Convolutional((4, 6, 2), channels=(3,)), "encoder", 48, 4)
    images = randn(5, 4, 6, 2)
    first = encoder.convolutions[0]
    assert first.in_channels == 2
    expected = encoder.last(
        encoder.dense(encoder.convolutions(images.permute(0, 3, 1, 2)).flatten(1))
    )
    torch.testing.assert_close(encoder(images.reshape(5, -1)), expected)


def test_the_decoders_cells_are_in_the_order_of_the_encoders():
    """Means of all cells first, then additions to their spread; each as its row is laid out."""
    decoder = built(Convolutional((4, 6, 2), channels=(3,)), "decoder", 3, 96)
    maps = []
    decoder.last.register_forward_hook(lambda module, args, out: maps.append(out))
    out = decoder(randn(5, 3))
    cells = maps[0].reshape(5, 2, 2, 4, 6)  # (n, maps, channels, height, width)
    torch.testing.assert_close(out.reshape(5, 2, 4, 6, 2), cells.permute(0, 1, 3, 4, 2))


def test_steps_of_a_series_in_their_order():
    encoder = built(TemporalConvolutional(5, n_channels=2, channels=(3,)), "encoder", 10, 4)
    series = randn(3, 5, 2)
    features = encoder.convolutions(series.movedim(2, 1)).flatten(1)
    expected = encoder.last(encoder.dense(features))
    torch.testing.assert_close(encoder(series.reshape(3, -1)), expected)


@pytest.mark.parametrize("dense_nodes", [3, 4])
def test_messages_written_out(dense_nodes, monkeypatch):
    monkeypatch.setattr(skvae.networks, "DENSE_NODES", dense_nodes)
    # directed: row i says whom node i listens to
    adjacency = np.array([[0, 2.0, 0, 1.0], [0.5, 0, 3.0, 0], [0, 0, 0, 0], [1.0, 0, 0, 0]])
    encoder = built(Graph(adjacency, channels=(3,)), "encoder", 4, 2)
    layer, nodes = encoder.messages[0], randn(5, 4, 1)
    share = torch.tensor(adjacency / np.maximum(adjacency.sum(1, keepdims=True), 1e-300))
    expected = layer.own(nodes) + layer.neighbours(share.to(F64) @ nodes)
    torch.testing.assert_close(layer(nodes), expected, rtol=1e-6, atol=1e-6)


def test_a_graphs_maps_come_one_after_the_other():
    """A mean for each node, then a spread for each, as the likelihood reads them."""
    decoder = built(Graph(np.eye(4), channels=(3,)), "decoder", 2, 8)
    z = randn(5, 2)
    cells = decoder.last(decoder.messages(decoder.first(decoder.dense(z)).reshape(5, 4, -1)))
    torch.testing.assert_close(decoder(z), torch.cat([cells[..., 0], cells[..., 1]], -1))


def test_weights_keep_the_scale_of_what_comes_in():
    """Through any number of layers without activation; torch's own lose half of it at each."""
    network = Graph(np.zeros((200, 200)), channels=(64,) * 4)
    layers = built(network, "encoder", 200, 2).messages[::2]
    x = torch.randn(300, 200, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    for layer in layers:
        x = layer(x)
    assert 0.3 < float(x.detach().var()) < 3
    assert not any(layer.own.bias.any() for layer in layers)


@pytest.mark.parametrize("norm", ["layer", None])
def test_layers_are_normalised_where_the_network_says_so(norm):
    network = built(Perceptron(norm=norm), "encoder", 7, 2, sizes=(7, 5))
    kinds = [type(module).__name__ for module in network.hidden.modules()]
    assert kinds.count("LayerNorm") == (2 if norm else 0)


def test_nodes_share_their_weights():
    """Relabelling a graph's nodes relabels the features."""
    random = np.random.default_rng(0)
    adjacency = random.random((6, 6)) * (random.random((6, 6)) < 0.5)
    order = random.permutation(6)
    nodes = randn(3, 6, 1)
    outs = []
    for matrix, x in ((adjacency, nodes), (adjacency[order][:, order], nodes[:, order])):
        outs.append(built(Graph(matrix), "encoder", 6, 2).messages(x))
    torch.testing.assert_close(outs[1], outs[0][:, order], rtol=1e-6, atol=1e-6)


def test_a_residual_layer_adds_to_its_input():
    layers = built(Perceptron(), "encoder", 7, 2, sizes=(7, 7, 5)).hidden
    x = randn(4, 7)
    torch.testing.assert_close(layers[0](x), x + layers[0].layers(x))
    assert [block.shortcut for block in layers] == [True, True, False]
    assert not any(
        block.shortcut for block in built(Perceptron(residual=False), "encoder", 7, 2).hidden
    )


# ---------------------------------------------------------------- in a model


@UNFINISHED
@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
def test_a_model_with_gaps_and_spreads_of_z(network):
    rows = DIGITS.copy()
    rows[::9, 20] = np.nan
    before = torch.random.get_rng_state()
    # without early stopping: else the start might be best, and its networks are silent
    vae = quick(network=network, dropout=0.1, early_stopping=False).fit(rows)
    assert vae.module_.encoder.network.last.weight.any()
    assert vae.module_.decoder.decoder.network.last.weight.any()
    assert torch.equal(torch.random.get_rng_state(), before)
    again = clone(vae).fit(rows)
    Z = vae.transform(rows)
    np.testing.assert_array_equal(again.transform(rows), Z)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(vae)).transform(rows), Z)
    assert np.isfinite(vae.score_samples(rows)).all()
    assert np.isfinite(vae.impute(rows)).all()
    assert vae.sample(2, random_state=0).shape == (2, 64)
    np.testing.assert_allclose(vae.transform(rows[3:4])[0], Z[3], rtol=1e-6, atol=1e-6)


@UNFINISHED
@pytest.mark.parametrize("noise", ["heteroscedastic", "homoscedastic", 1.0])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "negative_binomial", "student_t"])
def test_every_likelihood(noise, likelihood):
    rows = DIGITS[:60] / 16 if likelihood == "bernoulli" else DIGITS[:60]
    network = Convolutional((8, 8), channels=(3,))
    options = {"noise": noise, "likelihood": likelihood, "early_stopping": False}
    vae = quick(network=network, max_iter=1, **options).fit(rows)
    assert vae.module_.decoder.network.last.weight.any()
    assert np.isfinite(vae.score(rows))


@UNFINISHED
@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
def test_the_start_is_the_linear_model(network):
    options = {"max_iter": 0, "noise": "homoscedastic"}
    plain, shaped = quick(**options).fit(DIGITS), quick(network=network, **options).fit(DIGITS)
    np.testing.assert_allclose(shaped.transform(DIGITS), plain.transform(DIGITS), atol=1e-9)
    np.testing.assert_allclose(shaped.score(DIGITS), plain.score(DIGITS), rtol=1e-9)


@UNFINISHED
def test_networks_are_found_by_their_repr_and_compared_by_value():
    assert repr(Convolutional((8, 8))) == "Convolutional(image_shape=(8, 8), channels=(32, 64))"
    assert Convolutional([8, 8]) == Convolutional((8, 8))
    vae = quick(network=Convolutional((8, 8), (2,)), warm_start=True).fit(DIGITS[:50])
    vae.set_params(network=Convolutional((8, 8), (2,))).fit(DIGITS[:50])
    with pytest.raises(ValueError, match=r"network=Convolutional.* was fitted with"):
        vae.set_params(network=Convolutional((8, 8), (3,))).fit(DIGITS[:50])
    assert Graph(np.eye(3)) == Graph(sparse.eye_array(3))
    assert hash(Graph(np.eye(3))) == hash(Graph(sparse.eye_array(3)))
    for other in (Graph(2 * np.eye(3)), Graph(np.eye(4)), Graph(np.eye(3), channels=(2,)), 3):
        assert Graph(np.eye(3)) != other


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Convolutional(8), ["image_shape", "8"]),
        (lambda: Convolutional((8,)), ["image_shape", "(8,)"]),
        (lambda: Convolutional((8, 0)), ["image_shape", "0"]),
        (lambda: Convolutional((8, 8), channels=(1.5,)), ["channels", "1.5"]),
        (lambda: Convolutional((8, 8), channels=()), ["channels", "()"]),
        (lambda: Graph(np.eye(3), channels=()), ["channels", "()"]),
        (lambda: TemporalConvolutional(0), ["n_steps", "0"]),
        (lambda: TemporalConvolutional(4, n_channels=-1), ["n_channels", "-1"]),
        (lambda: Graph(np.ones((2, 3))), ["adjacency", "(2, 3)"]),
        (lambda: Graph(-np.ones((2, 2))), ["adjacency", "-1.0"]),
        (lambda: Graph(np.full((2, 2), math.nan)), ["adjacency", "nan"]),
        (lambda: Perceptron(norm="batch"), ["norm", "'batch'"]),
        (lambda: Perceptron(residual=1), ["residual", "1"]),
        (lambda: quick(network="cnn").fit(DIGITS), ["network", "'cnn'", "Convolutional"]),
        (lambda: quick(network=Convolutional).fit(DIGITS), ["network", "Convolutional"]),
        (
            lambda: quick(network=Convolutional((7, 8))).fit(DIGITS),
            ["image_shape=(7, 8) is 56 columns", "X has 64"],
        ),
        (  # the channels are forgotten
            lambda: quick(network=Convolutional((4, 8))).fit(DIGITS),
            ["image_shape=(4, 8) is 32 columns", "X has 64"],
        ),
        (
            lambda: quick(network=Convolutional((8, 8)), categorical_features=[1]).fit(DIGITS),
            ["image_shape=(8, 8) must be numbers of one family", "['categorical', 'gaussian']"],
        ),
        (
            lambda: quick(network=TemporalConvolutional(10, 5)).fit(DIGITS),
            ["n_steps=10 times n_channels=5 is 50 columns", "X has 64"],
        ),
        (
            lambda: quick(network=Graph(np.eye(3))).fit(DIGITS),
            ["adjacency of 3 nodes is 3 columns", "X has 64"],
        ),
        (lambda: Graph("abc"), ["adjacency must be a square matrix", "shape ()"]),
        (lambda: Graph(None), ["adjacency must be a square matrix", "shape ()"]),
        (lambda: Graph(np.ones((2, 2, 2))), ["adjacency", "(2, 2, 2)"]),
        (lambda: Graph(np.ones((0, 0))), ["adjacency", "(0, 0)"]),
        (lambda: Graph(np.eye(2) * 1j), ["adjacency must hold real numbers", "complex128"]),
    ],
)
def test_networks_that_cannot_be(make, words):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    for word in words:
        assert word in str(error.value)
