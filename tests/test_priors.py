import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats

from skvae import VAETransformer
from skvae.priors import Mixture, StandardNormal, Vamp

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


@pytest.mark.parametrize("free_bits", [0.1, 3.0])
def test_free_bits_are_free(free_bits):
    """KL counts as max(floor, KL), and what is below has no gradient."""
    prior, weights = StandardNormal(4), torch.tensor([2.0], dtype=F64)
    mean, log_var = MEAN[None].clone(), LOG_VAR[None].clone()
    leaves = mean.requires_grad_(), log_var.requires_grad_()
    each = prior.kl(*leaves)
    assert (each < free_bits).any()
    expected = 2 * each.clamp_min(free_bits).sum()
    grads = torch.autograd.grad(expected, leaves)
    got, *own = prior.kl_vjp(mean.detach(), log_var.detach(), weights, free_bits)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-13, atol=1e-13)
    for one, other in zip(own, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
        assert not one[each < free_bits].any()


# ---------------------------------------------------------------- mixtures


class Linear(torch.nn.Module):
    """A model whose encoder is linear, as far as priors look at it."""

    def __init__(self, k, d=3):
        super().__init__()
        self.encoder = torch.nn.Linear(d, 2 * k, dtype=F64)

    def inputs(self, targets):
        return targets

    def posterior(self, targets):
        return self.encoder(targets).chunk(2, -1)


def started(prior, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vae, targets = Linear(k), torch.randn(40, 3, generator=generator, dtype=F64)
    with torch.no_grad():
        vae.encoder.weight.copy_(torch.randn(2 * k, 3, generator=generator, dtype=F64))
        vae.encoder.bias.copy_(torch.randn(2 * k, generator=generator, dtype=F64) - 1)
        prior.start(vae, targets, generator)
        for parameter in prior.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=F64)
    return prior, vae


def written_out(prior, vae):
    """The mixture, of torch's own distributions."""
    if isinstance(prior, Mixture):
        shares, mean, log_var = prior.logits, prior.means, prior.log_vars
    else:
        mean, log_var = vae.encoder(prior.pseudo_inputs).chunk(2, -1)
        shares = torch.zeros(len(mean), dtype=F64)
    normals = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=shares), torch.distributions.Independent(normals, 1)
    )


MIXTURES = [lambda: Mixture(n_components=4), lambda: Vamp(n_components=5)]


@pytest.mark.parametrize("make", MIXTURES)
def test_a_mixtures_density_integrates_to_one(make):
    prior, _ = started(make(), 1)
    z = torch.linspace(-200, 200, 400_001, dtype=F64)[:, None]
    total = prior.log_prob(z).detach().exp().sum() * (z[1, 0] - z[0, 0])
    assert float(total) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("make", MIXTURES)
def test_a_mixtures_density_and_responsibilities_written_out(make):
    prior, vae = started(make(), 3)
    z = 3 * torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(5), dtype=F64)
    expected = written_out(prior, vae)
    torch.testing.assert_close(prior.log_prob(z), expected.log_prob(z), rtol=1e-10, atol=1e-10)
    joint = expected.component_distribution.log_prob(z[..., None, :])
    joint = joint + expected.mixture_distribution.logits
    shares = prior.responsibilities(z)
    torch.testing.assert_close(shares, joint.softmax(-1), rtol=1e-9, atol=1e-12)
    precision = 1 / expected.component_distribution.variance
    torch.testing.assert_close(prior.precision(z), joint.softmax(-1) @ precision)


