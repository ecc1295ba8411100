"""
A table of mixed types, with gaps
=================================

Medical records of 442 patients with diabetes: numbers, categories and a flag, and every seventh
cell missing. One model learns the table as it is, fills it, draws new patients, and draws
patients of a given kind. A picture is saved in the current folder.
"""

# %%
# The data
# --------
# scikit-learn's diabetes data in its own units. Weight and blood pressure are kept as a doctor may
# note them, as a class and a flag. The triglycerides come as logarithms. The data does not say
# which sex is 1 and which is 2; women have more HDL cholesterol, which is why 1 is read as female.

from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes

from skvae import VAETransformer

pd.set_option("display.width", 100, "display.max_columns", 8, "display.precision", 1)

start = perf_counter()
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
print(f"{len(table)} patients, {hidden.mean():.0%} of the cells missing\n\n{table.head(6)}")

# %%
# Fit
# ---
# The types of the columns say which are categories, flags and numbers. Only what a type cannot say
# is added: blood fats are positive and skewed.

families = {"hdl": "log_normal", "triglycerides": "log_normal"}
vae = VAETransformer(n_components=4, likelihood=families, random_state=0)
vae.fit(table)
print(f"\n{vae.n_iter_} epochs, {vae.n_active_components_} components in use")

# %%
# Fill the gaps
# -------------
# Beside the usual filling: a column's mean, or its most frequent value.

filled = vae.impute(table)
print(f"\nfilled\n{filled.head(6)}")

print(f"\n{'hidden cells':<16}{'':<24}{'model':>8}{'mean or mode':>16}")
for j, name in enumerate(table):
    truth = patients.loc[hidden[:, j], name]
    guess = filled.loc[hidden[:, j], name]
    if name in ("sex", "weight", "high_pressure"):
        measure = "share that is right"
        ours, usual = (truth == guess).mean(), (truth == table[name].mode()[0]).mean()
    else:
        measure = "root mean squared error"
        ours, usual = (np.mean((truth - g) ** 2) ** 0.5 for g in (guess, table[name].mean()))
    print(f"{name:<16}{measure:<24}{ours:8.2f}{usual:16.2f}")

# %%
# New patients
# ------------
# A table of the same columns and types comes back, without gaps. A normal column has no limits, so
# that a few draws of age or progression may lie below zero.

new = vae.sample(2000, random_state=0)
print(f"\nnew patients\n{new.head(6)}")

# %%
# Patients of a given kind
# ------------------------
# Some cells are given, the others are drawn from their distribution given these.

women = vae.sample(5, given={"sex": "female", "age": 40}, random_state=0)
print(f"\nwomen of 40\n{women}")

by_weight = {w: vae.sample(2000, given={"weight": w}, random_state=0) for w in weights}
print("\nmean progression, by weight")
print(f"{'':<14}{'patients':>10}{'model':>10}")
for weight in weights:
    real = patients.loc[patients["weight"] == weight, "progression"].mean()
    print(f"{weight:<14}{real:10.0f}{by_weight[weight]['progression'].mean():10.0f}")

# %%
# Unusual patients
# ----------------
# ``score_samples`` is the log-density of the cells that are there.

log_p = vae.score_samples(table)
print(f"\nthe least probable patient, {log_p.min():.1f} nats (median {np.median(log_p):.1f})")
print(table.iloc[[log_p.argmin()]])

# %%
# Real beside synthetic
# ---------------------
# Top: single columns. Middle: two columns and the sex. Bottom: what the model draws when the weight
# is given, beside the patients of that weight.

REAL, MODEL = "0.65", "tab:blue"
units = {"triglycerides": "mg/dl", "age": "years"}
figure = plt.figure(figsize=(12, 10.5), layout="constrained")
figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1, 1.25, 1.1])

axes = top.subplots(1, 4)
for axis, name in zip(axes, ["age", "triglycerides", "progression"], strict=False):
    columns = [t[name].astype(float) for t in (patients, new)]
    edges = np.histogram_bin_edges(np.concatenate(columns), 22)
    axis.hist(columns[0], edges, density=True, color=REAL, label="patients")
    axis.hist(columns[1], edges, density=True, histtype="step", color=MODEL, lw=2, label="model")
    axis.set(xlabel=f"{name} ({units[name]})" if name in units else name, yticks=[])
axes[0].set_ylabel("density")
places = np.arange(len(weights))
for shift, t, color in [(-0.2, patients, REAL), (0.2, new, MODEL)]:
    shares = t["weight"].value_counts(normalize=True)[weights]
    axes[3].bar(places + shift, 100 * shares, width=0.38, color=color)
axes[3].set(xlabel="weight", ylabel="% of patients", xticks=places, xticklabels=weights)
axes[1].legend(frameon=False)
top.suptitle("Single columns", fontweight="bold")

axes = middle.subplots(1, 2, sharex=True, sharey=True)
shown = [("patients", patients), ("model", new[: len(patients)])]
for axis, (title, t) in zip(axes, shown, strict=True):
    for sex, color in [("female", "tab:purple"), ("male", "tab:orange")]:
        rows = t[t["sex"] == sex]
        axis.scatter(rows["hdl"], rows["triglycerides"], s=14, alpha=0.6, color=color, label=sex)
    axis.set(title=title, xlabel="HDL (mg/dl)", xscale="log", yscale="log")
x, y = [20, 30, 40, 60, 80, 100], [25, 50, 100, 200, 400]
axes[0].set(ylabel="triglycerides (mg/dl)", xticks=x, xticklabels=x, yticks=y, yticklabels=y)
for axis in axes:
    axis.minorticks_off()
axes[1].legend(frameon=False)
middle.suptitle("Columns together", fontweight="bold")

axes = bottom.subplots(1, 3, sharex=True, sharey=True)
edges = np.arange(-60, 421, 30)
for axis, weight in zip(axes, weights, strict=True):
    real = patients.loc[patients["weight"] == weight, "progression"].astype(float)
    drawn = by_weight[weight]["progression"].astype(float)
    axis.hist(real, edges, density=True, color=REAL, label=f"{len(real)} patients")
    axis.hist(drawn, edges, density=True, histtype="step", color=MODEL, lw=2, label="model")
    axis.set(title=f"given weight: {weight}", xlabel="progression", yticks=[])
    axis.legend(frameon=False)
axes[0].set_ylabel("density")
bottom.suptitle("Conditional draws", fontweight="bold")
figure.savefig("mixed_table.png", dpi=110)

seconds = perf_counter() - start
print(f"\nsaved mixed_table.png; {seconds:.0f} s in all")
