"""One outer update a case of ``sweeps/regression.toml``, for pytest-benchmark and what builds on it.

``pytest bench/test_outer_update.py`` measures; ``--benchmark-autosave``, ``pytest-benchmark compare`` and histograms
work as they do elsewhere. The deterministic counters stand in ``extra_info``.
"""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import amaml_core
from bench import sources
from bench.gate import counters
from bench.problems import make_problem
from bench.spec import expand, load_spec

CASES = counters.cases(expand(load_spec(counters.SWEEP)))
SUITE = ("bench.test_outer_update", "bench.problems.base", "bench.problems.regression")  # that two revisions share
WARMUP, ROUNDS = 1, 4
TURNS = "AMAML_BENCH_TURNS"  # bench/gate/turns.py runs several of these processes and times one at a time: its socket
GATE = socket.socket(fileno=int(os.environ[TURNS])) if TURNS in os.environ else None


@pytest.fixture(autouse=True)
def _alone() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # what was imported is not looked through before each round
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


def _wait() -> None:
    """Before a round: collect garbage, then wait for this process's turn where there are others."""
    gc.collect()
    if GATE is not None:
        try:
            GATE.sendall(b".")
            gone = not GATE.recv(1)
        except ConnectionError:
            gone = True
        if gone:
            pytest.exit("The gate has gone.", returncode=1)


@pytest.mark.parametrize("name", CASES)
def test_outer_update(benchmark: Any, name: str) -> None:
    """Warmed up; neither the set-up nor what comes before a round is timed."""
    cell = CASES[name]
    update = make_problem(cell.problem, cell.problem_options).update(cell, 0)
    out = benchmark.pedantic(update, setup=_wait, rounds=ROUNDS, warmup_rounds=WARMUP)
    assert not any(status == "diverged" for status in out.status)
    benchmark.extra_info |= {
        "cell_id": cell.cell_id,
        "suite": sources.digest(sources.only(*SUITE)),
        "root": str(Path(amaml_core.__file__).parents[1]),
        **out.stats,
    }
