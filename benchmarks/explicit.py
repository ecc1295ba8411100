"""Measure explicit settings, started at factor analysis, on standardised columns.

Mean held-out log-likelihood in nats per row over 75/25 splits, columns in units of the training
rows. The digits keep the pixels whose standard deviation is over 0.5. Run it with

    python -m benchmarks.explicit --seeds 5 --output explicit.md
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import markdown_table, publish, versions
from benchmarks.datasets import load
from benchmarks.quality import cell, splits
from skvae import VAETransformer

PATIENT = {"batch_size": 32, "activation": "silu", "n_iter_no_change": 40, "alpha": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "homoscedastic": {"noise": "homoscedastic"},
    "homoscedastic, patient": {"noise": "homoscedastic", **PATIENT},
    "heteroscedastic": {"noise": "heteroscedastic"},
    "heteroscedastic, patient": {"noise": "heteroscedastic", **PATIENT},
    "heteroscedastic, patient, few rows": {
        "noise": "heteroscedastic",
        **PATIENT,
        "batch_size": 16,
        "alpha": 3.0,
    },
}
SMALL = ["iris", "wine", "breast_cancer", "diabetes"]


def scores(name: str, settings: dict[str, Any], seeds: int) -> pd.Series:
    """Return the held-out log-likelihood of each split of a data set."""
    out = []
    for split in splits(load([name]), range(seeds)):
        kept = split.X_train.std(axis=0) > (0.5 if name == "digits" else 0)
        X_train, X_test = split.standardise(split.X_train), split.standardise(split.X_test)
        model = VAETransformer(
            split.n_components, precision_power=1, random_state=split.seed, **settings
        )
        out.append(model.fit(X_train[:, kept]).score(X_test[:, kept]))
    return pd.Series(np.array(out))


def main() -> None:
    """Measure from the command line and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explicit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", default=SMALL)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()

    rows = []
    for setting in options.settings:
        row = [setting]
        for name in options.sets:
            row.append(cell(scores(name, SETTINGS[setting], options.seeds), 2))
            print(f"{setting}: {name} {row[-1]}", file=sys.stderr)
        rows.append(row)
    report = f"{versions()}\n\n{markdown_table(['settings', *options.sets], rows)}"
    publish(report, options.output)


if __name__ == "__main__":
    main()
