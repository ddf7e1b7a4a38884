"""Meta-training on 2-D regression (E4)."""

from __future__ import annotations

from collections.abc import Sequence

from reports import words
from reports.analysis.contests import Contest, paper_first
from reports.evidence import Evidence
from reports.figures import Figure, arranged, canvas_of, drawn, fits, hide, legend, lettering, log_axis
from reports.section import Section
from reports.sections.training import details, findings, protocol, standing, verdicts
from reports.sections.training_figures import guess_lines, handles, learning, look_of


def section(evidence: Evidence) -> Section:
    """Who stands where, and how they adapt and learn."""
    contests = [contest for contest in evidence.contests if not contest.variant and not contest.is_rating]
    scale = "the standard deviation of the task's own test targets (1 is the error of their mean as a guess)"
    shown = []
    if contests:
        shown.append(standing("Error on the test tasks after adaptation", contests))
        shown.append(verdicts('"A-MAML is best" (Li et al. 2023, fig. 2)', contests))
    made = [_adaptation(contests, "training-regression"), learning(contests, "training-regression-learning")]
    return Section(
        "training-regression",
        "Initialisations for 2-D regression (E4)",
        "experiments",
        protocol(scale, contests),
        [*shown, *map(details, contests)],
        [figure for figure in made if figure],
        findings(contests),
    )


def _adaptation(contests: Sequence[Contest], name: str) -> Figure | None:
    """The error on the test tasks against gradient steps of the adaptation, a panel a contest (Li et al., fig. 2)."""
    contests = [contest for contest in contests if contest.trained]
    if not contests:
        return None
    look = look_of(contests)
    names = paper_first(run.name for contest in contests for run in [*contest.trained, *contest.guesses])
    rows, columns = arranged(len(contests))
    with canvas_of(rows, columns, (9, 3.4 * rows + 1.5)) as (canvas, grid):
        for axes, contest in zip(grid.flat, contests, strict=False):
            for run in contest.trained:
                steps, errors, spread = (column[fits(run.curve[1])] for column in run.curve)
                axes.plot(steps, errors, lw=1.6, markersize=5, markevery=8, **look[run.name])
                shade = {"color": look[run.name]["color"], "alpha": 0.05, "lw": 0}
                axes.fill_between(steps, errors - spread, errors + spread, **shade)
            guess_lines(axes.axhline, contest, look)
            axes.set_title(f"{lettering(contest.title)}, {words.plural(contest.test_steps, 'step')}", fontsize=10.5)
            log_axis(axes.yaxis, "nRMSE", [e for run in contest.trained for e in run.curve[1]], lambda v: f"{v:g}")
            axes.set_xlabel("gradient steps of the adaptation")
        hide(grid, len(contests))
        legend(canvas, handles(names, look), 3)
        return drawn(
            canvas,
            name,
            "Error on the test tasks while they adapt: mean over tasks and seeds, shaded a standard deviation over "
            "tasks. Grey: guesses without training.",
            wide=True,
        )
