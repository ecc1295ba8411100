"""``VAEOutlierDetector``: log-densities of `VAETransformer` as scores of an outlier detector."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from .checks import check_integer, check_number
from .estimator import VAETransformer, check_model, check_weights
from .saving import SaveLoadMixin

FENCE = 1.5  # contamination="auto": interquartile ranges below the lower quartile
ALIKE = {"float64": 1e-9, "float32": 1e-5}  # relative differences of scores that may be rounding
IMPOSSIBLE = -1e37  # stands for the score minus infinity; a number in single precision, too
REFERENCE = 64  # draws of the model that say how surprising its cells are as a rule


class VAEOutlierDetector(SaveLoadMixin, OutlierMixin, BaseEstimator):
    """Outliers are rows that a variational autoencoder finds improbable.

    The score of a row is its log-density, of the cells that are there: levels of a category that
    `fit` has not seen count as missing, and make no row strange. For outlier detection, where `fit`
    sees outliers too, and for novelty detection, where it sees normal rows alone.

    Parameters
    ----------
    estimator : VAETransformer or None, default=None
        The model, cloned. None: ``VAETransformer`` with ``n_components`` as below. Where usual rows
        form groups or a ring, ``prior="mixture"`` may see gaps that the default does not.
    contamination : float in (0, 0.5] or "auto", default="auto"
        Share of the rows of `fit` that `predict` calls outliers. "auto": those more than one and a
        half interquartile ranges below the lower quartile of the scores, Tukey's fence, which some
        rows are even where none is strange: a few in a hundred.
    n_components : int or None, default=None
        Latent dimension of the default model. None: 2.
    random_state : int, RandomState instance or None, default=None
        Seeds the default model, or the given one where it has none of its own.

    Attributes
    ----------
    estimator_ : VAETransformer
        The fitted model.
    offset_ : float
        Rows whose log-density is below it are outliers, in nats.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
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
        n_components: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.contamination = contamination
        self.n_components = n_components
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the model to X, and the threshold to its scores.

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
        if not (isinstance(share, str) and share == "auto"):
            check_number("contamination", share, 0, 0.5, open_low=True, extra="or 'auto'")
        model = self._model().fit(X, sample_weight=sample_weight)
        scores = model.score_samples(X)
        weights = check_weights(sample_weight, len(scores))
        self.offset_ = _offset(scores, weights, None if share == "auto" else float(share))
        self.estimator_: VAETransformer = model
        self.n_features_in_ = model.n_features_in_
        self.__dict__.pop("feature_names_in_", None)  # an earlier fit's
        if hasattr(model, "feature_names_in_"):
            self.feature_names_in_ = model.feature_names_in_
        return self

    def _model(self) -> Any:
        if self.estimator is None:
            k = self.n_components
            if k is not None:
                check_integer("n_components", k, 1, "or None")
            return VAETransformer(2 if k is None else k, random_state=self.random_state)
        check_model(self.estimator)
        model = clone(self.estimator)
        if model.beta == 0:
            raise ValueError(
                "estimator has beta=0: a plain autoencoder has no density, which scores are. "
                "Give beta a positive number."
            )
        if model.random_state is None:
            model.set_params(random_state=self.random_state)
        return model

    def score_samples(self, X: Any) -> NDArray[Any]:
        """Log-density of each row: the lower, the stranger.

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
        return self.estimator_.score_samples(X)

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

        ``H(x_j | x_others) - (-log p(x_j | x_others))`` with its sign turned: the surprise of a
        cell given the row's other cells (`VAETransformer.score_cells`), less that of the same
        column in rows which the model draws itself. In nats whatever the columns' units, so columns
        compare; about 0 on average for rows like those of `fit`.

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
        model = self.estimator_
        usual = model.score_cells(model.sample(REFERENCE, random_state=0)).mean(0)
        surprise: NDArray[np.float64] = usual - model.score_cells(X)
        return surprise

    def __sklearn_tags__(self) -> Any:
        """Tags for scikit-learn's checks."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


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
