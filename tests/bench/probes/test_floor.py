import shutil

import pytest
import torch
from stand_ins import measured

from bench.probes import floor


def test_the_floor_counts_products_and_activations_and_nothing_else(make_cell, monkeypatch):
    monkeypatch.setattr("bench.probes.floor._seconds", lambda operator, *layout: PRICES.get(str(operator), 0.0))
    reptile = measured(make_cell, "floor", "reptile", inner_steps=3).metrics["floor_seconds"]
    assert reptile == 2 * 4  # two layers of tanh in each of three steps and in the query loss


def test_the_floor_shares_the_tasks_out_between_the_threads(make_cell, monkeypatch):
    monkeypatch.setattr("bench.probes.floor._seconds", lambda *layout: float(torch.get_num_threads()))
    before = torch.get_num_threads()
    floors = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        floors.append(measured(make_cell, "floor", "reptile", inner_steps=3).metrics["floor_seconds"])
    torch.set_num_threads(before)
    assert floors[1] == pytest.approx(floors[0] * 3 / 5)  # five tasks: three on one thread, two on the other


PRICES = {"aten.tanh.default": 1.0}


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="compiling needs a C++ compiler")
def test_the_floor_times_operators_on_inputs_of_their_own_layout():
    transposed = ("tensor", (2, 3, 4), (12, 1, 3))
    expanded = ("tensor", (2, 4, 5), (0, 5, 1))
    seconds = floor._seconds(torch.ops.aten.bmm.default, (transposed, expanded), torch.float32, "cpu")
    assert 0 <= seconds < 1e-2
