"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

MISSING = "–"
PLAIN = (1e-9, 1e15)  # magnitudes that are written without an exponent


def _of_a_number(tell: Callable[..., str]) -> Callable[..., str]:
    """What cannot be told as a number: what is unknown is missing, what is too large for a float has no end."""

    @wraps(tell)
    def told(value: float, *more: float | None) -> str:
        if math.isnan(value):
            return MISSING
        return tell(value, *more) if math.isfinite(value) else "∞" if value > 0 else "-∞"

    return told


@_of_a_number
def error(value: float, std: float | None = None) -> str:
    """``1.23e-4``, with ``± 5.60e-5`` where a spread is known."""
    text = _short(value, 2)
    return text if std is None or math.isnan(std) else f"{text} ± {_short(std, 2)}"


@_of_a_number
def _short(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


@_of_a_number
def size(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1000:
            return f"{three(value)} {unit}"
        value /= 1024
    return f"{three(value)} GiB"


@_of_a_number
def seconds(value: float, low: float | None = None, high: float | None = None) -> str:
    """Seconds, milliseconds or microseconds; with a range in the same unit."""
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if abs(value) * f >= 1), (1e6, "µs"))
    if low is None or high is None or math.isnan(low):
        return f"{three(value * factor)} {unit}"
    return f"{three(value * factor)} {unit} ({three(low * factor)}–{three(high * factor)})"


@_of_a_number
def count(value: float) -> str:
    """A whole number, or a mean of some."""
    return f"{value:,.10g}"


@_of_a_number
def fixed(value: float, digits: int = 2) -> str:
    """A number with so many decimals."""
    text = f"{value:.{digits}f}" if abs(value) < PLAIN[1] else _short(value, 2)
    return text.removeprefix("-") if float(text) == 0 else text


@_of_a_number
def signed(value: float, digits: int) -> str:
    """A difference with so many decimals, its sign told."""
    return f"{value:+.{digits}f}" if abs(value) < PLAIN[1] else f"{value:+.2e}"


@_of_a_number
def share(ratio: float) -> str:
    """A ratio as a percentage."""
    return f"{three(100 * ratio)} %"


@_of_a_number
def times(ratio: float) -> str:
    """A ratio as a factor, with two significant digits."""
    return f"{_significant(ratio, 2)}×"


@_of_a_number
def level(value: float) -> str:
    """A tolerance, a level of error: ``1e-3``, ``2.5e-4``."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


@_of_a_number
def three(value: float) -> str:
    """Three significant digits, without an exponent for all that people meet."""
    return _significant(value, 3)


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    if not PLAIN[0] <= abs(value) < PLAIN[1]:
        return _short(value, digits - 1)
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def plural(number: int, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
