"""Your problem for `amaml-bench profile THIS_FILE.py:my_problem`: change the model, the loss and the tasks.

It runs in processes of its own, which see of your environment variables only those whose names begin with AMAML_BENCH_.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import amaml_core as am

WAYS, SHOTS, QUERIES, TASKS = 5, 5, 5, 4


def my_problem():
    """Return the problem and its task sampler."""
    # Any nn.Module; its own values are the start. No active dropout, no running BatchNorm statistics.
    # With smooth activations the distance to the flow's gradient can be told; with ReLU only to the unrolled one's.
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, WAYS),
    )
    # any loss(prediction, target) -> scalar; adapt=r"5\..*" would adapt the last layer only
    problem = am.MetaProblem(model, cross_entropy)
    return problem, sample_tasks


def sample_tasks(seed):
    """Return a batch of tasks of the size that you train with. Here: images that are noisy copies of one per class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(TASKS, WAYS, 1, 1, 16, 16, generator=generator)
    noise = torch.randn(TASKS, WAYS, SHOTS + QUERIES, 1, 16, 16, generator=generator)
    images = classes + noise
    labels = torch.arange(WAYS).view(1, WAYS, 1).expand(TASKS, WAYS, SHOTS + QUERIES)
    return am.TaskBatch(
        support_x=images[:, :, :SHOTS].flatten(1, 2),  # [tasks, points, ...]
        support_y=labels[:, :, :SHOTS].flatten(1, 2),
        query_x=images[:, :, SHOTS:].flatten(1, 2),
        query_y=labels[:, :, SHOTS:].flatten(1, 2),
    )
