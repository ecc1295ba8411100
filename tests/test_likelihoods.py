"""One suite over all families, against quadrature and autograd; then what each has of its own."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from skvae.likelihoods import Bernoulli, Gaussian, Mixed, bound

F64 = torch.float64


def gaussian(learn="each", varies=False, columns=(0, 1, 2)):
    columns = list(columns)
    shift, scale = np.array([1.0, -20.0, 3e3]), np.array([0.5, 40.0, 1e-3])
    log_var = torch.tensor([-1.0, 0.2, 0.9], dtype=F64)
    likelihood = Gaussian(shift[columns], scale[columns], log_var[columns], learn, varies)
    with torch.no_grad():
        likelihood.common.fill_(0.3)
    return likelihood


def bernoulli():
    return Bernoulli(np.array([0.2, 0.5, 0.97]))


def mixed():
    parts = [gaussian("each", True, (0, 1)), bernoulli(), gaussian("common", False, (2,))]
    return Mixed(parts, [[4, 1], [0, 5, 2], [3]])


FAMILIES = {
    "gaussian-each": gaussian,
    "gaussian-common": lambda: gaussian("common"),
    "gaussian-none": lambda: gaussian("none"),
    "gaussian-each-varies": lambda: gaussian("each", True),
    "gaussian-common-varies": lambda: gaussian("common", True),
    "bernoulli": bernoulli,
    "mixed": mixed,
}


@pytest.fixture(params=FAMILIES)
def likelihood(request):
    return FAMILIES[request.param]()


def raw_for(likelihood, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, likelihood.n_params, generator=generator, dtype=F64)


def targets_for(likelihood, *shape, seed=1):
    """Targets inside the support of each column."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(*shape, likelihood.n_columns, generator=generator, dtype=F64)
    binary = torch.tensor(discrete(likelihood))
    return torch.where(binary, (targets > 0).double(), targets)


def discrete(likelihood):
    """Which columns of T are binary."""
    if isinstance(likelihood, Mixed):
        out = np.empty(likelihood.n_columns, dtype=bool)
        for part, group in zip(likelihood.parts, likelihood.columns, strict=True):
            out[group] = isinstance(part, Bernoulli)
        return out.tolist()
    return [isinstance(likelihood, Bernoulli)] * likelihood.n_columns


def quadrature(likelihood, column):
    """Targets (m, n_columns) whose ``column`` runs through the nodes, the nodes, their weights."""
    if discrete(likelihood)[column]:
        nodes, weight = torch.tensor([0.0, 1.0], dtype=F64), 1.0
    else:
        nodes = torch.linspace(-60, 60, 24_001, dtype=F64)
        weight = float(nodes[1] - nodes[0])
    targets = torch.zeros(len(nodes), likelihood.n_columns, dtype=F64)
    targets[:, column] = nodes
    return targets, nodes, weight


# ---------------------------------------------------------------- the shared suite


def test_every_column_has_total_probability_one_and_the_stated_mean(likelihood):
    raw = raw_for(likelihood)
    for j in range(likelihood.n_columns):
        targets, nodes, weight = quadrature(likelihood, j)
        p = likelihood.log_prob(raw, targets)[:, j].detach().exp() * weight
        assert float(p.sum()) == pytest.approx(1.0, abs=1e-10)
        assert float(p @ nodes) == pytest.approx(float(likelihood.mean(raw)[j]), abs=1e-10)


def test_fisher_is_the_expected_outer_product_of_the_score(likelihood):
    raw = raw_for(likelihood)
    information = torch.zeros(likelihood.n_params, likelihood.n_params, dtype=F64)
    for j in range(likelihood.n_columns):
        targets, nodes, weight = quadrature(likelihood, j)
        leaf = raw.expand(len(nodes), -1).clone().requires_grad_()
        cells = likelihood.log_prob(leaf, targets)[:, j]
        (score,) = torch.autograd.grad(cells.sum(), leaf)
        p = cells.detach().exp() * weight
        information += (p[:, None] * score).T @ score
    torch.testing.assert_close(information, likelihood.fisher(raw).diag(), rtol=1e-9, atol=1e-10)


