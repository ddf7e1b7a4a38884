"""``amaml-bench``: list what there is, run sweeps, train, profile, guard against regressions."""

from __future__ import annotations

import errno
import sys
import time
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import psutil
import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape

from amaml_core import METHODS, InputError
from bench import (
    advice,
    calibrate,
    environment,
    gate,
    gate_ruling,
    gate_time,
    gate_turns,
    profile,
    runner,
    spec,
    worker,
)
from bench.calibration import CALIBRATION
from bench.estimate import estimate
from bench.peers import PEERS
from bench.problems import PROBLEMS, data, make_problem
from bench.progress import clock, make_reporter
from bench.records import Cell, Status, Store, StoreBusyError, canonical_json
from bench.verdict import Verdict

END_SECONDS = 1.0  # for what a profile says when it is over
DONE, BAD_INPUT, CELLS_FAILED, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback()
def _root() -> None:
    """Measure meta-gradient methods: memory, time, accuracy, counts."""


@app.command("list")
def list_command(what: Annotated[str, typer.Argument(help="methods, problems or sweeps")]) -> None:
    """List the methods, problems or sweeps, a line each."""
    if what == "methods":
        lines = [f"{name:<12} {_first_line(method.__doc__)}" for name, method in METHODS.items()]
        lines += ["", "Peers, which are what you would use instead of this library:"]
        lines += [f"{name:<14} {_first_line(peer.__doc__)}" for name, peer in PEERS.items()]
    elif what == "problems":
        lines = [f"{name:<16} {problem.text}" for name, problem in PROBLEMS.items()]
    elif what == "sweeps":
        lines = [f"{name:<16} {spec.load_spec(name).description}" for name in spec.list_sweeps()]
    else:
        raise InputError(f"Nothing to list under {what!r}; choose methods, problems or sweeps.")
    out.print("\n".join(lines), markup=False)


