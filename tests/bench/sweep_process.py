"""A runner with planted workers in a process of its own, which can be interrupted and killed.

It is forked from one that has imported torch: a new Python would take two seconds for it each time.
"""

import multiprocessing
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from bench.harness import runner
from bench.records import Cell, Store

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["bench.harness.runner"])


class SweepProcess:
    """Runs closed-form cells of these methods into a store; what it says comes a text at a time."""

    def __init__(self, store, stub, methods, most_bytes=None, kept_on=()):
        self.told, theirs = FORKS.Pipe(duplex=False)
        told = (theirs, dict(os.environ), store, stub, methods, most_bytes, kept_on)
        self.process = FORKS.Process(target=_sweep, args=told)
        self.process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.told.close()

    def hear(self):
        """The next text; it waits for it."""
        return self.told.recv()

    def hear_out(self, timeout=60):
        """All other texts, until it has ended."""
        texts = []
        try:
            while True:
                texts.append(self.told.recv())
        except EOFError:
            self.process.join(timeout)
            return texts

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    @property
    def returncode(self):
        """None while it runs."""
        return self.process.exitcode


def _sweep(
    told: Connection,
    environment: dict[str, str],
    store: Path,
    stub: Path,
    methods: list[str],
    most_bytes: int | None,
    kept_on: tuple[str, ...],
) -> None:
    os.setsid()
    os.environ.update(environment)  # that of the test, not of the process that it was forked from
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes,) * 2)
    options = {"inner_steps": 1, "inner_lr": 0.1}
    cells = [Cell(problem="closed_form", method=method, options=options, probe="error") for method in methods]
    plan = runner.plan("test", cells, Store(store))
    how = {"command": (sys.executable, str(stub)), "kept_on": kept_on}
    try:
        _, interrupted = runner.run(plan, Store(store), timeout_s=60, reporter=_Say(told), say=told.send, **how)
    except OSError as error:
        told.send(str(error))
        sys.exit(1)
    sys.exit(130 if interrupted else 0)


class _Say:
    def __init__(self, told: Connection) -> None:
        self.told = told

    def started(self, cell: Cell) -> None:
        self.told.send("started")

    def progressed(self, cell: Cell, done: int, total: int) -> None:
        pass

    def finished(self, record: object) -> None:
        self.told.send("finished")
