"""
Images: convolutions, and what components mean
==============================================

Handwritten digits in black and white, a Bernoulli likelihood, and convolutional networks: an
argument each. Walks along the components show what each of them says.
"""

# %%
# Fit
# ---
# Rows are flat images, ``image_shape`` says how they lie. Pixels that are never on do no harm under
# a Bernoulli likelihood. ``max_iter`` is kept small for the sake of speed: without the filter, the
# fit warns that more would be better.

import warnings

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skvae import VAETransformer
from skvae.display import ReconstructionDisplay, TraversalDisplay
from skvae.networks import Convolutional

X = (load_digits().data > 7.5).astype(float)
X_train, X_test = train_test_split(X, random_state=0)
vae = VAETransformer(
    8,
    likelihood="bernoulli",
    network=Convolutional(image_shape=(8, 8), channels=(16, 32)),
    hidden_layer_sizes=(64,),
    learning_rate_init=8e-3,
    max_iter=50,
    random_state=0,
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    vae.fit(X_train)
print(vae.summary())

# %%
# Reconstructions
# ---------------
# Of images that the model has not seen, from 8 numbers each: the probability that a pixel is on.

ReconstructionDisplay.from_estimator(vae, X_test, image_shape=(8, 8), n_rows=12, cmap="gray_r")

# %%
# Walks along components
# ----------------------
# Through the latent of one image, the first of the test images; each row changes one component, the
# middle is the image's own neighbourhood.

TraversalDisplay.from_estimator(vae, X_test[:1], image_shape=(8, 8), cmap="gray_r")
plt.show()
