"""Central differences: what a derivative must agree with, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amaml_core.engine.eager import vector_jacobian

# the best first; the more kinks, the shorter it takes to meet none
STEPS = {torch.float64: (1e-6, 1e-8, 1e-9, 1e-5), torch.float32: (1e-2, 3e-2, 3e-3, 1e-1)}


def slope_error(
    value: Callable[[Tensor], Tensor], gradient: Tensor, u: Tensor, *, enough: float = 0.0, seed: int = 0
) -> float:
    """How far ⟨gradient, v⟩ is from the slope of a scalar function along v, relative to the gradient's norm.

    For random signs v that error has the size of the gradient's own. Where the gradient is exactly zero v is zero too:
    torch holds what it does not differentiate (a padding row, what is detached), and so do we. A kink within one step
    is passed over by another: of several lengths the nearest counts.

    Args:
        value: u -> a 0-d tensor.
        gradient: at u, of its shape.
        u: of any shape.
        enough: an error below which no other length is tried.
        seed: of the signs.
    """
    v = _signs(gradient != 0, seed).to(u.dtype) * _scale(u)
    size = _scale(u) * gradient.norm() + _tiny(u)

    def error(h: float) -> float:
        slope = (value(u + h * v) - value(u - h * v)) / (2 * h)
        return float((slope - (gradient * v).sum()).abs() / size)

    return _least(error, u, enough)


def product_error(
    gradient: Callable[[Tensor], Tensor],
    product: Callable[[Tensor], Tensor],
    u: Tensor,
    *,
    enough: float = 0.0,
    seed: int = 0,
) -> float:
    """How far ⟨w, ∂g/∂u v⟩ is from the change of the gradient along v, for random signs w and v, relative to its size.

    Where something is detached the gradient's derivative is not symmetric, and this is its transpose all the same.

    Args:
        gradient: u -> the gradient, of u's shape.
        product: w -> (∂g/∂u)ᵀ w.
        u: of any shape.
        enough: as in ``slope_error``.
        seed: likewise.
    """
    at = gradient(u)
    moves = at != 0
    v, w = (_signs(moves, seed).to(u.dtype) * _scale(u), _signs(moves, seed + 1000).to(u.dtype))
    mine = product(w)

    def error(h: float) -> float:
        change = (gradient(u + h * v) - gradient(u - h * v)) / (2 * h)
        rounding = 1e3 * torch.finfo(u.dtype).eps / h * at.norm()
        off = ((mine * v).sum() - (w * change).sum()).abs()
        return float(off / (_scale(u) * mine.norm() + change.norm() + rounding + _tiny(u)))

    return _least(error, u, enough)


def _least(error: Callable[[float], float], u: Tensor, enough: float) -> float:
    found = float("inf")
    for h in STEPS.get(u.dtype, STEPS[torch.float32]):
        now = error(h)
        found = min(found, now if now == now else float("inf"))
        if found <= enough:
            break
    return found


def disagreements(value: Callable[[Tensor], Tensor], u: Tensor, enough: float) -> tuple[float, float]:
    """Both errors of what autograd makes of a scalar function at u; the second is zero where nothing depends on u."""

    def gradient(at: Tensor, keep: bool = False) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            return at, torch.autograd.grad(value(at), at, create_graph=keep)[0]

    at, first = gradient(u, keep=True)
    with torch.no_grad():
        slope = slope_error(value, first.detach(), u, enough=enough)
    product = lambda v: vector_jacobian(first, at, v, keep=True)  # noqa: E731
    return slope, product_error(lambda at: gradient(at)[1], product, u, enough=enough)


def _signs(where: Tensor, seed: int) -> Tensor:
    """Random signs, zero where ``where`` is not set."""
    signs = torch.randint(2, where.shape, generator=torch.Generator().manual_seed(seed))
    return (2 * signs - 1).to(where.device) * where


def _scale(u: Tensor) -> float:
    return float(u.square().mean().sqrt()) + 1e-2


def _tiny(u: Tensor) -> float:
    return torch.finfo(u.dtype).tiny
