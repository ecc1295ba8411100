"""Models of more rows than one machine holds: `DaskVAETransformer`, on a Dask cluster.

Dask places partitions and tasks, torch.distributed sums gradients, and the training is that of one
machine: `fit` has each worker write its partitions to files (`skvae.partitions`), and starts one
task on each (`skvae.member`), which reads them as its rows and trains in a world of processes
(`skvae.world`).
"""

import asyncio
import contextlib
import copy
import dataclasses
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self
from uuid import uuid4

import numpy as np
from sklearn import clone, get_config
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

try:
    import dask
    import dask.array as da
    import dask.dataframe as dd
    import distributed
    from dask.base import is_dask_collection
    from dask.delayed import delayed
except ImportError as error:  # pragma: no cover
    raise ImportError('skvae.dask needs Dask: pip install "skvae[dask]".') from error

from . import columns
from .checks import check_integer
from .columns import Columns, float_of
from .estimator import VAETransformer, _has_density, _undone_on_failure, random_of
from .fitting import Fit
from .member import Left, Plan, digest, executing, forget, memory_limit, train, write
from .partitions import (
    Part,
    apply,
    impute,
    matrix,
    merge,
    names_of,
    summed,
)
from .settings import Settings

COPIED = 2**22  # cells: of no more than these, each worker gets all
HELD = 0.25  # share of a worker's memory that its rows may take; more are read from files
ROWS_A_WORKER = 1024  # of a batch: with fewer, workers spend more time on talking than on products
LEAST_STEPS = 64  # of an epoch, with batch_size="auto"
ROOM = 0.05  # share that a stream's sample may take, and about what is read of it at a time
RETRIES = 3  # times that a fit may lose workers
PATIENCE = 60.0  # seconds that the others get to say how far they came
TIMEOUT = 600.0  # seconds that workers wait for each other; dask's config has "skvae.timeout"


