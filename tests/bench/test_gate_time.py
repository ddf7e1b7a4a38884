"""The gate's second tier: its statistics on synthetic blocks, its processes on small trees."""

import itertools
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import scipy.stats

from amaml_core import InputError
from bench import gate_time
from bench.gate_time import NoVerdictError, judge, rule
from bench.verdict import Verdict

ROOT = Path(__file__).parents[2]
CASES = [f"case{i}" for i in range(10)]


def blocks(seed, count=14, slower=0.0, noise=0.02, cases=CASES, control=0.0):
    """Observations of A, B and C in which B is slower in the first case."""
    rng = np.random.default_rng(seed)

    def observe(letter):
        shift = {"A": 0.0, "B": slower, "C": control}[letter]
        return {n: math.exp(rng.normal(0, noise) + (shift if n == cases[0] else 0.0)) for n in cases}

    return [{letter: [observe(letter), observe(letter)] for letter in "ABC"} for _ in range(count)]


def test_the_sign_flip_test_takes_all_sign_flips():
    values = np.array([0.3, -0.1, 0.2, 0.05, 0.15, -0.02])
    flips = [np.mean(np.array(signs) * values) for signs in itertools.product((1, -1), repeat=len(values))]
    mine = gate_time.sign_flip(np.stack([values, np.zeros(6)], 1))
    assert mine == pytest.approx([np.mean(np.array(flips) >= values.mean() - 1e-15), 1.0])


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_flip_test_is_scipys(seed):
    values = np.random.default_rng(seed).normal(0.3, 1, 11)
    theirs = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="greater", n_resamples=2**11
    )
    assert gate_time.sign_flip(values[:, None]) == pytest.approx([theirs.pvalue])


def test_fewest_blocks_is_where_ten_cases_can_be_rejected():
    best = [
        gate_time.sign_flip(np.full((n, 1), 0.1)) * len(CASES)
        for n in (gate_time.FEWEST_BLOCKS - 1, gate_time.FEWEST_BLOCKS)
    ]
    assert best[1] < gate_time.ALPHA < best[0]


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(0.1, 0.02, 14)
    low, high = gate_time.interval(np.stack([values, np.full(14, 0.2)], 1))
    half = 2.160368656461013 * values.std(ddof=1) / math.sqrt(14)  # t(13) at 97.5 %, from tables
    assert (low[0], high[0]) == pytest.approx((values.mean() - half, values.mean() + half))
    assert (low[1], high[1]) == pytest.approx((0.2, 0.2))


def test_a_slowdown_is_found_and_nothing_else():
    ruling = rule(blocks(0, slower=math.log(1.15)))
    assert ruling.slower == ("case0",)
    assert set(ruling.fine) == set(CASES[1:])
    assert not ruling.alarmed


@pytest.mark.parametrize("seed", range(40))
def test_identical_code_raises_no_alarm(seed):
    ruling = rule(blocks(seed))
    assert not ruling.slower
    assert not ruling.alarmed


def test_a_small_slowdown_is_let_pass_and_a_noisy_one_decides_nothing():
    assert "case0" in rule(blocks(1, slower=math.log(1.01))).fine
    noisy = rule(blocks(1, slower=math.log(1.1), noise=0.3))
    assert not noisy.slower
    assert "case0" not in noisy.fine


def test_the_controls_own_spread_widens_the_margin():
    ruling = rule(blocks(2, control=math.log(1.2)))
    assert ruling.margins["case0"] > math.log(1.15)
    assert ruling.margins["case1"] == pytest.approx(gate_time.MARGIN, abs=0.02)
    assert ruling.alarmed == ("case0",)


@pytest.mark.parametrize(
    ("second", "outcome", "word"),
    [
        (blocks(4, slower=0.14), "fail", "agrees"),
        (blocks(5), "insufficient", "does not agree"),
    ],
)
def test_a_second_stage_has_to_agree(second, outcome, word):
    checks, _ = judge(blocks(3, slower=0.14), lambda: second)
    assert checks[0].outcome == outcome
    assert word in checks[0].text
    assert {check.outcome for check in checks[1:]} == {"pass"}


