"""
A grid of models on a cluster
=============================

``GridSearchCV`` fits many models that do not depend on each other, and Dask can spread them over a
cluster: joblib's ``parallel_config("dask")`` is all it takes, and nothing of the search changes.
Here: how many components do rows on a curved surface deserve, and does it need the network?
"""

# %%
# A cluster
# ---------
# Of this machine's own threads, so that the example runs anywhere. Give ``Client`` the address of
# a scheduler, and the same code runs on as many machines as it has.

import distributed
import joblib
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV, ShuffleSplit

from skvae import VAETransformer

client = distributed.Client(
    processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
)

# %%
# The search
# ----------
# The surface has three dimensions, in twelve columns. ``score`` is the log-density of rows that a
# model has not seen, so models of any size can be compared by it; ``max_iter=0`` is the linear
# model that training starts from.

random = np.random.default_rng(0)
places = random.normal(size=(900, 3))
X = np.sin(places @ random.normal(size=(3, 24))) @ random.normal(size=(24, 12))
X += 0.3 * random.normal(size=X.shape)

grid = {"n_components": [1, 2, 3, 4, 6], "max_iter": [0, 400]}
model = VAETransformer(noise="isotropic", random_state=0)
split = ShuffleSplit(1, test_size=300, random_state=0)
search = GridSearchCV(model, grid, cv=split, refit=False)
with joblib.parallel_config("dask"):
    search.fit(X)
print("best:", search.best_params_)

# %%
# What it found
# -------------
# The curve of the VAE rises steeply up to three components, the dimension of the surface (the
# line). The linear model needs more of them, and stays behind.

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
results = search.cv_results_
for max_iter, label in [(400, "VAE"), (0, "its linear start")]:
    chosen = results["param_max_iter"] == max_iter
    scores = results["mean_test_score"][chosen]
    ax.plot(grid["n_components"], scores, marker="o", label=label)
ax.axvline(3, color="0.8", zorder=0, label="dimension of the surface")
ax.set(xlabel="components", ylabel="log-density of held-out rows\n(nats per row)")
ax.legend(frameon=False)
plt.show()

# %%
# The cluster goes away with its client. Larger tables than one machine holds are another matter:
# there all workers fit one model, ``skvae.dask.DaskVAETransformer``.

client.close()
