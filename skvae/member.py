"""What each worker of a cluster does in a fit of `skvae.dask`: write its partitions, and train.

The functions run as Dask's tasks; what one knows and the caller needs to know is what they return.
"""

import copy
import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import distributed
import numpy as np
import torch
from distributed.comm.addressing import get_address_host
from threadpoolctl import threadpool_limits

from .columns import Columns
from .estimator import VAETransformer
from .fitting import Fit
from .partitions import Files, Part, check_partition, checked_weights, coded, remove, stage
from .rows import DistinctRows, StreamedRows
from .settings import Settings
from .world import ALONE, Copies, Group, World


@dataclass
class Plan:
    """What all members of a fit need to know."""

    name: str
    parameters: dict[str, Any]
    fit: Fit
    schema: Columns
    score_seed: int
    named: dict[str, Any]
    go_on: bool
    kind: str  # "copied", "held" or "streamed" rows
    dtype: Any  # of cells, the same for all
    room: int  # cells that a stream may hold
    size: int
    timeout: float


@dataclass
class Left:
    """What a member knew when it lost another one; a fit that can be gone on from, or None."""

    fit: Fit | None
    loss_curve: list[float]
    scores: list[float]
    n_iter: int


def write(
    X: Any,
    weights: Any,
    number: int,
    name: str,
    parameters: dict[str, Any],
    names: list[Any],
    known: Columns | None,
) -> tuple[str, Part]:
    """Write partition ``number`` to this worker's own folder, for the fit of this name.

    Cells have to suit the ``known`` columns, of a fit that is gone on from. Returns this worker's
    address and the part.
    """
    try:
        check_partition(X, names)
        if weights is not None:
            weights = checked_weights(weights, len(X))
        schema = Columns.read(
            X, parameters["likelihood"], parameters["categorical_features"], whole=False
        )
        families = schema.families
        if known is not None:  # another kind of column is told of once all partitions are read
            pairs = zip(families, known.families, strict=True)
            families = [now if "categorical" in (now, old) else old for now, old in pairs]
        check = functools.partial(_check, Columns(schema.names, families))
        worker = distributed.get_worker()
        part = stage(X, weights, schema, worker.local_directory, name, check)
        if name in _forgotten(worker):  # meanwhile
            remove(worker.local_directory, name)
        return worker.address, part
    except (ValueError, TypeError) as error:
        raise type(error)(f"Partition {number}: {error}") from error


def _check(schema: Columns, T: Any) -> None:
    """Refuse what columns may not hold."""
    checking = VAETransformer()
    checking._columns = schema
    checking._check(T)


def memory_limit(dask_worker: Any) -> int:
    """Of this worker, in bytes."""
    return dask_worker.memory_manager.memory_limit or 2**62


def executing(dask_worker: Any) -> set[Any]:
    """Keys of the tasks that this worker is at."""
    return {task.key for task in dask_worker.state.executing}


def forget(name: str, dask_worker: Any) -> None:
    """Delete what this worker has written for the fit of this name, and what it is writing."""
    _forgotten(dask_worker).add(name)
    remove(dask_worker.local_directory, name)


def _forgotten(worker: Any) -> set[str]:
    """Names of fits that are over, kept where the worker itself is."""
    found: set[str] = worker.__dict__.setdefault("_skvae_forgotten", set())
    return found


def train(plan: Plan, rank: int, parts: list[Part]) -> Any:
    """Train on these parts, with the others.

    The first member returns the fitted estimator, the others a digest of its weights; who loses
    another one returns what it has.
    """
    distributed.secede()  # other tasks may run meanwhile: another fit's, whose others wait for it
    vae = VAETransformer(**plan.parameters)
    vae._columns, vae._score_seed = plan.schema, plan.score_seed
    vae.__dict__.update(plan.named)
    fit, group = copy.copy(plan.fit), None
    n_epochs = fit.n_epochs
    try:
        fit.settings = Settings.checked(plan.parameters)
        group = _meet(plan, rank, fit.settings.device)
        if group is not None and fit.settings.own_parts:
            _check_apart(group)
        files = Files(parts, vae.n_features_in_, plan.dtype)
        rows = _rows(plan, files, ALONE if group is None else group)
        if rank:
            vae.verbose = 0
        worker = distributed.get_worker()
        # not distributed.print, which prints here, too
        told = vae._on_epoch(None, fit, {}, tell=lambda line: worker.log_event(plan.name, line))
        stop = distributed.Event(f"{plan.name}-stop")

        def on_epoch(epoch: int, loss: float, score: float | None, model: Any) -> bool:
            told(epoch, loss, score, model)
            now = float(rank == 0 and stop.is_set())
            return bool(now if group is None else group.lead(now))

        with threadpool_limits(worker.state.nthreads, user_api="openmp"):
            vae._train(fit, rows, on_epoch, plan.go_on)
        return vae if rank == 0 else digest(vae)
    except ConnectionError:
        n = len(fit.losses)
        reached = fit.n_epochs > n_epochs
        fit.__dict__.pop("module", None)  # that of an earlier mean
        return Left(
            fit if reached else None,
            [loss + fit.unit for loss in fit.losses] if reached else [],
            [score - fit.held_out_unit for score in fit.scores] if reached else [],
            n if reached else 0,
        )
    finally:
        if group is not None:
            group.close()


def _meet(plan: Plan, rank: int, device: str) -> Group | None:
    """The group of all members; the first one tells the others where it is."""
    if plan.size == 1:
        return None
    of_torch: Any = torch.distributed
    options = {"timeout": timedelta(seconds=plan.timeout), "wait_for_workers": False}
    host = get_address_host(distributed.get_worker().address)
    meeting = distributed.Variable(plan.name)
    try:
        if rank == 0:
            store = of_torch.TCPStore(host, 0, is_master=True, **options)
            meeting.set((host, store.port))
        else:
            place = meeting.get(timeout=plan.timeout)
            if place is None:
                raise ConnectionError("This fit was called off.")
            store = of_torch.TCPStore(*place, **options)
    except (TimeoutError, RuntimeError) as error:
        raise ConnectionError(f"Member {rank} does not find the first one: {error}") from error
    nccl = device.startswith("cuda") and of_torch.is_nccl_available()
    return Group(store, rank, plan.size, plan.timeout, nccl, host)


def _check_apart(group: Group) -> None:
    """Refuse members that share a process, and with it torch's global generator."""
    here = hashlib.sha256(f"{socket.gethostname()} {os.getpid()}".encode()).digest()
    each = group.gather(torch.frombuffer(bytearray(here[:8]), dtype=torch.int64))
    if len(each.unique()) < len(each):
        raise ValueError(
            "Networks and priors of your own draw from torch's global generator, of which a "
            "process has one, but workers share a process: start them as processes, "
            "Client(processes=True), or take one worker of several threads."
        )


def _rows(plan: Plan, files: Files, world: World) -> DistinctRows | StreamedRows:
    schema, weights = coded(plan.schema), files.weights
    if plan.kind == "streamed":
        return StreamedRows(schema, files, weights, world=world, room=plan.room)
    T, weights = files[:], np.ones(len(files)) if weights is None else weights
    if plan.kind == "copied" and isinstance(world, Group):
        T, weights = (world.gather(torch.from_numpy(each)).numpy() for each in (T, weights))
        world = Copies(world)
    return DistinctRows(schema, T, weights, world=world)


def digest(vae: VAETransformer) -> str:
    """Of all weights, to the bit."""
    found = hashlib.sha256()
    for name, tensor in vae.module_.state_dict().items():
        found.update(name.encode())
        found.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return found.hexdigest()
