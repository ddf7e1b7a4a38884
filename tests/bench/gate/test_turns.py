"""The gate's second tier: its processes, on small trees and on the suite itself."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.gate import turns
from bench.gate.turns import NoVerdictError

ROOT = Path(__file__).parents[3]


SUITE = """
import pytest
from pathlib import Path

@pytest.mark.parametrize("name", ["fast", "slow"])
def test_outer_update(benchmark, name):
    benchmark.pedantic(lambda: None, rounds=2)
    benchmark.extra_info |= {{"cell_id": name + "{cell}", "suite": "s", "root": {root}}}
"""


@pytest.fixture
def make_tree(tmp_path):
    def make(name, cell="", root="str(Path(__file__).parents[1])"):
        tree = tmp_path / name
        (tree / "bench").mkdir(parents=True)
        (tree / "bench" / "test_outer_update.py").write_text(SUITE.format(cell=cell, root=root))
        return tree

    return make


def test_a_process_is_one_observation_of_each_case(make_tree):
    tree = make_tree("a")
    ((seconds, about),) = turns.observe([tree])
    assert set(seconds) == {"fast", "slow"}
    assert all(value > 0 for value in seconds.values())
    assert about == {"fast": ("s", "fast"), "slow": ("s", "slow")}


def test_what_cannot_be_compared_is_no_verdict(make_tree, tmp_path, monkeypatch):
    with pytest.raises(NoVerdictError, match="do not measure the same"):
        turns.comparable(make_tree("a"), make_tree("b", cell="2"))
    with pytest.raises(NoVerdictError, match="nothing to compare with"):
        turns.observe([tmp_path])
    with pytest.raises(NoVerdictError, match="measured the code of /elsewhere"):
        turns.observe([make_tree("c", root="'/elsewhere'")])
    with pytest.raises(NoVerdictError, match="failed: 2 failed"):
        turns.observe([make_tree("d", root="1 / 0")])
    tree = make_tree("e")
    suite = tree / turns.SUITE
    suite.write_text(suite.read_text().replace('"suite"', '"sweet"'))
    with pytest.raises(NoVerdictError, match="does not answer as this one does: KeyError"):
        turns.observe([tree])
    suite.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(turns, "TIMEOUT_S", 3)
    with pytest.raises(NoVerdictError, match="took more than 3 s"):
        turns.observe([tree])


TAKES_TURNS = """
import socket, time
GATE = socket.socket(fileno=int(__import__("os").environ["AMAML_BENCH_TURNS"]))

def test_writes_when_it_began_and_ended():
    with open("../times", "a") as times:
        for _ in range(3):
            GATE.sendall(b".")
            assert GATE.recv(1)
            print(Path().absolute().name, time.monotonic(), flush=True, file=times)
            time.sleep(0.02)
            print("end", time.monotonic(), flush=True, file=times)
    GATE.close()
    __import__("atexit").register(end, Path("../times").open("a"))

def end(times):
    time.sleep(0.1)
    print("gone", time.monotonic(), flush=True, file=times)
"""


def test_processes_take_turns(make_tree, tmp_path):
    trees = [make_tree(name) for name in "ab"]
    for tree in trees:
        with (tree / turns.SUITE).open("a") as suite:
            suite.write(TAKES_TURNS)
    assert len(turns.observe([*trees, trees[0]])) == 3
    lines = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    round_of_all = ["a", "end", "b", "end", "a", "end"]
    assert [who for who, _ in lines] == [
        *round_of_all,
        *round_of_all,
        "a",
        "end",
        "gone",
        "b",
        "end",
        "gone",
        "a",
        "end",
        "gone",
    ]
    times = [float(time) for _, time in lines]
    assert times == sorted(times)


def test_a_process_that_dies_at_its_turn_is_no_verdict_and_leaves_nothing(make_tree):
    trees, before = [make_tree("a"), make_tree("b")], psutil.Process().children(recursive=True)
    for tree, last in zip(trees, ("", "    __import__('os')._exit(3)"), strict=True):
        with (tree / turns.SUITE).open("a") as suite:
            suite.write(TAKES_TURNS + last)
    with pytest.raises(NoVerdictError, match=r"suite of .*b failed"):
        turns.observe(trees)
    assert psutil.Process().children(recursive=True) == before


@pytest.mark.parametrize("let_on", [b"", b"."])
def test_the_suite_ends_with_the_gate(let_on):
    mine, theirs = socket.socketpair()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", turns.SUITE]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    told_of = {turns.TURNS: str(theirs.fileno())}
    with subprocess.Popen(
        command, cwd=ROOT, env=alone | told_of, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True
    ) as process:
        theirs.close()
        assert mine.recv(1) == b"."
        mine.sendall(let_on)  # it is gone while the suite waits, or while it measures
        mine.close()
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The gate has gone" in told


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not let processes choose cores")
def test_what_is_timed_has_one_core():
    before = os.sched_getaffinity(0)
    command = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    with turns.one_core():
        assert subprocess.run(command, capture_output=True, text=True).stdout == "1\n"
    assert os.sched_getaffinity(0) == before


def test_the_suite_works_with_pytest_benchmark(tmp_path):
    answer = tmp_path / "answer.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--benchmark-json={answer}"]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}  # not a worker of ours
    done = subprocess.run(
        [*command, "bench/test_outer_update.py::test_outer_update[maml-K25]"],
        cwd=ROOT,
        env=alone,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (bench,) = json.loads(answer.read_text())["benchmarks"]
    assert bench["stats"]["rounds"] == 4
    assert bench["extra_info"]["grad_evals"] == 25
    assert bench["extra_info"]["root"] == str(ROOT)
