import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from stand_ins import Quiet

import amaml_core as am
from bench.harness import runner
from bench.probes import quality
from bench.problems import make_problem, resolved_options
from bench.records import METRICS, Cell, Store

SMALL = {"shots": 8, "queries": 8, "train_tasks": 10, "test_tasks": 6, "test_queries": 12, "width": 6}
SMALL |= {"test_steps": 10, "outer_updates": 40, "tasks": 3}


def small_cell(method="maml", problem="cosmixture_training", seed=1, more=None, **options):
    asked = SMALL | (more or {})
    made = make_problem(problem, asked)
    resolved, _ = made.resolve_method(method, {"inner_steps": 4, "inner_lr": 0.05} | options)
    return Cell(
        problem=problem,
        problem_options=resolved_options(made),
        method=method,
        options=resolved,
        probe="quality",
        seed=seed,
        dtype="float64",
    )


def measured(cell, **rest):
    return quality.measure(make_problem(cell.problem, cell.problem_options), cell, **rest)


def test_the_error_is_that_of_training_and_gradient_descent_by_hand():
    cell = small_cell("fomaml")
    found = measured(cell)
    arena = make_problem(cell.problem, cell.problem_options).arena(1, torch.float64)
    optimizer = torch.optim.Adam([theta := arena.theta.clone().requires_grad_()], lr=1e-3)
    method = am.create_method("fomaml", **cell.options)
    for g in range(40):
        theta.grad = method.meta_gradient(arena.problem, theta.detach(), arena.batch(g)).grad
        optimizer.step()
    errors = []
    for b in range(6):
        model, task = arena.problem.model, arena.test[b : b + 1]
        model.load_state_dict(arena.problem.unflatten(theta.detach()))
        for _ in range(10):
            model.zero_grad()
            torch.nn.functional.mse_loss(model(task.support_x[0]), task.support_y[0]).backward()
            with torch.no_grad():
                for weight in model.parameters():
                    weight -= 0.05 * weight.grad
        off = model(task.query_x[0]).detach() - task.query_y[0]
        errors.append(float(off.square().mean().sqrt() / task.query_y[0].std(correction=0)))
    assert found.metrics["nrmse"] == pytest.approx(sum(errors) / 6, rel=1e-6)
    scaled = [e / s for e, s in zip(found.samples["rmse"], found.samples["target_std"], strict=True)]
    assert scaled == pytest.approx(errors, rel=1e-4)


def test_the_curves_fit_together():
    found = measured(small_cell())
    samples, metrics = found.samples, found.metrics
    assert metrics["outer_updates"] == 40
    assert samples["curve_steps"][0] == 0
    assert samples["curve_steps"][-1] == 10
    assert samples["learning_updates"][0] == 0
    assert samples["learning_updates"][-1] == 40
    assert samples["curve_nrmse"][-1] == pytest.approx(metrics["nrmse"], rel=1e-4)
    assert samples["learning_nrmse"][-1] == pytest.approx(metrics["nrmse"], rel=1e-4)
    assert samples["learning_seconds"] == sorted(samples["learning_seconds"])
    assert {len(samples[name]) for name in ("rmse", "rmse_in_sample", "target_std", "query_count")} == {6}
    json.dumps(samples, allow_nan=False)
    assert set(metrics) <= set(METRICS)


def test_every_method_meets_the_same_tasks_and_start():
    maml, reptile = measured(small_cell("maml")), measured(small_cell("reptile"))
    assert maml.samples["target_std"] == reptile.samples["target_std"]
    assert maml.samples["learning_nrmse"][0] == reptile.samples["learning_nrmse"][0]
    assert maml.samples["rmse"] != reptile.samples["rmse"]


def test_training_helps():
    found = measured(small_cell(more={"outer_updates": 300, "outer_lr": 5e-3}))
    assert found.samples["learning_nrmse"][-1] < 0.8 * found.samples["learning_nrmse"][0]


def test_a_guess_is_not_trained():
    found = measured(small_cell("shots-mean"))
    assert "outer_updates" not in found.metrics
    assert found.metrics["nrmse"] == pytest.approx(1.0, abs=0.2)  # about the standard deviation itself


