"""What `VAETransformer` is timed against: other packages, a plain loop, bare matrix products.

All train the same network (`Network`: ReLU layers, as many back) on the same standardised rows,
and each has one function, a `Fit`, that trains from a random start for a number of epochs.

- The plain loop goes over a ``DataLoader`` with Adam at 1e-3, one learned noise for each column.
- skorch does the same within a ``NeuralNet``, on all rows and shuffled, otherwise at its defaults.
- pythae's ``VAE`` has a squared error of noise one and Adam at its default, 1e-4. Its likelihood
  is judged with one noise per column, found afterwards from its residuals on the training rows.
- PyOD's ``VAE`` has a squared error as well, and its divergence is off as long as ``capacity`` is
  at its default, 0: it is an autoencoder with noise. Judged by what it is made for, its
  reconstruction; without its dropout, so that the network is the same.
- ctgan's ``TVAE`` turns each column into one number and the mode of a mixture it belongs to, so
  that its rows are several times as wide. Timed by the epoch alone.
"""

import contextlib
import gc
import io
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from benchmarks import seconds_of
from skvae import VAETransformer

LEARNING_RATE = 1e-3
NOISE_FLOOR = 0.01
N_POINTS = 256  # of the importance-weighted bounds; a power of two
NATS, ERROR = "nats per row", "squared error"


class Network(NamedTuple):
    """The encoder's hidden layers, mirrored by the decoder, and the width between them."""

    hidden: tuple[int, ...]
    n_components: int


# what was reached on held-out rows, by `NATS` (higher is better) and `ERROR` (lower)
Judge = Callable[[np.ndarray], dict[str, float]]
# (X, network, epochs, batch_size, seed, what to call after each epoch) -> judge
Fit = Callable[[np.ndarray, Network, int, Any, int, Callable[[], None]], Judge]


class Peer(NamedTuple):
    """A way to train, and its defaults."""

    package: str
    fit: Fit
    epochs: int  # 0: it has no default, or nothing to be judged by
    batch_size: int


class Run(NamedTuple):
    """One whole fit."""

    judge: Judge
    seconds: float
    stamps: list[float]  # when its epochs ended

    @property
    def epoch_seconds(self) -> float:
        """Of an epoch beyond the first, on average."""
        return (self.stamps[-1] - self.stamps[0]) / (len(self.stamps) - 1)


def run(fit: Fit, X: np.ndarray, network: Network, epochs: int, batch_size: Any, seed: int) -> Run:
    """Train and time it."""
    stamps: list[float] = []
    gc.collect()  # nobody pays for what another has left behind
    start = time.perf_counter()
    judge = fit(X, network, epochs, batch_size, seed, lambda: stamps.append(time.perf_counter()))
    return Run(judge, time.perf_counter() - start, stamps)


# -- bare matrix products ---------------------------------------------------------------------


def products_seconds(n_columns: int, network: Network, batch_size: int, linear: bool) -> float:
    """Return the seconds of a batch's matrix products alone, forward and backward.

    ``linear`` adds those of linear paths beside both networks, as ours has.
    """
    hidden, k = network
    first, *others = pairwise([n_columns, *hidden, 2 * k])
    others += pairwise([k, *hidden[::-1], n_columns])
    of_rows = [first]  # nothing needs the gradient of the rows themselves
    if linear:
        of_rows.append((n_columns, k))
        others.append((k, n_columns))
    layers = [
        (torch.randn(batch_size, n_in), torch.randn(n_in, n_out), torch.randn(batch_size, n_out))
        for n_in, n_out in [*of_rows, *others]
    ]

    def step() -> None:
        for number, (x, weight, gradient) in enumerate(layers):
            torch.mm(x, weight)
            torch.mm(x.T, gradient)
            if number >= len(of_rows):
                torch.mm(gradient, weight.T)

    return repeated(step)


def forward_seconds(weights: Sequence[nn.Parameter], n_rows: int, dtype: torch.dtype) -> float:
    """Return the seconds of so many rows' products with these weights, some rows at a time."""
    at_once = min(n_rows, 2048)  # of more, results take memory anew each time, which costs as much
    pairs = [
        (torch.randn(at_once, weight.shape[1], dtype=dtype), weight.detach().T.to(dtype))
        for weight in weights
    ]
    return repeated(lambda: [torch.mm(x, weight) for x, weight in pairs]) * n_rows / at_once


def repeated(action: Callable[[], object], least: float = 0.05) -> float:
    """Return an action's seconds: the median of five stretches of at least so many seconds."""
    action()
    n_times = max(1, math.ceil(least / max(seconds_of(action), 1e-7)))

    def stretch() -> None:
        for _ in range(n_times):
            action()

    return statistics.median(seconds_of(stretch) for _ in range(5)) / n_times


