"""The gate's second tier: is the head slower than another revision? Both run in one job, block by block.

A block is A B C C B A: A is the other revision, B the head, C the other revision once more, as a control. Each letter
is a fresh process that runs ``bench/test_outer_update.py`` of its own checkout on one thread, and one observation of
each case, its mean round. The six take turns, a round each, on one core: a machine's speed drifts by some 5 % within
seconds, but so for all six alike, and the order cancels what drifts within a turn of all. The letters change places
from block to block, for the place itself may matter (the first process is often slower, by 1 or 2 %).
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import stats as scipy_stats

from amaml_core import InputError
from bench import environment
from bench.stats import holm
from bench.verdict import Check

SUITE = "bench/test_outer_update.py"
TURNS = (
    "AMAML_BENCH_TURNS"  # tells a suite, of whatever revision, of a socket to ask for its turn and wait for the answer
)
FEWEST_BLOCKS = 10  # with fewer, ten cases cannot be told apart from chance at ALPHA
MOST_BLOCKS = 14  # all of their 2^14 sign flips are tried
ORDERS = (("ABCCBA", "BCAACB", "CABBAC"), ("CBAABC", "ACBBCA", "BACCAB"))  # of each stage's blocks, in rotation
ALPHA = 0.01
MARGIN = math.log(1.05)  # a slowdown that is worth a red light
CONFIDENCE = 0.95
STEAL = 0.05  # the share of time that the host may take from this machine while it is watched
TIMEOUT_S = 300  # of a process's turn, which takes less than some seconds
PATIENCE = 5  # looks at a busy machine, before its block is given up
LOOK_S = 1.0
GIVEN_UP = 10  # times in a row that a block is given up before all is
SAME = ("timing_key", "python", "packages")  # of the environments of blocks that are judged together

Observation = Mapping[str, float]
"""Seconds of each case in one process."""
Block = Mapping[str, Sequence[Observation]]
"""The observations of each letter in one block."""


@dataclass(frozen=True)
class Effect:
    """One case's log-ratio of times over blocks.

    Attributes:
        mean: of the blocks' log-ratios.
        low: lower end of the interval for it (Student's t).
        high: upper end.
        p: of the one-sided sign-flip test for "slower", adjusted by Holm's method.
    """

    mean: float
    low: float
    high: float
    p: float


def effects(blocks: Sequence[Block], slow: str, fast: str) -> dict[str, Effect]:
    """Of each case: how much slower one letter is than another.

    The test takes all sign flips of the blocks' log-ratios: exact, whatever their distribution, as long as blocks are
    independent and it is symmetric where nothing has changed.
    """
    names = list(blocks[0][slow][0])
    ratios = log_ratios(blocks, slow, fast)
    adjusted = holm(sign_flip(ratios).tolist())
    ends = zip(*interval(ratios), strict=True)
    return {
        name: Effect(float(mean), float(low), float(high), p)
        for name, mean, (low, high), p in zip(names, ratios.mean(0), ends, adjusted, strict=True)
    }


def log_ratios(blocks: Sequence[Block], slow: str, fast: str) -> np.ndarray:
    """Of one letter's times to another's, ``[blocks, cases]``."""
    names = list(blocks[0][slow][0])
    return np.array([[_log_mean(b[slow], name) - _log_mean(b[fast], name) for name in names] for b in blocks])


def sign_flip(values: np.ndarray) -> np.ndarray:
    """One-sided p-values of "the mean is positive", over all sign flips: ``[cases]`` from ``[blocks, cases]``."""
    slack = 1e-12 * np.abs(values).sum(0)
    return (_signs(len(values)) @ values >= values.sum(0) - slack).mean(0)


@cache
def _signs(count: int) -> np.ndarray:
    """All of them, a row each."""
    return 1.0 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the means, by Student's t: two of ``[cases]`` from ``[blocks, cases]``."""
    half = _quantile(len(values)) * values.std(0, ddof=1) / math.sqrt(len(values))
    return values.mean(0) - half, values.mean(0) + half


@cache
def _quantile(count: int) -> float:
    return float(scipy_stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


def _log_mean(observations: Sequence[Observation], name: str) -> float:
    return sum(math.log(observation[name]) for observation in observations) / len(observations)


@dataclass(frozen=True)
class Ruling:
    """What the blocks of one stage say.

    Attributes:
        slower: cases with p < ``ALPHA`` whose whole interval lies beyond their margin.
        fine: cases whose interval ends below ``MARGIN``, where the control shows no more than that: a noisy control, or
            one that is off, must not let anything pass.
        alarmed: cases in which the control is "slower" or "faster" by the same rule: the same code twice.
        effects: of the head against the other revision.
        margins: log-ratio, by case: the larger of ``MARGIN`` and what the control shows there.
    """

    slower: tuple[str, ...]
    fine: tuple[str, ...]
    alarmed: tuple[str, ...]
    effects: dict[str, Effect]
    margins: dict[str, float]


def rule(blocks: Sequence[Block]) -> Ruling:
    """The verdict of one stage."""
    found, control, reverse = (effects(blocks, *pair) for pair in ("BA", "CA", "AC"))
    margins = {name: max(MARGIN, abs(e.low), abs(e.high)) for name, e in control.items()}
    return Ruling(
        tuple(name for name, e in found.items() if e.p < ALPHA and e.low > margins[name]),
        tuple(name for name, e in found.items() if e.high < MARGIN and margins[name] == MARGIN),
        tuple(name for name in found if any(c[name].p < ALPHA and c[name].low > MARGIN for c in (control, reverse))),
        found,
        margins,
    )


def judge(first: Sequence[Block], second: Callable[[], Sequence[Block]]) -> tuple[list[Check], list[str]]:
    """The checks and what is to be said of all of them.

    Args:
        first: the blocks of the first stage.
        second: runs the second stage, in the other order; it is asked for where the first calls a case slower, and
            judged on such cases alone.
    """
    ruling = rule(first)
    again = rule([_part(block, ruling.slower) for block in second()]) if ruling.slower else None
    doubt = bool(ruling.alarmed or (again and again.alarmed))
    checks = []
    for name, effect in ruling.effects.items():
        told = f"{_percent(effect.mean)} ({_percent(effect.low)} to {_percent(effect.high)}), p = {effect.p:.2g}"
        told += f", margin {_percent(ruling.margins[name])}"
        outcome = "pass" if name in ruling.fine else "insufficient"
        if again is not None and name in ruling.slower:
            confirmed = name in again.slower
            outcome = "fail" if confirmed else "insufficient"
            told += f"; the second stage {'agrees' if confirmed else 'does not agree'}"
            told += f": {_percent(again.effects[name].mean)}"
        if doubt:
            told, outcome = f"{told}; else {outcome}", "advisory"
        before, now = (_typical(first, letter, name) for letter in "AB")
        checks.append(Check(name, "outer_update_seconds", outcome, before, now, told + "."))
    notes = [f"{len(first)} blocks; a change below {_percent(MARGIN)} is let pass."]
    if doubt:
        who = ", ".join(sorted({*ruling.alarmed, *(again.alarmed if again else ())}))
        notes.append(f"The same code twice was told apart ({who}): on this machine, now, the times are advisory only.")
    return checks, notes


def _part(block: Block, names: Sequence[str]) -> Block:
    return {letter: [{name: seen[name] for name in names} for seen in block[letter]] for letter in block}


def _typical(blocks: Sequence[Block], letter: str, name: str) -> float:
    return math.exp(statistics.median(_log_mean(block[letter], name) for block in blocks))


def _percent(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.1f} %"


def compare(revision: str, blocks: int, out_dir: Path, say: Callable[[str], None]) -> tuple[list[Check], list[str]]:
    """This checkout against a revision of it: the checks and notes.

    All observations are kept in ``out_dir``; a comparison of the same commits that was cut off there is gone on with.

    Raises:
        InputError: there is no such revision, or this program does not run from a checkout.
        NoVerdictError: the two cannot be compared.
    """
    head = Path(__file__).resolve().parents[1]
    with checkout(revision, head) as base:
        comparable(base, head)
        with one_core():  # which is all that the suites have
            described = environment.describe("cpu", 1)
        kept = _go_on(
            Observations(
                against=revision,
                base=environment.git_revision(base),
                head=environment.git_revision(head),
                environment=described,
                began_at=_now(),
            ),
            out_dir / OBSERVATIONS,
        )
        stages: list[list[Block]] = [[*stage] for stage in kept.stages]
        given_up, gone_on_at = list(kept.given_up), list(kept.gone_on_at)
        if stages:
            say(f"Going on from {sum(map(len, stages))} blocks of {kept.began_at}.")
            gone_on_at.append(_now())

        def keep(**ended: str) -> None:
            told = {"stages": stages, "given_up": given_up, "gone_on_at": gone_on_at, **ended}
            write(kept.model_copy(update=told), out_dir)

        def run(stage: int) -> Sequence[Block]:
            if stage == len(stages):
                stages.append([])
            # the first stage has been ruled upon once there is a second: it is not to grow until it says something else
            count = blocks if len(stages) == 1 else len(stages[0])
            for found in measure(base, head, stage, range(len(stages[stage]), count), say):
                if isinstance(found, str):
                    given_up.append(found)
                else:
                    stages[stage].append(found)
                keep()
            return stages[stage]

        keep()
        answer = judge(run(0), lambda: run(1))
        keep(ended_at=_now())
        return answer


class Observations(BaseModel):
    """All that a comparison saw, for those who do not trust its verdict.

    Attributes:
        against: the other revision as it was asked for.
        base: its commit.
        head: this checkout's, with "+dirty" where files differ from it.
        environment: what ``environment.describe`` tells.
        began_at: in UTC.
        ended_at: empty while it runs, and where it was cut off or given up.
        gone_on_at: when it was gone on with after that.
        stages: the blocks of the first stage and of the second.
        given_up: why blocks were given up before they began.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    against: str
    base: str
    head: str
    environment: dict[str, Any]
    began_at: str
    ended_at: str = ""
    gone_on_at: list[str] = []
    stages: list[list[dict[str, list[dict[str, float]]]]] = []
    given_up: list[str] = []


OBSERVATIONS = "observations.json"


def _go_on(fresh: Observations, path: Path) -> Observations:
    """What is there of the same comparison, where it was cut off; else the fresh one."""
    try:
        there = Observations.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return fresh
    told = [(o.base, o.head, *(o.environment.get(key) for key in SAME)) for o in (there, fresh)]
    known = there.base and there.head and not there.head.endswith("+dirty")
    return there if known and told[0] == told[1] and not there.ended_at else fresh


def write(observations: Observations, directory: Path) -> None:
    """Into a directory, as a whole."""
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / f"{OBSERVATIONS}.part"
    part.write_text(observations.model_dump_json(indent=1) + "\n")
    part.replace(directory / OBSERVATIONS)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def checkout(revision: str, root: Path) -> Iterator[Path]:
    """A worktree of this revision beside the head, removed afterwards.

    Raises:
        InputError: there is no such revision, or this is no checkout.
    """
    with tempfile.TemporaryDirectory(prefix="gate-") as directory:
        path = Path(directory).resolve() / "tree"
        done = _git(root, "worktree", "add", "--detach", str(path), revision)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["git failed"])[-1]
            raise InputError(f"--against {revision}: {last}; give a revision of this repository (fetch it first).")
        try:
            yield path
        finally:
            _git(root, "worktree", "remove", "--force", str(path))


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)


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


def measure(base: Path, head: Path, stage: int, blocks: range, say: Callable[[str], None]) -> Iterator[Block | str]:
    """These blocks of one stage, as they are made.

    A block is given up for a busy machine before it begins, never for its times; then the reason comes in its place.

    Raises:
        NoVerdictError: the machine was never quiet enough.
    """
    began = time.monotonic()
    for number in blocks:
        given_up = 0
        while trouble := _wait_for_quiet():
            given_up += 1
            say(f"A block is given up: {trouble}.")
            yield trouble
            if given_up == GIVEN_UP:
                raise NoVerdictError(f"The machine is too busy to time anything: {trouble}.")
        order = ORDERS[stage][number % len(ORDERS[stage])]
        trees = [head if letter == "B" else base for letter in order]
        block: dict[str, list[Observation]] = {"A": [], "B": [], "C": []}
        for letter, (seconds, _) in zip(order, observe(trees), strict=True):
            block[letter].append(seconds)
        made = number + 1 - blocks.start
        left = (time.monotonic() - began) / made * (len(blocks) - made)
        say(f"Stage {stage + 1}: block {number + 1} of {blocks.stop}, {left / 60:.1f} min left")
        yield block


def _wait_for_quiet() -> str:
    """Empty as soon as the machine is quiet; else what troubled it at the last look."""
    trouble = ""
    for _ in range(PATIENCE):
        before = psutil.cpu_times()
        trouble = environment.busy(LOOK_S)
        after = psutil.cpu_times()
        steal = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
        if steal > STEAL * LOOK_S * (psutil.cpu_count() or 1):
            trouble = f"the host took {steal:.2f} s of {LOOK_S:g} s"
        if not trouble:
            break
    return trouble
