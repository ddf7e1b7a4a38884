"""What every peer is: options in, a prepared outer update of an outside library out."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

import amaml_core as am
from amaml_core.errors import first_line
from amaml_core.methods.base import Estimator

OK = am.Status("ok")
DIVERGED = am.Status("diverged", "The numbers left the finite range; lower inner_lr.")


@dataclass(frozen=True)
class PeerGradient:
    """A peer's gradient, in the shape that probes read; on the CPU, whatever made it.

    Attributes:
        grad: dJ/dθ, ``[d]``, the mean over tasks, in the order of ``named_parameters()``.
        query_loss: ``[B]``, at the end of the trajectory.
        status: one a task.
        stats: counters as in ``amaml_core.Adaptation``, as far as the peer lets them be told; here a call that serves
            one task counts as one.
    """

    grad: Float[Tensor, " params"]
    query_loss: Float[Tensor, " tasks"]
    status: tuple[am.Status, ...]
    stats: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, task_grads: Float[Tensor, "tasks params"], query_loss: Float[Tensor, " tasks"], **stats: int
    ) -> PeerGradient:
        """From each task's gradient; a task whose numbers are not finite diverged."""
        task_grads, query_loss = task_grads.detach().cpu(), query_loss.detach().cpu()
        finite = torch.isfinite(task_grads).all(1) & torch.isfinite(query_loss)
        return cls(task_grads.mean(0), query_loss, tuple(OK if fine else DIVERGED for fine in finite.tolist()), stats)


@dataclass(frozen=True, kw_only=True)
class Peer(Estimator):
    """A meta-gradient as a user of an outside library would write it.

    Attributes:
        packages: whose code it is that is measured.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def _prepare(self, problem: am.MetaProblem, theta: Tensor, tasks: am.TaskBatch) -> Callable[[], PeerGradient]:
        """See ``prepare``."""

    def prepare(
        self, problem: am.MetaProblem, theta: Float[Tensor, " params"], tasks: am.TaskBatch
    ) -> Callable[[], PeerGradient]:
        """Everything ready for one outer update, which the returned call makes; its first call may still warm up.

        Raises:
            InputError: the library is not installed, or it cannot take this model, loss or device.
        """
        problem.check_theta(theta)
        if problem.dim != sum(value.numel() for value in problem.model.parameters()):
            raise am.InputError(f"{self.name} adapts all parameters; leave out adapt=.")
        if tasks.horizon is not None:
            raise am.InputError(f"{self.name} has one horizon for all tasks; drop TaskBatch.horizon.")
        return self._prepare(problem, theta, tasks)


def imported(name: str) -> Any:
    """The outside module of this name.

    Raises:
        InputError: it is not installed, or not for this machine's other libraries.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise am.InputError(
            f"{name} is not installed; run `make bench-peers`, or `pip install 'amaml-bench[peers]'`."
        ) from error
    except ImportError as error:  # such as an extension built for another torch
        raise am.InputError(
            f"{name} is installed but cannot be imported ({first_line(error).rstrip('.')}); install a build of it for "
            f"torch {torch.__version__}."
        ) from error


def model_at(problem: am.MetaProblem, theta: Float[Tensor, " params"]) -> nn.Module:
    """A copy of the model with θ in it, on θ's device and of its dtype."""
    model = copy.deepcopy(problem.model).to(theta.device, theta.dtype)
    model.load_state_dict(problem.unflatten(theta))
    return model


def flat(tensors: Any) -> Float[Tensor, " params"]:
    """Tensors of any shapes as one vector, ``[d]``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def task_by_task(
    one_task: Callable[[am.TaskBatch], tuple[Tensor, Tensor]], tasks: am.TaskBatch, **calls: int
) -> Callable[[], PeerGradient]:
    """An outer update that loops over the tasks.

    Args:
        one_task: a batch of one task -> its query loss and its gradient ``[d]``.
        tasks: taken apart here once, for that is no work of the peer's.
        calls: counters of one task.
    """
    each = list(tasks.chunks(1))

    def update() -> PeerGradient:
        losses, grads = zip(*map(one_task, each), strict=True)
        stats = {name: count * len(each) for name, count in calls.items()}
        return PeerGradient.of(torch.stack(grads), torch.stack(losses), **stats)

    return update
