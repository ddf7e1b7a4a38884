"""What is known of how a problem's model is called, and what was told of it."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field

from amaml_core.engine.captured import STATES
from amaml_core.errors import ModelWarning
from amaml_core.manner import Manner
from amaml_core.modules import Loss


@dataclass
class Looked:
    """What is known of how a problem's model is called, shared by all copies of the problem."""

    # by loss, modes and kind of tensor; the losses are kept, for they are known by their identity
    manners: dict[Hashable, tuple[Loss | None, Manner]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # that were told
    reads: list[dict[str, Hashable]] = field(default_factory=list)  # by model and losses, at each look
    all_tasks: bool = False  # whether looks take all tasks of a batch, and not two
    written: Manner = field(default_factory=Manner)  # what was once seen to be written to is copied, or restored

    def state(self, reads: dict[str, Hashable]) -> int:
        """The number of what model and loss read now; of what changes time and again that of the last one looked at."""
        if reads not in self.reads and len(self.reads) < STATES:
            self.reads.append(reads)
        return self.reads.index(reads) if reads in self.reads else STATES - 1

    def closer(self, *, data: bool) -> None:
        """Look again, at all tasks: more was written to than was known; ``data``: those were."""
        self.all_tasks = True
        self.written.copies_data |= data
        self.manners.clear()

    def note(self, manner: Manner) -> None:
        """Keep and tell what was seen at a look."""
        for name in ("copies_data", "copies_frozen", "restores"):
            there = getattr(self.written, name) or getattr(manner, name)
            setattr(self.written, name, there)
            setattr(manner, name, there)
        if manner.detached:
            self.tell(
                f"The gradient is {manner.detached:.0%} off central differences of the loss: something in the model or "
                "the loss is detached or has hooks. Training follows torch's gradient, and so does the meta-gradient."
            )
        if manner.why:
            self.tell(f"The tasks are worked on one after the other: {manner.why}.")

    def tell(self, note: str) -> None:
        """Warn of it, once."""
        if note not in self.notes:
            self.notes.append(note)
            warnings.warn(note, ModelWarning, stacklevel=2)
