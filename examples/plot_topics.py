"""
Counts: topics in texts
=======================

The documentation of scipy's functions, as counts of words. They go in as the sparse matrix that
``CountVectorizer`` gives. The likelihood ``"multinomial"`` takes a text as draws from one
distribution over words, as topic models do.
"""

# %%
# The data
# --------
# What scipy's functions and classes say about themselves, and the module that each is from.

import importlib
import inspect

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import gammaln
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from skvae import VAETransformer
from skvae.display import LatentDisplay

documents = {}
for (
    module
) in "fft integrate interpolate linalg ndimage optimize signal sparse special stats".split():
    members = vars(importlib.import_module(f"scipy.{module}"))
    for name in sorted(members):
        text = inspect.getdoc(members[name]) if callable(members[name]) else None
        if text and len(text) > 300 and not name.startswith("_"):
            documents.setdefault(text, module)
text, text_test, y, y_test = train_test_split(
    list(documents), np.array(list(documents.values())), test_size=0.3, random_state=0
)
counter = CountVectorizer(stop_words="english", min_df=5, max_df=0.3, token_pattern=r"[a-z]{3,}")
X, X_test = counter.fit_transform(text), counter.transform(text_test)
print(f"{X.shape[0]} texts of {X.shape[1]} different words, {X.nnz / X.shape[0]:.0f} in each")

# %%
# Fit
# ---
# Judged on texts that it has not seen, beside scikit-learn's topic model of as many topics: by
# perplexity, and by what a classifier of modules makes of the latents.

vae = VAETransformer(8, likelihood="multinomial", random_state=0).fit(X)
lda = LatentDirichletAllocation(8, random_state=0).fit(X)

# a topic model takes texts as sequences: without the number of orders of the words
ways = X_test.copy().astype(float)
ways.data = gammaln(ways.data + 1)
orders = np.asarray(gammaln(X_test.sum(1) + 1)).ravel() - np.asarray(ways.sum(1)).ravel()
log_p = vae.score_samples(X_test) - orders
print(f"perplexity: {np.exp(-log_p.sum() / X_test.sum()):.0f}, ", end="")
print(f"topic model {lda.perplexity(X_test):.0f} (a bound)")
for name, model in [("latents", vae), ("topics", lda)]:
    classifier = LogisticRegression(max_iter=2_000).fit(model.transform(X), y)
    found = classifier.score(model.transform(X_test), y_test)
    print(f"module of a text, from {name}: {found:.0%} right")

# %%
# Words
# -----
# Which words a component makes more frequent, at either end.

words = counter.get_feature_names_out()
usual = vae.inverse_transform(np.zeros((1, 8)))[0]
order = np.argsort(-vae.kl_per_component_, kind="stable")[:4]
ends = {}
for i in order:
    moved = vae.inverse_transform(2 * np.eye(8)[[i, i]] * [[-1], [1]])
    ends[i] = [" ".join(words[np.argsort(-np.log(row / usual) * usual)[:4]]) for row in moved]
    print(f"component {i}: {ends[i][0]}  |  {ends[i][1]}")

# %%
# New texts in the two components that carry most information, with the words at their ends; modules
# give the colours alone.

figure, axis = plt.subplots(figsize=(9, 7), layout="constrained")
LatentDisplay.from_estimator(vae, X_test, y_test, components=order[:2].tolist(), ax=axis)
across, up = (ends[i] for i in order[:2])
axis.set_xlabel(
    f"{across[0]}   $\\leftarrow$   component {order[0]}   $\\rightarrow$   {across[1]}"
)
axis.set_ylabel(f"{up[0]}   $\\leftarrow$   component {order[1]}   $\\rightarrow$   {up[1]}")
plt.show()
