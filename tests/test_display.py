"""What displays draw is what the model says; what they are given may be any table."""

import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import coo_array
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer, VAETransformer

plt = pytest.importorskip("matplotlib.pyplot")

from matplotlib.colors import to_rgb  # noqa: E402

from skvae.display import (  # noqa: E402
    AnomalyDisplay,
    ComponentsDisplay,
    LatentDisplay,
    MarginalsDisplay,
    ReconstructionDisplay,
    TrainingDisplay,
    TraversalDisplay,
)

IRIS, SPECIES = load_iris(return_X_y=True)
NAMES = load_iris().target_names[SPECIES]
DIGITS = load_digits().data
COLUMNS = ["age", "sex", "smokes", "visits", "income"]


def linear(X, n_components=2, **params):
    """The linear start: a model in no time."""
    return VAETransformer(n_components, max_iter=0, random_state=0, **params).fit(X)


def table(library, n_rows=200):
    """Numbers, text, flags, counts and positive numbers, with gaps in the first and the second."""
    random = np.random.default_rng(0)
    z = random.normal(size=n_rows)
    cells = {
        "age": (40 + 10 * z).tolist(),
        "sex": np.where(random.uniform(size=n_rows) < 0.3, "male", "female").tolist(),
        "smokes": (z + random.normal(size=n_rows) > 0).tolist(),
        "visits": random.poisson(np.exp(0.5 * z)).tolist(),
        "income": np.exp(z + random.normal(size=n_rows)).tolist(),
    }
    for i in range(0, n_rows, 10):
        cells["age"][i] = cells["sex"][i] = None
    return library.DataFrame(cells)


MIXED = {"visits": "poisson", "income": "log_normal"}


@pytest.fixture(scope="module")
def iris():
    return linear(IRIS)


@pytest.fixture(scope="module")
def digits():
    return linear(DIGITS, 10)


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def texts(labels):
    return [label.get_text() for label in labels]


def legend(display):
    return texts(display.legend_.get_texts())


# ---------------------------------------------------------------------------- latents


def test_points_are_the_latents_in_the_order_of_the_rows(iris):
    display = LatentDisplay.from_estimator(iris, IRIS, NAMES)
    order = np.argsort(-iris.kl_per_component_)
    assert_array_equal(display.scatter_.get_offsets(), iris.transform(IRIS)[:, order])
    nats = iris.kl_per_component_
    assert display.ax_.get_xlabel() == f"component {order[0]} ({nats[order[0]]:.2f} nats)"
    assert display.ax_.get_ylabel() == f"component {order[1]} ({nats[order[1]]:.2f} nats)"
    assert legend(display) == ["setosa", "versicolor", "virginica"]
    colors = display.scatter_.get_facecolors()
    assert len(np.unique(colors, axis=0)) == 3
    assert_array_equal(colors[:50], np.tile(colors[0], (50, 1)))
    assert display.colorbar_ is None and display.errorbar_ is None


def test_components_are_those_that_are_asked_for(digits):
    display = LatentDisplay.from_estimator(digits, DIGITS, components=[7, 2])
    assert_array_equal(display.scatter_.get_offsets(), digits.transform(DIGITS)[:, [7, 2]])
    assert display.ax_.get_xlabel().startswith("component 7 (")
    assert display.legend_ is None  # no y


def test_numbers_are_a_scale_and_gaps_in_it_are_grey(iris):
    y = pd.Series(IRIS[:, 0], name="sepal length").mask(SPECIES == 1)
    display = LatentDisplay.from_estimator(iris, IRIS, y)
    assert_array_equal(display.scatter_.get_array().filled(np.nan), y)
    assert display.colorbar_.ax.get_ylabel() == "sepal length (grey: 50 missing)"
    display.figure_.canvas.draw()
    colors = display.scatter_.get_facecolors()
    assert_allclose(colors[50:100, :3], 0.82)
    assert (np.ptp(colors[:50, :3], axis=1) > 0.05).all()


@pytest.mark.parametrize(
    ("y", "names"),
    [
        ([0, 1, 2] * 50, ["0", "1", "2"]),
        ([0.0, 1.0, np.nan] * 50, ["0", "1", "missing"]),
        ([True, False] * 75, ["False", "True"]),
        (["b", "a", None] * 50, ["a", "b", "missing"]),
        (["b", "a", np.nan] * 50, ["a", "b", "missing"]),
        (np.array([1234567, 1234568] * 75), ["1234567", "1234568"]),
        (pd.Series(["b", "a", None] * 50, dtype="category"), ["a", "b", "missing"]),
        (pd.Series([1, 2, None] * 50, dtype="Int64"), ["1", "2", "missing"]),
        (pl.Series(["b", "a", None] * 50), ["a", "b", "missing"]),
        (pl.Series("flag", [True, False, None] * 50), ["False", "True", "missing"]),
    ],
)
def test_levels_of_all_kinds_have_a_legend(iris, y, names):
    display = LatentDisplay.from_estimator(iris, IRIS, y)
    assert legend(display) == names
    grey = (np.abs(display.scatter_.get_facecolors()[:, :3] - 0.82) < 1e-9).all(1)
    assert grey.sum() == (50 if "missing" in names else 0)


