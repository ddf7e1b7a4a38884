import math

import pytest

from reports.analysis.arithmetic import log_slope, mean, ratio, spread


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_slope_of_a_power_law_is_its_power(power):
    steps = [20, 50, 100, 1000]
    assert log_slope(steps, [3 * n**power for n in steps]) == pytest.approx(power, abs=1e-12)


def test_no_slope_of_a_single_point():
    assert math.isnan(log_slope([20], [1.0]))


@pytest.mark.parametrize("values", [[1.0, 0.0], [1.0, -1.0], [1.0, math.inf]])
def test_no_slope_of_what_has_no_logarithm(values):
    assert math.isnan(log_slope([20, 50], values))


def test_means_and_spreads_are_of_what_is_known():
    assert mean([1.0, math.nan, 3.0]) == 2.0
    assert spread([1.0, math.nan, 3.0]) == pytest.approx(math.sqrt(2))
    assert math.isnan(mean([math.nan]))
    assert math.isnan(spread([1.0, math.nan]))
    assert spread([1e300, -1e300]) == math.inf


def test_a_ratio_to_zero_is_unknown():
    assert ratio(3.0, 2.0) == 1.5
    assert math.isnan(ratio(1.0, 0.0))
