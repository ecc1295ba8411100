"""Hold the family against published tables: the same networks, the same data, the same figures.

``iwae``: Table 1 of Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016:
MNIST, one stochastic layer of 50 latents, two layers of 200 tanh units on each side, pixels drawn
anew in each epoch, log-likelihood of the test images, drawn once, by 5,000 importance samples.
Published after 3,280 epochs in batches of 20: -86.76 nats with one sample, -85.54 with 5, -84.78
with 50.

``priors``: the same network with a mixture and a VampPrior as its prior, at equal epochs.

Run them with

    python -m benchmarks.papers --only iwae --epochs 500 --output papers.md
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import markdown_table, publish, versions
from benchmarks.datasets import _read
from skvae import VAETransformer
from skvae.priors import Mixture, Vamp

Record = dict[str, Any]
PUBLISHED = {1: -86.76, 5: -85.54, 50: -84.78}
PRIORS = {
    "normal": "normal",
    "mixture of 100": Mixture(n_components=100),
    "VampPrior of 500": Vamp(n_components=500),
}
TABLE_ROWS, POINTS = 10_000, 5_000  # test images, and points of each, of a table's figure
HEADER = ["model", "epochs", "minutes", "nats"]
CURVE_ROWS, CURVE_POINTS = 1_000, 500  # and of the curves on the way


def images() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """MNIST's grey levels in [0, 1]: training and test images."""
    train, test = _read("mnist.npz", "X_train", "X_test")
    return tuple((X.reshape(len(X), -1) / 255).astype(np.float32) for X in (train, test))


def drawn(X: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Black and white images whose pixels are white with the probability of their grey level."""
    uniform = np.random.default_rng(seed).random(X.shape, dtype=np.float32)
    return (uniform < X).astype(np.float32)


def burda(**parameters: Any) -> VAETransformer:
    """The network of that table."""
    return VAETransformer(
        50,
        **{
            "hidden_layer_sizes": (200, 200),
            "activation": "tanh",
            "likelihood": "bernoulli",
            "batch_size": 128,
            "alpha": 0.0,
            "random_state": 0,
            **parameters,
        },
    )


def log_likelihood(vae: VAETransformer, X: NDArray[np.float32], n_points: int) -> float:
    """Mean over rows, nats."""
    return float(vae.set_params(n_score_samples=n_points).score(X))


def trained(
    vae: VAETransformer, name: str, n_epochs: int, every: int, n_rows: int
) -> tuple[list[Record], float]:
    """Train; the curve of test images on the way, and the minutes that training took."""
    X, test = images()
    shown, seconds, curve = drawn(test, 0)[:CURVE_ROWS], 0.0, []
    for epoch in range(1, n_epochs + 1):
        batch = drawn(X[:n_rows], epoch)
        start = time.perf_counter()
        vae.partial_fit(batch)
        seconds += time.perf_counter() - start
        if epoch % every == 0 or epoch == n_epochs:
            score = log_likelihood(vae, shown, CURVE_POINTS)
            record = {"model": name, "epoch": epoch, "minutes": seconds / 60, "nats": score}
            print({**record, "training loss": vae.loss_curve_[-1]}, flush=True)
            curve.append(record)
    return curve, seconds / 60


def table(models: dict[str, dict[str, Any]], args: argparse.Namespace) -> list[list[Any]]:
    """A row a model: its figure at the end."""
    rows = []
    for name, parameters in models.items():
        vae = burda(**parameters)
        _, minutes = trained(vae, name, args.epochs, args.every, args.rows)
        test = drawn(images()[1], 0)[: args.test_rows]
        nats = log_likelihood(vae, test, args.points)
        rows.append([name, args.epochs, f"{minutes:.0f}", f"{nats:.2f}"])
        print(rows[-1], flush=True)
    return rows


def iwae(args: argparse.Namespace) -> str:
    """The published table, and ours."""
    models = {f"k = {k}": {"n_importance_samples": k} for k in args.samples}
    rows = table(models, args)
    published = [PUBLISHED.get(k, "") for k in args.samples]
    return markdown_table(
        [*HEADER, "published, 3,280 epochs"],
        [[*row, other] for row, other in zip(rows, published, strict=True)],
    )


def priors(args: argparse.Namespace) -> str:
    """Other priors at equal epochs."""
    return markdown_table(HEADER, table({name: {"prior": p} for name, p in PRIORS.items()}, args))


PARTS = {"iwae": iwae, "priors": priors}


def main() -> None:
    """Measure, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 5], help="of `iwae`")
    parser.add_argument("--every", type=int, default=25, help="epochs between points of a curve")
    parser.add_argument("--rows", type=int, default=60_000, help="training images")
    parser.add_argument("--test-rows", type=int, default=TABLE_ROWS)
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    parts = [f"## {part}\n\n{PARTS[part](args)}" for part in args.only]
    publish("\n\n".join([f"{versions()}.", *parts]), args.output)


if __name__ == "__main__":
    main()
