"""Examples that do not count: what stands in their place, and that they have no part in anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from amaml_core.differences import off
from amaml_core.errors import InputError, first_line
from amaml_core.mistakes import MISTAKES
from amaml_core.tasks import Tree

PART = (
    "What is masked has a part in the loss of the examples that count ({}): batch statistics, or attention over the "
    "set; have the model work on each example by itself, or pass tasks of equal sizes without a mask."
)
NO_MEAN = (
    "With a mask the loss is asked for one example at a time, and the mean of that is {} the loss of the examples that "
    "count: it is no mean over examples (a sum, a root, class weights, ignore_index); make it one, or pass tasks of "
    "equal sizes without a mask."
)


def filled(data: tuple[Tree, ...]) -> tuple[Tree, ...]:
    """Inputs, targets and mask ``[B, n]``, each example that does not count a copy of one of its task that does.

    What it was filled up with may lie where a model has no value: 0 · ∞ would make that of the others NaN.
    """
    if len(data) < 3:
        return data
    *trees, mask = data
    rows = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), mask.byte().argmax(1, keepdim=True))
    return *(
        by_example(tree, mask, lambda leaf: leaf[torch.arange(len(leaf)).unsqueeze(1), rows]) for tree in trees
    ), mask


def by_example(tree: Tree, mask: Tensor, function: Callable[[Tensor], Tensor]) -> Tree:
    """What a function makes of the leaves of a tree that hold an example a row, as a mask ``[B, n]`` does."""
    return tree_map(lambda leaf: function(leaf) if leaf.shape[: mask.ndim] == mask.shape else leaf, tree)


def count_alone(
    call: Callable[[Tensor, Any], Tensor], u: Tensor, data: Any, close: Callable[[Tensor, Tensor, float], bool]
) -> None:
    """Hold the mean over the examples that count against the loss of these alone.

    One more of each task is left out for it, for here perhaps all count.

    Args:
        call: (u ``[B, d]``, data of B tasks) -> losses ``[B]``.
        u: where.
        data: inputs, targets and perhaps a mask.
        close: whether two results are the same within a share of what is let pass.

    Raises:
        InputError: they differ.
    """
    if len(data) < 3:
        return
    *trees, mask = tree_map(torch.clone, data)
    for counted in mask:
        if counted.sum() > 1:
            counted[counted.nonzero()[-1]] = False
    masked = call(u, (*tree_map(torch.clone, trees), mask)).detach()
    found = []
    try:
        for b, counted in enumerate(mask):
            own = tree_map(lambda leaf, b=b: leaf[b : b + 1], tuple(trees))
            own = by_example(own, counted[None], lambda leaf, counted=counted: leaf[:, counted])
            found.append(call(u[b : b + 1], own).detach())
    except MISTAKES as error:
        raise InputError(PART.format(first_line(error))) from error
    alone = torch.cat(found)
    there = ~alone.isnan()
    if close(masked[there], alone[there], 0.1):
        return
    told = f"{off(masked[there], alone[there]):.1%} off"
    other = call(u, filled((*trees, mask))).detach()
    raise InputError((NO_MEAN if bool(masked.isnan().any()) or close(other, masked, 0.1) else PART).format(told))
