"""The spread's fit: what it keeps, and what it leaves behind."""

import copy
import math

import numpy as np
import pytest
import torch

from skvae.likelihoods import Gaussian
from skvae.networks import Spread, WithLinear, mlp, silence
from skvae.priors import StandardNormal
from skvae.spread import Sample, SpreadFit, posteriors
from skvae.vae import VAE

FLOOR = 0.01
OPTIONS = {
    "n_epochs": 5,
    "batch_size": 64,
    "learning_rate": 1e-2,
    "max_grad_norm": math.inf,
    "tol": 1e-3,
    "n_iter_no_change": 5,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quiet(n_in, n_out):
    return silence(mlp(n_in, n_out, (8,), "tanh", 0.0, generator()))


def model(d=3, k=1):
    """x = W z + e with a spread that knows nothing yet."""
    weight = torch.tensor([[1.0], [0.5], [-0.5]])
    decoder = WithLinear(weight, torch.zeros(d), quiet(k, d))
    encoder = WithLinear(weight.T / 3, torch.tensor([0.0, -1.0]), quiet(d, 2 * k))
    likelihood = Gaussian(np.zeros(d), np.ones(d), torch.zeros(d), varies=True, floor=FLOOR)
    return VAE(encoder, Spread(decoder, quiet(k, d)), likelihood, StandardNormal(k)).eval()


def sample(n, seed, wild=0.0):
    """Rows around the line, noise 0.1, 0.5 and 0.2; the last one's first cell is off by wild."""
    z = torch.randn(n, 1, generator=generator(seed))
    noise = torch.randn(n, 3, generator=generator(seed + 100)) * torch.tensor([0.1, 0.5, 0.2])
    targets = z * torch.tensor([1.0, 0.5, -0.5]) + noise
    targets[-1, 0] += wild
    return Sample(targets, torch.full((n,), 1 / n))


def fit_of(rows, others, excess=None):
    return SpreadFit(model(), rows, others, FLOOR, generator(), excess)


def held_out_score(fit):
    with torch.no_grad():
        return float(fit.others.share @ fit.model.log_prob(fit.others.targets, fit.points))


def nobody():
    return Sample(torch.empty(0, 3), torch.empty(0))


def test_the_true_variances_are_a_fixed_point():
    rows, sigma = sample(5000, 1), torch.tensor([0.1, 0.5, 0.2])
    fit = fit_of(rows, nobody())
    with torch.no_grad():
        fit.likelihood.base.copy_(2 * sigma.log())
    assert fit.run(0, **OPTIONS)
    # up to sampling, and to the largest errors' counting once more
    found = (0.5 * fit.likelihood.base.detach()).exp()
    np.testing.assert_allclose(found, sigma, rtol=0.05)


@pytest.mark.parametrize("learning_rate", [1e-2, 30.0])
def test_the_best_spread_by_the_held_out_rows_is_kept(learning_rate):
    fit = fit_of(sample(200, 1), sample(100, 2))
    start = held_out_score(fit)
    fit.run(2, **OPTIONS | {"learning_rate": learning_rate})
    assert held_out_score(fit) == pytest.approx(fit.best_score, abs=1e-4)
    assert fit.best_score > start + 0.5


def test_a_fit_that_made_it_worse_is_taken_back():
    loud = sample(200, 1)
    loud.targets.mul_(10.0)
    fit = fit_of(loud, sample(100, 2))
    fit.run(0, **OPTIONS)
    assert not fit.likelihood.base.any()
    assert held_out_score(fit) == pytest.approx(fit.best_score, abs=1e-4)


def test_the_mean_stays():
    fit = fit_of(sample(200, 1), sample(100, 2))
    before = copy.deepcopy(fit.mean.state_dict())
    fit.run(1, **OPTIONS)
    for name, value in fit.mean.state_dict().items():
        assert torch.equal(value, before[name])


def test_nothing_of_the_training_is_left_behind():
    fit = fit_of(sample(200, 1), nobody())
    fit.run(1, **OPTIONS)
    for parameter in fit.model.parameters():
        assert parameter.grad is None
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def errors(fit, targets):
    """Largest squared error of each column at the modes."""
    with torch.no_grad():
        return (targets - fit.mean(posteriors(fit.model, targets)[0])).square().amax(0)


def test_a_wild_cell_counts_once_more():
    fit = fit_of(sample(200, 1, wild=40.0), nobody())
    fit._fit_variances()
    # the posteriors follow the wild cell a little: most of its 40 is left as an error
    assert 20.0**2 < 200 * float(fit.excess[0]) < 45.0**2
    # and its square, over 200 rows, counts twice: as an error, and once more
    assert float(fit.likelihood.base.detach()[0].exp()) > 1.5 * float(fit.excess[0])


def test_a_wild_held_out_cell_bounds_the_variance():
    rows, others = sample(200, 1), sample(100, 2, wild=40.0)
    without, fit = fit_of(rows, nobody()), fit_of(rows, others)
    without._fit_variances()
    fit._fit_variances()
    expected = torch.maximum(without.excess, errors(without, others.targets) / 200)
    torch.testing.assert_close(fit.excess, expected)
    variance = torch.maximum(without.likelihood.base.detach().exp(), expected)
    torch.testing.assert_close(fit.likelihood.base.detach().exp(), variance)


def test_going_on_takes_new_rows_errors_into_account():
    rows = sample(200, 1, wild=40.0)
    fit = fit_of(rows, nobody(), excess=torch.tensor([0.0, 50.0, 0.0]))
    expected = errors(fit, rows.targets) / 200
    fit.run(0, **OPTIONS)
    torch.testing.assert_close(fit.excess, torch.tensor([expected[0], 50.0, expected[2]]))
