"""The figures of meta-training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from reports import words
from reports.figures import Figure, canvas_of, drawn, legend, log_axis, styles
from reports.paper import PublishedRatings
from reports.training import GUESS, PAPER, Contest, Run

GREYS = ("#444444", "#777777", "#9A9A9A", "#BBBBBB")
DASHES = ((0, (1, 1.2)), (0, (5, 1.5)), "-.", (0, (3, 1, 1, 1, 1, 1)))


def _look(contests: Iterable[Contest]) -> dict[str, dict[str, Any]]:
    """Name -> style, alike in all figures over these contests; guesses are grey and have no marker."""
    runs = {run.name: run for contest in contests for run in contest.runs.values() if run.nrmse}
    trained = [name for name, run in runs.items() if run.target != GUESS]
    found = styles((name.split()[0], name) for name in trained)
    guesses = sorted(set(runs) - set(trained))
    return found | {
        name: {"color": GREYS[i % 4], "linestyle": DASHES[i % 4], "marker": ""} for i, name in enumerate(guesses)
    }


def _handles(names: Iterable[str], look: dict[str, dict[str, Any]]) -> list[Line2D]:
    return [Line2D([], [], lw=1.7, markersize=6, label=name, **look[name]) for name in names]


def _order(contests: Sequence[Contest]) -> list[str]:
    """What has something to show, the paper's methods first."""
    names = dict.fromkeys(run.name for contest in contests for run in contest.runs.values() if run.nrmse)
    return [*(n for n in PAPER if n in names), *(n for n in names if n not in PAPER)]


def adaptation(contests: Sequence[Contest], name: str) -> Figure | None:
    """The error on the test tasks against gradient steps of the adaptation, a panel a contest (Li et al., fig. 2)."""
    contests = [contest for contest in contests if contest.trained]
    if not contests:
        return None
    look = _look(contests)
    columns = min(2, len(contests))
    rows = math.ceil(len(contests) / columns)
    with canvas_of(rows, columns, (9, 3.4 * rows + 1.5)) as (canvas, grid):
        for axes, contest in zip(grid.flat, contests, strict=False):
            for run in contest.trained:
                steps, errors, spread = run.curve
                axes.plot(steps, errors, lw=1.6, markersize=5, markevery=8, **look[run.name])
                shade = {"color": look[run.name]["color"], "alpha": 0.05, "lw": 0}
                axes.fill_between(steps, errors - spread, errors + spread, **shade)
            _guesses(axes, contest, look)
            axes.set_title(f"{contest.title}, {words.plural(contest.test_steps, 'step')}", fontsize=10.5)
            log_axis(axes.yaxis, "nRMSE", [e for run in contest.trained for e in run.curve[1]], lambda v: f"{v:g}")
            axes.set_xlabel("gradient steps of the adaptation")
        _hide(grid, len(contests))
        legend(canvas, _handles(_order(contests), look), 3)
        return drawn(
            canvas,
            name,
            "Error on the test tasks while they adapt: mean over tasks and seeds, shaded a standard deviation over "
            "tasks. Grey: guesses without training.",
            wide=True,
        )


def _guesses(axes: Any, contest: Contest, look: dict[str, dict[str, Any]]) -> None:
    for run in contest.runs.values():
        if run.target == GUESS and run.nrmse:
            axes.axhline(
                run.mean(sorted(run.nrmse)), lw=1.2, **{k: v for k, v in look[run.name].items() if k != "marker"}
            )


def learning(contests: Sequence[Contest], name: str) -> Figure | None:
    """The error after adaptation against outer updates and against seconds of training, a column a contest."""
    contests = [contest for contest in contests if contest.trained]
    if not contests:
        return None
    look = _look(contests)
    measures: list[tuple[int, str, Callable[[float], str]]] = [
        (0, "outer updates", lambda value: f"{value:g}"),
        (1, "seconds of training", lambda value: f"{value:g}"),
    ]
    with canvas_of(2, len(contests), (max(8.0, 3.3 * len(contests)), 7.4)) as (canvas, grid):
        for row, (which, label, text) in enumerate(measures):
            for axes, contest in zip(grid[row], contests, strict=True):
                spent: list[float] = []
                reached: list[float] = []
                for run in (run for run in contest.trained if run.learning):
                    x, y = _mean_curve(run, which)
                    axes.plot(x, y, lw=1.6, markersize=5, **look[run.name])
                    spent += x.tolist()
                    reached += y.tolist()
                log_axis(axes.xaxis, label, spent, text)
                log_axis(axes.yaxis, "", reached, lambda v: f"{v:g}")
                if row == 0:
                    axes.set_title(f"{contest.title}\n{words.plural(contest.test_steps, 'step')}", fontsize=10)
        canvas.supylabel("nRMSE after adaptation", fontsize=11)
        legend(canvas, _handles([n for n in _order(contests) if n in _trained(contests)], look), 4)
        return drawn(
            canvas,
            name,
            "Error after adaptation against what the training has taken so far: outer updates above, seconds (another "
            "training beside it) below; means over tasks and seeds.",
            wide=True,
        )


