"""Sweep files: declarative grids in TOML, expanded into cells.

A sweep file has a ``description``, a ``timeout_s`` for each cell, ``plugins`` (modules to import, beside the file or
installed; see ``bench.plugins``) and any number of ``[[grid]]`` tables. In a grid a
list means "each of these"; the grid is the Cartesian product of its lists (a list as a value is written as a list in
a list). ``problem_options`` may be a list of tables too, for what goes together. In ``options`` give any two of
``inner_steps``, ``inner_lr`` and ``horizon`` (= inner_steps · inner_lr).
"""

from __future__ import annotations

import fnmatch
import itertools
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amaml_core import InputError
from bench import plugins
from bench.probes import PROBES
from bench.problems import make_problem, resolved_options
from bench.records import Cell

ENGINES = ("eager", "graphed", "compiled")  # "auto" would hide which of them was measured
SWEEPS = files("bench") / "sweeps"
EXPERIMENTS = ("regression", "ratings")  # the sweeps train_NAME
QUICK = {"seed": 1, "problem_options.outer_updates": 25, "engine": "eager"}  # compiling takes longer than these


class Grid(BaseModel):
    """One Cartesian product of cells. Anything may be a list."""

    model_config = ConfigDict(extra="forbid")

    probe: str | list[str]
    problem: str | list[str]
    problem_options: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    method: str | list[str]
    options: dict[str, Any]
    engine: str | list[str] = "eager"
    dtype: str | list[str] = "float32"
    seed: int | list[int] = 0
    replicates: int = Field(default=1, ge=1)


class SweepSpec(BaseModel):
    """A sweep: what it is for, how long one of its cells may take, and its grids."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str
    timeout_s: float = Field(default=600.0, gt=0)
    plugins: list[str] = Field(default_factory=list)
    grid: list[Grid] = Field(min_length=1)


def list_sweeps() -> list[str]:
    """The names of the sweeps that come along."""
    return sorted(entry.name.removesuffix(".toml") for entry in SWEEPS.iterdir() if entry.name.endswith(".toml"))


def load_spec(name: str, overrides: dict[str, Any] | None = None) -> SweepSpec:
    """The sweep of this name, or of this TOML file, with ``--set`` overrides applied to every grid.

    Args:
        name: one of ``list_sweeps()``, or the path of a TOML file.
        overrides: dotted key -> value, e.g. ``{"options.inner_steps": [1, 2], "seed": 3}``.

    Raises:
        InputError: there is no such sweep, or the file has an unknown key or a wrong value.
    """
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise InputError(f"There is no sweep file {name}; check the path.")
        text, stem, beside = path.read_text(), path.stem, [str(path.resolve().parent)]
    elif name in list_sweeps():
        text, stem, beside = (SWEEPS / f"{name}.toml").read_text(), name, []
    else:
        raise InputError(f"Unknown sweep {name!r}; choose one of {', '.join(list_sweeps())}, or give a .toml file.")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not valid TOML: {error}.") from error
    for key, value in (overrides or {}).items():
        _override(data, key, value)
    try:
        loaded = SweepSpec(name=stem, **data)
    except ValidationError as error:
        # an unknown key explains a missing one, so it is told first
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"Sweep {name}: {where or 'file'}: {first['msg']}; correct it.") from None
    plugins.load(loaded.plugins, beside)
    return loaded


def load_experiment(name: str, overrides: dict[str, Any] | None = None, *, quick: bool = False) -> SweepSpec:
    """The sweep behind an experiment.

    Where it is to be ``quick``, of one seed, few outer updates, and without what even the whole runs for one seed only.

    Raises:
        InputError: there is no such experiment, or an override is wrong.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"Unknown experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}.")
    loaded = load_spec(f"train_{name}", (QUICK if quick else {}) | (overrides or {}))
    if not quick:
        return loaded
    whole = load_spec(f"train_{name}").grid
    grids = [grid for grid, as_written in zip(loaded.grid, whole, strict=True) if isinstance(as_written.seed, list)]
    return loaded.model_copy(update={"name": f"{loaded.name}_quick", "grid": grids})


