"""Takes the place of a CUDA graph where there is no card.

It refuses reads while it captures, and a replay computes again from the captured arguments into the captured results.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amaml_core.engine import graphs


class NoReads(TorchDispatchMode):
    """Refuses what a capture refuses."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        return func(*args, **(kwargs or {}))


class StandIn:
    """Takes the place of ``graphs.record``; counts captures and replays."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, call):
        self.captures += 1
        call()
        with NoReads():
            outputs = call()

        def replay():
            self.replays += 1
            for output, value in zip(outputs, call(), strict=True):
                output.copy_(value)

        return graphs.Recording(replay, outputs)