def test_an_alarm_of_the_control_makes_it_advisory():
    def with_odd_control(seed):
        made = blocks(seed, slower=0.3)
        for block in made:
            for seen in block["C"]:
                seen["case5"] *= 1.2
        return made

    checks, notes = judge(with_odd_control(7), lambda: blocks(8, slower=0.3))
    assert {check.outcome for check in checks} == {"advisory"}
    assert "else fail" in checks[0].text
    assert "else pass" in checks[1].text
    assert "case5" in notes[-1]
    assert Verdict("g", checks).exit_code == 4


def test_an_alarm_of_the_second_stages_control_makes_it_advisory_too():
    def slower(seed, control):
        made = blocks(seed, slower=0.3)
        for block in made:
            for seen in block["B"]:
                seen["case1"] *= 1.3
            for seen in block["C"]:
                seen["case1"] *= control
        return made

    checks, notes = judge(slower(10, 1.0), lambda: slower(11, 1.1))
    assert checks[0].outcome == "advisory"
    assert "else fail" in checks[0].text
    assert "case1" in notes[-1]


def test_a_control_that_is_off_alarms_in_both_directions_and_lets_nothing_pass():
    """Were the other revision's places in the order slow, its twin there would hide a slower head."""
    for control in (0.1, -0.1):
        ruling = rule(blocks(12, control=control))
        assert ruling.alarmed == ("case0",)
        assert "case0" not in ruling.fine


def test_ten_looks_have_their_price():
    """A case that is significant alone is not among ten, and an interval beyond the margin is not enough."""

    def lonely(names):
        ratios = [0.9] * 8 + [-0.15, -0.1]
        seen = [{n: math.exp(r) if n == "case0" else 1.0 for n in names} for r in ratios]
        same = dict.fromkeys(names, 1.0)
        return [{"A": [same, same], "B": [one, one], "C": [same, same]} for one in seen]

    alone, among = rule(lonely(CASES[:1])), rule(lonely(CASES))
    assert alone.slower == ("case0",)
    assert among.effects["case0"].low > among.margins["case0"]
    assert among.slower == ()


def test_without_suspects_there_is_no_second_stage():
    checks, notes = judge(blocks(9), lambda: pytest.fail("ran"))
    assert {check.outcome for check in checks} == {"pass"}
    assert len(notes) == 1


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
    ((seconds, about),) = gate_time.observe([tree])
    assert set(seconds) == {"fast", "slow"}
    assert all(value > 0 for value in seconds.values())
    assert about == {"fast": ("s", "fast"), "slow": ("s", "slow")}


def test_what_cannot_be_compared_is_no_verdict(make_tree, tmp_path, monkeypatch):
    with pytest.raises(NoVerdictError, match="do not measure the same"):
        gate_time.comparable(make_tree("a"), make_tree("b", cell="2"))
    with pytest.raises(NoVerdictError, match="nothing to compare with"):
        gate_time.observe([tmp_path])
    with pytest.raises(NoVerdictError, match="measured the code of /elsewhere"):
        gate_time.observe([make_tree("c", root="'/elsewhere'")])
    with pytest.raises(NoVerdictError, match="failed: 2 failed"):
        gate_time.observe([make_tree("d", root="1 / 0")])
    tree = make_tree("e")
    suite = tree / gate_time.SUITE
    suite.write_text(suite.read_text().replace('"suite"', '"sweet"'))
    with pytest.raises(NoVerdictError, match="does not answer as this one does: KeyError"):
        gate_time.observe([tree])
    suite.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(gate_time, "TIMEOUT_S", 3)
    with pytest.raises(NoVerdictError, match="took more than 3 s"):
        gate_time.observe([tree])


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
        with (tree / gate_time.SUITE).open("a") as suite:
            suite.write(TAKES_TURNS)
    assert len(gate_time.observe([*trees, trees[0]])) == 3
    lines = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    turns = ["a", "end", "b", "end", "a", "end"]
    assert [who for who, _ in lines] == [*turns, *turns, "a", "end", "gone", "b", "end", "gone", "a", "end", "gone"]
    times = [float(time) for _, time in lines]
    assert times == sorted(times)


