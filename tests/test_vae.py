"""The bound, the posterior and the density, against models whose answers are known."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm, qmc

import skvae.vae
from skvae import VAETransformer
from skvae.likelihoods import Bernoulli, Gaussian, NegativeBinomial
from skvae.networks import Completion, WithLinear, mlp, silence
from skvae.priors import StandardNormal
from skvae.vae import VAE
from skvae.workspace import width

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(n_in, n_out, seed=0, loud=True):
    net = mlp(n_in, n_out, (8,), "tanh", 0.0, torch.Generator().manual_seed(seed)).to(F64)
    return net if loud else silence(net)


def gaussian(log_var):
    return Gaussian(np.zeros(len(log_var)), np.ones(len(log_var)), log_var)


def linear_model(d=5, k=2):
    """x = W z + b + e with W' Psi^-1 W diagonal; and W, b, Psi."""
    noise = 0.1 + torch.rand(d, generator=torch.Generator().manual_seed(1), dtype=F64)
    # columns of Q are orthonormal: W' Psi^-1 W = diag(4, 1, ...)
    Q = torch.linalg.qr(randn(d, k)).Q
    information = torch.tensor([4.0, 1.0, 0.3][:k], dtype=F64)
    W = noise.sqrt()[:, None] * Q * information.sqrt()
    bias = randn(d, seed=2)
    encoder = (W / noise[:, None]).T / (1 + information)[:, None]
    encoder_bias = torch.cat([-encoder @ bias, -(1 + information).log()])
    vae = VAE(
        WithLinear(encoder, encoder_bias, network(d, 2 * k, loud=False), closed_form=True),
        WithLinear(W, bias, network(k, d, loud=False), closed_form=True),
        gaussian(noise.log()),
        StandardNormal(k),
        k,
    )
    return vae, W, bias, noise


def curved_model(d=2, seed=0, sigma=0.3):
    """One component, a decoder that is anything but linear, an encoder that knows nothing."""
    return VAE(
        WithLinear(torch.zeros(1, d, dtype=F64), torch.zeros(2, dtype=F64), network(d, 2, seed)),
        WithLinear(randn(d, 1, seed=seed), randn(d, seed=seed), network(1, d, seed + 1)),
        gaussian(torch.full((d,), 2 * math.log(sigma), dtype=F64)),
        StandardNormal(1),
        1,
    )


def exact_log_prob(vae, targets, n_nodes=40_001, width=9.0):
    """Trapezoidal rule over the one latent."""
    z = torch.linspace(-width, width, n_nodes, dtype=F64)[:, None]
    with torch.no_grad():
        raw = vae.decoder(z)[:, None]
        joint = vae.likelihood.log_prob(raw, targets).sum(-1) + vae.prior.log_prob(z)[:, None]
    return joint.logsumexp(0) + math.log(float(z[1, 0] - z[0, 0]))


def sobol_normal(m, k, seed):
    """Scrambled Sobol points carried to a standard normal."""
    uniform = qmc.Sobol(k, scramble=True, seed=np.random.default_rng(seed)).random(m)
    return torch.from_numpy(norm.ppf(uniform.clip(1e-10, 1 - 1e-10)))


# ---------------------------------------------------------------- where the model is linear


def test_the_elbo_of_a_linear_model_is_its_log_likelihood():
    vae, W, bias, noise = linear_model()
    targets = 2 * randn(6, 5, seed=3)
    exact = torch.distributions.MultivariateNormal(bias, W @ W.T + noise.diag()).log_prob(targets)
    # the loss is quadratic in the noise: its expectation is exact over these four points
    points = math.sqrt(2) * torch.cat([torch.eye(2, dtype=F64), -torch.eye(2, dtype=F64)])
    with torch.no_grad():
        losses = torch.stack([vae(targets, point.expand(6, -1)) for point in points])
    torch.testing.assert_close(-losses.mean(0), exact, rtol=0.0, atol=1e-10)


