"""Put your own encoder, decoder and prior into the model.

An encoder maps (n, n_inputs) to (n, 2 * n_components): means and log-variances of the latent, side
by side. A decoder maps (n, n_components) to (n, n_params): of Gaussian columns their means, of
flags their logits. `VAETransformer` tells a function both sizes, and checks what it makes. Neither
has to start at anything in particular: the linear start is put beside it, and it comes in through a
gate that is closed at first.

A prior has `log_prob`, in nats, and `sample`, whose draws come from the generator alone.
"""

import math

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from skvae import VAETransformer


def encoder(n_in: int, n_out: int) -> nn.Module:
    """A perceptron that normalises its input, row by row."""
    return nn.Sequential(nn.LayerNorm(n_in), nn.Linear(n_in, 128), nn.GELU(), nn.Linear(128, n_out))


class Waves(nn.Module):
    """A decoder that is a sum of waves in the latent, of learned lengths and directions.

    Parameters
    ----------
    n_in, n_out : int
        Components, and parameters of the likelihood.
    n_waves : int
    """

    def __init__(self, n_in: int, n_out: int, n_waves: int = 128) -> None:
        super().__init__()
        self.directions = nn.Linear(n_in, n_waves)
        self.heights = nn.Linear(2 * n_waves, n_out)

    def forward(self, z: Tensor) -> Tensor:
        """Latents (n, n_in) -> parameters (n, n_out)."""
        angles = self.directions(z)
        return self.heights(torch.cat([angles.sin(), angles.cos()], -1))


class Laplace(nn.Module):
    """Components that are independent, with heavier tails than the normal and variance 1.

    Parameters
    ----------
    n_components : int
    """

    def __init__(self, n_components: int) -> None:
        super().__init__()
        self.n_components = n_components

    def log_prob(self, z: Tensor) -> Tensor:
        """Latents (..., n_components) -> nats (...)."""
        root = math.sqrt(2)
        return (-root * z.abs() - math.log(root)).sum(-1)

    def sample(self, n_samples: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draws: (n_samples, n_components)."""
        shape = n_samples, self.n_components
        uniform = torch.rand(shape, generator=generator, dtype=dtype) - 0.5
        return -uniform.sign() * (1 - 2 * uniform.abs()).log() / math.sqrt(2)


def main() -> None:
    """Print the held-out log-likelihood of digits with each part of one's own."""
    X, X_test = train_test_split(load_digits().data, random_state=0)
    choices = {
        "as it comes": {},
        "own encoder and decoder": {"encoder": encoder, "decoder": Waves},
        "own prior": {"prior": Laplace},
    }
    for name, parts in choices.items():
        vae = VAETransformer(10, random_state=0, **parts).fit(X)
        print(f"{name:25s} {vae.score(X_test):7.2f} nats per image")


if __name__ == "__main__":
    main()
