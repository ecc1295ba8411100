"""The spread's fit: what it keeps, and what it leaves behind."""

import copy
import math

import numpy as np
import pytest
import torch

from skvae.likelihoods import Bernoulli, Gaussian, Mixed, split_gaps
from skvae.networks import Completion, Spread, WithLinear, mlp, silence
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
    completion = Completion(weight, torch.ones(d), torch.zeros(d))
    spread = Spread(decoder, quiet(k, d))
    return VAE(encoder, spread, likelihood, StandardNormal(k), k, completion).eval()


def sample(n, seed, wild=0.0):
    """Rows around the line, noise 0.1, 0.5 and 0.2; the last one's first cell is off by wild."""
    z = torch.randn(n, 1, generator=generator(seed))
    noise = torch.randn(n, 3, generator=generator(seed + 100)) * torch.tensor([0.1, 0.5, 0.2])
    targets = z * torch.tensor([1.0, 0.5, -0.5]) + noise
    targets[-1, 0] += wild
    return Sample(targets, torch.full((n,), 1 / n))


def constant(vae, likelihood):
    """The same model, its spread no longer a function of z."""
    parts = vae.encoder, vae.decoder.decoder, likelihood, vae.prior
    return VAE(*parts, vae.n_components, vae.completion)


def fit_of(rows, others, excess=None):
    vae = model()
    part, plain = vae.likelihood, constant(vae, vae.likelihood.constant())
    return SpreadFit(vae, plain, part, [0, 1, 2], rows, others, FLOOR, generator(), excess)


def held_out_score(fit):
    with torch.no_grad():
        return float(fit.others.share @ fit.model.log_prob(fit.others.targets, fit.points))


def nobody():
    return Sample(torch.empty(0, 3), torch.empty(0))


def test_the_true_variances_are_a_fixed_point():
    rows, sigma = sample(5000, 1), torch.tensor([0.1, 0.5, 0.2])
    fit = fit_of(rows, nobody())
    with torch.no_grad():
        fit.part.base.copy_(2 * sigma.log())
    assert fit.run(0, **OPTIONS)
    # up to sampling, and to the largest errors' counting once more
    found = (0.5 * fit.part.base.detach()).exp()
    np.testing.assert_allclose(found, sigma, rtol=0.05)


@pytest.mark.parametrize("learning_rate", [1e-2, 30.0])
def test_the_best_spread_by_the_held_out_rows_is_kept(learning_rate):
    fit = fit_of(sample(200, 1), sample(100, 2))
    start = held_out_score(fit)
    fit.run(2, **OPTIONS | {"learning_rate": learning_rate})
    assert held_out_score(fit) == pytest.approx(fit.best_score, abs=1e-4)
    assert fit.best_score > start + 0.5


def interrupt():
    raise KeyboardInterrupt


def test_gains_are_over_one_spread_per_column():
    """Rows whose noise grows with z gain by a spread that depends on it."""

    def varying(n, seed):
        plain = sample(n, seed)
        z = torch.randn(n, 1, generator=generator(seed))
        noise = 0.1 * z.exp() * torch.randn(n, 3, generator=generator(seed + 100))
        return Sample(z * torch.tensor([1.0, 0.5, -0.5]) + noise, plain.share)

    many = OPTIONS | {"n_epochs": 60}
    plain, fit = (fit_of(varying(400, 1), varying(200, 2)) for _ in range(2))
    plain.run(0, **many)
    assert plain.gains is None
    fit.run(2, **many)
    gain = float(fit.others.share @ fit.gains)
    assert gain == pytest.approx(fit.best_score - plain.best_score, abs=1e-4)
    assert gain > 0.2
    assert fit.gains.shape == (200,) and fit.gains.min() < 0 < fit.gains.max()
    again = fit_of(varying(400, 1), varying(200, 2), excess=torch.zeros(3))
    again.run(1, **OPTIONS)
    assert again.gains is None  # what it goes on from is no constant spread
    stopped = fit_of(varying(400, 1), varying(200, 2))
    stopped._fit_variances = interrupt
    assert not stopped.run(2, **OPTIONS)
    assert stopped.gains is None
    blind = fit_of(varying(400, 1), nobody())
    blind.run(1, **OPTIONS)
    assert len(blind.gains) == 0