@pytest.mark.parametrize("make", MIXTURES)
def test_densities_far_from_the_origin_keep_their_digits(make):
    prior, vae = started(make(), 2)
    with torch.no_grad():
        vae.encoder.bias[:2] += 1e6
        if isinstance(prior, Mixture):
            prior.means += 1e6
    z = 1e6 + torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    expected = written_out(prior, vae).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mixtures_draws_follow_its_density(make, dtype):
    prior, _ = started(make(), 1)
    before = torch.random.get_rng_state()
    draws = prior.sample(4_000, torch.Generator().manual_seed(0), dtype)
    assert draws.dtype == dtype
    assert not draws.requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)
    z = torch.linspace(-200, 200, 400_001, dtype=F64)[:, None]
    with torch.no_grad():
        below = prior.log_prob(z).exp().cumsum(0).numpy() * float(z[1, 0] - z[0, 0])
    cdf = lambda x: np.interp(x, z[:, 0].numpy(), below)  # noqa: E731
    assert stats.kstest(draws[:, 0].double().numpy(), cdf).pvalue > 1e-3


def test_narrow_components_keep_their_digits_in_single_precision():
    prior, _ = started(Mixture(2), 2)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[3.0, 3.0], [-3.0, -3.0]]))
        prior.log_vars.fill_(-20.0)
        noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
        z = 3.0 + 1e-4 * noise
        expected = prior.log_prob(z.double())
        got = prior.to(torch.float32).log_prob(z)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_mixture_starts_near_the_standard_normal():
    """Of rows whose latents are about N(0, I), as those of the linear start are."""
    generator = torch.Generator().manual_seed(0)
    vae = Linear(2, 2)
    with torch.no_grad():
        vae.encoder.weight.copy_(0.9 * torch.eye(4, 2, dtype=F64))
        vae.encoder.bias.copy_(torch.tensor([0.0, 0.0, math.log(0.19), math.log(0.19)]))
        targets = torch.randn(1_000, 2, generator=generator, dtype=F64)
        prior = Mixture(n_components=200)
        prior.start(vae, targets, generator)
        z = torch.randn(2_000, 2, generator=generator, dtype=F64)
        kl = (StandardNormal(2).log_prob(z) - prior.log_prob(z)).mean()
    assert 0 < float(kl) < 0.05


def test_pseudo_inputs_start_at_rows_and_fewer_rows_repeat():
    generator = torch.Generator().manual_seed(0)
    vae, targets = Linear(2), torch.randn(4, 3, generator=generator, dtype=F64)
    prior = Vamp(n_components=6)
    prior.start(vae, targets, generator)
    found = (prior.pseudo_inputs[:, None] == targets).all(-1)  # (6, 4)
    assert found.any(1).all()
    assert found.sum(0).tolist().count(0) == 0


@pytest.mark.parametrize("value", [0, 2.0, True, "ten"])
@pytest.mark.parametrize("make", [Mixture, Vamp])
def test_numbers_of_components_that_cannot_be(make, value):
    with pytest.raises((ValueError, TypeError), match=r"n_components must be an integer") as error:
        make(n_components=value)
    assert repr(value) in str(error.value)


# ---------------------------------------------------------------- a flow of another library


class Flow(torch.nn.Module):
    """A prior made of zuko's neural spline flow."""

    def __init__(self, n_components):
        super().__init__()
        zuko = pytest.importorskip("zuko")
        self.n_components = n_components
        self.flow = zuko.flows.NSF(n_components, transforms=2, hidden_features=(16, 16))

    def log_prob(self, z):
        return self.flow().log_prob(z)

    def sample(self, n_samples, generator, dtype):
        noise = torch.randn(n_samples, self.n_components, generator=generator, dtype=dtype)
        return self.flow().transform.inv(noise)


