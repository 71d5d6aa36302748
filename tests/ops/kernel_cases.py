"""What the tests of the kernels for TPUs and for GPUs share: plans, inputs, programs."""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention, blockwise, crossbatch, forms, plans
from fot_jax.ops.pallas_attention import pallas_partial
from fot_jax.types import Plan
from tests import cases, jaxprs

TPU = forms.Target(platform="tpu", kind="TPU v5e")
GPU = forms.Target(platform="gpu", kind="NVIDIA H100 80GB HBM3")


@contextlib.contextmanager
def on(chip: forms.Target) -> Iterator[None]:
    """What is traced inside is for this chip."""
    with mock.patch.object(forms, "target", return_value=chip):
        yield


def joint(segments, boundaries: Boundaries, *, block: int, query_block: int, interpret=True):
    """One softmax over local and contexts, of five arrays and a plan."""

    def op(queries_local, queries_context, keys_local, keys_context, values, plan):
        options = {
            "query_segments": jnp.asarray(segments), "key_segments": jnp.asarray(segments), "boundaries": boundaries,
            "block": block, "query_block": query_block, "interpret": interpret,
        }  # fmt: skip
        near = pallas_partial(queries_local, keys_local, values, None, **options)
        far = pallas_partial(queries_context, keys_context, values, plan, **options)
        return attention.normalise(attention.merge(near, far))

    return op


# One compiled program each for all plans and data of the tests below: 8 rows of 10 tokens, 8 slots.
ROWS, LENGTH, SLOTS, BLOCK, QUERY_BLOCK = 8, 10, 8, 4, 3
PLANS = {
    "off": plans.own_past_plan(ROWS, k=1, w=1),
    "two pass": plans.two_pass_plan(4, w=1, d=3),
    "packed": plans.packed_plan(ROWS, k=2, w=1, d=5),
    "segments": plans.segments_plan(ROWS, k=4, segments=((0, 0), (1, 1), (2, 1), (3, 0))),
    "constant range": plans.constant_range_plan(ROWS, k=4, r=6, stepping=True),
    "own past": plans.own_past_plan(ROWS, k=4, w=3),
}


def padded(plan: Plan) -> Plan:
    """The plan with empty columns up to SLOTS."""
    extra = SLOTS - plan.context_ids.shape[1]
    return Plan(
        context_ids=jnp.pad(jnp.asarray(plan.context_ids), ((0, 0), (0, extra)), constant_values=-1),
        own_document=jnp.pad(jnp.asarray(plan.own_document), ((0, 0), (0, extra))),
    )


def inputs(seed: int = 3) -> list[jax.Array]:
    """(queries, keys, values, upstream) with 3 heads each."""
    shape = (ROWS, LENGTH, 3, 8)
    return cases.to_float32(*cases.arrays(seed, *[shape] * 4))


@functools.partial(jax.jit, static_argnames=("form", "chip"))
def partial_and_gradients(form: AttentionForm, queries, keys, values, upstream, plan, segments, *, chip=TPU):
    """peak, total; the softmax and its gradients."""

    def op(queries, keys, values):
        if form is AttentionForm.PALLAS:
            part = pallas_partial(
                queries, keys, values, plan, query_segments=segments, key_segments=segments,
                boundaries=Boundaries.MASKED, block=BLOCK, query_block=QUERY_BLOCK, interpret=True,
            )  # fmt: skip
        else:
            part = blockwise.online_partial(
                queries, keys, values, plan, segments=segments, boundaries=Boundaries.MASKED, block=BLOCK
            )
        return attention.normalise(part), (part.peak, part.total)

    with on(chip):
        out, pullback, numbers = jax.vjp(op, queries, keys, values, has_aux=True)
        return (*numbers, out, *pullback(upstream))


def step_for_a_chip(head_dim: int, dtype, *, slots: int = 4, length: int = 640, rows: int = 4):
    """(value and gradient of the joint softmax by the forms' own interface, shapes of its arguments)."""

    def loss(queries, keys, values, plan, segments):
        out = crossbatch.crossbatch_attention(
            queries, queries, keys, keys, values, plan,
            segments=segments, boundaries=Boundaries.MASKED, form=AttentionForm.PALLAS, block=200,
        )  # fmt: skip
        return (out.astype(jnp.float32) ** 2).sum()

    shape = jax.ShapeDtypeStruct
    plan = Plan(context_ids=shape((rows, slots), jnp.int32), own_document=shape((rows, slots), bool))
    keys = shape((rows, length, 2, head_dim), dtype)
    arguments = (shape((rows, length, 4, head_dim), dtype), keys, keys, plan, shape((rows, length), jnp.int32))
    return jax.value_and_grad(loss, argnums=(0, 1, 2)), arguments


def program_without_gathered_contexts(*, slots: int, rows: int, length: int):
    """The jaxpr of that step, of which no array holds the gathered contexts.

    Sizes tell arrays apart: C·S = slots · length, and B·C·S·G·D is far above everything else.
    """
    step, arguments = step_for_a_chip(64, jnp.float32, slots=slots, length=length, rows=rows)
    program = jax.make_jaxpr(step)(*arguments)
    for shape in jaxprs.shapes(program):
        assert slots * length not in shape and np.prod(shape) < rows * slots * length * 64, shape
    return program
