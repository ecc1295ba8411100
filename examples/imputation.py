"""
Missing values: fill them in, and say how sure
==============================================

Half of all cells of the breast cancer data are hidden and filled in again, by ``VAEImputer`` and by
three of scikit-learn's imputers. Then each gap gets a hundred draws in place of one value, and
their spread is held against the truth. A picture is saved in the current folder.
"""

# %%
# The data
# --------
# 569 tumours with 30 measurements each. Which cells are hidden is left to chance.

from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer

start = perf_counter()
data = load_breast_cancer()
X, names = data.data, list(data.feature_names)
hidden = np.random.default_rng(0).uniform(size=X.shape) < 0.5
X_gaps = np.where(hidden, np.nan, X)
print(f"{X.shape[0]} rows, {X.shape[1]} columns, {hidden.mean():.0%} of the cells hidden")

# %%
# One value for each gap
# ----------------------
# ``VAEImputer`` gets the data as it is. Neighbours and ridge regressions need standardised columns,
# so scikit-learn's imputers get these. The error is the mean squared one on the hidden cells, in
# units of each column's standard deviation: filling in the mean costs about 1.

scaler = StandardScaler().fit(X_gaps)
S_gaps = scaler.transform(X_gaps)
spread = X.std(axis=0)


def judge(name, filled, seconds):
    """Print one line of the comparison."""
    errors[name] = np.mean(((filled - X) / spread)[hidden] ** 2)
    print(f"{name:<20}{errors[name]:20.3f}{seconds:10.1f}")


print(f"\n{'':<20}{'mean squared error':>20}{'seconds':>10}")
errors = {}
for imputer in [
    SimpleImputer(),
    KNNImputer(n_neighbors=10, weights="distance"),
    IterativeImputer(random_state=0),
]:
    begin = perf_counter()
    filled = scaler.inverse_transform(imputer.fit_transform(S_gaps))
    judge(type(imputer).__name__, filled, perf_counter() - begin)

begin = perf_counter()
imputer = VAEImputer(random_state=0).fit(X_gaps)
filled = imputer.transform(X_gaps)
judge("VAEImputer", filled, perf_counter() - begin)

# %%
# Many values for each gap
# ------------------------
# Each table of ``impute(n_draws=...)`` is a plausible completion. Whatever is computed from the
# table can be computed from each of them; how much the results differ is what the gaps cost. Here:
# how often an interval between quantiles of the draws holds the hidden value. The draws know what
# the gaps leave open, not how uncertain the fitted model itself is, and the real values have
# heavier tails than its normal ones: the wide intervals are somewhat too narrow.

draws = np.array(imputer.estimator_.impute(X_gaps, n_draws=100, random_state=0))
levels = np.array([0.1, 0.3, 0.5, 0.7, 0.8, 0.9])
coverage = []
print("\ninterval   holds the hidden value")
for level in levels:
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    inside = (low <= X) & (X <= high)
    coverage.append(inside[hidden].mean())
    print(f"{level:8.0%}   {coverage[-1]:8.0%}")
# low, high and inside stay those of the last level, 90%

# %%
# A picture
# ---------
# Top: the errors, then one column that the others tell and one that they hardly do. Bottom: the
# first gaps of one column with their intervals, and how true intervals are over all columns.

figure, axes = plt.subplot_mosaic(
    [["errors", "easy", "hard"], ["bars", "bars", "coverage"]],
    figsize=(13, 8.5),
    layout="constrained",
)
figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)

bars = axes["errors"].barh(list(errors), list(errors.values()), color=["0.65"] * 3 + ["tab:blue"])
axes["errors"].bar_label(bars, fmt="%.2f", padding=3)
axes["errors"].invert_yaxis()
axes["errors"].set(
    title="Error on the hidden cells",
    xlabel="mean squared error (standardised)",
    xlim=(0, 1.15 * max(errors.values())),
)
axes["errors"].spines[["top", "right"]].set_visible(False)

for panel, name, corner in [
    ("easy", "mean radius", "upper left"),
    ("hard", "smoothness error", "lower right"),
]:
    axis, j = axes[panel], names.index(name)
    true, guess = X[hidden[:, j], j], filled[hidden[:, j], j]
    axis.scatter(true, guess, s=12, alpha=0.5, color="tab:blue", edgecolor="none")
    axis.axline((true.mean(), true.mean()), slope=1, color="black", lw=1, label="equal")
    axis.axhline(np.nanmean(X_gaps[:, j]), color="0.5", ls="--", lw=1, label="column mean")
    axis.set(title=name.capitalize(), xlabel="true value", ylabel="imputed value")
    axis.legend(loc=corner, frameon=False)

axis, j = axes["bars"], names.index("mean concavity")
rows = np.flatnonzero(hidden[:, j])[:60]
rows = rows[X[rows, j].argsort()]
places, middle = np.arange(len(rows)), filled[rows, j]
axis.vlines(places, low[rows, j], high[rows, j], color="tab:blue", alpha=0.4, lw=4)
axis.plot(places, middle, "_", color="tab:blue", ms=7, mew=2, label="imputed, with 90% interval")
for chosen, color, label in [(True, "black", "true, inside"), (False, "tab:red", "true, outside")]:
    at = inside[rows, j] == chosen
    axis.plot(places[at], X[rows[at], j], "o", ms=4, color=color, label=label)
axis.set(
    title=f"Mean concavity of {len(rows)} tumours where it was hidden",
    xlabel="tumours, by true value",
    ylabel="mean concavity",
    xticks=[],
    xlim=(-1, len(rows)),
)
axis.legend(loc="upper left", frameon=False)

axis = axes["coverage"]
axis.plot([0, 100], [0, 100], color="black", lw=1, label="as promised")
axis.plot(100 * levels, 100 * np.array(coverage), "o-", color="tab:blue", label="VAEImputer")
axis.set(
    title="Intervals, all columns",
    xlabel="interval (%)",
    ylabel="hidden values inside (%)",
    xlim=(0, 100),
    ylim=(0, 100),
    aspect="equal",
)
axis.legend(loc="upper left", frameon=False)
figure.savefig("imputation.png", dpi=110)

seconds = perf_counter() - start
print(f"\nsaved imputation.png; {seconds:.0f} s in all")
