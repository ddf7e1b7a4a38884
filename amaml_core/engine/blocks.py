"""Steps of small networks as Triton kernels: a thread block or a few a task, from first operator to last.

A step's graph of operators becomes the source of a kernel. What belongs to a task is a few matrices, which stay in
the registers and the shared memory of its block; flat vectors of parameters are kept as the matrices that they are made
of. Gradients and Hessian-vector products are sums over the examples: several blocks share a task's examples, and
whoever needs such a sum adds their parts, always in the same order. Then a step is a kernel for each of its sums, each
of which begins with what comes in between, unless it holds so much that a kernel before does that. What joins tasks,
such as an error norm's maximum, comes last, as ordinary operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from amaml_core.engine.block_matrices import STAND_IN, Block, Flat, NeededError, UnsupportedError
from amaml_core.engine.block_operators import Writer

WARPS = 8  # of a block that has a task to itself
MOST_KERNELS = 24  # of a step
LIGHT = 8  # products up to which a kernel of shared examples holds little enough for what comes before it too
# Warps of a block that shares its task, and how float32 is multiplied: in full, or where that takes more registers than
# there are, by the matrix units in three passes, which leave an error of rounding.
LIGHT_KERNEL, HEAVY_KERNEL = (4, "ieee"), (2, "tf32x3")
CLOSE = 1e-3  # results to those of the operators one by one, at the first arguments


HEADER = """import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit(do_not_specialize={names}, do_not_specialize_on_alignment={names})
def kernel({arguments}, tasks):
    task = tl.program_id(0)
    part = tl.program_id(1)
    {body}
