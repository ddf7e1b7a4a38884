"""Steps of small networks as one Triton kernel each: a thread block or a few a task, from first operator to last.

A step's graph of operators becomes the source of one kernel. What belongs to a task is a few matrices, which stay in
the registers and the shared memory of its block; flat vectors of parameters are kept as the matrices that they are made
of. Gradients and Hessian-vector products are sums over the examples: several blocks share a task's examples, and
whoever needs such a sum adds their parts, always in the same order. Then a step is a kernel for each of its sums, each
of which begins with what comes in between, unless it holds so much that a kernel before does that. What joins tasks,
such as an error norm's maximum, comes last, as ordinary operators.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten
STAND_IN = 999_983  # tasks while tracing: a prime, so that the axis of tasks is known by its length
LARGEST = 2**13  # elements of a matrix that a block can hold several of
MOST_PRODUCTS = 40  # of matrices in one kernel: each is written out, and more take minutes to compile
ROWS = 32  # examples of a task that a block takes where several share them
WARPS = 8  # of a block that has a task to itself
MOST_KERNELS = 24  # of a step
LIGHT = 8  # products up to which a kernel of shared examples holds little enough for what comes before it too
# Warps of a block that shares its task, and how float32 is multiplied: in full, or where that takes more registers than
# there are, by the matrix units in three passes, which leave an error of rounding.
LIGHT_KERNEL, HEAVY_KERNEL = (4, "ieee"), (2, "tf32x3")
CLOSE = 1e-2  # a kernel's results to those of the operators one by one, at its first arguments


class UnsupportedError(Exception):
    """The step does not fit into a block's kernel."""


class NeededError(Exception):
    """Another kernel must have written this node: a sum over the examples, or what a heavy kernel begins with."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


@dataclass(frozen=True)
class Block:
    """A task's matrix in the kernel.

    Attributes:
        name: of the variable, or a number.
        shape: of the tensor, without the axis of tasks.
        matrix: the rows and columns that it is held as; 1 where it is the same along the other operands' axis.
        clean: whether what pads it to powers of two is zero.
        kind: "free" of the examples; "rows": along them, so that a block has some of it; "sum": this block's part of a
            sum over them.
    """

    name: str
    shape: tuple[int, ...]
    matrix: tuple[int, int]
    clean: bool = True
    kind: str = "free"


@dataclass(frozen=True)
class Flat:
    """A vector of all adapted parameters, as the matrices that it is made of."""

    pieces: tuple[Block, ...]


@dataclass(frozen=True)
class Source:
    """An argument of the kernel, or a part of it, that has not been loaded."""

    pointer: str
    shape: tuple[int, ...]
    tasks: int | None  # the axis of tasks; None: all tasks have the same
    examples: bool = False  # whether the next axis is that of the examples
    offset: str = "0"


def padded(length: int) -> int:
    """The power of two that a block's side is held as; matrix products want 16."""
    return 1 if length == 1 else max(16, 1 << (length - 1).bit_length())


