"""Naive dense oracles: one task at a time, plain loops, nothing of amaml_core's numerics.

A task is the pair of functions (support loss, query loss) of one flat parameter vector.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.integrate
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, vhp
from torch.func import functional_call

import amaml_core as am

Scalar = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A problem with tasks and a start; what the tests are run on."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    problem: am.MetaProblem
    theta: Tensor
    tasks: am.TaskBatch

    def support(self, b: int) -> Scalar:
        return partial(flat_loss, self.model, self.loss, x=self.tasks.support_x[b], y=self.tasks.support_y[b])

    def query(self, b: int) -> Scalar:
        return partial(flat_loss, self.model, self.loss, x=self.tasks.query_x[b], y=self.tasks.query_y[b])

    def per_task(self, function: Callable[[Scalar, Scalar], Tensor]) -> Tensor:
        """The oracle's answer for every task, stacked."""
        return torch.stack([function(self.support(b), self.query(b)) for b in range(len(self.tasks))])

    def with_horizon(self, *values: float) -> "Case":
        t = self.tasks
        horizon = torch.tensor(values, dtype=self.theta.dtype)
        return replace(self, tasks=am.TaskBatch(t.support_x, t.support_y, t.query_x, t.query_y, horizon))

    def only(self, b: int) -> am.TaskBatch:
        return self.tasks[b : b + 1]

    def on(self, device: str) -> "Case":
        """The same there; its model moves along."""
        if device == "cpu":
            return self
        problem = am.MetaProblem(self.model.to(device), self.loss)
        return replace(self, problem=problem, theta=self.theta.to(device), tasks=self.tasks.to(device))

    def to(self, dtype: torch.dtype) -> "Case":
        problem = am.MetaProblem(self.model.to(dtype), self.loss)
        return replace(self, problem=problem, theta=self.theta.to(dtype), tasks=self.tasks.to(dtype=dtype))


def regression(hidden: int = 8, tasks: int = 3, examples: int = 12, seed: int = 0) -> Case:
    """Cosine mixtures on [-1, 1]², a tanh network, the mean squared error."""
    generator = torch.Generator().manual_seed(seed)
    uniform = partial(torch.rand, generator=generator, dtype=torch.float64)
    amplitude, frequency, phase = (
        low + (high - low) * uniform(tasks, 1, 1) for low, high in ((0.1, 1.0), (1.57, 6.28), (3.0, 6.0))
    )
    x = 2 * uniform(tasks, 2 * examples, 2) - 1
    y = -0.1 * (amplitude * torch.cos(frequency * x + phase)).sum(-1, keepdim=True) - x.sum(-1, keepdim=True)
    model = nn.Sequential(
        nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1)
    ).double()
    return _case(model, nn.functional.mse_loss, x, y, examples, seed)


