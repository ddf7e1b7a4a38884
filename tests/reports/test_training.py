import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from reports.findings import training_findings
from reports.load import tabulate
from reports.paper import published_ratings
from reports.render import build
from reports.training import PAPER, best_within, contests, duels, reached, slips, verdict
from reports.training_tables import (
    details,
    protocol_slips,
    standing,
    variants,
    verdicts,
    within_memory,
    within_time,
)


@pytest.fixture
def fought(training_store):
    return {(c.problem, c.variant): c for c in contests(tabulate(training_store))}


@pytest.fixture
def films(fought):
    return fought["movielens_100k", ""]


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


def test_duels_pair_the_tasks_of_all_seeds(films):
    mine, other = films.runs["amaml"], films.runs["maml (1/10 of the steps)"]
    gap = np.concatenate([mine.nrmse[seed] - other.nrmse[seed] for seed in (1, 2)])
    duel = duels(mine, [mine, other])[other.name]
    assert duel.difference == pytest.approx(gap.mean())
    assert duel.wins == (gap < 0).mean()
    assert duel.p == pytest.approx(wilcoxon(gap).pvalue)
    assert duels(mine, list(films.runs.values()))[other.name].p > duel.p  # Holm's price for looking at more


def test_equal_runs_do_not_differ(films):
    mine = films.runs["amaml"]
    twin = type(mine)(**{**mine.__dict__, "name": "twin"})
    assert duels(mine, [twin])["twin"].p == 1.0


def test_the_verdict_is_for_us_where_we_lead_and_against_us_where_not(fought, films):
    won, lost = verdict(films), verdict(fought["cosmixture_training", ""])
    assert (won.ours, won.clear, won.beaten_by, won.seeds, won.of_seeds) == (True, True, (), 2, 2)
    assert (lost.ours, lost.clear, lost.best, lost.beaten_by) == (False, False, "imaml paper-gd", ("imaml paper-gd",))


def contest_of(*records):
    (found,) = contests(tabulate(list(records)))
    return found


def test_a_few_large_wins_against_many_small_losses_are_no_clear_lead(train_record):
    small, large = [0.2] * 18 + [0.9, 0.9], [0.21 - 0.0001 * i for i in range(18)] + [0.1, 0.1]
    verdict_of = verdict(
        contest_of(train_record("jester", "amaml", large), train_record("jester", "imaml", small, variant="paper-gd"))
    )
    assert verdict_of.ours  # in the mean
    assert not verdict_of.clear
    assert verdict_of.beaten_by == ()


def test_a_lead_must_be_there_in_every_seed(train_record):
    rng = np.random.default_rng(1)
    rows = []
    for seed, lead in ((1, 0.1), (2, 0.1), (3, -0.001)):
        base = rng.uniform(0.2, 0.3, 20)
        rows.append(train_record("jester", "amaml", list(base), seed=seed))
        rows.append(train_record("jester", "imaml", list(base + lead), seed=seed, variant="paper-gd"))
    found = verdict(contest_of(*rows))
    assert (found.ours, found.clear, found.seeds, found.of_seeds) == (True, False, 2, 3)


def test_a_divergence_of_ours_counts_against_us(train_record):
    lost = contest_of(
        train_record("jester", "amaml", [], status="diverged"),
        train_record("jester", "imaml", [0.2, 0.3], variant="paper-gd"),
    )
    found = verdict(lost)
    assert (found.ours, found.clear, found.best, found.seeds, found.of_seeds) == (False, False, "imaml paper-gd", 0, 1)


def test_who_learns_fast_and_then_overfits_is_first_had_each_stopped_in_time(train_record):
    ours = train_record("jester", "amaml", [0.3, 0.3])
    ours.samples["learning_nrmse"] = [0.4, 0.2, 0.1, 0.3]
    theirs = train_record("jester", "fomaml", [0.2, 0.2])
    theirs.samples["learning_nrmse"] = [0.4, 0.3, 0.25, 0.2]
    lost = contest_of(ours, theirs)
    assert [lost.runs[name].best_look([1]) for name in ("amaml", "fomaml")] == [0.1, 0.2]
    found = verdict(lost)
    assert (found.best, found.stopped) == ("fomaml", "amaml")
    (told,) = training_findings([lost])
    assert "in 0 of 1 settings" in told
    assert told.endswith("Had each training stopped at its best look at the test tasks: in 1.")


def test_maml_on_all_steps_is_told_beside_ours(train_record):
    rows = [train_record("jester", "amaml", [0.2, 0.2], shots=shots, seconds=100, size=2**20) for shots in (10, 20)] + [
        train_record("jester", "maml", [0.2 + gap, 0.2 + gap], shots=shots, seconds=50, size=2**23)
        for shots, gap in ((10, 0.001), (20, -0.002))
    ]
    told = training_findings(contests(tabulate(rows)))
    assert told[-1] == (
        "MAML on all steps (train_ratings): its error is -0.0020 to +0.0010 from A-MAML's, over 2 settings, in 0.50× "
        "its time and 8.00 MiB for an update."
    )


