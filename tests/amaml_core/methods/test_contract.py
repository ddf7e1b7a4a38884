"""What every method of the registry keeps to, whatever it computes."""

import copy
import math
from dataclasses import replace

import oracles
import pytest
import torch
from torch import nn

import amaml_core as am

OPTIONS: dict[str, list[dict]] = {  # a method that is not named here is tested with its defaults
    "amaml": [
        {},
        {"forward": "euler", "backward": "euler", "prox": 0.5},
        {"forward": "rk4", "backward": "rk4", "num_states": 4, "stopping": am.QueryLoss(1)},
        {"num_states": "accepted", "backward": "rk4", "prox": 0.5},
        {"num_states": "accepted", "forward": "rk43", "backward": "discrete"},
        {"num_states": "accepted", "forward": "rkc2", "backward": "discrete", "rtol": 1e-2},
        {"forward": "heun", "checkpoint": "sqrt"},
        {"backward": "backsolve", "stopping": am.GradientNorm(0.3)},
    ],
    "imaml": [{"variant": variant, "lam": 2.0} for variant in ("paper-gd", "paper-hf", "official")],
    "remat-maml": [{}, {"segment": 2}, {"segment": "sqrt"}],
}
KEYS = {"grad_evals", "hvp_evals", "linearizations", "forward_steps", "rejected_steps", "states_stored"}
TARGETS = {"unrolled", "flow", "stationary", "surrogate"}
STATUSES = {"ok", "diverged", "not_converged"}

every_method = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(n, o, id="-".join([n, *map(str, o.values())])) for n in am.METHODS for o in OPTIONS.get(n, [{}])],
)
pytestmark = every_method


def tight(name, options):
    """Tolerances so small that what is compared differs by less than the tests let pass; rkc2 is of order 2."""
    if name != "amaml":
        return {}
    return {"rtol": 1e-6, "atol": 1e-8} if options.get("forward") == "rkc2" else {"rtol": 1e-9, "atol": 1e-11}


def create(name, options, **changes):
    return am.create_method(name, **{"inner_steps": 5, "inner_lr": 0.05, **options, **changes})


