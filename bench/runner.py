"""Runs cells: one fresh process each, every answer on the disk before the next cell starts, resumable at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import psutil

from bench import environment
from bench.records import FINAL_STATUSES, Cell, Record, Store, environment_key
from bench.versions import benchmark_version

EXCLUSIVE_PROBES = frozenset({"memory", "time"})  # these run alone on the machine; others run two at once
SHARED_WORKERS = 2
MEMORY_SHARE = 0.7  # of what is available, for one worker
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
KEPT_PREFIXES = ("AMAML_BENCH_", "CUDA_", "NVIDIA_", "XDG_", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class Reporter(Protocol):
    """Told what happens, to show it."""

    def started(self, cell: Cell) -> None:
        """A cell's worker starts."""

    def finished(self, record: Record) -> None:
        """A cell's record is on the disk."""


@dataclass
class Interrupt:
    """Ctrl-C: once asks to stop after the running cells, twice stops them too."""

    count: int = 0
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    @contextmanager
    def caught(self, say: Callable[[str], None]) -> Iterator[None]:
        """Handle SIGINT while this is entered (only possible in the main thread)."""

        def handle(number: int, frame: Any) -> None:
            self.count += 1
            if self.count == 1:
                say("Interrupted: finishing the running cells. Press Ctrl-C again to stop at once.")
            else:
                for process in list(self.running):
                    process.kill()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep against what a store holds already.

    Attributes:
        sweep: its name.
        todo: cells to run, in order.
        done: current final records of the others.
        complaints: one sentence for each unreadable line of the store.
        settings: environment by what it describes: (device, threads).
    """

    sweep: str
    todo: list[Cell]
    done: list[Record]
    complaints: list[str]
    environments: dict[str, dict[str, Any]]


def threads_for(probe: str) -> int:
    """Torch threads of a worker: all cores where time is measured, else one, so that two workers can run at once."""
    return environment.usable_cores() if probe == "time" else 1


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
        record = latest.get((cell.cell_id, benchmark_version(cell.probe), key))
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
    reporter: Reporter,
    say: Callable[[str], None],
    command: Sequence[str] = (sys.executable, "-m", "bench.worker"),
) -> tuple[list[Record], bool]:
    """Run a plan's cells and append a record for each.

    Args:
        plan: from ``plan``.
        store: where the records go; locked meanwhile.
        timeout_s: of one cell.
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
    pending: dict[Future[Record], Cell] = {}

    def collect(until: int) -> None:
        while len(pending) > until:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                del pending[future]
                record = future.result()
                writer.append(record)
                records.append(record)
                reporter.finished(record)

    with store.writer() as writer, interrupt.caught(say), ThreadPoolExecutor(SHARED_WORKERS) as pool:
        try:
            for cell in plan.todo:
                alone = cell.probe in EXCLUSIVE_PROBES
                collect(0 if alone else SHARED_WORKERS - 1)
                if interrupt.count:
                    break
                reporter.started(cell)
                pending[pool.submit(_run_cell, plan, cell, timeout_s, command, interrupt)] = cell
                if alone:
                    collect(0)
            collect(0)
        except BaseException:
            for process in list(interrupt.running):
                process.kill()
            raise
    return records, interrupt.count > 0


def _run_cell(plan: Plan, cell: Cell, timeout_s: float, command: Sequence[str], interrupt: Interrupt) -> Record:
    started, began = datetime.now(UTC), time.perf_counter()
    answer = _ask_worker(
        {
            "cell": cell.model_dump(),
            "threads": threads_for(cell.probe),
            "memory_limit_bytes": int(MEMORY_SHARE * psutil.virtual_memory().available)
            if cell.device == "cpu"
            else None,
        },
        timeout_s,
        command,
        interrupt,
    )
    asked = {
        "benchmark_version": benchmark_version(cell.probe),
        "sweep": plan.sweep,
        "cell_id": cell.cell_id,
        "cell": cell,
        "environment": plan.environments[cell.probe],
        "started_at": started.isoformat(timespec="seconds"),
        "duration_s": round(time.perf_counter() - began, 3),
    }
    return Record.model_validate(asked | answer)


def _ask_worker(
    request: dict[str, Any], timeout_s: float, command: Sequence[str], interrupt: Interrupt
) -> dict[str, Any]:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        try:
            process = subprocess.Popen(
                [*command, str(write), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_scrubbed(),
                pass_fds=(write,),
                start_new_session=True,  # Ctrl-C is the runner's to handle
            )
        finally:
            os.close(write)
        interrupt.running.add(process)
        timed_out = threading.Event()

        def expire() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(timeout_s, expire)
        timer.start()
        answer: list[bytes] = []
        reader = threading.Thread(target=lambda: answer.append(pipe.read()))
        reader.start()
        try:
            _, stderr = process.communicate(json.dumps(request).encode())
        finally:
            timer.cancel()
            interrupt.running.discard(process)
        reader.join()
    if timed_out.is_set():
        return _failed("timeout", f"It ran longer than {timeout_s:g} s; raise timeout_s, or shorten the trajectory.")
    if process.returncode == 0:
        try:
            return json.loads(answer[0])
        except ValueError:
            return _failed("crashed", "The worker ended without a whole answer; run the cell again.")
    last = stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        hint = " (often the system's out-of-memory killer)" if name == "SIGKILL" else ""
        return _failed("crashed", f"The worker was killed by {name}{hint}: {last[0][:300]}")
    return _failed("crashed", f"The worker failed: {last[0][:300]}")


def _failed(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason, "metrics": {}, "samples": {}}


def _scrubbed() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in KEPT_VARIABLES or k.startswith(KEPT_PREFIXES)}
    return kept | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
