"""Measure synthetic tables: drawn by a model of the census table adult, in place of its rows.

A generator is fitted on the training rows (numbers, categories with gaps, and `income` as one more
category) and draws as many. Measured of what it draws:

a. the use: gradient boosting learns `income` from the drawn rows and is tested on the real test
   rows (macro F1, F1 of the rarer class, ROC-AUC), beside the same learnt from the real rows;
b. the columns: 1 minus the Kolmogorov-Smirnov distance of numbers and the total variation of
   categories, a gap being one more category, to the training rows; mean over columns;
c. the pairs: 1 minus half the difference of correlations of two numbers, and minus the total
   variation of the joint table of two categories, a number beside a category being cut at its
   deciles in the training rows; mean over pairs;
d. copying: the median Gower distance to the closest training row (mean over columns of the
   difference over the standard deviation, or of 0 and 1 for equal and other categories). Far less
   than that of held-out rows would be copies.

The first line of the table says what real rows give: a. learnt from the training rows, b. to d. the
test rows in place of drawn ones. The folder that `SKVAE_DATA` names must hold `adult.npz`. Run it
with

    python -m benchmarks.synthetic --seeds 3 --cache synthetic.json --output synthetic.md

The cache keeps what was measured of all but ours. TVAE is of the package ctgan, which needs an
older pandas: run it with `--generators real tvae` and a cache where ctgan is installed, and then
all of them, with the same cache, where it is not.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score

from benchmarks import markdown_table, publish
from benchmarks.datasets import data_file
from benchmarks.imputation import Record, mean_and_error, recall

TARGET = "income"
GAP = "?"  # stands for a gap in the file, and in what TVAE is given
# columns of few distinct values, or of values that stand out, are drawn as what they are
OURS: dict[str, Any] = {
    "n_components": 16,
    "categorical_features": [
        *("age", "education-num", "capital-gain", "capital-loss", "hours-per-week"),
    ],
    "likelihood": {"fnlwgt": "log_normal"},
    "noise": "homoscedastic",  # of that one column
    "learning_rate_init": 4e-3,
    "batch_size": 1024,
    "max_iter": 30,
}
RARE = [("race", "Amer-Indian-Eskimo"), ("education", "Doctorate"), ("occupation", "Tech-support")]
N_BINS = 10
N_DISTANCES = 2000  # rows whose closest training row is looked for


# -- the table --------------------------------------------------------------------------------


class Tables(NamedTuple):
    """Training and test rows of one table."""

    train: pd.DataFrame
    test: pd.DataFrame


def adult(n_rows: int | None = None) -> Tables:
    """Return the table adult, or `n_rows` of its training rows."""
    path = data_file("adult.npz")
    if path is None:
        raise FileNotFoundError("adult.npz is not in the folder that SKVAE_DATA names.")
    with np.load(path) as arrays:
        labels = json.loads(str(arrays["categories"])) | {TARGET: ["<=50K", ">50K"]}
        columns = [*map(str, arrays["columns"]), TARGET]
        codes = [
            pd.DataFrame(np.column_stack([arrays[f"X_{part}"], arrays[f"y_{part}"]]))
            for part in ("train", "test")
        ]
    tables = []
    for frame in codes:
        table = frame.set_axis(columns, axis=1).astype("int64")
        for column, names in labels.items():
            values = np.array(names, dtype=object)[table[column]]
            known = [name for name in names if name != GAP]
            table[column] = pd.Categorical(np.where(values == GAP, None, values), known)
        tables.append(table)
    train, test = tables
    if n_rows is not None:
        train = train.sample(min(n_rows, len(train)), random_state=0).reset_index(drop=True)
    return Tables(train, test)


def is_number(table: pd.DataFrame, column: str) -> bool:
    return pd.api.types.is_numeric_dtype(table[column])


def conform(table: pd.DataFrame, real: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the columns of the real one, and its categories."""
    return pd.DataFrame(
        {
            column: pd.to_numeric(table[column])
            if is_number(real, column)
            else pd.Categorical(table[column].astype(object), real[column].cat.categories)
            for column in real.columns
        }
    )


# -- the generators ---------------------------------------------------------------------------

Sampler = Callable[[int], pd.DataFrame]  # from a number of rows


def _ours(train: pd.DataFrame, seed: int) -> Sampler:
    from skvae import VAETransformer

    model = VAETransformer(**OURS, random_state=seed).fit(train)
    return lambda n_rows: model.sample(n_rows, random_state=seed)


def _tvae(train: pd.DataFrame, seed: int) -> Sampler:
    import torch
    from ctgan import TVAE  # type: ignore[import-not-found]

    np.random.seed(seed)  # noqa: NPY002 - TVAE draws from the global generators
    torch.manual_seed(seed)
    discrete = [column for column in train if not is_number(train, column)]
    filled = train.astype(dict.fromkeys(discrete, object)).fillna(dict.fromkeys(discrete, GAP))
    model = TVAE(epochs=300)
    model.fit(filled, discrete)
    return lambda n_rows: model.sample(n_rows).replace({column: {GAP: None} for column in discrete})


