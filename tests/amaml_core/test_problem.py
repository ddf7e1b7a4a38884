import oracles
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian

import amaml_core as am


def conv(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), norm, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )


def images(tasks: int = 2) -> am.TaskBatch:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(tasks, 12, 1, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(12).remainder(3).repeat(tasks, 1)
    return am.TaskBatch(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:])


@pytest.fixture(params=["regression", "classifier", "batch norm", "group norm"])
def any_case(request) -> oracles.Case:
    if request.param in ("regression", "classifier"):
        return getattr(oracles, request.param)()
    norm = nn.BatchNorm2d(2, track_running_stats=False) if request.param == "batch norm" else nn.GroupNorm(1, 2)
    model = conv(norm).double()
    problem = am.MetaProblem(model, nn.functional.cross_entropy)
    return oracles.Case(model, nn.functional.cross_entropy, problem, problem.initial_parameters(0), images())


@pytest.fixture
def spread(any_case):
    """Other parameters for each task."""
    noise = torch.randn(
        len(any_case.tasks), any_case.problem.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    return any_case.theta + 0.3 * noise


@pytest.mark.parametrize("prox", [0.0, 2.0])
def test_inner_objective_and_its_derivatives(any_case, spread, prox):
    inner = any_case.problem.bind(any_case.theta, any_case.tasks, prox)
    point, v = inner.linearize(spread), spread.flip(0)
    products = point.hvp(v)
    for b, u in enumerate(spread):

        def objective(u, b=b):
            return any_case.support(b)(u) + prox / 2 * ((u - any_case.theta) ** 2).sum()

        assert torch.allclose(inner.loss(spread)[b], objective(u), rtol=1e-12)
        assert torch.allclose(inner.gradient(spread)[b], oracles.gradient(objective, u), rtol=1e-10, atol=1e-12)
        assert torch.allclose(point.gradient[b], oracles.gradient(objective, u), rtol=1e-10, atol=1e-12)
        assert torch.allclose(products[b], hessian(objective, u) @ v[b], rtol=1e-9, atol=1e-11)


def test_query_loss_and_gradient(any_case, spread):
    loss, grads = any_case.problem.bind(any_case.theta, any_case.tasks, prox=9.0).query_gradient(spread)
    for b, u in enumerate(spread):
        assert torch.allclose(loss[b], any_case.query(b)(u), rtol=1e-12)
        assert torch.allclose(grads[b], oracles.gradient(any_case.query(b), u), rtol=1e-10, atol=1e-12)


def test_products_may_be_repeated_and_are_counted(regression):
    inner = regression.problem.bind(regression.theta, regression.tasks)
    point, v = inner.linearize(inner.start()), torch.ones(3, regression.problem.dim, dtype=torch.float64)
    assert torch.equal(point.hvp(v), point.hvp(v))
    inner.gradient(inner.start())
    assert dict(inner.stats) == {"grad_evals": 1, "hvp_evals": 2, "linearizations": 1}


def test_a_linear_loss_has_no_curvature():
    problem = am.MetaProblem(nn.Linear(2, 1, bias=False), lambda p, t: (p - t).mean())
    tasks = am.TaskBatch(*(torch.ones(2, 3, n) for n in (2, 1, 2, 1)))
    point = problem.bind(torch.ones(2), tasks).linearize(torch.ones(2, 2))
    assert torch.equal(point.hvp(torch.ones(2, 2)), torch.zeros(2, 2))


def test_other_loss_inside_and_outside(regression):
    problem = am.MetaProblem(regression.model, inner_loss=nn.functional.l1_loss, outer_loss=nn.functional.mse_loss)
    inner = problem.bind(regression.theta, regression.tasks)
    u = inner.start()
    absolute = oracles.flat_loss(
        regression.model, nn.functional.l1_loss, u[0], regression.tasks.support_x[0], regression.tasks.support_y[0]
    )
    assert torch.allclose(inner.loss(u)[0], absolute)
    assert torch.allclose(inner.query_loss(u)[0], regression.query(0)(u[0]))


def test_predictions_task_by_task(regression):
    u = regression.theta.expand(3, -1) * torch.tensor([[1.0], [2.0], [3.0]])
    found = regression.problem.predict(u, regression.tasks.query_x)
    regression_copy = oracles.regression().model
    regression_copy.load_state_dict(regression.problem.unflatten(u[1]))
    assert torch.allclose(found[1], regression_copy(regression.tasks.query_x[1]))


class Tied(nn.Module):
    """One matrix used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(torch.tanh(self.encoder(x)))


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), Tied(), conv(nn.BatchNorm2d(2)).eval()]
)
def test_flat_parameters_survive_a_state_dict(model):
    problem = am.MetaProblem(model, nn.functional.mse_loss)
    theta = torch.randn(problem.dim, generator=torch.Generator().manual_seed(0))
    state = problem.unflatten(theta)
    problem.model.load_state_dict(state)
    assert torch.equal(problem.flatten(model.state_dict()), theta)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), theta)
    assert torch.equal(problem.initial_parameters(seed=None), theta)


def test_tied_weights_add_their_gradients():
    model = Tied().double()
    problem = am.MetaProblem(model, nn.functional.mse_loss)
    x, y = torch.randn(2, 1, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nn.functional.mse_loss(model(x[0]), y[0]).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    theta = problem.initial_parameters(seed=None)
    assert problem.dim == 9 + 3 + 3
    assert torch.allclose(problem.bind(theta, am.TaskBatch(x, y, x, y)).gradient(theta[None])[0], expected)


def test_adapting_a_part_gives_its_part_of_the_gradient(regression):
    whole, part = regression.problem, am.MetaProblem(regression.model, regression.loss, adapt=r"4\..*")
    theta = whole.initial_parameters(seed=None)
    head = part.initial_parameters(seed=None)
    assert torch.equal(head, theta[-part.dim :])
    expected = whole.bind(theta, regression.tasks).gradient(theta.expand(3, -1))[:, -part.dim :]
    found = part.bind(head, regression.tasks).gradient(head.expand(3, -1))
    assert torch.allclose(found, expected, rtol=1e-12)


def test_unflatten_leaves_the_frozen_part_alone(regression):
    part = am.MetaProblem(regression.model, regression.loss, adapt=r"4\.bias")
    before = {name: value.clone() for name, value in regression.model.state_dict().items()}
    state = part.unflatten(torch.full((1,), 7.0, dtype=torch.float64))
    assert state.pop("4.bias").tolist() == [7.0]
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert torch.equal(regression.model.state_dict()["4.bias"], before["4.bias"])


def test_seeded_starts_repeat_and_touch_nothing(regression):
    random, model = torch.get_rng_state(), regression.problem.initial_parameters(seed=None)
    first = regression.problem.initial_parameters(seed=1)
    assert torch.equal(first, regression.problem.initial_parameters(seed=1))
    assert not torch.equal(first, regression.problem.initial_parameters(seed=2))
    assert torch.equal(regression.problem.initial_parameters(seed=None), model)
    assert torch.equal(torch.get_rng_state(), random)


def test_seeded_start_is_that_of_a_fresh_model():
    with torch.random.fork_rng():
        torch.manual_seed(11)
        fresh = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    problem = am.MetaProblem(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), nn.functional.mse_loss)
    assert torch.equal(problem.initial_parameters(11), nn.utils.parameters_to_vector(fresh.parameters()))


MSE = nn.functional.mse_loss


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: am.MetaProblem("linear", MSE), "model is a str"),
        (lambda: am.MetaProblem(nn.Linear(2, 1)), "loss is missing"),
        (lambda: am.MetaProblem(nn.Linear(2, 1), inner_loss=MSE), "loss is missing"),
        (lambda: am.MetaProblem(nn.Linear(2, 1), MSE, shared="thawed"), "shared='thawed'"),
        (lambda: am.MetaProblem(nn.Linear(2, 1), MSE, engine="steam"), "engine='steam'"),
        (lambda: am.MetaProblem(nn.Linear(2, 1), MSE, chunk_size=0), "chunk_size=0"),
        (lambda: am.MetaProblem(nn.Linear(2, 1), MSE, adapt="head"), "adapt='head'.*weight, bias"),
        (lambda: am.MetaProblem(nn.Linear(2, 1), MSE, adapt="("), r"adapt='\('"),
        (lambda: am.MetaProblem(nn.Tanh(), MSE), "matches none"),
        (lambda: am.MetaProblem(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double()), MSE), "dtypes"),
        (lambda: am.MetaProblem(nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.3)), MSE), "Dropout '1'.*dropout 0.3"),
        (lambda: am.MetaProblem(nn.LSTM(2, 1, num_layers=2, dropout=0.3), MSE), "LSTM.*dropout 0.3"),
        (lambda: am.MetaProblem(nn.BatchNorm1d(2), MSE), "BatchNorm1d.*track_running_stats=False"),
    ],
)
def test_bad_problems_are_refused_by_name(make, named):
    with pytest.raises(am.InputError, match=named):
        make()


@pytest.mark.parametrize("module", [nn.Dropout(0.3), nn.BatchNorm1d(2)])
def test_what_eval_mode_makes_harmless_is_allowed(module):
    assert am.MetaProblem(nn.Sequential(nn.Linear(2, 2), module).eval(), MSE).dim >= 6


@pytest.mark.parametrize(
    ("theta", "named"),
    [
        ([1.0], "theta is list"),
        (torch.ones(4), r"theta is \[4\]; .*\[3\]"),
        (torch.ones(1, 3), r"theta is \[1, 3\]"),
        (torch.tensor([1.0, torch.nan, 1.0]), "theta must hold finite"),
        (torch.ones(3, dtype=torch.long), "theta must hold finite floating"),
    ],
)
def test_bad_theta_is_refused_by_name(theta, named):
    with pytest.raises(am.InputError, match=named):
        am.MetaProblem(nn.Linear(2, 1), MSE).check_theta(theta)


@pytest.mark.parametrize(("place", "named"), [({"dtype": torch.float64}, "float64"), ({"device": "meta"}, "meta")])
def test_theta_must_fit_the_frozen_part(place, named):
    model = nn.Sequential(nn.Linear(2, 2).to(**place), nn.Linear(2, 1))
    with pytest.raises(am.InputError, match=f"model's '0.weight' is .*{named}"):
        am.MetaProblem(model, MSE, adapt=r"1\..*").check_theta(torch.ones(3))


def test_tasks_must_have_thetas_dtype_and_device():
    problem = am.MetaProblem(nn.Linear(2, 1), MSE)
    doubles = am.TaskBatch(*(torch.ones(2, 3, n, dtype=torch.float64) for n in (2, 1, 2, 1)))
    with pytest.raises(am.InputError, match=r"support_x is torch\.float64 and theta torch\.float32"):
        problem.bind(torch.ones(3), doubles)
    elsewhere = am.TaskBatch(*(torch.ones(2, 3, n, dtype=torch.long, device="meta") for n in (2, 1, 2, 1)))
    with pytest.raises(am.InputError, match="support_x is on meta and theta on cpu"):
        problem.bind(torch.ones(3), elsewhere)


@pytest.mark.parametrize("state", [{}, {"weight": torch.ones(1, 3), "bias": torch.ones(1)}])
def test_flatten_refuses_a_state_that_does_not_fit(state):
    with pytest.raises(am.InputError, match="'weight'"):
        am.MetaProblem(nn.Linear(2, 1), MSE).flatten(state)


class FunctionalDropout(nn.Linear):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.3))


@pytest.mark.parametrize(
    ("model", "loss", "width", "named"),
    [
        (nn.Linear(2, 1), lambda p, t: (p - t) ** 2, 2, r"loss returned shape \[3, 1\]"),
        (nn.Linear(2, 1), lambda p, t: 0.0, 2, "loss returned float"),
        (FunctionalDropout(2, 1), MSE, 2, "random numbers"),
        (nn.Linear(2, 1), MSE, 5, "shape"),
    ],
    ids=["vector loss", "float loss", "functional dropout", "inputs too wide for the model"],
)
def test_what_shows_only_on_evaluation_is_refused_too(model, loss, width, named):
    tasks = am.TaskBatch(*(torch.ones(2, 3, n) for n in (width, 1, width, 1)))
    with pytest.raises(am.InputError, match=named):
        am.create_method("maml", inner_steps=1, inner_lr=0.1).meta_gradient(
            am.MetaProblem(model, loss), torch.ones(3), tasks
        )


def test_unflattened_states_share_no_memory_with_the_model(regression):
    part = am.MetaProblem(regression.model, MSE, adapt=".*bias")
    before = {name: value.clone() for name, value in regression.model.state_dict().items()}
    for value in part.unflatten(part.initial_parameters(None)).values():
        value.fill_(7.0)
    assert all(torch.equal(value, before[name]) for name, value in regression.model.state_dict().items())
