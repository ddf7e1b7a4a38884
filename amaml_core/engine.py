"""Pure functions of tensors, compiled: traced together with the derivatives in them, then built by inductor.

``torch.compile`` cannot look through a double backward pass, so that the functions are traced below autograd
(``make_fx``): a whole solver step with all its gradients and products becomes one flat graph of operators.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from threading import RLock, current_thread
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from amaml_core.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
Compiled = Callable[..., tuple[Tensor, ...]]
BUDGET = 12  # gradients or products in one compiled call: they hide the call's own cost and compile in seconds
CPU_OPTIONS = {
    "cpp_wrapper": True,
    "compile_threads": 1,
    "realize_opcount_threshold": 30,  # so that a tanh with several uses is worked out once; the default repeats it
}

THREADS = "amaml_core"  # what the names of our threads begin with
one_at_a_time = RLock()
"""Held while compiling, and while a module is called with other parameters: neither is made for several threads."""

seconds = 0.0
"""Seconds that this process has spent compiling."""


def compile_function(function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]) -> Compiled:
    """A pure function of tensors, compiled for the shapes, dtypes and device of the examples; its results in a tuple.

    Raises:
        InputError: there is no C++ compiler, or it cannot be traced or compiled.
    """
    with _compiling():
        graph, constants = _trace(function, examples)
        built = _build(graph, [*examples, *constants])
    return lambda *arguments: built(*arguments, *constants)


def compile_pullback(
    function: Callable[..., Tensor], examples: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """A pure function u, … -> value of u's shape, compiled into its value and its product with ∂value/∂uᵀ.

    What the product needs of the first half (its residuals) is kept between the two, as autograd keeps its graph; the
    arguments must not be changed in between.
    """

    def joint(direction: Tensor, u: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = function(u, *rest)
        return value.detach(), vector_jacobian(value, u, direction, keep=False)

    with _compiling():
        graph, constants = _trace(joint, [torch.empty_like(examples[0]), *examples])
        first, second, needed = _halves(graph)
        given = [*examples, *constants]
        forward = _build(first, given)
        _, *residuals = forward(*given)
        backward = _build(second, [torch.empty_like(examples[0]), *residuals, *(given[i] for i in needed)])

    def call(*arguments: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        arguments = (*arguments, *constants)
        with torch.no_grad():
            value, *residuals = forward(*arguments)

        def product(direction: Tensor) -> Tensor:
            with torch.no_grad():
                return backward(direction.contiguous(), *residuals, *(arguments[i] for i in needed))[0]

        return value, product

    return call


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``function`` of each item, on a thread each; torch's own threads are shared out between them meanwhile.

    One after the other where a thread of ours, or autocast, which is a thread's own, would be lost by it.
    """
    if len(items) == 1 or torch.is_autocast_enabled("cpu") or current_thread().name.startswith(THREADS):
        return [function(item) for item in items]
    threads = torch.get_num_threads()

    def call(item: Item) -> Result:
        torch.get_num_threads()  # a new thread takes over the number of the process once; not later, over ours
        torch.set_num_threads(max(1, threads // len(items)))
        return function(item)

    others: list[Future[Result]] = []
    try:
        pool = _pool(os.getpid(), len(items) - 1)
        others += (pool.submit(call, item) for item in items[1:])
        return [call(items[0]), *(other.result() for other in others)]
    finally:
        try:
            wait(others)
        finally:
            torch.set_num_threads(threads)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that stay, as do the buffers that libraries keep for each; a forked process has none of them."""
    return ThreadPoolExecutor(threads, thread_name_prefix=THREADS)


def vector_jacobian(value: Tensor, u: Tensor, direction: Tensor, *, keep: bool) -> Tensor:
    """(∂value/∂u)ᵀ direction by autograd; zero where value does not depend on u. ``keep``: more products follow."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(value, u, direction, retain_graph=keep, materialize_grads=True)[0]


@contextmanager
def _compiling() -> Iterator[None]:
    """Adds the time spent inside to ``seconds``; what torch's compiler warns of itself concerns nobody here."""
    global seconds
    began = time.perf_counter()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        except (InputError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if "InvalidCxxCompiler" in f"{error!r} {error}":
                told = "there is no C++ compiler: install g++ or clang"
            raise InputError(f'engine="compiled" fails here ({told}); use engine="eager".') from error
    seconds += time.perf_counter() - began


def _trace(
    function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    """The graph of a function, and the tensors that it closes over, which become further arguments."""
    from torch.fx.experimental.proxy_tensor import make_fx  # half a second that eager programs need not wait for

    trace = make_fx(
        lambda *arguments: tuple(function(*arguments)),
        decomposition_table={torch.ops.aten.tanh.default: tanh},
        tracing_mode="fake",
        _allow_non_fake_inputs=True,  # what a loss closes over, such as the weights of its classes
    )
    graph = trace(*(example.detach() for example in examples))  # one tensor in two places would be taken for one input
    constants = []
    *_, last = (node for node in graph.graph.nodes if node.op == "placeholder")
    fake = last.meta["val"].fake_mode
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        constants.append(getattr(graph, str(node.target)))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"closed_over_{len(constants)}")
        last.meta["val"] = fake.from_tensor(constants[-1])
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph, constants


def _build(graph: fx.GraphModule, examples: Sequence[Tensor]) -> Compiled:
    import torch._inductor as inductor

    options: dict[str, Any] = CPU_OPTIONS if examples[0].device.type == "cpu" else {}
    return inductor.compile(graph, list(examples), options=options)  # pyright: ignore[reportReturnType]


def _halves(graph: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule, list[int]]:
    """Cut (direction, u, …) -> (value, product) into u, … -> (value, *residuals) and (direction, *residuals, …).

    The second half holds what depends on the direction, and the views of residuals, which cost nothing to take again.
    Also: which of the arguments u, … the second half takes besides.
    """
    graph.graph.eliminate_dead_code()
    nodes = list(graph.graph.nodes)
    direction, *arguments = [node for node in nodes if node.op == "placeholder"]
    (results,) = nodes[-1].args
    value, product = results
    late = {direction: None}  # a dict, for its order: the same graph in every process finds the cache on disk
    for node in nodes:
        if node.op == "call_function" and any(source in late for source in node.all_input_nodes):
            late[node] = None
    residuals: dict[fx.Node, None] = {}
    needed: dict[fx.Node, None] = {}

    def fetch(node: fx.Node) -> None:
        """Find out what it takes to have this early node in the second half."""
        if node in arguments:
            needed[node] = None
        elif node.op == "call_function" and _is_view(node):
            again.add(node)
            for source in node.all_input_nodes:
                fetch(source)
        else:
            residuals[node] = None

    again: set[fx.Node] = set()
    for node in [*late, *([] if product in late else [product])]:
        for source in [product] if node is product and product not in late else node.all_input_nodes:
            if source not in late:
                fetch(source)

    def half(inputs: Sequence[fx.Node], wanted: Callable[[fx.Node], bool], outputs: Sequence[fx.Node]):
        made = fx.Graph()
        known = {node: made.placeholder(node.name) for node in inputs}
        for node in nodes:
            if node not in known and node.op == "call_function" and wanted(node):
                known[node] = made.node_copy(node, known.__getitem__)
        made.output(tuple(known[node] for node in outputs))
        made.eliminate_dead_code()
        return fx.GraphModule(graph, made)

    first = half(arguments, lambda node: node not in late, [value, *residuals])
    second = half([direction, *residuals, *needed], lambda node: node in late or node in again, [product])
    return first, second, [arguments.index(node) for node in needed]


def _is_view(node: fx.Node) -> bool:
    target: Any = node.target
    if getattr(target, "__name__", "") == "getitem":  # of a split
        return all(_is_view(source) for source in node.all_input_nodes)
    return getattr(target, "is_view", False)


# Numerator and denominator in x², as in Eigen: five units in the last place of float32 at most.
TANH_BOUND = 7.90531110763549805  # from here on the quotient is 1
TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def tanh(x: Tensor) -> Tensor:
    """Tanh in float32 by a rational function, which vectorises: a tenth of the library's time, fused with the rest."""
    if x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-TANH_BOUND, TANH_BOUND)
    square = x * x
    return x * _polynomial(square, TANH_NUMERATOR) / _polynomial(square, TANH_DENOMINATOR)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value