def test_many_levels_differ_by_markers_and_the_rarest_are_one(digits):
    y = np.repeat([f"{i:02d}" for i in range(30)], np.arange(75, 45, -1))[:1797]
    display = LatentDisplay.from_estimator(digits, DIGITS[: len(y)], y)
    assert legend(display) == [f"{i:02d}" for i in range(19)] + ["11 others"]
    paths = display.scatter_.get_paths()
    assert len(paths) == len(y)
    first, eleventh = np.flatnonzero(y == "00")[0], np.flatnonzero(y == "10")[0]
    colors = display.scatter_.get_facecolors()
    assert_array_equal(colors[first], colors[eleventh])
    assert len(paths[first]) != len(paths[eleventh])


def test_one_component_is_a_strip_for_each_level(iris):
    display = LatentDisplay.from_estimator(iris, IRIS, NAMES, components=1)
    x, y = np.asarray(display.scatter_.get_offsets()).T
    assert_array_equal(x, iris.transform(IRIS)[:, 1])
    assert_array_equal(np.round(y), SPECIES)
    assert texts(display.ax_.get_yticklabels()) == ["setosa", "versicolor", "virginica"]
    assert display.legend_ is None
    for level in range(3):  # at most as wide where there are few points
        strip = np.abs(y - level)[level == SPECIES]
        assert strip.max() < 0.41
        assert strip[np.argsort(x[level == SPECIES])[[0, -1]]].max() < 0.2


def test_one_component_lies_against_a_scale(iris):
    y = np.where(SPECIES == 1, np.nan, IRIS[:, 0])
    display = LatentDisplay.from_estimator(iris, IRIS, y, components=0)
    offsets = display.scatter_.get_offsets()
    assert_array_equal(np.ma.filled(offsets, np.nan)[:, 1], y)
    assert display.ax_.get_ylabel() == "y (50 missing)"


@pytest.mark.parametrize("components", [[0, 1], [1]])
def test_bars_are_the_posteriors_standard_deviations(iris, components):
    display = LatentDisplay.from_estimator(iris, IRIS, components=components, posterior=True)
    mean, std = iris.posterior(IRIS)
    bars = display.errorbar_.lines[2]
    assert len(bars) == len(components)
    ends = np.array([segment[:, 0] for segment in bars[0].get_segments()])
    wanted = mean[:, [components[0]]] + std[:, [components[0]]] * [-1, 1]
    assert_allclose(ends, wanted, atol=1e-12)


def test_many_points_are_small_and_a_bitmap(iris):
    few = LatentDisplay.from_estimator(iris, IRIS)
    many = LatentDisplay.from_estimator(iris, np.tile(IRIS, (40, 1)))
    assert not few.scatter_.get_rasterized() and many.scatter_.get_rasterized()
    assert few.scatter_.get_sizes() == [25] and many.scatter_.get_sizes() == [4]


# ---------------------------------------------------------------------------- training, components


def test_training_is_the_elbo_by_epoch():
    vae = VAETransformer(10, init="random", max_iter=6, random_state=0)
    with pytest.warns(match="still rose"):
        vae.fit(DIGITS[:300])
    display = TrainingDisplay.from_estimator(vae)
    training, held_out, best = display.lines_
    assert_array_equal(training.get_xdata(), np.arange(1, 7))
    assert_array_equal(training.get_ydata(), -np.array(vae.loss_curve_))
    assert_array_equal(held_out.get_ydata(), vae.validation_scores_)
    assert best.get_xdata() == [np.argmax(vae.validation_scores_) + 1]
    assert best.get_ydata() == [vae.best_validation_score_]
    assert display.ax_.get_ylabel() == "ELBO, nats per row"


def test_training_without_held_out_rows():
    vae = VAETransformer(early_stopping=False, random_state=0).partial_fit(IRIS)
    display = TrainingDisplay.from_estimator(vae)
    assert texts(display.ax_.get_legend().get_texts()) == ["training"]
    assert display.lines_[0].get_marker() == "o"  # a line of one epoch could not be seen


def test_the_start_may_be_best():
    display = TrainingDisplay(training=[-3, -2], validation=[-5, -6], best_score=-4).plot()
    assert display.lines_[2].get_label() == "best: the start, epoch 0 (-4.00)"
    assert display.lines_[2].get_xdata() == [0]


def test_an_epoch_whose_score_is_no_number_is_not_the_best():
    scores = [-3.0, np.nan, -2.0]
    display = TrainingDisplay(training=[-3, np.nan, -2], validation=scores, best_score=-2.0).plot()
    assert display.lines_[2].get_label() == "best: epoch 3 (-2.00)"


