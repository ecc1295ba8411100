"""A variational autoencoder with the interface of scikit-learn's PCA."""

from .estimator import VAETransformer
from .imputer import VAEImputer
from .outlier import VAEOutlierDetector

__version__ = "0.1.0"

__all__ = ["VAEImputer", "VAEOutlierDetector", "VAETransformer"]
