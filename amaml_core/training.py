"""The outer loop: task batches in, a meta-learned initialisation out; interrupted runs go on to the very same bits."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam, Optimizer

from amaml_core.checkpoints import Checkpoints
from amaml_core.errors import InputError, positive_integer, positive_number
from amaml_core.methods.base import OK, MetaGradientMethod, Status
from amaml_core.problem import MetaProblem
from amaml_core.tasks import Batches


@dataclass(frozen=True)
class Training:
    """What meta-training came to.

    Attributes:
        meta: the meta-parameters after the last good update.
        losses: the batch's mean query loss at each update, in float64, ``[updates]``.
        seconds: of each update, checkpoints not included, ``[updates]``.
        snapshots: the meta-parameters after so many updates, where they were asked for.
        status: "ok", or "diverged" with its remedy.
        converged: whether a change of the meta-parameters below ξ ended it.
        not_converged: tasks, over all updates, whose own solver stopped short.
        notes: sentences about damaged checkpoints that were passed over.
    """

    meta: dict[str, Tensor]
    losses: Float[Tensor, " updates"]
    seconds: Float[Tensor, " updates"]
    snapshots: dict[int, dict[str, Tensor]]
    status: Status = OK
    converged: bool = False
    not_converged: int = 0
    notes: tuple[str, ...] = ()

    @property
    def theta(self) -> Float[Tensor, " params"]:
        """The meta-learned initialisation, ``[d]``."""
        return self.meta["theta"]

    @property
    def updates(self) -> int:
        """Outer updates made."""
        return len(self.losses)


def train(
    method: MetaGradientMethod,
    problem: MetaProblem,
    batch: Batches,
    *,
    updates: int,
    meta: Tensor | Mapping[str, Tensor] | None = None,
    optimizer: Callable[[list[Tensor]], Optimizer] = Adam,
    xi: float = 0.0,
    snapshots: Collection[int] = (),
    directory: Path | None = None,
    every: int = 100,
    on_update: Callable[[int, float], None] = lambda update, loss: None,
) -> Training:
    """Meta-train (Li et al. 2023, alg. 1): each update takes one batch's meta-gradient and one optimizer step.

    A batch in which a task diverged, or whose gradient is not finite, ends the training before it can harm θ.

    Args:
        method: what estimates the meta-gradient.
        problem: model and losses.
        batch: the task batch of update g; see ``batches``.
        updates: G, in all: those that a checkpoint holds already count.
        meta: what to start from; ``method.initial_meta_parameters(problem)`` by default.
        optimizer: tensors -> optimizer of them, e.g. ``functools.partial(torch.optim.SGD, lr=0.01)``; Adam's own rate,
            1e-3, is the paper's.
        xi: ξ; a change of the meta-parameters whose L2 norm is below it ends the training.
        snapshots: numbers of updates after which the meta-parameters are kept; 0 is the start.
        directory: where checkpoints go and are looked for; None keeps none.
        every: updates between two checkpoints.
        on_update: told the number of updates made and the last loss.

    Raises:
        InputError: an option is out of range, or the directory holds a training with other settings, or a longer one.

    Example:
        >>> import torch, amaml_core as am
        >>> problem = am.MetaProblem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
        >>> x, y = torch.randn(8, 10, 2), torch.randn(8, 10, 1)
        >>> pool = am.TaskBatch(x, y, x, y)
        >>> method = am.create_method("maml", inner_steps=2, inner_lr=0.01)
        >>> am.train(method, problem, am.batches(pool, 4, seed=0), updates=3).updates
        3
    """
    positive_integer("updates", updates)
    positive_integer("every", every)
    positive_number("xi", xi, or_zero=True)
    start = method.initial_meta_parameters(problem) if meta is None else meta
    start = dict(start) if isinstance(start, Mapping) else {"theta": start}
    state = _State(start, optimizer)
    files, notes = None, ()
    if directory is not None:
        files = Checkpoints(directory, _settings(method, problem, start, batch, state.optimizer) | {"xi": str(xi)})
        there, notes = files.read(next(iter(state.meta.values())).device)
        if there is not None:
            state.restore(there)
    if state.made > updates:
        raise InputError(f"{directory} holds a training of {state.made} updates; ask for no fewer than those.")
    if state.made == 0 and 0 in snapshots:
        state.snapshots[0] = state.copy()
    while state.made < updates and state.status == OK and not state.converged:
        began = time.perf_counter()
        out = method.meta_gradient(problem, state.copy(), batch(state.made))
        failed = [status for status in out.status if status == "diverged"]
        if failed or not all(bool(torch.isfinite(grad).all()) for grad in out.grads.values()):
            remedy = failed[0].remedy if failed else "The meta-gradient is not finite; lower the learning rates."
            state.status = Status("diverged", f"At update {state.made}: {remedy}")
            break
        if not state.step(out.grads, xi):
            state.status = Status("diverged", f"At update {state.made}: θ left the finite range; lower the outer rate.")
            break
        state.losses.append(float(out.query_loss.double().mean()))
        state.seconds.append(time.perf_counter() - began)
        state.not_converged += sum(status == "not_converged" for status in out.status)
        if state.made in snapshots:
            state.snapshots[state.made] = state.copy()
        if files and state.made % every == 0:
            files.write(state.made, state.packed())
        on_update(state.made, state.losses[-1])
    if files and (state.made % every or state.status != OK):
        files.write(state.made, state.packed())
    return Training(
        state.copy(),
        torch.tensor(state.losses, dtype=torch.float64),
        torch.tensor(state.seconds, dtype=torch.float64),
        state.snapshots,
        state.status,
        state.converged,
        state.not_converged,
        notes,
    )


class _State:
    """All that changes from update to update."""

    def __init__(self, start: Mapping[str, Tensor], optimizer: Callable[[list[Tensor]], Optimizer]) -> None:
        self.meta = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        self.optimizer = optimizer(list(self.meta.values()))
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.status, self.converged, self.not_converged = OK, False, 0

    @property
    def made(self) -> int:
        return len(self.losses)

    def copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.meta.items()}

    def step(self, grads: Mapping[str, Tensor], xi: float) -> bool:
        """One step of the optimizer; taken back, and False, where it leads out of the finite numbers."""
        before = self.copy()
        for name, value in self.meta.items():
            value.grad = grads[name].detach().clone()
        self.optimizer.step()
        moved = sum(float((value.detach() - before[name]).square().sum()) for name, value in self.meta.items())
        if not math.isfinite(moved):
            self._set(before)
            return False
        self.converged = moved**0.5 < xi
        return True

    def _set(self, meta: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.meta.items():
                value.copy_(meta[name])

    def packed(self) -> dict[str, Any]:
        """Everything in types that ``torch.load(weights_only=True)`` takes."""
        return {
            "meta": self.copy(),
            "optimizer": self.optimizer.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "snapshots": self.snapshots,
            "status": [str(self.status), getattr(self.status, "remedy", "")],
            "converged": self.converged,
            "not_converged": self.not_converged,
        }

    def restore(self, packed: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(packed["optimizer"])
        self._set(packed["meta"])
        self.losses, self.seconds = packed["losses"].tolist(), packed["seconds"].tolist()
        self.snapshots = {
            made: {name: value.to(self.meta[name].device) for name, value in kept.items()}
            for made, kept in packed["snapshots"].items()
        }
        self.status, self.converged = Status(*packed["status"]), packed["converged"]
        self.not_converged = packed["not_converged"]


def _settings(
    method: MetaGradientMethod,
    problem: MetaProblem,
    start: Mapping[str, Tensor],
    batch: Batches,
    optimizer: Optimizer,
) -> dict[str, str]:
    """What a checkpoint must agree with to be gone on from."""
    tasks = batch(0)
    named = {field.name: getattr(tasks, field.name) for field in fields(tasks)}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {
        "method": f"{method.name} {method.options()}",
        "optimizer": f"{type(optimizer).__name__} {groups}",
        "start": _digest(start),
        "engine": problem.engine,
        "first task batch": _digest({name: value for name, value in named.items() if value is not None}),
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
