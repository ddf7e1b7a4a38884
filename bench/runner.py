"""Runs cells: one fresh process each, every answer on the disk before the next cell starts, resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import psutil

from bench import environment
from bench.records import FINAL_STATUSES, TIMED_PROBES, Cell, Record, Store, canonical_json, environment_key
from bench.versions import benchmark_version
from bench.worker import OUT_OF_MEMORY

EXCLUSIVE_PROBES = TIMED_PROBES | {"allocator", "memory"}  # these run alone; others run two at once
SHARED_WORKERS = min(2, environment.usable_cores())
MEMORY_SHARE = 0.7  # of what is available, for all workers that run at once
WATCH_S = 0.1  # between two looks at a worker's time and memory
READ_S = 5.0  # for the rest of an answer to arrive when its worker has ended
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
KEPT_PREFIXES = ("AMAML_BENCH_", "CUDA_", "NVIDIA_", "XDG_", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class Reporter(Protocol):
    """Told what happens, to show it."""

    def started(self, cell: Cell) -> None:
        """A cell's worker starts."""

    def progressed(self, cell: Cell, done: int, total: int) -> None:
        """A worker has come so far; told from a thread of its own."""

    def finished(self, record: Record) -> None:
        """A cell's record is on the disk."""


@dataclass
class Interrupt:
    """Ctrl-C: once asks to stop after the running cells, twice stops them too, without a record."""

    count: int = 0
    stopped: bool = False
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    @contextmanager
    def caught(self, say: Callable[[str], None]) -> Iterator[None]:
        """Handle SIGINT while this is entered (only possible in the main thread)."""

        def handle(number: int, frame: Any) -> None:
            self.count += 1
            if self.count == 1:
                say(
                    "Interrupted: finishing the running cells. Press Ctrl-C again to stop at once; a training then "
                    "goes on from its last checkpoint."
                )
            else:
                self.kill()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def kill(self) -> None:
        """Stop all workers at once, those too that are only just starting."""
        self.stopped = True
        for process in list(self.running):
            _kill(process)


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


def threads_for(probe: str) -> int:
    """Torch threads of a worker: all cores where time is measured, else one, so that two workers can run at once."""
    return environment.usable_cores() if probe in TIMED_PROBES else 1


def plan(sweep: str, cells: Sequence[Cell], store: Store, *, retry_failed: bool = False) -> Plan:
    """What is left to do: cells without a final record of this benchmark version and environment.

    ``retry_failed`` counts only "ok" as final.
    """
    records, complaints = store.read()
    final = {"ok"} if retry_failed else FINAL_STATUSES
    latest = {record.identity: record for record in records}
    environments: dict[str, dict[str, Any]] = {}
    todo, done = [], []
    for cell in cells:
        if cell.probe not in environments:
            environments[cell.probe] = environment.describe(cell.device, threads_for(cell.probe))
        key = environments[cell.probe][environment_key(cell.probe)]
        record = latest.get((cell.cell_id, benchmark_version(cell), key))
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
    command: Sequence[str] = (sys.executable, "-P", "-m", "bench.worker"),  # whatever lies in the working directory
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

    with store.writer() as writer, interrupt.caught(say), ThreadPoolExecutor(SHARED_WORKERS) as pool:
        try:
            for cell in plan.todo:
                alone = cell.probe in EXCLUSIVE_PROBES
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
                limits = _Limits(timeout_s, memory_bytes or _allowance(cell), deadline)
                tell = partial(reporter.progressed, cell)
                pending[pool.submit(_run_cell, plan, store, cell, limits, command, interrupt, tell)] = cell
                if alone:
                    collect(0)
            collect(0)
        except BaseException:
            interrupt.kill()
            raise
    return records, interrupt.count > 0


@dataclass(frozen=True)
class _Limits:
    timeout_s: float
    memory_bytes: int
    deadline: float

    def exceeded(self, process: subprocess.Popen[bytes], began: float) -> dict[str, Any] | None:
        """The answer in place of a worker's own, once it has gone too far."""
        if time.monotonic() - began > self.timeout_s:
            return _failed(
                "timeout",
                f"It ran longer than {self.timeout_s:g} s; shorten the trajectory, or raise timeout_s and try failed "
                "cells again.",
            )
        with suppress(psutil.Error):  # it may have ended just now
            if psutil.Process(process.pid).memory_info().rss > self.memory_bytes:
                return _out_of_memory(self)
        return None


def _allowance(cell: Cell) -> int:
    at_once = 1 if cell.probe in EXCLUSIVE_PROBES else SHARED_WORKERS
    return int(MEMORY_SHARE * environment.available_memory() / at_once)


