"""Find topics in texts: the documentation of scipy's functions, which is on this machine anyway.

Counts of words go in as the sparse matrix that `CountVectorizer` gives. The likelihood
"multinomial" takes a text as draws from one distribution over words, as topic models do, and is
compared with scikit-learn's topic model on texts that neither has seen.
"""

import importlib
import inspect

import numpy as np
from scipy.special import gammaln
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from skvae import VAETransformer

MODULES = "fft integrate interpolate linalg ndimage optimize signal sparse special stats".split()


def documentation() -> tuple[list[str], np.ndarray]:
    """Texts of scipy's functions and classes, and the module of each."""
    texts: dict[str, str] = {}
    for module in MODULES:
        members = vars(importlib.import_module(f"scipy.{module}"))
        for name in sorted(members):
            text = inspect.getdoc(members[name]) if callable(members[name]) else None
            if text and len(text) > 300 and not name.startswith("_"):
                texts.setdefault(text, module)
    return list(texts), np.array(list(texts.values()))


def main() -> None:
    """Print perplexities, what a classifier makes of latents, and each component's words."""
    texts, module = documentation()
    text, text_test, y, y_test = train_test_split(texts, module, test_size=0.3, random_state=0)
    counter = CountVectorizer(
        stop_words="english", min_df=5, max_df=0.3, token_pattern=r"[a-z]{3,}"
    )
    vae = VAETransformer(8, likelihood="multinomial", random_state=0)
    model = make_pipeline(counter, vae).fit(text)
    X, X_test = counter.transform(text), counter.transform(text_test)
    print(f"{X.shape[0]} texts of {X.shape[1]} different words, {X.nnz / X.shape[0]:.0f} in each")

    # a topic model takes texts as sequences: without the number of orders of the words
    ways = X_test.copy().astype(float)
    ways.data = gammaln(ways.data + 1)
    orders = gammaln(X_test.sum(1) + 1).ravel() - ways.sum(1).ravel()
    log_p = vae.score_samples(X_test) - np.asarray(orders).ravel()
    lda = LatentDirichletAllocation(8, random_state=0).fit(X)
    print(f"perplexity of new texts: {np.exp(-log_p.sum() / X_test.sum()):.0f}, ", end="")
    print(f"topic model {lda.perplexity(X_test):.0f}")

    classifier = LogisticRegression(max_iter=2_000)
    found = classifier.fit(model.transform(text), y).score(model.transform(text_test), y_test)
    shares = classifier.fit(lda.transform(X), y).score(lda.transform(X_test), y_test)
    print(f"which module a text is from: {found:.2f} from the latents, {shares:.2f} from topics")

    words = counter.get_feature_names_out()
    usual = vae.inverse_transform(np.zeros((1, 8)))
    for i in np.argsort(-vae.kl_per_component_, kind="stable")[:4]:
        moved = vae.inverse_transform(2 * np.eye(8)[[i, i]] * [[1], [-1]])
        high, low = (np.argsort(-np.log(row / usual[0]) * usual[0])[:6] for row in moved)
        print(f"component {i}: {' '.join(words[high])}  |  {' '.join(words[low])}")


if __name__ == "__main__":
    main()
