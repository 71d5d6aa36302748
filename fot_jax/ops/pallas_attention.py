"""Attention over the row's own chunk or the plan's contexts by the Pallas kernels, for TPUs or GPUs, differentiable.

The counterpart of `fot_jax/ops/blockwise.py`: the same values, gradients and `Partial`, so that the
partials of both merge. See docs/kernels.md.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from fot_jax.config import Boundaries
from fot_jax.ops import forms, pallas_calls, triton_calls
from fot_jax.ops.kernel_rules import Compiler, Rule
from fot_jax.ops.pallas_kernels import LANES
from fot_jax.ops.visits import own_visits, spans_of, visits_by_context, visits_by_reader
from fot_jax.types import Partial, Plan

QUERY_BLOCK = 512  # tokens; with 512 keys a block the largest kernel takes about 8 of 16 MiB of VMEM


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _visited(rule: Rule, queries, keys, values, plan: Plan | None, query_segments, key_segments):
    return forward(rule, queries, keys, values, plan, query_segments, key_segments)[0]


def forward(rule: Rule, queries, keys, values, plan: Plan | None, query_segments, key_segments):
    """((weighted, peak, total), what `gradients` needs), in the kernels' layout and whole blocks.

    With `gradients` the counterpart of `blockwise.forward`, for who merges partials before the backward
    pass: that needs only the merged peak in the place of the one returned here.
    """
    spans = spans_of(query_segments, key_segments, query_block=rule.query_block, key_block=rule.key_block)
    visits = own_visits(keys.shape[0]) if plan is None else visits_by_reader(plan)
    parts = _calls(rule).forward(rule, visits, spans, queries, keys, values, query_segments, key_segments)
    return parts, (queries, keys, values, plan, query_segments, key_segments, parts[1])


def gradients(rule: Rule, saved, cotangents):
    """Float32 (dq, dk, dv) by the gradients of weighted and total."""
    queries, keys, values, plan, query_segments, key_segments, peak = saved
    d_weighted, _, d_total = cotangents
    spans = spans_of(query_segments, key_segments, query_block=rule.query_block, key_block=rule.key_block)
    if plan is None:
        by_reader = by_context = own_visits(keys.shape[0])
    else:
        by_reader, by_context = visits_by_reader(plan), visits_by_context(plan, rows=keys.shape[0])
    arrays = queries, keys, values, query_segments, key_segments, d_weighted.astype(values.dtype), peak, d_total
    dq = _calls(rule).queries_gradient(rule, by_reader, spans, *arrays)
    return dq, *_calls(rule).keys_gradient(rule, by_context, spans, *arrays)


def _backward(rule, saved, cotangents):
    cast = [d.astype(x.dtype) for d, x in zip(gradients(rule, saved, cotangents), saved[:3], strict=True)]
    return *cast, None, None, None


_visited.defvjp(forward, _backward)


def _calls(rule: Rule):
    """The module of the chip's three calls."""
    return triton_calls if rule.compiler is Compiler.TRITON else pallas_calls


