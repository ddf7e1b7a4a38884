import pytest

from amaml_core import METHODS, InputError
from bench.spec import EXPERIMENTS, SweepSpec, expand, list_sweeps, load_experiment, load_spec

GRID = {"probe": "error", "problem": "cosmixture", "method": "maml", "options": {"inner_steps": 2, "inner_lr": 0.1}}


def spec(*grids, **changes):
    return SweepSpec(name="test", description="", grid=[{**GRID, **changes}, *grids])


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_lists_are_swept_and_scalars_are_not():
    cells = expand(spec(method=["maml", "fomaml"], options={"inner_steps": [1, 2, 3], "inner_lr": 0.1}, seed=[0, 1]))
    assert len(cells) == len({cell.cell_id for cell in cells}) == 12


def test_options_are_fully_resolved():
    (cell,) = expand(spec(method="amaml"))
    assert cell.options["num_states"] == 2
    assert cell.options["backward"] == "modified_euler"
    assert cell.problem_options["shots"] == 100


def test_horizon_stands_for_the_missing_one_of_steps_and_rate():
    (by_steps,) = expand(spec(options={"inner_steps": 20, "horizon": 0.5}))
    (by_rate,) = expand(spec(options={"inner_lr": 0.025, "horizon": 0.5}))
    assert by_steps.cell_id == by_rate.cell_id


def test_the_engine_is_that_which_a_cell_really_runs_in():
    cells = expand(spec(method=["maml", "loop-maml"], engine=["eager", "graphed", "compiled"]))
    assert sorted((cell.method, cell.engine) for cell in cells) == [
        ("loop-maml", "own"),
        ("maml", "compiled"),
        ("maml", "eager"),
        ("maml", "graphed"),
    ]
    options = {"ode": "logistic"}
    (cell,) = expand(spec(problem="closed_form", problem_options=options, method="adjoint", engine="compiled"))
    assert cell.engine == "eager"


def test_replicates_interleave_the_methods():
    cells = expand(spec(method=["maml", "fomaml"], replicates=2))
    assert [(cell.method, cell.replicate) for cell in cells] == [
        ("maml", 0),
        ("fomaml", 0),
        ("maml", 1),
        ("fomaml", 1),
    ]


def test_equal_cells_of_two_grids_are_one():
    assert len(expand(spec(GRID))) == 1


def test_only_takes_an_id_a_part_of_the_label_or_a_pattern():
    wide = spec(method=["maml", "fomaml"])
    both = expand(wide)
    for pattern in (both[1].cell_id[:10], "/fomaml", "*fomaml*"):
        assert expand(wide, only=pattern) == [both[1]]


@pytest.mark.parametrize("name", list_sweeps())
def test_every_sweep_expands(name):
    cells = expand(load_spec(name))
    assert all({"inner_steps", "inner_lr"} <= cell.options.keys() for cell in cells)


def test_smoke_is_small_and_has_every_method():
    cells = expand(load_spec("smoke"))
    assert len(cells) <= 24
    assert {cell.method for cell in cells} >= set(METHODS)


def test_overrides_apply_to_every_grid():
    loaded = load_spec("smoke", {"options.inner_steps": [3], "seed": 5, "timeout_s": 7})
    assert loaded.timeout_s == 7
    assert {(cell.options["inner_steps"], cell.seed) for cell in expand(loaded)} == {(3, 5)}


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"method": "mamml"}, "mamml"),
        ({"problem": "cosmix"}, "cosmix"),
        ({"probe": "speed"}, "speed"),
        ({"dtype": "float16"}, "float16"),
        ({"engine": "auto"}, "engine 'auto'; choose one of eager, graphed, compiled"),
        ({"problem_options": {"shot": 3}}, "shot"),
        ({"problem_options": {"shots": 0}}, "shots"),
        ({"problem": "closed_form", "problem_options": {"ode": "lorenz"}, "method": "adjoint"}, "lorenz"),
        ({"problem": "closed_form"}, "maml"),
        ({"options": {"inner_steps": 2, "inner_lr": 0.1, "backwards": "rk4"}}, "backwards"),
        ({"options": {"inner_steps": 2}}, "inner_lr"),
        ({"options": {"inner_steps": 0, "inner_lr": 0.1}}, "inner_steps"),
        ({"options": {"inner_lr": 0.3, "horizon": 0.5}}, "horizon"),
        ({"options": {"inner_lr": 0.1, "inner_steps": 5, "horizon": 0.5}}, "horizon"),
    ],
)
def test_what_a_grid_cannot_mean_is_refused_by_name(changes, culprit):
    with pytest.raises(InputError, match=culprit):
        expand(spec(**changes))


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("description = 'x'\nmemory = 3\n[[grid]]\n", "memory"),
        ("description = 'x'\n[[grid]]\nprob = 'error'\n", "prob"),
        ("description = ", "TOML"),
        ("description = 'x'\n", "grid"),
    ],
)
def test_a_broken_sweep_file_is_refused_by_name(tmp_path, text, culprit):
    with pytest.raises(InputError, match=culprit):
        load_spec(write(tmp_path, text))


@pytest.mark.parametrize("name", ["nosuch", "nosuch.toml"])
def test_an_unknown_sweep_is_refused_by_name(name):
    with pytest.raises(InputError, match="nosuch"):
        load_spec(name)


@pytest.mark.parametrize("key", ["speed", "options", "options.a.b", "seed.x"])
def test_an_unknown_override_is_refused_by_name(key):
    with pytest.raises(InputError, match=key):
        load_spec("smoke", {key: 1})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_quick_experiment_leaves_out_what_runs_for_one_seed_only(name):
    whole, quick = load_experiment(name), load_experiment(name, quick=True)
    lists = [grid for grid in whole.grid if isinstance(grid.seed, list)]
    assert 0 < len(lists) < len(whole.grid)
    assert [(grid.problem, grid.method) for grid in quick.grid] == [(grid.problem, grid.method) for grid in lists]
    assert {grid.seed for grid in quick.grid} == {1}
