import math

import pytest
import torch

from bench.problems import make_problem
from bench.problems.closed_form import ODES


@pytest.mark.parametrize("name", ODES)
def test_the_closed_forms_solve_their_odes(name):
    """Central difference of the solution in t against f, and y(0) = y₀."""
    ode = ODES[name]
    y0 = ode.start(torch.tensor([0.3, -0.8][: ode.dim], dtype=torch.float64))
    t, h = torch.tensor(0.7, dtype=torch.float64), 1e-5
    slope = (ode.solution(y0, t + h) - ode.solution(y0, t - h)) / (2 * h)
    torch.testing.assert_close(ode.solution(y0, torch.zeros_like(t)), y0)
    torch.testing.assert_close(slope, ode.f(t, ode.solution(y0, t)), rtol=1e-8, atol=1e-8)


def test_the_closed_form_gradient_is_the_papers(make_cell):
    problem = make_problem("closed_form", {"samples": 3})
    cell = make_cell("adjoint", inner_steps=10, inner_lr=0.1)
    y0, reference = problem._start(0, 1), problem.known_references(cell, 1)["flow"]
    y_end = 1 - 1 + (y0 - 1) * math.exp(-1)
    torch.testing.assert_close(reference, 6 * (y_end - 3) ** 5 * math.exp(-1))
