"""``VAETransformer``: parameters, their checks, the public methods.

The only file that knows scikit-learn's contract. The fit itself is in ``fitting.py``.
"""

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, qmc
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    clone,
)
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils import check_array, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from . import columns
from .checks import check_integer, check_option
from .diagnostics import ACTIVE_KL, efficiency, explained_share, moments, summary
from .families import COUNTS, gaussian_part, support
from .fitting import AnyRows, Fit, OnEpoch
from .likelihoods import Gaussian
from .networks import Spread, recast
from .onnx import write
from .priors import StandardNormal
from .rows import DistinctRows, StreamedRows
from .saving import SaveLoadMixin
from .settings import Settings
from .targets import Stored, Streamed
from .vae import VAE
from .workspace import CACHED, slices, width

try:  # from scikit-learn 1.9 on, and experimental there
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # pragma: no cover

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing to support."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Nothing to manage."""
        return method


FEW = 10  # points that stand for a posterior: with fewer, draws are moved on, and `sample` warns
N_MOVES = 50
MOST_POINTS = 4096  # of one posterior that is drawn from
DESCRIBED = 2**22  # cells of the rows that fitted attributes describe, at most


def _has_density(estimator: "VAETransformer") -> bool:
    """Whether latents and rows have distributions; the reason if not."""
    fit = getattr(estimator, "_fit", None)
    if (estimator.beta if fit is None else fit.settings.beta) == 0:
        raise AttributeError(
            "beta=0 is a plain autoencoder: it has no prior, no posterior and no density. "
            "Give beta a positive number, 1 for the ELBO."
        )
    return True


