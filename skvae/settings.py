"""`VAETransformer`'s parameters: what they may be, and what a fitted model cannot change."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .checks import (
    check_device,
    check_integer,
    check_number,
    check_option,
    check_sizes,
    is_auto,
)
from .families import FAMILIES
from .networks import ACTIVATIONS, NETWORKS
from .priors import PRIORS

NOISES = ("auto", "heteroscedastic", "homoscedastic", "isotropic")
INITS = ("linear", "random")
EXPOSURES = ("total",)
# what a fitted model cannot change when it is fitted further
ARCHITECTURE = (
    "n_components",
    "hidden_layer_sizes",
    "decoder_layer_sizes",
    "activation",
    "network",
    "encoder",
    "decoder",
    "dropout",
    "likelihood",
    "categorical_features",
    "exposure",
    "noise",
    "noise_floor",
    "prior",
)


@dataclass
class Settings:
    """The parameters that a fit reads, checked, their devices and sizes resolved."""

    n_components: int
    hidden_layer_sizes: Any
    decoder_layer_sizes: Any
    activation: str
    network: Any
    encoder: Any
    decoder: Any
    init: str
    precision_power: Any
    likelihood: Any
    categorical_features: Any
    exposure: Any
    noise: Any
    noise_floor: float
    prior: Any
    beta: float
    kl_warmup: int
    free_bits: float
    n_importance_samples: int
    alpha: float
    dropout: float
    learning_rate_init: float
    batch_size: Any
    max_iter: int
    tol: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: Any
    max_grad_norm: float
    device: str

    @property
    def own_parts(self) -> bool:
        """Whether there are parts of the user's own, which may draw from torch's generator."""
        own = self.encoder is not None or self.decoder is not None
        return own or not isinstance(self.prior, str)

    @classmethod
    def checked(cls, parameters: dict[str, Any]) -> Self:
        """From the estimator's parameters, all of which are checked, those of inference too."""
        p = dict(parameters)
        _check_n_components(p["n_components"])
        for name in ("hidden_layer_sizes", "decoder_layer_sizes"):
            if p[name] is not None or name == "hidden_layer_sizes":
                p[name] = check_sizes(name, p[name])
        _check_parts(p)
        if not is_auto(p["precision_power"]):
            check_number("precision_power", p["precision_power"], 0, 1, extra="or 'auto'")
        if isinstance(p["noise"], str):
            check_option("noise", p["noise"], NOISES, extra="or a positive number")
        else:
            check_number("noise", p["noise"], 1e-3, 1e4, extra=f"or one of {NOISES}")
        check_number("noise_floor", p["noise_floor"], 1e-3, 1)
        _check_objective(p)
        check_integer("n_score_samples", p["n_score_samples"], 1)
        check_number("alpha", p["alpha"], 0)
        check_number("dropout", p["dropout"], 0, 1, open_high=True)
        check_number("learning_rate_init", p["learning_rate_init"], 0, open_low=True)
        if not is_auto(p["batch_size"]):
            check_integer("batch_size", p["batch_size"], 1, extra="or 'auto'")
        check_integer("max_iter", p["max_iter"], 0)
        check_number("tol", p["tol"], 0)
        fraction = p["validation_fraction"]
        check_number("validation_fraction", fraction, 0, 1, open_low=True, open_high=True)
        if not is_auto(p["n_iter_no_change"]):
            check_integer("n_iter_no_change", p["n_iter_no_change"], 1, extra="or 'auto'")
        if not isinstance(p["verbose"], bool | np.bool_):
            check_integer("verbose", p["verbose"], 0)
        if p["max_grad_norm"] != math.inf:  # no limit
            check_number("max_grad_norm", p["max_grad_norm"], 0, open_low=True)
        for name in ("early_stopping", "warm_start"):
            if not isinstance(p[name], bool | np.bool_):
                raise TypeError(f"{name} must be True or False, got {p[name]!r}.")
        p["device"] = check_device(p["device"])
        return cls(**{name: p[name] for name in cls.__dataclass_fields__})

    def check_same_model(self, fitted: "Settings") -> None:
        """Refuse parameters that a model fitted with others cannot go on with."""
        for name in ARCHITECTURE:
            old, new = getattr(fitted, name), getattr(self, name)
            same = old is new or np.array_equal(old, new)
            if isinstance(old, tuple(PRIORS.values())):  # before they are started
                same = same or repr(old) == repr(new)
            if not same:
                raise ValueError(
                    f"{name}={new!r}, but the model to go on from was fitted with {old!r}. "
                    "Fit afresh: clone(estimator).fit(X), or fit with warm_start=False."
                )
        if (fitted.beta == 0) != (self.beta == 0):
            raise ValueError(
                f"beta={self.beta}, but the model to go on from was fitted with {fitted.beta}: "
                "one of them is a plain autoencoder. "
                "Fit afresh: clone(estimator).fit(X), or fit with warm_start=False."
            )


