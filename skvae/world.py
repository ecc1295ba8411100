"""The processes that train one model together: sums over the rows of all, and what all agree on.

`ALONE` is one process with all rows, for which everything here is the identity. Code that sums over
rows passes its sums through a `World`, and is then right for both.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Value = TypeVar("Value", Tensor, np.ndarray[Any, Any], np.float64)


class World:
    """One process, which has all the rows.

    Attributes
    ----------
    rank, size : int
        Whose rows these are, of how many that have rows of their own.
    """

    rank, size = 0, 1

    def sum(self, value: Value) -> Value:
        """The sum of what all processes give."""
        return value

    def min(self, value: Value) -> Value:
        """The least of what all processes give, element by element."""
        return value

    def max(self, value: Value) -> Value:
        """The largest of what all processes give, element by element."""
        return value

    def sum_(self, tensor: Tensor) -> None:
        """The sum of what all processes have worked out from a batch, in place."""

    def lead_(self, tensor: Tensor) -> None:
        """What the first process gives, in place."""

    def lead(self, value: float) -> float:
        """What the first process says: decisions are its own."""
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one process after another."""
        return rows


ALONE = World()


class Group(World):
    """Several processes, by way of torch.distributed.

    A process group of its own: torch's default one, which a process has once, is left alone, so
    that two models can train in one process at a time.

    Parameters
    ----------
    store : torch.distributed.Store
        Where the processes find each other.
    rank, size : int
    timeout : float
        Seconds that one process waits for the others, before it takes them for lost.
    nccl : bool, default=False
        For tensors that lie on GPUs of CUDA; else gloo.
    host : str, default=None
        Address of this process, by which the others reach it; None lets gloo choose one.

    Raises
    ------
    ConnectionError
        From every method, where another process is lost.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: float,
        nccl: bool = False,
        host: str | None = None,
    ) -> None:
        from torch import distributed

        self.rank, self.size = rank, size
        self._wait = timedelta(seconds=timeout)
        self._ops: Any = distributed.ReduceOp

        # not of torch's public names, but what makes no global group
        of_torch: Any = distributed

        def gloo() -> Any:
            own = of_torch.PrefixStore("gloo", store)
            if host is None:
                return of_torch.ProcessGroupGloo(own, rank, size, self._wait)
            options = of_torch.ProcessGroupGloo._Options()
            options._devices = [of_torch.ProcessGroupGloo.create_device(hostname=host)]
            options._timeout = self._wait
            return of_torch.ProcessGroupGloo(own, rank, size, options)

        def on_gpus() -> Any:
            own = of_torch.PrefixStore("nccl", store)
            return of_torch.ProcessGroupNCCL(own, rank, size, self._wait)

        self._gloo, self._nccl = self._guarded(gloo), None
        wanted = torch.tensor(float(nccl))
        if self.min(wanted) != self.max(wanted):
            self.close()
            raise ValueError(
                "Some processes train on GPUs and others do not: set device='cpu', or leave out "
                "those without."
            )
        if nccl:
            self._nccl = self._guarded(on_gpus)

    def close(self) -> None:
        """Let go of the connections."""
        for group in (self._gloo, self._nccl):
            if group is not None:
                group.shutdown()
        del self._gloo, self._nccl

    def sum(self, value: Value) -> Value:
        return self._reduced(value, self._ops.SUM)

    def min(self, value: Value) -> Value:
        return self._reduced(value, self._ops.MIN)

    def max(self, value: Value) -> Value:
        return self._reduced(value, self._ops.MAX)

    def sum_(self, tensor: Tensor) -> None:
        self._run(tensor, lambda group: group.allreduce([tensor], self._ops.SUM))

    def lead_(self, tensor: Tensor) -> None:
        told = tensor.contiguous()
        self._run(told, lambda group: group.broadcast(told, 0))
        if told is not tensor:
            tensor.copy_(told)

    def lead(self, value: float) -> float:
        told = torch.tensor(float(value), dtype=torch.float64)
        self.lead_(told)
        return float(told)

    def gather(self, rows: Tensor) -> Tensor:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        own = torch.tensor([len(rows)])
        self._run(own, lambda group: group.allgather([lengths], [own]))
        counts = [int(length) for length in lengths]
        # of equal length, as torch asks
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        if padded.numel():
            self._run(padded, lambda group: group.allgather([parts], [padded]))
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def _reduced(self, value: Any, op: Any) -> Any:
        tensor = value.clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        self._run(tensor, lambda group: group.allreduce([tensor], op))
        return tensor if isinstance(value, Tensor) else tensor.numpy()[()]

    def _run(self, tensor: Tensor, start: Callable[[Any], Any]) -> None:
        group = self._nccl if tensor.device.type == "cuda" and self._nccl else self._gloo
        self._guarded(lambda: start(group).wait(self._wait))

    def _guarded(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except RuntimeError as error:  # torch knows no better class
            raise ConnectionError(
                f"Process {self.rank} of {self.size} has lost another one: {error}"
            ) from error


class Copies(World):
    """Several processes that each have all the rows, and do the same with them.

    It is the fit of one process, to the bit; the first one leads, should processors differ.

    Parameters
    ----------
    group : Group
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def lead_(self, tensor: Tensor) -> None:
        self._group.lead_(tensor)

    def lead(self, value: float) -> float:
        return self._group.lead(value)
