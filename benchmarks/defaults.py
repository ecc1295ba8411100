"""The study behind the defaults: candidates against each other, one change at a time.

Every candidate differs from the defaults in the parameters named. Each is measured at the three
jobs of ``benchmarks.quality`` on the judged, the bundled and the synthetic data sets, over seeds:

    python -m benchmarks.defaults --seeds 3 --sets judged synthetic --output defaults.md

A row of the table is the mean over data sets of the paired means over seeds, and the worst data
set beside it: a default has to be good on average and bad nowhere.
"""

import argparse
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import markdown_table, publish, versions
from benchmarks.datasets import load
from benchmarks.quality import Record, evaluate
from skvae import VAETransformer

CANDIDATES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "learning_rate_init=1e-3": {"learning_rate_init": 1e-3},
    "learning_rate_init=1e-2": {"learning_rate_init": 1e-2},
    "batch_size=32": {"batch_size": 32},
    "n_iter_no_change=10": {"n_iter_no_change": 10},
    "n_iter_no_change=30": {"n_iter_no_change": 30},
    "n_iter_no_change=60": {"n_iter_no_change": 60},
    "activation='silu'": {"activation": "silu"},
    "activation='tanh'": {"activation": "tanh"},
    "hidden_layer_sizes=(32,)": {"hidden_layer_sizes": (32,)},
    "hidden_layer_sizes=(256, 256)": {"hidden_layer_sizes": (256, 256)},
    "alpha=0": {"alpha": 0.0},
    "alpha=20": {"alpha": 20.0},
    "dropout=0.1": {"dropout": 0.1},
    "validation_fraction=0.2": {"validation_fraction": 0.2},
    "precision_power=0": {"precision_power": 0.0},
    "precision_power=0.25": {"precision_power": 0.25},
    "precision_power=1": {"precision_power": 1.0},
    "noise='heteroscedastic'": {"noise": "heteroscedastic"},
    "noise='homoscedastic'": {"noise": "homoscedastic"},
    "noise='isotropic'": {"noise": "isotropic"},
    "init='random'": {"init": "random"},
    "max_iter=0": {"max_iter": 0},
}
JOBS = {  # record key: heading, and what is worst
    "gain": ("nats over the better of PCA and factor analysis", min),
    "mse_ratio": ("error over PCA's posterior mean's", max),
    "accuracy_gain": ("5-NN accuracy minus PCA's", min),
}


def study(names: list[str], sets: list[str], seeds: int) -> list[Record]:
    """Records of all candidates; splits and linear baselines are shared between them."""
    linear: dict[tuple[str, int], dict[str, Record]] = {}
    records = []
    for name in names:
        params = CANDIDATES[name]
        records += evaluate(
            lambda k, seed, params=params: VAETransformer(k, random_state=seed, **params),
            load(sets),
            range(seeds),
            model=name,
            linear=linear,
        )
        print(name, "measured", flush=True)
    return records


def table(records: list[Record]) -> str:
    """One row a candidate: each job's mean over data sets, and its worst data set."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for record in records:
        for key in (*JOBS, "fit_seconds"):
            if record.get(key) is not None and not math.isnan(record[key]):  # no labels
                values[record["model"], key, record["set"]].append(record[key])
    rows = []
    for name in dict.fromkeys(record["model"] for record in records):
        row = {"candidate": f"`{name}`"}
        for key, (heading, worst) in JOBS.items():
            means = {
                s: statistics.fmean(v) for (m, k, s), v in values.items() if (m, k) == (name, key)
            }
            at = worst(means, key=lambda s: means[s])
            row[heading] = f"{statistics.fmean(means.values()):.3f}"
            row[f"worst of {heading}"] = f"{means[at]:.3f} ({at})"
        seconds = [
            t for (m, k, _), v in values.items() if (m, k) == (name, "fit_seconds") for t in v
        ]
        row["fit seconds"] = f"{statistics.fmean(seconds):.1f}"
        rows.append(row)
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=["judged", "synthetic"])
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=CANDIDATES)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    records = study(options.candidates, options.sets, options.seeds)
    publish(f"{versions()}\n\n{table(records)}", options.output)


if __name__ == "__main__":
    main()
