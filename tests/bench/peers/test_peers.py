import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import amaml_core as am
from bench.harness import worker
from bench.peers import PEERS, create
from bench.peers.base import imported, model_at
from bench.probes import load, oracles
from bench.problems import make_problem

LIBRARIES = {"diffrax": "diffrax", "higher": "higher", "jax": "jax", "torchopt": "torchopt"}
STEPS, LR = 5, 0.2


def library_of(peer):
    return LIBRARIES.get(peer.split("-")[0])


def needs(peer, device="cpu"):
    if library := library_of(peer):
        pytest.importorskip(library, reason=f"{library} is not installed; `make bench-peers` would")
        if device == "cuda" and library in ("diffrax", "jax"):
            pytest.importorskip(
                "jax.extend.backend"
            ).clear_backends()  # a test on the CPU may have started JAX for the CPU alone


def cosmixture(device="cpu"):
    problem = make_problem("cosmixture", {"shots": 5, "queries": 5, "tasks": 2, "width": 4})
    return problem.instance(0, 0, device=device)


@pytest.fixture(scope="module")
def instance():
    return cosmixture()


def images(count=2, device="cpu"):
    """A small network with every layer that the converter knows, and tasks of pictures for it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.GELU()),
        nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.Softplus(beta=2.0, threshold=1.0),
        nn.AvgPool2d(2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6, bias=False),
        nn.GELU("tanh"),
        nn.Tanh(),
        nn.Linear(6, 3),
    ).double()
    x, y = torch.randn(2, count, 6, 2, 5, 5, dtype=torch.float64), torch.arange(6).remainder(3).expand(2, count, 6)
    problem = am.MetaProblem(model, cross_entropy)
    theta, tasks = problem.initial_parameters(seed=1), am.TaskBatch(x[0], y[0], x[1], y[1])
    model.to(device)
    return problem, theta.to(device), tasks.to(device, theta.dtype)


def reference(target, instance):
    settings = {"unrolled": {"steps": STEPS, "lr": LR, "prox": 0.0}, "flow": {"horizon": STEPS * LR, "prox": 0.0}}
    return oracles.ORACLES[target](instance, **settings[target])


CASES = [
    ("diffrax", {"rtol": 1e-10, "atol": 1e-10, "solver": "dopri8"}, 1e-7),
    ("diffrax", {"rtol": 1e-9, "atol": 1e-9, "batched": False, "solver": "tsit5", "checkpoints": 7}, 1e-7),
    ("higher-maml", {}, 1e-12),
    ("jax-maml", {}, 1e-12),
    ("jax-maml", {"form": "vmap"}, 1e-12),
    ("jax-maml", {"form": "unrolled"}, 1e-12),
    ("jax-maml", {"unroll": 2}, 1e-12),
    ("jax-remat-maml", {}, 1e-12),
    ("jax-remat-maml", {"unroll": 2}, 1e-12),
    ("jax-remat-maml", {"unroll": 2, "segment": 5}, 1e-12),
    ("jax-remat-maml", {"form": "map", "segment": 5}, 1e-12),
    ("jax-remat-maml", {"form": "unrolled"}, 1e-12),
    ("loop-maml", {}, 1e-12),
    ("torchopt-maml", {}, 1e-12),
]


@pytest.mark.parametrize(("peer", "options", "tolerance"), CASES, ids=lambda value: str(value))
def test_a_peers_gradient_is_the_oracle_of_its_target(instance, peer, options, tolerance):
    agrees_with_its_oracle(instance, peer, options, tolerance)


def agrees_with_its_oracle(instance, peer, options, tolerance, device="cpu"):
    needs(peer, device)
    made = create(peer, inner_steps=STEPS, inner_lr=LR, **options)
    update = made.prepare(*cosmixture(device))
    first, out = update(), update()
    expected = reference(made.target, instance)
    torch.testing.assert_close(out.grad, expected, rtol=tolerance, atol=tolerance * float(expected.norm()))
    torch.testing.assert_close(first.grad, out.grad, rtol=0, atol=0)
    ours = am.create_method("amaml" if made.target == "flow" else "maml", inner_steps=STEPS, inner_lr=LR)
    adapted = ours.adapt(*instance)
    torch.testing.assert_close(
        out.query_loss, adapted.query_loss, rtol=1e-4 if made.target == "flow" else 1e-12, atol=0
    )
    assert out.status == ("ok", "ok")


LOOPS = [
    *((peer, {}) for peer in PEERS if peer.startswith("loop-")),
    ("loop-imaml", {"lam": 0.5, "cg_steps": 8, "cg_tol": 1e-9}),
    ("loop-imaml", {"lam": 0.01, "cg_steps": 3}),  # negative curvature
]


@pytest.mark.parametrize(("peer", "options"), LOOPS, ids=lambda value: str(value))
def test_a_loop_by_hand_is_our_method(instance, peer, options):
    agrees_with_our_method(instance, peer, options)


def agrees_with_our_method(instance, peer, options, device="cpu"):
    theirs = create(peer, inner_steps=STEPS, inner_lr=LR, **options)
    ours = am.create_method(peer.removeprefix("loop-"), inner_steps=STEPS, inner_lr=LR, **options)
    out, expected = theirs.prepare(*cosmixture(device))(), ours.meta_gradient(*instance)
    torch.testing.assert_close(out.grad, expected.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.query_loss, expected.query_loss)
    assert theirs.target == ours.target


def test_the_imaml_loop_finds_the_stationary_gradient(instance):
    made = create("loop-imaml", inner_steps=2000, inner_lr=0.1, cg_steps=100, cg_tol=1e-12)
    expected = oracles.stationary(instance, lam=1.0)
    torch.testing.assert_close(made.prepare(*instance)().grad, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("peer", [peer for peer in PEERS if library_of(peer) or peer == "loop-maml"])
def test_peers_take_networks_with_convolutions(peer):
    takes_convolutions(peer)


def takes_convolutions(peer, device="cpu"):
    needs(peer, device)
    made = create(peer, inner_steps=2, inner_lr=0.1, **({"rtol": 1e-9, "atol": 1e-9} if peer == "diffrax" else {}))
    problem, theta, tasks = images()
    if made.target == "flow":
        ours = am.create_method("amaml", inner_steps=100, inner_lr=0.002, rtol=1e-10, atol=1e-10, backward="rk4")
    else:
        ours = am.create_method("maml", inner_steps=2, inner_lr=0.1)
    expected = ours.meta_gradient(problem, theta, tasks)
    out = made.prepare(*images(device=device))()
    tolerance = 1e-4 if made.target == "flow" else 1e-10  # a flow through kinks is not smooth
    torch.testing.assert_close(out.grad, expected.grad, rtol=tolerance, atol=tolerance * float(expected.grad.norm()))


@pytest.mark.parametrize("peer", [peer for peer in PEERS if library_of(peer)])
def test_a_missing_library_is_bad_input_and_a_skipped_row(instance, make_cell, monkeypatch, peer):
    monkeypatch.setitem(sys.modules, library_of(peer), None)
    if peer == "diffrax":  # which needs both
        monkeypatch.setitem(sys.modules, "jax", None)
    words = r"is not installed; run `make bench-peers`, or `pip install 'amaml-bench\[peers\]'`"
    with pytest.raises(am.InputError, match=words):
        create(peer, inner_steps=1, inner_lr=0.1).prepare(*instance)
    answer = worker.run({"cell": make_cell(peer, "time").model_dump(), "threads": 1})
    assert (answer["status"], answer["reason"].split()[1:4]) == ("skipped", ["is", "not", "installed;"])


def test_a_library_built_for_another_torch_is_bad_input(tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text("raise ImportError('libtorch.so: undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(am.InputError, match=r"outside is installed but cannot be imported \(libtorch\.so: undefined"):
        imported("outside")


def test_a_peers_network_goes_where_theta_is_and_the_models_stays(instance):
    problem, theta, _ = instance
    assert {value.dtype for value in model_at(problem, theta.float()).parameters()} == {torch.float32}
    assert {value.dtype for value in problem.model.parameters()} == {torch.float64}


def test_the_registry_imports_no_outside_library():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, bench.peers; print(*sorted(m.split('.')[0] for m in sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(done.stdout.split()) & set(LIBRARIES.values())


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Sigmoid(), r"Sigmoid\(\) at '1.0' has no JAX counterpart"),
        (nn.AvgPool2d(2, ceil_mode=True), r"AvgPool2d\(.* at '1.0' has no JAX counterpart"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), r"Conv2d\(.* at '1.0' has no JAX counterpart"),
        (nn.Flatten(0), r"Flatten\(.* at '1.0' has no JAX counterpart"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_converter_refuses_a_layer_by_its_name(instance, layer, words):
    needs("jax-maml")
    model = nn.Sequential(nn.Linear(2, 1), nn.Sequential(layer)).double()
    problem = am.MetaProblem(model, mse_loss)
    with pytest.raises(am.InputError, match=words):
        create("jax-maml", inner_steps=1, inner_lr=0.1).prepare(problem, problem.initial_parameters(), instance[2])


def test_the_converter_refuses_a_loss_by_its_name(instance):
    needs("jax-maml")
    problem = am.MetaProblem(instance[0].model, nn.functional.l1_loss)
    with pytest.raises(am.InputError, match="The loss l1_loss has no JAX counterpart"):
        create("jax-maml", inner_steps=1, inner_lr=0.1).prepare(problem, *instance[1:])


def test_a_linear_layer_on_a_picture_is_refused_and_not_applied_to_the_wrong_axis():
    needs("jax-maml")
    _, _, tasks = images()
    problem = am.MetaProblem(nn.Sequential(nn.Linear(5, 3), nn.Flatten()).double(), cross_entropy)
    with pytest.raises(am.InputError, match=r"put nn\.Flatten before it"):
        create("jax-maml", inner_steps=1, inner_lr=0.1).prepare(problem, problem.initial_parameters(), tasks)


@pytest.mark.parametrize(
    ("peer", "options", "words"),
    [
        ("loop-maml", {"inner_steps": 0, "inner_lr": 0.1}, "inner_steps=0 is not a positive integer"),
        ("loop-maml", {"inner_steps": 1}, "loop-maml needs inner_lr="),
        ("loop-maml", {"inner_steps": 1, "inner_lr": 0.1, "lam": 1.0}, "loop-maml has no option 'lam'; it has inner_s"),
        ("loop-imaml", {"inner_steps": 1, "inner_lr": 0.1, "lam": 0}, "lam=0 is not a positive finite number"),
        ("jax-maml", {"inner_steps": 1, "inner_lr": 0.1, "form": "loop"}, "form='loop' is unknown; choose one of auto"),
        (
            "jax-remat-maml",
            {"inner_steps": 5, "inner_lr": 0.1, "segment": 2},
            "segment=2 does not divide inner_steps=5",
        ),
        ("diffrax", {"inner_steps": 1, "inner_lr": 0.1, "solver": "euler"}, "solver='euler' is unknown; choose one of"),
        ("diffrax", {"inner_steps": 1, "inner_lr": 0.1, "batched": 1}, "batched=1 is neither true nor false"),
        ("diffrax", {"inner_steps": 1, "inner_lr": 0.1, "command_buffers": 1}, "command_buffers=1 is neither true nor"),
        ("jax-maml", {"inner_steps": 1, "inner_lr": 0.1, "unroll": 0}, "unroll=0 is not a positive integer"),
        (
            "jax-maml",
            {"inner_steps": 4, "inner_lr": 0.1, "form": "unrolled", "unroll": 2},
            'form="unrolled" has no loop for unroll=2; drop one',
        ),
        (
            "jaxx",
            {},
            r"Unknown method 'jaxx'; choose one of amaml.* reptile, or of the peers diffrax, .*torchopt-maml\.",
        ),
    ],
)
def test_bad_options_are_told(peer, options, words):
    with pytest.raises(am.InputError, match=words):
        create(peer, **options)


def test_peers_refuse_frozen_parameters_and_horizons(instance):
    problem, theta, tasks = instance
    made = create("loop-maml", inner_steps=1, inner_lr=0.1)
    part = am.MetaProblem(problem.model, mse_loss, adapt=r"0\..*")
    with pytest.raises(am.InputError, match="adapts all parameters"):
        made.prepare(part, part.initial_parameters(), tasks)
    timed = am.TaskBatch(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, tasks.query_y[:, 0, 0].exp())
    with pytest.raises(am.InputError, match=r"drop TaskBatch\.horizon"):
        made.prepare(problem, theta, timed)


@pytest.mark.parametrize("peer", ["diffrax", "jax-maml", "loop-maml"])
def test_a_task_whose_numbers_are_not_finite_diverged(instance, peer):
    needs(peer)
    problem, theta, tasks = instance
    size = torch.tensor([1.0, 1e300], dtype=torch.float64).view(2, 1, 1)
    wild = am.TaskBatch(tasks.support_x, size * tasks.support_y, tasks.query_x, tasks.query_y)
    options = {"batched": False} if peer == "diffrax" else {}
    out = create(peer, inner_steps=5, inner_lr=0.01, **options).prepare(problem, theta, wild)()
    assert out.status == ("ok", "diverged")
    assert out.status[1].remedy


def test_a_solve_that_runs_out_of_steps_diverged(instance):
    needs("diffrax")
    out = create("diffrax", inner_steps=100, inner_lr=0.1, max_steps=3).prepare(*instance)()
    assert out.status == ("diverged", "diverged")
    assert "max_steps=3" in out.status[0].remedy


def test_allocated_bytes_grow_with_the_steps_and_less_with_rematerialisation(instance):
    needs("jax-maml")

    def allocated(peer, steps, **options):
        return create(peer, inner_steps=steps, inner_lr=0.01, **options).prepare(*instance).allocated_bytes

    plain, remat = ({n: allocated(peer, n) for n in (10, 200)} for peer in ("jax-maml", "jax-remat-maml"))
    assert 0 < plain[10] < plain[200] / 10
    assert 0 < remat[200] < plain[200] / 2
    assert allocated("jax-remat-maml", 196, segment=14) < remat[200] / 2


def test_the_allocator_probe_reports_what_jax_laid_out(instance, make_cell):
    needs("jax-maml")
    cell = make_cell("jax-maml", "allocator")
    problem = make_problem(cell.problem, cell.problem_options)
    measured = load("allocator")(problem, cell)
    assert measured.metrics == {"peak_allocated_bytes": problem.update(cell, 0).allocated_bytes}


@pytest.mark.parametrize("probe", ["allocator", "error", "time"])
def test_a_peer_is_measured_like_a_method(make_cell, probe):
    cell = make_cell("loop-imaml", probe, lam=1.0)
    answer = worker.run({"cell": cell.model_dump(), "threads": 1})
    assert (answer["status"], answer["target"]) == ("ok", "stationary")
    wanted = {"allocator": "peak_allocated_bytes", "error": "rel_error_stationary", "time": "outer_update_seconds"}
    assert answer["metrics"][wanted[probe]] > 0
    assert probe == "error" or answer["metrics"]["grad_evals"] == 5 * 3
