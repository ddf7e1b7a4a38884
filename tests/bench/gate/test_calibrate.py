"""The calibration of the gate's times, on made-up observations whose rates are known."""

import math

import numpy as np
import pytest

from amaml_core import InputError
from bench.gate import calibrate
from bench.gate.times import Observations, write

CASES = ["quiet", "noisy"]


def observations(seed, noise=(0.01, 0.15), slower=0.0, odd_control=0.0, second=False, **changes):
    """A run in which the head and the control are slower than the other revision by so much, in all cases."""
    rng = np.random.default_rng(seed)
    shift = {"A": 0.0, "B": slower, "C": odd_control}

    def stage():
        def observe(letter):
            return {
                name: math.exp(shift[letter] + rng.normal(0, spread)) for name, spread in zip(CASES, noise, strict=True)
            }

        return [{letter: [observe(letter), observe(letter)] for letter in "ABC"} for _ in range(14)]

    told = {
        "against": "HEAD",
        "base": "abc",
        "head": "abc",
        "environment": {"timing_key": "here"},
        "began_at": f"2026-01-01T0{seed}:00:00+00:00",
        "ended_at": f"2026-01-01T0{seed}:09:30+00:00",
        "stages": [stage(), stage()] if second else [stage()],
    }
    return Observations(**told | changes)


def calibrated(recorded, **changes):
    return calibrate.calibrate(recorded, "this", lambda line: None, **{"runs": 60, "planted_runs": 20} | changes)


def test_identical_code_fails_in_no_run_and_the_limit_is_that_of_clopper_and_pearson():
    known = calibrated([observations(seed, noise=(0.01, 0.02)) for seed in range(5)])
    assert (known.false_alarms, known.suspected, known.control_alarms) == (0, 0, 0)
    assert known.false_alarm_limit == pytest.approx(1 - 0.05 ** (1 / 60))
    assert [run.verdict for run in known.live] == ["gate --against HEAD: passed (2 pass)"] * 5
    assert known.live[0].minutes == 9.5


def test_a_quiet_case_finds_planted_slowdowns_and_a_noisy_one_does_not():
    quiet, noisy = calibrated([observations(seed) for seed in range(5)]).cases
    # the spread of a difference of two means of two
    assert quiet.block_std == pytest.approx(0.01, rel=0.2)
    assert noisy.block_std == pytest.approx(0.15, rel=0.2)
    assert min(quiet.found.values()) >= 0.9
    assert quiet.passed == 1.0
    assert noisy.found["1.10"] < 0.5
    assert noisy.passed < 0.3


def test_what_one_run_had_throughout_is_kept_and_counted():
    """Four runs of five are fine; in one the head was slower for a reason that no block tells."""
    recorded = [observations(seed, noise=(0.01, 0.01)) for seed in range(4)]
    recorded.append(observations(4, noise=(0.01, 0.01), slower=0.12, second=True))
    known = calibrated(recorded)
    assert known.false_alarms == known.suspected
    assert 4 <= known.false_alarms <= 22  # a fifth of 60
    assert known.live[4].suspects == CASES
    assert "2 fail" in known.live[4].verdict


def test_a_control_that_alarms_is_counted():
    assert calibrated([observations(0, noise=(0.01, 0.01), odd_control=0.3)]).control_alarms == 60


def test_the_same_seed_gives_the_same_figures():
    recorded = [observations(0)]
    assert calibrated(recorded) == calibrated(recorded)
    assert calibrated(recorded, seed=1) != calibrated(recorded)


def test_runs_are_read_back(tmp_path):
    made = observations(0)
    write(made, tmp_path)
    assert calibrate.read([tmp_path / "observations.json"]) == [made]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base": "abd"}, "only identical code"),
        ({"base": "abc+dirty", "head": "abc+dirty"}, "only identical code"),
        ({"ended_at": ""}, "did not end"),
        ({"gone_on_at": ["2026-01-02T00:00:00+00:00"]}, "cut off and gone on with"),
        ({"environment": {"timing_key": "there"}}, "one machine are needed, not of 2: here; there"),
        ({"began_at": "2026-01-01T00:00:00+00:00"}, "named twice"),
        ({"stages": [[{letter: [{"quiet": 1.0}] for letter in "ABC"}]]}, "do not have the same cases"),
    ],
)
def test_what_tells_nothing_is_refused(tmp_path, changes, sentence):
    for name, made in (("a", observations(0)), ("b", observations(1, **changes))):
        write(made, tmp_path / name)
    with pytest.raises(InputError, match=sentence):
        calibrate.read([tmp_path / name / "observations.json" for name in "ab"])


def test_a_run_without_the_second_stage_that_it_needs_is_refused():
    with pytest.raises(InputError, match="lacks the second stage"):
        calibrated([observations(0, slower=0.3)])


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no"):
        calibrate.read([tmp_path / "observations.json"])
    (tmp_path / "observations.json").write_text("{}")
    with pytest.raises(InputError, match="holds no observations"):
        calibrate.read([tmp_path / "observations.json"])
