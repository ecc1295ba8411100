"""Time `VAETransformer`'s training against the peers: cost of an epoch, time to a likelihood.

All models see the same standardised float32 rows (whole grey levels spread evenly by uniform
noise, so that no column is constant), and the same Gaussian likelihood with the same noise floor,
as far as they have one (`benchmarks.peers`).

1. The cost of an epoch at batches of 128 rows, from the end of the first epoch to the end of the
   last; also as a multiple of the bare matrix products of the same network, which are counted with
   those of the linear paths for ours. Ours is at its defaults. It then holds out a tenth of the
   rows and judges by them after each epoch: what it takes is divided by the share of the rows that
   are trained on.
2. The time to what a peer ends with on held-out rows: its whole fit, over the whole of the first of
   our fits, in a ladder of `max_iter`, that gets as far, the linear start included. Likelihoods are
   importance-weighted bounds with 256 points that all rows share. Peers run for as many epochs, and
   in batches of as many rows, as their defaults say; the plain loop for some numbers of epochs. Two
   settings of ours are tried: the defaults, and those for likelihood alone.

All competitors take turns, for several rounds with a seed each; the tables hold medians.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks import Options, markdown_table
from benchmarks.datasets import data_file, low_rank, mnist, nonlinear
from benchmarks.peers import (
    INSTALLED,
    NATS,
    NOISE_FLOOR,
    TRAINED,
    Fit,
    Network,
    Peer,
    Run,
    fit_skvae,
    products_seconds,
    run,
)

BATCH_SIZE = 128
# Ours starts at factor analysis; steps above the default are safe there.
FOR_LIKELIHOOD: dict[str, Any] = {
    "noise": "homoscedastic",
    "precision_power": 1.0,
    "learning_rate_init": 1e-2,
    "noise_floor": NOISE_FLOOR,
    "early_stopping": False,
}
OURS: dict[str, Fit] = {
    "skvae, defaults": fit_skvae,
    "skvae, for likelihood": partial(fit_skvae, **FOR_LIKELIHOOD),
}
LADDER = (*range(9), *(int(10 * 1.145**i) for i in range(28)))  # max_iter
MOST_TVAE_COLUMNS = 100  # it first fits a mixture to each

Record = dict[str, Any]


# -- the shapes -------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Standardised float32 rows, the network for them, and numbers of epochs."""

    name: str
    X_train: np.ndarray
    X_test: np.ndarray
    network: Network
    timed: int  # epochs that the cost of one is taken from, after a first
    stops: tuple[int, ...]  # epochs after which the plain loop is judged