def test_a_process_that_dies_at_its_turn_is_no_verdict_and_leaves_nothing(make_tree):
    trees = [make_tree("a"), make_tree("b")]
    for tree, last in zip(trees, ("", "    __import__('os')._exit(3)"), strict=True):
        with (tree / gate_time.SUITE).open("a") as suite:
            suite.write(TAKES_TURNS + last)
    with pytest.raises(NoVerdictError, match=r"suite of .*b failed"):
        gate_time.observe(trees)
    assert not psutil.Process().children(recursive=True)


@pytest.mark.parametrize("let_on", [b"", b"."])
def test_the_suite_ends_with_the_gate(let_on):
    mine, theirs = socket.socketpair()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", gate_time.SUITE]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    turns = {gate_time.TURNS: str(theirs.fileno())}
    with subprocess.Popen(
        command, cwd=ROOT, env=alone | turns, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True
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
    with gate_time.one_core():
        assert subprocess.run(command, capture_output=True, text=True).stdout == "1\n"
    assert os.sched_getaffinity(0) == before


def test_blocks_are_in_order_and_given_up_before_they_begin(monkeypatch):
    seen, busy, said = [], iter(["busy", "", "busy", ""]), []

    def observe(trees):
        seen.append([tree.name for tree in trees])
        return [({"case": float(place)}, {}) for place in range(len(trees))]

    monkeypatch.setattr(gate_time, "_wait_for_quiet", lambda: next(busy))
    monkeypatch.setattr(gate_time, "observe", observe)
    given_up, *found = list(gate_time.measure(Path("base"), Path("head"), 1, range(4, 6), said.append))
    assert (given_up, found.pop(1)) == ("busy", "busy")
    letters = {"A": "base", "B": "head", "C": "base"}
    orders = [gate_time.ORDERS[1][number % 3] for number in (4, 5)]
    assert seen == [[letters[letter] for letter in order] for order in orders]
    for block, order in zip(found, orders, strict=True):
        assert {letter: [one["case"] for one in block[letter]] for letter in block} == {
            letter: [place for place in range(6) if order[place] == letter] for letter in "ABC"
        }
    assert sum("given up" in line for line in said) == 2


def test_orders_cancel_drift_and_places():
    for orders in gate_time.ORDERS:
        assert all(order == order[::-1] and set(order) == set("ABC") for order in orders)
        assert all({order[place] for order in orders} == set("ABC") for place in range(6))
    reverse = ("".join({"A": "C", "C": "A"}.get(x, x) for x in order) for order in gate_time.ORDERS[0])
    assert set(reverse) == set(gate_time.ORDERS[1])


def test_a_machine_that_is_never_quiet_is_no_verdict(monkeypatch):
    monkeypatch.setattr(gate_time, "_wait_for_quiet", lambda: "busy")
    with pytest.raises(NoVerdictError, match="too busy"):
        list(gate_time.measure(Path("base"), Path("head"), 0, range(2), lambda line: None))


@pytest.mark.parametrize(("load", "steal", "word"), [("", 0.0, ""), ("busy", 0.0, "busy"), ("", 0.9, "the host took")])
def test_a_machine_is_quiet_without_load_and_steal(monkeypatch, load, steal, word):
    times = [SimpleNamespace(steal=steal * i) for i in range(2 * gate_time.PATIENCE)]
    monkeypatch.setattr(gate_time.environment, "busy", lambda seconds: load)
    monkeypatch.setattr(gate_time.psutil, "cpu_times", lambda: times.pop(0))
    monkeypatch.setattr(gate_time.psutil, "cpu_count", lambda: 2)
    assert gate_time._wait_for_quiet().startswith(word)
    assert len(times) == (0 if word else 2 * gate_time.PATIENCE - 2)


def test_a_whole_comparison_keeps_both_stages(monkeypatch, tmp_path, repository):
    stages = [blocks(3, slower=0.14), blocks(4, slower=0.14)]
    monkeypatch.setattr(gate_time, "comparable", lambda base, head: None)
    monkeypatch.setattr(gate_time, "measure", lambda base, head, stage, numbers, say: iter(stages[stage]))
    monkeypatch.setattr(gate_time, "__file__", str(repository / "bench" / "gate_time.py"))
    checks, _ = gate_time.compare("HEAD", 14, tmp_path / "out", lambda line: None)
    assert [check.outcome for check in checks] == ["fail"] + ["pass"] * 9
    kept = gate_time.Observations.model_validate_json((tmp_path / "out" / gate_time.OBSERVATIONS).read_bytes())
    assert kept.stages == stages
    assert kept.ended_at


def test_observations_are_kept_block_by_block(monkeypatch, tmp_path, repository):
    monkeypatch.setattr(gate_time, "comparable", lambda base, head: None)
    made = blocks(0)[:2]

    def killed(base, head, stage, numbers, say):
        yield from made
        yield "busy"
        raise KeyboardInterrupt

    monkeypatch.setattr(gate_time, "measure", killed)
    monkeypatch.setattr(gate_time, "__file__", str(repository / "bench" / "gate_time.py"))
    with pytest.raises(KeyboardInterrupt):
        gate_time.compare("HEAD", 14, tmp_path / "out", lambda line: None)
    kept = gate_time.Observations.model_validate_json((tmp_path / "out" / gate_time.OBSERVATIONS).read_bytes())
    assert kept.stages == [made]
    assert kept.given_up == ["busy"]
    assert kept.head == f"{kept.base}+dirty"
    assert kept.began_at
    assert not kept.ended_at


@pytest.mark.parametrize(("clean", "went_on"), [(True, True), (False, False)])
def test_a_comparison_that_was_cut_off_is_gone_on_with(monkeypatch, tmp_path, repository, clean, went_on):
    if clean:
        (repository / "file").write_text("one")
    monkeypatch.setattr(gate_time, "comparable", lambda base, head: None)
    monkeypatch.setattr(gate_time, "__file__", str(repository / "bench" / "gate_time.py"))
    all_blocks, asked, said = blocks(9), [], []

    def measure(base, head, stage, numbers, say):
        asked.append(numbers)
        for number in numbers:
            if number == 3 and len(asked) == 1:
                raise KeyboardInterrupt
            yield all_blocks[number]

    monkeypatch.setattr(gate_time, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        gate_time.compare("HEAD", 14, tmp_path / "out", said.append)
    gate_time.compare("HEAD", 14, tmp_path / "out", said.append)
    assert asked == [range(14), range(3 if went_on else 0, 14)]
    assert any("Going on from 3 blocks" in line for line in said) == went_on
    kept = gate_time.Observations.model_validate_json((tmp_path / "out" / gate_time.OBSERVATIONS).read_bytes())
    assert kept.stages == [all_blocks]
    assert len(kept.gone_on_at) == went_on
    gate_time.compare("HEAD", 14, tmp_path / "out", said.append)
    assert asked[2] == range(14)  # one that ended is done again


def test_the_first_stage_does_not_grow_once_it_was_ruled_upon(monkeypatch, tmp_path, repository):
    (repository / "file").write_text("one")
    stages = [blocks(3, count=10, slower=0.14), blocks(4, count=14, slower=0.14)]
    monkeypatch.setattr(gate_time, "comparable", lambda base, head: None)
    monkeypatch.setattr(gate_time, "__file__", str(repository / "bench" / "gate_time.py"))
    asked = []

    def measure(base, head, stage, numbers, say):
        asked.append((stage, numbers))
        for number in numbers:
            if len(asked) == 2 and number == 5:
                raise KeyboardInterrupt
            yield stages[stage][number]

    monkeypatch.setattr(gate_time, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        gate_time.compare("HEAD", 10, tmp_path / "out", lambda line: None)
    checks, _ = gate_time.compare("HEAD", 14, tmp_path / "out", lambda line: None)
    assert asked == [(0, range(10)), (1, range(10)), (0, range(10, 10)), (1, range(5, 10))]
    assert checks[0].outcome == "fail"


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    (root / "file").write_text("one")
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    (root / "file").write_text("two")
    return root


def test_a_revision_is_checked_out_beside_the_head_and_removed(repository):
    with gate_time.checkout("HEAD", repository) as tree:
        assert (tree / "file").read_text() == "one"
    assert not tree.exists()
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert listed.stdout.count("\n") == 1
    assert (repository / "file").read_text() == "two"


def test_an_unknown_revision_is_bad_input(repository):
    with pytest.raises(InputError, match="--against nothing"), gate_time.checkout("nothing", repository):
        pass


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
