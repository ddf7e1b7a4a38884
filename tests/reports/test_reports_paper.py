import pytest

from reports.paper import published


@pytest.mark.parametrize(
    ("table", "method", "horizon", "states", "mean", "std"),
    [
        ("table4", "autodiff", 0.1, 10, 6.24e-7, 8.87e-8),
        ("table4", "adjoint", 2.0, 1000, 1.32e-5, 1.05e-6),
        ("table5", "amaml", 0.5, 100, 1.03e-3, 1.88e-4),
    ],
)
def test_published_numbers(table, method, horizon, states, mean, std):
    assert published(table)[method][horizon, states] == (mean, std)


def test_no_cell_of_the_published_tables_is_missing():
    assert [len(cells) for cells in published("table4").values()] == [28, 28]
    assert len(published("table5")["amaml"]) == 18
