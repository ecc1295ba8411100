"""The rows that a model is trained on, as its likelihood sees them: in memory, or read when needed.

`Stored` and `Streamed` say how many rows they are, split some off, and give a `reader`: what yields
an epoch's rows in random order, as float32 targets and weights.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .training import even_cuts, shuffled
from .world import ALONE, World

GATHERED = 2**20  # cells that batches are taken from at once
WINDOW = 2**24  # cells of a stream that are in memory, and in random order, at a time

# how many batches they are, and targets (n, n_columns), weights (n,), and, where cells are missing,
# hints (n, 2 * n_components)
Reader = Callable[[], Iterator[tuple[int, tuple[Tensor, ...]]]]
# from rows to hints, (n_rows, 2 * n_components); None without gaps
Hints = Callable[["Stored"], Tensor | None]


class Unread:
    """Targets of rows of a sparse matrix: dense only where they are read.

    Indexed like the tensor that they would be.

    Parameters
    ----------
    rows : DistinctRows
    likelihood : Module
    device : str, default="cpu"
        Of what is read.
    """

    def __init__(self, rows: Any, likelihood: Any, device: str = "cpu") -> None:
        self.rows, self.likelihood, self.device = rows, likelihood, device
        self.shape = len(rows), rows.n_columns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Tensor) -> Tensor:
        targets = self.likelihood.standardize(self.rows.block(at.cpu().numpy()))
        return torch.from_numpy(targets).to(self.device, torch.float32)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Rows: dim is 0."""
        return self[index]

    def to(self, device: str) -> "Unread":
        """The same, read to this device."""
        return Unread(self.rows, self.likelihood, device)