def _run_cell(
    plan: Plan,
    store: Store,
    cell: Cell,
    limits: _Limits,
    command: Sequence[str],
    interrupt: Interrupt,
    tell: Callable[[int, int], None],
) -> Record | None:
    started, began = datetime.now(UTC), time.perf_counter()
    now = environment.moment(cell.device)
    request = {
        "cell": cell.model_dump(),
        "threads": threads_for(cell.probe),
        "directory": str(_checkpoints(plan, store, cell)),
        # CUDA maps more address space than any limit, so that there the watch has to do
        "memory_limit_bytes": limits.memory_bytes if cell.device == "cpu" else None,
    }
    answer = _ask_worker(request, limits, command, interrupt, tell)
    if answer is None:
        return None
    asked = {
        "benchmark_version": benchmark_version(cell),
        "sweep": plan.sweep,
        "cell_id": cell.cell_id,
        "cell": cell,
        "environment": plan.environments[cell.probe] | now,
        "started_at": started.isoformat(timespec="seconds"),
        "duration_s": round(time.perf_counter() - began, 3),
    }
    try:
        record = Record.model_validate(asked | answer)
        canonical_json(record.model_dump())
    except ValueError:
        record = Record.model_validate(
            asked | _failed("crashed", "The worker's answer is not a record: it holds NaN or a wrong field.")
        )
    return record


def _checkpoints(plan: Plan, store: Store, cell: Cell) -> Path:
    """Where a long measurement keeps what it has reached: on another machine it starts anew, for its time counts."""
    machine = hashlib.sha256(plan.environments[cell.probe]["timing_key"].encode()).hexdigest()[:8]
    return store.directory / "checkpoints" / f"{cell.cell_id}-{machine}"


def _ask_worker(
    request: dict[str, Any],
    limits: _Limits,
    command: Sequence[str],
    interrupt: Interrupt,
    tell: Callable[[int, int], None],
) -> dict[str, Any] | None:
    """A worker's answer, or one about its end; None if it was stopped by an interrupt or the deadline."""
    read, write = os.pipe()
    # What a worker starts may outlive it and hold its pipes open: only its own end counts, so that standard error goes
    # to a file and the answer is read as it comes.
    with os.fdopen(read, "rb", buffering=0) as pipe, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                [*command, str(write), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=_scrubbed(),
                pass_fds=(write,),
                start_new_session=True,  # Ctrl-C is the runner's to handle
            )
        finally:
            os.close(write)
        interrupt.running.add(process)
        began, verdict = time.monotonic(), None
        told: list[bytes] = []
        reader = threading.Thread(target=_listen, args=(pipe, told, tell), daemon=True)
        reader.start()
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(request).encode())
        while True:
            try:
                process.wait(WATCH_S)
                break
            except subprocess.TimeoutExpired:
                verdict = verdict or limits.exceeded(process, began)
                if verdict or interrupt.stopped or time.monotonic() > limits.deadline:
                    _kill(process)
        interrupt.running.discard(process)
        _kill(process)  # what it left running
        reader.join(READ_S)
        stderr.seek(max(stderr.seek(0, os.SEEK_END) - 2**16, 0))
        complaint = stderr.read().decode(errors="replace")
    if process.returncode and (interrupt.stopped or time.monotonic() > limits.deadline):
        return None
    return verdict or _answer(process.returncode, b"".join(told), complaint, limits)


def _listen(pipe: BinaryIO, told: list[bytes], tell: Callable[[int, int], None]) -> None:
    """Pass on the lines ``{"done": …, "total": …}`` that a worker writes on its way, and keep what comes after them."""
    rest = b""
    while part := pipe.read(2**16):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                news = json.loads(line)
                tell(news["done"], news["total"])
    told.append(rest)


def _answer(code: int, told: bytes, stderr: str, limits: _Limits) -> dict[str, Any]:
    if code == 0:
        with suppress(ValueError):
            if isinstance(answer := json.loads(told), dict):
                return answer
        return _failed("crashed", "The worker ended without a whole answer; run the cell again.")
    last = (stderr.strip().splitlines() or ["no message"])[-1][:300]
    if any(sign in last for sign in OUT_OF_MEMORY):
        return _out_of_memory(limits)
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        hint = " (often the system's out-of-memory killer)" if name == "SIGKILL" else ""
        return _failed("crashed", f"The worker was killed by {name}{hint}: {last}; run its cell in-process to see why.")
    return _failed("crashed", f"The worker failed: {last}; run its cell in-process to see why.")


def _out_of_memory(limits: _Limits) -> dict[str, Any]:
    return _failed(
        "oom",
        f"It needs more than the {limits.memory_bytes / 2**30:.3g} GiB that it may take; "
        "use fewer steps, tasks or states, or allow it more memory and try failed cells again.",
    )


def _failed(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason, "metrics": {}, "samples": {}}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _scrubbed() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in KEPT_VARIABLES or k.startswith(KEPT_PREFIXES)}
    return kept | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
