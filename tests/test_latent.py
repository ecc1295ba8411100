"""Order, signs, walks and paths of latents, against geometry and fitted models."""

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.transform import Rotation, Slerp
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA

from skvae import VAETransformer
from skvae.latent import arrangement, interpolation, traversal

WINE = load_wine().data


def test_arrangement_is_pcas_where_the_model_is_linear():
    X = (WINE - WINE.mean(0)) / WINE.std(0)
    vae = VAETransformer(4, max_iter=0, precision_power=0, random_state=0).fit(WINE)
    Z = vae.transform(WINE)
    mixed = Z[:, [2, 0, 3, 1]] * [1, -1, -1, 1]
    order, signs = arrangement(mixed, vae.kl_per_component_[[2, 0, 3, 1]], X)
    assert order.tolist() == [1, 3, 0, 2]
    arranged = mixed[:, order] * signs
    scores = PCA(4).fit(X).transform(X)
    correlation = np.corrcoef(arranged.T, scores.T)[:4, 4:]
    np.testing.assert_allclose(np.abs(correlation.diagonal()), 1.0, atol=1e-9)
    each = np.corrcoef(arranged.T, X.T)[:4, 4:]
    strongest = np.take_along_axis(each, np.abs(each).argmax(1)[:, None], 1)
    assert (strongest > 0.3).all()


def test_signs_do_not_depend_on_scales_or_rows():
    X = np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 1e6, 1e-6] + [0, 1e8, 5]
    Z = np.column_stack([X[:, 2], -X[:, 1], -X[:, 0]])
    for rows in (slice(None), slice(0, 250), slice(250, 500)):
        order, signs = arrangement(Z[rows], [1.0, 3.0, 2.0], X[rows])
        assert order.tolist() == [1, 2, 0]
        assert signs.tolist() == [-1.0, -1.0, 1.0]


def test_what_says_nothing_keeps_its_order_and_sign():
    Z = np.zeros((10, 3))
    order, signs = arrangement(Z, [0.0, 1.0, 0.0], np.ones((10, 2)))
    assert order.tolist() == [1, 0, 2]
    assert signs.tolist() == [1.0, 1.0, 1.0]
    X = np.random.default_rng(0).normal(size=(100, 3))
    for value in (0.1, 0.3, 1e200, -7.7):  # whose mean rounds
        assert arrangement(np.full((100, 1), value), [0.0], X)[1].tolist() == [1.0]
        assert arrangement(X[:, :1], [0.0], np.full((100, 2), value))[1].tolist() == [1.0]


def test_signs_of_vast_sparse_and_missing_cells():
    X = np.random.default_rng(0).normal(size=(300, 4))
    Z = np.column_stack([-X[:, 1], X[:, 3]])
    for table in (X * 1e200, sparse.csr_array(X), np.where(X > 2, np.nan, X)):
        assert arrangement(Z, [2.0, 1.0], table)[1].tolist() == [-1.0, 1.0]


def test_traversal_moves_one_component_alone():
    vae = VAETransformer(3, max_iter=0, random_state=0).fit(WINE)
    at = vae.transform(WINE[:1])[0]
    Z = traversal(1, at)
    assert Z.shape == (7, 3)
    np.testing.assert_array_equal(Z[:, 1], np.arange(-3.0, 4.0))
    np.testing.assert_array_equal(Z[:, [0, 2]], np.tile(at[[0, 2]], (7, 1)))
    steps = np.diff(vae.inverse_transform(Z), axis=0)  # of a linear model they are all the same
    np.testing.assert_allclose(steps, np.tile(steps[0], (6, 1)), atol=1e-9)
    np.testing.assert_array_equal(traversal(0, 2, [5])[0], [5.0, 0.0])


def test_the_spherical_path_is_scipys():
    random = np.random.default_rng(0)
    one, two = random.normal(size=(2, 3))
    rotation = Rotation.align_vectors(two[None] / np.linalg.norm(two), one[None])[0]
    turned = Slerp([0, 1], Rotation.concatenate([Rotation.identity(), rotation]))
    share = np.linspace(0, 1, 9)
    length = np.linalg.norm(one) * (1 - share) + np.linalg.norm(two) * share
    expected = turned(share).apply(one / np.linalg.norm(one)) * length[:, None]
    np.testing.assert_allclose(interpolation(one, two), expected, atol=1e-12)


@pytest.mark.parametrize("path", ["spherical", "linear"])
@pytest.mark.parametrize("k", [1, 2, 50])
def test_paths_begin_and_end_where_they_should(path, k):
    one, two = np.random.default_rng(k).normal(size=(2, k))
    Z = interpolation(one, two, 5, path)
    assert Z.shape == (5, k)
    np.testing.assert_array_equal(Z[[0, -1]], [one, two])
    if path == "linear" or k == 1:
        np.testing.assert_allclose(Z[2], (one + two) / 2)
    else:  # steps of the same angle
        unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
        cosines = (unit[1:] * unit[:-1]).sum(1)
        np.testing.assert_allclose(cosines, cosines[0])
    if k == 50:
        middle, ends = np.linalg.norm(Z[2]), np.linalg.norm(Z[[0, -1]], axis=1)
        assert (middle > ends.min()) == (path == "spherical")


def test_paths_without_an_angle_are_straight():
    np.testing.assert_allclose(interpolation([0, 0], [3, 4], 3), [[0, 0], [1.5, 2], [3, 4]])
    np.testing.assert_allclose(interpolation([1, 1], [3, 3], 3), [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(interpolation([1, 2], [1, 2], 2), [[1, 2], [1, 2]])
    np.testing.assert_allclose(
        interpolation([-1], [3], 3), [[-1], [1], [3]]
    )  # through 0, on a line


REFUSED = {
    "opposite": (interpolation, ([1, 2], [-2, -4]), "opposite directions.*path='linear'"),
    "shapes": (interpolation, ([1, 2], [1, 2, 3]), "start has 2 components, but end has 3"),
    "steps": (interpolation, ([1], [2], 1), "n_steps must be an integer of at least 2"),
    "path": (interpolation, ([1], [2], 3, "round"), "path must be .*got 'round'"),
    "rows": (interpolation, ([[1, 2]], [1, 2]), r"start must be one row.*shape \(1, 2\)"),
    "nan": (interpolation, ([1, np.nan], [1, 2]), "Input start contains NaN"),
    "component": (traversal, (3, 3), "component must be below.*3, got 3"),
    "negative": (traversal, (-1, 3), "component must be .*at least 0, got -1"),
    "none": (traversal, (0, 0), "at must be .*at least 1"),
    "number": (traversal, (0, 3.0), "at must be .* or a latent, got 3.0"),
    "values": (traversal, (0, 2, 5), "values must be one row of numbers, got 5"),
    "no values": (traversal, (0, 2, []), r"values must be one row of numbers, got \[\]"),
    "ends": (interpolation, (1, 2), "start must be one row of numbers, got 1"),
    "autoencoder": (arrangement, (np.ones((4, 1)), [np.nan], np.ones((4, 1))), "beta=0"),
    "information": (
        arrangement,
        (np.ones((4, 2)), [1.0], np.ones((4, 1))),
        "shape \\(1,\\).*2 comp",
    ),
    "other rows": (arrangement, (np.ones((4, 1)), [1.0], np.ones((5, 1))), "X has 5 rows.*4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    function, arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        function(*arguments)
