"""Synthetic records: what a run would have left, from laws that the tests know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.records import Cell, Record, Store

ENVIRONMENT = {
    "counter_key": "torch 2.6.0 | cpu",
    "timing_key": "torch 2.6.0 | cpu | Example CPU | 8 cores | 4 threads",
    "cpu": "Example CPU",
    "cores": 8,
    "memory_bytes": 2**34,
    "packages": {"torch": "2.6.0", "numpy": "2.2.0"},
    "load": 0.1,
}

TARGETS = {
    "maml": "unrolled",
    "remat-maml": "unrolled",
    "amaml": "flow",
    "adjoint": "flow",
    "autodiff": "unrolled",
    "imaml": "stationary",
    "fomaml": "surrogate",
    "reptile": "surrogate",
    "diffrax": "flow",
    "jax-maml": "unrolled",
    "loop-maml": "unrolled",
    "loop-fomaml": "surrogate",
}


def make_record(
    probe: str = "memory",
    method: str = "maml",
    problem: str = "cosmixture",
    *,
    options: dict[str, Any] | None = None,
    problem_options: dict[str, Any] | None = None,
    status: str = "ok",
    reason: str = "",
    metrics: dict[str, float] | None = None,
    samples: dict[str, list[float]] | None = None,
    environment: dict[str, Any] | None = None,
    version: str = "abc123",
    started_at: str = "2026-01-01T00:00:00+00:00",
    target: str | None = None,
    sweep: str = "",
    **cell: Any,
) -> Record:
    """One record; what is not given is plain."""
    asked = Cell(
        problem=problem,
        problem_options={"shots": 100, "samples": 1} if problem_options is None else problem_options,
        method=method,
        options={"inner_steps": 100, "inner_lr": 0.01} | (options or {}),
        probe=probe,
        **cell,
    )
    return Record(
        benchmark_version=version,
        sweep=sweep or probe,
        cell_id=asked.cell_id,
        cell=asked,
        target=TARGETS.get(method, "") if target is None else target,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        metrics=metrics or {},
        samples=samples or {},
        environment=ENVIRONMENT | (environment or {}),
        started_at=started_at,
        duration_s=1.0,
    )


def fill(directory: Path, records: list[Record]) -> Path:
    """A store of these records."""
    with Store(directory).writer() as writer:
        for record in records:
            writer.append(record)
    return directory


def amaml(states: int | None = 50, backward: str = "modified_euler") -> dict[str, Any]:
    """Resolved options of amaml."""
    return {"forward": "dopri5", "backward": backward, "num_states": states, "rtol": 1e-5, "prox": 0.0}


# name, options, memory law (bytes at n steps), time law (seconds), error to the flow and to the unrolled gradient
METHODS: list[tuple[str, dict[str, Any], Any, Any, float, float]] = [
    ("maml", {}, lambda n: 80_000 * n + 200_000, lambda n: 1.1e-3 * n, 4e-3, 3e-8),
    ("remat-maml", {"segment": 1}, lambda n: 24_000 * n + 300_000, lambda n: 1.5e-3 * n, 4e-3, 3e-8),
    ("remat-maml", {"segment": "sqrt"}, lambda n: 90_000 * n**0.5 + 300_000, lambda n: 1.7e-3 * n, 4e-3, 3e-8),
    ("fomaml", {}, lambda n: 250_000, lambda n: 4e-4 * n, 0.4, 0.41),
    ("reptile", {}, lambda n: 220_000, lambda n: 3.9e-4 * n, 0.9, 0.91),
    ("imaml", {"variant": "paper-gd", "lam": 1.0}, lambda n: 270_000, lambda n: 4.2e-4 * n + 2e-3, 0.3, 0.31),
    ("amaml", amaml(), lambda n: 1_300_000, lambda n: 0.02 + 1e-4 * n, 2e-4, 4.1e-3),
    ("amaml", amaml(backward="rk4"), lambda n: 1_350_000, lambda n: 0.03 + 1e-4 * n, 3e-6, 4e-3),
    ("amaml", amaml(None), lambda n: 24_000 * n + 250_000, lambda n: 1.4e-3 * n, 9e-7, 4e-3),
]


def cost_records(steps: list[int]) -> list[Record]:
    """E3 and the errors beside it; maml's largest update runs out of memory."""
    records = []
    for n in steps:
        for method, extra, memory, time, flow, unrolled in METHODS:
            common = {"method": method, "options": {"inner_steps": n} | extra}
            if method == "maml" and n == max(steps) and len(steps) > 1:
                records.append(
                    make_record("memory", status="oom", reason="needs more memory | than there is", **common)
                )
            else:
                live = {"peak_live_bytes": memory(n), "states_stored": n}
                records.append(make_record("memory", metrics=live, **common))
            raw = [time(n) * (1 + 0.02 * i) for i in range(-2, 3)]
            took = {"outer_update_seconds": time(n)}
            records.append(make_record("time", metrics=took, samples={"outer_update_seconds": raw}, **common))
            if n >= 20:
                stuck = {"not_converged_tasks": 100} if method == "imaml" else {}
                found = {"rel_error_flow": flow, "rel_error_unrolled": unrolled, "cosine_unrolled": 1 - unrolled**2 / 2}
                asked = {"shots": 100, "samples": 20}  # more samples do not make it another update
                records.append(make_record("error", metrics=found | stuck, problem_options=asked, **common))
                counted = {"grad_evals": n, "hvp_evals": 0 if method in ("fomaml", "reptile") else n}
                records.append(make_record("counts", metrics=counted, **common))
    return records


