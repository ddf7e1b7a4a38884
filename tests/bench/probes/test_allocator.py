import pytest
from stand_ins import measured
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.mark.cpu_only(reason="CUDA's allocator keeps no log")
def test_a_log_that_would_grow_too_long_is_not_written_and_the_row_says_so(make_cell, monkeypatch):
    monkeypatch.setattr("bench.probes.allocator.MAX_EVALUATIONS", 3)
    result = measured(make_cell, "allocator", "maml", inner_steps=2)
    assert "peak_allocated_bytes" not in result.metrics
    assert "capped at 3" in result.reason
    assert result.status == "ok"


def test_the_allocator_is_read_where_no_dispatch_mode_was_ever_entered(make_cell, monkeypatch):
    entered = []
    original = TorchDispatchMode.__enter__
    monkeypatch.setattr(TorchDispatchMode, "__enter__", lambda mode: entered.append(mode) or original(mode))
    measured(make_cell, "allocator", "amaml")
    assert not entered
    measured(make_cell, "memory", "amaml")
    assert entered
