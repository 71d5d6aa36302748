"""Local attention joined with contexts under one softmax, the contexts block by block (`blockwise.py`).

    out = normalise(merge(local, contexts)) = weighted / total

Differentiated part by part, every scanned layer keeps each part's float32 sums for the backward pass, with memory or
without. Here the output, its peaks and its totals are kept beside the inputs, and the contexts run backward by the
merged peak. In bfloat16 the backward pass takes the rounded output, as FlashAttention does.
`joint_kernels.py` does the same for all keys by the kernels.

Source: FoT eq. (2); Dao 2023, FlashAttention-2 (what is kept).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention, crossbatch
from fot_jax.ops.attention import KEPT
from fot_jax.types import Partial, Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What is static: see `joined`."""

    boundaries: Boundaries
    block: int
    stopped: bool


def joined(
    local: Partial,
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B L G D"],
    values: Float[Array, "B L G D"],
    plan: Plan,
    *,
    reads: Bool[Array, ""],
    segments: Int[Array, "B L"],
    boundaries: Boundaries,
    block: int,
    stopped: bool,
) -> Float[Array, "B L H D"]:
    """Local attention and, where `reads`, the plan's contexts in one softmax, in the dtype of the values.

    Args:
      local: attention to the own chunk.
      queries: scaled queries that meet the contexts.
      keys: the rows' keys as contexts hold them.
      values: the rows' values.
      plan: which rows each row reads; with a route, blocks of rows travel (`ring.py`).
      reads: whether this layer reads the contexts, known at run time.
      segments: document ids, 0 for padding.
      boundaries: MASKED or JOINED documents.
      block: keys per block, in tokens.
      stopped: whether the contexts get no gradient.
    """
    rule = Rule(boundaries=boundaries, block=block, stopped=stopped)
    return _joined(rule, local, queries, keys, values, plan, reads, segments)  # pyright: ignore[reportReturnType]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _joined(rule: Rule, local: Partial, queries, keys, values, plan: Plan, reads, segments):
    return _forward(rule, local, queries, keys, values, plan, reads, segments)[0]


def _forward(rule: Rule, local: Partial, queries, keys, values, plan: Plan, reads, segments):
    options = {"segments": segments, "boundaries": rule.boundaries, "block": rule.block}

    def more(local):
        far = crossbatch.crossbatch_partial(queries, keys, values, plan, form=AttentionForm.BLOCKWISE, **options)
        return attention.merge(local, far)

    # Branch on the layer's role at run time: the stack is scanned, any layer may hold memory.
    with jax.named_scope("memory_branch"):
        whole = jax.lax.cond(reads, more, lambda local: local, local)
    with jax.named_scope("joint_softmax"):
        out = attention.normalise(whole).astype(values.dtype)
    out, peak, total = (checkpoint_name(x, KEPT) for x in (out, whole.peak, whole.total))
    return out, (local.peak, queries, keys, values, plan, reads, segments, out, peak, total)


def _backward(rule: Rule, saved, d_out):
    local_peak, queries, keys, values, plan, reads, segments, out, peak, total = saved
    d_weighted, d_total = attention.normalise_backward(out, total, d_out)
    shrink = jnp.exp(local_peak - peak)
    d_local = Partial(weighted=d_weighted * shrink[..., None], peak=jnp.zeros_like(local_peak), total=d_total * shrink)

    def far():
        found = crossbatch.crossbatch_gradients(
            queries, keys, values, plan,
            segments=segments, boundaries=rule.boundaries, form=AttentionForm.BLOCKWISE, block=rule.block,
            peak=peak, d_weighted=d_weighted, d_total=d_total,
        )  # fmt: skip
        dq, dk, dv = (x.astype(like.dtype) for x, like in zip(found, (queries, keys, values), strict=True))
        return (dq, jnp.zeros_like(dk), jnp.zeros_like(dv)) if rule.stopped else (dq, dk, dv)

    def none():
        return jnp.zeros_like(queries), jnp.zeros_like(keys), jnp.zeros_like(values)

    with jax.named_scope("memory_branch"):
        dq, dk, dv = jax.lax.cond(reads, far, none)
    return d_local, dq, dk, dv, None, None, None


_joined.defvjp(_forward, _backward)
