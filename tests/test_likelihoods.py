"""One suite over all families, against sums, quadrature and autograd; then what each has alone."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from skvae.gradients import nll_vjp
from skvae.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    ManyLevels,
    Mixed,
    Multinomial,
    NegativeBinomial,
    Poisson,
    StudentT,
    bound,
)

F64 = torch.float64
TOTAL = 4000.0  # counts of a row, wherever exposures are held fixed


def gaussian(learn="each", varies=False, columns=(0, 1, 2)):
    columns = list(columns)
    shift, scale = np.array([1.0, -20.0, 3e3]), np.array([0.5, 40.0, 1e-3])
    log_var = torch.tensor([-1.0, 0.2, 0.9], dtype=F64)
    likelihood = Gaussian(shift[columns], scale[columns], log_var[columns], learn, varies)
    with torch.no_grad():
        likelihood.common.fill_(0.3)
    return likelihood


def log_normal(log, learn="each", varies=False):
    shift, scale = np.array([1.0, -20.0, -2.0]), np.array([0.5, 40.0, 0.8])
    if log[1]:
        shift[1], scale[1] = 2.0, 0.3
    log_var = torch.tensor([-1.0, 0.2, 0.5], dtype=F64)
    return Gaussian(shift, scale, log_var, learn, varies, log=np.array(log))


def student_t():
    likelihood = StudentT(np.array([1.0, -20.0, 3e3]), np.array([0.5, 40.0, 1e-3]))
    with torch.no_grad():
        likelihood.log_s.copy_(torch.tensor([-0.7, 0.2, 0.5]))
        likelihood.log_df.copy_(torch.tensor([6.0, 9.0, 40.0]).log())
    return likelihood


def bernoulli():
    return Bernoulli(np.array([0.2, 0.5, 0.97]))


def categorical():
    return Categorical([np.array([0.3, 0.7]), np.array([0.1, 0.2, 0.3, 0.4]), np.full(3, 1 / 3)])


def many_levels(n_levels=40, n_inputs=3):
    random = np.random.default_rng(0)
    probability = random.dirichlet(np.full(n_levels, 2.0))
    root = np.sqrt(probability)[:, None]
    columns = np.hstack([np.ones((n_levels, 1)), random.normal(size=(n_levels, n_inputs))])
    basis = np.linalg.qr(root * columns)[0][:, 1:] / root  # mean 0, covariance I
    return ManyLevels(probability, basis)


def counts(family, exposure=False, varies=False):
    mean, shift, scale = np.array([[5.0, 30.0, 65.0], [0.5, 2.0, 3.0], [0.4, 0.8, 1.0]])
    law = np.array([0.1, 0.4]) if exposure else None
    if family is Poisson:
        return Poisson(mean, shift, scale, law)
    return NegativeBinomial(mean, shift, scale, law, np.array([4.0, 8.0, 20.0]), varies)


def multinomial(spread=0.4):
    mean, shift, scale = np.array([[5.0, 30.0, 65.0], [0.5, 2.0, 3.0], [0.4, 0.8, 1.0]])
    # totals of mean 100
    return Multinomial(mean, shift, scale, np.array([-0.5 * spread**2, spread]))


def mixed_multinomial():
    return Mixed([bernoulli(), multinomial(), gaussian()], [[0, 5, 2], [1, 8, 3], [4, 7, 6]])


def mixed():
    parts = [bernoulli(), gaussian("common", False, (2,)), gaussian("each", True, (0, 1))]
    return Mixed(parts, [[0, 5, 2], [3], [4, 1]])


def mixed_all():
    parts = [
        counts(Poisson),
        student_t(),
        categorical(),
        counts(NegativeBinomial, True),
        many_levels(),
        bernoulli(),
        log_normal((True, False, True), "common", True),
    ]
    order = np.random.default_rng(1).permutation(19)
    ends = np.cumsum([part.n_columns for part in parts])[:-1]
    return Mixed(parts, [group.tolist() for group in np.split(order, ends)])


def mixed_varies():
    parts = [counts(NegativeBinomial, True, True), bernoulli(), gaussian("each", True, (0, 1))]
    return Mixed(parts, [[0, 6, 2], [3, 5, 7], [4, 1]])


FAMILIES = {
    "gaussian-each": gaussian,
    "gaussian-common": lambda: gaussian("common"),
    "gaussian-none": lambda: gaussian("none"),
    "gaussian-each-varies": lambda: gaussian("each", True),
    "gaussian-common-varies": lambda: gaussian("common", True),
    "log-normal": lambda: log_normal((True, True, True)),
    "log-normal-and-normal": lambda: log_normal((True, False, True)),
    "log-normal-and-normal-varies": lambda: log_normal((True, False, True), "common", True),
    "student-t": student_t,
    "bernoulli": bernoulli,
    "categorical": categorical,
    "many-levels": many_levels,
    "poisson": lambda: counts(Poisson),
    "poisson-exposure": lambda: counts(Poisson, True),
    "negative-binomial": lambda: counts(NegativeBinomial),
    "negative-binomial-exposure": lambda: counts(NegativeBinomial, True),
    "negative-binomial-varies": lambda: counts(NegativeBinomial, varies=True),
    "negative-binomial-exposure-varies": lambda: counts(NegativeBinomial, True, True),
    "mixed": mixed,
    "mixed-all": mixed_all,
    "mixed-varies": mixed_varies,
}
# families whose columns have no distributions of their own: each is given the others
JOINT = {"multinomial": multinomial, "mixed-multinomial": mixed_multinomial}
joint_too = pytest.mark.parametrize("likelihood", [*FAMILIES, *JOINT], indirect=True)


@pytest.fixture(params=FAMILIES)
def likelihood(request):
    return (FAMILIES | JOINT)[request.param]()


def raw_for(likelihood, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, likelihood.n_params, generator=generator, dtype=F64)


def parts_of(likelihood):
    """(part, its columns of T) of each part."""
    if isinstance(likelihood, Mixed):
        return list(zip(likelihood.parts, likelihood.columns, strict=True))
    return [(likelihood, list(range(likelihood.n_columns)))]


def raw_of(likelihood):
    """Which of the raw outputs are each part's."""
    every = torch.arange(likelihood.n_params)
    return likelihood.raw(every) if isinstance(likelihood, Mixed) else [every]


def with_exact_sizes(got, expected, likelihood):
    """``got``, a matrix over raw outputs, but for what is only about right in it: sizes'."""
    got = got.clone()
    for (part, _), own in zip(parts_of(likelihood), raw_of(likelihood), strict=True):
        if isinstance(part, NegativeBinomial):
            sizes = own[part.n_columns :]
            got[sizes, sizes] = expected[sizes, sizes]
    return got


