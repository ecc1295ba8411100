"""p(z): the distribution of the latent before any row is seen.

A prior is an ``nn.Module`` with three methods: ``log_prob(z)``, ``kl(mean, log_var)`` and
``sample(n_samples, generator)``. The rest of skvae asks nothing else of it; with a fourth,
``kl_vjp``, training need not ask autograd for the gradient (see `skvae.gradients`).
"""

import math

import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """p(z) = N(0, I), the prior of Kingma and Welling (2014).

    Parameters
    ----------
    n_components : int
        Dimension of the latent.

    Examples
    --------
    >>> import torch
    >>> from skvae.priors import StandardNormal
    >>> prior = StandardNormal(2)
    >>> prior.kl(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([[0., 0.]])
    """

    def __init__(self, n_components: int) -> None:
        super().__init__()
        self.n_components = n_components

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each latent, in nats: (..., n_components) -> (...)."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def kl(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """KL(N(mean, exp(log_var)) || p) per component, in nats: the closed form.

        ``0.5 * (mean^2 + var - 1 - log var)``, of the shape of ``mean``.
        """
        return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var)

    def kl_vjp(
        self, mean: Tensor, log_var: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """KL summed over components and, by weights (n,), over rows: a number; its gradients.

        With respect to mean and log-variance, each (n, n_components).
        """
        excess = log_var.exp() - 1.0
        cells = torch.addcmul(excess - log_var, mean, mean)
        column = weights[:, None]
        half = 0.5 * column
        return cells.mul_(half).sum(), mean * column, excess.mul_(half)

    def sample(self, n_samples: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draws of shape (n_samples, n_components)."""
        return torch.randn(n_samples, self.n_components, generator=generator, dtype=dtype)