def error_record(error: float, **rest: Any) -> Record:
    """An error with a spread of a tenth over 20 samples."""
    raw = [error * (1 + 0.1 * (-1) ** i) for i in range(20)]
    return make_record("error", metrics={"rel_error_flow": error}, samples={"rel_error_flow": raw}, **rest)


def closed_form_records(ode: str, horizons: list[float], states: list[int]) -> list[Record]:
    """E1: second order, down to rounding."""
    records = []
    for horizon in horizons:
        for k in states:
            for dtype, floor in (("float32", 2e-7), ("float64", 1e-15)):
                options = {"inner_steps": k, "inner_lr": horizon / k}
                error = 0.3 * horizon**3 * k**-2.0 * 100 + floor
                common = {"problem": "closed_form", "problem_options": {"ode": ode, "samples": 20}, "dtype": dtype}
                schemes = amaml(k) | options
                records.append(error_record(error, method="adjoint", options=schemes, **common))
                records.append(
                    error_record(2 * error, method="autodiff", options=options | {"forward": "heun"}, **common)
                )
    return records


def cosmixture_records(horizons: list[float], states: list[int]) -> list[Record]:
    """E2: schemes of order 1, 2 and 4, unstable where h·9 > 2 (2.78 for rk4)."""
    records = []
    for horizon in horizons:
        for k in states:
            for backward, order, limit in (("euler", 1, 2.0), ("modified_euler", 2, 2.0), ("rk4", 4, 2.78)):
                steps = round(horizon / 0.01)
                common = {
                    "method": "amaml",
                    "options": amaml(k, backward) | {"inner_steps": steps},
                    "problem_options": {"shots": 100, "samples": 20},
                    "dtype": "float64",
                }
                if 9 * horizon / k > limit:
                    remedy = f"100 of 100 tasks: The backward {backward} steps are unstable; raise num_states."
                    records.append(make_record("error", status="diverged", reason=remedy, **common))
                else:
                    records.append(error_record((horizon / k) ** order + 1e-10, **common))
    return records


def priced(
    method: str,
    seconds: float | None,
    error: float | None = None,
    *,
    engine: str = "own",
    sweep: str = "work_precision",
    size: float = 2.0**20,
    more: dict[str, float] | None = None,
    **rest: Any,
) -> list[Record]:
    """The records of one update of the work-precision sweeps: its error to its own target, its time, its memory."""
    common = {"method": method, "engine": engine, "sweep": sweep} | rest
    target = common.get("target", TARGETS.get(method))
    made = [make_record("allocator", metrics={"peak_allocated_bytes": size}, **common)]
    if error is not None:
        made.append(make_record("error", metrics={f"rel_error_{target}": error}, **common))
    if seconds is not None:
        made.append(make_record("time", metrics={"outer_update_seconds": seconds} | (more or {}), **common))
    return made


def tolerances(rtol: float, forward: str = "rk43") -> dict[str, Any]:
    """Resolved options of amaml on the solver's own steps."""
    return amaml("accepted", "rk4") | {"forward": forward, "rtol": rtol, "atol": rtol / 100}  # type: ignore[arg-type]


