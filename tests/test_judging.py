"""What held-out rows say: their bounds, means and errors, and what counts as a proof."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from skvae import VAETransformer, judging
from skvae.families import gaussian_part
from skvae.judging import PROOF, mean_and_error, proven
from skvae.targets import Stored
from skvae.workspace import width


@pytest.mark.parametrize("mixed", [False, True])
def test_held_out_rows_are_judged_at_the_spread_that_suits_them(mixed, monkeypatch):
    """The ELBO of each row at the common spread that is best for all by their shares."""
    random = np.random.default_rng(0)
    X = random.normal(size=(60, 2)) @ random.normal(size=(2, 4)) + random.normal(size=(60, 4))
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcd"))
    if mixed:
        frame.insert(1, "flag", X[:, 0] > 0)
    vae = VAETransformer(2, max_iter=0, random_state=0, precision_power=0.5).fit(frame)
    fit, model = vae._fit, vae._fit.mean
    targets = torch.from_numpy(model.likelihood.standardize(vae._columns.encode(frame)))
    share = torch.from_numpy(random.dirichlet(np.full(60, 0.3)))
    noise = torch.from_numpy(random.normal(size=(3, 60, 2)))
    data = Stored(targets, share, torch.zeros(60), gaps=False)
    judged_by = model, data, share, noise, None, fit.settings
    judged = judging.judge(*judged_by)
    decoded = []
    hook = model.decoder.register_forward_hook(lambda _, given, out: decoded.append(len(out)))
    # of seven rows at a time, each at three draws
    monkeypatch.setattr("skvae.judging.CACHED", 7 * 3 * width(model))
    torch.testing.assert_close(judging.judge(*judged_by), judged)
    hook.remove()
    assert decoded == [21] * 8 + [12]

    part, columns = gaussian_part(model.likelihood)
    with torch.no_grad():
        mean, log_var = model.posterior(targets)
        z = mean + (0.5 * log_var).exp() * noise
        raw = model.decoder(z.reshape(-1, 2)).reshape(3, 60, -1)
        error = (targets[:, columns] - raw[..., model.likelihood.n_inputs - 4 :]).square()
        part.common.copy_((share @ (error / part.base.exp()).mean((0, 2))).log())
        elbo = model.likelihood.log_prob(raw, targets).sum(-1).mean(0)
        elbo -= model.prior.kl(mean, log_var).sum(-1)
    torch.testing.assert_close(judged, elbo)


def test_what_proves_that_rows_gain():
    gains = torch.linspace(0.1, 1.0, 11)
    assert proven(gains)
    assert not proven(gains[:4])  # 2 ** -4 is no proof, and Student's is 0.01
    assert not proven(-gains)
    for nothing in (torch.zeros(11), torch.zeros(1), torch.ones(1), torch.zeros(0)):
        assert not proven(nothing)
    assert proven(torch.ones(3))
    gains[3] = -1e6  # one wild row is no proof of the contrary, where there are enough others
    assert not proven(gains)
    assert proven(torch.cat([gains, gains.abs().clamp_max(1.0), gains.abs().clamp_max(2.0)]))
    others = torch.linspace(-1.0, 0.5, 11)
    others[3] = 1e6  # nor is it one
    assert not proven(others)
    # some rows gain much and as many lose a little: no matter for signs, but for the mean
    both = torch.cat([torch.linspace(8, 13, 19), torch.linspace(-1.8, 0, 20)])
    assert wilcoxon(both.numpy(), alternative="greater").pvalue > PROOF
    assert proven(both)


def test_weighted_means_and_their_errors():
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    equal = torch.full((3,), 1 / 3, dtype=torch.float64)
    mean, error = mean_and_error(values, equal)
    assert mean == pytest.approx(7 / 3)
    assert error == pytest.approx(np.std(values.numpy(), ddof=1) / math.sqrt(3))
    assert mean_and_error(values[:1], torch.ones(1, dtype=torch.float64)) == (1.0, math.inf)
