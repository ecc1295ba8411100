"""What a fitted model says about itself, against closed forms."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from skvae import VAETransformer

WINE = load_wine().data
SCALED = (WINE - WINE.mean(0)) / WINE.std(0)
IRIS = load_iris().data
CANCER = load_breast_cancer().data
NORMAL = np.random.default_rng(0).normal(size=(300, 6)) @ np.random.default_rng(1).normal(
    size=(6, 6)
)


def linear(k, **parameters):
    options = {"max_iter": 0, "precision_power": 0, "noise": "isotropic", "random_state": 0}
    return VAETransformer(k, **{**options, **parameters})


def test_what_components_explain_is_pcas_share_where_the_model_is_linear():
    """Posterior means shrink by s = 1 - noise / variance: v is explained by 1 - (1 - s)^2."""
    vae = linear(4).fit(WINE)
    v = PCA(4).fit(SCALED).explained_variance_
    noise = float(vae.noise_variance_[0] / WINE[:, 0].var())
    shrunk = 1 - noise / (v * 177 / 178)  # of n, not of n - 1
    explained = v * (1 - (1 - shrunk) ** 2)
    np.testing.assert_allclose(vae.explained_share_, explained / explained.sum(), rtol=1e-4)
    assert vae.explained_share_.sum() == pytest.approx(1.0, rel=1e-5)


def test_components_that_say_nothing_explain_nothing():
    vae = VAETransformer(4, beta=4.0, random_state=0).fit(WINE)
    collapsed = vae.kl_per_component_ < 0.01
    assert collapsed.any()
    assert np.abs(vae.explained_share_[collapsed]).max() < 0.02


@pytest.mark.parametrize("prior", ["normal", "mixture"])
def test_all_points_count_where_laplace_is_exact(prior):
    vae = linear(2, prior=prior).fit(WINE)
    if prior == "normal":  # points of the posterior itself, widened by 1 + 8 / 2^1.5
        width = 1 + 8 / 2**1.5
        # E[w^2] / E[w]^2 of a normal over one of `width` times its variance, in two dimensions
        expected = (2 - 1 / width) / width
        assert vae.score_efficiency_ == pytest.approx(expected, abs=0.02)
    assert 0 < vae.score_efficiency_ <= 1


def test_the_gain_is_that_of_held_out_rows_over_the_start():
    """Models of one seed share start and held-out rows, whatever they learn from there."""
    options = {"random_state": 0, "noise": "homoscedastic"}
    starts = []
    for alpha in (1.0, 30.0):
        vae = VAETransformer(2, alpha=alpha, **options).fit(WINE)
        assert vae.linear_gain_ > 0 < vae.linear_gain_error_
        starts.append(vae.best_validation_score_ - vae.linear_gain_)
    assert starts[0] == pytest.approx(starts[1], abs=1e-3)
    assert VAETransformer(2, max_iter=0, **options).fit(WINE).linear_gain_ is None


def test_the_spreads_gain_needs_a_spread_and_held_out_rows():
    vae = VAETransformer(2, random_state=0, warm_start=True).fit(WINE)
    assert vae.spread_gain_ > 0 < vae.spread_gain_error_
    assert vae.fit(WINE).spread_gain_ is None  # what it goes on from is no constant spread
    for without in (
        VAETransformer(2, noise="homoscedastic", random_state=0),
        VAETransformer(2, early_stopping=False, max_iter=3, tol=0.0, random_state=0),
        VAETransformer(2, max_iter=0),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            without.fit(WINE)
        assert without.spread_gain_ is None and without.spread_gain_error_ is None
        assert "spread" not in without.summary()


def test_partial_fit_and_no_held_out_rows_know_no_gain():
    vae = VAETransformer(2, random_state=0).partial_fit(IRIS)
    assert vae.linear_gain_ is None
    assert vae.linear_gain_error_ is None
    assert vae.spread_gain_ is None
    assert "Gain" not in vae.summary()


def test_a_pass_spares_itself_what_costs_more_than_it():
    vae = VAETransformer(2, random_state=0).fit(IRIS)
    assert "is lost without it" in vae.summary()
    vae.partial_fit(IRIS)
    assert vae.explained_share_ is None
    assert vae.score_efficiency_ is None
    assert "is lost" not in vae.summary()
    assert "Scores" not in vae.summary()


def test_the_summary_says_what_the_attributes_do():
    vae = VAETransformer(3, random_state=0).fit(CANCER)
    text = vae.summary()
    assert text.startswith("VAETransformer(n_components=3, random_state=0)\nTraining: ")
    best = vae.best_validation_score_
    epoch = vae.validation_scores_.index(best) + 1
    assert (
        f"{vae.n_iter_} epochs. Best held-out ELBO {best:.3f} nats per row, in epoch {epoch}."
        in text
    )
    gain, error = vae.linear_gain_, vae.linear_gain_error_
    line = (
        f"Gain of the mean over the linear start: {gain:.3f} ± {error:.3f} nats per held-out row."
    )
    assert line in text
    assert ("No clear gain: codes" in text) == (gain <= 2 * error)
    more, error = vae.spread_gain_, vae.spread_gain_error_
    assert more > 2 * error
    line = f"by a spread that depends on z: {more:.3f} ± {error:.3f} nats per held-out row."
    assert line in text
    vae.spread_gain_ = 1.5 * error
    assert f"± {error:.3f} nats per held-out row, not a clear one." in vae.summary()
    # where training has gone back to its best weights after a loss that was not finite
    vae.validation_scores_[0] = np.nan
    assert f"Best held-out ELBO {best:.3f} nats per row, in epoch {epoch}." in vae.summary()
    assert ("The encoder is linear" in text) == vae.linear_encoder_
    total = vae.kl_per_component_.sum()
    assert f"{vae.n_active_components_} of 3 active, {total:.2f} nats per row." in text
    best = int(vae.kl_per_component_.argmax())
    share = vae.explained_share_[best]
    nats = vae.kl_per_component_[best]
    line = f"component {best}: {nats:.2f} nats, {share:.0%} of the fit is lost without it."
    assert text.splitlines()[[line in row for row in text.splitlines()].index(True) - 1].startswith(
        "Components:"
    )
    assert text.endswith(f"Scores: {vae.score_efficiency_:.0%} of 256 points count, enough.")
    vae.score_efficiency_ = 0.02
    assert vae.summary().endswith(
        "Scores: 2% of 256 points count, few: single scores are rough. Raise n_score_samples, or "
        "lower n_components."
    )


def test_the_summary_of_one_spread_tells_when_a_linear_model_does_as_well():
    vae = VAETransformer(2, noise="homoscedastic", random_state=0).fit(NORMAL)
    gain, error = vae.linear_gain_, vae.linear_gain_error_
    assert gain <= 2 * error
    lines = vae.summary().splitlines()
    assert lines[1].endswith(" nats per row, at the start.") == (gain == 0)
    assert lines[2].startswith("  Gain over the linear start: ")
    assert lines[3] == (
        "  No clear gain: a linear model (PCA, FactorAnalysis) does as well on these rows."
    )


def test_components_beyond_the_columns_leave_the_start_as_it_is():
    """Loadings of zero are a saddle, and what they get in their place costs next to nothing."""
    bounds = []
    for k in (12, 13, 20):
        vae = VAETransformer(k, max_iter=1, learning_rate_init=1e-9, random_state=0).fit(WINE)
        bounds.append(vae.validation_scores_[0])
    # what the draws differ by; surplus loadings beside a noise at its floor cost 13 nats once
    assert max(bounds) - min(bounds) < 0.5


def test_the_summary_tells_of_collapse_and_of_the_autoencoder():
    vae = VAETransformer(4, beta=30.0, random_state=0).fit(WINE)
    n = 4 - vae.n_active_components_
    assert f"{n} say less than 0.01 nats: these data do not need them, at beta=30." in vae.summary()
    plain = VAETransformer(3, beta=0, random_state=0, max_iter=0).fit(WINE)
    assert "Components: 3, of a plain autoencoder (beta=0)." in plain.summary()
    assert plain.score_efficiency_ is None
    assert plain.explained_share_.sum() == pytest.approx(1.0, rel=1e-5)
