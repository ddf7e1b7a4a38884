"""Calls of a model with the parameters of tasks: for all of them at once, or one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from amaml_core.engine.rule import Built
from amaml_core.engine.threads import one_at_a_time
from amaml_core.errors import InputError, first_line
from amaml_core.looked import Looked
from amaml_core.manner import Manner
from amaml_core.mistakes import MISTAKES, refuse
from amaml_core.modules import Loss, detached, evaluate, holding, one_by_one, tensors
from amaml_core.tasks import Tree
from amaml_core.writes import Handed, Result, unspoiled


class Calls:
    """What a problem calls, and on what: its model with the parameters that it adapts and those that it does not.

    Args:
        model: any module.
        inner_loss: its loss on support sets.
        outer_loss: that on query sets.
    """

    engine: Built
    _shapes: Mapping[str, torch.Size]  # of the adapted parameters, by name
    _sizes: list[int]

    def __init__(self, model: nn.Module, inner_loss: Loss, outer_loss: Loss) -> None:
        self.model, self.inner_loss, self.outer_loss = model, inner_loss, outer_loss
        self._looked = Looked()
        self._stand_in: dict[str, Tensor] | None = None  # for the frozen part
        self._handed: Handed | None = None  # where it is noted what is handed out
        self.tracing = False

    def traced(self, frozen: Mapping[str, Tensor]) -> Self:
        """The same problem in the eager engine, with these tensors in the place of ``frozen()``: for a trace."""
        return self._but(engine="eager", _stand_in=dict(frozen), tracing=True)

    def _but(self, **changes: Any) -> Self:
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def unspoiled(self, work: Callable[[Self], Result]) -> Result:
        """The result of some work with this problem, which changes nothing: see ``amaml_core.writes.unspoiled``."""
        return unspoiled(self._looked, lambda handed: work(self._but(_handed=handed)))

    def handing(self) -> tuple[Self, Handed]:
        """The problem on copies of its buffers, and what copies and notes the rest that is handed out to many calls."""
        handed = Handed() if self._handed is None else self._handed
        return self._but(_stand_in=handed.buffers(self.model, self.frozen())), handed

    def _evaluate(self, loss: Loss | None, manner: Manner, u: Tensor, data: tuple[Tree, ...]) -> Any:
        if self.tracing:
            return self._over_tasks(loss, manner, u, data)
        if not torch.is_grad_enabled():  # a model may differentiate in its forward pass: forces from an energy
            with torch.enable_grad():
                return detached(self._evaluate(loss, manner, *detached((u, data))))
        try:
            return self._over_tasks(loss, manner, u, data)
        except MISTAKES as error:
            if not manner.batched or isinstance(error, InputError | torch.OutOfMemoryError):
                refuse(error)
            told = first_line(error)
        try:
            found = self._over_tasks(loss, replace(manner, batched=False), u, data)
        except MISTAKES as error:
            refuse(error)
        manner.batched = False  # whoever knows of this manner, from now on
        self._looked.tell(f"The tasks are worked on one after the other: vmap cannot ({told}).")
        return found

    def _over_tasks(self, loss: Loss | None, manner: Manner, u: Tensor, data: tuple[Tree, ...]) -> Any:
        call = partial(self._call, loss, manner)
        if manner.batched:
            return vmap(lambda one, *own: call(one, own))(u, *data)
        return one_by_one(call, u, data, draws=not self.tracing)

    def _call(self, loss: Loss | None, manner: Manner, u: Tensor, data: tuple[Tree, ...]) -> Any:
        if manner.copies_data:
            data = tree_map(torch.clone, data)
        frozen = self.frozen()
        if manner.copies_frozen:
            frozen = {name: value.clone() for name, value in frozen.items()}
        with one_at_a_time:
            if self._handed is not None:
                self._handed.keep(self.model, self.inner_loss, self.outer_loss)
            with manner.around(self.model, loss), holding(self.model, frozen | self.split(u)):
                return evaluate(self.model, loss, *data, batched=manner.batched, copied=manner.copies_model)

    def split(self, u: Float[Tensor, " params"]) -> dict[str, Tensor]:
        """The adapted parameters by name: views of u, ``[d]``."""
        parts = u.split(self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def frozen(self) -> dict[str, Tensor]:
        """What is not adapted, by name: the other parameters and all buffers, detached."""
        if self._stand_in is not None:
            return self._stand_in
        with one_at_a_time:
            every = tensors(self.model)
            others = {name: value.detach() for name, value in every.items() if name not in self._shapes}
        return {name: value.clone() if value.is_inference() else value for name, value in others.items()}
