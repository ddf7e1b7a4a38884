"""The stores and tables that tests share; what fills them is in ``synthetic``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gate.calibration import Calibration, Case, Live
from bench.records import Record
from reports.analysis.contests import Contest, contests
from reports.load import load, tabulate
from reports.render import build

sys.path.insert(0, str(Path(__file__).parent))  # for what tests share, under every import mode of pytest

from synthetic import (
    closed_form_records,
    cosmixture_records,
    cost_records,
    error_record,
    fill,
    make_record,
    precision_records,
    priced,
    trained,
    training_records,
)


@pytest.fixture
def training_store() -> list[Record]:
    """``training_records``."""
    return training_records()


@pytest.fixture
def fought(training_store: list[Record]) -> dict[tuple[str, str], Contest]:
    """(problem, variant) -> contest of ``training_records``."""
    return {(c.problem, c.variant): c for c in contests(tabulate(training_store))}


@pytest.fixture
def films(fought: dict[tuple[str, str], Contest]) -> Contest:
    """The one on MovieLens by the usual protocol."""
    return fought["movielens_100k", ""]


@pytest.fixture(scope="session")
def train_record() -> Any:
    """``trained``."""
    return trained


@pytest.fixture(scope="session")
def price() -> Any:
    """``priced``."""
    return priced


@pytest.fixture
def precision_store() -> list[Record]:
    """``precision_records`` at two horizons."""
    return precision_records([0.5, 5.0])


@pytest.fixture(scope="session")
def everything() -> list[Record]:
    """A small store that fills every section."""
    return [
        *cost_records([10, 50, 100, 500, 1000]),
        *closed_form_records("forced_linear", [0.5, 2.0], [10, 100, 1000]),
        *closed_form_records("logistic", [1.0], [10, 100]),
        *cosmixture_records([0.5, 20.0], [10, 50, 100, 500]),
        *precision_records([0.5, 5.0]),
        *training_records(),
    ]


@pytest.fixture(scope="session")
def few() -> list[Record]:
    """The least that fills every section and draws every figure."""
    return [
        *cost_records([20, 100]),
        *closed_form_records("forced_linear", [0.5], [10, 100]),
        *cosmixture_records([0.5], [10, 50, 100]),
        *precision_records([0.5]),
        *training_records(),
    ]


@pytest.fixture(scope="session")
def built(everything: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the report of ``everything``; it takes seconds to draw, and tests only look at it."""
    directory = tmp_path_factory.mktemp("everything")
    return build(load([fill(directory / "s", everything)]), directory / "out").parent


@pytest.fixture(scope="session")
def make() -> Any:
    """``make_record``."""
    return make_record


@pytest.fixture(scope="session")
def store() -> Any:
    """``fill``."""
    return fill


@pytest.fixture(scope="session")
def error_at() -> Any:
    """``error_record``."""
    return error_record


@pytest.fixture
def calibration() -> Calibration:
    """Of the gate's times: one case that is quiet enough and one that is not."""
    return Calibration(
        command="amaml-bench calibrate a.json",
        timing_key="torch 2 | cpu | a CPU",
        seed=0,
        runs=2000,
        blocks=14,
        false_alarms=0,
        false_alarm_limit=0.0015,
        suspected=3,
        control_alarms=2,
        planted_runs=500,
        live=[
            Live(
                began_at="2026-01-01T00:00:00+00:00",
                minutes=9.5,
                blocks=14,
                revision="abc",
                verdict="gate --against HEAD: passed (2 pass)",
                suspects=[],
                alarmed=[],
            )
        ],
        cases=[
            Case(name="noisy", block_std=0.06, passed=0.1, found={"1.10": 0.2, "1.15": 0.6}),
            Case(name="quiet", block_std=0.01, passed=1.0, found={"1.10": 0.998, "1.15": 1.0}),
        ],
    )