OutDir = Annotated[Path | None, typer.Option("--out", help="store of the records [results/NAME of the sweep]")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda [cuda where there is one]")]
Only = Annotated[str | None, typer.Option(help="only cells whose label or id matches")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, a TOML value, e.g. seed=3")]
Memory = Annotated[str | None, typer.Option(help="most a worker may take, e.g. 8GiB [70 % of what is free]")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the cells and run nothing")]
CellId = Annotated[
    str | None, typer.Option("--cell", metavar="ID", help="run this one here, to debug it; keep no record")
]
RetryFailed = Annotated[bool, typer.Option(help="try failed cells again: diverged, timed out, out of memory")]
Quiet = Annotated[bool, typer.Option(help="print only failures and the summary")]


@app.command()
def run(
    sweep: Annotated[str, typer.Argument(help="a sweep's name, or a TOML file")],
    out_dir: OutDir = None,
    device: Device = None,
    only: Only = None,
    set_: Set = None,
    memory: Memory = None,
    dry_run: DryRun = False,
    cell_id: CellId = None,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
) -> None:
    """Run a sweep. Running it again goes on where it stopped."""
    loaded = spec.load_spec(sweep, _overrides(set_ or []))
    cells = spec.expand(loaded, device=environment.choose_device(device), only=only)
    _run(loaded, cells, out_dir, memory, cell_id, dry_run=dry_run, retry_failed=retry_failed, quiet=quiet)


@app.command()
def train(
    experiment: Annotated[str, typer.Argument(help=f"{' or '.join(spec.EXPERIMENTS)}")],
    quick: Annotated[bool, typer.Option("--quick", help="one seed and few outer updates: to see it work")] = False,
    out_dir: OutDir = None,
    device: Device = None,
    only: Only = None,
    set_: Set = None,
    memory: Memory = None,
    dry_run: DryRun = False,
    cell_id: CellId = None,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
) -> None:
    """Meta-train by every method and test what each has learned. Running it again goes on where it stopped."""
    loaded = spec.load_experiment(experiment, _overrides(set_ or []), quick=quick)
    cells = spec.expand(loaded, device=environment.choose_device(device), only=only)
    _run(loaded, cells, out_dir, memory, cell_id, dry_run=dry_run, retry_failed=retry_failed, quiet=quiet)


@app.command("gate")
def gate_command(
    accept: Annotated[
        str | None, typer.Option(metavar="REASON", help="make what is measured now the baselines, for this reason")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="REV", help="compare times with this revision instead; takes ten minutes")
    ] = None,
    blocks: Annotated[int, typer.Option(help="of the comparison of times; 10 cases need 10 at least")] = 10,
    out_dir: Annotated[Path, typer.Option("--out", help="records and verdict")] = Path("results") / "gate",
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Fail where a counter, memory or a gradient is worse than its baseline, or the head slower than a revision."""
    if accept is not None and against is not None:
        raise InputError("--accept is for baselines and --against needs none; use one of them.")
    if accept is not None and not accept.strip():
        raise InputError("--accept needs a reason: say why the new values are right.")
    found = _against(against, blocks, out_dir) if against is not None else _gate(accept, out_dir, device, quiet)
    found.publish(out_dir)
    out.print(found.text(), markup=False)
    raise typer.Exit(found.exit_code)


def _gate(accept: str | None, out_dir: Path, device: str | None, quiet: bool) -> Verdict:
    loaded = spec.load_spec(gate.SWEEP)
    cells = spec.expand(loaded, device=environment.choose_device(device))
    gate.cases(cells)
    baselines = gate.read_baselines(gate.BASELINES)
    store = Store(out_dir)
    plan = replace(runner.plan(gate.SWEEP, cells, store), todo=cells, done=[])  # what was measured before may be stale
    with make_reporter(plan, out, quiet) as reporter:
        records, interrupted = runner.run(plan, store, timeout_s=loaded.timeout_s, reporter=reporter, say=err.print)
    if interrupted:
        err.print("Interrupted: there is no verdict. Run the same command again.")
        raise typer.Exit(INTERRUPTED)
    if accept is not None:
        made = gate.accept(records, baselines, accept)
        out.print(gate.diff(baselines, made) or "The baselines are as they were.", markup=False)
        gate.write_baselines(made, gate.BASELINES)
        baselines = made
    return Verdict("gate", gate.judge(records, baselines))


def _against(revision: str, blocks: int, out_dir: Path) -> Verdict:
    title = f"gate --against {revision}"
    if not gate_ruling.FEWEST_BLOCKS <= blocks <= gate_ruling.MOST_BLOCKS:
        fewest, most = gate_ruling.FEWEST_BLOCKS, gate_ruling.MOST_BLOCKS
        raise InputError(f"--blocks {blocks}: with fewer than {fewest} no case can be called slower; at most {most}.")
    try:
        checks, notes = gate_time.compare(revision, blocks, out_dir, partial(out.print, markup=False))
    except gate_turns.NoVerdictError as error:
        return Verdict(title, [], [str(error)])
    return Verdict(title, checks, notes)


@app.command("calibrate")
def calibrate_command(
    observations: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="observations.json of runs of gate --against HEAD")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="directory of calibration.json")] = Path("results") / "gate",
) -> None:
    """Resample runs of identical code: how often gate --against is wrong, and what it finds. Takes some minutes."""
    command = " ".join(["amaml-bench calibrate", *map(str, observations)])
    found = calibrate.calibrate(calibrate.read(observations), command, partial(out.print, markup=False))
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / CALIBRATION
    part = path.with_suffix(".part")
    part.write_text(found.model_dump_json(indent=1) + "\n")
    part.replace(path)
    out.print(f"{path}: at most {100 * found.false_alarm_limit:.2g} % false alarms (upper 95 % limit)", markup=False)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help=", ".join(data.DATA))]) -> None:
    """Fetch a data set from its publisher, unless it is at hand, and check it."""
    if name not in data.DATA:
        raise InputError(f"Unknown data set {name!r}; choose one of {', '.join(data.DATA)}.")
    data.show_terms(name, partial(out.print, markup=False))
    path = data.fetch(name)
    data.load(name)
    out.print(f"{data.DATA[name].title}: {path}", markup=False)


def _run(
    loaded: spec.SweepSpec,
    cells: list[Cell],
    out_dir: Path | None,
    memory: str | None,
    cell_id: str | None,
    *,
    dry_run: bool,
    retry_failed: bool,
    quiet: bool,
) -> None:
    if cell_id is not None:
        _run_here(cells, cell_id)
        return
    memory_bytes = _bytes(memory)
    store = Store(out_dir or Path("results") / loaded.name)
    plan = runner.plan(loaded.name, cells, store, retry_failed=retry_failed)
    for complaint in plan.complaints:
        err.print(escape(complaint))
    if dry_run:
        waiting = {cell.cell_id for cell in plan.todo}
        for cell in cells:
            out.print(f"{cell.cell_id} {'todo' if cell.cell_id in waiting else 'done'} {cell.label}", markup=False)
        expected = estimate(plan.todo, store.read()[0])
        guess = f", a guess for {expected.guessed} of them" if expected.guessed else ""
        out.print(f"{len(cells)} cells, {len(plan.todo)} to run: {clock(expected.seconds)} one after the other{guess}.")
        return
    _prepare(plan.todo)
    with make_reporter(plan, out, quiet) as reporter:
        records, interrupted = runner.run(
            plan, store, timeout_s=loaded.timeout_s, memory_bytes=memory_bytes, reporter=reporter, say=err.print
        )
    everything = plan.done + records
    counts = {s: n for s in get_args(Status) if (n := sum(record.status == s for record in everything))}
    out.print(
        f"{store.path}: {len(everything)} of {len(cells)} cells: {', '.join(f'{n} {s}' for s, n in counts.items())}."
    )
    if interrupted and len(everything) < len(cells):
        err.print("Interrupted. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED)
    if counts.get("crashed", 0) + counts.get("timeout", 0):
        err.print("Some cells crashed or timed out; the reasons are above and in the records. To see one: --cell ID.")
        raise typer.Exit(CELLS_FAILED)


@app.command("profile")
def profile_command(
    factory: Annotated[
        str | None, typer.Argument(metavar="FILE.py:NAME", help="a function that makes your problem and tasks")
    ] = None,
    template: Annotated[bool, typer.Option("--template", help="print a file to start from")] = False,
    steps: Annotated[str, typer.Option(help="trajectory lengths K to try")] = "5,20,50",
    inner_lr: Annotated[float, typer.Option(help="inner learning rate; the horizon is K times it")] = 0.01,
    memory: Annotated[str, typer.Option(help="what one outer update may take")] = "2GiB",
    minutes: Annotated[float, typer.Option(help="what the whole profile may take")] = 3.0,
    tolerance: Annotated[float, typer.Option(help="relative gradient error that you can live with")] = 0.05,
    device: Device = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="store of the records [results/profile-NAME]")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure all methods on your own model and recommend one. Running it again goes on where it stopped."""
    if template:
        print((files("bench") / "template.py").read_text(), end="")
        return
    if factory is None:
        raise InputError(
            "Name a function as FILE.py:NAME; start from `amaml-bench profile --template > my_problem.py`."
        )
    if not minutes > 0:
        raise InputError(f"--minutes {minutes:g} leaves no time; give more.")
    chosen = environment.choose_device(device)
    dtype = profile.check(factory, chosen)
    cells = profile.plan_cells(factory, _lengths(steps), inner_lr, device=chosen, dtype=dtype)
    store = Store(out_dir or Path("results") / f"profile-{factory.rpartition(':')[2]}")
    plan = runner.plan("profile", cells, store, retry_failed=True)  # the budget may have grown
    for complaint in plan.complaints:
        err.print(escape(complaint))
    since = time.time() - psutil.Process().create_time()  # this program's own start counts too
    budget = profile.Budget(_bytes(memory) or 0, 60 * minutes - since - END_SECONDS)
    with make_reporter(plan, out, quiet) as reporter:
        records, interrupted = profile.run(plan, store, budget, reporter=reporter, say=err.print)
    found = advice.candidates(records)
    out.print()
    Console(width=max(out.width, 120)).print(advice.table(found))  # a row a line, also where nobody looks
    out.print()
    for line in advice.recommend(found, budget.memory_bytes, tolerance):
        out.print(line, markup=False)
    if missing := len(cells) - len(records):
        out.print(f"Not measured, for want of time or memory or after a failure: {missing} of {len(cells)} cells.")
    out.print(f"The records: {store.path}; `amaml-report build {store.directory}` makes the page.", markup=False)
    if interrupted:
        err.print("Interrupted. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED)
    if failed := sum(record.status in ("crashed", "timeout") for record in records):
        err.print(f"{failed} cells crashed or timed out; the reasons are above and in the records.")
        raise typer.Exit(CELLS_FAILED)


def _prepare(cells: Iterable[Cell]) -> None:
    """Have each problem get what it needs; what fails is told, and its cells will be skipped for that reason."""
    problems = {canonical_json([cell.problem, cell.problem_options]): cell for cell in cells}
    for cell in problems.values():
        try:
            make_problem(cell.problem, cell.problem_options).prepare(_say_once)
        except InputError as error:
            _say_once(str(error))


@cache
def _say_once(sentence: str) -> None:
    err.print(sentence, markup=False)


def _lengths(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--steps {text!r} is not a list of whole numbers such as 5,20,50.") from None


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise InputError(f"--memory {text!r} is not a size; write it as 2GiB or 500MB.") from None


def _run_here(cells: list[Cell], cell_id: str) -> None:
    """Run one cell in this process, so that a debugger or a traceback reaches it."""
    found = [cell for cell in cells if cell.cell_id.startswith(cell_id)]
    if len(found) != 1:
        raise InputError(f"--cell {cell_id!r} fits {len(found)} cells; take one id from --dry-run.")
    out.print(found[0].label, markup=False)
    answer = worker.run({"cell": found[0].model_dump(), "threads": runner.threads_for(found[0].probe)})
    out.print_json(data=answer)


def _overrides(pairs: list[str]) -> dict[str, Any]:
    parsed = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair!r} is not of the form KEY=VALUE.")
        try:
            parsed[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[key.strip()] = text  # a bare word is a string
    return parsed


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().splitlines()[0]


def main() -> NoReturn:
    """Entry point: bad input ends in one sentence and exit code 2; typer ends a Ctrl-C with 130."""
    try:
        app()
        sys.exit(DONE)
    except (InputError, StoreBusyError) as error:
        code, sentence = BAD_INPUT, str(error)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = CELLS_FAILED if full else BAD_INPUT
        sentence = f"{error.strerror}: {error.filename or 'the store'}. Nothing that was finished is lost; " + (
            "make room and run the same command again." if full else "choose another --out or mend the path."
        )
    err.print(f"amaml-bench: {sentence}", markup=False)
    sys.exit(code)
