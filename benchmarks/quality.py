"""Measure a model at three jobs at once, beside what people use today.

Over 75/25 splits of each data set, every model with the same number of components:

a. the held-out mean log-likelihood in nats per row and original units, against the better of
   PCA (on raw or on standardised columns, whichever is better) and converged factor analysis;
b. the test reconstruction error of ``inverse_transform(transform(X))`` on columns standardised by
   the training rows, against the exact posterior mean of probabilistic PCA, and against PCA;
c. the accuracy of a 5-nearest-neighbour classifier on ``transform``, against the one on PCA.

Columns that are constant in the training rows are left out for all models. Run it with

    python -m benchmarks.quality --seeds 5 --sets judged --output quality.md
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity, KNeighborsClassifier

from benchmarks import markdown_table, publish, versions
from benchmarks.datasets import Dataset, load
from skvae import VAETransformer

Record = dict[str, Any]
Factory = Callable[[int, int], BaseEstimator]  # from the number of components and a seed

MAX_DENSITY_ROWS = 2000  # a mixture and a kernel density are fitted on no more rows than these
MAX_COVARIANCE_COLUMNS = 200  # nor is a full covariance fitted on more columns than these
MAX_FACTOR_ROWS = 5000  # more rows than these reach factor analysis as their covariance
MIN_VARIANCE = 1e-4  # of a mixture, on standardised columns: the VAE's default noise floor, squared


class Split(NamedTuple):
    """Training and test rows in original units, constant columns left out."""

    name: str
    seed: int
    n_components: int
    X_train: np.ndarray
    X_test: np.ndarray
    y_train: np.ndarray | None
    y_test: np.ndarray | None

    def standardise(self, X: np.ndarray) -> np.ndarray:
        """Return `X` in units of the training rows' mean and standard deviation."""
        Z: np.ndarray = (X - self.X_train.mean(axis=0)) / self.X_train.std(axis=0)
        return Z

    @property
    def log_jacobian(self) -> float:
        """What turns a log-density of standardised columns into one in original units."""
        return -float(np.log(self.X_train.std(axis=0)).sum())


def make_split(data: Dataset, seed: int) -> Split:
    """Return the 75/25 split of a data set that a seed gives."""
    train, test = train_test_split(np.arange(len(data.X)), test_size=0.25, random_state=seed)
    varies = np.ptp(data.X[train], axis=0) > 0
    labels = (None, None) if data.y is None else (data.y[train], data.y[test])
    X = data.X[:, varies]
    return Split(data.name, seed, data.n_components, X[train], X[test], *labels)


# -- measuring one model ----------------------------------------------------------------------


def reconstruction_error(split: Split, X_hat: np.ndarray) -> float:
    """Return the mean squared error of reconstructed test rows, on standardised columns."""
    return float(np.mean((split.standardise(X_hat) - split.standardise(split.X_test)) ** 2))


def neighbour_accuracy(split: Split, Z_train: np.ndarray, Z_test: np.ndarray) -> float:
    """Return the test accuracy of five nearest neighbours, NaN where there are no labels."""
    if split.y_train is None:
        return np.nan
    return float(KNeighborsClassifier(5).fit(Z_train, split.y_train).score(Z_test, split.y_test))


def measure(estimator: BaseEstimator, split: Split) -> Record:
    """Fit an estimator on the raw training rows and measure it at the three jobs."""
    start = time.perf_counter()
    estimator.fit(split.X_train)
    seconds = time.perf_counter() - start
    Z_train, Z_test = estimator.transform(split.X_train), estimator.transform(split.X_test)
    return {
        "loglik": estimator.score(split.X_test),
        "mse": reconstruction_error(split, estimator.inverse_transform(Z_test)),
        "accuracy": neighbour_accuracy(split, Z_train, Z_test),
        "fit_seconds": seconds,
    }


def same_covariance(X: np.ndarray) -> np.ndarray:
    """Return twice as many rows as there are columns, with the covariance of these and mean 0."""
    variances, directions = np.linalg.eigh(np.cov(X.T, bias=True))
    half = (directions * np.sqrt(X.shape[1] * variances.clip(min=0))).T
    return np.vstack([half, -half])


