"""Measure what a table with types costs: memory of a fit, and time of a pass.

1. Memory: the highest resident size during a fit minus that just before it, in a process of its
   own that holds the table, as a multiple of the table's float32 size. A small fit goes first, so
   that libraries are loaded and buffers exist.
2. Time: one pass of training over a table with types, over one pass over a table of numbers with
   as many encoded columns. A pass is the difference between fits of four and of one, over three;
   the two take turns, and the medians of several rounds are compared.

Run it (on Linux) with

    python -m benchmarks.costs --rows 1000000 --rounds 3 --output costs.md
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from benchmarks import markdown_table, publish, versions
from benchmarks.memory import MIB, isolated, raised
from skvae import VAETransformer

LEVELS = (5, 8, 12, 30)  # of the categorical columns
N_NUMBERS, N_FLAGS, N_COUNTS = 12, 2, 2
N_COLUMNS = N_NUMBERS + N_FLAGS + N_COUNTS + len(LEVELS)
WIDTH = N_COLUMNS - len(LEVELS) + sum(LEVELS)  # of the encoder's input
N_LATENT = 4

Maker = Callable[[int], tuple[Any, dict[str, Any]]]  # from n_rows: the table, the parameters


def mixed(n_rows: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return numbers, flags, counts and categories that share latent variables."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n_rows, N_LATENT), dtype=np.float32)

    def signal() -> np.ndarray:
        return z @ rng.standard_normal(N_LATENT, dtype=np.float32)

    table: dict[str, Any] = {}
    for j in range(N_NUMBERS):
        table[f"number_{j}"] = signal() + rng.standard_normal(n_rows, dtype=np.float32)
    for j in range(N_FLAGS):
        table[f"flag_{j}"] = signal() > 0.5
    for j in range(N_COUNTS):
        table[f"count_{j}"] = rng.poisson(np.exp(signal() / 2)).astype(np.int32)
    for j, n_levels in enumerate(LEVELS):
        ranks = (signal() + rng.standard_normal(n_rows, dtype=np.float32)).argsort().argsort()
        codes = ranks * n_levels // n_rows
        names = [f"level {i}" for i in range(n_levels)]
        table[f"category_{j}"] = pd.Categorical.from_codes(codes, categories=names)
    likelihood = {f"count_{j}": "poisson" for j in range(N_COUNTS)}
    return pd.DataFrame(table), {"likelihood": likelihood}


def gaps(n_rows: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the same table with every tenth number and category missing."""
    table, params = mixed(n_rows)
    rng = np.random.default_rng(1)
    for column in list(table):
        if column.startswith(("number", "category")):
            table.loc[rng.random(n_rows, dtype=np.float32) < 0.1, column] = None
    return table, params


def numbers(n_rows: int, n_columns: int = N_COLUMNS) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a float32 matrix of numbers that share latent variables."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, n_columns), dtype=np.float32)
    z = rng.standard_normal((n_rows, N_LATENT), dtype=np.float32)
    X += z @ rng.standard_normal((N_LATENT, n_columns), dtype=np.float32)
    return X, {}


TABLES: dict[str, Maker] = {"mixed": mixed, "mixed, gaps": gaps, "numbers": numbers}


def fit(X: Any, max_iter: int, **params: Any) -> VAETransformer:
    """Fit our default, but for the number of passes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return VAETransformer(N_LATENT, max_iter=max_iter, random_state=0, **params).fit(X)


# -- memory -----------------------------------------------------------------------------------


def peak(name: str, n_rows: int) -> float:
    """Return by how much a fit of two passes raises this process's memory, in MiB."""
    small, params = TABLES[name](2_000)
    fit(small, max_iter=2, **params)
    X, params = TABLES[name](n_rows)
    return raised(lambda: fit(X, max_iter=2, **params))


def memory_row(name: str, n_rows: int) -> list[str]:
    """Measure one table in a process of its own."""
    adds, size = isolated(peak, name=name, n_rows=n_rows), n_rows * N_COLUMNS * 4 / MIB
    shape = f"{n_rows:,} x {N_COLUMNS}"
    return [name, shape, f"{size:.0f}", f"{adds:.0f}", f"{adds / size:.2f}"]


# -- time -------------------------------------------------------------------------------------


def seconds_per_pass(X: Any, params: dict[str, Any]) -> float:
    """Return what a pass adds to a fit."""
    seconds = []
    for max_iter in (1, 4):
        start = time.perf_counter()
        fit(X, max_iter, early_stopping=False, **params)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / 3


def time_rows(n_rows: int, rounds: int) -> list[list[str]]:
    """Time passes in turns; medians and ratios to the table of numbers."""
    plain, _ = numbers(n_rows, WIDTH)
    tables = {"numbers": (plain, {}), "mixed": mixed(n_rows), "mixed, gaps": gaps(n_rows)}
    times: dict[str, list[float]] = {name: [] for name in tables}
    for _ in range(rounds):
        for name, (X, params) in tables.items():
            times[name].append(seconds_per_pass(X, params))
    medians = {name: statistics.median(each) for name, each in times.items()}
    rows = []
    for name, median in medians.items():
        ratio = median / medians["numbers"]
        shape = f"{n_rows:,} x {tables[name][0].shape[1]}"
        rows.append([name, shape, str(WIDTH), f"{median:.2f}", f"{ratio:.2f}"])
    return rows


def main() -> None:
    """Measure from the command line and print or write the tables."""
    parser = argparse.ArgumentParser(description="Memory and time of tables with types.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    memory = markdown_table(
        ["table", "shape", "float32 size, MiB", "a fit adds, MiB", "ratio"],
        [memory_row(name, args.rows) for name in TABLES],
    )
    passes = markdown_table(
        ["table", "shape", "encoded columns", "seconds per pass", "ratio to numbers"],
        time_rows(args.rows // 5, args.rounds),
    )
    note = f"Medians of {args.rounds} rounds for time, one run for memory. {versions()}."
    publish("\n\n".join([note, memory, passes]), args.output)


if __name__ == "__main__":
    main()
