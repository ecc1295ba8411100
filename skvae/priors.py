"""p(z): the distribution of the latent before any row is seen.

A prior is an ``nn.Module`` with two methods: ``log_prob(z)``, in nats, (..., n_components) to
(...), and ``sample(n_samples, generator, dtype)``, whose draws come from the generator alone. The
rest of skvae asks nothing else of it, but makes use of more:

====================================  ==============================================================
``kl(mean, log_var)``                 KL(N(mean, exp(log_var)) || p) per component, where that is
                                      known
``kl_vjp``                            the same with its gradient, see `skvae.gradients`
``precision(z)``                      inverse variances of p around z, of the shape of z; else 1
``start(vae, targets, generator)``    called once, before training, with the model at its start and
                                      rows to look at
====================================  ==============================================================

The linear start takes for granted that latents have about mean 0 and variance 1.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from skvae.checks import check_integer
from skvae.gradients import LOG_2PI, LOG_VAR_BOUNDS

SHARE = 0.5  # of the latent's variance that lies between components at the start


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
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def kl(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """KL(N(mean, exp(log_var)) || p) per component, in nats: the closed form.

        ``0.5 * (mean^2 + var - 1 - log var)``, of the shape of ``mean``.
        """
        return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var)

    def kl_vjp(
        self, mean: Tensor, log_var: Tensor, weights: Tensor, free_bits: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """KL summed over components and, by weights (n,), over rows: a number; its gradients.

        With respect to mean and log-variance, each (n, n_components). A component counts as
        ``free_bits`` at least, and has no gradient below.
        """
        column = weights[:, None]
        half = 0.5 * column
        excess = log_var.exp() - 1.0
        cells = torch.addcmul(excess - log_var, mean, mean).mul_(half)
        to_mean, to_log_var = mean * column, excess.mul_(half)
        if free_bits:
            least = free_bits * column
            free = cells < least
            cells = torch.maximum(cells, least)
            to_mean, to_log_var = to_mean.masked_fill(free, 0.0), to_log_var.masked_fill(free, 0.0)
        return cells.sum(), to_mean, to_log_var

    def sample(self, n_samples: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draws of shape (n_samples, n_components)."""
        return torch.randn(n_samples, self.n_components, generator=generator, dtype=dtype)


class _Components(nn.Module):
    """What mixtures of diagonal normals have in common: densities and draws.

    Subclasses say which: ``_components()`` gives log shares (n_components,), means and
    log-variances, each (n_components, dimension).
    """

    n_components: int

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What stands between the brackets."""
        return f"n_components={self.n_components}"

    def _log_joint(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log of share times density, (..., n_components); the components' precisions."""
        # in double precision: differences of large products are what counts
        log_share, mean, log_var = (each.double() for each in self._components())
        precision = (-log_var).exp()
        center = mean.mean(0)
        near, mean = z - center, mean - center
        # (z - m)^2 in products: nothing of (n, n_components, dimension)
        square = near.square() @ precision.T - 2 * near @ (precision * mean).T
        constant = (precision * mean.square() + log_var + LOG_2PI).sum(-1)
        return log_share - 0.5 * (square + constant), precision

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each latent, in nats: (..., dimension) -> (...)."""
        return self._log_joint(z)[0].logsumexp(-1).to(z)

    def responsibilities(self, z: Tensor) -> Tensor:
        """Probability that each latent comes from each component: (..., n_components)."""
        return self._log_joint(z)[0].softmax(-1).to(z)

    def precision(self, z: Tensor) -> Tensor:
        """Inverse variances of the components, averaged by their responsibilities."""
        log_joint, precision = self._log_joint(z)
        return (log_joint.softmax(-1) @ precision).to(z)

    def sample(self, n_samples: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draws of shape (n_samples, dimension)."""
        log_share, mean, log_var = (each.detach() for each in self._components())
        shares = log_share.exp().double()
        chosen = torch.multinomial(shares, n_samples, replacement=True, generator=generator)
        noise = torch.randn(n_samples, mean.shape[1], generator=generator, dtype=dtype)
        sigma = (0.5 * log_var).exp()
        return mean[chosen].to(dtype) + sigma[chosen].to(dtype) * noise


