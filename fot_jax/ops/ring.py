"""Crossbatch over devices: blocks of rows travel to the devices that read them, hop by hop.

Rows are split over devices, and a plan reads rows that lie elsewhere. Gathered by index, XLA would bring the
keys and values of the whole batch to every device. Here each device sends its block to its neighbour, which
attends to it and sends it on, for as many hops as the plan reaches and with the rows it reads only
(`fot_jax/ops/routes.py`):

    hop 0     own rows
    hop h     the block of the device h before:  next ← permute(held);  attend(held);  held ← next

The permute of the next block needs nothing of the attention in hand, and TPU compilers run both at once.
Backward the blocks travel again (scores are recomputed) with the gradients of their keys and values, which
every device adds to, and which go home from where their rows are read last. Kept between the two: queries, keys,
values and peaks, whatever the number of hops.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention
from fot_jax.ops.hops import Block, Hop, hop_of
from fot_jax.types import Leg, Partial, Plan, Route


def ring_partial(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    plan: Plan,
    *,
    segments: Int[Array, "B S"],
    boundaries: Boundaries,
    form: AttentionForm,
    block: int,
    **kernel_options,
) -> Partial:
    """`blockwise.online_partial` of a plan with a route, where rows are split over the mesh in context.

    Differentiable in queries, keys and values. Temporary memory is a few blocks of rows for each leg of the route, of
    which there are at most as many as a device has rows, and one tile of scores. A slot that the route does not reach
    makes its row NaN.

    Args:
      queries: scaled queries.
      keys: the batch rows' keys.
      values: the batch rows' values.
      plan: which rows each row reads, and the route.
      segments: document ids of the rows, 0 for padding.
      boundaries: MASKED or JOINED documents.
      form: PALLAS: the kernels attend to each block of rows; every other form: `blockwise`.
      block: keys per block of scores, in tokens.
      **kernel_options: `query_block` and `interpret` of the kernels, as `pallas_partial`.

    Source: FoT eq. (2), app. B.3; blocks that travel: Liu et al. 2023 (ring attention). Differs: stops where
    the plan ends, and rows are not causal among each other.
    """
    assert plan.route is not None
    hop = hop_of(form, boundaries=boundaries, block=block, **kernel_options)
    parts: tuple = _ring(hop, plan.route, queries, keys, values, _bare(plan), segments)  # pyright: ignore[reportAssignmentType]
    weighted, peak, total = parts
    return Partial(weighted=weighted, peak=jax.lax.stop_gradient(peak), total=total)


def ring_gradients(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    plan: Plan,
    *,
    segments: Int[Array, "B S"],
    boundaries: Boundaries,
    form: AttentionForm,
    block: int,
    peak: Float[Array, "B L H"],
    d_weighted: Float[Array, "B L H D"],
    d_total: Float[Array, "B L H"],
) -> tuple[Float[Array, "B L H D"], Float[Array, "B S G D"], Float[Array, "B S G D"]]:
    """Gradients of `ring_partial`'s queries, keys and values, in their dtypes, by those of its weighted and total.

    `peak` is what the two are relative to, of all keys in one softmax; other arguments as `ring_partial`.
    """
    assert plan.route is not None
    hop = hop_of(form, boundaries=boundaries, block=block)
    saved = queries, keys, values, _bare(plan), segments, peak
    return _backward(hop, plan.route, saved, (d_weighted, None, d_total))[:3]  # pyright: ignore[reportReturnType]


def _bare(plan: Plan) -> Plan:
    return Plan(context_ids=jnp.asarray(plan.context_ids), own_document=jnp.asarray(plan.own_document))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(hop: Hop, route: Route, queries, keys, values, plan: Plan, segments):
    return _forward(hop, route, queries, keys, values, plan, segments)[0]


def _mapped(function, route: Route, outputs: tuple[int, ...]):
    """`function` on each device's part: every array [B, L, heads, …] or [B, …]; outputs by their ranks."""
    by_head = [PartitionSpec(route.axes, route.length, route.heads, None)] * 3
    rows = Plan(context_ids=PartitionSpec(route.axes), own_document=PartitionSpec(route.axes))
    arguments = (*by_head, rows, PartitionSpec(route.axes, route.length))
    results = tuple(PartitionSpec(route.axes, route.length, route.heads, *[None] * (rank - 3)) for rank in outputs)

    def on_mesh(*given):
        extra = tuple(PartitionSpec(*by_head[0][: x.ndim]) for x in given[len(arguments) :])
        # No check of what varies over the mesh: all outputs do, and nothing is differentiated through.
        return jax.shard_map(function, in_specs=(*arguments, *extra), out_specs=results, check_vma=False)(*given)

    return on_mesh


