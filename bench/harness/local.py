"""Cells in processes on this machine: asked over a pipe, watched, and stopped where they go too far."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import psutil

from bench.harness.worker import OUT_OF_MEMORY

COMMAND = (sys.executable, "-P", "-m", "bench.harness.worker")  # whatever lies in the working directory
# where this program found its own modules, before a user's file had its way with the path
SEARCH_PATH = tuple(filter(None, sys.path))
WATCH_S = 0.1  # between two looks at a worker's time and memory
READ_S = 5.0  # for the rest of an answer to arrive when its worker has ended
UNHARMED = ("ok", "diverged", "skipped")  # after any other end of a cell its worker serves no more
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
        timeout_s: seconds from the request; of a fresh one its start is among them.
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


class Worker:
    """A process that measures cells: it reads one request a line, and answers each with one line."""

    def __init__(self, command: Sequence[str], interrupt: Interrupt) -> None:
        self._interrupt, self._tell = interrupt, lambda done, total: None
        self._answer: dict[str, Any] | None = None
        self._heard = threading.Event()
        read, write = os.pipe()
        # What a worker starts may outlive it and hold its pipes open: only its own end counts, so that standard error
        # goes to a file and the answer is read as it comes.
        with ExitStack() as opened:
            pipe = opened.enter_context(os.fdopen(read, "rb", buffering=0))
            self._stderr = opened.enter_context(tempfile.TemporaryFile())
            try:
                self._process = subprocess.Popen(
                    [*command, str(write), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr,
                    env=_scrubbed(),
                    pass_fds=(write,),
                    start_new_session=True,  # Ctrl-C is the runner's to handle
                )
            finally:
                os.close(write)
            self._opened = opened.pop_all()
        interrupt.running.add(self._process)
        self._reader = threading.Thread(target=self._listen, args=(pipe,), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether it can be asked once more."""
        return self._process.poll() is None

    def ask(
        self, request: dict[str, Any], limits: Limits, tell: Callable[[int, int], None], *, last: bool
    ) -> dict[str, Any] | None:
        """Its answer, or one about its end; None if it was stopped by an interrupt or the deadline.

        After the ``last`` request it has to end by itself before its answer counts.
        """
        began, verdict = time.monotonic(), None
        self._tell, self._answer = tell, None
        self._heard.clear()
        self._send(request, last)
        while not self._done(last):
            verdict = verdict or limits.exceeded(self._process, began)
            if verdict or self._interrupt.stopped or time.monotonic() > limits.deadline:
                _kill(self._process)
        code = self._process.poll()
        if code is not None:
            _kill(self._process)  # what it left running
            self._reader.join(READ_S)
        if code and (self._interrupt.stopped or time.monotonic() > limits.deadline):
            return None
        return verdict or _answer(code or 0, self._answer, self._complaint(), limits)

    def close(self) -> None:
        """End it, and what it left running."""
        _kill(self._process)
        self._process.wait()
        self._interrupt.running.discard(self._process)
        self._reader.join(READ_S)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._opened.close()

    def _send(self, request: dict[str, Any], last: bool) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        if last:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def _done(self, last: bool) -> bool:
        """Whether it has ended, or answered one request of several; it is waited for a little."""
        if not last:
            return self._heard.wait(WATCH_S) or not self.alive
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(WATCH_S)
        return not self.alive

    def _listen(self, pipe: BinaryIO) -> None:
        """Pass on the lines ``{"done": …, "total": …}`` that it writes on its way, and take the answer."""
        rest = b""
        while part := pipe.read(2**16):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._hear(line)
        self._hear(rest)

    def _hear(self, line: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError):
            news = json.loads(line)
            if "done" in news:
                self._tell(news["done"], news["total"])
            elif isinstance(news, dict):
                self._answer = news
                self._heard.set()

    def _complaint(self) -> str:
        self._stderr.seek(max(self._stderr.seek(0, os.SEEK_END) - 2**16, 0))
        return self._stderr.read().decode(errors="replace")


class Workers:
    """The processes of a run: a fresh one for each cell, or one that is kept for cells of one kind, in turn."""

    def __init__(self, command: Sequence[str], interrupt: Interrupt) -> None:
        self._command, self._interrupt = command, interrupt
        self._kept: tuple[Hashable, Worker] | None = None

    def ask(
        self, request: dict[str, Any], limits: Limits, kind: Hashable, tell: Callable[[int, int], None]
    ) -> dict[str, Any] | None:
        """See ``Worker.ask``.

        The kept worker is asked where it is of this ``kind``, which only one cell at a time may be; one that took too
        much, crashed or ran out of memory is never asked again. For the kind None a fresh one is asked, once.
        """
        if kind is None:
            with closing(Worker(self._command, self._interrupt)) as fresh:
                return fresh.ask(request, limits, tell, last=True)
        if self._kept is None or self._kept[0] != kind or not self._kept[1].alive:
            self.close()  # first: two must not share a device
            self._kept = kind, Worker(self._command, self._interrupt)
        answer = self._kept[1].ask(request, limits, tell, last=False)
        if answer is None or answer.get("status") not in UNHARMED:
            self.close()
        return answer

    def close(self) -> None:
        """End the one that is kept."""
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None


def _answer(code: int, answer: dict[str, Any] | None, stderr: str, limits: Limits) -> dict[str, Any]:
    if code == 0:
        return answer or failed("crashed", "The worker ended without a whole answer; run the cell again.")
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
