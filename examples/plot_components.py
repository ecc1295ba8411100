"""
How many components? Ask the likelihood
=======================================

``score`` is the log-likelihood of held-out rows, so scikit-learn's searches choose the number of
components, or any other setting, without labels. PCA and factor analysis have the same likelihood
to offer, and can be held against the model.
"""

# %%
# The data
# --------
# 400 rows of 10 columns, which are made of two numbers each by a curved map, and noise.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.model_selection import GridSearchCV

from skvae import VAETransformer
from skvae.display import TrainingDisplay

rng = np.random.default_rng(0)
causes = rng.normal(size=(400, 2))
curved = np.tanh(causes @ rng.normal(size=(2, 20))) @ rng.normal(size=(20, 10))
X = curved + 0.3 * rng.normal(size=curved.shape)

# %%
# A search
# --------
# Three folds, four numbers of components.

grid = {"n_components": [1, 2, 3, 4]}
models = [VAETransformer(random_state=0), FactorAnalysis(), PCA()]
searches = {type(model).__name__: GridSearchCV(model, grid, cv=3).fit(X) for model in models}
for name, search in searches.items():
    print(f"{name:<16}{search.best_params_}, {search.best_score_:.2f} nats per row")

# %%
# Bars are standard errors over the folds.

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for name, search in searches.items():
    results = search.cv_results_
    error = results["std_test_score"] / np.sqrt(3)
    axis.errorbar(
        grid["n_components"], results["mean_test_score"], error, marker="o", capsize=3, label=name
    )
axis.set(xticks=grid["n_components"], xlabel="components", ylabel="held-out nats per row")
axis.legend(frameon=False)

# %%
# The chosen model
# ----------------
# It has been fitted on all rows. ``summary()`` says what it found, and the held-out bound after
# each epoch whether it trained long enough.

vae = searches["VAETransformer"].best_estimator_
print(vae.summary())

# %%
TrainingDisplay.from_estimator(vae)
plt.show()
