import pytest
import torch
from stand_ins import HALF

from amaml_core import InputError
from bench.advise.profile import check
from bench.probes import error, oracles
from bench.problems import custom, make_problem
from bench.records import Cell

SMALL = """
import itertools, numpy as np, torch, amaml_core as am
clock = itertools.count()
def make():
    model = torch.nn.Linear(2, 1)
    return am.MetaProblem(model, torch.nn.functional.mse_loss), sample
def sample(seed):
    x = torch.randn(3, 8, 2)  # the global generator, on purpose
    y = (x**2).sum(-1, keepdim=True)
    return am.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])
nothing = lambda: None
def with_numpy():
    return make()[0], lambda seed: am.TaskBatch(*[torch.tensor(np.random.rand(3, 4, n)).float() for n in (2, 1, 2, 1)])
def with_horizon():
    def timed(seed):
        tasks = sample(seed)
        return am.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, torch.ones(3))
    return make()[0], timed
def wrong_shape():
    return am.MetaProblem(torch.nn.Linear(3, 1), torch.nn.functional.mse_loss), sample
def unseeded():
    return make()[0], lambda seed: sample_from_the_clock()
def sample_from_the_clock():
    x = torch.full((1, 4, 2), float(next(clock)))
    return am.TaskBatch(x, x[..., :1], x, x[..., :1])
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


def test_numpy_is_seeded_too(file):
    problem = make_problem("custom", {"factory": f"{file}:with_numpy"})
    assert torch.equal(problem.instance(1, 0)[2].query_x, problem.instance(1, 0)[2].query_x)


@pytest.mark.parametrize(
    ("name", "words"),
    [("broken", "in line [0-9]+ .KeyError: 'mine'"), ("wrong_shape", "mend the shapes"), ("with_horizon", "leave it")],
)
def test_what_would_fail_in_every_cell_is_told_before_the_first(file, name, words):
    with pytest.raises(InputError, match=words):
        check(f"{file}:{name}", "cpu")


def test_a_problem_that_is_another_one_each_time_is_refused(file, monkeypatch):
    module = custom._load(str(file))  # loaded once, it keeps a count
    monkeypatch.setattr(custom, "_load", lambda path: module)
    with pytest.raises(InputError, match="seeded generator"):
        check(f"{file}:unseeded", "cpu")


def test_a_good_one_passes_and_tells_its_dtype(file):
    assert check(f"{file}:make", "cpu") == "float32"


def test_the_caller_keeps_its_random_numbers(file):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_problem("custom", {"factory": f"{file}:make"}).instance(0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_both_references_are_found_and_maml_is_its_own(file):
    problem = make_problem("custom", {"factory": f"{file}:make"})
    cell = cell_of(problem)
    found = oracles.references(problem, cell, 0)
    assert set(found) == {"flow", "unrolled"}
    torch.testing.assert_close(problem.update(cell, 0)().grad, found["unrolled"])
    assert 1e-4 < float((found["flow"] - found["unrolled"]).norm() / found["flow"].norm()) < 0.5


def test_a_flow_that_would_take_too_long_is_left_out(file, monkeypatch):
    monkeypatch.setattr(custom, "MAX_EVALUATIONS", 10)
    problem = make_problem("custom", {"factory": f"{file}:make"})
    assert set(oracles.references(problem, cell_of(problem, inner_lr=0.06), 0)) == {"unrolled"}


def test_a_changed_file_asks_another_question_and_one_that_is_not_imported_does_not(file):
    def found():
        return make_problem("custom", {"factory": f"{file}:make"})

    first = found()
    (file.parent / "helper.py").write_text("")
    assert found() == first
    file.write_text(SMALL.replace("Linear(2, 1)", "Linear(2, 1, bias=True)") + "def later():\n    import helper\n")
    second = found()
    (file.parent / "helper.py").write_text("from package import net")
    third = found()
    (file.parent / "package").mkdir()
    (file.parent / "package" / "net.py").write_text("")
    fourth = found()
    assert len({first, second, third, fourth}) == 4
    (file.parent / "package" / "other.py").write_text("")
    (file.parent / ".#mine.py").symlink_to("nowhere")  # an editor's lock
    assert found() == fourth
    with pytest.raises(InputError, match="has changed"):
        make_problem("custom", {"factory": f"{file}:make", "source": first.source})


def test_a_process_that_holds_an_old_module_makes_nothing_under_the_new_source(tmp_path):
    wide = SMALL.replace("Linear(2, 1)", "Linear(2, WIDTH)")
    (tmp_path / "mine.py").write_text(f"from width_of import WIDTH\n{wide}")
    (tmp_path / "width_of.py").write_text("WIDTH = 1")
    options = {"factory": f"{tmp_path / 'mine.py'}:make"}
    old = make_problem("custom", options)
    assert old.instance(0, 0)[0].dim == 3
    (tmp_path / "width_of.py").write_text("WIDTH = 5")
    new = make_problem("custom", options)
    for problem, words in ((new, "width_of.py has changed since this process loaded it"), (old, "has changed since")):
        with pytest.raises(InputError, match=words):
            problem.instance(0, 0)
    (tmp_path / "width_of.py").write_text("WIDTH = 1")
    assert old.instance(0, 0)[0].dim == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch", "no function 'nosuch'"),
        ("nothing", "must return"),
        ("no_tasks", "not a TaskBatch"),
        ("with_horizon", "leave it out"),
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


DTYPES = """
import torch, amaml_core as am
weights = torch.tensor([1.0, 2.0, 3.0])
def sample(seed):
    x = torch.randn(2, 6, 2)
    y = torch.randint(3, (2, 6))
    return am.TaskBatch(x, y, x + 1, y)
