"""Time and memory of a fitted model's methods, over their own matrix products and pythae's.

The rows are 60,000 x 784 in float32, the network has layers of 512 and 256 and 32 components. Only
`score_samples` gets a hundredth of the rows: it decodes each row at 256 points.

1. Time, in turns: over the products of the weights that a method needs at least (the encoder's once
   for `transform`; the decoder's once for `inverse_transform`, of means, and `sample`, of spreads
   too; for `score_samples` the encoder's once and the decoder's as often as it runs, at each point
   and on the way to the mode), linear paths included, some rows at a time, in the dtype of what it
   returns. pythae's ``embed`` and ``predict`` of the same rows stand beside them: the first draws,
   the second decodes; both do all rows at once, and both run encoder and decoder.
2. Memory: what a call adds at its highest, the result included, in a process of its own; how it
   grows with the rows, as a multiple of a row in float32.
"""

import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from benchmarks import Options, markdown_table, seconds_of, take_turns
from benchmarks.costs import numbers
from benchmarks.memory import MIB, isolated, raised
from benchmarks.peers import Network, PlainVAE, forward_seconds, pythae_model
from benchmarks.plots import Lines, curves
from skvae import VAETransformer

N_COLUMNS, NETWORK = 784, Network((512, 256), 32)
FEWER_SCORED = 100
FITTED = 1_000  # rows that the model is fitted on, for one epoch

Action = Callable[[], object]


def fitted() -> VAETransformer:
    """Return a model that was hardly trained, which costs as much as one that was."""
    hidden, k = NETWORK
    model = VAETransformer(k, hidden_layer_sizes=hidden, max_iter=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(numbers(FITTED, N_COLUMNS)[0])


def our_actions(model: VAETransformer, X: np.ndarray) -> dict[str, Action]:
    Z = np.random.default_rng(0).standard_normal((len(X), NETWORK.n_components), dtype=np.float32)
    some = X[: max(1, len(X) // FEWER_SCORED)]
    return {
        "transform": partial(model.transform, X),
        "inverse_transform": partial(model.inverse_transform, Z),
        "sample": partial(model.sample, len(X), random_state=0),
        "score_samples": partial(model.score_samples, some),
    }


def pythae_actions(X: np.ndarray) -> dict[str, Action]:
    """Return its methods of one model with random weights, or nothing where it is missing."""
    if not find_spec("pythae"):
        return {}
    model = pythae_model(PlainVAE(N_COLUMNS, NETWORK, seed=0), N_COLUMNS).eval()
    rows = torch.from_numpy(X)
    return {
        "pythae embed": torch.no_grad()(partial(model.embed, rows)),
        "pythae predict": torch.no_grad()(partial(model.predict, rows)),
    }


def weights(network: Any) -> list[Any]:
    return [parameter for parameter in network.parameters() if parameter.dim() == 2]


def product_timers(model: VAETransformer, n_rows: int) -> dict[str, Callable[[], float]]:
    """Return what times the products of so many rows with each part's weights."""
    whole = model.module_.decoder  # of means, and of spreads beside it
    parts = {
        "encoder": (model.module_.encoder, torch.float32),
        "means": (getattr(whole, "decoder", whole), torch.float32),
        "decoder": (whole, torch.float32),
        "decoder, double": (whole, torch.float64),
    }
    return {
        name: partial(forward_seconds, weights(part), n_rows, dtype)
        for name, (part, dtype) in parts.items()
    }


def decoded_per_row(model: VAETransformer, X: np.ndarray) -> float:
    """Return at how many latents `score_samples` decodes a row."""
    counts = []
    hook = model.module_.decoder.register_forward_hook(
        lambda _, given, out: counts.append(len(out))
    )
    model.score_samples(X)
    hook.remove()
    return sum(counts) / len(X)


def peak(path: str, method: str, n_rows: int) -> float:
    """Return by how many MiB one call of the pickled model's method raises the memory."""
    model = pickle.loads(Path(path).read_bytes())
    few, _ = numbers(500, N_COLUMNS)
    (our_actions(model, few) | pythae_actions(few))[method]()  # buffers of libraries
    X, _ = numbers(n_rows, N_COLUMNS)
    return raised((our_actions(model, X) | pythae_actions(X))[method])


def measured_times(model: VAETransformer, n_rows: int, rounds: int) -> dict[str, list[str]]:
    """Return the cells of each method: seconds and ratios, medians over rounds."""
    X, _ = numbers(n_rows, N_COLUMNS)
    ours, theirs = our_actions(model, X), pythae_actions(X)
    timers = {name: partial(seconds_of, action) for name, action in (ours | theirs).items()}
    times = take_turns(timers | product_timers(model, n_rows), rounds)
    n_decoded = decoded_per_row(model, X[:100])
    scored = (times["encoder"] + n_decoded * times["decoder"]) / FEWER_SCORED
    least = {
        "transform": times["encoder"],
        "inverse_transform": times["means"],
        "sample": times["decoder, double"],
        "score_samples": scored,
        "pythae embed": times["encoder"] + times["means"],
        "pythae predict": times["encoder"] + times["means"],
    }
    return {
        name: [
            f"{np.median(times[name]):.3f}",
            f"{np.median(times[name] / least[name]):.2f}",
            *(f"{np.median(times[peer] / times[name]):.2f}" for peer in theirs),
        ]
        for name in timers
    }


def measured_memory(model: VAETransformer, names: Iterable[str], sizes: list[int]) -> Lines:
    """Return, for each method, the numbers of rows and the MiB that a call adds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pickle")
        path.write_bytes(pickle.dumps(model))
        return {
            name: (sizes, [isolated(peak, path=str(path), method=name, n_rows=n) for n in sizes])
            for name in names
        }


def inference(options: Options) -> str:
    """Measure time and memory; return a table and draw memory against the number of rows."""
    n_rows = 4_000 if options.quick else 60_000
    model = fitted()
    times = measured_times(model, n_rows, options.rounds)
    sizes = [n_rows // 16, n_rows // 4, n_rows]
    memory = measured_memory(model, times, sizes)
    row = N_COLUMNS * 4 / MIB
    float32 = {"float32 rows": (sizes, [size * row for size in sizes])}
    curves(
        options.output / "inference.png",
        f"Memory that a call adds, rows of {N_COLUMNS} columns",
        "rows (score_samples: a hundredth)",
        {"peak memory, MiB": {**memory, **float32}},
    )
    peers = [name for name in times if name.startswith("pythae")]
    header = ["method", "seconds", "over its products", *(f"{peer} over it" for peer in peers)]
    header += [
        *(f"MiB at {size:,} rows" for size in sizes),
        "growth per row at last, in float32 rows",
    ]
    rows = []
    for name, cells in times.items():
        mib = memory[name][1]
        growth = (mib[-1] - mib[-2]) / ((sizes[-1] - sizes[-2]) * row)
        if name == "score_samples":
            growth *= FEWER_SCORED
        rows.append([name, *cells, *(f"{value:.1f}" for value in mib), f"{growth:.2f}"])
    return f"{n_rows:,} rows:\n\n" + markdown_table(header, rows)
