"""Measure fits on a Dask cluster of this machine: throughput against workers, and memory.

1. Throughput of one and of two workers of one thread each, as rows per second from the end of the
   first epoch to the end of the last: of the same rows and batches (strong scaling), and of rows
   and batches that grow with the workers (weak scaling). Beside it the time of a step, and of the
   sum of its gradients over two workers that have nothing else to do.
2. The most memory that a worker takes while it fits more rows than the memory of all workers.

Both take turns with a fit on one machine where there is one to compare with. Run it with

    python -m benchmarks.cluster --rounds 3 --output cluster.md
"""

import argparse
import sys
import tempfile
import threading
import time
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
    addresses = sorted(client.scheduler_info(n_workers=-1)["workers"])
    futures = [
        client.submit(_sum_seconds, name, rank, n_times, workers=[address], pure=False)
        for rank, address in enumerate(addresses)
    ]
    return float(np.mean(client.gather(futures)))


def scaling(rounds: int, n_rows: int, per_worker: int) -> str:
    """Return a table of throughput."""
    found = []
    for _ in range(rounds):
        one, two = per_worker, 2 * per_worker
        for n_workers, batch_size, n in ((1, one, n_rows // 2), (1, two, n_rows), (2, two, n_rows)):
            with cluster(n_workers) as client:
                X = client.persist(rows(n, n_rows // 4))
                distributed.wait(X)
                model = DaskVAETransformer(batch_size=batch_size, **MODEL)
                seconds = epoch_seconds(model, X, 3)
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
        X = rows(n_rows, n_rows // 4).compute()
        torch.set_num_threads(1)
        seconds = epoch_seconds(VAETransformer(batch_size=two, **MODEL), X, 3)
        found.append(
            {
                "workers": 0,
                "rows": n_rows,
                "rows of a batch": two,
                "rows per second": n_rows / seconds,
                "step, ms": 1e3 * seconds / -(-n_rows // two),
                "sum of gradients, ms": 0.0,
            }
        )
        print(found[-1], file=sys.stderr)
    table = pd.DataFrame(found).groupby(["workers", "rows", "rows of a batch"]).median()
    by = table["rows per second"]
    strong = by[2, n_rows, 2 * per_worker] / by[1, n_rows, 2 * per_worker]
    weak = by[2, n_rows, 2 * per_worker] / by[1, n_rows // 2, per_worker]
    note = f"Two workers over one: strong scaling {strong:.2f}, weak {weak:.2f}."
    table = table.round(1).reset_index()
    found_table = markdown_table(list(table), table.itertuples(index=False))
    return f"{found_table}\n\n{note} No worker: VAETransformer."


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


def memory(gigabytes: float, limit: str) -> str:
    """Return what a fit of so many gigabytes took on two workers of limited memory."""
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
    return (
        f"A Dask array of {X.nbytes / 2**30:.2f} GiB ({n_rows:,} x {n_columns}), two workers of "
        f"{limit}: "
        f"{seconds:.0f} s for two epochs and all else, at most "
        f"{max(most) / 2**20:.0f} MiB a worker, {score:.2f} nats per row."
    )


def main() -> None:
    """Measure from the command line and print or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--per-worker", type=int, default=1024, help="rows of a batch")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="0 leaves memory out")
    parser.add_argument("--limit", default="1GB", help="memory of a worker")
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = [f"# Cluster\n\n{versions()}, Dask {dask.__version__}."]
    if options.rounds:
        report.append(scaling(options.rounds, options.rows, options.per_worker))
    if options.gigabytes:
        report.append(memory(options.gigabytes, options.limit))
    publish("\n\n".join(report), options.output)


if __name__ == "__main__":
    main()
