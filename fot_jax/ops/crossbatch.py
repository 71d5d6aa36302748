"""Crossbatch (FoT sec. 3.2, app. B.3): attention over local ∪ contexts of other batch rows.

    v_i = Σ_{(k,v) ∈ C_<i ∪ p^δ} softmax(<q_i, k>) · v          (eq. 2)

p^δ is gathered over the batch axis by an integer plan `context_ids[row, slot]`; every published
variant is another way to fill that array (`fot_jax/ops/plans.py`).
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention, blocks, blockwise, forms, kernels_on_mesh, pallas_attention, ring
from fot_jax.types import Partial, Plan


def context_mask(
    query_segments: Int[Array, "B L"],
    context_segments: Int[Array, "B S"],
    own: Bool[Array, " B"],
    *,
    boundaries: Boundaries,
) -> Bool[Array, "B L S"]:
    """What each query sees of one context: no causality, the context lies in the past or elsewhere.

    A query of document 2, context segments 1 2 2 0 (0: padding):

        own slot, MASKED    . 1 1 .    only its own document
        own slot, JOINED    1 1 1 .    all that its stream held
        another's slot      1 . . .    all but its own document: a chunk of it met again
                                       elsewhere may lie in its future
    Args:
      query_segments: document id of each query.
      context_segments: document id of each key of the context.
      own: whether the context is an earlier chunk of the reader's own stream.
      boundaries: whether an own context shows other documents.
    """
    return blocks.block_visibility(query_segments, context_segments, own, boundaries=boundaries)


def in_sight(plan: Plan, local: Int[Array, "#B L"]) -> Int[Array, "B L"]:
    """How many keys a query of a memory layer has in sight: those of its own chunk and L for each filled slot.

    Whole rows are counted, as a memory counts its entries: padding and other documents of a row too.

        context_ids   0 -1  2     local 1 2 3     7 8 9
                     -1 -1 -1                     1 2 3
    Args:
      plan: which rows each row reads.
      local: places up to and with each query's own in its chunk, L queries.
    """
    filled = jnp.sum(jnp.asarray(plan.context_ids) >= 0, axis=1, dtype=jnp.int32)
    return local + filled[:, None] * local.shape[1]


def _gathered_mask(plan: Plan, segments, *, boundaries: Boundaries) -> Bool[Array, "B L C S"]:
    rows = jnp.maximum(plan.context_ids, 0)
    per_slot = jax.vmap(
        lambda ids, own: context_mask(segments, segments[ids], own, boundaries=boundaries), in_axes=1, out_axes=2
    )
    return per_slot(rows, jnp.asarray(plan.own_document)) & (plan.context_ids >= 0)[:, None, :, None]


def crossbatch_partial(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    plan: Plan,
    *,
    segments: Int[Array, "B S"],
    boundaries: Boundaries,
    form: AttentionForm,
    block: int,
    layout: PartitionSpec | None = None,
) -> Partial:
    """Attends to the contexts of the plan (not to the local chunk).

    Args:
      queries: scaled queries of the batch rows.
      keys: the rows' keys as memory holds them (not rotated).
      values: the rows' values.
      plan: `context_ids` and `own_document`, both [B, C]; with a route, rows on several devices exchange
        blocks of rows (`fot_jax/ops/ring.py`) and attend to each by PALLAS, or BLOCKWISE where REFERENCE is asked.
      segments: document ids of the rows, 0 for padding.
      boundaries: MASKED or JOINED documents.
      form: REFERENCE gathers [B, C, S, G, D]; BLOCKWISE reads a block at a time; PALLAS the same in kernels, on
        TPUs and GPUs; AUTO chooses between these two.
      block: keys per block of the BLOCKWISE and PALLAS forms, in tokens.
      layout: mesh axes of queries, keys and values, for kernels in a mesh of several devices (XLA lays out the rest).

    Raises:
      ValueError: PALLAS in such a mesh, and neither a route nor a layout.

    Gradients flow into all keys and values (the point of crossbatch, sec. 5.6.1).
    """
    form = forms.resolve(form)
    if plan.route is not None:
        with jax.named_scope("crossbatch_ring"):
            return ring.ring_partial(
                queries, keys, values, plan, segments=segments, boundaries=boundaries, form=form, block=block
            )
    plan = Plan(context_ids=jnp.asarray(plan.context_ids), own_document=jnp.asarray(plan.own_document))
    with jax.named_scope("crossbatch_scores"):
        if form is AttentionForm.PALLAS and forms.spread():
            return kernels_on_mesh.contexts_on_mesh(
                queries, keys, values, plan,
                segments=segments, boundaries=boundaries, block=block, layout=_known(layout),
            )  # fmt: skip
        if form is AttentionForm.PALLAS:
            return pallas_attention.pallas_partial(
                queries, keys, values, plan,
                query_segments=segments, key_segments=segments, boundaries=boundaries, block=block,
            )  # fmt: skip
        if form is AttentionForm.BLOCKWISE:
            return blockwise.online_partial(
                queries, keys, values, plan, segments=segments, boundaries=boundaries, block=block
            )
        B, C = plan.context_ids.shape
        S = keys.shape[1]
        rows = jnp.maximum(plan.context_ids, 0)
        mask = _gathered_mask(plan, segments, boundaries=boundaries)
        gathered_keys = keys[rows].reshape(B, C * S, *keys.shape[2:])
        gathered_values = values[rows].reshape(B, C * S, *values.shape[2:])
        return attention.partial_attention(
            queries, gathered_keys, gathered_values, mask=mask.reshape(B, mask.shape[1], C * S)
        )


def crossbatch_gradients(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    plan: Plan,
    *,
    segments: Int[Array, "B S"],
    form: AttentionForm,
    layout: PartitionSpec | None = None,
    **options,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B S G D"], Float[Array, "B S G D"]]:
    """Gradients of `crossbatch_partial`'s queries, keys and values by those of its weighted and total.

    In float32, of a ring in the dtypes of its arrays. `form` is BLOCKWISE or PALLAS; `options` are `boundaries`,
    `block`, `d_weighted`, `d_total` and the `peak` that these two are relative to, of all keys in one softmax; other
    arguments as `crossbatch_partial`.
    """
    arrays = queries, keys, values, plan
    if plan.route is not None:
        with jax.named_scope("crossbatch_ring"):
            return ring.ring_gradients(*arrays, segments=segments, form=form, **options)
    if form is AttentionForm.BLOCKWISE:
        return blockwise.online_gradients(*arrays, segments=segments, **options)
    if forms.spread():
        return kernels_on_mesh.contexts_gradients(*arrays, segments=segments, layout=_known(layout), **options)
    return pallas_attention.pallas_gradients(*arrays, query_segments=segments, key_segments=segments, **options)


def _known(layout: PartitionSpec | None) -> PartitionSpec:
    if layout is None:
        raise ValueError("form 'pallas' in a mesh of several devices needs `layout`, the mesh axes of its arrays: none")
    return layout


def local_partial(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B L G D"],
    values: Float[Array, "B L G D"],
    *,
    segments: Int[Array, "B L"],
    boundaries: Boundaries,
    form: AttentionForm,
    block: int,
    layout: PartitionSpec | None = None,
) -> Partial:
    """Attends causally to the row's own chunk; arguments as `crossbatch_partial`, keys rotated."""
    form = forms.resolve(form)
    with jax.named_scope("local_scores"):
        if form is AttentionForm.PALLAS and forms.spread():
            return kernels_on_mesh.local_on_mesh(
                queries, keys, values, segments=segments, boundaries=boundaries, block=block, layout=_known(layout)
            )
        if form is AttentionForm.PALLAS:
            return pallas_attention.pallas_partial(
                queries, keys, values, None,
                query_segments=segments, key_segments=segments, boundaries=boundaries, block=block,
            )  # fmt: skip
        if form is AttentionForm.BLOCKWISE and block < keys.shape[1]:
            return blockwise.online_partial(
                queries, keys, values, None, segments=segments, boundaries=boundaries, block=block
            )
        mask = attention.local_mask(segments, segments, boundaries=boundaries)
        return attention.partial_attention(queries, keys, values, mask=mask)


