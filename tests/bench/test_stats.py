import pytest

from bench.stats import holm


def test_holm_on_an_example_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_a_probability_and_keeps_the_order():
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
