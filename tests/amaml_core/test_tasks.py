import pytest
import torch

import amaml_core as am


def parts(**changes) -> dict[str, torch.Tensor]:
    plain = {
        "support_x": torch.ones(3, 5, 2),
        "support_y": torch.ones(3, 5, 1),
        "query_x": torch.ones(3, 4, 2),
        "query_y": torch.ones(3, 4, 1),
    }
    return {**plain, **changes}


def test_length_slices_masks_and_chunks():
    tasks = am.TaskBatch(**parts(support_x=torch.arange(3.0).reshape(3, 1, 1).expand(3, 5, 2)))
    assert len(tasks) == 3
    assert [len(chunk) for chunk in tasks.chunks(2)] == [2, 1]
    assert [len(chunk) for chunk in tasks.chunks(None)] == [3]
    assert tasks[torch.tensor([False, True, True])].support_x[:, 0, 0].tolist() == [1.0, 2.0]
    assert tasks[torch.tensor([2, 0])].support_x[:, 0, 0].tolist() == [2.0, 0.0]


def test_horizons_follow_their_tasks():
    tasks = am.TaskBatch(**parts(horizon=torch.tensor([1.0, 2.0, 3.0])))
    assert tasks[1:].horizon.tolist() == [2.0, 3.0]
    assert [chunk.horizon.tolist() for chunk in tasks.chunks(2)] == [[1.0, 2.0], [3.0]]


def test_to_converts_floats_and_leaves_class_indices():
    classes = {"support_y": torch.ones(3, 5, dtype=torch.long), "query_y": torch.ones(3, 4, dtype=torch.long)}
    tasks = am.TaskBatch(**parts(**classes, horizon=torch.ones(3))).to(dtype=torch.float64)
    assert {tasks.support_x.dtype, tasks.query_x.dtype, tasks.horizon.dtype} == {torch.float64}
    assert {tasks.support_y.dtype, tasks.query_y.dtype} == {torch.int64}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"support_x": [[1.0]]}, r"support_x\[0\]\[0\] is a float"),
        ({"query_y": torch.ones(3)}, "query_y has shape"),
        ({"query_x": torch.ones(3, 0, 2)}, "query_x has shape"),
        ({"support_x": torch.full((3, 5, 2), torch.nan)}, "support_x has 30 NaN"),
        ({"query_y": torch.full((3, 4, 1), torch.inf)}, "query_y has 12 NaN or infinite"),
        ({"support_x": torch.ones(2, 5, 2)}, "number of tasks differs .*support_x 2"),
        ({"support_y": torch.ones(3, 4, 1)}, "number of examples differs .*support_y 4"),
        ({"query_x": torch.ones(3, 4, 7)}, "input shape differs"),
        ({"query_x": torch.ones(3, 4, 2, dtype=torch.float64)}, "dtype differs .*query_x torch.float64"),
        ({"support_y": torch.ones(3, 5, 1, dtype=torch.long, device="meta")}, "device differs .*support_y meta"),
        ({"horizon": torch.ones(3, 1)}, "horizon"),
        ({"horizon": torch.ones(3, dtype=torch.long)}, "horizon"),
        ({"horizon": torch.tensor([1.0, 0.0, 1.0])}, "horizon must be positive"),
        ({"horizon": torch.tensor([1.0, torch.nan, 1.0])}, "horizon has 1 NaN"),
        ({"horizon": torch.ones(2)}, "number of tasks differs .*horizon 2"),
        ({"horizon": torch.ones(3, dtype=torch.float64)}, "dtype differs .*horizon torch.float64"),
    ],
)
def test_bad_tasks_are_refused_by_name(changes, named):
    with pytest.raises(am.InputError, match=named):
        am.TaskBatch(**parts(**changes))


def test_a_batch_that_was_changed_since_is_checked_again():
    x, mask = torch.ones(2, 4, 1), torch.ones(2, 4, dtype=torch.bool)
    problem = am.MetaProblem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
    method, tasks = (
        am.create_method("fomaml", inner_steps=1, inner_lr=0.1),
        am.TaskBatch(x, x, x.clone(), x, None, mask),
    )
    method.meta_gradient(problem, problem.initial_parameters(), tasks)
    tasks.query_x[0, 0] = torch.nan
    with pytest.raises(am.InputError, match="query_x has 1 NaN"):
        method.meta_gradient(problem, problem.initial_parameters(), tasks)
    tasks.query_x[0, 0] = 1.0
    mask[1] = False
    with pytest.raises(am.InputError, match="leaves a task without an example"):
        method.meta_gradient(problem, problem.initial_parameters(), tasks)
