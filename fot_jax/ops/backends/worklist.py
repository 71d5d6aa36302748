"""The lists of (reader row, context row) pairs that the Pallas kernels walk over.

A list is sorted so that all pairs of an output row follow one another: by reader for the forward pass and the gradient
of the queries, by context for the gradients of the keys and values. Plan of 3 readers, 2 slots:

    row 0   . .          by reader   0-  1←0  2←1  2←0        (0-: nothing to read, its output is set)
    row 1   0 .          by context  0→1  0→2  1→2  2-
    row 2   1 0

Empty slots are not in the list, whose length is given to the kernel at run time.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from fot_jax.types import Plan

OWN, FILLED, FIRST, LAST = 1, 2, 4, 8  # bits of a flag; FIRST, LAST: of all pairs of one output row


@flax.struct.dataclass
class WorkList:
    """A sorted list of pairs in arrays of a static length V, of which `count` are real.

    Attributes:
      readers: int32 [V], the row of the queries.
      contexts: int32 [V], the row of the keys.
      flags: int32 [V], bits OWN, FILLED, FIRST, LAST; without FILLED nothing is read.
      count: int32 scalar, or an int where it is known.
      slots: the most pairs that can be filled.
    """

    readers: jax.Array
    contexts: jax.Array
    flags: jax.Array
    count: jax.Array | int
    slots: int = flax.struct.field(pytree_node=False)


def own_rows(rows: int) -> WorkList:
    """Returns the list by which each row reads itself."""
    ids = jnp.arange(rows, dtype=jnp.int32)
    flags = jnp.full((rows,), OWN | FILLED | FIRST | LAST, jnp.int32)
    return WorkList(readers=ids, contexts=ids, flags=flags, count=rows, slots=rows)


def by_reader(plan: Plan) -> WorkList:
    """Returns the plan's pairs, sorted by the row that reads: V = B·C + B."""
    readers, contexts, flags = _pairs(plan)
    targets, others, flags, count = _sort(readers, contexts, flags, num_targets=plan.context_ids.shape[0])
    return WorkList(readers=targets, contexts=others, flags=flags, count=count, slots=plan.context_ids.size)


def by_context(plan: Plan, *, rows: int) -> WorkList:
    """Returns the plan's pairs, sorted by the row that is read, of `rows` rows: V = B·C + rows."""
    readers, contexts, flags = _pairs(plan)
    targets, others, flags, count = _sort(contexts, readers, flags, num_targets=rows)
    return WorkList(readers=others, contexts=targets, flags=flags, count=count, slots=plan.context_ids.size)


def starts_of(targets: Int[Array, " V"], count, *, num_targets: int) -> Int[Array, " starts"]:
    """Returns where the pairs of each target begin in a list sorted by target, and where the last one's end.

    targets  0 0 1 2 2 (2)   count 5   ->   0 2 3 5
    """
    starts = jnp.searchsorted(targets, jnp.arange(num_targets, dtype=jnp.int32), method="compare_all").astype(jnp.int32)
    return jnp.append(starts, jnp.asarray(count, jnp.int32))


def _pairs(plan: Plan):
    """Returns (readers, contexts, flags) of all slots, flat."""
    ids = plan.context_ids.astype(jnp.int32)
    readers = jnp.broadcast_to(jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None], ids.shape)
    flags = jnp.where(ids >= 0, FILLED + plan.own_document.astype(jnp.int32) * OWN, 0)
    return readers.reshape(-1), ids.reshape(-1), flags.reshape(-1)


def _sort(targets, others, flags, *, num_targets: int):
    """Sorts pairs by target, with one unfilled pair for each target without any; all else is behind `count`."""
    keys = jnp.where(flags & FILLED != 0, targets, num_targets)
    found = jnp.zeros((num_targets,), bool).at[keys].set(True, mode="drop")
    alone = jnp.where(found, num_targets, jnp.arange(num_targets, dtype=jnp.int32))
    keys = jnp.concatenate([keys, alone])
    order = jnp.argsort(keys, stable=True)
    keys = keys[order]
    others = jnp.maximum(jnp.pad(others, (0, num_targets))[order], 0)
    flags = jnp.pad(flags, (0, num_targets))[order]
    ends = jnp.concatenate([keys[1:] != keys[:-1], jnp.ones((1,), bool)])
    starts = jnp.concatenate([jnp.ones((1,), bool), ends[:-1]])
    flags = flags | jnp.where(starts, FIRST, 0) | jnp.where(ends, LAST, 0)
    return jnp.minimum(keys, num_targets - 1), others, flags, jnp.sum(keys < num_targets, dtype=jnp.int32)
