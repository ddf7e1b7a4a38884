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

from amaml_core.engine.block_matrices import STAND_IN, Block, Flat, NeededError, Sharing, UnsupportedError
from amaml_core.engine.block_operators import MOST_PRODUCTS, Writer

WARPS = 8  # of a block that has a task to itself
MOST_KERNELS = 24  # of a step
PRECISION = "tf32x3"  # of products there: see ``Sharing``
# Where the card holds all blocks at once what counts is how long one takes, else how many it holds.
FEW = Sharing(rows=16, light=MOST_PRODUCTS, small=(8, "ieee"), large=(8, "ieee"))
MANY = Sharing(rows=32, light=8, small=(4, "ieee"), large=(2, "tf32x3"))
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
        warps: of its blocks.
        rest: the step's results from its arguments and those of the last kernel.
    """

    kernels: list[tuple[str, int, int, int]]
    last: str
    shapes: list[tuple[int, ...]]
    warps: int
    rest: fx.GraphModule


def program(
    graph: fx.GraphModule, sizes: Sequence[tuple[int, ...]], data: Sequence[int], shared: Sharing | None
) -> Program:
    """A graph's kernels; arguments as for ``Writer``.

    Raises:
        UnsupportedError: an operator, a shape or a size has no place in a block.
    """
    known: dict[fx.Node, int] = {}
    kernels: list[tuple[str, int, int, int]] = []
    heavy: set[fx.Node] = set()
    while True:
        try:
            writer = Writer(graph, sizes, data, shared, known)
            shapes, rest = _last(graph, writer)
            return Program(kernels, _text(writer, shared), shapes, _manner(writer, shared)[0], rest)
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
            if shared and writer.products > shared.light and target not in heavy:
                heavy.add(target)
                continue
            pieces = value.pieces if isinstance(value, Flat) else [value]
            known[target] = writer.parts if any(one.kind == "sum" for one in pieces) else 1
            writer.store(0, math.prod(shape), value, shape)
            text, (warps, _) = _text(writer, shared), _manner(writer, shared)
            kernels.append((text, math.prod(shape), known[target], warps))


def _last(graph: fx.GraphModule, writer: Writer) -> tuple[list[tuple[int, ...]], fx.GraphModule]:
    """The kernel that writes the results: their shapes, and what follows it."""
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
    return shapes, fx.GraphModule(graph, rest)


def _manner(writer: Writer, shared: Sharing | None) -> tuple[int, str]:
    """Warps and precision of a kernel."""
    if shared is None:
        return WARPS, PRECISION
    return shared.small if writer.products <= shared.light else shared.large


def _text(writer: Writer, shared: Sharing | None) -> str:
    given = [node for node in writer.known if node is not writer.target]
    names = [f"in{i}" for i in range(len(writer.inputs))] + [f"sum{i}" for i in range(len(given))] + ["out"]
    left = [f"left = tl.minimum({writer.examples} - part * {writer.own}, {writer.own})"] if writer.parts > 1 else []
    body = "\n    ".join([*left, *writer.index, *writer.lines])
    _, precision = _manner(writer, shared)
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
    place, axis = next((i, axis) for i, axis in enumerate(axes) if axis is not None)
    tasks = examples[place].shape[axis]
    try:
        longest = max((examples[i].shape[1] for i in data if examples[i].ndim > 1), default=0)
        few = tasks * -(-longest // FEW.rows) <= _multiprocessors(examples[0])
        made = program(traced, sizes, data, FEW if few else MANY)
    except UnsupportedError:
        made = program(traced, sizes, data, None)
    kernels = [(PyCodeCache.load(text).kernel, *others) for text, *others in made.kernels]
    last, lengths = PyCodeCache.load(made.last).kernel, [math.prod(shape) for shape in made.shapes]

    def run(*arguments: Tensor) -> tuple[Tensor, ...]:
        tasks, empty = arguments[place].shape[axis], arguments[place].new_empty
        written: list[Tensor] = []
        for kernel, length, parts, warps in kernels:
            out = empty(parts * tasks * length)
            kernel[(tasks, parts)](*arguments, *written, out, tasks, num_warps=warps)
            written.append(out)
        out = empty(tasks * sum(lengths))
        last[(tasks, 1)](*arguments, *written, out, tasks, num_warps=made.warps)
        found = out.split([tasks * length for length in lengths])
        return made.rest(*arguments, *(one.view(tasks, *shape) for one, shape in zip(found, made.shapes, strict=True)))

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


def _multiprocessors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def axis(tensor: Tensor, batch: int) -> int | None:
    """The axis of tasks among a step's arguments: the first, but the second of what several steps stack; else none."""
    if tensor.ndim == 3:
        return 1
    return 0 if tensor.ndim and len(tensor) == batch else None
