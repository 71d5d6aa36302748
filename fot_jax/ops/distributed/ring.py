"""Crossbatch over devices: blocks of rows travel to the devices that read them, hop by hop.

Rows are split over devices, and a plan reads rows that other devices hold. Gathered by index, XLA would bring the
keys and values of the whole batch to every device. Here each device sends its block to its neighbour, which
attends to it and sends it on, for as many hops as the plan reaches and with only the rows that it reads
(`ring_schedule.py`):

    hop 0     own rows
    hop h     the block of the device h before:  next ← permute(held);  attend(held);  held ← next

The permute of the next block needs nothing of the attention in hand, and TPU compilers run both at once.
Backward the blocks travel again (scores are recomputed) with the gradients of their keys and values, which
every device adds to, and which go home from where their rows are read last.

Temporary memory is a few blocks of rows for each stage, of which there are at most as many as a device has rows, and
what the backend needs for one block.

Source: FoT eq. (2), app. B.3; blocks that travel: Liu et al. 2023 (ring attention). Differs: stops where the plan
ends, and rows are not causal among each other.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fot_jax.ops import softmax
from fot_jax.ops.backends import Backend, Gradients
from fot_jax.ops.backends.sharded import on_devices, partial_specs
from fot_jax.types import Partial, Plan, RingSchedule, RingStage, Rows, Upstream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring:
    """A backend whose contexts travel; the rows are split over the mesh in context.

    A slot that the schedule does not reach makes its row NaN.

    Attributes:
      own: attends to the own chunk.
      inside: attends to each block of rows, on one device.
      schedule: when which rows travel.
    """

    own: Backend
    inside: Backend
    schedule: RingSchedule

    def local(self, queries, own: Rows) -> Partial:
        """See `Backend`."""
        return self.own.local(queries, own)

    def local_gradients(self, queries, own: Rows, upstream: Upstream) -> Gradients:
        """See `Backend`."""
        return self.own.local_gradients(queries, own, upstream)

    def contexts(self, queries, rows: Rows, plan: Plan, *, segments) -> Partial:
        """See `Backend`; queries and rows are the same rows of the batch."""
        with jax.named_scope("crossbatch_ring"):
            return self._on_devices(self._attend, partial_specs)(queries, rows, plan)

    def context_gradients(self, queries, rows: Rows, plan: Plan, upstream: Upstream, *, segments) -> Gradients:
        """See `Backend`; sums that go home are rounded to the dtype of the keys."""
        with jax.named_scope("crossbatch_ring"):
            return self._on_devices(self._gradients, lambda layout: (layout,) * 3)(queries, rows, plan, upstream)

    def _on_devices(self, function, out_specs: Callable):
        """`function` on each device's part of arrays and of the plan's rows."""
        ring = self.schedule
        layout = PartitionSpec(ring.axes, ring.heads, ring.length, None)
        return on_devices(function, layout, out_specs(layout), plan=PartitionSpec(ring.axes))

    def _attend(self, queries, own: Rows, plan: Plan) -> Partial:
        """One device's partial over all hops."""
        ring = self.schedule

        def visit(state, held: Rows, stage: RingStage, number):
            if not stage.slots:
                return state
            partial, seen = state
            readings = _readings(ring, plan, stage, number)
            seen += (readings.context_ids >= 0).sum(axis=1, dtype=jnp.int32)
            found = self.inside.contexts(queries, held, readings, segments=own.segments)
            return softmax.merge(partial, found), seen

        def around(carry):
            home, state = carry
            arriving = _shift(home, ring.length, 1)
            return arriving, _travel(ring, home, state, visit, lambda state, *_: state)

        start = softmax.empty_partial(queries), jnp.zeros(len(queries), jnp.int32)
        pieces = jax.lax.axis_size(ring.length)
        _, (partial, seen) = _repeat(around, (own, start), pieces)
        unread = seen != pieces * (plan.context_ids >= 0).sum(axis=1, dtype=jnp.int32)
        return dataclasses.replace(partial, weighted=jnp.where(unread[:, None, None, None], jnp.nan, partial.weighted))

    def _gradients(self, queries, own: Rows, plan: Plan, upstream: Upstream) -> Gradients:
        """One device's gradients of its queries, keys and values."""
        ring = self.schedule

        def visit(state, held: Rows, stage: RingStage, number):
            dq, home, sums = state
            if sums is not None:
                sums = _shift(sums, ring.axes, ring.step)
            if stage.slots:
                readings = _readings(ring, plan, stage, number)
                more, *added = self.inside.context_gradients(queries, held, readings, upstream, segments=own.segments)
                dq += more
            else:
                added = _zeros(held)
            return dq, home, added if sums is None else [a + b for a, b in zip(sums, added, strict=True)]

        def leave(state, stage: RingStage, following: RingStage | None, number: int):
            """Sends home what rows that go no further have gathered, rounded once to the dtype of their keys.

            Sums go around the end of the mesh axis even where blocks do not: past the last reader on their way home.
            """
            dq, home, sums = state
            if home is None:
                return dq, sums, None
            staying = [i for i, row in enumerate(stage.rows) if following is None or row not in following.rows]
            if staying:
                rounded = [_take(x, staying).astype(own.keys.dtype) for x in sums]
                back = _shift(rounded, ring.axes, -ring.step * number)
                rows = np.asarray(stage.rows)[staying]
                home = [whole.at[rows].add(part) for whole, part in zip(home, back, strict=True)]
            return dq, home, None if following is None else _keep(sums, stage, following)

        def around(carry):
            block, dq, sums = carry
            arriving, sums = _shift(block, ring.length, 1), _shift(sums, ring.length, 1)
            dq, found, _ = _travel(ring, block, (dq, None, None), visit, leave)
            return arriving, dq, [a + b for a, b in zip(sums, found, strict=True)]

        start = own, jnp.zeros(queries.shape, jnp.float32), _zeros(own)
        _, dq, sums = _repeat(around, start, jax.lax.axis_size(ring.length))
        dk, dv = _shift(sums, ring.length, 1)
        return dq, dk, dv


