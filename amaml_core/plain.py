"""A module as it is: called and differentiated by torch alone, with the parameters written into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from amaml_core.differences import repeats
from amaml_core.engine.threads import one_at_a_time
from amaml_core.masks import by_example
from amaml_core.mistakes import MISTAKES, refuse
from amaml_core.modules import Loss, converted, holding, predict
from amaml_core.surroundings import by_parts, put_back, same, snapshot
from amaml_core.tasks import Tree


@dataclass(frozen=True)
class Plain:
    """The module itself, without vmap, functional_call or our code; inside of ``written`` only."""

    model: nn.Module
    losses: tuple[Loss, ...]  # in the dtype of the parameters
    parameters: list[nn.Parameter]  # those that are adapted
    buffers: dict[str, Tensor]  # copies of all, by name

    def value(self, loss: Loss, data: tuple[Tree, ...], u: Tensor) -> Tensor:
        """The loss of one task at u ``[d]``."""
        return self._values(loss, data, u, calls=1)[0]

    def remembers(self, loss: Loss, u: Tensor, data: tuple[Tree, ...]) -> bool:
        """Whether a second call gives another value than the first."""
        return not repeats(*(value.detach() for value in self._values(loss, data, u, calls=2)))

    def gradient(self, loss: Loss, data: tuple[Tree, ...], u: Tensor) -> Tensor:
        """Of one task, ``[d]``, by torch.autograd."""
        with torch.enable_grad():
            value = self.value(loss, data, u)
            try:
                grads = torch.autograd.grad(value, self.parameters, allow_unused=True)
            except MISTAKES as error:
                refuse(error)
        pairs = zip(self.parameters, grads, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs])

    def _values(self, loss: Loss, data: tuple[Tree, ...], u: Tensor, calls: int) -> list[Tensor]:
        """What so many calls give one after the other, the first on the module as it was."""
        own = dict(self.model.named_buffers())
        for name, value in self.buffers.items():
            if name in own and not same(own[name], value):
                own[name].data = value.clone()
        parts = u.detach().split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data = part.view_as(parameter).clone()  # in place, it would spoil a graph of somebody's
        kept = snapshot(self.model)
        try:
            with torch.enable_grad():  # a model may differentiate in its forward pass
                return [_loss(self.model, loss, *tree_map(torch.clone, data)) for _ in range(calls)]
        finally:
            put_back(kept)


def _loss(model: nn.Module, loss: Loss, x: Tree, y: Tree = None, mask: Tensor | None = None) -> Tensor:
    """One task's; where there is a mask, that of the examples that count alone."""
    if mask is not None:
        x, y = by_example((x, y), mask, lambda leaf: leaf[mask])
    with by_parts():
        return loss(predict(model, x), y)


@contextmanager
def written(
    model: nn.Module, names: Sequence[str], losses: Sequence[Loss], dtype: torch.dtype | None = None
) -> Iterator[Plain]:
    """The module itself, in a dtype where one is given, for values to be written into it; as it was afterwards.

    Adapted are the parameters of these names; losses that are modules are copied, and converted likewise.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    before = {name: (value.data, value.requires_grad, value.grad) for name, value in parameters.items()}
    cast = lambda value: value.detach().clone().to(dtype if value.is_floating_point() else None)  # noqa: E731
    own = [converted(loss, model, dtype) if dtype else loss for loss in losses]
    with one_at_a_time, holding(model, parameters | {name: cast(value) for name, value in buffers.items()}):
        try:
            for name, value in parameters.items():
                value.data, value.grad = cast(value), None
                value.requires_grad_(name in names)
            now = {name: value.clone() for name, value in model.named_buffers()}
            yield Plain(model, tuple(own), [parameters[name] for name in names], now)
        finally:
            for name, (data, wanted, grad) in before.items():
                parameters[name].data, parameters[name].grad = data, grad
                parameters[name].requires_grad_(wanted)
