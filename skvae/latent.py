"""Tools for arrays of latents: which component says most, walks along one, paths between two."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array

from .checks import check_integer, check_option

Floats = NDArray[np.float64]
PATHS = ("spherical", "linear")
ROUNDING = 1e-14  # of a column's largest cell: what varies less is constant
BLOCK = 2**22  # cells that are dense at once
FLIP = 1e-9  # cosines nearer to -1 than this leave the way around the sphere open


def arrangement(Z: Any, information: Any, X: Any) -> tuple[NDArray[np.intp], Floats]:
    """Order and signs in which components read best: ``Z[:, order] * signs``.

    The most informative component comes first, and each rises with the column of X that it goes
    with most: the order and signs that `PCA` users expect, and that two fits of the same rows
    share where they found the same components.

    Parameters
    ----------
    Z : array-like of shape (n_samples, n_components)
        Latents, as `VAETransformer.transform` gives them.
    information : array-like of shape (n_components,)
        What each says, such as ``kl_per_component_``, in nats.
    X : array-like or sparse matrix of shape (n_samples, n_features)
        Numbers that give the signs, of the same rows: what Z was made of, or another table. NaN,
        a gap, says nothing.

    Returns
    -------
    order : ndarray of int of shape (n_components,)
        Of equal information, the first comes first.
    signs : ndarray of shape (n_components,)
        1 or -1 for each component in that order. 1 where nothing tells: where the component or
        all columns are constant.

    Raises
    ------
    ValueError
        If shapes do not fit, or values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae.latent import arrangement
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> Z = np.column_stack([0.1 * X[:, 1], -X[:, 0]])
    >>> order, signs = arrangement(Z, [0.2, 2.3], X)
    >>> order.tolist(), signs.tolist()
    ([1, 0], [-1.0, 1.0])
    """
    Z = check_array(Z, dtype=np.float64, input_name="Z")
    X = check_array(
        X, accept_sparse="csr", dtype=np.float64, ensure_all_finite="allow-nan", input_name="X"
    )
    if np.isnan(np.asarray(information, dtype=float)).any():
        raise ValueError(
            f"information must be finite, got {information}. A plain autoencoder (beta=0) knows no "
            "nats: its components' variances, Z.var(axis=0), order them, too."
        )
    information = check_array(
        information, dtype=np.float64, ensure_2d=False, input_name="information"
    )
    if information.shape != (Z.shape[1],):
        raise ValueError(
            f"information has shape {information.shape}, but Z has {Z.shape[1]} components."
        )
    if X.shape[0] != len(Z):
        raise ValueError(f"X has {X.shape[0]} rows, but Z has {len(Z)}: pass the same rows.")
    order = np.argsort(-information, kind="stable")
    # (n_components, n_features)
    products = np.vstack(
        [_standardized(block).T @ _standardized(Z[:, order]) for block in _column_blocks(X)]
    ).T
    most = np.take_along_axis(products, np.abs(products).argmax(1)[:, None], 1)[:, 0]
    return order, np.where(most < 0, -1.0, 1.0)


def _column_blocks(X: Any) -> Iterator[Floats]:
    """Some columns at a time, dense."""
    X = X.tocsc() if sparse.issparse(X) else X
    size = max(1, BLOCK // X.shape[0])
    for start in range(0, X.shape[1], size):
        block = X[:, start : start + size]
        yield block.toarray() if sparse.issparse(block) else block


def _standardized(cells: Floats) -> Floats:
    """Columns with mean 0 and norm 1; constant ones, up to rounding, are 0, and so are gaps."""
    seen = ~np.isnan(cells)
    largest = np.abs(np.where(seen, cells, 0.0)).max(0)
    cells = np.where(seen, cells / np.where(largest > 0, largest, 1.0), 0.0)
    cells = np.where(seen, cells - cells.sum(0) / np.maximum(seen.sum(0), 1), 0.0)
    norm = np.sqrt((cells**2).sum(0))
    varies = np.abs(cells).max(0) > ROUNDING
    out: Floats = np.where(varies, cells / np.where(norm > 0, norm, 1.0), 0.0)
    return out


def traversal(component: int, at: Any, values: Any = None) -> Floats:
    """Latents along one component, the others held still.

    Parameters
    ----------
    component : int
        Which one, from 0.
    at : array-like of shape (n_components,), or int
        The latent to go through, a row of `VAETransformer.transform`; a number stands for so many
        zeros, the mean of the prior.
    values : array-like of shape (n_values,), default=None
        Values of the component; the prior's scale is 1. None: seven from -3 to 3.

    Returns
    -------
    Z : ndarray of shape (n_values, n_components)
        For `VAETransformer.inverse_transform`.

    Raises
    ------
    ValueError, TypeError
        If the component does not exist, or values are not finite.

    Examples
    --------
    >>> from skvae.latent import traversal
    >>> traversal(1, at=3, values=[-2, 0, 2])
    array([[ 0., -2.,  0.],
           [ 0.,  0.,  0.],
           [ 0.,  2.,  0.]])
    """
    if np.ndim(at) == 0:
        check_integer("at", at, 1, "or a latent")
        at = np.zeros(at)
    point = _point("at", at)
    check_integer("component", component, 0)
    if component >= len(point):
        raise ValueError(
            f"component must be below the number of components, {len(point)}, got {component}."
        )
    steps = np.linspace(-3, 3, 7) if values is None else _point("values", values)
    Z = np.tile(point, (len(steps), 1))
    Z[:, component] = steps
    return Z


def interpolation(start: Any, end: Any, n_steps: int = 9, path: str = "spherical") -> Floats:
    """Latents on the way from one to another, both included.

    Of many components, nearly all of a standard normal distribution lies near a sphere, and the
    middle of a straight line inside it, where the decoder has seen little. The spherical path turns
    the direction at constant speed, and its length changes evenly. Of one or two components there
    is no such difference, and a straight line is as good.

    Parameters
    ----------
    start, end : array-like of shape (n_components,)
        Rows of `VAETransformer.transform`.
    n_steps : int, default=9
        Number of latents, 2 at least.
    path : {"spherical", "linear"}, default="spherical"

    Returns
    -------
    Z : ndarray of shape (n_steps, n_components)
        For `VAETransformer.inverse_transform`.

    Raises
    ------
    ValueError, TypeError
        If a parameter is not valid, or the spherical path is not defined: between opposite
        directions.

    References
    ----------
    White, "Sampling Generative Networks", 2016.

    Examples
    --------
    >>> from skvae.latent import interpolation
    >>> interpolation([2, 0], [0, 2], n_steps=3).round(3)
    array([[2.   , 0.   ],
           [1.414, 1.414],
           [0.   , 2.   ]])
    """
    check_integer("n_steps", n_steps, 2)
    check_option("path", path, PATHS)
    one, two = _point("start", start), _point("end", end)
    if one.shape != two.shape:
        raise ValueError(f"start has {len(one)} components, but end has {len(two)}.")
    share = np.linspace(0.0, 1.0, n_steps)[:, None]
    line = (1 - share) * one + share * two
    lengths = np.linalg.norm(one), np.linalg.norm(two)
    if path == "linear" or min(lengths) == 0:  # from the middle every direction is straight
        return line
    u, v = one / lengths[0], two / lengths[1]
    cosine = float(u @ v)
    if cosine < FLIP - 1 and len(u) > 1:
        raise ValueError(
            "start and end lie in opposite directions, between which there are many spherical "
            "paths: use path='linear', or go by way of a third latent."
        )
    across = v - cosine * u  # at a right angle to u
    height = np.linalg.norm(across)
    if height < FLIP or len(u) == 1:
        return line
    angle = np.arctan2(height, cosine) * share
    turned = np.cos(angle) * u + np.sin(angle) * across / height
    Z: Floats = ((1 - share) * lengths[0] + share * lengths[1]) * turned
    Z[0], Z[-1] = one, two  # exactly
    return Z


def _point(name: str, value: Any) -> Floats:
    """One row of finite numbers, or a ValueError that says what is wrong with it."""
    if np.ndim(value) != 1 or np.size(value) == 0:
        raise ValueError(
            f"{name} must be one row of numbers, got {value!r} of shape {np.shape(value)}."
        )
    point = check_array(value, dtype=np.float64, ensure_2d=False, input_name=name)
    out: Floats = point
    return out