def _override(data: dict[str, Any], key: str, value: Any) -> None:
    if key in ("description", "timeout_s"):
        data[key] = value
        return
    first, *rest = key.split(".")
    if first not in Grid.model_fields or len(rest) > 1 or bool(rest) != (first in ("options", "problem_options")):
        raise InputError(
            f"--set {key}: unknown key; use timeout_s, {', '.join(Grid.model_fields)} "
            "(options.NAME and problem_options.NAME for what they hold)."
        )
    for grid in data.get("grid", []):
        if rest:
            for table in _listed(grid.setdefault(first, {})):
                table[rest[0]] = value
        else:
            grid[first] = value


def expand(spec: SweepSpec, *, device: str = "cpu", only: str | None = None) -> list[Cell]:
    """All cells of a sweep, options fully resolved and validated, without duplicates.

    Replicates are outermost, then seeds: drift of the machine hits all methods alike, and seed 1 of all comes first.

    Args:
        spec: the sweep.
        device: "cpu" or "cuda".
        only: keep the cells whose id starts with this or whose label contains it or matches it as a shell pattern.

    Raises:
        InputError: a problem, method, probe, dtype or option is unknown or out of range, or nothing is left.
    """
    cells: dict[str, Cell] = {}
    for replicate in range(max(grid.replicates for grid in spec.grid)):
        for grid in spec.grid:
            if replicate < grid.replicates:
                for cell in _expand_grid(grid, replicate, device):
                    if only is None or _matches(cell, only):
                        cells[cell.cell_id] = cell
    if not cells:
        raise InputError(f"--only {only!r} matches no cell of sweep {spec.name}; see --dry-run for the labels.")
    return sorted(cells.values(), key=lambda cell: (cell.replicate, cell.seed))


def _expand_grid(grid: Grid, replicate: int, device: str) -> list[Cell]:
    cells = []
    for probe, problem, engine, dtype, seed in itertools.product(
        *map(_listed, (grid.probe, grid.problem, grid.engine, grid.dtype, grid.seed))
    ):
        if probe not in PROBES:
            raise InputError(f"Unknown probe {probe!r}; choose one of {', '.join(PROBES)}.")
        if engine not in ENGINES:
            raise InputError(f"Unknown engine {engine!r}; choose one of {', '.join(ENGINES)}.")
        if dtype not in ("float32", "float64"):
            raise InputError(f"Unknown dtype {dtype!r}; choose float32 or float64.")
        for problem_options in itertools.chain.from_iterable(map(_product, _listed(grid.problem_options))):
            made = make_problem(problem, problem_options)
            for method, options in itertools.product(_listed(grid.method), _product(grid.options)):
                resolved, _ = made.resolve_method(method, _with_lr(options))
                cells.append(
                    Cell(
                        problem=problem,
                        problem_options=resolved_options(made),
                        method=method,
                        options=resolved,
                        engine=made.resolve_engine(method, engine),
                        probe=probe,
                        replicate=replicate,
                        seed=seed,
                        device=device,
                        dtype=dtype,
                    )
                )
    return cells


def _with_lr(options: dict[str, Any]) -> dict[str, Any]:
    """Turn ``horizon`` into ``inner_lr`` or ``inner_steps``, whichever is missing."""
    options = dict(options)
    if (horizon := options.pop("horizon", None)) is None:
        return options
    if "inner_steps" in options and "inner_lr" in options:
        raise InputError("options holds inner_steps, inner_lr and horizon; leave one out, it follows from the others.")
    if "inner_steps" in options:
        options["inner_lr"] = horizon / options["inner_steps"]
    elif "inner_lr" in options:
        steps = horizon / options["inner_lr"]
        if abs(steps - round(steps)) > 1e-9 * steps:
            raise InputError(f"horizon={horizon} is not a whole number of steps of inner_lr={options['inner_lr']}.")
        options["inner_steps"] = round(steps)
    return options


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _product(options: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*map(_listed, options.values()))]


def _matches(cell: Cell, pattern: str) -> bool:
    label = cell.label
    return cell.cell_id.startswith(pattern) or pattern in label or fnmatch.fnmatch(label, pattern)
