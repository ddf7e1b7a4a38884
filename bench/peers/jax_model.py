"""For the peers that run in JAX: torch's models and losses as functions of flat parameters, and a compiled update.

On CUDA matrix products and convolutions are of precision "highest", full float32 as torch's matrix products are; JAX's
default there is TF32.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import amaml_core as am
from amaml_core.errors import first_line
from bench.peers.base import Peer, PeerGradient, imported

Apply = Callable[[Any, Any], Any]
"""(flat parameters u ``[d]``, input ``[n, ...]``) -> output ``[n, ...]``, of JAX's arrays."""
Take = Callable[[Tensor | None], Callable[[Any], Any]]
"""A parameter of the model -> the function that reads it from u; of a parameter that is not there, a zero."""

ADDED = {"command_buffers": False, "unroll": 1}  # options that came later: named where they are not at their default
COMMAND_BUFFERS = {
    # XLA's own choice and WHILE, without which no loop is in a command buffer; names that jaxlib 0.10 to 0.11 know
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
    "xla_gpu_graph_min_graph_size": 1,
}


@dataclass(frozen=True, kw_only=True)
class JaxPeer(Peer):
    """A peer that runs in JAX.

    Attributes:
        command_buffers: CUDA only: XLA makes command buffers (CUDA graphs) of loops and of single kernels too. By
            default it makes them of five kernels or more, inside the loops.
    """

    command_buffers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.command_buffers, bool):
            raise am.InputError(f"command_buffers={self.command_buffers!r} is neither true nor false.")

    def options(self) -> dict[str, Any]:
        """See ``Estimator.options``; those in ``ADDED`` only where they are not at their default."""
        return {key: value for key, value in super().options().items() if key not in ADDED or value != ADDED[key]}


@dataclass(frozen=True)
class JaxProblem:
    """A problem and its tasks in JAX.

    Attributes:
        jax: the module.
        inner_loss: (u ``[d]``, x, y) -> L_tr of one task.
        outer_loss: the same for L_val.
        theta: θ, ``[d]``.
        tasks: support_x, support_y, query_x, query_y, each ``[B, n, ...]``.
    """

    jax: Any
    inner_loss: Callable[[Any, Any, Any], Any]
    outer_loss: Callable[[Any, Any, Any], Any]
    theta: Any
    tasks: tuple[Any, Any, Any, Any]


def convert(peer: JaxPeer, problem: am.MetaProblem, theta: Tensor, tasks: am.TaskBatch) -> JaxProblem:
    """The same problem in JAX on θ's device, for this peer.

    Raises:
        InputError: JAX is not installed or has no such device, an option is not for it, or a layer or a loss has no
            counterpart here.
    """
    jax = imported("jax")
    device = _device(jax, peer, theta.device)
    jax.config.update("jax_enable_x64", theta.dtype == torch.float64)  # else float64 would be cut to float32
    apply = _network(jax, problem.model)
    losses = [_loss(jax, loss, apply, tasks) for loss in (problem.inner_loss, problem.outer_loss)]
    data = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    arrays = [jax.numpy.array(value.detach().cpu().numpy(), device=device) for value in (theta, *data)]
    return JaxProblem(jax, losses[0], losses[1], arrays[0], (arrays[1], arrays[2], arrays[3], arrays[4]))


def _device(jax: Any, peer: JaxPeer, device: torch.device) -> Any:
    # the settings hold for the process: one cell a worker
    if device.type == "cpu":
        if peer.command_buffers:  # the same program would be measured under two names
            raise am.InputError(f"{peer.name} has command buffers on CUDA only; use --device cuda, or leave them out.")
        jax.config.update("jax_platforms", "cpu")  # else JAX would pick a GPU that it finds
        return jax.devices("cpu")[0]
    if device.type != "cuda":
        raise am.InputError(f"{peer.name} runs on the CPU and on CUDA only; use --device cpu or --device cuda.")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # read at JAX's start; else it takes 3/4 of a card
    jax.config.update("jax_platforms", "cuda,cpu")
    try:
        found = jax.devices("cuda")
    except RuntimeError as error:
        told = first_line(error).rstrip(".")
        raise am.InputError(
            f"The JAX that is installed has no CUDA backend ({told}); install `jax[cuda13]`, or use --device cpu."
        ) from error
    jax.config.update("jax_default_matmul_precision", "highest")
    return found[device.index or 0]


