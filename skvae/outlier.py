"""``VAEOutlierDetector``: log-densities of `VAETransformer` as scores of an outlier detector."""

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .checks import check_number, check_sizes, is_auto
from .estimator import (
    VAETransformer,
    check_weights,
    cloned_model,
    half_of_columns,
    take_columns,
)
from .saving import SaveLoadMixin

FENCE = 1.5  # contamination="auto": interquartile ranges below the lower quartile
ALIKE = {"float64": 1e-9, "float32": 1e-5}  # relative differences of scores that may be rounding
IMPOSSIBLE = -1e37  # stands for the score minus infinity; a number in single precision, too
FLOOR = 0.1  # of the default models: steps of a tenth of a standard deviation are not strange
POINTS = 64  # of a score: rows come in the same order as by the four times as many of a density
WIDE = 1.5  # of the linear model: standard deviations of a column
REFERENCE = 64  # draws of the model that say how surprising its cells are as a rule


class VAEOutlierDetector(SaveLoadMixin, OutlierMixin, BaseEstimator):
    """Outliers are rows that variational autoencoders find improbable.

    The score of a row is its log-density, of the cells that are there: levels of a category that
    `fit` has not seen count as missing, and make no row strange. For outlier detection, where `fit`
    sees outliers too, and for novelty detection, where it sees normal rows alone.

    By default three models are asked, and the mean of their log-densities counts: what is strange
    shows in one or the other. Two are trained, one of few components and one of many. Both have a
    mixture as their prior, so that the middle between groups is strange, too, and columns have a
    tenth of their standard deviation as the lowest spread, so that small steps in nearly constant
    or discrete columns are not. The third is linear, of one component, and wider than the columns:
    to it, what is far out is strange. Where outliers that are alike are among the rows of `fit`,
    the others learn them as one more group. Scores take 64 importance samples: enough for the
    order of the rows.

    Parameters
    ----------
    estimator : VAETransformer or None, default=None
        The model, cloned. None: a ``VAETransformer`` with ``prior="mixture"``,
        ``noise_floor=0.1`` and ``n_score_samples=64`` for each of ``n_components``, and one with
        ``n_components=1``, ``max_iter=0`` and ``noise=1.5``.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Share of the rows of `fit` that `predict` calls outliers. "auto": those more than one and a
        half interquartile ranges below the lower quartile of the scores, Tukey's fence, which some
        rows are even where none is strange: a few in a hundred.
    n_components : int, sequence of int or None, default=None
        Latent dimensions of the trained ones of the default models. None: 2, and half the number
        of columns, rounded up, where that is more, 15 at most.
    random_state : int, RandomState instance or None, default=None
        Seeds the default models, or the given one where it has none of its own.

    Attributes
    ----------
    estimators_ : list of VAETransformer
        The fitted models.
    estimator_ : VAETransformer
        The first of them.
    offset_ : float
        Rows whose score is below it are outliers, in nats.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, where X had string names.

    See Also
    --------
    sklearn.ensemble.IsolationForest : Rows that few random cuts isolate.
    sklearn.neighbors.LocalOutlierFactor : Rows in thinner surroundings than their neighbours.

    References
    ----------
    An and Cho, "Variational Autoencoder based Anomaly Detection using Reconstruction Probability",
    SNU Data Mining Center, 2015.

    Tukey, "Exploratory Data Analysis", 1977.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import VAEOutlierDetector
    >>> x = np.random.default_rng(0).normal(size=200)
    >>> X = np.column_stack([x, x])
    >>> X[:, 1] += 0.1 * np.random.default_rng(1).normal(size=200)
    >>> X[7] = [1, -1]  # neither is far out, together they are
    >>> detector = VAEOutlierDetector(contamination=0.005, random_state=0).fit(X)
    >>> np.flatnonzero(detector.predict(X) == -1)
    array([7])
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        contamination: float | str = "auto",
        n_components: Any = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.contamination = contamination
        self.n_components = n_components
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the models to X, and the threshold to its scores.

        Parameters
        ----------
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows; NaN or null where a value is missing.
        y : Ignored
            Present for the interface's sake.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        self : VAEOutlierDetector

        Raises
        ------
        ValueError, TypeError
            As `VAETransformer.fit`, and where ``contamination`` is not valid.
        """
        share = self.contamination
        if not is_auto(share):
            check_number("contamination", share, 0, 0.5, open_low=True, extra="or 'auto'")
        models = [model.fit(X, sample_weight=sample_weight) for model in self._models(X)]
        scores = _mean([model.score_samples(X) for model in models])
        weights = check_weights(sample_weight, len(scores))
        self.offset_ = _offset(scores, weights, None if is_auto(share) else float(share))
        self.estimators_: list[VAETransformer] = models
        self.estimator_: VAETransformer = models[0]
        take_columns(self, models[0])
        return self

    def _models(self, X: Any) -> list[VAETransformer]:
        """The models to fit; their random numbers are the same."""
        if self.estimator is not None:
            return [cloned_model(self.estimator, self.random_state, "scores are")]
        sizes = self.n_components
        if sizes is None:
            sizes = sorted({2, max(2, half_of_columns(X))})  # of two columns, one sees too little
        elif isinstance(sizes, Integral) and not isinstance(sizes, bool):
            sizes = [sizes]
        sizes = check_sizes("n_components", sizes)
        if not sizes:
            raise ValueError("n_components must name one size at least, got none.")
        # one seed for all, also where random_state is a generator that goes on
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        shared = {"n_score_samples": POINTS, "random_state": seed}
        trained = [VAETransformer(k, prior="mixture", noise_floor=FLOOR, **shared) for k in sizes]
        return [*trained, VAETransformer(1, max_iter=0, noise=WIDE, **shared)]

    def score_samples(self, X: Any) -> NDArray[Any]:
        """Log-density of each row, the mean of the models': the lower, the stranger.

        Parameters
        ----------
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            Nats per row, in original units.
        """
        check_is_fitted(self)
        return _mean([model.score_samples(X) for model in self.estimators_])

    def decision_function(self, X: Any) -> NDArray[Any]:
        """`score_samples` less ``offset_``: negative for outliers.

        Parameters
        ----------
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            Nats per row.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.intp]:
        """Whether each row is an outlier.

        Parameters
        ----------
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        is_inlier : ndarray of shape (n_samples,)
            -1 for outliers, 1 for others.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def contributions(self, X: Any) -> NDArray[np.float64]:
        """Which cells make a row strange: how much more surprising each is than usual.

        ``-log p(x_j | x_others)``, the surprise of a cell given the row's other cells
        (`VAETransformer.score_cells`), less the mean of the same in rows which the model draws
        itself; the mean of the models'. In nats whatever the columns' units, so columns compare;
        about 0 on average for rows like those of `fit`.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Rows: the few that are to be explained, as each costs as much as a score per column.

        Returns
        -------
        surprise : ndarray of shape (n_samples, n_features)
            Nats; the largest cell of a row explains most. NaN where a cell is missing.
        """
        check_is_fitted(self)

        def surprise(model: VAETransformer) -> NDArray[np.float64]:
            usual = model.score_cells(model.sample(REFERENCE, random_state=0)).mean(0)
            found: NDArray[np.float64] = usual - model.score_cells(X)
            return found

        return _mean([surprise(model) for model in self.estimators_])

    def __sklearn_tags__(self) -> Any:
        """Tags for scikit-learn's checks."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


def _mean(each: list[NDArray[Any]]) -> NDArray[Any]:
    return sum(each[1:], start=each[0]) / len(each)


def _offset(scores: NDArray[Any], weights: NDArray[np.float64], share: float | None) -> float:
    """What lies between that share of the lowest scores and the others; None: Tukey's fence.

    An integer weight is so many rows. Rows alike, whose scores differ by rounding, are on one side.
    """
    alike = ALIKE[scores.dtype.name]
    scores = scores.astype(np.float64).clip(IMPOSSIBLE)
    order = np.argsort(scores, kind="stable")
    order = order[weights[order] > 0]
    scores, below = scores[order], weights[order].cumsum()
    below /= below[-1]

    def above(q: float) -> int:
        """The first row that is not among the lowest share q."""
        return int(np.searchsorted(below, q + 1e-9, side="right").clip(max=len(scores) - 1))

    if share is None:
        low, high = scores[above(0.25)], scores[above(0.75)]
        return float(low - FENCE * (high - low) - alike * abs(low))
    first = scores[above(share)]
    least = first - alike * abs(first)
    lower = scores[scores < least]  # the threshold is between two scores, where there are two
    return float(0.5 * lower[-1] + 0.5 * first) if len(lower) else float(least)
