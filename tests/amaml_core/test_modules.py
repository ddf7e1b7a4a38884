"""Every kind of module through every method: right against plainly trained models, or refused in one sentence."""

from __future__ import annotations

import warnings

import pytest
import torch
from plain import Plain, slope
from torch import Tensor
from zoo import ZOO, Animal

import amaml_core as am
from amaml_core.engine import inductor

STEPS, LR, LAM = 3, 0.05, 20.0
OPTIONS = {
    "maml": {},
    "remat-maml": {"segment": 2},
    "fomaml": {},
    "reptile": {},
    "imaml": {"lam": LAM, "cg_steps": 200, "cg_tol": 1e-12},
    "amaml": {"forward": "rk4", "backward": "discrete"},
}
# torch's own, of TorchScript, on the way to torch.compile
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:.*weight_norm:FutureWarning")
LENGTHS = (1e-3, 1e-4, 1e-5, 1e-6)  # of differences: a kink within one of them is passed over by another


def gradient(animal: Animal, name: str, engine: str) -> tuple[am.MetaProblem, Tensor, am.MetaGradient]:
    model, loss = animal.made()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", am.ModelWarning)
        problem = am.MetaProblem(model, loss, engine=engine, adapt=animal.adapt)
        theta = problem.initial_parameters()
        tasks = animal.tasks()
        kept = {key: value.clone() for key, value in [*tasks.tensors().items(), *model.state_dict().items()]}
        found = am.create_method(name, inner_steps=STEPS, inner_lr=LR, **OPTIONS[name])
        out = found.meta_gradient(problem, theta, tasks)
    now = tasks.tensors() | model.state_dict()
    assert all(torch.equal(value, now[key]) for key, value in kept.items())
    return problem, theta, out


def error(animal: Animal, name: str, problem: am.MetaProblem, theta: Tensor, out: am.MetaGradient) -> float:
    """How far each task's gradient is from what plainly trained models tell, relative, the largest."""
    plain = Plain(*animal.made(), problem.names, animal.tasks())
    worst = 0.0
    for task, mine in enumerate(out.task_grads):

        def judged(start: Tensor, task: int = task) -> float:
            end = (
                plain.rk4(start, task, STEPS, STEPS * LR) if name == "amaml" else plain.trained(start, task, STEPS, LR)
            )
            with torch.no_grad():
                return float(plain.value(end, task, "query"))

        if name in ("maml", "remat-maml", "amaml"):
            for seed in range(2):
                signs = 2 * torch.randint(2, mine.shape, generator=torch.Generator().manual_seed(seed)) - 1
                v = signs * (mine != 0).double()  # torch's rule holds a padding row, however the loss depends on it
                found = slope(judged, theta, v)
                worst = max(worst, min(abs(found(h) - float(mine @ v)) for h in LENGTHS) / float(mine.norm()))
            continue
        if name == "imaml":
            right = plain.implicit(theta, task, STEPS, LR, LAM)
        else:
            end = plain.trained(theta, task, STEPS, LR)
            right = theta - end if name == "reptile" else plain.gradient(end, task, "query")
        worst = max(worst, float((mine - right).norm() / right.norm()))
    return worst


def verdict(animal: Animal, name: str, engine: str) -> str:
    """The error, or the sentence that refuses."""
    try:
        return f"{error(animal, name, *gradient(animal, name, engine)):.0e}"
    except am.InputError as refusal:
        return str(refusal)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ZOO)
def test_right_or_refused(kind: str, name: str) -> None:
    animal = ZOO[kind]
    if refused := animal.refused.get(name) or animal.refused.get(""):
        with pytest.raises(am.InputError, match=refused):
            gradient(animal, name, "eager")
        return
    assert error(animal, name, *gradient(animal, name, "eager")) < 1e-8


@pytest.mark.parametrize("kind", ZOO)
def test_traces_are_right_or_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiled engine makes of a module, but for the last step: the traced graph runs as it is."""
    monkeypatch.setattr(inductor, "_build", lambda graph, examples: graph)
    animal = ZOO[kind]
    if refused := animal.refused.get("maml") or animal.refused.get(""):
        with pytest.raises(am.InputError, match=refused):
            gradient(animal, "maml", "compiled")
        return
    if not animal.compiled and kind != "number out of a tensor":  # of which the trace is right
        with pytest.raises(am.InputError, match='engine="compiled" fails here'):
            gradient(animal, "maml", "compiled")
        return
    assert error(animal, "maml", *gradient(animal, "maml", "compiled")) < 1e-8


@pytest.mark.parametrize("kind", [kind for kind, animal in ZOO.items() if not animal.refused])
def test_checks_pass(kind: str) -> None:
    animal = ZOO[kind]
    model, loss = animal.made()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", am.ModelWarning)
        problem = am.MetaProblem(model, loss, adapt=animal.adapt)
        found = am.check(problem, problem.initial_parameters(), animal.tasks())
    assert found.dtype == torch.float64
    assert found.autograd_error < 1e-10
    assert found.slope_error < 1e-5
    assert found.product_error is not None
    assert found.product_error < 1e-4
