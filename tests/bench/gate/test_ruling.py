"""The gate's second tier: its statistics, on synthetic blocks."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from stand_ins import CASES, blocks

from bench.gate import ruling
from bench.gate.ruling import judge, rule
from bench.gate.verdict import Verdict


def test_the_sign_flip_test_takes_all_sign_flips():
    values = np.array([0.3, -0.1, 0.2, 0.05, 0.15, -0.02])
    flips = [np.mean(np.array(signs) * values) for signs in itertools.product((1, -1), repeat=len(values))]
    mine = ruling.sign_flip(np.stack([values, np.zeros(6)], 1))
    assert mine == pytest.approx([np.mean(np.array(flips) >= values.mean() - 1e-15), 1.0])


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_flip_test_is_scipys(seed):
    values = np.random.default_rng(seed).normal(0.3, 1, 11)
    theirs = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="greater", n_resamples=2**11
    )
    assert ruling.sign_flip(values[:, None]) == pytest.approx([theirs.pvalue])


def test_fewest_blocks_is_where_ten_cases_can_be_rejected():
    best = [
        ruling.sign_flip(np.full((n, 1), 0.1)) * len(CASES) for n in (ruling.FEWEST_BLOCKS - 1, ruling.FEWEST_BLOCKS)
    ]
    assert best[1] < ruling.ALPHA < best[0]


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(0.1, 0.02, 14)
    low, high = ruling.interval(np.stack([values, np.full(14, 0.2)], 1))
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
    found = rule(blocks(2, control=math.log(1.2)))
    assert found.margins["case0"] > math.log(1.15)
    assert found.margins["case1"] == pytest.approx(ruling.MARGIN, abs=0.02)
    assert found.alarmed == ("case0",)


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