def linear_baselines(split: Split) -> dict[str, Record]:
    """Measure PCA, the posterior mean of probabilistic PCA, and converged factor analysis."""
    X_train, X_test = split.standardise(split.X_train), split.standardise(split.X_test)

    start = time.perf_counter()
    pca = PCA(split.n_components, random_state=split.seed).fit(X_train)
    pca_seconds = time.perf_counter() - start
    Z_train, Z_test = pca.transform(X_train), pca.transform(X_test)
    raw_pca = PCA(split.n_components, random_state=split.seed).fit(split.X_train)
    loglik = max(pca.score(X_test) + split.log_jacobian, raw_pca.score(split.X_test))
    # Of maximum likelihood; PCA's own divides by the rank, which is less with few rows.
    left_over = X_train.var(axis=0, ddof=1).sum() - pca.explained_variance_.sum()
    noise_variance = left_over / max(X_train.shape[1] - split.n_components, 1)
    # In the principal directions W (W'W + noise)^-1 W' is diagonal, 1 - noise / variance.
    shrinkage = 1 - noise_variance / pca.explained_variance_

    start = time.perf_counter()
    wide = min(X_train.shape) > MAX_COVARIANCE_COLUMNS
    factors = FactorAnalysis(
        split.n_components,
        tol=1e-4,
        max_iter=10_000,
        svd_method="randomized" if wide else "lapack",
        random_state=split.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        large = len(X_train) > MAX_FACTOR_ROWS
        factors.fit(same_covariance(X_train) if large else X_train)  # all that its fit depends on
    factors_seconds = time.perf_counter() - start
    F_train, F_test = factors.transform(X_train), factors.transform(X_test)

    def mse(X_hat: np.ndarray) -> float:
        return float(np.mean((X_hat - X_test) ** 2))

    return {
        "PCA": {
            "loglik": loglik,
            "mse": mse(pca.inverse_transform(Z_test)),
            "accuracy": neighbour_accuracy(split, Z_train, Z_test),
            "fit_seconds": pca_seconds,
        },
        "PCA, posterior mean": {
            "loglik": loglik,
            "mse": mse(pca.inverse_transform(Z_test * shrinkage)),
            "accuracy": neighbour_accuracy(split, Z_train * shrinkage, Z_test * shrinkage),
            "fit_seconds": pca_seconds,
        },
        "FactorAnalysis": {
            "loglik": factors.score(X_test) + split.log_jacobian,
            "mse": mse(F_test @ factors.components_ + factors.mean_),
            "accuracy": neighbour_accuracy(split, F_train, F_test),
            "fit_seconds": factors_seconds,
        },
    }


def density_baselines(split: Split) -> dict[str, Record]:
    """Measure the density of a Gaussian mixture (by BIC) and a cross-validated kernel density."""
    X_train, X_test = split.standardise(split.X_train), split.standardise(split.X_test)
    X_train = X_train[:MAX_DENSITY_ROWS]  # the split has shuffled them
    wide = X_train.shape[1] > MAX_COVARIANCE_COLUMNS

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixtures = [
            GaussianMixture(
                n, covariance_type=shape, reg_covar=MIN_VARIANCE, random_state=split.seed
            ).fit(X_train)
            for n in range(1, min(5, len(X_train)) + 1)
            for shape in (["diag", "spherical"] if wide else ["full", "tied", "diag", "spherical"])
        ]
        mixture = min(mixtures, key=lambda fitted: fitted.bic(X_train))
    mixture_seconds = time.perf_counter() - start

    start = time.perf_counter()
    search = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.05, 2, 16)})
    kernels = search.fit(X_train)
    kernels_seconds = time.perf_counter() - start

    missing = {"mse": np.nan, "accuracy": np.nan}
    return {
        "GaussianMixture": {
            "loglik": mixture.score(X_test) + split.log_jacobian,
            "fit_seconds": mixture_seconds,
            **missing,
        },
        "KernelDensity": {
            "loglik": kernels.score(X_test) / len(X_test) + split.log_jacobian,
            "fit_seconds": kernels_seconds,
            **missing,
        },
    }


# -- over data sets and seeds -----------------------------------------------------------------


