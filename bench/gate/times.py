"""The gate's second tier: is the head slower than another revision? Both run in one job, block by block.

A block is A B C C B A: A is the other revision, B the head, C the other revision once more, as a control. Each letter
is a fresh process that runs ``bench/test_outer_update.py`` of its own checkout on one thread, and one observation of
each case, its mean round. The six take turns, a round each, on one core: a machine's speed drifts by some 5 % within
seconds, but so for all six alike, and the order cancels what drifts within a turn of all. The letters change places
from block to block, for the place itself may matter (the first process is often slower, by 1 or 2 %).
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from amaml_core import InputError
from bench.gate.ruling import Block, Observation, judge
from bench.gate.turns import NoVerdictError, comparable, observe, one_core
from bench.gate.verdict import Check
from bench.harness import environment
from bench.harness.versions import git_revision

ORDERS = (("ABCCBA", "BCAACB", "CABBAC"), ("CBAABC", "ACBBCA", "BACCAB"))  # of each stage's blocks, in rotation
STEAL = 0.05  # the share of time that the host may take from this machine while it is watched
PATIENCE = 5  # looks at a busy machine, before its block is given up
LOOK_S = 1.0
GIVEN_UP = 10  # times in a row that a block is given up before all is
SAME = ("timing_key", "python", "packages")  # of the environments of blocks that are judged together


def compare(revision: str, blocks: int, out_dir: Path, say: Callable[[str], None]) -> tuple[list[Check], list[str]]:
    """This checkout against a revision of it: the checks and notes.

    All observations are kept in ``out_dir``; a comparison of the same commits that was cut off there is gone on with.

    Raises:
        InputError: there is no such revision, or this program does not run from a checkout.
        NoVerdictError: the two cannot be compared.
    """
    head = Path(__file__).resolve().parents[2]
    with checkout(revision, head) as base:
        comparable(base, head)
        with one_core():  # which is all that the suites have
            described = environment.describe("cpu", 1)
        kept = _go_on(
            Observations(
                against=revision,
                base=git_revision(base),
                head=git_revision(head),
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
        head: this checkout's, with "+dirty" where its sources differ from it.
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
