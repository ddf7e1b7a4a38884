"""The gate's second tier: a comparison, block by block."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_ins import blocks

from amaml_core import InputError
from bench.gate import times
from bench.gate.turns import NoVerdictError


def test_blocks_are_in_order_and_given_up_before_they_begin(monkeypatch):
    seen, busy, said = [], iter(["busy", "", "busy", ""]), []

    def observe(trees):
        seen.append([tree.name for tree in trees])
        return [({"case": float(place)}, {}) for place in range(len(trees))]

    monkeypatch.setattr(times, "_wait_for_quiet", lambda: next(busy))
    monkeypatch.setattr(times, "observe", observe)
    given_up, *found = list(times.measure(Path("base"), Path("head"), 1, range(4, 6), said.append))
    assert (given_up, found.pop(1)) == ("busy", "busy")
    letters = {"A": "base", "B": "head", "C": "base"}
    orders = [times.ORDERS[1][number % 3] for number in (4, 5)]
    assert seen == [[letters[letter] for letter in order] for order in orders]
    for block, order in zip(found, orders, strict=True):
        assert {letter: [one["case"] for one in block[letter]] for letter in block} == {
            letter: [place for place in range(6) if order[place] == letter] for letter in "ABC"
        }
    assert sum("given up" in line for line in said) == 2


def test_orders_cancel_drift_and_places():
    for orders in times.ORDERS:
        assert all(order == order[::-1] and set(order) == set("ABC") for order in orders)
        assert all({order[place] for order in orders} == set("ABC") for place in range(6))
    reverse = ("".join({"A": "C", "C": "A"}.get(x, x) for x in order) for order in times.ORDERS[0])
    assert set(reverse) == set(times.ORDERS[1])


def test_a_machine_that_is_never_quiet_is_no_verdict(monkeypatch):
    monkeypatch.setattr(times, "_wait_for_quiet", lambda: "busy")
    with pytest.raises(NoVerdictError, match="too busy"):
        list(times.measure(Path("base"), Path("head"), 0, range(2), lambda line: None))


@pytest.mark.parametrize(("load", "steal", "word"), [("", 0.0, ""), ("busy", 0.0, "busy"), ("", 0.9, "the host took")])
def test_a_machine_is_quiet_without_load_and_steal(monkeypatch, load, steal, word):
    told = [SimpleNamespace(steal=steal * i) for i in range(2 * times.PATIENCE)]
    monkeypatch.setattr(times.environment, "busy", lambda seconds: load)
    monkeypatch.setattr(times.psutil, "cpu_times", lambda: told.pop(0))
    monkeypatch.setattr(times.psutil, "cpu_count", lambda: 2)
    assert times._wait_for_quiet().startswith(word)
    assert len(told) == (0 if word else 2 * times.PATIENCE - 2)


def test_a_whole_comparison_keeps_both_stages(monkeypatch, tmp_path, repository):
    stages = [blocks(3, slower=0.14), blocks(4, slower=0.14)]
    monkeypatch.setattr(times, "comparable", lambda base, head: None)
    monkeypatch.setattr(times, "measure", lambda base, head, stage, numbers, say: iter(stages[stage]))
    monkeypatch.setattr(times, "__file__", str(repository / "bench" / "gate" / "times.py"))
    checks, _ = times.compare("HEAD", 14, tmp_path / "out", lambda line: None)
    assert [check.outcome for check in checks] == ["fail"] + ["pass"] * 9
    kept = times.Observations.model_validate_json((tmp_path / "out" / times.OBSERVATIONS).read_bytes())
    assert kept.stages == stages
    assert kept.ended_at


def test_observations_are_kept_block_by_block(monkeypatch, tmp_path, repository):
    monkeypatch.setattr(times, "comparable", lambda base, head: None)
    made = blocks(0)[:2]

    def killed(base, head, stage, numbers, say):
        yield from made
        yield "busy"
        raise KeyboardInterrupt

    monkeypatch.setattr(times, "measure", killed)
    monkeypatch.setattr(times, "__file__", str(repository / "bench" / "gate" / "times.py"))
    with pytest.raises(KeyboardInterrupt):
        times.compare("HEAD", 14, tmp_path / "out", lambda line: None)
    kept = times.Observations.model_validate_json((tmp_path / "out" / times.OBSERVATIONS).read_bytes())
    assert kept.stages == [made]
    assert kept.given_up == ["busy"]
    assert kept.head == f"{kept.base}+dirty"
    assert kept.began_at
    assert not kept.ended_at


@pytest.mark.parametrize(("clean", "went_on"), [(True, True), (False, False)])
def test_a_comparison_that_was_cut_off_is_gone_on_with(monkeypatch, tmp_path, repository, clean, went_on):
    if clean:
        (repository / "bench" / "file").write_text("one")
    monkeypatch.setattr(times, "comparable", lambda base, head: None)
    monkeypatch.setattr(times, "__file__", str(repository / "bench" / "gate" / "times.py"))
    all_blocks, asked, said = blocks(9), [], []

    def measure(base, head, stage, numbers, say):
        asked.append(numbers)
        for number in numbers:
            if number == 3 and len(asked) == 1:
                raise KeyboardInterrupt
            yield all_blocks[number]

    monkeypatch.setattr(times, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        times.compare("HEAD", 14, tmp_path / "out", said.append)
    times.compare("HEAD", 14, tmp_path / "out", said.append)
    assert asked == [range(14), range(3 if went_on else 0, 14)]
    assert any("Going on from 3 blocks" in line for line in said) == went_on
    kept = times.Observations.model_validate_json((tmp_path / "out" / times.OBSERVATIONS).read_bytes())
    assert kept.stages == [all_blocks]
    assert len(kept.gone_on_at) == went_on
    times.compare("HEAD", 14, tmp_path / "out", said.append)
    assert asked[2] == range(14)  # one that ended is done again


def test_the_first_stage_does_not_grow_once_it_was_ruled_upon(monkeypatch, tmp_path, repository):
    (repository / "bench" / "file").write_text("one")
    stages = [blocks(3, count=10, slower=0.14), blocks(4, count=14, slower=0.14)]
    monkeypatch.setattr(times, "comparable", lambda base, head: None)
    monkeypatch.setattr(times, "__file__", str(repository / "bench" / "gate" / "times.py"))
    asked = []

    def measure(base, head, stage, numbers, say):
        asked.append((stage, numbers))
        for number in numbers:
            if len(asked) == 2 and number == 5:
                raise KeyboardInterrupt
            yield stages[stage][number]

    monkeypatch.setattr(times, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        times.compare("HEAD", 10, tmp_path / "out", lambda line: None)
    checks, _ = times.compare("HEAD", 14, tmp_path / "out", lambda line: None)
    assert asked == [(0, range(10)), (1, range(10)), (0, range(10, 10)), (1, range(5, 10))]
    assert checks[0].outcome == "fail"


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    (root / "bench").mkdir(parents=True)
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    (root / "bench" / "file").write_text("one")
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    (root / "bench" / "file").write_text("two")
    return root


def test_a_revision_is_checked_out_beside_the_head_and_removed(repository):
    with times.checkout("HEAD", repository) as tree:
        assert (tree / "bench" / "file").read_text() == "one"
    assert not tree.exists()
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert listed.stdout.count("\n") == 1
    assert (repository / "bench" / "file").read_text() == "two"


def test_an_unknown_revision_is_bad_input(repository):
    with pytest.raises(InputError, match="--against nothing"), times.checkout("nothing", repository):
        pass
