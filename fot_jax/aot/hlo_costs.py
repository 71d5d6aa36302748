"""Costs of a compiled program by its text: matrix FLOPs, bytes through HBM, bytes through the interconnect.

The compiler's own cost analysis counts the body of a loop once; here it counts as often as it runs. All figures are
for one device and one run of the program:

    FLOPs        2 x multiplications of `dot` and `convolution`; of kernels what they declare
    HBM          bytes that each instruction or fusion reads and writes; of a sliced operand only the slice; nothing
                 that is on the chip (`S(1)`); without the padding of tiles
    interconnect bytes that a device receives; g devices in a group, b the bytes of the whole result or operand:
                     all-gather, reduce-scatter, all-to-all   b (g − 1) / g
                     all-reduce                               2 b (g − 1) / g
                     collective-permute                       b
    conditional  its costliest branch, as often as `branch_shares` says

A TPU's compiler may spread one collective over the fusions that run at the same time. Each of them then holds this
collective, marked by `async_collective_fusion_config`, and hands its buffers on:

    fusion with AsyncCollectiveStart  →  async_collective_fusion …  →  fusion with AsyncCollectiveDone

The collective counts once, where it starts.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping

from fot_jax.aot.hlo import Array, Computation, Instruction, Module, group_size, trip_count
from fot_jax.aot.hlo_flops import flops

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all", "ragged-all-to-all")
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "iota", "domain", "add-dependency",
}  # fmt: skip
CHAIN_START, CHAIN_END = "AsyncCollectiveStart", "AsyncCollectiveDone"
SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Sums of one run on one device.

    Attributes:
      flops: FLOPs of matrix products.
      hbm_bytes: HBM bytes read and written.
      received: interconnect bytes by kind of collective.
      collectives: number of collectives run, by kind.
      overlapped: number of them that start before other work and end after it; chains of fusions are not included.
      kernels: number of custom calls run, by target.
      unknown_loops: loops whose trip count is not in the text; they count once.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    received: Mapping[str, float] = dataclasses.field(default_factory=dict)
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    overlapped: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kernels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unknown_loops: float = 0.0

    def plus(self, other: "Costs", times: float = 1.0) -> "Costs":
        """Returns the sum of this and `times` the other."""
        sums = {}
        for field in dataclasses.fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            if isinstance(own, Mapping):
                sums[field.name] = {k: own.get(k, 0.0) + times * others.get(k, 0.0) for k in {**own, **others}}
            else:
                sums[field.name] = own + times * others
        return Costs(**sums)


def count(module: Module, *, devices: int, branch_shares: Mapping[str, float] | None = None) -> Costs:
    """Counts the costs of a program.

    Args:
      module: the parsed text.
      devices: number of devices of the whole program.
      branch_shares: a pattern for the `op_name` of a conditional, and the share of its runs in which the costliest
        branch is taken; conditionals that no pattern matches always take it.
    """
    return _CostCounter(module, devices, dict(branch_shares or {})).computation(module.entry)


@dataclasses.dataclass
class _CostCounter:
    module: Module
    devices: int
    branch_shares: dict[str, float]

    def __post_init__(self):
        self.computation = functools.cache(self._computation)

    def _computation(self, name: str) -> Costs:
        computation = self.module.computations[name]
        total = Costs()
        for instruction in computation.instructions.values():
            total = total.plus(self._instruction(computation, instruction))
        return total

    def _instruction(self, computation: Computation, instruction: Instruction) -> Costs:
        if instruction.opcode in FREE or instruction.opcode.endswith(("-done", "-update")):
            return Costs()
        if instruction.opcode == "while":
            trips = trip_count(self.module, instruction)
            body = self.computation(instruction.called["body"])
            return Costs(unknown_loops=float(trips is None)).plus(body, times=1 if trips is None else trips)
        if instruction.opcode == "conditional":
            costliest = max(
                (self.computation(name) for name in instruction.branches), key=lambda c: (c.flops, c.hbm_bytes)
            )
            return Costs().plus(costliest, times=self._share(instruction))
        if instruction.opcode in ("call", "async-start"):
            role = "calls" if "calls" in instruction.called else "to_apply"
            return self.computation(instruction.called[role])
        if instruction.opcode == "fusion":
            return dataclasses.replace(
                self.computation(instruction.called["calls"]), hbm_bytes=self._fusion_bytes(computation, instruction)
            )
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            if _continues_collective(computation, instruction):
                return Costs()
            kind = "all-reduce-scatter" if _is_reduce_scatter(computation, instruction) else kind
            received = self._received(kind, instruction)
            moved = sum(array.bytes for array in self._result(instruction) if not array.on_chip)
            kind = "reduce-scatter" if kind == "all-reduce-scatter" else kind
            overlapped = {kind: float(_is_overlapped(computation, instruction))}
            return Costs(
                hbm_bytes=2.0 * moved, received={kind: received}, collectives={kind: 1.0}, overlapped=overlapped
            )
        if instruction.opcode == "custom-call":
            return (
                Costs() if '"AllocateBuffer"' in instruction.attributes else self._custom_call(computation, instruction)
            )
        return Costs(flops=flops(computation, instruction), hbm_bytes=self._plain_bytes(computation, instruction))

    def _share(self, instruction: Instruction) -> float:
        shares = [share for pattern, share in self.branch_shares.items() if re.search(pattern, instruction.op_name)]
        return shares[0] if shares else 1.0

    def _result(self, instruction: Instruction):
        """Returns the arrays that a collective hands on; a `-start` carries its operands and counters too."""
        if not instruction.opcode.endswith("-start") or instruction.opcode == "all-reduce-start":
            return instruction.shape
        number = len(instruction.operands)
        return instruction.shape[number : 2 * number] or instruction.shape

    def _received(self, kind: str, instruction: Instruction) -> float:
        result = float(sum(array.bytes for array in self._result(instruction)))
        if kind == "collective-permute":
            return result
        size = group_size(instruction, self.devices)
        whole = result * size if kind == "reduce-scatter" else result
        return whole * (size - 1) / size * (2 if kind == "all-reduce" else 1)

    def _custom_call(self, computation: Computation, instruction: Instruction) -> Costs:
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        declared = re.search(r'"flops":"?(\d+)', instruction.attributes)
        name = target[1] if target else "unnamed"
        return Costs(
            flops=float(declared[1]) if declared else 0.0,
            hbm_bytes=0.0 if name in (CHAIN_START, CHAIN_END) else self._plain_bytes(computation, instruction),
            kernels={name: 1.0},
        )

    def _plain_bytes(self, computation: Computation, instruction: Instruction) -> float:
        """Returns the HBM bytes of operands and result of an instruction that is no fusion."""
        operands = [computation.instructions[name] for name in instruction.operands]
        if instruction.opcode in SLICES:
            return float(_hbm(instruction) + min(instruction.bytes, _hbm(operands[0])))
        if instruction.opcode == "dynamic-update-slice":
            return 2.0 * min(_hbm(instruction), operands[1].bytes)
        if instruction.opcode == "copy-start":  # (destination, source, counter)
            return float(_hbm(operands[0]) + (0 if instruction.shape[0].on_chip else instruction.shape[0].bytes))
        if instruction.opcode == "slice-start":  # (source, slice, counter)
            piece = instruction.shape[1]
            return float((2 - piece.on_chip) * piece.bytes)
        return float(_hbm(instruction) + sum(map(_hbm, operands)))

    def _fusion_bytes(self, computation: Computation, instruction: Instruction) -> float:
        fused = self.module.computations[instruction.called["calls"]]
        # The two ends of a chain hold the collective, its parameters and the call, nothing else.
        if _custom_call(fused, CHAIN_END):
            return 0.0
        if start := _custom_call(fused, CHAIN_START):  # its results: operands, what the collective makes, counters
            number = len(fused.instructions[start.operands[0]].operands)
            return 2.0 * sum(array.bytes for array in instruction.shape[number : 2 * number] if not array.on_chip)
        total = float(_written(fused, fused.root, instruction.shape))
        for number, name in enumerate(instruction.operands):
            total += min(_hbm(computation.instructions[name]), self._read(fused, fused.parameters[number].name))
        return total

    def _read(self, fused: Computation, name: str) -> int:
        """Returns the bytes of a parameter that a fusion reads: only the slices, if it is only sliced."""
        total, users = 0, fused.users(name)
        if _overlaps_collective(fused):  # operands of the collective are handed on unread
            users = [user for user in users if user.opcode != "tuple" and not _continues_collective(fused, user)]
        for user in users:
            if user.opcode in SLICES and user.operands[0] == name:
                total += user.bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue
            elif user.opcode == "bitcast":
                total += self._read(fused, user.name)
            elif user.opcode == "fusion":
                inner = self.module.computations[user.called["calls"]]
                places = [i for i, operand in enumerate(user.operands) if operand == name]
                total += sum(self._read(inner, inner.parameters[i].name) for i in places)
            else:
                return fused.instructions[name].bytes
        return total


def _written(fused: Computation, root: Instruction, arrays: tuple[Array, ...]) -> int:
    """Returns the bytes that a fusion writes to its results: of an update in place, only the update."""
    while root.opcode == "bitcast":
        root = fused.instructions[root.operands[0]]
    if root.opcode == "tuple":
        parts = [fused.instructions[name] for name in root.operands]
        return sum(_written(fused, part, (array,)) for part, array in zip(parts, arrays, strict=True))
    if _overlaps_collective(fused) and (root.opcode == "parameter" or _continues_collective(fused, root)):
        return 0
    whole = sum(array.bytes for array in arrays if not array.on_chip)
    if root.opcode == "dynamic-update-slice":
        return min(whole, fused.instructions[root.operands[1]].bytes)
    return whole


def _is_overlapped(computation: Computation, instruction: Instruction) -> bool:
    """True if other work runs between a `-start` and its `-done`, in the order of instructions."""
    if not instruction.opcode.endswith("-start"):
        return False
    names = list(computation.instructions)
    for name in names[names.index(instruction.name) + 1 :]:
        other = computation.instructions[name]
        if instruction.name in other.operands:
            return False
        if other.opcode not in FREE and not other.opcode.endswith(("-start", "-done", "-update")):
            return True
    return False


def _continues_collective(computation: Computation, instruction: Instruction) -> bool:
    """True if a collective started in another fusion and only continues in this one; see the module's docstring."""
    marked = instruction.opcode in COLLECTIVES and '"async_collective_fusion_config"' in instruction.attributes
    return marked and _custom_call(computation, CHAIN_START) is None


def _overlaps_collective(fused: Computation) -> bool:
    """True if a fusion overlaps with a collective that it hands on."""
    return any(_continues_collective(fused, instruction) for instruction in fused.instructions.values())


def _custom_call(computation: Computation, target: str) -> Instruction | None:
    """Returns the first custom call of a target, or None."""
    calls = (instruction for instruction in computation.instructions.values() if instruction.opcode == "custom-call")
    return next((instruction for instruction in calls if f'"{target}"' in instruction.attributes), None)


def _is_reduce_scatter(computation: Computation, instruction: Instruction) -> bool:
    """True if an all-reduce is half of a TPU's reduce-scatter: a fusion of it and the slice that is kept."""
    if instruction.opcode != "all-reduce":
        return False
    users = computation.users(instruction.name)
    return len(users) == 1 and users[0].opcode == "dynamic-slice" and computation.name.startswith("all-reduce-scatter")


def _hbm(instruction: Instruction) -> int:
    """Returns the bytes of a result that are in HBM."""
    return sum(array.bytes for array in instruction.shape if not array.on_chip)