def canonical(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor of at most two axes that are longer than 1."""
    long = [length for length in shape if length != 1]
    if len(long) > 2:
        raise UnsupportedError(f"{len(long)} axes")
    if len(long) == 2:
        return long[0], long[1]
    if not long:
        return 1, 1
    return (long[0], 1) if len(shape) >= 2 and shape[-1] == 1 else (1, long[0])


UNARY = {
    ATEN.tanh.default: ("libdevice.tanh({0})", True),
    ATEN.neg.default: ("-({0})", True),
    ATEN.abs.default: ("tl.abs({0})", True),
    ATEN.sqrt.default: ("tl.sqrt({0})", True),
    ATEN.exp.default: ("tl.exp({0})", False),
    ATEN.log.default: ("tl.log({0})", False),
    ATEN.sin.default: ("tl.sin({0})", True),
    ATEN.cos.default: ("tl.cos({0})", False),
    ATEN.relu.default: ("tl.maximum({0}, 0.0)", True),
    ATEN.sigmoid.default: ("tl.sigmoid({0})", False),
    ATEN.reciprocal.default: ("1.0 / ({0})", False),
    ATEN.rsqrt.default: ("tl.rsqrt({0})", False),
    ATEN.erf.default: ("tl.erf({0})", True),
    ATEN.log1p.default: ("libdevice.log1p({0})", True),
    ATEN.expm1.default: ("libdevice.expm1({0})", True),
    ATEN.sign.default: ("tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))", True),
}
BINARY = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "maximum": "tl.maximum({0}, {1})",
    "minimum": "tl.minimum({0}, {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
}
POWERS = {1: "({0})", 2: "({0} * {0})", 3: "({0} * {0} * {0})", -1: "(1.0 / {0})", 0.5: "tl.sqrt({0})"}
STAY_CLEAN = {"add", "sub", "mul", "maximum", "minimum"}
SAME = {ATEN.alias.default, ATEN.detach.default, ATEN.clone.default}
RESHAPES = {
    ATEN.view.default,
    ATEN._unsafe_view.default,
    ATEN.reshape.default,
    ATEN.unsqueeze.default,
    ATEN.squeeze.dims,
    ATEN.squeeze.dim,
    ATEN.squeeze.default,
}


class _Writer:
    """Writes the kernel of a graph.

    Args:
        graph: traced with ``STAND_IN`` tasks.
        sizes: the shapes of the adapted parameters, in the order of the flat vector.
        data: which of the graph's inputs hold examples along the axis after that of the tasks.
        shared: whether several blocks share a task's examples.
        known: what other kernels have written, in the order in which their memory is handed on, and in how many parts.
        target: what this kernel is to write, if not the step's results.
        heavy: whether it leaves to other kernels what comes before its sum.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        sizes: Sequence[tuple[int, ...]],
        data: Sequence[int],
        shared: bool,
        known: Mapping[fx.Node, int],
        target: fx.Node | None = None,
        heavy: bool = False,
    ) -> None:
        self.data, self.examples, self.parts = set(data), 0, 1
        self.known, self.target, self.heavy = dict(known), target, heavy
        self.pieces = [canonical(shape) for shape in sizes]
        self.lengths = [math.prod(shape) for shape in sizes]
        self.dim = sum(self.lengths)
        self.lines: list[str] = []
        self.values: dict[fx.Node, Any] = {}
        self.inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.products = 0
        self.index: dict[str, None] = {}
        if shared:
            self._share(sizes)

    def _share(self, sizes: Sequence[tuple[int, ...]]) -> None:
        """Cut the examples into parts; they are known by their number, which must be nothing else's."""
        used = [self.inputs[place].meta["val"].shape for place in self.data if self.inputs[place].users]
        found = {shape[1] if len(shape) > 1 else 0 for shape in used}
        others = {length for shape in (*sizes, *(shape[2:] for shape in used)) for length in (*shape, math.prod(shape))}
        self.examples = found.pop() if len(found) == 1 else 0
        if self.examples < ROWS or self.examples in others | {self.dim, STAND_IN}:
            raise UnsupportedError("examples that cannot be told from other numbers, or few")
        self.parts = -(-self.examples // ROWS)
        self.own = -(-self.examples // self.parts)

    # --- names and text

    def new(self, text: str, shape: Sequence[int], matrix: tuple[int, int], clean: bool, kind: str = "free") -> Block:
        if self.padded(matrix[0]) * self.padded(matrix[1]) > LARGEST:
            raise UnsupportedError(f"a matrix of {matrix[0]} x {matrix[1]}")
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return Block(name, tuple(shape), matrix, clean, kind)

    def padded(self, length: int) -> int:
        """The power of two that a side is held as in a block."""
        return padded(self.own if self.parts > 1 and length == self.examples else length)

    def joint(self, *blocks: Block, of: Sequence[Any], linear: bool = False) -> str:
        """The kind of what is computed of these, which are the values of the nodes ``of``."""
        kinds = [one.kind for one in blocks]
        if "sum" not in kinds:
            return "rows" if "rows" in kinds else "free"
        if not linear or "rows" in kinds or kinds.count("sum") > 1:
            raise NeededError(of[kinds.index("sum")])
        return "sum"

    def once(self, block: Block) -> Block:
        """What does not depend on the examples, as a term of a sum over them: the first block has it."""
        if block.kind == "sum" or self.parts == 1:
            return block
        return self.new(f"tl.where(part == 0, {block.name}, 0.0)", block.shape, block.matrix, block.clean, "sum")

    def ranges(self, matrix: tuple[int, int]) -> tuple[str, str]:
        rows, columns = self.padded(matrix[0]), self.padded(matrix[1])
        self.index[f"r{rows} = tl.arange(0, {rows})[:, None]"] = None
        self.index[f"c{columns} = tl.arange(0, {columns})[None, :]"] = None
        return f"r{rows}", f"c{columns}"

    def inside(self, matrix: tuple[int, int]) -> str:
        """Which elements are no padding."""
        row, column = self.ranges(matrix)
        here = ["left" if self.parts > 1 and length == self.examples else length for length in matrix]
        return f"(({row} < {here[0]}) & ({column} < {here[1]}))"

    def cleaned(self, block: Block) -> Block:
        """The same with zeros in its padding."""
        if block.clean or all(self.padded(length) == length for length in block.matrix):
            return block
        text = f"tl.where({self.inside(block.matrix)}, {block.name}, 0.0)"
        return self.new(text, block.shape, block.matrix, True, block.kind)

    # --- loads

    def added(self, node: Any) -> Block | Flat:
        """A sum of which other blocks have written the parts."""
        shape, pointer = self.own_shape(node), f"sum{list(self.known).index(node)}"
        size = math.prod(shape)

        def whole(start: int, own: Sequence[int], matrix: tuple[int, int]) -> Block:
            row, column = self.ranges(matrix)
            at = f"{pointer} + task * {size} + {start} + {row} * {matrix[1]} + {column}"
            each = [
                f"tl.load({at} + {part} * tasks * {size}, mask={self.inside(matrix)}, other=0.0)"
                for part in range(self.known[node])
            ]
            return self.new(" + ".join(each), own, matrix, True)

        if shape != (self.dim,):
            return whole(0, shape, canonical(shape))
        starts = [sum(self.lengths[:index]) for index in range(len(self.lengths))]
        return Flat(tuple(whole(at, (n,), m) for at, n, m in zip(starts, self.lengths, self.pieces, strict=True)))

    def loaded(self, value: Any) -> Block | Flat:
        """A value as the kernel computes with it."""
        if isinstance(value, int | float | bool):
            return Block(repr(float(value)) if not isinstance(value, bool) else repr(value), (), (1, 1), False)
        if not isinstance(value, fx.Node):
            raise UnsupportedError(f"an argument {value!r}")
        found = self.value(value)
        if isinstance(found, Source):
            found = self.values[value] = self.load(found)
        return found

    def block(self, value: Any) -> Block:
        found = self.loaded(value)
        if isinstance(found, Flat):
            raise UnsupportedError("a flat vector where a matrix is needed")
        return found

    def load(self, source: Source) -> Block | Flat:
        own = [length for axis, length in enumerate(source.shape) if axis != source.tasks]
        base = source.offset
        if source.tasks is not None:
            if math.prod(source.shape[: source.tasks]) != 1:
                raise UnsupportedError("an axis before that of the tasks")
            base = f"{base} + task * {math.prod(own)}"
        if own == [self.dim]:
            pieces, start = [], 0
            for length, matrix in zip(self.lengths, self.pieces, strict=True):
                pieces.append(self._fetch(source.pointer, f"{base} + {start}", [length], matrix))
                start += length
            return Flat(tuple(pieces))
        return self._fetch(source.pointer, base, own, canonical(own), source.examples and self.parts > 1)

    def _fetch(
        self, pointer: str, base: str, shape: Sequence[int], matrix: tuple[int, int], examples: bool = False
    ) -> Block:
        row, column = self.ranges(matrix)
        if examples:
            base = f"{base} + part * {self.own * math.prod(shape[1:])}"
        at = f"{pointer} + {base} + {row} * {matrix[1]} + {column}"
        kind = "rows" if examples else "free"
        return self.new(f"tl.load({at}, mask={self.inside(matrix)}, other=0.0)", shape, matrix, True, kind)

    # --- nodes

    def value(self, node: Any) -> Any:
        if node not in self.values:
            self.values[node] = self.made(node)
        return self.values[node]

    def own_shape(self, node: Any) -> tuple[int, ...]:
        """The shape without the axis of tasks."""
        return tuple(length for length in node.meta["val"].shape if length != STAND_IN)

    def made(self, node: Any) -> Any:
        """What a node is in the kernel."""
        target: Any = node.target
        if node in self.known:
            return self.added(node)
        if node.op == "placeholder":
            shape = tuple(node.meta["val"].shape)
            axis = shape.index(STAND_IN) if STAND_IN in shape else None
            place = self.inputs.index(node)
            return Source(f"in{place}", shape, axis, place in self.data)
        if node.op != "call_function":
            raise UnsupportedError(node.op)
        if target is operator.getitem:
            return self.value(node.args[0])[node.args[1]]
        if target is ATEN.split_with_sizes.default:
            flat = self.begun(node.args[0])
            if not isinstance(flat, Flat) or list(node.args[1]) != self.lengths:
                raise UnsupportedError("a split of something else than the parameters")
            return flat.pieces
        name = target.__name__.split(".")[0] if hasattr(target, "__name__") else str(target)
        shape = self.own_shape(node)
        if target in SAME:
            return self.value(node.args[0])
        if name in ("full_like", "ones_like", "zeros_like", "full", "scalar_tensor"):
            filled = {"ones_like": 1.0, "zeros_like": 0.0}.get(name)
            number = float(node.args[0] if name == "scalar_tensor" else node.args[1]) if filled is None else filled
            return Block(repr(number), shape, (1, 1), False)
        if isinstance(source := self.value(node.args[0]) if isinstance(node.args[0], fx.Node) else None, Source):
            part = self._part(node, source)
            if part is not None:
                return part
        if target in RESHAPES:
            return self.reshaped(self.loaded(node.args[0]), shape)
        if target is ATEN.expand.default:
            return self.expanded(self.loaded(node.args[0]), shape)
        if target is ATEN.permute.default:
            return self.transposed(node)
        if target is ATEN.bmm.default:
            return self.product(node.args, shape)
        if target is ATEN.cat.default:
            return self.joined(node)
        if target is ATEN.slice.Tensor:
            return self.sliced(node)
        if target in UNARY:
            text, keeps = UNARY[target]
            return self.pointwise(text, [node.args[0]], shape, keeps)
        if name in BINARY:
            if node.kwargs:
                raise UnsupportedError(f"{target} with {node.kwargs}")
            return self.pointwise(BINARY[name], node.args[:2], shape, name in STAY_CLEAN)
        if target is ATEN.pow.Tensor_Scalar and node.args[1] == 0:
            return Block("1.0", shape, (1, 1), False)
        if target is ATEN.pow.Tensor_Scalar and node.args[1] in POWERS:
            return self.pointwise(POWERS[node.args[1]], [node.args[0]], shape, node.args[1] > 0)
        if target is ATEN.clamp.default:
            return self.clamped(node, shape)
        if target is ATEN.where.self:
            return self.pointwise("tl.where({0}, {1}, {2})", node.args, shape, False)
        if name in ("sum", "mean", "linalg_vector_norm", "amax"):
            return self.reduced(node, name, shape)
        raise UnsupportedError(str(target))

    def _part(self, node: Any, source: Source) -> Source | None:
        """A part of an argument that is only a place in memory: one of several steps, one of several numbers."""
        if node.target is ATEN.select.int:
            axis, index = node.args[1] % len(source.shape), node.args[2]
            if axis == 0 and axis != source.tasks:
                rest = source.shape[1:]
                size = " * ".join("tasks" if length == STAND_IN else str(length) for length in rest) or "1"
                tasks = None if source.tasks is None else source.tasks - 1
                return replace(source, shape=rest, tasks=tasks, offset=f"{source.offset} + {index} * {size}")
            raise UnsupportedError("a selection")
        if node.target in RESHAPES and source.tasks in (None, 0):
            shape = tuple(node.meta["val"].shape)
            kept = not source.examples or self.parts == 1 or shape[1:2] == (self.examples,)
            if kept and (source.tasks is None or shape[:1] == (STAND_IN,)):
                return replace(source, shape=shape)
        return None

    def reshaped(self, value: Block | Flat, shape: tuple[int, ...]) -> Block | Flat:
        if isinstance(value, Flat):
            if math.prod(shape) != self.dim or len([n for n in shape if n != 1]) > 1:
                raise UnsupportedError("a flat vector in another shape")
            return value
        if math.prod(value.shape) != math.prod(shape):
            raise UnsupportedError("a reshape")
        return replace(value, shape=shape)

    def expanded(self, value: Block | Flat, shape: tuple[int, ...]) -> Block | Flat:
        if isinstance(value, Flat) or value.shape == shape:
            return value
        return replace(self.fit(value, shape, canonical(shape)), shape=shape)

    def fit(self, value: Block, shape: tuple[int, ...], matrix: tuple[int, int]) -> Block:
        """A value as an operand of a result of this shape, held as this matrix: the same, or 1 where it is spread."""
        if value.matrix in ((1, 1), matrix):
            return value
        wide = (1,) * (len(shape) - len(value.shape)) + value.shape
        own = canonical(wide)
        if math.prod(value.shape) == math.prod(shape):
            want = matrix
        elif matrix != canonical(shape):
            raise UnsupportedError("a spread over a matrix in another form")
        else:
            long = [axis for axis, length in enumerate(shape) if length != 1]
            if len(long) < 2:
                want = own if long and wide[long[0]] != 1 else (1, 1)
                want = matrix if want != (1, 1) else want
            else:
                want = (wide[long[0]], wide[long[1]])
        if value.matrix == want:
            return value
        if value.matrix == want[::-1] and 1 in want:
            return self.new(f"tl.trans({value.name})", value.shape, want, value.clean, value.kind)
        if all(have in (1, need) for have, need in zip(value.matrix, want, strict=True)):
            return value  # spread already
        raise UnsupportedError(f"{value.matrix} as {want}")

    def pointwise(self, text: str, operands: Sequence[Any], shape: tuple[int, ...], keeps: bool) -> Block | Flat:
        found = [self.loaded(operand) for operand in operands]
        if any(isinstance(one, Flat) for one in found):
            return self._of_flat(text, found, operands, keeps)
        blocks, kind = self._terms(text, [one for one in found if isinstance(one, Block)], operands)
        whole = [one for one in blocks if math.prod(one.matrix) == math.prod(shape)]
        matrix = whole[0].matrix if whole else canonical(shape)
        blocks = [self.fit(one, shape, matrix) for one in blocks]
        rows, columns = (max(one.matrix[axis] for one in blocks) for axis in (0, 1))
        clean = keeps and all(one.clean and one.matrix == (rows, columns) for one in blocks)
        if keeps and text == BINARY["mul"] and not clean:  # zero times what is spread, if that is no padding itself
            spread = [one for one in blocks if one.matrix != (rows, columns)]
            clean = len(spread) == 1 and all(one.clean for one in blocks if one not in spread)
        return self.new(text.format(*(one.name for one in blocks)), shape, (rows, columns), clean, kind)

    def _terms(self, text: str, blocks: list[Block], of: Sequence[Any]) -> tuple[list[Block], str]:
        """The operands, terms of a sum over examples made into such, and the kind of the result."""
        linear = text in (BINARY["mul"], UNARY[ATEN.neg.default][0], POWERS[1])
        if text == BINARY["div"]:
            linear = blocks[1].kind != "sum"
        kinds = {one.kind for one in blocks}
        if text in (BINARY["add"], BINARY["sub"]) and "sum" in kinds and "rows" not in kinds:
            return [self.once(one) for one in blocks], "sum"
        return blocks, self.joint(*blocks, of=of, linear=linear)

    def _of_flat(self, text: str, found: Sequence[Block | Flat], of: Sequence[Any], keeps: bool) -> Flat:
        pieces = []
        for index, matrix in enumerate(self.pieces):
            own = [one.pieces[index] if isinstance(one, Flat) else one for one in found]
            if any(one.matrix not in ((1, 1), matrix) for one in own):
                raise UnsupportedError("a flat vector with something that is none")
            own, kind = self._terms(text, own, of)
            clean = keeps and all(one.clean for one in own if one.matrix == matrix)
            clean = clean and (text == BINARY["mul"] or all(one.matrix == matrix for one in own))
            names = [one.name for one in own]
            pieces.append(self.new(text.format(*names), [self.lengths[index]], matrix, clean, kind))
        return Flat(tuple(pieces))

    def clamped(self, node: Any, shape: tuple[int, ...]) -> Block | Flat:
        low, high = (*node.args[1:], None, None)[:2]
        text = "{0}"
        text = text if low is None else f"tl.maximum({text}, {float(low)!r})"
        text = text if high is None else f"tl.minimum({text}, {float(high)!r})"
        return self.pointwise(text, [node.args[0]], shape, False)

    def transposed(self, node: Any) -> Block:
        value = self.block(node.args[0])
        before, order = node.args[0].meta["val"].shape, list(node.args[1])
        long = [axis for axis in order if before[axis] not in (1, STAND_IN)]
        shape = self.own_shape(node)
        if len(long) < 2 or long == sorted(long):
            matrix = canonical(shape)
            return replace(self.fit(replace(value, shape=shape), shape, matrix), shape=shape)
        if value.matrix == (1, 1):
            return replace(value, shape=shape)
        rows, columns = value.matrix
        return self.new(f"tl.trans({value.name})", shape, (columns, rows), value.clean, value.kind)

    def product(self, operands: Sequence[Any], shape: tuple[int, ...]) -> Block:
        a, b = map(self.block, operands)
        (rows, inner), (_, columns) = a.shape[-2:], b.shape[-2:]
        a, b = self.spread(a, (rows, inner)), self.spread(b, (inner, columns))
        clean, kind = a.clean and b.clean, self.joint(a, b, of=operands, linear=True)
        if inner == 1:
            return self.new(f"({a.name} * {b.name})", shape, (rows, columns), clean, kind)
        kind = self.over_examples(inner, kind, operands)
        a, b = self.cleaned(a), self.cleaned(b)
        if columns == 1:
            return self.new(f"tl.sum({a.name} * tl.trans({b.name}), 1, keep_dims=True)", shape, (rows, 1), True, kind)
        if rows == 1:
            text = f"tl.sum(tl.trans({a.name}) * {b.name}, 0, keep_dims=True)"
            return self.new(text, shape, (1, columns), True, kind)
        self.products += 1
        if self.products > MOST_PRODUCTS:
            raise UnsupportedError("too many products")
        text = f"tl.dot({a.name}, {b.name}, input_precision=PRECISION)"
        return self.new(text, shape, (rows, columns), True, kind)

    def over_examples(self, length: int, kind: str, operands: Sequence[Any]) -> str:
        """The kind of a sum over an axis of this length of what is of a kind."""
        if self.parts == 1 or length != self.examples:
            return kind
        if kind == "sum":
            raise NeededError(next(one for one in operands if self.block(one).kind == "sum"))
        return "sum"

    def spread(self, value: Block, matrix: tuple[int, int]) -> Block:
        """The same with no axis left to be spread."""
        value = self.fit(value, matrix, matrix)
        if value.matrix == matrix:
            return value
        full = f"[{self.padded(matrix[0])}, {self.padded(matrix[1])}]"
        if value.matrix == (1, 1) and not value.name.startswith("v"):
            return self.new(f"tl.full({full}, {value.name}, tl.float32)", matrix, matrix, False)
        return self.new(f"tl.broadcast_to({value.name}, {full})", matrix, matrix, False, value.kind)

    def reduced(self, node: Any, name: str, shape: tuple[int, ...]) -> Block:
        tensor = node.args[0].meta["val"]
        dims = node.args[2] if name == "linalg_vector_norm" and len(node.args) > 2 else None
        dims = node.args[1] if name != "linalg_vector_norm" and len(node.args) > 1 else dims
        if name == "linalg_vector_norm" and len(node.args) > 1 and node.args[1] != 2:
            raise UnsupportedError("another norm")
        if not dims or node.kwargs:
            raise UnsupportedError("a sum over everything")
        axes = {axis % tensor.ndim for axis in dims}
        if any(tensor.shape[axis] == STAND_IN for axis in axes):
            raise UnsupportedError("a sum over the tasks")
        value = self.loaded(node.args[0])
        square = name == "linalg_vector_norm"
        if isinstance(value, Flat):
            if name == "amax":
                raise UnsupportedError("a maximum of a flat vector")
            kind = value.pieces[0].kind
            if kind == "sum":
                raise NeededError(node.args[0])
            cleaned = [self.cleaned(piece) for piece in value.pieces]
            sums = [f"tl.sum({one.name} * {one.name})" if square else f"tl.sum({one.name})" for one in cleaned]
            text, count = " + ".join(sums), self.dim
        else:
            long = [axis for axis, length in enumerate(tensor.shape) if length not in (1, STAND_IN)]
            value = self.spread(value, canonical(self.own_shape(node.args[0]))) if len(long) == 2 else value
            over = [index for index, axis in enumerate(long) if axis in axes]
            count = math.prod(tensor.shape[axis] for axis in long if axis in axes)
            if value.matrix == (1, 1):
                text = {"sum": f"{value.name} * {float(count)}", "mean": value.name}.get(name, "")
                if not text or (count > 1 and name == "mean" and value.name.startswith("v") is False):
                    raise UnsupportedError("a reduction of a number")
                return self.new(f"tl.full([1, 1], 0.0, tl.float32) + {text}", shape, (1, 1), False)
            if not over:
                return replace(value, shape=shape)
            kind = self.joint(value, of=node.args, linear=name in ("sum", "mean"))
            for axis in (axis for axis in long if axis in axes):
                kind = self.over_examples(tensor.shape[axis], kind, node.args[:1])
            if kind == "sum" and name in ("amax", "linalg_vector_norm"):
                raise UnsupportedError("a norm over the examples")
            if name == "amax":
                text = f"tl.where({self.inside(value.matrix)}, {value.name}, float('-inf'))"
                call = "tl.max"
            else:
                one = self.cleaned(value)
                text, call = (f"{one.name} * {one.name}" if square else one.name), "tl.sum"
            if len(over) == len(long):
                text = f"{call}({text})"
            else:
                axis = over[0]
                text = f"{call}({text}, {axis}, keep_dims=True)"
                text = f"{text} / {float(count)}" if name == "mean" else text
                text = f"tl.sqrt({text})" if square else text
                matrix = (1, value.matrix[1]) if axis == 0 else (value.matrix[0], 1)
                return self.new(text, shape, matrix, name != "amax", kind)
        text = f"({text}) / {float(count)}" if name == "mean" else text
        text = f"tl.sqrt({text})" if square else text
        return self.new(f"tl.full([1, 1], 0.0, tl.float32) + {text}", shape, (1, 1), False, kind)

    def joined(self, node: Any) -> Flat:
        parts = node.args[0]
        if [math.prod(self.own_shape(part)) for part in parts] != self.lengths:
            raise UnsupportedError("parts that are not the parameters'")
        pieces = []
        for part, matrix, length in zip(parts, self.pieces, self.lengths, strict=True):
            pieces.append(self.spread(self.fit(self.block(part), (length,), matrix), matrix))
        if any(one.kind == "sum" for one in pieces):
            if node is not self.target:
                raise NeededError(node)
            pieces = [self.once(one) for one in pieces]
        return Flat(tuple(replace(one, shape=(n,)) for one, n in zip(pieces, self.lengths, strict=True)))

    def begun(self, node: Any) -> Block | Flat:
        """A flat vector from which a heavy kernel begins: it is read, not computed."""
        while node.target in SAME and node not in self.known:
            node = node.args[0]
        if self.heavy and node.op == "call_function" and node not in self.known:
            raise NeededError(node)
        return self.loaded(node)

    def sliced(self, node: Any) -> Any:
        value, length = self.begun(node.args[0]), node.args[0].meta["val"].shape[node.args[1]]
        _, start, end = (*node.args[1:], 0, length)[:3]
        start, end = start or 0, min(end, length)
        if (start, end) == (0, length):
            return value
        ends = [sum(self.lengths[: index + 1]) for index in range(len(self.lengths))]
        if not isinstance(value, Flat) or end not in ends or len(node.args) > 4:
            raise UnsupportedError("a slice")
        index = ends.index(end)
        if end - start != self.lengths[index]:
            raise UnsupportedError("a slice across parameters")
        return value.pieces[index]

    # --- results

    def store(self, start: int, total: int, value: Block | Flat, shape: tuple[int, ...]) -> None:
        """Write a result of each task after the ``start`` numbers of those before, of ``total`` in all."""
        own = math.prod(shape)
        base = f"part * tasks * {total} + tasks * {start} + task * {own}"
        if isinstance(value, Flat):
            for piece, length in zip(value.pieces, self.lengths, strict=True):
                self._put(base, piece, piece.matrix)
                base = f"{base} + {length}"
            return
        self._put(base, self.fit(value, shape, canonical(shape)), canonical(shape))

    def _put(self, base: str, value: Block, matrix: tuple[int, int]) -> None:
        if value.kind == "rows":
            raise UnsupportedError("a result along the examples")
        value = self.once(self.spread(value, matrix))
        row, column = self.ranges(matrix)
        at = f"out + {base} + {row} * {matrix[1]} + {column}"
        self.lines.append(f"tl.store({at}, {value.name}, mask={self.inside(matrix)})")


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
    """A graph's kernels; arguments as for ``_Writer``.

    Raises:
        UnsupportedError: an operator, a shape or a size has no place in a block.
    """
    known: dict[fx.Node, int] = {}
    kernels: list[tuple[str, int, int, int]] = []
    heavy: set[fx.Node] = set()
    while True:
        try:
            last, shapes, parts, rest = _last(graph, _Writer(graph, sizes, data, shared, known))
            return Program(kernels, last, shapes, parts, rest)
        except NeededError as needed:
            target = needed.node
        while target not in known:
            writer = _Writer(graph, sizes, data, shared, known, target, target in heavy)
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


def _last(graph: fx.GraphModule, writer: _Writer) -> tuple[str, list[tuple[int, ...]], int, fx.GraphModule]:
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


def _text(writer: _Writer) -> str:
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
    """A pure function of tensors as one kernel, and what joins tasks after it; for any number of tasks.

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

    for found, expected in zip(run(*examples), function(*examples), strict=True):
        size = float(expected.abs().nan_to_num().max())
        if not torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE * size, equal_nan=True):
            raise UnsupportedError("other results than those of the operators")
    return run
