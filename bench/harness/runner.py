"""Runs cells in other processes, every answer on the disk before the next cell starts, resumable at any moment."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol

from bench import plugins
from bench.harness import environment
from bench.harness.local import COMMAND, Interrupt, Limits, Workers, failed
from bench.harness.versions import benchmark_version, git_revision
from bench.peers import PEERS
from bench.records import (
    FINAL_STATUSES,
    RESUMED_PROBES,
    TIMED_PROBES,
    Cell,
    Record,
    Store,
    canonical_json,
    environment_key,
)

EXCLUSIVE_PROBES = TIMED_PROBES | {"allocator", "memory"}  # these run alone; others run two at once
SHARED_WORKERS = min(2, environment.usable_cores())
UNREADABLE = "unreadable"  # the version of sources that no worker could have run
KEPT_ON = frozenset({"cuda"})  # devices that a process takes seconds to open
WATCH_S = 0.2  # how long others are watched before a cell is timed
MEMORY_SHARE = 0.7  # of what is available, for all workers that run at once


class Reporter(Protocol):
    """Told what happens, to show it."""

    def started(self, cell: Cell) -> None:
        """A cell's worker starts."""

    def progressed(self, cell: Cell, done: int, total: int) -> None:
        """A worker has come so far; told from a thread of its own."""

    def finished(self, record: Record) -> None:
        """A cell's record is on the disk."""


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep against what a store holds already.

    Attributes:
        sweep: its name.
        todo: cells to run, in order.
        done: current final records of the others.
        complaints: one sentence for each unreadable line of the store.
        environments: by probe, as the plan was made; a record has the moment of its own start.
    """

    sweep: str
    todo: list[Cell]
    done: list[Record]
    complaints: list[str]
    environments: dict[str, dict[str, Any]]


def threads_for(probe: str, device: str) -> int:
    """Torch threads of a worker: all cores where it runs alone, to be timed or on CUDA, else one, for two may run."""
    alone = probe in TIMED_PROBES or (device in KEPT_ON and probe not in RESUMED_PROBES)
    return environment.usable_cores() if alone else 1


def plan(sweep: str, cells: Sequence[Cell], store: Store, *, retry_failed: bool = False) -> Plan:
    """What is left to do: cells without a final record of this benchmark version and environment.

    ``retry_failed`` counts only "ok" as final.
    """
    records, complaints = store.read()
    final = {"ok"} if retry_failed else FINAL_STATUSES
    latest = {record.identity: record for record in records}
    environments: dict[str, dict[str, Any]] = {}
    version = cache(benchmark_version)  # of one moment
    todo, done = [], []
    for cell in cells:
        if cell.probe not in environments:
            environments[cell.probe] = environment.describe(cell.device, threads_for(cell.probe, cell.device))
        key = environments[cell.probe][environment_key(cell.probe)]
        record = latest.get((cell.cell_id, version(cell.problem, cell.method, cell.probe), key))
        if record is not None and record.status in final:
            done.append(record)
        else:
            todo.append(cell)
    return Plan(sweep, todo, done, complaints, environments)


def run(
    plan: Plan,
    store: Store,
    *,
    timeout_s: float,
    memory_bytes: int | None = None,
    deadline: float = math.inf,
    admit: Callable[[Cell, Sequence[Record]], bool] = lambda cell, records: True,
    reporter: Reporter,
    say: Callable[[str], None],
    command: Sequence[str] = COMMAND,
    kept_on: Collection[str] = KEPT_ON,
) -> tuple[list[Record], bool]:
    """Run a plan's cells and append a record for each.

    Args:
        plan: from ``plan``.
        store: where the records go; locked meanwhile.
        timeout_s: of one cell.
        memory_bytes: the most that a worker may take, Python and torch included; by default those that run at once
            share ``MEMORY_SHARE`` of what is available.
        deadline: in ``time.monotonic()`` seconds: no cell starts after it, and what still runs then leaves no record.
        admit: asked before a cell starts, with the records so far; what it refuses is left out.
        reporter: told of every start and finish.
        say: prints a sentence for people.
        command: what starts a worker; tests plant faulty ones.
        kept_on: devices on which a worker measures one cell after the other, elsewhere each has a fresh one.

    Returns:
        The new records, and whether the run was interrupted.

    Raises:
        StoreBusyError: another run writes to the store.
        OSError: the disk is full; everything before is kept.
    """
    interrupt, records = Interrupt(), []
    pending: dict[Future[Record | None], Cell] = {}
    quiet = False

    def collect(until: int) -> None:
        while len(pending) > until:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                del pending[future]
                if (record := future.result()) is not None:
                    writer.append(record)
                    records.append(record)
                    reporter.finished(record)

    with (
        store.writer() as writer,
        interrupt.caught(say),
        closing(Workers(command, interrupt)) as workers,
        ThreadPoolExecutor(SHARED_WORKERS) as pool,
    ):
        try:
            for cell in plan.todo:
                kind = _kind(cell, kept_on)
                alone = kind is not None or cell.probe in EXCLUSIVE_PROBES
                collect(0 if alone else SHARED_WORKERS - 1)
                if interrupt.count or time.monotonic() > deadline:
                    break
                if not admit(cell, records):
                    continue
                if cell.probe in TIMED_PROBES and not quiet:
                    quiet = True
                    if warning := environment.busy():
                        say(warning)
                    if interrupt.count:  # while it watched
                        break
                reporter.started(cell)
                limits = Limits(timeout_s, memory_bytes or _allowance(alone), deadline)
                tell = partial(reporter.progressed, cell)
                pending[pool.submit(_run_cell, plan, store, cell, limits, workers, kind, tell)] = cell
                if alone:
                    collect(0)
            collect(0)
        except BaseException:
            interrupt.kill()
            raise
    return records, interrupt.count > 0


def _allowance(alone: bool) -> int:
    return int(MEMORY_SHARE * environment.available_memory() / (1 if alone else SHARED_WORKERS))


def _kind(cell: Cell, kept_on: Collection[str]) -> Hashable:
    """Cells of one kind may have one worker in turn; None for a cell that has a fresh one.

    An outside library may set what holds for a whole process (JAX its device and its precision, and it keeps the memory
    that it took of the device), so that a worker serves one set of libraries, in one dtype. A training takes minutes
    and more: nothing is gained there.
    """
    if cell.device not in kept_on or cell.probe in RESUMED_PROBES:
        return None
    return PEERS[cell.method].packages if cell.method in PEERS else (), cell.dtype


def _run_cell(
    plan: Plan,
    store: Store,
    cell: Cell,
    limits: Limits,
    workers: Workers,
    kind: Hashable,
    tell: Callable[[int, int], None],
) -> Record | None:
    now = environment.moment(cell.device)
    if cell.probe in TIMED_PROBES:  # it runs alone, so that what is in use is in use by others
        now["cores_taken"] = round(environment.cores_taken(WATCH_S), 2)
    started, began = datetime.now(UTC), time.perf_counter()
    request = {
        "cell": cell.model_dump(),
        "threads": threads_for(cell.probe, cell.device),
        "plugins": {"named": plugins.modules, "beside": plugins.folders},
        "directory": str(_checkpoints(plan, store, cell)),
        "kept": kind is not None,
        # CUDA maps more address space than any limit, so that there the watch has to do
        "memory_limit_bytes": limits.memory_bytes if cell.device == "cpu" else None,
    }
    version, revision = _sources(cell)
    answer = workers.ask(request, limits, kind, tell)
    if answer is None:
        return None
    # a worker tells of the sources as it found them, which may have changed since this one looked
    revision = answer.pop("git_revision", revision)
    asked = {
        "benchmark_version": answer.pop("benchmark_version", version),
        "sweep": plan.sweep,
        "cell_id": cell.cell_id,
        "cell": cell,
        "environment": plan.environments[cell.probe] | now | {"git_revision": revision},
        "started_at": started.isoformat(timespec="seconds"),
        "duration_s": round(time.perf_counter() - began, 3),
    }
    try:
        record = Record.model_validate(asked | answer)
        canonical_json(record.model_dump())
    except ValueError:
        record = Record.model_validate(
            asked | failed("crashed", "The worker's answer is not a record: it holds NaN or a wrong field.")
        )
    return record


def _sources(cell: Cell) -> tuple[str, str]:
    """The version and the revision of the sources now; no version where one of them is just being written."""
    try:
        return benchmark_version(cell.problem, cell.method, cell.probe), git_revision()
    except (OSError, SyntaxError, TokenError, ValueError):
        return UNREADABLE, ""


def _checkpoints(plan: Plan, store: Store, cell: Cell) -> Path:
    """Where a long measurement keeps what it has reached: on another machine it starts anew, for its time counts."""
    machine = hashlib.sha256(plan.environments[cell.probe]["timing_key"].encode()).hexdigest()[:8]
    return store.directory / "checkpoints" / f"{cell.cell_id}-{machine}"
