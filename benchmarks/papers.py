"""Hold the family against published tables: the same networks, the same data, the same figures.

``iwae``: Table 1 of Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016:
MNIST, one stochastic layer of 50 latents, two layers of 200 tanh units on each side, pixels drawn
anew in each epoch, log-likelihood of the test images, drawn once, by 5,000 importance samples.
Published after 3,280 epochs in batches of 20: -86.76 nats with one sample, -85.54 with 5, -84.78
with 50. Ours are fewer epochs, in batches that grow at the end; of several samples, the first 40%
with one.

``start``: the first epochs of that network, from the linear start and from random weights; saves a
picture.

``priors``: the same network with a mixture and a VampPrior as its prior, at equal epochs.

``codes``: MNIST at 2, 10 and 32 components: error per pixel and accuracy of five nearest neighbours
in the latent, against PCA; with default settings, and 50 epochs with Bernoulli pixels.

``bits``: MNIST in black and white, 16 components: bits per pixel of test images under a convolution
and under a multi-layer perceptron, at equal epochs.

``shapes``: networks by the data's shape against a multi-layer perceptron with at least as many
parameters, on 2,000 series and 2,000 signals on a graph, other 2,000 held out.

``labels``: a logistic regression on the latents of scikit-learn's digits, with labels on 1% and 5%
of the rows, against PCA and the pixels: everything but the regression is fitted on all rows.

``topics``: 5,000 documents of about 100 words from a vocabulary of 2,000, drawn from a topic model,
in CSR format: perplexity of 1,000 other documents against scikit-learn's
`LatentDirichletAllocation` at as many components, and the memory that a fit takes.

Run them with

    python -m benchmarks.papers --only iwae --epochs 500 --output papers.md
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import gammaln, logsumexp
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, LatentDirichletAllocation
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier

from benchmarks import markdown_table, publish, versions
from benchmarks.datasets import read_shared
from benchmarks.memory import isolated
from benchmarks.memory import raised as memory_of
from benchmarks.plots import curves
from skvae import VAETransformer
from skvae.networks import Convolutional, Graph, TemporalConvolutional
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
# batch sizes up to shares of the epochs: where noise would keep the weights from settling, it falls
BATCHES = ((2 / 3, 128), (0.8, 256), (0.9, 512), (0.96, 1024), (1.0, 2048))


def images() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """MNIST's grey levels in [0, 1]: training and test images."""
    train, test = read_shared("mnist.npz", "X_train", "X_test")
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


def annealed(share: float, n_samples: int) -> dict[str, Any]:
    """Parameters after this share of the epochs: batches grow, and samples come when they pay."""
    batch_size = next(size for end, size in BATCHES if share <= end)
    return {"batch_size": batch_size, "n_importance_samples": n_samples if share > 0.4 else 1}


def trained(
    vae: VAETransformer, name: str, n_epochs: int, every: int, n_rows: int, anneal: bool
) -> tuple[list[Record], float]:
    """Train; the curve of test images on the way, and the minutes that training took."""
    X, test = images()
    shown, seconds, curve = drawn(test, 0)[:CURVE_ROWS], 0.0, []
    n_samples = vae.n_importance_samples
    for epoch in range(1, n_epochs + 1):
        if anneal:
            vae.set_params(**annealed(epoch / n_epochs, n_samples))
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


def table(
    models: dict[str, dict[str, Any]], args: argparse.Namespace, anneal: bool = False
) -> list[list[Any]]:
    """A row a model: its figure at the end."""
    rows = []
    for name, parameters in models.items():
        vae = burda(**parameters)
        _, minutes = trained(vae, name, args.epochs, args.every, args.rows, anneal)
        test = drawn(images()[1], 0)[: args.test_rows]
        nats = log_likelihood(vae, test, args.points)
        rows.append([name, args.epochs, f"{minutes:.0f}", f"{nats:.2f}"])
        print(rows[-1], flush=True)
    return rows


def iwae(args: argparse.Namespace) -> str:
    """The published table, and ours."""
    models = {f"k = {k}": {"n_importance_samples": k, "init": "random"} for k in args.samples}
    rows = table(models, args, anneal=True)
    published = [PUBLISHED.get(k, "") for k in args.samples]
    return markdown_table(
        [*HEADER, "published, 3,280 epochs"],
        [[*row, other] for row, other in zip(rows, published, strict=True)],
    )


