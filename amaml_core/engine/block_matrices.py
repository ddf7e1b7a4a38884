"""What the kernels of ``engine.blocks`` compute with: matrices in a thread block, padded to powers of two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

STAND_IN = 999_983  # tasks while tracing: a prime, so that the axis of tasks is known by its length
LARGEST = 2**13  # elements of a matrix that a block can hold several of


@dataclass(frozen=True)
class Sharing:
    """How blocks share a task's examples.

    Attributes:
        rows: examples that a block takes.
        light: products up to which a kernel holds little enough for what comes before it too.
        small: warps of a block of such a kernel, and how it multiplies float32: in full, or by the matrix units in
            three passes, which takes fewer registers and leaves an error of rounding.
        large: likewise, of the others.
    """

    rows: int
    light: int
    small: tuple[int, str]
    large: tuple[int, str]


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


class Kernel:
    """The text of a kernel while it is written.

    Args:
        graph: traced with ``STAND_IN`` tasks.
        sizes: the shapes of the adapted parameters, in the order of the flat vector.
        data: which of the graph's inputs hold examples along the axis after that of the tasks.
        shared: how blocks share a task's examples; None: a block has a task to itself.
        known: what other kernels have written, in the order in which their memory is handed on, and in how many parts.
        target: what this kernel is to write, if not the step's results.
        heavy: whether it leaves to other kernels what comes before its sum.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        sizes: Sequence[tuple[int, ...]],
        data: Sequence[int],
        shared: Sharing | None,
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
            self._share(shared.rows, sizes)

    def _share(self, rows: int, sizes: Sequence[tuple[int, ...]]) -> None:
        """Cut the examples into parts; they are known by their number, which must be nothing else's."""
        used = [self.inputs[place].meta["val"].shape for place in self.data if self.inputs[place].users]
        found = {shape[1] if len(shape) > 1 else 0 for shape in used}
        others = {length for shape in (*sizes, *(shape[2:] for shape in used)) for length in (*shape, math.prod(shape))}
        self.examples = found.pop() if len(found) == 1 else 0
        if self.examples <= rows or self.examples in others | {self.dim, STAND_IN}:
            raise UnsupportedError("examples that cannot be told from other numbers, or few")
        self.parts = -(-self.examples // rows)
        self.own = -(-self.examples // self.parts)

    def new(self, text: str, shape: Sequence[int], matrix: tuple[int, int], clean: bool, kind: str = "free") -> Block:
        """A line of the kernel, and what it makes."""
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
        """The numbers of rows and of columns, as the kernel has them."""
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

    def load(self, source: Source) -> Block | Flat:
        """An argument, read."""
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

    def own_shape(self, node: Any) -> tuple[int, ...]:
        """The shape without the axis of tasks."""
        return tuple(length for length in node.meta["val"].shape if length != STAND_IN)

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

    def spread(self, value: Block, matrix: tuple[int, int]) -> Block:
        """The same with no axis left to be spread."""
        value = self.fit(value, matrix, matrix)
        if value.matrix == matrix:
            return value
        full = f"[{self.padded(matrix[0])}, {self.padded(matrix[1])}]"
        if value.matrix == (1, 1) and not value.name.startswith("v"):
            return self.new(f"tl.full({full}, {value.name}, tl.float32)", matrix, matrix, False)
        return self.new(f"tl.broadcast_to({value.name}, {full})", matrix, matrix, False, value.kind)

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
