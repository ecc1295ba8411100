"""The data sets of the measurements: bundled with scikit-learn, synthetic, or from files.

Data files are read from the folder that the environment variable ``SKVAE_DATA`` names, where it
is set and holds them: ``mnist.npz``, ``adult.npz`` and ``counts_smfish.npz``, each with arrays
``X_train``, ``X_test``, ``y_train`` and ``y_test`` (``adult.npz`` also with ``categorical``, a flag
for each column).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn import datasets as sklearn_datasets


class Dataset(NamedTuple):
    """A raw float64 matrix, its labels where it has some, and the number of components to fit."""

    name: str
    X: np.ndarray  # (n_rows, n_columns)
    y: np.ndarray | None  # (n_rows,)
    n_components: int


Arrays = tuple[np.ndarray, np.ndarray | None]  # X and its labels, or None
Maker = Callable[[int], Arrays]  # from a seed


# -- bundled with scikit-learn: raw, and the same whatever the seed ---------------------------


def _bundled(loader: Callable[[], Any], seed: int) -> Arrays:
    bunch = loader()
    return bunch.data, bunch.target


def _diabetes(seed: int) -> Arrays:
    """Return the diabetes data, labelled by whether the target is above its median."""
    X, target = sklearn_datasets.load_diabetes(return_X_y=True)
    return X, (target > np.median(target)).astype(int)


def _digits_contrast(seed: int) -> Arrays:
    """Return the 52 pixels of the digits whose standard deviation is above 0.5."""
    X, y = sklearn_datasets.load_digits(return_X_y=True)
    return X[:, X.std(axis=0) > 0.5], y


def _linnerud(seed: int) -> Arrays:
    """Return 20 rows of three exercises and three physiological measures."""
    bunch = sklearn_datasets.load_linnerud()
    return np.hstack([bunch.data, bunch.target]), None


# -- synthetic: drawn from the seed -----------------------------------------------------------


def _linear(rng: np.random.Generator, n_rows: int, n_columns: int, rank: int) -> np.ndarray:
    """Return the noise-free rows of a linear Gaussian model, of about unit variance a column."""
    z = rng.normal(size=(n_rows, rank))
    signal: np.ndarray = z @ rng.normal(size=(rank, n_columns)) / np.sqrt(rank)
    return signal


def low_rank(
    seed: int, n_rows: int, n_columns: int, rank: int = 5, noise: float = 0.5
) -> np.ndarray:
    """Return rows of a linear Gaussian model with one noise for all columns."""
    rng = np.random.default_rng(seed)
    signal = _linear(rng, n_rows, n_columns, rank)
    return signal + noise * rng.normal(size=signal.shape)


def nonlinear(
    seed: int,
    n_rows: int,
    n_columns: int,
    rank: int = 5,
    curvature: float = 1.0,
    noise: float = 0.2,
) -> np.ndarray:
    """Return rows near a curved surface: a linear map of `rank` coordinates plus waves of them.

    At ``curvature=0`` the surface is flat; at 1 waves and linear part have about equal variance.
    """
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_rows, rank))
    waves = np.sin(z @ rng.normal(size=(rank, 4 * rank)) + rng.uniform(0, 2 * np.pi, 4 * rank))
    signal: np.ndarray = z @ rng.normal(size=(rank, n_columns)) / np.sqrt(rank)
    signal += curvature * waves @ rng.normal(size=(4 * rank, n_columns)) / np.sqrt(2 * rank)
    return signal + noise * rng.normal(size=signal.shape)


def _swiss_roll(seed: int, n_rows: int) -> Arrays:
    X, _ = sklearn_datasets.make_swiss_roll(n_rows, noise=0.1, random_state=seed)
    return X, None


def _s_curve(seed: int, n_rows: int) -> Arrays:
    """Return an S-curve turned at random into 20 columns, with noise in all of them."""
    rng = np.random.default_rng(seed)
    curve, _ = sklearn_datasets.make_s_curve(n_rows, random_state=seed)
    turn, _ = np.linalg.qr(rng.normal(size=(20, 3)))
    return curve @ turn.T + 0.1 * rng.normal(size=(n_rows, 20)), None


def _low_rank(seed: int, n_rows: int, n_columns: int, rank: int) -> Arrays:
    return low_rank(seed, n_rows, n_columns, rank), None


def _nonlinear(seed: int, n_rows: int, n_columns: int, curvature: float, noise: float) -> Arrays:
    X = nonlinear(seed, n_rows, n_columns, rank=3, curvature=curvature, noise=noise)
    return X, None


def _pure_noise(seed: int, n_rows: int, n_columns: int) -> Arrays:
    return np.random.default_rng(seed).normal(size=(n_rows, n_columns)), None


def _heteroscedastic_columns(seed: int) -> Arrays:
    """Return linear rows whose noise grows a hundredfold from the first column to the last."""
    rng = np.random.default_rng(seed)
    signal = _linear(rng, 1000, 20, rank=4)
    return signal + np.geomspace(0.05, 5, 20) * rng.normal(size=signal.shape), None


def _collinear_columns(seed: int) -> Arrays:
    """Return 8 columns and 8 sums of them, these with 5% of noise."""
    rng = np.random.default_rng(seed)
    base = low_rank(seed, 1000, 8, rank=4)
    sums = base @ rng.normal(size=(8, 8))
    sums += 0.05 * sums.std(axis=0) * rng.normal(size=sums.shape)
    return np.hstack([base, sums]), None


def _blobs(seed: int, n_rows: int) -> Arrays:
    """Return five overlapping clusters in 30 columns, labelled."""
    X, y = sklearn_datasets.make_blobs(
        n_rows, 30, centers=5, center_box=(-1.5, 1.5), random_state=seed
    )
    return X, y


def _unequal_mixture(seed: int) -> Arrays:
    """Return three clusters in 30 columns, each with its size, spread and own directions."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, size=2000, p=[0.6, 0.3, 0.1])
    X = rng.normal(size=(2000, 30)) * np.array([0.3, 0.6, 1.0])[y, None]
    for label in range(3):
        rows = y == label
        X[rows] += 1.5 * rng.normal(size=30) + _linear(rng, rows.sum(), 30, rank=2)
    return X, y