def run(case, name, options, **changes):
    return create(name, options, **changes).meta_gradient(case.problem, case.theta, case.tasks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("make", [oracles.regression, oracles.classifier])
def test_shapes_and_dtypes(name, options, make, dtype, device):
    case = make().on(device).to(dtype)
    method, out = create(name, options), run(case, name, options)
    tasks, dim = len(case.tasks), case.problem.dim
    assert {k: v.shape for k, v in out.grads.items()} == {"theta": (dim,)}
    assert out.task_grads.shape == out.adapted.shape == (tasks, dim)
    assert out.query_loss.shape == out.horizon.shape == (tasks,)
    assert (out.horizon_grad is None) == (method.target != "flow")
    values = [out.grad, out.task_grads, out.adapted, out.query_loss, out.horizon, out.horizon_grad]
    assert {(value.dtype, value.device.type) for value in values if value is not None} == {(dtype, device)}
    assert not any(value.requires_grad for value in values if value is not None)
    assert all(torch.isfinite(value).all() for value in values if value is not None)
    assert (len(out.status), method.target in TARGETS, set(out.status) <= STATUSES) == (tasks, True, True)


def test_single_precision_is_close_to_double(name, options, device):
    made = (oracles.regression().on(device).to(dtype) for dtype in (torch.float64, torch.float32))
    double, single = (run(case, name, options) for case in made)
    assert oracles.relative(single.task_grads.double(), double.task_grads) < 2e-2


def test_grad_is_the_mean_over_tasks(case, name, options):
    out = run(case, name, options)
    assert out.grad is out.grads["theta"]
    assert torch.allclose(out.grad, out.task_grads.mean(0), rtol=1e-14)


def test_order_of_tasks_does_not_matter(case, name, options):
    order = torch.arange(len(case.tasks)).flip(0)
    out, turned = run(case, name, options), run(replace(case, tasks=case.tasks[order]), name, options)
    assert oracles.relative(turned.task_grads, out.task_grads[order]) < 1e-10
    assert torch.allclose(turned.query_loss, out.query_loss[order], rtol=1e-10)
    assert turned.status == tuple(out.status[b] for b in order)


def test_a_task_does_not_see_its_neighbours_data(case, name, options):
    t = case.tasks
    moved = am.TaskBatch(*(v.clone() for v in (t.support_x, t.support_y, t.query_x, t.query_y)))
    moved.support_x[1] *= -2
    moved.query_x[1] += 1
    tolerance = 1e-3 if options.get("num_states") == "accepted" else 1e-6  # its grid is the whole batch's
    out = run(case, name, options, **tight(name, options))
    again = run(replace(case, tasks=moved), name, options, **tight(name, options))
    assert oracles.relative(again.task_grads[0], out.task_grads[0]) < tolerance
    assert oracles.relative(again.task_grads[1], out.task_grads[1]) > 1e-2


@pytest.mark.parametrize("size", [1, 2, None])
def test_chunks_change_nothing(case, name, options, size):
    chunked = replace(case, problem=am.MetaProblem(case.model, case.loss, chunk_size=size))
    tolerance = 1e-3 if options.get("num_states") == "accepted" else 1e-6
    out, found = (run(one, name, options, **tight(name, options)) for one in (case, chunked))
    assert oracles.relative(found.task_grads, out.task_grads) < tolerance
    assert found.status == out.status
    assert set(found.stats) == set(out.stats)


def test_adaptation_alone_ends_at_the_same_place(case, name, options):
    out, adapted = run(case, name, options), create(name, options).adapt(case.problem, case.theta, case.tasks)
    assert oracles.relative(adapted.adapted, out.adapted) < 1e-4
    assert torch.allclose(adapted.query_loss, out.query_loss, rtol=1e-4)
    assert torch.allclose(adapted.horizon, out.horizon)
    assert len(adapted.status) == len(case.tasks)


def test_query_loss_is_that_of_the_adapted_parameters(case, name, options):
    out = run(case, name, options)
    expected = torch.stack([case.query(b)(u) for b, u in enumerate(out.adapted)])
    assert torch.allclose(out.query_loss, expected, rtol=1e-12)


def test_a_bare_tensor_stands_for_theta(case, name, options):
    method = create(name, options)
    meta = {"theta": case.theta}
    out = method.meta_gradient(case.problem, meta, case.tasks)
    assert torch.equal(out.grad, run(case, name, options).grad)
    initial = method.initial_meta_parameters(case.problem, seed=3)
    assert set(initial) == set(out.grads) == {"theta"}
    assert torch.equal(initial["theta"], case.problem.initial_parameters(3))


@pytest.mark.parametrize("meta", [{}, {"theta": None, "extra": None}, {"phi": None}])
def test_unknown_meta_parameters_are_refused(case, name, options, meta):
    meta = dict.fromkeys(meta, case.theta)
    with pytest.raises(am.InputError, match=f"{name} learns only theta"):
        create(name, options).meta_gradient(case.problem, meta, case.tasks)


def test_stats_are_plain_integers_with_known_names(case, name, options):
    stats = run(case, name, options).stats
    assert {"grad_evals", "hvp_evals"} <= set(stats) <= KEYS
    assert all(type(value) is int and value >= 0 for value in stats.values())
    assert stats["grad_evals"] + stats["hvp_evals"] > 0


def test_repeats_are_bit_equal(case, name, options):
    run(case, name, options)  # the first one is looked into closer, if it is of a kind that is looked into now and then
    one, other = run(case, name, options), run(case, name, options)
    assert torch.equal(one.task_grads, other.task_grads)
    assert torch.equal(one.adapted, other.adapted)
    assert torch.equal(one.query_loss, other.query_loss)
    assert (one.stats, one.status) == (other.stats, other.status)


def test_nothing_that_is_passed_in_is_changed(name, options, device):
    case = oracles.regression().on(device)
    theta = case.theta.clone().requires_grad_()
    t = case.tasks
    inputs = [theta, t.support_x, t.support_y, t.query_x, t.query_y, *case.model.parameters()]
    before, random = copy.deepcopy(inputs), torch.get_rng_state()
    out = create(name, options).meta_gradient(case.problem, theta, case.tasks)
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(inputs, before, strict=True))
    assert all(a.requires_grad == b.requires_grad for a, b in zip(inputs, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    out.adapted.add_(1.0)
    assert torch.equal(theta, before[0])


def test_gradients_may_be_switched_off_around_it(regression, name, options):
    with torch.no_grad():
        out = run(regression, name, options)
    assert torch.equal(out.task_grads, run(regression, name, options).task_grads)


def test_divergence_is_told_and_never_raised(name, options, device):
    def loss(prediction, target):  # descent on it has nowhere to end, and the numbers run out at the first step
        return 1e200 * ((prediction - target) ** 2).mean()

    case = oracles.regression().on(device)
    case = replace(case, loss=loss, problem=am.MetaProblem(case.model, loss))
    changes = {} if options.get("variant") == "paper-hf" else {"inner_lr": 1e120}
    out = run(case, name, options, **changes)
    assert out.task_grads.shape == (3, case.problem.dim)
    assert all(status in ("diverged", "not_converged") and status.remedy for status in out.status)
    if changes:
        assert list(out.status) == ["diverged"] * 3
        assert not torch.isfinite(out.grad).any()


def test_part_of_the_model_may_be_adapted(regression, name, options):
    part = am.MetaProblem(regression.model, regression.loss, adapt=r"4\..*")
    frozen = {k: v.clone() for k, v in regression.model.state_dict().items()}
    theta = part.initial_parameters(seed=None)
    out = create(name, options).meta_gradient(part, theta, regression.tasks)
    assert out.grad.shape == (part.dim,) == (9,)
    assert all(torch.equal(v, frozen[k]) for k, v in regression.model.state_dict().items())


def test_the_head_alone_is_a_linear_model(regression, name, options, device):
    """Adapting the last layer equals adapting a linear model on the features below it."""
    model, t = regression.model, regression.tasks
    part = am.MetaProblem(model, regression.loss, adapt=r"4\..*")
    theta = part.initial_parameters(seed=None)
    with torch.no_grad():
        features = am.TaskBatch(model[:4](t.support_x), t.support_y, model[:4](t.query_x), t.query_y)
    linear = am.MetaProblem(nn.Linear(8, 1).double().to(device), regression.loss)
    found = create(name, options).meta_gradient(part, theta, t)
    expected = create(name, options).meta_gradient(linear, theta, features)
    assert oracles.relative(found.task_grads, expected.task_grads) < 1e-9


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"inner_steps": 0}, "inner_steps=0"),
        ({"inner_steps": 2.5}, r"inner_steps=2\.5"),
        ({"inner_steps": True}, "inner_steps=True"),
        ({"inner_lr": 0.0}, r"inner_lr=0\.0"),
        ({"inner_lr": -0.1}, r"inner_lr=-0\.1"),
        ({"inner_lr": math.nan}, "inner_lr=nan"),
        ({"inner_lr": "0.1"}, "inner_lr='0.1'"),
        ({"momentum": 0.9}, "no option 'momentum'; it has inner_steps, inner_lr"),
    ],
)
def test_bad_options_are_refused_by_name(name, options, changes, named):
    with pytest.raises(am.InputError, match=named):
        create(name, options, **changes)


