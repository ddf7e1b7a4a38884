import math

import oracles
import pytest
import torch

import amaml_core as am
from amaml_core.engine import rule


def curve(case, steps, **rest):
    return am.adaptation_curve(case.problem, case.theta, case.tasks, inner_lr=0.05, steps=steps, **rest)


def test_the_curve_is_that_of_plain_gradient_descent(regression):
    found = curve(regression, [7, 0, 3])
    assert found.steps == (0, 3, 7)
    for column, steps in enumerate(found.steps):
        expected = regression.per_task(
            lambda s, q, k=steps: q(oracles.descend(s, regression.theta, k, 0.05)).sqrt().reshape(1)
        )
        torch.testing.assert_close(found.errors[:, column], expected.squeeze(1))
    adapted = regression.per_task(lambda s, q: oracles.descend(s, regression.theta, 7, 0.05))
    torch.testing.assert_close(found.adapted, adapted)


def test_accuracy_is_the_share_that_is_right():
    case = oracles.classifier()
    found = curve(case, [4], measure=am.accuracy)
    for b in range(len(case.tasks)):
        u = oracles.descend(case.support(b), case.theta, 4, 0.05)
        logits = torch.func.functional_call(case.model, oracles.split(case.model, u), (case.tasks.query_x[b],))
        right = sum(int(row.argmax() == y) for row, y in zip(logits, case.tasks.query_y[b], strict=True))
        assert float(found.errors[b, 0]) == right / len(logits)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_chunks_change_nothing(size, regression):
    chunked = am.MetaProblem(regression.model, regression.loss, chunk_size=size)
    mask = torch.rand(regression.tasks.query_y.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.6
    whole = curve(regression, [0, 4], query_mask=mask)
    parts = am.adaptation_curve(
        chunked, regression.theta, regression.tasks, inner_lr=0.05, steps=[0, 4], query_mask=mask
    )
    torch.testing.assert_close(whole.errors, parts.errors)


def test_the_compiled_engine_gives_the_same_curve(regression, monkeypatch):
    monkeypatch.setattr(rule, "BUDGET", 2)  # two steps a call are compiled in seconds
    compiled = curve(
        oracles.Case(
            regression.model,
            regression.loss,
            regression.problem.with_engine("compiled"),
            regression.theta,
            regression.tasks,
        ),
        [1, 6],
    )
    torch.testing.assert_close(compiled.errors, curve(regression, [1, 6]).errors, rtol=1e-12, atol=1e-12)


def test_only_what_the_mask_keeps_counts():
    prediction = torch.tensor([[[1.0], [5.0], [9.0]], [[2.0], [0.0], [0.0]]], dtype=torch.float64)
    target = torch.zeros_like(prediction)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert am.rmse(prediction, target, mask).tolist() == [math.sqrt(13.0), 2.0]
    assert am.target_std(prediction, mask).tolist() == [2.0, 0.0]
    labels = torch.tensor([[0, 1, 0]])
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    assert am.accuracy(logits, labels, torch.tensor([[True, False, True]])).tolist() == [0.5]


def test_the_standard_deviation_is_the_error_of_the_tasks_own_mean():
    target = torch.randn(4, 30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = target.mean(1, keepdim=True).expand_as(target)
    torch.testing.assert_close(am.target_std(target), am.rmse(mean, target))


def test_a_scale_of_zero_has_no_normalised_error():
    found = am.nrmse(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]))
    assert found[0] == 0.5
    assert bool(found[1].isnan())
    assert am.nrmse(torch.tensor([1.0, 3.0]), 4.0).tolist() == [0.25, 0.75]


def test_a_task_that_diverges_does_not_harm_its_neighbours(regression):
    t = regression.tasks
    wild = am.TaskBatch(t.support_x, t.support_y.clone(), t.query_x, t.query_y)
    wild.support_y[0] *= 1e200
    found = am.adaptation_curve(regression.problem, regression.theta, wild, inner_lr=0.05, steps=[5])
    assert not bool(torch.isfinite(found.errors[0]))
    torch.testing.assert_close(found.errors[1:], curve(regression, [5]).errors[1:])


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"steps": []}, "steps="),
        ({"steps": [-1, 3]}, "steps="),
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"query_mask": torch.ones(1, 2, dtype=torch.bool)}, "query_mask"),
    ],
)
def test_bad_input_is_refused_by_name(changes, culprit, regression):
    asked = {"inner_lr": 0.05, "steps": [1], **changes}
    with pytest.raises(am.InputError, match=culprit):
        am.adaptation_curve(regression.problem, regression.theta, regression.tasks, **asked)


def test_labels_of_another_shape_than_the_outputs_are_not_broadcast():
    labels = torch.tensor([[0, 1, 2, 0, 1]])
    outputs = torch.eye(3)[labels]
    assert am.accuracy(outputs, labels).tolist() == [1.0]
    with pytest.raises(am.InputError, match=r"outputs.*\[1, 5, 3\].*labels.*\[1, 5, 1\]"):
        am.accuracy(outputs, labels[..., None])


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"measure": torch.nn.functional.mse_loss}, r"measure returned \[\]; .* \[3\]"),
        ({"measure": lambda p, t, mask: 1.0}, "measure returned float"),
        ({"query_mask": [[True]]}, "query_mask is list"),
    ],
)
def test_what_is_no_measure_and_no_mask_is_told(changes, culprit, regression):
    with pytest.raises(am.InputError, match=culprit):
        curve(regression, [1], **({"measure": am.rmse} | changes))
    with pytest.raises(am.InputError, match="not a Sequential and a TaskBatch"):
        am.adaptation_curve(regression.model, regression.theta, regression.tasks, inner_lr=0.1, steps=[1])
