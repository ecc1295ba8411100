"""How a fit's time and memory grow, beside peers and bare matrix products.

1. Curves against the number of rows, of columns, of components and the size of batches: time of a
   fit of three epochs at our defaults but for the batches, time of an epoch (as in
   `benchmarks.speed`), and how much memory the fit adds at its highest to a process that holds the
   rows. Each point is measured in a process of its own, after a small fit. Peers stop where they
   would take too long; a point that fails, or takes longer than half an hour, is named.
2. A file that does not fit in memory: one epoch over a ``np.memmap``, beside one over a twelfth of
   its rows in memory: throughput beyond the first 10,000 rows, since some costs do not grow with
   them. Own memory is anonymous memory: pages of the file are the system's.
3. A grid search in two processes and in two threads, over one in neither.
4. The import of skvae, over that of what it stands on, in fresh interpreters.
"""

import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from joblib import parallel_config
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from benchmarks import Options, markdown_table, seconds_of, take_turns
from benchmarks.costs import numbers
from benchmarks.memory import MIB, highest_anonymous, isolated, raised, resident
from benchmarks.peers import (
    INSTALLED,
    TRAINED,
    Fit,
    Network,
    Run,
    fit_skvae,
    products_seconds,
    run,
)
from benchmarks.plots import Line, curves
from skvae import VAETransformer

HIDDEN = (128, 128)  # our default
EPOCHS = 3
SEED = 0
HALF_AN_HOUR = 1800.0
MODELS: dict[str, Fit] = {
    "skvae": fit_skvae,
    **{name: peer.fit for name, peer in INSTALLED.items() if name in ("DataLoader loop", "pythae")},
}


# -- curves -----------------------------------------------------------------------------------


class Point(NamedTuple):
    """The shape of one fit."""

    n_rows: int
    n_columns: int
    n_components: int
    batch_size: int


# the seconds of a fit and of an epoch, and MiB that the fit adds; or what went wrong
Measured = list[float] | str
Results = dict[tuple[int, str], Measured]  # by size and model
Limits = tuple[float, float]  # seconds of an epoch's products, MiB of the rows in float32


LABELS = {
    "n_rows": "rows",
    "n_columns": "columns",
    "n_components": "components",
    "batch_size": "batch size",
}


class Curve(NamedTuple):
    """What one number of a shape costs, the others being as they are."""

    base: Point
    field: str
    sizes: tuple[int, ...]
    peers_up_to: int
    fitted: tuple[int, int] | None = None  # between which sizes the exponent is taken

    @property
    def label(self) -> str:
        return LABELS[self.field]


CURVES = {
    "rows": Curve(
        Point(0, 10, 4, 256),
        "n_rows",
        (1_000, 10_000, 100_000, 1_000_000, 10_000_000),
        100_000,
        (10_000, 1_000_000),
    ),
    "columns": Curve(Point(2_000, 0, 8, 128), "n_columns", (10, 100, 1_000, 5_000, 20_000), 20_000),
    "components": Curve(Point(20_000, 100, 0, 256), "n_components", (1, 2, 4, 8, 16, 32, 64), 64),
    "batches": Curve(Point(20_000, 100, 8, 0), "batch_size", (32, 128, 512, 2048), 2048),
}
N_SMALL = 2  # of the sizes, with --quick


def measure(model: str, point: list[int]) -> list[float]:
    """Return the seconds of a fit and of an epoch, and the MiB that the fit adds."""
    n_rows, n_columns, k, batch_size = point
    fit = partial(run, MODELS[model], epochs=EPOCHS, batch_size=batch_size, seed=SEED)
    fit(numbers(500, 20)[0], network=Network(HIDDEN, 2))  # buffers of libraries
    X, _ = numbers(n_rows, n_columns)
    done: list[Run] = []
    adds = raised(lambda: done.append(fit(X, network=Network(HIDDEN, k))))
    share = TRAINED if model == "skvae" else 1.0
    return [done[0].seconds, done[0].epoch_seconds / share, adds]


def try_to_measure(model: str, point: Point) -> Measured:
    """Return what `measure` returns in a process of its own, or what went wrong."""
    try:
        return isolated(measure, timeout=HALF_AN_HOUR, model=model, point=point)
    except subprocess.TimeoutExpired:
        return "more than half an hour"
    except subprocess.CalledProcessError as error:
        return f"failed with status {error.returncode}"


def median_of_rounds(turns: list[Measured]) -> Measured:
    """Return the medians of what was measured, or the first thing that went wrong."""
    wrong = [turn for turn in turns if isinstance(turn, str)]
    if wrong:
        return wrong[0]
    return [statistics.median(each) for each in zip(*turns, strict=True)]


