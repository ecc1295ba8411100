"""
A table of mixed types, with gaps
=================================

Medical records: numbers, categories and a flag, and every seventh cell missing. One model learns
the table as it is, fills it, and draws new patients, also patients of a given kind.
"""

# %%
# The data
# --------
# scikit-learn's diabetes data in its own units. Weight and blood pressure are kept as a doctor may
# note them, as a class and a flag. The triglycerides come as logarithms. The data does not say
# which sex is 1 and which is 2; women have more HDL cholesterol, which is why 1 is read as female.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes

from skvae import VAETransformer
from skvae.display import MarginalsDisplay

raw = load_diabetes(as_frame=True, scaled=False).frame
weights = ["healthy", "overweight", "obese"]
patients = pd.DataFrame(
    {
        "age": raw["age"].astype("Int64"),  # years; this integer type can have gaps
        "sex": raw["sex"].map({1: "female", 2: "male"}),
        "weight": pd.cut(raw["bmi"], [0, 25, 30, np.inf], right=False, labels=weights),
        "high_pressure": (raw["bp"] >= 100).astype("boolean"),
        "hdl": raw["s3"],  # mg/dl
        "triglycerides": np.exp(raw["s5"]).round(1),  # mg/dl
        "glucose": raw["s6"],  # mg/dl
        "progression": raw["target"].astype("Int64"),  # of the disease, a year later
    }
)
hidden = np.random.default_rng(0).uniform(size=patients.shape) < 1 / 7
table = patients.mask(hidden)
table.head()

# %%
# Fit
# ---
# The types of the columns say which are categories, flags and numbers. Only what a type cannot say
# is added: blood fats are positive and skewed.

families = {"hdl": "log_normal", "triglycerides": "log_normal"}
vae = VAETransformer(n_components=4, likelihood=families, random_state=0).fit(table)
print(vae.summary())

# %%
# Fill the gaps
# -------------
# Beside the usual filling: a column's mean, or its most frequent value.

filled = vae.impute(table)
errors = {}
for j, name in enumerate(table):
    truth, guess = (t.loc[hidden[:, j], name] for t in (patients, filled))
    if name in ("sex", "weight", "high_pressure"):
        measure, usual = "right", table[name].mode()[0]
        errors[name] = measure, (truth == guess).mean(), (truth == usual).mean()
    else:
        measure, usual = "root mean squared error", table[name].mean()
        errors[name] = measure, *(np.mean((truth - g) ** 2) ** 0.5 for g in (guess, usual))
pd.DataFrame(errors, index=["hidden cells", "model", "mean or mode"]).T

# %%
# New patients
# ------------
# A table of the same columns and types comes back, without gaps. A normal column has no limits, so
# that a few draws of age or progression may lie below zero.

vae.sample(5, random_state=0)

# %%
# Columns of the patients beside those of a thousand drawn ones:

MarginalsDisplay.from_estimator(vae, table, random_state=0)

# %%
# Patients of a given kind
# ------------------------
# Some cells are given, the others are drawn from their distribution given these. Here women of 40:

vae.sample(5, given={"sex": "female", "age": 40}, random_state=0)

# %%
# The disease's progression in patients of each weight, and in those that the model draws when the
# weight is given:

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharex=True, sharey=True, layout="constrained")
edges = np.arange(-60, 421, 30)
for axis, weight in zip(axes, weights, strict=True):
    real = patients.loc[patients["weight"] == weight, "progression"].astype(float)
    drawn = vae.sample(2000, given={"weight": weight}, random_state=0)["progression"].astype(float)
    axis.hist(real, edges, density=True, color="0.75", label=f"{len(real)} patients")
    axis.hist(drawn, edges, density=True, histtype="step", lw=2, color="C1", label="drawn")
    for values, color, label in [(real, "0.4", "mean"), (drawn, "C1", "mean, drawn")]:
        axis.axvline(values.mean(), color=color, linestyle="--", label=label)
    axis.set(title=f"weight: {weight}", xlabel="progression", yticks=[])
    axis.legend(frameon=False, fontsize="small")
axes[0].set_ylabel("density")
plt.show()
