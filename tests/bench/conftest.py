import pytest

from bench.records import Cell, Record


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's oracle cache."""
    monkeypatch.setenv("AMAML_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "oracle-cache"))


@pytest.fixture
def make_cell():
    def make(method="maml", probe="error", replicate=0, **options):
        return Cell(
            problem="cosmixture",
            problem_options={"shots": 5},
            method=method,
            options={"inner_steps": 2, "inner_lr": 0.01, **options},
            probe=probe,
            replicate=replicate,
        )

    return make


@pytest.fixture
def make_record(make_cell):
    def make(cell=None, status="ok", version="v1", key="k", **metrics):
        cell = cell or make_cell()
        return Record(
            benchmark_version=version,
            sweep="test",
            cell_id=cell.cell_id,
            cell=cell,
            status=status,
            reason="" if status == "ok" else "because",
            metrics=metrics,
            environment={"counter_key": key, "timing_key": key + " fast"},
            started_at="2026-01-01T00:00:00+00:00",
            duration_s=1.0,
        )

    return make