def curve(name: str, options: Options) -> str:
    """Measure one curve; return a table, and draw it."""
    of = CURVES[name]
    sizes = of.sizes[:N_SMALL] if options.quick else of.sizes
    turns: dict[tuple[int, str], list[Measured]] = {}
    for number in range(options.rounds):
        for size in sizes:
            for model in MODELS if size <= of.peers_up_to else ["skvae"]:
                found = try_to_measure(model, of.base._replace(**{of.field: size}))
                turns.setdefault((size, model), []).append(found)
        print(f"{name}: round {number + 1} of {options.rounds}", file=sys.stderr)
    results = {key: median_of_rounds(found) for key, found in turns.items()}
    limits = {size: limit(of.base._replace(**{of.field: size})) for size in sizes}
    draw(name, results, limits, options.output)

    rows = []
    for (size, model), found in results.items():
        point = of.base._replace(**{of.field: size})
        shape = f"{point.n_rows:,} x {point.n_columns:,}"
        cells = [model, shape, str(point.n_components), str(point.batch_size)]
        if isinstance(found, str):
            rows.append([*cells, found, "", "", "", ""])
            continue
        seconds, epoch, adds = found
        bare, data = limits[size]
        values = [seconds, epoch, epoch / bare, adds, adds / data]
        rows.append([*cells, *(f"{value:.3g}" for value in values)])
    header = ["model", "shape", "components", "batch", "fit, s", "an epoch, s"]
    header += ["epoch over bare products", "fit adds, MiB", "over the rows in float32"]
    table = markdown_table(header, rows)
    return table if of.fitted is None else f"{table}\n\n{exponents(of, results)}"


def limit(point: Point) -> Limits:
    """Return the seconds of an epoch's products, linear paths included, and the data's MiB."""
    step = products_seconds(
        point.n_columns, Network(HIDDEN, point.n_components), point.batch_size, linear=True
    )
    data = point.n_rows * point.n_columns * 4 / MIB
    return step * point.n_rows / point.batch_size, data


def known(results: Results, model: str, which: int) -> Line:
    """Return a model's sizes and what was measured there."""
    pairs = [
        (size, found[which])
        for (size, of), found in results.items()
        if of == model and not isinstance(found, str)
    ]
    sizes, values = zip(*pairs, strict=True) if pairs else ((), ())
    return sizes, values


def exponents(of: Curve, results: Results) -> str:
    """Return the slopes of the lines through our points on logarithmic axes."""
    low, high = of.fitted or (0, math.inf)
    parts = []
    for which, what in enumerate(("a fit", "an epoch")):
        sizes, values = (np.array(each) for each in known(results, "skvae", which))
        inside = (sizes >= low) & (sizes <= high)
        if inside.sum() < 2:
            return f"No exponent: fewer than two points between {low:,} and {high:,} {of.label}."
        slope = np.polyfit(np.log(sizes[inside]), np.log(values[inside]), 1)[0]
        parts.append(f"of {what} {slope:.2f}")
    return f"Exponents between {low:,} and {high:,} {of.label}: {', '.join(parts)}."


def draw(name: str, results: Results, limits: dict[int, Limits], folder: Path) -> None:
    """Save the picture of a curve: a panel for each of the three things measured."""
    of = CURVES[name]
    panels: dict[str, dict[str, Line]] = {
        y_label: {model: known(results, model, which) for model in MODELS}
        for which, y_label in enumerate(
            (f"fit of {EPOCHS} epochs, seconds", "an epoch, seconds", "memory added, MiB")
        )
    }
    _, of_epochs, of_memory = panels.values()
    of_epochs["bare matrix products"] = (list(limits), [bare for bare, _ in limits.values()])
    of_memory["float32 rows"] = (list(limits), [data for _, data in limits.values()])
    others = [f"{LABELS[field]} {n:,}" for field, n in of.base._asdict().items() if n]
    curves(
        folder / f"{name}.png", f"Cost against {of.label} ({', '.join(others)})", of.label, panels
    )


# -- a file that does not fit in memory -------------------------------------------------------

FILE_COLUMNS = 100
FILE_NETWORK = Network(HIDDEN, 8)
BLOCK = 100_000  # rows made and written at once
IN_MEMORY = 12  # rows of the file for each row in memory
FEW = 10_000  # rows whose fit, mostly of what does not grow with rows, is taken off


