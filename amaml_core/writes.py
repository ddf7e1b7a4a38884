"""What a model or a loss writes to while it is called: nothing of the caller's, and nothing that a result rests on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from amaml_core.engine.threads import one_at_a_time
from amaml_core.errors import InputError
from amaml_core.looked import Looked
from amaml_core.manner import Manner, shapes
from amaml_core.mistakes import MISTAKES, WRITES
from amaml_core.surroundings import put_back, same, snapshot
from amaml_core.tasks import Tree

THETA, DATA = "theta", "data"
Result = TypeVar("Result")


class Handed:
    """Copies in the place of what is the caller's, made once for many calls."""

    def __init__(self) -> None:
        self._copies: list[tuple[str, Tensor, Tensor | None]] = []
        self._kept: list[tuple[Any, Any]] | None = None  # what is built already calls no module: then nothing is

    def __call__(self, name: str, given: Tensor) -> Tensor:
        """A copy to be handed out."""
        copy = given.clone()
        self._copies.append((name, copy, None if name == DATA else given))
        return copy

    def buffers(self, model: nn.Module, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is not adapted, its buffers copied."""
        with one_at_a_time:
            own = {name for name, _ in model.named_buffers()}
        return {name: self(name, value) if name in own else value for name, value in frozen.items()}

    def data(self, manner: Manner, data: tuple[Tree, ...]) -> tuple[Tree, ...]:
        """Data for calls in a manner, copied where they may be written to and the look did not tell.

        What depends on values is a branch of Python's, and vmap refuses it, or on shapes: other ones than were looked
        at. Where each call copies them nothing is left to do.
        """
        if manner.copies_data or (manner.batched and manner.shapes == shapes(data)):
            return data
        return tree_map(partial(self, DATA), data)

    def keep(self, *parts: Any) -> None:
        """Keep the attributes of the modules among these and in them, at the first call of them."""
        if self._kept is None:
            self._kept = snapshot(*parts)

    def written(self) -> set[str]:
        """The names of what was written to: by its version, and θ and buffers on the CPU by their values.

        Attributes are put back.
        """
        with one_at_a_time:
            left = put_back(self._kept or [])
        found = {
            name
            for name, copy, given in self._copies
            if copy._version or (given is not None and copy.is_cpu and not same(copy.detach(), given.detach()))
        }
        return found | ({"attributes"} if left else set())


def unspoiled(looked: Looked, work: Callable[[Handed], Result]) -> Result:
    """The result of some work, in which a model is called many times, on the copies that are handed out.

    A look at two tasks does not tell of all that a model may write to: it may depend on values and shapes. What it
    wrote here and was not known to write to is looked at then, with all tasks, and the work is made again. Attributes
    of the modules are as before, whatever happens.

    Raises:
        InputError: parameters are written to, or a look at θ does not tell whether results rest on what is written.
    """
    known: set[str] = set()
    while True:
        handed = Handed()
        try:
            result = work(handed)
        except BaseException as error:
            if not (found := handed.written()) or not isinstance(error, MISTAKES):
                raise
        else:
            if not (found := handed.written()):
                return result
        if THETA in found:
            raise InputError(WRITES)
        if again := sorted(found & known):
            raise InputError(
                f"The model or the loss changes its {again[0]!r} while tasks adapt, but not at theta already: nothing "
                "tells whether results rest on it; put that module into eval mode, or keep no state in it."
            )
        known |= found
        looked.closer(data=DATA in found)