def _check_n_components(value: Any) -> None:
    """Refuse what is no number of components, PCA's other ways to choose one among it."""
    share = isinstance(value, float) and 0 < value < 1
    if value is None or share or (isinstance(value, str) and value == "mle"):
        raise (TypeError if value is None else ValueError)(
            f"n_components must be an integer of at least 1, got {value!r}: unlike PCA, a VAE is "
            "trained for one number. Choose it by held-out log-likelihood, GridSearchCV over "
            "n_components."
        )
    check_integer("n_components", value, 1)


def _check_parts(p: dict[str, Any]) -> None:
    """Refuse networks, families and priors that there are not."""
    check_option("activation", p["activation"], tuple(ACTIVATIONS))
    check_option("init", p["init"], INITS)
    if isinstance(p["likelihood"], Mapping):
        for name, family in p["likelihood"].items():
            check_option(f"likelihood of column {name!r}", family, tuple(FAMILIES))
    else:
        extra = "or a mapping from columns to families"
        check_option("likelihood", p["likelihood"], ("auto", *FAMILIES), extra)
    if p["exposure"] is not None:
        check_option("exposure", p["exposure"], EXPOSURES, "or None")
    for name in ("encoder", "decoder"):
        if p[name] is not None and not callable(p[name]):
            raise TypeError(
                f"{name} must be an nn.Module, a callable (n_in, n_out) -> nn.Module, or "
                f"None, got {p[name]!r}."
            )
    if not isinstance(p["network"], NETWORKS) and p["network"] != "mlp":
        kinds = ", ".join(network.__name__ for network in NETWORKS)
        raise ValueError(
            f"network must be 'mlp' or an instance of one of {kinds} (skvae.networks), "
            f"got {p['network']!r}."
        )
    if isinstance(p["prior"], str) or not callable(p["prior"]):
        extra = "or an nn.Module, or a callable n_components -> nn.Module"
        check_option("prior", p["prior"], tuple(PRIORS), extra)
    if p["prior"] in PRIORS.values():
        name = p["prior"].__name__
        raise TypeError(f"prior is the class {name}: pass an instance, {name}(), or its name.")


def _check_objective(p: dict[str, Any]) -> None:
    """Refuse objectives that exclude each other."""
    check_number("beta", p["beta"], 0)
    check_integer("kl_warmup", p["kl_warmup"], 0)
    check_number("free_bits", p["free_bits"], 0)
    check_integer("n_importance_samples", p["n_importance_samples"], 1)
    m, free_bits, prior = p["n_importance_samples"], p["free_bits"], p["prior"]
    if p["beta"] == 0 and (m > 1 or free_bits or prior != "normal"):
        raise ValueError(
            "beta=0 is a plain autoencoder, without noise or prior: leave "
            f"n_importance_samples={m} at 1, free_bits={free_bits} at 0 and "
            f"prior={prior!r} at 'normal', or give beta a positive number."
        )
    if free_bits and m > 1:
        raise ValueError(
            f"free_bits={free_bits} is of the KL of single draws, and "
            f"n_importance_samples={m} has no such term: set one of them to its default."
        )
