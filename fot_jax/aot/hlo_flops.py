"""FLOPs of one instruction of a program's text; a multiplication and an addition are two."""

import re

import numpy as np

from fot_jax.aot.hlo import Computation, Instruction


def flops(computation: Computation, instruction: Instruction) -> float:
    """Returns the FLOPs of a matrix product; 0 for anything else.

    For TPUs, XLA writes products with one row, as in decoding, as a multiplication and a sum (`reduce`), which keeps
    the product's name.
    """
    if instruction.opcode == "reduce" and instruction.op_name.endswith("dot_general"):
        return 2.0 * computation.instructions[instruction.operands[0]].shape[0].elements
    if instruction.opcode == "dot":
        left = computation.instructions[instruction.operands[0]].shape[0].dims
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(axis) for axis in contracted[1].split(",")] if contracted and contracted[1] else []
        return 2.0 * instruction.shape[0].elements * float(np.prod([left[axis] for axis in axes], initial=1))
    return _convolution_flops(computation, instruction) if instruction.opcode == "convolution" else 0.0


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """Returns 2 x kernel features in x features out x batch x valid (output, kernel) places of each window axis.

    For TPUs, XLA writes matrix products as convolutions, with batch axes as windows that meet one place each.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, instruction.attributes
    left, right = (computation.instructions[name].shape[0].dims for name in instruction.operands[:2])
    sizes = [
        dict(zip(names, dims, strict=True))
        for names, dims in zip(labels.groups(), (left, right, instruction.shape[0].dims), strict=True)
    ]
    spatial = sorted(name for name in labels[3] if name.isdigit())
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    places = 1.0
    for axis, name in enumerate(spatial):
        kernel = sizes[1][name]
        window = {
            key: _window(instruction, key, axis, len(spatial)) for key in ("stride", "lhs_dilate", "rhs_dilate", "pad")
        }
        places *= _valid_places(sizes[0][name], kernel, sizes[2][name], **window)
    return 2.0 * sizes[1]["i"] * sizes[2]["f"] * sizes[0]["b"] / int(groups[1] if groups else 1) * places


def _window(instruction: Instruction, key: str, axis: int, axes: int) -> int:
    """Returns one value of `window={size=3x3 stride=2x2 pad=1_1x1_1}`; of a padding the low side."""
    default = {"pad": 0}.get(key, 1)
    match = re.search(rf"window=\{{[^}}]*\b{key}=([\d_x\-]+)", instruction.attributes)
    if not match:
        return default
    entries = match[1].split("x")
    assert len(entries) == axes, instruction.attributes
    return int(entries[axis].split("_")[0])


def _valid_places(size: int, kernel: int, out: int, *, stride: int, lhs_dilate: int, rhs_dilate: int, pad: int) -> int:
    """Counts (output, kernel) pairs that meet an element of the input, not padding or the gaps of a dilation."""
    places = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * rhs_dilate - pad
    inside = (places >= 0) & (places <= (size - 1) * lhs_dilate) & (places % lhs_dilate == 0)
    return int(inside.sum())
