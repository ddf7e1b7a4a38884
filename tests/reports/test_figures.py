import pytest

from reports import figures


def test_a_method_keeps_its_colour_and_its_variants_differ():
    alone, both = figures.styles([("maml", "maml")]), figures.styles([("maml", "maml"), ("amaml", "amaml (rk4)")])
    assert alone["maml"]["color"] == both["maml"]["color"]
    three = figures.styles(("amaml", label) for label in "abc")
    assert len({(style["color"], style["marker"]) for style in three.values()}) == 3


@pytest.mark.parametrize(
    ("low", "high", "binary"), [(4e-3, 6.0, False), (4e-3, 9e-3, False), (3e5, 3e8, True), (3e5, 5e5, True)]
)
def test_few_ticks_fit_under_a_panel(low, high, binary):
    ticks = figures.few_ticks(low, high, binary)
    assert 2 <= len(ticks) <= 4
    assert all(low <= tick <= high for tick in ticks)