def precision_records(horizons: list[float]) -> list[Record]:
    """Ours under both engines beside other libraries: cheaper by a third compiled, dearer by a half in diffrax."""
    records = []
    for horizon in horizons:
        steps = {"inner_steps": round(horizon / 0.01)}
        for power in (2, 3, 4, 5):
            rtol, law = 10.0**-power, 0.004 * horizon * 2**power
            for engine, seconds in (("eager", law), ("compiled", law / 3)):
                more = {"compile_seconds": 14.0} if engine == "compiled" else {}
                options = steps | tolerances(rtol)
                records += priced("amaml", seconds, 2 * rtol, engine=engine, options=options, more=more)
            options = steps | {"solver": "bosh3", "rtol": rtol, "atol": rtol / 100}
            records += priced("diffrax", law / 2, 3 * rtol, options=options)
        for method, engine, factor in (("maml", "eager", 1.1), ("maml", "compiled", 0.4), ("loop-maml", "own", 8.0)):
            for sweep in ("work_precision", "peers"):
                seconds = factor * horizon / 10
                records += priced(method, seconds, 3e-7, engine=engine, sweep=sweep, options=steps, size=1e7 * horizon)
    return records


def trained(
    problem: str,
    method: str,
    errors: list[float],
    *,
    shots: int = 10,
    test_steps: int = 50,
    inner_steps: int | None = None,
    seed: int = 1,
    variant: str | None = None,
    seconds: float = 100.0,
    status: str = "ok",
    size: float | None = None,
    more: dict[str, Any] | None = None,
    more_options: dict[str, Any] | None = None,
    **rest: Any,
) -> Record:
    """One training and its test: the given nRMSE on each test task, which it approaches as 1 + 1/look."""
    ratings = not problem.endswith("_training")
    spread = 4.0 if ratings else 2.0
    mean = sum(errors) / max(len(errors), 1)
    options = {"inner_steps": inner_steps or test_steps, "inner_lr": 0.01} | ({"variant": variant} if variant else {})
    options |= {"forward": "rk43", "backward": "discrete", "num_states": "accepted"} if method == "amaml" else {}
    options |= more_options or {}
    asked = {"shots": shots, "queries": shots + 5, "test_steps": test_steps, "outer_updates": 5000, "samples": 1}
    asked |= {"normaliser": "range" if ratings else "task-std", "outer_lr": 1e-3} | (more or {})
    looks = [0.0, 50.0, 500.0, 5000.0]
    samples = {
        "rmse": [spread * error for error in errors],
        "target_std": [spread] * len(errors),
        "target_rms": [3.5] * len(errors),
        "query_count": [40.0] * len(errors),
    }
    metrics = {"nrmse": mean, "excluded_tasks": 0} | ({"target_range": 4.0} if ratings else {})
    if target := TARGETS.get(method, ""):
        samples |= {
            "rmse_in_sample": [0.5 * spread * error for error in errors],
            "curve_steps": [0.0, 1.0, float(test_steps)],
            "curve_nrmse": [3 * mean, 2 * mean, mean],
            "curve_std": [0.1, 0.1, 0.1],
            "learning_updates": looks,
            "learning_seconds": [seconds * look / 5000 for look in looks],
            "learning_nrmse": [4 * mean, 2 * mean, 1.5 * mean, mean],
            "train_loss": [2.0, 1.0],
        }
        metrics |= {"outer_updates": 5000, "train_seconds": seconds}
        metrics |= {"peak_allocated_bytes": size} if size else {}
    return make_record(
        "quality",
        method,
        problem,
        options=options,
        problem_options=asked,
        metrics=metrics if status == "ok" else {},
        samples=samples if status == "ok" else {},
        target=target or "guess",
        status=status,
        reason="" if status == "ok" else "At update 3: lower the outer rate.",
        seed=seed,
        engine="compiled",
        sweep="train_ratings" if ratings else "train_regression",
        **rest,
    )


def training_records() -> list[Record]:
    """A-MAML is the best on MovieLens and second to iMAML on CosMixture; one method diverges; a memory is known."""
    rng = np.random.default_rng(0)
    common = rng.uniform(0.15, 0.25, 20)
    made = []
    for problem, lead in (("movielens_100k", 0.02), ("cosmixture_training", -0.02)):
        for seed in (1, 2):
            noise = rng.normal(0, 0.005, (6, 20))
            errors = common + seed / 1000 + noise
            made += [
                trained(problem, "amaml", list(errors[0]), seed=seed, seconds=40.0, size=2.0**20),
                trained(problem, "imaml", list(errors[1] + lead), seed=seed, variant="paper-gd", size=2.0**18),
                trained(problem, "maml", list(errors[2] + 0.05), seed=seed, inner_steps=5, seconds=5.0),
                trained(problem, "maml", list(errors[3] + 0.001), seed=seed, seconds=400.0, size=2.0**27),
                trained(problem, "reptile", [], seed=seed, status="diverged"),
                trained(problem, "item-mean", list(errors[4] + 0.03), seed=seed),
                trained(problem, "amaml", list(errors[5] - 0.05), seed=seed, more={"outer_lr": 1e-2}),
            ]
    return made
