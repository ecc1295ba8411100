"""
Missing values: fill them in, and say how sure
==============================================

Half of all cells of the breast cancer data are hidden and filled in again, by ``VAEImputer`` and by
three of scikit-learn's imputers. Then each gap gets a hundred draws in place of one value, and
their spread is held against the truth.
"""

# %%
# The data
# --------
# 569 tumours with 30 measurements each. Which cells are hidden is left to chance.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer

data = load_breast_cancer()
X, names = data.data, list(data.feature_names)
hidden = np.random.default_rng(0).uniform(size=X.shape) < 0.5
X_gaps = np.where(hidden, np.nan, X)

# %%
# One value for each gap
# ----------------------
# ``VAEImputer`` gets the data as it is. Neighbours and ridge regressions need standardised columns,
# so scikit-learn's imputers get these. The error is the mean squared one on the hidden cells, in
# units of each column's variance: filling in the mean costs about 1.

scaler = StandardScaler().fit(X_gaps)
filled = {
    type(imputer).__name__: scaler.inverse_transform(
        imputer.fit_transform(scaler.transform(X_gaps))
    )
    for imputer in [
        SimpleImputer(),
        KNNImputer(n_neighbors=10, weights="distance"),
        IterativeImputer(random_state=0),
    ]
}
imputer = VAEImputer(random_state=0).fit(X_gaps)
filled["VAEImputer"] = imputer.transform(X_gaps)

errors = {name: np.mean((((F - X) / X.std(axis=0))[hidden]) ** 2) for name, F in filled.items()}
for name, error in errors.items():
    print(f"{name:<18}{error:6.3f}")

# %%
# Many values for each gap
# ------------------------
# Each table of ``impute(n_draws=...)`` is a plausible completion. Whatever is computed from the
# table can be computed from each of them; how much the results differ is what the gaps cost. Here:
# how often an interval between quantiles of the draws holds the hidden value. The draws know what
# the gaps leave open, not how uncertain the fitted model itself is, and the real values have
# heavier tails than its normal ones: the wide intervals are somewhat too narrow.

draws = np.array(imputer.estimator_.impute(X_gaps, n_draws=100, random_state=0))
for level in [0.5, 0.7, 0.9]:
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    inside = (low <= X) & (X <= high)
    print(f"intervals of {level:.0%} hold {inside[hidden].mean():.0%} of the hidden values")

# %%
# Left: the errors. Right: one column where it was hidden, with intervals of 90%.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(12, 4), width_ratios=[1, 2.2], layout="constrained"
)
bars = left.barh(list(errors), list(errors.values()), color=["0.7"] * 3 + ["C0"])
left.bar_label(bars, fmt="%.2f", padding=3)
left.invert_yaxis()
left.set(xlabel="mean squared error on hidden cells", xlim=(0, 1.15 * max(errors.values())))
left.spines[["top", "right"]].set_visible(False)

j = names.index("mean concavity")
rows = np.flatnonzero(hidden[:, j])[:60]
rows = rows[X[rows, j].argsort()]
places = np.arange(len(rows))
right.vlines(places, low[rows, j], high[rows, j], color="C0", alpha=0.3, lw=4, label="90% of draws")
right.plot(places, filled["VAEImputer"][rows, j], "_", color="C0", ms=7, mew=2, label="imputed")
for chosen, color, label in [(True, "black", "true, inside"), (False, "C3", "true, outside")]:
    at = inside[rows, j] == chosen
    right.plot(places[at], X[rows[at], j], "o", ms=4, color=color, label=label)
right.set(xlabel=f"{len(rows)} tumours, by true value", ylabel="mean concavity", xticks=[])
right.legend(loc="upper left", frameon=False)
plt.show()
