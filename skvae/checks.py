"""Checks of parameters: what is wrong, what was given, what is wanted."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch


def check_option(name: str, value: Any, options: tuple[str, ...], extra: str = "") -> None:
    """Refuse what is not one of the options."""
    if not (isinstance(value, str) and value in options):
        raise ValueError(f"{name} must be one of {options} {extra}".rstrip() + f", got {value!r}.")


def is_auto(value: Any) -> bool:
    """Whether it is the word; arrays, which would be compared by cell, are not."""
    return isinstance(value, str) and value == "auto"


def check_integer(name: str, value: Any, low: int, extra: str = "") -> None:
    """Refuse what is not an integer of at least ``low``."""
    wanted = f"an integer of at least {low} {extra}".rstrip()
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = ValueError if isinstance(value, Real) and not isinstance(value, bool) else TypeError
        raise kind(f"{name} must be {wanted}, got {value!r}.")
    if value < low:
        raise ValueError(f"{name} must be {wanted}, got {value!r}.")


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    extra: str = "",
) -> None:
    """Refuse what is not a number in the interval; an infinite ``high`` is never inside."""
    if high == math.inf:
        wanted = "a positive number" if open_low and low == 0 else f"a number of at least {low:g}"
    else:
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        wanted = f"a number in {left}{low:g}, {high:g}{right}"
    wanted = f"{wanted} {extra}".rstrip()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {wanted}, got {value!r}.")
    number = float(value)
    above = number > low if open_low else number >= low
    below = number < high if open_high or high == math.inf else number <= high
    if not (above and below):
        raise ValueError(f"{name} must be {wanted}, got {value!r}.")


def check_sizes(name: str, value: Any) -> tuple[int, ...]:
    """Sizes of layers, each an integer of at least 1."""
    if isinstance(value, str) or not np.iterable(value):
        raise TypeError(f"{name} must be a sequence of integers, such as (64, 32), got {value!r}.")
    sizes = tuple(value)
    for size in sizes:
        check_integer(f"each of {name}", size, 1)
    return sizes


def check_device(value: Any) -> str:
    """The device's name; "auto" resolved."""
    if value == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if (torch.zeros(1, device=torch.device(value)) + 1).item() != 1:  # "meta" holds no numbers
            raise RuntimeError("it does not compute")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={value!r} is not available here ({str(error).splitlines()[0]}). "
            "Use device='auto' or 'cpu'."
        ) from error
    return str(value)
