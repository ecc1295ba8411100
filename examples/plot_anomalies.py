"""
Strange rows, and the cell that makes them so
=============================================

In some rows of a table one cell was mixed up with another row's. Each value is an ordinary one for
its column; it only does not go with the rest of its row. ``VAEOutlierDetector`` finds such rows by
their log-density, and ``contributions`` says which cell it is.
"""

# %%
# The data
# --------
# 569 tumours with 30 measurements. In 20 of them one cell gets another tumour's value.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler

from skvae import VAEOutlierDetector, VAETransformer
from skvae.display import AnomalyDisplay

data = load_breast_cancer()
X, names = data.data.copy(), data.feature_names
rng = np.random.default_rng(0)
rows = rng.choice(len(X), 20, replace=False)
columns = rng.integers(X.shape[1], size=len(rows))
X[rows, columns] = data.data[rng.permutation(rows), columns]
mixed_up = np.isin(np.arange(len(X)), rows)

# %%
# Which rows
# ----------
# The detector is fitted on the table as it is, errors included. Its model starts at factor
# analysis, the best linear model to predict one column from the others, with many components, as
# these rows differ from others in a single cell. For comparison, two detectors of scikit-learn;
# each gives low scores to strange rows.

model = VAETransformer(15, noise="homoscedastic", precision_power=1.0)
detector = VAEOutlierDetector(model, contamination=0.05, random_state=0).fit(X)
S = StandardScaler().fit_transform(X)
scores = {
    "VAEOutlierDetector": detector.score_samples(X),
    "IsolationForest": IsolationForest(random_state=0).fit(X).score_samples(X),
    "LocalOutlierFactor": LocalOutlierFactor().fit(S).negative_outlier_factor_,
}
for name, score in scores.items():
    print(f"{name:<20}area under the ROC curve {roc_auc_score(mixed_up, -score):.2f}")

# %%
# Which cell
# ----------
# ``contributions`` compares how surprising each cell is, given the row's other cells, with what is
# usual for its column: nats of surprise. It costs a score per column, so only the rows that matter
# are explained.

contributions = detector.contributions(X[rows])
found = contributions.argmax(axis=1) == columns
print(f"the most surprising cell is the one that was mixed up in {found.sum()} of {len(rows)} rows")

# %%
# Left: log-densities. Right: the mixed-up rows, and how surprising each of their cells is; a circle
# marks the cell that was changed.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(14, 5.5), width_ratios=[1, 1.5], layout="constrained"
)
labels = np.where(mixed_up, "mixed up", "as it was")
AnomalyDisplay.from_estimator(detector, X, labels, ax=left)
order = (-contributions.max(axis=1)).argsort()
image = right.imshow(
    contributions[order].clip(0, 20), cmap="Blues", aspect="auto", interpolation="nearest"
)
right.plot(columns[order], np.arange(len(rows)), "o", mfc="none", mec="C1", ms=9, mew=1.5)
right.set(title="circles: the cells that were mixed up", ylabel="mixed-up rows", yticks=[])
right.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
figure.colorbar(image, ax=right, label="surprise, nats (up to 20)")
plt.show()
