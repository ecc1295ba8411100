"""How large arrays may be: rows are worked on in parts, so that memory stays small.

Parts of two sizes. Most work takes parts whose arrays hold ``WORKSPACE`` numbers, 8 MiB in double
precision. What passes over the same array several times in a row takes ``CACHED`` ones, which stay
near the processor.
"""

from collections.abc import Iterator
from typing import Any

WORKSPACE = 2**20
CACHED = 2**18


def width(network: Any) -> int:
    """Most numbers that a row becomes inside a network.

    Its own word for it, a module's ``n_units``, or what dense layers make of it.
    """
    own = (getattr(module, "n_units", 1) for module in network.modules())
    dense = (size for parameter in network.parameters() for size in parameter.shape)
    return max(1, *(n for n in own if isinstance(n, int)), *dense)


def rows_at_once(each: int, workspace: int | None = None) -> int:
    """How many rows of ``each`` numbers an array may hold, one at least.

    It has ``workspace`` numbers, or ``WORKSPACE`` without a word.
    """
    return max(1, (WORKSPACE if workspace is None else workspace) // max(each, 1))


def slices(n_rows: int, each: int, most: int | None = None) -> Iterator[slice]:
    """Parts of so many rows that each become ``each`` numbers, ``most`` rows at a time."""
    size = rows_at_once(each)
    size = size if most is None else min(size, most)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
