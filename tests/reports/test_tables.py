import pytest

from reports import tables
from reports.load import tabulate
from reports.paper import published
from reports.summary import closed_form_study, comparisons, error_points, scalings


@pytest.mark.parametrize("status", ["diverged", "oom", "timeout", "crashed", "skipped"])
def test_a_failure_stands_in_its_cell_with_its_reason(make, status):
    made = [make("memory", metrics={"peak_live_bytes": 2048}), make("time", status=status, reason="because")]
    (row,) = tables.overview(comparisons(tabulate(made))[0]).rows
    assert row[2:4] == ["2.00 KiB", status]
    assert row[-1] == f"time: {status} (because)"


def test_what_did_not_converge_is_told(make):
    made = [make("error", "imaml", metrics={"rel_error_flow": 0.1, "not_converged_tasks": 5})]
    assert tables.overview(comparisons(tabulate(made))[0]).rows[0][-1] == "ok; not converged: 5 tasks"


def test_precisions_in_one_table_are_named(make):
    made = [make("memory", dtype="float32"), make("error", dtype="float64")]
    assert "precision" in tables.overview(comparisons(tabulate(made))[0]).columns
    assert "precision" not in tables.overview(comparisons(tabulate(made[:1]))[0]).columns


def test_errors_stand_beside_the_published(error_at):
    made = [
        error_at(
            0.3, method=method, problem="closed_form", problem_options={}, options={"inner_steps": 10, "inner_lr": 0.2}
        )
        for method in ("adjoint", "autodiff")
    ]
    table = tables.errors("", error_points(closed_form_study(tabulate(made))), published("table4"))
    assert table.columns == [
        "T", "states", "adjoint, published", "adjoint, float32", "autodiff, published", "autodiff, float32",
    ]  # fmt: skip
    assert table.rows == [
        ["2", "10", "2.92e-1 ± 1.41e-7", "3.00e-1 ± 3.08e-2", "4.74e-1 ± 4.13e-3", "3.00e-1 ± 3.08e-2"]
    ]


def test_diverged_cells_read_so_and_missing_ones_are_dashes(make, error_at):
    made = [
        error_at(0.1, method="amaml", options={"num_states": 10, "backward": "euler"}),
        make("error", "amaml", options={"num_states": 10, "backward": "rk4"}, status="diverged"),
        error_at(0.1, method="amaml", options={"num_states": 20, "backward": "euler"}),
    ]
    assert [row[3] for row in tables.errors("", error_points(tabulate(made)), {}).rows] == ["diverged", "–"]


def test_scaling_shows_the_failure_at_the_reference(make):
    made = [
        make("memory", options={"inner_steps": 500}, status="oom"),
        make("memory", "fomaml", options={"inner_steps": 500}, metrics={"peak_live_bytes": 2048}),
    ]
    (law,) = scalings(tabulate(made), "memory")
    assert tables.scaling(law, "memory").rows == [
        ["fomaml", "–", "1", "2.00 KiB", "–", "none"],
        ["maml", "–", "0", "oom", "–", "oom at 500"],
    ]


def test_every_failure_is_listed(make):
    made = [make(seed=1), make(seed=2, status="crashed", reason="signal 9"), make(seed=3, status="timeout")]
    table = tables.failures(tabulate(made))
    assert sorted(row[-2:] for row in table.rows) == [["crashed", "signal 9"], ["timeout", "no reason given"]]


def test_an_environment_shows_what_its_records_agree_on(make):
    made = [make(seed=1, environment={"load": 0.5}), make(seed=2, environment={"load": 0.7})]
    (row,) = tables.environments(tabulate(made)).rows
    assert row[1] == "2"
    assert "torch 2.6.0" in row[2]
    assert "memory 16.0 GiB" in row[2]
    assert "load" not in row[2]