def to_record(model: str, measured: Record, split: Split, linear: dict[str, Record]) -> Record:
    """Return a model's measures on one split with their distances from the linear models'."""
    pca, posterior_mean = linear["PCA"], linear["PCA, posterior mean"]
    return {
        "set": split.name,
        "seed": split.seed,
        "model": model,
        "n_rows": len(split.X_train),
        "n_columns": split.X_train.shape[1],
        "n_components": split.n_components,
        **measured,
        "standardised_loglik": measured["loglik"] - split.log_jacobian,
        "gain": measured["loglik"] - max(pca["loglik"], linear["FactorAnalysis"]["loglik"]),
        "mse_ratio": measured["mse"] / posterior_mean["mse"],
        "mse_over_pca": measured["mse"] / pca["mse"],
        "accuracy_gain": measured["accuracy"] - pca["accuracy"],
    }


def splits(datasets: Iterable[Dataset], seeds: Iterable[int]) -> Iterator[Split]:
    """Yield each data set's split for each seed."""
    seeds = list(seeds)
    for data in datasets:
        for seed in seeds:
            yield make_split(data, seed)


def evaluate(
    estimator_factory: Factory,
    datasets: Iterable[Dataset],
    seeds: Iterable[int],
    *,
    model: str = "VAETransformer",
    linear: dict[tuple[str, int], dict[str, Record]] | None = None,
) -> list[Record]:
    """Measure an estimator over data sets and seeds; return one record for each split.

    Parameters
    ----------
    estimator_factory : callable
        From the number of components and a seed to an unfitted estimator with `transform`,
        `inverse_transform` and `score`.
    datasets : iterable of Dataset
        See `benchmarks.datasets.load`.
    seeds : iterable of int
        One 75/25 split, and one estimator, for each.
    model : str, default="VAETransformer"
        The name under which the records go.
    linear : dict, default=None
        The linear baselines by name of data set and seed. Those absent are measured and added, so
        that a dict handed to several calls on the same data saves their repetition.

    Returns
    -------
    records : list of dict
        Keys: set, seed, model, n_rows, n_columns, n_components; loglik (nats per row, original
        units), standardised_loglik (on standardised columns), mse, accuracy, fit_seconds; and
        against the linear models gain, mse_ratio, mse_over_pca, accuracy_gain.
    """
    linear = {} if linear is None else linear
    records = []
    for split in splits(datasets, seeds):
        key = split.name, split.seed
        if key not in linear:
            linear[key] = linear_baselines(split)
        measured = measure(estimator_factory(split.n_components, split.seed), split)
        records.append(to_record(model, measured, split, linear[key]))
    return records


def evaluate_baselines(
    datasets: Iterable[Dataset],
    seeds: Iterable[int],
    *,
    densities: bool = True,
    linear: dict[tuple[str, int], dict[str, Record]] | None = None,
) -> list[Record]:
    """Measure the baselines over data sets and seeds; records and `linear` as in `evaluate`."""
    linear = {} if linear is None else linear
    records = []
    for split in splits(datasets, seeds):
        key = split.name, split.seed
        if key not in linear:
            linear[key] = linear_baselines(split)
        models = linear[key] | (density_baselines(split) if densities else {})
        records += [to_record(name, row, split, linear[key]) for name, row in models.items()]
    return records


# -- the report -------------------------------------------------------------------------------


class Bound(NamedTuple):
    """A bound on the mean over seeds of one key of the records."""

    job: str
    key: str
    text: str
    holds: Callable[[float], bool]


def bounds(name: str) -> list[Bound]:
    """Return the bounds that a data set is judged by."""
    shared = [
        Bound("a", "gain", ">= -0.05", lambda value: value >= -0.05),
        Bound("b", "mse_ratio", "<= 1.02", lambda value: value <= 1.02),
    ]
    if name != "digits":
        return [*shared, Bound("c", "accuracy_gain", ">= -0.01", lambda value: value >= -0.01)]
    return [
        *shared,
        Bound("b", "mse_over_pca", "<= 0.45", lambda value: value <= 0.45),
        Bound("c", "accuracy_gain", "> 0", lambda value: value > 0),
    ]


