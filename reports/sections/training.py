"""What the sections on meta-training share: the protocol, who stands where, the verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from reports import words
from reports.analysis.arithmetic import mean, ratio
from reports.analysis.contests import OURS, PAPER, Contest, Run, paper_first
from reports.analysis.verdicts import LEVEL, duels, verdict
from reports.paper import PublishedRatings
from reports.tables import Table, make_table

REPTILE, MAML, ALL = "reptile", "maml (1/10 of the steps)", "maml (all steps)"
DIGITS = 3
PROTOCOL = (
    "Meta-training by each method with Adam at 1e-3 on batches of five tasks, then plain gradient descent of 0.01 on "
    "each of the test tasks, all methods for the same number of steps. nRMSE is the root-mean-square error over {}: "
    "mean ± standard deviation over the test tasks, a mean over seeds. Seeds draw tasks, start and batches anew, alike "
    "for all methods. To the gradient of the flow amaml takes rk4 in adaptive steps, rtol = 1e-3 (on Alpine, which is "
    "stiff, those of the stabilised scheme RKC2, rtol = 1e-4), and their discrete adjoint; with the paper's own "
    "schemes, dopri5 and modified Euler on a state a step, it has a row of its own. p is "
    "that of Wilcoxon's signed-rank test over the test tasks of all seeds, adjusted by Holm's method; the tasks of a "
    "seed share one training, so that it tells of these trainings, and a lead must be there in every seed besides."
)


def protocol(scale: str, contests: Sequence[Contest]) -> str:
    """How the contests were held, errors over this scale."""
    updates = ", ".join(f"{number:,}" for number in sorted({contest.outer_updates for contest in contests}))
    return f"{PROTOCOL.format(scale)} Outer updates: {updates}."


def standing(title: str, contests: Sequence[Contest], published: PublishedRatings | None = None) -> Table:
    """One row a method, one column a contest: mean ± standard deviation over test tasks, published beside it."""
    rows = []
    for name in paper_first(name for contest in contests for name in contest.runs):
        row = {"method": name}
        for contest in contests:
            row[contest.title] = result(contest.runs.get(name), contest)
            if published is not None:
                told = published.get((PAPER.get(name, ""), contest.problem, contest.shots, contest.test_steps))
                row[f"{contest.title}, published"] = words.fixed(told[0], DIGITS) if told else words.MISSING
        rows.append(row)
    return make_table(title, rows, ("method",))


def result(run: Run | None, contest: Contest) -> str:
    """Over the contest's seeds; where a run lacks one of them, over its own, which are told."""
    if run is None:
        return words.MISSING
    if not run.nrmse:
        return next(iter(run.failed.values()))[0]
    seeds = contest.seeds if set(contest.seeds) <= run.nrmse.keys() else sorted(run.nrmse)
    notes = [f"{len(run.failed)} {next(iter(run.failed.values()))[0]}"] if run.failed else []
    if seeds != contest.seeds:
        notes.append(f"seed {', '.join(map(str, seeds))} only")
    text = f"{words.fixed(run.mean(seeds), DIGITS)} ± {words.fixed(run.std(seeds), DIGITS)}"
    return f"{text} ({'; '.join(notes)})" if notes else text


def details(contest: Contest) -> Table:
    """One contest in full, the lowest error first, each method beside A-MAML on the same tasks."""
    mine = contest.runs.get(OURS)
    fought = duels(mine, list(contest.runs.values())) if mine is not None and mine.nrmse else {}
    rows = []
    for run in sorted(contest.runs.values(), key=_place):
        duel = fought.get(run.name)
        shots = mean([mean(values) for values in run.in_sample.values()])
        rows.append(
            {
                "method": run.name,
                "nRMSE": result(run, contest),
                "by seed": ", ".join(words.fixed(value, DIGITS) for value in run.by_seed.values()) or words.MISSING,
                "on its shots": words.fixed(shots, DIGITS),
                "less A-MAML's": words.signed(-duel.difference, DIGITS + 1) if duel else words.MISSING,
                "worse than A-MAML on": words.share(duel.wins) if duel else words.MISSING,
                "p (Holm)": words.level(duel.p) if duel else words.MISSING,
                "training": words.seconds(run.seconds),
                "memory of an update": words.size(run.bytes),
            }
        )
    title = f"{contest.title}, {words.plural(contest.test_steps, 'step')}: each method against A-MAML"
    return make_table(title, rows, ("method", "nRMSE", "by seed"), folded=True)