def classifier(tasks: int = 4, examples: int = 9, seed: int = 1) -> Case:
    """Three classes in the plane, moved about from task to task, a small tanh network, the cross-entropy."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(2 * examples).remainder(3).repeat(tasks, 1)
    centres = torch.randn(tasks, 3, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(tasks, 2 * examples, 2, generator=generator, dtype=torch.float64)
    x = centres.gather(1, y.unsqueeze(-1).expand(-1, -1, 2)) + 0.7 * noise
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return _case(model, nn.functional.cross_entropy, x, y, examples, seed)


def _case(model: nn.Module, loss, x: Tensor, y: Tensor, examples: int, seed: int) -> Case:
    problem = am.MetaProblem(model, loss)
    tasks = am.TaskBatch(x[:, :examples], y[:, :examples], x[:, examples:], y[:, examples:])
    return Case(model, loss, problem, problem.initial_parameters(seed), tasks)


def split(model: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """Flat parameters by name, cut by hand in ``named_parameters()`` order."""
    parts, start = {}, 0
    for name, value in model.named_parameters():
        parts[name] = flat[start : start + value.numel()].reshape(value.shape)
        start += value.numel()
    return parts


def flat_loss(model: nn.Module, loss, flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return loss(functional_call(model, split(model, flat), (x,)), y)


def gradient(function: Scalar, at: Tensor, create_graph: bool = False) -> Tensor:
    with torch.enable_grad():
        at = at if create_graph else at.detach().requires_grad_()
        return torch.autograd.grad(function(at), at, create_graph=create_graph)[0]


def descend(
    support: Scalar, theta: Tensor, steps: int, lr: float, prox: float = 0.0, create_graph: bool = False
) -> Tensor:
    """Proximal gradient descent, θ inside the proximal term too."""
    u = theta
    for _ in range(steps):
        u = u - lr * (gradient(support, u, create_graph) + prox * (u - theta))
    return u


def unrolled_gradient(
    support: Scalar, query: Scalar, theta: Tensor, steps: int, lr: float, prox: float = 0.0
) -> Tensor:
    """Autodiff through ``descend``."""
    start = theta.clone().requires_grad_()
    return torch.autograd.grad(query(descend(support, start, steps, lr, prox, create_graph=True)), start)[0]


def differences(function: Callable[[Tensor], float], at: Tensor, directions: Tensor, eps: float = 1e-3) -> Tensor:
    """Fourth-order central differences along each row of ``directions``."""
    slopes = []
    for direction in directions:
        near = float(function(at + eps * direction)) - float(function(at - eps * direction))
        far = float(function(at + 2 * eps * direction)) - float(function(at - 2 * eps * direction))
        slopes.append((8 * near - far) / (12 * eps))
    return torch.tensor(slopes, dtype=at.dtype)


def flow(support: Scalar, theta: Tensor, horizon: float, prox: float = 0.0, dense: bool = False):
    """u(T) of du/dt = −∇L_tr(u) − μ(u−θ) by DOP853, or the whole of u(t) as a function."""

    def slope(_: float, u: np.ndarray) -> np.ndarray:
        u = torch.from_numpy(u.copy())
        return -(gradient(support, u) + prox * (u - theta)).numpy()

    solution = scipy.integrate.solve_ivp(
        slope, (0.0, horizon), theta.numpy(), method="DOP853", rtol=1e-12, atol=1e-13, dense_output=dense
    )
    return solution.sol if dense else torch.from_numpy(solution.y[:, -1].copy())


def flow_gradient(support: Scalar, query: Scalar, theta: Tensor, horizon: float, prox: float = 0.0) -> Tensor:
    """λ(0) + μ∫λ dt by DOP853 along DOP853's own dense output."""
    path, d = flow(support, theta, horizon, prox, dense=True), len(theta)

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        adjoint = torch.from_numpy(state[:d].copy())
        product = vhp(support, torch.from_numpy(path(t).copy()), adjoint)[1] + prox * adjoint
        return np.concatenate([product.numpy(), -state[:d]])  # λ, and its integral from t to T

    terminal = gradient(query, torch.from_numpy(path(horizon).copy())).numpy()
    back = scipy.integrate.solve_ivp(
        slope, (horizon, 0.0), np.concatenate([terminal, np.zeros(d)]), method="DOP853", rtol=1e-11, atol=1e-13
    ).y[:, -1]
    return torch.from_numpy(back[:d] + prox * back[d:])


def optimum(support: Scalar, theta: Tensor, lam: float) -> Tensor:
    """argmin L_tr(u) + λ/2‖u−θ‖² by dense Newton steps."""
    u, identity = theta.clone(), lam * torch.eye(len(theta), dtype=theta.dtype)
    for _ in range(50):
        slope = gradient(support, u) + lam * (u - theta)
        if slope.norm() < 1e-13:
            break
        u = u - torch.linalg.solve(hessian(support, u, vectorize=True) + identity, slope)
    return u


def implicit_gradient(support: Scalar, query: Scalar, u: Tensor, lam: float) -> Tensor:
    """(I + H/λ)⁻¹ ∇L_val at u by a dense solve."""
    matrix = torch.eye(len(u), dtype=u.dtype) + hessian(support, u, vectorize=True) / lam
    return torch.linalg.solve(matrix, gradient(query, u))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest relative L2 error over tasks (rows)."""
    found, expected = torch.atleast_2d(found), torch.atleast_2d(expected)
    assert found.shape == expected.shape
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def conv(norm: nn.Module) -> nn.Module:
    """A convolution, this normalisation and a linear layer: three classes of 5 × 5 pictures."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), norm, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )


def conv_case():
    """A strided convolution and a linear layer, two classes: problem, θ and three tasks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2)).double()
    x, y = torch.randn(3, 4, 1, 8, 8, dtype=torch.float64), torch.randint(2, (3, 4))
    problem = am.MetaProblem(model, nn.functional.cross_entropy)
    return problem, problem.initial_parameters(), am.TaskBatch(x, y, x, y)