def test_first_epochs_that_are_far_away_are_said_to_be():
    curve = np.append([-1e6, -1e5], np.linspace(-20, -10, 50))
    display = TrainingDisplay(training=curve).plot()
    usual = np.percentile(curve, 10)
    assert display.ax_.get_ylim()[0] == usual - (-10 - usual)
    assert display.ax_.get_xlabel() == "epoch\n(2 of them lie below, up to epoch 2)"
    near = TrainingDisplay(training=curve[2:]).plot()
    assert near.ax_.get_xlabel() == "epoch"


def test_components_are_in_order_and_inactive_ones_grey():
    display = ComponentsDisplay(information=np.array([0.5, 0.001, 2.0]), n_active=2).plot()
    assert [bar.get_height() for bar in display.bars_] == [2.0, 0.5, 0.001]
    assert texts(display.ax_.get_xticklabels()) == ["2", "0", "1"]
    colors = [bar.get_facecolor() for bar in display.bars_]
    assert colors[0] == colors[1] != colors[2]


def test_components_of_an_estimator(iris):
    display = ComponentsDisplay.from_estimator(iris)
    assert sorted(bar.get_height() for bar in display.bars_) == sorted(iris.kl_per_component_)
    total = iris.kl_per_component_.sum()
    assert display.ax_.get_title() == f"2 of 2 components active, {total:.2f} nats in all"


# ---------------------------------------------------------------------------- reconstructions


def test_images_are_the_rows_and_their_reconstructions(digits):
    display = ReconstructionDisplay.from_estimator(digits, DIGITS, image_shape=(8, 8), n_rows=3)
    sheet = display.image_.get_array().filled(np.nan)
    assert sheet.shape == (17, 26)
    back = digits.inverse_transform(digits.transform(DIGITS[:3]))
    for i in range(3):
        assert_array_equal(sheet[:8, 9 * i : 9 * i + 8], DIGITS[i].reshape(8, 8))
        assert_array_equal(sheet[9:, 9 * i : 9 * i + 8], back[i].reshape(8, 8))
    assert np.isnan(sheet[8]).all() and np.isnan(sheet[:, [8, 17]]).all()
    assert texts(display.ax_.get_yticklabels()) == ["rows", "reconstructed"]
    assert display.image_.get_clim() == (DIGITS[:3].min(), DIGITS[:3].max())


def test_missing_pixels_are_neither_bright_nor_dark(digits):
    X = DIGITS[:3].copy()
    X[1, 20] = np.nan
    display = ReconstructionDisplay.from_estimator(digits, X, image_shape=(8, 8))
    assert np.isnan(display.image_.get_array().filled(np.nan)[2, 9 + 4])
    assert to_rgb(display.image_.get_cmap().get_bad()) == to_rgb("#cfe2f3")


def test_coloured_images_are_scaled_to_what_is_shown():
    X = np.random.default_rng(0).normal(size=(50, 12))
    vae = linear(X)
    display = ReconstructionDisplay.from_estimator(vae, X, image_shape=(2, 2, 3), n_rows=2)
    shown = np.stack([X[:2], vae.inverse_transform(vae.transform(X[:2]))])
    scaled = (shown - shown.min()) / np.ptp(shown)
    sheet = display.image_.get_array()
    assert sheet.shape == (5, 5, 3)
    assert_allclose(sheet[:2, 3:], scaled[0, 1].reshape(2, 2, 3))
    assert (sheet[2] == 1).all()


def test_profiles_are_in_standard_deviations():
    wine = load_wine(as_frame=True).data
    vae = linear(wine, 3)
    display = ReconstructionDisplay.from_estimator(vae, wine, n_rows=2)
    mean, std = wine.mean().to_numpy(), wine.std(ddof=0).to_numpy()
    back = vae.inverse_transform(vae.transform(wine[:2])).to_numpy()
    for i in range(2):
        row, reconstruction = display.lines_[i], display.errorbars_[i]
        assert_allclose(row.get_ydata(), (wine.to_numpy()[i] - mean) / std)
        assert_allclose(reconstruction.lines[0].get_ydata(), (back[i] - mean) / std)
        bars = np.array(reconstruction.lines[2][0].get_segments())
        assert_allclose(np.ptp(bars[:, :, 1], axis=1), 2 * vae.noise_variance_**0.5 / std)
    assert texts(display.axes_[-1].get_xticklabels()) == list(wine.columns)
    assert [axis.get_ylabel() for axis in display.axes_] == ["row 0", "row 1"]
    # no point lies outside of the panels, which share their scale
    low, high = display.axes_[0].get_ylim()
    assert low < min(display.rows.min(), display.reconstructions.min())
    assert high > max(display.rows.max(), display.reconstructions.max())