def start(args: argparse.Namespace) -> str:
    """Test images' log-likelihood before the first epoch and after each of the first ten."""
    X, test = images()
    shown, epochs, lines = drawn(test, 0)[:CURVE_ROWS], list(range(11)), {}
    for init in ("linear", "random"):
        vae = burda(init=init, max_iter=0).fit(drawn(X[: args.rows], 1))
        nats = [log_likelihood(vae, shown, CURVE_POINTS)]
        for epoch in epochs[1:]:
            vae.partial_fit(drawn(X[: args.rows], epoch))
            nats.append(log_likelihood(vae, shown, CURVE_POINTS))
        lines[f"{init} start"] = epochs, nats
        print(init, np.round(nats, 2).tolist(), flush=True)
    later = {label: (x[1:], y[1:]) for label, (x, y) in lines.items()}
    panels = {"test log-likelihood, nats": lines, "the same, from the first epoch on": later}
    curves(args.picture, "Two starts of the network of Burda et al.", "epochs", panels, log=False)
    rows = [[label, *(f"{value:.2f}" for value in y)] for label, (_, y) in lines.items()]
    return markdown_table(["epoch", *map(str, epochs)], rows)


def priors(args: argparse.Namespace) -> str:
    """Other priors at equal epochs."""
    return markdown_table(HEADER, table({name: {"prior": p} for name, p in PRIORS.items()}, args))


def codes(args: argparse.Namespace) -> str:
    """Error and neighbours of the latent, against PCA."""
    X, X_test = images()
    y, y_test = read_shared("mnist.npz", "y_train", "y_test")
    X, y = X[: args.rows], y[: args.rows]
    rows = []
    for k in args.components:
        bernoulli = {"likelihood": "bernoulli", "max_iter": 50}
        for name, model in {
            "PCA": PCA(k, random_state=0),
            "VAE, default": VAETransformer(k, random_state=0),
            "VAE, Bernoulli pixels": VAETransformer(k, random_state=0, **bernoulli),
        }.items():
            start = time.perf_counter()
            Z = model.fit_transform(X)
            minutes, Z_test = (time.perf_counter() - start) / 60, model.transform(X_test)
            error = float(np.mean((model.inverse_transform(Z_test) - X_test) ** 2))
            accuracy = KNeighborsClassifier().fit(Z, y).score(Z_test, y_test)
            rows.append([name, k, f"{minutes:.1f}", f"{error:.4f}", f"{accuracy:.3f}"])
            print(rows[-1], flush=True)
    return markdown_table(["model", "components", "minutes", "error", "5-NN accuracy"], rows)


def bits(args: argparse.Namespace) -> str:
    """Held-out bits per pixel, importance-weighted, of networks for images and for anything."""
    X, X_test = images()
    test = drawn(X_test, 0)[: args.test_rows]
    rows = []
    for name, options in {
        "perceptron, 128 and 128": {},
        "perceptron, 512 and 512": {"hidden_layer_sizes": (512, 512)},
        "convolution": {"network": Convolutional((28, 28)), "hidden_layer_sizes": (128,)},
    }.items():
        vae = VAETransformer(16, likelihood="bernoulli", random_state=0, **options)
        start = time.perf_counter()
        for epoch in range(1, args.epochs + 1):
            vae.partial_fit(drawn(X[: args.rows], epoch))
        minutes = (time.perf_counter() - start) / 60
        found = -vae.set_params(n_score_samples=args.points).score(test) / (784 * math.log(2))
        rows.append([name, n_weights(vae), args.epochs, f"{minutes:.1f}", f"{found:.4f}"])
        print(rows[-1], flush=True)
    header = ["network", "weights", "epochs", "minutes", "bits per pixel"]
    return markdown_table(header, rows)


def series(n_rows: int, seed: int) -> NDArray[np.float64]:
    """Bursts of 64 steps: frequency, phase, place and height are random, noise is 0.1."""
    random, t = np.random.default_rng(seed), np.arange(64)
    low, high = np.array([0.02, 0.0, 10.0, 0.5]), np.array([0.1, 2 * np.pi, 54.0, 2.0])
    frequency, phase, place, height = random.uniform(low, high, (n_rows, 4)).T[..., None]
    burst = height * np.exp(-0.5 * ((t - place) / 12) ** 2)
    wave = np.sin(2 * np.pi * frequency * t + phase)
    return burst * wave + 0.1 * random.normal(size=(n_rows, 64))


def neighbours() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """64 points in the unit square, and the weights of the edges between near ones."""
    points = np.random.default_rng(7).random((64, 2))
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    edges = np.exp(-((distance / 0.12) ** 2)) * (distance < 0.25)
    np.fill_diagonal(edges, 0.0)
    return points, edges


