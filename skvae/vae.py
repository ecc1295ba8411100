"""The variational autoencoder itself: ELBO, posterior, log-density.

Knows nothing of tables, units or training; encoder, decoder, likelihood and prior are passed in.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from skvae.gradients import kl_vjp, network_vjp, nll_vjp, through_clamp

# exp of these bounds stays far inside float32, whatever an encoder says
LOG_VAR_BOUNDS = (-30.0, 10.0)
MOST_TRIES = 50  # of one step of `VAE.move`; its bracket halves, on average, at each


class VAE(nn.Module):
    """p(x, z) = p(z) p(x | z) with q(z | x) = N(mean(x), diag(exp(log_var(x)))).

    Parameters
    ----------
    encoder : Module
        (n, n_inputs) -> (n, 2 * n_components).
    decoder : Module
        (n, n_components) -> (n, n_params).
    likelihood : Module
        See `skvae.likelihoods`.
    prior : Module
        See `skvae.priors`.
    completion : Module or None, default=None
        What rows with gaps need, see `skvae.networks.Completion`. None: targets have no gaps.

    Notes
    -----
    Targets are (n, n_columns), NaN where a cell is missing; densities are those of what is
    observed.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014.
    Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Any,
        prior: Any,
        completion: Any = None,
    ) -> None:
        super().__init__()
        # Any: what else these modules offer is a contract of names
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self.likelihood: Any = likelihood
        self.prior: Any = prior
        self.completion: Any = completion
        self.encoder_stays = False  # True: `backward` spares itself the encoder's gradient

    def _completed(self, inputs: Tensor, hints: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the encoder reads, and what its log-variances need on top, if anything."""
        if hints is None:
            return inputs, None
        fill, extra = hints.chunk(2, -1)
        return self.completion(inputs, fill), extra

    def posterior(self, targets: Tensor, hints: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (n, n_components).

        ``hints`` are the completion's, (n, 2 * n_components): they depend on nothing that is
        trained, so rows that are seen often may bring theirs along.
        """
        inputs = self.likelihood.embed(targets)
        if hints is None and self.completion is not None and inputs.sum().isnan():
            hints = self.completion.hints(inputs)
        inputs, extra = self._completed(inputs, hints)
        mean, log_var = self.encoder(inputs).chunk(2, -1)
        log_var = log_var if extra is None else log_var + extra
        return mean, log_var.clamp(*LOG_VAR_BOUNDS)

    def forward(
        self, targets: Tensor, noise: Tensor, beta: float = 1.0, hints: Tensor | None = None
    ) -> Tensor:
        """Negative ELBO of each row, in nats, by one draw of z: (n,).

        ``- log p(x | z) + beta * KL(q(z | x) || p(z))`` at ``z = mean + sigma * noise``.
        """
        mean, log_var = self.posterior(targets, hints)
        z = torch.addcmul(mean, (0.5 * log_var).exp(), noise)  # (n, n_components)
        reconstruction = self.likelihood.log_prob(self.decoder(z), targets).sum(-1)
        return beta * self.prior.kl(mean, log_var).sum(-1) - reconstruction

    @torch.no_grad()
    def backward(
        self,
        targets: Tensor,
        noise: Tensor,
        weights: Tensor,
        beta: float = 1.0,
        hints: Tensor | None = None,
    ) -> Tensor:
        """``weights @ forward(...)``, a number; its gradient is left in the parameters' ``grad``.

        What autograd would give; on small networks at about half of its cost, where the parts know
        their own gradients (``vjp`` of the networks, ``nll_vjp`` of the likelihood, ``kl_vjp`` of
        the prior). Of other parts autograd finds it. Targets with gaps need their ``hints``.
        """
        inputs, extra = self._completed(self.likelihood.embed(targets), hints)
        out, back_encoder = network_vjp(self.encoder, inputs)
        mean, unbounded = out.chunk(2, -1)
        unbounded = unbounded if extra is None else unbounded + extra
        log_var = unbounded.clamp(*LOG_VAR_BOUNDS)
        step = (0.5 * log_var).exp_().mul_(noise)
        z = mean + step
        raw, back_decoder = network_vjp(self.decoder, z)
        nll, to_raw = nll_vjp(self.likelihood, raw, targets, weights)
        to_z = back_decoder(to_raw, True)
        scaled = weights if beta == 1 else beta * weights
        kl, to_mean, to_log_var = kl_vjp(self.prior, mean, log_var, scaled)
        if not self.encoder_stays:
            to_log_var = torch.addcmul(to_log_var, to_z, step, value=0.5)
            to_log_var = through_clamp(to_log_var, unbounded, *LOG_VAR_BOUNDS)
            back_encoder(torch.cat([to_mean + to_z, to_log_var], -1), False)
        return nll + kl

    def log_joint(self, z: Tensor, targets: Tensor) -> Tensor:
        """log p(x, z): z is (..., n_components), targets broadcast against it."""
        raw = self.decoder(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)
        return self.likelihood.log_prob(raw, targets).sum(-1) + self.prior.log_prob(z)

    def laplace(
        self, targets: Tensor, start: Tensor | None = None, n_steps: int = 2
    ) -> tuple[Tensor, Tensor]:
        """Gaussian approximation of the true posterior p(z | x), by Gauss-Newton.

        The encoder's mean (or ``start``) is moved ``n_steps`` times uphill on log p(x, z); the
        precision is ``I + J' F J`` with J the decoder's Jacobian and F the likelihood's expected
        information about what is observed. Where decoder and likelihood are linear-Gaussian this is
        the exact posterior, correlations included, which the encoder's diagonal need not be.

        Returns
        -------
        mode : Tensor of shape (n, n_components)
        factor : Tensor of shape (n, n_components, n_components)
            Upper triangular, ``factor @ factor'`` is the covariance.
        """
        z = (self.posterior(targets)[0] if start is None else start).detach()
        for _ in range(n_steps):
            gradient, precision = self._curvature(z, targets)
            step = torch.linalg.solve(precision, gradient)
            # (5, n, n_components): the first candidate that is best wins, staying put included
            sizes = z.new_tensor([1.0, 0.5, 0.25, 0.0625, 0.0])[:, None, None]
            candidates = z + sizes * step
            best = self.log_joint(candidates, targets).nan_to_num(-math.inf).argmax(0)
            z = candidates[best, torch.arange(len(z))]
        _, precision = self._curvature(z, targets)
        # not finite only where the row is: its log-density is then not finite either
        lower, _ = torch.linalg.cholesky_ex(precision)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand_as(lower)
        return z, torch.linalg.solve_triangular(lower.mT, eye, upper=True)

    def _curvature(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (n, k) of log p(x, z) and its Gauss-Newton precision (n, k, k) at z."""
        n, k = z.shape
        eye = torch.eye(k, dtype=z.dtype, device=z.device)
        # Forward differences, not autograd: they ask nothing of a user's decoder, and cost k more
        # rows. An error in J only widens the proposal's mismatch, never the bound's validity.
        h = math.sqrt(torch.finfo(z.dtype).eps)
        shifted = torch.cat([z[:, None], z[:, None] + h * eye], 1)  # (n, 1 + k, k)
        raw = self.decoder(shifted.reshape(-1, k)).reshape(n, 1 + k, -1)
        jacobian = (raw[:, 1:] - raw[:, :1]) / h  # (n, k, n_params)
        with torch.enable_grad():
            leaf = raw[:, 0].detach().requires_grad_()
            cells = self.likelihood.log_prob(leaf, targets).sum()
            (score,) = torch.autograd.grad(cells, leaf)
            leaf = z.detach().requires_grad_()
            (prior_score,) = torch.autograd.grad(self.prior.log_prob(leaf).sum(), leaf)
        gradient = (jacobian @ score[..., None])[..., 0] + prior_score
        root = self.likelihood.whiten(raw[:, 0], jacobian, targets)  # (n, k, n_params)
        return gradient, eye + root @ root.mT

    def move(self, z: Tensor, targets: Tensor, n_steps: int, generator: torch.Generator) -> Tensor:
        """Steps of elliptical slice sampling from z, each (n, k), that leave p(z | x) as it is.

        Each step goes to a point on the ellipse through z and a draw from the prior, standard
        normal, at which log p(x | z) is above a random share of what it is at z.

        References
        ----------
        Murray, Adams and MacKay, "Elliptical slice sampling", AISTATS 2010.
        """

        def uniform(n: int) -> Tensor:
            return torch.rand((n, 1), generator=generator, dtype=z.dtype)

        def log_likelihood(z: Tensor, targets: Tensor) -> Tensor:
            return self.likelihood.log_prob(self.decoder(z), targets).sum(-1, keepdim=True)

        z = z.clone()
        for _ in range(n_steps):
            # of the rows that have yet to find their point
            rows, x = torch.arange(len(z)), targets
            here, other = z, self.prior.sample(len(z), generator, z.dtype)
            level = log_likelihood(z, x) + uniform(len(z)).log()  # (n, 1)
            angle = 2 * math.pi * uniform(len(z))
            low, high = angle - 2 * math.pi, angle
            for _ in range(MOST_TRIES):
                found = here * angle.cos() + other * angle.sin()
                inside = (log_likelihood(found, x) > level)[:, 0]
                z[rows[inside]] = found[inside]
                if inside.all():
                    break
                # the bracket shrinks towards z, at angle zero
                low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)
                left = rows, x, here, other, level, low, high
                rows, x, here, other, level, low, high = (each[~inside] for each in left)
                angle = low + (high - low) * uniform(len(low))
        return z

    def log_weights(
        self, targets: Tensor, points: Tensor, n_steps: int = 2
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, their log importance weights, and the log share of each point.

        ``p(x) ~ sum share * weight``. The proposal is Laplace's Gaussian with
        ``1 + 8 / n_components ** 1.5`` times its variance: the posterior under a curved decoder has
        heavier tails. Weights are p(x, z) over Laplace's own density; shares are Laplace's over the
        widened one, scaled to sum to one. They depend on the points alone, and where Laplace is
        exact all weights are equal to p(x).

        Parameters
        ----------
        targets : Tensor of shape (n, n_columns)
        points : Tensor of shape (m, n_components)
            Standard normal; the same for every row.

        Returns
        -------
        z : Tensor of shape (m, n, n_components)
        log_weights : Tensor of shape (m, n)
        log_share : Tensor of shape (m,)
        """
        mode, factor = self.laplace(targets, n_steps=n_steps)
        wide = math.sqrt(1 + 8 / points.shape[1] ** 1.5) * points
        z = mode + torch.einsum("nkl,ml->mnk", factor, wide)  # (m, n, k)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (n,)
        log_laplace = -0.5 * (wide.square() + math.log(2 * math.pi)).sum(-1)  # (m,)
        log_share = 0.5 * (points.square() - wide.square()).sum(-1)
        log_weights = self.log_joint(z, targets) + log_det - log_laplace[:, None]
        return z, log_weights, log_share - log_share.logsumexp(0)

    def log_prob(self, targets: Tensor, points: Tensor, n_steps: int = 2) -> Tensor:
        """Importance-weighted bound of log p(x), nats in standardised units: (n,)."""
        _, log_weights, log_share = self.log_weights(targets, points, n_steps)
        return (log_weights + log_share[:, None]).logsumexp(0)
