import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # the oracles, under every import mode of pytest

import oracles

MAKE = {"regression": oracles.regression, "classifier": oracles.classifier}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small matrices: threads only cost time, and bit-equal repeats want one order


@cache
def _shared(name: str, device: str) -> oracles.Case:
    return MAKE[name]().on(device)


@pytest.fixture(params=MAKE)
def case(request: pytest.FixtureRequest, device: str) -> oracles.Case:
    """Each of the two problems; shared by all tests, none of which may change it."""
    return _shared(request.param, device)


@pytest.fixture
def regression(device: str) -> oracles.Case:
    return _shared("regression", device)


@pytest.fixture(scope="session")
def flow_gradient() -> Callable[..., Tensor]:
    """The flow gradient of every task, by the oracle, worked out once."""
    known: dict[tuple, Tensor] = {}

    def gradients(case: oracles.Case, horizon: float, prox: float = 0.0) -> Tensor:
        key = (id(case), horizon, prox)
        if key not in known:
            known[key] = case.per_task(lambda s, q: oracles.flow_gradient(s, q, case.theta, horizon, prox))
        return known[key]

    return gradients


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
