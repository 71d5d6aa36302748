"""The common part of the kernels for TPUs and for GPUs: what is static about a call, and who sees what of a block.

Arrays, padded to whole blocks: queries [B, H, L, D], keys and values [rows, G, S, D], per-query numbers (peaks,
totals) [B, H, L].
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fot_jax.config import Boundaries
from fot_jax.ops.backends.worklist import FILLED, OWN, WorkList
from fot_jax.ops.visibility import key_ranges, nobody_sees, query_ranges, visible

NT = (((1,), (1,)), ((), ()))  # a · bᵀ
NN = (((1,), (0,)), ((), ()))  # a · b


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """All that is static about one call: who sees what, how the kernels run, and the sizes of the padded arrays.

    Attributes:
      boundaries: MASKED or JOINED documents.
      causal: whether each row reads its own chunk, causally; else the contexts of a plan.
      query_block: queries per block, in tokens.
      key_block: keys per block, in tokens.
      interpret: as `Pallas`.
      widen: whether the chip's matrix products take float32 only (TPU v2, v3), which it rounds itself.
      B, H, L, D, rows, G, S: sizes; see the top of this file.
      itemsize: bytes of a number of the keys.
    """

    boundaries: Boundaries
    causal: bool
    query_block: int
    key_block: int
    interpret: bool | pltpu.InterpretParams = False
    widen: bool = False
    B: int
    H: int
    L: int
    D: int
    rows: int
    G: int
    S: int
    itemsize: int

    @property
    def query_blocks(self) -> int:
        """Blocks of queries in a row."""
        return self.L // self.query_block

    @property
    def key_blocks(self) -> int:
        """Blocks of keys in a row."""
        return self.S // self.key_block

    @property
    def repeats(self) -> int:
        """Query heads that read one key/value head."""
        return self.H // self.G

    def last_key_block(self, i):
        """Returns the last key block that a query of block i sees in its own chunk."""
        return jax.lax.div(i * self.query_block + self.query_block - 1, self.key_block)

    def key_block_read(self, i, j):
        """Returns block j, or the block already in VMEM where j is above the diagonal."""
        return jnp.minimum(j, self.last_key_block(i)) if self.causal else j

    def query_block_read(self, i, j):
        """Returns block i, or the first block that sees key block j where i is above the diagonal."""
        first = jax.lax.div(j * self.key_block, self.query_block)
        return jnp.maximum(i, first) if self.causal else i

    def cost(self, work: WorkList, *, products: int, reads: int, arrays: int) -> pl.CostEstimate:
        """Returns the cost as if every slot were filled, half of the scores where causal.

        Args:
          work: the list walked over.
          products: matrix products per block of scores.
          reads: numbers of D read anew for each pair and head.
          arrays: bytes read or written once.
        """
        half = 2 if self.causal else 1
        scores = work.slots * self.H * self.L * self.S // half
        moved = work.slots * self.H * reads * self.D * self.itemsize // half
        return pl.CostEstimate(
            flops=2 * products * scores * self.D, transcendentals=scores, bytes_accessed=moved + arrays
        )


def lookup_tables(spec: KernelSpec, work: WorkList, query_segments, key_segments) -> tuple[jax.Array, ...]:
    """Returns the tables of `visible_block`, flat for scalar memory.

    They are readers, contexts and flags [V] of the pairs, and the lowest and highest document id of each block of
    queries [B · query blocks] and of keys [rows · key blocks].
    """
    queries, keys = query_ranges(query_segments, spec.query_block), key_ranges(key_segments, spec.key_block)
    ranges = queries.low, queries.high, keys.low, keys.high
    return work.readers, work.contexts, work.flags, *(x.reshape(-1) for x in ranges)


def visible_block(spec: KernelSpec, pair, i, j, tables):
    """Whether a query of block i may see a key of block j; other blocks are skipped."""
    readers, contexts, flags, query_low, query_high, key_low, key_high = tables
    query, key = readers[pair] * spec.query_blocks + i, contexts[pair] * spec.key_blocks + j
    ranges = query_low[query], query_high[query], key_low[key], key_high[key]
    seen = jnp.logical_not(nobody_sees(*ranges, flags[pair] & OWN != 0, boundaries=spec.boundaries))
    seen &= flags[pair] & FILLED != 0
    return seen & (j <= spec.last_key_block(i)) if spec.causal else seen


def block_mask(spec: KernelSpec, query_segments, key_segments, own, i, j, *, query_axis: int):
    """Returns who sees whom in one block, queries along `query_axis`; `own` is 0 or 1."""
    shape = (spec.query_block, spec.key_block) if query_axis == 0 else (spec.key_block, spec.query_block)
    query_segments, key_segments = jnp.broadcast_to(query_segments, shape), jnp.broadcast_to(key_segments, shape)
    mask = visible(query_segments, key_segments, own, boundaries=spec.boundaries)
    if spec.causal:
        places = i * spec.query_block + jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
        mask &= j * spec.key_block + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis) <= places
    return mask


def array_like(x, shape, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    """Returns the shape of an output that varies over the same mesh axes as x (inside `shard_map`)."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