def part_of(likelihood, column):
    """The part that speaks about the column, its columns of T, and which of them it is."""
    found = [(part, group) for part, group in parts_of(likelihood) if column in group]
    ((part, group),) = found
    return part, group, group.index(column)


def n_values(part, i):
    """How many values column i of the part takes; infinity where it has a density."""
    if isinstance(part, Bernoulli):
        return 2
    if isinstance(part, Categorical):
        return part.n_levels[i]
    if isinstance(part, ManyLevels):
        return part.n_stats
    return TOTAL + 1 if isinstance(part, Poisson) else math.inf


def relative(part):
    """Whether other cells of the row say how large one is."""
    return isinstance(part, Poisson) and part.exposure is not None


def fixed(likelihood):
    """Columns of T whose cells do not depend on which others are observed: boolean."""
    out = np.empty(likelihood.n_columns, dtype=bool)
    for part, group in parts_of(likelihood):
        out[group] = not relative(part)
    return torch.from_numpy(out)


def targets_for(likelihood, *shape, seed=1):
    """Targets inside the support of each column."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(*shape, likelihood.n_columns, generator=generator, dtype=F64)
    uniform = torch.rand(targets.shape, generator=generator, dtype=F64)
    for part, group in parts_of(likelihood):
        for i, j in enumerate(group):
            if (n := n_values(part, i)) < math.inf:
                targets[..., j] = (uniform[..., j] * min(n, 60)).floor()
    return targets


def with_gaps(targets, rate=0.4, seed=2):
    """The same with cells missing at random, all of the first row, and which these are."""
    gaps = torch.rand(targets.shape, generator=torch.Generator().manual_seed(seed)) < rate
    gaps[0] = True
    return targets.masked_fill(gaps, math.nan), gaps


def base_row(likelihood):
    """A row in every support, whose exposures are those of `quadrature`'s rows."""
    row = torch.zeros(likelihood.n_columns, dtype=F64)
    for part, group in parts_of(likelihood):
        if relative(part):
            row[group[-1]] = TOTAL
    return row


def quadrature(likelihood, column):
    """Targets (m, n_columns) whose ``column`` runs through the nodes, the nodes, their weights.

    Where a count is relative to the row's total, another cell makes up for it.
    """
    part, group, i = part_of(likelihood, column)
    if (n := n_values(part, i)) < math.inf:
        nodes = torch.arange(n, dtype=F64)
        weights = torch.ones_like(nodes)
    elif isinstance(part, StudentT):  # tails are powers: equal steps of their logarithms
        u = torch.linspace(-60, 60, 24_001, dtype=F64)
        nodes, weights = u.sinh(), u.cosh() * (u[1] - u[0])
    else:
        nodes = torch.linspace(-60, 60, 24_001, dtype=F64)
        weights = (nodes[1] - nodes[0]).expand(len(nodes))
    targets = base_row(likelihood).repeat(len(nodes), 1)
    targets[:, column] = nodes
    if relative(part):
        targets[:, group] = torch.where(
            torch.tensor(group) == group[i - 1], TOTAL - nodes[:, None], targets[:, group]
        )
        other = [j for j in group if j not in (column, group[i - 1])]
        targets[:, other] = 0.0
    return targets, nodes, weights


def law(likelihood, raw, column):
    """`quadrature`, and the probability of each node: targets, nodes, p."""
    targets, nodes, weights = quadrature(likelihood, column)
    with torch.no_grad():
        cells = likelihood.log_prob(raw.expand(len(nodes), -1), targets)[:, column]
    return targets, nodes, cells.exp() * weights


def statistics(part, i, nodes):
    """What column i of a part averages over z, at each node: (m, n_stats of the column)."""
    if isinstance(part, Categorical | ManyLevels):
        return torch.nn.functional.one_hot(nodes.long(), n_values(part, i)).to(F64)
    if isinstance(part, Gaussian) and part.log is not None and part.log[i]:
        nodes = (part.scale[i] * nodes).exp()
    return nodes[:, None]


def information(likelihood, raw, targets):
    """J F J' with J the identity: (n, n_params, n_params)."""
    eye = torch.eye(likelihood.n_params, dtype=raw.dtype).expand(len(raw), -1, -1)
    root = likelihood.whiten(raw, eye, targets)
    return (root @ root.mT).detach()


# ---------------------------------------------------------------- the shared suite


def test_every_column_has_total_probability_one(likelihood):
    raw = raw_for(likelihood)
    for j in range(likelihood.n_columns):
        _, _, p = law(likelihood, raw, j)
        assert float(p.sum()) == pytest.approx(1.0, abs=1e-10)


def test_every_column_has_the_stated_mean(likelihood):
    raw = raw_for(likelihood)
    with torch.no_grad():
        stated = likelihood.mean(raw[None], base_row(likelihood)[None])[0]
    assert stated.shape == (likelihood.n_stats,)
    found = []
    for part, group in parts_of(likelihood):
        for i, j in enumerate(group):
            _, nodes, p = law(likelihood, raw, j)
            found.append(p @ statistics(part, i, nodes))
    torch.testing.assert_close(torch.cat(found), stated, rtol=1e-10, atol=1e-10)


def test_restore_mean_is_the_mean_in_original_units(likelihood):
    raw = raw_for(likelihood)
    with torch.no_grad():
        stated = likelihood.mean(raw[None], base_row(likelihood)[None]).numpy()
    restored = likelihood.restore_mean(stated)
    assert restored.shape == (1, likelihood.n_columns)
    for j in range(likelihood.n_columns):
        targets, nodes, p = law(likelihood, raw, j)
        if isinstance(part_of(likelihood, j)[0], Categorical | ManyLevels):
            assert restored[0, j] == nodes[p.argmax()]
        else:
            T = likelihood.restore(targets.numpy())[:, j]
            assert restored[0, j] == pytest.approx(p.numpy() @ T, rel=1e-10, abs=1e-10)


def test_information_is_the_expected_outer_product_of_the_score(likelihood):
    raw = raw_for(likelihood)
    expected = torch.zeros(likelihood.n_params, likelihood.n_params, dtype=F64)
    for j in range(likelihood.n_columns):
        targets, nodes, p = law(likelihood, raw, j)
        leaf = raw.expand(len(nodes), -1).clone().requires_grad_()
        cells = likelihood.log_prob(leaf, targets)[:, j]
        (score,) = torch.autograd.grad(cells.sum(), leaf)
        expected += (p[:, None] * score).T @ score
    got = information(likelihood, raw[None], base_row(likelihood)[None])[0]
    got = with_exact_sizes(got, expected, likelihood)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_information_is_the_negative_expected_hessian(likelihood):
    raw = raw_for(likelihood)
    curvature = torch.zeros(likelihood.n_params, likelihood.n_params, dtype=F64)
    for j in range(likelihood.n_columns):
        targets, nodes, p = law(likelihood, raw, j)
        leaf = raw.expand(len(nodes), -1).clone().requires_grad_()
        cells = likelihood.log_prob(leaf, targets)[:, j]
        (score,) = torch.autograd.grad(cells.sum(), leaf, create_graph=True)
        for i in range(likelihood.n_params):
            if score[:, i].requires_grad and score[:, i].any():
                (row,) = torch.autograd.grad(score[:, i].sum(), leaf, retain_graph=True)
                curvature[i] -= p @ row
    got = information(likelihood, raw[None], base_row(likelihood)[None])[0]
    got = with_exact_sizes(got, curvature, likelihood)
    torch.testing.assert_close(got, curvature, rtol=1e-9, atol=1e-10)


