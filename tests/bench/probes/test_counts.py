import pytest
from stand_ins import measured


@pytest.mark.parametrize("probe", ["allocator", "counts", "memory"])
@pytest.mark.parametrize("method", ["maml", "amaml", "fomaml", "imaml"])
def test_counters_repeat_exactly(make_cell, probe, method):
    first, second = (measured(make_cell, probe, method).metrics for _ in range(2))
    for metrics in (first, second):
        metrics.pop("device_used_bytes", None)  # of the whole card, whoever uses it
    assert first == second
    assert all(isinstance(value, int) and value >= 0 for value in first.values())


def test_counts_are_what_the_method_says(make_cell):
    maml = measured(make_cell, "counts", "maml", inner_steps=7).metrics
    assert (maml["grad_evals"], maml["hvp_evals"]) == (7, 7)
    assert maml["flops"] > measured(make_cell, "counts", "fomaml", inner_steps=7).metrics["flops"] > 0
