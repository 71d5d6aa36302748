"""Crossbatch attention (FoT sec. 3.2, app. B.3): one softmax over the own chunk and contexts of other batch rows.

    v_i = Σ_{(k,v) ∈ C_<i ∪ p^δ} softmax(<q_i, k>) · v          (eq. 2)

p^δ, the contexts of d documents, is gathered over the batch axis by an integer plan `context_ids[row, slot]`; every
published variant is another way to fill that array (`fot_jax/ops/plans.py`). This module has the equation and its
gradient; who sees what is in `visibility.py`, and how scores are computed in `backends`.

The backward pass keeps the inputs, the output, its peaks and totals, and computes the scores again. In bfloat16 it
takes the rounded output, as FlashAttention does.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from fot_jax.config import Boundaries
from fot_jax.ops import softmax
from fot_jax.ops.backends import Backend
from fot_jax.ops.backends.reference import Reference
from fot_jax.ops.softmax import JOINT_ATTENTION_CHECKPOINT, heads_first
from fot_jax.types import Partial, Plan, Rows


def crossbatch_attention(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B L G D"],
    context_keys: Float[Array, "B L G D"],
    values: Float[Array, "B L G D"],
    plan: Plan | None,
    *,
    segments: Int[Array, "B L"],
    backend: Backend,
    reads: bool | Bool[Array, ""] = True,
    yarn_factor: Float[Array, ""] | None = None,
    stopped: bool = False,
) -> Float[Array, "B L H D"]:
    """Attends to the own chunk, causally, and where `reads` to the plan's contexts, under one softmax.

    Args:
      queries: scaled queries, rotated as the keys of the own chunk are; query head h reads key/value head
        h // (H // G).
      keys: keys of the own chunk.
      context_keys: the same rows' keys as their readers see them (not rotated: position 0).
      values: the rows' values.
      plan: which rows each row reads; None: no contexts.
      segments: document ids, 0 for padding.
      backend: how scores are computed, and which documents see each other (`backends.choose`).
      reads: whether this layer reads the contexts; may be known at run time only.
      yarn_factor: multiplies the queries when they meet context keys, which lack it; it gets no gradient. None: 1.
      stopped: whether the contexts get no gradient.

    Returns:
      The attended values, in their dtype; 0 where a query sees no key.

    Source: FoT eq. (2), app. B.3; Dao 2023, FlashAttention-2 (what is kept). Differs: LongLLaMA lets padded keys
    through; here they are hidden.
    """
    arrays = (heads_first(x) for x in (queries, keys, context_keys, values))
    if plan is not None:
        plan = jax.tree.map(jnp.asarray, plan)
    return _attention(backend, stopped, *arrays, plan, jnp.asarray(reads), yarn_factor, segments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    backend: Backend, stopped: bool, queries, keys, context_keys, values, plan, reads, yarn_factor, segments
):
    return _forward(backend, stopped, queries, keys, context_keys, values, plan, reads, yarn_factor, segments)[0]


def _forward(backend: Backend, stopped: bool, *arguments):
    queries, keys, context_keys, values, plan, reads, yarn_factor, segments = arguments
    with jax.named_scope("local_scores"):
        partial = backend.local(queries, Rows(keys, values, segments))
    if plan is not None:

        def with_contexts(partial: Partial) -> Partial:
            rows = Rows(context_keys, values, segments)
            with jax.named_scope("crossbatch_scores"):
                found = backend.contexts(context_queries(queries, yarn_factor), rows, plan, segments=segments)
            return softmax.merge(partial, found)

        # A branch at run time: the stack of layers is scanned, and any of them may hold memory.
        with jax.named_scope("memory_branch"):
            partial = jax.lax.cond(reads, with_contexts, lambda partial: partial, partial)
    with jax.named_scope("joint_softmax"):
        out = heads_first(softmax.normalise(partial)).astype(values.dtype)
    out, peak, total = (checkpoint_name(x, JOINT_ATTENTION_CHECKPOINT) for x in (out, partial.peak, partial.total))
    return out, (*arguments, out, peak, total)


def _backward(backend: Backend, stopped: bool, saved, d_out):
    queries, keys, context_keys, values, plan, reads, yarn_factor, segments, out, peak, total = saved
    upstream = softmax.normalise_gradients(heads_first(out), peak, total, heads_first(d_out))
    with jax.named_scope("local_scores"):
        dq, dk, dv = backend.local_gradients(queries, Rows(keys, values, segments), upstream)
    d_context_keys = jnp.zeros(context_keys.shape, context_keys.dtype)
    if plan is not None:

        def with_contexts(sums):
            dq, dv, d_context_keys = sums
            rows = Rows(context_keys, values, segments)
            asking = context_queries(queries, yarn_factor)
            with jax.named_scope("crossbatch_scores"):
                found = backend.context_gradients(asking, rows, plan, upstream, segments=segments)
            more, found_keys, found_values = found
            dq += more if yarn_factor is None else more * yarn_factor
            if stopped:
                return dq, dv, d_context_keys
            return dq, dv + found_values, found_keys.astype(context_keys.dtype)

        with jax.named_scope("memory_branch"):
            dq, dv, d_context_keys = jax.lax.cond(reads, with_contexts, lambda sums: sums, (dq, dv, d_context_keys))
    return dq.astype(queries.dtype), dk.astype(keys.dtype), d_context_keys, dv.astype(values.dtype), *[None] * 4


_attention.defvjp(_forward, _backward)


def context_queries(queries, yarn_factor: Float[Array, ""] | None):
    """Returns the queries that meet the keys of contexts or of a memory, which lack YaRN's factor."""
    return queries if yarn_factor is None else (queries * yarn_factor).astype(queries.dtype)


def context_log_masses(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    plan: Plan,
    *,
    segments: Int[Array, "B S"],
    boundaries: Boundaries,
) -> Float[Array, "B C L H"]:
    """Returns log Σ_s exp(<q, k_s>) of every context, the attention mass before normalisation.

    The distraction share r_d (sec. 3.3) is softmax over C of these, at the own context. A number below -1e29 is an
    empty slot, or one in which nothing is visible.
    """
    keys = heads_first(keys)
    rows = Rows(keys, jnp.zeros_like(keys), segments)
    backend = Reference(boundaries=boundaries)

    def of_slot(slot):
        single = Plan(context_ids=slot[0][:, None], own_document=slot[1][:, None])
        part = backend.contexts(heads_first(queries), rows, single, segments=segments)
        mass = part.peak + jnp.log(jnp.maximum(part.total, 1e-30))
        return heads_first(jnp.where(part.total > 0, mass, softmax.MASKED_SCORE))

    slots = plan.context_ids.T, plan.own_document.T
    return jax.lax.map(of_slot, slots).swapaxes(0, 1)
