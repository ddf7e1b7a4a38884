"""The outer loop: task batches in, a meta-learned initialisation out; interrupted runs go on to the very same bits."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import LBFGS, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from amaml_core.checkpoints import Checkpoints
from amaml_core.errors import InputError, positive_integer, positive_number
from amaml_core.inner import InnerProblem
from amaml_core.methods.base import OK, MetaGradientMethod, Status
from amaml_core.problem import MetaProblem
from amaml_core.tasks import Batches, TaskBatch


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
        validations: what ``validate`` returned, by the number of updates made.
        best: the meta-parameters of the lowest of those; None where nothing was validated.
        not_converged: tasks, over all updates, whose own solver stopped short or whose gradient was inaccurate.
        notes: sentences about damaged checkpoints that were passed over, and about what ended the training early.
    """

    meta: dict[str, Tensor]
    losses: Float[Tensor, " updates"]
    seconds: Float[Tensor, " updates"]
    snapshots: dict[int, dict[str, Tensor]]
    status: Status = OK
    converged: bool = False
    not_converged: int = 0
    notes: tuple[str, ...] = ()
    validations: dict[int, float] = field(default_factory=dict)
    best: dict[str, Tensor] | None = None

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
    batch: Batches | Iterable[TaskBatch],
    *,
    updates: int,
    meta: Tensor | Mapping[str, Tensor] | None = None,
    optimizer: Callable[[list[Tensor]], Optimizer] = Adam,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    clip_norm: float | None = None,
    validate: Callable[[dict[str, Tensor]], float] | None = None,
    validate_every: int = 100,
    patience: int | None = None,
    xi: float = 0.0,
    snapshots: Collection[int] = (),
    directory: Path | str | None = None,
    every: int = 100,
    on_update: Callable[[int, float], None] = lambda update, loss: None,
) -> Training:
    """Meta-train (Li et al. 2023, alg. 1): each update takes one batch's meta-gradient and one optimizer step.

    A batch in which a task diverged, or whose gradient is not finite, ends the training before it can harm θ. An
    ``engine="auto"`` knows from here how many updates are planned.

    Args:
        method: what estimates the meta-gradient.
        problem: model and losses.
        batch: the task batch of update g, see ``batches``; or any iterable of batches. To go on, a training asks the
            first again for the update that it is at; an iterable must begin with the same batches as before, and those
            that were used are passed over.
        updates: G, in all: those that a checkpoint holds already count.
        meta: what to start from; ``method.initial_meta_parameters(problem)``, the model's own values, by default.
        optimizer: tensors -> optimizer of them, e.g. ``functools.partial(torch.optim.SGD, lr=0.01)``; Adam's own rate,
            1e-3, is the paper's.
        scheduler: optimizer -> scheduler of its learning rate, which steps after each update.
        clip_norm: the norm to which a longer meta-gradient is shortened; None clips nothing.
        validate: meta-parameters -> a number, the lower the better; asked every ``validate_every`` updates.
        validate_every: updates between two validations.
        patience: validations without a new lowest number after which the training ends; None: it goes on.
        xi: ξ; a change of the meta-parameters whose L2 norm is below it ends the training.
        snapshots: numbers of updates after which the meta-parameters are kept; 0 is the start.
        directory: where checkpoints go and are looked for; None keeps none.
        every: updates between two checkpoints.
        on_update: told the number of updates made and the last loss; what it changes is part of the checkpoint.

    Raises:
        InputError: an option is out of range, or the directory holds a training with other settings, losses, frozen
            weights or batches, or a longer one.

    Example:
        >>> import torch, amaml_core as am
        >>> problem = am.MetaProblem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
        >>> x, y = torch.randn(8, 10, 2), torch.randn(8, 10, 1)
        >>> pool = am.TaskBatch(x, y, x, y)
        >>> method = am.create_method("maml", inner_steps=2, inner_lr=0.01)
        >>> am.train(method, problem, am.batches(pool, 4, seed=0), updates=3).updates
        3
    """
    updates, every = positive_integer("updates", updates), positive_integer("every", every)
    validate_every = positive_integer("validate_every", validate_every)
    if patience is not None:
        patience = positive_integer("patience", patience)
    if clip_norm is not None:
        positive_number("clip_norm", clip_norm)
    positive_number("xi", xi, or_zero=True)
    if not isinstance(method, MetaGradientMethod) or not isinstance(problem, MetaProblem):
        given = type(method).__name__, type(problem).__name__
        raise InputError(f"train takes a MetaGradientMethod and a MetaProblem, not a {given[0]} and a {given[1]}.")
    problem = problem.planning(updates)
    start = method.initial_meta_parameters(problem) if meta is None else meta
    start = dict(start) if isinstance(start, Mapping) else {"theta": start}
    state, source = _State(start, optimizer, scheduler), _source(batch)
    files, notes = None, ()
    if directory is not None and (first := source(0)) is not None:
        settings = state.settings(method, problem, first)
        files = Checkpoints(Path(directory), settings | {"xi": str(xi), "clip_norm": str(clip_norm)})
        there, notes = files.read(next(iter(state.meta.values())).device)
        if there is not None:
            state.restore(there)
            again = source(state.made - 1) if state.made else None
            if state.made and (again is None or _digest(again.tensors()) != state.last_batch):
                raise InputError(
                    f"{directory} holds a training whose batch at update {state.made - 1} was another; give it the "
                    "same batches, or choose another directory."
                )
    if state.made > updates:
        raise InputError(f"{directory} holds a training of {state.made} updates; ask for no fewer than those.")
    if state.made == 0 and 0 in snapshots:
        state.snapshots[0] = state.copy()
    while state.made < updates and state.status == OK and not state.converged:
        if patience is not None and state.since_best >= patience:
            notes = (*notes, f"{patience} validations brought nothing better after update {state.made}.")
            break
        if (tasks := source(state.made)) is None:
            notes = (*notes, f"There was no batch after update {state.made}.")
            break
        began = time.perf_counter()
        out = method.meta_gradient(problem, state.copy(), tasks)
        failed = [status for status in out.status if status == "diverged"]
        if failed or not all(bool(torch.isfinite(grad).all()) for grad in out.grads.values()):
            remedy = failed[0].remedy if failed else "The meta-gradient is not finite; lower the learning rates."
            state.status = Status("diverged", f"At update {state.made}: {remedy}")
            break
        if not state.step(out.grads, xi, clip_norm):
            state.status = Status("diverged", f"At update {state.made}: θ left the finite range; lower the outer rate.")
            break
        state.losses.append(float(out.query_loss.double().mean()))
        state.seconds.append(time.perf_counter() - began)
        state.not_converged += sum(status in ("not_converged", "inaccurate") for status in out.status)
        if state.made in snapshots:
            state.snapshots[state.made] = state.copy()
        if validate is not None and state.made % validate_every == 0:
            state.validated(_number(validate(state.copy())))
        on_update(state.made, state.losses[-1])
        state.last = tasks
        if files and state.made % every == 0:
            files.write(state.made, state.packed())
    if files and (state.made % every or state.status != OK):
        files.write(state.made, state.packed())
    losses, seconds = (torch.tensor(values, dtype=torch.float64) for values in (state.losses, state.seconds))
    ended = state.status, state.converged, state.not_converged, notes
    return Training(state.copy(), losses, seconds, state.snapshots, *ended, state.validations, state.best)


