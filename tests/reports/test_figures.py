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


def test_few_ticks_are_few_over_all_floats():
    assert len(figures.few_ticks(1e-99, 1e99, False)) <= 4


def test_a_text_is_shown_as_it_is_on_one_line_and_cut():
    assert figures.lettering(r"$\frac{$") == r"\$\frac{\$"
    assert figures.lettering("a\nb\tc") == "a b c"
    assert figures.lettering("x" * 3000) == "x" * 99 + "…"


def test_a_logarithmic_axis_is_given_what_fits_it():
    x, y = figures.fitting([1, 2, 3, 4, 5], [1.0, 0.0, -1.0, 1e300, float("nan")])
    assert (x.tolist(), y.tolist()) == ([1], [1.0])


def test_the_name_of_a_file_is_made_of_words_and_not_too_long():
    assert figures.file_name("Work precision", "a/b (shots=5)") == "work-precision-a-b-shots-5"
    assert len(figures.file_name("x" * 3000)) == 60