def _heavy_tailed(seed: int) -> Arrays:
    """Return linear rows with Student noise of 3 degrees of freedom."""
    rng = np.random.default_rng(seed)
    signal = _linear(rng, 1000, 15, rank=3)
    return signal + 0.5 * rng.standard_t(3, size=signal.shape), None


def _log_normal(seed: int) -> Arrays:
    return np.exp(low_rank(seed, 1000, 15, rank=3, noise=0.3)), None


# -- from files -------------------------------------------------------------------------------


def data_file(name: str) -> Path | None:
    """Return the path of a data file in the folder ``SKVAE_DATA``, or None where it is not."""
    folder = os.environ.get("SKVAE_DATA")
    path = Path(folder, name) if folder else None
    return path if path is not None and path.is_file() else None


def read_shared(name: str, *keys: str) -> list[np.ndarray]:
    path = data_file(name)
    if path is None:
        raise FileNotFoundError(
            f"{name} is not in the folder that SKVAE_DATA names ({os.environ.get('SKVAE_DATA')!r})."
        )
    with np.load(path) as arrays:
        return [arrays[key] for key in keys]


def mnist(seed: int, n_rows: int) -> Arrays:
    """Return `n_rows` of the MNIST training images, drawn without repetition."""
    X, y = read_shared("mnist.npz", "X_train", "y_train")
    rows = np.random.default_rng(seed).permutation(len(X))[:n_rows]
    return X[rows].astype(float), y[rows]


def _adult(seed: int) -> Arrays:
    """Return the numeric columns of adult, labelled by income."""
    X, y, categorical = read_shared("adult.npz", "X_train", "y_train", "categorical")
    return X[:, ~categorical].astype(float), y


def counts() -> Arrays:
    """Return counts of 33 genes in 4,530 cells, labelled by cell type."""
    X_train, X_test, y_train, y_test = read_shared(
        "counts_smfish.npz", "X_train", "X_test", "y_train", "y_test"
    )
    return np.vstack([X_train, X_test]).astype(float), np.concatenate([y_train, y_test])


def _counts_smfish(seed: int) -> Arrays:
    """Return their logarithms, log(1 + count)."""
    X, y = counts()
    return np.log1p(X), y


# -- the lists --------------------------------------------------------------------------------