class VAETransformer(
    SaveLoadMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Variational autoencoder: nonlinear dimensionality reduction, generation and density.

    A generalisation of `PCA` and `FactorAnalysis` that starts at their solution. Rows are
    modelled as

    .. math:: z \sim N(0, I), \qquad x \mid z \sim p(x \mid \mathrm{decoder}(z)),

    and an encoder approximates the posterior, :math:`q(z \mid x) = N(\mu(x),
    \operatorname{diag}(\sigma^2(x)))`. Training raises the evidence lower bound (ELBO)

    .. math:: \log p(x) \ge E_q[\log p(x \mid z)] - \beta\, KL(q(z \mid x) \,\|\, p(z)),

    in nats per row. Encoder and decoder are each the sum of a linear map and a network. `fit`
    first solves the linear model in closed form, with the networks silent, and then trains both;
    held-out rows decide when to stop, and the start itself is among the candidates. Where rows are
    few, the encoder's network has to earn its place (``linear_encoder_``).

    Columns are standardised internally; everything that goes in or comes out is in the data's own
    units, log-densities included.

    Parameters
    ----------
    n_components : int, default=2
        Dimension of the latent. May exceed the number of columns: components that the data does
        not need stay at the prior.
    hidden_layer_sizes : sequence of int, default=(128, 128)
        Sizes of the encoder's hidden layers. Empty: the encoder stays linear.
    decoder_layer_sizes : sequence of int or None, default=None
        Sizes of the decoder's hidden layers. None mirrors the encoder.
    activation : {"relu", "silu", "gelu", "tanh", "elu"}, default="relu"
        Activation of the hidden layers.
    network : "mlp" or a network of `skvae.networks`, default="mlp"
        The kind of encoder and decoder: ``Convolutional(image_shape=(28, 28))`` for images,
        ``TemporalConvolutional(n_steps=50)`` for series, ``Graph(adjacency)`` for columns that are
        nodes of a graph, ``Perceptron(residual=True, norm="layer")``. ``hidden_layer_sizes`` are
        the dense layers between them and the latent.
    encoder, decoder : nn.Module, callable or None, default=None
        Your own networks in place of the MLPs: a module, which is copied, or a callable
        ``(n_in, n_out) -> nn.Module``. An encoder maps (n, n_inputs) standardised cells to
        (n, 2 * n_components), means and log-variances side by side; a decoder maps
        (n, n_components) to (n, n_params), the likelihood's parameters. Inputs and parameters are
        one per column (of categories one per level, a few numbers beyond 64 levels); parameters
        have after these one more, for the spread, per Gaussian column with
        ``noise="heteroscedastic"`` and per negative binomial column with that or "auto". The
        linear path is added to yours, which says nothing at first: of a function's network the last
        linear layer, or that of each of two heads, starts at zero. Where that does not silence it,
        and of a module, which may have been trained, the output passes a gate that starts at zero.
    init : {"linear", "random"}, default="linear"
        "linear" starts at the solution of the linear model, "random" at random weights.
    precision_power : float in [0, 1] or "auto", default="auto"
        How much columns that the others predict well count for more in the linear start: column j
        is weighed by ``psi_j ** -precision_power``, with psi its noise variance in factor
        analysis. 0 starts at probabilistic PCA (best reconstruction of standardised columns),
        1 at factor analysis (best linear likelihood). "auto" takes the largest power whose
        reconstruction error is within 2% of PCA's, but no more than 0.25; 0 where ``noise`` is a
        number or some column is neither normal nor Student's t.
    likelihood : str or mapping, default="auto"
        Family of the columns. "auto": by the dtypes of a DataFrame: flags are "bernoulli", text
        and categories "categorical", numbers "gaussian"; arrays are "gaussian". Another name is
        the family of all columns of numbers, and a mapping {column name or index: family} that of
        single columns:

        - "gaussian": any number;
        - "student_t": any number, with heavy tails; location as a function of z, spread and
          degrees of freedom learned for each column;
        - "log_normal": positive numbers whose logarithm is Gaussian;
        - "bernoulli": numbers in [0, 1], the cross-entropy;
        - "categorical": see ``categorical_features``;
        - "poisson", "negative_binomial": counts, the latter with a dispersion learned for each
          column;
        - "multinomial": counts that share out a row's total among all columns of this family:
          words of a text, items of a basket. Densities are given that total: compare scores with
          those of multinomial models alone.
    categorical_features : "from_dtype", None or array-like, default="from_dtype"
        Columns that are categorical, beside the text and categories of a DataFrame: a mask, names
        or indices. Levels that `fit` has not seen count as missing. Columns of more than 64 levels
        are described by up to 8 numbers a level, which say how the other columns' means differ.
    exposure : {None, "total"}, default=None
        "total": counts are relative to the row's total count over the columns of their family,
        as for the library size of a cell. The row's own total then sets its rates, so a score is
        that of the counts at these rates: compare it with scores of the same ``exposure`` alone.
    noise : {"auto", "heteroscedastic", "homoscedastic", "isotropic"} or float, default="auto"
        The spread of a Gaussian decoder. "heteroscedastic": one per column as a function of z,
        trained together with the mean; "homoscedastic": one per column; "isotropic": one for all
        columns, in units of their standard deviations and of ``precision_power``'s weights; a
        number from 1e-3 to 1e4: this standard deviation, in units of each column's own, fixed:
        squared error.
        "auto": the mean is trained with "isotropic" spread, which serves reconstruction and
        latents; then, with encoder and mean fixed, a spread per column as a function of z is
        fitted, which serves the density. Negative binomial columns have a dispersion each, as a
        function of z with "auto" and "heteroscedastic". Other families ignore it.
    noise_floor : float, default=0.01
        Lowest standard deviation of a column given z, in units of the column's own; 1e-3 at least,
        since training is in single precision. Columns of few distinct values can be given any
        likelihood by a small enough floor.
    prior : {"normal", "mixture", "vamp"}, nn.Module or callable, default="normal"
        Distribution of the latent. "normal": N(0, I); "mixture": a learned mixture of 10 normals;
        "vamp": the mixture of the encoder's posteriors at 50 learned pseudo-inputs. In other
        numbers: ``skvae.priors.Mixture(n_components=20)``, ``Vamp(n_components=500)``. Your own: a
        module, which is copied, with ``log_prob(z)`` in nats and ``sample(n_samples, generator,
        dtype)``, or a callable ``n_components -> nn.Module``; see `skvae.priors`. The linear start
        takes for granted that its draws have about mean 0 and variance 1.
    beta : float, default=1.0
        Weight of the KL term in training. 1 is the ELBO; more presses for fewer active
        components. 0 is a plain autoencoder: the code is the encoder's mean, without noise; then
        there is no density, and `sample`, `score_samples`, `score`, `impute` and `posterior` are
        absent.
    kl_warmup : int, default=0
        Epochs over which the weight rises linearly from 0 to ``beta``. Early stopping judges at
        ``beta`` throughout.
    free_bits : float, default=0.0
        Nats that each component of each row may carry for free: its KL counts as this at least,
        without a gradient below. For ``prior="normal"`` and priors with a ``kl`` of their own.
    n_importance_samples : int, default=1
        Draws of z per row and step. More than one train the importance-weighted bound (IWAE), which
        is tighter and costs about as many times more; the encoder's gradient is the doubly
        reparameterised one.
    n_score_samples : int, default=256
        Points of the importance-weighted bound in `score_samples`.
    alpha : float, default=4.0
        Strength of the L2 penalty on the networks' weights. As in scikit-learn's `MLPRegressor` it
        is divided by the number of (distinct) rows n where it is added to the loss, nats per row:
        ``alpha / (2 n) * ||weights||^2``, a normal prior of precision ``alpha`` on each weight
        where rows do not repeat. In `partial_fit` n counts the rows of all passes so far. The
        linear path is not penalised: a strong penalty leads to the linear model, not to nothing.
        With ``noise="auto"`` it, like ``dropout``, acts where the mean is trained, not on the
        spread.
    dropout : float in [0, 1), default=0.0
        Share of hidden units dropped in training.
    learning_rate_init : float, default=4e-3
        Learning rate of schedule-free Adam (Defazio et al.), which rises to it over 50 steps. It
        falls only where the loss does not stay finite. The weights of the encoder's linear
        path have 64 / d of it where they read d > 64 numbers, of each category one.
    batch_size : int or "auto", default="auto"
        Rows per step. "auto": 128, and 256 from 5,000 rows on.
    max_iter : int, default=1000
        Most epochs. 0 leaves the linear start.
    tol : float, default=1e-3
        Rise of the held-out bound, in nats per row, that counts as one.
    early_stopping : bool, default=True
        Hold out rows, stop where their bound no longer rises, and keep the best weights. If
        False, all rows are trained on until the training loss no longer falls.
    validation_fraction : float in (0, 1), default=0.1
        Share of the distinct rows to hold out.
    n_iter_no_change : int or "auto", default="auto"
        Epochs without a rise to wait before the end. "auto": 30, or as many as 200 steps take: of
        few rows, an epoch is a step or two; 30 without early stopping. The spread that is fitted
        after the mean waits for half as many epochs, whatever their steps.
    max_grad_norm : float, default=100.0
        Longer gradients are scaled down to this norm.
    warm_start : bool, default=False
        Whether a second `fit` goes on where the first one ended: from its weights, column
        statistics and optimiser (two numbers a weight, which the model keeps, also for
        `partial_fit`), with the same rows held out. Two fits of 5 epochs without early stopping
        are one of 10, to the bit, but for a spread that is fitted after each and for what
        networks of your own draw.
    random_state : int, RandomState instance or None, default=None
        Seeds weights, held-out rows, order and noise. An int gives the same bits each time, at an
        equal number of torch threads. torch's and numpy's global generators are left alone.
    verbose : int, default=0
        1 prints a line an epoch of `fit`: the ELBO of training and of held-out rows, the latter's
        KL, all in nats per row, and the seconds until ``max_iter``; `partial_fit` prints nothing.
    device : str, default="auto"
        Where to train: "cpu", "cuda", "cuda:1", "mps"; "auto" takes CUDA where there is one. The
        fitted model is on the CPU.

    Attributes
    ----------
    module_ : VAE
        The fitted model, a torch module in float64 and in evaluation mode. It speaks of
        standardised columns.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, where X had string names.
    n_iter_ : int
        Epochs run.
    loss_curve_ : list of float
        Training loss of each epoch, nats per row in original units: the negative ELBO under the
        spread that trains the mean. Where ``linear_encoder_``, of the decoder's training alone;
        ``verbose`` and callbacks follow the training of both, which comes first.
    validation_scores_ : list of float
        Held-out ELBO after each epoch, nats per row in original units, at the spread that suits
        the held-out rows best where ``noise`` is "auto" or "isotropic". Empty without
        ``early_stopping``.
    best_validation_score_ : float or None
        Largest of them and of the start's. The columns' statistics and the linear start come from
        all rows, the held-out ones included, and up to 5,000 rows the final weights are trained on
        them too: for choosing between models, score rows that `fit` has not seen.
    precision_power_ : float
        The power that was used.
    linear_encoder_ : bool
        Whether the encoder, and with it `transform`, is still the linear start's. With
        ``early_stopping``, ``init="linear"``, no own encoder and up to 5,000 rows of Gaussian
        columns it is, and the decoder is trained alone, unless the held-out rows' ELBO is beyond
        doubt better with a trained encoder (Student's or Wilcoxon's test at 0.1%).
    noise_variance_ : ndarray of shape (`n_features_in_`,)
        Spread of each column given z, as a variance in original units (of the logarithm, where
        that is normal), averaged over the training rows; infinite where no float is that large,
        NaN for other families. Only where some column is normal.
    kl_per_component_ : ndarray of shape (n_components,)
        Mean of KL(q(z_i | x) || p(z_i)) over the training rows: nats that a component carries.
        After `partial_fit`: over its last batch. Of priors without a KL in closed form: to the
        normal distribution of the component's own mean and variance over these rows, at least what
        it says about them. Without meaning where ``beta=0``: NaN.
    n_active_components_ : int
        Components that carry more than 0.01 nats; with ``beta=0``, all.
    explained_share_ : ndarray of shape (n_components,) or None
        What each component explains of the rows, as a share of what all do: the rise of
        ``-log p(x | z)``, with z the encoder's mean, when it is set to 0, over the rise when all
        are. `PCA`'s ``explained_variance_ratio_``, scaled to sum to 1, where decoder and encoder
        are linear and all columns have one spread; else components may share what they explain,
        and the sum is not 1. Over up to 1,000 training rows; None after `partial_fit`.
    linear_gain_, linear_gain_error_ : float or None
        How much the held-out rows' ELBO gained by training over the linear start, nats per row, and
        the standard error. Above two standard errors it does more than a linear model would. With
        ``noise="auto"`` this is of the mean, with one spread for all columns: of reconstructions
        and latents. None without held-out rows, and where training began elsewhere: with
        ``init="random"``, and where ``warm_start`` goes on.
    spread_gain_, spread_gain_error_ : float or None
        With ``noise="auto"``: how much held-out rows' log-density gained after that, around the
        same mean, by a spread that depends on z over one spread per column, nats per row, and the
        standard error. Of up to 500 rows, by which the spread was chosen among a few; up to 5,000
        rows the mean has been trained on them, too. None where ``linear_gain_`` would be, but for
        ``init="random"``.
    score_efficiency_ : float or None
        Share of the points of `score_samples` that count, as an effective sample size; the median
        of some training rows. Near zero a single row's score is rough. None after `partial_fit`.
    effective_sample_size_ : ndarray of shape (n_rows,)
        Of the last ``sample(given=...)``: how many points stood for the posterior of each row.

    See Also
    --------
    sklearn.decomposition.PCA : The linear model with one spread for all columns.
    sklearn.decomposition.FactorAnalysis : The linear model with a spread per column.

    Notes
    -----
    Rows in another order give the same result, and an integer ``sample_weight`` the same as
    repeated rows, to the bit.

    Values may be missing (NaN, None, null), at random, in `fit` as elsewhere: the linear start is
    fitted by expectation-maximisation, the ELBO is that of the observed cells, and the encoder
    reads what the linear model expects where a value is missing.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014.

    Tipping and Bishop, "Probabilistic Principal Component Analysis", JRSS B, 1999.

    Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, "The Road Less Scheduled", NeurIPS 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> X = load_iris().data
    >>> vae = VAETransformer(n_components=2, random_state=0).fit(X)
    >>> vae.transform(X).shape
    (150, 2)
    >>> vae.inverse_transform(vae.transform(X)).shape
    (150, 4)
    >>> vae.sample(3, random_state=0).shape
    (3, 4)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        hidden_layer_sizes: Any = (128, 128),
        decoder_layer_sizes: Any = None,
        activation: str = "relu",
        network: Any = "mlp",
        encoder: Any = None,
        decoder: Any = None,
        init: str = "linear",
        precision_power: float | str = "auto",
        likelihood: Any = "auto",
        categorical_features: Any = "from_dtype",
        exposure: str | None = None,
        noise: float | str = "auto",
        noise_floor: float = 0.01,
        prior: Any = "normal",
        beta: float = 1.0,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        n_importance_samples: int = 1,
        n_score_samples: int = 256,
        alpha: float = 4.0,
        dropout: float = 0.0,
        learning_rate_init: float = 4e-3,
        batch_size: int | str = "auto",
        max_iter: int = 1000,
        tol: float = 1e-3,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int | str = "auto",
        max_grad_norm: float = 100.0,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.decoder_layer_sizes = decoder_layer_sizes
        self.activation = activation
        self.network = network
        self.encoder = encoder
        self.decoder = decoder
        self.init = init
        self.precision_power = precision_power
        self.likelihood = likelihood
        self.categorical_features = categorical_features
        self.exposure = exposure
        self.noise = noise
        self.noise_floor = noise_floor
        self.prior = prior
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.n_importance_samples = n_importance_samples
        self.n_score_samples = n_score_samples
        self.alpha = alpha
        self.dropout = dropout
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.max_grad_norm = max_grad_norm
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    # ------------------------------------------------------------------ fitting

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the model to X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; NaN, None or null where a value is missing. An array of numbers, or a pandas or
            polars DataFrame.
        y : Ignored
            Present for the interface's sake.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row. Only ratios matter; an integer means repetition.

        Returns
        -------
        self : VAETransformer
            The fitted estimator. If the fit fails, the estimator is as it was.

        Raises
        ------
        ValueError, TypeError
            Where a parameter, X or the weights are not valid, or training did not stay finite.

        Warns
        -----
        ConvergenceWarning
            Where ``max_iter`` was reached while the held-out bound was still rising.
        """
        with _undone_on_failure(self):
            settings = Settings.checked(self.get_params(deep=False))
            go_on = self.warm_start and hasattr(self, "module_")
            fit = self._resumed(settings) if go_on else None
            rows = self._rows(X, sample_weight, reset=not go_on, enough=2)
            if fit is None:
                fit = self._fresh(settings)
            metadata = None if sample_weight is None else {"sample_weight": sample_weight}
            given = {"X": X, "y": y, "metadata": metadata}
            context = self._begin(given)
            self._train(fit, rows, self._on_epoch(context, fit, given), go_on)
            if context is not None:
                context.call_on_fit_task_end(estimator=self, **given)
            # where scikit-learn has callbacks, their decorator is a frame of its own
            self._warn(fit, 4 if hasattr(self, "set_callbacks") else 3)
        return self

    def _train(self, fit: Fit, rows: AnyRows, on_epoch: OnEpoch, go_on: bool) -> None:
        """Fit to these rows, and write what is known then."""
        data = fit.run(rows, on_epoch, go_on)
        self._describe(self._finish(fit, data), data)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit on one batch of rows: one pass, and no held-out rows.

        The first call fixes the columns' statistics and the linear start; it should see a fair
        sample of the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; NaN, None or null where a value is missing. An array of numbers, or a pandas or
            polars DataFrame.
        y : Ignored
            Present for the interface's sake.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row, relative to the other rows of this batch.

        Returns
        -------
        self : VAETransformer
            The fitted estimator.
        """
        with _undone_on_failure(self):
            settings = Settings.checked(self.get_params(deep=False))
            fit = self._resumed(settings) if hasattr(self, "module_") else None
            first = fit is None
            rows = self._rows(X, sample_weight, reset=first, enough=1 + first)
            if fit is None:
                fit = self._fresh(settings)
            self._finish(fit, fit.run_pass(rows))
        return self

    def _rows(self, X: Any, sample_weight: Any, reset: bool, enough: int) -> AnyRows:
        """X and the weights, checked: distinct rows in canonical order, or a stream of them."""
        X = self._validated(X, reset=reset)
        _check_shape(X, self)
        large = columns.is_large(X)
        weights = check_weights(sample_weight, 1 if large and sample_weight is None else X.shape[0])
        if reset:
            counted = X
            if not (large or weights.all()):
                counted = columns.Columns.take(X, np.flatnonzero(weights))
            self._columns = columns.Columns.read(
                counted, self.likelihood, self.categorical_features
            )
            self._check_exposure()
        if large:
            given = None if sample_weight is None else weights
            rows: AnyRows = StreamedRows(self._columns, X, given, self._check)
        else:
            rows = DistinctRows(self._columns, X, weights, self._check_cells)
        if len(rows.sample) < enough:
            raise ValueError(
                f"Found array with 1 sample (distinct rows of positive weight, of {X.shape[0]} "
                f"given), while a minimum of {enough} is required by VAETransformer."
            )
        return rows

    def _check_exposure(self) -> None:
        if self.exposure is not None and not set(COUNTS) & set(self._columns.families):
            raise ValueError(
                f"exposure={self.exposure!r} is of counts, and no column has the likelihood of "
                "one. Give such columns likelihood='poisson' or 'negative_binomial'."
            )

    def _validated(self, X: Any, reset: bool) -> Any:
        """X as a matrix of numbers, float32 or float64, or as the DataFrame that it is.

        What lies on disk and is too large to be read as a whole stays as it is.
        """
        if columns.is_large(X):
            if np.dtype(X.dtype).kind not in "fiub":
                raise TypeError(f"X holds {X.dtype}: convert it to numbers, float32 for example.")
            return validate_data(self, X, reset=reset, skip_check_array=True)
        if columns.is_sliced(X):
            return self._validated(np.asarray(X[:]), reset)
        table = columns.table_library(X) is not None
        if table and (reset or self._columns.library is not None):
            return validate_data(self, X, reset=reset, skip_check_array=True)
        dtypes = [np.float64, np.float32]
        if np.ma.is_masked(X):  # whose cells below the mask scikit-learn would take for data
            raise TypeError("X has masked cells: pass X.astype(float).filled(np.nan).")
        columns.check_no_dates(X)
        try:
            # infinities are refused below, where columns have names
            return validate_data(
                self, X, reset=reset, dtype=dtypes, accept_sparse="csr", ensure_all_finite=False
            )
        except ValueError as error:
            what = str(error).splitlines()[0]
            # scikit-learn's messages leave open which column, and how to proceed
            if "could not convert string" in what:
                raise ValueError(
                    f"{columns.text_column(X)}{what}. Arrays hold numbers: pass a DataFrame, whose "
                    "text columns are read as categories, or leave such columns out."
                ) from error
            if "Complex data" in what:
                raise ValueError(
                    f"{what}. Pass both parts as columns: np.hstack([X.real, X.imag])."
                ) from error
            raise
        except TypeError as error:
            if "float() argument must be" in str(error):
                raise TypeError(
                    f"{columns.text_column(X)}{error}. Convert what these objects are to numbers."
                ) from error
            raise

    def _encode(self, X: Any) -> columns.Floats:
        """X -> T, refused where it leaves its families' support."""
        T = self._columns.encode(X)
        self._check(T)
        return T

    def _check(self, T: columns.Floats, first_row: int = 0) -> None:
        """Refuse what columns may not hold."""
        # a finite sum is the quickest way to see that nothing is infinite
        infinite = not np.isfinite(T.sum()) and np.isinf(T).any()
        for j in range(T.shape[1]) if infinite else self._columns.restricted:
            self._check_cells(j, T[:, j], first_row)

    def _check_cells(self, j: int, cells: columns.Floats, first_row: int = 0) -> None:
        """Refuse what column j may not hold."""
        name, family = repr(self._columns.names[j]), self._columns.families[j]
        columns.check_no_infinity(cells, name, first_row)
        if family != "gaussian":
            columns.check_support(cells, *support(family), family, name, first_row)

    def _fresh(self, settings: Settings) -> Fit:
        """A model to fit from the start."""
        seed, self._score_seed = random_of(self.random_state).randint(2**31 - 1, size=2).tolist()
        n_levels = {j: len(levels) for j, levels in self._columns.levels.items()}
        return Fit(settings, self._columns.families, n_levels, seed)

    def _resumed(self, settings: Settings) -> Fit:
        """A copy of the fitted model to go on from: should that fail, the original is there."""
        settings.check_same_model(self._fit.settings)
        fit = copy.deepcopy(self._fit)
        fit.settings = settings
        return fit

    def _begin(self, given: dict[str, Any]) -> Any:
        """The callbacks' context of this fit, or None where scikit-learn has no callbacks."""
        if not hasattr(self, "_init_callback_context"):
            return None
        context = self._init_callback_context(max_subtasks=self.max_iter)
        context.call_on_fit_task_begin(estimator=self, **given)
        return context

    def _on_epoch(
        self, context: Any, fit: Fit, given: dict[str, Any], tell: Callable[[str], Any] = print
    ) -> OnEpoch:
        """What happens after each epoch: a printed line, callbacks. True stops the training."""
        began = time.perf_counter()

        def on_epoch(epoch: int, loss: float, score: float | None, model: VAE) -> bool:
            if self.verbose:
                held_out = (
                    "" if score is None else f"  held-out ELBO {score - fit.held_out_unit:12.4f}"
                )
                kl = f"  KL {fit.divergence(model):9.4f}" if self.beta else ""
                left = (time.perf_counter() - began) / epoch * (self.max_iter - epoch)
                tell(
                    f"epoch {epoch:4d}  training ELBO {-loss - fit.unit:12.4f}{held_out}{kl}"
                    f"  at most {left:6.0f} s left"
                )
            if context is None:
                return False

            def fitted() -> dict[str, Any]:
                # as if training had stopped here, before a separate spread is fitted
                module = copy.deepcopy(fit.mean)
                module.load_state_dict(model.state_dict())
                return {"module_": module, "_n_features_out": self.n_components, "n_iter_": epoch}

            task = context.subcontext(task_name="epoch")
            task.call_on_fit_task_begin(estimator=self, **given)
            stop = task.call_on_fit_task_end(
                estimator=self, reconstruction_attributes=fitted, **given
            )
            return bool(stop)

        return on_epoch

    def _finish(self, fit: Fit, data: Stored | Streamed) -> VAE:
        """Write the fitted attributes, and return the model in single precision."""
        # means over so many rows say enough
        some = data.head(max(DESCRIBED // self.n_features_in_, 1))
        self._fit = fit
        self.module_: VAE = fit.module
        self._n_features_out = fit.module.n_components
        self.n_iter_ = len(fit.losses)
        self.loss_curve_ = [loss + fit.unit for loss in fit.losses]
        self.validation_scores_ = [score - fit.held_out_unit for score in fit.scores]
        self.best_validation_score_ = None
        if fit.best_score is not None:
            self.best_validation_score_ = fit.best_score - fit.held_out_unit
        self.precision_power_ = fit.power
        self.linear_encoder_ = fit.linear_encoder
        self.linear_gain_: float | None = None
        self.linear_gain_error_: float | None = None
        if fit.gain is not None:
            self.linear_gain_, self.linear_gain_error_ = fit.gain
        self.spread_gain_: float | None = None
        self.spread_gain_error_: float | None = None
        if fit.spread_gain is not None:
            self.spread_gain_, self.spread_gain_error_ = fit.spread_gain
        module = self._module(np.dtype(np.float32))  # enough for means over rows
        self.kl_per_component_, variance = moments(module, some)
        self.n_active_components_ = int((self.kl_per_component_ > ACTIVE_KL).sum())
        if self.beta == 0:
            self.kl_per_component_ = np.full(self._n_features_out, math.nan)
            self.n_active_components_ = self._n_features_out
        self.explained_share_: NDArray[np.float64] | None = None
        self.score_efficiency_: float | None = None
        self.__dict__.pop("noise_variance_", None)  # an earlier fit's
        normal = gaussian_part(self.module_.likelihood)
        if normal is not None:
            part, normal_columns = normal
            if not part.varies:  # in double precision
                variance[normal_columns] = part.log_var(torch.empty(0)).detach().exp()
            with np.errstate(over="ignore", under="ignore"):  # units beyond 1e154 or below 1e-154
                variance[normal_columns] *= part.scale**2
            self.noise_variance_ = variance
        return module

    def _describe(self, module: VAE, data: Stored | Streamed) -> None:
        """Write the attributes that cost many times a pass over the few rows of a batch."""
        self.explained_share_ = explained_share(module, data)
        if self.beta > 0:
            points = self._points(self.n_score_samples, self._score_seed, np.float32)
            self.score_efficiency_ = efficiency(module, data, *points)

    def summary(self) -> str:
        """What is worth knowing about the fit, in words.

        How long it trained, whether it does more than a linear model, which components carry
        information and which collapsed, whether scores are to be relied on.

        Returns
        -------
        text : str
            A few lines, to print.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> print(VAETransformer(random_state=0).fit(load_iris().data).summary())
        VAETransformer(random_state=0)
        Training: ... epochs. Best held-out ELBO ... nats per row, in epoch ...
          Gain of the mean over the linear start: ... nats per held-out row.
        ...
        """
        check_is_fitted(self)
        fit = getattr(self, "_fit", None)
        if fit is None or fit.module is not self.module_:  # what a callback sees
            raise NotFittedError("The fit still goes on: its summary is there when it has ended.")
        return summary(self)

    def _warn(self, fit: Fit, stacklevel: int) -> None:
        """Warn of interruption and non-convergence, so many frames up."""
        if fit.interrupted:
            message = f"Interrupted after {self.n_iter_} epochs: the best weights so far are kept."
        elif fit.improving:
            what = "the held-out bound still rose" if self.early_stopping else "the loss still fell"
            message = (
                f"max_iter={self.max_iter} was reached while {what}. "
                "Raise max_iter or learning_rate_init."
            )
        else:
            return
        warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel)

    # ---------------------------------------------------------------- inference

    def transform(self, X: Any) -> NDArray[Any]:
        """Mean of q(z | x) for each row: deterministic, never a draw.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Latents, of X's float dtype. The prior's scale is 1.
        """
        return self._posterior(X)[0]

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def posterior(self, X: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Mean and standard deviation of q(z | x) for each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        mean, std : ndarrays of shape (n_samples, n_components)
        """
        mean, log_var = self._posterior(X)
        return mean, np.exp(0.5 * log_var)

    def _posterior(self, X: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Mean and log-variance of q(z | x) for each row."""
        X, dtype, module = self._prepare(X)
        mean = np.empty((X.shape[0], self._n_features_out), dtype=dtype)
        log_var = np.empty_like(mean)
        with torch.no_grad():
            for rows, targets in self._batches(X, dtype, width(module.encoder)):
                m, v = module.posterior(targets)
                mean[rows], log_var[rows] = m.numpy(), v.numpy()
        return mean, log_var

    def inverse_transform(self, Z: Any) -> Any:
        """Mean of p(x | z) for each latent, in X's units; of categories, the most probable one.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Latents.

        Returns
        -------
        X : ndarray or DataFrame of shape (n_samples, n_features)
            An array of Z's float dtype where the model was fitted on an array, else a DataFrame
            of the same library, names and dtypes: whole numbers rounded, flags from 0.5 on true.
        """
        check_is_fitted(self)
        Z = check_array(Z, dtype=[np.float64, np.float32], input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(
                f"Z has {Z.shape[1]} columns, but this model has {self._n_features_out} "
                "components. Pass latents as transform returns them."
            )
        module = self._module(Z.dtype)
        decoder, likelihood = module.decoder, module.likelihood
        if isinstance(decoder, Spread) and isinstance(likelihood, Gaussian) and likelihood.plain:
            decoder = decoder.decoder  # spreads have no part in these means
        each = max(width(decoder), likelihood.n_stats)
        dtype = Z.dtype if self._columns.library is None else np.float64
        T = np.empty((len(Z), self.n_features_in_), dtype=dtype)
        with torch.no_grad():
            for rows in slices(len(Z), each):
                z = torch.from_numpy(Z[rows].copy())  # Z may be a view backwards, or read-only
                stats = likelihood.mean(decoder(z)).numpy()
                # two arrays, what is read and what is written
                for part in slices(len(stats), stats.shape[1], workspace=CACHED // 2):
                    at = slice(rows.start + part.start, rows.start + part.stop)
                    T[at] = likelihood.restore_mean(stats[part].astype(dtype, copy=False))
        return self._columns.decode(T)

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def sample(self, n_samples: int = 1, random_state: Any = None, given: Any = None) -> Any:
        """Draw new rows: z from the prior, x from p(x | z).

        With ``given``, z is drawn from its posterior given these cells instead, by importance
        resampling and, where few points count, 50 steps of elliptical slice sampling; they are
        kept, and the others drawn.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            None draws afresh each time.
        given : mapping or table of shape (n_rows, n_features), default=None
            Cells that are known: ``{column name or index: value}`` for all rows alike, or rows
            with gaps, each of which is completed ``n_samples`` times in a row.

        Returns
        -------
        X : ndarray or DataFrame of shape (n_samples, n_features)
            Rows in X's units; a DataFrame of the same library, names and dtypes where the model
            was fitted on one. With a table given, ``n_rows * n_samples`` rows.

        Warns
        -----
        UserWarning
            Where what is given is so improbable that fewer than 10 of the points which stand for
            the posterior count: ``effective_sample_size_`` holds how many, for each row given.
        """
        check_is_fitted(self)
        check_integer("n_samples", n_samples, 1)
        random, generator = _generators(random_state)
        module = self.module_
        if given is None:
            with torch.no_grad():
                z = module.prior.sample(n_samples, generator, torch.float64)
                return self._columns.decode(self._draw(z, generator))
        if isinstance(given, Mapping):
            T = self._columns.encode_cells(given)
            for j in range(T.shape[1]):
                self._check_cells(j, T[:, j])
        else:
            columns.check_dense(given, "given")
            T = self._encode(self._prepare(given)[0])
        z, self.effective_sample_size_ = self._resample(T, n_samples, random)
        few = np.flatnonzero(self.effective_sample_size_ < FEW)
        if len(few):
            warnings.warn(
                f"Row {few[0]} of what is given is so improbable that only "
                f"{self.effective_sample_size_[few[0]]:.1f} points stand for its posterior: draws "
                "of z may be too much alike. Give fewer or likelier cells.",
                UserWarning,
                stacklevel=2,
            )
        T = np.repeat(T, n_samples, axis=0)
        with torch.no_grad():
            drawn = self._draw(z.reshape(len(T), -1), generator, T)
        return self._columns.decode(np.where(np.isnan(T), drawn, T))

    def _draw(
        self, z: Tensor, generator: torch.Generator, T: columns.Floats | None = None
    ) -> columns.Floats:
        """Draws of rows at these latents, as T, given cells of the same rows."""
        module = self.module_
        out = np.empty((len(z), self.n_features_in_))
        for rows in slices(len(z), module.decoded_width):
            known = None
            if T is not None:
                known = torch.tensor(module.likelihood.standardize(T[rows]))
            draw = module.likelihood.sample(module.decoder(z[rows]), generator, known)
            out[rows] = module.likelihood.restore(draw.numpy())
        return out

    def _resample(
        self, T: columns.Floats, n_draws: int, random: np.random.RandomState
    ) -> tuple[Tensor, columns.Floats]:
        """Draws of z given the observed cells, (n_rows, n_draws, k), and effective sample sizes.

        Points weighed by importance; where few of them count, draws are then moved on, each by a
        Markov chain of its own.
        """
        k = self._n_features_out
        m = max(self._n_points(), min(max(4 * n_draws, 256), MOST_POINTS))
        points, draws = self._points(m, random.randint(2**31 - 1))
        z = torch.empty(len(T), n_draws, k, dtype=torch.float64)
        size = np.empty(len(T))
        with torch.no_grad():
            for rows, targets in self._targets(T, self._weighed_width(m)):
                candidates, log_weights, log_share = self.module_.log_weights(
                    targets, points, draws, sized=True
                )
                weights = (log_weights + log_share[:, None]).softmax(0).T.numpy()  # (n, m)
                size[rows] = 1 / (weights**2).sum(1)
                below = weights.cumsum(1)
                for i, row in enumerate(range(*rows.indices(len(T)))):
                    uniform = random.uniform(size=n_draws) * below[i, -1]
                    chosen = np.searchsorted(below[i], uniform, side="right")
                    chosen = chosen.clip(max=len(candidates) - 1)
                    z[row] = candidates[chosen, i]
            generator = torch.Generator().manual_seed(random.randint(2**31 - 1))
            # (row, draw) of what is moved
            moved = torch.from_numpy(size < FEW).nonzero().expand(-1, n_draws).reshape(-1)
            draw = torch.arange(n_draws).repeat(len(moved) // n_draws)
            each = max(self.module_.decoded_width, width(self.module_.prior))
            for part in slices(len(moved), each):
                at = moved[part], draw[part]
                targets = torch.tensor(self.module_.likelihood.standardize(T[at[0].numpy()]))
                z[at] = self.module_.move(z[at], targets, N_MOVES, generator)
        return z, size

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def impute(self, X: Any, n_draws: int | None = None, random_state: Any = None) -> Any:
        """Fill missing cells by what the model expects there, given the row's observed cells.

        ``E[x_missing | x_observed]``, of categories the most probable one, by self-normalised
        importance sampling with the points of `score_samples`: exact where the model is linear.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Rows, NaN or null where a value is missing.
        n_draws : int or None, default=None
            None fills in expectations. A number gives multiple imputations: so many tables, each
            with missing cells drawn from their distribution given the observed ones.
        random_state : int, RandomState instance or None, default=None
            For ``n_draws``; None draws afresh each time.

        Returns
        -------
        X : ndarray or DataFrame of shape (n_samples, n_features), or a list of ``n_draws``
            Observed cells are X's own, to the bit. A categorical column that had no value at all
            in `fit` stays missing, a column of numbers without any becomes 0.

        References
        ----------
        Mattei and Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
        Sets", ICML 2019.
        """
        if n_draws is not None:
            check_integer("n_draws", n_draws, 1, "or None")
        columns.check_dense(X, "X")
        checked, _, _ = self._prepare(X)
        T = self._encode(checked)
        if columns.table_library(X) is None:
            X = checked
        gaps = np.flatnonzero(np.isnan(T).any(axis=1))
        if n_draws is not None:
            random, generator = _generators(random_state)
            with torch.no_grad():
                z, _ = self._resample(T[gaps], n_draws, random)
                tables = []
                for i in range(n_draws):
                    filled = T.copy()
                    filled[gaps] = self._draw(z[:, i], generator, T[gaps])
                    tables.append(self._columns.fill(X, filled))
            return tables
        filled, m = T.copy(), self._n_points()
        half, draws = self._points((m + 1) // 2, self._score_seed)
        points = torch.cat([half, -half])  # whose mean is exact
        likelihood = self.module_.likelihood
        with torch.no_grad():
            for rows, targets in self._targets(T[gaps], self._weighed_width(m)):
                z, log_weights, log_share = self.module_.log_weights(
                    targets, points, draws, sized=True
                )
                weights = (log_weights + log_share[:, None]).softmax(0)  # (m, n)
                stats = self.module_.mean_over(z, weights, targets)
                filled[gaps[rows]] = likelihood.restore_mean(stats.numpy())
        return self._columns.fill(X, filled)

    def _n_points(self) -> int:
        """``n_score_samples``, which may have changed since `fit`."""
        check_integer("n_score_samples", self.n_score_samples, 1)
        return int(self.n_score_samples)

    def _points(self, n_points: int, seed: int, dtype: Any = np.float64) -> tuple[Tensor, Any]:
        """Standard normal points, and as many draws of the prior if that may have several modes."""
        prior, k = self.module_.prior, self._n_features_out
        points = torch.tensor(_normal_points(n_points, k, seed).astype(dtype))
        if isinstance(prior, StandardNormal):
            return points, None
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return points, prior.sample(n_points, generator, torch.float64).to(points)

    def _weighed_width(self, n_points: int) -> int:
        """Numbers that a row becomes where it is weighed at so many of `_points`."""
        normal = isinstance(self.module_.prior, StandardNormal)
        return int(self.module_.weighed_width(n_points, 0 if normal else n_points))

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def score_samples(self, X: Any) -> NDArray[Any]:
        """Log-density of each row, in nats and in original units: an importance-weighted bound.

        ``log 1/m sum_i p(x, z_i) / r(z_i | x)``, with r a Gaussian around the most probable z
        (Gauss-Newton from the encoder's mean, until a step gains 0.01 nats at most) and z_i the
        images of m = ``n_score_samples`` scrambled Sobol points (with one component, of evenly
        spaced ones), the same for all rows and calls; under a prior other than the normal one
        beside as many draws of that prior, where gaps leave more than one mode. Comparable with
        `PCA.score_samples`, `FactorAnalysis` and `KernelDensity` on the same data.

        Under a normal prior the points' shares sum to one, so the value is exact where the model is
        linear; elsewhere its expectation over scramblings is a lower bound of log p(x), up to a
        term of order 1/m that the scaling of the shares brings. On scikit-learn's digits with 10
        components, the standard deviation over scramblings of a row's value is 0.09 nats at 256
        points (median over rows; 1.3 for the worst), that of the mean over rows 0.02; on breast
        cancer with 5 components 0.008 (worst 2.1) and 0.007.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        log_prob : ndarray of shape (n_samples,)
            Nats, of X's float dtype.

        References
        ----------
        Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016.
        """
        X, dtype, module = self._prepare(X)
        m = self._n_points()
        points, draws = self._points(m, self._score_seed, dtype)
        out, units = np.empty(X.shape[0], dtype=dtype), np.empty(X.shape[0])
        with torch.no_grad():
            for rows, targets in self._batches(X, dtype, self._weighed_width(m), units):
                # so far out that squares overflow: less probable than any number says
                log_prob = (
                    module.log_prob(targets, points, draws).double().nan_to_num(nan=-math.inf)
                )
                out[rows] = log_prob.numpy() - units[rows]
        return out

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean of `score_samples`: the larger, the better, so searches need no ``scoring``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Present for the interface's sake.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        score : float
            Nats per row.
        """
        log_prob = self.score_samples(X).astype(np.float64)
        return float(np.average(log_prob, weights=check_weights(sample_weight, len(log_prob))))

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def score_cells(self, X: Any) -> NDArray[np.float64]:
        """Log-density of each cell given the row's other cells, ``log p(x_j | x_others)``.

        The difference between the row's log-density and that of the row with a gap in place of the
        cell: it says which cell makes a row improbable. The terms of a pseudo-likelihood.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Rows. A row costs as much as a score per column.

        Returns
        -------
        log_prob : ndarray of shape (n_samples, n_features)
            Nats, in original units. NaN where a cell is missing, and where the others alone are so
            far out that no number says how improbable they are.

        References
        ----------
        Besag, "Statistical Analysis of Non-Lattice Data", The Statistician, 1975.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> X = load_iris().data
        >>> vae = VAETransformer(random_state=0, max_iter=0).fit(X)
        >>> row = X[:1].copy()
        >>> row[0, 3] = 2.5  # a petal as wide as it is long
        >>> int(vae.score_cells(row).argmin())
        3
        """
        columns.check_dense(X, "X")
        checked, _, _ = self._prepare(X)
        T, d, module = self._encode(checked), self.n_features_in_, self.module_
        m = self._n_points()
        points, draws = self._points(m, self._score_seed)
        out = np.full(T.shape, math.nan)
        targets = module.likelihood.standardize(T)
        seen = np.argwhere(~np.isnan(T))  # (row, column) of each cell
        with torch.no_grad():

            def log_prob(cells: columns.Floats) -> columns.Floats:
                each = self._weighed_width(m)
                parts = [
                    module.log_prob(torch.tensor(cells[rows]), points, draws)
                    for rows in slices(len(cells), each)
                ]
                found = torch.cat(parts).numpy() if parts else np.empty(0)
                return np.nan_to_num(found, nan=-math.inf, neginf=-math.inf)  # as for whole rows

            whole = log_prob(targets)
            for part in slices(len(seen), d):
                row, column = seen[part].T
                others = targets[row]
                others[np.arange(len(row)), column] = math.nan
                with np.errstate(invalid="ignore"):
                    out[row, column] = whole[row] - log_prob(others)
        return out - module.likelihood.log_unit(T)

    def to_onnx(self, path: Any, part: str = "encoder") -> None:
        """Write `transform` or `inverse_transform` as an ONNX file.

        Input and output are float64 matrices of any number of rows, columns in their original
        units and in their order at `fit`, NaN where a value is missing. Of categories they hold
        codes, 0, 1, ..., whose levels the metadata ``skvae.columns`` name; flags are 0 or 1 and
        come out as probabilities, and whole numbers come out unrounded. Results agree to about
        1e-6 of the columns' scale (of log-normal columns, of the logarithm's): the networks run in
        single precision.

        Parameters
        ----------
        path : str or path-like
            Of the file.
        part : {"encoder", "decoder"}, default="encoder"
            "encoder": X to Z, as `transform`; "decoder": Z to X, as `inverse_transform`.

        Raises
        ------
        ImportError
            Without ``pip install "skvae[onnx]"``.
        ValueError
            Where a network of your own has no form in ONNX.
        """
        check_is_fitted(self)
        check_option("part", part, ("encoder", "decoder"))
        write(self.module_, self._columns, path, part)

    def _prepare(self, X: Any) -> tuple[Any, np.dtype[Any], VAE]:
        """X, checked but for its cells; the dtype of what is made of it, and the module in it."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        _check_shape(X, self)
        dtype = columns.float_of(X)
        return X, dtype, self._module(dtype)

    def _module(self, dtype: np.dtype[Any]) -> VAE:
        """The fitted module in this dtype."""
        if dtype == np.float64:
            return self.module_
        with torch.inference_mode(False):
            module: VAE = recast(self.module_, _torch_dtype(dtype))
            return module

    def _targets(self, T: columns.Floats, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices of T and their targets, float64."""
        for rows in slices(len(T), width):
            yield rows, torch.tensor(self.module_.likelihood.standardize(T[rows]))

    def _batches(
        self, X: Any, dtype: np.dtype[Any], width: int, units: columns.Floats | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Slices of X and their targets: no more than a block of X is ever copied.

        ``units`` are filled with the nats that original units cost each row.
        """
        for block in slices(X.shape[0], self.n_features_in_):
            T = self._columns.encode(self._columns.take(X, block), dtype=dtype)
            for rows in slices(len(T), width):
                at = slice(block.start + rows.start, block.start + rows.stop)
                targets = self._standardized(T[rows], at.start, dtype)
                if units is not None:
                    units[at] = self.module_.likelihood.log_unit(T[rows]).sum(1)
                yield at, targets
            self._columns.release(X)

    def _standardized(self, T: columns.Floats, first_row: int, dtype: np.dtype[Any]) -> Tensor:
        """T, checked, as targets of memory of their own."""
        checked = bool(self._columns.restricted)
        if checked:
            self._check(T, first_row)
        found = self.module_.likelihood.standardize(T)
        targets = torch.from_numpy(np.array(found, dtype=dtype, copy=True if found is T else None))
        # what is infinite in T is so here, and this sum is of all threads
        if not (checked or math.isfinite(targets.sum())):
            self._check(T, first_row)
        return targets

    def __sklearn_tags__(self) -> Any:
        """Tags for scikit-learn's checks."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


@contextlib.contextmanager
def _undone_on_failure(estimator: VAETransformer) -> Iterator[None]:
    """Leave the estimator as it was if the block raises; what it is made of knows gradients."""
    before = dict(vars(estimator))
    try:
        with torch.inference_mode(False):
            yield
    except BaseException:
        # scikit-learn still has to tear the callbacks down, and removes their attributes then
        now = {name: value for name, value in vars(estimator).items() if "callback" in name}
        estimator.__dict__.clear()
        estimator.__dict__.update(before | now)
        raise


def _check_shape(X: Any, estimator: VAETransformer) -> None:
    """Refuse tables without rows or columns, in scikit-learn's words."""
    cells = np.broadcast_to(np.float64(0.0), X.shape)  # of no memory
    check_array(cells, ensure_all_finite=False, estimator=estimator)


def random_of(random_state: Any) -> np.random.RandomState:
    """The generator; None is fresh entropy: numpy's global one is not ours to advance."""
    return np.random.RandomState() if random_state is None else check_random_state(random_state)


def _generators(random_state: Any) -> tuple[np.random.RandomState, torch.Generator]:
    """numpy's and torch's."""
    random = random_of(random_state)
    return random, torch.Generator().manual_seed(random.randint(2**31 - 1))


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.float64 if dtype == np.float64 else torch.float32


def _normal_points(n_points: int, n_components: int, seed: int) -> columns.Floats:
    """Points that fill a standard normal evenly: (n_points, n_components).

    Scrambled Sobol points. On a line, equal steps with a common random shift: the trapezoidal rule,
    which resolves a posterior of several modes where points random within their strata do not.
    """
    random = np.random.default_rng(seed)
    if n_components == 1:
        uniform = (np.arange(n_points)[:, None] + random.uniform()) / n_points
    else:
        exponent = max(0, (n_points - 1).bit_length())
        sobol = qmc.Sobol(n_components, scramble=True, seed=random)
        uniform = sobol.random_base2(exponent)[:n_points]
    # either may be 0 to the last bit, whose normal image is infinite
    points: columns.Floats = norm.ppf(uniform.clip(2.0**-33, 1 - 2.0**-33))
    return points


def cloned_model(estimator: Any, random_state: Any, use: str) -> VAETransformer:
    """A clone of the model that another estimator's parameter holds, to be fitted for this use.

    Refused where it is no model or has no density; seeded where it has no seed of its own.
    """
    if not isinstance(estimator, VAETransformer):
        raise TypeError(f"estimator must be a VAETransformer or None, got {estimator!r}.")
    if estimator.beta == 0:
        raise ValueError(
            f"estimator has beta=0: a plain autoencoder has no density, which {use}. "
            "Give beta a positive number."
        )
    model: VAETransformer = clone(estimator)
    if model.random_state is None:
        model.set_params(random_state=random_state)
    return model


def half_of_columns(X: Any) -> int:
    """A latent dimension for these rows: half the number of columns, rounded up, 15 at most."""
    shape = getattr(X, "shape", None) or np.shape(X)
    return max(min(15, -(-shape[1] // 2)), 1) if len(shape) == 2 else 1


def take_columns(estimator: Any, model: VAETransformer) -> None:
    """Give an estimator the number and the names of the columns of its fitted model."""
    estimator.__dict__.pop("feature_names_in_", None)  # an earlier fit's
    estimator.n_features_in_ = model.n_features_in_
    if hasattr(model, "feature_names_in_"):
        estimator.feature_names_in_ = model.feature_names_in_


def check_weights(sample_weight: Any, n_rows: int) -> columns.Floats:
    """Weights of rows, checked, times a power of two."""
    if sample_weight is None:
        return np.ones(n_rows)
    if isinstance(sample_weight, Real):
        sample_weight = np.full(n_rows, float(sample_weight))
    weights: columns.Floats = check_array(
        sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weights.shape != (n_rows,):
        raise ValueError(f"sample_weight has shape {weights.shape}, expected ({n_rows},).")
    if (weights < 0).any():
        raise ValueError(
            f"sample_weight must not be negative, but holds {weights.min():g} "
            f"(row {int(weights.argmin())})."
        )
    if not weights.any():
        raise ValueError("sample_weight is all zero: at least one weight must be positive.")
    # only ratios matter, and sums of 1e308 overflow; a power of two is exact
    scaled: columns.Floats = np.ldexp(weights, -np.frexp(weights.max())[1])
    return scaled