def crossbatch_attention(
    queries_local: Float[Array, "B L H D"],
    queries_context: Float[Array, "B L H D"],
    keys_local: Float[Array, "B L G D"],
    keys_context: Float[Array, "B L G D"],
    values: Float[Array, "B L G D"],
    plan: Plan,
    *,
    segments: Int[Array, "B L"],
    boundaries: Boundaries,
    form: AttentionForm,
    block: int,
) -> Float[Array, "B L H D"]:
    """One softmax over the causal local chunk and the plan's contexts.

    Args:
      queries_local: scaled queries that meet the local keys (rotated under `rope0`).
      queries_context: scaled queries that meet the contexts; the same array in both published
        positional variants.
      keys_local: keys of the local chunk (rotated under `rope0`).
      keys_context: the same rows' keys as others see them (not rotated: position 0).
      values: the rows' values.
      plan: which rows each row reads.
      segments: document ids, 0 for padding.
      boundaries: MASKED or JOINED documents.
      form: see `crossbatch_partial`.
      block: keys per block, in tokens.

    Source: FoT eq. (2), app. B.3. Differs: LongLLaMA lets padded keys through; here they are hidden.
    """
    options = {"segments": segments, "boundaries": boundaries, "form": form, "block": block}
    near = local_partial(queries_local, keys_local, values, **options)
    far = crossbatch_partial(queries_context, keys_context, values, plan, **options)
    with jax.named_scope("joint_softmax"):
        return attention.normalise(attention.merge(near, far)).astype(values.dtype)


def context_log_masses(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    plan: Plan,
    *,
    segments: Int[Array, "B S"],
    boundaries: Boundaries,
) -> Float[Array, "B C L H"]:
    """log Σ_s exp(<q, k_s>) of every context, the attention mass before normalisation.

    The distraction share r_d (sec. 3.3) is softmax over C of these, at the own context.
    `MASKED_SCORE`-like (below -1e29) where a slot is empty or nothing in it is visible.
    """
    zeros = jnp.zeros_like(keys)

    def one(ids, own):
        single = Plan(context_ids=ids[:, None], own_document=own[:, None])
        part = crossbatch_partial(
            queries, keys, zeros, single,
            segments=segments, boundaries=boundaries, form=AttentionForm.REFERENCE, block=keys.shape[1],
        )  # fmt: skip
        return jnp.where(part.total > 0, part.peak + jnp.log(jnp.maximum(part.total, 1e-30)), attention.MASKED_SCORE)

    plan = Plan(context_ids=jnp.asarray(plan.context_ids), own_document=jnp.asarray(plan.own_document))
    return jax.lax.map(lambda slot: one(*slot), (plan.context_ids.T, plan.own_document.T)).swapaxes(0, 1)
