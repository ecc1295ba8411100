"""Measure fits on a Dask cluster of this machine: throughput against workers, and memory.

1. Throughput of one and of two workers of one thread each, as rows per second from the end of the
   first epoch to the end of the last: of the same rows and batches (strong scaling), and of rows
   and batches that grow with the workers (weak scaling). Beside it the time of a step, of the
   sum of its gradients over two workers that have nothing else to do, and what the machine allows:
   two fits at once that have nothing to do with each other.
2. Whole fits of a few epochs by two workers of one thread each, beside the same by one process
   with one of these threads, as if each worker were a machine, and with both.
3. What larger batches cost: held-out log-likelihood after as many epochs, with the learning rate
   as it is, times the root of what the batch grew by, and times all of it.
4. The most memory that a worker takes while it fits more rows than the memory of all workers, and
   the same rows from a file by one process.

Run it with

    python -m benchmarks.cluster --rounds 3 --output cluster.md
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import pandas as pd
import torch

from benchmarks import markdown_table, publish, versions
from benchmarks.speed import images_shape, nonlinear_shape
from skvae import VAETransformer
from skvae.dask import DaskVAETransformer
from skvae.world import Group

N_COLUMNS, RANK = 784, 32
MODEL: dict[str, Any] = {
    "n_components": RANK,
    "hidden_layer_sizes": (512, 256),
    "noise": "homoscedastic",
    "early_stopping": False,
    "random_state": 0,
}
N_WEIGHTS = 1_130_000  # of this model, about
BATCHES: dict[str, Any] = {"noise": "homoscedastic", "early_stopping": False, "random_state": 0}
N_BATCH_EPOCHS = 20
N_EPOCHS = 8  # that are timed, beyond the first
# Dask's own setting gives memory back after each large array, and costs a fit a quarter of its time
ALLOCATOR = {
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**25,
}
# its profiler looks a hundred times a second what each worker is at, at a twentieth of a core
LEAN = ALLOCATOR | {"distributed.worker.profile.enabled": False}


def rows(n_rows: int, chunk: int, n_columns: int = N_COLUMNS) -> da.Array:
    """Return rows near a curved surface, float32, made where they are needed."""
    loadings = np.random.default_rng(0).normal(size=(RANK, n_columns)).astype(np.float32)

    def make(block_info: Any = None) -> np.ndarray:
        place = block_info[None]
        random = np.random.default_rng(place["chunk-location"][0])
        shape = place["chunk-shape"]
        latents = np.tanh(random.standard_normal((shape[0], RANK), dtype=np.float32))
        return latents @ loadings + 0.3 * random.standard_normal(shape, dtype=np.float32)

    chunks = ((chunk,) * (n_rows // chunk), (n_columns,))
    return da.map_blocks(make, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))


def cluster(n_workers: int, **options: Any) -> distributed.Client:
    """Return a client of workers of one thread each."""
    options = {"threads_per_worker": 1, "dashboard_address": ":0"} | options
    return distributed.Client(distributed.LocalCluster(n_workers=n_workers, **options))


# -- throughput ---------------------------------------------------------------------------------


def epoch_seconds(estimator: Any, X: Any, n_epochs: int) -> float:
    """Return the time of an epoch after the first."""
    spent = []
    for max_iter in (1, 1 + n_epochs):
        began = time.perf_counter()
        estimator.set_params(max_iter=max_iter).fit(X)
        spent.append(time.perf_counter() - began)
    return (spent[1] - spent[0]) / n_epochs


def _sum_seconds(name: str, rank: int, n_times: int) -> float:
    """Return the time that a sum of all gradients takes."""
    distributed.secede()
    place = distributed.Variable(name)
    options: dict[str, Any] = {"timeout": timedelta(seconds=60), "wait_for_workers": False}
    if rank == 0:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, **options)
        place.set(store.port)
    else:
        store = torch.distributed.TCPStore("127.0.0.1", place.get(timeout=60), **options)
    group = Group(store, rank, 2, 60)
    gradient = torch.ones(N_WEIGHTS)
    spent = []
    for _ in range(n_times):
        began = time.perf_counter()
        group.sum_(gradient)
        spent.append(time.perf_counter() - began)
    group.close()
    return float(np.median(spent))


def sum_seconds(client: distributed.Client, n_times: int = 100) -> float:
    """Return the same, of two workers."""
    name = f"benchmark-{time.time_ns()}"
    addresses = sorted(client.nthreads())
    futures = [
        client.submit(_sum_seconds, name, rank, n_times, workers=[address], pure=False)
        for rank, address in enumerate(addresses)
    ]
    return float(np.mean(client.gather(futures)))


def _apart(n_rows: int, batch_size: int, ready: Any, found: Any) -> None:
    """Put the rows per second of a fit, begun when all others are ready, too."""
    torch.set_num_threads(1)
    X = rows(n_rows, n_rows).compute()
    vae = VAETransformer(batch_size=batch_size, **MODEL)
    vae.set_params(max_iter=1).fit(X)
    ready.wait()
    began = time.perf_counter()
    vae.set_params(max_iter=N_EPOCHS).fit(X)
    found.put(N_EPOCHS * n_rows / (time.perf_counter() - began))


def apart(n_fits: int, n_rows: int, batch_size: int) -> float:
    """Return the rows per second of so many fits at once, together."""
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(n_fits), context.SimpleQueue()
    fits = [
        context.Process(target=_apart, args=(n_rows, batch_size, ready, found))
        for _ in range(n_fits)
    ]
    for fit in fits:
        fit.start()
    total = sum(found.get() for _ in fits)
    for fit in fits:
        fit.join()
    return total


def scaling(options: argparse.Namespace) -> str:
    """Return a table of throughput."""
    n_rows, per_worker = options.rows, options.per_worker
    found = []
    ratios: list[tuple[float, float, float]] = []
    for _ in range(options.rounds):
        one, two = per_worker, 2 * per_worker
        for n_workers, batch_size, n in ((1, one, n_rows // 2), (1, two, n_rows), (2, two, n_rows)):
            with cluster(n_workers) as client:
                X = client.persist(rows(n, n_rows // 4))
                distributed.wait(X)
                model = DaskVAETransformer(batch_size=batch_size, **MODEL)
                seconds = epoch_seconds(model, X, N_EPOCHS)
                adding = sum_seconds(client) if n_workers == 2 else 0.0
                n_steps = -(-n // batch_size)
                found.append(
                    {
                        "workers": n_workers,
                        "rows": n,
                        "rows of a batch": batch_size,
                        "rows per second": n / seconds,
                        "step, ms": 1e3 * seconds / n_steps,
                        "sum of gradients, ms": 1e3 * adding,
                    }
                )
                print(found[-1], file=sys.stderr)
                client.cluster.close()
        half, whole, both = (case["rows per second"] for case in found[-3:])
        limit = apart(2, n_rows // 2, per_worker) / apart(1, n_rows // 2, per_worker)
        ratios.append((both / whole, both / half, limit))
        print(ratios[-1], file=sys.stderr)
    table = pd.DataFrame(found).groupby(["workers", "rows", "rows of a batch"]).median()
    strong, weak, limit = np.median(ratios, 0)
    each = ", ".join(" / ".join(f"{ratio:.2f}" for ratio in three) for three in ratios)
    note = (
        f"Two workers over one: strong scaling {strong:.2f}, weak {weak:.2f}; two fits apart over "
    )
    note += f"one: {limit:.2f} ({each})."
    table = table.round(1).reset_index()
    found_table = markdown_table(list(table), table.itertuples(index=False))
    return f"{found_table}\n\n{note}"


# -- from where on it is faster -----------------------------------------------------------------


def fit_seconds(estimator: Any, X: Any) -> float:
    """Return the time of a fit."""
    began = time.perf_counter()
    estimator.fit(X)
    return time.perf_counter() - began


def crossover(options: argparse.Namespace) -> str:
    """Return a table of the time that fits take, by one process and by two workers."""
    default: dict[str, Any] = {"n_components": 10, "random_state": 0}
    cases = [
        ("default", 100, 100_000, default),
        ("default", 100, 500_000, default),
        ("(512, 256)", N_COLUMNS, 8_192, MODEL),
        ("(512, 256)", N_COLUMNS, 65_536, MODEL),
    ]
    found = []
    with cluster(2) as client:
        for network, n_columns, n_rows, parameters in cases:
            X = client.persist(rows(n_rows, n_rows // 4, n_columns))
            here = X.compute()
            times = []
            for _ in range(options.rounds):
                # the same number of rows to a step, lest larger batches pass for speed
                same = parameters | {"max_iter": N_EPOCHS, "batch_size": 2048}
                alone = []
                for n_threads in (1, 2):
                    torch.set_num_threads(n_threads)
                    alone.append(fit_seconds(VAETransformer(**same), here))
                times.append((*alone, fit_seconds(DaskVAETransformer(**same), X)))
                print(network, n_rows, times[-1], file=sys.stderr)
            found.append(
                (
                    network,
                    n_columns,
                    n_rows,
                    *(f"{time:.1f}" for time in np.median(times, 0)),
                    *(f"{np.median([t[i] / t[2] for t in times]):.2f}" for i in (0, 1)),
                )
            )
        client.cluster.close()
    names = ["network", "columns", "rows", "one thread, s", "two threads, s", "two workers, s"]
    return markdown_table([*names, "one thread over them", "two threads over them"], found)


# -- batches ------------------------------------------------------------------------------------


def batches(options: argparse.Namespace) -> str:
    """Return a table of held-out log-likelihood against the rows of a batch."""
    least, found = 256, []
    for shape in (nonlinear_shape(), images_shape()):
        for batch_size in (256, 1024, 4096, 16_384):
            grown = batch_size / least
            row: list[Any] = [shape.name, batch_size]
            for rate in (1.0, grown**0.5, grown):
                hidden, k = shape.network
                vae = VAETransformer(k, hidden_layer_sizes=hidden, **BATCHES)
                vae.set_params(batch_size=batch_size, max_iter=N_BATCH_EPOCHS)
                vae.set_params(learning_rate_init=rate * vae.learning_rate_init)
                row.append(f"{vae.fit(shape.X_train).score(shape.X_test):.2f}")
            found.append(row)
            print(row, file=sys.stderr)
    return markdown_table(["data", "rows of a batch", "rate x 1", "x root", "x growth"], found)


# -- memory -------------------------------------------------------------------------------------


def _watch(dask_worker: Any) -> None:
    """Note the most memory that this process takes, from now on."""
    import psutil

    dask_worker.most = 0

    def look() -> None:
        while True:
            dask_worker.most = max(dask_worker.most, psutil.Process().memory_info().rss)
            time.sleep(0.02)

    threading.Thread(target=look, daemon=True).start()


def memory(options: argparse.Namespace) -> str:
    """Return what a fit of so many gigabytes took on two workers of limited memory."""
    gigabytes, limit = options.gigabytes, options.limit
    for name in ALLOCATOR:  # Dask leaves them behind, for the next workers
        os.environ.pop(name.rpartition(".")[2], None)
    n_columns, chunk = 100, 50_000
    n_rows = int(gigabytes * 2**30 / 4 / n_columns / chunk) * chunk
    with tempfile.TemporaryDirectory() as folder:
        with cluster(2, memory_limit=limit, local_directory=folder) as client:
            client.run(_watch)
            X = rows(n_rows, chunk, n_columns)
            model = DaskVAETransformer(8, max_iter=2, random_state=0)
            began = time.perf_counter()
            model.fit(X)
            seconds = time.perf_counter() - began
            most = client.run(lambda dask_worker: dask_worker.most).values()
            score = model.score(X[:chunk])
            client.cluster.close()
        path = Path(folder) / "rows"
        file = np.memmap(path, np.float32, "w+", shape=X.shape)
        with dask.config.set(scheduler="synchronous"):
            da.store(X, file, lock=False)
        file.flush()
        torch.set_num_threads(2)
        alone = VAETransformer(**model.to_local().get_params())
        # what batch_size="auto" is on two workers
        alone.set_params(batch_size=2048)
        spent = fit_seconds(alone, np.memmap(path, np.float32, "r", shape=X.shape))
    return (
        f"A Dask array of {X.nbytes / 2**30:.2f} GiB ({n_rows:,} x {n_columns}), two workers of "
        f"{limit}: "
        f"{seconds:.0f} s for two epochs and all else, at most "
        f"{max(most) / 2**20:.0f} MiB a worker, {score:.2f} nats per row. One process of two "
        f"threads, from a file: {spent:.0f} s."
    )


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "scaling": scaling,
    "crossover": crossover,
    "batches": batches,
    "memory": memory,
}


def main() -> None:
    """Measure from the command line and print or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--per-worker", type=int, default=1024, help="rows of a batch")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--limit", default="1GB", help="memory of a worker")
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = [f"# Cluster\n\n{versions()}, Dask {dask.__version__}."]
    for name in options.only:
        with dask.config.set({} if name == "memory" else LEAN):
            report.append(PARTS[name](options))
        publish("\n\n".join(report), options.output)


if __name__ == "__main__":
    main()
