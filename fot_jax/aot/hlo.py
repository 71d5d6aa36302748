"""Parser of a compiled program's text (HLO) into computations and instructions; does not need JAX."""

import dataclasses
import functools
import math
import re

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
PASS_THROUGH = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}  # make no array
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: element type, dimensions, and whether it is outside HBM (`S(1)`: on the chip)."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of the array, without the padding of tiles."""
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else None)
        if bits is None:
            raise ValueError(f"element type {self.dtype!r} of HLO is unknown; known: {sorted(BITS)} and f8*")
        return self.elements * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `NAME = SHAPE OPCODE(OPERANDS), ATTRIBUTES`.

    Attributes:
      name: unique in its computation.
      shape: the arrays of the result; a tuple is flattened.
      opcode: "fusion", "while", "all-gather-start", ...
      operands: names of the operands.
      literal: the text between the parentheses.
      attributes: the text after the parentheses.
      is_root: True if it is its computation's result.
    """

    name: str
    shape: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(array.bytes for array in self.shape)

    @functools.cached_property
    def called(self) -> dict[str, str]:
        """Computations it calls, by role."""
        return dict(CALLED.findall(self.attributes))

    @functools.cached_property
    def branches(self) -> tuple[str, ...]:
        """The branches of a conditional."""
        match = BRANCHES.search(self.attributes)
        if match:
            return tuple(name.strip().lstrip("%") for name in match[1].split(","))
        roles = ("true_computation", "false_computation")
        return tuple(self.called[role] for role in roles if role in self.called)

    @property
    def op_name(self) -> str:
        """Origin in the Python program: named scopes and primitives; "" if not given."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Named instructions, in order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction that makes the result."""
        return next(instruction for instruction in self.instructions.values() if instruction.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {
            int(instruction.literal): instruction
            for instruction in self.instructions.values()
            if instruction.opcode == "parameter"
        }

    def users(self, name: str) -> list[Instruction]:
        """Returns the instructions that read `name`."""
        return [instruction for instruction in self.instructions.values() if name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str


def parse_shape(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape: "bf16[128,2048]{1,0:T(8,128)(2,1)S(1)}", or of a tuple of shapes."""
    return tuple(
        Array(
            dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), bool(re.search(r"S\([1-9]", layout or ""))
        )
        for dtype, dims, layout in ARRAY.findall(text)
    )


def _closing_parenthesis(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`; skips text in double quotes."""
    depth, quoted = 0, False
    for index in range(start, len(text)):
        character = text[index]
        if character == '"' and text[index - 1] != "\\":
            quoted = not quoted
        if quoted:
            continue
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    raise ValueError(f"HLO line with an open parenthesis: {text[:200]}")


def parse_instruction(line: str) -> Instruction | None:
    """Parses one line of a computation; returns None if it is no instruction."""
    head = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = re.sub(r"/\*index=\d+\*/", "", line[head.end() :])
    end = _closing_parenthesis(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing_parenthesis(rest, opening)
    inner = rest[opening + 1 : closing]
    opcode = rest[:opening]
    operands = () if opcode in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", inner))
    return Instruction(
        name=head[2],
        shape=parse_shape(shape),
        opcode=opcode,
        operands=operands,
        literal=inner,
        attributes=rest[closing + 1 :],
        is_root=bool(head[1]),
    )


def parse_module(text: str) -> Module:
    """Parses the program in `compiled.as_text()`.

    Raises:
      ValueError: no computation is marked ENTRY, or a line cannot be read.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        opened = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*->.*\{$", line)
        if opened:
            current = Computation(opened[2], {})
            computations[current.name] = current
            entry = current.name if opened[1] else entry
        elif current is not None:
            instruction = parse_instruction(line)
            if instruction:
                current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("HLO text without an ENTRY computation")
    return Module(computations, entry)


def largest_arrays(module: Module, *, most: int) -> list[tuple[str, int, str]]:
    """Returns (shape, bytes, op_name) of the largest arrays outside of fusions, each shape once, largest first."""
    fused = {
        instruction.called["calls"]
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
    }
    found: dict[tuple[str, tuple[int, ...]], tuple[int, str]] = {}
    for computation in module.computations.values():
        for instruction in computation.instructions.values() if computation.name not in fused else ():
            if instruction.opcode not in PASS_THROUGH:
                for array in instruction.shape:
                    found.setdefault((array.dtype, array.dims), (array.bytes, instruction.op_name))
    ranked = sorted(found.items(), key=lambda item: -item[1][0])[:most]
    return [(f"{dtype}[{','.join(map(str, dims))}]", size, name) for (dtype, dims), (size, name) in ranked]


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Returns how often a `while` runs: the compiler's note, or n / s of the condition `i < n` and the body's `i + s`.

    Returns None if it finds neither. The compiler's loops count from 0: a scan by 1; a matrix product that overlaps
    the exchange of its operands (`windowed_dot_general`) by the number of blocks that one run multiplies.
    """
    noted = TRIP_COUNT.search(loop.attributes)
    if noted:
        return int(noted[1])
    condition, body = (module.computations[loop.called[role]] for role in ("condition", "body"))
    compare = condition.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (condition.instructions[name] for name in compare.operands)
    place = re.search(r"\bindex=(\d+)", counter.attributes)
    if limit.opcode != "constant" or counter.opcode != "get-tuple-element" or place is None:
        return None
    step = _loop_increment(body, int(place[1]))
    return None if step is None else -(-int(limit.literal) // step)


def _loop_increment(body: Computation, place: int) -> int | None:
    """Returns the constant that one run of a loop's body adds to its carried value at `place`; None if not found."""
    if body.root.opcode != "tuple":
        return None
    after = body.instructions[body.root.operands[place]]
    terms = [body.instructions[name] for name in after.operands] if after.opcode == "add" else []
    constants = [int(term.literal) for term in terms if term.opcode == "constant"]
    return constants[0] if len(constants) == 1 and constants[0] > 0 else None


def group_size(instruction: Instruction, devices: int) -> int:
    """Returns the number of devices in one group of a collective; all devices if no groups are named.

    replica_groups=[2,64]<=[128]                            64
    replica_groups={{0,1,2,3},{4,5,6,7}}                    4
    replica_groups=mesh['a'=2,'b'=64] {'b'}                 64; an axis may be split: 'b':(4)16 is 16 of it
    """
    text = instruction.attributes
    compact = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text)
    if compact:
        return int(compact[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(
            int(part or sizes[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        )
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    return len(listed[1].split(",")) if listed else devices