class Generator(NamedTuple):
    """What a generator is called in the table, and how to fit it."""

    label: str
    fit: Callable[[pd.DataFrame, int], Sampler] | None  # none for real rows


GENERATORS: dict[str, Generator] = {
    "real": Generator("real rows", None),
    "tvae": Generator("TVAE (ctgan), 300 epochs", _tvae),
    "ours": Generator(f"VAETransformer({', '.join(f'{k}={v}' for k, v in OURS.items())})", _ours),
}


# -- the measures -----------------------------------------------------------------------------


def usefulness(rows: pd.DataFrame, test: pd.DataFrame) -> Record:
    """Return how well the target of the test rows is predicted by what is learnt from rows."""
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    model.fit(rows.drop(columns=TARGET), rows[TARGET].astype(str))
    X, y = test.drop(columns=TARGET), test[TARGET].astype(str)
    rarer = y.value_counts().idxmin()
    predicted = model.predict(X)
    probability = model.predict_proba(X)[:, list(model.classes_).index(rarer)]
    return {
        "macro_f1": float(f1_score(y, predicted, average="macro")),
        "rarer_f1": float(f1_score(y, predicted, pos_label=rarer)),
        "roc_auc": float(roc_auc_score(y == rarer, probability)),
    }


def codes(rows: pd.DataFrame, real: pd.DataFrame, column: str) -> np.ndarray:
    """Return the categories of a column from 0 on, gaps first; of a number, its bins."""
    if not is_number(real, column):
        return rows[column].cat.codes.to_numpy().astype(int) + 1
    # A value that is its own quantile, like the many zeros of a column, ends a bin.
    edges = np.unique(np.quantile(real[column], np.arange(1, N_BINS) / N_BINS))
    return np.searchsorted(edges, rows[column])


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Return half the sum of the absolute differences of two samples' frequencies."""
    size = max(a.max(), b.max()) + 1
    shares = [np.bincount(sample, minlength=size) / len(sample) for sample in (a, b)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def column_shapes(rows: pd.DataFrame, real: pd.DataFrame) -> float:
    """Return the mean over columns of how alike their distributions are, at most 1."""
    return float(
        np.mean(
            [
                1 - ks_2samp(rows[column], real[column]).statistic
                if is_number(real, column)
                else 1 - total_variation(codes(rows, real, column), codes(real, real, column))
                for column in real.columns
            ]
        )
    )


def pairwise_trends(rows: pd.DataFrame, real: pd.DataFrame) -> float:
    """Return the mean over pairs of columns of how alike their dependence is, at most 1."""
    numbers = [column for column in real.columns if is_number(real, column)]
    correlations = [table[numbers].corr().fillna(0) for table in (rows, real)]
    gap = (correlations[0] - correlations[1]).abs()
    pairs_of = {c: (codes(rows, real, c), codes(real, real, c)) for c in real.columns}
    alike = []
    for a, b in combinations(real.columns, 2):
        if a in numbers and b in numbers:
            alike.append(1 - gap.loc[a, b] / 2)
        else:
            width = 1 + max(sample.max() for sample in pairs_of[b])
            joint = [x * width + y for x, y in zip(pairs_of[a], pairs_of[b], strict=True)]
            alike.append(1 - total_variation(*joint))
    return float(np.mean(alike))


def closest_distance(rows: pd.DataFrame, train: pd.DataFrame, seed: int) -> float:
    """Return the median Gower distance of some of the rows to their closest training row."""
    some = rows.sample(min(N_DISTANCES, len(rows)), random_state=seed)
    columns = []
    for column in train.columns:
        if is_number(train, column):
            spread = float(train[column].std(ddof=0)) or 1.0
            pair = [(table[column] / spread).to_numpy("float32") for table in (some, train)]
        else:
            pair = [codes(table, train, column) for table in (some, train)]
        columns.append((is_number(train, column), *pair))
    closest = []
    for row in range(len(some)):
        distance = np.zeros(len(train), dtype="float32")
        for number, drawn, known in columns:
            distance += np.abs(known - drawn[row]) if number else known != drawn[row]
        closest.append(distance.min() / len(columns))
    return float(np.median(closest))


def measure(generator: Generator, tables: Tables, seed: int) -> Record:
    """Fit a generator on the training rows, draw as many, and measure them."""
    train, test = tables
    seconds = {}
    rows, learnt_from = test, train  # what stands in for drawn rows where there is no generator
    if generator.fit is not None:
        start = time.perf_counter()
        sampler = generator.fit(train, seed)
        fitted = time.perf_counter()
        drawn = sampler(len(train))
        seconds = {"fit_seconds": fitted - start, "sample_seconds": time.perf_counter() - fitted}
        rows = learnt_from = conform(drawn, train)
    return {
        **usefulness(learnt_from, test),
        "column_shapes": column_shapes(rows, train),
        "pairwise_trends": pairwise_trends(rows, train),
        "closest_distance": closest_distance(rows, train, seed),
        **seconds,
    }


def evaluate(
    generators: Iterable[str],
    seeds: Iterable[int],
    n_rows: int | None = None,
    cache: Path | None = None,
) -> list[Record]:
    """Measure generators at each seed; return a record for each, its generator's name in it."""
    tables, seeds = adult(n_rows), list(seeds)
    records = []
    for name in generators:
        generator = GENERATORS[name]
        for seed in seeds:
            record = recall(
                None if name == "ours" else cache,
                f"adult, {len(tables.train)} rows, {generator.label}, {seed}",
                partial(measure, generator, tables, seed),
            )
            records.append({"generator": generator.label, "seed": seed} | record)
            print(f"{generator.label}, seed {seed} measured", file=sys.stderr, flush=True)
    return records


def tell_apart(drawn: pd.DataFrame, real: pd.DataFrame, given: Sequence[str]) -> float:
    """Return the cross-validated ROC-AUC of a classifier of drawn against real rows."""
    size = min(len(drawn), len(real))
    rows = pd.concat([drawn[:size], real[:size]], ignore_index=True).drop(columns=list(given))
    label = np.repeat([0, 1], size)
    classifier = HistGradientBoostingClassifier(
        categorical_features="from_dtype", max_iter=50, random_state=0
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(classifier, rows, label, cv=folds, scoring="roc_auc").mean())


def conditional(seeds: Iterable[int], n_rows: int | None = None) -> str:
    """Return how well draws given a rare category are told from real rows of it, in Markdown."""
    from skvae import VAETransformer

    train, _ = adult(n_rows)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        model = VAETransformer(**OURS, random_state=seed).fit(train)
        for column, value in RARE:
            real = train[train[column] == value].sample(frac=1, random_state=seed)
            drawn = model.sample(len(real), random_state=seed, given={column: value})
            size = float(model.effective_sample_size_[0])
            apart = tell_apart(conform(drawn, train), real, [column])
            found.setdefault(f"{column}: {value} ({len(real)} rows)", []).append((apart, size))
    rows = [
        [
            name,
            mean_and_error([apart for apart, _ in pairs], 3),
            mean_and_error([size for _, size in pairs], 0),
        ]
        for name, pairs in found.items()
    ]
    return markdown_table(["given", "ROC-AUC, drawn or real", "effective sample size"], rows)


# -- the report -------------------------------------------------------------------------------

MEASURES: dict[str, tuple[str, int]] = {  # their names in the table, and digits after the point
    "macro_f1": ("macro F1", 3),
    "rarer_f1": ("F1 of >50K", 3),
    "roc_auc": ("ROC-AUC", 3),
    "column_shapes": ("column shapes", 3),
    "pairwise_trends": ("pairwise trends", 3),
    "closest_distance": ("distance to closest", 4),
    "fit_seconds": ("fit seconds", 0),
    "sample_seconds": ("sample seconds", 1),
}


def results_table(records: list[Record]) -> str:
    """Return means and standard errors over seeds of all generators, in Markdown."""
    rows = []
    for label in dict.fromkeys(record["generator"] for record in records):
        own = [record for record in records if record["generator"] == label]
        cells = [
            mean_and_error([record[key] for record in own], digits) if key in own[0] else ""
            for key, (_, digits) in MEASURES.items()
        ]
        rows.append([label, *cells])
    return markdown_table(["generator", *(name for name, _ in MEASURES.values())], rows)


def main() -> None:
    """Measure from the command line and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--generators", nargs="+", default=list(GENERATORS), choices=list(GENERATORS)
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this number, exclusive")
    parser.add_argument("--rows", type=int, help="no more training rows than these")
    parser.add_argument("--cache", type=Path, help="JSON file of what is not to be measured again")
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    parser.add_argument("--given", action="store_true", help="draws given a rare category instead")
    options = parser.parse_args()
    if options.given:
        publish(conditional(range(options.seeds), options.rows), options.output)
        return

    records = evaluate(options.generators, range(options.seeds), options.rows, options.cache)
    report = [
        f"Table adult{f', {options.rows} training rows' if options.rows else ''}: means ± standard "
        f"errors over {options.seeds} seeds. "
        f"{'; '.join(dict.fromkeys(record['versions'] for record in records))}.",
        results_table(records),
    ]
    publish("\n\n".join(report), options.output)


if __name__ == "__main__":
    main()
