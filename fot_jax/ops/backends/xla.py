"""Online softmax over blocks of keys, written for XLA: all rows and heads of one block at a time.

Blocks are (context slot, key block) pairs, read one after another, so that memory does not grow with the number of
contexts: it holds the scores of one block. The backward pass computes them again. Slots that are empty in every row
are skipped at run time.

Source: FoT eq. (2), app. B.3; online softmax: Milakov & Gimelshein 2018, Rabe & Staats 2021.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from fot_jax.config import Boundaries
from fot_jax.ops import softmax
from fot_jax.ops.backends import Gradients
from fot_jax.ops.visibility import context_mask, local_mask
from fot_jax.types import Partial, Plan, Rows, Upstream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """The static settings of one loop over blocks.

    Attributes:
      boundaries: MASKED or JOINED documents.
      block: keys per block, a divisor of the keys' length.
      local: whether the rows read their own chunk, causally; else the contexts of a plan.
    """

    boundaries: Boundaries
    block: int
    local: bool

    def places(self, plan: Plan, S: int) -> tuple[Int[Array, " places"], Int[Array, " places"]]:
        """Returns the slot and the first key of each block, in the order of the loop."""
        slots = plan.context_ids.shape[1]
        starts = jnp.arange(0, S, self.block, dtype=jnp.int32)
        return jnp.repeat(jnp.arange(slots, dtype=jnp.int32), len(starts)), jnp.tile(starts, slots)

    def mask(self, query_segments, key_segments, own, filled, start):
        """Returns the visibility [B, L, block] of one block."""
        if self.local:
            return local_mask(query_segments, key_segments, boundaries=self.boundaries, first_key=start)
        return context_mask(query_segments, key_segments, own, filled, boundaries=self.boundaries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Xla:
    """All rows and heads of one block at a time: for accelerators, and wherever XLA splits arrays over devices.

    Attributes:
      boundaries: MASKED or JOINED documents.
      block: keys per block, in tokens.
    """

    boundaries: Boundaries
    block: int

    def local(self, queries, own: Rows) -> Partial:
        """See `Backend`."""
        loop, rows = self._whole(own, local=True)
        return self.forward(loop, queries, rows, own_plan(len(queries)), own.segments)

    def local_gradients(self, queries, own: Rows, upstream: Upstream) -> Gradients:
        """See `Backend`."""
        loop, rows = self._whole(own, local=True)
        found = self.gradients(loop, queries, rows, own_plan(len(queries)), own.segments, upstream)
        return _cut(found, own)

    def contexts(self, queries, rows: Rows, plan: Plan, *, segments) -> Partial:
        """See `Backend`."""
        loop, whole = self._whole(rows, local=False)
        return self.forward(loop, queries, whole, plan, segments)

    def context_gradients(self, queries, rows: Rows, plan: Plan, upstream: Upstream, *, segments) -> Gradients:
        """See `Backend`."""
        loop, whole = self._whole(rows, local=False)
        return _cut(self.gradients(loop, queries, whole, plan, segments, upstream), rows)

    def forward(self, loop: Loop, queries, rows: Rows, plan: Plan, segments) -> Partial:
        """Runs the loop; `rows` are whole blocks."""

        def visit(partial: Partial, place):
            ids, own = plan.context_ids[:, place[0]], plan.own_document[:, place[0]]

            def add(partial: Partial) -> Partial:
                block = _read(loop, rows, ids, place[1])
                mask = loop.mask(segments, block.segments, own, ids >= 0, place[1])
                return softmax.add(partial, queries, block.keys, block.values, mask=mask)

            return _where_read(loop, ids, add, partial), None

        places = loop.places(plan, rows.keys.shape[2])
        return jax.lax.scan(visit, softmax.empty_partial(queries), places)[0]

    def gradients(self, loop: Loop, queries, rows: Rows, plan: Plan, segments, upstream: Upstream) -> Gradients:
        """Runs the backward loop; the gradients of keys and values have the shape of `rows`."""
        upstream = dataclasses.replace(upstream, d_weighted=upstream.d_weighted.astype(rows.values.dtype))

        def visit(sums: Gradients, place):
            ids, own = plan.context_ids[:, place[0]], plan.own_document[:, place[0]]

            def add(sums: Gradients) -> Gradients:
                block = _read(loop, rows, ids, place[1])
                mask = loop.mask(segments, block.segments, own, ids >= 0, place[1])
                more, dk, dv = softmax.attend_gradients(queries, block.keys, block.values, upstream, mask=mask)
                dq, dk_all, dv_all = sums
                return (
                    dq + more,
                    _add_block(loop, dk_all, dk, ids, place[1]),
                    _add_block(loop, dv_all, dv, ids, place[1]),
                )

            return _where_read(loop, ids, add, sums), None

        dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (queries, rows.keys, rows.values))
        return jax.lax.scan(visit, (dq, dk, dv), loop.places(plan, rows.keys.shape[2]))[0]

    def _whole(self, rows: Rows, *, local: bool) -> tuple[Loop, Rows]:
        """The loop, and the rows with padding up to whole blocks."""
        S = rows.keys.shape[2]
        block = min(self.block, S)
        padding = (0, -S % block)
        keys, values = (jnp.pad(x, [(0, 0), (0, 0), padding, (0, 0)]) for x in (rows.keys, rows.values))
        segments = jnp.pad(rows.segments, [(0, 0), padding])
        return Loop(boundaries=self.boundaries, block=block, local=local), Rows(keys, values, segments)


def own_plan(rows: int) -> Plan:
    """Returns the plan by which each row reads itself, as the loops take it: one slot, whose row is not looked up."""
    return Plan(context_ids=jnp.zeros((rows, 1), jnp.int32), own_document=jnp.ones((rows, 1), bool))


def _cut(gradients: Gradients, rows: Rows) -> Gradients:
    """Drops the padding of `Xla._whole`."""
    dq, dk, dv = gradients
    S = rows.keys.shape[2]
    return dq, dk[:, :, :S], dv[:, :, :S]


def _where_read(loop: Loop, ids, visit, carry):
    """visit(carry), skipped where the slot is empty in every row."""
    return visit(carry) if loop.local else jax.lax.cond(jnp.any(ids >= 0), visit, lambda same: same, carry)


def _read(loop: Loop, rows: Rows, ids, start) -> Rows:
    """One block of the rows `ids` [B]."""

    def cut(x, axis: int):
        if loop.block != x.shape[axis]:
            x = jax.lax.dynamic_slice_in_dim(x, start, loop.block, axis=axis)
        return x if loop.local else jnp.take(x, jnp.maximum(ids, 0), axis=0)

    return Rows(keys=cut(rows.keys, 2), values=cut(rows.values, 2), segments=cut(rows.segments, 1))


def _add_block(loop: Loop, all_rows, block, ids, start):
    """Adds the gradient of one block to the rows that it was read from; empty slots add zeros."""

    def add(old):
        return old + block if loop.local else old.at[jnp.maximum(ids, 0)].add(block)

    if loop.block == all_rows.shape[2]:
        return add(all_rows)
    old = jax.lax.dynamic_slice_in_dim(all_rows, start, loop.block, axis=2)
    return jax.lax.dynamic_update_slice_in_dim(all_rows, add(old), start, axis=2)