@joint_too
def test_whiten_takes_directions_to_their_information(likelihood):
    raw, (targets, _) = raw_for(likelihood, 6), with_gaps(targets_for(likelihood, 6))
    jacobian = torch.randn(6, 2, likelihood.n_params, dtype=F64, generator=torch.Generator())
    root = likelihood.whiten(raw, jacobian, targets)
    expected = jacobian @ information(likelihood, raw, targets) @ jacobian.mT
    torch.testing.assert_close(root @ root.mT, expected, rtol=1e-10, atol=1e-10)


@joint_too
def test_gradients_of_the_density(likelihood):
    raw = raw_for(likelihood, 4).requires_grad_()
    targets = targets_for(likelihood, 4)
    learned = [p for p in likelihood.parameters() if p.requires_grad]
    for cells in (targets, with_gaps(targets)[0]):
        assert torch.autograd.gradcheck(
            lambda r, *_, cells=cells: likelihood.log_prob(r, cells), (raw, *learned)
        )
    assert torch.autograd.gradcheck(lambda r: likelihood.mean(r), (raw,))


@joint_too
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("spreads", ["inside", "pushed in", "pushed out"])
def test_nll_vjp_is_autograds(likelihood, spreads, gaps):
    assert hasattr(likelihood, "nll_vjp") != isinstance(
        likelihood, StudentT | Poisson
    ) or isinstance(likelihood, Multinomial)
    raw, targets = raw_for(likelihood, 6), targets_for(likelihood, 6)
    if spreads != "inside" and isinstance(likelihood, Gaussian):
        with torch.no_grad():  # below the floor, above the highest, and inside
            likelihood.base.copy_(torch.tensor([-60.0, 60.0, 0.0]))
        if spreads == "pushed out":
            targets[:, 0], targets[:, 1] = raw[:, 0], raw[:, 1] + 1e6
    if gaps:
        targets, _ = with_gaps(targets)
    weights = torch.linspace(0.5, 2.0, 6, dtype=F64)
    leaf = raw.clone().requires_grad_()
    nll = -likelihood.log_prob(leaf, targets).sum(-1)
    learned = [p for p in likelihood.parameters() if p.requires_grad]
    to_raw, *to_parameters = torch.autograd.grad(nll, [leaf, *learned], weights)
    for _ in range(2):  # gradients are set, not added
        with torch.no_grad():
            got, gradient = nll_vjp(likelihood, raw, targets, weights)
            torch.testing.assert_close(got, weights @ nll, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradient, to_raw, rtol=1e-12, atol=1e-12)
    if spreads == "pushed out" and isinstance(likelihood, Gaussian) and learned:
        outer = to_parameters[0][:2] if learned[0].dim() else torch.zeros(2)
        assert not outer.any()
    for parameter, expected in zip(learned, to_parameters, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("base", [0.0, -60.0, 60.0])
def test_spreads_alone_are_of_squared_errors(base, gaps):
    """As the whole likelihood is, where means are no function of anything."""
    likelihood = Gaussian(np.zeros(3), np.ones(3), torch.full((3,), base, dtype=F64), varies=True)
    raw, targets = raw_for(likelihood, 6), targets_for(likelihood, 6)
    observed = None
    if gaps:
        targets, _ = with_gaps(targets)
        observed = (~targets.isnan()).to(F64)
    mean, added = raw.chunk(2, -1)
    square = (targets - mean).square().nan_to_num(0.0)
    weights = torch.linspace(0.5, 2.0, 6, dtype=F64)
    with torch.no_grad():
        nll, gradient = likelihood.nll_vjp(raw, targets, weights)
        expected = likelihood.base.grad.clone()
        likelihood.base.grad.fill_(math.nan)  # set, not added to
        found, to_added = likelihood.spread_vjp(added, square, weights, observed)
        cells = likelihood.spread_log_prob(added, square)
        by_cell = likelihood.log_prob(raw, targets)
    torch.testing.assert_close(found, nll, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_added, gradient[:, 3:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(likelihood.base.grad, expected, rtol=1e-12, atol=1e-12)
    cells = cells if observed is None else cells * observed
    torch.testing.assert_close(cells, by_cell, rtol=1e-12, atol=1e-12)


def test_draws_follow_the_density(likelihood):
    n = 20_000
    raw, generator = raw_for(likelihood), torch.Generator().manual_seed(0)
    base = base_row(likelihood).expand(n, -1)
    draws = likelihood.sample(raw.expand(n, -1), generator, base).detach()
    assert draws.shape == (n, likelihood.n_columns)
    for j in range(likelihood.n_columns):
        _, nodes, p = law(likelihood, raw, j)
        mean = float(p @ nodes)
        variance = float(p @ (nodes - mean) ** 2)
        fourth = float(p @ (nodes - mean) ** 4)
        squares = (draws[:, j] - mean).square()
        assert abs(float(draws[:, j].mean()) - mean) < 4 * math.sqrt(variance / n)
        assert abs(float(squares.mean()) - variance) < 4 * math.sqrt((fourth - variance**2) / n)
        part, _, i = part_of(likelihood, j)
        if n_values(part, i) < math.inf:
            assert follows(draws[:, j], p)
        else:
            cumulative = np.cumsum(p.numpy()) - 0.5 * p.numpy()
            distribution = stats.kstest(
                draws[:, j].numpy(), lambda x, n=nodes, c=cumulative: np.interp(x, n.numpy(), c)
            )
            assert distribution.pvalue > 1e-3


def follows(draws, p, level=1e-4):
    """Chi-square of whole numbers against their probabilities, neighbours of few joined."""
    codes = draws.long()
    assert torch.equal(codes.to(F64), draws)
    expected, seen = len(draws) * p, torch.bincount(codes, minlength=len(p)).to(F64)
    assert len(seen) == len(p)
    cell = (expected.cumsum(0) / 20).floor().long()
    expected, seen = (torch.bincount(cell, weights=x) for x in (expected, seen))
    kept = expected > 0
    expected, seen = expected[kept], seen[kept]
    statistic = float(((seen - expected).square() / expected).sum())
    return stats.chi2.sf(statistic, len(seen) - 1) > level


@joint_too
def test_draws_depend_on_the_generator_alone(likelihood):
    raw = raw_for(likelihood, 5)
    before = torch.random.get_rng_state()
    first, second, other = (
        likelihood.sample(raw, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@joint_too
@pytest.mark.parametrize("gaps", [False, True])
def test_leading_axes_broadcast(likelihood, gaps):
    raw, targets = raw_for(likelihood, 3, 5), targets_for(likelihood, 5)
    if gaps:
        targets, _ = with_gaps(targets)
    together, means = likelihood.log_prob(raw, targets), likelihood.mean(raw, targets)
    assert together.shape == (3, 5, likelihood.n_columns)
    assert means.shape == (3, 5, likelihood.n_stats)
    close = {"rtol": 1e-14, "atol": 1e-14}
    for m in range(3):
        for i in range(5):
            row = raw[m, i : i + 1], targets[i : i + 1]
            torch.testing.assert_close(together[m, i], likelihood.log_prob(*row)[0], **close)
            torch.testing.assert_close(means[m, i], likelihood.mean(*row)[0], **close)
    draws = likelihood.sample(raw, torch.Generator(), targets)
    assert draws.shape == together.shape
    assert likelihood.mean(raw).shape == means.shape
    assert likelihood.sample(raw, torch.Generator()).shape == together.shape


@joint_too
def test_restore_undoes_standardize_and_nan_stays(likelihood):
    T = likelihood.restore(targets_for(likelihood, 6).numpy())
    T[2, -1] = np.nan
    np.testing.assert_allclose(likelihood.restore(likelihood.standardize(T)), T, rtol=1e-12)
    assert np.isnan(likelihood.standardize(T)).sum() == 1


@joint_too
def test_log_unit_is_the_jacobian_of_standardize(likelihood):
    T = likelihood.restore(targets_for(likelihood, 3).numpy())
    # steps that are exact powers of two, and not small against T
    low, high = T - 0.5, T + 0.5
    for part, group in parts_of(likelihood):
        if isinstance(part, Gaussian) and part.log is not None:  # small against T
            logs = np.array(group)[part.log]
            low[:, logs], high[:, logs] = (1 - 1e-5) * T[:, logs], (1 + 1e-5) * T[:, logs]
    slope = (likelihood.standardize(high) - likelihood.standardize(low)) / (high - low)
    log_unit = likelihood.log_unit(T)
    np.testing.assert_allclose(np.log(slope), -log_unit, rtol=1e-9, atol=1e-9)
    T[1, -1], log_unit[1, -1] = np.nan, 0.0
    np.testing.assert_array_equal(likelihood.log_unit(T), log_unit)


@joint_too
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("size", [1e4, 1e15])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_extreme_raw_and_targets_stay_finite(likelihood, dtype, size, sign):
    likelihood = likelihood.to(dtype)
    raw = torch.full((4, likelihood.n_params), sign * size, dtype=dtype)
    raw[2, ::2] *= -1
    raw[3] = 0.0
    raw.requires_grad_()
    targets = torch.zeros(4, likelihood.n_columns, dtype=dtype)
    overflows = torch.zeros(likelihood.n_stats, dtype=bool)  # a mean of exp: infinite, or not
    at = 0
    for part, group in parts_of(likelihood):
        for i, j in enumerate(group):
            n = n_values(part, i)
            highest = size if isinstance(part, Poisson) else n - 1
            targets[1:, j] = highest if n < math.inf else -sign * size
        if isinstance(part, Gaussian) and part.log is not None:
            overflows[at : at + part.n_stats] = torch.from_numpy(part.log)
        at += part.n_stats
    cells = likelihood.log_prob(raw, targets)
    cells.sum().backward()
    assert cells.isfinite().all()
    assert raw.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in likelihood.parameters() if p.requires_grad)
    raw = raw.detach()
    for known in (None, targets):
        mean = likelihood.mean(raw, known)
        assert mean[:, ~overflows].isfinite().all()
        assert not mean.isnan().any()
        assert likelihood.sample(raw, torch.Generator().manual_seed(0), known).isfinite().all()
    assert information(likelihood, raw, targets).isfinite().all()
    assert likelihood.embed(targets).isfinite().all()
    nll, gradient = nll_vjp(likelihood, raw, targets, torch.ones(4, dtype=dtype))
    assert nll.isfinite()
    assert gradient.isfinite().all()


@joint_too
def test_embed_has_the_width_of_the_encoders_input(likelihood):
    targets = targets_for(likelihood, 7)
    assert likelihood.embed(targets).shape == (7, likelihood.n_inputs)
    assert likelihood.embed(targets).dtype == F64


# ---------------------------------------------------------------- missing cells


def test_missing_cells_cost_nothing_and_change_no_other(likelihood):
    raw, whole = raw_for(likelihood, 6), targets_for(likelihood, 6)
    targets, gaps = with_gaps(whole)
    cells = likelihood.log_prob(raw, targets)
    assert not cells[gaps].any()
    assert cells[~gaps].all()
    same = ~gaps & fixed(likelihood)
    assert torch.equal(cells[same], likelihood.log_prob(raw, whole)[same])


@joint_too
def test_missing_cells_move_nothing(likelihood):
    raw, whole = raw_for(likelihood, 6).requires_grad_(), targets_for(likelihood, 6)
    learned = [p for p in likelihood.parameters() if p.requires_grad]
    leaves = [raw, *learned]
    nothing = torch.full_like(whole, math.nan)
    for grad in torch.autograd.grad(likelihood.log_prob(raw, nothing).sum(), leaves):
        assert not grad.any()
    assert not information(likelihood, raw, nothing).any()
    for j in range(likelihood.n_columns):
        if not fixed(likelihood)[j]:
            continue
        alone = nothing.clone()
        alone[:, j] = whole[:, j]
        got = torch.autograd.grad(likelihood.log_prob(raw, alone).sum(), leaves)
        expected = torch.autograd.grad(likelihood.log_prob(raw, whole)[:, j].sum(), leaves)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=0.0)
            assert torch.equal(one == 0, other == 0)


@joint_too
def test_the_information_of_columns_adds_up(likelihood):
    raw, whole = raw_for(likelihood, 4), targets_for(likelihood, 4)
    pieces = torch.zeros(4, likelihood.n_params, likelihood.n_params, dtype=F64)
    for part, group in parts_of(likelihood):
        for columns in [group] if relative(part) else [[j] for j in group]:
            alone = torch.full_like(whole, math.nan)
            alone[:, columns] = whole[:, columns]
            pieces += information(likelihood, raw, alone)
    torch.testing.assert_close(pieces, information(likelihood, raw, whole), rtol=1e-10, atol=1e-10)


@joint_too
def test_embed_keeps_nan(likelihood):
    whole = targets_for(likelihood, 5)
    full = likelihood.embed(whole)
    owners = torch.zeros(likelihood.n_inputs)
    for j in range(likelihood.n_columns):
        targets = whole.clone()
        targets[1:3, j] = math.nan
        inputs = likelihood.embed(targets)
        missing = inputs.isnan()
        assert torch.equal(missing[1], missing[2])
        assert not missing[[0, 3, 4]].any()
        owners += missing[1]
        if fixed(likelihood)[j]:
            assert torch.equal(inputs[~missing], full[~missing])
    assert torch.equal(owners, torch.ones_like(owners))  # each input is one column's


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
    np.testing.assert_allclose(got - likelihood.log_unit(T), expected, rtol=1e-9)


@pytest.mark.parametrize("varies", [False, True])
def test_logarithms_are_scipys_log_normal_in_original_units(varies):
    likelihood = log_normal((True, False, True), varies=varies)
    raw = raw_for(likelihood, 50)
    T = likelihood.restore(targets_for(likelihood, 50).numpy())
    got = likelihood.log_prob(raw, torch.tensor(likelihood.standardize(T))).detach().numpy()
    sigma = (0.5 * likelihood.log_var(raw)).exp().detach().numpy() * likelihood.scale
    location = raw[:, :3].numpy() * likelihood.scale + likelihood.shift
    median = np.exp(np.where(likelihood.log, location, 0.0))
    expected = np.where(
        likelihood.log,
        stats.lognorm.logpdf(T, sigma, scale=median),
        stats.norm.logpdf(T, location, sigma),
    )
    np.testing.assert_allclose(got - likelihood.log_unit(T), expected, rtol=1e-9, atol=1e-9)
    mean = likelihood.restore_mean(likelihood.mean(raw).detach().numpy())
    of_logs = median * np.exp(0.5 * np.where(likelihood.log, sigma, 0.0) ** 2)
    np.testing.assert_allclose(mean, np.where(likelihood.log, of_logs, location), rtol=1e-12)


def test_no_logarithm_is_the_plain_gaussian():
    assert log_normal((False, False, False)).log is None


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


# ---------------------------------------------------------------- StudentT


def test_student_t_is_scipys_in_original_units():
    likelihood = student_t()
    raw, targets = raw_for(likelihood, 50), targets_for(likelihood, 50).numpy()
    targets[::3] *= 1e9  # far out in the tail
    T = likelihood.restore(targets)
    got = likelihood.log_prob(raw, torch.tensor(likelihood.standardize(T))).detach().numpy()
    s, df = (p.exp().detach().numpy() for p in (likelihood.log_s, likelihood.log_df))
    location = likelihood.restore(raw.numpy())
    expected = stats.t.logpdf(T, df, location, s * likelihood.scale)
    np.testing.assert_allclose(got - likelihood.log_unit(T), expected, rtol=1e-9)


@pytest.mark.parametrize(("log_df", "df"), [(-5.0, 1.5), (9.0, 200.0)])
def test_tails_stay_between_a_mean_and_the_normal(log_df, df):
    likelihood = StudentT(np.zeros(1), np.ones(1), floor=0.2)
    with torch.no_grad():
        likelihood.log_df.fill_(log_df)
        likelihood.log_s.fill_(-9.0)
    targets = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    got = likelihood.log_prob(torch.zeros(7, 1, dtype=F64), targets).detach()
    np.testing.assert_allclose(got, stats.t.logpdf(targets.numpy(), df, 0, 0.2), rtol=1e-9)


def test_a_wild_cell_moves_student_t_less_than_a_tame_one():
    likelihood = student_t()
    raw = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    targets = torch.tensor([2.0, 1e6], dtype=F64)[:, None].expand(2, 3)
    likelihood.log_prob(raw, targets).sum().backward()
    assert (0 < raw.grad[1]).all()
    assert (raw.grad[1] < 1e-4 * raw.grad[0]).all()
    assert likelihood.embed(targets)[1].tolist() == [StudentT.CLIP] * 3


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
    for real in (Gaussian, StudentT):
        assert real.support == (-math.inf, math.inf)
    for levels in (Categorical, ManyLevels):
        assert levels.support == (0.0, math.inf)
    for counted in (Poisson, NegativeBinomial):
        assert counted.support == (0.0, 1e13)
        assert counted.support[1] < math.exp(counted.LOG_RATE[1])
    integers = [f for f in (Bernoulli, Gaussian, StudentT, Poisson, ManyLevels) if f.integers]
    assert integers == [Poisson, ManyLevels]


# ---------------------------------------------------------------- categories


def test_categorical_is_the_softmax_of_each_columns_logits():
    likelihood = categorical()
    raw, codes = raw_for(likelihood, 9), targets_for(likelihood, 9)
    at, found = 0, []
    for j, n in enumerate((2, 4, 3)):
        p = raw[:, at : at + n].softmax(1)
        found.append(p[torch.arange(9), codes[:, j].long()].log())
        at += n
    torch.testing.assert_close(
        likelihood.log_prob(raw, codes), torch.stack(found, 1), rtol=1e-12, atol=1e-12
    )


def test_a_categorical_column_weighs_as_one():
    """Indicators have mean 0 under the shares, and variance 1 all together."""
    likelihood = categorical()
    shares = likelihood.center.split(likelihood.n_levels)
    for j, share in enumerate(shares):
        codes = torch.zeros(len(share), 3, dtype=F64)
        codes[:, j] = torch.arange(len(share))
        inputs = likelihood.embed(codes).split(likelihood.n_levels, 1)[j]
        torch.testing.assert_close(share @ inputs, torch.zeros_like(share))
        assert float(share @ inputs.square().sum(1)) == pytest.approx(1.0)


def test_many_levels_is_its_exponential_family():
    likelihood = many_levels()
    raw, codes = raw_for(likelihood, 30), targets_for(likelihood, 30)
    p = likelihood.log_share.exp() * (raw @ likelihood.basis.T).exp()
    p = p / p.sum(1, keepdim=True)
    expected = p.gather(1, codes.long()).log()
    torch.testing.assert_close(likelihood.log_prob(raw, codes), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(likelihood.embed(codes), likelihood.basis[codes[:, 0].long()])


def test_many_levels_with_indicators_is_the_categorical():
    share = np.array([0.1, 0.2, 0.3, 0.4])
    many, few = ManyLevels(share, np.eye(4)), Categorical([share])
    raw, codes = raw_for(few, 8), targets_for(few, 8)
    logits = raw + few.center.log()
    torch.testing.assert_close(many.log_prob(raw, codes), few.log_prob(logits, codes))
    torch.testing.assert_close(
        information(many, raw, codes), information(few, logits, codes), rtol=1e-9, atol=1e-12
    )


# ---------------------------------------------------------------- counts


def log_pmf(likelihood, counts, mean, raw):
    if type(likelihood) is Poisson:
        return stats.poisson.logpmf(counts, mean)
    size = likelihood.log_size(raw).exp().detach().numpy()
    return stats.nbinom.logpmf(counts, size, size / (size + mean))


@pytest.mark.parametrize(
    "family, varies", [(Poisson, False), (NegativeBinomial, False), (NegativeBinomial, True)]
)
@pytest.mark.parametrize("exposure", [False, True])
def test_counts_are_scipys(family, varies, exposure):
    likelihood = counts(family, exposure, varies)
    raw, cells = raw_for(likelihood, 30) + 2.0, targets_for(likelihood, 30)
    times = cells.sum(1, keepdim=True).clamp_min(0.5) / 100.0 if exposure else 1.0  # 5 + 30 + 65
    mean = times * raw[:, :3].exp()
    if varies:
        torch.testing.assert_close(likelihood.log_size(raw), likelihood.base + raw[:, 3:])
    expected = log_pmf(likelihood, cells.numpy(), mean.numpy(), raw)
    got = likelihood.log_prob(raw, cells).detach()
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(likelihood.mean(raw, cells), mean, rtol=1e-12, atol=0.0)
    expected = (((cells / times).log1p() - likelihood.shift) / likelihood.scale).clamp_max(5.0)
    torch.testing.assert_close(likelihood.embed(cells), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda: counts(Poisson), lambda: counts(NegativeBinomial), multinomial]
)
def test_large_counts_in_single_precision(make):
    """The density at counts of a million is right to what the rate's own rounding allows."""
    likelihood = make()
    raw = torch.tensor([[13.8, 14.0, 13.9]])
    cells = torch.tensor([[1e6, 1.2e6, 1.1e6]])
    exact = likelihood.log_prob(raw.double(), cells.double())
    found = likelihood.to(torch.float32).log_prob(raw, cells)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_exposure_is_by_observed_cells():
    likelihood = counts(Poisson, True)  # usually 5, 30 and 65
    cells = torch.tensor([[10, 30, 10], [math.nan, 30, 65], [4, math.nan, math.nan]], dtype=F64)
    nothing = torch.tensor([[0.0] * 3, [math.nan] * 3], dtype=F64)
    got = likelihood.log_exposure(torch.cat([cells, nothing])).exp()[:, 0]
    expected = torch.tensor([0.5, 1.0, 0.8, 0.005, 1.0], dtype=F64)  # half a count where none is
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("family", [Poisson, NegativeBinomial])
def test_draws_of_new_rows_have_exposures_of_their_own(family):
    """Mean and covariance by the laws of total expectation and covariance."""
    n, likelihood = 50_000, counts(family, True)
    raw = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    draws = likelihood.sample(raw.expand(n, -1), torch.Generator().manual_seed(0)).detach()
    center, spread = likelihood.exposure
    rate = raw.exp()
    first, second = math.exp(center + spread**2 / 2), math.exp(2 * center + 2 * spread**2)
    mean, covariance = first * rate, (second - first**2) * rate[:, None] * rate
    covariance += (first * rate).diag()
    if family is NegativeBinomial:
        covariance += (second * rate.square() / likelihood.base.exp().detach()).diag()
    deviation = draws - mean
    products = (deviation[:, :, None] * deviation[:, None]).flatten(1)
    for values, expected in ((draws, mean), (products, covariance.flatten())):
        standard_error = values.std(0) / math.sqrt(n)
        assert ((values.mean(0) - expected).abs() < 4 * standard_error).all()


def test_negative_binomial_of_great_size_is_poisson():
    plain = counts(Poisson)
    likelihood = NegativeBinomial(
        *(np.asarray(x) for x in (plain.center, plain.shift, plain.scale)), size=np.full(3, 1e5)
    )
    raw, cells = raw_for(likelihood, 8), targets_for(likelihood, 8).clamp_max(8)
    torch.testing.assert_close(
        likelihood.log_prob(raw, cells).detach(), plain.log_prob(raw, cells), rtol=0.0, atol=1e-3
    )
    torch.testing.assert_close(
        information(likelihood, raw, cells), information(plain, raw, cells), rtol=1e-3, atol=0.0
    )


@pytest.mark.parametrize("size", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("mean", [0.1, 3.0, 300.0])
def test_information_about_a_size_is_about_right(size, mean):
    one = np.array([1.0])
    likelihood = NegativeBinomial(one, 0 * one, one, None, size * one, True)
    raw = torch.tensor([[math.log(mean), 0.0]], dtype=F64)
    got = float(information(likelihood, raw, torch.ones(1, 1, dtype=F64))[0, 1, 1])
    nodes = torch.arange(20_000, dtype=F64)[:, None]
    leaf = raw.repeat(len(nodes), 1).requires_grad_()
    cells = likelihood.log_prob(leaf, nodes)
    (score,) = torch.autograd.grad(cells.sum(), leaf)
    exact = float((cells.exp() * score[:, 1:].square()).sum().detach())
    assert 0.65 * exact < got < 1.35 * exact


# ---------------------------------------------------------------- Multinomial


def compositions(total, n):
    """All ways to share out a total among n columns: (n_ways, n)."""
    grid = np.stack(np.meshgrid(*[np.arange(total + 1)] * n, indexing="ij"), -1).reshape(-1, n)
    return torch.from_numpy(grid[grid.sum(1) == total]).to(F64)


def test_multinomial_is_scipys_given_the_total_of_what_is_observed():
    likelihood = multinomial()
    raw, cells = raw_for(likelihood, 30), targets_for(likelihood, 30)
    p = raw.softmax(-1).numpy()
    expected = stats.multinomial.logpmf(cells.numpy(), cells.sum(1).numpy(), p)
    got = likelihood.log_prob(raw, cells)
    np.testing.assert_allclose(got.sum(1), expected, rtol=1e-10, atol=1e-10)
    assert not got[cells == 0].any()  # what is not drawn has no part in the orders, nor a p
    gaps = cells.clone()
    gaps[:, 1] = math.nan
    two = cells[:, [0, 2]].numpy()
    share = p[:, [0, 2]] / p[:, [0, 2]].sum(1, keepdims=True)
    expected = stats.multinomial.logpmf(two, two.sum(1), share)
    got = likelihood.log_prob(raw, gaps)
    np.testing.assert_allclose(got.sum(1), expected, rtol=1e-10, atol=1e-10)
    assert not got[:, 1].any()


def test_multinomial_is_poisson_given_the_total():
    likelihood, poisson = multinomial(), counts(Poisson)
    raw, cells = raw_for(likelihood, 30), targets_for(likelihood, 30)
    total = stats.poisson.logpmf(cells.sum(1), raw.exp().sum(1))
    expected = poisson.log_prob(raw, cells).sum(1).numpy() - total
    np.testing.assert_allclose(likelihood.log_prob(raw, cells).sum(1), expected, rtol=1e-10)


@pytest.mark.parametrize("columns", [[0, 1, 2], [0, 2]])
def test_multinomial_has_total_probability_one_and_its_information(columns):
    likelihood, n = multinomial(), len(columns)
    ways = compositions(5, n)
    targets = torch.full((len(ways), 3), math.nan, dtype=F64)
    targets[:, columns] = ways
    raw = raw_for(likelihood).expand(len(ways), -1).clone().requires_grad_()
    cells = likelihood.log_prob(raw, targets).sum(1)
    p = cells.exp().detach()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    (score,) = torch.autograd.grad(cells.sum(), raw)
    expected = (p[:, None] * score).T @ score
    got = information(likelihood, raw[:1].detach(), targets[:1])[0]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_multinomial_draws_share_out_totals_of_their_own():
    n, likelihood = 50_000, multinomial(spread=0.0)
    raw = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    p, total = raw.softmax(-1), 100
    draws = likelihood.sample(raw.expand(n, -1), torch.Generator().manual_seed(0))
    assert (draws.sum(1) == total).all()
    covariance = total * (p.diag() - p[:, None] * p)
    deviation = draws - total * p
    products = (deviation[:, :, None] * deviation[:, None]).flatten(1)
    for values, expected in ((draws, total * p), (products, covariance.flatten())):
        standard_error = values.std(0) / math.sqrt(n)
        assert ((values.mean(0) - expected).abs() < 4 * standard_error).all()
    varied = multinomial(0.4).sample(raw.expand(n, -1), torch.Generator().manual_seed(0))
    logs = (varied.sum(1) / 100).log()
    assert float(logs.mean()) == pytest.approx(-0.08, abs=4 * 0.4 / math.sqrt(n) + 1e-3)
    assert float(logs.std()) == pytest.approx(0.4, abs=4 * 0.4 / math.sqrt(2 * n))


@pytest.mark.parametrize("seen", [[], [0], [0, 2]])
@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_missing_counts_follow_from_the_size_that_observed_ones_say(seen, spread):
    """By quadrature over the rate of a gamma prior; without spread it is the usual one."""
    likelihood = multinomial(spread)
    raw = torch.tensor([[0.5, 1.0, 0.0]], dtype=F64)
    p, targets = raw.softmax(-1)[0], torch.full((1, 3), math.nan, dtype=F64)
    targets[0, seen] = torch.tensor([12.0, 0.0, 31.0], dtype=F64)[seen]
    size = 100.0
    shape = 1 / max(math.expm1(spread**2), 1e-9)
    if spread:
        rate = np.linspace(1e-3, 1500, 200_001)
        weight = stats.gamma.pdf(rate, shape, scale=100 / shape)
        for j in seen:
            weight *= stats.poisson.pmf(float(targets[0, j]), rate * float(p[j]))
        size = (weight * rate).sum() / weight.sum()
    got = likelihood.mean(raw, targets)[0]
    torch.testing.assert_close(got, size * p, rtol=1e-5, atol=0.0)
    n = 20_000
    draws = likelihood.sample(raw.expand(n, -1), torch.Generator(), targets.expand(n, -1))
    # Poisson around a size that is itself gamma distributed
    var = got + got**2 / (shape + float(targets.nansum()))
    assert ((draws.mean(0) - got).abs() < 4 * (var / n).sqrt()).all()
    torch.testing.assert_close(draws.var(0), var, rtol=0.05, atol=0.0)


def test_the_size_of_what_is_observed_is_negative_binomial():
    """Differences between latents, by scipy; nothing where all is observed."""
    likelihood = multinomial()
    raw = torch.tensor([[0.5, 1.0, 0.0], [-2.0, 1.0, 3.0]], dtype=F64)
    targets = torch.tensor([[12.0, math.nan, 31.0]], dtype=F64)
    shape = 1 / math.expm1(0.16)
    seen = 100 * raw.softmax(-1)[:, [0, 2]].sum(-1).numpy()
    expected = stats.nbinom.logpmf(43, shape, shape / (shape + seen))
    got = likelihood.log_prob_of_total(raw, targets)
    assert float(got[1] - got[0]) == pytest.approx(expected[1] - expected[0], rel=1e-9)
    both = Mixed([gaussian(), likelihood], [[0, 1, 2], [3, 4, 5]])
    joined = both._joined([raw.new_zeros(2, both.parts[0].n_params), raw])
    cells = torch.cat([torch.zeros(1, 3, dtype=F64), targets], 1)
    torch.testing.assert_close(both.log_prob_of_total(joined, cells), got)
    full = torch.tensor([[12.0, 3.0, 31.0]], dtype=F64)
    assert not likelihood.log_prob_of_total(raw, full).any()


def test_counts_of_two_have_their_factorial_in_the_gradient_s_loss():
    likelihood = multinomial()
    raw, counts = torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 0.0]])
    loss, _ = likelihood.nll_vjp(raw, counts, torch.ones(1))
    assert float(loss) == pytest.approx(-math.log(3 / 27), rel=1e-6)
    assert float(likelihood.log_prob(raw, counts).sum()) == pytest.approx(-float(loss), rel=1e-6)


def test_totals_beyond_what_floats_count_in_ones_are_drawn():
    mean, shift, scale = np.array([[1e15, 3e15], [30.0, 30.0], [1.0, 1.0]])
    vast = Multinomial(mean, shift, scale, np.array([0.0, 3.0]))
    draws = vast.sample(torch.zeros(50, 2, dtype=F64), torch.Generator().manual_seed(0))
    assert (draws >= 0).all()
    assert float(draws.sum(1).max()) == 2.0**53


# ---------------------------------------------------------------- the start


START = {
    "gaussian": gaussian,
    "gaussian-varies": lambda: gaussian(varies=True),
    "student-t": student_t,
    "bernoulli": bernoulli,
    "many-levels": many_levels,
    "poisson": lambda: counts(Poisson),
    "negative-binomial-varies": lambda: counts(NegativeBinomial, varies=True),
}


@pytest.mark.parametrize("name", START)
def test_inputs_move_as_the_start_says(name):
    """To first order what the encoder reads has the linear model's mean."""
    likelihood = START[name]()
    d = likelihood.n_inputs
    noise, mean = torch.linspace(0.2, 0.8, d, dtype=F64), torch.zeros(d, dtype=F64)
    bias, slope = likelihood.start(noise, mean)
    assert bias.shape == (likelihood.n_params,)
    assert slope.shape == (d,)

    def read(move):
        raw = bias + torch.nn.functional.pad(slope * move, (0, len(bias) - d))
        stated = likelihood.mean(raw[None])
        if name == "many-levels":
            return (stated @ likelihood.basis)[0]
        return stated[0] if name == "student-t" else likelihood.embed(stated)[0]

    moved = torch.autograd.functional.jacobian(read, torch.zeros(d, dtype=F64))
    torch.testing.assert_close(moved, torch.eye(d, dtype=F64), rtol=1e-9, atol=1e-9)


def test_the_start_moves_rare_columns_less():
    """A link's slope at a rare column is so steep that a step of the latent would be absurd."""
    rare = np.array([0.001, 0.005, 0.3])
    p = torch.tensor(rare)
    _, slope = Bernoulli(rare).start(torch.ones(3), torch.zeros(3))
    spread = (p * (1 - p)).sqrt()
    torch.testing.assert_close(slope, torch.cat([spread[:2] / 0.02, 1 / spread[2:]]))
    scale = np.array([0.03, 0.06, 0.4])
    _, slope = Poisson(rare, 0 * rare, scale).start(torch.ones(3), torch.zeros(3))
    expected = scale * (1 + rare) / np.array([0.02, 0.02, 0.3])
    np.testing.assert_allclose(slope, expected, rtol=1e-12)


def test_the_start_takes_over_the_linear_models_noise():
    noise, mean = torch.tensor([0.2, 0.5, 0.8], dtype=F64), torch.tensor([0.1, -0.2, 0.3])
    likelihood = Gaussian(np.zeros(3), np.ones(3), torch.zeros(3, dtype=F64), varies=True)
    bias, _ = likelihood.start(noise, mean)
    torch.testing.assert_close(likelihood.log_var(bias).exp().detach(), noise)
    assert torch.equal(likelihood.mean(bias[None])[0], mean)
    likelihood = StudentT(np.zeros(3), np.ones(3))
    bias, _ = likelihood.start(noise, mean)
    assert torch.equal(bias, mean)
    s, df = (p.exp().detach() for p in (likelihood.log_s, likelihood.log_df))
    torch.testing.assert_close(stats.t.var(df, 0, s), noise.numpy())


@pytest.mark.parametrize("make", [bernoulli, categorical, lambda: counts(Poisson), multinomial])
def test_the_start_has_the_columns_means(make):
    likelihood = make()
    noise = torch.ones(likelihood.n_inputs, dtype=F64)
    bias, slope = likelihood.start(noise, 0 * noise)
    torch.testing.assert_close(likelihood.mean(bias[None])[0], likelihood.center)
    assert (slope > 0).all()


@pytest.mark.parametrize("make", [mixed_all, mixed_varies])
def test_mixed_starts_as_its_parts(make):
    likelihood, alone = make(), make()
    noise = torch.linspace(0.2, 0.8, likelihood.n_inputs, dtype=F64)
    mean = torch.linspace(-1.0, 1.0, likelihood.n_inputs, dtype=F64)
    bias, slope = likelihood.start(noise, mean)
    begin = 0
    for part, own, at in zip(likelihood.parts, alone.parts, raw_of(likelihood), strict=True):
        inputs = slice(begin, begin + part.n_inputs)
        expected = own.start(noise[inputs], mean[inputs])
        assert torch.equal(bias[at], expected[0])
        assert torch.equal(slope[inputs], expected[1])
        for one, other in zip(part.parameters(), own.parameters(), strict=True):
            assert torch.equal(one, other)
        begin += part.n_inputs


# ---------------------------------------------------------------- Mixed


@pytest.mark.parametrize("make", [mixed, mixed_all, mixed_varies])
def test_a_linear_path_reaches_each_parts_inputs(make):
    """The raw output is first what it reaches, part after part, and then the rest."""
    likelihood = make()
    each = list(zip(likelihood.parts, raw_of(likelihood), strict=True))
    order = [own[: part.n_inputs] for part, own in each] + [
        own[part.n_inputs :] for part, own in each
    ]
    assert torch.cat(order).tolist() == list(range(likelihood.n_params))


@pytest.mark.parametrize("make", [mixed, mixed_all, mixed_varies])
@pytest.mark.parametrize("gaps", [False, True])
def test_mixed_is_its_parts_in_the_order_of_T(make, gaps):
    likelihood = make()
    raw, targets = raw_for(likelihood, 5), targets_for(likelihood, 5)
    T = likelihood.restore(targets.numpy())
    if gaps:
        targets, missing = with_gaps(targets)
        T[missing.numpy()] = np.nan
    widths = [
        sum(getattr(part, name) for part in likelihood.parts)
        for name in ("n_params", "n_inputs", "n_stats")
    ]
    assert [likelihood.n_params, likelihood.n_inputs, likelihood.n_stats] == widths
    draws = likelihood.sample(raw, torch.Generator().manual_seed(0), targets)
    generator = torch.Generator().manual_seed(0)
    root = information(likelihood, raw, targets)
    stated = likelihood.mean(raw, targets)
    restored = likelihood.restore_mean(stated.detach().numpy())
    at, inputs = 0, []
    for (part, group), theirs_raw in zip(parts_of(likelihood), raw_of(likelihood), strict=True):
        theirs_stats = slice(at, at + part.n_stats)
        own, theirs = raw[:, theirs_raw], targets[:, group]
        torch.testing.assert_close(
            likelihood.log_prob(raw, targets)[:, group], part.log_prob(own, theirs)
        )
        mean = part.mean(own, theirs)
        assert torch.equal(stated[:, theirs_stats], mean)
        np.testing.assert_array_equal(restored[:, group], part.restore_mean(mean.detach().numpy()))
        torch.testing.assert_close(
            root[:, theirs_raw[:, None], theirs_raw],
            information(part, own, theirs),
            rtol=1e-12,
            atol=1e-12,
        )
        root[:, theirs_raw[:, None], theirs_raw] = 0.0
        assert torch.equal(draws[:, group], part.sample(own, generator, theirs))
        np.testing.assert_array_equal(
            likelihood.restore(targets.numpy())[:, group], part.restore(theirs.numpy())
        )
        for method in ("standardize", "log_unit"):
            np.testing.assert_array_equal(
                getattr(likelihood, method)(T)[:, group], getattr(part, method)(T[:, group])
            )
        inputs.append(part.embed(theirs))
        at += part.n_stats
    assert not root.any()  # nothing between the parts
    embedded = likelihood.embed(targets)
    torch.testing.assert_close(embedded, torch.cat(inputs, 1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("columns", [[[0, 1, 2], [2]], [[0, 1, 2], [4]], [[0, 1, 3], [3]]])
def test_mixed_wants_a_partition(columns):
    with pytest.raises(ValueError) as error:
        Mixed([gaussian(), Bernoulli(np.array([0.5]))], columns)
    assert str(columns) in str(error.value)
    assert "partition" in str(error.value)
