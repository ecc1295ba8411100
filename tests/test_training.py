"""The loop on a quadratic: no autoencoder in sight."""

import copy
import math

import pytest
import torch
from torch import nn

from skvae.training import (
    DECAY,
    LATENESS,
    MAX_RECOVERIES,
    NEARNESS,
    WARM_UP,
    Group,
    Rows,
    Trainer,
)

TARGETS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.rand(40, generator=torch.Generator().manual_seed(1)) + 0.5


class Toy(nn.Module):
    """Two parameters that learn, and one that does not."""

    def __init__(self):
        super().__init__()
        self.point = nn.Parameter(torch.tensor([3.0, -2.0, 5.0]))
        self.matrix = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        self.fixed = nn.Parameter(torch.tensor([7.0]), requires_grad=False)


def distance(toy, targets):
    """Half the squared distance of each row: its optimum is the mean."""
    return 0.5 * (targets - toy.point).square().sum(1) + 0.5 * toy.matrix.square().sum()


def rows_of(trainer, losses=None, gather=None, weights=None, batch_size=8, seed=0):
    if weights is not None:
        gather = lambda order: (TARGETS[order], weights[order])  # noqa: E731
        losses = lambda epoch, targets, w: w * distance(trainer.module, targets)  # noqa: E731
    losses = losses or (lambda epoch, targets: distance(trainer.module, targets))

    def backward(epoch, *batch):
        loss = losses(epoch, *batch).mean()
        trainer.module.zero_grad(set_to_none=False)
        loss.backward()
        return loss

    return Rows.stored(
        len(TARGETS),
        gather or (lambda order: (TARGETS[order],)),
        backward,
        batch_size,
        torch.Generator().manual_seed(seed),
    )


def fit(trainer, evaluate=None, rows=None, **options):
    defaults = {"max_iter": 20, "tol": 0.0, "n_iter_no_change": 1_000}
    return trainer.fit(rows or rows_of(trainer), evaluate, **defaults | options)


class Script:
    """An evaluation that returns these scores in turn, and notes the weights it saw."""

    def __init__(self, trainer, scores):
        self.trainer, self.scores, self.seen = trainer, list(scores), []

    def __call__(self):
        self.seen.append(self.trainer.flat.clone())
        score = self.scores[len(self.seen) - 1]
        if isinstance(score, BaseException):
            raise score
        return score


# ---------------------------------------------------------------- the flat tensor


def test_parameters_are_views_of_one_tensor():
    toy = Toy()
    trainer = Trainer(toy, 0.1)
    assert trainer.flat.tolist() == [3.0, -2.0, 5.0, 1.0, 2.0, 3.0, 4.0]
    trainer.flat.copy_(torch.arange(7.0))
    assert toy.point.tolist() == [0.0, 1.0, 2.0]
    assert toy.matrix.tolist() == [[3.0, 4.0], [5.0, 6.0]]
    with torch.no_grad():
        toy.matrix[1, 1] = -1.0
    assert float(trainer.flat[6]) == -1.0


def test_gradients_land_in_the_flat_tensor():
    toy = Toy()
    trainer = Trainer(toy, 0.1)
    (toy.point.sum() + 2 * toy.matrix.sum()).backward()
    assert trainer.flat.grad.tolist() == [1.0] * 3 + [2.0] * 4


def test_what_asks_for_no_gradient_is_left_alone():
    toy = Toy()
    fit(Trainer(toy, 0.1))
    assert toy.fixed.tolist() == [7.0]
    assert toy.fixed.grad is None


# ---------------------------------------------------------------- one epoch


def test_an_epoch_sees_each_row_once_in_even_batches_and_random_order():
    trainer, batches, orders = Trainer(Toy(), 0.1), [], []

    def gather(order):
        orders.append(order)
        return order, TARGETS[order]

    def losses(epoch, index, targets):
        assert torch.equal(TARGETS[index], targets)
        batches.append(index)
        return distance(trainer.module, targets)

    rows = rows_of(trainer, losses, gather, batch_size=13)
    trainer.epoch(rows)
    assert [len(index) for index in batches] == [10] * 4
    assert torch.equal(torch.cat(batches), orders[0])
    trainer.epoch(rows)
    for order in orders:
        assert sorted(order.tolist()) == list(range(40))
    assert not torch.equal(*orders)


