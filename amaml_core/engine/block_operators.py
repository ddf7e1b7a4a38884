"""The operators of a traced graph in the kernels of ``engine.blocks``."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from amaml_core.engine.block_matrices import (
    STAND_IN,
    Block,
    Flat,
    Kernel,
    NeededError,
    Source,
    UnsupportedError,
    canonical,
)

MOST_PRODUCTS = 40  # of matrices in one kernel: each is written out, and more take minutes to compile
ATEN = torch.ops.aten
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


class Writer(Kernel):
    """Writes what the nodes of a graph compute."""

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

    def value(self, node: Any) -> Any:
        """What a node is in the kernel, worked out once."""
        if node not in self.values:
            self.values[node] = self.made(node)
        return self.values[node]

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
        if target in SAME or (target is ATEN._to_copy.default and self._copies(node)):
            return self.value(node.args[0]) if isinstance(node.args[0], fx.Node) else self.loaded(node.args[0])
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

    def _copies(self, node: Any) -> bool:
        """Whether a conversion leaves float32, or a number, what it is."""
        (source, *_) = node.args
        same = not isinstance(source, fx.Node) or source.meta["val"].dtype == torch.float32
        return same and node.meta["val"].dtype == torch.float32

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

    def block(self, value: Any) -> Block:
        """A value that is one matrix."""
        found = self.loaded(value)
        if isinstance(found, Flat):
            raise UnsupportedError("a flat vector where a matrix is needed")
        return found

    def reshaped(self, value: Block | Flat, shape: tuple[int, ...]) -> Block | Flat:
        """The same numbers as a tensor of another shape."""
        if isinstance(value, Flat):
            if math.prod(shape) != self.dim or len([n for n in shape if n != 1]) > 1:
                raise UnsupportedError("a flat vector in another shape")
            return value
        if math.prod(value.shape) != math.prod(shape):
            raise UnsupportedError("a reshape")
        return replace(value, shape=shape)

    def expanded(self, value: Block | Flat, shape: tuple[int, ...]) -> Block | Flat:
        """A value, spread over a larger shape."""
        if isinstance(value, Flat) or value.shape == shape:
            return value
        return replace(self.fit(value, shape, canonical(shape)), shape=shape)

    def pointwise(self, text: str, operands: Sequence[Any], shape: tuple[int, ...], keeps: bool) -> Block | Flat:
        """An operator on each element: its text, whether zeros of all operands give zero (``keeps``)."""
        found = [self.loaded(operand) for operand in operands]
        if any(isinstance(one, Flat) for one in found):
            pieces = []
            for index, (length, matrix) in enumerate(zip(self.lengths, self.pieces, strict=True)):
                own = [one.pieces[index] if isinstance(one, Flat) else one for one in found]
                if any(one.matrix not in ((1, 1), matrix) for one in own):
                    raise UnsupportedError("a flat vector with something that is none")
                pieces.append(self._applied(text, *self._terms(text, own, operands), [length], matrix, keeps))
            return Flat(tuple(pieces))
        blocks, kind = self._terms(text, [one for one in found if isinstance(one, Block)], operands)
        whole = [one for one in blocks if math.prod(one.matrix) == math.prod(shape)]
        matrix = whole[0].matrix if whole else canonical(shape)
        blocks = [self.fit(one, shape, matrix) for one in blocks]
        rows, columns = (max(one.matrix[axis] for one in blocks) for axis in (0, 1))
        return self._applied(text, blocks, kind, shape, (rows, columns), keeps)

    def _applied(
        self, text: str, blocks: list[Block], kind: str, shape: Sequence[int], matrix: tuple[int, int], keeps: bool
    ) -> Block:
        """An operator's text on its operands; zeros stay zeros where one is spread too, if they are multiplied."""
        whole = [one for one in blocks if one.matrix == matrix]
        clean = keeps and all(one.clean for one in whole) and len(blocks) - len(whole) <= (text == BINARY["mul"])
        return self.new(text.format(*(one.name for one in blocks)), shape, matrix, clean, kind)

    def _terms(self, text: str, blocks: list[Block], of: Sequence[Any]) -> tuple[list[Block], str]:
        """The operands, terms of a sum over examples made into such, and the kind of the result."""
        linear = text in (BINARY["mul"], UNARY[ATEN.neg.default][0], POWERS[1])
        if text == BINARY["div"]:
            linear = blocks[1].kind != "sum"
        kinds = {one.kind for one in blocks}
        if text in (BINARY["add"], BINARY["sub"]) and "sum" in kinds and "rows" not in kinds:
            return [self.once(one) for one in blocks], "sum"
        return blocks, self.joint(*blocks, of=of, linear=linear)

    def clamped(self, node: Any, shape: tuple[int, ...]) -> Block | Flat:
        """A value kept between bounds."""
        low, high = (*node.args[1:], None, None)[:2]
        text = "{0}"
        text = text if low is None else f"tl.maximum({text}, {float(low)!r})"
        text = text if high is None else f"tl.minimum({text}, {float(high)!r})"
        return self.pointwise(text, [node.args[0]], shape, False)

    def transposed(self, node: Any) -> Block:
        """A matrix with its axes exchanged."""
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
        """A matrix product, as sums where a side is a single row or column."""
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

    def reduced(self, node: Any, name: str, shape: tuple[int, ...]) -> Block:
        """A sum, mean, maximum or 2-norm over some axes."""
        norm = name == "linalg_vector_norm"
        if norm and (node.args[1:2] or (2,))[0] != 2:
            raise UnsupportedError("another norm")
        tensor, (dims, *_) = node.args[0].meta["val"], (*node.args[2 if norm else 1 :], ())
        if not dims or node.kwargs:
            raise UnsupportedError("a reduction of everything")
        axes = {axis % tensor.ndim for axis in dims}
        if any(tensor.shape[axis] == STAND_IN for axis in axes):
            raise UnsupportedError("a reduction over the tasks")
        value = self.loaded(node.args[0])
        if isinstance(value, Flat):
            return self._of_all(node, name, value, shape)
        long = [axis for axis, length in enumerate(tensor.shape) if length not in (1, STAND_IN)]
        over = [index for index, axis in enumerate(long) if axis in axes]
        if not over:
            return replace(value, shape=shape)
        value = self.spread(value, canonical(self.own_shape(node.args[0])))
        kind = self.joint(value, of=node.args, linear=name in ("sum", "mean"))
        for index in over:
            kind = self.over_examples(tensor.shape[long[index]], kind, node.args[:1])
        if kind == "sum" and name in ("amax", "linalg_vector_norm"):
            raise UnsupportedError("a norm over the examples")
        one = value.name if name == "amax" else self.cleaned(value).name
        text = f"tl.where({self.inside(value.matrix)}, {one}, float('-inf'))" if name == "amax" else one
        call = "tl.max" if name == "amax" else "tl.sum"
        text = f"{text} * {text}" if norm else text
        matrix = (1, 1)
        if len(over) == len(long):
            text = f"tl.full([1, 1], 0.0, tl.float32) + {call}({text})"
        else:
            axis = over[0] if len(long) == 2 else value.matrix.index(max(value.matrix))
            text = f"{call}({text}, {axis}, keep_dims=True)"
            matrix = (1, value.matrix[1]) if axis == 0 else (value.matrix[0], 1)
        count = float(math.prod(tensor.shape[long[index]] for index in over))
        text = f"({text}) / {count}" if name == "mean" else text
        return self.new(f"tl.sqrt({text})" if norm else text, shape, matrix, name != "amax" and matrix != (1, 1), kind)

    def _of_all(self, node: Any, name: str, value: Flat, shape: tuple[int, ...]) -> Block:
        """A reduction of a flat vector."""
        if name == "amax":
            raise UnsupportedError("a maximum of a flat vector")
        if any(piece.kind == "sum" for piece in value.pieces):
            raise NeededError(node.args[0])
        names = [self.cleaned(piece).name for piece in value.pieces]
        sums = [f"tl.sum({one} * {one})" if name == "linalg_vector_norm" else f"tl.sum({one})" for one in names]
        text = f"tl.full([1, 1], 0.0, tl.float32) + {' + '.join(sums)}"
        if name != "sum":
            text = f"tl.sqrt({text})" if name == "linalg_vector_norm" else f"({text}) / {float(self.dim)}"
        return self.new(text, shape, (1, 1), False)

    def joined(self, node: Any) -> Flat:
        """The vector of all parameters from its pieces."""
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
        """One parameter of a vector of all."""
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
