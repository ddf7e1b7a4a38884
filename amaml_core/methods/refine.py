"""A flow's gradient to a tolerance of its own: scheme and resolution are found, kept, and looked at again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from amaml_core.methods.accuracy import PRICES, RECHECKED, across_kinks, add_costs, judged, largest_defect
from amaml_core.methods.base import MetaGradient
from amaml_core.ode.accuracy import FINER, INACCURATE, SUSPICIOUS, distance
from amaml_core.ode.adaptive import RK4Step
from amaml_core.status import OK, Status

MOST = 6  # doublings of the resolution
AIMED = 0.3  # share of the tolerated error that a setting is kept for: other updates have other errors


@dataclass(frozen=True)
class Scheme:
    """A way to solve, with what its error does when its steps are halved.

    Attributes:
        options: of the method.
        doubling: by what rtol is divided to halve the steps; 0 where the number of states is doubled.
        order: of the gradient's error.
        stiffness: that a step bears where that limits the steps of the way back too.
        share: of the distance to half the resolution that is taken for the error; on the safe side of what is measured.
    """

    options: dict[str, Any]
    doubling: float
    order: int
    share: float
    stiffness: float | None = None


BOTH_WAYS = Scheme({"forward": "rk43", "backward": "rk4"}, 16.0, 4, 0.33, RK4Step.bears)
STABILIZED = Scheme({"forward": "rkg2", "backward": "discrete"}, 8.0, 2, 1.0)
EQUAL_STEPS = Scheme({"forward": "rk4", "backward": "rk4"}, 0.0, 1, 1.0)  # across kinks, where no scheme has an order


@dataclass(frozen=True)
class Setting:
    """A scheme at a resolution.

    Attributes:
        scheme: how to solve.
        doublings: of the steps, from where it begins.
        left: updates that it is trusted for.
        defect: the largest that is to be expected, by that of a gradient whose error was estimated.
        kinked: whether that was told to come from kinks.
        short: what is told of all tasks where the tolerance could not be met.
    """

    scheme: Scheme
    doublings: float = 0.0
    left: int = 0
    defect: float = 0.0
    kinked: bool = False
    short: Status | None = None


def options(setting: Setting, grad_rtol: float, inner_steps: int, eps: float) -> dict[str, Any]:
    """A setting as options of the method."""
    scheme = setting.scheme
    if not scheme.doubling:
        return scheme.options | {"num_states": max(1, round(inner_steps * 2**setting.doublings))}
    rtol = max(2 * grad_rtol * scheme.doubling**-setting.doublings, 2 * eps)
    finer = {"max_stiffness": scheme.stiffness * 0.5 ** max(setting.doublings, 0.0)} if scheme.stiffness else {}
    return scheme.options | {"num_states": "accepted", "rtol": rtol, "atol": 1e-2 * rtol} | finer


class Found(NamedTuple):
    """The end of a search.

    Attributes:
        out: the gradient.
        met: whether the estimated error of its mean over tasks is as small as was asked.
        setting: to go on with.
        growth: of the number of steps as the resolution was doubled first.
    """

    out: MetaGradient
    met: bool
    setting: Setting
    growth: float


def refined(
    at: Callable[[Setting], MetaGradient],
    grad_rtol: float,
    kept: dict[Hashable, Setting],
    key: Hashable,
    kinked: Callable[[], bool],
) -> MetaGradient:
    """The gradient to ``grad_rtol``, by the setting of the last update or by a search that ends in one.

    Args:
        at: the gradient by a setting.
        grad_rtol: of the estimated ‖grad − the flow's‖ / ‖grad‖.
        kept: settings that were found, by ``key``; changed.
        key: whose setting it is.
        kinked: whether the loss has kinks, which is known once there is a gradient.
    """
    known = kept.get(key, Setting(BOTH_WAYS))
    costs: Counter[str] = Counter()
    if known.left:
        out = at(known)
        if largest_defect(out) <= max(SUSPICIOUS, 2 * known.defect) and "diverged" not in out.status:
            kept[key] = replace(known, left=known.left - 1)
            status = out.status if known.kinked else (OK if one == "inaccurate" else one for one in out.status)
            return replace(out, status=tuple(known.short if known.short and one == "ok" else one for one in status))
        add_costs(costs, out.stats)
    found = _search(at, known, grad_rtol, costs, kinked)
    if found.out.stats.get("budgets_spent"):
        found = _search(at, Setting(EQUAL_STEPS), grad_rtol, costs, kinked)
    elif key not in kept and found.growth < FINER:
        other = _search(at, Setting(STABILIZED), grad_rtol, costs, kinked, better=found)
        if other.met and (not found.met or _price(other.out) < _price(found.out)):
            found = other
    kept[key] = found.setting
    return replace(found.out, stats=found.out.stats | costs)


def _search(
    at: Callable[[Setting], MetaGradient],
    first: Setting,
    grad_rtol: float,
    costs: Counter[str],
    kinked: Callable[[], bool],
    better: Found | None = None,
) -> Found:
    """Double the resolution until two in a row agree.

    Where there is a ``better`` gradient, by another scheme, they are to agree with that, for less than its price.
    """
    scheme, doublings, growths = first.scheme, first.doublings, []
    before = better.out if better else at(replace(first, doublings=doublings - 1))
    if not better:
        add_costs(costs, before.stats)
    while True:
        out = at(replace(first, doublings=doublings))
        add_costs(costs, out.stats)
        same = across_kinks(before, out, kinked()) if better else across_kinks(out, before, kinked())
        share = 1.0 if better or bool(same.any()) else scheme.share
        error, each = (
            share * distance(getattr(out, name), getattr(before, name), getattr(out, name))
            for name in ("grad", "task_grads")
        )
        growths.append(out.stats.get("forward_steps", 0) / max(1, before.stats.get("forward_steps", 1)))
        met = float(error) <= grad_rtol and bool((each <= max(grad_rtol, INACCURATE)).all())
        met = met and (better is not None or growths[-1] >= FINER)
        spent = scheme.doubling and out.stats.get("budgets_spent")
        dear = better is not None and _price(out) > _price(better.out)
        lost = scheme.doubling and not bool(torch.isfinite(out.grad).all())  # smaller steps will not bring it back
        if met or spent or dear or lost or doublings >= first.doublings + MOST:
            break
        before, doublings = before if better else out, doublings + 1
    out = judged(out, each, same, lambda _: "raise grad_rtol, or shorten the horizon")
    short = None
    if not met:
        told = f"grad_rtol={grad_rtol:g} was not met: about {float(error):.1e} is left; raise it."
        short = Status("inaccurate", told)
        out = replace(out, status=tuple(short if status == "ok" else status for status in out.status))
    # it may be so coarse that a good part of the error allowed is to be expected
    spare = math.log2(AIMED * grad_rtol / float(error)) / scheme.order if 0 < error <= AIMED * grad_rtol else 0.0
    across = bool((same & (each <= INACCURATE)).any())
    spare = min(spare, 1.0)
    coarser = largest_defect(out) * (1.0 if across else 2.0 ** (scheme.order * spare))
    kept = Setting(scheme, doublings - spare, RECHECKED, coarser, across, short)
    return Found(out, met, kept, growths[0])


def _price(out: MetaGradient) -> int:
    return sum(times * out.stats.get(name, 0) for name, times in PRICES.items())
