"""
Time series: the rest of a day from its first half
==================================================

Daily curves, 24 hours each. The model learns them as rows of a table, with convolutions over
time as its networks. A new day whose second half has not happened yet is a row with gaps: drawing
these cells given the others is a forecast with its uncertainty.
"""

# %%
# The data
# --------
# Generated: a morning and an evening peak, whose times and heights go together from day to day, on
# a level of its own, with noise.

import matplotlib.pyplot as plt
import numpy as np

from skvae import VAETransformer
from skvae.networks import TemporalConvolutional

rng = np.random.default_rng(0)
hours = np.arange(24)


def days(n):
    """Curves of n days: (n, 24)."""
    late, busy, level = rng.normal(size=(3, n, 1))
    morning = (1 + 0.3 * busy) * np.exp(-0.5 * ((hours - 8 - 1.2 * late) / 1.2) ** 2)
    evening = (1.5 + 0.4 * busy) * np.exp(-0.5 * ((hours - 19 - 1.2 * late) / 1.8) ** 2)
    return 1.5 + 0.2 * level + morning + evening + 0.06 * rng.normal(size=(n, len(hours)))


X, X_test = days(600), days(300)

# %%
# Fit
# ---
# A peak that comes earlier or later is not a linear matter: a linear model needs many components
# for what are three causes here. The likelihood of new days says how much is gained.

network = TemporalConvolutional(n_steps=24, channels=(16, 32))
vae = VAETransformer(3, network=network, hidden_layer_sizes=(64,), random_state=0).fit(X)
linear = VAETransformer(3, max_iter=0, random_state=0).fit(X)
print(f"new days, nats per day: {vae.score(X_test):.1f}, linear {linear.score(X_test):.1f}")

# %%
# A forecast
# ----------
# The first half of fifty new days is given, and the rest of each drawn two hundred times.

mornings = X_test[:50].copy()
mornings[:, hours >= 12] = np.nan
draws = vae.sample(200, given=mornings, random_state=0).reshape(50, 200, -1)
low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=1)
later = hours >= 12
inside = (low <= X_test[:50]) & (X_test[:50] <= high)
print(f"intervals of 90% hold {inside[:, later].mean():.0%} of what came")

# %%
# Filled dots are what the model was given, circles are what came later.

figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), sharey=True, layout="constrained")
for i, axis in enumerate(axes):
    day = X_test[i]
    axis.fill_between(
        hours[later], low[i, later], high[i, later], color="C0", alpha=0.25, lw=0, label="90%"
    )
    axis.plot(hours[later], middle[i, later], color="C0", label="median")
    axis.plot(hours[~later], day[~later], "o", ms=4, color="black", label="given")
    axis.plot(hours[later], day[later], "o", ms=4, color="black", mfc="none", label="came later")
    axis.set(xlabel="hour", xticks=range(0, 25, 6))
axes[0].set_ylabel("load")
axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.show()