def signals(n_rows: int, seed: int) -> NDArray[np.float64]:
    """Heat from a spot of random place and strength, spread over that graph; noise is 0.05."""
    points, edges = neighbours()
    random = np.random.default_rng(seed)
    place, strength = random.random((n_rows, 1, 2)), random.uniform(1, 3, (n_rows, 1))
    spot = strength * np.exp(-((points - place) ** 2).sum(2) / (2 * 0.08**2))
    laplacian = np.diag(edges.sum(1)) - edges
    heat = np.linalg.solve(np.eye(64) + laplacian, spot.T).T
    return np.tanh(heat) + 0.05 * random.normal(size=(n_rows, 64))


def n_weights(vae: VAETransformer) -> int:
    """Of encoder and decoder, that of spreads and the linear paths left out."""
    module = vae.module_
    parts = module.encoder.network, getattr(module.decoder, "decoder", module.decoder).network
    return sum(p.numel() for part in parts for p in part.parameters())


def shapes(args: argparse.Namespace) -> str:
    """Held-out log-likelihood of networks by the data's shape."""
    cases = {
        "series": (series, 4, TemporalConvolutional(64)),
        "signals on a graph": (signals, 3, Graph(neighbours()[1], channels=(8, 8, 8))),
    }
    rows = []
    for name, (make, k, network) in cases.items():
        for seed in range(args.seeds):
            X, X_test = make(2_000, 2 * seed), make(2_000, 2 * seed + 1)
            options = {"hidden_layer_sizes": (64,), "random_state": seed}
            start = time.perf_counter()
            ours = VAETransformer(k, network=network, **options).fit(X)
            minutes = (time.perf_counter() - start) / 60
            n, size = n_weights(ours), 8
            while _dense(64, size, k) < n:
                size += 1
            dense = VAETransformer(k, hidden_layer_sizes=(size, size), random_state=seed).fit(X)
            for kind, vae in ((type(network).__name__, ours), ("perceptron", dense)):
                score = f"{vae.score(X_test):.2f}"
                spent = f"{minutes:.1f}" if vae is ours else ""
                rows.append([name, seed, kind, n_weights(vae), spent, score])
                print(rows[-1], flush=True)
    return markdown_table(["data", "seed", "network", "weights", "minutes", "nats"], rows)


def _dense(d: int, size: int, k: int) -> int:
    """Weights of both sides of a perceptron with two hidden layers."""
    hidden = size * size + 2 * size
    return (d + 2 * k) * size + hidden + (k + d) * size + hidden


def labels(args: argparse.Namespace) -> str:
    """Few labels: accuracy on the rows without, mean of 20 splits and its standard error."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    vae = VAETransformer(10, likelihood="bernoulli", random_state=0)
    models = {
        "PCA, 10": PCA(10, random_state=0),
        "PCA, 32": PCA(32, random_state=0),
        "VAE, 10, Gaussian pixels": VAETransformer(10, random_state=0),
        "VAE, 10": vae,
        "VAE, 10, mixture of 20": clone(vae).set_params(prior=Mixture(20)),
        "VAE, 10, VampPrior of 100": clone(vae).set_params(prior=Vamp(100)),
    }
    features = {"pixels": X} | {name: m.fit_transform(X) for name, m in models.items()}
    rows = []
    for share in (0.01, 0.05):
        splits = StratifiedShuffleSplit(20, train_size=share, random_state=0)
        for name, Z in features.items():
            model = LogisticRegression(max_iter=2_000)
            found = np.array(
                [model.fit(Z[a], y[a]).score(Z[b], y[b]) for a, b in splits.split(Z, y)]
            )
            error = found.std(ddof=1) / math.sqrt(len(found))
            rows.append([f"{share:.0%}", name, f"{found.mean():.3f} ± {error:.3f}"])
            print(rows[-1], flush=True)
    return markdown_table(["labels", "features", "accuracy"], rows)


def documents(n_topics: int, n_documents: int, seed: int) -> tuple[csr_array, NDArray[np.float64]]:
    """Word counts of a topic model, which the number of topics decides; probabilities of words."""
    model, random = np.random.default_rng(n_topics), np.random.default_rng([n_topics, seed])
    words = model.dirichlet(np.full(2_000, 0.05), n_topics)
    p = random.dirichlet(np.full(n_topics, 0.1), n_documents) @ words
    return csr_array(random.multinomial(random.poisson(100, n_documents), p)), p


def perplexity(log_p: NDArray[np.float64], X: csr_array) -> float:
    """Of words, from the log-probabilities of documents as sequences of words."""
    return float(np.exp(-log_p.sum() / X.sum()))


def log_orders(X: csr_array) -> NDArray[np.float64]:
    """Logarithm of the number of sequences that a document's counts stand for."""
    ways = X.copy().astype(float)
    ways.data = gammaln(ways.data + 1)
    return np.asarray(gammaln(X.sum(1) + 1) - ways.sum(1))