@pytest.mark.parametrize("batch_size", [1, 7, 39, 40, 1_000])
def test_batches_differ_by_one_row_at_most(batch_size):
    trainer, sizes = Trainer(Toy(), 0.1), []

    def losses(epoch, targets):
        sizes.append(len(targets))
        return distance(trainer.module, targets)

    trainer.epoch(rows_of(trainer, losses, batch_size=batch_size))
    assert sum(sizes) == 40
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("batch_size", [40, 13])
def test_the_loss_of_an_epoch_is_the_mean_over_rows_and_their_weights(batch_size):
    trainer = Trainer(Toy(), 1e-12)
    expected = distance(trainer.module, TARGETS).detach()
    alike = trainer.epoch(rows_of(trainer, batch_size=batch_size))
    assert alike == pytest.approx(float(expected.mean()), rel=1e-5)
    weighted = trainer.epoch(rows_of(trainer, weights=WEIGHTS, batch_size=batch_size))
    assert weighted == pytest.approx(float((WEIGHTS * expected).mean()), rel=1e-5)


def test_long_gradients_are_clipped_and_short_ones_kept():
    free = torch.arange(7.0)

    def gradient(max_grad_norm):
        trainer = Trainer(Toy(), 0.1, max_grad_norm=max_grad_norm)
        trainer.grad.copy_(free)
        trainer._step(0.0, 0.0, 0.0, 0.0)
        return trainer.grad

    torch.testing.assert_close(gradient(0.5), free * 0.5 / free.norm())
    for enough in (2 * float(free.norm()), math.inf):
        assert torch.equal(gradient(enough), free)


def test_clipping_a_gradient_of_zero():
    trainer = Trainer(Toy(), 0.1, max_grad_norm=1.0)
    start = trainer.flat.clone()
    trainer.epoch(rows_of(trainer, lambda epoch, t: 0.0 * distance(trainer.module, t)))
    assert torch.equal(trainer.flat, start)


def test_training_mode_within_an_epoch_alone():
    trainer, modes = Trainer(Toy(), 0.1), []
    trainer.module.eval()

    def losses(epoch, targets):
        modes.append(trainer.module.training)
        return distance(trainer.module, targets)

    trainer.epoch(rows_of(trainer, losses))
    assert modes == [True] * 5
    assert not trainer.module.training
    trainer.modes = False
    trainer.epoch(rows_of(trainer, losses))
    assert modes == [True] * 5 + [False] * 5


# ---------------------------------------------------------------- the optimiser


