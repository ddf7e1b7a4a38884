"""Batches of few-shot tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.utils._pytree import keystr, tree_leaves, tree_leaves_with_path, tree_map

from amaml_core.errors import InputError, positive_integer

Tree = Any
"""A tensor, or tuples, lists and dicts of such (torch's pytree)."""

DATA = ("support_x", "support_y", "query_x", "query_y")


@dataclass(frozen=True)
class TaskBatch:
    """B tasks, stacked along a leading task axis.

    Inputs and targets are tensors ``[B, n, ...]``, or tuples, lists or dicts of tensors ``[B, ...]``, nested as they
    like. A model takes a tuple or list of inputs as its arguments, a dict as its keywords.

    Tasks with fewer examples than others are filled up to the same n and masked: a loss is then asked for one example
    at a time (with a leading axis of 1), and the mean over those that count is taken. A leaf whose second axis is as
    long as the mask's holds an example a row. A model or a loss for which that is not the loss of the examples that
    count alone is refused: batch statistics, attention over the set, class weights, sums.

    Attributes:
        support_x: inputs to adapt on, ``[B, n_support, ...]``.
        support_y: their targets, ``[B, n_support, ...]`` (class indices may be integers).
        query_x: inputs that the adapted model is judged on, ``[B, n_query, ...]``.
        query_y: their targets, ``[B, n_query, ...]``; of another kind where the outer loss wants another.
        horizon: ``[B]``, each task's own training time T_b > 0; ``None`` leaves T to the method.
        support_mask: ``[B, n_support]``, which of the examples count; ``None``: all.
        query_mask: ``[B, n_query]``, likewise.

    Raises:
        InputError: shapes, devices or floating dtypes disagree, a value is not finite, or a task has no example left.

    Example:
        >>> import torch, amaml_core as am
        >>> image, place, label = torch.randn(4, 5, 1, 8, 8), torch.randn(4, 5, 2), torch.randint(3, (4, 5))
        >>> tasks = am.TaskBatch((image, place), label, (image, place), label)
        >>> [part.shape[0] for part in tasks[:3].support_x]
        [3, 3]
    """

    support_x: Tree
    support_y: Tree
    query_x: Tree
    query_y: Tree
    horizon: Float[Tensor, " tasks"] | None = None
    support_mask: Bool[Tensor, "tasks support"] | None = None
    query_mask: Bool[Tensor, "tasks query"] | None = None

    def __post_init__(self) -> None:
        named = self.tensors()
        for name, value in named.items():
            if not isinstance(value, Tensor):
                raise InputError(f"TaskBatch.{name} is a {type(value).__name__}; pass a torch.Tensor.")
            if value.layout != torch.strided:
                raise InputError(f"TaskBatch.{name} is sparse; pass a dense tensor.")
            if name in DATA and value.ndim < 2:
                raise InputError(f"TaskBatch.{name} has shape {list(value.shape)}; it needs [tasks, examples, ...].")
            if value.ndim < 1:
                raise InputError(f"TaskBatch.{name} has no axis; it needs [tasks, ...].")
            if value.numel() == 0:
                raise InputError(f"TaskBatch.{name} has shape {list(value.shape)} and holds nothing; pass some data.")
            if value.dtype.is_floating_point and not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value)).sum())
                raise InputError(f"TaskBatch.{name} has {bad} NaN or infinite value(s); clean the data first.")
        if empty := [name for name in DATA if not tree_leaves(getattr(self, name))]:
            raise InputError(f"TaskBatch.{empty[0]} holds no tensor; pass some data.")
        self._agree("device", {name: value.device for name, value in named.items()})
        self._agree("number of tasks", {name: value.shape[0] for name, value in named.items()})
        self._agree("floating dtype", {n: v.dtype for n, v in named.items() if v.dtype.is_floating_point})
        for part in ("support", "query"):
            sizes = {name: named[name].shape[1] for name in (f"{part}_x", f"{part}_y") if name in named}
            self._agree("number of examples", sizes)
            self._check_mask(f"{part}_mask", getattr(self, f"{part}_y"))
        inputs = {name: named[name] for name in ("support_x", "query_x") if name in named}  # none where they are trees
        if len(inputs) == 2:
            self._agree("dtype", {name: value.dtype for name, value in inputs.items()})
            self._agree("input shape", {name: tuple(value.shape[2:]) for name, value in inputs.items()})
        if self.horizon is not None:
            if self.horizon.ndim != 1 or not self.horizon.dtype.is_floating_point:
                raise InputError("TaskBatch.horizon must be a floating-point tensor of shape [tasks].")
            if not bool((self.horizon > 0).all()):
                raise InputError("TaskBatch.horizon must be positive for every task.")

    def _check_mask(self, name: str, targets: Tree) -> None:
        if (mask := getattr(self, name)) is None:
            return
        shapes = {tuple(leaf.shape[:2]) for leaf in tree_leaves(targets)}
        if mask.dtype != torch.bool or shapes != {tuple(mask.shape)}:
            needed = " or ".join(str(list(shape)) for shape in sorted(shapes))
            raise InputError(
                f"TaskBatch.{name} is {mask.dtype} of shape {list(mask.shape)}; it needs torch.bool of shape {needed}."
            )
        if not bool(mask.any(1).all()):
            raise InputError(f"TaskBatch.{name} leaves a task without an example; drop that task.")

    @staticmethod
    def _agree(what: str, values: Mapping[str, object]) -> None:
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            raise InputError(f"TaskBatch: the {what} differs ({listed}); make them equal.")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: ``support_x``, or ``support_x['image']`` where it is a dict, …."""
        there = {name: value for name, value in vars(self).items() if value is not None}
        return {name + keystr(path): leaf for name in there for path, leaf in tree_leaves_with_path(there[name])}

    @property
    def support(self) -> tuple[Tree, ...]:
        """Inputs, targets and, where there is one, the mask of the support set."""
        return (self.support_x, self.support_y, *([] if self.support_mask is None else [self.support_mask]))

    @property
    def query(self) -> tuple[Tree, ...]:
        """Inputs, targets and, where there is one, the mask of the query set."""
        return (self.query_x, self.query_y, *([] if self.query_mask is None else [self.query_mask]))

    def __repr__(self) -> str:
        """Shapes, not values."""
        return f"TaskBatch({', '.join(f'{name} {list(value.shape)}' for name, value in self.tensors().items())})"

    def __len__(self) -> int:
        """The number of tasks B."""
        return tree_leaves(self.support_x)[0].shape[0]

    def __getitem__(self, index: slice | Tensor) -> TaskBatch:
        """The tasks at a slice, an index tensor or a boolean mask."""
        return self.map(lambda value: value[index])

    def chunks(self, size: int | None) -> Iterator[TaskBatch]:
        """This batch in runs of at most ``size`` tasks; in one piece where ``size`` is None."""
        size = size or len(self)
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TaskBatch:
        """A copy on ``device``, its floating-point tensors in ``dtype``."""
        return self.map(lambda value: value.to(device, dtype if value.dtype.is_floating_point else None))

    def map(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        """The batch of what a function makes of each of its tensors."""
        return TaskBatch(**{n: v if v is None else tree_map(function, v) for n, v in vars(self).items()})


Batches = Callable[[int], TaskBatch]
"""The task batch of outer update g = 0, 1, …: a pure function, so that a resumed run sees the same tasks."""


def batches(pool: TaskBatch, size: int, seed: int) -> Batches:
    """Batches of ``size`` different tasks, drawn from a pool by the seed and the number of the update.

    Raises:
        InputError: the pool holds fewer tasks.
    """
    positive_integer("size", size)
    if size > len(pool):
        raise InputError(f"A batch of {size} tasks cannot be drawn from {len(pool)}; lower size.")
    return lambda update: pool[torch.randperm(len(pool), generator=generator(seed, update))[:size]]


def generator(seed: int, update: int) -> Generator:
    """The random numbers of one outer update, on the CPU; neither neighbouring updates nor seeds share them."""
    digest = hashlib.sha256(f"{seed} {update}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