def _zeros(rows: Rows) -> list[jax.Array]:
    """Sums of gradients of keys and values before any."""
    return [jnp.zeros(x.shape, jnp.float32) for x in (rows.keys, rows.values)]


def _repeat(step: Callable, carry, times: int):
    """Applies `step` to the carry that many times; once without a scan.

    JAX hoists the hops out of a scan whose blocks do not move, and would keep the results of each hop.
    """
    if times == 1:
        return step(carry)
    return jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=times)[0]


def _travel(ring: RingSchedule, block: Rows, state, visit: Callable, leave: Callable):
    """Calls `visit` for the own rows and each block that comes by while the next is sent, and `leave` after a stage."""
    home = RingStage(rows=tuple(range(len(block.segments))), hops=1, slots=ring.home_slots)
    stages = [home, *_first_alone(ring.stages), None]
    held, number = block, 0
    for stage, following in itertools.pairwise(stages):
        assert stage is not None

        def pass_on(carry, number, stage=stage):
            held, state = carry
            return (_shift(held, ring.axes, ring.step, wraps=ring.wraps), visit(state, held, stage, number)), None

        if stage.hops > 1:
            (held, state), _ = jax.lax.scan(pass_on, (held, state), number + jnp.arange(stage.hops - 1))
            number += stage.hops - 1
        arriving = (
            held if following is None else _shift(_keep(held, stage, following), ring.axes, ring.step, wraps=ring.wraps)
        )
        state = leave(visit(state, held, stage, number), stage, following, number)
        held, number = arriving, number + 1
    return state


def _first_alone(stages: tuple[RingStage, ...]) -> Iterator[RingStage]:
    """The first hop apart: there the travelling gradients begin."""
    for index, stage in enumerate(stages):
        if index == 0 and stage.hops > 1:
            yield dataclasses.replace(stage, hops=1)
            stage = dataclasses.replace(stage, hops=stage.hops - 1)
        yield stage


def _readings(ring: RingSchedule, plan: Plan, stage: RingStage, number) -> Plan:
    """The slots read from the block held at hop `number`, moved to the front: places in the block, or −1."""
    rows = plan.context_ids.shape[0]
    places = np.full(rows, -1, np.int32)
    places[list(stage.rows)] = np.arange(len(stage.rows))
    origin = jax.lax.axis_index(ring.axes) - ring.step * number
    if ring.wraps:
        origin = origin % ring.shards
    ids = plan.context_ids
    index = jnp.where((ids >= 0) & (ids // rows == origin), jnp.asarray(places)[ids % rows], -1)
    front = jnp.argsort(index < 0, axis=1, stable=True)[:, : stage.slots]
    take = functools.partial(jnp.take_along_axis, indices=front, axis=1)
    return Plan(context_ids=take(index), own_document=take(plan.own_document))


def _take(x: jax.Array, places: Sequence[int]) -> jax.Array:
    return x if len(places) == len(x) else x[np.asarray(places)]


def _keep(arrays, stage: RingStage, following: RingStage):
    """Selects the rows of one stage that the next stage sends on."""
    places = [stage.rows.index(row) for row in following.rows]
    return jax.tree.map(lambda x: _take(x, places), arrays)


def _shift(arrays, axes: str | tuple[str, ...], by: int, *, wraps: bool = True):
    """Arrays of the device `by` places before on the mesh axes; zeros where there is none."""
    size = jax.lax.axis_size(axes)
    if size == 1:
        return arrays
    pairs = [(i, (i + by) % size) for i in range(size) if wraps or 0 <= i + by < size]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, pairs), arrays)
