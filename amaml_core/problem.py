"""A model and its losses, seen as batched functions of flat parameters. The only place that touches torch.func."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from amaml_core.engine.rule import Engine, chosen
from amaml_core.engine.threads import one_at_a_time
from amaml_core.errors import InputError, positive_integer
from amaml_core.tasks import DATA, TaskBatch

Loss = Callable[[Tensor, Tensor], Tensor]


class MetaProblem:
    """What is meta-learned: an initialisation θ of (some of) a model's parameters, judged by its losses.

    Args:
        model: any module whose forward takes one input tensor. It is never changed.
        loss: ``loss(prediction, target) -> scalar`` of one task, used inside and outside.
        inner_loss: the loss on the support set where it differs from ``loss``.
        outer_loss: the loss on the query set where it differs from ``loss``.
        adapt: regular expression; parameters whose full name matches are adapted, the others keep the model's own
            values. ``None`` adapts all.
        shared: what happens to the parameters that ``adapt`` leaves out; ``"frozen"``: nothing.
        engine: ``"eager"``; ``"compiled"``: whole solver steps are compiled, once for each shape of the tasks; or
            ``"auto"``: compiled if at least ``PAYBACK`` outer updates are planned, the model has no convolutions and
            at most ``SMALL`` parameters are adapted, else eager. What is compiled holds Python values that model and
            loss use as they were at the first call; tensors may change. On the CPU it works on groups of tasks, a torch
            thread each: adaptive steps belong to a group, and groups of different sizes are compiled apart.
        planned_updates: outer updates that will be made with this problem, as far as known; only ``"auto"`` asks.
        chunk_size: at most so many tasks are worked on at once, which bounds the memory; ``None``: all of them.

    Raises:
        InputError: active dropout, running batch statistics, an ``adapt`` that matches nothing, mixed dtypes.

    Example:
        >>> import torch, amaml_core as am
        >>> problem = am.MetaProblem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
        >>> problem.initial_parameters(seed=0).shape
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
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise InputError(f"chunk_size={chunk_size!r} is not a positive number of tasks; use 1 or more, or None.")
        positive_integer("planned_updates", planned_updates)
        _refuse_stateful(model)
        self.model, self.inner_loss, self.outer_loss, self.chunk_size = model, inner, outer, chunk_size
        every = dict(model.named_parameters())
        try:
            pattern = re.compile(".*" if adapt is None else adapt)
        except re.error as error:
            raise InputError(f"adapt={adapt!r} is not a regular expression ({error}); correct it.") from None
        self._shapes = {name: value.shape for name, value in every.items() if pattern.fullmatch(name)}
        if not self._shapes:
            raise InputError(f"adapt={adapt!r} matches none of the parameters {', '.join(every)}; correct the pattern.")
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        own = {every[name].dtype for name in self._shapes}
        if len(own) > 1 or not next(iter(own)).is_floating_point:
            raise InputError(f"The adapted parameters have dtypes {own}; convert the model to one floating dtype.")
        self._convolves = any(isinstance(module, _ConvNd) for module in model.modules())
        self.planned_updates = planned_updates
        self._set_engine(engine)
        self._traced_frozen: dict[str, Tensor] | None = None  # stands in for the frozen part while a step is traced

    def _set_engine(self, engine: Engine) -> None:
        self.engine: Literal["eager", "compiled"] = chosen(
            engine, planned_updates=self.planned_updates, dim=self.dim, convolves=self._convolves
        )
        self.compiled: dict[Hashable, Any] = {}  # what is built for steps of its inner problems, and dies with it

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

    def initial_parameters(self, seed: int | None = 0) -> Float[Tensor, " params"]:
        """A start θ, ``[d]``, in ``named_parameters()`` order, row-major, in the model's dtype.

        Args:
            seed: every module's ``reset_parameters()`` is called on a copy under this seed (parameters of a module
                that has none keep the model's values); ``None``: the model's own values.
        """
        source = self.model
        if seed is not None:
            source = copy.deepcopy(source)
            cuda = sorted({p.get_device() for p in source.parameters() if p.is_cuda})
            with torch.random.fork_rng(devices=cuda):  # only the generators that are used are seeded, and restored
                torch.default_generator.manual_seed(seed)
                for index in cuda:
                    torch.cuda.default_generators[index].manual_seed(seed)
                for module in source.modules():
                    if callable(reset := getattr(module, "reset_parameters", None)):
                        reset()
        return self.flatten(dict(source.named_parameters()))

    def flatten(self, state: Mapping[str, Tensor]) -> Float[Tensor, " params"]:
        """The adapted entries of a ``state_dict`` as one vector ``[d]``.

        Raises:
            InputError: an adapted parameter is missing or has another shape.
        """
        for name, shape in self._shapes.items():
            if name not in state or state[name].shape != shape:
                found = list(state[name].shape) if name in state else "nothing"
                raise InputError(f"The state has {found} for {name!r}; it needs a tensor of shape {list(shape)}.")
        return torch.cat([state[name].detach().reshape(-1) for name in self._shapes])

    def unflatten(self, theta: Float[Tensor, " params"]) -> dict[str, Tensor]:
        """A whole ``state_dict`` of the model with θ in it, ready for ``load_state_dict``."""
        self.check_theta(theta)
        parts = self._split(theta.detach())
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        first_name = {id(value): name for name, value in reversed(list(self.model.named_parameters()))}
        for name, value in self.model.named_parameters(remove_duplicate=False):  # a tied weight has several names
            if (source := first_name[id(value)]) in parts:
                state[name] = parts[source].clone()  # no entry shares memory with θ or with the model
        return state

    def check_theta(self, theta: Tensor) -> None:
        """Refuse a θ that does not fit the model.

        Raises:
            InputError: wrong shape, values that are not finite, or a dtype or device that the frozen part lacks.
        """
        if not isinstance(theta, Tensor) or theta.shape != (self.dim,):
            found = list(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise InputError(f"theta is {found}; this problem needs a tensor of shape [{self.dim}].")
        if not theta.dtype.is_floating_point or not bool(torch.isfinite(theta).all()):
            raise InputError("theta must hold finite floating-point values.")
        for name, value in self.frozen().items():
            if value.device != theta.device or (value.dtype.is_floating_point and value.dtype != theta.dtype):
                raise InputError(
                    f"theta is {theta.dtype} on {theta.device} and the model's {name!r} is {value.dtype} on "
                    f"{value.device}; convert one of them."
                )

    def traced(self, frozen: Mapping[str, Tensor]) -> MetaProblem:
        """The same problem in the eager engine, with these tensors in the place of ``frozen()``: for a trace."""
        other = copy.copy(self)
        other.engine, other._traced_frozen = "eager", dict(frozen)
        return other

    def check_tasks(self, theta: Float[Tensor, "*b params"], tasks: TaskBatch) -> None:
        """Refuse tasks that do not fit θ, and a model that is no longer as it was given.

        Raises:
            InputError: the tasks' dtype or device is not θ's, or the model was put into a mode that has a memory.
        """
        _refuse_stateful(self.model)
        for name in DATA:
            value: Tensor = getattr(tasks, name)
            if value.device != theta.device:
                raise InputError(f"{name} is on {value.device} and theta on {theta.device}; move one of them.")
            if value.dtype.is_floating_point and value.dtype != theta.dtype:
                raise InputError(f"{name} is {value.dtype} and theta {theta.dtype}; convert one of them.")

    def predict(self, u: Float[Tensor, "tasks params"], x: Tensor) -> Tensor:
        """The model's outputs ``[B, n, ...]`` for inputs ``[B, n, ...]``, each task with its own parameters."""
        return self._over_tasks(lambda one, inputs: self._call(one, inputs), u, x)

    def losses(self, loss: Loss, u: Float[Tensor, "tasks params"], x: Tensor, y: Tensor) -> Float[Tensor, " tasks"]:
        """``[B]``: each task's loss at its own parameters.

        Raises:
            InputError: the loss is not a scalar, or the model draws random numbers.
        """

        def one_task(one: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
            value = loss(self._call(one, inputs), targets)
            if not isinstance(value, Tensor) or value.ndim:
                found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f'The loss returned {found}; it must return a scalar (reduction="mean").')
            return value

        return self._over_tasks(one_task, u, x, y)

    def _over_tasks(self, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        try:
            # vmap turns convolutions into grouped ones, for which the CPU's kernels are slow
            if self._convolves and arguments[0].device.type == "cpu":
                with nullcontext() if self._traced_frozen is not None else _nothing_drawn():
                    return torch.stack([function(*one) for one in zip(*arguments, strict=True)])
            return vmap(function)(*arguments)
        except RuntimeError as error:
            if "random" in str(error):
                raise InputError("The model draws random numbers in its forward pass; switch dropout off.") from error
            if isinstance(error, torch.OutOfMemoryError) or not re.search("size|shape|dtype", str(error)):
                raise
            told = str(error).splitlines()[0]
            raise InputError(f"The model or the loss cannot take these tasks ({told}); mend the shapes.") from error

    def _call(self, u: Tensor, x: Tensor) -> Tensor:
        with one_at_a_time:  # functional_call puts the parameters into the module itself and takes them out again
            return functional_call(self.model, {**self.frozen(), **self._split(u)}, (x,))

    def _split(self, u: Tensor) -> dict[str, Tensor]:
        parts = u.split(self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def frozen(self) -> dict[str, Tensor]:
        """What is not adapted, by name: the other parameters and all buffers, detached."""
        if self._traced_frozen is not None:
            return self._traced_frozen
        with one_at_a_time:
            every = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {name: value.detach() for name, value in every.items() if name not in self._shapes}


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Refuse random numbers, as vmap does."""
    before = torch.random.get_rng_state()
    yield
    if not torch.equal(before, torch.random.get_rng_state()):
        raise RuntimeError("random numbers were drawn")


def _refuse_stateful(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, _NormBase) and module.track_running_stats and module.training:
            raise InputError(
                f"{kind} keeps running statistics, which adaptation would change in silence; "
                "build it with track_running_stats=False (or put it in eval mode to hold them constant)."
            )
        rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
        if module.training and isinstance(rate, int | float) and rate > 0:
            raise InputError(f"{kind} has active dropout {rate:g}; set it to 0 or call model.eval().")
