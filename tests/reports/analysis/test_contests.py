import math

import numpy as np
import pytest

from reports.analysis.contests import PAPER, contests
from reports.load import tabulate
from reports.paper import published_ratings


def contest_of(*records):
    (found,) = contests(tabulate(list(records)))
    return found


def test_a_contest_is_one_protocol_and_a_run_one_method(fought, films):
    assert len(fought) == 4
    assert list(films.runs) == [
        "amaml", "imaml paper-gd", "maml (1/10 of the steps)", "reptile", "maml (all steps)", "item-mean",
    ]  # fmt: skip
    other = fought["movielens_100k", "outer_lr=0.01"]
    assert other.runs["amaml"].mean([1, 2]) < films.runs["amaml"].mean([1, 2])
    assert sorted(films.runs["amaml"].nrmse) == [1, 2]
    assert films.runs["reptile"].failed[1][0] == "diverged"


def test_errors_are_over_the_range_or_the_standard_deviation(fought, films, training_store):
    raw = [r for r in training_store if r.cell.method == "amaml" and r.cell.problem_options["outer_lr"] == 1e-3]
    for contest, scale in ((films, 4.0), (fought["cosmixture_training", ""], 2.0)):
        mine = [
            np.mean(r.samples["rmse"]) / scale
            for r in raw
            if r.cell.problem == contest.problem and r.cell.probe == "quality"
        ]
        assert contest.runs["amaml"].mean([1, 2]) == pytest.approx(np.mean(mine))


def test_a_task_without_spread_has_no_error(train_record):
    record = train_record("cosmixture_training", "maml", [0.1, 0.2, 0.3])
    record.samples["target_std"][1] = 0.0
    (contest,) = contests(tabulate([record]))
    assert contest.runs["maml (all steps)"].mean([1]) == pytest.approx(0.2)
    assert math.isnan(contest.runs["maml (all steps)"].nrmse[1][1])


def test_fewer_updates_and_other_options_are_contests_of_their_own(train_record):
    full, quick = (train_record("jester", "amaml", [e], more=m) for e, m in ((0.1, {}), (0.9, {"outer_updates": 100})))
    leaked = train_record("jester", "amaml", [0.01], more={"leak": True})
    found = {c.variant: c.runs["amaml"].mean([1]) for c in contests(tabulate([full, quick, leaked]))}
    assert found == pytest.approx({"": 0.1, "outer_updates=100": 0.9, "leak=true": 0.01})
    (alone,) = contests(tabulate([leaked]))
    assert alone.variant == "leak=true"  # whatever most records say


def test_methods_that_differ_in_an_option_are_two_runs(train_record):
    one, other = (
        train_record("jester", "fomaml", [e], more_options={"inner_lr": lr}) for e, lr in ((0.1, 0.01), (0.2, 0.05))
    )
    found = contest_of(one, other)
    assert {name: run.mean([1]) for name, run in found.runs.items()} == pytest.approx(
        {"fomaml [inner_lr=0.01]": 0.1, "fomaml [inner_lr=0.05]": 0.2}
    )


def test_published_ratings_are_those_of_the_paper():
    paper = published_ratings()
    assert len(paper) == 60
    assert paper["A-MAML", "jester", 20, 50] == (0.027, 0.002)
    assert paper["Reptile", "movielens_1m", 10, 100] == (0.408, 0.011)
    assert {method for method, *_ in paper} <= set(PAPER.values())


def test_a_training_without_errors_is_no_result(train_record):
    rows = [train_record("jester", "amaml", [0.1, 0.2], seed=seed) for seed in (1, 2, 3)]
    rows[1].samples.clear()
    rows[2].samples["rmse"] = [math.nan, math.nan]
    run = contest_of(*rows).runs["amaml"]
    assert list(run.nrmse) == [1]
    assert {seed: status for seed, (status, _) in run.failed.items()} == {2: "no errors", 3: "no errors"}


def test_curves_of_other_steps_are_not_averaged(train_record):
    rows = [train_record("jester", "amaml", [0.1, 0.1], seed=seed) for seed in (1, 2)]
    for name in ("curve_steps", "curve_nrmse", "curve_std"):
        rows[1].samples[name] = [9.0, 99.0]
    assert contest_of(*rows).runs["amaml"].curve[1].tolist() == pytest.approx([0.3, 0.2, 0.1])


def test_what_was_not_asked_as_a_contest_is_none(train_record, make):
    record = train_record("jester", "amaml", [0.1])
    del record.cell.problem_options["shots"]
    assert contests(tabulate([record])) == []
