"""What a profile's records say: one table, and which method to use at which trajectory length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.advise.candidate import Candidate, size
from bench.advise.document import Document, Measured, Recommendation
from bench.advise.profile import SEEDS

WORTH = 0.01  # by what share a longer trajectory must lower the query loss to be worth its cost


@dataclass(frozen=True)
class Advice:
    """What the numbers say.

    Attributes:
        best: what to use; None where no method will do.
        told: a sentence a line.
    """

    best: Candidate | None
    told: list[str]

    def document(self, found: Sequence[Candidate], factory: str, memory_bytes: int, tolerance: float) -> Document:
        """It, and what was measured, for programs and for the report."""
        best = self.best and Recommendation(
            method=self.best.cell.method,
            options=self.best.cell.options,
            chunk_size=self.best.chunk_size,
            name=self.best.name,
            call=self.best.call,
        )
        rows = [
            Measured(
                method=one.cell.method,
                options=one.cell.options,
                chunk_size=one.chunk_size,
                name=one.name,
                target=one.target,
                metrics=one.metrics,
                failures=one.failures,
                error=None if math.isnan(one.error) or not one.compared else one.error,
                checks=len(one.again),
                outcome="recommended" if one == self.best else _outcome(one, memory_bytes, tolerance),
            )
            for one in found
        ]
        return Document(
            factory=factory,
            memory_bytes=memory_bytes,
            tolerance=tolerance,
            recommendation=best,
            told=[line.strip() for line in self.told],
            measured=rows,
        )


def recommend(found: Sequence[Candidate], memory_bytes: int, tolerance: float) -> Advice:
    """What to use, and why.

    Of the methods that fit in memory and whose gradient is within ``tolerance`` of the flow's or the unrolled one's
    the fastest is recommended, at the shortest length whose query loss after adaptation is within ``WORTH`` of the
    lowest. A method that was not measured whole is neither recommended nor held to be worse: the lengths at which all
    were come first.
    """
    whole = [one for one in found if not math.isnan(one.bytes + one.seconds + one.error)]
    faithful = [one for one in whole if one.bytes <= memory_bytes and one.error <= tolerance]
    toppled = [_toppled(one) for one in found if one.first_error <= tolerance and not one.error <= tolerance]
    if not faithful:
        return Advice(None, [_nothing(found, whole, memory_bytes, tolerance), *toppled])
    best_at: dict[int, Candidate] = {}
    for one in sorted(faithful, key=lambda one: one.seconds):
        best_at.setdefault(one.steps, one)
    partly = [one for one in found if one not in whole and not _out(one, memory_bytes)]
    unknown = {steps: [one.name for one in partly if one.steps == steps and not one.failures] for steps in best_at}
    loss = {one.steps: one.metrics["query_loss"] for one in faithful if "query_loss" in one.metrics}
    pool = [steps for steps in best_at if not unknown[steps]] or list(best_at)
    lowest = min((loss[steps] for steps in pool if steps in loss), default=math.nan)
    enough = [steps for steps in pool if steps in loss and loss[steps] <= lowest + WORTH * abs(lowest)]
    best = best_at[min(enough or pool)]
    told = [
        f"Use {best.name} at {best.steps} steps (T = {best.steps * best.cell.options['inner_lr']:g}): {best.costs}.",
        f"  {best.call}" + (f" with am.MetaProblem(…, chunk_size={best.chunk_size})" if best.chunk_size else ""),
        f"Of the methods that fit in {size(memory_bytes)} and whose gradient is within {tolerance:.0%} of the "
        "flow's or the unrolled one's it is the fastest there.",
        _rechecked(best),
        *toppled,
    ]
    if not any("rel_error_flow" in one.metrics for one in whole if one.steps == best.steps):
        told.append(
            "The flow's gradient could not be found there within the evaluations allowed (kinks as of ReLU or "
            "max-pooling, or a stiff trajectory): methods that estimate it are judged by the unrolled one alone."
        )
    if unknown[best.steps]:
        told.append(f"Not measured whole there, and so not compared: {'; '.join(unknown[best.steps])}.")
    failed = [one for one in partly if one.steps == best.steps and one.failures]
    if failed:
        status, reason = next(iter(failed[0].failures.values()))
        told.append(f"Failed there: {'; '.join(one.name for one in failed)} ({status}: {reason})")
    others = ", ".join(f"{value:.3g} at {steps}" for steps, value in sorted(loss.items()) if steps != best.steps)
    if others and best.steps in loss:
        told.append(
            f"The query loss after {best.steps} steps is {loss[best.steps]:.3g}, against {others}: at the model's own "
            "start values and on one batch of tasks, so look again once it has been meta-trained."
        )
    if busy := max(one.busy for one in whole if one.steps == best.steps):
        told.append(
            f"The machine was busy while these were timed (others used up to {busy:.1f} cores): times may be longer "
            "than they need be, and another method the fastest on a quiet one."
        )
    if best.target == "surrogate":
        told.append("It stands in for a gradient: its direction was judged, not its length, so tune the outer rate.")
    there = [one for one in whole if one.steps == best.steps and one is not best and one.bytes <= memory_bytes]
    lean = min((one for one in there if one in faithful), key=lambda one: one.bytes, default=None)
    if lean is not None and lean.bytes < best.bytes:
        told.append(f"With less memory: {lean.name} ({lean.costs}).")
    cheap = min((one for one in there if one not in faithful), key=lambda one: one.seconds, default=None)
    if cheap is not None and cheap.seconds < best.seconds:
        cosine = f"; cosine {cheap.metrics['cosine_unrolled']:.2f}" if "cosine_unrolled" in cheap.metrics else ""
        told.append(f"Cheaper, but farther off: {cheap.name} ({cheap.costs}{cosine}).")
    too_big = [one.name for one in found if one.steps == best.steps and _out(one, memory_bytes)]
    if too_big:
        told.append(f"Too big for {size(memory_bytes)}: {'; '.join(too_big)}.")
    elsewhere = [
        f"{one.name} at {steps} steps ({one.costs})" for steps, one in sorted(best_at.items()) if one is not best
    ]
    if elsewhere:
        told.append(f"At the other lengths: {'; '.join(elsewhere)}.")
    return Advice(best, told)


def _rechecked(best: Candidate) -> str:
    """What the error of the recommended one is worth."""
    if best.rechecked:
        return (
            f"Its gradient was looked at again on {len(SEEDS)} other batches of tasks, from start values of their own "
            f"where your function draws them: at worst {best.error:.1e} from the nearer of the two."
        )
    return (
        f"Its gradient was looked at on {1 + len(best.again)} and not {1 + len(SEEDS)} batches of tasks: for others "
        "there was no time, or they failed; run it again with more --minutes."
    )


def _toppled(one: Candidate) -> str:
    """Why what came first is not recommended."""
    why = f"it is {one.error:.1e} from the nearer of the two" if "error" not in one.failures else "it diverged"
    return f"{one.name} at {one.steps} steps came before, but on other tasks {why}: it is not to be relied on."


def _outcome(one: Candidate, memory_bytes: int, tolerance: float) -> str:
    """Of one that is not recommended, in a word or two."""
    if _out(one, memory_bytes):
        return "too big"
    if one.failures:
        return next(iter(one.failures.values()))[0]
    if math.isnan(one.bytes + one.seconds + one.error):
        return "not measured whole"
    for code in ("not_converged", "inaccurate"):
        if f"{code}_tasks" in one.metrics:
            return code.replace("_", " ")
    return "too far off" if one.error > tolerance else ""


def _out(one: Candidate, memory_bytes: int) -> bool:
    """Whether it was measured to need more memory than the budget has."""
    return one.bytes > memory_bytes


def _nothing(found: Sequence[Candidate], whole: Sequence[Candidate], memory_bytes: int, tolerance: float) -> str:
    """Why there is no recommendation, and what to do."""
    near = min(whole, key=lambda one: one.error, default=None)
    if near is not None:
        return (
            f"No method fits in {size(memory_bytes)} with a gradient within {tolerance:.0%}; the nearest is "
            f"{near.name} at {near.steps} steps ({near.costs}). Raise --memory, --minutes or --tolerance."
        )
    if found and all(_out(one, memory_bytes) for one in found):
        least = min(found, key=lambda one: one.bytes)
        return (
            f"No method fits in {size(memory_bytes)}; the leanest is {least.name} at {least.steps} steps, which takes "
            f"{size(least.bytes)}. Raise --memory."
        )
    reasons = Counter(reason for one in found for _, reason in one.failures.values())
    if reasons:
        return f"No method was measured to the end; mostly because: {reasons.most_common(1)[0][0]}"
    return "No method was measured to the end; allow more --minutes or shorter --steps."


def table(found: Sequence[Candidate]) -> Table:
    """What was measured, for the terminal."""
    shown = Table(title=None, box=None, pad_edge=False)
    shown.add_column("steps", justify="right")
    shown.add_column("method", overflow="fold")
    shown.add_column("target")
    for heading in ("memory", "seconds", "to flow", "to unrolled", "query loss"):
        shown.add_column(heading, justify="right")
    shown.add_column("not ok", overflow="fold")
    for one in found:
        numbers = [one.metrics.get(name) for name in ("rel_error_flow", "rel_error_unrolled", "query_loss")]
        failed = sorted({status for status, _ in one.failures.values()})
        codes = ("not converged", "inaccurate")
        stuck = [code for code in codes if f"{code.replace(' ', '_')}_tasks" in one.metrics]
        shown.add_row(
            str(one.steps),
            one.name,
            one.target,
            size(one.bytes) if one.bytes == one.bytes else "–",
            f"{one.seconds:.3g}" if one.seconds == one.seconds else "–",
            *(f"{number:.2g}" if number is not None else "–" for number in numbers),
            ", ".join(failed or stuck),
        )
    return shown
