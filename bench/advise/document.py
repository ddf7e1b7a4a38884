"""What a profile leaves beside its records. No torch, so that reports can show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

ADVICE = "advice.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recommendation(_Strict):
    """What to use.

    Attributes:
        method: its name in the registry.
        options: all of them.
        chunk_size: tasks at a time, where that has to be said.
        name: for people.
        call: what makes the method.
    """

    method: str
    options: dict[str, Any]
    chunk_size: int | None
    name: str
    call: str


class Measured(_Strict):
    """One method at one length.

    Attributes:
        method: its name in the registry.
        options: all of them.
        chunk_size: tasks at a time, where that was said.
        name: for people.
        target: what it estimates.
        metrics: on the first tasks.
        failures: status and reason by probe.
        error: the worst distance to the nearer gradient on all tasks that were looked at; None where there were none.
        checks: how many batches of other tasks those were.
        outcome: "recommended", or what speaks against it in a word or two.
    """

    method: str
    options: dict[str, Any]
    chunk_size: int | None
    name: str
    target: str
    metrics: dict[str, float | int]
    failures: dict[str, tuple[str, str]]
    error: float | None
    checks: int
    outcome: str


class Document(_Strict):
    """The advice, as it is kept.

    Attributes:
        factory: whose problem it is about.
        memory_bytes: that an update might take.
        tolerance: of the gradient's error.
        recommendation: None where no method will do.
        told: a sentence a line, the call among them.
        measured: in the order of the lengths.
    """

    factory: str
    memory_bytes: int
    tolerance: float
    recommendation: Recommendation | None
    told: list[str]
    measured: list[Measured]

    def text(self) -> str:
        """It in JSON, for programs."""
        return self.model_dump_json(indent=2)

    def write(self, directory: Path) -> Path:
        """Put it into a store's directory as a whole, in the place of an older one.

        Raises:
            OSError: the disk is full; the older one is kept.
        """
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / f"{ADVICE}.part"
        part.write_text(self.text() + "\n")
        return part.replace(directory / ADVICE)