def test_nrmse_of_ratings_is_over_their_range(ratings):
    more = {"items": 30, "test_tasks": 10}
    asked = {k: v for k, v in SMALL.items() if k not in ("train_tasks", "test_queries", "test_tasks")}
    made = make_problem("movielens_100k", asked | more)
    options, _ = made.resolve_method("item-mean", {"inner_steps": 4, "inner_lr": 0.05})
    cell = Cell(
        problem="movielens_100k",
        problem_options=resolved_options(made),
        method="item-mean",
        options=options,
        probe="quality",
        seed=1,
    )
    found = measured(cell)
    assert found.metrics["nrmse"] == pytest.approx(sum(found.samples["rmse"]) / 10 / 4, rel=1e-4)
    assert found.metrics["users_tasks"] == 70
    per_user = found.samples["query_count"]
    assert min(per_user) >= 20 - 8
    assert max(per_user) <= 30 - 8


def test_progress_is_told(monkeypatch):
    monkeypatch.setattr(quality, "TELL_S", 0.0)
    told = []
    measured(small_cell(), tell=lambda done, total: told.append((done, total)))
    assert told[-1] == (40, 40)


def test_divergence_is_a_row_with_the_last_good_theta():
    cell = small_cell("maml", more={"outer_lr": 1e200})
    found = measured(cell)
    assert found.status == "diverged"
    assert found.metrics["outer_updates"] < 40
    assert "At update" in found.reason


def test_a_problem_without_training_is_refused(make_cell):
    with pytest.raises(am.InputError, match="cosmixture"):
        measured(make_cell(probe="quality"))


def test_killed_and_run_again_it_ends_in_the_same_numbers(tmp_path, monkeypatch):
    """The runner with its workers dies in mid-training; a second run goes on and ends where an undisturbed one does."""
    cell = small_cell("fomaml", more={"outer_updates": 400})
    expected = measured(cell)
    sweep = tmp_path / "mine.toml"
    options = "\n".join(f"{k} = {v}" for k, v in (SMALL | {"outer_updates": 400}).items())
    sweep.write_text(
        f'description = "x"\n[[grid]]\nprobe = "quality"\nproblem = "cosmixture_training"\nmethod = "fomaml"\n'
        f'dtype = "float64"\nseed = 1\n[grid.options]\ninner_steps = 4\ninner_lr = 0.05\n'
        f"[grid.problem_options]\n{options}\n"
    )
    command = [sys.executable, "-m", "bench", "run", str(sweep), "--out", str(tmp_path / "store")]
    kept = tmp_path / "store" / "checkpoints"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(kept.glob(f"{cell.cell_id}-*/*.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = max(kept.glob("*/*.pt"))
    first.write_bytes(first.read_bytes()[:100])  # and the last checkpoint is damaged
    subprocess.run(command, check=True, capture_output=True)
    (record,) = Store(tmp_path / "store").read()[0]
    assert record.metrics["nrmse"] == expected.metrics["nrmse"]
    assert record.samples["rmse"] == expected.samples["rmse"]
    assert record.samples["train_loss"] == expected.samples["train_loss"]
    assert first.name in record.reason


def test_workers_tell_the_reporter_how_far_they_are(stub_bench, make_cell):
    reporter = Quiet()
    (record,) = stub_bench([make_cell("long")], reporter=reporter)
    assert record.metrics == {"flops": 3}
    assert reporter.progress == [("long", 10, 30), ("long", 20, 30)]


def test_missing_data_skip_the_cell_and_name_the_command(tmp_path, capfd):
    made = make_problem("jester", {})
    options, _ = made.resolve_method("item-mean", {"inner_steps": 4, "inner_lr": 0.05})
    cell = Cell(
        problem="jester", problem_options=resolved_options(made), method="item-mean", options=options, probe="quality"
    )
    store = Store(tmp_path)
    plan = runner.plan("test", [cell], store)

    records, _ = runner.run(plan, store, timeout_s=60, reporter=Quiet(), say=print)
    assert records[0].status == "skipped"
    assert "amaml-bench fetch jester" in records[0].reason
