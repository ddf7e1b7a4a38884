import pytest

from reports import figures
from reports.analysis.costs import scalings
from reports.load import tabulate
from reports.sections.laws import law_figure, law_table
from reports.sections.memory import MEMORY


def costs(make, method, laws, options=None):
    return [
        make(probe, method, options={"inner_steps": n} | (options or {}), metrics={metric: law(n)})
        for n in (20, 500)
        for probe, metric, law in zip(
            ("memory", "time"), ("peak_live_bytes", "outer_update_seconds"), laws, strict=True
        )
    ]


def test_the_adjoint_is_set_against_maml(make, told):
    made = costs(make, "maml", (lambda n: 2048.0 * n, lambda n: 0.01 * n))
    made += costs(make, "amaml", (lambda n: 10240.0, lambda n: 1.0), {"backward": "euler", "num_states": 50})
    memory, time = told(made)
    assert "amaml (euler, 50 states) uses 1.00 % of that (10.0 KiB)" in memory
    assert "0.00 for amaml (euler, 50 states), 1.00 for maml" in memory
    assert "takes 20.0 % of that (1.00 s)" in time


def test_one_variant_speaks_for_memory_and_time(make, told):
    made = costs(make, "maml", (lambda n: 1000.0 * n, lambda n: 0.01 * n))
    made += costs(make, "remat-maml", (lambda n: 10.0 * n, lambda n: 0.03 * n), {"segment": "sqrt"})
    made += costs(make, "remat-maml", (lambda n: 90.0 * n, lambda n: 0.02 * n), {"segment": 1})
    assert all("segment=sqrt" in line and "segment=1)" not in line for line in told(made))


def laws(make, steps):
    return scalings(
        tabulate([make("memory", options={"inner_steps": n}, metrics={"peak_live_bytes": 1000.0 * n}) for n in steps]),
        "memory",
    )


def test_a_figure_is_drawn_the_same_twice_and_carries_no_date(make):
    (law,) = laws(make, [1, 10, 100])
    first, second = (law_figure(law, MEMORY, figures.styles([("maml", "maml")])) for _ in range(2))
    assert first == second
    assert first.png.startswith(b"\x89PNG")
    assert b"<dc:date>" not in first.svg


def test_nothing_is_drawn_through_a_single_point(make):
    (law,) = laws(make, [10])
    assert law_figure(law, MEMORY, figures.styles([("maml", "maml")])) is None


def test_pyplot_knows_nothing_of_our_figures(make):
    plt = pytest.importorskip("matplotlib.pyplot")
    (law,) = laws(make, [1, 10])
    before = dict(plt.rcParams)
    law_figure(law, MEMORY, figures.styles([("maml", "maml")]))
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_scaling_shows_the_failure_at_the_reference(make):
    made = [
        make("memory", options={"inner_steps": 500}, status="oom"),
        make("memory", "fomaml", options={"inner_steps": 500}, metrics={"peak_live_bytes": 2048}),
    ]
    (law,) = scalings(tabulate(made), "memory")
    assert law_table(law, MEMORY).rows == [
        ["fomaml", "–", "1", "2.00 KiB", "–", "none"],
        ["maml", "–", "0", "oom", "–", "oom at 500"],
    ]
