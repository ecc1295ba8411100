"""Measure how well hidden cells are filled in, beside scikit-learn's imputers.

Each data set is standardised over all its rows; then a share of its cells, drawn completely at
random, is hidden, and each imputer's `fit_transform` fills them in. Measured are the mean squared
error on the hidden cells, in standardised units (so that the column means give about 1), and the
seconds of `fit_transform`. At seed 1234 half of the cells of breast cancer are hidden exactly as
in the notebooks of MIWAE (Mattei and Frellsen, 2019). Run it with

    python -m benchmarks.imputation --seeds 3 --cache imputation.json --output imputation.md

The cache keeps what was measured of scikit-learn's imputers; ours is measured every time.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn import datasets as sklearn_datasets
from sklearn.base import BaseEstimator
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from benchmarks import markdown_table, publish, versions

Record = dict[str, Any]

FIRST_SEED = 1234
SHARES = (0.1, 0.3, 0.5, 0.7)
N_TREES = 100
N_ROUNDS = 3  # of extra trees: missForest stops early, and more rounds than these do worse
SETS: dict[str, Callable[[], Any]] = {
    "breast_cancer": sklearn_datasets.load_breast_cancer,
    "diabetes": sklearn_datasets.load_diabetes,
    "wine": sklearn_datasets.load_wine,
}


# -- the imputers -----------------------------------------------------------------------------


def _extra_trees(seed: int) -> BaseEstimator:
    """Return a relative of missForest, as in the notebooks of MIWAE but for the rounds."""
    trees = ExtraTreesRegressor(N_TREES, n_jobs=1, random_state=seed)
    return IterativeImputer(trees, max_iter=N_ROUNDS, random_state=seed)


def _ours(seed: int) -> BaseEstimator:
    from skvae import VAEImputer

    return VAEImputer(random_state=seed)


class Imputer(NamedTuple):
    """What an imputer is called in the tables, and how to make it from a seed."""

    label: str
    make: Callable[[int], BaseEstimator]


IMPUTERS: dict[str, Imputer] = {
    "mean": Imputer("SimpleImputer(mean)", lambda seed: SimpleImputer()),
    "knn": Imputer("KNNImputer", lambda seed: KNNImputer()),
    "ridge": Imputer(
        "IterativeImputer(BayesianRidge)", lambda seed: IterativeImputer(random_state=seed)
    ),
    "trees": Imputer(
        f"IterativeImputer(ExtraTrees, {N_TREES} trees, {N_ROUNDS} rounds)", _extra_trees
    ),
    "ours": Imputer("VAEImputer", _ours),
}


# -- measuring --------------------------------------------------------------------------------


def standardised(name: str) -> np.ndarray:
    """Return the features of a data set, standardised over all rows."""
    X = np.asarray(SETS[name]().data, dtype=float)
    Z: np.ndarray = (X - X.mean(axis=0)) / X.std(axis=0)
    return Z


def hidden_cells(shape: tuple[int, ...], share: float, seed: int) -> np.ndarray:
    """Return a mask of this shape that is true in a share of its cells, drawn by the seed."""
    size = int(np.prod(shape))
    chosen = np.random.RandomState(seed).choice(size, int(np.floor(size * share)), replace=False)
    mask = np.zeros(size, dtype=bool)
    mask[chosen] = True
    return mask.reshape(shape)


def measure(imputer: BaseEstimator, X: np.ndarray, hidden: np.ndarray) -> Record:
    """Hide cells of `X`, let the imputer fill them in, and return its error and its seconds."""
    incomplete = np.where(hidden, np.nan, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.perf_counter()
        filled = imputer.fit_transform(incomplete)
        seconds = time.perf_counter() - start
    return {"mse": float(np.mean((filled - X)[hidden] ** 2)), "seconds": seconds}


def recall(cache: Path | None, key: str, measure: Callable[[], Record]) -> Record:
    """Return the record that a JSON file has under this key; without it, measure and add it."""

    def read() -> dict[str, Record]:
        known = cache is not None and cache.is_file()
        return json.loads(cache.read_text(encoding="utf-8")) if cache and known else {}

    records = read()
    if key in records:
        return records[key]
    record = measure() | {"versions": versions()}
    if cache is not None:  # read anew: another process may have added to it in the meantime
        cache.write_text(json.dumps(read() | {key: record}, indent=1) + "\n", encoding="utf-8")
    return record


def evaluate(
    imputers: Iterable[str], sets: Iterable[str], seeds: Iterable[int], cache: Path | None = None
) -> list[Record]:
    """Measure imputers on data sets at each share and seed; return a record for each.

    Keys: set, imputer, share, seed, mse, seconds and versions.
    """
    imputers, seeds = list(imputers), list(seeds)
    records = []
    for name in sets:
        X = standardised(name)
        for imputer in imputers:
            label, make = IMPUTERS[imputer]
            for share in SHARES:
                for seed in seeds:
                    record = recall(
                        None if imputer == "ours" else cache,
                        f"{name}, {label}, {share:g}, {seed}",
                        partial(measure, make(seed), X, hidden_cells(X.shape, share, seed)),
                    )
                    where = {"set": name, "imputer": label, "share": share, "seed": seed}
                    records.append(where | record)
            print(f"{name} {X.shape} {label} measured", file=sys.stderr, flush=True)
    return records


# -- the report -------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float], digits: int) -> str:
    """Return the mean over seeds and its standard error."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


def results_table(records: list[Record]) -> str:
    """Return one data set's errors by imputer and share, and mean seconds, in Markdown."""
    header = ["imputer", *(f"{share:.0%} hidden" for share in SHARES), "seconds"]
    rows = []
    for label in dict.fromkeys(record["imputer"] for record in records):
        own = [record for record in records if record["imputer"] == label]
        errors = [
            mean_and_error([record["mse"] for record in own if record["share"] == share], 3)
            for share in SHARES
        ]
        rows.append([label, *errors, f"{np.mean([record['seconds'] for record in own]):.2f}"])
    return markdown_table(header, rows)


def main() -> None:
    """Measure from the command line and print or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imputation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--imputers", nargs="+", default=list(IMPUTERS), choices=list(IMPUTERS))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=3, help=f"this many from {FIRST_SEED} on")
    parser.add_argument("--cache", type=Path, help="JSON file of what is not to be measured again")
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()

    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    records = evaluate(options.imputers, options.sets, seeds, options.cache)
    report = [
        "Mean squared error on hidden cells of standardised columns: means ± standard errors over "
        f"{options.seeds} seeds. Seconds of `fit_transform`: means over seeds and shares. "
        f"{'; '.join(dict.fromkeys(record['versions'] for record in records))}."
    ]
    for name in options.sets:
        own = [record for record in records if record["set"] == name]
        report += [f"**{name}**", results_table(own)]
    publish("\n\n".join(report), options.output)


if __name__ == "__main__":
    main()
