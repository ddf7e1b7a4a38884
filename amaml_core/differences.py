"""How far apart two results are; central differences: what a derivative must agree with, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amaml_core.engine.eager import vector_jacobian

# the best first; the more kinks, the shorter it takes to meet none
STEPS = {torch.float64: (1e-6, 1e-8, 1e-9, 1e-5), torch.float32: (1e-2, 3e-2, 3e-3, 1e-1)}
Function = Callable[[Tensor], Tensor]


def off(found: Tensor, right: Tensor) -> float:
    """The norm of the difference, relative to that of what is right."""
    return float((found - right).norm() / right.norm().clamp_min(torch.finfo(right.dtype).tiny))


def repeats(first: Tensor, second: Tensor) -> bool:
    """Whether two calls give the same bits; on the GPU, where sums have no fixed order, about the same."""
    near = {} if first.is_cuda else {"rtol": 0.0, "atol": 0.0}
    return torch.allclose(first, second, equal_nan=True, **near)


def ripple(u: Tensor) -> Tensor:
    """A direction, of u's shape, that no structure of a model is likely to have."""
    return torch.cos(torch.arange(u.numel(), dtype=u.dtype, device=u.device) + 1).view_as(u)


def beside(u: Tensor, share: float) -> Tensor:
    """A point at that share of u's size from u: on no kink that a special start may lie on."""
    return u + share * _scale(u) * ripple(u)


def slope_error(value: Function, gradient: Tensor, u: Tensor, *, enough: float = 0.0, seed: int = 0) -> float:
    """How far ⟨gradient, v⟩ is from the slope of a scalar function along v, relative to the gradient's norm.

    For random signs v (by the seed) that error has the size of the gradient's own. Where the gradient is exactly zero v
    is zero too: torch holds what it does not differentiate (a padding row, what is detached), and so do we. A kink
    within one step is passed over by another: of several lengths the nearest counts, or the first that is near enough.
    """
    v = _signs(gradient != 0, seed).to(u.dtype) * _scale(u)
    size = _scale(u) * gradient.norm() + torch.finfo(u.dtype).tiny

    def error(h: float) -> float:
        slope = (value(u + h * v) - value(u - h * v)).detach() / (2 * h)
        return float((slope - (gradient * v).sum()).abs() / size)

    return _least(error, u, enough)


def product_error(gradient: Function, product: Function, u: Tensor, *, enough: float = 0.0, seed: int = 0) -> float:
    """How far ⟨w, ∂g/∂u v⟩ is from the change of the gradient along v, for random signs w and v, relative to its size.

    The product is w -> (∂g/∂u)ᵀ w: where something is detached the gradient's derivative is not symmetric, and this is
    its transpose all the same. The rest is as in ``slope_error``.
    """
    at = gradient(u)
    v, w = _signs(at != 0, seed).to(u.dtype) * _scale(u), _signs(at != 0, seed + 1000).to(u.dtype)
    mine = product(w)

    def error(h: float) -> float:
        change = (gradient(u + h * v) - gradient(u - h * v)) / (2 * h)
        rounding = 1e3 * torch.finfo(u.dtype).eps / h * at.norm()
        size = _scale(u) * mine.norm() + change.norm() + rounding + torch.finfo(u.dtype).tiny
        return float(((mine * v).sum() - (w * change).sum()).abs() / size)

    return _least(error, u, enough)


def gradient_at(value: Function, u: Tensor, *, keep: bool = False) -> tuple[Tensor, Tensor]:
    """A leaf in the place of u, and the gradient of a scalar function there, with its graph where it is kept."""
    with torch.enable_grad():
        at = u.detach().requires_grad_()
        return at, torch.autograd.grad(value(at), at, create_graph=keep)[0]


def disagreements(value: Function, u: Tensor, enough: float) -> tuple[float, float]:
    """Both errors of what autograd makes of a scalar function at u; the second is zero where nothing depends on u."""
    at, first = gradient_at(value, u, keep=True)
    with torch.no_grad():
        slope = slope_error(value, first.detach(), u, enough=enough)
    product = lambda v: vector_jacobian(first, at, v, keep=True)  # noqa: E731
    return slope, product_error(lambda at: gradient_at(value, at)[1], product, u, enough=enough)


def _least(error: Callable[[float], float], u: Tensor, enough: float) -> float:
    found = float("inf")
    for h in STEPS.get(u.dtype, STEPS[torch.float32]):
        now = error(h)
        found = min(found, now if now == now else float("inf"))
        if found <= enough:
            break
    return found


def _signs(where: Tensor, seed: int) -> Tensor:
    """Random signs, zero where ``where`` is not set."""
    signs = torch.randint(2, where.shape, generator=torch.Generator().manual_seed(seed))
    return (2 * signs - 1).to(where.device) * where


def _scale(u: Tensor) -> float:
    return float(u.square().mean().sqrt()) + 1e-2