class Stored:
    """Rows in memory, or some of them.

    Parameters
    ----------
    targets : Tensor of shape (n_stored, n_columns), or Unread
        Standardised, float32, NaN where a cell is missing.
    weights : Tensor of shape (n_stored,)
    units : Tensor of shape (n_stored,)
        Nats that original units cost each row.
    gaps : bool
        Whether cells are missing.
    index : Tensor of shape (n_rows,), default=None
        Which of these rows are meant; all without it.
    world : World, default=ALONE
        The processes that have the other rows.
    """

    def __init__(
        self,
        targets: Tensor | Unread,
        weights: Tensor,
        units: Tensor,
        gaps: bool,
        index: Tensor | None = None,
        world: World = ALONE,
    ) -> None:
        self.targets, self.weights, self.units, self.gaps = targets, weights, units, gaps
        self.world = world
        self.index = torch.arange(len(targets)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Targets and weights of some of the rows."""
        at = self.index[rows]
        return self.targets[at], self.weights[at]

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Targets and weights of all rows, so many at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def chosen(self, index: Tensor) -> "Stored":
        """Some of the rows that are stored."""
        return Stored(self.targets, self.weights, self.units, self.gaps, index, self.world)

    @property
    def n_in_all(self) -> int:
        """Rows of all processes."""
        return int(self.world.sum(torch.tensor(len(self))))

    @property
    def share(self) -> Tensor:
        """The rows' shares of the weight of all: over all processes they sum to one."""
        weights = self.weights[self.index]
        return weights / self.world.sum(weights.sum())

    @property
    def unit(self) -> float:
        """Nats that original units cost the rows of all processes, on average."""
        weights = self.weights[self.index]
        total = self.world.sum(weights @ self.units[self.index])
        return float(total / self.world.sum(weights.sum()))

    def split(self, n_rows: int, generator: torch.Generator) -> tuple["Stored", "Stored"]:
        """The rows but for so many random ones, and these."""
        order = self.index[torch.randperm(len(self), generator=generator)]
        return self.chosen(order[n_rows:]), self.chosen(order[:n_rows])

    def head(self, n_rows: int) -> "Stored":
        """The first rows: of a random order, where rows come in one.

        Of each process as large a part; all processes then have all of them.
        """
        world = self.world
        if world.size == 1:
            return self.chosen(self.index[:n_rows])
        n_in_all = self.n_in_all
        # rounded up: a process with few rows has its share too
        size = -(-min(n_rows, n_in_all) * len(self) // max(n_in_all, 1))
        at = self.index[:size]
        weights = self.weights[at] * (len(self) / max(size, 1))
        found = [world.gather(part) for part in (self.targets[at], weights, self.units[at])]
        gaps = float(world.max(torch.tensor(float(self.gaps)))) > 0
        return Stored(found[0], found[1], found[2], gaps)

    def reader(
        self, n_batches: int, generator: torch.Generator, device: str, hints: Hints, drawn: int = 1
    ) -> Reader:
        """An epoch of so many batches; all processes give as many."""
        targets, weights = self.targets.to(device), self.weights.to(device, torch.float32)
        hinted = hints(self)  # they depend on nothing that is trained
        index, cells = self.index.to(device), GATHERED
        if device != "cpu":  # what is sent there waits for what it does
            cells *= 64
        at_once = cells // max(targets.shape[1], drawn)

        def read() -> Iterator[tuple[int, tuple[Tensor, ...]]]:
            for n, order in shuffled(len(self), n_batches, generator, at_once):
                order = order.to(device)
                at = index[order]
                # several times as fast as tensor[at] where rows are short
                batch = targets.index_select(0, at), weights.index_select(0, at)
                yield n, batch if hinted is None else (*batch, hinted.index_select(0, order))

        return read


class Streamed:
    """Rows that are read from their source, chunk by chunk, whenever they are needed.

    Chunks come in random order, and the rows of as many as a window holds in random order.

    Parameters
    ----------
    rows : StreamedRows
    likelihood : Module
    sample : Stored
        Random rows from everywhere.
    chunks : Tensor, default=None
        Numbers of the chunks that are meant; all without it.
    """

    def __init__(
        self, rows: Any, likelihood: Any, sample: Stored, chunks: Tensor | None = None
    ) -> None:
        self.rows, self.likelihood, self.sample = rows, likelihood, sample
        if chunks is None:
            numbers = list(range(rows.n_chunks))
            if rows.weights is not None:  # without those that do not count
                numbers = [i for i in numbers if rows.weights[slice(*rows.chunk(i))].any()]
            chunks = torch.tensor(numbers)
        self.chunks = chunks
        self.n_rows = sum(stop - start for start, stop in map(rows.chunk, self.chunks.tolist()))

    def __len__(self) -> int:
        return self.n_rows

    @property
    def _window(self) -> int:
        """Cells of one."""
        return min(WINDOW, self.rows.room)

    @property
    def world(self) -> World:
        """The processes that have the other rows."""
        return self.sample.world

    @property
    def n_in_all(self) -> int:
        """Rows of all processes."""
        return int(self.world.sum(torch.tensor(len(self))))

    @property
    def unit(self) -> float:
        """Nats that original units cost the rows of the samples, on average."""
        return self.sample.unit

    def split(self, n_rows: int, generator: torch.Generator) -> tuple["Streamed", Stored]:
        """The rows but for those of random chunks, about so many, of a window at most."""
        order = self.chunks[torch.randperm(len(self.chunks), generator=generator)]
        n_rows = min(n_rows, self._window // self.rows.n_columns)
        n_chunks = min(math.ceil(n_rows / len(self) * len(order)), len(order) - 1)
        if n_rows and n_chunks == 0:
            raise ValueError(
                f"sample_weight is zero but for a stretch of {len(self)} rows that is read as one: "
                "none of them can be held out. Set early_stopping=False, or shuffle the rows."
            )
        rest = Streamed(self.rows, self.likelihood, self.sample, order[n_chunks:])
        found = self._read(order[:n_chunks], True)
        mixed = torch.randperm(len(found), generator=generator)
        return rest, found.chosen(mixed)

    def head(self, n_rows: int) -> Stored:
        """Some of the sample."""
        return self.sample.head(n_rows)

    def reader(
        self, n_batches: int, generator: torch.Generator, device: str, hints: Hints, drawn: int = 1
    ) -> Reader:
        """An epoch of so many batches; all processes give as many."""
        n_windows = min(math.ceil(len(self) * self.rows.n_columns / self._window), n_batches)
        cuts = even_cuts(n_batches, n_windows)

        def read() -> Iterator[tuple[int, tuple[Tensor, ...]]]:
            order = self.chunks[torch.randperm(len(self.chunks), generator=generator)]
            for number, chunks in enumerate(order.tensor_split(n_windows)):
                n = cuts[number + 1] - cuts[number]
                # without a name, so that one window goes before the next one comes
                yield from self._read(chunks).reader(n, generator, device, hints, drawn)()

        return read

    def _read(self, chunks: Tensor, with_units: bool = False) -> Stored:
        """The rows of these chunks, read in the order in which they lie."""
        parts = [self.rows.chunk(number) for number in sorted(chunks.tolist())]
        n_rows = sum(stop - start for start, stop in parts)
        targets = torch.empty(n_rows, self.rows.n_columns)
        weights = torch.ones(n_rows, dtype=torch.float64)
        units = torch.zeros(n_rows, dtype=torch.float64)
        end, gaps = 0, False
        for start, stop in parts:
            at, end = slice(end, end + stop - start), end + stop - start
            T = self.rows.block(start, stop)
            gaps = gaps or bool(np.isnan(T).any())
            targets[at] = torch.from_numpy(self.likelihood.standardize(T))
            if with_units:
                units[at] = torch.from_numpy(self.likelihood.log_unit(T).sum(1))
            if self.rows.weights is not None:
                weights[at] = torch.from_numpy(self.rows.weights[start:stop])
        return Stored(targets, weights, units, gaps, world=self.world)
