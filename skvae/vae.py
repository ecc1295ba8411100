"""The variational autoencoder itself: ELBO, posterior, log-density.

Knows nothing of tables, units or training; encoder, decoder, likelihood and prior are passed in.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skvae.gradients import (
    LOG_2PI,
    LOG_VAR_BOUNDS,
    clear,
    kl_vjp,
    network_vjp,
    nll_vjp,
    prior_vjp,
    through_clamp,
)
from skvae.workspace import CACHED, how_many, width

TOGETHER = 32  # points at which all rows of a part could be decoded together, in WORKSPACE
MOST_STEPS, ARRIVED = 10, 0.01  # of `VAE.laplace`, and the nats that a last step gains at most
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
    n_components : int
        Dimension of the latent.
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
    Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, "Improved Variational Inference with
    Inverse Autoregressive Flow", NeurIPS 2016 (free bits).
    Tucker, Lawson, Gu and Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives", ICLR 2019.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Any,
        prior: Any,
        n_components: int,
        completion: Any = None,
    ) -> None:
        super().__init__()
        self.n_components = n_components
        # Any: what else these modules offer is a contract of names
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self.likelihood: Any = likelihood
        self.prior: Any = prior
        self.completion: Any = completion
        self.encoder_stays = False  # True: `backward` spares itself the encoder's gradient

    def inputs(self, targets: Tensor) -> Tensor:
        """What the encoder reads of these rows, without gaps: (n, n_inputs)."""
        inputs = self.likelihood.embed(targets)
        return self._completed(inputs, self._hints(inputs))[0]

    def _hints(self, inputs: Tensor) -> Tensor | None:
        """What gaps need; None where there are none."""
        if self.completion is None or not inputs.sum().isnan():
            return None
        hints: Tensor = self.completion.hints(inputs)
        return hints

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
        hints = self._hints(inputs) if hints is None else hints
        inputs, extra = self._completed(inputs, hints)
        mean, log_var = self.encoder(inputs).chunk(2, -1)
        log_var = log_var if extra is None else log_var + extra
        return mean, log_var.clamp(*LOG_VAR_BOUNDS)

    def divergence(
        self, mean: Tensor, log_var: Tensor, z: Tensor, free_bits: float = 0.0
    ) -> Tensor:
        """KL(q(z | x) || p(z)) in nats, (..., n): in closed form, or by z, (..., n, n_components).

        Of a closed form, each component counts as ``free_bits`` at least. Otherwise it is
        ``E_q[log q(z | x)] - log p(z)``, the first term in closed form.
        """
        if (closed := getattr(self.prior, "kl", None)) is not None:
            kl: Tensor = closed(mean, log_var)
            return (kl.clamp_min(free_bits) if free_bits else kl).sum(-1)
        negentropy = -0.5 * (log_var + (1 + LOG_2PI)).sum(-1)
        out: Tensor = negentropy - self.prior.log_prob(z)
        return out

    def forward(
        self,
        targets: Tensor,
        noise: Tensor,
        beta: float = 1.0,
        hints: Tensor | None = None,
        free_bits: float = 0.0,
    ) -> Tensor:
        """Negative bound of each row's log-density, in nats: (n,).

        With ``z = mean + sigma * noise``: of one draw, noise of shape (n, n_components), the
        negative ELBO, ``- log p(x | z) + beta * KL(q(z | x) || p(z))``. Of m draws, (m, n,
        n_components), minus the importance-weighted bound, ``log 1/m sum_i p(x | z_i) (p(z_i) /
        q(z_i | x))^beta``.
        """
        mean, log_var = self.posterior(targets, hints)
        z = torch.addcmul(mean, (0.5 * log_var).exp(), noise)  # of the shape of noise
        reconstruction = self._reconstruction(z, targets)
        if noise.dim() == 2:
            return beta * self.divergence(mean, log_var, z, free_bits) - reconstruction
        log_weights = reconstruction + beta * self._log_ratio(log_var, noise, z)
        return math.log(len(noise)) - log_weights.logsumexp(0)

    def _reconstruction(self, z: Tensor, targets: Tensor) -> Tensor:
        """log p(x | z): z is (..., n_components), targets broadcast against it."""
        out: Tensor = self.likelihood.log_prob(self._decoded(z), targets).sum(-1)
        return out

    def _decoded(self, z: Tensor) -> Tensor:
        """Raw parameters at latents of any leading shape."""
        raw: Tensor = self.decoder(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)
        return raw

    def _log_ratio(self, log_var: Tensor, noise: Tensor, z: Tensor) -> Tensor:
        """log p(z) - log q(z | x): (m, n)."""
        log_q = -0.5 * (noise.square() + log_var + LOG_2PI).sum(-1)
        out: Tensor = self.prior.log_prob(z) - log_q
        return out

    @torch.no_grad()
    def backward(
        self,
        targets: Tensor,
        noise: Tensor,
        weights: Tensor,
        beta: float = 1.0,
        hints: Tensor | None = None,
        free_bits: float = 0.0,
    ) -> Tensor:
        """``weights @ forward(...)``, a number; its gradient is left in the parameters' ``grad``.

        What autograd would give; on small networks at about half of its cost, where the parts know
        their own gradients (see `skvae.gradients`). Of other parts autograd finds it. Of several
        draws, the encoder's gradient is the doubly reparameterised one of Tucker et al., whose
        expectation is the same: autograd's drowns in noise as draws grow more. Targets with gaps
        need their ``hints``.
        """
        for network in (self.encoder, self.decoder):
            clear(network)
        inputs, extra = self._completed(self.likelihood.embed(targets), hints)
        out, back_encoder = network_vjp(self.encoder, inputs)
        mean, unbounded = out.chunk(2, -1)
        unbounded = unbounded if extra is None else unbounded + extra
        log_var = unbounded.clamp(*LOG_VAR_BOUNDS)
        rows = targets, weights
        if noise.dim() == 2:
            found = self._elbo_vjp(mean, log_var, noise, *rows, beta, free_bits)
        else:
            found = self._importance_vjp(mean, log_var, noise, *rows, beta)
        loss, to_mean, to_log_var, finish = found
        if not self.encoder_stays:
            to_log_var = through_clamp(to_log_var, unbounded, *LOG_VAR_BOUNDS)
            back_encoder(torch.cat([to_mean, to_log_var], -1), False)
        finish()
        return loss

    def _elbo_vjp(
        self,
        mean: Tensor,
        log_var: Tensor,
        noise: Tensor,
        targets: Tensor,
        weights: Tensor,
        beta: float,
        free_bits: float,
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[], None]]:
        """Loss, its gradients to mean and log-variance, and what is left to do for the prior."""
        step = (0.5 * log_var).exp_().mul_(noise)
        z = mean + step
        raw, back_decoder = network_vjp(self.decoder, z)
        loss, to_raw = nll_vjp(self.likelihood, raw, targets, weights)
        to_z = back_decoder(to_raw, True)
        scaled = weights if beta == 1 else beta * weights
        if hasattr(self.prior, "kl"):
            kl, to_mean, to_log_var = kl_vjp(self.prior, mean, log_var, scaled, free_bits)
            to_log_var = torch.addcmul(to_log_var, to_z, step, value=0.5)
            return loss + kl, to_mean + to_z, to_log_var, _nothing
        cross, to_z_more, finish = prior_vjp(self.prior, self.encoder, z, scaled)
        to_z = to_z + to_z_more
        to_log_var = 0.5 * (to_z * step - scaled[:, None])  # the entropy's, too
        kl = cross - 0.5 * (scaled @ (log_var + (1 + LOG_2PI))).sum()
        return loss + kl, to_z, to_log_var, finish

    def _importance_vjp(
        self,
        mean: Tensor,
        log_var: Tensor,
        noise: Tensor,
        targets: Tensor,
        weights: Tensor,
        beta: float,
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[], None]]:
        """The same of m draws: noise is (m, n, n_components)."""
        m, n, k = noise.shape
        sigma = (0.5 * log_var).exp()
        step = sigma * noise
        z = mean + step  # (m, n, k)
        flat, repeated = z.reshape(-1, k), targets.repeat(m, 1)
        raw, back_decoder = network_vjp(self.decoder, flat)
        log_weights = self.likelihood.log_prob(raw, repeated).sum(-1).reshape(m, n)
        log_weights += beta * self._log_ratio(log_var, noise, z)
        share = log_weights.softmax(0)  # (m, n)
        each = (share * weights).reshape(-1)
        _, to_raw = nll_vjp(self.likelihood, raw, repeated, each)
        to_z = back_decoder(to_raw, True)
        _, to_z_more, finish = prior_vjp(self.prior, self.encoder, flat, beta * each)
        # to the encoder, through z alone: log q's own dependence on mean and sigma is left out, and
        # by an identity of its expectation each draw's share s counts as s (1 - beta + beta s)
        to_z = (to_z + to_z_more).reshape(m, n, k)
        to_z -= (beta * each).reshape(m, n, 1) * noise / sigma
        to_z *= (1 - beta + beta * share)[..., None]
        loss = -(weights @ (log_weights.logsumexp(0) - math.log(m)))
        return loss, to_z.sum(0), 0.5 * (to_z * step).sum(0), finish

    def log_joint(self, z: Tensor, targets: Tensor, sized: bool = False) -> Tensor:
        """log p(x, z): z is (..., n_components), targets broadcast against it.

        Where a density is given a row's size, ``sized`` adds what the size of the observed cells
        says about z: it counts where cells that are missing follow from z.
        """
        raw = self._decoded(z)
        out: Tensor = self.likelihood.log_prob(raw, targets).sum(-1) + self.prior.log_prob(z)
        if sized and hasattr(self.likelihood, "log_prob_of_total"):
            out = out + self.likelihood.log_prob_of_total(raw, targets)
        return out

    def laplace(
        self, targets: Tensor, start: Tensor | None = None, n_steps: int = MOST_STEPS
    ) -> tuple[Tensor, Tensor]:
        """Gaussian approximation of the true posterior p(z | x), by Gauss-Newton.

        The encoder's mean (or ``start``) is moved uphill on log p(x, z), each row until a step
        gains no more than 0.01 nats, ``n_steps`` times at most. The precision is ``P + J' F J``
        with P the prior's (its ``precision``, else I), J the decoder's Jacobian and F the
        likelihood's expected information about what is observed. Where prior, decoder and
        likelihood are linear-Gaussian this is the exact posterior, correlations included, which the
        encoder's diagonal need not be.

        Returns
        -------
        mode : Tensor of shape (n, n_components)
        factor : Tensor of shape (n, n_components, n_components)
            Upper triangular, ``factor @ factor'`` is the covariance.
        """
        z = (self.posterior(targets)[0] if start is None else start).detach().clone()
        sizes = z.new_tensor([1.0, 0.5, 0.25, 0.0625, 0.0])[:, None, None]
        precision = z.new_empty(*z.shape, z.shape[1])
        moving = torch.arange(len(z), device=z.device)  # the rows that are on their way
        for _ in range(n_steps):
            here, x = z[moving], targets[moving]
            around = self._around(here)
            gradient = self._gradient(here, x, *around)
            # of a row that arrives now, this is its last: near enough
            precision[moving] = curvature = self._precision(here, x, *around)
            # singular only where numbers are beyond their precision: such a row stays put
            step = torch.linalg.solve_ex(curvature, gradient)[0].nan_to_num(0.0, 0.0, 0.0)
            # (5, n, n_components): the first candidate that is best wins, staying put included
            candidates = here + sizes * step
            found = self.log_joint(candidates, x).nan_to_num(-math.inf)  # (5, n)
            most, best = found.max(0)
            z[moving] = candidates[best, torch.arange(len(here))]
            moving = moving[most - found[-1] > ARRIVED]
            if not len(moving):
                break
        else:
            here = z[moving]
            precision[moving] = self._precision(here, targets[moving], *self._around(here))
        # not finite only where the row is: its log-density is then not finite either
        lower, _ = torch.linalg.cholesky_ex(precision)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand_as(lower)
        return z, torch.linalg.solve_triangular(lower.mT, eye, upper=True)

    def _around(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Raw parameters at z, (n, n_params), and their Jacobian, (n, k, n_params)."""
        n, k = z.shape
        # Forward differences, not autograd: they ask nothing of a user's decoder, and cost k more
        # rows. An error in J only widens the proposal's mismatch, never the bound's validity.
        h = math.sqrt(torch.finfo(z.dtype).eps)
        steps = h * torch.eye(k, dtype=z.dtype, device=z.device)
        shifted = torch.cat([z[:, None], z[:, None] + steps], 1)  # (n, 1 + k, k)
        raw = self.decoder(shifted.reshape(-1, k)).reshape(n, 1 + k, -1)
        return raw[:, 0], (raw[:, 1:] - raw[:, :1]) / h

    def _precision(self, z: Tensor, targets: Tensor, raw: Tensor, jacobian: Tensor) -> Tensor:
        """Gauss-Newton precision of log p(x, z) at z: (n, k, k)."""
        known = getattr(self.prior, "precision", None)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        root = self.likelihood.whiten(raw, jacobian, targets)  # (n, k, n_params)
        out: Tensor = (eye if known is None else known(z).diag_embed()) + root @ root.mT
        return out

    def _gradient(self, z: Tensor, targets: Tensor, raw: Tensor, jacobian: Tensor) -> Tensor:
        """Gradient of log p(x, z) at z: (n, k)."""
        with torch.inference_mode(False), torch.enable_grad():
            # copies: what was made in torch's inference mode has no gradients
            leaf = raw.detach().clone().requires_grad_()
            cells = self.likelihood.log_prob(leaf, targets.clone()).sum()
            (score,) = torch.autograd.grad(cells, leaf)
            leaf = z.detach().clone().requires_grad_()
            # zero times z: a prior may be flat
            log_prior = self.prior.log_prob(leaf).sum() + 0.0 * leaf.sum()
            (prior_score,) = torch.autograd.grad(log_prior, leaf)
        return (jacobian @ score[..., None])[..., 0] + prior_score

    def move(self, z: Tensor, targets: Tensor, n_steps: int, generator: torch.Generator) -> Tensor:
        """Steps of elliptical slice sampling from z, each (n, k), that leave p(z | x) as it is.

        Each step goes to a point on the ellipse through z and a standard normal draw, at which
        ``log p(x, z) - log N(z; 0, I)`` is above a random share of what it is at z. Sizes count.

        References
        ----------
        Murray, Adams and MacKay, "Elliptical slice sampling", AISTATS 2010.
        """

        def uniform(n: int) -> Tensor:
            return torch.rand((n, 1), generator=generator, dtype=z.dtype)

        def log_likelihood(z: Tensor, targets: Tensor) -> Tensor:
            # but for a constant
            joint = self.log_joint(z, targets, sized=True)[:, None]
            return joint + 0.5 * z.square().sum(-1, keepdim=True)

        z = z.clone()
        for _ in range(n_steps):
            # of the rows that have yet to find their point
            rows, x = torch.arange(len(z)), targets
            here, other = z, torch.randn(z.shape, generator=generator, dtype=z.dtype)
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
        self,
        targets: Tensor,
        points: Tensor,
        draws: Tensor | None = None,
        sized: bool = False,
        posterior: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, their log importance weights, and the log share of each point.

        ``p(x) ~ sum share * weight``. The proposal is Laplace's Gaussian with
        ``1 + 8 / n_components ** 1.5`` times its variance: the posterior under a curved decoder has
        heavier tails. Weights are p(x, z) over Laplace's own density; shares are Laplace's over the
        widened one, scaled to sum to one. They depend on the points alone, and where Laplace is
        exact all weights are equal to p(x).

        Under a prior of several modes, so has the posterior of a row with gaps, and Laplace's
        Gaussian covers one. ``draws`` of the prior are then points, too, and weights are p(x, z)
        over the density of both kinds (the balance heuristic).

        Parameters
        ----------
        targets : Tensor of shape (n, n_columns)
        points : Tensor of shape (m, n_components)
            Standard normal; the same for every row.
        draws : Tensor of shape (l, n_components) or None, default=None
            Of the prior; the same for every row. m counts them, too, below.
        sized : bool, default=False
            See `log_joint`.
        posterior : pair of Tensors or None, default=None
            What `laplace` returns, where it is known.

        Returns
        -------
        z : Tensor of shape (m, n, n_components)
        log_weights : Tensor of shape (m, n)
        log_share : Tensor of shape (m,)

        References
        ----------
        Veach and Guibas, "Optimally Combining Sampling Techniques for Monte Carlo Rendering",
        SIGGRAPH 1995 (the balance heuristic).
        """
        mode, factor = self.laplace(targets) if posterior is None else posterior
        k = points.shape[1]
        scale = math.sqrt(1 + 8 / k**1.5)
        wide = scale * points
        z = mode + torch.einsum("nkl,ml->mnk", factor, wide)  # (m, n, k)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (n,)
        if draws is None:
            log_laplace = -0.5 * (wide.square() + math.log(2 * math.pi)).sum(-1)  # (m,)
            log_share = 0.5 * (points.square() - wide.square()).sum(-1)
            log_weights = self._log_joint(z, targets, sized) + log_det - log_laplace[:, None]
            return z, log_weights, log_share - log_share.logsumexp(0)
        z = torch.cat([z, draws[:, None].expand(-1, len(mode), -1)])
        m = len(z)
        away = torch.linalg.solve_triangular(factor, (z - mode).movedim(0, 2), upper=True)
        square = away.square().sum(1).T / scale**2  # (m, n)
        log_wide = -0.5 * (square + k * LOG_2PI) - log_det - k * math.log(scale)
        log_density = torch.logaddexp(
            log_wide + math.log(len(points) / m),
            self.prior.log_prob(z) + math.log(len(draws) / m),
        )
        log_share = z.new_full((m,), -math.log(m))
        return z, self._log_joint(z, targets, sized) - log_density, log_share

    @property
    def decoded_width(self) -> int:
        """Most numbers that a row becomes where it is decoded."""
        likelihood = self.likelihood
        return max(width(self.decoder), likelihood.n_params, likelihood.n_stats)

    def weighed_width(self, n_points: int, n_draws: int = 0) -> int:
        """Numbers that a row becomes in `log_weights`, at so many points and draws of the prior.

        Latents are there at once; they are decoded in parts. One row of 20,000 columns at 256
        points would be 40 MiB, times all that is made of it.
        """
        k = self.n_components
        each = max(k, width(self.prior)) if n_draws else k
        return max(self.decoded_width * max(k + 1, TOGETHER), (n_points + n_draws) * each)

    def _points_at_once(self, n_rows: int) -> int:
        """At how many points so many rows are decoded together."""
        return how_many(n_rows * self.decoded_width, CACHED)

    def _log_joint(self, z: Tensor, targets: Tensor, sized: bool) -> Tensor:
        """`log_joint` of z, (m, n, n_components), some points at a time."""
        parts = z.split(self._points_at_once(len(targets)))
        return torch.cat([self.log_joint(part, targets, sized) for part in parts])

    def mean_over(self, z: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """Weighted sum of the likelihood's means at z: (n, n_stats).

        z is (m, n, n_components), weights are (m, n), and targets what is known of the rows.
        """
        at_once = self._points_at_once(len(targets))
        means = (
            torch.einsum("mn,mns->ns", w, self.likelihood.mean(self._decoded(part), targets))
            for part, w in zip(z.split(at_once), weights.split(at_once), strict=True)
        )
        return functools.reduce(torch.add, means)

    def log_prob(
        self,
        targets: Tensor,
        points: Tensor,
        draws: Tensor | None = None,
        posterior: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Importance-weighted bound of log p(x), nats in standardised units: (n,).

        Of what `log_weights` says. Exactly zero of rows without any cell.
        """
        _, log_weights, log_share = self.log_weights(targets, points, draws, posterior=posterior)
        empty = targets.isnan().all(-1)
        return (log_weights + log_share[:, None]).logsumexp(0).masked_fill(empty, 0.0)


def _nothing() -> None:
    """Nothing is left to do."""
