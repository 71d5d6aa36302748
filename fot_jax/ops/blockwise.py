"""Attention over many blocks of keys by online softmax, forward and backward.

Blocks are (context slot, key block) pairs, read one after another, so that memory does not grow with
the number of contexts. The backward pass recomputes the scores of each block; only the queries, keys,
values and the peaks are kept. Accelerators take a block of all rows and heads at once; on CPUs
(decided where the program is compiled) one row and head follows another (`by_head.py`), which keeps the scores in
caches, skips what a row does not see, masks only where it must and reads large blocks up to four at a time.

Internal layout: [B, G, T, D] with T = R·L, the R = H/G query heads of a key/value head stacked,
which makes each block one batched matrix product.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fot_jax.config import Boundaries
from fot_jax.ops import blocks, by_head, forms
from fot_jax.ops.attention import LOWEST_PEAK, MASKED_SCORE
from fot_jax.ops.blocks import Rule
from fot_jax.ops.by_head import CACHE_BYTES
from fot_jax.types import Partial, Plan


def _read(rule: Rule, keys, values, segments, ids, start):
    """One block of the keys, values and segments that slot ids [B] name."""
    length = min(rule.block, keys.shape[2])

    def cut(x, axis):
        if length != x.shape[axis]:
            x = jax.lax.dynamic_slice_in_dim(x, start, length, axis=axis)
        return x if rule.causal else jnp.take(x, jnp.maximum(ids, 0), axis=0)

    return cut(keys, 2), cut(values, 2), cut(segments, 1), length


def _scores(queries, keys, mask):
    scores = jnp.einsum("BGTD,BGSD->BGTS", queries, keys, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores, MASKED_SCORE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _online(rule: Rule, queries, keys, values, plan: Plan, query_segments, segments):
    return forward(rule, queries, keys, values, plan, query_segments, segments)[0]


def forward(rule: Rule, queries, keys, values, plan: Plan, query_segments, segments):
    """((weighted, peak, total), what `gradients` needs), in the internal layout."""
    arguments = (queries, keys, values, plan, query_segments, segments)
    together = functools.partial(_forward_together, rule)
    if _at_once(rule, queries):
        parts = together(*arguments)
    else:
        parts = jax.lax.platform_dependent(*arguments, cpu=functools.partial(by_head.forward, rule), default=together)
    return parts, (*arguments, parts[1])


def _at_once(rule: Rule, queries) -> bool:
    """Whether a CPU too takes all rows and heads at once.

    It does where rows are split over devices, and where there are neither empty slots to skip nor scores that outgrow
    its cache.
    """
    return forms.spread() or (rule.causal and queries[..., 0].size * rule.block * 4 <= CACHE_BYTES)


def _forward_together(rule, queries, keys, values, plan, query_segments, segments):
    """One (slot, block of keys) after another, all rows and heads at once."""

    def visit(carry, place):
        slot, start = place
        ids, own = plan.context_ids[:, slot], plan.own_document[:, slot]

        def attend(carry):
            weighted, peak, total = carry
            k, v, s, length = _read(rule, keys, values, segments, ids, start)
            mask = blocks.block_mask(rule, query_segments, s, own, ids >= 0, start, length)
            scores = _scores(queries, k, mask)
            new_peak = jnp.maximum(peak, scores.max(axis=-1))
            weights = jnp.exp(scores - new_peak[..., None])
            shrink = jnp.exp(peak - new_peak)
            added = jnp.einsum("BGTS,BGSD->BGTD", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return weighted * shrink[..., None] + added, new_peak, total * shrink + weights.sum(axis=-1)

        return jax.lax.cond(jnp.any(ids >= 0), attend, lambda same: same, carry), None

    shape = queries.shape[:-1]
    start_state = (
        jnp.zeros(queries.shape, jnp.float32),
        jnp.full(shape, LOWEST_PEAK, jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    places = blocks.schedule(rule, plan.context_ids.shape[1], keys.shape[2])
    return jax.lax.scan(visit, start_state, places)[0]


def gradients(rule: Rule, saved, cotangents):
    """Float32 (dq, dk, dv). With w = exp(s − peak): dv = wᵀ dweighted, ds = w (dweighted·v + dtotal)."""
    d_weighted, _, d_total = cotangents
    arguments: tuple = (*saved, d_weighted, d_total)
    together = functools.partial(_gradients_together, rule)
    if _at_once(rule, saved[0]):
        return together(*arguments)
    by_heads = functools.partial(by_head.gradients, rule)
    return jax.lax.platform_dependent(*arguments, cpu=by_heads, default=together)


def _gradients_together(rule, queries, keys, values, plan, query_segments, segments, peak, d_weighted, d_total):
    d_weighted_low = d_weighted.astype(values.dtype)

    def visit(carry, place):
        slot, start = place
        ids, own = plan.context_ids[:, slot], plan.own_document[:, slot]

        def attend(carry):
            dq, dk_all, dv_all = carry
            k, v, s, length = _read(rule, keys, values, segments, ids, start)
            mask = blocks.block_mask(rule, query_segments, s, own, ids >= 0, start, length)
            weights = jnp.exp(_scores(queries, k, mask) - peak[..., None])
            through = jnp.einsum("BGTD,BGSD->BGTS", d_weighted_low, v, preferred_element_type=jnp.float32)
            d_scores = (weights * (through + d_total[..., None])).astype(k.dtype)
            dv = jnp.einsum(
                "BGTS,BGTD->BGSD", weights.astype(v.dtype), d_weighted_low, preferred_element_type=jnp.float32
            )
            dk = jnp.einsum("BGTS,BGTD->BGSD", d_scores, queries, preferred_element_type=jnp.float32)
            dq += jnp.einsum("BGTS,BGSD->BGTD", d_scores, k, preferred_element_type=jnp.float32)
            return dq, _add_rows(rule, dk_all, dk, ids, start), _add_rows(rule, dv_all, dv, ids, start)

        return jax.lax.cond(jnp.any(ids >= 0), attend, lambda same: same, carry), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (queries, keys, values))
    places = blocks.schedule(rule, plan.context_ids.shape[1], keys.shape[2])
    return jax.lax.scan(visit, zeros, places)[0]


def _backward(rule, saved, cotangents):
    cast = [d.astype(x.dtype) for d, x in zip(gradients(rule, saved, cotangents), saved[:3], strict=True)]
    return *cast, None, None, None


def _add_rows(rule: Rule, all_rows, rows, ids, start):
    """Adds the gradient of one block to the rows it was read from (empty slots add zeros)."""
    length = rows.shape[2]
    if rule.causal and length == all_rows.shape[2]:
        return all_rows + rows
    if rule.causal:
        old = jax.lax.dynamic_slice_in_dim(all_rows, start, length, axis=2)
        return jax.lax.dynamic_update_slice_in_dim(all_rows, old + rows, start, axis=2)
    if length == all_rows.shape[2]:
        return all_rows.at[jnp.maximum(ids, 0)].add(rows)
    old = jax.lax.dynamic_slice_in_dim(all_rows, start, length, axis=2)
    return jax.lax.dynamic_update_slice_in_dim(all_rows, old.at[jnp.maximum(ids, 0)].add(rows), start, axis=2)


_online.defvjp(forward, _backward)


def stack(x: Float[Array, "B L H *D"], G: int) -> Float[Array, "B G T *D"]:
    """What queries hold, in the internal layout: T = H/G · L."""
    B, L, H, *tail = x.shape
    return jnp.moveaxis(x.reshape(B, L, G, H // G, *tail), 1, 3).reshape(B, G, H // G * L, *tail)


def unstack(x: Float[Array, "B G T *D"], L: int) -> Float[Array, "B L H *D"]:
    """The inverse of `stack`."""
    B, G, T, *tail = x.shape
    return jnp.moveaxis(x.reshape(B, G, T // L, L, *tail), 3, 1).reshape(B, L, G * T // L, *tail)


def online_partial(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    plan: Plan | None,
    *,
    segments: Int[Array, "B S"],
    boundaries: Boundaries,
    block: int,
) -> Partial:
    """Attends block by block to each row's own chunk (plan None, causal) or to the plan's contexts.

    Differentiable in queries, keys and values; temporary memory is one tile of scores,
    whatever the number of contexts. Slots that are empty in every row are skipped at run time, on CPUs any that one is.

    Args:
      queries: scaled queries.
      keys: the batch rows' keys, gathered over B by the plan.
      values: the batch rows' values.
      plan: which rows each row reads; None for the row's own chunk, causally.
      segments: document ids of the keys and of the queries (self-attention: L = S).
      boundaries: MASKED or JOINED documents.
      block: keys per block, in tokens.

    Source: FoT eq. (2), app. B.3; online softmax: Milakov & Gimelshein 2018, Rabe & Staats 2021.
    """
    rule, *arguments = _arranged(queries, keys, values, plan, segments=segments, boundaries=boundaries, block=block)
    parts: tuple = _online(rule, *arguments)  # pyright: ignore[reportAssignmentType]
    weighted, peak, total = (unstack(x, queries.shape[1]) for x in parts)
    return Partial(weighted=weighted, peak=jax.lax.stop_gradient(peak), total=total)


def online_gradients(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    plan: Plan | None,
    *,
    peak: Float[Array, "B L H"],
    d_weighted: Float[Array, "B L H D"],
    d_total: Float[Array, "B L H"],
    **options,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B S G D"], Float[Array, "B S G D"]]:
    """Float32 gradients of `online_partial`'s queries, keys and values by those of its weighted and total.

    `peak` is what the two are relative to, of all keys in one softmax; other arguments as `online_partial`.
    """
    rule, *arguments = _arranged(queries, keys, values, plan, **options)
    G, S = keys.shape[2], keys.shape[1]
    peak, d_weighted, d_total = (stack(x, G) for x in (peak, d_weighted, d_total))
    dq, dk, dv = gradients(rule, (*arguments, peak), (d_weighted, None, d_total))
    dk, dv = (x.transpose(0, 2, 1, 3)[:, :S] for x in (dk, dv))
    return unstack(dq, queries.shape[1]), dk, dv


def _arranged(queries, keys, values, plan: Plan | None, *, segments, boundaries: Boundaries, block: int):
    """(rule, arguments of `forward`): in the internal layout and whole blocks of keys."""
    B, S, G, _ = keys.shape
    block = min(block, S)
    pad = [(0, 0), (0, -S % block), (0, 0), (0, 0)]
    rows = [jnp.pad(x, pad).transpose(0, 2, 1, 3) for x in (keys, values)]
    rule = Rule(boundaries=boundaries, causal=plan is None, block=block, repeats=queries.shape[2] // G)
    if plan is None:
        plan = Plan(context_ids=jnp.zeros((B, 1), jnp.int32), own_document=jnp.ones((B, 1), bool))
    plan = Plan(context_ids=jnp.asarray(plan.context_ids), own_document=jnp.asarray(plan.own_document))
    return rule, stack(queries, G), *rows, plan, segments, jnp.pad(segments, pad[:2])