def write_rows(path: Path, n_rows: int) -> None:
    """Write float32 rows that share latent variables."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((4, FILE_COLUMNS), dtype=np.float32)
    with path.open("wb") as file:
        for start in range(0, n_rows, BLOCK):
            n = min(BLOCK, n_rows - start)
            X = rng.standard_normal((n, FILE_COLUMNS), dtype=np.float32)
            X += rng.standard_normal((n, 4), dtype=np.float32) @ loadings
            X.tofile(file)
        file.flush()
        os.fsync(file.fileno())
        # out of the system's cache, as a larger file would be
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fit_file(path: str, n_rows: int, mapped: bool) -> list[float]:
    """Fit one epoch to the first rows of a file, read where they are or in memory.

    Returns its seconds, the rows that a further second is worth, its highest anonymous memory and
    that before it, in MiB.
    """
    X: np.ndarray = np.memmap(path, np.float32, "r", shape=(n_rows, FILE_COLUMNS))
    if not mapped:
        X = np.array(X)
    fit = partial(
        fit_skvae,
        network=FILE_NETWORK,
        epochs=1,
        batch_size=256,
        seed=SEED,
        on_epoch=lambda: None,
    )
    fit(np.array(X[:500]))  # first calls pay for what later ones find ready
    few = min(FEW, n_rows // 2)
    fixed = seconds_of(partial(fit, np.array(X[:few])))
    before = resident("RssAnon") / MIB
    start = time.perf_counter()
    highest = highest_anonymous(partial(fit, X))
    seconds = time.perf_counter() - start
    return [seconds, (n_rows - few) / (seconds - fixed), highest, before]


def memmap(options: Options) -> str:
    """Fit one epoch to a file; return a table beside the same in memory."""
    n_bytes = int(options.gigabytes * 1e9)
    n_rows = n_bytes // (4 * FILE_COLUMNS)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 1.1 * n_bytes:
        wanted = f"{options.gigabytes:g} GB, but {free / 1e9:.1f} GB are free"
        return f"Skipped: the folder for temporary files should hold {wanted}."
    fits = {"memmap": (n_rows, True), "in memory": (n_rows // IN_MEMORY, False)}
    rates, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.float32")
        write_rows(path, n_rows)
        for name, (n, mapped) in fits.items():
            found = isolated(fit_file, path=str(path), n_rows=n, mapped=mapped)
            seconds, rates[name], highest, before = found
            size = n * FILE_COLUMNS * 4 / MIB
            cells = [f"{size:,.0f}", f"{seconds:.1f}", f"{rates[name]:,.0f}"]
            rows.append(
                [name, f"{n:,} x {FILE_COLUMNS}", *cells, f"{highest:.0f}", f"{before:.0f}"]
            )
    header = ["rows are", "shape", "MiB", "fit of an epoch, s", "further rows a second"]
    header += ["highest anonymous MiB", "before the fit"]
    share = rates["memmap"] / rates["in memory"]
    table = markdown_table(header, rows)
    return f"{table}\n\nThroughput from the file: {share:.2f} of that in memory."


# -- two at once ------------------------------------------------------------------------------


def grid_search(X: np.ndarray, n_jobs: int, backend: str) -> None:
    model = VAETransformer(hidden_layer_sizes=(32,), max_iter=20, random_state=SEED)
    grid = {"n_components": [1, 2, 3, 4]}
    with parallel_config(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        GridSearchCV(model, grid, cv=3, n_jobs=n_jobs).fit(X)


def processes(options: Options) -> str:
    """Time a grid search of small models on two cores; return a table."""
    X = load_digits().data[: 300 if options.quick else None]
    ways = {
        "n_jobs=1": (1, "loky"),
        "n_jobs=2, loky": (2, "loky"),
        "n_jobs=2, threading": (2, "threading"),
    }
    # workers print warnings of their own
    with mock.patch.dict(os.environ, {"PYTHONWARNINGS": "ignore"}):
        times = take_turns(
            {
                name: partial(seconds_of, partial(grid_search, X, *way))
                for name, way in ways.items()
            },
            options.rounds,
        )
    return relative("grid search", times, "n_jobs=1")


# -- import -----------------------------------------------------------------------------------


def imports(options: Options) -> str:
    """Time imports in fresh interpreters; return a table."""
    codes = {
        "nothing": "pass",
        "scikit-learn and torch": "import sklearn, torch",
        "skvae": "import skvae",
    }
    times = take_turns(
        {
            name: partial(
                seconds_of, partial(subprocess.run, [sys.executable, "-c", code], check=True)
            )
            for name, code in codes.items()
        },
        options.rounds,
    )
    return relative("interpreter that imports", times, "scikit-learn and torch")


def relative(title: str, times: dict[str, np.ndarray], to: str) -> str:
    """Return a table of median seconds, and of median ratios to one of them."""
    rows = [
        [name, f"{np.median(own):.2f}", f"{np.median(own / times[to]):.2f}"]
        for name, own in times.items()
    ]
    return markdown_table([title, "seconds", f"over {to}"], rows)
