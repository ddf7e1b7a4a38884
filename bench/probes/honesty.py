"""Whether a status and an estimate of the error tell the truth: counted over many draws."""

from __future__ import annotations

from collections import Counter

import torch

from amaml_core.methods.accuracy import KINKS
from bench.probes import oracles
from bench.probes.base import Measurement
from bench.probes.error import relative_error
from bench.problems.base import MetaBenchProblem
from bench.records import Cell

FAR, NEAR = 0.1, 0.01  # relative errors that must not be "ok", and that should be
BEYOND = 3.0  # times its estimate, which an error should not exceed
KINKED = KINKS.partition("(")[0]  # how the word on kinks begins
ROUNDING = 1e-7  # errors below are the reference's own


def measure(problem: MetaBenchProblem, cell: Cell) -> Measurement:
    """Counts of draws, a sample each, by what was told of them and what is true."""
    result, counted = Measurement(), Counter[str]()
    errors: list[float] = []
    for sample in range(problem.samples):
        references = oracles.references(problem, cell, sample)
        if not references:  # a flow that DOP853 cannot follow
            continue
        out = problem.update(cell, sample)()
        reference = references.get("flow", references.get("unrolled"))
        assert reference is not None
        finite = bool(torch.isfinite(out.grad).all())
        error = relative_error(out.grad.double().cpu(), reference) if finite else float("inf")
        told, estimate = out.status[0], getattr(out, "error_estimate", None)
        counted["draws"] += 1
        counted["near_draws"] += error <= NEAR
        counted["far_draws"] += error > FAR
        # by the reference that has no jumps it may be right all the same, and is no gradient of the flow
        across = "flow" not in references and told == "inaccurate" and told.remedy.startswith(KINKED)
        counted["kinked_draws"] += across
        counted["alarmed_draws"] += error <= NEAR and told != "ok" and not across
        if told == "ok":
            counted["ok_draws"] += 1
            counted["missed_draws"] += error > FAR
            if estimate is not None:
                counted["estimated_draws"] += 1
                counted["exceeded_draws"] += error > max(BEYOND * float(estimate[0]), ROUNDING)
        if finite:
            errors.append(error)
    names = ("draws", "near_draws", "far_draws", "alarmed_draws", "kinked_draws", "ok_draws", "missed_draws")
    result.metrics |= {name: counted[name] for name in (*names, "estimated_draws", "exceeded_draws")}
    result.samples = {"rel_error": errors}
    return result