def log_p_of_lda(
    lda: LatentDirichletAllocation, X: csr_array, n_points: int = 500
) -> NDArray[np.float64]:
    """Log-probability under a topic model by importance sampling: its own bound is far below.

    Points are drawn from the Dirichlet distribution that it gives for each document.
    """
    random = np.random.default_rng(0)
    words = lda.components_ / lda.components_.sum(1, keepdims=True)
    prior, gamma = (
        np.full(lda.n_components, lda.doc_topic_prior_),
        lda.transform(X, normalize=False),
    )

    def log_density(log_shares: NDArray[np.float64], a: NDArray[np.float64]) -> Any:
        return gammaln(a.sum()) - gammaln(a).sum() + log_shares @ (a - 1)

    out = np.empty(X.shape[0])
    for i, own in enumerate(gamma):
        shares = np.maximum(random.dirichlet(own, n_points), 1e-300)
        row, logs = X[[i]], np.log(shares)
        log_p = np.log(shares @ words[:, row.indices]) @ row.data
        out[i] = logsumexp(log_p + log_density(logs, prior) - log_density(logs, own))
    return out - np.log(n_points)


def memory_of_topics(n_topics: int) -> float:
    """MiB that a fit adds, after a small one has loaded what is loaded once."""
    X, _ = documents(n_topics, 5_000, 0)
    vae = VAETransformer(n_topics, likelihood="multinomial", random_state=0, max_iter=2)
    clone(vae).fit(X[:200])
    return memory_of(lambda: vae.fit(X))


def topics(args: argparse.Namespace) -> str:
    """Perplexity of held-out documents, as many components as there are topics."""
    rows = []
    for n_topics in (5, 10, 20):
        for seed in range(args.seeds):
            X, _ = documents(n_topics, 5_000, 2 * seed)
            X_test, p = documents(n_topics, 1_000, 2 * seed + 1)
            truth = perplexity((X_test * np.log(p)).sum(1), X_test)
            for name, model in {
                "LDA": LatentDirichletAllocation(n_topics, random_state=seed),
                "LDA, 100 rounds": LatentDirichletAllocation(
                    n_topics, max_iter=100, random_state=seed
                ),
                "VAE": VAETransformer(n_topics, likelihood="multinomial", random_state=seed),
            }.items():
                start = time.perf_counter()
                model.fit(X)
                seconds = time.perf_counter() - start
                if isinstance(model, VAETransformer):
                    found = perplexity(model.score_samples(X_test) - log_orders(X_test), X_test)
                    bound = ""
                else:
                    found = perplexity(log_p_of_lda(model, X_test), X_test)
                    bound = f"{model.perplexity(X_test):.1f}"
                row = [n_topics, seed, name, f"{seconds:.0f}", bound, f"{found:.1f}"]
                rows.append([*row, f"{truth:.1f}"])
                print(rows[-1], flush=True)
    header = ["topics", "seed", "model", "seconds", "its bound", "perplexity", "topics known"]
    n_bytes = 5_000 * 2_000 * 8 / 2**20
    return (
        f"A fit adds {isolated(memory_of_topics, n_topics=10):.0f} MiB; a dense copy of X has "
        f"{n_bytes:.0f} MiB.\n\n{markdown_table(header, rows)}"
    )


PARTS = {
    "iwae": iwae,
    "start": start,
    "priors": priors,
    "codes": codes,
    "bits": bits,
    "shapes": shapes,
    "labels": labels,
    "topics": topics,
}


def main() -> None:
    """Measure, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 5], help="of `iwae`")
    parser.add_argument("--components", type=int, nargs="+", default=[2, 10, 32], help="of `codes`")
    parser.add_argument("--picture", type=Path, default=Path("start.png"), help="of `start`")
    parser.add_argument("--every", type=int, default=25, help="epochs between points of a curve")
    parser.add_argument("--rows", type=int, default=60_000, help="training images")
    parser.add_argument("--test-rows", type=int, default=TABLE_ROWS)
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--seeds", type=int, default=3, help="of `shapes`")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    parts = [f"## {part}\n\n{PARTS[part](args)}" for part in args.only]
    publish("\n\n".join([f"{versions()}.", *parts]), args.output)


if __name__ == "__main__":
    main()
