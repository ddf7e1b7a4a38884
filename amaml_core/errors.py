"""The one exception for input that the caller can mend, and the checks that many options share."""

import math
from numbers import Integral


class ModelWarning(UserWarning):
    """What is done otherwise than somebody might expect because of how a model is made."""


class InputError(ValueError):
    """Bad input, told in one sentence that names the culprit and the remedy."""


def positive_integer(name: str, value: object) -> int:
    """A positive integer, NumPy's too, as Python's; anything else is an ``InputError`` that names the option."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={value!r} is not a positive integer.")
    return int(value)


def positive_number(name: str, value: object, *, or_zero: bool = False) -> None:
    """An ``InputError`` that names the option for anything but a finite positive number, or zero where that is one."""
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not (0 < value < math.inf or (or_zero and value == 0))
    ):
        raise InputError(f"{name}={value!r} is not a {'non-negative' if or_zero else 'positive'} finite number.")


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def percent(share: float) -> str:
    """A share in words that are not "0.0%" for a small one."""
    return f"{share:.1%}" if share >= 1e-3 else f"{100 * share:.0e}%"