@pytest.mark.parametrize("library", [pd, pl])
def test_profiles_of_a_table_leave_text_out_and_say_so(library):
    X = table(library)
    vae = linear(X, likelihood=MIXED)
    display = ReconstructionDisplay.from_estimator(vae, X)
    assert display.feature_names == ["age", "smokes", "visits", "income"]
    assert display.left_out == ["sex"]
    title = display.axes_[0].figure.axes[-1].get_legend().get_title().get_text()
    assert title.endswith("\nnot drawn (text): sex")
    assert_array_equal(np.isnan(display.rows[:, 0]), [True, False, False, False])
    assert np.isfinite(display.reconstructions).all()
    ages = np.array([float("nan") if a is None else a for a in X["age"].to_list()])
    assert_allclose(display.noise[0], vae.noise_variance_[0] ** 0.5 / np.nanstd(ages))
    # flags and counts have no such spread, and that of log-normal columns is of logarithms
    assert np.isnan(display.noise[1:]).all() and np.isfinite(vae.noise_variance_[4])


def test_log_normal_columns_by_one_name_have_no_bars():
    X = np.exp(IRIS)
    display = ReconstructionDisplay.from_estimator(linear(X, likelihood="log_normal"), X)
    assert np.isnan(display.noise).all()
    by_index = linear(X, likelihood={1: "log_normal"})
    display = ReconstructionDisplay.from_estimator(by_index, X)
    assert_array_equal(np.isnan(display.noise), [False, True, False, False])


# ---------------------------------------------------------------------------- traversals


