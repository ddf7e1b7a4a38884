import json
import time
from pathlib import Path

from stand_ins import HALF

from bench.advise import profile
from bench.advise.document import ADVICE
from bench.records import Store

INSERT = "import os, sys\nsys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))\nimport helper\n"


def test_the_template_is_a_problem_that_can_be_profiled(shell, tmp_path):
    """Less than half a minute is not enough for all cells, and the profile keeps to it.

    The user's folder holds packages that are called as ours are: ours come first, in every process.
    """
    for package in ("amaml_core", "bench", "reports"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "mine.py").write_text(INSERT + shell("profile", "--template").stdout)
    began = time.monotonic()
    done = shell("profile", "mine.py:my_problem", "--steps", "2,4,8", "--minutes", "0.4", "--out", "store", "--quiet")
    assert done.returncode == (0 if "Use " in done.stdout else 4), done.stderr
    assert time.monotonic() - began < 34
    assert ("Use " in done.stdout) != ("No method" in done.stdout)
    assert "Not measured" in done.stdout
    records, _ = Store(tmp_path / "store").read()
    assert {record.cell.problem_options["factory"] for record in records} == {"mine.py:my_problem"}
    assert {record.status for record in records} == {"ok"}


OWN = """
import torch
import amaml_core as am


def make():
    model = torch.nn.Sequential(torch.nn.Linear(2, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 1))
    return am.MetaProblem(model, torch.nn.functional.mse_loss), sample


def sample(seed):
    x = torch.randn(6, 8, 2, generator=torch.Generator().manual_seed(seed))
    return am.TaskBatch(x, x.prod(-1, keepdim=True), x + 1, x.sum(-1, keepdim=True))
"""


def test_a_program_can_read_the_recommendation_and_tasks_one_at_a_time_are_tried_before_too_big(
    cli, tmp_path, monkeypatch
):
    every = profile.plan_cells
    only = lambda *args, **own: [cell for cell in every(*args, **own) if cell.method == "maml"]  # noqa: E731
    monkeypatch.setattr(profile, "plan_cells", only)
    (tmp_path / "mine.py").write_text(OWN.replace("WIDTH", "64"))
    done = cli("profile", "mine.py:make", "--steps", "1", "--memory", "35kB", "--minutes", "3", "--json", "--out", "s")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["recommendation"]["chunk_size"] == 1
    assert json.loads(Path("s", ADVICE).read_text()) == said
    whole = [row for row in said["measured"] if row["chunk_size"] is None]
    assert all(row["metrics"]["peak_allocated_bytes"] > 35_000 for row in whole if row["metrics"])
    assert "chunk_size=1" in " ".join(said["told"])


def test_a_model_whose_derivatives_are_wrong_is_not_profiled(cli, tmp_path):
    loss = "lambda p, t: (Half.apply(p) - t).square().mean()), sample" + HALF
    (tmp_path / "mine.py").write_text(OWN.replace("WIDTH", "4").replace("torch.nn.functional.mse_loss), sample", loss))
    done = cli("profile", "mine.py:make")
    assert done.returncode == 2
    assert "off central differences" in done.stderr
