import io

import pytest
from rich.console import Console

from bench.harness.estimate import START_SECONDS
from bench.harness.progress import make_reporter
from bench.harness.runner import Plan


@pytest.fixture
def shown(make_cell, make_record):
    """What is printed while a plan of growing cells runs whose last one fails."""

    def show(quiet=False, terminal=False):
        cells = [make_cell("maml", "memory", inner_steps=n) for n in (10, 100, 1000)]
        console = Console(file=io.StringIO(), width=200, force_terminal=terminal, highlight=False)
        with make_reporter(Plan("sweep", cells, [], [], {}), console, quiet) as reporter:
            for cell, status in zip(cells, ("ok", "ok", "oom"), strict=True):
                reporter.started(cell)
                took = START_SECONDS + cell.options["inner_steps"] / 10
                reporter.finished(make_record(cell, status).model_copy(update={"duration_s": took}))
        return console.file.getvalue()

    return show


def test_plain_lines_tell_each_cell_and_the_time_left(shown):
    head, first, _, third = shown().splitlines()
    assert head == "sweep: 3 cells to run."
    assert "[1/3] ok" in first
    assert " left)" in first
    assert "because" in third
    assert "(0 s left)" in third


def test_quiet_shows_failures_only(shown):
    told = shown(quiet=True).splitlines()
    assert len(told) == 2
    assert "oom" in told[1]


def test_a_terminal_gets_a_bar_with_the_running_cell(shown):
    told = shown(terminal=True)
    assert "memory/cosmixture/maml K=1000" in told
    assert "1 failed" in told
    assert "\x1b[" in told
