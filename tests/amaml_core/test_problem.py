import contextlib
import threading

import oracles
import pytest
import torch
from oracles import conv
from plain import Plain, fresh
from torch import nn

import amaml_core as am


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
    assert torch.allclose(am.InnerProblem(problem, theta, am.TaskBatch(x, y, x, y)).gradient(theta[None])[0], expected)


def test_adapting_a_part_gives_its_part_of_the_gradient(regression):
    whole, part = regression.problem, am.MetaProblem(regression.model, regression.loss, adapt=r"4\..*")
    theta = whole.initial_parameters(seed=None)
    head = part.initial_parameters(seed=None)
    assert torch.equal(head, theta[-part.dim :])
    expected = am.InnerProblem(whole, theta, regression.tasks).gradient(theta.expand(3, -1))[:, -part.dim :]
    found = am.InnerProblem(part, head, regression.tasks).gradient(head.expand(3, -1))
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
        (lambda: am.MetaProblem(nn.Tanh(), MSE), "has no parameters"),
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
        am.InnerProblem(problem, torch.ones(3), doubles)
    elsewhere = am.TaskBatch(*(torch.ones(2, 3, n, dtype=torch.long, device="meta") for n in (2, 1, 2, 1)))
    with pytest.raises(am.InputError, match="support_x is on meta and theta on cpu"):
        am.InnerProblem(problem, torch.ones(3), elsewhere)


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


def test_the_loop_over_tasks_equals_vmap():
    problem, theta, tasks = oracles.conv_case()
    method = am.create_method("maml", inner_steps=3, inner_lr=0.1)
    looped = method.meta_gradient(problem, theta, tasks)
    problem._convolves = False
    batched = method.meta_gradient(problem, theta, tasks)
    assert torch.allclose(looped.task_grads, batched.task_grads, rtol=1e-10, atol=1e-13)
    assert looped.stats == batched.stats


def test_the_loop_over_tasks_refuses_random_numbers_too():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.layer(x + torch.rand_like(x)).flatten(1)

    x, y = torch.randn(2, 3, 1, 3, 3), torch.randn(2, 3, 1)
    problem = am.MetaProblem(Noisy(), MSE)
    with pytest.raises(am.InputError, match="draws random numbers"):
        am.InnerProblem(problem, problem.initial_parameters(), am.TaskBatch(x, y, x, y)).gradient(torch.ones(2, 10))


class Shared(nn.Module):
    """Two layers whose weights lie in one memory, at these places of it; or a buffer that does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        whole = torch.arange(18.0).view(3, 6) / 10
        if kind == "same":
            self.b.weight.data = self.a.weight.data
        elif kind == "overlapping":
            self.a.weight.data, self.b.weight.data = whole[:, :3], whole[:, 2:5]
        elif kind == "beside":
            self.a.weight.data, self.b.weight.data = whole[:, :3], whole[:, 3:]
        else:
            self.register_buffer("kept", self.a.weight.data.view(-1)[4:5])

    def forward(self, x):
        return self.b(self.a(x).tanh())


@pytest.mark.parametrize(("kind", "other"), [("same", "b.weight"), ("overlapping", "b.weight"), ("buffer", "kept")])
def test_what_shares_memory_with_an_adapted_parameter_is_refused(kind, other):
    with pytest.raises(am.InputError, match=f"'a.weight' and '{other}' lie in the same memory.*clone"):
        am.MetaProblem(Shared(kind), nn.functional.mse_loss)
    assert am.MetaProblem(Shared("beside"), nn.functional.mse_loss).dim == 18
    if kind == "buffer":
        assert am.MetaProblem(Shared(kind), nn.functional.mse_loss, adapt="b.*").dim == 9


@pytest.mark.parametrize("pattern", [r"decoder\..*", r"(encoder\.weight|decoder\.bias)"])
def test_a_tied_weight_is_adapted_by_any_of_its_names(pattern):
    assert am.MetaProblem(Tied(), nn.functional.mse_loss, adapt=pattern).names == ("encoder.weight", "decoder.bias")


class Toeplitz(nn.Module):
    """A matrix of which the rows are the same numbers in memory, one further on each."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(5.0))

    def forward(self, x):
        return (x @ self.w.as_strided((3, 3), (1, 1))).tanh().sum(1, keepdim=True)