class DaskVAETransformer(VAETransformer):
    """`VAETransformer` for Dask arrays and DataFrames, fitted by all workers of a cluster.

    Parameters, attributes and methods are those of `VAETransformer`. `fit` trains one model on the
    rows of all partitions, each row weighing the same wherever it lies; what is fitted lies with
    the caller. `transform`, `posterior`, `score_samples`, `score_cells` and `impute` give Dask
    collections, of which nothing is computed before it is asked for; of arrays and tables in
    memory, they give what `VAETransformer` gives.

    Up to four million cells, each worker gets all rows, and the fit is that of one machine, to the
    bit where processors and threads are alike; there, one machine is faster. Of more, each worker
    has its own, on disk where they take more than a quarter of its memory. Gradients are summed
    after each batch, so that ``batch_size`` counts the rows of all workers. Where it is "auto",
    such a batch is of 1024 rows a worker, as long as an epoch then has 64 batches.

    A fit survives the loss of workers, three times, with a warning: the others go on from their
    best weights so far, with the lost rows read anew.

    Parameters
    ----------
    n_components : int, default=2
        Dimension of the latent.
    client : distributed.Client, default=None
        Of the cluster; None takes the current one. Copies and pickles have none.
    **parameters
        Those of `VAETransformer`. `device` is that of each worker, and "auto" may be told apart
        there.

    See Also
    --------
    VAETransformer : The same on one machine, which can also read files larger than memory.

    Notes
    -----
    Workers wait ``dask.config.get("skvae.timeout")`` seconds for each other, 600 by default, before
    they take one for lost.

    Callbacks and `partial_fit` on Dask collections are not supported.

    Examples
    --------
    >>> import dask.array as da
    >>> from distributed import Client
    >>> from sklearn.datasets import load_iris
    >>> from skvae.dask import DaskVAETransformer
    >>> X = da.from_array(load_iris().data, chunks=(50, 4))
    >>> with Client(processes=False, n_workers=1, dashboard_address=":0") as client:
    ...     vae = DaskVAETransformer(2, random_state=0, client=client).fit(X)
    ...     Z = vae.transform(X)  # nothing is computed yet
    ...     Z.compute().shape
    (150, 2)
    >>> vae.to_local()
    VAETransformer(random_state=0)
    """

    def __init__(self, n_components: int = 2, *, client: Any = None, **parameters: Any) -> None:
        super().__init__(n_components, **parameters)
        self.client = client

    # so that all parameters are seen by scikit-learn and by readers
    __init__.__signature__ = inspect.signature(VAETransformer.__init__).replace(  # type: ignore[attr-defined]
        parameters=[
            *inspect.signature(VAETransformer.__init__).parameters.values(),
            inspect.Parameter("client", inspect.Parameter.KEYWORD_ONLY, default=None),
        ]
    )

    def __sklearn_clone__(self) -> Self:
        """A clone that has the same client, which cannot be copied."""
        parameters = {n: clone(value, safe=False) for n, value in self._parameters().items()}
        cloned = type(self)(**parameters, client=self.client)
        for name in ("_metadata_request", "_sklearn_output_config"):
            if hasattr(self, name):
                setattr(cloned, name, copy.deepcopy(getattr(self, name)))
        return cloned

    def __getstate__(self) -> Any:
        if self.client is None:
            return super().__getstate__()
        without: Any = object.__new__(type(self))  # a connection cannot be kept
        without.__dict__.update(vars(self), client=None)
        return without.__getstate__()

    # ---------------------------------------------------------------- fitting

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the model to X, on all workers.

        Parameters
        ----------
        X : dask Array or DataFrame of shape (n_samples, n_features)
            Rows; NaN, None or null where a value is missing. Sizes of chunks need not be known.
        y : Ignored
            Present for the interface's sake.
        sample_weight : dask Array or Series of as many partitions, default=None
            Weight of each row. Only ratios matter.

        Returns
        -------
        self : DaskVAETransformer
            The fitted estimator. If the fit fails, the estimator is as it was.

        Raises
        ------
        ValueError, TypeError
            As `VAETransformer.fit`; cells that are not valid are named with their partition.
        ConnectionError
            Where workers were lost too often, or none is left.

        Warns
        -----
        ConvergenceWarning
            Where ``max_iter`` was reached while the held-out bound was still rising.
        RuntimeWarning
            Where a worker was lost.
        """
        if getattr(self, "_skl_callbacks", None):
            raise ValueError("Callbacks are not supported here: their hooks run on one machine.")
        with _undone_on_failure(self):
            parameters = self._parameters()
            # workers may have other devices than the caller
            settings = Settings.checked(parameters | {"device": "cpu"})
            go_on = self.warm_start and hasattr(self, "module_")
            start = self._resumed(settings) if go_on else None
            partitions = _partitions(X, sample_weight)
            self._see(X, reset=not go_on)
            names = names_of(X)
            Columns(names, []).check_names(self.likelihood, self.categorical_features)
            of = partitions, parameters, names, self._columns if go_on else None
            with self._cluster() as client, _Fleet(client, *of) as fleet:
                self._columns = fleet.stage()
                self._check_exposure()
                fleet.check_enough(2 - go_on)
                fit = self._fresh(settings) if start is None else start
                with _turn(client) if settings.own_parts else contextlib.nullcontext():
                    fitted = fleet.train(fit, self._score_seed, self._named(), go_on)
            own = set(parameters) | {"client"}
            self.__dict__.update({k: v for k, v in vars(fitted).items() if k not in own})
            self._fit.settings = dataclasses.replace(self._fit.settings, device="cpu")
            self._warn(self._fit, 3)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit on one batch of rows that is in memory, as `VAETransformer.partial_fit` does."""
        if is_dask_collection(X):
            raise TypeError("partial_fit takes a batch in memory: X.partitions[i].compute().")
        super().partial_fit(X, y, sample_weight)
        return self

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[Any]:
        """The client. A task that fits leaves its thread to the tasks of the fit meanwhile."""
        client = self.client
        if client is not None:
            if not isinstance(client, distributed.Client):
                raise TypeError(f"client must be a distributed.Client or None, got {client!r}.")
            if client.status != "running":
                raise ValueError(f"client is {client.status}: pass one that is running.")
        try:
            distributed.get_worker()
        except ValueError:
            try:
                client = client or distributed.get_client()
            except ValueError as error:
                raise ValueError(
                    "There is no Dask client: make one, distributed.Client(), before fit, or pass "
                    "one as client."
                ) from error
            if client.asynchronous:
                raise TypeError(
                    "client is asynchronous: pass distributed.Client(asynchronous=False)."
                ) from None
            yield client
        else:
            with distributed.worker_client() as own:
                yield client or own

    def _parameters(self) -> dict[str, Any]:
        """Those of `VAETransformer`."""
        found = self.get_params(deep=False)
        del found["client"]
        return found

    def _named(self) -> dict[str, Any]:
        """What is known of the columns."""
        names = "n_features_in_", "feature_names_in_"
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def _see(self, X: Any, reset: bool) -> None:
        """Check or take over the number and the names of X's columns."""
        example = X._meta if isinstance(X, dd.DataFrame) else np.empty((0, X.shape[1]))
        validate_data(self, example, reset=reset, skip_check_array=True)

    # ---------------------------------------------------------------- between machines

    def to_local(self) -> VAETransformer:
        """The fitted model as a `VAETransformer`, which needs no Dask.

        Returns
        -------
        estimator : VAETransformer
        """
        check_is_fitted(self)
        local = VAETransformer(**self._parameters())
        local.__dict__.update({k: v for k, v in vars(self).items() if k != "client"})
        return local

    @classmethod
    def from_local(cls, estimator: VAETransformer, client: Any = None) -> Self:
        """A fitted or unfitted `VAETransformer` for Dask collections.

        Parameters
        ----------
        estimator : VAETransformer
        client : distributed.Client, default=None

        Returns
        -------
        estimator : DaskVAETransformer
        """
        if not isinstance(estimator, VAETransformer):
            raise TypeError(f"estimator must be a VAETransformer, got {estimator!r}.")
        lifted = cls(**estimator.get_params(deep=False) | {"client": client})
        lifted.__dict__.update({k: v for k, v in vars(estimator).items() if k != "client"})
        return lifted

    def save(self, path: Any) -> None:
        """Write the fitted model to a file, as the `VAETransformer` that it is.

        Parameters
        ----------
        path : str or path-like
        """
        self.to_local().save(path)

    # ---------------------------------------------------------------- inference

    def transform(self, X: Any) -> Any:
        """Mean of q(z | x) for each row: an array of shape (n_samples, n_components)."""
        if not is_dask_collection(X):
            return super().transform(X)
        chosen = getattr(self, "_sklearn_output_config", {})
        container = chosen.get("transform", get_config()["transform_output"])
        if container != "default":
            raise ValueError(
                f"transform_output={container!r} would compute all of a Dask collection: leave it "
                'at "default" for these, or pass rows in memory.'
            )
        return self._lazy("transform", X, (self._n_columns_out(),))

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def posterior(self, X: Any) -> Any:
        """Mean and standard deviation of q(z | x): two arrays (n_samples, n_components)."""
        if not is_dask_collection(X):
            return super().posterior(X)
        both = self._lazy("_stacked_posterior", X, (2, self._n_columns_out()))
        return both[:, 0], both[:, 1]

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def score_samples(self, X: Any) -> Any:
        """Log-density of each row, in nats: an array of shape (n_samples,)."""
        if not is_dask_collection(X):
            return super().score_samples(X)
        return self._lazy("score_samples", X, ())

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def score_cells(self, X: Any) -> Any:
        """Log-density of each cell given the row's others: (n_samples, n_features)."""
        if not is_dask_collection(X):
            return super().score_cells(X)
        check_is_fitted(self)
        return self._lazy("score_cells", X, (self.n_features_in_,), np.float64)

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log-density of rows, in nats, computed at once."""
        if not is_dask_collection(X):
            return super().score(X, y, sample_weight)
        scores = self.score_samples(X)
        if sample_weight is None:
            found = [delayed(summed)(part) for part in scores.to_delayed()]
        else:
            pairs = zip(scores.to_delayed(), _weight_parts(sample_weight, scores), strict=True)
            found = [delayed(summed)(*pair, i) for i, pair in enumerate(pairs)]
        with self._cluster() as client:
            nats, weight = np.sum(client.gather(client.compute(found)), axis=0)
        if not weight > 0:
            raise ValueError("X has no row of positive weight: there is nothing to score.")
        return float(nats / weight)

    @available_if(_has_density)  # type: ignore[untyped-decorator]
    def impute(self, X: Any, n_draws: int | None = None, random_state: Any = None) -> Any:
        """Fill missing cells by what the model expects there: a collection like X.

        See `VAETransformer.impute`; multiple imputations are a list of collections.
        """
        if not is_dask_collection(X):
            return super().impute(X, n_draws, random_state)
        if n_draws is None:
            return self._imputed(X, None, 0)
        check_integer("n_draws", n_draws, 1, "or None")
        random = random_of(random_state)
        return [self._imputed(X, 1, int(random.randint(2**31 - 1))) for _ in range(n_draws)]

    def inverse_transform(self, Z: Any) -> Any:
        """Rows that latents stand for: an array, or a DataFrame as in `fit`.

        Its index counts within each partition, as arrays have none.
        """
        if not is_dask_collection(Z):
            return super().inverse_transform(Z)
        check_is_fitted(self)
        Z = _collection(Z, "Z")
        model = self._model()
        if isinstance(Z, dd.DataFrame):
            Z = matrix(Z.to_dask_array(), "Z")
        if self._columns.library is None:
            return Z.map_blocks(
                apply,
                model=model,
                method="inverse_transform",
                width=(self.n_features_in_,),
                kind=float_of(Z),
                dtype=float_of(Z),
                chunks=(Z.chunks[0], (self.n_features_in_,)),
                meta=np.empty((0, 0), float_of(Z)),
            )
        if self._columns.library != "pandas":
            raise TypeError(
                f"inverse_transform gives a {self._columns.library} DataFrame, as fit was given, "
                "which no Dask collection holds: pass latents in memory."
            )
        example = super().inverse_transform(np.zeros((1, self._n_columns_out()))).iloc[:0]
        parts = Z.to_delayed().ravel()
        inverted = [delayed(apply)(p, model, "inverse_transform", example) for p in parts]
        return dd.from_delayed(inverted, meta=example, verify_meta=False)

    def _n_columns_out(self) -> int:
        check_is_fitted(self)
        return int(self._n_features_out)

    def _model(self) -> Any:
        """What workers need of the fitted model, once for all partitions."""
        local = self.to_local()
        local.__dict__.pop("_fit", None)
        return delayed(local, pure=True, traverse=False)

    def _lazy(self, method: str, X: Any, width: tuple[int, ...], dtype: Any = None) -> Any:
        """An array of what the model's method gives for each partition: (n_samples, *width)."""
        check_is_fitted(self)
        X = _collection(X)
        self._see(X, reset=False)
        model, dtype = self._model(), dtype or float_of(X)
        if isinstance(X, dd.DataFrame):
            parts = [
                da.from_delayed(
                    delayed(apply)(part, model, method, width, dtype),
                    shape=(np.nan, *width),
                    meta=np.empty((0,) * (1 + len(width)), dtype),
                )
                for part in X.to_delayed()
            ]
            return da.concatenate(parts, allow_unknown_chunksizes=True)
        return X.map_blocks(
            apply,
            model=model,
            method=method,
            width=width,
            kind=dtype,
            dtype=dtype,
            chunks=(X.chunks[0], *((n,) for n in width)),
            drop_axis=[] if width else [1],
            new_axis=[2] if len(width) > 1 else None,
            meta=np.empty((0,) * (1 + len(width)), dtype),
        )

    def _imputed(self, X: Any, n_draws: int | None, seed: int) -> Any:
        check_is_fitted(self)
        X = _collection(X)
        self._see(X, reset=False)
        model = self._model()
        if isinstance(X, dd.DataFrame):
            # unknown categories and widened numbers: what cells hold is X's own
            return X.map_partitions(impute, model=model, n_draws=n_draws, seed=seed, meta=X._meta)
        return X.map_blocks(
            impute,
            model=model,
            n_draws=n_draws,
            seed=seed,
            dtype=X.dtype,
            meta=np.empty((0, 0), X.dtype),
        )