def test_walks_are_decoded_latents(digits):
    display = TraversalDisplay.from_estimator(
        digits, components=[4, 0], values=[-2, 0, 2], image_shape=(8, 8)
    )
    Z = np.zeros((6, 10))
    Z[:3, 4] = Z[3:, 0] = [-2, 0, 2]
    sheet = display.image_.get_array().filled(np.nan)
    for k, image in enumerate(digits.inverse_transform(Z)):
        top, left = 9 * (k // 3), 9 * (k % 3)
        assert_array_equal(sheet[top : top + 8, left : left + 8], image.reshape(8, 8))
    nats = digits.kl_per_component_
    wanted = [f"component {i} ({nats[i]:.2f} nats)" for i in (4, 0)]
    assert texts(display.ax_.get_yticklabels()) == wanted
    assert texts(display.ax_.get_xticklabels()) == ["-2", "0", "2"]


def test_walks_go_through_the_mean_latent_of_the_rows(digits):
    display = TraversalDisplay.from_estimator(
        digits, DIGITS[:3], components=1, values=[1.5], image_shape=(8, 8)
    )
    z = digits.transform(DIGITS[:3]).mean(0)
    z[1] = 1.5
    assert_array_equal(display.walks[0], digits.inverse_transform(z[None]))


def test_the_most_informative_components_are_walked_along(digits):
    display = TraversalDisplay.from_estimator(digits, image_shape=(8, 8))
    order = np.argsort(-digits.kl_per_component_)[:5]
    assert [label.split()[1] for label in display.labels] == [str(i) for i in order]
    assert_array_equal(display.values, [-3, -2, -1, 0, 1, 2, 3])


def test_lines_are_changes_in_standard_deviations(iris):
    display = TraversalDisplay.from_estimator(iris, IRIS, components=[0], values=[-1, 0, 2])
    z = iris.transform(IRIS).mean(0)
    Z = np.tile(z, (3, 1))
    Z[:, 0] = [-1, 0, 2]
    change = iris.inverse_transform(Z) - iris.inverse_transform(z[None])
    assert_allclose(display.walks[0], change / IRIS.std(0), atol=1e-12)
    for j, line in enumerate(display.lines_[0]):
        assert_array_equal(line.get_ydata(), display.walks[0, :, j])
    assert legend(display) == ["x0", "x1", "x2", "x3"]
    drawn = TraversalDisplay.from_estimator(iris, components=[0], values=[-1, 0, 2])
    scale = iris.sample(1000, random_state=0).std(0)
    middle = iris.inverse_transform(np.zeros((1, 2)))
    Z = [[-1, 0], [0, 0], [2, 0]]
    assert_allclose(drawn.walks[0], (iris.inverse_transform(Z) - middle) / scale, atol=1e-12)


def test_of_many_lines_those_that_change_most_in_a_walk_have_names():
    walks = np.zeros((2, 2, 20))
    walks[0, 1, :10], walks[1, 1, 10:] = np.arange(10, 20), -np.arange(10) / 10
    display = TraversalDisplay(
        values=np.array([0, 1]),
        walks=walks,
        labels=["first", "second"],
        feature_names=[f"f{j}" for j in range(20)],
    ).plot()
    # by turns: the largest change of each walk, though those of the second are all smaller
    assert legend(display) == ["f6", "f7", "f8", "f9", "f16", "f17", "f18", "f19", "12 others"]


# ---------------------------------------------------------------------------- marginals


def test_shares_of_numbers_sum_to_one_in_common_bins(iris):
    display = MarginalsDisplay.from_estimator(iris, IRIS, features=[2, "x0"], random_state=3)
    drawn = iris.sample(1000, random_state=3)
    assert display.feature_names == ["x2", "x0"]
    for i, j in enumerate([2, 0]):
        edges = display.bins[i]
        assert_allclose(display.observed[i], np.histogram(IRIS[:, j], edges)[0] / 150)
        inside = np.clip(drawn[:, j], edges[0], edges[-1])
        assert_allclose(display.sampled[i], np.histogram(inside, edges)[0] / 1000)
        assert display.observed[i].sum() == pytest.approx(1)
        one, two = display.artists_[i]
        assert_array_equal(one.get_data().values, display.observed[i])
        assert_array_equal(two.get_data().edges, edges)
    assert display.legend_.get_title().get_text() == "2 of 4 columns"


@pytest.mark.parametrize("library", [pd, pl])
def test_marginals_of_a_table(library):
    X = table(library)
    vae = linear(X, likelihood=MIXED)
    display = MarginalsDisplay.from_estimator(vae, X, n_samples=500, random_state=0)
    drawn = vae.sample(500, random_state=0)
    assert display.feature_names == COLUMNS
    assert display.bins[1] == ["female", "male"] and display.bins[2] == ["False", "True"]
    assert display.notes[:2] == ["20 gaps", "20 gaps"]
    known = [sex for sex in X["sex"].to_list() if sex is not None]
    assert_allclose(display.observed[1], [known.count(s) / 180 for s in ("female", "male")])
    male = drawn["sex"].to_list().count("male") / 500
    assert_allclose(display.sampled[1], [1 - male, male])
    assert [bar.get_height() for bar in display.artists_[1][1]] == pytest.approx([1 - male, male])
    for shares in display.observed + display.sampled:
        assert shares.sum() == pytest.approx(1)
    assert display.axes_[0].get_xlabel().startswith("20 gaps")


def test_tails_beyond_the_bins_are_said_to_be(iris):
    X = np.vstack([IRIS, [[1e6] * 4]])
    display = MarginalsDisplay.from_estimator(iris, X, features=[1], random_state=0)
    assert display.bins[0][-1] < 100
    assert display.notes == ["observed: 0.7% beyond"]
    assert display.observed[0].sum() == pytest.approx(1)


def test_bins_of_whole_numbers_have_them_in_their_middle(digits):
    display = MarginalsDisplay.from_estimator(digits, DIGITS, features=[2], random_state=0)
    assert set(np.mod(display.bins[0], 1)) == {0.5}


def test_the_first_twelve_columns_are_drawn(digits):
    display = MarginalsDisplay.from_estimator(digits, DIGITS[:50], random_state=0)
    assert display.feature_names == [f"x{j}" for j in range(12)]
    assert display.legend_.get_title().get_text() == "12 of 64 columns"


# ---------------------------------------------------------------------------- anomalies


def test_scores_are_the_log_densities(iris):
    display = AnomalyDisplay.from_estimator(iris, IRIS)
    assert_array_equal(display.scores, iris.score_samples(IRIS))
    counts, _ = np.histogram(display.scores, display.edges_)
    assert_allclose(display.stairs_[0].get_data().values, counts / 150)
    assert display.line_ is None and display.ax_.get_legend() is None


def test_known_outliers_have_a_distribution_of_their_own(iris):
    X = np.vstack([IRIS, IRIS[:3] + 20])
    display = AnomalyDisplay.from_estimator(iris, X, [False] * 150 + [True] * 3)
    assert texts(display.ax_.get_legend().get_texts()) == ["False (150)", "True (3)"]
    rows, outliers = (stairs.get_data().values for stairs in display.stairs_)
    assert outliers.tolist() == [1.0] + [0.0] * (len(outliers) - 1)
    assert rows.sum() == pytest.approx(1) and rows[0] == 0
    lowest = display.scores.min()
    wanted = f"log-density, nats per row\n(first bin: 3 rows more, down to {lowest:.3g})"
    assert display.ax_.get_xlabel() == wanted


def test_rows_without_any_probability_are_drawn():
    scores = np.append(np.linspace(-2, 0, 9), -np.inf)
    display = AnomalyDisplay(scores=scores).plot()
    assert display.edges_[0] == -2
    assert display.stairs_[0].get_data().values.sum() == pytest.approx(1)
    assert display.ax_.get_xlabel().endswith("(first bin: 1 row more, down to -inf)")


class Detector(BaseEstimator):
    """An outlier detector around a model, whose scores are not the model's own."""

    def fit(self, X, y=None):
        self.estimator_ = linear(X)
        self.offset_ = float(np.quantile(self.score_samples(X), 0.1))
        return self

    def score_samples(self, X):
        return 2 * self.estimator_.score_samples(X)


def test_an_outlier_detector_is_asked_for_its_own_scores():
    detector = Detector().fit(IRIS)
    for estimator in (detector, make_pipeline(StandardScaler(), Detector()).fit(IRIS)):
        display = AnomalyDisplay.from_estimator(estimator, IRIS)
        assert_array_equal(display.scores, estimator.score_samples(IRIS))
        last = estimator if estimator is detector else estimator[-1]
        assert display.line_.get_xdata() == [last.offset_, last.offset_]
        label = f"offset_ {last.offset_:.4g}:\n10.0% of rows below"
        assert display.line_.get_label() == label
    latents = LatentDisplay.from_estimator(detector, IRIS, components=[0, 1])
    assert_array_equal(latents.scatter_.get_offsets(), detector.estimator_.transform(IRIS))


# ---------------------------------------------------------------------------- any estimator, any X


def test_rows_go_through_a_pipelines_earlier_steps():
    wine = load_wine(as_frame=True).data
    pipe = make_pipeline(StandardScaler(), VAETransformer(2, max_iter=0, random_state=0)).fit(wine)
    display = LatentDisplay.from_estimator(pipe, wine, components=[0, 1])
    assert_array_equal(display.scatter_.get_offsets(), pipe.transform(wine))
    display = ReconstructionDisplay.from_estimator(pipe, wine, n_rows=1)
    assert_allclose(display.rows, pipe[0].transform(wine)[:1], atol=1e-12)
    assert display.feature_names == list(wine.columns)
    display = MarginalsDisplay.from_estimator(pipe, wine, features=["hue"], random_state=0)
    assert display.bins[0][-1] < 10  # standardised
    assert len(TraversalDisplay.from_estimator(pipe, wine).walks) == 2
    assert ComponentsDisplay.from_estimator(pipe).n_active == 2


def test_searches_and_imputers_hold_a_model():
    X = IRIS.copy()
    X[::7, 1] = np.nan
    vae = VAETransformer(max_iter=0, random_state=0)
    search = GridSearchCV(vae, {"n_components": [2]}, cv=2).fit(X)
    imputer = VAEImputer(vae).fit(X)
    for estimator, model in (search, search.best_estimator_), (imputer, imputer.estimator_):
        display = LatentDisplay.from_estimator(estimator, X, components=[0, 1])
        assert_array_equal(display.scatter_.get_offsets(), model.transform(X))
        scores = AnomalyDisplay.from_estimator(estimator, X).scores
        assert_array_equal(scores, model.score_samples(X))


def test_sparse_rows_are_drawn_like_dense_ones(digits):
    X, few = coo_array(DIGITS[:40]), DIGITS[:40]
    for draw, name in [
        (lambda X: LatentDisplay.from_estimator(digits, X), "latents"),
        (lambda X: ReconstructionDisplay.from_estimator(digits, X), "rows"),
        (lambda X: TraversalDisplay.from_estimator(digits, X, components=0), "walks"),
        (lambda X: MarginalsDisplay.from_estimator(digits, X, random_state=0), "observed"),
        (lambda X: AnomalyDisplay.from_estimator(digits, X), "scores"),
    ]:
        one, two = getattr(draw(X), name), getattr(draw(few), name)
        for a, b in zip(one, two, strict=True):
            assert_allclose(a, b, atol=1e-9)


def test_float32_and_lists(iris):
    single = LatentDisplay.from_estimator(iris, IRIS.astype(np.float32), components=[0, 1])
    assert single.latents.dtype == np.float32
    lists = ReconstructionDisplay.from_estimator(iris, IRIS.tolist(), n_rows=2)
    arrays = ReconstructionDisplay.from_estimator(iris, IRIS, n_rows=2)
    assert_array_equal(lists.rows, arrays.rows)


DRAWN = {
    "latents": lambda ax, **kw: LatentDisplay.from_estimator(linear(IRIS), IRIS, ax=ax, **kw),
    "training": lambda ax, **kw: TrainingDisplay(training=[-2, -1]).plot(ax, **kw),
    "components": lambda ax, **kw: ComponentsDisplay.from_estimator(linear(IRIS), ax=ax, **kw),
    "profiles": lambda ax, **kw: ReconstructionDisplay.from_estimator(
        linear(IRIS), IRIS, ax=ax, **kw
    ),
    "images": lambda ax, **kw: ReconstructionDisplay.from_estimator(
        linear(IRIS), IRIS, image_shape=(2, 2), ax=ax, **kw
    ),
    "lines": lambda ax, **kw: TraversalDisplay.from_estimator(linear(IRIS), ax=ax, **kw),
    "marginals": lambda ax, **kw: MarginalsDisplay.from_estimator(linear(IRIS), IRIS, ax=ax, **kw),
    "anomalies": lambda ax, **kw: AnomalyDisplay.from_estimator(linear(IRIS), IRIS, ax=ax, **kw),
}


@pytest.mark.parametrize("name", DRAWN)
def test_given_axes_are_used_and_nothing_global_changes(name):
    before = dict(plt.rcParams)
    figure, (left, right) = plt.subplots(1, 2)
    assert plt.gca() is right
    display = DRAWN[name](left)
    assert display.ax_ is left and display.figure_ is figure
    assert plt.get_fignums() == [1] and plt.gca() is right
    again = display.plot(right)
    assert again is display and display.ax_ is right
    assert dict(plt.rcParams) == before
    display.plot()
    assert plt.get_fignums() == [1, 2] and display.figure_ is plt.figure(2)
    display.figure_.canvas.draw()


WIDE = {"lw": 7.0, "alpha": 0.5}
KWARGS = {
    "latents": ({"s": 7.0, "alpha": 0.5}, lambda d: (d.scatter_, d.scatter_.get_sizes())),
    "training": (WIDE, lambda d: (d.lines_[0], d.lines_[0].get_lw())),
    "components": (WIDE, lambda d: (d.bars_[0], d.bars_[0].get_lw())),
    "profiles": (
        {"ms": 7.0, "alpha": 0.5},
        lambda d: (d.errorbars_[0][0], d.errorbars_[0][0].get_ms()),
    ),
    "images": ({"vmax": 7.0, "alpha": 0.5}, lambda d: (d.image_, d.image_.get_clim()[1])),
    "lines": (WIDE, lambda d: (d.lines_[0][0], d.lines_[0][0].get_lw())),
    "marginals": (WIDE, lambda d: (d.artists_[0][0], d.artists_[0][1].get_lw())),
    "anomalies": (WIDE, lambda d: (d.stairs_[0], d.stairs_[0].get_lw())),
}


@pytest.mark.parametrize("name", KWARGS)
def test_keywords_reach_matplotlib(name):
    kwargs, read = KWARGS[name]
    artist, size = read(DRAWN[name](None, **kwargs))
    assert (artist.get_alpha(), size) == (0.5, 7.0)


@pytest.mark.parametrize("name", sorted(set(DRAWN) - {"images"}))
def test_one_color_replaces_all(name):
    display = DRAWN[name](None, color="green")  # which would warn beside that of faces and edges
    artist = {
        "latents": lambda: display.scatter_.get_facecolor()[0],
        "training": lambda: display.lines_[0].get_color(),
        "components": lambda: display.bars_[0].get_facecolor(),
        "profiles": lambda: display.errorbars_[0][0].get_color(),
        "lines": lambda: display.lines_[0][0].get_color(),
        "marginals": lambda: display.artists_[0][1].get_edgecolor(),
        "anomalies": lambda: display.stairs_[0].get_facecolor(),
    }[name]()
    assert to_rgb(artist) == to_rgb("green")


# ---------------------------------------------------------------------------- what is refused


def plain():
    return linear(IRIS, beta=0)


REFUSED = {
    "length of y": (
        lambda: LatentDisplay.from_estimator(linear(IRIS), IRIS, [1, 2, 3]),
        ValueError,
        "y has 3 entries, but X has 150 rows.",
    ),
    "shape of y": (
        lambda: AnomalyDisplay.from_estimator(linear(IRIS), IRIS, IRIS),
        ValueError,
        "y must be one label or number for each row, but has shape (150, 4).",
    ),
    "component": (
        lambda: LatentDisplay.from_estimator(linear(IRIS), IRIS, components=[0, 5]),
        ValueError,
        "each of components must be below the number of components, 2, got 5.",
    ),
    "negative component": (
        lambda: TraversalDisplay.from_estimator(linear(IRIS), components=-1),
        ValueError,
        "each of components must be an integer of at least 0, got -1.",
    ),
    "component by name": (
        lambda: TraversalDisplay.from_estimator(linear(IRIS), components="first"),
        TypeError,
        "each of components must be an integer of at least 0, got 'first'.",
    ),
    "the same component": (
        lambda: LatentDisplay.from_estimator(linear(IRIS), IRIS, components=[1, 1]),
        ValueError,
        "components must name at least one, each once, got [1, 1].",
    ),
    "three components": (
        lambda: LatentDisplay.from_estimator(linear(IRIS, 3), IRIS, components=[0, 1, 2]),
        ValueError,
        "components must be one or two, got [0, 1, 2].",
    ),
    "unfitted": (
        lambda: LatentDisplay.from_estimator(VAETransformer(), IRIS),
        NotFittedError,
        "This VAETransformer instance is not fitted yet. Call 'fit' with appropriate arguments "
        "before using this estimator.",
    ),
    "another estimator": (
        lambda: ComponentsDisplay.from_estimator(PCA(2).fit(IRIS)),
        TypeError,
        "estimator must be a fitted VAETransformer, a Pipeline that ends in one, or an estimator "
        "that holds one as estimator_, got PCA(n_components=2). Of a longer pipeline pass the part "
        "up to the model, such as pipeline[:2].",
    ),
    "a classifier behind it": (
        lambda: LatentDisplay.from_estimator(
            make_pipeline(VAETransformer(max_iter=0, random_state=0), LogisticRegression()).fit(
                IRIS, SPECIES
            ),
            IRIS,
        ),
        TypeError,
        "estimator must be a fitted VAETransformer, a Pipeline that ends in one, or an estimator "
        "that holds one as estimator_, got LogisticRegression(). Of a longer pipeline pass the "
        "part up to the model, such as pipeline[:2].",
    ),
    "no epochs": (
        lambda: TrainingDisplay.from_estimator(linear(IRIS)),
        ValueError,
        "There are no epochs to draw: max_iter=0 leaves the start as it is.",
    ),
    "image shape": (
        lambda: ReconstructionDisplay.from_estimator(linear(IRIS), IRIS, image_shape=(2, 3)),
        ValueError,
        "image_shape=(2, 3) has 6 cells, but rows have 4 columns.",
    ),
    "image channels": (
        lambda: TraversalDisplay.from_estimator(linear(IRIS), image_shape=(1, 2, 2)),
        ValueError,
        "image_shape must be (height, width) or (height, width, channels) with 1 or 3 channels, "
        "got (1, 2, 2).",
    ),
    "images of text": (
        lambda: ReconstructionDisplay.from_estimator(
            linear(table(pd), likelihood=MIXED), table(pd), image_shape=(1, 5)
        ),
        ValueError,
        "image_shape is of numbers, but these columns hold text: ['sex'].",
    ),
    "text alone": (
        lambda: ReconstructionDisplay.from_estimator(
            linear(table(pd)[["sex"]], 1), table(pd)[["sex"]]
        ),
        ValueError,
        "X holds text alone: there are no numbers to draw.",
    ),
    "rows": (
        lambda: ReconstructionDisplay.from_estimator(linear(IRIS), IRIS, n_rows=0),
        ValueError,
        "n_rows must be an integer of at least 1 or None, got 0.",
    ),
    "features": (
        lambda: MarginalsDisplay.from_estimator(linear(IRIS), IRIS, features=["petal"]),
        ValueError,
        "features names column 'petal', but X has columns ['x0', 'x1', 'x2', 'x3'].",
    ),
    "no features": (
        lambda: MarginalsDisplay.from_estimator(linear(IRIS), IRIS, features=[]),
        ValueError,
        "features must name at least one column, got [].",
    ),
    "levels of y": (
        lambda: AnomalyDisplay.from_estimator(linear(IRIS), IRIS, IRIS[:, 0]),
        ValueError,
        "y must have at most 10 levels, such as whether a row is known to be an outlier, got 35.",
    ),
    "axes without a place": (
        lambda: MarginalsDisplay.from_estimator(
            linear(IRIS), IRIS, ax=plt.figure().add_axes((0, 0, 1, 1))
        ),
        ValueError,
        "ax must be made by subplots, to be divided into panels, got <Axes: >.",
    ),
    "components of an autoencoder": (
        lambda: ComponentsDisplay.from_estimator(plain()),
        ValueError,
        "beta=0 is a plain autoencoder: its components carry no nats. Give beta a positive number, "
        "1 for the ELBO.",
    ),
}
ABSENT = {
    "sample": lambda vae: MarginalsDisplay.from_estimator(vae, IRIS),
    "score_samples": lambda vae: AnomalyDisplay.from_estimator(vae, IRIS),
    "posterior": lambda vae: LatentDisplay.from_estimator(vae, IRIS, posterior=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said(name):
    draw, kind, message = REFUSED[name]
    with pytest.raises(kind) as caught:
        draw()
    assert str(caught.value) == message


@pytest.mark.parametrize("method", ABSENT)
def test_plain_autoencoders_have_no_density_to_draw(method):
    with pytest.raises(AttributeError) as caught:
        ABSENT[method](plain())
    assert str(caught.value) == (
        f"This display needs the estimator's {method}, which is absent. beta=0 is a plain "
        "autoencoder: it has no prior, no posterior and no density. Give beta a positive number, "
        "1 for the ELBO."
    )


def test_plain_autoencoders_have_latents_to_draw():
    display = LatentDisplay.from_estimator(plain(), IRIS)
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("component 0", "component 1")


def test_without_matplotlib_it_says_what_to_install(iris, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as caught:
        LatentDisplay.from_estimator(iris, IRIS)
    assert str(caught.value) == (
        'Displays draw with matplotlib, which is not installed: pip install "skvae[plot]".'
    )


def test_matplotlib_is_not_imported_before_something_is_drawn():
    code = "import sys, skvae.display; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
