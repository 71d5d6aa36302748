"""Attention by Pallas kernels, for TPUs and GPUs: padding and work lists around the chip's three kernels.

Rows are read by the plan's index where they are; no context is ever copied. See docs/backends.md.

Source: FoT eq. (2), app. B.3.
"""

import dataclasses
import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from fot_jax.config import Boundaries
from fot_jax.ops import target
from fot_jax.ops.backends import Gradients, pallas_gpu, pallas_tpu, worklist
from fot_jax.ops.backends.kernel_spec import KernelSpec
from fot_jax.types import Partial, Plan, Rows, Upstream

QUERY_BLOCK = 512  # tokens; with 512 keys a block the largest kernel takes about 8 of 16 MiB of VMEM
# Mosaic refuses matrix products of bfloat16 there (E2001); of float32 they round to bfloat16 in the matrix unit.
WIDE_PRODUCTS = ("TPU v2", "TPU v3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pallas:
    """Three kernels, by Mosaic for TPUs or Triton for GPUs. In a mesh of several devices it runs inside `Sharded`.

    Queries, keys and values are float32 or bfloat16; products are summed in float32.

    Attributes:
      boundaries: MASKED or JOINED documents.
      block: keys per block, in tokens; on a TPU taken up to a multiple of 128, on a GPU down to a power of two of at
        most 64.
      query_block: queries per block, likewise.
      interpret: True or Pallas' parameters: run on any device, slowly, blocks taken as given (for tests).
    """

    boundaries: Boundaries
    block: int
    query_block: int = QUERY_BLOCK
    interpret: bool | pltpu.InterpretParams = False

    def local(self, queries, own: Rows) -> Partial:
        """See `Backend`."""
        return self._forward(queries, own, own.segments, plan=None)

    def contexts(self, queries, rows: Rows, plan: Plan, *, segments) -> Partial:
        """See `Backend`."""
        return self._forward(queries, rows, segments, plan=plan)

    def local_gradients(self, queries, own: Rows, upstream: Upstream) -> Gradients:
        """See `Backend`."""
        return self._gradients(queries, own, own.segments, upstream, plan=None)

    def context_gradients(self, queries, rows: Rows, plan: Plan, upstream: Upstream, *, segments) -> Gradients:
        """See `Backend`."""
        return self._gradients(queries, rows, segments, upstream, plan=plan)

    def spec(self, queries, keys, *, causal: bool) -> KernelSpec:
        """Returns the spec of a call for the chip that is traced for; `queries` and `keys` are not padded yet."""
        (B, H, L, D), (rows, G, S, _) = queries.shape, keys.shape
        block_length = functools.partial(_kernels().block_length, free=bool(self.interpret))
        query_block, key_block = block_length(self.query_block, length=L), block_length(self.block, length=S)
        return KernelSpec(
            boundaries=self.boundaries, causal=causal, query_block=query_block, key_block=key_block,
            interpret=self.interpret, widen=target.current().kind in WIDE_PRODUCTS,
            B=B, H=H, L=L + -L % query_block, D=D, rows=rows, G=G, S=S + -S % key_block, itemsize=keys.dtype.itemsize,
        )  # fmt: skip

    def _forward(self, queries, rows: Rows, segments, *, plan: Plan | None) -> Partial:
        spec, arrays = self._padded(queries, rows, segments, causal=plan is None)
        work = worklist.own_rows(spec.B) if plan is None else worklist.by_reader(plan)
        return _cut(_kernels().forward(spec, work, *arrays), queries.shape[2])

    def _gradients(self, queries, rows: Rows, segments, upstream: Upstream, *, plan: Plan | None) -> Gradients:
        spec, arrays = self._padded(queries, rows, segments, causal=plan is None)
        if plan is None:
            by_reader = by_context = worklist.own_rows(spec.B)
        else:
            by_reader, by_context = worklist.by_reader(plan), worklist.by_context(plan, rows=spec.rows)
        upstream = dataclasses.replace(upstream, d_weighted=upstream.d_weighted.astype(rows.values.dtype))
        upstream = jax.tree.map(functools.partial(_pad, length=spec.L), upstream)
        dq = _kernels().queries_gradient(spec, by_reader, *arrays, upstream)
        dk, dv = _cut(_kernels().keys_gradient(spec, by_context, *arrays, upstream), rows.keys.shape[2])
        return _cut(dq, queries.shape[2]), dk, dv

    def _padded(self, queries, rows: Rows, segments, *, causal: bool):
        """Returns the spec, and (queries, rows, segments) padded to whole blocks by hidden tokens."""
        spec = self.spec(queries, rows.keys, causal=causal)
        whole = Rows(
            keys=_pad(rows.keys, spec.S),
            values=_pad(rows.values, spec.S),
            segments=_pad(rows.segments, spec.S, axis=1).astype(jnp.int32),
        )
        return spec, (_pad(queries, spec.L), whole, _pad(segments, spec.L, axis=1).astype(jnp.int32))


def _kernels() -> ModuleType:
    """Returns the module of the kernels of the chip that is traced for."""
    return pallas_gpu if target.current().platform == "gpu" else pallas_tpu


def _pad(x, length: int, *, axis: int = 2):
    """Pads positions with zeros."""
    return jnp.pad(x, [(0, length - n if i == axis else 0) for i, n in enumerate(x.shape)])


def _cut(tree, length: int):
    """Drops the padding of [B, heads, positions, …]."""
    return jax.tree.map(lambda x: x[:, :, :length], tree)
