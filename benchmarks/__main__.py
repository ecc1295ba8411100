"""Measure the performance of skvae beside other packages: ``python -m benchmarks``.

Writes ``performance.md`` and pictures into a folder, a part as soon as it is measured. What each
part measures is said in the file it comes from. Peers that are not installed are named and left
out; ``pip install ".[bench]"`` brings all.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import Options, inference, publish, scaling, speed, versions
from benchmarks.peers import SKIPPED

PARTS: dict[str, tuple[str, Callable[[Options], str]]] = {
    "epochs": ("Cost of an epoch", speed.epochs),
    "reach": ("Time to what the peers end with", speed.reach),
    "inference": ("Methods of a fitted model", inference.inference),
    **{
        name: (f"Cost against {curve.label}", partial(scaling.curve, name))
        for name, curve in scaling.CURVES.items()
    },
    "memmap": ("A file that does not fit in memory", scaling.memmap),
    "processes": ("Two at once", scaling.processes),
    "imports": ("Import", scaling.imports),
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes: does all of it run?")
    parser.add_argument("--gigabytes", type=float, default=12.0, help="of the file of `memmap`")
    parser.add_argument("--threads", type=int, help="of torch; 1 where other work shares the CPU")
    parser.add_argument("--output", type=Path, default=Path("performance"), help="a folder")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes it starts
    args.output.mkdir(parents=True, exist_ok=True)
    gigabytes = min(args.gigabytes, 0.1) if args.quick else args.gigabytes
    options = Options(args.rounds, args.quick, args.output, gigabytes)

    note = f"Medians of {args.rounds} alternating rounds. {versions()}, "
    note += f"{torch.get_num_threads()} torch threads."
    if SKIPPED:
        note += f" Skipped, since they are not installed: {', '.join(SKIPPED)}."
    report = ["# Performance", note]
    for name in args.only:
        title, measure = PARTS[name]
        print(title, file=sys.stderr)
        report += [f"## {title}", measure(options)]
        if (args.output / f"{name}.png").exists():
            report.append(f"![{title}]({name}.png)")
        publish("\n\n".join(report), args.output / "performance.md")


if __name__ == "__main__":
    main()
