"""What a profile said of a user's own problem."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bench.advise.document import Document, Measured
from reports import words
from reports.evidence import Evidence
from reports.section import Notice, Section
from reports.tables import Table, make_table

WORDS = ("method", "target", "outcome")


def section(evidence: Evidence) -> Section:
    """Each recommendation, and what it rests on; nothing where no profile was made."""
    return Section(
        "advice",
        "What to use",
        "",
        "amaml-bench profile measured every method at every length, within the memory and the time that it was "
        "given. Recommended is the fastest of those that fit and whose gradient is near enough, at the shortest length "
        "that lowers the query loss as far as any. A method is judged by the distance to the nearer of the flow's "
        "gradient and the unrolled one, the worst on all batches of tasks that were looked at; a surrogate by that of "
        "its direction alone, the sine of the angle.",
        [_table(one) for one in evidence.advice],
        notices=[_notice(one) for one in evidence.advice],
    )


def _notice(told: Document) -> Notice:
    best = next((one for one in told.measured if one.outcome == "recommended"), None)
    if told.recommendation is None or best is None:
        lead, *points = told.told or ["Nothing was measured."]
        return Notice(f"{told.factory}: no method will do", lead, points=points)
    call = told.recommendation.call
    return Notice(
        f"{told.factory}: {best.name}, {_steps(best.options)} steps",
        facts=_facts(best, told),
        code=_code(call, told.recommendation.chunk_size),
        points=[line for line in told.told[1:] if not line.startswith(call)],
    )


def _code(call: str, chunk_size: int | None) -> str:
    """The method, and the problem where it has to be made in a way of its own."""
    problem = [f"problem = am.MetaProblem(model, loss, chunk_size={chunk_size})"] if chunk_size else []
    return "\n".join([*problem, f"method = {call}"])


def _facts(best: Measured, told: Document) -> list[tuple[str, str]]:
    found = best.metrics
    error = "exact by design" if best.error is None else words.error(best.error)
    batches = f"{1 + best.checks} batches" if best.checks else "1 batch"
    return [
        ("time per update", words.seconds(_known(found, "outer_update_seconds"))),
        (f"peak memory, of {words.size(told.memory_bytes)} allowed", words.size(_known(found, "peak_allocated_bytes"))),
        (f"worst error on {batches} of tasks", error),
        ("query loss after adaptation", words.three(_known(found, "query_loss"))),
    ]


def _table(told: Document) -> Table:
    rows = [
        {
            "method": one.name,
            "steps": _steps(one.options),
            "target": one.target or words.MISSING,
            "peak memory": words.size(_known(one.metrics, "peak_allocated_bytes")),
            "time per update": words.seconds(_known(one.metrics, "outer_update_seconds")),
            "error to flow": words.error(_known(one.metrics, "rel_error_flow")),
            "error to unrolled": words.error(_known(one.metrics, "rel_error_unrolled")),
            "judged by": words.error(math.nan if one.error is None else one.error),
            "query loss": words.three(_known(one.metrics, "query_loss")),
            "outcome": one.outcome,
        }
        for one in told.measured
    ]
    return make_table(f"All that was measured of {told.factory}", rows, WORDS)


def _steps(options: Mapping[str, object]) -> str:
    return str(options.get("inner_steps", words.MISSING))


def _known(metrics: Mapping[str, float | int], name: str) -> float:
    return metrics.get(name, math.nan)
