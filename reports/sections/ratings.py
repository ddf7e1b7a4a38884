"""Meta-training on users' ratings (E5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from reports import words
from reports.analysis.contests import GUESS, OURS, PAPER, Contest, Run
from reports.analysis.verdicts import slips
from reports.evidence import Evidence
from reports.figures import Figure, arranged, canvas_of, drawn, fits, hide, legend, lettering, log_axis
from reports.paper import PublishedRatings, published_ratings
from reports.section import Section
from reports.sections.training import details, findings, protocol, standing, verdicts
from reports.sections.training_figures import guess_lines, guesses, handles, learning, look_of, trained
from reports.tables import Table, make_table


def section(evidence: Evidence) -> Section:
    """Who stands where beside the published numbers, and what might explain those."""
    contests = [contest for contest in evidence.contests if not contest.variant and contest.is_rating]
    paper = published_ratings()
    lengths = sorted({contest.test_steps for contest in contests})
    shown = [
        standing(
            f"{words.plural(steps, 'step')}: error on the held-out ratings of the test users",
            [contest for contest in contests if contest.test_steps == steps],
            paper,
        )
        for steps in lengths
    ]
    if contests:
        shown.append(verdicts('"A-MAML is best" (Li et al. 2023, tables 1 and 2)', contests))
        shown.append(slips_table("What would make numbers of the published size", contests, paper))
    longest = [contest for contest in contests if contest.test_steps == lengths[-1]]
    made = [_standing(contests, paper, "training-ratings"), learning(longest, "training-ratings-learning")]
    scale = "the range of the ratings, 20 on Jester and 4 on MovieLens"
    return Section(
        "training-ratings",
        "Initialisations for collaborative filtering (E5)",
        "experiments",
        f"{protocol(scale, contests)} Published: Li et al. 2023, tables 1 and 2, whose "
        "normaliser is not told. Guesses: the mean of all ratings of other users, of the item's, of the user's own "
        "shots, and the item's mean shifted by how the user's shots depart from it.",
        [*shown, *map(details, contests)],
        [figure for figure in made if figure],
        findings(contests),
    )


def slips_table(title: str, contests: Sequence[Contest], published: PublishedRatings) -> Table:
    """Each way to miscompute the error: how far the paper's numbers lie from ours so computed, over all its cells."""
    ratios: dict[str, list[float]] = {}
    shown: dict[str, list[float]] = {}
    for contest in contests:
        for name, label in PAPER.items():
            run = contest.runs.get(name)
            told = published.get((label, contest.problem, contest.shots, contest.test_steps))
            if run is not None and run.nrmse and told and run.target != GUESS:
                for slip, value in slips(run).items():
                    if not 0 < value < math.inf:
                        continue  # of what was not kept, or is no error
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


def _standing(contests: Sequence[Contest], published: PublishedRatings, name: str) -> Figure | None:
    """All errors of a set of contests, ours filled and published hollow, a panel a data set and number of shots."""
    contests = [contest for contest in contests if contest.trained]
    if not contests:
        return None
    look = look_of(contests)
    order = trained(contests)
    panels = sorted({(c.problem, c.shots) for c in contests})
    lengths = sorted({c.test_steps for c in contests})
    rows, columns = arranged(len(panels))
    with canvas_of(rows, columns, (9, 2.7 * rows + 1.4)) as (canvas, grid):
        for axes, (problem, shots) in zip(grid.flat, panels, strict=False):
            mine = [c for c in contests if (c.problem, c.shots) == (problem, shots)]
            for contest in mine:
                shift = 0.16 * (lengths.index(contest.test_steps) - (len(lengths) - 1) / 2)
                for place, run_name in enumerate(order):
                    run = contest.runs.get(run_name)
                    if run is not None and run.nrmse:
                        _point(axes, run, place + shift, look[run_name], published, contest)
            guess_lines(axes.axvline, mine[0], look, zorder=0)
            axes.set_yticks(range(len(order)), [lettering(name, 40) for name in order], fontsize=9)
            axes.invert_yaxis()
            log_axis(axes.xaxis, "nRMSE", [0.02, 0.5], lambda v: f"{v:g}")
            axes.set_title(lettering(mine[0].title), fontsize=10.5)
            axes.tick_params(labelleft=axes in grid[:, 0])
        hide(grid, len(panels))
        about = [
            Line2D([], [], ls="", marker="o", color="#444444", label="ours"),
            Line2D([], [], ls="", marker="o", color="#444444", mfc="white", label="published"),
        ]
        legend(canvas, [*about, *handles(guesses(contests), look)], 3)
        told = " and ".join(map(str, lengths))
        return drawn(
            canvas,
            name,
            f"Test error with {told} steps (upper and lower mark), ours and published. Grey: guesses without training.",
            wide=True,
        )


def _point(axes: Any, run: Run, y: float, form: dict[str, Any], published: PublishedRatings, contest: Contest) -> None:
    if fits(error := run.mean(sorted(run.nrmse))):
        axes.plot(error, y, ls="", ms=7, **form)
    told = published.get((PAPER.get(run.name, ""), contest.problem, contest.shots, contest.test_steps))
    if told:
        axes.plot(told[0], y, ls="", ms=7, **(form | {"mfc": "white"}))