@pytest.mark.parametrize("max_grad_norm", [math.inf, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("n_batches", [1, 4, 8, 10, 14])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_schedule_free_adam_as_published(max_grad_norm, alpha, n_batches, on_cpu):
    """Algorithm 1 of Defazio et al. (2024), with Adam's scaling, written out."""
    toy = Toy()
    groups = [Group([toy.matrix], alpha, factor=0.5), Group([toy.point], factor=2.0)]
    trainer = Trainer(toy, 0.05, max_grad_norm, groups)
    trainer.on_cpu = on_cpu  # the arithmetic of a GPU needs none
    x = z = trainer.flat.double()  # the four of the matrix first
    factor = torch.tensor([0.5] * 4 + [2.0] * 3)
    squares, counts, total = torch.zeros((200, 7)), torch.zeros(200, 1), 0.0
    losses = lambda *_: distance(toy, TARGETS)  # noqa: E731  # of each batch the same
    # of each step of an epoch, how many alike the average counts it as, later on
    later = {1: [1], 4: [1] * 4, 8: [1] * 8, 10: [0, 0, 0, 0, 5] * 2}
    later[14] = [0, 0, 0, 0, 5] * 2 + [1] * 4
    for t in range(1, 4 * WARM_UP + 1):
        y = (1 - NEARNESS) * z + NEARNESS * x
        grad = torch.cat([y[:4], y[4:] - TARGETS.double().mean(0)])
        grad = grad * min(1.0, max_grad_norm / float(grad.norm()))
        rate = 0.05 * min(1.0, t / WARM_UP)
        epoch, step = divmod(t - 1, n_batches)
        n_alike = later[n_batches][step] if epoch * n_batches >= 100 else 1
        weight = n_alike * t**LATENESS * rate**2
        total += weight
        rise = weight / total
        share = 1 - NEARNESS * (1 - rise)
        # the penalty's gradient is of where the parameters are when Adam moves them
        grad[:4] += alpha * (x + share * (z - x))[:4]
        # squares of ten steps weigh alike, those of the ten before nine tenths of it
        if t % 10 == 1:
            counts *= 0.9
        squares[t - 1], counts[t - 1] = grad**2, 1.0
        z = z - factor * rate * grad / ((counts * squares).sum(0) / counts.sum()).sqrt()
        x = x + rise * (z - x)
        if t % n_batches == 0:
            trainer.epoch(rows_of(trainer, losses, batch_size=-(-40 // n_batches)))
            torch.testing.assert_close(trainer.flat, x.float(), rtol=1e-4, atol=1e-4)
    assert (x - z).abs().max() > 0.01  # that an average differs from the last can be seen


@pytest.mark.parametrize("n_batches", [1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 40])
def test_each_epoch_moves_the_average(n_batches):
    """Also where most steps leave it, and to the weights of its own last step."""
    trainer = Trainer(Toy(), 0.05)
    for _ in range(300 // n_batches):
        before = trainer.flat.clone()
        trainer.epoch(rows_of(trainer, batch_size=-(-40 // n_batches)))
        assert not torch.equal(trainer.flat, before)
    assert [push > 0 for *_, push in trainer._lengths(n_batches)][-1]


def test_parameters_keep_their_order_in_memory():
    """Of columns, or of channels; in the flat tensor, and in the gradient's."""
    toy = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    toy.matrix = nn.Parameter(torch.arange(6.0).reshape(3, 2).t())
    before = {name: (p.clone(), p.stride()) for name, p in toy.named_parameters()}
    trainer = Trainer(toy, 0.1)
    flat = trainer.flat.untyped_storage().data_ptr()
    for name, p in toy.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.stride() == p.grad.stride() == before[name][1]
        assert p.untyped_storage().data_ptr() == flat
    assert before["matrix"][1] == (1, 2)
    assert len(trainer.flat) == sum(p.numel() for p in toy.parameters())
    trainer.flat.copy_(torch.arange(len(trainer.flat)))
    every = torch.cat([p.reshape(-1) for p in toy.parameters()])
    assert torch.equal(every.sort().values, trainer.flat)  # none overlaps another


def test_a_reset_forgets_all_but_the_weights():
    trainer = Trainer(Toy(), 0.05)
    for _ in range(3):
        trainer.epoch(rows_of(trainer))
    trainer.reset(0.02)
    other = Toy()
    other.load_state_dict(trainer.module.state_dict())
    fresh = Trainer(other, 0.02)
    for one in (trainer, fresh):
        one.epoch(rows_of(one))
    assert torch.equal(trainer.flat, fresh.flat)
    assert torch.equal(trainer.state()["squares"], fresh.state()["squares"])
    assert trainer.n_steps == fresh.n_steps == 5


def test_another_default_precision():
    """Which scalars that torch's step reads do not follow."""
    torch.set_default_dtype(torch.float64)
    try:
        twin = Trainer(Toy().float(), 0.05, max_grad_norm=0.5)
        twin.epoch(rows_of(twin, lambda epoch, t: distance(twin.module, t.float())))
    finally:
        torch.set_default_dtype(torch.float32)
    trainer = Trainer(Toy(), 0.05, max_grad_norm=0.5)
    trainer.epoch(rows_of(trainer))
    torch.testing.assert_close(twin.flat, trainer.flat)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_squares_without_a_gradient_stay_normal_numbers(on_cpu):
    """Which take a processor many times less than denormal ones."""
    trainer = Trainer(Toy(), 0.05)
    trainer.on_cpu = on_cpu
    trainer.squares.fill_(1e-16)
    for lengths in trainer._lengths(8000):
        trainer._step(*(lengths if on_cpu else torch.tensor(lengths)))
    assert trainer.squares.min() > torch.finfo(torch.float32).tiny


def test_the_average_needs_no_falling_rate():
    """Noisy gradients, one row at a time: the average is far nearer than the last iterate."""
    toy = Toy()
    trainer = Trainer(toy, 0.05)
    rows = rows_of(trainer, batch_size=1)
    distances = []
    for _ in range(100):
        trainer.epoch(rows)
        mean = TARGETS.mean(0)
        distances.append([(p[:3] - mean).norm() for p in (trainer.flat, trainer.beside)])
    average, last = torch.tensor(distances)[50:].mean(0)
    assert average < 0.2 * last


# ---------------------------------------------------------------- the fit


def test_it_reaches_the_optimum():
    toy = Toy()
    trainer = Trainer(toy, 0.1)
    history = fit(trainer, rows=rows_of(trainer, weights=WEIGHTS, batch_size=40), max_iter=2000)
    assert 1000 < history.n_iter <= 2000
    mean = (WEIGHTS[:, None] * TARGETS).sum(0) / WEIGHTS.sum()
    # as near as the loss, half a squared distance in single precision, can tell
    near = math.sqrt(2 * torch.finfo(torch.float32).eps * history.losses[-1])
    torch.testing.assert_close(toy.point.detach(), mean, rtol=0, atol=near)
    assert toy.matrix.abs().max() < near
    assert near < 1e-3


def test_best_weights_are_restored():
    trainer = Trainer(Toy(), 0.1)
    script = Script(trainer, [0.0, 1.0, 5.0, 2.0, 4.0])
    history = fit(trainer, script, max_iter=4)
    assert torch.equal(trainer.flat, script.seen[2])
    assert not torch.equal(script.seen[2], script.seen[4])
    assert (history.best_score, history.best_iter) == (5.0, 2)
    assert history.scores == [1.0, 5.0, 2.0, 4.0]
    assert history.path == [0.1, 0.1]
    assert not trainer.module.training


def test_the_start_is_among_the_candidates():
    trainer = Trainer(Toy(), 0.1)
    start = trainer.flat.clone()
    history = fit(trainer, Script(trainer, [0.0, -1.0, -2.0, -0.5]), max_iter=3)
    assert torch.equal(trainer.flat, start)
    assert (history.best_score, history.best_iter, history.path) == (0.0, 0, [])


def test_without_evaluation_the_last_weights_stay():
    trainer = Trainer(Toy(), 0.1)
    after = []
    history = fit(trainer, max_iter=3, on_epoch=lambda history: after.append(trainer.flat.clone()))
    assert torch.equal(trainer.flat, after[-1])
    assert history.scores == [-loss for loss in history.losses]
    assert len(after) == 3


def test_patience():
    trainer = Trainer(Toy(), 0.1)
    script = Script(trainer, [0.0, 1.0] + [0.5] * 20)
    history = fit(trainer, script, n_iter_no_change=3)
    assert history.converged
    assert history.n_iter == 4
    assert history.rose
    assert torch.equal(trainer.flat, script.seen[1])


def test_a_rise_below_tol_is_kept_and_does_not_count():
    trainer = Trainer(Toy(), 0.1)
    script = Script(trainer, [0.0] + [0.01 * i for i in range(1, 20)])
    history = fit(trainer, script, tol=0.5, n_iter_no_change=2)
    assert history.n_iter == 2
    assert (history.best_score, history.best_iter) == (0.02, 2)
    assert not history.rose


def test_on_epoch_stops():
    history = fit(Trainer(Toy(), 0.1), on_epoch=lambda history: history.n_iter == 4)
    assert history.n_iter == 4
    assert not history.converged


# ---------------------------------------------------------------- when things go wrong


def test_a_loss_that_is_not_finite_goes_back_and_lowers_the_step():
    trainer = Trainer(Toy(), 0.1)
    script = Script(trainer, [0.0, 1.0, 0.5, 2.0, 3.0])

    starts = []

    def losses(epoch, targets):
        if len(starts) == epoch:
            starts.append(trainer.flat.clone())
        loss = distance(trainer.module, targets)
        return loss * math.nan if epoch == 2 else loss

    history = fit(trainer, script, rows_of(trainer, losses), max_iter=5)
    assert [math.isnan(loss) for loss in history.losses] == [False, False, True, False, False]
    assert [math.isnan(score) for score in history.scores] == [False, False, True, False, False]
    assert torch.equal(starts[3], script.seen[1])  # the best before the failure
    lower = 0.1 / DECAY
    assert history.path == pytest.approx([0.1, lower, lower])
    assert trainer.learning_rate == pytest.approx(lower)
    assert history.best_score == 3.0
    assert trainer.flat.isfinite().all()


def test_a_score_that_is_not_finite_is_no_score():
    trainer = Trainer(Toy(), 0.1)
    script = Script(trainer, [0.0, math.inf, math.nan, 1.0])
    history = fit(trainer, script, max_iter=3)
    assert (history.best_score, history.best_iter) == (1.0, 3)


def test_weights_that_are_not_finite_are_noticed_in_the_epoch():
    """A loss may be finite whose gradient is not, and the last step's is no next one's loss."""
    trainer, steps = Trainer(Toy(), 0.1), []

    def losses(epoch, targets):
        steps.append(epoch)
        loss = distance(trainer.module, targets)
        if len(steps) == 10:  # the last of the second epoch
            loss = loss + (0 * trainer.module.point).abs().pow(0.5).sum()  # slope infinity
        return loss

    found = [trainer.epoch(rows_of(trainer, losses), epoch) for epoch in range(2)]
    assert math.isfinite(found[0])
    assert math.isnan(found[1])
    trainer = Trainer(Toy(), 0.1)
    steps.clear()
    assert not trainer.replay(rows_of(trainer, losses), [0.1] * 3)
    assert len(steps) == 10  # it goes no further


def test_the_best_epochs_optimiser_comes_back_with_its_weights():
    """Training goes on from there, in a fit that is resumed."""
    trainer = Trainer(Toy(), 0.1)
    states = []
    script = Script(trainer, [0.0, 1.0, 5.0, 2.0, 4.0])

    def evaluate():
        states.append(copy.deepcopy(trainer.state()))
        return script()

    fit(trainer, evaluate, max_iter=4)
    after, best, last = trainer.state(), states[2], states[4]
    assert after.keys() == best.keys() == {"iterate", "squares", "n_steps", "total"}
    for name, value in after.items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(value, best[name]) and not same(value, last[name])


def test_the_best_epochs_statistics_come_back_with_its_weights():
    trainer = Trainer(Toy(), 0.1)
    trainer.module.register_buffer("n_seen", torch.zeros(()))

    def losses(epoch, targets):
        trainer.module.n_seen += len(targets)
        return distance(trainer.module, targets)

    script = Script(trainer, [0.0, 1.0, 5.0, 2.0, 4.0])
    fit(trainer, script, rows_of(trainer, losses), max_iter=4)
    assert trainer.module.n_seen == 2 * len(TARGETS)


def test_an_interruption_without_evaluation_keeps_the_best_weights():
    trainer, steps, after = Trainer(Toy(), 0.1), [], []

    def losses(epoch, targets):
        steps.append(epoch)
        if len(steps) == 13:  # the third of the five steps of the third epoch
            raise KeyboardInterrupt
        return distance(trainer.module, targets)

    history = fit(
        trainer,
        rows=rows_of(trainer, losses),
        on_epoch=lambda history: after.append(trainer.flat.clone()),
    )
    assert history.interrupted
    assert torch.equal(trainer.flat, after[-1])


def test_it_gives_up_on_a_loss_that_is_never_finite():
    trainer = Trainer(Toy(), 0.1)
    rows = rows_of(trainer, lambda epoch, t: math.inf * distance(trainer.module, t))
    with pytest.raises(FloatingPointError) as error:
        fit(trainer, Script(trainer, [0.0]), rows)
    assert f"{MAX_RECOVERIES + 1} times" in str(error.value)
    assert f"epoch {MAX_RECOVERIES + 1} " in str(error.value)
    assert f"{0.1 / DECAY**MAX_RECOVERIES:.1e}" in str(error.value)


def test_an_interruption_keeps_the_best_weights():
    trainer = Trainer(Toy(), 0.1)
    script = Script(trainer, [0.0, 1.0, 0.5, KeyboardInterrupt()])
    history = fit(trainer, script)
    assert history.interrupted
    assert history.scores == [1.0, 0.5]
    assert torch.equal(trainer.flat, script.seen[1])


def test_an_interruption_within_an_epoch_keeps_the_best_weights():
    trainer, steps = Trainer(Toy(), 0.1), []

    def losses(epoch, targets):
        steps.append(epoch)
        if len(steps) == 13:  # the third of the five steps of the third epoch
            raise KeyboardInterrupt
        return distance(trainer.module, targets)

    script = Script(trainer, [0.0, 1.0, 2.0])
    history = fit(trainer, script, rows_of(trainer, losses))
    assert history.interrupted
    assert torch.equal(trainer.flat, script.seen[2])
    assert not trainer.module.training


# ---------------------------------------------------------------- replay


def noisy(trainer, seed):
    """Rows whose losses draw from the generator, as a variational autoencoder's do."""

    generator = torch.Generator().manual_seed(seed)

    def gather(order):
        return TARGETS[order], torch.randn(len(order), 3, generator=generator)

    def losses(epoch, targets, noise):
        return (1 + epoch) * distance(trainer.module, targets + 0.3 * noise)

    return rows_of(trainer, losses, gather, seed=seed)


@pytest.mark.parametrize("best", [1, 6, 8])
def test_replay_repeats_a_fit_to_the_bit(best):
    first, second = Trainer(Toy(), 0.1), Trainer(Toy(), 0.1)
    # nothing after the best epoch may matter
    script = Script(first, [float(i if i <= best else -1) for i in range(9)])
    history = fit(first, script, noisy(first, 5), max_iter=8)
    assert history.best_iter == best
    second.replay(noisy(second, 5), history.path)
    assert torch.equal(first.flat, second.flat)
    assert not second.module.training
    third = Trainer(Toy(), 0.1)
    third.replay(noisy(third, 6), history.path)
    assert not torch.equal(first.flat, third.flat)


def test_replay_follows_the_learning_rates():
    trainer, rates = Trainer(Toy(), 0.1), []

    def losses(epoch, targets):
        rates.append((epoch, trainer.learning_rate))
        return distance(trainer.module, targets)

    trainer.replay(rows_of(trainer, losses, batch_size=40), [0.1, 0.1, 0.02])
    assert rates == [(0, 0.1), (1, 0.1), (2, 0.02)]


def test_it_goes_on_in_another_trainer():
    one, two = Trainer(Toy(), 0.1), Trainer(Toy(), 0.1)
    for _ in range(4):
        one.epoch(rows_of(one, batch_size=40))
    for _ in range(2):
        two.epoch(rows_of(two, batch_size=40))
    state = two.state()
    three = Trainer(two.module, 0.1)
    three.resume(state)
    for _ in range(2):
        three.epoch(rows_of(three, batch_size=40))
    # batches of all rows: only the order of summation differs
    torch.testing.assert_close(three.flat, one.flat)


# ---------------------------------------------------------------- numbers too small


def test_small_numbers_are_zero_within_an_epoch_alone():
    def denormals():
        return torch.tensor(1e-40).add(0.0).item() > 0

    seen = []
    trainer = Trainer(Toy(), 0.1)

    def losses(epoch, targets):
        seen.append(denormals())
        return distance(trainer.module, targets)

    for before in (True, False):
        torch.set_flush_denormal(not before)
        try:
            trainer.epoch(rows_of(trainer, losses))
            assert denormals() == before
        finally:
            torch.set_flush_denormal(False)
    assert not any(seen)


def test_a_process_that_is_lost_before_the_first_epoch_leaves_a_history():
    """What a fit goes on from is asked of each such error."""
    toy = Toy()
    before = [p.detach().clone() for p in toy.parameters()]

    def evaluate():
        raise ConnectionError("lost")

    with pytest.raises(ConnectionError, match="lost") as caught:
        fit(Trainer(toy, 0.1), evaluate)
    assert caught.value.history.n_iter == caught.value.history.best_iter == 0
    assert all(torch.equal(p, old) for p, old in zip(toy.parameters(), before, strict=True))
