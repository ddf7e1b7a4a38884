"""What a gradient of a flow costs at the error that it has, and whether the error that was asked for was met."""

from __future__ import annotations

import torch

from amaml_core.methods.accuracy import PRICES
from bench.probes import oracles
from bench.probes.base import Measurement
from bench.probes.error import relative_error
from bench.problems.base import MetaBenchProblem
from bench.records import Cell

UPDATES = 2  # the first finds what the next ones use


def measure(problem: MetaBenchProblem, cell: Cell) -> Measurement:
    """Errors and prices of a first update and of the next, a sample each; how many met a ``grad_rtol``, and were told.

    A price is in gradients of the inner loss, each batch of tasks one: what linearises counts one more, a
    Hessian-vector product two.
    """
    result = Measurement()
    asked = cell.options.get("grad_rtol", 0.0)
    samples: dict[str, list[float]] = {name: [] for name in ("rel_error", "next_rel_error", "price", "next_price")}
    met = unmet_told = draws = 0
    for sample in range(problem.samples):
        references = oracles.references(problem, cell, sample)
        if "flow" not in references:  # DOP853 cannot follow it
            continue
        update = problem.update(cell, sample)
        for prefix in ("", "next_"):
            out = update()
            finite = bool(torch.isfinite(out.grad).all())
            error = relative_error(out.grad.double().cpu(), references["flow"]) if finite else float("inf")
            draws += 1
            met += error <= asked
            unmet_told += error > asked and any(status != "ok" for status in out.status)
            if finite:
                samples[f"{prefix}rel_error"].append(error)
                samples[f"{prefix}price"].append(sum(price * out.stats.get(name, 0) for name, price in PRICES.items()))
    result.metrics["draws"] = draws
    if asked:
        result.metrics |= {"met_draws": met, "unmet_told_draws": unmet_told}
    result.samples = samples
    result.metrics |= {
        name: sum(values) / len(values) for name, values in samples.items() if len(values) == draws / UPDATES
    }
    return result
