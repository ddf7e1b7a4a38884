"""Meta-gradient methods: MAML, its approximations, and adjoint solves of the inner training's ODE.

Example:
    >>> import torch, amaml_core as am
    >>> problem = am.MetaProblem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
    >>> theta = problem.initial_parameters(seed=0)
    >>> x, y = torch.randn(4, 10, 2), torch.randn(4, 10, 1)
    >>> tasks = am.TaskBatch(x, y, x, y)
    >>> out = am.create_method("amaml", inner_steps=200, inner_lr=0.01).meta_gradient(problem, theta, tasks)
    >>> out.grad.shape, out.status[0]
    (torch.Size([3]), 'ok')
"""

from amaml_core.adaptation import AdaptationCurve, accuracy, adaptation_curve, nrmse, rmse, target_std
from amaml_core.check import Check, check
from amaml_core.errors import InputError, ModelWarning
from amaml_core.inner import InnerProblem, Linearization
from amaml_core.linear_solve import LinearSolution, conjugate_gradient
from amaml_core.methods import METHODS, create_method
from amaml_core.methods.amaml import AMAML
from amaml_core.methods.base import (
    Adaptation,
    Doubt,
    MetaGradient,
    MetaGradientMethod,
    Outcome,
    Target,
    gradient_descent,
    unrolled,
)
from amaml_core.methods.fomaml import FOMAML
from amaml_core.methods.imaml import IMAML
from amaml_core.methods.maml import MAML
from amaml_core.methods.remat_maml import RematMAML
from amaml_core.methods.reptile import Reptile
from amaml_core.ode.adjoint import BACKWARDS
from amaml_core.ode.scheme import SolverFailedError, System, Trajectory
from amaml_core.ode.solve import SOLVERS, solve
from amaml_core.ode.vector_field import AdjointGradient, adjoint_gradient, autodiff_gradient
from amaml_core.problem import MetaProblem
from amaml_core.status import Status
from amaml_core.stopping import GradientNorm, QueryLoss, Stopping
from amaml_core.tasks import TaskBatch, batches
from amaml_core.training import Training, train

__all__ = [
    "AMAML",
    "BACKWARDS",
    "FOMAML",
    "IMAML",
    "MAML",
    "METHODS",
    "SOLVERS",
    "Adaptation",
    "AdaptationCurve",
    "AdjointGradient",
    "Check",
    "Doubt",
    "GradientNorm",
    "InnerProblem",
    "InputError",
    "LinearSolution",
    "Linearization",
    "MetaGradient",
    "MetaGradientMethod",
    "MetaProblem",
    "ModelWarning",
    "Outcome",
    "QueryLoss",
    "RematMAML",
    "Reptile",
    "SolverFailedError",
    "Status",
    "Stopping",
    "System",
    "Target",
    "TaskBatch",
    "Training",
    "Trajectory",
    "accuracy",
    "adaptation_curve",
    "adjoint_gradient",
    "autodiff_gradient",
    "batches",
    "check",
    "conjugate_gradient",
    "create_method",
    "gradient_descent",
    "nrmse",
    "rmse",
    "solve",
    "target_std",
    "train",
    "unrolled",
]