def test_a_fit_that_made_it_worse_is_taken_back():
    loud = sample(200, 1)
    loud.targets.mul_(10.0)
    fit = fit_of(loud, sample(100, 2))
    fit.run(0, **OPTIONS)
    assert not fit.part.base.any()
    assert held_out_score(fit) == pytest.approx(fit.best_score, abs=1e-4)


def test_the_mean_stays():
    fit = fit_of(sample(200, 1), sample(100, 2))
    before = copy.deepcopy(fit.spread.decoder.state_dict())
    fit.run(1, **OPTIONS)
    for name, value in fit.spread.decoder.state_dict().items():
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
        error = targets - fit.mean(posteriors(fit.model, targets)[0])
        return split_gaps(error)[0].square().amax(0)


def test_a_wild_cell_counts_once_more():
    fit = fit_of(sample(200, 1, wild=40.0), nobody())
    fit._fit_variances()
    # the posteriors follow the wild cell a little: most of its 40 is left as an error
    assert 20.0**2 < 200 * float(fit.excess[0]) < 45.0**2
    # and its square, over 200 rows, counts twice: as an error, and once more
    assert float(fit.part.base.detach()[0].exp()) > 1.5 * float(fit.excess[0])


def test_a_wild_held_out_cell_bounds_the_variance():
    rows, others = sample(200, 1), sample(100, 2, wild=40.0)
    without, fit = fit_of(rows, nobody()), fit_of(rows, others)
    without._fit_variances()
    fit._fit_variances()
    expected = torch.maximum(without.excess, errors(without, others.targets) / 200)
    torch.testing.assert_close(fit.excess, expected)
    variance = torch.maximum(without.part.base.detach().exp(), expected)
    torch.testing.assert_close(fit.part.base.detach().exp(), variance)


def test_going_on_takes_new_rows_errors_into_account():
    rows = sample(200, 1, wild=40.0)
    fit = fit_of(rows, nobody(), excess=torch.tensor([0.0, 50.0, 0.0]))
    expected = errors(fit, rows.targets) / 200
    fit.run(0, **OPTIONS)
    torch.testing.assert_close(fit.excess, torch.tensor([expected[0], 50.0, expected[2]]))


# ---------------------------------------------------------------- gaps, and other families beside


def with_gaps(sample, rate, seed):
    """The sample without a share of its cells, at random."""
    gone = torch.rand(sample.targets.shape, generator=generator(seed)) < rate
    return Sample(sample.targets.masked_fill(gone, math.nan), sample.share)


def test_the_true_variances_are_a_fixed_point_of_what_is_observed():
    rows, sigma = with_gaps(sample(8000, 1), 0.4, 2), torch.tensor([0.1, 0.5, 0.2])
    fit = fit_of(rows, nobody())
    with torch.no_grad():
        fit.part.base.copy_(2 * sigma.log())
    fit._fit_variances()
    np.testing.assert_allclose((0.5 * fit.part.base.detach()).exp(), sigma, rtol=0.05)


def test_errors_are_noted_where_cells_are_observed_alone():
    rows = sample(200, 1, wild=40.0)
    fit = fit_of(rows, nobody())
    fit._note_errors(rows)
    torch.testing.assert_close(fit.excess, errors(fit, rows.targets) / 200)
    rows.targets[-1, 0] = math.nan
    fit = fit_of(rows, nobody())
    fit._note_errors(rows)
    torch.testing.assert_close(fit.excess, errors(fit, rows.targets) / 200)
    assert float(fit.excess[0]) < 0.1


def test_gaps_leave_a_better_spread_too():
    rows, others = with_gaps(sample(300, 1), 0.3, 3), with_gaps(sample(100, 2), 0.3, 4)
    rows.targets[0], others.targets[0] = math.nan, math.nan  # nothing is known of these
    fit = fit_of(rows, others)
    start = held_out_score(fit)
    fit.run(1, **OPTIONS)
    assert fit.best_score > start + 0.3
    assert held_out_score(fit) == pytest.approx(fit.best_score, abs=1e-4)