def _partitions(X: Any, sample_weight: Any) -> list[tuple[Any, Any]]:
    """Delayed partitions of X and of the weights."""
    if isinstance(X, dd.DataFrame):
        parts = list(X.to_delayed())
    elif isinstance(X, da.Array):
        parts = matrix(X).to_delayed().ravel().tolist()
    else:
        raise TypeError(
            f"X is {type(X).__name__}, and fit takes Dask arrays and DataFrames. Fit what is in "
            "memory with VAETransformer, or split it: dask.array.from_array(X, chunks=...)."
        )
    if not X.shape[1]:
        raise ValueError("X has 0 columns, while a minimum of 1 is required.")
    weights = [None] * len(parts) if sample_weight is None else _weight_parts(sample_weight, parts)
    return list(zip(parts, weights, strict=True))


def _timeout() -> float:
    """Seconds, as configured."""
    found = dask.config.get("skvae.timeout", TIMEOUT)
    if not isinstance(found, int | float) or not 1 <= found < math.inf:
        raise ValueError(
            f"skvae.timeout must be a number of seconds, 1 at least, got {found!r}: "
            'dask.config.set({"skvae.timeout": 600}).'
        )
    return float(found)


def _weight_parts(sample_weight: Any, parts: Any) -> list[Any]:
    """Delayed partitions of weights, as many as X has."""
    if not is_dask_collection(sample_weight):
        raise TypeError(
            f"sample_weight is {type(sample_weight).__name__}: pass a Dask array or Series with "
            "the partitions of X."
        )
    weights = list(np.ravel(np.array(sample_weight.to_delayed(), dtype=object)))
    n_parts = len(parts) if isinstance(parts, list) else parts.npartitions
    if len(weights) != n_parts:
        raise ValueError(
            f"sample_weight has {len(weights)} partitions, but X has {n_parts}: rechunk or "
            "repartition it."
        )
    return weights