def cell(values: pd.Series, digits: int, signed: bool = False) -> str:
    """Return the mean over seeds and its standard error."""
    if values.isna().all():
        return ""
    mean = f"{values.mean():{'+' if signed else ''}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.sem():.{digits}f}"


def _groups(records: list[Record]) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Yield name of set, name of model and their records, in the order they came."""
    frame = pd.DataFrame(records)
    order = {name: number for number, name in enumerate(frame["set"].unique())}
    frame = frame.sort_values("set", key=lambda names: names.map(order), kind="stable")
    yield from frame.groupby(["set", "model"], sort=False)


def results_table(records: list[Record]) -> str:
    """Return means and standard errors over seeds of all models, in Markdown."""
    header = [
        "data, components",
        "model",
        "nats per row",
        "minus best linear",
        "test MSE",
        "over posterior mean of PCA",
        "over PCA",
        "5-NN accuracy",
        "minus PCA",
        "fit seconds",
    ]
    rows = [
        [
            f"{name}, {group['n_components'].iloc[0]}",
            model,
            cell(group["loglik"], 2),
            cell(group["gain"], 2, signed=True),
            cell(group["mse"], 3),
            cell(group["mse_ratio"], 3),
            cell(group["mse_over_pca"], 3),
            cell(group["accuracy"], 3),
            cell(group["accuracy_gain"], 3, signed=True),
            f"{group['fit_seconds'].mean():.2f}",
        ]
        for (name, model), group in _groups(records)
    ]
    return markdown_table(header, rows)


def verdict_table(records: list[Record]) -> str:
    """Return the bounds, what was measured, and whether it passes, in Markdown."""
    measures = {
        "gain": "nats minus best linear",
        "mse_ratio": "MSE over posterior mean of PCA",
        "mse_over_pca": "MSE over PCA",
        "accuracy_gain": "5-NN accuracy minus PCA",
    }
    rows = [
        [
            name,
            model,
            f"{bound.job}. {measures[bound.key]}",
            cell(group[bound.key], 3),
            bound.text,
            "pass" if bound.holds(group[bound.key].mean()) else "**FAIL**",
        ]
        for (name, model), group in _groups(records)
        for bound in bounds(name)
        if group[bound.key].notna().all()
    ]
    return markdown_table(["data", "model", "measure", "mean ± s.e.", "bound", "verdict"], rows)


def vae_factory(params: dict[str, Any]) -> Factory:
    """Return a factory of `VAETransformer` with all but these parameters at their defaults."""

    def factory(n_components: int, seed: int) -> VAETransformer:
        return VAETransformer(n_components=n_components, random_state=seed, **params)

    return factory


def parse_params(text: str) -> dict[str, Any]:
    """Read parameters from JSON; lists become tuples."""
    params = json.loads(text)
    return {key: tuple(v) if isinstance(v, list) else v for key, v in params.items()}


def main() -> None:
    """Measure from the command line and print or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this number, exclusive")
    parser.add_argument("--sets", nargs="+", default=["judged"], help="names of sets or groups")
    parser.add_argument("--params", type=parse_params, default={}, help="of the VAE, as JSON")
    parser.add_argument("--floors", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--linear-only", action="store_true", help="no mixture, no kernel density")
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()

    seeds = range(options.seeds)
    baselines: list[Record] = []
    ours: list[Record] = []
    for data in load(options.sets):
        linear: dict[tuple[str, int], dict[str, Record]] = {}
        baselines += evaluate_baselines(
            [data], seeds, densities=not options.linear_only, linear=linear
        )
        for floor in options.floors:
            factory = vae_factory({**options.params, "noise_floor": floor})
            model = f"VAETransformer, floor {floor:g}"
            ours += evaluate(factory, [data], seeds, model=model, linear=linear)
        print(f"{data.name} {data.X.shape} measured", file=sys.stderr)

    report = "\n\n".join(
        [
            f"Parameters: `{json.dumps(options.params)}`; the others are at their defaults. "
            f"Means ± standard errors over {options.seeds} seeds, each a 75/25 split; differences "
            f"and ratios are paired by seed. {versions()}.",
            verdict_table(ours),
            results_table(baselines + ours),
        ]
    )
    publish(report, options.output)


if __name__ == "__main__":
    main()
