"""The linear start against scikit-learn's closed forms and against numerical optimisation."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.decomposition import PCA, FactorAnalysis

from skvae import VAETransformer, linear
from skvae.linear import (
    LinearModel,
    choose_power,
    completed_covariance,
    factor_analysis,
    refit,
    rotated,
    upright,
    weighted_pca,
)

F64 = torch.float64
FLOOR = 0.01
DATA = {"iris": (load_iris, 2), "wine": (load_wine, 2), "diabetes": (load_diabetes, 5)}


def standardized(name):
    X = DATA[name][0]().data
    return (X - X.mean(0)) / X.std(0)


def covariance(X):
    return torch.from_numpy(np.cov(X.T, bias=True).reshape(X.shape[1], -1))


def synthetic(n, d, k=2, seed=0):
    random = np.random.default_rng(seed)
    loadings = random.normal(size=(k, d))
    X = random.normal(size=(n, k)) @ loadings + random.uniform(0.2, 1.0, d) * random.normal(
        size=(n, d)
    )
    return (X - X.mean(0)) / X.std(0)


def score(S, loadings, noise):
    """Mean log-density of rows with covariance S under N(0, W W' + diag(noise)), nats."""
    C = loadings @ loadings.T + noise.diag()
    trace = torch.linalg.solve(C, S).diagonal().sum()
    return -0.5 * float(len(S) * math.log(2 * math.pi) + torch.logdet(C) + trace)


def best_loadings(S, noise, k):
    """Maximum-likelihood loadings given the noise."""
    root = noise.sqrt()
    values, vectors = torch.linalg.eigh(S / root[:, None] / root)
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    return root[:, None] * vectors * (values - 1).clamp_min(0).sqrt()


def slopes(function, x, step=1e-5):
    """Central differences of a function of a flat float64 tensor."""
    out = torch.zeros_like(x)
    for i in range(len(x)):
        shift = torch.zeros_like(x)
        shift[i] = step
        out[i] = (function(x + shift) - function(x - shift)) / (2 * step)
    return out


# ---------------------------------------------------------------- factor analysis


@pytest.mark.parametrize("name", DATA)
def test_factor_analysis_reaches_scikit_learns_likelihood(name):
    X, k = standardized(name), DATA[name][1]
    reference = FactorAnalysis(k, tol=1e-4, max_iter=20_000, svd_method="lapack").fit(X).score(X)
    S = covariance(X)
    noise = factor_analysis(S, k, FLOOR)
    assert score(S, best_loadings(S, noise, k), noise) == pytest.approx(reference, abs=1e-2)


def assert_optimum(S, noise, k, floor):
    """No direction of loadings or log-noise raises the likelihood, the floor being a wall."""
    W = best_loadings(S, noise, k)
    wall = noise < floor**2 * (1 + 1e-9)
    by_loadings = slopes(lambda w: score(S, w.reshape(W.shape), noise), W.reshape(-1))
    by_noise = slopes(lambda log_noise: score(S, W, log_noise.exp()), noise.log())
    assert by_loadings.abs().max() < 1e-4
    assert by_noise[~wall].abs().max() < 1e-4
    assert (by_noise[wall] < 1e-4).all()
    return wall


@pytest.mark.parametrize(("d", "k"), [(6, 1), (8, 2), (12, 3)])
def test_factor_analysis_is_stationary(d, k):
    S = covariance(synthetic(400, d, k))
    assert_optimum(S, factor_analysis(S, k, FLOOR), k, FLOOR)


def heywood():
    """One factor would need a loading above 1: 0.9 * 0.9 / 0.6 = 1.35."""
    return torch.tensor([[1.0, 0.9, 0.9], [0.9, 1.0, 0.6], [0.9, 0.6, 1.0]], dtype=F64)


@pytest.mark.parametrize("floor", [0.01, 0.1, 0.3])
def test_the_floor_is_a_constraint_and_not_a_clip(floor):
    S = heywood()
    noise = factor_analysis(S, 1, floor)
    wall = assert_optimum(S, noise, 1, floor)
    assert wall.tolist() == [True, False, False]
    clipped = factor_analysis(S, 1, 0.01).clamp_min(floor**2)
    if floor > 0.01:
        got, other = (score(S, best_loadings(S, psi, 1), psi) for psi in (noise, clipped))
        assert got > other


def test_factor_analysis_finds_the_model_that_made_the_covariance():
    W = torch.tensor(
        [[0.9, 0.0], [0.8, 0.3], [0.7, -0.2], [0.1, 0.8], [0.0, 0.7], [0.5, 0.5]], dtype=F64
    )
    noise = 1 - W.square().sum(1)
    S = W @ W.T + noise.diag()
    torch.testing.assert_close(factor_analysis(S, 2, FLOOR), noise, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- weighted PCA


def scikit_learns_pca(X, k):
    """PCA's score with the covariance of divisor n, as maximum likelihood has it."""
    pca = PCA(k).fit(X)
    pca.explained_variance_ *= (len(X) - 1) / len(X)
    pca.noise_variance_ *= (len(X) - 1) / len(X)
    return pca.score(X)


@pytest.mark.parametrize("name", DATA)
def test_equal_precisions_are_probabilistic_pca(name):
    X, k = standardized(name), DATA[name][1]
    S = covariance(X)
    model = weighted_pca(S, k, torch.full((len(S),), 7.0, dtype=F64), FLOOR)
    assert score(S, model.loadings, model.noise) == pytest.approx(scikit_learns_pca(X, k), abs=1e-9)


def test_the_precisions_of_factor_analysis_are_factor_analysis():
    S = covariance(synthetic(300, 8))
    noise = factor_analysis(S, 2, FLOOR)
    model = weighted_pca(S, 2, 5 / noise, FLOOR)  # only ratios count
    torch.testing.assert_close(model.noise, noise, rtol=1e-4, atol=0.0)
    expected = score(S, best_loadings(S, noise, 2), noise)
    assert score(S, model.loadings, model.noise) == pytest.approx(expected, abs=1e-7)


def test_weighted_pca_is_the_best_of_its_kind():
    """Given noise proportional to 1 / precision, no loadings and no common factor are better."""
    S = covariance(synthetic(300, 6))
    precision = torch.tensor([1.0, 4.0, 0.5, 2.0, 9.0, 1.0], dtype=F64)
    model = weighted_pca(S, 2, precision, FLOOR)
    torch.testing.assert_close(
        model.noise * precision, (model.noise * precision)[:1].expand(6), rtol=1e-12, atol=0.0
    )
    by_loadings = slopes(
        lambda w: score(S, w.reshape(6, 2), model.noise), model.loadings.reshape(-1)
    )
    by_factor = slopes(
        lambda c: score(S, model.loadings, model.noise * c.exp()), torch.zeros(1, dtype=F64)
    )
    assert by_loadings.abs().max() < 1e-7
    assert by_factor.abs().max() < 1e-7


# ---------------------------------------------------------------- the model's own quantities


def test_rotated_is_the_same_model_with_independent_components():
    random = torch.Generator().manual_seed(0)
    W = torch.randn(7, 3, generator=random, dtype=F64)
    noise = 0.1 + torch.rand(7, generator=random, dtype=F64)
    model = rotated(W, noise)
    torch.testing.assert_close(model.loadings @ model.loadings.T, W @ W.T)
    inner = (model.loadings / noise[:, None]).T @ model.loadings
    torch.testing.assert_close(inner, inner.diagonal().diag(), rtol=0.0, atol=1e-10)
    torch.testing.assert_close(inner.diagonal(), model.eigenvalues)
    assert (model.eigenvalues.diff() < 0).all()
    largest = model.loadings.gather(0, model.loadings.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(rotated(-W, noise).loadings, model.loadings)


@pytest.mark.parametrize("rounding", [1 - 1e-15, 1.0, 1 + 1e-15])
def test_signs_are_not_for_rounding_to_choose(rounding):
    vectors = torch.tensor([[0.5, -0.1, 0.0], [-2.0, 0.3, 0.0], [2.0, -0.4, 0.0]], dtype=F64)
    vectors[2] *= rounding
    expected = vectors * torch.tensor([-1.0, -1.0, 1.0])
    torch.testing.assert_close(upright(vectors), expected)
    torch.testing.assert_close(upright(-vectors), expected)


def test_encoder_and_log_var_are_the_posterior():
    random = torch.Generator().manual_seed(0)
    noise = 0.1 + torch.rand(7, generator=random, dtype=F64)
    model = rotated(torch.randn(7, 3, generator=random, dtype=F64), noise)
    WtP = (model.loadings / noise[:, None]).T
    posterior = torch.linalg.inv(torch.eye(3, dtype=F64) + WtP @ model.loadings)
    torch.testing.assert_close(model.encoder, posterior @ WtP)
    torch.testing.assert_close(model.log_var.exp().diag(), posterior)


def test_reconstruction_error_is_the_mean_over_rows_and_columns():
    X = synthetic(50, 5)
    model = weighted_pca(covariance(X), 2, torch.ones(5, dtype=F64), FLOOR)
    rows = torch.from_numpy(X)
    error = rows - rows @ model.encoder.T @ model.loadings.T
    assert model.reconstruction_error(covariance(X)) == pytest.approx(float(error.square().mean()))


# ---------------------------------------------------------------- refit


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("power", [0.0, 0.4, 1.0])
def test_refit_never_lowers_the_likelihood(name, power):
    S, k = covariance(standardized(name)), DATA[name][1]
    psi = factor_analysis(S, k, FLOOR)
    model = weighted_pca(S, k, psi**-power, FLOOR)
    scores = [score(S, model.loadings, model.noise)]
    for n_iter in (1, 2, 5, 200):
        better = refit(S, model, FLOOR, n_iter=n_iter)
        assert (better.noise >= FLOOR**2).all()
        scores.append(score(S, better.loadings, better.noise))
    assert (np.diff(scores) > -1e-9).all()
    fixed = refit(S, model, FLOOR, learn=False)
    assert score(S, fixed.loadings, fixed.noise) > scores[0] - 1e-9


def test_refit_without_learning_is_the_best_scale_within_the_span():
    S = covariance(synthetic(300, 6, seed=3))
    random = torch.Generator().manual_seed(0)
    W = torch.randn(6, 2, generator=random, dtype=F64)
    noise = torch.full((6,), 0.3, dtype=F64)
    model = refit(S, rotated(W, noise), FLOOR, learn=False)
    assert torch.equal(model.noise, noise)
    # within the span of W: least squares leaves nothing
    residual = model.loadings - W @ torch.linalg.lstsq(W, model.loadings).solution
    assert residual.abs().max() < 1e-9

    def loss(a):
        return -score(S, W @ torch.from_numpy(a.reshape(2, 2)), noise)

    searches = [
        minimize(loss, start, tol=1e-12) for start in np.random.default_rng(0).normal(size=(4, 4))
    ]
    best = -min(search.fun for search in searches)
    assert score(S, model.loadings, noise) == pytest.approx(best, abs=1e-7)


def test_refit_is_stationary_within_the_span():
    S = covariance(synthetic(300, 6))
    start = weighted_pca(S, 2, torch.ones(6, dtype=F64), FLOOR)
    model = refit(S, start, FLOOR, n_iter=2_000)
    by_noise = slopes(lambda x: score(S, model.loadings, x.exp()), model.noise.log())
    eye = torch.eye(2, dtype=F64).reshape(-1)
    by_mixing = slopes(lambda a: score(S, model.loadings @ a.reshape(2, 2), model.noise), eye)
    assert by_noise.abs().max() < 1e-4
    assert by_mixing.abs().max() < 1e-4


def test_refit_leaves_silent_components_silent():
    S = covariance(synthetic(300, 6))
    start = weighted_pca(S, 2, torch.ones(6, dtype=F64), FLOOR)
    padded = LinearModel(torch.nn.functional.pad(start.loadings, (0, 2)), start.noise)
    wide, narrow = refit(S, padded, FLOOR), refit(S, start, FLOOR)
    torch.testing.assert_close(wide.noise, narrow.noise)
    torch.testing.assert_close(wide.loadings[:, :2], narrow.loadings)
    torch.testing.assert_close(
        wide.loadings[:, 2:], torch.zeros(6, 2, dtype=F64), rtol=0, atol=1e-7
    )


# ---------------------------------------------------------------- the power


@pytest.mark.parametrize("name", DATA)
def test_choose_power_goes_as_far_as_the_tolerance(name):
    S, k = covariance(standardized(name)), DATA[name][1]
    psi = factor_analysis(S, k, FLOOR)

    def cost(power):
        error = weighted_pca(S, k, psi**-power, FLOOR).reconstruction_error(S)
        return error / weighted_pca(S, k, torch.ones_like(psi), FLOOR).reconstruction_error(S) - 1

    tolerances = (0.0, 0.01, 0.05, 0.2, 50.0)
    powers = [choose_power(S, k, psi, FLOOR, tolerance) for tolerance in tolerances]
    assert powers == sorted(powers)
    assert powers[-1] == 1.0
    assert powers[0] < powers[-1]
    for tolerance, power in zip(tolerances, powers, strict=True):
        assert cost(power) <= tolerance + 1e-9
        if power < 1:
            assert cost(min(1.0, power + 1 / 32)) > tolerance


# ---------------------------------------------------------------- awkward columns


def few_rows():
    return synthetic(5, 12)


def constant_column():
    X = synthetic(40, 5)
    X[:, 2] = 0.0
    return X


def duplicated_columns():
    X = synthetic(40, 5)
    return X[:, [0, 1, 2, 3, 4, 0, 0]]


def collinear_columns():
    X = synthetic(40, 4)
    X = np.column_stack([X, X[:, 0] + X[:, 1], X.sum(1)])
    return X / X.std(0)


def one_column():
    return synthetic(40, 1)


def an_outlier():
    X = synthetic(40, 4)
    X[3, 1] = 1e6
    return (X - X.mean(0)) / X.std(0)


AWKWARD = (few_rows, constant_column, duplicated_columns, collinear_columns, one_column, an_outlier)


@pytest.mark.parametrize("make", AWKWARD)
@pytest.mark.parametrize("k", [1, 4, 14])
@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_awkward_columns_give_a_finite_model_above_the_floor(make, k, power):
    S = covariance(make())
    noise = factor_analysis(S, k, FLOOR)
    assert (noise >= FLOOR**2 * (1 - 1e-12)).all()
    model = weighted_pca(S, k, noise**-power, FLOOR)
    again = refit(S, model, FLOOR)
    fixed = refit(S, model, FLOOR, learn=False)
    chosen = choose_power(S, k, noise, FLOOR, 0.02)
    assert 0 <= chosen <= 1
    free, taken = (
        weighted_pca(S, k, noise**-p, FLOOR).reconstruction_error(S) for p in (0.0, chosen)
    )
    assert taken <= 1.02 * free + 1e-9
    for m in (model, again, fixed):
        assert m.loadings.shape == (len(S), k)
        assert (m.noise >= FLOOR**2 * (1 - 1e-12)).all()
        for part in (m.loadings, m.noise, m.encoder, m.log_var):
            assert part.isfinite().all()
        # components are independent given x, so that the encoder's diagonal is exact
        inner = (m.loadings / m.noise[:, None]).T @ m.loadings
        off = inner - inner.diagonal().diag()
        assert off.abs().max() <= 1e-9 * (1 + m.eigenvalues.max())
    assert score(S, again.loadings, again.noise) >= score(S, model.loadings, model.noise) - 1e-6


def test_covariance_is_numpys_whatever_the_chunks():
    random = np.random.default_rng(0)
    X, weights = random.normal(size=(50, 4)) + 3.0, random.uniform(size=50)
    share = torch.from_numpy(weights / weights.sum())
    expected = np.cov(X.T, aweights=weights, ddof=0)
    for chunk in (7, 50):
        moments = linear.Moments(4)
        for part in torch.arange(50).split(chunk):
            moments.add(torch.from_numpy(X)[part], share[part])
        center, S = moments.result()
        np.testing.assert_allclose(center, np.average(X, axis=0, weights=weights), rtol=1e-12)
        np.testing.assert_allclose(S, expected, rtol=1e-12)


# ---------------------------------------------------------------- rows with gaps


def shares(n):
    return torch.full((n,), 1 / n, dtype=F64)


def with_gaps(X, rate, seed=0):
    gaps = np.random.default_rng(seed).uniform(size=X.shape) < rate
    return torch.from_numpy(np.where(gaps, np.nan, X))


def penalised(X, center, W, noise):
    """Log-density of the observed cells, and the prior N(0, I / (2 k)) of rows of W."""
    seen = (~X.isnan()).to(F64)
    # a missing cell becomes an independent N(0, 1) that is exactly 0
    C = seen[:, :, None] * (W @ W.T + noise.diag()) * seen[:, None] + (1 - seen).diag_embed()
    error = torch.where(seen > 0, X - center, 0.0)
    normal = torch.distributions.MultivariateNormal(torch.zeros_like(error), C)
    cells = normal.log_prob(error) + 0.5 * math.log(2 * math.pi) * (1 - seen).sum(1)
    return cells.sum() - W.shape[1] * W.square().sum()


def complete(X, center, W, noise):
    """Mean and covariance of the rows, in expectation given what is observed."""
    C = W @ W.T + noise.diag()
    first, second = torch.zeros(len(C), dtype=F64), torch.zeros_like(C)
    for row in X:
        seen = ~row.isnan()
        gain = C[:, seen] @ torch.linalg.inv(C[seen][:, seen])
        fill = center + gain @ (row - center)[seen]
        first += fill / len(X)
        second += (torch.outer(fill, fill) + C - gain @ C[seen]) / len(X)
    return first, second - torch.outer(first, first)


def maximise(function, *start):
    """Tensors that maximise the function of them, by L-BFGS from the start."""
    shapes = [part.shape for part in start]
    sizes = [part.numel() for part in start]

    def loss(x):
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        parts = [p.reshape(s) for p, s in zip(leaf.split(sizes), shapes, strict=True)]
        value = -function(*parts)
        return value.item(), torch.autograd.grad(value, leaf)[0].numpy()

    x = torch.cat([part.reshape(-1) for part in start]).numpy()
    options = {"maxiter": 5_000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-7}
    x = torch.from_numpy(minimize(loss, x, jac=True, method="L-BFGS-B", options=options).x)
    return [p.reshape(s) for p, s in zip(x.split(sizes), shapes, strict=True)]


def model_of(S, n, k):
    """The penalised factor analysis of n rows with covariance S: loadings and noise."""

    def objective(W, log_noise):
        C = W @ W.T + log_noise.exp().diag()
        trace = torch.linalg.solve(C, S).diagonal().sum()
        return -0.5 * n * (torch.logdet(C) + trace) - k * W.square().sum()

    noise = factor_analysis(S, k, FLOOR)
    W, log_noise = maximise(objective, best_loadings(S, noise, k), noise.log())
    return W, log_noise.exp()


def test_complete_rows_have_their_own_covariance():
    X, random = torch.from_numpy(synthetic(80, 5)) + 2.0, np.random.default_rng(0)
    share = torch.from_numpy(random.dirichlet(np.ones(80)))
    for k in (1, 3, 9):
        found = completed_covariance(X, share, k, FLOOR)
        moments = linear.Moments(X.shape[1])
        moments.add(X, share)
        for got, expected in zip(found, moments.result(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_completed_covariance_is_a_fixed_point():
    """The model of the covariance completes the rows to that very covariance."""
    X = with_gaps(synthetic(150, 6, seed=1), 0.3)
    X[0] = math.nan
    center, S = completed_covariance(X, shares(150), 2, FLOOR, n_iter=5_000)
    W, noise = model_of(S, 150, 2)
    again = complete(X, center, W, noise)
    torch.testing.assert_close(again[0], center, rtol=0.0, atol=2e-3)
    torch.testing.assert_close(again[1], S, rtol=0.0, atol=5e-3)


def test_completion_climbs_to_the_best_model_of_the_observed_cells():
    X = with_gaps(synthetic(150, 6, seed=1), 0.3)
    reached = []
    for n_iter in (1, 2, 4, 8, 16, 200, 5_000):
        center, S = completed_covariance(X, shares(150), 2, FLOOR, n_iter)
        W, noise = model_of(S, 150, 2)
        reached.append(float(penalised(X, center, W, noise)))
    assert (np.diff(reached) > -1e-3).all()
    assert reached[-1] > reached[0] + 0.5
    best = maximise(
        lambda c, W, log_noise: penalised(X, c, W, log_noise.exp()), center, W, noise.log()
    )
    best[2] = best[2].exp()
    assert reached[-1] == pytest.approx(float(penalised(X, *best)), abs=1e-2)


def test_completion_finds_the_covariance_behind_the_gaps():
    n, d, k = 600, 12, 3
    random = np.random.default_rng(0)
    W = random.normal(size=(d, k))
    scale = np.sqrt((W**2).sum(1) + 0.3)
    truth = (W @ W.T + 0.3 * np.eye(d)) / np.outer(scale, scale)
    X = random.multivariate_normal(np.zeros(d), truth, size=n)
    holey = with_gaps(X, 0.4)
    _, S = completed_covariance(holey, shares(n), k, FLOOR)
    column_means = np.nanmean(holey.numpy(), axis=0)
    imputed = np.where(holey.isnan(), column_means, holey)
    error, by_means, whole = (
        np.linalg.norm(found - truth) for found in (S.numpy(), np.cov(imputed.T), np.cov(X.T))
    )
    assert error < 0.25 * by_means
    assert error < 1.5 * whole  # nearly as if nothing were missing


def test_a_column_without_any_cell_is_harmless():
    X = with_gaps(synthetic(100, 5), 0.3)
    empty = torch.full((100, 1), math.nan, dtype=F64)
    center, S = completed_covariance(X, shares(100), 2, FLOOR)
    wide = completed_covariance(torch.cat([X[:, :2], empty, X[:, 2:]], 1), shares(100), 2, FLOOR)
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(wide[0][kept], center, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(wide[1][kept][:, kept], S, rtol=1e-6, atol=1e-6)
    assert float(wide[0][2]) == 0.0
    torch.testing.assert_close(wide[1][2], torch.eye(6, dtype=F64)[2])


@pytest.mark.parametrize("k", [1, 4, 14])
def test_awkward_gaps_give_a_finite_covariance(k):
    awkward = [with_gaps(make(), 0.4) for make in AWKWARD]
    nothing = torch.full((4, 3), math.nan, dtype=F64)
    single = nothing.clone()
    single[0] = 1.0
    for X in (*awkward, nothing, single):
        center, S = completed_covariance(X, shares(len(X)), k, FLOOR)
        assert center.isfinite().all()
        assert S.isfinite().all()
        assert torch.equal(S, S.T)
        assert torch.linalg.eigvalsh(S).min() > -1e-9 * (1 + S.abs().max())


def test_weights_are_repetitions():
    X = with_gaps(synthetic(60, 5), 0.3)
    times = np.random.default_rng(0).multinomial(60, shares(60).numpy())
    weighted = completed_covariance(X, torch.from_numpy(times / 60), 2, FLOOR)
    repeated = completed_covariance(X[np.repeat(np.arange(60), times)], shares(60), 2, FLOOR)
    for one, other in zip(weighted, repeated, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------- wide tables


def wide_of(X, share=None, extra=None, size=37):
    """X's covariance without a matrix, from parts."""
    X = torch.from_numpy(X)
    share = torch.full((len(X),), 1 / len(X), dtype=F64) if share is None else share
    return linear.Wide(lambda: X.split(size), share, extra)


def test_wide_covariances_are_numpys():
    X = synthetic(300, 40) + np.random.default_rng(1).normal(size=40)
    share = torch.from_numpy(np.random.default_rng(2).dirichlet(np.ones(300)))
    extra = torch.linspace(0, 1, 40, dtype=F64)
    S = wide_of(X, share, extra)
    expected = np.cov(X.T, aweights=share.numpy(), ddof=0) + np.diag(extra)
    np.testing.assert_allclose(S.mean, share.numpy() @ X, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(S.diagonal(), np.diag(expected), rtol=1e-10)
    assert len(S) == 40
    other = torch.from_numpy(np.random.default_rng(3).normal(size=(40, 3)))
    np.testing.assert_allclose(S @ other, expected @ other.numpy(), rtol=1e-4, atol=1e-5)


def test_leading_directions_of_wide_covariances():
    X = synthetic(400, 60, k=4)
    S = wide_of(X)
    scale = torch.linspace(0.5, 2.0, 60, dtype=F64)
    for once_more in (scale, scale.flip(0)):  # the second time from the first's directions
        found = S.leading(once_more, 4)
        expected = linear._leading(covariance(X), once_more, 4)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=1e-6)
        overlap = (found[1].T @ expected[1]).diagonal().abs()
        torch.testing.assert_close(overlap, torch.ones(4, dtype=F64), rtol=1e-4, atol=0.0)


def test_the_start_of_wide_tables_is_that_of_others():
    X = synthetic(500, 80, k=3)
    S, wide = covariance(X), wide_of(X)
    noise, found = (factor_analysis(each, 3, FLOOR) for each in (S, wide))
    np.testing.assert_allclose(found, noise, rtol=0.02)
    models = [weighted_pca(each, 3, noise**-0.2, FLOOR) for each in (S, wide)]
    np.testing.assert_allclose(models[1].loadings, models[0].loadings, atol=1e-4)
    refitted = [refit(each, models[0], FLOOR) for each in (S, wide)]
    np.testing.assert_allclose(refitted[1].noise, refitted[0].noise, rtol=1e-3)
    assert choose_power(wide, 3, noise, FLOOR, 0.02) == pytest.approx(
        choose_power(S, 3, noise, FLOOR, 0.02), abs=0.04
    )


def test_gaps_of_wide_tables(monkeypatch):
    X = synthetic(600, 60, k=2)
    holey = torch.from_numpy(X.copy())
    holey[torch.from_numpy(np.random.default_rng(5).random(X.shape) < 0.3)] = math.nan
    share = shares(600)
    center, S = completed_covariance(holey, share, 2, FLOOR)
    monkeypatch.setattr(linear, "WIDE", 50)
    wide_center, wide = completed_covariance(holey, share, 2, FLOOR)
    assert isinstance(wide, linear.Wide)
    torch.testing.assert_close(wide_center, center, atol=0.05, rtol=0.0)
    # one draw of z for each row: about right in each cell, and on average
    matrix = wide @ torch.eye(60, dtype=F64)
    assert (matrix - S).abs().max() < 0.15
    assert abs(float((matrix * S).sum() / S.square().sum()) - 1) < 0.02


def test_a_wide_model_is_an_ordinary_one(monkeypatch):
    X = synthetic(300, 30, k=2).astype("float32")
    params = {"hidden_layer_sizes": (8,), "max_iter": 0, "random_state": 0}
    expected = VAETransformer(2, **params).fit(X)
    monkeypatch.setattr(linear, "WIDE", 10)
    found = VAETransformer(2, **params).fit(X)
    np.testing.assert_allclose(found.transform(X), expected.transform(X), atol=1e-3)
    assert found.score(X) == pytest.approx(expected.score(X), abs=0.02)
