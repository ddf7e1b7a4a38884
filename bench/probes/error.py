"""How far a gradient is from the float64 reference of each target."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from bench.probes import oracles
from bench.probes.base import Measurement
from bench.problems.base import BenchProblem, MetaBenchProblem
from bench.records import Cell


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """Relative L2 errors, as they are and as estimated, cosines, query loss; a metric is the mean of its samples."""
    result = Measurement()
    if isinstance(problem, MetaBenchProblem) and problem.reference_dtype() != torch.float64:
        result.reason = f"References in {problem.reference_dtype()}: model or loss hold tensors of their own dtype."
    samples: dict[str, list[float]] = defaultdict(list)
    statuses = []
    for sample in range(problem.samples):
        out = problem.update(cell, sample)()
        statuses += out.status
        grad = out.grad.double().cpu()
        if not bool(torch.isfinite(grad).all()):
            continue
        samples["query_loss"].append(float(out.query_loss.mean()))
        estimate = getattr(out, "error_estimate", None)
        if estimate is not None and bool(torch.isfinite(estimate).all()):  # infinite where it could not be had
            samples["error_estimate"].append(float(estimate.mean()))
        known = problem.known_references(cell, sample)
        if isinstance(problem, MetaBenchProblem):
            known |= oracles.references(problem, cell, sample)
        for target, reference in known.items():
            samples[f"rel_error_{target}"].append(relative_error(grad, reference))
            if grad.numel() > 1 and target != "stationary":
                samples[f"cosine_{target}"].append(cosine(grad, reference))
    result.judge(statuses)
    # a mean over the samples that stayed finite would flatter the method: without all of them there is none
    result.samples = dict(samples)
    result.metrics |= {k: sum(v) / len(v) for k, v in samples.items() if len(v) == problem.samples}
    return result


def relative_error(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ / ‖reference‖."""
    return float((value - reference).norm() / reference.norm())


def cosine(value: Tensor, reference: Tensor) -> float:
    """⟨value, reference⟩ / (‖value‖ ‖reference‖); zero where either is zero."""
    return float(torch.nn.functional.cosine_similarity(value, reference, dim=0))
