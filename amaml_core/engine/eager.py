"""The derivative that every engine takes: autograd's, a product with the transposed Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor


def vector_jacobian(value: Tensor, u: Tensor, direction: Tensor, *, keep: bool) -> Tensor:
    """(∂value/∂u)ᵀ direction by autograd; zero where value does not depend on u. ``keep``: more products follow."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(value, u, direction, retain_graph=keep, materialize_grads=True)[0]
