"""The tables of meta-training: who stands where, in which budget, and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from reports import words
from reports.paper import PublishedRatings
from reports.tables import Table, make_table
from reports.training import GUESS, OURS, PAPER, Contest, Run, best_within, duels, slips, verdict

SECONDS = (10, 30, 100, 300, 1000)
SIZES = (2**18, 2**20, 2**22, 2**24)
DIGITS = 3


def standing(title: str, contests: Sequence[Contest], published: PublishedRatings | None = None) -> Table:
    """One row a method, one column a contest: mean ± standard deviation over test tasks, published beside it."""
    names = list(dict.fromkeys(name for contest in contests for name in contest.runs))
    rows = []
    for name in [*(n for n in PAPER if n in names), *(n for n in names if n not in PAPER)]:
        row = {"method": name}
        for contest in contests:
            row[contest.title] = _result(contest.runs.get(name), contest)
            if published is not None:
                told = published.get((PAPER.get(name, ""), contest.problem, contest.shots, contest.test_steps))
                row[f"{contest.title}, published"] = words.fixed(told[0], DIGITS) if told else words.MISSING
        rows.append(row)
    return make_table(title, rows, ("method",))


def _result(run: Run | None, contest: Contest) -> str:
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
        shots = [np.nanmean(values) for values in run.in_sample.values()]
        rows.append(
            {
                "method": run.name,
                "nRMSE": _result(run, contest),
                "by seed": ", ".join(words.fixed(value, DIGITS) for value in run.by_seed.values()) or words.MISSING,
                "on its shots": words.fixed(float(np.mean(shots)), DIGITS) if shots else words.MISSING,
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
    return not run.nrmse, float(np.mean(list(run.by_seed.values()))) if run.nrmse else math.inf


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
    words_of = ("setting", "best of the paper's methods", "methods lower than it likewise")
    return make_table(title, rows, (*words_of, "best, each stopped at its best look"))


def within_time(contests: Sequence[Contest]) -> Table:
    """The best initialisation after so many seconds of training, one column a contest."""
    rows = []
    for seconds in [*SECONDS, math.inf]:
        head = "all updates" if seconds == math.inf else words.seconds(seconds)
        rows.append({"training": head} | {_column(c): _best(c, seconds=seconds) for c in contests})
    return make_table("By time of training, whatever the memory", rows, ("training", *map(_column, contests)))


def within_memory(contests: Sequence[Contest]) -> Table:
    """The best initialisation with so much memory for an update, after all updates."""
    rows = []
    for size in [*SIZES, math.inf]:
        head = "any" if size == math.inf else words.size(size)
        rows.append({"memory": head} | {_column(c): _best(c, size=size) for c in contests})
    return make_table("By memory of an update, after all updates", rows, ("memory", *map(_column, contests)))


def _column(contest: Contest) -> str:
    return f"{contest.title}, {words.plural(contest.test_steps, 'step')}"


def _best(contest: Contest, seconds: float = math.inf, size: float = math.inf) -> str:
    found = best_within(contest, seconds, size)
    return f"{found[0].name} {words.fixed(found[1], DIGITS)}" if found else words.MISSING


def protocol_slips(title: str, contests: Sequence[Contest], published: PublishedRatings) -> Table:
    """Each way to miscompute the error: how far the paper's numbers lie from ours so computed, over all its cells."""
    ratios: dict[str, list[float]] = {}
    shown: dict[str, list[float]] = {}
    for contest in contests:
        for name, label in PAPER.items():
            run = contest.runs.get(name)
            told = published.get((label, contest.problem, contest.shots, contest.test_steps))
            if run is not None and run.nrmse and told and run.target != GUESS:
                for slip, value in slips(run).items():
                    ratios.setdefault(slip, []).append(value / told[0])
                    if name == OURS:
                        shown.setdefault(slip, []).append(value)
    rows = []
    for slip, found in sorted(ratios.items(), key=lambda item: np.std(np.log(item[1]))):
        logs = np.log(found)
        rows.append(
            {
                "what is called nRMSE": slip,
                "A-MAML's, over the columns": f"{min(shown[slip]):.3f} to {max(shown[slip]):.3f}"
                if slip in shown
                else words.MISSING,
                "ours / published, typical": words.times(float(np.exp(logs.mean()))),
                "spread (a factor either way)": words.times(float(np.exp(logs.std()))),
                "cells within 25 %": words.share(float(np.mean(np.abs(logs) < math.log(1.25)))),
            }
        )
    return make_table(title, rows, ("what is called nRMSE",))


def variants(title: str, contests: Sequence[Contest], usual: Mapping[str, float] | None = None) -> Table:
    """One row a setting that departs from the usual, one column a method."""
    names = list(dict.fromkeys(name for contest in contests for name in contest.runs))
    rows = [
        {"setting": contest.title, "steps": str(contest.test_steps), "updates": words.count(contest.outer_updates)}
        | {name: _result(contest.runs.get(name), contest) for name in names}
        for contest in contests
    ]
    return make_table(title, rows, ("setting",))