def _mean_curve(run: Run, which: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over seeds at the looks that all of them have; the start has no place on a logarithmic axis."""
    looks = sorted(set.intersection(*(set(known[0].tolist()) for known in run.learning.values())) - {0.0})
    kept = [np.isin(known[0], looks) for known in run.learning.values()]
    x, y = ([known[i][mask] for known, mask in zip(run.learning.values(), kept, strict=True)] for i in (which, 2))
    return np.mean(x, 0), np.mean(y, 0)


def _trained(contests: Sequence[Contest]) -> set[str]:
    return {run.name for contest in contests for run in contest.trained}


def standing(contests: Sequence[Contest], published: PublishedRatings, name: str) -> Figure | None:
    """All errors of a set of contests, ours filled and published hollow, a panel a data set and number of shots."""
    contests = [contest for contest in contests if contest.trained]
    if not contests:
        return None
    look = _look(contests)
    order = [n for n in _order(contests) if n in _trained(contests)]
    panels = sorted({(c.problem, c.shots) for c in contests})
    lengths = sorted({c.test_steps for c in contests})
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with canvas_of(rows, columns, (9, 2.7 * rows + 1.4)) as (canvas, grid):
        for axes, (problem, shots) in zip(grid.flat, panels, strict=False):
            mine = [c for c in contests if (c.problem, c.shots) == (problem, shots)]
            for contest in mine:
                shift = 0.16 * (lengths.index(contest.test_steps) - (len(lengths) - 1) / 2)
                for place, run_name in enumerate(order):
                    run = contest.runs.get(run_name)
                    if run is not None and run.nrmse:
                        _point(axes, run, place + shift, look[run_name], published, contest)
            _guess_lines(axes, mine[0], look)
            axes.set_yticks(range(len(order)), order, fontsize=9)
            axes.invert_yaxis()
            log_axis(axes.xaxis, "nRMSE", [0.02, 0.5], lambda v: f"{v:g}")
            axes.set_title(mine[0].title, fontsize=10.5)
            axes.tick_params(labelleft=axes in grid[:, 0])
        _hide(grid, len(panels))
        guesses = [n for n in _order(contests) if n not in order]
        about = [
            Line2D([], [], ls="", marker="o", color="#444444", label="ours"),
            Line2D([], [], ls="", marker="o", color="#444444", mfc="white", label="published"),
        ]
        legend(canvas, [*about, *_handles(guesses, look)], 3)
        told = " and ".join(map(str, lengths))
        return drawn(
            canvas,
            name,
            f"Test error with {told} steps (upper and lower mark), ours and published. Grey: guesses without training.",
            wide=True,
        )


def _point(axes: Any, run: Run, y: float, form: dict[str, Any], published: PublishedRatings, contest: Contest) -> None:
    axes.plot(run.mean(sorted(run.nrmse)), y, ls="", ms=7, **form)
    told = published.get((PAPER.get(run.name, ""), contest.problem, contest.shots, contest.test_steps))
    if told:
        axes.plot(told[0], y, ls="", ms=7, **(form | {"mfc": "white"}))


def _guess_lines(axes: Any, contest: Contest, look: dict[str, dict[str, Any]]) -> None:
    for run in contest.runs.values():
        if run.target == GUESS and run.nrmse:
            axes.axvline(
                run.mean(sorted(run.nrmse)),
                lw=1.2,
                zorder=0,
                **{k: v for k, v in look[run.name].items() if k != "marker"},
            )


def _hide(grid: np.ndarray, used: int) -> None:
    for axes in list(grid.flat)[used:]:
        axes.set_visible(False)
