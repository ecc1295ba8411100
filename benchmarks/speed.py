"""Time `VAETransformer` against the same network trained in the two usual ways.

The peers are a variational autoencoder in a skorch ``NeuralNet`` and in a plain PyTorch loop over
a ``DataLoader``: random start, Adam at 1e-3, shuffled batches of 128 rows, one learned noise for
each column. All models see the same standardised float32 rows (whole grey levels spread evenly by
uniform noise, so that no column is constant), and the same Gaussian likelihood with the same noise
floor. Ours adds the linear path, and starts on it.

1. The cost of an epoch: training time alone over the number of epochs, at the peers' batch size
   and at our default; also as a multiple of the bare matrix products of the same network.
2. The time to the likelihood that a peer ends with after so many epochs: its whole training, over
   the whole of the first of our fits, in a ladder of `max_iter`, that reaches the peer's held-out
   likelihood, the linear start included. Both likelihoods are importance-weighted bounds with 256
   points that all rows share.

All competitors take turns, for several rounds with a seed each; the tables hold medians. Run it
with

    python -m benchmarks.speed --rounds 3 --output speed.md
"""

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from skorch import NeuralNet
from torch import nn

from benchmarks import markdown_table, publish, versions
from benchmarks.datasets import data_file, low_rank, mnist, nonlinear
from skvae import VAETransformer

BATCH_SIZE = 128
LEARNING_RATE = 1e-3
# Ours starts at factor analysis; steps twice the peers' size are safe there.
OURS = {"noise": "homoscedastic", "precision_power": 1.0, "learning_rate_init": 1e-2}
NOISE_FLOOR = 0.01
N_POINTS = 256  # a power of two
LADDER = (*range(9), 10, 13, 17, 22, 28, 36, 47, 61, 79, 103, 134, 174, 226, 294, 382)  # max_iter

Timing = dict[str, Any]


# -- the peers --------------------------------------------------------------------------------


