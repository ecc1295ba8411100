"""Measure how well counts are modelled: expression of 33 genes in single cells.

Held-out log-likelihood over 75/25 splits, every model with the same number of components, in nats
per cell of the tissue (a row):

- the negative binomial and the Poisson model, on the counts;
- factor analysis (the start of the model with Gaussian columns), and that model, on
  log(1 + count).

A density does not compare with a probability: where a third of the cells are zero it can be as high
as its noise floor allows. Two figures, therefore: the density at the counts, its Jacobian included;
and what compares, the probability that the same density gives to the intervals around the counts.

Beside it, k-means on the latents, and on the components of PCA of log(1 + count), against the cell
types: adjusted Rand index and normalised mutual information. Run it with

    python -m benchmarks.counts --seeds 5 --output counts.md
"""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from benchmarks import markdown_table, publish, versions
from benchmarks.datasets import counts
from benchmarks.imputation import mean_and_error
from skvae import VAETransformer
from skvae.estimator import _normal_points
from skvae.vae import VAE

Record = dict[str, Any]
MODELS: dict[str, dict[str, Any]] = {
    "negative binomial": {"likelihood": "negative_binomial"},
    "Poisson": {"likelihood": "poisson"},
    "factor analysis of the logarithm": {
        "noise": "homoscedastic",
        "precision_power": 1.0,
        "max_iter": 0,
    },
    "Gaussian logarithm, one spread a column": {"noise": "homoscedastic", "precision_power": 1.0},
    "Gaussian logarithm, default": {},
}
N_POINTS = 1024


class Intervals(nn.Module):
    """The probability that a Gaussian likelihood of log(1 + x) gives to x - 1/2 ... x + 1/2.

    To zero goes all that is below 1/2.
    """

    LEAST = -1e3  # standard deviations: as good as minus infinity

    def __init__(self, gaussian: Any) -> None:
        super().__init__()
        self.gaussian = gaussian
        self.n_params, self.n_stats = gaussian.n_params, gaussian.n_stats
        self.shift, self.scale = torch.tensor(gaussian.shift), torch.tensor(gaussian.scale)

    def embed(self, targets: Tensor) -> Tensor:
        return targets

    def _ends(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of each target's interval, standardised."""
        counts = (targets * self.scale + self.shift).expm1().round()
        low, high = (((counts + s).log1p() - self.shift) / self.scale for s in (-0.5, 0.5))
        return low.masked_fill(counts == 0, -1e6), high  # gradients of infinities are no numbers

    def log_prob(self, raw: Tensor, targets: Tensor) -> Tensor:
        mean, root = self.gaussian.location(raw), (-0.5 * self.gaussian.log_var(raw)).exp()
        low, high = (((end - mean) * root).clamp_min(self.LEAST) for end in self._ends(targets))
        flip = low > 0  # of the two tails the lower one is accurate
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        return upper + torch.log(-torch.expm1((lower - upper).clamp_max(-1e-12)))

    def whiten(self, raw: Tensor, jacobian: Tensor, targets: Tensor) -> Tensor:
        # about what a normal of this much more variance would say
        low, high = self._ends(targets)
        width = torch.where(low == -1e6, 2 * self.gaussian.log_var(raw).exp().sqrt(), high - low)
        root = (self.gaussian.log_var(raw).exp() + width.square() / 12).rsqrt()
        zeros = torch.zeros_like(raw[..., self.gaussian.n_columns :])
        return jacobian * torch.cat([root.expand_as(targets), zeros], -1)[:, None]


def interval_score(model: VAETransformer, X: np.ndarray) -> float:
    """Mean log-probability of the counts' intervals under a model of log(1 + count)."""
    fitted = model.module_
    parts = fitted.encoder, fitted.decoder, Intervals(fitted.likelihood), fitted.prior
    module = VAE(*parts, fitted.n_components)
    targets = torch.tensor(fitted.likelihood.standardize(X))
    points = torch.tensor(_normal_points(N_POINTS, model.n_components, 0))
    with torch.no_grad():
        found = [module.log_prob(part, points) for part in targets.split(20)]
    return float(torch.cat(found).mean())


def evaluate(n_components: int, seeds: int) -> list[Record]:
    """Fit all models on each split; one record for each."""
    X, y = counts()
    records = []
    for seed in range(seeds):
        X_train, X_test, y_train, _ = train_test_split(X, y, test_size=0.25, random_state=seed)
        Y_train, Y_test = np.log1p(X_train), np.log1p(X_test)
        n_types = len(np.unique(y_train))

        def clusters(Z: np.ndarray, n: int = n_types, seed: int = seed, y: Any = y_train) -> Record:
            found = KMeans(n, n_init=10, random_state=seed).fit_predict(Z)
            return {
                "ari": adjusted_rand_score(y, found),
                "nmi": normalized_mutual_info_score(y, found),
            }

        for name, params in MODELS.items():
            model = VAETransformer(n_components, random_state=seed, **params)
            on_counts = "likelihood" in params
            start = time.perf_counter()
            model.fit(X_train if on_counts else Y_train)
            seconds = time.perf_counter() - start
            record = {"model": name, "seconds": seconds}
            if on_counts:
                record |= {"density": math.nan, "mass": model.score(X_test)}
            else:
                jacobian = -Y_test.sum(1).mean()
                record |= {
                    "density": model.score(Y_test) + jacobian,
                    "mass": interval_score(model, Y_test),
                }
            record |= clusters(model.transform(X_train if on_counts else Y_train))
            records.append(record)
        pca = PCA(n_components, random_state=seed).fit_transform(Y_train)
        none = {"density": math.nan, "mass": math.nan, "seconds": math.nan}
        records.append({"model": "PCA of the logarithm", **none, **clusters(pca)})
        print(f"seed {seed} measured", file=sys.stderr, flush=True)
    return records


def table(records: list[Record]) -> str:
    """Return means and standard errors over the seeds, in Markdown."""
    keys = {"mass": 2, "density": 2, "ari": 3, "nmi": 3, "seconds": 1}
    header = [
        "model",
        "log-probability",
        "log-density at the counts",
        "k-means, adjusted Rand",
        "k-means, mutual information",
        "fit seconds",
    ]
    rows = []
    for name in dict.fromkeys(record["model"] for record in records):
        own = [record for record in records if record["model"] == name]
        cells = [mean_and_error([record[key] for record in own], n) for key, n in keys.items()]
        rows.append([name, *("" if "nan" in cell else cell for cell in cells)])
    return markdown_table(header, rows)


def main() -> None:
    """Measure from the command line and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--components", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()
    records = evaluate(options.components, options.seeds)
    report = f"{options.components} components, {options.seeds} seeds. {versions()}."
    publish(f"{report}\n\n{table(records)}", options.output)


if __name__ == "__main__":
    main()
