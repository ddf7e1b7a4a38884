"""The written rules: which engine an "auto" stands for, and how much goes into one compiled call."""

from __future__ import annotations

from typing import Literal, get_args

from amaml_core.errors import InputError

Engine = Literal["auto", "eager", "graphed", "compiled"]
Built = Literal["eager", "graphed", "compiled"]
PAYBACK = 200  # planned outer updates from which on compilation (10 to 60 s) pays for itself with a small network
CAPTURES_PAY = 5  # planned outer updates on CUDA from which on a capture, which costs about two of them, pays
SMALL = 20_000  # adapted parameters up to which dispatch, and not arithmetic, takes the time of an eager update
PER_GRAPH = 8  # steps of a trajectory in one CUDA graph: enough to hide the host's work, few enough to be kept
BUDGET = 12  # gradients or products in one compiled call: they hide the call's own cost and compile in seconds


def chosen(engine: Engine, *, planned_updates: int, dim: int, convolves: bool, cuda: bool) -> Built:
    """The engine that is meant.

    "auto" is "compiled" from ``PAYBACK`` planned updates on for networks without convolutions and with at most
    ``SMALL`` parameters; else on CUDA "graphed" from ``CAPTURES_PAY`` updates on; else "eager".

    Args:
        engine: as asked for.
        planned_updates: outer updates that will be made.
        dim: adapted parameters.
        convolves: whether the model has convolutions.
        cuda: whether the model is on a CUDA device.

    Raises:
        InputError: there is no such engine.
    """
    if engine not in get_args(Engine):
        raise InputError(f"engine={engine!r} is not available; choose one of {', '.join(get_args(Engine))}.")
    if engine != "auto":
        return engine
    if planned_updates >= PAYBACK and dim <= SMALL and not convolves:
        return "compiled"
    return "graphed" if cuda and planned_updates >= CAPTURES_PAY else "eager"


def per_call(cost: int) -> int:
    """How many steps of ``cost`` gradients or products each make one compiled call."""
    return max(1, BUDGET // cost)


def pieces(total: int, most: int) -> list[int]:
    """``total`` cut into runs of at most ``most``, all alike if there is a fitting length, for each is compiled."""
    length = next((n for n in range(min(most, total), most // 2, -1) if total % n == 0), min(most, total))
    return [min(length, total - start) for start in range(0, total, length)]
