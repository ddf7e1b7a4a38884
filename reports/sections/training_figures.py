"""What the figures of meta-training share: styles, guesses, how an error falls while a method learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from reports import words
from reports.analysis.contests import Contest, Run, paper_first
from reports.figures import Figure, canvas_of, drawn, fits, fitting, legend, lettering, log_axis, styles

GREYS = ("#444444", "#777777", "#9A9A9A", "#BBBBBB")
DASHES = ((0, (1, 1.2)), (0, (5, 1.5)), "-.", (0, (3, 1, 1, 1, 1, 1)))


def look_of(contests: Sequence[Contest]) -> dict[str, dict[str, Any]]:
    """Name -> style, alike in all figures over these contests; guesses are grey and have no marker."""
    return styles((name.partition(" ")[0], name) for name in trained(contests)) | {
        name: {"color": GREYS[i % 4], "linestyle": DASHES[i % 4], "marker": ""}
        for i, name in enumerate(sorted(guesses(contests)))
    }


def trained(contests: Iterable[Contest]) -> list[str]:
    """Names of what was trained, the paper's methods first."""
    return paper_first(run.name for contest in contests for run in contest.trained)


def guesses(contests: Iterable[Contest]) -> list[str]:
    """Names of what was not."""
    return list(dict.fromkeys(run.name for contest in contests for run in contest.guesses))


def handles(names: Iterable[str], look: dict[str, dict[str, Any]]) -> list[Line2D]:
    """What the legend shows of them."""
    return [Line2D([], [], lw=1.7, markersize=6, label=name, **look[name]) for name in names]


def learning(contests: Sequence[Contest], name: str) -> Figure | None:
    """The error after adaptation against outer updates and against seconds of training, a column a contest."""
    contests = [contest for contest in contests if contest.trained]
    if not contests:
        return None
    look = look_of(contests)
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
                    if len(x):
                        axes.plot(x, y, lw=1.6, markersize=5, **look[run.name])
                    spent += x.tolist()
                    reached += y.tolist()
                log_axis(axes.xaxis, label, spent, text)
                log_axis(axes.yaxis, "", reached, lambda v: f"{v:g}")
                if row == 0:
                    title = f"{lettering(contest.title)}\n{words.plural(contest.test_steps, 'step')}"
                    axes.set_title(title, fontsize=10)
        canvas.supylabel("nRMSE after adaptation", fontsize=11)
        legend(canvas, handles(trained(contests), look), 4)
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
    return tuple(fitting(np.mean(x, 0), np.mean(y, 0)))


def guess_lines(draw: Callable[..., Any], contest: Contest, look: dict[str, dict[str, Any]], **more: Any) -> None:
    """A line across a panel for each guess; ``draw`` is the panel's ``axhline`` or ``axvline``."""
    for run in contest.guesses:
        form = {key: value for key, value in look[run.name].items() if key != "marker"}
        if fits(error := run.mean(sorted(run.nrmse))):
            draw(error, lw=1.2, **form, **more)
