"""Time a step of training on a GPU: recorded as a CUDA graph, one operation by one, and on the CPU.

A step is the time of an epoch, of fits of many epochs less fits of few, over its number of batches.
Run it with

    python -m benchmarks.gpu --output gpu.md
"""

import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import markdown_table, publish, seconds_of, versions
from benchmarks.datasets import nonlinear
from benchmarks.peers import Network
from skvae import VAETransformer
from skvae.training import Rows

# rows, columns, network, rows of a batch, epochs of the longer fits
CASES = [
    (1_797, 64, Network((64,), 2), 128, 42),
    (20_000, 30, Network((64, 64), 8), 128, 9),
    (60_000, 784, Network((512, 256), 32), 256, 7),
    (60_000, 784, Network((512, 256), 32), 2_048, 13),
    (50_000, 2_000, Network((2_048, 1_024), 64), 1_024, 5),
]
FEW_EPOCHS = 1
ON_CPU = 100  # columns, of the cases that are also timed there


def step(X: np.ndarray, device: str, batch_size: int, network: Network, n_epochs: int) -> float:
    """Return microseconds of a step."""
    options: dict[str, Any] = {"noise": "homoscedastic", "early_stopping": False}
    hidden, k = network
    vae = VAETransformer(k, hidden_layer_sizes=hidden, batch_size=batch_size, **options)
    vae.set_params(device=device, random_state=0)
    few, many = (
        seconds_of(lambda n=n: vae.set_params(max_iter=n).fit(X)) for n in (FEW_EPOCHS, n_epochs)
    )
    return 1e6 * (many - few) / (n_epochs - FEW_EPOCHS) / -(-len(X) // batch_size)


def one_by_one() -> Any:
    """Return a context in which no step is recorded."""
    usual = Rows.__init__

    def init(self: Rows, *args: Any, **kwargs: Any) -> None:
        usual(self, *args, **kwargs)
        self.steady = math.inf

    return mock.patch.object(Rows, "__init__", init)


def measure(device: str) -> str:
    """Return a table of microseconds a step."""
    found = []
    for n_rows, n_columns, network, batch_size, n_epochs in CASES:
        X = nonlinear(seed=0, n_rows=n_rows, n_columns=n_columns).astype(np.float32)
        case = X, device, batch_size, network, n_epochs
        step(X[: 4 * batch_size], *case[1:])  # what is done once
        with one_by_one():
            eager = step(*case)
        recorded = step(*case)
        torch.set_float32_matmul_precision("high")
        tf32 = step(*case)
        torch.set_float32_matmul_precision("highest")
        on_cpu = step(X, "cpu", *case[2:]) if n_columns <= ON_CPU else math.nan
        times = (f"{time:,.0f}" for time in (eager, recorded, tf32, on_cpu))
        found.append((f"{n_rows:,} x {n_columns:,}", network.hidden, batch_size, *times))
        print(found[-1], file=sys.stderr)
    names = ["data", "units", "rows of a batch", "one by one", "recorded", "in TF32", "on the CPU"]
    return markdown_table(names, found)


def main() -> None:
    """Measure from the command line and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "max_iter=")
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    table = measure(options.device)
    publish(f"# On a GPU\n\n{versions()}, {name}; microseconds.\n\n{table}", options.output)


if __name__ == "__main__":
    main()
