"""How a model is fitted: statistics, linear start, training of the mean, then of the spread.

Puts the leaves together; knows T and numbers, and nothing of scikit-learn.
"""

import contextlib
import copy
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from . import judging, linear
from .families import NORMAL, build, gaussian_part
from .likelihoods import Gaussian, Mixed
from .networks import (
    Completion,
    Dropout,
    Layers,
    Spread,
    WithLinear,
    build_network,
    check_columns,
    linear_layer,
    mlp,
    silence,
    silence_fresh,
)
from .priors import PRIORS, StandardNormal, check_prior
from .rows import DistinctRows, Floats, StreamedRows
from .settings import Settings
from .spread import Sample, SpreadFit
from .targets import GATHERED, Stored, Streamed, Unread
from .training import Group, History, Rows, Trainer
from .vae import VAE
from .workspace import CACHED, how_many
from .world import World

F64, F32 = torch.float64, torch.float32
VARYING = ("auto", "heteroscedastic")  # noise: dispersions of counts are functions of z
POWER_TOLERANCE = 0.02  # precision_power="auto": reconstruction may cost this much over PCA's
POWER_LIMIT = 0.25  # and it goes no further, lest one column at its floor outweigh all others
ENCODER_REACH, DECODER_REACH = 5.0, 4.0  # where networks go on level; standard deviations
COMPLETED_ROWS = 8_000  # rows with gaps that the linear start is fitted on, at most
WIDE_CELLS = 2**26  # of the rows that the start of wide tables is found from
SAMPLED = 2**23  # and cells of these
PRIOR_ROWS = 10_000  # that a prior may look at
FEW_ROWS = 5_000  # up to here the encoder has to earn its network, and held-out rows are trained on
AT_FULL_RATE = 64  # inputs up to which the encoder's linear path learns as fast as all else
STREAM = 1_000_003  # between the seeds of processes
SHOWN = 1_000  # rows whose KL is told after an epoch
PATIENCE, PATIENT_STEPS = 30, 200  # epochs, and steps at least, without a rise
SPREAD_ROWS = 4_000  # rows that the spread is fitted on, at most
SPREAD_CELLS = 2**22  # and cells of these
SPREAD_ROUNDS = 2
SPREAD_EPOCHS = 60
# Below this many products a step, a second thread costs more than it brings, and where the machine
# is busy, waiting for it costs tens of times more.
SMALL_STEP = 2**25

# torch's global generator is one per process: users' networks that draw from it take turns
_GLOBAL_RANDOM = threading.RLock()

AnyRows = DistinctRows | StreamedRows
OnEpoch = Callable[[int, float, float | None, VAE], bool]