@pytest.mark.filterwarnings("ignore:max_iter=:sklearn.exceptions.ConvergenceWarning")
def test_a_flow_is_a_prior():
    """Trained with the model, drawn from, and the density's integral is one."""
    pytest.importorskip("zuko")
    random = np.random.default_rng(0)
    angle = random.uniform(0, 2 * np.pi, 600)
    X = np.column_stack([np.cos(angle), np.sin(angle)]) @ [[1, 0, 1, 1], [0, 1, 1, -1]]
    X += 0.05 * random.normal(size=X.shape)
    options = {"hidden_layer_sizes": (32,), "noise": "homoscedastic", "max_iter": 80}
    normal = VAETransformer(2, random_state=0, **options).fit(X)
    flow = VAETransformer(2, random_state=0, prior=Flow, **options).fit(X)
    assert flow.score(X) > normal.score(X) + 0.4  # a ring is far from a normal distribution
    prior = flow.module_.prior
    axis = torch.linspace(-8, 8, 801, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = prior.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
        assert float(mass) == pytest.approx(1.0, abs=1e-2)
    drawn = flow.sample(2_000, random_state=0)
    np.testing.assert_array_equal(drawn, flow.sample(2_000, random_state=0))
    for moment in (drawn.mean(0), X.mean(0)), (np.cov(drawn.T), np.cov(X.T)):
        np.testing.assert_allclose(*moment, atol=0.1)
    given = flow.sample(20, given={0: 1.0}, random_state=0)
    assert np.abs(given[:, 1]).mean() < 0.4


# --------------------------------------------------- posteriors of several modes, where gaps are


@pytest.fixture(scope="module", params=["mixture", "vamp"])
def three_clusters(request):
    """Two of the clusters differ in the first column alone."""
    random = np.random.default_rng(0)
    centers = np.repeat([[-6.0, 0], [6, 0], [0, 8]], 100, 0)
    X = np.column_stack([centers, centers.sum(1)]) + 0.3 * random.normal(size=(300, 3))
    return VAETransformer(2, prior=request.param, random_state=0).fit(X)


def test_a_row_of_gaps_alone_has_probability_one(three_clusters):
    scores = three_clusters.score_samples(np.full((2, 3), np.nan))
    assert scores[0] == scores[1]
    assert scores[0] == pytest.approx(0.0, abs=0.1)


def test_gaps_are_filled_from_all_modes(three_clusters):
    """As rejection from the model's own draws has it."""
    vae = three_clusters
    drawn = vae.sample(40_000, random_state=1)
    near = drawn[np.abs(drawn[:, 1]) < 0.2][:, 0]
    given = vae.sample(2_000, given={1: 0.0}, random_state=0)[:, 0]
    assert vae.effective_sample_size_[0] > 100
    assert np.mean(given > 0) == pytest.approx(np.mean(near > 0), abs=0.08)
    # clusters at -6 and 6: a point too many in one of them, of 256, moves the mean
    precise = copy.copy(vae).set_params(n_score_samples=4096)
    assert precise.impute([[np.nan, 0.0, np.nan]])[0, 0] == pytest.approx(near.mean(), abs=0.3)


def test_weights_over_points_and_draws_are_of_one_density(three_clusters):
    """The mean weight is the integral of p(x, z), by quadrature, whatever the draws' share."""
    module = three_clusters.module_
    x = torch.tensor([[0.3, math.nan, -0.4]], dtype=F64)
    grid = torch.linspace(-8, 8, 801, dtype=F64)
    z = torch.cartesian_prod(grid, grid)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        log_joint = module.log_joint(z[:, None], x)[:, 0]
        expected = float(log_joint.logsumexp(0) + 2 * (grid[1] - grid[0]).log())
        points = torch.randn(4_000, 2, generator=generator, dtype=F64)
        for n_draws in (400, 8_000):
            draws = module.prior.sample(n_draws, generator, F64)
            assert float(module.log_prob(x, points, draws)) == pytest.approx(expected, abs=0.1)


def test_draws_have_the_components_shares():
    prior, _ = started(Mixture(2), 1)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.9, 0.1]).log())
        prior.means.copy_(torch.tensor([[-50.0], [50.0]]))
        draws = prior.sample(4_000, torch.Generator().manual_seed(0), F64)
    assert float((draws < 0).double().mean()) == pytest.approx(0.9, abs=0.02)


def test_components_do_not_shrink_to_points():
    prior, _ = started(Mixture(1), 1)
    with torch.no_grad():
        prior.log_vars.fill_(-100.0)  # the density's bound is -30
        peak = prior.log_prob(prior.means)
    assert float(peak) == pytest.approx(15 - 0.5 * math.log(2 * math.pi), rel=1e-9)
