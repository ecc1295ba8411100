"""``VAEImputer``: `VAETransformer.impute` as a transformer, beside `IterativeImputer`."""

import warnings
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from .columns import check_dense, missing, table_library
from .estimator import VAETransformer, cloned_model, half_of_columns, take_columns
from .saving import SaveLoadMixin


class VAEImputer(SaveLoadMixin, TransformerMixin, BaseEstimator):
    """Fill missing values by what a variational autoencoder expects there.

    Parameters
    ----------
    estimator : VAETransformer or None, default=None
        The model, cloned. None: ``VAETransformer`` with ``n_components`` as below,
        ``noise="homoscedastic"``, ``precision_power=1.0``, which start at factor analysis, the
        best linear model to predict one column from the others.
    n_components : int or None, default=None
        Latent dimension of the default model. None: half the number of columns, rounded up, 15
        at most.
    add_indicator : bool, default=False
        Whether to append a column for each one that had missing values in `fit`: 1 where a value
        was missing, 0 elsewhere.
    random_state : int, RandomState instance or None, default=None
        Seeds the default model, or the given one where it has none of its own.

    Attributes
    ----------
    estimator_ : VAETransformer
        The fitted model.
    indicated_ : ndarray of int
        Columns that have an indicator.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, where X had string names.

    See Also
    --------
    sklearn.impute.IterativeImputer : Regresses each column on the others, in turn.

    References
    ----------
    Mattei and Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets",
    ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import VAEImputer
    >>> x = np.linspace(0.0, 1.0, 50)
    >>> X = np.column_stack([x, 2 * x])
    >>> X[10, 1] = np.nan
    >>> float(VAEImputer(random_state=0).fit_transform(X)[10, 1].round(1))
    0.4
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_components: int | None = None,
        add_indicator: bool = False,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_components = n_components
        self.add_indicator = add_indicator
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the model to X, gaps included.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Rows, NaN or null where a value is missing.
        y : Ignored
            Present for the interface's sake.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        self : VAEImputer

        Raises
        ------
        ValueError, TypeError
            As `VAETransformer.fit`.
        """
        check_dense(X, "X")
        model = self._model(X).fit(X, sample_weight=sample_weight)
        gaps = missing(model._validated(X, reset=False))
        if unknown := [model._columns.names[j] for j in np.flatnonzero(gaps.all(axis=0))]:
            warnings.warn(
                f"Columns without any value in fit: {unknown}. transform fills theirs with 0, "
                "categories not at all. Leave these columns out.",
                UserWarning,
                stacklevel=2,
            )
        self.estimator_: VAETransformer = model
        self.indicated_ = np.flatnonzero(gaps.any(axis=0) & bool(self.add_indicator))
        take_columns(self, model)
        return self

    def _model(self, X: Any) -> VAETransformer:
        if self.estimator is not None:
            return cloned_model(self.estimator, self.random_state, "imputation needs")
        return VAETransformer(
            half_of_columns(X) if self.n_components is None else self.n_components,
            noise="homoscedastic",
            precision_power=1.0,
            random_state=self.random_state,
        )

    def transform(self, X: Any) -> Any:
        """X with its missing values filled.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        X : ndarray or DataFrame
            An array where `fit` was given one. Observed cells are X's own; indicators follow
            where ``add_indicator`` says so.
        """
        check_is_fitted(self)
        check_dense(X, "X")
        if self.estimator_._columns.library is None:
            X = self.estimator_._validated(X, reset=False)
        filled = self.estimator_.impute(X)
        if not len(self.indicated_):
            return filled
        library = table_library(filled)
        flags = missing(X)[:, self.indicated_]
        if library is None:
            return np.hstack([filled, flags.astype(filled.dtype)])
        names = self.get_feature_names_out()[self.n_features_in_ :]
        columns = dict(zip(names, flags.T, strict=True))
        if library == "pandas":
            return filled.assign(**columns)
        import polars as pl

        return filled.with_columns(*(pl.Series(name, flag) for name, flag in columns.items()))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """Names of the columns of `transform`'s output: those of X, then the indicators'.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of X's columns; None: as in `fit`, or ``x0``, ``x1``, ...

        Returns
        -------
        names : ndarray of str
        """
        check_is_fitted(self)
        table = self.estimator_._columns
        if input_features is None and table.library is not None:
            names = np.array(table.names, dtype=object)
        else:
            names = _check_feature_names_in(self, input_features)
        flags = [f"missingindicator_{names[j]}" for j in self.indicated_]
        return np.concatenate([names, np.array(flags, dtype=object)])

    def __sklearn_tags__(self) -> Any:
        """Tags for scikit-learn's checks."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
