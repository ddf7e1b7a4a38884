import copy

import pytest
from torch import nn
from torch.nn.functional import mse_loss

import amaml_core as am


def test_auto_compiles_small_dense_networks_of_which_many_updates_are_planned():
    def chosen(model, **options):
        return am.MetaProblem(model, mse_loss, **options).engine

    small, large, conv = nn.Linear(3, 3), nn.Linear(200, 200), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    assert chosen(small) == "eager"
    assert chosen(small, planned_updates=199) == "eager"
    assert chosen(small, planned_updates=200) == "compiled"
    assert chosen(large, planned_updates=10_000) == "eager"
    assert chosen(conv, planned_updates=10_000) == "eager"
    assert chosen(conv, engine="compiled") == "compiled"


def test_an_unknown_engine_is_refused():
    problem = am.MetaProblem(nn.Linear(1, 1), mse_loss)
    with pytest.raises(
        am.InputError, match="engine='fast' is not available; choose one of auto, eager, graphed, compiled"
    ):
        problem.with_engine("fast")


def test_engines_do_not_share_what_they_compiled():
    problem = am.MetaProblem(nn.Linear(1, 1), mse_loss)
    other = problem.with_engine("compiled")
    assert other.model is problem.model
    assert other.compiled is not problem.compiled
    assert copy.copy(problem).engine == "eager"