class Energy(nn.Module):
    """Forces: the derivative of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0].sum(1, keepdim=True)


def orthogonal():
    torch.manual_seed(0)
    return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 1))


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
@pytest.mark.parametrize("around", [contextlib.nullcontext, nn.utils.parametrize.cached])
@pytest.mark.parametrize("make", [Toeplitz, Energy, orthogonal])
def test_adaptation_is_that_of_a_model_that_is_trained_as_it_is(make, around):
    torch.manual_seed(0)
    model, (x, y) = make().double(), (torch.randn(2, 5, n, dtype=torch.float64) for n in (3, 1))
    problem, tasks = am.MetaProblem(model, nn.functional.mse_loss), am.TaskBatch(x, y, x, y)
    theta = problem.initial_parameters()
    right = Plain(fresh(model), nn.functional.mse_loss, problem.names, tasks)
    expected = torch.stack([right.trained(theta, task, 2, 0.1) for task in (0, 1)])
    with around():
        model(x[0])  # which fills a cache
        found = am.create_method("maml", inner_steps=2, inner_lr=0.1).adapt(problem, theta, tasks)
        curve = am.adaptation_curve(problem, theta, tasks, inner_lr=0.1, steps=[2])
    assert torch.allclose(found.adapted, expected, rtol=1e-10)
    assert float(curve.errors[0, 0]) ** 2 == pytest.approx(float(right.value(expected[0], 0, "query").detach()))


def test_a_parameter_that_must_lie_at_an_even_place_is_to_be_cloned():
    class Complex(Toeplitz):
        def forward(self, x):
            return (x * torch.view_as_complex(self.w[1:].view(2, 2)).abs().sum()).sum(1, keepdim=True)

    x, y = torch.randn(2, 5, 3), torch.randn(2, 5, 1)
    problem = am.MetaProblem(Complex(), nn.functional.mse_loss)
    with pytest.raises(am.InputError, match=r"parts of one vector \(.*divisible by 2\); clone\(\) the one"):
        problem.losses(problem.inner_loss, problem.initial_parameters().expand(2, -1), (x, y))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal])
def test_parametrised_weights_that_a_seed_does_not_reach_are_told(wrap):
    problem = am.MetaProblem(wrap(nn.Linear(3, 3)), nn.functional.mse_loss)
    with pytest.warns(am.ModelWarning, match=r"No reset_parameters\(\) initialises parametrizations.weight.original"):
        parts = problem.split(problem.initial_parameters(seed=0))
    own = dict(problem.model.named_parameters())
    assert [name for name, value in parts.items() if torch.equal(value, own[name])] == [n for n in own if "orig" in n]


def test_a_model_that_cannot_be_copied_is_to_be_initialised_by_its_owner():
    model = nn.Linear(3, 1)
    model.lock = threading.Lock()
    problem = am.MetaProblem(model, nn.functional.mse_loss)
    assert problem.initial_parameters().shape == (4,)
    with pytest.raises(am.InputError, match=r"cannot be copied \(.*lock.*\).*seed=None"):
        problem.initial_parameters(seed=0)


def test_weight_decay_over_parameters_that_were_kept_is_noticed_in_float32_too():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1), torch.randn(2, 5, 3), torch.randn(2, 5, 1)
    kept = list(model.parameters())

    def loss(prediction, target):
        return nn.functional.mse_loss(prediction, target) + 1e-5 * sum(p.square().sum() for p in kept)

    problem = am.MetaProblem(model, loss)
    with pytest.raises(am.InputError, match=r"gradient is \d(e-0\d|\.\d)% off torch.autograd"):
        problem.losses(loss, problem.initial_parameters().expand(2, -1), (x, y))


def test_states_with_anything_but_tensors_are_refused():
    problem = am.MetaProblem(nn.Linear(2, 1), nn.functional.mse_loss)
    with pytest.raises(am.InputError, match=r"'weight'; it needs a tensor of shape \[1, 2\]"):
        problem.flatten({name: value.numpy() for name, value in problem.model.state_dict().items()})


@pytest.mark.parametrize(
    ("part", "kinked"),
    [
        (nn.ReLU(), True),
        (nn.LeakyReLU(0.1), True),
        (nn.PReLU(), True),
        (nn.ReLU6(), True),
        (nn.Hardswish(), True),
        (nn.Softshrink(), True),
        (nn.MaxPool1d(2, 1), True),
        (nn.Tanh(), False),
        (nn.GELU(), False),
        (nn.SiLU(), False),
        (nn.Softplus(), False),
        (nn.Softmax(-1), False),
        (nn.LayerNorm(4), False),
        (nn.Softsign(), False),
    ],
)
def test_kinks_of_a_loss_are_known_by_its_operators(part, kinked):
    model = nn.Sequential(nn.Linear(3, 4), part, nn.LazyLinear(1)).double()
    x = torch.ones(2, 6, 3, dtype=torch.float64)
    model(x[0])
    problem = am.MetaProblem(model, nn.functional.mse_loss)
    method = am.create_method("fomaml", inner_steps=1, inner_lr=0.1)
    method.meta_gradient(problem, problem.initial_parameters(), am.TaskBatch(x, x[..., :1], x, x[..., :1]))
    assert problem.kinked == kinked
