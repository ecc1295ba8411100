"""What a fitted model says about itself, against closed forms."""

import numpy as np
import pytest
from sklearn.datasets import load_iris, load_wine
from sklearn.decomposition import PCA

from skvae import VAETransformer

WINE = load_wine().data
SCALED = (WINE - WINE.mean(0)) / WINE.std(0)
IRIS = load_iris().data


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


def test_partial_fit_and_no_held_out_rows_know_no_gain():
    vae = VAETransformer(2, random_state=0).partial_fit(IRIS)
    assert vae.linear_gain_ is None
    assert vae.linear_gain_error_ is None
    assert "Gain" not in vae.summary()


def test_a_pass_spares_itself_what_costs_more_than_it():
    vae = VAETransformer(2, random_state=0).fit(IRIS)
    assert "explains" in vae.summary()
    vae.partial_fit(IRIS)
    assert vae.explained_share_ is None
    assert vae.score_efficiency_ is None
    assert "explains" not in vae.summary()
    assert "Scores" not in vae.summary()


def test_the_summary_says_what_the_attributes_do():
    vae = VAETransformer(3, random_state=0).fit(WINE)
    text = vae.summary()
    assert text.startswith("VAETransformer(n_components=3, random_state=0)\nTraining: ")
    assert f"{vae.n_iter_} epochs. Best held-out ELBO {vae.best_validation_score_:.3f} nats" in text
    gain, error = vae.linear_gain_, vae.linear_gain_error_
    assert f"Gain over the linear start: {gain:.3f} ± {error:.3f} nats per held-out row." in text
    assert ("No clear gain" in text) == (gain <= 2 * error)
    assert ("The encoder is linear" in text) == vae.linear_encoder_
    total = vae.kl_per_component_.sum()
    assert f"{vae.n_active_components_} of 3 active, {total:.2f} nats per row." in text
    best = int(vae.kl_per_component_.argmax())
    share = vae.explained_share_[best]
    line = f"component {best}: {vae.kl_per_component_[best]:.2f} nats, explains {share:.0%}."
    assert text.splitlines()[[line in row for row in text.splitlines()].index(True) - 1].startswith(
        "Components:"
    )
    assert f"of 256 points, {vae.score_efficiency_:.0%} count" in text


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