def test_gaps_have_no_errors():
    """In what is learned from, but for what the largest ones add, and in what is judged."""
    rows, others = with_gaps(sample(64, 1), 0.3, 3), with_gaps(sample(40, 2), 0.3, 4)
    fit = fit_of(rows, others)
    fit._judge()
    (_, (square, _, z, observed)) = next(iter(fit._training_rows(64).read()))
    assert (fit.excess > 0).all() and 0 < observed.mean() < 1
    excess = fit.excess.expand_as(square)
    assert torch.equal(square[observed == 0], excess[observed == 0])
    with torch.no_grad():  # whose order is random: as sets
        mean = fit.mean(z)
    cells = rows.targets[~rows.targets.isnan()]
    error = (square - excess).clamp_min(0.0).sqrt()
    either = torch.stack([mean + error, mean - error])[:, observed == 1]  # one of them is the cell
    nearest = (either[..., None] - cells).abs().amin((0, 2))
    assert nearest.max() < 1e-3

    state = fit.generator.get_state()
    found = fit._evaluation()()
    fit.generator.set_state(state)
    mode, factor = posteriors(fit.model, others.targets)
    with torch.no_grad():
        z = mode + (factor @ fit._noise(8, *mode.shape, 1))[..., 0]
        cells = fit.model.likelihood.log_prob(
            fit.model.decoder(z.reshape(-1, 1)), others.targets.repeat(8, 1)
        )
    expected = float(others.share @ cells.sum(-1).reshape(8, -1).mean(0))
    assert found == pytest.approx(expected, abs=1e-4)


def test_columns_of_another_family_that_say_nothing_change_nothing():
    rows, others = sample(200, 1), sample(100, 2)
    alone = fit_of(rows, others)
    vae = model()
    gaussian, decoder, encoder = vae.likelihood, vae.decoder.decoder, vae.encoder
    # a first raw output, always 0, for a column of zeros and ones that stands second in T
    weight = torch.cat([torch.zeros(1, 1), decoder.weight.detach()])
    vae.decoder.decoder = WithLinear(weight, torch.zeros(4), quiet(1, 4))
    vae.encoder = WithLinear(
        torch.nn.functional.pad(encoder.weight.detach(), (1, 0)), encoder.bias.detach(), quiet(4, 2)
    )
    columns = [0, 2, 3]
    flags = Bernoulli(np.array([0.5])).float()
    vae.likelihood = Mixed([flags, gaussian], [[1], columns])
    plain = constant(vae, Mixed([flags, gaussian.constant()], [[1], columns]))
    wide = [
        Sample(torch.cat([s.targets[:, :1], s.targets[:, :1] > 0, s.targets[:, 1:]], 1), s.share)
        for s in (rows, others)
    ]
    beside = SpreadFit(vae, plain, gaussian, columns, *wide, FLOOR, generator())
    for fit in (alone, beside):
        fit.run(1, **OPTIONS)
    torch.testing.assert_close(beside.excess, alone.excess, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        beside.part.base.detach(), alone.part.base.detach(), rtol=0.0, atol=0.02
    )
    assert beside.best_score == pytest.approx(alone.best_score - math.log(2), abs=0.02)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_gradient_of_the_spread_is_autograds(activation):
    network = mlp(2, 3, (8, 5), activation, 0.0, generator())
    spread = Spread(torch.nn.Identity(), network, reach=1.0).double()
    z = 2 * torch.randn(9, 2, generator=generator(1), dtype=torch.float64)
    assert (z.abs() > 1).any(1).sum() > 2  # beyond reach
    grad = torch.randn(9, 3, generator=generator(2), dtype=torch.float64)
    expected = spread.log_var(z)
    expected.backward(grad)
    gradients = [p.grad.clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad.fill_(math.nan)  # set, not added to
    with torch.no_grad():
        found, back = spread.log_var_vjp(z)
        back(grad, False)
    torch.testing.assert_close(found, expected)
    for p, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)
