"""Modules of anybody's: which can be used, how they take inputs of any structure, with a loss on top."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from amaml_core.errors import InputError
from amaml_core.tasks import Tree

Loss = Callable[[Any, Any], Tensor]
"""(prediction, target) of one task -> a scalar."""

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied one by its first."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def predict(model: nn.Module, x: Tree) -> Tree:
    """A model's outputs: a tuple or list of inputs are its arguments, a dict its keywords."""
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


class Task(nn.Module):
    """A model with its loss on top, so that the loss too is called while the model holds a task's parameters.

    Args:
        model: which is a part of it, unchanged.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, loss: Loss | None, batched: bool, copied: bool, x: Tree, y: Tree = None, mask: Tensor | None = None
    ) -> Any:
        """The loss of one task, or the prediction where there is none.

        Args:
            loss: of the prediction and y; the mean of it over single examples where there is a mask.
            batched: whether vmap may be used.
            copied: a copy of the model is called, which keeps the parameters that this one holds now.
            x: inputs.
            y: targets.
            mask: ``[n]``, the examples that count.
        """
        model = self.model
        if copied:
            model = copy.deepcopy(model, {id(value): value for value in tensors(model).values()})
        prediction = predict(model, x)
        if loss is None:
            return prediction
        if mask is None:
            return _scalar(loss(prediction, y))

        def of_one(prediction: Tree, y: Tree) -> Tensor:
            return _scalar(loss(*tree_map(lambda value: value.unsqueeze(0), (prediction, y))))

        if batched:
            each = vmap(of_one)(prediction, y)
        else:
            leaves, structure = tree_flatten((prediction, y))
            rows = zip(*(leaf.unbind() for leaf in leaves), strict=True)
            each = torch.stack([of_one(*tree_unflatten(row, structure)) for row in rows])
        return torch.where(mask, each, 0).sum() / mask.sum()


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim:
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f'The loss returned {found}; it must return a scalar (reduction="mean").')
    return value


def size(prediction: Tree, *_: Tree) -> Tensor:
    """A loss for a model of which only the predictions are wanted."""
    return torch.stack([leaf.square().sum() for leaf in tree_leaves(prediction) if leaf.is_floating_point()]).sum()


def reset(module: nn.Module) -> list[str]:
    """Initialise all parts of a module, then itself; the names of the parameters that no ``reset_parameters`` knows."""
    kept = [f"{name}.{inner}" for name, part in module.named_children() for inner in reset(part)]
    own = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(own):
        own()
        return []
    return [*kept, *(name for name, _ in module.named_parameters(recurse=False))]


def refuse_unusable(model: nn.Module) -> None:
    """Refuse modules that cannot be called with other parameters than their own.

    Raises:
        InputError: naming the module and what to pass.
    """
    for name, module in model.named_modules():
        kind = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{kind} is scripted, and cannot be called with other parameters; pass the module itself.")
        if isinstance(module, WRAPPERS):
            raise InputError(f"{kind} spreads a model over devices; pass its .module.")
    if lazy := [name for name, value in tensors(model).items() if is_lazy(value)]:
        raise InputError(f"The parameter {lazy[0]!r} has no shape yet; call the model once on an input of its own.")


def refuse_stateful(model: nn.Module) -> None:
    """Refuse modules that are in a mode in which they draw random numbers or remember.

    Raises:
        InputError: naming the module and the remedy.
    """
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
