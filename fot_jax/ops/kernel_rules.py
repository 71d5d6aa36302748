"""What the kernels for TPUs and for GPUs share: sizes, and who sees what of a block.

Arrays, padded to whole blocks: queries [B, H, L, D], keys and values [rows, G, S, D], per-query numbers (peaks,
totals) [B, H, 1, L].
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fot_jax.config import Boundaries
from fot_jax.ops.visits import FILLED, OWN, Visits

NT = (((1,), (1,)), ((), ()))  # a · bᵀ
NN = (((1,), (0,)), ((), ()))  # a · b


class Compiler(enum.Enum):
    """Of the kernels: MOSAIC for TPUs (`pallas_calls.py`), TRITON for GPUs (`triton_calls.py`)."""

    MOSAIC = "mosaic"
    TRITON = "triton"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is static about a call: who sees what, sizes, and how the kernels run."""

    boundaries: Boundaries
    causal: bool  # True: each row reads its own chunk, causally
    query_block: int
    key_block: int
    interpret: bool | pltpu.InterpretParams = False
    widen: bool = False  # matrix products of the chip (TPU v2, v3) take float32 only, and round it themselves
    compiler: Compiler = Compiler.MOSAIC


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes read off the padded arrays."""

    rule: Rule
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
        return self.L // self.rule.query_block

    @property
    def key_blocks(self) -> int:
        """Blocks of keys in a row."""
        return self.S // self.rule.key_block

    def last_key_block(self, i):
        """The last key block that a query of block i sees in its own chunk."""
        return jax.lax.div(i * self.rule.query_block + self.rule.query_block - 1, self.rule.key_block)

    def key_block_read(self, i, j):
        """Block j, or the block already in VMEM where j lies above the diagonal."""
        return jnp.minimum(j, self.last_key_block(i)) if self.rule.causal else j

    def query_block_read(self, i, j):
        """Block i, or the first block that sees key block j where i lies above the diagonal."""
        first = jax.lax.div(j * self.rule.key_block, self.rule.query_block)
        return jnp.maximum(i, first) if self.rule.causal else i

    def cost(self, visits: Visits, *, products: int, reads: int, arrays: int) -> pl.CostEstimate:
        """Counted as if every slot were filled, half of the scores where causal.

        Args:
          visits: the list walked over.
          products: matrix products per block of scores.
          reads: numbers of D read anew for each visit and head.
          arrays: bytes read or written once.
        """
        half = 2 if self.rule.causal else 1
        scores = visits.slots * self.H * self.L * self.S // half
        moved = visits.slots * self.H * reads * self.D * self.itemsize // half
        return pl.CostEstimate(
            flops=2 * products * scores * self.D, transcendentals=scores, bytes_accessed=moved + arrays
        )


def sizes_of(rule: Rule, queries, keys) -> Sizes:
    """Sizes of a call on padded arrays."""
    B, H, L, D = queries.shape
    rows, G, S, _ = keys.shape
    return Sizes(rule=rule, B=B, H=H, L=L, D=D, rows=rows, G=G, S=S, itemsize=keys.dtype.itemsize)


def visible_block(sizes: Sizes, visit, i, j, scalars):
    """False where no query of block i can see a key of block j: such blocks are skipped."""
    readers, contexts, flags, query_low, query_high, key_low, key_high = scalars
    query, key = readers[visit] * sizes.query_blocks + i, contexts[visit] * sizes.key_blocks + j
    q_low, q_high, k_low, k_high = query_low[query], query_high[query], key_low[key], key_high[key]
    own = flags[visit] & OWN != 0
    overlap = (q_low <= k_high) & (k_low <= q_high)
    if sizes.rule.boundaries is Boundaries.JOINED:
        overlap = k_high > 0
    one_document = (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
    seen = (own & overlap) | (jnp.logical_not(own) & jnp.logical_not(one_document))
    seen &= (k_high > 0) & (flags[visit] & FILLED != 0)
    return seen & (j <= sizes.last_key_block(i)) if sizes.rule.causal else seen


def block_mask(rule: Rule, query_segments, key_segments, own, i, j, *, query_axis: int):
    """`blocks.block_visibility` of one block, queries along `query_axis`; `own` is 0 or 1."""
    shape = (rule.query_block, rule.key_block) if query_axis == 0 else (rule.key_block, rule.query_block)
    query_segments, key_segments = jnp.broadcast_to(query_segments, shape), jnp.broadcast_to(key_segments, shape)
    same = jnp.where(query_segments == key_segments, 1, 0)
    allowed = same == own if rule.boundaries is Boundaries.MASKED else same <= own
    mask = allowed & (key_segments != 0)
    if rule.causal:
        places = i * rule.query_block + jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
        mask &= j * rule.key_block + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis) <= places
    return mask


def array_like(x, shape, dtype) -> jax.ShapeDtypeStruct:
    """An output that varies over the same mesh axes as x (inside `shard_map`)."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