class Fit:
    """A model on its way, and all that is needed to go on with it later.

    Parameters
    ----------
    settings : Settings
    families : list of str
        Of the columns.
    n_levels : dict
        Number of levels of each categorical column.
    seed : int
        All randomness of the fit comes from here.

    Attributes
    ----------
    module : VAE
        The model, float64, on the CPU.
    losses, scores : list of float
        Training loss and held-out ELBO per epoch, nats in standardised units.
    unit, held_out_unit : float
        Nats that original units cost these rows, on average.
    """

    def __init__(
        self, settings: Settings, families: list[str], n_levels: dict[int, int], seed: int
    ) -> None:
        self.settings, self.seed = settings, seed
        self.families, self.n_levels = families, n_levels
        self.generator_state: Tensor | None = None
        self.optimizer_state: dict[str, Any] | None = None
        self.losses: list[float] = []
        self.scores: list[float] = []
        self.best_score: float | None = None
        # of held-out rows, and its standard error
        self.gain: tuple[float, float] | None = None
        self.spread_gain: tuple[float, float] | None = None
        self.shown: Stored  # while a fit runs: rows whose KL is told
        self.interrupted = self.improving = False
        self.linear_encoder = False
        self.power = 0.0
        self.n_rows = 0  # of all passes
        self.n_epochs = 0  # behind the present weights
        self.unit = self.held_out_unit = 0.0
        self.excess: Tensor | None = None
        self.mean: VAE  # what is trained first; the same as `module` without a separate spread
        self.density: VAE  # `mean` with a spread around it, where that is separate
        self.module: VAE

    @property
    def separate_spread(self) -> bool:
        """Whether the mean is trained first, and a spread fitted around it."""
        s = self.settings
        # without a KL term, latents have no distribution that a spread could be fitted around
        return s.noise == "auto" and s.beta > 0 and any(f in NORMAL for f in self.families)

    # ---------------------------------------------------------------- the two ways to fit

    def run(self, rows: AnyRows, on_epoch: OnEpoch, go_on: bool) -> Stored | Streamed:
        """Fit; ``go_on`` from the model there is. Returns the rows as targets."""
        with self._guarded(rows.n_in_all, rows.n_columns):
            return self._run(rows, on_epoch, go_on)

    def _run(self, rows: AnyRows, on_epoch: OnEpoch, go_on: bool) -> Stored | Streamed:
        s = self.settings
        generator = self._generator()
        data = self._read(rows) if go_on else self._start(rows, generator)
        world = rows.world
        if world.rank:  # what all processes draw alike is drawn: each has rows of its own
            generator.manual_seed(self.seed + self.n_epochs + world.rank * STREAM)
        size = 0
        if s.early_stopping:
            size = min(max(1, round(s.validation_fraction * len(rows))), len(rows) - 1)
        # the same rows and noise each time that a fit goes on, so that held-out rows stay so
        fixed = torch.Generator().manual_seed(self.seed + 1 + world.rank * STREAM)
        train, held_out = data.split(size, fixed)
        self.unit, self.held_out_unit = train.unit, held_out.unit
        self.losses, self.scores, self.best_score = [], [], None
        self.gain = self.spread_gain = None
        self.interrupted = self.improving = False
        n_held_out = held_out.n_in_all
        if rows.n_in_all < 2 and not go_on:  # of several processes; one has looked before
            raise ValueError(
                f"Found {rows.n_in_all} distinct row of positive weight, while a minimum of 2 is "
                "required."
            )
        if s.early_stopping and not n_held_out:
            raise ValueError(
                f"None of {rows.n_in_all} rows can be held out, since each process has but one. "
                "Fit them with VAETransformer, or set early_stopping=False."
            )
        self.shown = (held_out if n_held_out else train).head(SHOWN)
        if s.max_iter > 0:
            # the same noise for each evaluation: (n_draws, n, n_components)
            n_draws = max(min(16, 1024 // max(n_held_out, 1)), s.n_importance_samples, 1)
            noise = torch.randn(n_draws, len(held_out), s.n_components, generator=fixed, dtype=F32)
            if s.beta == 0:
                noise = noise[:1].zero_()
            with self._randomness(self.seed + 3 + self.n_epochs):
                self._train_mean(data, train, held_out, noise, generator, on_epoch)
        if go_on or s.init == "random":
            self.gain = None  # over what a linear model would do, nothing is known
        if not self.separate_spread:
            self.module = self.mean
        elif s.max_iter > 0 or (go_on and not hasattr(self, "module")):
            self._fit_spread(train, held_out, fixed, go_on)
        elif not go_on:
            self.module = self._linear_density()
        del self.shown
        self.generator_state = generator.get_state()
        modules = self.mean, self.module
        tensors = [t.data for m in modules for t in (*m.parameters(), *m.buffers())]
        for tensor in [*tensors, *([] if self.excess is None else [self.excess])]:
            world.lead_(tensor)  # equal to the bit, on whatever processors
        return data

    def run_pass(self, rows: AnyRows) -> Stored | Streamed:
        """One pass over a batch of rows, going on exactly where the last one ended."""
        with self._guarded(rows.n_in_all, rows.n_columns):
            return self._run_pass(rows)

    def _run_pass(self, rows: AnyRows) -> Stored | Streamed:
        generator = self._generator()
        self.interrupted = self.improving = False
        self.scores, self.best_score = [], None
        self.gain = self.spread_gain = None
        first = not hasattr(self, "mean")
        data = self._start(rows, generator) if first else self._read(rows)
        self.unit = data.unit
        with self._randomness(self.seed + 3 + self.n_epochs):
            self.n_rows += len(rows)
            model, trainer = self._prepare_mean(self.n_rows, data.world, generator)
            loss = trainer.epoch(self._mean_rows(model, data, generator))
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss of this pass was {loss}")
            self._keep(model, trainer, 1)
        self.losses.append(loss)
        if self.separate_spread:
            self._fit_spread(data, None, generator, True, 1, 1)
        else:
            self.module = self.mean
        self.generator_state = generator.get_state()
        return data

    def divergence(self, model: VAE) -> float:
        """KL of a model that is being trained, nats per row, over some of the rows."""
        targets, _ = self.shown[:]
        with torch.no_grad():
            mean, log_var = model.posterior(targets.to(next(model.parameters())))
            fixed = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(mean.shape, generator=fixed, dtype=F32).to(mean)
            kl = model.divergence(mean, log_var, mean + (0.5 * log_var).exp() * noise)
            return float(self.shown.share @ kl.to("cpu", F64))

    # ---------------------------------------------------------------- the start

    def _read(
        self, rows: AnyRows, likelihood: Any = None, moments: linear.Moments | None = None
    ) -> Stored | Streamed:
        """The rows as targets.

        Moments of what the encoder reads are taken on the way, in double precision.
        """
        likelihood = self.mean.likelihood if likelihood is None else likelihood
        sample = rows.sample
        kept = None if sample.is_sparse else torch.empty(len(sample), rows.n_columns, dtype=F32)
        units, gaps = torch.empty(len(sample), dtype=F64), False
        share = torch.from_numpy(sample.share)
        for part, T in sample.blocks():
            cells = torch.from_numpy(np.ascontiguousarray(likelihood.standardize(T)))
            units[part] = torch.from_numpy(likelihood.log_unit(T).sum(1))
            gaps = gaps or bool(cells.isnan().any())
            if kept is not None:
                kept[part] = cells
            if moments is not None:
                moments.add(likelihood.embed(cells), share[part])
        weights = torch.from_numpy(sample.weights / (sample.total / sample.n_in_all))
        targets = Unread(sample, likelihood) if kept is None else kept
        stored = Stored(targets, weights, units, gaps, world=sample.world)
        return stored if rows is sample else Streamed(rows, likelihood, stored)

    def _start(self, rows: AnyRows, generator: torch.Generator) -> Stored | Streamed:
        """Statistics of the columns, the linear model, and networks that say nothing yet.

        Of a stream, these come from its sample.
        """
        s, k = self.settings, self.settings.n_components
        exposed, sample = s.exposure == "total", rows.sample
        likelihood = build(
            sample, self.families, self.n_levels, exposed, s.noise in VARYING, self._gaussian()
        )
        center, S, data = self._moments(rows, likelihood)
        if center.isnan().any():
            # their order is random
            some = min(COMPLETED_ROWS, max(1, SAMPLED // likelihood.n_inputs))
            T, share = sample.head(some)
            cells = torch.from_numpy(likelihood.standardize(T))
            center, S = linear.completed_covariance(
                likelihood.embed(cells), torch.from_numpy(share), k, s.noise_floor
            )
        normal = gaussian_part(likelihood)
        part = None if normal is None else normal[0]
        model = self._linear_model(S, part)
        bias, slope = likelihood.start(model.noise, center)
        weight = model.loadings * slope[:, None]
        decode = self._network("decoder", k, likelihood.n_params, generator)
        encode = self._network("encoder", likelihood.n_inputs, 2 * k, generator)
        encoder_weight = model.encoder if s.beta else model.projection
        encoder_bias = torch.cat([-(encoder_weight @ center), model.log_var])
        if s.init == "random":
            d = likelihood.n_inputs
            layers = linear_layer(d, k, generator), linear_layer(k, d, generator)
            encoder_weight, weight = (layer.weight.detach().to(F64) for layer in layers)
            encoder_bias = torch.zeros_like(encoder_bias)
        completion = Completion(model.loadings, model.noise, center)
        self.linear_encoder = s.init == "linear"
        self.mean = VAE(
            WithLinear(encoder_weight, encoder_bias, *encode, reach=ENCODER_REACH),
            WithLinear(weight, bias, *decode, reach=DECODER_REACH),
            likelihood,
            self._prior(generator),
            k,
            completion,
        ).to(F64)
        self._start_prior(data, generator)
        self.mean.eval()
        if self.separate_spread and part is not None:
            if isinstance(likelihood, Mixed):
                left = S.diagonal() - model.loadings.square().sum(1)
                each = left[-part.n_inputs :].clamp_min(s.noise_floor**2)
            else:
                # the linear model's own best spread per column, at the same span
                each = linear.refit(S, model, s.noise_floor).noise
            sizes = self._sizes("decoder")
            network = silence(mlp(k, part.n_columns, sizes, s.activation, 0.0, generator))
            self.density = VAE(
                self.mean.encoder,
                Spread(self.mean.decoder, network),
                self._with_gaussian(likelihood, self._spread_out(part, each.log(), True)),
                self.mean.prior,
                k,
                completion,
            ).to(F64)
            self.density.eval()
        return data

    def _gaussian(self) -> Callable[..., Gaussian]:
        """What makes the likelihood of normal columns of the model that is trained first."""
        s = self.settings
        learn, floor = "common", s.noise_floor
        if not isinstance(s.noise, str):
            learn, floor = "none", min(floor, s.noise)
        elif s.noise in ("homoscedastic", "heteroscedastic"):
            learn = "each"

        def make(shift: Floats, scale: Floats, log: Any) -> Gaussian:
            log_var = torch.zeros(len(scale), dtype=F64)
            return Gaussian(shift, scale, log_var, learn, s.noise == "heteroscedastic", floor, log)

        return make

    def _spread_out(self, part: Gaussian, log_var: Tensor, varies: bool) -> Gaussian:
        """The same columns with a spread each, which may vary with z."""
        floor = self.settings.noise_floor
        return Gaussian(part.shift, part.scale, log_var, "each", varies, floor, part.log)

    @staticmethod
    def _with_gaussian(likelihood: Any, part: Gaussian) -> Any:
        """The likelihood with another last part."""
        if not isinstance(likelihood, Mixed):
            return part
        return Mixed([*likelihood.parts[:-1], part], likelihood.columns)

    def _linear_density(self) -> VAE:
        """The linear start with its own best spread per column, constant in z."""
        s, found = self.settings, gaussian_part(self.density.likelihood)
        assert found is not None
        constant = self._spread_out(found[0], found[0].base.detach(), False)
        likelihood = self._with_gaussian(self.mean.likelihood, constant)
        parts = self.mean.encoder, self.mean.decoder, likelihood, self.mean.prior
        return VAE(*parts, s.n_components, self.mean.completion).eval()

    def _moments(
        self, rows: AnyRows, likelihood: Any
    ) -> tuple[Tensor, linear.Covariance, Stored | Streamed]:
        """Mean and covariance of what the encoder reads, and the rows as targets."""
        device = self.settings.device
        fast = device if device.startswith("cuda") else "cpu"  # others lack double precision
        if likelihood.n_inputs <= linear.WIDE:
            moments = linear.Moments(likelihood.n_inputs, fast)
            data = self._read(rows, likelihood, moments)
            return *moments.result(rows.world), data
        data = self._read(rows, likelihood)
        # their order is random
        some = data.head(max(1, WIDE_CELLS // likelihood.n_inputs))
        size = how_many(likelihood.n_inputs, CACHED)

        def parts() -> Iterable[Tensor]:
            return (likelihood.embed(t) for t, _ in some.parts(size))

        if fast != "cpu":  # there once for all products
            kept = torch.cat([part.to(fast) for part in parts()]).split(16 * size)
            parts = lambda: kept  # noqa: E731
        wide = linear.Wide(parts, some.share)
        return wide.mean, wide, data

    def _linear_model(self, S: linear.Covariance, gaussian: Gaussian | None) -> linear.LinearModel:
        s = self.settings
        d, k, floor = len(S), s.n_components, s.noise_floor
        ones = torch.ones(d, dtype=F64)
        power = s.precision_power
        numbers = all(f in (*NORMAL, "student_t") for f in self.families)
        fixed = gaussian is not None and not isinstance(s.noise, str)
        if (fixed or not numbers) and power == "auto":
            power = 0.0
        psi = ones if power == 0 else linear.factor_analysis(S, k, floor)
        if power == "auto":
            power = linear.choose_power(S, k, psi, floor, POWER_TOLERANCE, POWER_LIMIT)
        self.power = float(power)
        model = linear.weighted_pca(S, k, psi**-self.power, floor)
        if fixed or set(self.families) == {"bernoulli"}:
            noise = model.noise.clone()
            if gaussian is not None:
                noise[-gaussian.n_inputs :] = float(s.noise) ** 2
            else:
                # such inputs have variance 1 given z, as standardised by p (1 - p)
                noise = ones
            model = linear.LinearModel(model.loadings, noise)
            return linear.refit(S, model, floor, learn=False) if s.beta else model
        if numbers and s.noise in ("homoscedastic", "heteroscedastic"):
            return linear.refit(S, model, floor)
        return model

    def _sizes(self, side: str) -> tuple[int, ...]:
        s = self.settings
        if side == "encoder":
            return tuple(s.hidden_layer_sizes)
        sizes = s.decoder_layer_sizes
        return tuple(reversed(s.hidden_layer_sizes)) if sizes is None else tuple(sizes)

    def _network(
        self, side: str, n_in: int, n_out: int, generator: torch.Generator
    ) -> tuple[nn.Module, bool, bool]:
        """The network of one side, whether it needs a gate to be silent, and whether it is ours."""
        s = self.settings
        own = getattr(s, side)
        if own is None and s.network != "mlp":
            check_columns(s.network, self.families)
            layers = Layers(self._sizes(side), s.activation, s.dropout)
            silent = s.init != "random"
            with self._forked(int(torch.randint(2**31, (), generator=generator))):
                return build_network(s.network, side, n_in, n_out, layers, silent), False, False
        if own is None:
            network = mlp(n_in, n_out, self._sizes(side), s.activation, s.dropout, generator)
            return (network if s.init == "random" else silence(network)), False, True
        if isinstance(own, nn.Module):
            network_own: Any = copy.deepcopy(own)
        else:
            with self._randomness(int(torch.randint(2**31, (), generator=generator))):
                # a copy: the function may give what it keeps
                network_own = copy.deepcopy(own(n_in, n_out))
            if not isinstance(network_own, nn.Module):
                raise TypeError(
                    f"{side} must return an nn.Module from ({n_in}, {n_out}), got {network_own!r}."
                )
        network_own = network_own.to(F64).eval()
        try:
            with torch.no_grad():
                shape = tuple(network_own(torch.zeros(2, n_in, dtype=F64)).shape)
        except RuntimeError as error:
            raise ValueError(
                f"{side} failed on an input of shape (2, {n_in}): {error}. It must map "
                f"(n, {n_in}) to (n, {n_out})."
            ) from error
        if shape != (2, n_out):
            raise ValueError(
                f"{side} must map (n, {n_in}) to (n, {n_out}), but (2, {n_in}) became {shape}, "
                f"expected (2, {n_out})."
            )
        fresh = not isinstance(own, nn.Module)  # and nothing that it has learned can be lost
        gate = s.init == "linear" and not (fresh and silence_fresh(network_own, n_in))
        return network_own, gate, False

    def _prior(self, generator: torch.Generator) -> nn.Module:
        """The prior, not started yet."""
        prior, k = self.settings.prior, self.settings.n_components
        if isinstance(prior, nn.Module):
            return copy.deepcopy(prior)
        if isinstance(prior, str):
            return StandardNormal(k) if prior == "normal" else PRIORS[prior]()
        with self._randomness(int(torch.randint(2**31, (), generator=generator))):
            made = prior(k)
        if not isinstance(made, nn.Module):
            raise TypeError(f"prior must return an nn.Module from ({k}), got {made!r}.")
        return made

    def _start_prior(self, data: Stored | Streamed, generator: torch.Generator) -> None:
        """Let the prior look at some rows, and check what it says."""
        s, prior, k = self.settings, self.mean.prior, self.settings.n_components
        if hasattr(prior, "start"):
            n_rows = min(PRIOR_ROWS, max(1, SPREAD_CELLS // self.mean.likelihood.n_inputs))
            targets, _ = data.head(n_rows)[:]
            with torch.no_grad():
                prior.start(self.mean, targets.to(F64), generator)
            prior.to(F64)
        check_prior(prior, k)
        if s.free_bits and not hasattr(prior, "kl"):
            raise ValueError(
                f"free_bits={s.free_bits} needs a KL per component in closed form, which "
                f"prior={s.prior!r} does not have: use prior='normal', or free_bits=0."
            )

    # ---------------------------------------------------------------- the mean

    def _prepare_mean(
        self, n_rows: int, world: World, generator: torch.Generator, encoder_too: bool = True
    ) -> tuple[VAE, Trainer]:
        """A float32 copy of the model to train, all of it or all but the encoder; its trainer."""
        s = self.settings
        model = copy.deepcopy(self.mean).to(s.device, F32)
        if not encoder_too:
            model.encoder.requires_grad_(False)
            model.encoder_stays = True
        for module in model.modules():
            if isinstance(module, Dropout):
                module.generator = generator
                if world.size > 1:  # what is drawn for own rows leaves alone what all draw
                    own = self.seed + 4 + self.n_epochs + world.rank * STREAM
                    module.generator = torch.Generator().manual_seed(own)
        with torch.no_grad():
            # a component without loadings is a saddle: encoder and decoder both see no gradient
            weight = model.decoder.weight  # (n_columns, n_components)
            dead = weight.square().sum(0) == 0
            fixed = torch.Generator().manual_seed(self.seed + 2)
            noise = torch.randn(weight.shape, generator=fixed, dtype=F32).to(s.device)
            # a column without loadings has nothing to say, as one without any cell
            silent = weight.square().sum(1, keepdim=True) == 0
            # small beside the noise, which is small where components are as many as columns
            if (normal := gaussian_part(model.likelihood)) is not None:
                log_var = normal[0].base + normal[0].common
                noise[-len(log_var) :] *= (0.5 * log_var).exp().clamp_max(1.0)[:, None]
            weight += torch.where(dead & (~silent | silent.all()), 0.01 * noise, 0.0)
        penalised = tuple(
            p
            for name, p in model.named_parameters()
            if "network" in name and p.dim() > 1 and p.requires_grad
        )
        # the prior of the weights against the likelihood of all rows
        groups = [Group(penalised, alpha=s.alpha / n_rows)]
        if (n_inputs := model.likelihood.n_inputs) > AT_FULL_RATE:
            # Adam moves each weight as far: an output moves as many times that as it has inputs
            groups.append(Group([model.encoder.weight], factor=AT_FULL_RATE / n_inputs))
        options = s.learning_rate_init, s.max_grad_norm, groups, world
        trainer = Trainer(model, *options, modes=not self._plain)
        state = self.optimizer_state
        # of other parameters where a user has frozen some since
        if state is not None and encoder_too and len(state["iterate"]) == len(trainer.flat):
            trainer.resume(state)
        return model, trainer

    def _mean_rows(self, model: VAE, data: Stored | Streamed, generator: torch.Generator) -> Rows:
        """Rows to train on, with the negative ELBO as their loss."""
        s = self.settings
        n_rows = data.n_in_all
        n_batches = math.ceil(n_rows / self._batch_size(n_rows))
        hints = functools.partial(self._hints, model)
        m = s.n_importance_samples
        read_data = data.reader(n_batches, generator, s.device, hints, m * s.n_components)
        before = self.n_epochs

        # of several importance samples (n, m, k): rows first, as all that batches are slices of
        draws = (s.n_components,) if m == 1 else (m, s.n_components)

        def read() -> Iterator[tuple[int, tuple[Tensor, ...]]]:
            for n, (targets, *others) in read_data():
                noise = torch.randn(len(targets), *draws, generator=generator, dtype=F32)
                if s.beta == 0:
                    noise.zero_()  # a plain autoencoder
                yield n, (targets, noise.to(s.device), *others)

        def backward(
            epoch: int, batch: Tensor, noise: Tensor, weight: Tensor, hints: Tensor | None = None
        ) -> Tensor:
            beta = s.beta * min(1.0, (before + epoch + 1) / (s.kl_warmup + 1))
            noise = noise if m == 1 else noise.transpose(0, 1)
            weight = weight / len(batch)
            return model.backward(batch, noise, weight, beta, hints, s.free_bits)

        recorded = self._plain and s.device.startswith("cuda")
        steady = max(0, s.kl_warmup - before) if recorded else math.inf
        return Rows(n_rows, n_batches, read, backward, steady)

    @property
    def _plain(self) -> bool:
        """Whether networks are perceptrons that draw nothing while they are trained."""
        s = self.settings
        return s.network == "mlp" and s.dropout == 0 and not s.own_parts

    @staticmethod
    def _hints(model: VAE, data: Stored) -> Tensor | None:
        """What the gaps of these rows need, found once; None without gaps."""
        if not data.gaps:
            return None
        device = next(model.parameters()).device
        parts = data.parts(how_many(model.likelihood.n_inputs))
        return torch.cat(
            [model.completion.hints(model.likelihood.embed(part.to(device))) for part, _ in parts]
        )

    def _train_mean(
        self,
        whole: Stored | Streamed,
        train: Stored | Streamed,
        held_out: Stored,
        noise: Tensor,
        generator: torch.Generator,
        on_epoch: OnEpoch,
    ) -> None:
        """Train the mean, for as long as the held-out rows' ELBO rises.

        Where rows are few, two things more. The encoder of normal columns, exact at the start, has
        to earn its network: the decoder is also trained alone, and unless held-out rows prove that
        their ELBO gains more where both are, the encoder stays as it is. And each row counts: the
        model is then trained anew on all of them, for as many epochs and at the same learning rates
        as led to the best weights.
        """
        s = self.settings
        n_rows, world = whole.n_in_all, whole.world
        few = s.early_stopping and n_rows <= FEW_ROWS
        # the starts of other families and priors are only near
        exact = all(f in NORMAL for f in self.families)
        exact = exact and isinstance(self.mean.prior, StandardNormal)
        on_trial = few and exact and self.linear_encoder and s.encoder is None
        data = n_rows, train, held_out, noise, generator
        encoder_too = True
        model, trainer, history, gains = self._train(*data, encoder_too, on_epoch)
        try:
            if on_trial and history.best_iter > 0 and not (history.interrupted or history.stopped):
                alone, _, its_history, its_gains = self._train(*data, encoder_too=False)
                if its_history.interrupted:
                    history.interrupted = True  # keep what is finished
                elif not world.lead(judging.proven(gains - its_gains)):
                    encoder_too, model, history, gains = False, alone, its_history, its_gains
            self.losses = history.losses
            self.interrupted = history.interrupted
            # a score that has not risen since the start is no reason to go on
            self.improving = history.n_iter == s.max_iter and not history.converged and history.rose
            if s.early_stopping:
                self.scores, self.best_score = history.scores, history.best_score
                shares = world.gather(held_out.share)
                self.gain = judging.mean_and_error(gains.to("cpu", F64), shares)
                if history.best_iter == 0:
                    return  # the exact start stays
            if few and not history.interrupted:
                again, its_trainer = self._prepare_mean(n_rows, world, generator, encoder_too)
                rows = self._mean_rows(again, whole, generator)
                try:
                    if its_trainer.replay(rows, history.path):
                        model, trainer = again, its_trainer
                except KeyboardInterrupt:
                    self.interrupted = True
        except ConnectionError:
            self._leave(model, trainer, history, encoder_too)
            raise
        best_kept = s.early_stopping or history.interrupted
        n_epochs = history.best_iter if best_kept else history.n_iter
        self._keep(model, trainer, n_epochs, encoder_too)

    def _train(
        self,
        n_rows: int,
        train: Stored | Streamed,
        held_out: Stored,
        noise: Tensor,
        generator: torch.Generator,
        encoder_too: bool,
        on_epoch: OnEpoch | None = None,
    ) -> tuple[VAE, Trainer, History, Tensor]:
        """One training of the mean: its model, what happened, and each held-out row's gain."""
        s = self.settings
        world = train.world
        model, trainer = self._prepare_mean(n_rows, world, generator, encoder_too)
        evaluate, gains = None, torch.zeros(0)
        if s.early_stopping:
            weights = world.gather(held_out.share).to(s.device, F32)
            hints = self._hints(model, held_out)
            judged = held_out, weights, noise.to(s.device), hints, s
            find = functools.partial(judging.judge, model, *judged)
            gains = -find()

            def evaluate() -> float:
                return world.lead(float(weights @ find()))

        def after(history: History) -> bool:
            score = history.scores[-1] if s.early_stopping else None
            assert on_epoch is not None
            return on_epoch(history.n_iter, history.losses[-1], score, model)

        try:
            rows = self._mean_rows(model, train, generator)
            history = trainer.fit(
                rows,
                evaluate,
                max_iter=s.max_iter,
                tol=s.tol,
                n_iter_no_change=self._patience(rows.n_batches),
                on_epoch=None if on_epoch is None else after,
            )
        except ConnectionError as error:
            if encoder_too:  # else this is on trial
                self._leave(model, trainer, error.history)  # type: ignore[attr-defined]
            raise
        return model, trainer, history, gains + find() if s.early_stopping else gains

    def _leave(
        self, model: VAE, trainer: Trainer, history: History, encoder_too: bool = True
    ) -> None:
        """Take over the best weights, for another run to go on from."""
        n_epochs = history.best_iter
        self._keep(model, trainer, n_epochs, encoder_too)
        self.losses = history.losses[:n_epochs]
        if self.settings.early_stopping:
            self.scores = history.scores[:n_epochs]

    def _keep(self, model: VAE, trainer: Trainer, n_epochs: int, encoder_too: bool = True) -> None:
        """Take over weights after so many epochs more, in float64 on the CPU."""
        encoder = self.mean.encoder
        for module in model.modules():
            if isinstance(module, Dropout):
                module.generator = None
        # a copy that owns its memory: the trained parameters are views of the trainer's buffer
        self.mean = copy.deepcopy(self.mean)
        self.mean.load_state_dict({n: v.to("cpu", F64) for n, v in model.state_dict().items()})
        self.mean.eval()
        if not encoder_too:
            self.mean.encoder = encoder  # exactly, not through float32
        self.linear_encoder = not encoder_too
        self.optimizer_state = trainer.state() if encoder_too else None
        self.n_epochs += n_epochs

    # ---------------------------------------------------------------- the spread

    def _fit_spread(
        self,
        train: Stored | Streamed,
        held_out: Stored | None,
        generator: torch.Generator,
        go_on: bool,
        n_rounds: int = SPREAD_ROUNDS,
        n_epochs: int = SPREAD_EPOCHS,
    ) -> None:
        """Fit a spread per column, as a function of z, around the mean, which stays as it is."""
        s = self.settings
        found = gaussian_part(self.density.likelihood)
        assert found is not None
        parts = (
            self.mean.encoder,
            self.mean.decoder,
            self.density.decoder.network,
            self._with_gaussian(self.mean.likelihood, found[0]),
            self.mean.prior,
            self.mean.completion,
        )
        # at once: a prior may be made of the encoder
        copies = copy.deepcopy(parts)
        encoder, decoder, network, likelihood, prior, completion = (c.to(F32) for c in copies)
        spread: Any = Spread(decoder, network)
        k = s.n_components
        model = VAE(encoder, spread, likelihood, prior, k, completion).eval()
        n_rows = max(1, min(SPREAD_ROWS, SPREAD_CELLS // model.likelihood.n_inputs))
        if held_out is None or not held_out.n_in_all:
            samples = train.head(n_rows), train.head(0)
        else:
            samples = train.head(n_rows), held_out.head(n_rows // 8)
        rows, others = (Sample(part, (w / w.sum()).float()) for part, w in (x[:] for x in samples))
        excess = self.excess if go_on else None
        part = gaussian_part(model.likelihood)
        assert part is not None
        plain = self._with_gaussian(model.likelihood, part[0].constant())
        constant = VAE(encoder, spread.decoder, plain, prior, k, completion)
        fit = SpreadFit(model, constant, *part, rows, others, s.noise_floor, generator, excess)
        finished = fit.run(
            0 if self.interrupted else n_rounds,
            n_epochs=n_epochs,
            batch_size=min(
                self._batch_size(len(rows)), max(16, GATHERED // model.likelihood.n_inputs)
            ),
            learning_rate=s.learning_rate_init,
            max_grad_norm=s.max_grad_norm,
            tol=s.tol,
            n_iter_no_change=max(1, self._patience() // 2),
        )
        self.interrupted |= not finished
        self.excess = fit.excess
        if len(others) and fit.gains is not None:
            self.spread_gain = judging.mean_and_error(fit.gains.double(), others.share.double())
        # means and encoder exactly as trained, not through float32
        model.encoder, spread.decoder = self.mean.encoder, self.mean.decoder
        model.completion, model.prior = self.mean.completion, self.mean.prior
        self.density = self.module = model.to(F64)

    # ---------------------------------------------------------------- small things

    def _generator(self) -> torch.Generator:
        generator = torch.Generator()
        if self.generator_state is None:
            return generator.manual_seed(self.seed)
        generator.set_state(self.generator_state)
        return generator

    @contextlib.contextmanager
    def _guarded(self, n_rows: int, n_columns: int) -> Iterator[None]:
        """Gradients on, errors explained, and one thread for small models (of the caller's own)."""
        sizes = [n_columns, *self._sizes("encoder"), *self._sizes("decoder"), n_columns]
        products = sum(a * b for a, b in itertools.pairwise(sizes))
        small = products * min(self._batch_size(n_rows), n_rows) <= SMALL_STEP
        limit = _controller().limit(limits=1, user_api="openmp") if small else None
        with limit or contextlib.nullcontext(), _explained():
            with torch.inference_mode(False), torch.enable_grad():
                yield

    @contextlib.contextmanager
    def _randomness(self, seed: int) -> Iterator[None]:
        """For users' networks: torch's global generator with a seed of ours, and put back after."""
        if not self.settings.own_parts:
            yield
            return
        with self._forked(seed):
            yield

    @staticmethod
    @contextlib.contextmanager
    def _forked(seed: int) -> Iterator[None]:
        """torch's global generator with this seed, and put back after."""
        with _GLOBAL_RANDOM, torch.random.fork_rng():
            torch.default_generator.manual_seed(seed)
            yield

    def _patience(self, n_batches: float = math.inf) -> int:
        """Epochs of so many batches without a rise after which training ends."""
        s = self.settings
        if s.n_iter_no_change != "auto":
            return int(s.n_iter_no_change)
        # a training loss falls for as long as one waits
        return max(PATIENCE, math.ceil(PATIENT_STEPS / n_batches) if s.early_stopping else 0)

    def _batch_size(self, n_rows: int) -> int:
        if self.settings.batch_size != "auto":
            return int(self.settings.batch_size)
        return 128 if n_rows < 5_000 else 256


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Numbers that do not stay finite: say so, and what helps."""
    try:
        yield
    except (FloatingPointError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise ValueError(
            f"Training did not stay finite: {error}. Try a smaller learning_rate_init or "
            "max_grad_norm, early_stopping=True, or a larger noise_floor; columns with a few huge "
            "values profit from a transform (RobustScaler, QuantileTransformer)."
        ) from error
