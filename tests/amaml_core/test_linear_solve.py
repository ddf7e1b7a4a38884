import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import amaml_core as am


def positive_definite(batch: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(batch, size, size, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT + size * torch.eye(size, dtype=torch.float64)
    return matrix, torch.randn(batch, size, generator=generator, dtype=torch.float64)


def times(matrix):
    return lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(batch=st.integers(1, 4), size=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_as_many_steps_as_dimensions_solve_the_system(batch, size, seed):
    matrix, b = positive_definite(batch, size, seed)
    solution = am.conjugate_gradient(times(matrix), b, steps=size)
    assert torch.allclose(solution.x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-10)
    assert not solution.negative_curvature.any()
    assert (solution.residual < 1e-8).all()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_each_step_is_optimal_over_its_krylov_space(steps):
    matrix, b = positive_definite(2, 6, 0)
    solution = am.conjugate_gradient(times(matrix), b, steps=steps)
    for task in range(2):
        space = torch.stack([torch.linalg.matrix_power(matrix[task], k) @ b[task] for k in range(steps)], dim=1)
        weights = torch.linalg.solve(space.T @ matrix[task] @ space, space.T @ b[task])
        assert torch.allclose(solution.x[task], space @ weights, rtol=1e-8)
        residual = (b[task] - matrix[task] @ solution.x[task]).norm() / b[task].norm()
        assert torch.allclose(solution.residual[task], residual, rtol=1e-8)


def test_many_more_steps_than_dimensions_do_no_harm():
    matrix, b = positive_definite(3, 5, 1)
    solution = am.conjugate_gradient(times(matrix), b, steps=500)
    assert torch.allclose(solution.x, torch.linalg.solve(matrix, b), rtol=1e-10)
    assert not solution.negative_curvature.any()


def test_a_task_that_reached_its_tolerance_is_left_alone():
    matrix, b = positive_definite(2, 8, 2)
    matrix[0] = torch.eye(8, dtype=torch.float64)  # solved in one step
    calls = []
    solution = am.conjugate_gradient(lambda v: calls.append(v) or times(matrix)(v), b, steps=50, tol=1e-6)
    assert torch.allclose(solution.x[0], b[0], rtol=1e-15)
    assert torch.allclose(solution.x, torch.linalg.solve(matrix, b), rtol=1e-4)
    assert (solution.residual <= 1e-6).all()
    assert len(calls) <= 8


def test_neighbours_do_not_matter():
    matrix, b = positive_definite(3, 7, 3)
    together = am.conjugate_gradient(times(matrix), b, steps=4).x
    alone = [am.conjugate_gradient(times(matrix[i : i + 1]), b[i : i + 1], steps=4).x for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-12)


def test_a_zero_right_side_has_the_solution_zero():
    matrix, b = positive_definite(2, 4, 4)
    b[0] = 0
    solution = am.conjugate_gradient(times(matrix), b, steps=10)
    assert torch.equal(solution.x[0], torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(solution.x[1], torch.linalg.solve(matrix[1], b[1]), rtol=1e-9)
    assert solution.residual[0] == 0
    assert solution.negative_curvature.tolist() == [False, False]


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_sides_that_need_no_step_keep_their_dtype(value, dtype):
    solution = am.conjugate_gradient(lambda v: v, torch.full((2, 3), value, dtype=dtype), steps=5)
    assert (solution.x.dtype, solution.x.shape) == (dtype, (2, 3))
    assert (solution.x == 0).all() if value == 0 else solution.x.isnan().all()


def test_a_right_side_that_is_nan_is_not_taken_for_zero():
    matrix, b = positive_definite(3, 4, 6)
    b[1, 2] = torch.nan
    solution = am.conjugate_gradient(times(matrix), b, steps=4)
    assert solution.x[1].isnan().all()
    assert torch.allclose(solution.x[[0, 2]], torch.linalg.solve(matrix, b)[[0, 2]], rtol=1e-8)


def test_negative_curvature_stops_its_own_task_only():
    matrix, b = positive_definite(3, 4, 5)
    matrix[0] = -matrix[0]  # met at once: what is left is b, the direction of steepest descent
    matrix[1] = torch.diag(torch.tensor([1.0, 2.0, 3.0, -0.1], dtype=torch.float64))
    b[1] = 1.0
    solution = am.conjugate_gradient(times(matrix), b, steps=20)
    assert solution.negative_curvature.tolist() == [True, True, False]
    assert torch.equal(solution.x[0], b[0])
    assert (solution.x[1] * b[1]).sum() > 0
    assert torch.allclose(solution.x[2], torch.linalg.solve(matrix[2], b[2]), rtol=1e-9)