def module():
    return am.MetaProblem(torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss(weight=weights.clone())), sample
def function():
    return am.MetaProblem(torch.nn.Linear(2, 3), lambda p, t: torch.nn.functional.cross_entropy(p, t, weights)), sample
class Zeros(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = torch.nn.GRUCell(2, 3), torch.nn.Linear(3, 3)
    def forward(self, x):
        return self.out(self.cell(x, torch.zeros(len(x), 3)))
def zeros():
    return am.MetaProblem(Zeros(), torch.nn.functional.cross_entropy), sample
def wrong():
    return am.MetaProblem(torch.nn.Linear(2, 3), lambda p, t: Half.apply(p).square().mean()), sample
"""


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
@pytest.mark.parametrize(("name", "dtype"), [("module", "float64"), ("function", "float32"), ("zeros", "float32")])
def test_tensors_of_their_own_dtype_get_a_reference_in_it_and_the_record_says_so(name, dtype, tmp_path, make_cell):
    (tmp_path / "mine.py").write_text(DTYPES)
    options = {"factory": f"{tmp_path / 'mine.py'}:{name}"}
    problem = make_problem("custom", options)
    cell = make_cell("maml", "error").model_copy(update={"problem": "custom", "problem_options": options})
    found = error.measure(problem, cell)
    assert found.status == "ok"
    assert found.metrics["rel_error_unrolled"] < 1e-5
    assert ("References in torch.float32" in found.reason) == (dtype == "float32")


def test_cells_of_a_model_that_fails_its_check_are_skipped_whatever_they_measure(tmp_path, make_cell):
    (tmp_path / "mine.py").write_text(DTYPES + HALF)
    options = {"factory": f"{tmp_path / 'mine.py'}:wrong"}
    cell = make_cell("fomaml", "time").model_copy(update={"problem": "custom", "problem_options": options})
    with pytest.raises(InputError, match="off central differences"):
        make_problem("custom", options).update(cell, 0)
    with pytest.raises(InputError, match="off central differences"):  # by the verdict that was kept
        make_problem("custom", options).checked()
