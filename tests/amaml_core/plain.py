"""Meta-gradients from modules that are trained as anybody would, and from differences of what comes out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import amaml_core as am


class Plain:
    """One model that is called, trained and read as it is: no vmap, no functional_call, no code of the suite.

    Args:
        model: of which this takes care.
        loss: (prediction, target) -> scalar.
        names: of the parameters that are trained.
        tasks: all of them.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], names: Any, tasks: am.TaskBatch) -> None:
        self.model, self.loss, self.tasks = model, loss, tasks
        own = dict(model.named_parameters())
        self.parameters = [own[name] for name in names]
        self.state = {name: value.clone() for name, value in model.state_dict().items()}

    def value(self, u: Tensor, task: int, part: str) -> Tensor:
        """The loss of a task at u, on a copy of its data."""
        x, y, *mask = (tree_map(lambda value: value[task].clone(), data) for data in getattr(self.tasks, part))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(self.state[name])
            for parameter, piece in zip(self.parameters, u.split([p.numel() for p in self.parameters]), strict=True):
                parameter.copy_(piece.view_as(parameter))
        if isinstance(x, dict):
            prediction = self.model(**x)
        else:
            prediction = self.model(*x) if isinstance(x, tuple) else self.model(x)
        if mask:
            prediction, y = prediction[mask[0]], y[mask[0]]
        return self.loss(prediction, y)

    def gradient(self, u: Tensor, task: int, part: str = "support") -> Tensor:
        """Of that loss, by torch.autograd."""
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            value = self.value(u, task, part)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, self.parameters)])

    def trained(self, theta: Tensor, task: int, steps: int, lr: float, lam: float = 0.0) -> Tensor:
        """u_K of gradient descent on the loss, plus λ/2‖u−θ‖² where that is asked for."""
        u = theta
        for _ in range(steps):
            u = u - lr * (self.gradient(u, task) + lam * (u - theta))
        return u

    def rk4(self, theta: Tensor, task: int, steps: int, horizon: float) -> Tensor:
        """The gradient flow by the classical scheme."""
        u, h = theta, horizon / steps
        for _ in range(steps):
            k1 = -self.gradient(u, task)
            k2 = -self.gradient(u + h / 2 * k1, task)
            k3 = -self.gradient(u + h / 2 * k2, task)
            k4 = -self.gradient(u + h * k3, task)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return u

    def implicit(self, theta: Tensor, task: int, steps: int, lr: float, lam: float) -> Tensor:
        """(I + H/λ)⁻¹ ∇L_val at u_K, with the Hessian from differences of the gradient, dense."""
        u = self.trained(theta, task, steps, lr, lam)
        held = self.gradient(u, task) == 0  # by torch's rule: it has no derivative to these either
        rows = []
        for index in range(len(u)):
            e = torch.zeros_like(u)
            e[index] = 1e-5
            rows.append((self.gradient(u + e, task) - self.gradient(u - e, task)) / 2e-5)
        hessian = torch.stack(rows, 1)
        hessian = (hessian + hessian.T) / 2
        hessian[held], hessian[:, held] = 0, 0
        return torch.linalg.solve(torch.eye(len(u)).to(u) + hessian / lam, self.gradient(u, task, "query"))


def slope(function: Callable[[Tensor], float], theta: Tensor, v: Tensor) -> Callable[[float], float]:
    """h -> the slope of a function along v, by differences of order 4."""

    def at(h: float) -> float:
        near = function(theta + h * v) - function(theta - h * v)
        far = function(theta + 2 * h * v) - function(theta - 2 * h * v)
        return (8 * near - far) / (12 * h)

    return at


def fresh(model: nn.Module) -> nn.Module:
    """A copy."""
    return copy.deepcopy(model)
