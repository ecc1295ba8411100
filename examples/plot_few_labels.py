"""
Many rows, few labels
=====================

Of 1,797 handwritten digits only 18 have labels. A model without labels, of all rows, gives the
features; a logistic regression learns from the 18, and is judged on the others.
"""

# %%
# Features
# --------
# A prior with clusters, ``Vamp``, is what helps here: with the normal prior, and with Gaussian
# pixels, latents were worse than PCA's.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit

from skvae import VAETransformer
from skvae.display import LatentDisplay
from skvae.priors import Vamp

X, y = load_digits(return_X_y=True)
X = X / 16
vae = VAETransformer(10, likelihood="bernoulli", prior=Vamp(100), random_state=0).fit(X)
features = {
    "pixels": X,
    "PCA, 10 components": PCA(10, random_state=0).fit_transform(X),
    "VAE, 10 components": vae.transform(X),
}

# %%
# Accuracy
# --------
# On the 1,779 other digits, for 20 choices of the 18 labelled ones: mean and standard error.

labelled = StratifiedShuffleSplit(20, train_size=0.01, random_state=0)
classifier = LogisticRegression(max_iter=2_000)
accuracy = {
    name: np.array([classifier.fit(Z[a], y[a]).score(Z[b], y[b]) for a, b in labelled.split(Z, y)])
    for name, Z in features.items()
}
for name, found in accuracy.items():
    print(f"{name:<20}{found.mean():.3f} ± {found.std(ddof=1) / np.sqrt(len(found)):.3f}")

# %%
# Left: each point is one choice of labelled digits. Right: the two components that carry most
# information; labels give the colours alone.

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
for i, found in enumerate(accuracy.values()):
    jitter = np.linspace(-0.12, 0.12, len(found))
    left.plot(found, i + jitter, "o", alpha=0.6)
    left.plot([found.mean()] * 2, [i - 0.25, i + 0.25], color="black", lw=2)
left.set_yticks(range(len(accuracy)), accuracy)
left.invert_yaxis()
left.set(xlabel="accuracy with 18 labels (line: mean)")
LatentDisplay.from_estimator(vae, X, y, ax=right).legend_.set_title("digit")
plt.show()
