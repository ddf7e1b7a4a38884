"""Processes of ``bench/test_outer_update.py``, each of its checkout, that take turns: one times a round, others wait.

Each is told of a socket. Before a round it writes a byte, which asks for its turn, and reads one, which grants it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

SUITE = "bench/test_outer_update.py"
TURNS = "AMAML_BENCH_TURNS"  # the environment variable with the socket, of suites of any revision
TIMEOUT_S = 300  # of a process's turn, which takes some seconds at most


class NoVerdictError(RuntimeError):
    """The two revisions cannot be compared; the message says why."""


def observe(trees: Sequence[Path]) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """A process of each tree's suite, in turns: of each, the seconds of each case and what each case says of itself.

    Raises:
        NoVerdictError: a suite is not there, fails, hangs, or measured another tree's code.
    """
    with ExitStack() as stack, one_core():
        processes = [stack.enter_context(_suite(tree)) for tree in trees]
        running = processes
        while running:
            running = [process for process in running if process.turn()]
        return [process.answer() for process in processes]


class _Process:
    """A suite under way. It waits for its turn before it times anything."""

    def __init__(self, tree: Path, directory: Path) -> None:
        self.tree, self.told, self.log = tree, directory / "answer.json", directory / "log"
        if not (tree / SUITE).exists():
            raise NoVerdictError(f"{tree} has no {SUITE}: there is nothing to compare with.")
        self.turns, theirs = socket.socketpair()
        self.turns.settimeout(TIMEOUT_S)
        plugins = ["-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider"]
        mine = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(tree), TURNS: str(theirs.fileno())}
        mine["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # others only take time to load
        with theirs, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", *plugins, SUITE, f"--benchmark-json={self.told}"],
                cwd=tree,
                env=_environment() | mine,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )

    def turn(self, *, first: bool = False) -> bool:
        """Let it go on until it waits again; it is false where it has ended instead, and is gone altogether."""
        try:
            try:
                if not first:
                    self.turns.sendall(b".")
                waits = bool(self.turns.recv(1))
            except ConnectionError:  # it does not take turns, or was killed
                waits = False
            if not waits:
                self.process.wait(TIMEOUT_S)  # Python closes the socket first and takes its time with the rest
        except (TimeoutError, subprocess.TimeoutExpired):
            raise NoVerdictError(f"The suite of {self.tree} took more than {TIMEOUT_S} s for a turn.") from None
        return waits

    def answer(self) -> tuple[dict[str, float], dict[str, Any]]:
        """What it measured; it has ended."""
        if self.process.wait():
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise NoVerdictError(f"The suite of {self.tree} failed: {last[0]}")
        try:
            told = {bench["params"]["name"]: bench for bench in json.loads(self.told.read_text())["benchmarks"]}
            seconds = {name: float(bench["stats"]["mean"]) for name, bench in told.items()}
            extra = {name: bench["extra_info"] for name, bench in told.items()}
            about = {name: (one["suite"], one["cell_id"]) for name, one in extra.items()}
            roots = {one["root"] for one in extra.values()}
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise NoVerdictError(f"The suite of {self.tree} does not answer as this one does: {error!r}.") from None
        if others := roots - {str(self.tree)}:
            raise NoVerdictError(f"The suite of {self.tree} measured the code of {others.pop()}.")
        return seconds, about


@contextmanager
def _suite(tree: Path) -> Iterator[_Process]:
    """One that waits for its first turn; nothing is left of it afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        process = _Process(tree, Path(directory))
        try:
            process.turn(first=True)
            yield process
        finally:
            process.process.kill()
            process.process.wait()
            process.turns.close()


@contextmanager
def one_core() -> Iterator[None]:
    """All that is started meanwhile shares one core, where the system lets it: two may differ in speed."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if before:
        os.sched_setaffinity(0, {max(before)})  # the first one often serves interrupts
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GITHUB_"))}


def comparable(base: Path, head: Path) -> None:
    """Run both suites once, which also fills the caches.

    Raises:
        NoVerdictError: they do not measure the same.
    """
    (_, theirs), (_, ours) = observe([base, head])
    if theirs != ours:
        raise NoVerdictError(
            "The two revisions do not measure the same: their suites, problems or cases differ; take a newer one."
        )