@pytest.mark.parametrize("missing", ["inner_steps", "inner_lr"])
def test_missing_options_are_named(name, options, missing):
    given = {"inner_steps": 5, "inner_lr": 0.05, **options}
    del given[missing]
    with pytest.raises(am.InputError, match=f"{name} needs {missing}="):
        am.create_method(name, **given)


def test_what_does_not_fit_is_refused_by_name(regression, name, options):
    method, problem, tasks = create(name, options), regression.problem, regression.tasks
    with pytest.raises(am.InputError, match="theta is"):
        method.meta_gradient(problem, regression.theta[:-1], tasks)
    with pytest.raises(am.InputError, match=r"support_x is torch\.float32 and theta torch\.float64"):
        method.meta_gradient(problem, regression.theta, tasks.to(dtype=torch.float32))
    with pytest.raises(am.InputError, match="finite"):
        method.meta_gradient(problem, regression.theta * torch.nan, tasks)
    with pytest.raises(am.InputError, match="tasks is a tuple"):
        method.meta_gradient(problem, regression.theta, (tasks.support_x, tasks.support_y))


def test_horizons_in_another_dtype_are_refused(name, options):
    tasks = am.TaskBatch(*(torch.ones(2, 3, n, dtype=torch.long) for n in (2, 1, 2, 1)), torch.ones(2))
    problem = am.MetaProblem(nn.Linear(2, 1).double(), nn.functional.mse_loss)
    with pytest.raises(am.InputError, match=r"horizon is torch\.float32 and theta torch\.float64"):
        create(name, options).meta_gradient(problem, problem.initial_parameters(), tasks)


def test_a_status_compares_as_a_word_and_survives_a_copy(case, name, options):
    status = copy.deepcopy(run(case, name, options).status[0])
    assert isinstance(status, am.Status)
    assert status in STATUSES
    assert (status == "ok") == (status.remedy == "")
