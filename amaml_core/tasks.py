"""Batches of few-shot tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from amaml_core.errors import InputError, positive_integer

DATA = ("support_x", "support_y", "query_x", "query_y")


@dataclass(frozen=True)
class TaskBatch:
    """B tasks of equal shape, stacked along a leading task axis.

    Attributes:
        support_x: inputs to adapt on, ``[B, n_support, ...]``.
        support_y: their targets, ``[B, n_support, ...]`` (class indices may be integers).
        query_x: inputs that the adapted model is judged on, ``[B, n_query, ...]``.
        query_y: their targets, ``[B, n_query, ...]``.
        horizon: ``[B]``, each task's own training time T_b > 0; ``None`` leaves T to the method.

    Raises:
        InputError: shapes, devices or floating dtypes disagree, or a value is not finite.
    """

    support_x: Shaped[Tensor, "tasks support *x"]
    support_y: Shaped[Tensor, "tasks support *y"]
    query_x: Shaped[Tensor, "tasks query *x"]
    query_y: Shaped[Tensor, "tasks query *y"]
    horizon: Float[Tensor, " tasks"] | None = None

    def __post_init__(self) -> None:
        named = {name: value for name, value in self._named() if value is not None}
        for name, value in named.items():
            if not isinstance(value, Tensor):
                raise InputError(f"TaskBatch.{name} is a {type(value).__name__}; pass a torch.Tensor.")
            if name != "horizon" and value.ndim < 2:
                raise InputError(f"TaskBatch.{name} has shape {list(value.shape)}; it needs [tasks, examples, ...].")
            if value.numel() == 0:
                raise InputError(f"TaskBatch.{name} has shape {list(value.shape)} and holds nothing; pass some data.")
            if value.dtype.is_floating_point and not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value)).sum())
                raise InputError(f"TaskBatch.{name} has {bad} NaN or infinite value(s); clean the data first.")
        self._agree("device", {name: value.device for name, value in named.items()})
        self._agree("number of tasks", {name: value.shape[0] for name, value in named.items()})
        self._agree("floating dtype", {n: v.dtype for n, v in named.items() if v.dtype.is_floating_point})
        for part in ("support", "query"):
            sizes = {name: named[name].shape[1] for name in (f"{part}_x", f"{part}_y")}
            self._agree("number of examples", sizes)
        for letter in "xy":
            self._agree("dtype", {name: named[name].dtype for name in (f"support_{letter}", f"query_{letter}")})
        self._agree("input shape", {n: tuple(named[n].shape[2:]) for n in ("support_x", "query_x")})
        self._agree("target shape", {n: tuple(named[n].shape[2:]) for n in ("support_y", "query_y")})
        if self.horizon is not None:
            if self.horizon.ndim != 1 or not self.horizon.dtype.is_floating_point:
                raise InputError("TaskBatch.horizon must be a floating-point tensor of shape [tasks].")
            if not bool((self.horizon > 0).all()):
                raise InputError("TaskBatch.horizon must be positive for every task.")

    @staticmethod
    def _agree(what: str, values: Mapping[str, object]) -> None:
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            raise InputError(f"TaskBatch: the {what} differs ({listed}); make them equal.")

    def _named(self) -> Iterator[tuple[str, Tensor | None]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))

    def __len__(self) -> int:
        """The number of tasks B."""
        return self.support_x.shape[0]

    def __getitem__(self, index: slice | Tensor) -> TaskBatch:
        """The tasks at a slice, an index tensor or a boolean mask."""
        return self._map(lambda value: value[index])

    def chunks(self, size: int | None) -> Iterator[TaskBatch]:
        """This batch in runs of at most ``size`` tasks; in one piece where ``size`` is None."""
        size = size or len(self)
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TaskBatch:
        """A copy on ``device``, its floating-point tensors in ``dtype``."""
        return self._map(lambda value: value.to(device, dtype if value.dtype.is_floating_point else None))

    def _map(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        changed = {name: function(value) for name, value in self._named() if value is not None}
        return TaskBatch(**changed)


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