class Posterior(NamedTuple):
    """What one pass of `PlainVAE` returns, each (n_rows, width) but `log_sigma` (n_columns,)."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    decoded: torch.Tensor
    log_sigma: torch.Tensor


def mlp(widths: Iterable[int]) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them."""
    widths = list(widths)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PlainVAE(nn.Module):
    """A variational autoencoder with Gaussian columns, as most people write it."""

    def __init__(self, n_columns: int, hidden: tuple[int, ...], n_components: int) -> None:
        super().__init__()
        self.encoder = mlp([n_columns, *hidden, 2 * n_components])
        self.decoder = mlp([n_components, *hidden[::-1], n_columns])
        self.log_sigma = nn.Parameter(torch.zeros(n_columns))

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance of q(z given x), each (n_rows, n_components)."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def noise(self) -> torch.Tensor:
        """Return the log of each column's noise, never below the floor."""
        return self.log_sigma.clamp(min=math.log(NOISE_FLOOR))

    def forward(self, x: torch.Tensor) -> Posterior:
        mean, log_variance = self.posterior(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return Posterior(mean, log_variance, self.decoder(z), self.noise())


def gaussian_log_density(
    x: torch.Tensor, mean: torch.Tensor, log_sigma: torch.Tensor
) -> torch.Tensor:
    """Return the log-density of each row of `x`, summed over its last axis."""
    standardised = (x - mean) * (-log_sigma).exp()
    return -(0.5 * standardised.square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(dim=-1)


class NegativeElbo(nn.Module):
    """The training loss: minus the evidence lower bound, its mean over rows, in nats."""

    def forward(self, output: Posterior, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance, decoded, log_sigma = output
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1)
        return (kl - gaussian_log_density(x, decoded, log_sigma)).mean()


Trainer = Callable[[PlainVAE, np.ndarray, Iterable[int]], Iterator[None]]


def train_loop(model: PlainVAE, X: np.ndarray, epochs: Iterable[int]) -> Iterator[None]:
    """Train with a plain loop over a DataLoader; pause after each of these numbers of epochs."""
    rows = torch.utils.data.TensorDataset(torch.from_numpy(X))
    loader = torch.utils.data.DataLoader(rows, batch_size=BATCH_SIZE, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loss_of = NegativeElbo()
    for done, goal in pairwise([0, *epochs]):
        for _ in range(done, goal):
            for (x,) in loader:
                optimizer.zero_grad()
                loss_of(model(x), x).backward()
                optimizer.step()
        yield


def train_skorch(model: PlainVAE, X: np.ndarray, epochs: Iterable[int]) -> Iterator[None]:
    """Train with skorch, on all rows and shuffled, otherwise at its defaults; pause likewise."""
    net = NeuralNet(
        model,
        criterion=NegativeElbo,
        optimizer=torch.optim.Adam,
        lr=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    net.initialize()
    for done, goal in pairwise([0, *epochs]):
        net.set_params(max_epochs=goal - done)
        net.partial_fit(X, X)
        yield


PEERS: dict[str, Trainer] = {"skorch": train_skorch, "DataLoader loop": train_loop}


@torch.no_grad()
def importance_bound(model: PlainVAE, X: np.ndarray, seed: int, chunk: int = 100) -> float:
    """Return the mean importance-weighted log-likelihood, in nats per row.

    The points come from the model's own posterior through the same scrambled Sobol points for all
    rows, `N_POINTS` of them.
    """
    rows = torch.from_numpy(X)
    n_components = model.posterior(rows[:1])[0].shape[1]
    uniform = torch.quasirandom.SobolEngine(n_components, scramble=True, seed=seed).draw(N_POINTS)
    points = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))[:, None]  # (points, 1, components)
    zero = torch.zeros(())
    bounds = []
    for x in rows.split(chunk):
        mean, log_variance = model.posterior(x)
        z = mean + (0.5 * log_variance).exp() * points  # (points, rows, components)
        log_weight = (
            gaussian_log_density(x, model.decoder(z), model.noise())
            + gaussian_log_density(z, zero, zero)
            - gaussian_log_density(z, mean, 0.5 * log_variance)
        )
        bounds.append(log_weight.logsumexp(dim=0) - math.log(N_POINTS))
    return float(torch.cat(bounds).double().mean())


# -- the shapes -------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Standardised float32 rows, the network for them, and when the peers' likelihood is taken."""

    name: str
    X_train: np.ndarray
    X_test: np.ndarray
    hidden: tuple[int, ...]
    n_components: int
    epochs: tuple[int, ...]


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
    return Shape("digits, 1797 x 64", X_train, X_test, (64,), 2, (20, 100, 400))


def nonlinear_shape() -> Shape:
    """Return 20,000 x 30 rows near a curved surface of 5 dimensions, and 2,000 to hold out."""
    X = nonlinear(seed=0, n_rows=22_000, n_columns=30)
    X_train, X_test = standardised(X[:20_000], X[20_000:])
    return Shape("curved surface, 20,000 x 30", X_train, X_test, (64, 64), 8, (20, 100))


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
    return Shape(name, X_train, X_test, (512, 256), 32, (20,))


SHAPES: dict[str, Callable[[], Shape]] = {
    "digits": digits_shape,
    "curved": nonlinear_shape,
    "images": images_shape,
}


# -- timing -----------------------------------------------------------------------------------


def matmul_seconds(shape: Shape) -> float:
    """Return the seconds of one epoch's matrix products alone, forward and backward."""
    n_rows, n_columns = shape.X_train.shape
    widths = [n_columns, *shape.hidden, 2 * shape.n_components]
    back = [shape.n_components, *shape.hidden[::-1], n_columns]
    pairs = [*pairwise(widths), *pairwise(back)]
    layers = [
        (torch.randn(BATCH_SIZE, n_in), torch.randn(n_in, n_out), torch.randn(BATCH_SIZE, n_out))
        for n_in, n_out in pairs
    ]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(math.ceil(n_rows / BATCH_SIZE)):
            for number, (x, weight, gradient) in enumerate(layers):
                torch.mm(x, weight)
                torch.mm(x.T, gradient)
                if number:  # nothing needs the gradient of the rows themselves
                    torch.mm(gradient, weight.T)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def time_peer(name: str, shape: Shape, seed: int) -> dict[int, Timing]:
    """Train a peer; return its seconds so far and its held-out likelihood by number of epochs."""
    torch.manual_seed(seed)
    model = PlainVAE(shape.X_train.shape[1], shape.hidden, shape.n_components)
    training = PEERS[name](model, shape.X_train, shape.epochs)
    timings = {}
    seconds = 0.0
    for epochs in shape.epochs:
        start = time.perf_counter()
        next(training)
        seconds += time.perf_counter() - start
        loglik = importance_bound(model, shape.X_test, seed)
        timings[epochs] = {"seconds": seconds, "loglik": loglik}
    return timings


def fit_ours(shape: Shape, seed: int, **params: Any) -> tuple[VAETransformer, float]:
    """Fit the same network by skvae; return it and the seconds of the whole fit."""
    model = VAETransformer(
        shape.n_components,
        hidden_layer_sizes=shape.hidden,
        **OURS,
        noise_floor=NOISE_FLOOR,
        n_score_samples=N_POINTS,
        early_stopping=False,
        random_state=seed,
        **params,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(shape.X_train)
    return model, time.perf_counter() - start


def time_our_epoch(shape: Shape, seed: int, **params: Any) -> float:
    """Return the seconds of one epoch of training, those of the start taken off."""
    _, start_seconds = fit_ours(shape, seed, max_iter=0, **params)
    model, seconds = fit_ours(shape, seed, max_iter=shape.epochs[0], **params)
    return (seconds - start_seconds) / int(model.n_iter_)


def time_to_reach(shape: Shape, targets: list[float], seed: int, limit: float) -> list[Timing]:
    """Return, for each target, the first fit in the ladder of `max_iter` that reaches it.

    Give up on those not reached by a fit that takes more than `limit` seconds.
    """
    never: Timing = {"seconds": math.inf, "max_iter": math.inf, "loglik": math.nan}
    reached = [never] * len(targets)
    for max_iter in LADDER:
        model, seconds = fit_ours(shape, seed, max_iter=max_iter)
        timing = {"seconds": seconds, "max_iter": max_iter, "loglik": model.score(shape.X_test)}
        reached = [
            timing if old is never and timing["loglik"] >= target else old
            for old, target in zip(reached, targets, strict=True)
        ]
        if never not in reached or seconds > limit:
            break
    return reached


def race(shape: Shape, rounds: int) -> tuple[list[Timing], list[Timing]]:
    """Let all competitors take turns; return the costs of an epoch and the times to reach."""
    warm_up = shape._replace(epochs=(1,))  # first calls pay for what later ones find ready
    for name in PEERS:
        time_peer(name, warm_up, seed=0)
    time_our_epoch(warm_up, seed=0)

    costs: list[Timing] = []
    reaches: list[Timing] = []
    for seed in range(rounds):
        peers = {name: time_peer(name, shape, seed) for name in PEERS}
        products = matmul_seconds(shape)
        last = shape.epochs[-1]
        epoch_seconds = {
            **{name: timings[last]["seconds"] / last for name, timings in peers.items()},
            f"skvae, batches of {BATCH_SIZE}": time_our_epoch(shape, seed, batch_size=BATCH_SIZE),
            "skvae, default batches": time_our_epoch(shape, seed),
        }
        for model, seconds in {"bare matrix products": products, **epoch_seconds}.items():
            over = {f"{peer} over it": epoch_seconds[peer] / seconds for peer in PEERS}
            costs.append(
                {"model": model, "seconds": seconds, "over_products": seconds / products, **over}
            )
        ends = [
            (name, epochs, timing)
            for name, timings in peers.items()
            for epochs, timing in timings.items()
        ]
        slowest = max(timing["seconds"] for *_, timing in ends)
        ours = time_to_reach(shape, [timing["loglik"] for *_, timing in ends], seed, slowest)
        for (name, epochs, peer), our in zip(ends, ours, strict=True):
            reaches.append(
                {
                    "peer": f"{name}, {epochs} epochs",
                    "peer_loglik": peer["loglik"],
                    "peer_seconds": peer["seconds"],
                    "our_loglik": our["loglik"],
                    "our_seconds": our["seconds"],
                    "max_iter": our["max_iter"],
                    "ratio": peer["seconds"] / our["seconds"],
                }
            )
        print(f"{shape.name}: round {seed + 1} of {rounds}", file=sys.stderr)
    return costs, reaches


# -- the report -------------------------------------------------------------------------------


def cost_rows(name: str, costs: list[Timing]) -> list[list[str]]:
    """Return one row of medians for each model of a shape."""
    return [
        [
            name,
            model,
            f"{1000 * group['seconds'].median():.1f}",
            f"{group['over_products'].median():.1f}",
            *(f"{group[f'{peer} over it'].median():.2f}" for peer in PEERS),
        ]
        for model, group in pd.DataFrame(costs).groupby("model", sort=False)
    ]


def reach_rows(name: str, reaches: list[Timing]) -> list[list[str]]:
    """Return one row of medians for each peer of a shape, the ratio with its range."""
    return [
        [
            name,
            peer,
            f"{group['peer_loglik'].median():.2f}",
            f"{group['peer_seconds'].median():.2f}",
            f"{group['our_loglik'].median():.2f}",
            f"{group['our_seconds'].median():.2f}",
            f"{group['max_iter'].median():.0f}",
            f"**{group['ratio'].median():.1f}** "
            f"({group['ratio'].min():.1f} to {group['ratio'].max():.1f})",
        ]
        for peer, group in pd.DataFrame(reaches).groupby("peer", sort=False)
    ]


def main() -> None:
    """Measure from the command line and print or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, nargs="+", help="after which the peers' likelihood is taken, rising"
    )
    parser.add_argument("--threads", type=int, help="of torch; 1 where other work shares the CPU")
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    costs: list[list[str]] = []
    reaches: list[list[str]] = []
    for key in options.shapes:
        shape = SHAPES[key]()
        if options.epochs:
            shape = shape._replace(epochs=tuple(options.epochs))
        shape_costs, shape_reaches = race(shape, options.rounds)
        costs += cost_rows(shape.name, shape_costs)
        reaches += reach_rows(shape.name, shape_reaches)

    report = "\n\n".join(
        [
            f"Medians of {options.rounds} alternating rounds. {versions()}, "
            f"{torch.get_num_threads()} torch threads.",
            "Cost of an epoch:",
            markdown_table(
                ["data", "model", "ms", "over products", *(f"{p} over it" for p in PEERS)], costs
            ),
            "Time to the held-out likelihood, in nats per row of the standardised columns, that a "
            "peer ends with:",
            markdown_table(
                [
                    "data",
                    "peer",
                    "its nats",
                    "its seconds",
                    "our nats",
                    "our seconds",
                    "our epochs",
                    "ratio (range)",
                ],
                reaches,
            ),
        ]
    )
    publish(report, options.output)


if __name__ == "__main__":
    main()