def _forward(hop: Hop, route: Route, queries, keys, values, plan: Plan, segments):
    result = _mapped(functools.partial(_attend, hop, route), route, (4, 3, 3))(queries, keys, values, plan, segments)
    return result, (queries, keys, values, plan, segments, result[1])


def _backward(hop: Hop, route: Route, saved, cotangents):
    *inputs, peak = saved
    d_weighted, _, d_total = cotangents
    mapped = _mapped(functools.partial(_gradients, hop, route), route, (4, 4, 4))
    return *mapped(*inputs, peak, d_weighted, d_total), None, None


_ring.defvjp(_forward, _backward)


def _attend(hop: Hop, route: Route, queries, keys, values, plan: Plan, segments):
    """One device's (weighted [r, L, H, D], peak [r, L, H], total [r, L, H]) over all hops."""
    L, G = queries.shape[1], keys.shape[2]
    stacked = hop.inward(queries, G)

    def visit(state, held: Block, leg: Leg, number):
        if not leg.slots:
            return state
        partial, seen = state
        readings = _readings(route, plan, leg, number)
        seen += (readings.context_ids >= 0).sum(axis=1, dtype=jnp.int32)
        return attention.merge(partial, hop.forward(stacked, held, readings, segments)), seen

    def around(carry):
        home, state = carry
        arriving = _shift(home, route.length, 1)
        return arriving, _travel(route, home, state, visit, lambda state, *_: state)

    start = attention.empty_partial(stacked), jnp.zeros(len(queries), jnp.int32)
    pieces = jax.lax.axis_size(route.length)
    _, (partial, seen) = _repeat(around, (_home(keys, values, segments), start), pieces)
    unread = seen != pieces * (plan.context_ids >= 0).sum(axis=1, dtype=jnp.int32)
    weighted = jnp.where(unread[:, None, None, None], jnp.nan, partial.weighted)
    return tuple(hop.outward(x, L) for x in (weighted, partial.peak, partial.total))


def _gradients(hop: Hop, route: Route, queries, keys, values, plan: Plan, segments, peak, d_weighted, d_total):
    """One device's gradients of its queries, keys and values, in their dtypes."""
    L, G = queries.shape[1], keys.shape[2]
    stacked, peak, d_weighted, d_total = (hop.inward(x, G) for x in (queries, peak, d_weighted, d_total))

    def visit(state, held: Block, leg: Leg, number):
        dq, home, sums = state
        if sums is not None:
            sums = _shift(sums, route.axes, route.step)
        if leg.slots:
            readings = _readings(route, plan, leg, number)
            more, *added = hop.gradients(stacked, held, readings, segments, peak, d_weighted, d_total)
            dq += more
        else:
            added = [jnp.zeros(x.shape, jnp.float32) for x in held[:2]]
        return dq, home, added if sums is None else [a + b for a, b in zip(sums, added, strict=True)]

    def leave(state, leg: Leg, following: Leg | None, number: int):
        """Rows that go no further: what they gathered goes home, rounded once to the dtype of their keys.

        Sums go around the end of the mesh axis even where blocks do not: past the last reader on their way home.
        """
        dq, home, sums = state
        if home is None:
            return dq, sums, None
        staying = [i for i, row in enumerate(leg.rows) if following is None or row not in following.rows]
        if staying:
            rounded = [_take(x, staying).astype(keys.dtype) for x in sums]
            back = _shift(rounded, route.axes, -route.step * number)
            rows = np.asarray(leg.rows)[staying]
            home = [whole.at[rows].add(part) for whole, part in zip(home, back, strict=True)]
        return dq, home, None if following is None else _keep(sums, leg, following)

    def around(carry):
        block, dq, sums = carry
        arriving, sums = _shift(block, route.length, 1), _shift(sums, route.length, 1)
        dq, found, _ = _travel(route, block, (dq, None, None), visit, leave)
        return arriving, dq, [a + b for a, b in zip(sums, found, strict=True)]

    block = _home(keys, values, segments)
    start = jnp.zeros(stacked.shape, jnp.float32), [jnp.zeros(x.shape, jnp.float32) for x in block[:2]]
    _, dq, sums = _repeat(around, (block, *start), jax.lax.axis_size(route.length))
    dk, dv = (x.swapaxes(1, 2) for x in _shift(sums, route.length, 1))
    return hop.outward(dq, L).astype(queries.dtype), dk.astype(keys.dtype), dv.astype(values.dtype)


