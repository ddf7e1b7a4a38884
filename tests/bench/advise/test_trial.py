import pytest
import torch

import amaml_core as am
from bench.advise import trial

FILE = """
import torch
import amaml_core as am


def make():
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return am.MetaProblem(model, torch.nn.functional.mse_loss), sample


def sample(seed):
    generator = torch.Generator().manual_seed(seed)
    x, shift = torch.randn(4, 10, 1, generator=generator), torch.randn(4, 1, 1, generator=generator)
    y = torch.sin(2 * x) + 3 + 0.1 * shift
    return am.TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])
"""


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return f"{tmp_path / 'mine.py'}:make"


def run(factory, directory, seconds=3.0, say=lambda note: None):
    options = {"steps": 2, "inner_lr": 0.01, "outer_lr": 0.02, "seconds": seconds}
    return trial.run(factory, **options, directory=directory, device="cpu", say=say)


def test_every_method_trains_and_ends_better_than_it_began(factory, tmp_path):
    told = []
    problem, trials = run(factory, tmp_path / "out", say=told.append)
    assert [one.name for one in trials] == ["no training", "maml", "fomaml", "reptile", "imaml", "amaml"]
    assert all(one.score < trials[0].score for one in trials[1:])
    assert all(one.updates >= 1 for one in trials[1:])
    assert len(trials[0].losses) == 32
    assert "ends best" in trial.verdict(trials)[0]
    plain = am.create_method("maml", inner_steps=2, inner_lr=0.01)
    tasks = trial.Custom(factory=factory).sampler(torch.float32)(1_000_000)
    right = plain.adapt(problem, trials[1].theta, tasks).query_loss
    assert torch.allclose(trials[1].losses[:4], right.double())


def test_what_was_spent_before_counts(factory, tmp_path):
    _, first = run(factory, tmp_path / "out", seconds=2.0)
    _, again = run(factory, tmp_path / "out", seconds=2.0)
    for before, after in zip(first[1:], again[1:], strict=True):
        assert before.updates <= after.updates <= before.updates + 1


def test_starts_that_cannot_be_told_apart_are_told_as_equal():
    theta, noise = torch.zeros(1), torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best, near, far = (trial.Trial(n, theta, 1 + s + 0.1 * noise.roll(i)) for i, (n, s) in enumerate(
        [("best", 0.0), ("near", 0.001), ("far", 0.5)]
    ))  # fmt: skip
    told = trial.verdict([far, near, best])
    assert "start by best" in told[0]
    assert told[1].endswith("near.")
    assert "No training helped" in trial.verdict([trial.Trial("no training", theta, noise), far])[0]
    lost = trial.Trial("lost", theta, torch.full((3,), torch.nan))
    assert "No start has finite losses" in trial.verdict([lost])[0]
    assert min([lost, far], key=lambda one: one.score) is far
