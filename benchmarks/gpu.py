"""Time a step of training on a GPU: recorded as a CUDA graph, one operation by one, and on the CPU.

A step is the median time of a fit's epochs over its number of batches. The ways take turns, for
several rounds; the table holds medians. Run it with

    python -m benchmarks.gpu --output gpu.md
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import markdown_table, publish, take_turns, versions
from benchmarks.datasets import nonlinear
from benchmarks.peers import Network, fit_skvae, run
from skvae.training import Rows

Case = tuple[int, int, Network, int, int]  # rows, columns, network, rows of a batch, epochs
CASES: list[Case] = [
    (1_797, 64, Network((64,), 2), 128, 20),
    (20_000, 30, Network((64, 64), 8), 128, 5),
    (60_000, 784, Network((512, 256), 32), 256, 5),
    (60_000, 784, Network((512, 256), 32), 2_048, 9),
    (50_000, 2_000, Network((2_048, 1_024), 64), 1_024, 5),
]
ON_CPU = 100  # columns, of the cases that are also timed there


def step(context: Any, device: str, X: np.ndarray, case: Case) -> float:
    """Return microseconds of a step within this context."""
    _, _, network, batch_size, n_epochs = case
    options: dict[str, Any] = {"noise": "homoscedastic", "early_stopping": False}
    fit = partial(fit_skvae, device=device, **options)
    with context():
        stamps = run(fit, X, network, 1 + n_epochs, batch_size, 0).stamps
    return 1e6 * float(np.median(np.diff(stamps))) / -(-len(X) // batch_size)


def one_by_one() -> Any:
    """Return a context in which no step is recorded."""
    usual = Rows.__init__

    def init(self: Rows, *args: Any, **kwargs: Any) -> None:
        usual(self, *args, **kwargs)
        self.steady = math.inf

    return mock.patch.object(Rows, "__init__", init)


@contextlib.contextmanager
def in_tf32() -> Iterator[None]:
    """Products in TF32 as long as the block takes."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def measure(device: str, rounds: int) -> str:
    """Return a table of microseconds a step."""
    found = []
    for case in CASES:
        n_rows, n_columns, network, batch_size, _ = case
        X = nonlinear(seed=0, n_rows=n_rows, n_columns=n_columns).astype(np.float32)
        timers = {
            "one by one": partial(step, one_by_one, device, X, case),
            "recorded": partial(step, contextlib.nullcontext, device, X, case),
            "in TF32": partial(step, in_tf32, device, X, case),
        }
        if n_columns <= ON_CPU:
            timers["on the CPU"] = partial(step, contextlib.nullcontext, "cpu", X, case)
        times = {name: f"{np.median(us):,.0f}" for name, us in take_turns(timers, rounds).items()}
        times.setdefault("on the CPU", "")
        units = ", ".join(map(str, network.hidden))
        found.append((f"{n_rows:,} x {n_columns:,}", units, batch_size, *times.values()))
        print(found[-1], file=sys.stderr)
    return markdown_table(["data", "units", "rows of a batch", *times], found)


def main() -> None:
    """Measure from the command line and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    table = measure(options.device, options.rounds)
    publish(f"# On a GPU\n\n{versions()}, {name}; microseconds.\n\n{table}", options.output)


if __name__ == "__main__":
    main()