@dataclass(frozen=True)
class JaxUpdate:
    """One outer update, compiled.

    Attributes:
        run: the executable.
        arguments: what it is called with.
        remedy: for tasks that the executable calls unsolved.
        allocated_bytes: temporaries and results as the compiler laid them out, on either device, since nothing else can
            read JAX's allocator on the CPU; scratch space inside a library's kernel is not in it.
    """

    run: Callable[..., Any] = field(repr=False)
    arguments: tuple[Any, ...] = field(repr=False)
    remedy: str
    allocated_bytes: int

    def __call__(self) -> PeerGradient:
        """Run it, to the end: the results are waited for, and copied to the host."""
        # copied on the CPU too, for torch warns of arrays that it could not write to
        losses, grads, solved = (torch.from_numpy(np.array(value)) for value in self.run(*self.arguments))
        out = PeerGradient.of(grads, losses)
        failed = am.Status("diverged", self.remedy)
        status = (told if fine else failed for told, fine in zip(out.status, solved.tolist(), strict=True))
        return PeerGradient(out.grad, out.query_loss, tuple(status))


def compiled(peer: JaxPeer, made: JaxProblem, update: Callable[..., Any], remedy: str = "") -> JaxUpdate:
    """``update(theta, *tasks) -> (query_loss [B], task_grads [B, d], solved [B])``, compiled for these shapes."""
    arguments = (made.theta, *made.tasks)
    # options of this one program: a name that XLA does not know is an exception here, but ends the process in XLA_FLAGS
    settings = COMMAND_BUFFERS if peer.command_buffers else None
    executable = made.jax.jit(update).lower(*arguments).compile(compiler_options=settings)
    memory = executable.memory_analysis()
    return JaxUpdate(executable, arguments, remedy, memory.temp_size_in_bytes + memory.output_size_in_bytes)


def _loss(jax: Any, loss: Callable[..., Any], apply: Apply, tasks: am.TaskBatch) -> Callable[[Any, Any, Any], Any]:
    np = jax.numpy
    if loss is mse_loss:
        return lambda u, x, y: np.mean(np.square(apply(u, x) - y))
    if loss is cross_entropy and not tasks.support_y.is_floating_point() and tasks.support_y.ndim == 2:

        def classify(u: Any, x: Any, y: Any) -> Any:
            told = jax.nn.log_softmax(apply(u, x))
            return -np.mean(np.sum(told * jax.nn.one_hot(y, told.shape[-1], dtype=told.dtype), -1))

        return classify
    name = getattr(loss, "__name__", type(loss).__name__)
    raise am.InputError(
        f"The loss {name} has no JAX counterpart here; use mse_loss, or cross_entropy with class indices."
    )


def _network(jax: Any, model: nn.Module) -> Apply:
    slots: dict[int, tuple[int, torch.Size]] = {}
    start = 0
    for value in model.parameters():
        slots[id(value)] = (start, value.shape)
        start += value.numel()

    def take(value: Tensor | None) -> Callable[[Any], Any]:
        if value is None:
            return lambda u: 0.0
        at, shape = slots[id(value)]
        return lambda u: u[at : at + math.prod(shape)].reshape(shape)

    def made(module: nn.Module, name: str) -> list[Apply]:
        if type(module) is nn.Sequential:
            return [layer for key, child in module.named_children() for layer in made(child, f"{name}{key}.")]
        if type(module) not in LAYERS:  # a subclass may compute anything
            raise _unknown(module, name)
        layer = LAYERS[type(module)](jax, module, take)
        if layer is None:
            raise _unknown(module, name)
        return [layer]

    layers = made(model, "")

    def apply(u: Any, x: Any) -> Any:
        if x.ndim == 4:  # JAX's own layers have the channels last, for which its convolutions are faster
            x = x.transpose(0, 2, 3, 1)
        for layer in layers:
            x = layer(u, x)
        if x.ndim == 4:
            raise am.InputError("The model's output is a picture; end it with nn.Flatten and nn.Linear.")
        return x

    return apply


