import torch

from amaml_core.engine.traced import tanh


def test_tanh_is_within_four_units_of_rounding_everywhere():
    x = torch.cat([torch.linspace(-12, 12, 1_000_001), 10 ** torch.linspace(-30, 0, 10_001)])
    exact = torch.tanh(x.double())
    error = ((tanh(x).double() - exact) / exact)[exact != 0].abs().max()
    assert error < 4 * torch.finfo(torch.float32).eps
    assert torch.isnan(tanh(torch.tensor([float("nan")]))).all()
    assert tanh(x.double()) is NotImplemented
