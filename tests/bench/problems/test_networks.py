import pytest
import torch

from amaml_core import InputError, Status
from amaml_core.methods.accuracy import KINKS
from bench.probes.honesty import measure
from bench.problems import make_problem
from bench.problems.networks import KINDS
from bench.records import Cell


def cell(problem, **options):
    every, _ = problem.resolve_method("amaml", {"inner_steps": 10, "inner_lr": 0.05} | options)
    about = {"problem": "networks", "method": "amaml", "options": every, "probe": "honesty", "dtype": "float64"}
    return Cell(**about, problem_options={"kind": problem.kind, "samples": problem.samples, "examples": 6})


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_follows_from_seed_and_number(kind):
    problem = make_problem("networks", {"kind": kind, "examples": 6})
    (_, theta, tasks), (_, again, same), (_, other, others) = (problem.instance(0, sample) for sample in (4, 4, 5))
    assert torch.equal(theta, again)
    assert torch.equal(tasks.support_y, same.support_y)
    assert not torch.equal(tasks.support_x, others.support_x)
    assert theta.shape != other.shape or not torch.equal(theta, other)


def test_near_the_optimum_the_gradient_is_small():
    problem = make_problem("networks", {"kind": "mlp"})
    sizes = []
    for sample in (0, 6):  # fresh, and near the optimum
        network, theta, tasks = problem.instance(0, sample)
        theta = theta.clone().requires_grad_()
        loss = network.losses(network.inner_loss, theta[None], (tasks.support_x, tasks.support_y)).sum()
        sizes.append(float(torch.autograd.grad(loss, theta)[0].norm()))
    assert sizes[1] < 0.3 * sizes[0]


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="mlp"):
        make_problem("networks", {"kind": "forest"})


def test_good_and_bad_settings_are_told_apart():
    problem = make_problem("networks", {"kind": "mlp", "samples": 3, "examples": 6})
    fine = measure(problem, cell(problem, forward="rk4", backward="rk4", num_states=40, estimate_error=True)).metrics
    assert fine["draws"] == fine["ok_draws"] == fine["near_draws"] == fine["estimated_draws"] == 3
    assert fine["missed_draws"] == fine["alarmed_draws"] == fine["exceeded_draws"] == 0
    bad = measure(problem, cell(problem, inner_steps=400, inner_lr=0.05, num_states=4)).metrics
    assert bad["far_draws"] == 3
    assert bad["ok_draws"] == bad["missed_draws"] == 0


def test_a_lie_is_counted(monkeypatch):
    """Statuses that say ok to everything."""
    problem = make_problem("networks", {"kind": "mlp", "samples": 2, "examples": 6})
    options = {"inner_steps": 400, "inner_lr": 0.05, "num_states": 4, "estimate_error": False}
    monkeypatch.setattr("amaml_core.methods.base._judged", lambda done, flags, inner: ["ok"] * len(done.u))
    assert measure(problem, cell(problem, **options)).metrics["missed_draws"] == 2


@pytest.mark.parametrize(("kind", "kinked", "alarmed"), [("relu", 1, 0), ("mlp", 0, 1)])
def test_a_word_on_kinks_is_a_false_alarm_where_there_are_none(monkeypatch, kind, kinked, alarmed):
    problem = make_problem("networks", {"kind": kind, "samples": 1, "examples": 6})
    told = Status("inaccurate", KINKS.format(0.5))
    monkeypatch.setattr("amaml_core.methods.accuracy._verdict", lambda *_: told)
    options = {"inner_steps": 2, "forward": "rk4", "backward": "rk4", "num_states": 20, "estimate_error": True}
    found = measure(problem, cell(problem, **options)).metrics
    assert (found["near_draws"], found["ok_draws"]) == (1, 0)
    assert (found["kinked_draws"], found["alarmed_draws"]) == (kinked, alarmed)