# -- ours -------------------------------------------------------------------------------------

TRAINED = 1 - VAETransformer().validation_fraction  # share of the rows, by default


class _Stamp:
    """A callback of scikit-learn's that calls a function after each epoch."""

    def __init__(self, on_epoch: Callable[[], None]) -> None:
        self.on_epoch = on_epoch

    def setup(self, estimator: Any, context: Any) -> None:
        """Nothing to prepare."""

    teardown = setup

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Nothing to do."""

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        if context.task_name == "epoch":
            self.on_epoch()


def fit_skvae(
    X: np.ndarray,
    network: Network,
    epochs: int,
    batch_size: int | str,
    seed: int,
    on_epoch: Callable[[], None],
    **params: Any,
) -> Judge:
    model = VAETransformer(
        network.n_components,
        hidden_layer_sizes=network.hidden,
        batch_size=batch_size,
        max_iter=epochs,
        random_state=seed,
        **params,
    ).set_callbacks(_Stamp(on_epoch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X)

    def judge(X: np.ndarray) -> dict[str, float]:
        back = model.inverse_transform(model.transform(X))
        return {NATS: model.score(X), ERROR: float(np.square(X - back).mean())}

    return judge


# -- the network as most people write it ------------------------------------------------------


class Posterior(NamedTuple):
    """What one pass of `PlainVAE` returns, each (n_rows, width) but `log_sigma` (n_columns,)."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    decoded: torch.Tensor
    log_sigma: torch.Tensor


def mlp(widths: Iterable[int]) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them."""
    widths = list(widths)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PlainVAE(nn.Module):
    """A variational autoencoder with Gaussian columns, drawn with a seed of torch's."""

    def __init__(self, n_columns: int, network: Network, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        hidden, k = network
        self.encoder = mlp([n_columns, *hidden, 2 * k])
        self.decoder = mlp([k, *hidden[::-1], n_columns])
        self.log_sigma = nn.Parameter(torch.zeros(n_columns))

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance of q(z given x), each (n_rows, n_components)."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def noise(self) -> torch.Tensor:
        """Return the log of each column's noise, never below the floor."""
        return self.log_sigma.clamp(min=math.log(NOISE_FLOOR))

    def forward(self, x: torch.Tensor) -> Posterior:
        mean, log_variance = self.posterior(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return Posterior(mean, log_variance, self.decoder(z), self.noise())


def gaussian_log_density(
    x: torch.Tensor, mean: torch.Tensor, log_sigma: torch.Tensor
) -> torch.Tensor:
    """Return the log-density of each row of `x`, summed over its last axis."""
    standardised = (x - mean) * (-log_sigma).exp()
    return -(0.5 * standardised.square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(dim=-1)


class NegativeElbo(nn.Module):
    """The training loss: minus the evidence lower bound, its mean over rows, in nats."""

    def forward(self, output: Posterior, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance, decoded, log_sigma = output
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1)
        return (kl - gaussian_log_density(x, decoded, log_sigma)).mean()


@torch.no_grad()
def importance_bound(model: PlainVAE, X: np.ndarray, chunk: int = 100) -> float:
    """Return the mean importance-weighted log-likelihood, in nats per row.

    The points come from the model's own posterior through the same scrambled Sobol points for all
    rows, `N_POINTS` of them.
    """
    rows = torch.from_numpy(X)
    n_components = model.posterior(rows[:1])[0].shape[1]
    uniform = torch.quasirandom.SobolEngine(n_components, scramble=True, seed=0).draw(N_POINTS)
    points = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))[:, None]  # (points, 1, components)
    zero = torch.zeros(())
    bounds = []
    for x in rows.split(chunk):
        mean, log_variance = model.posterior(x)
        z = mean + (0.5 * log_variance).exp() * points  # (points, rows, components)
        log_weight = (
            gaussian_log_density(x, model.decoder(z), model.noise())
            + gaussian_log_density(z, zero, zero)
            - gaussian_log_density(z, mean, 0.5 * log_variance)
        )
        bounds.append(log_weight.logsumexp(dim=0) - math.log(N_POINTS))
    return float(torch.cat(bounds).double().mean())


def fit_loop(
    X: np.ndarray,
    network: Network,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[], None],
) -> Judge:
    model = PlainVAE(X.shape[1], network, seed)
    rows = torch.utils.data.TensorDataset(torch.from_numpy(X))
    loader = torch.utils.data.DataLoader(rows, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loss_of = NegativeElbo()
    for _ in range(epochs):
        for (x,) in loader:
            optimizer.zero_grad()
            loss_of(model(x), x).backward()
            optimizer.step()
        on_epoch()
    return lambda X: {NATS: importance_bound(model, X)}


def fit_skorch(
    X: np.ndarray,
    network: Network,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[], None],
) -> Judge:
    from skorch import NeuralNet
    from skorch.callbacks import Callback

    class Stamp(Callback):
        def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
            on_epoch()

    model = PlainVAE(X.shape[1], network, seed)
    net = NeuralNet(
        model,
        criterion=NegativeElbo,
        optimizer=torch.optim.Adam,
        lr=LEARNING_RATE,
        max_epochs=epochs,
        batch_size=batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[Stamp],
        verbose=0,
    )
    net.fit(X, X)
    return lambda X: {NATS: importance_bound(net.module_, X)}


