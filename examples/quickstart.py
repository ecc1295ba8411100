"""
A variational autoencoder in place of PCA
=========================================

Handwritten digits, raw: the number of components is chosen by held-out likelihood, the model is
compared with PCA and factor analysis of the same size, and two pictures are saved in the current
folder.
"""

# %%
# The data
# --------
# 1797 images of 8 x 8 pixels, each between 0 and 16. No scaling is needed: it happens inside. Some
# pixels at the border are (nearly) always empty. A density has nothing to say about those, so they
# are left out here.

from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.model_selection import GridSearchCV, ShuffleSplit, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer

start = perf_counter()
images, digit = load_digits(return_X_y=True)
images_train, images_test, y_train, y_test = train_test_split(
    images, digit, test_size=0.25, stratify=digit, random_state=0
)
used = images_train.std(axis=0) > 0.5
X_train, X_test = images_train[:, used], images_test[:, used]
print(f"digits: {len(X_train)} training and {len(X_test)} test rows, {used.sum()} pixels that vary")

# %%
# How many components?
# --------------------
# ``score`` is the log-likelihood of held-out rows, so the search needs no labels and no
# ``scoring``. Only for the sake of speed, a single split is used here, where ``cv=5`` would be
# steadier, and larger steps than by default.

quick = {"batch_size": 256, "learning_rate_init": 4e-3, "random_state": 0}
search = GridSearchCV(
    VAETransformer(**quick),
    {"n_components": [3, 6, 12]},
    cv=ShuffleSplit(1, test_size=0.25, random_state=0),
)
search.fit(X_train)
vae = search.best_estimator_
n_components = search.best_params_["n_components"]

print("\ncomponents   held-out log-likelihood, nats per row")
for params, score in zip(
    search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
):
    chosen = "  <- chosen" if params == search.best_params_ else ""
    print(f"{params['n_components']:10d}   {score:10.2f}{chosen}")

# %%
# Beside PCA and factor analysis
# ------------------------------
# The linear models get standardised columns, as one would do by hand; their likelihoods are brought
# to the units of the pixels. The reconstruction error is the mean squared error in units of each
# pixel's standard deviation.

scaler = StandardScaler().fit(X_train)
log_jacobian = -np.log(scaler.scale_).sum()


def judge(name, model, train, test, reconstruct, log_likelihood):
    """Print one line of the comparison."""
    Z_train, Z_test = model.transform(train), model.transform(test)
    error = np.mean(((reconstruct(Z_test) - X_test) / scaler.scale_) ** 2)
    neighbours = KNeighborsClassifier(n_neighbors=5).fit(Z_train, y_train)
    accuracy = neighbours.score(Z_test, y_test)
    print(f"{name:<18}{log_likelihood:16.2f}{error:16.3f}{accuracy:16.3f}")


print(f"\n{n_components} components, {len(X_test)} test rows")
print(f"{'':<18}{'log-likelihood':>16}{'reconstruction':>16}{'5-NN accuracy':>16}")
print(f"{'':<18}{'(nats per row)':>16}{'error':>16}{'on transform':>16}")
for name, linear in [
    ("PCA", PCA(n_components, random_state=0)),
    ("FactorAnalysis", FactorAnalysis(n_components, random_state=0)),
]:
    S_train, S_test = scaler.transform(X_train), scaler.transform(X_test)
    linear.fit(S_train)

    def reconstruct(Z, linear=linear):
        return scaler.inverse_transform(Z @ linear.components_ + linear.mean_)

    judge(name, linear, S_train, S_test, reconstruct, linear.score(S_test) + log_jacobian)
judge("VAETransformer", vae, X_train, X_test, vae.inverse_transform, vae.score(X_test))

# %%
# Originals, reconstructions and new samples
# ------------------------------------------
# The samples are the first ones drawn, not a choice.

n_columns = 12
new_rows = vae.sample(2 * n_columns, random_state=0)


def as_images(X):
    """Put the used pixels back in their places; the others are empty."""
    full = np.zeros((len(X), images.shape[1]))
    full[:, used] = X
    return full.reshape(-1, 8, 8)


rows = [
    ("test images", as_images(X_test[:n_columns])),
    ("reconstructed", as_images(vae.inverse_transform(vae.transform(X_test[:n_columns])))),
    ("new samples", as_images(new_rows[:n_columns])),
    ("more of them", as_images(new_rows[n_columns:])),
]
figure, axes = plt.subplots(
    len(rows), n_columns, figsize=(n_columns, len(rows)), layout="constrained"
)
for (title, pictures), row in zip(rows, axes, strict=True):
    for axis, picture in zip(row, pictures, strict=True):
        axis.imshow(picture, cmap="gray_r", vmin=0, vmax=16, interpolation="bicubic")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(title, fontsize="small")
figure.savefig("quickstart_digits.png", dpi=120)

# %%
# Two dimensions
# --------------
# The same class with ``n_components=2`` draws the map of the data; PCA's is beside it.

maps = [
    ("PCA", PCA(2, random_state=0)),
    ("VAETransformer", VAETransformer(n_components=2, **quick)),
]
figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
for (title, model), axis in zip(maps, axes, strict=True):
    Z = model.fit_transform(X_train)
    points = axis.scatter(Z[:, 0], Z[:, 1], c=y_train, cmap="tab10", vmin=-0.5, vmax=9.5, s=10)
    axis.set(title=title, xlabel="component 0", ylabel="component 1")
figure.colorbar(points, ax=axes, ticks=range(10), label="digit")
figure.savefig("quickstart_latent.png", dpi=120)

seconds = perf_counter() - start
print(f"\nsaved quickstart_digits.png and quickstart_latent.png; {seconds:.0f} s in all")