def standardised(X_train: np.ndarray, X_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in units of the training rows; columns constant there keep their scale."""
    scale = X_train.std(axis=0)
    scale[scale == 0] = 1
    mean = X_train.mean(axis=0)
    return ((X_train - mean) / scale).astype("float32"), ((X_test - mean) / scale).astype("float32")


def digits_shape() -> Shape:
    """Return the 1797 x 64 digits with grey levels spread evenly, one fifth of them held out."""
    X = load_digits().data
    X = X + np.random.default_rng(0).uniform(size=X.shape)
    X_train, X_test = standardised(*train_test_split(X, test_size=0.2, random_state=0))
    network = Network((64,), 2)
    return Shape("digits, 1797 x 64", X_train, X_test, network, 30, (20, 100, 400))


def nonlinear_shape() -> Shape:
    """Return 20,000 x 30 rows near a curved surface of 5 dimensions, and 2,000 to hold out."""
    X = nonlinear(seed=0, n_rows=22_000, n_columns=30)
    X_train, X_test = standardised(X[:20_000], X[20_000:])
    network = Network((64, 64), 8)
    return Shape("curved surface, 20,000 x 30", X_train, X_test, network, 5, (20, 100))


def images_shape() -> Shape:
    """Return 20,000 x 784 MNIST images, or linear rows without the file, and 2,000 to hold out."""
    if data_file("mnist.npz"):
        X, _ = mnist(seed=0, n_rows=22_000)
        X += np.random.default_rng(0).uniform(size=X.shape)
        name = "MNIST, 20,000 x 784"
    else:
        X = low_rank(seed=0, n_rows=22_000, n_columns=784, rank=32)
        name = "linear rows, 20,000 x 784"
    X_train, X_test = standardised(X[:20_000], X[20_000:])
    return Shape(name, X_train, X_test, Network((512, 256), 32), 2, (20,))


SHAPES: list[Callable[[], Shape]] = [digits_shape, nonlinear_shape, images_shape]


def shapes(options: Options) -> list[Shape]:
    """Return the shapes, or a few rows of each and a few epochs."""
    if not options.quick:
        return [make() for make in SHAPES]
    return [
        shape._replace(
            name=f"{shape.name} (500 rows)",
            X_train=shape.X_train[:500],
            X_test=shape.X_test[:100],
            timed=2,
            stops=(2,),
        )
        for shape in (make() for make in SHAPES)
    ]


# -- the cost of an epoch ---------------------------------------------------------------------


def epoch_costs(shape: Shape, seed: int) -> list[Record]:
    """Let all competitors take one turn; seconds for as many rows as the shape has."""
    n_rows, n_columns = shape.X_train.shape
    fits = {name: peer.fit for name, peer in INSTALLED.items()}
    if n_columns > MOST_TVAE_COLUMNS:
        fits.pop("TVAE", None)
    fits["skvae"] = fit_skvae
    seconds = {}
    for name, fit in fits.items():
        done = run(fit, shape.X_train, shape.network, 1 + shape.timed, BATCH_SIZE, seed)
        seconds[name] = done.epoch_seconds
    seconds["skvae"] /= TRAINED

    bare, linear = (
        products_seconds(n_columns, shape.network, BATCH_SIZE, linear) * n_rows / BATCH_SIZE
        for linear in (False, True)
    )
    seconds = {"products": bare, "products, with the linear paths": linear} | seconds
    return [
        {
            "data": shape.name,
            "model": name,
            "seconds": own,
            "over its products": own / (linear if name == "skvae" else bare),
            **{f"{peer} over it": seconds[peer] / own for peer in fits if peer != "skvae"},
        }
        for name, own in seconds.items()
    ]


def epochs(options: Options) -> str:
    """Measure the cost of an epoch; return a table of medians."""
    records: list[Record] = []
    for shape in shapes(options):
        epoch_costs(shape._replace(X_train=shape.X_train[:500], timed=1), seed=0)  # warm-up
        for seed in range(options.rounds):
            records += epoch_costs(shape, seed)
            report_progress(f"epochs, {shape.name}", seed, options)
    medians = pd.DataFrame(records).groupby(["data", "model"], sort=False).median()
    rows = [
        [*names, f"{1000 * values.seconds:.3g}", *(_ratio(value) for value in values[1:])]
        for names, values in medians.iterrows()
    ]
    return markdown_table(["data", "model", "ms", *medians.columns[1:]], rows)


def report_progress(what: str, seed: int, options: Options) -> None:
    print(f"{what}: round {seed + 1} of {options.rounds}", file=sys.stderr)


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


# -- the time to a likelihood -----------------------------------------------------------------


class Goal(NamedTuple):
    """What a peer ended with."""

    label: str
    measure: str
    value: float
    seconds: float

    def reached_by(self, value: float) -> bool:
        return value >= self.value if self.measure == NATS else value <= self.value


def goals(shape: Shape, seed: int, quick: bool) -> list[Goal]:
    """Train the peers, each for as long as its defaults say, and judge them."""
    peers = {name: peer for name, peer in INSTALLED.items() if peer.epochs}
    if quick:
        peers = {name: peer._replace(epochs=2) for name, peer in peers.items()}
    loop = INSTALLED["DataLoader loop"]
    turns: list[tuple[str, Peer]] = [
        *(("DataLoader loop", loop._replace(epochs=stop)) for stop in shape.stops),
        *peers.items(),
    ]
    found = []
    for name, peer in turns:
        done = run(peer.fit, shape.X_train, shape.network, peer.epochs, peer.batch_size, seed)
        found += [
            Goal(f"{name}, {peer.epochs} epochs", measure, value, done.seconds)
            for measure, value in done.judge(shape.X_test).items()
        ]
    return found


def climb(fit: Fit, shape: Shape, goals: list[Goal], seed: int) -> dict[str, Record]:
    """Return, for each goal by its label, the first fit in the ladder that reaches it.

    Goals are given up on when a fit takes longer than the peers did, or ends by itself.
    """
    reached: dict[str, Record] = {}
    for max_iter in LADDER:
        ours: Run = run(fit, shape.X_train, shape.network, max_iter, "auto", seed)
        values = ours.judge(shape.X_test)
        for goal in goals:
            if goal.label not in reached and goal.reached_by(values[goal.measure]):
                reached[goal.label] = {
                    "our value": values[goal.measure],
                    "our seconds": ours.seconds,
                    "our epochs": max_iter,
                    "ratio": goal.seconds / ours.seconds,
                }
        left = [goal.seconds for goal in goals if goal.label not in reached]
        if not left or ours.seconds > max(left) or len(ours.stamps) < max_iter:
            break
    return reached


def reach(options: Options) -> str:
    """Measure the time to what the peers end with; return a table of medians."""
    records: list[Record] = []
    for shape in shapes(options):
        few = shape._replace(X_train=shape.X_train[:500], stops=(1,))
        # first calls pay for what later ones find ready
        goals(few, seed=0, quick=True)
        for fit in OURS.values():
            run(fit, few.X_train, few.network, 1, "auto", seed=0)
        for seed in range(options.rounds):
            theirs = goals(shape, seed, options.quick)
            for model, fit in OURS.items():
                reached = climb(fit, shape, theirs, seed)
                for goal in theirs:
                    known = {"data": shape.name, "peer": goal.label, "model": model}
                    their = {"measure": goal.measure, "value": goal.value, "seconds": goal.seconds}
                    records.append(known | their | reached.get(goal.label, {"ratio": math.nan}))
            report_progress(f"reach, {shape.name}", seed, options)
    groups = pd.DataFrame(records).groupby(["data", "peer", "model"], sort=False)
    header = ["data", "peer", "model", "measure", "its value", "its seconds"]
    header += ["our value", "our seconds", "our epochs", "ratio (range)"]
    return markdown_table(header, [[*names, *reach_cells(group)] for names, group in groups])


def reach_cells(group: pd.DataFrame) -> list[str]:
    """Return medians over rounds, the ratio with its range."""
    cells = [group.measure.iloc[0], f"{group.value.median():.4g}", f"{group.seconds.median():.2f}"]
    missed = int(group.ratio.isna().sum())
    if missed:
        return [*cells, "", "", "", f"not in its time ({missed} of {len(group)} rounds)"]
    return [
        *cells,
        f"{group['our value'].median():.4g}",
        f"{group['our seconds'].median():.2f}",
        f"{group['our epochs'].median():.0f}",
        f"**{group.ratio.median():.1f}** ({group.ratio.min():.1f} to {group.ratio.max():.1f})",
    ]
