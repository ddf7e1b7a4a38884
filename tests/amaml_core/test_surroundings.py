import torch
from torch import nn

from amaml_core.surroundings import by_parts, put_back, snapshot


def test_torchs_own_weight_norm_is_worked_out_by_parts():
    """Of torch's fused operator the second derivative is wrong, by torch's own ``gradgradcheck``."""
    v, g = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    points = v.requires_grad_(), g.requires_grad_()
    fused = lambda v, g: torch._weight_norm(v, g, 0).sin()  # noqa: E731
    assert not torch.autograd.gradgradcheck(fused, points, raise_exception=False)
    with by_parts():
        assert torch.autograd.gradgradcheck(fused, points)


def test_attributes_are_put_back():
    model = nn.Sequential(nn.Linear(1, 1))
    kept = snapshot(model)
    assert not put_back(kept)
    model[0].extra, model.training = 1, False
    assert put_back(kept)
    assert not hasattr(model[0], "extra")
    assert model.training
