"""Pure functions of tensors as flat graphs, traced together with the derivatives in them (``make_fx``).

``torch.compile`` cannot look through a double backward pass, so that functions are traced below autograd: a whole
solver step with all its gradients and products becomes one graph of operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx


def trace(function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """The graph of a function, and the tensors that it closes over, which become further arguments."""
    from torch.fx.experimental.proxy_tensor import make_fx  # half a second that eager programs need not wait for

    traced = make_fx(
        lambda *arguments: tuple(function(*arguments)),
        decomposition_table={torch.ops.aten.tanh.default: tanh},
        tracing_mode="fake",
        _allow_non_fake_inputs=True,  # what a loss closes over, such as the weights of its classes
    )
    graph = traced(*(example.detach() for example in examples))  # one tensor in two places would be taken for one input
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
    for node in graph.graph.nodes:
        if _writes(node):
            _give_memory(graph.graph, node)
    graph.recompile()
    return graph, constants


def _writes(node: fx.Node) -> bool:
    """Whether it is a copy of its first argument, written to at places that are given: index_add, scatter, …."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    named = {argument.name for argument in target._schema.arguments}
    return bool(named & {"index", "indices"}) and hasattr(torch.ops.aten, f"{target.overloadpacket.__name__}_")


def _give_memory(graph: fx.Graph, node: fx.Node) -> None:
    """A tensor that vmap expanded over the tasks is copied first: inductor would write all tasks into one memory."""
    whole: Any = node.args[0]
    if 0 not in whole.meta["val"].stride():
        return
    with graph.inserting_before(node):
        own = graph.call_function(torch.ops.aten.clone.default, (whole,), {"memory_format": torch.contiguous_format})
    own.meta["val"] = whole.meta["val"].contiguous()
    node.replace_input_with(whole, own)


def halves(graph: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule, list[int]]:
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
    for source in [*(source for node in late for source in node.all_input_nodes), product]:
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
