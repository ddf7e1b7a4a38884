"""What stands behind a method's gradient of a flow: an estimate of its error, and the status that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amaml_core.methods.base import MetaGradient
from amaml_core.ode.accuracy import FINER, INACCURATE, SUSPICIOUS, distance, richardson
from amaml_core.status import OK, Status

SAME = 2.0  # a mismatch that half the steps make no smaller than so many times is no error of the solve, but a jump
RECHECKED = 20  # updates after which what was found is looked at again
PRICES = {"grad_evals": 1, "hvp_evals": 2, "linearizations": 1}  # in gradients, by and large
KINKS = (
    "The trajectory crosses kinks of the loss (ReLU, max-pooling), where the flow's gradient jumps and its adjoint "
    "does not (defect {:.0%}): this is the almost-everywhere derivative, as maml takes it; judge it by the unrolled "
    "gradient, or use maml or smooth activations."
)


def estimated(
    out: MetaGradient,
    again: Callable[[float], MetaGradient | None],
    *,
    order: int,
    kinked: bool,
    overrule: bool,
    remedy: Callable[[float], str],
) -> MetaGradient:
    """A gradient with its ``error_estimate``, from other resolutions of the same method, and the status it deserves.

    Half the resolution is compared first, for half the price again. Where the two are far apart that one may be to
    blame, and twice the resolution decides.

    Args:
        out: the gradient.
        again: factor -> the gradient at so many times the resolution; None where there is none so coarse.
        order: of the method, for Richardson's factor 1/(2^order − 1), of which no more is believed than a half; across
            kinks no method has more than the first.
        kinked: whether the loss has kinks.
        overrule: whether a small estimate clears what was found unstable on the way.
        remedy: error -> what helps against it.
    """
    others = [again(0.5)]
    if (coarse := others[0]) is None:
        estimate = torch.full_like(out.query_loss, math.inf)
        same = torch.zeros_like(estimate, dtype=torch.bool)
    else:
        same = across_kinks(out, coarse, kinked)
        share = torch.where(same, richardson(1), richardson(order))
        estimate = share * distance(out.task_grads, coarse.task_grads, out.task_grads)
        if _steps(out) < FINER * _steps(coarse):  # stability decides on them, so that the two may well be the same
            estimate = torch.full_like(estimate, math.inf)
    far = estimate > INACCURATE
    if bool(far.any()) and (fine := again(2.0)) is not None:
        others.append(fine)
        same = torch.where(far, across_kinks(fine, out, kinked), same)
        closer = distance(out.task_grads, fine.task_grads, fine.task_grads) / (1 - 2.0 ** -torch.where(same, 1, order))
        estimate = torch.where(far, closer, estimate)
        overrule = overrule and _finer(fine, out)  # else both may be unstable, and alike
    stats = dict(out.stats)
    for other in others:
        add_costs(stats, {} if other is None else other.stats)
    return replace(judged(out, estimate, same, remedy, overrule=overrule), stats=stats)


def judged(
    out: MetaGradient,
    estimate: Float[Tensor, " tasks"],
    kinked: Bool[Tensor, " tasks"],
    remedy: Callable[[float], str],
    *,
    overrule: bool = True,
) -> MetaGradient:
    """A gradient with this estimate of its error and the status that follows; for arguments see ``estimated``.

    ``kinked``: whether the trajectory is ``across_kinks``.
    """
    kinks = torch.where(kinked, _shown(out), 0.0)
    each = zip(out.status, estimate.tolist(), kinks.tolist(), strict=True)
    status = tuple(_verdict(one, error, jump, overrule, remedy) for one, error, jump in each)
    return replace(out, status=status, error_estimate=estimate)


_kept: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


def kept_of(problem: object) -> dict[Hashable, Any]:
    """What methods found out about a problem, for its next updates."""
    return _kept.setdefault(problem, {})


@dataclass(frozen=True)
class Cleared:
    """What the estimate said of an update that was in doubt, which goes for those after it.

    Attributes:
        left: updates that it is trusted for.
        defect: the largest of that update.
        status: of all its doubtful tasks, whose defects were what was in doubt.
    """

    left: int
    defect: float
    status: Status


def cleared(out: MetaGradient, known: Cleared, doubt: bool) -> MetaGradient | None:
    """A gradient with the status that was found before; None where it must be looked at anew.

    ``doubt``: whether it is ``doubtful``; if not, nothing of it is read, for that waits for the device.
    """
    if known.left and not doubt:
        return out
    if not known.left or not _by_defect(out) or largest_defect(out) > max(SUSPICIOUS, 2 * known.defect):
        return None
    return replace(out, status=tuple(known.status if status == "inaccurate" else OK for status in out.status))


def clearing(before: MetaGradient, after: MetaGradient) -> Cleared | None:
    """What an estimate that was made of ``before`` says of the next updates; None where it says nothing."""
    pairs = list(zip(before.status, after.status, strict=True))
    found = {two for one, two in pairs if one == "inaccurate"} or {OK}
    worse = any(one == "ok" and two != "ok" for one, two in pairs)
    if len(found) != 1 or worse or not _by_defect(before):
        return None
    return Cleared(RECHECKED, largest_defect(before), found.pop())


def _by_defect(out: MetaGradient) -> bool:
    """Whether defects are all that is in doubt: of anything else another update may say the same, and mean more."""
    defects = [] if out.defect is None else out.defect.tolist()
    return not any(map(math.isnan, defects)) and all(
        one == "ok" or (one == "inaccurate" and d > SUSPICIOUS) for one, d in zip(out.status, defects, strict=True)
    )


def largest_defect(out: MetaGradient) -> float:
    """Over the tasks; NaN, where it is blind, does not count."""
    return 0.0 if out.defect is None else float(out.defect.nan_to_num().max())


def doubtful(out: MetaGradient) -> bool:
    """Whether anything about a gradient asks for an estimate of its error: what it was told, or where it is blind."""
    told = torch.tensor([status != "ok" for status in out.status], device=out.task_grads.device)
    blind = torch.zeros_like(told) if out.defect is None else torch.isnan(out.defect)
    return bool(((told | blind) & torch.isfinite(out.task_grads).all(1)).any())


def add_costs(stats: dict[str, int], more: Mapping[str, int]) -> None:
    """Count what another gradient cost among these ``stats``."""
    for name in PRICES:
        if name in stats or name in more:
            stats[name] = stats.get(name, 0) + more.get(name, 0)


def _steps(out: MetaGradient) -> int:
    return out.stats.get("forward_steps", 0)


def _finer(fine: MetaGradient, coarse: MetaGradient) -> bool:
    """Whether it takes more steps, there or back."""
    names = ("forward_steps", "states_stored")
    return any(fine.stats.get(name, 0) >= FINER * max(1, coarse.stats.get(name, 0)) for name in names)


def _shown(out: MetaGradient) -> Tensor:
    return torch.zeros_like(out.query_loss) if out.defect is None else torch.nan_to_num(out.defect)


def across_kinks(fine: MetaGradient, coarse: MetaGradient, kinked: bool) -> Bool[Tensor, " tasks"]:
    """Whether twice the resolution leaves a mismatch as it is: an error of the solve it would make smaller.

    Where the loss is known to have kinks any mismatch is theirs: a trajectory that slides along one makes it smaller
    with the steps too, on the way to another gradient.
    """
    assert fine.mismatch is not None
    assert coarse.mismatch is not None
    left = coarse.mismatch < SAME * fine.mismatch
    return (_shown(fine) > SUSPICIOUS) & (left | kinked)


def _verdict(status: Status, error: float, kinked: float, overrule: bool, remedy: Callable[[float], str]) -> Status:
    if error > INACCURATE:
        if status == "diverged":
            return status
        off = f"The gradient is about {error:.0%} off." if error < 100 else "The gradient is far off."
        told = status.remedy if status == "not_converged" else f"{remedy(error)}."
        return Status("inaccurate", f"{off} {told}")
    if kinked and (overrule or status != "diverged"):
        return Status("inaccurate", KINKS.format(kinked))
    return OK if status == "inaccurate" or (overrule and status == "diverged") else status
