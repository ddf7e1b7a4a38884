from reports.analysis.errors import closed_form_study, error_points
from reports.load import tabulate
from reports.paper import published
from reports.sections.errors import errors_table


def test_errors_stand_beside_the_published(error_at):
    made = [
        error_at(
            0.3, method=method, problem="closed_form", problem_options={}, options={"inner_steps": 10, "inner_lr": 0.2}
        )
        for method in ("adjoint", "autodiff")
    ]
    table = errors_table("", error_points(closed_form_study(tabulate(made))), published("table4"))
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
    assert [row[3] for row in errors_table("", error_points(tabulate(made)), {}).rows] == ["diverged", "–"]
