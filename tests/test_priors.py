import math

import numpy as np
import pytest
import torch
from scipy import stats

from skvae.priors import StandardNormal

F64 = torch.float64

MEAN = torch.tensor([0.0, 0.7, -3.0, 2.0], dtype=F64)
LOG_VAR = torch.tensor([0.0, -4.0, 1.1, -0.3], dtype=F64)


def test_density_integrates_to_one():
    z = torch.linspace(-30, 30, 6_001, dtype=F64)[:, None]
    total = StandardNormal(1).log_prob(z).exp().sum() * (z[1, 0] - z[0, 0])
    assert float(total) == pytest.approx(1.0, abs=1e-12)


def test_density_is_the_product_of_the_components():
    z = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = stats.norm.logpdf(z.numpy()).sum(-1)
    np.testing.assert_allclose(StandardNormal(2).log_prob(z).numpy(), expected, rtol=1e-12)


def test_kl_against_quadrature():
    prior = StandardNormal(1)
    grid = torch.linspace(-1, 1, 20_001, dtype=F64)
    for mean, log_var, kl in zip(MEAN, LOG_VAR, prior.kl(MEAN, LOG_VAR), strict=True):
        sigma = (0.5 * log_var).exp()
        z = mean + 12 * sigma * grid
        q = torch.distributions.Normal(mean, sigma)
        ratio = q.log_prob(z) - prior.log_prob(z[:, None])
        integral = (q.log_prob(z).exp() * ratio).sum() * (z[1] - z[0])
        assert float(kl) == pytest.approx(float(integral), abs=1e-9)


def test_kl_against_monte_carlo():
    prior, n = StandardNormal(4), 40_000
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    sigma = (0.5 * LOG_VAR).exp()
    z = MEAN + sigma * noise
    q = torch.distributions.Normal(MEAN, sigma).log_prob(z).sum(1)
    ratio = q - prior.log_prob(z)
    standard_error = float(ratio.std()) / math.sqrt(n)
    assert abs(float(ratio.mean() - prior.kl(MEAN, LOG_VAR).sum())) < 4 * standard_error


def test_kl_is_zero_at_the_prior_alone():
    kl = StandardNormal(4).kl(MEAN, LOG_VAR)
    assert kl.shape == MEAN.shape
    assert float(kl[0]) == 0.0
    assert (kl[1:] > 0.01).all()


def test_gradients():
    prior = StandardNormal(4)
    mean, log_var = MEAN.clone().requires_grad_(), LOG_VAR.clone().requires_grad_()
    assert torch.autograd.gradcheck(prior.kl, (mean, log_var))
    assert torch.autograd.gradcheck(prior.log_prob, (mean,))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_draws_follow_the_density(dtype):
    before = torch.random.get_rng_state()
    draws = StandardNormal(3).sample(5_000, torch.Generator().manual_seed(0), dtype)
    assert draws.shape == (5_000, 3)
    assert draws.dtype == dtype
    for column in draws.T.double().numpy():
        assert stats.kstest(column, "norm").pvalue > 1e-3
    correlation = np.corrcoef(draws.T.double().numpy())
    assert np.abs(correlation - np.eye(3)).max() < 4 / math.sqrt(5_000)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_kl_vjp_is_autograds():
    prior = StandardNormal(3)
    generator = torch.Generator().manual_seed(0)
    mean, log_var, grad = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(5, 3)] * 2 + [5]
    )
    leaves = mean.clone().requires_grad_(), log_var.clone().requires_grad_()
    expected = prior.kl(*leaves).sum(-1)
    grads = torch.autograd.grad(expected, leaves, grad)
    got, *own = prior.kl_vjp(mean, log_var, grad)
    torch.testing.assert_close(got, grad @ expected, rtol=1e-13, atol=1e-13)
    for one, other in zip(own, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
