"""How large arrays may be: rows are worked on in parts, so that memory stays small.

Parts of two sizes. Most work takes parts whose arrays hold ``WORKSPACE`` numbers, 8 MiB in double
precision. What passes over the same array several times takes ``CACHED`` ones, which stay near the
processor.
"""

from collections.abc import Iterator
from typing import Any

WORKSPACE = 2**20
CACHED = 2**18


class Sized:
    """What says itself how large rows become inside it.

    Attributes
    ----------
    n_units : int
        Most numbers that a row becomes.
    """

    n_units: int = 1


def width(network: Any) -> int:
    """Most numbers that a row becomes inside a network: its own word for it, or of dense layers."""
    own = (module.n_units for module in network.modules() if isinstance(module, Sized))
    dense = (size for parameter in network.parameters() for size in parameter.shape)
    return max((1, *own, *dense))


def how_many(each: int, workspace: int | None = None) -> int:
    """How many things of ``each`` numbers an array may hold, one at least.

    The array has ``workspace`` numbers; None: ``WORKSPACE``.
    """
    return max(1, (WORKSPACE if workspace is None else workspace) // max(each, 1))


def slices(
    n_rows: int, each: int, most: int | None = None, workspace: int | None = None
) -> Iterator[slice]:
    """Parts of so many rows of ``each`` numbers: as many as `how_many` says, ``most`` at most."""
    size = how_many(each, workspace)
    size = size if most is None else min(size, most)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
