"""What the ring does with one block of rows in hand: attention to it, and its gradients, in one of two forms.

A hop is static. Inside a device, r rows: queries and what belongs to them lie in the form's own layout from the first
hop to the last; keys and values travel as [rows, G, S, D] and are padded to whole blocks where they are read.

    form        queries          peaks and totals    where
    blockwise   [r, G, T, D]     [r, G, T]           anywhere; T = H/G · L
    pallas      [r, H, L', D]    [r, H, L']          TPUs, GPUs; L' whole blocks of queries
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import blockwise, pallas_attention
from fot_jax.ops.pallas_attention import QUERY_BLOCK
from fot_jax.types import Partial, Plan

Block = tuple[jax.Array, jax.Array, jax.Array]  # keys, values [rows, G, S, D], segments [rows, S]


@runtime_checkable
class Hop(Protocol):
    """One form's part of the ring; `readings` names places in the block, and `segments` are the queries'."""

    def inward(self, x: Float[Array, "r L H *D"], G: int) -> jax.Array:
        """What belongs to queries, in the form's layout."""
        ...

    def outward(self, x: jax.Array, L: int) -> Float[Array, "r L H *D"]:
        """The inverse of `inward`."""
        ...

    def forward(self, queries: jax.Array, held: Block, readings: Plan, segments: jax.Array) -> Partial:
        """Attends to the rows of the block that `readings` names."""
        ...

    def gradients(
        self, queries: jax.Array, held: Block, readings: Plan, segments: jax.Array,
        peak: jax.Array, d_weighted: jax.Array, d_total: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
        """Float32 gradients of the queries, and of the block's keys and values, by the peak over all hops."""
        ...


def hop_of(form: AttentionForm, *, boundaries: Boundaries, block: int, **kernel_options) -> Hop:
    """PALLAS with its options, or BLOCKWISE for every other form, which has none."""
    if form is AttentionForm.PALLAS:
        return PallasHop(boundaries=boundaries, block=block, **kernel_options)
    return BlockwiseHop(boundaries=boundaries, block=block)


def _whole(held: Block, block: int) -> Block:
    """The block of rows with hidden positions up to whole blocks of keys."""
    padding = (0, -held[0].shape[2] % block)
    keys, values = (jnp.pad(x, [(0, 0), (0, 0), padding, (0, 0)]) for x in held[:2])
    return keys, values, jnp.pad(held[2], [(0, 0), padding])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockwiseHop:
    """By `fot_jax/ops/blockwise.py`; `block` is in tokens."""

    boundaries: Boundaries
    block: int

    def inward(self, x, G: int):
        """[r, L, H, …] -> [r, G, T, …]."""
        return blockwise.stack(x, G)

    def outward(self, x, L: int):
        """[r, G, T, …] -> [r, L, H, …]."""
        return blockwise.unstack(x, L)

    def _arguments(self, queries, held: Block, readings: Plan, segments):
        """Those of `blockwise.forward`; the keys padded to whole blocks of scores."""
        repeats, block = queries.shape[2] // segments.shape[1], min(self.block, held[0].shape[2])
        keys, values, key_segments = _whole(held, block)
        rule = blockwise.Rule(boundaries=self.boundaries, causal=False, block=block, repeats=repeats)
        return rule, queries, keys, values, readings, segments, key_segments

    def forward(self, queries, held: Block, readings: Plan, segments) -> Partial:
        """See `Hop`."""
        return Partial(*blockwise.forward(*self._arguments(queries, held, readings, segments))[0])

    def gradients(self, queries, held: Block, readings: Plan, segments, peak, d_weighted, d_total):
        """See `Hop`."""
        rule, *inputs = self._arguments(queries, held, readings, segments)
        dq, dk, dv = blockwise.gradients(rule, (*inputs, peak), (d_weighted, None, d_total))
        S = held[0].shape[2]
        return dq, dk[:, :, :S], dv[:, :, :S]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PallasHop:
    """By the kernels of `fot_jax/ops/pallas_attention.py`; fields as `pallas_partial`'s arguments."""

    boundaries: Boundaries
    block: int
    query_block: int = QUERY_BLOCK
    interpret: bool | pltpu.InterpretParams = False

    def _rule(self, L: int, S: int):
        return pallas_attention.make_rule(
            boundaries=self.boundaries, causal=False, lengths=(L, S),
            block=self.block, query_block=self.query_block, interpret=self.interpret,
        )  # fmt: skip

    def inward(self, x, G: int):
        """[r, L, H, …] -> [r, H, L', …]."""
        del G
        return pallas_attention.to_whole(x, self._rule(x.shape[1], 1).query_block).swapaxes(1, 2)

    def outward(self, x, L: int):
        """[r, H, L', …] -> [r, L, H, …]."""
        return x.swapaxes(1, 2)[:, :L]

    def _arguments(self, queries, held: Block, readings: Plan, segments):
        """Those of `pallas_attention.forward`."""
        rule = self._rule(segments.shape[1], held[0].shape[2])
        keys, values, key_segments = _whole(held, rule.key_block)
        segments = pallas_attention.to_whole(segments, rule.query_block)
        return rule, queries, keys, values, readings, segments.astype(jnp.int32), key_segments.astype(jnp.int32)

    def forward(self, queries, held: Block, readings: Plan, segments) -> Partial:
        """See `Hop`."""
        weighted, peak, total = pallas_attention.forward(*self._arguments(queries, held, readings, segments))[0]
        return Partial(weighted=weighted, peak=peak[:, :, 0], total=total[:, :, 0])

    def gradients(self, queries, held: Block, readings: Plan, segments, peak, d_weighted, d_total):
        """See `Hop`."""
        rule, *inputs = self._arguments(queries, held, readings, segments)
        saved, cotangents = (*inputs, peak[:, :, None]), (d_weighted, None, d_total[:, :, None])
        dq, dk, dv = pallas_attention.gradients(rule, saved, cotangents)
        S = held[0].shape[2]
        return dq, dk[:, :, :S], dv[:, :, :S]
