"""The one exception for input that the caller can mend, and the checks that many options share."""

import math


class InputError(ValueError):
    """Bad input, told in one sentence that names the culprit and the remedy."""


def positive_integer(name: str, value: object) -> None:
    """Refuse anything but a positive integer.

    Raises:
        InputError: naming the option.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={value!r} is not a positive integer.")


def positive_number(name: str, value: object, *, or_zero: bool = False) -> None:
    """Refuse anything but a finite positive number (or zero, where that means something).

    Raises:
        InputError: naming the option.
    """
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
        or (value == 0 and not or_zero)
    ):
        raise InputError(f"{name}={value!r} is not a {'non-negative' if or_zero else 'positive'} finite number.")