def _whole_block(wanted: int, length: int, *, compiler: Compiler, free: bool) -> int:
    """The block length used: a multiple of a TPU's lane width, no longer than the padded array; a GPU's own."""
    if compiler is Compiler.TRITON:
        return triton_calls.block_length(wanted, length, least=1 if free else triton_calls.LEAST)
    if free:
        return min(wanted, length)
    return min(-(-wanted // LANES), -(-length // LANES)) * LANES


def make_rule(
    *,
    boundaries: Boundaries,
    causal: bool,
    lengths: tuple[int, int],
    block: int,
    query_block: int = QUERY_BLOCK,
    interpret: bool | pltpu.InterpretParams = False,
) -> Rule:
    """The rule of a call for the chip that is traced for.

    Args:
      boundaries: MASKED or JOINED documents.
      causal: whether rows read their own chunk.
      lengths: tokens of a row of queries, and of keys.
      block: keys per block, in tokens: see `pallas_partial`.
      query_block: queries per block, likewise.
      interpret: as `pallas_partial`.
    """
    target = forms.target()
    compiler = Compiler.TRITON if target.platform == "gpu" else Compiler.MOSAIC
    options = {"compiler": compiler, "free": bool(interpret)}
    return Rule(
        boundaries=boundaries,
        causal=causal,
        query_block=_whole_block(query_block, lengths[0], **options),
        key_block=_whole_block(block, lengths[1], **options),
        interpret=interpret,
        widen=target.kind in forms.WIDE_PRODUCTS,
        compiler=compiler,
    )


def to_whole(x: jax.Array, block: int) -> jax.Array:
    """[B, L, …] with zeros up to whole blocks of positions."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2))


def pallas_partial(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "rows S G D"],
    values: Float[Array, "rows S G D"],
    plan: Plan | None,
    *,
    query_segments: Int[Array, "B L"],
    key_segments: Int[Array, "rows S"],
    boundaries: Boundaries,
    block: int,
    query_block: int = QUERY_BLOCK,
    interpret: bool | pltpu.InterpretParams = False,
) -> Partial:
    """Attends to each row's own chunk (plan None, causal) or to the plan's contexts, on a TPU or a GPU.

    A function of local arrays: on several devices call it inside `jax.shard_map`, with a plan that
    names local rows. Differentiable in queries, keys and values.

    Args:
      queries: scaled queries, float32 or bfloat16; products are summed in float32.
      keys: the rows that the plan names, not copied; with plan None the readers' own (rows = B, S = L).
      values: as keys.
      plan: which of the `rows` each reader reads; None for its own, causally.
      query_segments: document ids of the queries, 0 for padding.
      key_segments: document ids of the keys.
      boundaries: MASKED or JOINED documents.
      block: keys per block, in tokens; on a TPU taken up to a multiple of 128, on a GPU down to a power of two of at
        most 64.
      query_block: queries per block, likewise.
      interpret: True or Pallas' parameters: run on any backend, slowly, blocks taken as given (for tests).

    Raises:
      ValueError: plan is None and the keys are not the readers' own.

    Source: FoT eq. (2), app. B.3.
    """
    rule, *arguments = _arranged(
        queries, keys, values, plan, query_segments, key_segments,
        boundaries=boundaries, block=block, query_block=query_block, interpret=interpret,
    )  # fmt: skip
    weighted, peak, total = _visited(rule, *arguments)  # pyright: ignore[reportGeneralTypeIssues]
    numbers = functools.partial(_numbers_back, L=queries.shape[1])
    return Partial(
        weighted=_heads_back(weighted, queries.shape[1]),
        peak=jax.lax.stop_gradient(numbers(peak)),
        total=numbers(total),
    )


def pallas_gradients(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "rows S G D"],
    values: Float[Array, "rows S G D"],
    plan: Plan | None,
    *,
    query_segments: Int[Array, "B L"],
    key_segments: Int[Array, "rows S"],
    peak: Float[Array, "B L H"],
    d_weighted: Float[Array, "B L H D"],
    d_total: Float[Array, "B L H"],
    **options,
) -> tuple[Float[Array, "B L H D"], Float[Array, "rows S G D"], Float[Array, "rows S G D"]]:
    """Float32 gradients of `pallas_partial`'s queries, keys and values by those of its weighted and total.

    `peak` is what the two are relative to, of all keys in one softmax: only the backward kernels run. Other arguments
    as `pallas_partial`.
    """
    rule, *arguments = _arranged(queries, keys, values, plan, query_segments, key_segments, **options)
    peak, d_weighted, d_total = (to_whole(x, rule.query_block).swapaxes(1, 2) for x in (peak, d_weighted, d_total))
    cotangents = d_weighted, None, d_total[:, :, None]
    dq, dk, dv = gradients(rule, (*arguments, peak[:, :, None]), cotangents)
    S = keys.shape[1]
    return _heads_back(dq, queries.shape[1]), _heads_back(dk, S), _heads_back(dv, S)


def _arranged(queries, keys, values, plan: Plan | None, query_segments, key_segments, **options):
    """(rule, queries, keys, values, plan, segments of both): in the kernels' layout and whole blocks."""
    B, L = queries.shape[:2]
    rows, S = keys.shape[:2]
    if plan is None and (rows, S) != (B, L):
        raise ValueError(f"without a plan keys must have the queries' {B} rows of {L} tokens, got {rows} of {S}.")
    rule = make_rule(causal=plan is None, lengths=(L, S), **options)
    if plan is not None:
        plan = Plan(context_ids=jnp.asarray(plan.context_ids), own_document=jnp.asarray(plan.own_document))
    return (
        rule,
        to_whole(queries, rule.query_block).swapaxes(1, 2),
        to_whole(keys, rule.key_block).swapaxes(1, 2),
        to_whole(values, rule.key_block).swapaxes(1, 2),
        plan,
        to_whole(query_segments, rule.query_block).astype(jnp.int32),
        to_whole(key_segments, rule.key_block).astype(jnp.int32),
    )


def _heads_back(x, length: int):
    """[B, heads, whole blocks, D] -> [B, length, heads, D]."""
    return x.swapaxes(1, 2)[:, :length]


def _numbers_back(x, L: int):
    """[B, H, 1, whole blocks] -> [B, L, H]."""
    return x[:, :, 0, :L].swapaxes(1, 2)
