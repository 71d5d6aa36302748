"""Plans, inputs and programs that the tests of the kernels for TPUs and for GPUs share."""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import Boundaries
from fot_jax.ops import plans, softmax, target
from fot_jax.ops.backends import Backend
from fot_jax.ops.backends.pallas import Pallas
from fot_jax.ops.crossbatch import crossbatch_attention
from fot_jax.types import Plan, Rows
from tests import cases, jaxprs

TPU = target.Target(platform="tpu", kind="TPU v5e")
GPU = target.Target(platform="gpu", kind="NVIDIA H100 80GB HBM3")


@contextlib.contextmanager
def on(chip: target.Target) -> Iterator[None]:
    """Traces for this chip inside."""
    with mock.patch.object(target, "current", return_value=chip):
        yield


# One compiled program each for all plans and data of the tests below: 8 rows of 10 tokens, 8 slots.
ROWS, LENGTH, SLOTS, BLOCK, QUERY_BLOCK = 8, 10, 8, 4, 3
KERNELS = Pallas(boundaries=Boundaries.MASKED, block=BLOCK, query_block=QUERY_BLOCK, interpret=True)
PLANS = {
    "off": plans.own_past_plan(ROWS, k=1, w=1),
    "two pass": plans.two_pass_plan(4, w=1, d=3),
    "packed": plans.packed_plan(ROWS, k=2, w=1, d=5),
    "segments": plans.segments_plan(ROWS, k=4, segments=((0, 0), (1, 1), (2, 1), (3, 0))),
    "constant range": plans.constant_range_plan(ROWS, k=4, r=6, stepping=True),
    "own past": plans.own_past_plan(ROWS, k=4, w=3),
}


def padded(plan: Plan) -> Plan:
    """Returns the plan with empty columns up to SLOTS."""
    extra = SLOTS - plan.context_ids.shape[1]
    return Plan(
        context_ids=jnp.pad(jnp.asarray(plan.context_ids), ((0, 0), (0, extra)), constant_values=-1),
        own_document=jnp.pad(jnp.asarray(plan.own_document), ((0, 0), (0, extra))),
    )


def inputs(seed: int = 3) -> list[jax.Array]:
    """Returns queries, keys, values and the gradient of the output, with 3 heads each, heads first."""
    shape = (ROWS, 3, LENGTH, 8)
    return cases.to_float32(*cases.arrays(seed, *[shape] * 4))


def contexts_and_gradients(backend: Backend, queries, keys, values, d_out, plan: Plan, segments, key_segments):
    """Returns peak, total, the softmax over the contexts alone, and its gradients, heads first."""
    rows = Rows(keys, values, key_segments)
    part = backend.contexts(queries, rows, plan, segments=segments)
    out = softmax.normalise(part)
    upstream = softmax.normalise_gradients(out, part.peak, part.total, d_out)
    return part.peak, part.total, out, *backend.context_gradients(queries, rows, plan, upstream, segments=segments)


@functools.partial(jax.jit, static_argnames=("backend", "chip"))
def compiled_contexts(backend: Backend, queries, keys, values, d_out, plan: Plan, segments, *, chip=TPU):
    """Runs `contexts_and_gradients` for a chip, on rows that read each other."""
    with on(chip):
        return contexts_and_gradients(backend, queries, keys, values, d_out, plan, segments, segments)


def step_for_a_chip(head_dim: int, dtype, *, slots: int = 4, length: int = 640, rows: int = 4):
    """Returns the value and gradient of the joint softmax by the layers' own function, and its arguments' shapes."""

    def loss(queries, keys, values, plan, segments):
        backend = Pallas(boundaries=Boundaries.MASKED, block=200)
        out = crossbatch_attention(queries, keys, keys, values, plan, segments=segments, backend=backend)
        return (out.astype(jnp.float32) ** 2).sum()

    shape = jax.ShapeDtypeStruct
    plan = Plan(context_ids=shape((rows, slots), jnp.int32), own_document=shape((rows, slots), bool))
    keys = shape((rows, length, 2, head_dim), dtype)
    arguments = (shape((rows, length, 4, head_dim), dtype), keys, keys, plan, shape((rows, length), jnp.int32))
    return jax.value_and_grad(loss, argnums=(0, 1, 2)), arguments


def program_without_gathered_contexts(*, slots: int, rows: int, length: int):
    """Returns the jaxpr of that step, once it is seen that no array holds the gathered contexts.

    Sizes tell arrays apart: C·S = slots · length, and B·C·S·G·D is far above everything else.
    """
    step, arguments = step_for_a_chip(64, jnp.float32, slots=slots, length=length, rows=rows)
    program = jax.make_jaxpr(step)(*arguments)
    for shape in jaxprs.shapes(program):
        assert slots * length not in shape and np.prod(shape) < rows * slots * length * 64, shape
    return program
