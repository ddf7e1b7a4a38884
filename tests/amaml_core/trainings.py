"""A short training, as the tests of the outer loop and of its checkpoints make it."""

import multiprocessing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from oracles import Case

import amaml_core as am

SGD = partial(torch.optim.SGD, lr=0.05)


def maml(steps: int = 2, lr: float = 0.05) -> am.MetaGradientMethod:
    return am.create_method("maml", inner_steps=steps, inner_lr=lr)


def go(
    case: Case, updates: int = 12, size: int = 2, seed: int = 0, method: am.MetaGradientMethod | None = None, **rest
):
    batch = rest.pop("batch", am.batches(case.tasks, size, seed))
    return am.train(method or maml(), case.problem, batch, updates=updates, meta=case.theta, **rest)


def same(a: am.Training, b: am.Training) -> bool:
    return torch.equal(a.theta, b.theta) and torch.equal(a.losses, b.losses) and a.status == b.status


# processes are forked from one that has imported torch, which would take each of them two seconds
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["amaml_core", "scipy.integrate"])


class Apart(FORKS.Process):
    """A training of 90 updates in a process of its own, with a checkpoint after every seventh, or with none."""

    def __init__(self, directory: Path | None) -> None:
        self.told, theirs = FORKS.Pipe(duplex=False)
        super().__init__(target=_train, args=(directory, theirs))
        self.start()
        theirs.close()

    def hear(self) -> torch.Tensor:
        """The θ that it ends with."""
        theta = torch.tensor(self.told.recv(), dtype=torch.float64)
        self.join()
        return theta


def _train(directory: Path | None, told: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 120, dtype=torch.float64).view(6, 10, 2)
    y = x.prod(-1, keepdim=True)
    pool = am.TaskBatch(x, y, x + 0.1, y)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    problem = am.MetaProblem(model, torch.nn.functional.mse_loss)
    method = am.create_method("amaml", inner_steps=2, inner_lr=0.05, forward="rk4", backward="rk4")
    out = am.train(method, problem, am.batches(pool, 3, 0), updates=90, directory=directory, every=7)
    told.send(out.theta.tolist())