def test_fisher_is_the_negative_expected_hessian(likelihood):
    raw = raw_for(likelihood)
    curvature = torch.zeros(likelihood.n_params, dtype=F64)
    for j in range(likelihood.n_columns):
        targets, nodes, weight = quadrature(likelihood, j)
        leaf = raw.expand(len(nodes), -1).clone().requires_grad_()
        cells = likelihood.log_prob(leaf, targets)[:, j]
        (score,) = torch.autograd.grad(cells.sum(), leaf, create_graph=True)
        p = cells.detach().exp() * weight
        for i in range(likelihood.n_params):
            if score[:, i].requires_grad:
                (row,) = torch.autograd.grad(score[:, i].sum(), leaf, retain_graph=True)
                curvature[i] -= p @ row[:, i]
    torch.testing.assert_close(curvature, likelihood.fisher(raw), rtol=1e-9, atol=1e-10)


def test_gradients_of_the_density(likelihood):
    raw = raw_for(likelihood, 4).requires_grad_()
    targets = targets_for(likelihood, 4)
    learned = [p for p in likelihood.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda r, *_: likelihood.log_prob(r, targets), (raw, *learned))
    assert torch.autograd.gradcheck(lambda r: likelihood.mean(r), (raw,))


@pytest.mark.parametrize("spreads", ["inside", "pushed in", "pushed out"])
def test_nll_vjp_is_autograds(likelihood, spreads):
    if not hasattr(likelihood, "nll_vjp"):
        assert isinstance(likelihood, Mixed)
        return
    raw, targets = raw_for(likelihood, 6), targets_for(likelihood, 6)
    if spreads != "inside" and isinstance(likelihood, Gaussian):
        with torch.no_grad():  # below the floor, above the highest, and inside
            likelihood.base.copy_(torch.tensor([-60.0, 60.0, 0.0]))
        if spreads == "pushed out":
            targets[:, 0], targets[:, 1] = raw[:, 0], raw[:, 1] + 1e6
    weights = torch.linspace(0.5, 2.0, 6, dtype=F64)
    leaf = raw.clone().requires_grad_()
    nll = -likelihood.log_prob(leaf, targets).sum(-1)
    learned = [p for p in likelihood.parameters() if p.requires_grad]
    to_raw, *to_parameters = torch.autograd.grad(nll, [leaf, *learned], weights)
    for _ in range(2):
        with torch.no_grad():
            got, back = likelihood.nll_vjp(raw, targets)
            torch.testing.assert_close(got, nll, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(back(weights), to_raw, rtol=1e-12, atol=1e-12)
    if spreads == "pushed out" and isinstance(likelihood, Gaussian) and learned:
        outer = to_parameters[0][:2] if learned[0].dim() else torch.zeros(2)
        assert not outer.any()
    for parameter, expected in zip(learned, to_parameters, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * expected, rtol=1e-12, atol=1e-12)


def test_draws_follow_the_density(likelihood):
    n = 20_000
    raw = raw_for(likelihood)
    draws = likelihood.sample(raw.expand(n, -1), torch.Generator().manual_seed(0)).detach()
    assert draws.shape == (n, likelihood.n_columns)
    for j, binary in enumerate(discrete(likelihood)):
        targets, nodes, weight = quadrature(likelihood, j)
        p = likelihood.log_prob(raw, targets)[:, j].detach().exp() * weight
        mean = float(p @ nodes)
        variance = float(p @ (nodes - mean) ** 2)
        fourth = float(p @ (nodes - mean) ** 4)
        squares = (draws[:, j] - mean).square()
        assert abs(float(draws[:, j].mean()) - mean) < 4 * math.sqrt(variance / n)
        assert abs(float(squares.mean()) - variance) < 4 * math.sqrt((fourth - variance**2) / n)
        if binary:
            assert set(draws[:, j].tolist()) == {0.0, 1.0}
        else:
            cumulative = np.cumsum(p.numpy()) - 0.5 * p.numpy()
            distribution = stats.kstest(
                draws[:, j].numpy(), lambda x, n=nodes, c=cumulative: np.interp(x, n.numpy(), c)
            )
            assert distribution.pvalue > 1e-3


def test_draws_depend_on_the_generator_alone(likelihood):
    raw = raw_for(likelihood, 5)
    before = torch.random.get_rng_state()
    first, second, other = (
        likelihood.sample(raw, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_leading_axes_broadcast(likelihood):
    raw, targets = raw_for(likelihood, 3, 5), targets_for(likelihood, 5)
    together = likelihood.log_prob(raw, targets)
    assert together.shape == (3, 5, likelihood.n_columns)
    for m in range(3):
        for i in range(5):
            alone = likelihood.log_prob(raw[m, i], targets[i])
            torch.testing.assert_close(together[m, i], alone, rtol=1e-14, atol=1e-14)
    assert likelihood.fisher(raw).shape == raw.shape
    assert likelihood.mean(raw).shape == together.shape


def test_restore_undoes_standardize_and_nan_stays(likelihood):
    T = likelihood.restore(targets_for(likelihood, 6).numpy())
    T[2, 1] = np.nan
    np.testing.assert_allclose(likelihood.restore(likelihood.standardize(T)), T, rtol=1e-12)
    assert np.isnan(likelihood.standardize(T)).sum() == 1


def test_log_scale_is_the_jacobian_of_standardize(likelihood):
    T = likelihood.restore(np.full((1, likelihood.n_columns), 0.5))
    # a step that is an exact power of two, and not small against T
    step = 0.5
    slope = (likelihood.standardize(T + step) - likelihood.standardize(T))[0] / step
    np.testing.assert_allclose(np.log(slope), -likelihood.log_scale, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("size", [1e4, 1e15])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_extreme_raw_and_targets_stay_finite(likelihood, dtype, size, sign):
    likelihood = likelihood.to(dtype)
    raw = torch.full((2, likelihood.n_params), sign * size, dtype=dtype, requires_grad=True)
    targets = torch.zeros(2, likelihood.n_columns, dtype=dtype)
    targets[1] = torch.where(torch.tensor(discrete(likelihood)), 1.0, -sign * size)
    cells = likelihood.log_prob(raw, targets)
    cells.sum().backward()
    assert cells.isfinite().all()
    assert raw.grad.isfinite().all()
    assert likelihood.mean(raw).isfinite().all()
    assert likelihood.fisher(raw).isfinite().all()
    assert likelihood.sample(raw.detach(), torch.Generator().manual_seed(0)).isfinite().all()


def test_embed_has_the_width_of_the_encoders_input(likelihood):
    targets = targets_for(likelihood, 7)
    assert likelihood.embed(targets).shape == (7, likelihood.n_inputs)
    assert likelihood.embed(targets).dtype == F64


# ---------------------------------------------------------------- Gaussian


@pytest.mark.parametrize("varies", [False, True])
def test_gaussian_is_scipys_normal_in_original_units(varies):
    likelihood = gaussian("each", varies)
    raw = raw_for(likelihood, 4)
    T = likelihood.restore(targets_for(likelihood, 4).numpy())
    got = likelihood.log_prob(raw, torch.tensor(likelihood.standardize(T))).detach().numpy()
    log_var = torch.tensor([-0.7, 0.5, 1.2], dtype=F64)  # base + common
    if varies:
        log_var = log_var + raw[:, 3:]
    location = likelihood.restore(raw[:, :3].numpy())
    sigma = (0.5 * log_var).exp().numpy() * likelihood.scale
    expected = stats.norm.logpdf(T, location, sigma)
    np.testing.assert_allclose(got - likelihood.log_scale, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("learn", "learned"), [("each", {"base"}), ("common", {"common"}), ("none", set())]
)
def test_learn_says_what_moves(learn, learned):
    likelihood = gaussian(learn)
    raw = raw_for(likelihood, 4).requires_grad_()
    likelihood.log_prob(raw, targets_for(likelihood, 4)).sum().backward()
    moved = {
        name for name, p in likelihood.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert moved == learned


def test_the_spread_stays_between_floor_and_highest():
    likelihood = Gaussian(
        np.zeros(2), np.ones(2), torch.zeros(2, dtype=F64), varies=True, floor=0.2
    )
    for addition, sigma in ((-1e3, 0.2), (1e3, Gaussian.HIGHEST)):
        raw = torch.tensor([[0.0, 0.0, addition, addition]], dtype=F64)
        got = likelihood.log_prob(raw, torch.zeros(1, 2, dtype=F64)).detach().numpy()
        np.testing.assert_allclose(got, stats.norm.logpdf(0, 0, sigma), rtol=1e-12)


def test_bound_passes_gradients_that_lead_back_inside():
    # descent moves against the gradient: +1 pushes down, -1 pushes up
    value = torch.tensor([-2.0, -2.0, 0.5, 0.5, 3.0, 3.0], dtype=F64, requires_grad=True)
    gradient = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=F64)
    out = bound(value, -1.0, 1.0)
    assert out.tolist() == [-1.0, -1.0, 0.5, 0.5, 1.0, 1.0]
    out.backward(gradient)
    assert value.grad.tolist() == [0.0, -1.0, 1.0, -1.0, 1.0, 0.0]


def test_a_spread_below_its_floor_comes_back():
    low = torch.tensor([2 * math.log(0.01) - 5.0], dtype=F64)
    likelihood = Gaussian(np.zeros(1), np.ones(1), low)
    optimizer = torch.optim.SGD(likelihood.parameters(), lr=1e-3)
    raw, targets = torch.zeros(1, 1, dtype=F64), torch.full((1, 1), 0.1, dtype=F64)
    for _ in range(400):
        optimizer.zero_grad()
        (-likelihood.log_prob(raw, targets)).sum().backward()
        optimizer.step()
    assert float(likelihood.base.detach()) > 2 * math.log(0.01)


# ---------------------------------------------------------------- Bernoulli


def test_bernoulli_is_the_cross_entropy():
    likelihood = bernoulli()
    raw = raw_for(likelihood, 5)
    targets = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    p = raw.sigmoid()
    expected = targets * p.log() + (1 - targets) * (1 - p).log()
    torch.testing.assert_close(likelihood.log_prob(raw, targets), expected, rtol=1e-12, atol=1e-12)


def test_bernoulli_keeps_precision_where_probabilities_round_to_one():
    likelihood = bernoulli()
    raw = torch.full((1, 3), 1e4, dtype=F64)
    assert likelihood.log_prob(raw, torch.zeros(1, 3, dtype=F64)).tolist() == [[-1e4] * 3]
    assert likelihood.log_prob(raw, torch.ones(1, 3, dtype=F64)).tolist() == [[0.0] * 3]


def test_bernoulli_embeds_with_mean_zero_and_variance_one():
    likelihood = bernoulli()
    p = torch.tensor([0.2, 0.5, 0.97], dtype=F64)
    off, on = (
        likelihood.embed(torch.zeros(3, dtype=F64)),
        likelihood.embed(torch.ones(3, dtype=F64)),
    )
    torch.testing.assert_close((1 - p) * off + p * on, torch.zeros(3, dtype=F64))
    torch.testing.assert_close((1 - p) * off**2 + p * on**2, torch.ones(3, dtype=F64))


def test_supports():
    assert Bernoulli.support == (0.0, 1.0)
    assert Gaussian.support == (-math.inf, math.inf)


# ---------------------------------------------------------------- Mixed


def test_mixed_is_its_parts_in_the_order_of_T():
    likelihood = mixed()
    raw, targets = raw_for(likelihood, 5), targets_for(likelihood, 5)
    assert likelihood.n_params == raw.shape[1] == 4 + 3 + 1
    begin, inputs = 0, []
    draws = likelihood.sample(raw, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    T = likelihood.restore(targets.numpy())
    for part, group in zip(likelihood.parts, likelihood.columns, strict=True):
        theirs_raw = slice(begin, begin + part.n_params)
        own = raw[:, theirs_raw]
        theirs = targets[:, group]
        torch.testing.assert_close(
            likelihood.log_prob(raw, targets)[:, group], part.log_prob(own, theirs)
        )
        assert torch.equal(likelihood.mean(raw)[:, group], part.mean(own))
        assert torch.equal(likelihood.fisher(raw)[:, theirs_raw], part.fisher(own))
        assert torch.equal(draws[:, group], part.sample(own, generator))
        np.testing.assert_array_equal(T[:, group], part.restore(theirs.numpy()))
        np.testing.assert_array_equal(
            likelihood.standardize(T)[:, group], part.standardize(T[:, group])
        )
        np.testing.assert_array_equal(likelihood.log_scale[group], part.log_scale)
        begin += part.n_params
    inputs = [
        p.embed(targets[:, g]) for p, g in zip(likelihood.parts, likelihood.columns, strict=True)
    ]
    assert torch.equal(likelihood.embed(targets), torch.cat(inputs, 1))


@pytest.mark.parametrize("columns", [[[0, 1, 2], [2]], [[0, 1, 2], [4]], [[0, 1, 3], [3]]])
def test_mixed_wants_a_partition(columns):
    with pytest.raises(ValueError) as error:
        Mixed([gaussian(), Bernoulli(np.array([0.5]))], columns)
    assert str(columns) in str(error.value)
    assert "partition" in str(error.value)
