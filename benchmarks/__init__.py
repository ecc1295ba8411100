"""Measurements behind the defaults and the claims of skvae. None of this is installed."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Options(NamedTuple):
    """What `python -m benchmarks` hands to each of its parts."""

    rounds: int
    quick: bool  # small sizes that only show that all of it runs
    output: Path  # the folder for pictures
    gigabytes: float  # of the file that does not fit in memory


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with its first column aligned left and the others right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, rule, *rows])


def versions() -> str:
    """Return one line that names what the numbers were measured with."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "scikit-learn", "numpy"))
    return f"Python {platform.python_version()}, {packages}, {os.cpu_count()} CPU cores"


def publish(report: str, output: Path | None) -> None:
    """Write a report to a Markdown file, or to the screen without one."""
    if output is None:
        print(report)
    else:
        output.write_text(report + "\n", encoding="utf-8")


def seconds_of(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def take_turns(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Return what each timer measures, (rounds,), after a first turn that does not count."""
    turns = [{name: timer() for name, timer in timers.items()} for _ in range(rounds + 1)]
    return {name: np.array([turn[name] for turn in turns[1:]]) for name in timers}
