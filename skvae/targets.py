"""The rows that a model is trained on, as its likelihood sees them: in memory, or read when needed.

Both kinds say how many rows they are, split some off, and give a `reader`: what yields an epoch's
rows in random order, as float32 targets and weights.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .training import shuffled

GATHERED = 2**20  # cells that batches are taken from at once
WINDOW = 2**24  # cells of a stream that are in memory, and in random order, at a time

# targets (n, n_columns), weights (n,), and, where cells are missing, hints (n, 2 * n_components)
Reader = Callable[[], Iterator[tuple[Tensor, ...]]]
# from targets to hints; None without gaps
Hints = Callable[[Tensor], Tensor | None]


class Stored:
    """Rows in memory, or some of them.

    Parameters
    ----------
    targets : Tensor of shape (n_stored, n_columns)
        Standardised, float32, NaN where a cell is missing.
    weights : Tensor of shape (n_stored,)
    units : Tensor of shape (n_stored,)
        Nats that original units cost each row.
    index : Tensor of shape (n_rows,), default=None
        Which of these rows are meant; all without it.
    """

    def __init__(
        self, targets: Tensor, weights: Tensor, units: Tensor, index: Tensor | None = None
    ) -> None:
        self.targets, self.weights, self.units = targets, weights, units
        self.some = index is not None
        self.index = torch.arange(len(targets)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def unit(self) -> float:
        """Nats that original units cost these rows, on average."""
        weights = self.weights[self.index]
        return float(weights @ self.units[self.index] / weights.sum())

    def split(self, n_rows: int, generator: torch.Generator) -> tuple["Stored", "Stored"]:
        """The rows but for so many random ones, and these."""
        order = self.index[torch.randperm(len(self), generator=generator)]
        parts = order[n_rows:], order[:n_rows]
        one, two = (Stored(self.targets, self.weights, self.units, part) for part in parts)
        return one, two

    def head(self, n_rows: int) -> tuple[Tensor, Tensor]:
        """Targets and weights of the first rows: of a random order, where rows come in one."""
        index = self.index[:n_rows] if self.some else slice(n_rows)  # no copy of what is whole
        return self.targets[index], self.weights[index]

    def reader(
        self, batch_size: int, generator: torch.Generator, device: str, hints: Hints, drawn: int = 1
    ) -> Reader:
        targets = self.targets.to(device)
        tensors = [targets, self.weights.to(device, torch.float32)]
        if (found := hints(targets)) is not None:  # they depend on nothing that is trained
            tensors.append(found)
        index, at_once = self.index.to(device), GATHERED // max(targets.shape[1], drawn)

        def read() -> Iterator[tuple[Tensor, ...]]:
            for order in shuffled(len(self), batch_size, generator, at_once):
                at = index[order.to(device)]
                # several times as fast as tensor[at] where rows are short
                yield tuple(tensor.index_select(0, at) for tensor in tensors)

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
    def unit(self) -> float:
        """Nats that original units cost the rows of the sample, on average."""
        return self.sample.unit

    def split(self, n_rows: int, generator: torch.Generator) -> tuple["Streamed", Stored]:
        """The rows but for those of random chunks, about so many, of a window at most."""
        order = self.chunks[torch.randperm(len(self.chunks), generator=generator)]
        n_rows = min(n_rows, WINDOW // self.rows.n_columns)
        n_chunks = min(math.ceil(n_rows / len(self) * len(order)), len(order) - 1)
        if n_rows and n_chunks == 0:
            raise ValueError(
                f"sample_weight is zero but for a stretch of {len(self)} rows that is read as one: "
                "none of them can be held out. Set early_stopping=False, or shuffle the rows."
            )
        rest = Streamed(self.rows, self.likelihood, self.sample, order[n_chunks:])
        found = self._read(order[:n_chunks], True)
        mixed = torch.randperm(len(found), generator=generator)
        return rest, Stored(found.targets, found.weights, found.units, mixed)

    def head(self, n_rows: int) -> tuple[Tensor, Tensor]:
        """Targets and weights of some of the sample."""
        return self.sample.head(n_rows)

    def reader(
        self, batch_size: int, generator: torch.Generator, device: str, hints: Hints, drawn: int = 1
    ) -> Reader:
        def read() -> Iterator[tuple[Tensor, ...]]:
            order = self.chunks[torch.randperm(len(self.chunks), generator=generator)]
            for chunks in order.tensor_split(math.ceil(len(self) * self.rows.n_columns / WINDOW)):
                window = self._read(chunks)
                yield from window.reader(batch_size, generator, device, hints, drawn)()

        return read

    def _read(self, chunks: Tensor, with_units: bool = False) -> Stored:
        """The rows of these chunks, read in the order in which they lie."""
        parts = [self.rows.chunk(number) for number in sorted(chunks.tolist())]
        n_rows = sum(stop - start for start, stop in parts)
        targets = torch.empty(n_rows, self.rows.n_columns)
        weights = torch.ones(n_rows, dtype=torch.float64)
        units = torch.zeros(n_rows, dtype=torch.float64)
        end = 0
        for start, stop in parts:
            at, end = slice(end, end + stop - start), end + stop - start
            T = self.rows.block(start, stop)
            targets[at] = torch.from_numpy(self.likelihood.standardize(T))
            if with_units:
                units[at] = torch.from_numpy(self.likelihood.log_unit(T).sum(1))
            if self.rows.weights is not None:
                weights[at] = torch.from_numpy(self.rows.weights[start:stop])
        return Stored(targets, weights, units)
