"""A cell in a fresh process on this machine: asked over a pipe, watched, and stopped where it goes too far."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import psutil

from bench.harness.worker import OUT_OF_MEMORY

COMMAND = (sys.executable, "-P", "-m", "bench.harness.worker")  # whatever lies in the working directory
# where this program found its own modules, before a user's file had its way with the path
SEARCH_PATH = tuple(filter(None, sys.path))
WATCH_S = 0.1  # between two looks at a worker's time and memory
READ_S = 5.0  # for the rest of an answer to arrive when its worker has ended
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
KEPT_PREFIXES = ("AMAML_BENCH_", "CUDA_", "NVIDIA_", "XDG_", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


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
class Limits:
    """What a worker may take.

    Attributes:
        timeout_s: seconds from its start.
        memory_bytes: of resident memory.
        deadline: in ``time.monotonic()`` seconds, when it is stopped without an answer.
    """

    timeout_s: float
    memory_bytes: int
    deadline: float

    def exceeded(self, process: subprocess.Popen[bytes], began: float) -> dict[str, Any] | None:
        """The answer in place of a worker's own, once it has gone too far."""
        if time.monotonic() - began > self.timeout_s:
            return failed(
                "timeout",
                f"It ran longer than {self.timeout_s:g} s; shorten the trajectory, or raise timeout_s and try failed "
                "cells again.",
            )
        with suppress(psutil.Error):  # it may have ended just now
            if psutil.Process(process.pid).memory_info().rss > self.memory_bytes:
                return _out_of_memory(self)
        return None


def ask(
    request: dict[str, Any],
    limits: Limits,
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


def _answer(code: int, told: bytes, stderr: str, limits: Limits) -> dict[str, Any]:
    if code == 0:
        with suppress(ValueError):
            if isinstance(answer := json.loads(told), dict):
                return answer
        return failed("crashed", "The worker ended without a whole answer; run the cell again.")
    last = (stderr.strip().splitlines() or ["no message"])[-1][:300]
    if any(sign in last for sign in OUT_OF_MEMORY):
        return _out_of_memory(limits)
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        hint = " (often the system's out-of-memory killer)" if name == "SIGKILL" else ""
        return failed("crashed", f"The worker was killed by {name}{hint}: {last}; run its cell in-process to see why.")
    return failed("crashed", f"The worker failed: {last}; run its cell in-process to see why.")


def _out_of_memory(limits: Limits) -> dict[str, Any]:
    return failed(
        "oom",
        f"It needs more than the {limits.memory_bytes / 2**30:.3g} GiB that it may take; "
        "use fewer steps, tasks or states, or allow it more memory and try failed cells again.",
    )


def failed(status: str, reason: str) -> dict[str, Any]:
    """The answer of a cell that has none."""
    return {"status": status, "reason": reason, "metrics": {}, "samples": {}}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _scrubbed() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in KEPT_VARIABLES or k.startswith(KEPT_PREFIXES)}
    return kept | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(SEARCH_PATH)}
