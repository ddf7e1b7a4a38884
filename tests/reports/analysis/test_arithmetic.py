import math

import pytest

from reports.analysis.arithmetic import log_slope


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_slope_of_a_power_law_is_its_power(power):
    steps = [20, 50, 100, 1000]
    assert log_slope(steps, [3 * n**power for n in steps]) == pytest.approx(power, abs=1e-12)


def test_no_slope_of_a_single_point():
    assert math.isnan(log_slope([20], [1.0]))