def test_runs_are_ranked_on_the_seeds_that_all_have(train_record):
    """Seed 1 has the easier tasks; who was trained on it alone must not win by that."""
    rows = [train_record("jester", "amaml", [0.1 * s, 0.1 * s + 0.01], seed=s) for s in (1, 2, 3)]
    rows += [train_record("jester", "fomaml", [0.12 * s, 0.12 * s + 0.01], seed=s) for s in (1, 2, 3)]
    rows.append(train_record("jester", "maml", [0.11, 0.12], seed=1))
    found = contest_of(*rows)
    assert found.seeds == [1, 2, 3]
    assert "maml (all steps)" not in [run.name for run in found.comparable]
    assert best_within(found)[0].name == "amaml"
    cell = standing("", [found]).frame.set_index("method").loc["maml (all steps)"].iloc[0]
    assert cell.endswith("(seed 1 only)")


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


def test_a_training_without_finite_looks_does_not_break_the_page(train_record, tmp_path, store):
    from reports.load import load

    record = train_record("jester", "amaml", [0.1, 0.2])
    for name in ("learning_nrmse", "curve_nrmse"):
        del record.samples[name]
    page = build(load([store(tmp_path / "s", [record, train_record("jester", "fomaml", [0.1, 0.2])])]), tmp_path / "o")
    assert "jester" in page.read_text()


def test_no_verdict_without_rivals(train_record):
    (alone,) = contests(tabulate([train_record("jester", "amaml", [0.1, 0.2])]))
    assert verdict(alone) is None


def test_what_a_budget_of_time_reaches(films):
    run = films.runs["amaml"]  # 40 s: 1.5 times its end after 4 s, its end after 40
    end = run.mean([1, 2])
    for seconds, times in ((4.0, 1.5), (22.0, 1.25), (1e6, 1.0)):
        assert reached(run, seconds, [1, 2]) == pytest.approx(times * end, rel=1e-3)
    assert best_within(films, seconds=5.0)[0].name == "maml (1/10 of the steps)"
    assert best_within(films, seconds=50.0)[0].name == "amaml"


def test_what_a_budget_of_memory_allows(films):
    assert best_within(films, size=2**18)[0].name == "imaml paper-gd"
    assert best_within(films, size=2**20)[0].name == "amaml"
    assert best_within(films, size=2**10) is None


def test_slips_are_other_quotients_of_the_same_errors(films):
    run = films.runs["amaml"]
    found = slips(run)
    mean = run.mean([1, 2])
    assert found["held-out RMSE / range"] == pytest.approx(mean)
    assert found["held-out RMSE / number of test ratings"] == pytest.approx(mean * 4 / 40)
    assert found["held-out RMSE / Euclidean norm of the test ratings"] == pytest.approx(mean * 4 / 3.5 / 40**0.5)
    assert found["RMSE on the shots themselves / range"] == pytest.approx(mean / 2)


def test_published_ratings_are_those_of_the_paper():
    paper = published_ratings()
    assert len(paper) == 60
    assert paper["A-MAML", "jester", 20, 50] == (0.027, 0.002)
    assert paper["Reptile", "movielens_1m", 10, 100] == (0.408, 0.011)
    assert {method for method, *_ in paper} <= set(PAPER.values())


def test_tables_say_all_of_it(fought, films):
    text = standing("", [films], published_ratings()).frame.set_index("method")
    assert text.loc["amaml", "movielens_100k 10shot-15val, published"] == "0.053"
    assert text.loc["amaml", "movielens_100k 10shot-15val"].startswith(f"{films.runs['amaml'].mean([1, 2]):.3f} ± ")
    assert text.loc["reptile", "movielens_100k 10shot-15val"] == "diverged"
    assert details(films).frame.method[0] == "amaml"
    assert verdicts("", [films, fought["cosmixture_training", ""]]).frame["A-MAML lowest"].tolist() == ["yes", "no"]
    assert within_time([films]).frame.iloc[0, 1].startswith("maml (1/10 of the steps)")
    assert within_memory([films]).frame.iloc[-1, 1].startswith("amaml")
    assert "held-out RMSE / range" in protocol_slips("", [films], published_ratings()).frame.iloc[:, 0].tolist()
    assert variants("", [fought["movielens_100k", "outer_lr=0.01"]]).frame.setting[0].endswith("outer_lr=0.01")


def test_the_page_holds_figures_and_verdict(tmp_path, store, training_store):
    from reports.load import load

    page = build(load([store(tmp_path / "s", training_store)]), tmp_path / "out").read_text()
    for name in ("training-regression", "training-ratings", "training-ratings-learning"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 10_000
    assert "is the lowest of the paper&#39;s methods in 1 of 1 settings" in page
    assert "Which initialisation under which budget" in page
