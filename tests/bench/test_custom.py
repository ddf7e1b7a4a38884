import pytest
import torch

from amaml_core import InputError
from bench.problems import custom, make_problem
from bench.records import Cell

SMALL = """
import torch, amaml_core as am
def make():
    model = torch.nn.Linear(2, 1)
    return am.MetaProblem(model, torch.nn.functional.mse_loss), sample
def sample(seed):
    x = torch.randn(3, 8, 2)  # the global generator, on purpose
    y = (x**2).sum(-1, keepdim=True)
    return am.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])
nothing = lambda: None
def no_tasks():
    return make()[0], lambda seed: seed
def broken():
    raise KeyError("mine")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SMALL)
    return path


def cell_of(problem, **options):
    options = {"inner_steps": 4, "inner_lr": 0.05} | options
    return Cell(problem="custom", method="maml", options=options, probe="error", dtype="float64")


def test_the_same_seed_makes_the_same_problem_and_another_another(file):
    problem = make_problem("custom", {"factory": f"{file}:make"})
    (_, theta, tasks), (_, theta_again, tasks_again) = (problem.instance(1, 0) for _ in range(2))
    assert torch.equal(theta, theta_again)
    assert torch.equal(tasks.support_x, tasks_again.support_x)
    assert not torch.equal(theta, problem.instance(1, 1)[1])
    assert not torch.equal(tasks.support_x, problem.instance(2, 0)[2].support_x)


def test_the_caller_keeps_its_random_numbers(file):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_problem("custom", {"factory": f"{file}:make"}).instance(0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_both_references_are_found_and_maml_is_its_own(file):
    problem = make_problem("custom", {"factory": f"{file}:make"})
    cell = cell_of(problem)
    found = problem.references(cell, 0)
    assert set(found) == {"flow", "unrolled"}
    torch.testing.assert_close(problem.update(cell, 0)().grad, found["unrolled"])
    assert 1e-4 < float((found["flow"] - found["unrolled"]).norm() / found["flow"].norm()) < 0.5


def test_a_flow_that_would_take_too_long_is_left_out(file, monkeypatch):
    monkeypatch.setattr(custom, "MAX_EVALUATIONS", 10)
    problem = make_problem("custom", {"factory": f"{file}:make"})
    assert set(problem.references(cell_of(problem, inner_lr=0.06), 0)) == {"unrolled"}


def test_a_changed_file_asks_another_question(file):
    before = make_problem("custom", {"factory": f"{file}:make"})
    file.write_text(SMALL + "# more\n")
    assert make_problem("custom", {"factory": f"{file}:make"}) != before
    with pytest.raises(InputError, match="has changed"):
        make_problem("custom", {"factory": f"{file}:make", "source": before.source})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch", "no function 'nosuch'"),
        ("nothing", "must return"),
        ("no_tasks", "not a TaskBatch"),
        ("a b", "FILE.py:NAME"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(file, name, words):
    with pytest.raises(InputError, match=words):
        make_problem("custom", {"factory": f"{file}:{name}"}).instance(0, 0)


@pytest.mark.parametrize(("factory", "words"), [("nowhere.py:make", "no file"), ("make", "FILE.py:NAME")])
def test_a_file_that_is_not_there_is_refused(factory, words):
    with pytest.raises(InputError, match=words):
        make_problem("custom", {"factory": factory})
