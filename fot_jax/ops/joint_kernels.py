"""A layer's attention by the kernels as one differentiable function: one softmax over the own chunk and contexts.

    out = normalise(merge(local, contexts)) = weighted / total

Differentiated part by part, each part's float32 output is kept for the backward pass. Here the output, its peaks and
its totals are, and the kernels run backward by the merged peak (`attention.normalise_backward`).

Source: FoT eq. (2); Dao 2023, FlashAttention-2 (what is kept).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention, crossbatch, forms, kernels_on_mesh
from fot_jax.ops.attention import KEPT
from fot_jax.ops.pallas_attention import pallas_gradients
from fot_jax.types import Partial, Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What is static: see `joint_attention`."""

    boundaries: Boundaries
    block: int
    layout: PartitionSpec
    stopped: bool


def joint_attention(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B L G D"],
    far_keys: Float[Array, "B L G D"],
    values: Float[Array, "B L G D"],
    plan: Plan | None,
    *,
    reads: Bool[Array, ""],
    stretch: Float[Array, ""] | None,
    segments: Int[Array, "B L"],
    boundaries: Boundaries,
    block: int,
    layout: PartitionSpec,
    stopped: bool,
) -> Float[Array, "B L H D"]:
    """Attention over the own chunk and, where `reads`, the plan's contexts, in the dtype of the values.

    Args:
      queries: scaled queries.
      keys: of the own chunk.
      far_keys: the rows' keys as contexts hold them.
      values: the rows' values.
      plan: which rows each row reads; None: none.
      reads: whether this layer reads the contexts, known at run time.
      stretch: factor of the queries that meet contexts, which gets no gradient; None: 1.
      segments: document ids, 0 for padding.
      boundaries: MASKED or JOINED documents.
      block: keys per block, in tokens.
      layout: mesh axes of queries, keys and values.
      stopped: whether contexts get no gradient.
    """
    rule = Rule(boundaries=boundaries, block=block, layout=layout, stopped=stopped)
    return _joint(rule, queries, keys, far_keys, values, plan, reads, stretch, segments)  # pyright: ignore[reportReturnType]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _joint(rule: Rule, queries, keys, far_keys, values, plan, reads, stretch, segments):
    return _forward(rule, queries, keys, far_keys, values, plan, reads, stretch, segments)[0]


def _forward(rule: Rule, *arguments):
    queries, keys, far_keys, values, plan, reads, stretch, segments = arguments
    options = {
        "segments": segments, "boundaries": rule.boundaries, "form": AttentionForm.PALLAS, "block": rule.block,
        "layout": rule.layout,
    }  # fmt: skip
    whole = crossbatch.local_partial(queries, keys, values, **options)
    if plan is not None:

        def far(queries) -> Partial:
            return crossbatch.crossbatch_partial(_stretched(queries, stretch), far_keys, values, plan, **options)

        with jax.named_scope("memory_branch"):
            whole = attention.merge(whole, jax.lax.cond(reads, far, attention.empty_partial, queries))
    with jax.named_scope("joint_softmax"):
        out = attention.normalise(whole).astype(values.dtype)
    out, peak, total = (checkpoint_name(x, KEPT) for x in (out, whole.peak, whole.total))
    return out, (*arguments, out, peak, total)


def _backward(rule: Rule, saved, d_out):
    queries, keys, far_keys, values, plan, reads, stretch, segments, out, peak, total = saved
    d_weighted, d_total = attention.normalise_backward(out, total, d_out)
    upstream = {"peak": peak, "d_weighted": d_weighted, "d_total": d_total}
    options = {"segments": segments, "boundaries": rule.boundaries, "block": rule.block}
    with jax.named_scope("local_scores"):
        dq, dk, dv = _local(rule, queries, keys, values, **options, **upstream)
    d_far = jnp.zeros_like(far_keys)
    if plan is not None:

        def far(sums):
            dq, dv, d_far = sums
            asking = _stretched(queries, stretch)
            more, found_keys, found_values = crossbatch.crossbatch_gradients(
                asking, far_keys, values, plan,
                form=AttentionForm.PALLAS, layout=rule.layout, **options, **upstream,
            )  # fmt: skip
            dq += more if stretch is None else more * stretch
            if rule.stopped:
                return dq, dv, d_far
            return dq, dv + found_values, found_keys.astype(far_keys.dtype)

        with jax.named_scope("memory_branch"):
            dq, dv, d_far = jax.lax.cond(reads, far, lambda sums: sums, (dq, dv, d_far))
    return dq.astype(queries.dtype), dk.astype(keys.dtype), d_far, dv.astype(values.dtype), None, None, None, None


_joint.defvjp(_forward, _backward)


def _stretched(queries, stretch):
    return queries if stretch is None else (queries * stretch).astype(queries.dtype)


def _local(rule: Rule, queries, keys, values, *, segments, **options):
    """Float32 gradients of the own chunk's part."""
    if forms.spread():
        return kernels_on_mesh.local_gradients(queries, keys, values, segments=segments, layout=rule.layout, **options)
    both = {"query_segments": segments, "key_segments": segments}
    return pallas_gradients(queries, keys, values, None, **both, **options)