class Mixture(_Components):
    """A mixture of normals with diagonal covariances; shares, means and variances are learned.

    Parameters
    ----------
    n_components : int, default=10
        Number of normals.

    Examples
    --------
    Soft clusters, for free:

    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.priors import Mixture
    >>> X = load_iris().data
    >>> vae = VAETransformer(2, prior=Mixture(n_components=3), random_state=0).fit(X)
    >>> with torch.no_grad():
    ...     shares = vae.module_.prior.responsibilities(torch.tensor(vae.transform(X)))
    >>> shares.shape
    torch.Size([150, 3])
    """

    def __init__(self, n_components: int = 10) -> None:
        super().__init__()
        check_integer("n_components", n_components, 1)
        self.n_components = n_components

    def start(self, vae: Any, targets: Tensor, generator: torch.Generator) -> None:
        """Components around the latents of as many rows, which together are about N(0, I)."""
        mean, log_var = vae.posterior(_some(targets, self.n_components, generator))
        spread = mean.square() + log_var.exp()  # about 1 on average
        shrunk = math.sqrt(SHARE) * mean / spread.mean(0).sqrt()
        self.logits = nn.Parameter(mean.new_zeros(self.n_components))
        self.means = nn.Parameter(shrunk)
        self.log_vars = nn.Parameter(torch.full_like(shrunk, math.log(1 - SHARE)))

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.logits.log_softmax(0), self.means, self.log_vars.clamp(*LOG_VAR_BOUNDS)


class Vamp(_Components):
    """The mixture of the encoder's own posteriors at pseudo-inputs, which are learned.

    ``p(z) = 1/K sum_i q(z | u_i)``. At the start, pseudo-inputs are rows. Where the encoder is very
    sure of its latents, its posteriors are narrow, and few of them cover little: raise their
    number, or use `Mixture`, which starts near N(0, I).

    Parameters
    ----------
    n_components : int, default=50
        Number of pseudo-inputs, K.

    References
    ----------
    Tomczak and Welling, "VAE with a VampPrior", AISTATS 2018.
    """

    def __init__(self, n_components: int = 50) -> None:
        super().__init__()
        check_integer("n_components", n_components, 1)
        self.n_components = n_components
        self._encoder: tuple[nn.Module, ...] = ()

    def start(self, vae: Any, targets: Tensor, generator: torch.Generator) -> None:
        """Pseudo-inputs at as many rows, as the encoder reads them."""
        self.pseudo_inputs = nn.Parameter(
            vae.inputs(_some(targets, self.n_components, generator)).detach().clone()
        )
        # in a tuple: the encoder is part of the model already, and not of this module
        self._encoder = (vae.encoder,)

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self._encoder[0](self.pseudo_inputs).chunk(2, -1)
        log_share = mean.new_full((self.n_components,), -math.log(self.n_components))
        return log_share, mean, log_var.clamp(*LOG_VAR_BOUNDS)


PRIORS = {"normal": StandardNormal, "mixture": Mixture, "vamp": Vamp}


def _some(targets: Tensor, n_rows: int, generator: torch.Generator) -> Tensor:
    """So many rows at random; each once before any comes again."""
    order = torch.randperm(len(targets), generator=generator)
    return targets[order.repeat(math.ceil(n_rows / len(order)))[:n_rows]]


def check_prior(prior: Any, k: int) -> None:
    """Refuse what is no prior of this many components, by three latents."""
    for name in ("log_prob", "sample"):
        if not hasattr(prior, name):
            raise TypeError(
                f"prior must have the methods log_prob(z) and sample(n_samples, generator, "
                f"dtype), but {type(prior).__name__} has no {name}."
            )
    contract = (
        f"log_prob(z) must map (..., {k}) to (...), and sample(n_samples, generator, dtype) "
        f"give (n_samples, {k})"
    )
    try:
        with torch.no_grad():
            drawn = prior.sample(3, torch.Generator().manual_seed(0), torch.float64)
            shapes = (
                tuple(drawn.shape),
                tuple(prior.log_prob(torch.zeros(3, k).to(torch.float64)).shape),
            )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"prior failed on 3 latents: {error}. Its {contract}.") from error
    if shapes != ((3, k), (3,)):
        raise ValueError(
            f"prior's draws have shape {shapes[0]}, and log_prob of (3, {k}) has {shapes[1]}. "
            f"Its {contract}."
        )
