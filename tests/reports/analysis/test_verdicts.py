import numpy as np
import pytest
from scipy.stats import wilcoxon

from reports.analysis.contests import contests
from reports.analysis.verdicts import best_within, duels, reached, slips, verdict
from reports.load import tabulate


def contest_of(*records):
    (found,) = contests(tabulate(list(records)))
    return found


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


def test_runs_are_ranked_on_the_seeds_that_all_have(train_record):
    """Seed 1 has the easier tasks; who was trained on it alone must not win by that."""
    rows = [train_record("jester", "amaml", [0.1 * s, 0.1 * s + 0.01], seed=s) for s in (1, 2, 3)]
    rows += [train_record("jester", "fomaml", [0.12 * s, 0.12 * s + 0.01], seed=s) for s in (1, 2, 3)]
    rows.append(train_record("jester", "maml", [0.11, 0.12], seed=1))
    found = contest_of(*rows)
    assert found.seeds == [1, 2, 3]
    assert "maml (all steps)" not in [run.name for run in found.comparable]
    assert best_within(found)[0].name == "amaml"


def test_who_learns_fast_and_then_overfits_is_first_had_each_stopped_in_time(train_record):
    ours = train_record("jester", "amaml", [0.3, 0.3])
    ours.samples["learning_nrmse"] = [0.4, 0.2, 0.1, 0.3]
    theirs = train_record("jester", "fomaml", [0.2, 0.2])
    theirs.samples["learning_nrmse"] = [0.4, 0.3, 0.25, 0.2]
    lost = contest_of(ours, theirs)
    assert [lost.runs[name].best_look([1]) for name in ("amaml", "fomaml")] == [0.1, 0.2]
    found = verdict(lost)
    assert (found.best, found.stopped) == ("fomaml", "amaml")


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


def test_runs_on_other_tasks_fight_no_duel(train_record):
    mine = contest_of(train_record("jester", "amaml", [0.1, 0.2]), train_record("jester", "fomaml", [0.1])).runs
    assert duels(mine["amaml"], list(mine.values())) == {}


def test_slips_need_what_they_divide_by(train_record):
    record = train_record("jester", "amaml", [0.1, 0.2])
    record.samples["query_count"] = [0.0, 40.0]
    found = slips(contest_of(record).runs["amaml"])
    assert found["held-out RMSE / number of test ratings"] == pytest.approx(0.2 * 4 / 40)
    del record.samples["target_rms"]
    assert slips(contest_of(record).runs["amaml"]) == {}
