"""Numbers as people read them."""

from __future__ import annotations

import math

MISSING = "–"


def error(value: float, std: float | None = None) -> str:
    """``1.23e-4``, with ``± 5.60e-5`` where a spread is known."""
    if value != value:
        return MISSING
    text = _short(value, 2)
    return text if std is None or std != std else f"{text} ± {_short(std, 2)}"


def _short(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def size(value: float) -> str:
    """Bytes in binary units."""
    if value != value:
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1000:
            return f"{three(value)} {unit}"
        value /= 1024
    return f"{three(value)} GiB"


def seconds(value: float, low: float | None = None, high: float | None = None) -> str:
    """Seconds, milliseconds or microseconds; with a range in the same unit."""
    if value != value:
        return MISSING
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if value * f >= 1), (1e6, "µs"))
    if low is None or high is None or low != low:
        return f"{three(value * factor)} {unit}"
    return f"{three(value * factor)} {unit} ({three(low * factor)}–{three(high * factor)})"


def count(value: float) -> str:
    """A whole number, or a mean of some."""
    return MISSING if value != value else f"{value:,.10g}"


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many decimals."""
    if value != value:
        return MISSING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed(value: float, digits: int) -> str:
    """A difference with so many decimals, its sign told."""
    return MISSING if value != value else f"{value:+.{digits}f}"


def share(ratio: float) -> str:
    """A ratio as a percentage."""
    return f"{three(100 * ratio)} %"


def times(ratio: float) -> str:
    """A ratio as a factor, with two significant digits."""
    if ratio != ratio:
        return MISSING
    return f"{ratio:.{max(1 - math.floor(math.log10(ratio)), 0)}f}×"


def level(value: float) -> str:
    """A tolerance, a level of error: ``1e-3``, ``2.5e-4``."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def three(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(digits, 0)}f}"


def plural(number: int, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
