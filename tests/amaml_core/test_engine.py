"""Compiled and eager are the same numbers to rounding; what cannot be compiled says so."""

import shutil

import oracles
import pytest
import torch

import amaml_core as am

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="the compiled engine needs a C++ compiler"
)

METHODS = {
    "maml": ("maml", {}),
    "remat-maml": ("remat-maml", {"segment": 4}),
    "reptile": ("reptile", {}),
    "imaml": ("imaml", {"lam": 3.0}),
    "imaml-hf": ("imaml", {"variant": "paper-hf", "newton_steps": 3}),
    "amaml-euler": ("amaml", {"forward": "euler", "backward": "euler"}),
    "amaml-checkpoint": ("amaml", {"forward": "euler", "backward": "euler", "checkpoint": "sqrt"}),
    "amaml-rk43": ("amaml", {"forward": "rk43", "backward": "rk4", "num_states": "accepted", "prox": 0.5}),
    "amaml-dopri5": ("amaml", {"num_states": 6}),
}


@pytest.fixture(scope="module")
def compiled():
    """The regression case, whose problem compiles each step once for all tests of this file."""
    case = oracles.regression()
    return case, case.problem.with_engine("compiled")


@needs_compiler
@pytest.mark.parametrize("name", METHODS)
def test_compiled_equals_eager(compiled, name):
    case, problem = compiled
    method, options = METHODS[name]
    made = am.create_method(method, inner_steps=13, inner_lr=0.05, **options)
    eager = made.meta_gradient(case.problem, case.theta, case.tasks)
    found = made.meta_gradient(problem, case.theta, case.tasks)
    assert torch.allclose(found.task_grads, eager.task_grads, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.adapted, eager.adapted, rtol=1e-10, atol=1e-12)
    assert found.status == eager.status
    shared = {key: value for key, value in eager.stats.items() if key != "linearizations"}
    assert {key: found.stats[key] for key in shared} == shared
