"""Measurements behind the defaults and the claims of skvae. None of this is installed."""

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path


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
