"""``amaml-bench calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.console import tell


def command(
    observations: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="observations.json of runs of gate --against HEAD")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="directory of calibration.json")] = Path("results") / "gate",
) -> None:
    """Resample runs of identical code: how often gate --against is wrong, and what it finds. Takes some minutes."""
    from bench.gate.calibrate import calibrate, read
    from bench.gate.calibration import CALIBRATION

    made_by = " ".join(["amaml-bench calibrate", *map(str, observations)])
    found = calibrate(read(observations), made_by, tell)
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / CALIBRATION
    part = path.with_suffix(".part")
    part.write_text(found.model_dump_json(indent=1) + "\n")
    part.replace(path)
    tell(f"{path}: at most {100 * found.false_alarm_limit:.2g} % false alarms (upper 95 % limit)")
