import pytest

from reports import figures
from reports.load import tabulate
from reports.summary import comparisons, scalings


def laws(make, steps):
    return scalings(
        tabulate([make("memory", options={"inner_steps": n}, metrics={"peak_live_bytes": 1000.0 * n}) for n in steps]),
        "memory",
    )


def test_a_figure_is_drawn_the_same_twice_and_carries_no_date(make):
    (law,) = laws(make, [1, 10, 100])
    first, second = (figures.scaling(law, "memory", "m", figures.styles([("maml", "maml")])) for _ in range(2))
    assert first == second
    assert first.png.startswith(b"\x89PNG")
    assert b"<dc:date>" not in first.svg


def test_nothing_is_drawn_through_a_single_point(make):
    (law,) = laws(make, [10])
    assert figures.scaling(law, "memory", "m", figures.styles([("maml", "maml")])) is None


def test_no_trade_off_without_both_error_and_cost(make):
    (found,) = comparisons(tabulate([make("memory", metrics={"peak_live_bytes": 1.0})]))
    assert figures.trade_off(found, "t", figures.styles([("maml", "maml")])) is None


def test_a_method_keeps_its_colour_and_its_variants_differ():
    alone, both = figures.styles([("maml", "maml")]), figures.styles([("maml", "maml"), ("amaml", "amaml (rk4)")])
    assert alone["maml"]["color"] == both["maml"]["color"]
    three = figures.styles(("amaml", label) for label in "abc")
    assert len({(style["color"], style["marker"]) for style in three.values()}) == 3


def test_pyplot_knows_nothing_of_our_figures(make):
    plt = pytest.importorskip("matplotlib.pyplot")
    (law,) = laws(make, [1, 10])
    before = dict(plt.rcParams)
    figures.scaling(law, "memory", "m", figures.styles([("maml", "maml")]))
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before