# -- pythae -----------------------------------------------------------------------------------


def pythae_model(plain: PlainVAE, n_columns: int) -> Any:
    """Return pythae's model of the networks of a plain one, which are shared."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = plain.encoder

        def forward(self, x: torch.Tensor) -> Any:
            mean, log_variance = self.layers(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = plain.decoder

        def forward(self, z: torch.Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z))

    n_components = plain.decoder[0].in_features
    config = VAEConfig((n_columns,), n_components, reconstruction_loss="mse")
    return VAE(config, Encoder(), Decoder())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep log messages and progress bars off the screen."""
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def fit_pythae(
    X: np.ndarray,
    network: Network,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[], None],
) -> Judge:
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Stamp(TrainingCallback):
        def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:
            on_epoch()

    plain = PlainVAE(X.shape[1], network, seed)
    with _silence(), tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            per_device_train_batch_size=batch_size,
            seed=seed,
            no_cuda=True,
        )
        pipeline = TrainingPipeline(pythae_model(plain, X.shape[1]), config)
        pipeline(X, callbacks=[Stamp()])

    def judge(X_test: np.ndarray) -> dict[str, float]:
        give_noise(plain, X)
        return {NATS: importance_bound(plain, X_test)}

    return judge


@torch.no_grad()
def give_noise(model: PlainVAE, X: np.ndarray) -> None:
    """Set each column's noise to the root of its mean squared residual on these rows.

    Residuals are those at the posterior's means: at draws they are larger, and pythae's held-out
    bound is then up to 0.4 nats lower.
    """
    errors = [
        (x - model.decoder(model.posterior(x)[0])).square().sum(dim=0)
        for x in torch.from_numpy(X).split(4096)
    ]
    model.log_sigma.copy_(0.5 * (torch.stack(errors).sum(dim=0) / len(X)).log())


# -- PyOD and TVAE ----------------------------------------------------------------------------


def fit_pyod(
    X: np.ndarray,
    network: Network,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[], None],
) -> Judge:
    from pyod.models.vae import VAE

    class Stamped(VAE):
        def epoch_update(self) -> None:
            on_epoch()

    model = Stamped(
        encoder_neuron_list=list(network.hidden),
        decoder_neuron_list=list(network.hidden[::-1]),
        latent_dim=network.n_components,
        dropout_rate=0.0,
        epoch_num=epochs,
        batch_size=batch_size,
        random_state=seed,
        device=torch.device("cpu"),
        verbose=0,
    )
    model.fit(X)

    @torch.no_grad()
    def judge(X: np.ndarray) -> dict[str, float]:
        rows = torch.from_numpy((X - model.X_mean) / (model.X_std + 1e-8)).float()
        mean, _ = model.model.encode(rows)
        back = model.model.decode(mean).numpy() * model.X_std + model.X_mean
        return {ERROR: float(np.square(X - back).mean())}

    return judge


def fit_tvae(
    X: np.ndarray,
    network: Network,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[], None],
) -> Judge:
    import pandas as pd
    from ctgan import TVAE

    def bar(epochs: Iterable[int], **kwargs: Any) -> Iterator[int]:
        for epoch in epochs:
            yield epoch
            on_epoch()

    model = TVAE(
        embedding_dim=network.n_components,
        compress_dims=network.hidden,
        decompress_dims=network.hidden[::-1],
        batch_size=batch_size,
        epochs=epochs,
        enable_gpu=False,
    )
    model.set_random_state(seed)
    # its progress bar is the only seam between epochs
    with mock.patch("ctgan.synthesizers.tvae.tqdm", bar):
        model.fit(pd.DataFrame(X).rename(columns=str))
    return lambda X: {}


PEERS: dict[str, Peer] = {
    "DataLoader loop": Peer("torch", fit_loop, 0, 128),
    "skorch": Peer("skorch", fit_skorch, 10, 128),
    "pythae": Peer("pythae", fit_pythae, 100, 64),
    "PyOD": Peer("pyod", fit_pyod, 30, 32),
    "TVAE": Peer("ctgan", fit_tvae, 0, 500),
}
INSTALLED = {name: peer for name, peer in PEERS.items() if find_spec(peer.package)}
SKIPPED = [name for name in PEERS if name not in INSTALLED]
