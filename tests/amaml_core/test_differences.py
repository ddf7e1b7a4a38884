import pytest
import torch

from amaml_core.differences import beside, disagreements, off, product_error, repeats, slope_error

POINT = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)


def wave(u):
    return u.sin().prod()


def gradient(u):
    u = u.detach().requires_grad_()
    return torch.autograd.grad(wave(u), u)[0]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_what_autograd_makes_of_a_smooth_function_agrees(dtype, near):
    slope, product = disagreements(wave, POINT.to(dtype), 0.0)
    assert slope < near
    assert product < near


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_gradient_that_is_a_tenth_off_is_told_as_that(share):
    errors = [slope_error(wave, share * gradient(POINT), POINT, seed=seed) for seed in range(8)]
    assert 0.02 < sum(errors) / 8 < 0.2


def test_a_product_that_is_a_tenth_off_is_told_as_about_that():
    hessian = torch.autograd.functional.hessian(wave, POINT)
    assert product_error(gradient, lambda v: hessian @ v, POINT) < 1e-8
    errors = [product_error(gradient, lambda v: 0.9 * (hessian @ v), POINT, seed=seed) for seed in range(8)]
    assert 0.01 < sum(errors) / 8 < 0.1


def test_a_kink_within_a_long_step_is_passed_over_by_a_shorter_one():
    slope, product = disagreements(lambda u: (u - 0.3 - 1e-7).abs().sum() + u.square().sum(), POINT, 0.0)
    assert slope < 1e-6
    assert product < 1e-6


def test_what_torch_holds_is_not_moved():
    """The second entry does not move in training, whatever the loss makes of it: its gradient is zero."""
    held = gradient(POINT) * torch.tensor([1.0, 0.0, 1.0])
    assert slope_error(wave, held, POINT) < 1e-8


def test_numbers_that_are_not_finite_agree_with_nothing():
    assert slope_error(lambda u: u.sum() * torch.nan, torch.ones(3), POINT) == float("inf")


def test_how_far_off_is_relative_to_what_is_right():
    assert off(1.1 * POINT, POINT) == pytest.approx(0.1)
    assert off(torch.zeros(3), torch.zeros(3)) == 0
    assert not off(torch.full((3,), torch.nan), POINT) <= 1e9


def test_a_call_repeats_where_all_bits_are_the_same_or_no_numbers():
    assert repeats(POINT, POINT.clone())
    assert not repeats(POINT, POINT * (1 + 1e-15))
    assert repeats(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))
    assert not repeats(torch.tensor([1.0, torch.nan]), torch.tensor([2.0, torch.nan]))


def test_the_point_beside_a_zero_is_nowhere_on_an_axis():
    moved = beside(torch.zeros(2, 5), 1e-2)
    assert moved.abs().min() > 0
    assert moved.abs().max() <= 1e-4
