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


def model(d=3, k=1):
    """x = W z + e with a spread that knows nothing yet."""
    weight = torch.tensor([[1.0], [0.5], [-0.5]])
    network = silence(mlp(k, d, (8,), "tanh", 0.0, generator()))
    decoder = WithLinear(weight, torch.zeros(d), torch.nn.Linear(k, d))
    torch.nn.init.zeros_(decoder.network.weight)
    torch.nn.init.zeros_(decoder.network.bias)
    encoder = WithLinear(weight.T / 3, torch.tensor([0.0, -1.0]), torch.nn.Linear(d, 2 * k))
    likelihood = Gaussian(np.zeros(d), np.ones(d), torch.zeros(d), varies=True, floor=FLOOR)
    return VAE(encoder, Spread(decoder, network), likelihood, StandardNormal(k)).eval()


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


@pytest.mark.parametrize("where", ["rows", "others", "going on"])
def test_a_wild_cell_counts_once_more(where):
    n, wild = 200, 40.0
    rows = sample(n, 1, wild if where != "others" else 0.0)
    others = sample(100, 2, wild) if where == "others" else nobody()
    fit = fit_of(rows, others, torch.zeros(3) if where == "going on" else None)
    if where == "going on":
        fit.run(0, **OPTIONS)
    else:
        fit._fit_variances()
        # no smaller than what the wild cell alone would make it
        assert float(fit.likelihood.base.detach()[0].exp()) >= float(fit.excess[0]) * (1 - 1e-5)
    # the posterior follows the wild cell a little: its error is what is left
    targets = (others if where == "others" else rows).targets
    with torch.no_grad():
        error = (targets - fit.mean(posteriors(fit.model, targets)[0])).square().amax(0) / n
    assert float(fit.excess[0]) >= 0.9 * float(error[0]) > 0.1