def _repeat(step: Callable, carry, times: int):
    """`step` of the carry so many times; once without a scan.

    Of a scan in which blocks do not move JAX takes what each hop finds out of the loop, and keeps it hop by hop.
    """
    if times == 1:
        return step(carry)
    return jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=times)[0]


def _travel(route: Route, block: Block, state, visit: Callable, leave: Callable):
    """`visit`s the own rows and each block that comes by, the next one being on its way; `leave`s each leg."""
    home = Leg(rows=tuple(range(len(block[0]))), hops=1, slots=route.home_slots)
    legs = [home, *_first_alone(route.legs), None]
    held, number = block, 0
    for leg, following in itertools.pairwise(legs):
        assert leg is not None

        def pass_on(carry, number, leg=leg):
            held, state = carry
            return (_along(route, held), visit(state, held, leg, number)), None

        if leg.hops > 1:
            (held, state), _ = jax.lax.scan(pass_on, (held, state), number + jnp.arange(leg.hops - 1))
            number += leg.hops - 1
        arriving = held if following is None else _along(route, _keep(held, leg, following))
        state = leave(visit(state, held, leg, number), leg, following, number)
        held, number = arriving, number + 1
    return state


def _first_alone(legs: tuple[Leg, ...]) -> Iterator[Leg]:
    """The first hop apart: there the travelling gradients begin."""
    for index, leg in enumerate(legs):
        if index == 0 and leg.hops > 1:
            yield dataclasses.replace(leg, hops=1)
            leg = dataclasses.replace(leg, hops=leg.hops - 1)
        yield leg


def _readings(route: Route, plan: Plan, leg: Leg, number) -> Plan:
    """The slots read from the block held at hop `number`, moved to the front: places in the block, or −1."""
    rows = plan.context_ids.shape[0]
    places = np.full(rows, -1, np.int32)
    places[list(leg.rows)] = np.arange(len(leg.rows))
    origin = jax.lax.axis_index(route.axes) - route.step * number
    if route.wraps:
        origin = origin % route.shards
    ids = plan.context_ids
    index = jnp.where((ids >= 0) & (ids // rows == origin), jnp.asarray(places)[ids % rows], -1)
    front = jnp.argsort(index < 0, axis=1, stable=True)[:, : leg.slots]
    take = functools.partial(jnp.take_along_axis, indices=front, axis=1)
    return Plan(context_ids=take(index), own_document=take(plan.own_document))


def _home(keys, values, segments) -> Block:
    return keys.swapaxes(1, 2), values.swapaxes(1, 2), segments


def _take(x: jax.Array, places: Sequence[int]) -> jax.Array:
    return x if len(places) == len(x) else x[np.asarray(places)]


def _keep(arrays, leg: Leg, following: Leg):
    """Of rows of one leg, those that the next leg sends on."""
    places = [leg.rows.index(row) for row in following.rows]
    return jax.tree.map(lambda x: _take(x, places), arrays)


def _along(route: Route, arrays):
    return _shift(arrays, route.axes, route.step, wraps=route.wraps)


def _shift(arrays, axes: str | tuple[str, ...], by: int, *, wraps: bool = True):
    """Arrays of the device `by` places before on the mesh axes; zeros where there is none."""
    size = jax.lax.axis_size(axes)
    if size == 1:
        return arrays
    pairs = [(i, (i + by) % size) for i in range(size) if wraps or 0 <= i + by < size]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, pairs), arrays)
