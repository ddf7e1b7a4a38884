"""A model and its losses, seen as batched functions of flat parameters."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from amaml_core.calls import Calls
from amaml_core.engine.captured import captured
from amaml_core.engine.rule import Built, Engine, chosen
from amaml_core.engine.threads import one_at_a_time
from amaml_core.errors import InputError, positive_integer
from amaml_core.looked import Looked
from amaml_core.manner import ROWS, Call, Manner, look
from amaml_core.mistakes import MISTAKES, refuse
from amaml_core.modules import (
    Loss,
    adapted,
    converted,
    first_names,
    refuse_shared,
    refuse_stateful,
    refuse_unusable,
    seeded,
    size,
)
from amaml_core.plain import written
from amaml_core.tasks import TaskBatch, Tree
from amaml_core.writes import THETA

NOT_FINITE = "theta must hold finite floating-point values."


class MetaProblem(Calls):
    """What is meta-learned: an initialisation θ of (some of) a model's parameters, judged by its losses.

    Parameters that are frozen by ``requires_grad_(False)`` stay as they are, unless ``adapt`` names them. While a loss
    is called the model holds the adapted parameters: a loss that reads them, or calls the model once more, reads and
    calls the task's own. At the first batch the model is looked at (``amaml_core.manner``): it is called for all tasks
    at once by vmap where that gives what torch's own operators give, and for one after the other where it does not.

    Args:
        model: any module. It is never changed. A tuple or list of inputs becomes its arguments, a dict its keywords.
        loss: ``loss(prediction, target) -> scalar`` of one task, used inside and outside.
        inner_loss: the loss on the support set where it differs from ``loss``.
        outer_loss: the loss on the query set where it differs from ``loss``.
        adapt: regular expression; parameters whose full name matches are adapted, the others keep the model's own
            values. ``None`` adapts all that are not frozen.
        shared: what happens to the parameters that ``adapt`` leaves out; ``"frozen"``: nothing.
        engine: ``"eager"``; ``"compiled"``: whole solver steps are compiled, once for each shape of the tasks;
            ``"graphed"``, on CUDA: eager kernels, captured as a graph once for each shape and replayed, as compiled
            ones are there too: whole updates that always launch the same, else solver steps; or ``"auto"``, see
            ``engine.rule.chosen``. What model and loss read besides their arguments may change: tensors in place at no
            cost, anything else at that of building again, unless its name is worked out at run time. On
            the CPU "compiled" works on groups of tasks, a torch thread each: adaptive steps belong to a group, and
            groups of different sizes are compiled apart.
        planned_updates: outer updates that will be made with this problem, as far as known; only ``"auto"`` asks.
        chunk_size: at most so many tasks are worked on at once, which bounds the memory; ``None``: all of them.

    Attributes:
        asked: the engine that was asked for.
        engine: the one that it stands for.
        notes: sentences about the model that were told as warnings.

    Raises:
        InputError: active dropout, running batch statistics, an ``adapt`` that matches nothing, mixed dtypes, or a
            module that cannot be called with other parameters.

    Example:
        >>> import torch, amaml_core as am
        >>> problem = am.MetaProblem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
        >>> problem.initial_parameters().shape
        torch.Size([3])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None = None,
        *,
        inner_loss: Loss | None = None,
        outer_loss: Loss | None = None,
        adapt: str | None = None,
        shared: Literal["frozen"] = "frozen",
        engine: Engine = "auto",
        planned_updates: int = 1,
        chunk_size: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; pass a torch.nn.Module.")
        inner, outer = inner_loss or loss, outer_loss or loss
        if inner is None or outer is None:
            raise InputError("A loss is missing; pass loss=, or both inner_loss= and outer_loss=.")
        if shared != "frozen":
            raise InputError(f'shared={shared!r} is not available; use shared="frozen".')
        if chunk_size is not None:
            chunk_size = positive_integer("chunk_size", chunk_size)
        self.planned_updates = positive_integer("planned_updates", planned_updates)
        refuse_unusable(model)
        refuse_stateful(model)
        super().__init__(model, inner, outer)
        self.chunk_size = chunk_size
        parameters, frozen = adapted(model, adapt)
        if frozen:
            self._looked.tell(
                f"adapt={adapt!r} names {', '.join(frozen)}, frozen by requires_grad_(False): adapted still."
            )
        self._shapes = {name: value.shape for name, value in parameters.items()}
        refuse_shared(model, self._shapes)
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self._convolves = any(isinstance(module, _ConvNd) for module in model.modules())
        self._set_engine(engine)

    def __copy__(self) -> MetaProblem:
        other = object.__new__(type(self))
        vars(other).update(vars(self))  # what is known and built is shared
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Without what is known of this very model, and what was built: code of this process, found out again."""
        return vars(self) | {"_looked": Looked(notes=[*self.notes]), "compiled": {}, "reads": []}

    def _set_engine(self, engine: Engine) -> None:
        self.asked: Engine = engine
        self.engine: Built = chosen(
            engine,
            planned_updates=self.planned_updates,
            dim=self.dim,
            convolves=self._convolves,
            cuda=any(value.is_cuda for value in self.model.parameters()),
        )
        # what is built for steps of its inner problems, and what model and losses read then; both die with it
        self.compiled: dict[Hashable, Any] = {}
        self.reads: list[dict[str, Hashable]] = []

    def planning(self, updates: int) -> MetaProblem:
        """The same problem for so many outer updates: "auto" may stand for another engine then."""
        other = self._but(planned_updates=max(updates, self.planned_updates))
        other._set_engine(self.asked)
        return other

    def with_engine(self, engine: Engine) -> MetaProblem:
        """The same problem under another engine; the model is shared.

        Raises:
            InputError: there is no such engine.
        """
        other = copy.copy(self)
        other._set_engine(engine)
        return other

    @property
    def dim(self) -> int:
        """The number d of adapted parameters."""
        return sum(self._sizes)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapted parameters, in the order of θ."""
        return tuple(self._shapes)

    def tell(self, note: str) -> None:
        """Warn of this, once, and keep it among the ``notes``."""
        self._looked.tell(note)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was told of the model so far."""
        return tuple(self._looked.notes)

    def initial_parameters(self, seed: int | None = None) -> Float[Tensor, " params"]:
        """A start θ, ``[d]``, in ``named_parameters()`` order, row-major, in the model's dtype.

        Args:
            seed: every module's ``reset_parameters()`` is called on a copy under this seed, those of its parts before
                its own; adapted parameters that none resets keep the model's values, which is told by a
                ``ModelWarning``. ``None``: the model's own values.

        Raises:
            InputError: the model cannot be copied.
        """
        with one_at_a_time:
            source, kept = (self.model, []) if seed is None else seeded(self.model, seed)
            if kept := [name for name in kept if name in self._shapes]:
                self._looked.tell(
                    f"No reset_parameters() initialises {', '.join(kept)}: under a seed they keep the model's values."
                )
            return self.flatten(dict(source.named_parameters()))

    def flatten(self, state: Mapping[str, Tensor]) -> Float[Tensor, " params"]:
        """The adapted entries of a ``state_dict`` as one vector ``[d]``.

        Raises:
            InputError: an adapted parameter is missing or has another shape.
        """
        for name, shape in self._shapes.items():
            value = state.get(name)
            if not isinstance(value, Tensor) or value.shape != shape:
                found = "nothing" if value is None else list(value.shape) if isinstance(value, Tensor) else type(value)
                raise InputError(f"The state has {found} for {name!r}; it needs a tensor of shape {list(shape)}.")
        return torch.cat([state[name].detach().reshape(-1) for name in self._shapes])

    def unflatten(self, theta: Float[Tensor, " params"]) -> dict[str, Tensor]:
        """A whole ``state_dict`` of the model with θ in it, ready for ``load_state_dict``."""
        self.check_theta(theta)
        parts = self.split(theta.detach())
        with one_at_a_time:
            every = self.model.state_dict().items()  # extra states of a module may be of any kind
            state = {
                name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in every
            }
            for name, first in first_names(self.model).items():
                if first in parts:
                    state[name] = parts[first].clone()  # no entry shares memory with θ or with the model
        return state

    def check_theta(self, theta: Tensor, *, values: bool = True) -> None:
        """Refuse a θ that does not fit the model.

        ``values``: whether its values are looked at too, for which CUDA has to end all that was launched before.

        Raises:
            InputError: wrong shape, values that are not finite, or a dtype or device that the frozen part lacks.
        """
        if not isinstance(theta, Tensor) or theta.shape != (self.dim,):
            found = list(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise InputError(f"theta is {found}; this problem needs a tensor of shape [{self.dim}].")
        if not theta.dtype.is_floating_point or (values and not bool(torch.isfinite(theta).all())):
            raise InputError(NOT_FINITE)
        for name, value in self.frozen().items():
            if value.device != theta.device or (value.dtype.is_floating_point and value.dtype != theta.dtype):
                raise InputError(
                    f"theta is {theta.dtype} on {theta.device} and the model's {name!r} is {value.dtype} on "
                    f"{value.device}; convert one of them."
                )

    def check_tasks(self, theta: Float[Tensor, "*b params"], tasks: TaskBatch) -> None:
        """Refuse tasks that do not fit θ, and a model that is no longer as it was given.

        Raises:
            InputError: the tasks' dtype or device is not θ's, or the model was put into a mode that has a memory.
        """
        refuse_stateful(self.model)
        for name, value in tasks.tensors().items():
            if value.device != theta.device:
                raise InputError(f"{name} is on {value.device} and theta on {theta.device}; move one of them.")
            if value.dtype.is_floating_point and value.dtype != theta.dtype:
                raise InputError(f"{name} is {value.dtype} and theta {theta.dtype}; convert one of them.")

    def manner(
        self,
        loss: Loss | None,
        u: Float[Tensor, "tasks params"],
        data: tuple[Tree, ...],
        reads: dict[str, Hashable] | None = None,
    ) -> Manner:
        """How the model is called with this loss on such data: looked at once, then known.

        Args:
            loss: ``None``: only the model is called.
            u: where it is looked at.
            data: inputs, targets and perhaps a mask; see ``TaskBatch.support``.
            reads: what model and loss read besides their arguments, where that is known.

        Raises:
            InputError: see ``amaml_core.manner.look``.
        """
        modes = tuple(module.training for module in self.model.modules())
        kind = (u.dtype, u.device.type, torch.is_autocast_enabled(u.device.type), len(data))
        with one_at_a_time:
            key = (id(loss), self._looked.state(reads or captured(loss=loss, model=self.model)), modes, *kind)
            if key not in self._looked.manners or not self._looked.manners[key][1].sure:
                self._looked.manners[key] = loss, self._look(loss, u, data)
            return self._looked.manners[key][1]

    @property
    def kinked(self) -> bool:
        """Whether the inner loss has kinks (ReLU, max-pooling), as far as it was looked at."""
        return any(manner.kinked for loss, manner in self._looked.manners.values() if loss is self.inner_loss)

    def _look(self, loss: Loss | None, u: Tensor, data: tuple[Tree, ...]) -> Manner:
        frozen = {name: value.clone() for name, value in self.frozen().items()}
        # vmap turns convolutions into grouped ones, for which the CPU's kernels are slow
        vmaps = not (self._convolves and u.device.type == "cpu")
        itself, rows = partial(self._itself, loss or size), len(u) if self._looked.all_tasks else ROWS
        try:
            call, exact = self._caller(loss or size, frozen), self._caller(loss or size, frozen, torch.float64)
            manner = look(call, exact, itself, self.model, loss, frozen, u, data, vmaps, rows)
        except MISTAKES as error:
            refuse(error)
        self._looked.note(manner)
        return manner

    def _itself(self, loss: Loss, u: Tensor, data: tuple[Tree, ...]) -> Tensor | None:
        """See ``amaml_core.manner.Itself``."""
        own = all(value.dtype == u.dtype for value in self.model.parameters() if value.is_floating_point())
        with written(self.model, self.names, (loss,), None if own else u.dtype) as plain:
            return None if plain.remembers(plain.losses[0], u, data) else plain.gradient(plain.losses[0], data, u)

    def _caller(self, loss: Loss, frozen: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Call:
        """What calls model and loss with these tensors in the place of ``frozen()``, in this dtype if one is given."""
        if dtype is not None:
            frozen = {name: value.to(dtype) if value.is_floating_point() else value for name, value in frozen.items()}
            loss = converted(loss, self.model, dtype)
        other = self.traced(frozen)
        return lambda manner, u, data: other._over_tasks(loss, manner, u, data)

    def predict(self, u: Float[Tensor, "tasks params"], x: Tree) -> Tree:
        """The model's outputs ``[B, n, ...]`` for inputs ``[B, n, ...]``, each task with its own parameters."""

        def work(problem: MetaProblem) -> Tree:
            problem, handed = problem.handing()
            at = handed(THETA, u)
            manner = problem.manner(None, at, (x,))
            return problem._evaluate(None, manner, at, handed.data(manner, (x,)))

        return self.unspoiled(work)

    def losses(
        self, loss: Loss, u: Float[Tensor, "tasks params"], data: tuple[Tree, ...], manner: Manner | None = None
    ) -> Float[Tensor, " tasks"]:
        """``[B]``: each task's loss at its own parameters.

        Args:
            loss: of a prediction and a target.
            u: a row a task.
            data: inputs, targets and perhaps a mask; see ``TaskBatch.support``.
            manner: how the model is called, where it is known.

        Raises:
            InputError: the loss is not a scalar, or model or loss fail on these tasks.
        """
        return self._evaluate(loss, manner or self.manner(loss, u, data), u, data)
