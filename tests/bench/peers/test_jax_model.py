"""What the peers in JAX share: their options, and the device that they run on."""

import os

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import amaml_core as am
from bench.peers import create, jax_model
from bench.problems import make_problem

jax = pytest.importorskip("jax", reason="jax is not installed; `make bench-peers` would")
pytest.importorskip("diffrax", reason="diffrax is not installed; `make bench-peers` would")

STEPS, LR = 4, 0.2
JAX_PEERS = ["diffrax", "jax-maml", "jax-remat-maml"]


@pytest.fixture(scope="module")
def instance():
    return make_problem("cosmixture", {"shots": 5, "queries": 5, "tasks": 2, "width": 4}).instance(0, 0)


@pytest.mark.parametrize("peer", JAX_PEERS)
def test_options_that_came_later_are_named_only_where_they_are_given(peer):
    given = {"command_buffers": True} | ({} if peer == "diffrax" else {"unroll": 4})
    plain = create(peer, inner_steps=4, inner_lr=0.1)
    assert not set(given) & set(plain.options())
    assert {"inner_steps", "inner_lr"} < set(plain.options())
    assert create(peer, **plain.options(), **given).options() == plain.options() | given


class OnCuda(torch.Tensor):
    """θ that says that it is on CUDA."""

    device = property(lambda self: torch.device("cuda"))


def on_cuda(instance):
    problem, theta, tasks = instance
    return problem, theta.as_subclass(OnCuda), tasks


@pytest.fixture
def cuda_stand_in(monkeypatch):
    """JAX with the CPU in the place of a CUDA device."""
    devices, before = jax.devices, os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", before or "")  # put back afterwards
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    monkeypatch.setattr(jax, "devices", lambda kind: devices("cpu") if kind == "cuda" else devices(kind))
    yield jax
    jax.config.update("jax_default_matmul_precision", None)


@pytest.mark.parametrize("peer", JAX_PEERS)
def test_a_gradient_on_cuda_is_of_full_precision_with_command_buffers_or_without(instance, cuda_stand_in, peer):
    given = {"rtol": 1e-9, "atol": 1e-9} if peer == "diffrax" else {}
    expected = create(peer, inner_steps=STEPS, inner_lr=LR, **given).prepare(*instance)().grad
    assert cuda_stand_in.config.jax_default_matmul_precision is None
    for buffers in (False, True):  # whose names the installed XLA knows, or it would say so
        made = create(peer, inner_steps=STEPS, inner_lr=LR, command_buffers=buffers, **given)
        update = made.prepare(*on_cuda(instance))
        torch.testing.assert_close(update().grad, expected, rtol=1e-9, atol=1e-12)
    assert cuda_stand_in.config.jax_default_matmul_precision == "highest"
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_command_buffers_reach_the_compiler_of_that_program_alone(instance, cuda_stand_in, monkeypatch):
    monkeypatch.setitem(jax_model.COMMAND_BUFFERS, "xla_gpu_no_such_option", 1)
    create("jax-maml", inner_steps=1, inner_lr=0.1).prepare(*on_cuda(instance))
    with pytest.raises(RuntimeError, match="xla_gpu_no_such_option"):
        create("jax-maml", inner_steps=1, inner_lr=0.1, command_buffers=True).prepare(*on_cuda(instance))


def test_jax_without_the_device_is_bad_input(instance, monkeypatch):
    def none(kind):
        raise RuntimeError("Unknown backend cuda.\nAnd more.")

    made = create("jax-maml", inner_steps=1, inner_lr=0.1)
    words = r"has no CUDA backend \(Unknown backend cuda\); install `jax\[cuda13\]`"
    with monkeypatch.context() as patched:
        patched.setattr(jax, "devices", none)
        with pytest.raises(am.InputError, match=words):
            made.prepare(*on_cuda(instance))
    with pytest.raises(am.InputError, match="jax-maml runs on the CPU and on CUDA only"):
        jax_model.convert(made, instance[0], instance[1].to("meta"), instance[2])
    with pytest.raises(am.InputError, match="has command buffers on CUDA only"):
        create("jax-maml", inner_steps=1, inner_lr=0.1, command_buffers=True).prepare(*instance)
    assert made.prepare(*instance)().status == ("ok", "ok")  # and the CPU goes on


@pytest.mark.parametrize(
    ("peer", "options", "device", "convolves", "form"),
    [
        ("jax-maml", {}, "cpu", False, "map"),
        ("jax-maml", {}, "cpu", True, "unrolled"),
        ("jax-maml", {"unroll": 2}, "cpu", True, "map"),
        ("jax-maml", {}, "cuda", False, "vmap"),
        ("jax-maml", {}, "cuda", True, "vmap"),
        ("jax-maml", {"form": "map"}, "cuda", False, "map"),
        ("jax-remat-maml", {}, "cpu", True, "vmap"),
        ("jax-remat-maml", {}, "cuda", True, "vmap"),
    ],
)
def test_the_form_is_that_of_the_device(peer, options, device, convolves, form):
    layers = [nn.Conv2d(1, 1, 1), nn.Flatten()] if convolves else [nn.Linear(2, 1)]
    problem = am.MetaProblem(nn.Sequential(*layers).double(), mse_loss)
    assert create(peer, inner_steps=4, inner_lr=0.1, **options).form_on(device, problem) == form


@pytest.mark.parametrize(
    ("peer", "options", "passes"),
    [
        ("jax-maml", {}, [(4, 1)]),
        ("jax-maml", {"unroll": 2}, [(4, 2)]),
        ("jax-maml", {"form": "unrolled"}, [(4, 4)]),
        ("jax-remat-maml", {"unroll": 4}, [(4, 4)]),
        ("jax-remat-maml", {"unroll": 2, "segment": 2}, [(2, 1), (2, 2)]),
    ],
)
def test_unroll_is_of_the_scan_over_steps(instance, monkeypatch, peer, options, passes):
    seen, scan = set(), jax.lax.scan

    def spy(*arguments, **given):
        seen.add((given["length"], given["unroll"]))
        return scan(*arguments, **given)

    monkeypatch.setattr(jax.lax, "scan", spy)
    create(peer, inner_steps=4, inner_lr=0.1, **options).prepare(*instance)
    assert sorted(seen) == passes
