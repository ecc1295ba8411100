"""The two maps of a fitted model, `transform` and `inverse_transform`, as ONNX files.

Statistics of columns, gaps and units are computed in double precision, as the original does, the
networks in single precision, for which runtimes have all operators.
"""

import copy
import json
import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .likelihoods import Categorical, Gaussian, ManyLevels, Mixed, StudentT
from .networks import Spread
from .vae import VAE


class _Encoder(nn.Module):
    """T -> mean of q(z | x): (n, n_columns), NaN where missing, to (n, n_components)."""

    def __init__(self, module: VAE) -> None:
        super().__init__()
        self.likelihood, self.completion = module.likelihood, module.completion
        self.encoder = copy.deepcopy(module.encoder).float()

    def forward(self, X: Tensor) -> Tensor:
        inputs = self._completed(self.likelihood.embed(_standardize(self.likelihood, X)))
        mean: Tensor = self.encoder(inputs.float()).chunk(2, -1)[0]
        return mean.double()

    def _completed(self, inputs: Tensor) -> Tensor:
        """`Completion`, without the operators that ONNX lacks: unique rows and inverses."""
        weight, noise, center = (getattr(self.completion, n) for n in ("weight", "noise", "center"))
        observed = ~inputs.isnan()
        scaled = weight / noise[:, None]
        deviation = torch.where(observed, inputs - center, 0.0) @ scaled
        precision = (observed.to(inputs)[:, None] * scaled.T) @ weight  # (n, k, k)
        mean = _solve(precision + torch.eye(weight.shape[1], dtype=inputs.dtype), deviation)
        return torch.where(observed, inputs, center + mean @ weight.T)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solutions of positive definite systems, (n, k, k) and (n, k), by Gauss and Jordan.

    Such matrices need no pivots.
    """
    k = right.shape[1]
    system = torch.cat([matrix, right[..., None]], -1)  # (n, k, k + 1)
    for i in range(k):
        here = torch.arange(k)[:, None] == i
        row = system[:, i : i + 1] / system[:, i : i + 1, i : i + 1]
        system = torch.where(here, row, system - system[..., i : i + 1] * row)
    return system[..., -1]


class _Decoder(nn.Module):
    """z -> mean of p(x | z) in original units: (n, n_components) to (n, n_columns)."""

    def __init__(self, module: VAE) -> None:
        super().__init__()
        decoder, self.likelihood = module.decoder, module.likelihood
        if isinstance(decoder, Spread) and isinstance(self.likelihood, Gaussian):
            decoder = decoder if self.likelihood.log is not None else decoder.decoder
        self.decoder = copy.deepcopy(decoder).float()

    def forward(self, Z: Tensor) -> Tensor:
        raw = self.decoder(Z.float()).double()
        return _restore_mean(self.likelihood, self.likelihood.mean(raw))


def _standardize(likelihood: Any, T: Tensor) -> Tensor:
    """The likelihood's ``standardize``, of a tensor."""
    if isinstance(likelihood, Mixed):
        groups = zip(likelihood.parts, likelihood.columns, strict=True)
        parts = [_standardize(part, T[:, columns]) for part, columns in groups]
        return torch.cat(parts, -1)[:, likelihood._order.tolist()]
    if isinstance(likelihood, Gaussian) and likelihood.log is not None:
        log = torch.tensor(likelihood.log)
        T = torch.where(log, torch.where(log, T, 1.0).log(), T)
    if isinstance(likelihood, Gaussian | StudentT):
        return (T - torch.tensor(likelihood.shift)) / torch.tensor(likelihood.scale)
    return T


def _restore_mean(likelihood: Any, stats: Tensor) -> Tensor:
    """The likelihood's ``restore_mean``, of a tensor."""
    if isinstance(likelihood, Mixed):
        each = stats.split([part.n_stats for part in likelihood.parts], -1)
        groups = zip(likelihood.parts, each, strict=True)
        parts = [_restore_mean(part, own) for part, own in groups]
        return torch.cat(parts, -1)[:, likelihood._order.tolist()]
    if isinstance(likelihood, Categorical):
        parts = [part.argmax(-1) for part in stats.split(likelihood.n_levels, -1)]
        return torch.stack(parts, -1).double()
    if isinstance(likelihood, ManyLevels):
        return stats.argmax(-1, keepdim=True).double()
    if isinstance(likelihood, Gaussian | StudentT):
        shift, scale = torch.tensor(likelihood.shift), torch.tensor(likelihood.scale)
        T = stats * scale + shift
        if isinstance(likelihood, Gaussian) and likelihood.log is not None:
            log = torch.tensor(likelihood.log)
            T = torch.where(log, stats * torch.where(log, shift, 0.0).exp(), T)
        return T
    return stats


def write(module: VAE, columns: Any, path: str | os.PathLike[str], part: str) -> None:
    """Write one side of a fitted module as an ONNX file.

    Parameters
    ----------
    module : VAE
    columns : Columns
        The table's schema, which goes into the metadata.
    path : str or path-like
    part : {"encoder", "decoder"}

    Raises
    ------
    ImportError
        Without the packages of the extra ``onnx``.
    ValueError
        Where a network of the user's own has no form in ONNX.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"to_onnx needs the package {error.name}, which is not installed: "
            'pip install "skvae[onnx]"'
        ) from error
    side = _Encoder(module) if part == "encoder" else _Decoder(module)
    names = ("X", "Z") if part == "encoder" else ("Z", "X")
    n_in = len(columns.names) if part == "encoder" else module.n_components
    example = torch.zeros(2, n_in, dtype=torch.float64)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        with warnings.catch_warnings():
            # what torch says is about itself
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            program: Any = torch.onnx.export(
                side.eval(),
                (example,),
                dynamo=True,
                input_names=names[:1],
                output_names=names[1:],
                dynamic_shapes=({0: torch.export.Dim("n_rows")},),
                verbose=False,
            )
    except Exception as error:  # torch's exporter has many of its own
        raise ValueError(
            f"The {part} has no form in ONNX: {str(error).strip().splitlines()[0]} "
            "Networks of your own may only use what torch.onnx.export can express."
        ) from error
    finally:
        logger.setLevel(level)
    if isinstance(program.model.graph.inputs[0].shape[0], int):
        raise ValueError(
            f"The {part} has no form in ONNX for any number of rows: a network of your own fixes "
            "it. Use x.shape[0] in place of len(x) there."
        )
    schema = [
        {"name": str(name), "family": family}
        | ({"levels": [str(level) for level in columns.levels[j]]} if j in columns.levels else {})
        for j, (name, family) in enumerate(zip(columns.names, columns.families, strict=True))
    ]
    program.model.metadata_props["skvae.columns"] = json.dumps(schema)
    program.save(path)
