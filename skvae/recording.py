"""Steps on a GPU without Python between them: recorded once, and replayed.

A step of a small network is some dozens of operations, and to start each costs more than to do it.
A CUDA graph starts all of them at once.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

FIRST = 3  # calls of each shape that run as they are: libraries set themselves up in them

_ONE_AT_A_TIME = threading.Lock()


class Recording:
    """A procedure on a GPU's tensors, recorded as a CUDA graph for each shape of its arguments.

    What it does must depend on nothing but the arguments and tensors that stay where they are, and
    it must leave its results in such tensors.

    Parameters
    ----------
    procedure : callable
        ``procedure(*tensors)``.
    """

    def __init__(self, procedure: Callable[..., None]) -> None:
        self.procedure = procedure
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], tuple[list[Tensor], torch.cuda.CUDAGraph]] = {}

    def __call__(self, *given: Tensor) -> None:
        """Do it, by a graph where there is one."""
        shapes = tuple(tensor.shape for tensor in given)
        if shapes not in self._graphs:
            self._calls[shapes] = self._calls.get(shapes, 0) + 1
            if self._calls[shapes] <= FIRST:
                self._as_it_is(given)
                return
            self._record(shapes, given)
        inputs, graph = self._graphs[shapes]
        torch._foreach_copy_(inputs, given)  # one start for all
        graph.replay()

    def _as_it_is(self, given: tuple[Tensor, ...]) -> None:
        # on another stream, as recording asks of what goes before it; there are 32 of them, given
        # out in turn, and another thread may record on this one
        with _ONE_AT_A_TIME, torch.cuda.device(given[0].device):
            stream, present = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(present)
            with torch.cuda.stream(stream):
                self.procedure(*given)
            present.wait_stream(stream)

    def _record(self, shapes: tuple[torch.Size, ...], given: tuple[Tensor, ...]) -> None:
        # other threads may use the GPU at the same time, and one of them record
        with _ONE_AT_A_TIME, torch.cuda.device(given[0].device):
            inputs, graph = [tensor.clone() for tensor in given], torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.procedure(*inputs)
        self._graphs[shapes] = inputs, graph
