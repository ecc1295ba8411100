"""
Your own encoder, decoder and prior
===================================

Parts of the model are torch modules, or functions that build them. Neither has to start at anything
in particular: the linear start is put beside it, and training decides what it adds.
"""

# %%
# An encoder
# ----------
# It maps (n, n_inputs) to (n, 2 * n_components): means and log-variances of the latent, side by
# side. ``VAETransformer`` tells a function both sizes, and checks what it makes.

import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from skvae import VAETransformer


def encoder(n_in, n_out):
    """A perceptron that normalises its input, row by row."""
    return nn.Sequential(nn.LayerNorm(n_in), nn.Linear(n_in, 128), nn.GELU(), nn.Linear(128, n_out))


# %%
# A decoder
# ---------
# It maps (n, n_components) to (n, n_params), the likelihood's parameters: of Gaussian columns their
# means, of flags their logits.


class Waves(nn.Module):
    """A sum of waves in the latent, of learned lengths and directions."""

    def __init__(self, n_in, n_out, n_waves=128):
        super().__init__()
        self.directions = nn.Linear(n_in, n_waves)
        self.heights = nn.Linear(2 * n_waves, n_out)

    def forward(self, z):
        angles = self.directions(z)
        return self.heights(torch.cat([angles.sin(), angles.cos()], -1))


# %%
# A prior
# -------
# It has ``log_prob``, in nats, and ``sample``, whose draws come from the generator alone. Variances
# of about 1 suit the linear start.


class Laplace(nn.Module):
    """Components that are independent, with heavier tails than the normal and variance 1."""

    def __init__(self, n_components):
        super().__init__()
        self.n_components = n_components

    def log_prob(self, z):
        root = math.sqrt(2)
        return (-root * z.abs() - math.log(root)).sum(-1)

    def sample(self, n_samples, generator, dtype):
        shape = n_samples, self.n_components
        uniform = torch.rand(shape, generator=generator, dtype=dtype) - 0.5
        return -uniform.sign() * (1 - 2 * uniform.abs()).log() / math.sqrt(2)


# %%
# Held against each other
# -----------------------
# Handwritten digits, nats per image that the model has not seen.

X, X_test = train_test_split(load_digits().data, random_state=0)
choices = {
    "as it comes": {},
    "own encoder and decoder": {"encoder": encoder, "decoder": Waves},
    "own prior": {"prior": Laplace},
}
models = {
    name: VAETransformer(10, random_state=0, **parts).fit(X) for name, parts in choices.items()
}
scores = {name: vae.score(X_test) for name, vae in models.items()}
for name, score in scores.items():
    print(f"{name:<25}{score:8.2f} nats per image")

# %%
# The first digits that each model draws:

figure, axes = plt.subplots(3, 12, figsize=(12, 2.9), layout="constrained")
for row, (name, vae) in zip(axes, models.items(), strict=True):
    for axis, image in zip(row, vae.sample(12, random_state=0), strict=True):
        axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16, interpolation="bicubic")
        axis.set(xticks=[], yticks=[])
    label = f"{name}\n{scores[name]:.1f} nats"
    row[0].set_ylabel(label, rotation=0, ha="right", va="center")
plt.show()