def _collection(X: Any, name: str = "X") -> Any:
    """The DataFrame, or an array of whole rows of floats; no other Dask collection."""
    if not isinstance(X, da.Array | dd.DataFrame):
        raise TypeError(
            f"{name} is a Dask {type(X).__name__}: pass an Array or a DataFrame of shape "
            f"(n_samples, {'n_features' if name == 'X' else 'n_components'})."
        )
    return X if isinstance(X, dd.DataFrame) else matrix(X, name)


# -------------------------------------------------------------------- on the caller's side


@contextlib.contextmanager
def _turn(client: Any) -> Iterator[None]:
    """One fit at a time in the whole cluster, of those whose parts take torch's global generator.

    A process has one. Two fits that each had it on one worker would wait for each other on another.
    """
    with client.as_current():
        turn = distributed.Semaphore(max_leases=1, name="skvae-own-parts")
    turn.acquire()
    try:
        yield
    finally:
        turn.release()


class _Lost(Exception):
    """Workers are gone; what the others had found until then."""

    def __init__(self, addresses: set[str], found: list[Any]) -> None:
        super().__init__(addresses)
        self.addresses, self.found = addresses, found


class _Fleet:
    """The workers that hold the rows of one fit, and what they hold."""

    def __init__(
        self,
        client: Any,
        partitions: list[tuple[Any, Any]],
        parameters: dict[str, Any],
        names: list[Any],
        schema: Columns | None = None,
    ) -> None:
        self.client, self.partitions, self.parameters = client, partitions, parameters
        self.names, self.schema, self.known = names, schema, schema
        self.staged: dict[int, tuple[str, Part]] = {}  # of each partition, where it lies
        self.name, self.n_lost = f"skvae-{uuid4().hex}", 0
        self.silent: set[str] = set()  # workers that may be there, but do not answer
        self.timeout = _timeout()

    def __enter__(self) -> "_Fleet":
        return self

    def __exit__(self, *error: Any) -> None:
        """Delete the files, on workers that are still there and answer."""
        self.silent.clear()  # some may answer again
        self._ask(self._addresses(), forget, self.name)

    def _ask(self, addresses: Sequence[str], function: Callable[..., Any], *args: Any) -> Any:
        """What a function gives on each worker; those that do not answer are silent from now on."""

        async def one(address: str) -> None:
            asked = self.client.run(function, *args, workers=[address], on_error="return")
            try:
                answer = (await asyncio.wait_for(asked, PATIENCE))[address]
            except TimeoutError as error:
                answer = error
            if isinstance(answer, OSError):  # a timeout is one
                self.silent.add(address)
            else:
                found[address] = answer

        async def each() -> None:
            await asyncio.gather(*map(one, addresses))

        found: dict[str, Any] = {}
        self.client.sync(each)
        return found

    def _addresses(self) -> list[str]:
        """Workers that are there, of whatever status."""
        # not of scheduler_info, which the client itself empties now and then
        return sorted(set(self.client.nthreads()) - self.silent)

    def _left(self) -> list[str]:
        """Workers that take tasks, or come back within reasonable time; at least one."""
        end = time.monotonic() + PATIENCE
        while True:
            workers = self.client.sync(self.client.scheduler.identity)["workers"]
            if found := [
                a for a in self._addresses() if workers.get(a, {}).get("status") == "running"
            ]:
                return found
            if time.monotonic() > end:
                raise ConnectionError("The cluster has no worker that takes tasks: start some.")
            time.sleep(0.2)

    # ---------------------------------------------------------------- partitions

    def stage(self) -> Columns:
        """Have each partition that lies nowhere written to a file; the schema of all."""
        changed = False
        while True:
            addresses = self._left()
            self.staged = {i: (a, part) for i, (a, part) in self.staged.items() if a in addresses}
            missing = [i for i in range(len(self.partitions)) if i not in self.staged]
            if not missing:
                break
            changed = True
            # neighbours stay together, and each worker gets as many
            homes = {
                i: addresses[at * len(addresses) // len(missing)] for at, i in enumerate(missing)
            }
            tasks = []
            for i, home in homes.items():
                with dask.annotate(workers=[home], allow_other_workers=False):
                    tasks.append(
                        delayed(write, pure=False)(
                            *self.partitions[i],
                            i,
                            self.name,
                            self.parameters,
                            self.names,
                            self.known,
                            dask_key_name=f"skvae-stage-{i}-{uuid4().hex}",
                        )
                    )
            only = addresses if self.silent else None  # what partitions are computed from, too
            futures = self.client.compute(tasks, optimize_graph=True, workers=only)
            try:
                found = self._watch(futures, list(homes.values()))
            except _Lost as lost:
                self._note(lost)
                found = lost.found
            placed = zip(homes, found, strict=True)
            self.staged |= {i: there for i, there in placed if there is not None}
        if changed:
            parts = [self.staged[i][1] for i in range(len(self.partitions))]
            p = self.parameters
            self.schema = merge(parts, p["likelihood"], p["categorical_features"], self.schema)
        assert self.schema is not None
        return self.schema

    def check_enough(self, least: int) -> None:
        """Refuse too few rows."""
        n_rows = sum(part.n_rows for _, part in self.staged.values())
        if n_rows < least:
            raise ValueError(
                f"Found {n_rows} rows of positive weight in {len(self.partitions)} partitions, "
                f"while a minimum of {least} is required."
            )

    # ---------------------------------------------------------------- training

    def train(
        self, fit: Fit, score_seed: int, named: dict[str, Any], go_on: bool
    ) -> VAETransformer:
        """The estimator that the workers have fitted together."""
        before = Left(None, [], [], 0)
        interrupted = False
        while True:
            schema, noted = self.stage(), False
            homes = {address for address, _ in self.staged.values()}
            limits = self._ask(sorted(homes), memory_limit)
            if homes - set(limits):
                self._note(_Lost(homes - set(limits), []))
                continue
            plan, members = self._plan(fit, schema, limits, score_seed, named, go_on, before.n_iter)
            stop = distributed.Event(f"{plan.name}-stop", client=self.client)
            if interrupted:
                stop.set()
            self.client.subscribe_topic(plan.name, lambda event: print(event[1]))
            futures = [
                self.client.submit(
                    train,
                    plan,
                    rank,
                    parts,
                    workers=[address],
                    allow_other_workers=False,
                    pure=False,
                    retries=0,
                    key=f"skvae-fit-{rank}-{plan.name}",
                )
                for rank, (address, parts) in enumerate(members.items())
            ]
            try:
                try:
                    found = self._watch(futures, list(members), together=True)
                except KeyboardInterrupt:
                    interrupted = True
                    stop.set()  # after the present epoch
                    found = self._watch(futures, list(members), together=True)
            except _Lost as lost:
                distributed.Variable(plan.name, client=self.client).set(None)
                self._note(lost)
                found, noted = lost.found, True
            finally:
                distributed.Variable(plan.name, client=self.client).delete()
                self.client.unsubscribe_topic(plan.name)
            left = [each for each in found if isinstance(each, Left)]
            if not left and None not in found:
                break
            if not noted:
                self._note(_Lost(set(), found))  # they lost touch
            reached = [each for each in left if each.fit is not None]
            if reached:
                furthest = max(reached, key=lambda each: each.n_iter)
                fit, go_on = furthest.fit, True  # type: ignore[assignment]
                before = Left(
                    None,
                    before.loss_curve + furthest.loss_curve,
                    before.scores + furthest.scores,
                    before.n_iter + furthest.n_iter,
                )
        fitted, *digests = found
        if set(digests) - {digest(fitted)}:
            raise RuntimeError("The workers ended with different weights: please report this.")
        if before.n_iter:
            fitted.loss_curve_ = before.loss_curve + fitted.loss_curve_
            fitted.validation_scores_ = before.scores + fitted.validation_scores_
            fitted.n_iter_ = len(fitted.loss_curve_)
            if fitted.best_validation_score_ is None:  # no epoch was left, or there are no scores
                scores = filter(math.isfinite, fitted.validation_scores_)
                fitted.best_validation_score_ = max(scores, default=None)
        fitted._fit.interrupted |= interrupted
        return fitted

    def _plan(
        self,
        fit: Fit,
        schema: Columns,
        limits: dict[str, int],
        score_seed: int,
        named: dict[str, Any],
        go_on: bool,
        n_iter: int,
    ) -> tuple[Plan, dict[str, list[Part]]]:
        """What members are to do, and the parts of each worker that has rows."""
        members: dict[str, list[Part]] = {}
        for i in range(len(self.partitions)):
            address, part = self.staged[i]
            if part.n_rows:
                members.setdefault(address, []).append(part)
        size, d = len(members), len(schema.names)
        n_rows = {a: sum(part.n_rows for part in parts) for a, parts in members.items()}
        in_all = sum(n_rows.values())
        # as they were read, and as float32 targets
        dtype = np.result_type(*(part.dtype for parts in members.values() for part in parts))
        width = dtype.itemsize + 4
        held = all(
            n * d <= columns.IN_MEMORY and n * d * width <= HELD * limits[a]
            for a, n in n_rows.items()
        )
        kind = "copied" if in_all * d <= COPIED else "held" if held else "streamed"
        parameters = dict(self.parameters)
        if kind != "copied" and parameters["batch_size"] == "auto":
            most = ROWS_A_WORKER * size
            parameters["batch_size"] = max(256, min(most, in_all // LEAST_STEPS))
        parameters["max_iter"] = max(parameters["max_iter"] - n_iter, 0)
        room = int(ROOM * min(limits[a] for a in members)) // width
        name, wait = f"skvae-{uuid4().hex}", self.timeout
        plan = Plan(
            name, parameters, fit, schema, score_seed, named, go_on, kind, dtype, room, size, wait
        )
        for address, parts in members.items():  # what the schema was found from stays here
            members[address] = [dataclasses.replace(part, first=None, seen={}) for part in parts]
        return plan, members

    # ---------------------------------------------------------------- faults

    def _watch(
        self, futures: Sequence[Any], addresses: Sequence[str], together: bool = False
    ) -> list[Any]:
        """The futures' results; `_Lost`, with None for what is lost, where a worker is gone.

        Of those that work ``together``, one that goes on long after another has ended does not
        answer the others.
        """
        end = math.inf
        try:
            while pending := [f for f in futures if not f.done()]:
                _pause(pending)
                if together and len(pending) < len(futures) and end == math.inf:
                    end = time.monotonic() + PATIENCE
                late = {a for f, a in zip(futures, addresses, strict=True) if not f.done()}
                if late and time.monotonic() > end:
                    self.silent |= late
                    raise _Lost(late, self._results(futures, addresses))
                if self._errors(futures):
                    if not together:  # what has not begun need not; its input may go on for a while
                        begun = set().union(*self._ask(list(set(addresses)), executing).values())
                        self.client.cancel([f for f in futures if not (f.done() or f.key in begun)])
                    self._rest(futures, addresses, set())
                self._raise_errors(futures)
                if gone := late - set(self._addresses()):
                    raise _Lost(gone, self._rest(futures, addresses, gone))
            self._raise_errors(futures)
            found = self._results(futures, addresses)
            if None in found:
                raise _Lost(set(addresses) - set(self._addresses()), found)
            return found
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                self.client.cancel(list(futures), force=True)
            raise

    def _rest(self, futures: Sequence[Any], addresses: Sequence[str], gone: set[str]) -> list[Any]:
        """What workers that are there come to, within reasonable time."""
        others = [f for f, a in zip(futures, addresses, strict=True) if a not in gone]
        end = time.monotonic() + PATIENCE
        while pending := [f for f in others if not f.done()]:
            if time.monotonic() > end:
                break
            _pause(pending)
            here = self._addresses()
            others = [
                f
                for f, a in zip(futures, addresses, strict=True)
                if f.done() or a in here
                if a not in gone
            ]
        return self._results(futures, addresses)

    def _results(self, futures: Sequence[Any], addresses: Sequence[str]) -> list[Any]:
        """What is done, and None for what is not, or what a worker took along."""
        return [
            self._result(future, address) if future.status == "finished" else None
            for future, address in zip(futures, addresses, strict=True)
        ]

    def _result(self, future: Any, address: str) -> Any:
        # of a worker that is gone, the scheduler would wait for another one of its address
        wait = 5.0
        while True:
            try:
                return future.result(timeout=wait)
            except (distributed.CancelledError, distributed.KilledWorker):
                return None
            except OSError:  # a timeout is one; large results may take their time
                if address not in self._addresses() or wait >= self.timeout:
                    return None
                wait *= 2

    def _raise_errors(self, futures: Sequence[Any]) -> None:
        """What went wrong on a worker that is there."""
        if errors := self._errors(futures):
            raise errors[0]

    def _errors(self, futures: Sequence[Any]) -> list[BaseException]:
        errors = [f.exception() for f in futures if f.status == "error"]
        return [e for e in errors if not isinstance(e, distributed.KilledWorker)]

    def _note(self, lost: _Lost) -> None:
        """Count a loss, and warn; too many are an error."""
        self.n_lost += 1
        here = self._left()
        who = ", ".join(sorted(lost.addresses)) or "The connection"
        if self.n_lost > RETRIES:
            raise ConnectionError(
                f"{who} was lost during fit, {self.n_lost} losses in all. Look at the workers' "
                "logs: too little memory is the usual cause."
            )
        warnings.warn(
            f"{who} was lost during fit. It goes on with {len(here)} workers.",
            RuntimeWarning,
            stacklevel=5,
        )


def _pause(futures: Sequence[Any]) -> None:
    """Until one of them is done, but half a second at most.

    ``distributed.wait`` would raise, and leave what it knows of its callers to the garbage
    collector: rows and models of past fits would stay on the workers.
    """
    end = time.monotonic() + 0.5
    while time.monotonic() < end and not any(f.done() for f in futures):
        time.sleep(0.01)