"""


@dataclass(frozen=True)
class Program:
    """A step as kernels and what follows.

    Attributes:
        kernels: those before the last one: the text, numbers of a task, parts, warps.
        last: the kernel that writes the results.
        shapes: of these, without the axis of tasks.
        parts: blocks that share a task.
        rest: the step's results from its arguments and those of the last kernel.
    """

    kernels: list[tuple[str, int, int, int]]
    last: str
    shapes: list[tuple[int, ...]]
    parts: int
    rest: fx.GraphModule


def program(graph: fx.GraphModule, sizes: Sequence[tuple[int, ...]], data: Sequence[int], shared: bool) -> Program:
    """A graph's kernels; arguments as for ``Writer``.

    Raises:
        UnsupportedError: an operator, a shape or a size has no place in a block.
    """
    known: dict[fx.Node, int] = {}
    kernels: list[tuple[str, int, int, int]] = []
    heavy: set[fx.Node] = set()
    while True:
        try:
            last, shapes, parts, rest = _last(graph, Writer(graph, sizes, data, shared, known))
            return Program(kernels, last, shapes, parts, rest)
        except NeededError as needed:
            target = needed.node
        while target not in known:
            writer = Writer(graph, sizes, data, shared, known, target, target in heavy)
            try:
                value, shape = writer.loaded(target), writer.own_shape(target)
            except NeededError as needed:
                if needed.node is target or len(kernels) == MOST_KERNELS:
                    raise UnsupportedError("sums over examples that need each other") from None
                target = needed.node
                continue
            if writer.products > LIGHT and target not in heavy:
                heavy.add(target)
                continue
            pieces = value.pieces if isinstance(value, Flat) else [value]
            known[target] = writer.parts if any(one.kind == "sum" for one in pieces) else 1
            writer.store(0, math.prod(shape), value, shape)
            warps = (LIGHT_KERNEL if writer.products <= LIGHT else HEAVY_KERNEL)[0]
            kernels.append((_text(writer), math.prod(shape), known[target], warps))


def _last(graph: fx.GraphModule, writer: Writer) -> tuple[str, list[tuple[int, ...]], int, fx.GraphModule]:
    """The kernel that writes the results: its text, their shapes, the parts of a task, and what follows."""
    (results,) = next(node for node in graph.graph.nodes if node.op == "output").args
    written: dict[fx.Node, Block | Flat] = {}
    late: dict[fx.Node, None] = {}

    def want(node: Any) -> None:
        """Have the kernel write a node, or what it is made of where it joins tasks."""
        if node in written or node in late or node.op == "placeholder":
            return
        shape = node.meta["val"].shape
        if shape[:1] == (STAND_IN,):
            if node.meta["val"].dtype != torch.float32:
                raise UnsupportedError("results that are no numbers")
            value = writer.loaded(node)
            if any(one.kind == "sum" for one in (value.pieces if isinstance(value, Flat) else [value])):
                raise NeededError(node)
            written[node] = value
            return
        if node.op != "call_function" or any(STAND_IN in arg for arg in node.args if isinstance(arg, list | tuple)):
            raise UnsupportedError("a result in another order")
        for one in node.all_input_nodes:
            want(one)
        late[node] = None

    for node in results:
        want(node)
    if not written:
        raise UnsupportedError("no result of its own")
    shapes, start = [writer.own_shape(node) for node in written], 0
    total = sum(map(math.prod, shapes))
    for value, shape in zip(written.values(), shapes, strict=True):
        writer.store(start, total, value, shape)
        start += math.prod(shape)
    rest = fx.Graph()
    known = {node: rest.placeholder(node.name) for node in (*writer.inputs, *written)}
    for node in late:
        known[node] = rest.node_copy(node, known.__getitem__)
    rest.output(tuple(known[node] for node in results))
    return _text(writer), shapes, writer.parts, fx.GraphModule(graph, rest)


def _text(writer: Writer) -> str:
    given = [node for node in writer.known if node is not writer.target]
    names = [f"in{i}" for i in range(len(writer.inputs))] + [f"sum{i}" for i in range(len(given))] + ["out"]
    left = [f"left = tl.minimum({writer.examples} - part * {writer.own}, {writer.own})"] if writer.parts > 1 else []
    body = "\n    ".join([*left, *writer.index, *writer.lines])
    _, precision = LIGHT_KERNEL if writer.parts > 1 and writer.products <= LIGHT else HEAVY_KERNEL
    return HEADER.format(
        names=[*names, "tasks"], arguments=", ".join(names), body=body.replace("PRECISION", f'"{precision}"')
    )


def build(
    function: Callable[..., Sequence[Tensor]],
    examples: Sequence[Tensor],
    axes: Sequence[int | None],
    sizes: Sequence[tuple[int, ...]],
    data: Sequence[int],
) -> Callable[..., tuple[Tensor, ...]]:
    """A pure function of tensors as kernels, and what joins tasks after them.

    Args:
        function: as ``inductor.compile_function`` takes it.
        examples: its arguments, contiguous float32.
        axes: of each argument the axis of tasks, or None.
        sizes: shapes of the adapted parameters.
        data: which of the arguments hold examples along their second axis.

    Raises:
        UnsupportedError: it does not fit.
    """
    from torch._decomp import core_aten_decompositions
    from torch._inductor.codecache import PyCodeCache
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    if any(example.dtype != torch.float32 for example in examples):
        raise UnsupportedError("other numbers than float32")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [
            mode.from_tensor(example)
            if axis is None
            else torch.empty(
                [STAND_IN if place == axis else length for place, length in enumerate(example.shape)],
                device=example.device,
            )
            for example, axis in zip(examples, axes, strict=True)
        ]
        table: Any = core_aten_decompositions()
        traced = make_fx(lambda *arguments: tuple(function(*arguments)), decomposition_table=table)(*fakes)
    if any(node.op == "get_attr" for node in traced.graph.nodes):
        raise UnsupportedError("a tensor that is closed over")
    traced.graph.eliminate_dead_code()
    try:
        made = program(traced, sizes, data, shared=True)
    except UnsupportedError:
        made = program(traced, sizes, data, shared=False)
    kernels = [(PyCodeCache.load(text).kernel, *others) for text, *others in made.kernels]
    last, lengths = PyCodeCache.load(made.last).kernel, [math.prod(shape) for shape in made.shapes]
    place, axis = next((i, axis) for i, axis in enumerate(axes) if axis is not None)

    def run(*arguments: Tensor) -> tuple[Tensor, ...]:
        tasks, empty = arguments[place].shape[axis], arguments[place].new_empty
        written: list[Tensor] = []
        for kernel, length, parts, warps in kernels:
            out = empty(parts * tasks * length)
            kernel[(tasks, parts)](*arguments, *written, out, tasks, num_warps=warps)
            written.append(out)
        out = empty(tasks * sum(lengths))
        last[(tasks, 1)](*arguments, *written, out, tasks, num_warps=LIGHT_KERNEL[0] if made.parts > 1 else WARPS)
        found = out.split([tasks * length for length in lengths])
        return made.rest(*arguments, *(one.view(tasks, *shape) for one, shape in zip(found, made.shapes, strict=True)))

    tasks = examples[place].shape[axis]
    written = tasks * max(sum(lengths), *(parts * length for _, length, parts, _ in made.kernels), 0)
    if max(written, *(example.numel() for example in examples)) >= 2**31:
        raise UnsupportedError("more numbers than an index of 32 bits tells apart")
    for found, expected in zip(run(*examples), function(*examples), strict=True):
        # what joins tasks judges a step, by differences that cancel
        within = CLOSE if found.shape[:1] == (tasks,) else 10 * CLOSE
        size = float(expected.abs().nan_to_num().max())
        if not torch.allclose(found, expected, rtol=within, atol=within * size, equal_nan=True):
            raise UnsupportedError("other results than those of the operators")
    return run


def axis(tensor: Tensor, batch: int) -> int | None:
    """The axis of tasks among a step's arguments: the first, but the second of what several steps stack; else none."""
    if tensor.ndim == 3:
        return 1
    return 0 if tensor.ndim and len(tensor) == batch else None
