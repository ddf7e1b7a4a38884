"""The derivative that every engine takes: autograd's, a product with the transposed Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def vector_jacobian(value: Tensor, u: Tensor, direction: Tensor, *, keep: bool) -> Tensor:
    """(∂value/∂u)ᵀ direction by autograd; zero where value does not depend on u. ``keep``: more products follow."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(value, u, direction, retain_graph=keep, materialize_grads=True)[0]


@dataclass(frozen=True)
class Half:
    """Of a differentiable step: (u, …) -> step(u, …), or (u, …, v) -> (∂step(u, …)/∂u)ᵀ v, both from the start."""

    step: Callable[..., tuple[Tensor, ...]]
    product: bool

    def __call__(self, inner: Any, u: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        """See ``amaml_core.inner.Step``."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (value,) = self.step(inner, u, *(tensors[:-1] if self.product else tensors))
        return (vector_jacobian(value, u, tensors[-1], keep=False) if self.product else value.detach(),)