def _source(batch: Batches | Iterable[TaskBatch]) -> Callable[[int], TaskBatch | None]:
    """Batches by number; of an iterable, gone through once, none before the last one, and None where it has ended."""
    if callable(batch):
        return batch
    if not isinstance(batch, Iterable) or isinstance(batch, TaskBatch):
        raise InputError(f"batch is a {type(batch).__name__}; pass am.batches(...), or several TaskBatches.")
    rest, at, last = iter(batch), -1, None

    def source(update: int) -> TaskBatch | None:
        nonlocal at, last
        while at < update:
            at, last = at + 1, next(rest, None)
        return last

    return source


class _State:
    """All that changes from update to update."""

    KEPT = ("validations", "best", "last_batch", "snapshots", "converged", "not_converged")  # as they are

    def __init__(
        self, start: Mapping[str, Tensor], optimizer: Callable[..., Optimizer], scheduler: Callable[..., Any] | None
    ) -> None:
        self.meta = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        for name, given in (("optimizer", optimizer), ("scheduler", scheduler)):
            if given is not None and not callable(given):
                raise InputError(f"{name} is a {type(given).__name__}; pass what makes one, such as its class.")
        self.optimizer = optimizer(list(self.meta.values()))
        if isinstance(self.optimizer, LBFGS):
            raise InputError("LBFGS asks for the loss many times a step; choose an optimizer that does not, e.g. Adam.")
        self.scheduler = scheduler(self.optimizer) if scheduler else None
        if isinstance(self.scheduler, ReduceLROnPlateau):
            raise InputError("ReduceLROnPlateau steps by a number that train does not have; choose another scheduler.")
        self.validations: dict[int, float] = {}
        self.best: dict[str, Tensor] | None = None
        self.last: TaskBatch | None = None  # and its digest, or that of the one before the training went on
        self.last_batch = ""
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.status, self.converged, self.not_converged = OK, False, 0

    @property
    def made(self) -> int:
        return len(self.losses)

    def copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.meta.items()}

    @property
    def since_best(self) -> int:
        """Validations since the lowest one."""
        values = [_ranked(value) for value in self.validations.values()]
        return len(values) - 1 - values.index(min(values)) if values else 0

    def validated(self, value: float) -> None:
        """Note a validation, and the meta-parameters where it is the lowest so far."""
        self.validations[self.made] = value
        if self.since_best == 0:
            self.best = self.copy()

    def step(self, grads: Mapping[str, Tensor], xi: float, clip_norm: float | None) -> bool:
        """One step of the optimizer; taken back, and False, where it leads out of the finite numbers."""
        before = self.copy()
        for name, value in self.meta.items():
            value.grad = grads[name].detach().clone()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self.meta.values()), clip_norm)
        self.optimizer.step()
        moved = sum(float((value.detach() - before[name]).square().sum()) for name, value in self.meta.items())
        if not math.isfinite(moved):
            self._set(before)
            return False
        if self.scheduler:
            self.scheduler.step()
        self.converged = moved**0.5 < xi
        return True

    def _set(self, meta: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.meta.items():
                value.copy_(meta[name])

    def settings(self, method: MetaGradientMethod, problem: MetaProblem, first: TaskBatch) -> dict[str, str]:
        """What a checkpoint must agree with to be gone on from, at the start."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        inner = InnerProblem(problem.with_engine("eager"), self.meta["theta"], first)
        with torch.no_grad():
            losses = inner.loss(inner.start()), inner.query_loss(inner.start())
        return {
            "method": f"{method.name} {method.options()}",
            "optimizer": f"{type(self.optimizer).__name__} {groups}",
            "scheduler": str(self.scheduler is not None),
            "start": _digest(self.meta),
            "engine": problem.asked,
            "first task batch": _digest(first.tensors()),
            "frozen part of the model": _digest(problem.frozen()),
            # in a few digits, for threads may change the last ones
            "loss at the start": ", ".join(f"{float(loss.mean()):.5g}" for loss in losses),
        }

    def packed(self) -> dict[str, Any]:
        """Everything in types that ``torch.load(weights_only=True)`` takes, and of the last batch its digest."""
        if self.last is not None:
            self.last_batch = _digest(self.last.tensors())
        return {
            "meta": self.copy(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "status": [str(self.status), getattr(self.status, "remedy", "")],
            **{name: getattr(self, name) for name in self.KEPT},
        }

    def restore(self, packed: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(packed["optimizer"])
        for index, value in enumerate(self.meta.values()):  # as it was: torch casts it to the parameter's dtype
            for name, kept in packed["optimizer"]["state"].get(index, {}).items():
                self.optimizer.state[value][name] = kept
        if self.scheduler:
            self.scheduler.load_state_dict(packed["scheduler"])
        self._set(packed["meta"])
        self.losses, self.seconds = packed["losses"].tolist(), packed["seconds"].tolist()
        self.status = Status(*packed["status"])
        vars(self).update({name: packed[name] for name in self.KEPT})


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"validate returned a {type(value).__name__}; it must return one number.") from None


def _ranked(value: float) -> float:
    """A validation that is no number is the worst of all."""
    return math.inf if math.isnan(value) else value


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
