"""Files from which a training goes on: written as a whole, loaded as data alone, the one before kept."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from amaml_core.errors import InputError

KEPT = 2  # on the disk: should the last one be damaged, there is the one before
# what bytes that were cut off or changed can raise
DAMAGE = (BadZipFile, RuntimeError, EOFError, OSError, UnpicklingError, KeyError, ValueError, TypeError)


@dataclass(frozen=True)
class Checkpoints:
    """The newest ``KEPT`` states of a training, a file each, replaced as a whole and fsynced."""

    directory: Path
    settings: Mapping[str, str]  # what a state must agree with to be gone on from, name -> value

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.directory.glob("update-*.pt"), reverse=True)

    def write(self, made: int, state: Mapping[str, Any]) -> None:
        """Keep the state after so many updates, in types that ``torch.load(weights_only=True)`` takes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"update-{made:08d}.pt"
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            torch.save({"settings": dict(self.settings), **state}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        for old in self._files()[KEPT:]:
            old.unlink()

    def read(self, device: torch.device) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
        """The newest whole state, its tensors on ``device``, or None; and a sentence for each damaged one on the way.

        Raises:
            InputError: it belongs to a training with other settings.
        """
        notes = []
        for path in self._files():
            content = io.BytesIO(path.read_bytes())  # what the disk itself refuses is no damage
            try:
                if rotten := ZipFile(content).testzip():  # torch does not look at the checksums
                    raise ValueError(rotten)
                content.seek(0)
                state = torch.load(content, map_location=device, weights_only=True)
                settings = dict(state["settings"])
            except DAMAGE:
                notes.append(f"The checkpoint {path} is damaged; the one before it is used, or the start.")
                path.rename(path.with_suffix(".damaged"))  # it must not count as the newest again
                continue
            for key, mine in self.settings.items():
                if settings.get(key) != mine:
                    raise InputError(
                        f"{path} belongs to a training with another {key} ({settings.get(key)}, not {mine}); choose "
                        "another directory."
                    )
            return state, tuple(notes)
        return None, tuple(notes)