def _place(run: Run) -> tuple[bool, float]:
    return not run.nrmse, mean(list(run.by_seed.values())) if run.nrmse else math.inf


def verdicts(title: str, contests: Sequence[Contest]) -> Table:
    """On "A-MAML is best", one row a contest."""
    rows = []
    for contest in contests:
        found = verdict(contest)
        if found is not None:
            rows.append(
                {
                    "setting": contest.title,
                    "steps": str(contest.test_steps),
                    "best of the paper's methods": found.best,
                    "A-MAML lowest": "yes" if found.ours else "no",
                    "in seeds": f"{found.seeds} of {found.of_seeds}",
                    "lower than all, p < 0.05 and in every seed": "yes" if found.clear else "no",
                    "methods lower than it likewise": ", ".join(found.beaten_by) or "none",
                    "best, each stopped at its best look": found.stopped,
                }
            )
    left = ("setting", "best of the paper's methods", "methods lower than it likewise")
    return make_table(title, rows, (*left, "best, each stopped at its best look"))


def findings(contests: Sequence[Contest]) -> list[str]:
    """What each sweep says of the paper's claims; nothing about what was not trained."""
    told = []
    for study in dict.fromkeys(contest.study for contest in contests):
        mine = [contest for contest in contests if contest.study == study]
        told += [*_best(study, mine), *_all_steps(study, mine), *_reptile(study, mine)]
    return told


def _best(study: str, contests: list[Contest]) -> list[str]:
    able = [(contest, found) for contest in contests if (found := verdict(contest))]
    if not able:
        return []
    best = [found.best for _, found in able]
    others = ", ".join(f"{name} in {best.count(name)}" for name in dict.fromkeys(best) if name != OURS)
    return [
        f'"A-MAML gives the best initialisation" ({study}, {able[0][0].outer_updates:,} outer updates): its error is '
        f"the lowest of the paper's methods in {best.count(OURS)} of {len(able)} settings, and lower than all others "
        f"with p < {LEVEL:g} and in every seed in {sum(found.clear for _, found in able)}"
        + (f"; the lowest is {others}" if others else "")
        + ". Had each training stopped at its best look at the test tasks: in "
        f"{sum(found.stopped == OURS for _, found in able)}."
    ]


def _reptile(study: str, contests: list[Contest]) -> list[str]:
    able = [(c, c.runs[REPTILE], c.runs[MAML]) for c in contests if {REPTILE, MAML} <= c.runs.keys()]
    able = [(c, reptile, maml) for c, reptile, maml in able if maml.nrmse]
    if not able:
        return []
    worse = sum(not reptile.nrmse or reptile.mean(c.seeds) > maml.mean(c.seeds) for c, reptile, maml in able)
    return [f'"Reptile is worse than MAML" ({study}): in {worse} of {len(able)} settings.']


def _all_steps(study: str, contests: list[Contest]) -> list[str]:
    """MAML on all steps, for which the paper has no memory, beside A-MAML."""
    able = [(c, c.runs[OURS], c.runs[ALL]) for c in contests if {OURS, ALL} <= c.runs.keys()]
    able = [(c, mine, maml) for c, mine, maml in able if mine.nrmse and maml.nrmse]
    if not able:
        return []
    gaps = [maml.mean(c.seeds) - mine.mean(c.seeds) for c, mine, maml in able]
    time = [ratio(maml.seconds, mine.seconds) for _, mine, maml in able]
    memory = [maml.bytes for _, _, maml in able]
    return [
        f"MAML on all steps ({study}): its error is {_range(gaps, lambda gap: words.signed(gap, 4))} from A-MAML's, "
        f"over {words.plural(len(able), 'setting')}, in {_range(time, words.times)} its time and "
        f"{_range(memory, words.size)} for an update."
    ]


def _range(values: list[float], tell: Callable[[float], str]) -> str:
    ends = list(dict.fromkeys(tell(value) for value in (min(values), max(values))))
    return " to ".join(ends)