def test_importance_weights_of_a_linear_model_are_constant():
    vae, W, bias, noise = linear_model()
    targets = 2 * randn(6, 5, seed=3)
    exact = torch.distributions.MultivariateNormal(bias, W @ W.T + noise.diag()).log_prob(targets)
    with torch.no_grad():
        _, log_weights, log_share = vae.log_weights(targets, randn(10, 2, seed=4))
    assert float(log_share.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(log_weights, exact.expand(10, -1), rtol=0.0, atol=1e-6)


def test_a_posterior_that_is_known_is_not_looked_for():
    vae, *_ = linear_model()
    targets, points = 2 * randn(6, 5, seed=3), randn(10, 2, seed=4)
    with torch.no_grad():
        mode, factor = vae.laplace(targets)
        expected = vae.log_prob(targets, points)
        assert torch.equal(vae.log_prob(targets, points, posterior=(mode, factor)), expected)
        z, *_ = vae.log_weights(targets, points, posterior=(mode + 3.0, factor))
        torch.testing.assert_close(z - 3.0, vae.log_weights(targets, points)[0])


@pytest.mark.parametrize("encoder", ["exact", "wrong"])
def test_laplace_is_the_posterior_of_a_linear_model(encoder):
    vae, W, bias, noise = linear_model(k=3)
    if encoder == "wrong":  # nor is its posterior diagonal any longer
        with torch.no_grad():
            vae.encoder.weight.copy_(randn(3, 5, seed=8))
            vae.decoder.weight.add_(0.3 * randn(5, 3, seed=7))
        W = vae.decoder.weight.detach()
    targets = 2 * randn(6, 5, seed=3)
    WtP = (W / noise[:, None]).T
    covariance = torch.linalg.inv(torch.eye(3, dtype=F64) + WtP @ W)
    mode, factor = vae.laplace(targets)
    torch.testing.assert_close(mode, (targets - bias) @ (covariance @ WtP).T, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        factor @ factor.mT, covariance.expand(6, -1, -1), rtol=0.0, atol=1e-6
    )
    assert torch.equal(factor, factor.triu())


def test_posterior_of_a_linear_model():
    vae, W, bias, noise = linear_model()
    targets = randn(6, 5, seed=3)
    WtP = (W / noise[:, None]).T
    covariance = torch.linalg.inv(torch.eye(2, dtype=F64) + WtP @ W)
    with torch.no_grad():
        mean, log_var = vae.posterior(targets)
    torch.testing.assert_close(mean, (targets - bias) @ (covariance @ WtP).T)
    torch.testing.assert_close(log_var.exp(), covariance.diagonal().expand(6, -1))


# ---------------------------------------------------------------- gaps


PATTERNS = torch.tensor(
    [
        [1, 1, 1, 1, 1],  # nothing missing
        [0, 1, 1, 1, 1],
        [1, 0, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0],  # everything
    ],
    dtype=torch.bool,
)


def complete_model(k=2):
    """`linear_model` that knows how to complete its rows."""
    vae, W, bias, noise = linear_model(k=k)
    vae.completion = Completion(W, noise, bias)
    return vae, W, bias, noise


def rows_with_gaps():
    return (2 * randn(6, 5, seed=3)).masked_fill(~PATTERNS, math.nan)


def conditionals(W, bias, noise, targets):
    """Mean and covariance of z given a row's observed cells, from the joint covariance of both."""
    means, covariances = [], []
    for row in targets:
        seen = ~row.isnan()
        cross = W[seen]  # Cov(x, z)
        gain = cross.T @ torch.linalg.inv(cross @ cross.T + noise[seen].diag())
        means.append(gain @ (row - bias)[seen])
        covariances.append(torch.eye(W.shape[1], dtype=F64) - gain @ cross)
    return torch.stack(means), torch.stack(covariances)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("hints", [False, True])
def test_posterior_with_gaps_is_the_gaussian_conditional(k, hints):
    vae, W, bias, noise = complete_model(k)
    targets = rows_with_gaps()
    mean, covariance = conditionals(W, bias, noise, targets)
    with torch.no_grad():
        given = vae.completion.hints(targets) if hints else None
        got_mean, got_log_var = vae.posterior(targets, given)
        whole = vae.posterior(targets[:1])
    torch.testing.assert_close(got_mean, mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        got_log_var.exp(), covariance.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-12
    )
    # a row alone without gaps is not completed, and says the same; nothing known is the prior
    for part, alone in zip((got_mean, got_log_var), whole, strict=True):
        torch.testing.assert_close(part[:1], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(part[-1], torch.zeros(k, dtype=F64), rtol=0.0, atol=1e-12)


def test_rows_without_gaps_are_left_as_they_are():
    vae, *_ = complete_model()
    targets = 2 * randn(6, 5, seed=3)
    with torch.no_grad():
        with_completion = vae.posterior(targets)
        vae.completion = None
        for one, other in zip(with_completion, vae.posterior(targets), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("k", [2, 3])
def test_laplace_with_gaps_is_the_gaussian_conditional(k):
    vae, W, bias, noise = complete_model(k)
    targets = rows_with_gaps()
    mean, covariance = conditionals(W, bias, noise, targets)
    assert covariance[3, 0, 1].abs() > 0.01  # gaps correlate what whole rows do not
    for start in (None, randn(6, k, seed=8)):
        mode, factor = vae.laplace(targets, start)
        torch.testing.assert_close(mode, mean, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(factor @ factor.mT, covariance, rtol=0.0, atol=1e-6)
        assert torch.equal(factor, factor.triu())


def test_log_prob_with_gaps_is_that_of_the_observed_cells():
    vae, W, bias, noise = complete_model()
    targets = rows_with_gaps()
    C = (W @ W.T + noise.diag()).numpy()
    expected = np.zeros(6)  # nothing observed: probability one
    for i, seen in enumerate(PATTERNS[:-1].numpy()):
        row, center = targets[i].numpy()[seen], bias.numpy()[seen]
        expected[i] = multivariate_normal.logpdf(row, center, C[np.ix_(seen, seen)])
    with torch.no_grad():
        got = vae.log_prob(targets, randn(10, 2, seed=4))
        z, log_weights, _ = vae.log_weights(targets, randn(10, 2, seed=4))
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=1e-6)
    np.testing.assert_allclose(log_weights, np.tile(expected, (10, 1)), rtol=0.0, atol=1e-6)
    assert z.shape == (10, 6, 2)


def test_importance_weights_belong_to_their_latents():
    """Shares times the proposal's density over Laplace's are what integrates over z."""
    vae, W, bias, noise = complete_model()
    targets = rows_with_gaps()
    mean, covariance = conditionals(W, bias, noise, targets)
    with torch.no_grad():
        z, log_weights, log_share = vae.log_weights(targets, randn(10, 2, seed=4))
        joint = vae.log_joint(z, targets)
    q = torch.distributions.MultivariateNormal(mean, covariance)
    torch.testing.assert_close(log_weights, joint - q.log_prob(z), rtol=0.0, atol=1e-5)
    # the importance of a point: Laplace's density over that of twice and more its width
    wide = torch.distributions.MultivariateNormal(mean, (1 + 8 / 2**1.5) * covariance)
    ratio = (q.log_prob(z) - wide.log_prob(z))[:, 0]
    torch.testing.assert_close(log_share, ratio - ratio.logsumexp(0), rtol=0.0, atol=1e-5)


def test_the_elbo_with_gaps_is_below_the_density_by_the_correlations():
    """The posterior is diagonal, p(z | observed) is not: KL(q || p) is what lies between."""
    vae, W, bias, noise = complete_model()
    targets = rows_with_gaps()
    mean, covariance = conditionals(W, bias, noise, targets)
    sides = math.sqrt(2) * torch.cat([torch.eye(2, dtype=F64), -torch.eye(2, dtype=F64)])
    with torch.no_grad():
        elbo = -torch.stack([vae(targets, side.expand(6, -1)) for side in sides]).mean(0)
        log_prob = vae.log_prob(targets, randn(10, 2, seed=4))
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    q = torch.distributions.MultivariateNormal(
        mean, covariance.diagonal(dim1=1, dim2=2).diag_embed()
    )
    kl = torch.distributions.kl_divergence(q, exact)
    torch.testing.assert_close(log_prob - elbo, kl, rtol=0.0, atol=1e-6)


# ---------------------------------------------------------------- the bound and the density


def test_forward_is_the_elbo_of_one_draw():
    vae, targets, noise = curved_model(), randn(5, 2, seed=3), randn(5, 1, seed=4)
    with torch.no_grad():
        got = vae(targets, noise)
        mean, log_var = vae.posterior(targets)
        q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
        z = q.mean + q.stddev * noise
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
        p = torch.distributions.Normal(vae.decoder(z), 0.3)
        expected = kl - p.log_prob(targets).sum(1)
    torch.testing.assert_close(got, expected)


class Opaque(torch.nn.Module):
    """A part that knows nothing of its own gradient."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *inputs):
        return self.part(*inputs)

    def __getattr__(self, name):
        if name in ("vjp", "nll_vjp", "kl_vjp"):
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.part, name)


class Deaf(torch.nn.Module):
    """A network that ignores its input."""

    def __init__(self, n_out):
        super().__init__()
        self.out = torch.nn.Parameter(randn(n_out, seed=9))

    def forward(self, x):
        return self.out.expand(len(x), -1)


@pytest.mark.parametrize(
    "change",
    [
        lambda vae: None,
        lambda vae: setattr(vae, "encoder", Opaque(vae.encoder)),
        lambda vae: setattr(vae, "encoder", Deaf(6)),
        lambda vae: setattr(vae, "decoder", Opaque(vae.decoder)),
        lambda vae: setattr(vae, "decoder", Deaf(5)),
        lambda vae: setattr(vae, "likelihood", Opaque(vae.likelihood)),
        lambda vae: setattr(vae, "likelihood", Bernoulli(np.full(5, 0.5))),
        lambda vae: setattr(vae, "prior", Opaque(vae.prior)),
        lambda vae: vae.encoder.bias[-1].fill_(40.0),  # a log-variance beyond its bound
    ],
    ids=[
        "own",
        "encoder",
        "deaf encoder",
        "decoder",
        "deaf decoder",
        "likelihood",
        "bernoulli",
        "prior",
        "bound",
    ],
)
def test_backward_is_autograds(change):
    vae, *_ = linear_model(k=3)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.1 * randn(*parameter.shape, seed=5)
        change(vae)
    targets, noise = randn(6, 5, seed=3).abs().clamp_max(1.0), randn(6, 3, seed=4)
    weights = torch.linspace(0.0, 0.3, 6, dtype=F64)
    learned = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    expected = weights @ vae(targets, noise, 0.7)
    grads = torch.autograd.grad(expected, learned)
    for _ in range(2):  # gradients are set, not added
        got = vae.backward(targets, noise, weights, 0.7)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=1e-12)
    assert not got.requires_grad
    for parameter, grad in zip(learned, grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-11, atol=1e-11)


def counting(vae):
    vae.likelihood = NegativeBinomial(
        np.ones(5), np.full(5, 0.5), np.ones(5), np.zeros(2), np.arange(1.0, 6.0)
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda vae: None,
        lambda vae: setattr(vae, "encoder", Opaque(vae.encoder)),
        lambda vae: setattr(vae, "likelihood", Opaque(vae.likelihood)),
        lambda vae: setattr(vae, "likelihood", Bernoulli(np.full(5, 0.5))),
        counting,
        lambda vae: vae.encoder.bias[-1].fill_(40.0),
    ],
    ids=["own", "encoder", "likelihood", "bernoulli", "counts", "bound"],
)
@pytest.mark.parametrize("hints", ["own", "other"])
def test_backward_with_gaps_is_autograds(change, hints):
    vae, *_ = complete_model(k=3)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.1 * randn(*parameter.shape, seed=5)
        change(vae)
        targets = randn(6, 5, seed=3).abs().clamp_max(1.0).masked_fill(~PATTERNS, math.nan)
        given = vae.completion.hints(vae.likelihood.embed(targets))
        if hints == "other":
            given = randn(6, 6, seed=11)
    noise, weights = randn(6, 3, seed=4), torch.linspace(0.0, 0.3, 6, dtype=F64)
    learned = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    expected = weights @ vae(targets, noise, 0.7, given)
    grads = torch.autograd.grad(expected, learned)
    got = vae.backward(targets, noise, weights, 0.7, given)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=1e-12)
    for parameter, grad in zip(learned, grads, strict=True):
        assert grad.isfinite().all()
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-11, atol=1e-11)
    if hints == "own":  # they are what `forward` finds out itself
        with torch.no_grad():
            torch.testing.assert_close(weights @ vae(targets, noise, 0.7), got)


def test_beta_enters_linearly_and_weighs_the_kl():
    vae, targets, noise = curved_model(), randn(5, 2, seed=3), randn(5, 1, seed=4)
    with torch.no_grad():
        zero, one, four = (vae(targets, noise, beta) for beta in (0.0, 1.0, 4.0))
        kl = vae.prior.kl(*vae.posterior(targets)).sum(1)
    torch.testing.assert_close(one - zero, kl)
    torch.testing.assert_close(four - zero, 4 * kl)
    assert (kl > 0).all()


def test_the_elbo_is_below_the_density():
    vae, targets = curved_model(), randn(5, 2, seed=3)
    points = sobol_normal(1024, 1, 0)
    with torch.no_grad():
        elbo = -torch.stack([vae(targets, point.expand(5, -1)) for point in points]).mean(0)
    assert (elbo < exact_log_prob(vae, targets)).all()


def integrated_weights(vae, targets):
    """log p(x) as the integral of the importance weights over the proposal, by quadrature."""
    points = torch.linspace(-40, 40, 20_001, dtype=F64)[:, None]
    with torch.no_grad():
        _, log_weights, _ = vae.log_weights(targets, points)
    wide = math.sqrt(1 + 8 / points.shape[1] ** 1.5)  # weights stand at wide * points
    normal = torch.from_numpy(norm.logpdf(wide * points.numpy()) + math.log(wide))
    return (log_weights + normal).logsumexp(0) + math.log(float(points[1, 0] - points[0, 0]))


@pytest.mark.parametrize("seed", range(4))
def test_importance_weights_integrate_to_the_density(seed):
    vae = curved_model(seed=seed)
    targets = vae.decoder(randn(12, 1, seed=5)).detach() + 0.3 * randn(12, 2, seed=6)
    torch.testing.assert_close(
        integrated_weights(vae, targets), exact_log_prob(vae, targets), rtol=0.0, atol=1e-7
    )


def test_importance_weights_integrate_to_the_probability_for_cross_entropy():
    vae = VAE(
        network(3, 2),
        WithLinear(2 * randn(3, 1), randn(3, seed=1), network(1, 3, seed=2)),
        Bernoulli(np.array([0.3, 0.5, 0.8])),
        StandardNormal(1),
        1,
    ).to(F64)
    targets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 3)
    exact = exact_log_prob(vae, targets)
    assert float(exact.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(integrated_weights(vae, targets), exact, rtol=0.0, atol=1e-7)


def test_log_prob_is_the_log_of_the_mean_weight():
    vae, targets, points = curved_model(), randn(5, 2, seed=3), randn(16, 1, seed=4)
    with torch.no_grad():
        z, log_weights, log_share = vae.log_weights(targets, points)
        share = log_share.exp()
        log_prob = vae.log_prob(targets, points)
    assert z.shape == (16, 5, 1)
    assert log_weights.shape == (16, 5)
    torch.testing.assert_close(log_prob, (share @ log_weights.exp()).log())
    assert (share @ log_weights < log_prob).all()  # mean log w <= log mean w


@pytest.mark.parametrize("draws", [None, randn(3, 1, seed=5)])
def test_points_in_parts_say_the_same(draws, monkeypatch):
    vae, targets, points = curved_model(), randn(5, 2, seed=3), randn(16, 1, seed=4)
    with torch.no_grad():
        expected = vae.log_prob(targets, points, draws)
        log_joint, n_points = vae.log_joint, []
        monkeypatch.setattr(
            vae, "log_joint", lambda z, *more: (n_points.append(len(z)), log_joint(z, *more))[1]
        )
        monkeypatch.setattr("skvae.vae.CACHED", 4 * 5 * width(vae.decoder))
        found = vae.log_prob(targets, points, draws)
    assert sum(n == 4 for n in n_points) >= 4
    torch.testing.assert_close(found, expected)


def test_means_in_parts_are_those_of_all_points(monkeypatch):
    vae, targets, z = curved_model(), randn(5, 2, seed=3), randn(16, 5, 1, seed=4)
    weights = randn(16, 5, seed=5).softmax(0)
    with torch.no_grad():
        raw = vae.decoder(z.reshape(-1, 1)).reshape(16, 5, -1)
        expected = (weights[..., None] * vae.likelihood.mean(raw, targets)).sum(0)
        decoded = []
        vae.decoder.register_forward_hook(lambda _, given, out: decoded.append(len(out)))
        for at_once in (3, 100):
            monkeypatch.setattr("skvae.vae.CACHED", at_once * 5 * width(vae.decoder))
            torch.testing.assert_close(vae.mean_over(z, weights, targets), expected)
    assert decoded == [15] * 5 + [5, 80]


def test_the_bound_holds_over_scramblings():
    """Below the exact value within its error, and ever closer with more points."""
    vae = curved_model(seed=1, sigma=0.15)
    targets = vae.decoder(randn(30, 1, seed=5)).detach() + 0.3 * randn(30, 2, seed=6)
    exact = float(exact_log_prob(vae, targets).mean())
    gaps = []
    for m in (2, 64):
        with torch.no_grad():
            estimates = np.array(
                [
                    float(vae.log_prob(targets, sobol_normal(m, 1, seed)).mean())
                    for seed in range(16)
                ]
            )
        standard_error = estimates.std(ddof=1) / 4
        assert estimates.mean() <= exact + 4 * standard_error
        gaps.append(abs(exact - estimates.mean()))
    assert gaps[1] < 0.1 * gaps[0]


def test_moves_end_at_the_posterior_from_anywhere():
    """Draws that begin two units off; each is a chain of its own."""
    n = 4000
    vae, W, bias, noise = linear_model()
    x = bias + W @ torch.tensor([1.0, -1.5], dtype=F64) + 0.3
    precision = torch.eye(2, dtype=F64) + W.T @ (W / noise[:, None])
    covariance = precision.inverse()
    mean = covariance @ W.T @ ((x - bias) / noise)
    start = mean + 2.0 + 0.1 * randn(n, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = vae.move(start, x.expand(n, -1), 30, generator)
        near = vae.move(start, x.expand(n, -1), 1, generator)
    assert (near.mean(0) - mean).abs().max() > 0.5  # one step does not suffice
    error = (covariance.diagonal() / n).sqrt()
    assert ((z.mean(0) - mean).abs() < 4 * error).all()
    deviation = z - mean
    products = (deviation[:, :, None] * deviation[:, None]).flatten(1)
    error = products.std(0) / math.sqrt(n)
    assert ((products.mean(0) - covariance.flatten()).abs() < 4 * error).all()


def test_moves_leave_a_curved_posterior_as_it_is():
    """From exact draws, by a table of its distribution function, to draws of the same law."""
    vae, n = curved_model(), 4000
    x = torch.tensor([[0.3, -0.4]], dtype=F64)
    grid = torch.linspace(-6, 6, 20_001, dtype=F64)[:, None]
    with torch.no_grad():
        below = vae.log_joint(grid, x).softmax(0).cumsum(0)
        exact = grid[torch.searchsorted(below, torch.linspace(0, 1, n + 2, dtype=F64)[1:-1])]
        z = vae.move(exact, x.expand(n, -1), 5, torch.Generator().manual_seed(0))
    assert (z != exact).all()
    position = below[torch.searchsorted(grid[:, 0], z[:, 0])].sort().values
    distance = (position - (torch.arange(n) + 0.5) / n).abs().max()
    assert float(distance) < 1.95 / math.sqrt(n)  # Kolmogorov's at 0.1%


def test_moves_stay_where_nothing_is_likelier():
    vae = curved_model()
    z, nothing = randn(5, 1), torch.full((5, 2), 1e200, dtype=F64)  # of density zero everywhere
    with torch.no_grad():
        assert torch.equal(vae.move(z, nothing, 2, torch.Generator().manual_seed(0)), z)


def test_laplace_never_goes_downhill():
    vae, targets = curved_model(seed=2, sigma=0.05), 3 * randn(20, 2, seed=3)
    with torch.no_grad():
        before = vae.log_joint(vae.posterior(targets)[0], targets)
        for n_steps in (0, 1, 2, 8):
            after = vae.log_joint(vae.laplace(targets, n_steps=n_steps)[0], targets)
            assert (after >= before).all()
            before = after


@pytest.mark.parametrize("likelihood", ["gaussian", "counts"])
def test_laplace_climbs_to_a_mode_given_gaps(likelihood, monkeypatch):
    monkeypatch.setattr(skvae.vae, "ARRIVED", 0.0)
    vae, *_ = complete_model()
    targets = rows_with_gaps()
    if likelihood == "counts":
        counting(vae)
        targets = (3 * targets.abs()).round()
    mode = vae.laplace(targets, n_steps=20)[0].requires_grad_()
    (slope,) = torch.autograd.grad(vae.log_joint(mode, targets).sum(), mode)
    assert slope.abs().max() < 1e-4


def test_laplace_goes_on_until_a_row_has_arrived(monkeypatch):
    """Each row by itself, as many steps as it needs."""
    vae, targets = curved_model(seed=2, sigma=0.05), 3 * randn(20, 2, seed=3)
    decoded = []
    vae.decoder.register_forward_hook(lambda _, given, out: decoded.append(len(out)))
    with torch.no_grad():
        heights = []
        for n_steps in range(11):
            mode, _ = vae.laplace(targets, n_steps=n_steps)
            heights.append(vae.log_joint(mode, targets))
        gains = torch.stack(heights).diff(dim=0)  # (10, n)
        assert (gains >= 0).all()
        on_their_way = (gains > 0.01).cummin(0).values  # from the second step on, of these alone
        assert on_their_way[1].any() and not on_their_way[1].all()
        assert not gains[1:][~on_their_way[:-1]].any()
        decoded.clear()
        mode, factor = vae.laplace(targets)
        n_taken, n_left = 20 + int(on_their_way[:-1].sum()), int(on_their_way[-1].sum())
        # a Jacobian and sizes of each step, and a last Jacobian of rows that have not arrived
        assert sum(decoded) == n_taken * (2 + 5) + n_left * 2
        assert torch.equal(vae.log_joint(mode, targets), heights[10])
        alone = [vae.laplace(row[None]) for row in targets]
        torch.testing.assert_close(torch.cat([m for m, _ in alone]), mode)
        torch.testing.assert_close(torch.cat([f for _, f in alone]), factor)
        monkeypatch.setattr(skvae.vae, "ARRIVED", 0.0)
        top = vae.log_joint(vae.laplace(targets, n_steps=200)[0], targets)
    assert (top - heights[10]).median() < 0.01 < (top - heights[2]).max()


def test_laplace_goes_on_from_a_given_start():
    vae, targets = curved_model(), randn(5, 2, seed=3)
    twice, _ = vae.laplace(targets, n_steps=2)
    once, _ = vae.laplace(targets, n_steps=1)
    torch.testing.assert_close(vae.laplace(targets, once, 1)[0], twice, rtol=1e-9, atol=1e-9)


def test_an_encoder_that_says_wild_things_stays_finite():
    vae = curved_model()
    with torch.no_grad():
        vae.encoder.bias.copy_(torch.tensor([0.0, 1e6], dtype=F64))
    for sign in (1, -1):
        vae.encoder.bias.data.mul_(sign)
        loss = vae(randn(4, 2), randn(4, 1))
        assert loss.isfinite().all()


def test_log_joint_takes_any_leading_axes():
    vae, targets = curved_model(), randn(5, 2, seed=3)
    z = randn(3, 5, 1, seed=4)
    with torch.no_grad():
        together = vae.log_joint(z, targets)
        alone = torch.stack([vae.log_joint(one, targets) for one in z])
    torch.testing.assert_close(together, alone)


# ---------------------------------------------------------------- the fitted model


def curved_rows(n=300, seed=0):
    random = np.random.default_rng(seed)
    t = random.normal(size=n)
    X = np.column_stack([t, t**2]) + 0.1 * random.normal(size=(n, 2))
    return X * [3.0, 200.0] + [-5.0, 1e4]


@pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("noise", ["auto", "heteroscedastic", "homoscedastic", "isotropic"])
def test_a_fitted_component_agrees_with_quadrature(noise):
    vae = VAETransformer(1, noise=noise, hidden_layer_sizes=(16,), max_iter=40, random_state=0)
    vae.set_params(learning_rate_init=0.01).fit(curved_rows())
    X = curved_rows(50, seed=1)
    likelihood = vae.module_.likelihood
    targets = torch.from_numpy(likelihood.standardize(X))
    exact = exact_log_prob(vae.module_, targets).numpy() - np.log(likelihood.scale).sum()
    np.testing.assert_allclose(vae.score_samples(X), exact, rtol=0, atol=1e-3)


RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(60, 2)) @ RANDOM.normal(size=(2, 4)) + 0.3 * RANDOM.normal(size=(60, 4))


@pytest.mark.parametrize(
    "parameters",
    [
        {"noise": "auto"},
        {"noise": "heteroscedastic"},
        {"noise": "homoscedastic"},
        {"noise": "isotropic"},
        {"noise": 0.5},
        {"likelihood": "bernoulli"},
        {"init": "random"},
    ],
    ids=str,
)
def test_gradients_reach_every_parameter(parameters):
    X = (ROWS > 0).astype(float) if "likelihood" in parameters else ROWS
    vae = VAETransformer(
        2, hidden_layer_sizes=(8, 6), activation="tanh", max_iter=0, random_state=0, **parameters
    ).fit(X)
    module = copy.deepcopy(vae.module_)
    targets = torch.from_numpy(module.likelihood.standardize(X))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    # silent last layers block the layers below them until the first step
    for _ in range(2):
        optimizer.zero_grad()
        module(targets, randn(60, 2)).mean().backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
        optimizer.step()
    assert {"encoder.weight", "encoder.bias"} <= set(gradients)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 1e-12, name