JUDGED: dict[str, tuple[Maker, int]] = {
    "iris": (partial(_bundled, sklearn_datasets.load_iris), 2),
    "wine": (partial(_bundled, sklearn_datasets.load_wine), 2),
    "breast_cancer": (partial(_bundled, sklearn_datasets.load_breast_cancer), 5),
    "diabetes": (_diabetes, 5),
    "digits": (partial(_bundled, sklearn_datasets.load_digits), 10),
}

BUNDLED: dict[str, tuple[Maker, int]] = {
    **JUDGED,
    "digits_contrast": (_digits_contrast, 10),
    "linnerud": (_linnerud, 2),
}

SYNTHETIC: dict[str, tuple[Maker, int]] = {
    **{
        f"low_rank_{n_rows}x{n_columns}": (
            partial(_low_rank, n_rows=n_rows, n_columns=n_columns, rank=rank),
            rank,
        )
        for n_rows, n_columns, rank in [
            (100, 10, 2),
            (100, 1000, 5),
            (1000, 2, 1),
            (1000, 30, 5),
            (1000, 1000, 5),
            (10_000, 100, 10),
            (100_000, 10, 2),
            (100_000, 50, 5),
        ]
    },
    **{
        f"nonlinear_{n_rows}x{n_columns}_{label}": (
            partial(
                _nonlinear, n_rows=n_rows, n_columns=n_columns, curvature=curvature, noise=noise
            ),
            3,
        )
        for n_rows, n_columns, label, curvature, noise in [
            (200, 10, "curved", 0.5, 0.2),
            (2000, 20, "slight", 0.2, 0.2),
            (2000, 20, "curved", 1.0, 0.2),
            (2000, 20, "noisy", 1.0, 1.0),
            (20_000, 20, "curved", 1.0, 0.2),
            (100_000, 20, "curved", 1.0, 0.2),
        ]
    },
    "pure_noise_100x30": (partial(_pure_noise, n_rows=100, n_columns=30), 5),
    "pure_noise_1000x10": (partial(_pure_noise, n_rows=1000, n_columns=10), 2),
    "pure_noise_10000x50": (partial(_pure_noise, n_rows=10_000, n_columns=50), 5),
    "swiss_roll_200": (partial(_swiss_roll, n_rows=200), 2),
    "swiss_roll_5000": (partial(_swiss_roll, n_rows=5000), 2),
    "s_curve_1000": (partial(_s_curve, n_rows=1000), 2),
    "heteroscedastic_columns": (_heteroscedastic_columns, 4),
    "collinear_columns": (_collinear_columns, 4),
    "blobs_300": (partial(_blobs, n_rows=300), 4),
    "blobs_3000": (partial(_blobs, n_rows=3000), 4),
    "unequal_mixture": (_unequal_mixture, 5),
    "heavy_tailed": (_heavy_tailed, 3),
    "log_normal": (_log_normal, 3),
}

FILES: dict[str, tuple[str, Maker, int]] = {
    "mnist": ("mnist.npz", partial(mnist, n_rows=10_000), 32),
    "adult": ("adult.npz", _adult, 2),
    "counts_smfish": ("counts_smfish.npz", _counts_smfish, 5),
}


def available() -> dict[str, tuple[Maker, int]]:
    """Return maker and number of components of all data sets, those of absent files left out."""
    files = {name: (make, k) for name, (file, make, k) in FILES.items() if data_file(file)}
    return {**BUNDLED, **SYNTHETIC, **files}


def groups() -> dict[str, list[str]]:
    """Return the names that stand for several data sets at once."""
    everything = list(available())
    return {
        "judged": list(JUDGED),
        "bundled": list(BUNDLED),
        "synthetic": list(SYNTHETIC),
        "files": [name for name in FILES if name in everything],
        "all": everything,
    }


def load(names: Iterable[str] = ("judged",), seed: int = 0) -> Iterator[Dataset]:
    """Yield the named data sets (or groups, see `groups`); `seed` draws the synthetic ones."""
    makers = available()
    chosen = [member for name in names for member in groups().get(name, [name])]
    unknown = [name for name in chosen if name not in makers]
    if unknown:
        raise ValueError(
            f"Unknown data sets {unknown}. Known: {sorted(makers)}; groups: {sorted(groups())}. "
            f"Those of files need SKVAE_DATA: {sorted(FILES)}."
        )
    for name in dict.fromkeys(chosen):
        make, n_components = makers[name]
        X, y = make(seed)
        yield Dataset(name, np.asarray(X, dtype=float), y, n_components)