def _unknown(module: nn.Module, name: str) -> am.InputError:
    known = ", ".join(kind.__name__ for kind in LAYERS)
    return am.InputError(
        f"{module} at {name.rstrip('.') or 'the top'!r} has no JAX counterpart here; "
        f"use nn.Sequential of {known} with their common options."
    )


def _elementwise(function: Callable[[Any], Any]) -> Apply:
    return lambda u, x: function(x)


def _linear(jax: Any, module: nn.Linear, take: Take) -> Apply:
    weight, bias = take(module.weight), take(module.bias)

    def apply(u: Any, x: Any) -> Any:
        if x.ndim == 4:
            raise am.InputError("The model has nn.Linear on a picture; put nn.Flatten before it.")
        return x @ weight(u).T + bias(u)

    return apply


def _softplus(jax: Any, module: nn.Softplus, take: Take) -> Apply:
    beta, threshold, np = module.beta, module.threshold, jax.numpy
    return _elementwise(lambda x: np.where(beta * x > threshold, x, jax.nn.softplus(beta * x) / beta))


def _conv(jax: Any, module: nn.Conv2d, take: Take) -> Apply | None:
    if module.padding_mode != "zeros":
        return None
    weight, bias = take(module.weight), take(module.bias)
    padding = module.padding.upper() if isinstance(module.padding, str) else [(side, side) for side in module.padding]

    def apply(u: Any, x: Any) -> Any:
        out = jax.lax.conv_general_dilated(
            x,
            weight(u).transpose(2, 3, 1, 0),
            module.stride,
            padding,
            rhs_dilation=module.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=module.groups,
        )
        return out + bias(u)

    return apply


def _batch_norm(jax: Any, module: nn.BatchNorm2d, take: Take) -> Apply | None:
    if module.track_running_stats:
        return None
    weight, bias = take(module.weight), take(module.bias)

    def apply(u: Any, x: Any) -> Any:
        scale = jax.lax.rsqrt(x.var((0, 1, 2)) + module.eps) * (weight(u) if module.affine else 1.0)
        return (x - x.mean((0, 1, 2))) * scale + bias(u)

    return apply


def _average(jax: Any, module: nn.AvgPool2d, take: Take) -> Apply | None:
    if module.ceil_mode or not module.count_include_pad or module.divisor_override is not None:
        return None
    size, stride, padding = (_pair(value) for value in (module.kernel_size, module.stride, module.padding))

    def pool(x: Any) -> Any:
        pads = [(0, 0), *((side, side) for side in padding), (0, 0)]
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, *size, 1), (1, *stride, 1), pads) / math.prod(size)

    return _elementwise(pool)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _flatten(jax: Any, module: nn.Flatten, take: Take) -> Apply | None:
    if (module.start_dim, module.end_dim) != (1, -1):
        return None

    def flatten(x: Any) -> Any:
        return (x.transpose(0, 3, 1, 2) if x.ndim == 4 else x).reshape(x.shape[0], -1)

    return _elementwise(flatten)


LAYERS: dict[type[nn.Module], Callable[[Any, Any, Take], Apply | None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _average,
    nn.Flatten: _flatten,
    nn.Tanh: lambda jax, module, take: _elementwise(jax.numpy.tanh),
    nn.ReLU: lambda jax, module, take: _elementwise(jax.nn.relu),
    nn.GELU: lambda jax, module, take: _elementwise(lambda x: jax.nn.gelu(x, approximate=module.approximate == "tanh")),
    nn.Softplus: _softplus,
}
