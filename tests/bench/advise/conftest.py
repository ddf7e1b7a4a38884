import pytest

from bench.advise.profile import plan_cells


@pytest.fixture
def cells(tmp_path):
    (tmp_path / "mine.py").write_text("")
    return plan_cells(f"{tmp_path}/mine.py:make", [4, 20], 0.05, device="cpu", dtype="float32")
