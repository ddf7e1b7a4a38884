"""A module as it is: called and differentiated by torch alone, with the parameters written into it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from amaml_core.modules import Loss, predict
from amaml_core.surroundings import by_parts, put_back, snapshot
from amaml_core.tasks import Tree


@dataclass(frozen=True)
class Plain:
    """The module itself, without vmap, functional_call or our code; inside of ``written`` only.

    Attributes:
        model: the module.
        losses: in the dtype of the parameters.
        parameters: those that are adapted.
        buffers: copies of all buffers, by name.
    """

    model: nn.Module
    losses: tuple[Loss, ...]
    parameters: list[nn.Parameter]
    buffers: dict[str, Tensor]

    def value(self, loss: Loss, u: Tensor, data: tuple[Tree, ...]) -> Tensor:
        """The loss of one task at u ``[d]``."""
        kept = self._write(u)
        try:
            return self._value(loss, u, data)
        finally:
            put_back(kept)

    def remembers(self, loss: Loss, u: Tensor, data: tuple[Tree, ...]) -> bool:
        """Whether a second call gives another value than the first."""
        kept = self._write(u)
        try:
            first, second = (self._value(loss, u, data).detach() for _ in "12")
        finally:
            put_back(kept)
        same = torch.equal(first, second) or bool(first.isnan() & second.isnan())
        return not same and not (first.is_cuda and torch.allclose(first, second))

    def _write(self, u: Tensor) -> dict[nn.Module, Any]:
        own = dict(self.model.named_buffers())
        for name, value in self.buffers.items():
            if name in own and not torch.equal(own[name], value):
                own[name].data = value.clone()
        parts = u.detach().split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data = part.view_as(parameter).clone()  # in place, it would spoil a graph of somebody's
        return snapshot(self.model)

    def _value(self, loss: Loss, u: Tensor, data: tuple[Tree, ...]) -> Tensor:
        x, *rest = tree_map(torch.clone, data)
        y, mask = (*rest, None, None)[:2]
        with by_parts():
            prediction = predict(self.model, x)
            return loss(prediction, y) if mask is None else _masked(loss, prediction, y, mask)

    def loss_at(self, loss: Loss, data: tuple[Tree, ...], u: Tensor) -> Tensor:
        """Of one task, a 0-d tensor without its graph."""
        return self.value(loss, u, data).detach()

    def gradient(self, loss: Loss, data: tuple[Tree, ...], u: Tensor) -> Tensor:
        """Of one task, ``[d]``, by torch.autograd."""
        with torch.enable_grad():
            grads = torch.autograd.grad(self.value(loss, u, data), self.parameters, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, grads, strict=True)]
        return torch.cat([value.reshape(-1) for value in found])


def _masked(loss: Loss, prediction: Tree, y: Tree, mask: Tensor) -> Tensor:
    """The mean over the examples that count, of each one's own loss."""
    counted = mask.nonzero().flatten().tolist()
    return torch.stack([loss(*tree_map(lambda value, i=i: value[i : i + 1], (prediction, y))) for i in counted]).mean()


@contextmanager
def written(
    model: nn.Module, names: Sequence[str], losses: Sequence[Loss], dtype: torch.dtype | None = None
) -> Iterator[Plain]:
    """The module itself, in a dtype where one is given, for values to be written into it; as it was afterwards.

    Args:
        model: the module.
        names: of the parameters that are adapted.
        losses: modules among them are copied, and converted likewise.
        dtype: of parameters and buffers meanwhile.
    """
    parameters = dict(model.named_parameters())
    before = {name: (value.data, value.requires_grad, value.grad) for name, value in parameters.items()}
    places = [(part, name, value) for part in model.modules() for name, value in part._buffers.items()]
    buffers = {id(value): value for _, _, value in places if value is not None}
    cast = lambda value: value.detach().clone().to(dtype if value.is_floating_point() else None)  # noqa: E731
    try:
        for name, value in parameters.items():
            value.data, value.grad = cast(value), None
            value.requires_grad_(name in names)
        new = {key: cast(value) for key, value in buffers.items()}
        for part, name, value in places:
            part._buffers[name] = None if value is None else new[id(value)]
        own = [copy.deepcopy(loss).to(dtype) if dtype and isinstance(loss, nn.Module) else loss for loss in losses]
        adapted = [parameters[name] for name in names]
        yield Plain(model, tuple(own), adapted, {name: value.clone() for name, value in model.named_buffers()})
    finally:
        for name, (data, wanted, grad) in before.items():
            parameters[name].data, parameters[name].grad = data, grad
            parameters[name].requires_grad_(wanted)
        for part, name, value in places:
            part._buffers[name] = value
