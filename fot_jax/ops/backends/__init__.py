"""Backends: ways to attend to a row's own chunk and to the contexts of a plan, with one interface.

    reference    all scores in one array: the readable one
    xla          online softmax, one block of keys of all rows and heads at a time
    cpu          the same, one row and head at a time
    pallas       the same in kernels, for TPUs and GPUs
    sharded      any backend in a mesh, each device on its own part
    ring         any backend in a mesh, on rows that travel (`fot_jax/ops/distributed/ring.py`)

`choose.py` chooses one for each trace. Arrays are heads first: queries [B, H, L, D], `Rows` [rows, G, S, D]. A backend
is a frozen dataclass whose fields are all that is static about it. Gradients are float32 and those of (queries, keys,
values), by an `Upstream` whose peak is that of all keys in one softmax, so that each set of keys needs no softmax of
its own.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fot_jax.ops import softmax
from fot_jax.types import Partial, Plan, Rows, Upstream

Gradients = tuple[jax.Array, jax.Array, jax.Array]


@runtime_checkable
class Backend(Protocol):
    """Attention to a row's own chunk and to contexts, forward and backward."""

    def local(self, queries: Float[Array, "B H L D"], own: Rows) -> Partial:
        """Attends causally to each row's own chunk; `own` has the queries' rows and positions."""
        ...

    def contexts(
        self, queries: Float[Array, "B H L D"], rows: Rows, plan: Plan, *, segments: Int[Array, "B L"]
    ) -> Partial:
        """Attends to the contexts of the plan.

        Args:
          queries: scaled queries.
          rows: the rows that `plan.context_ids` index.
          plan: which rows each query row reads.
          segments: document ids of the queries, 0 for padding.
        """
        ...

    def local_gradients(self, queries: Float[Array, "B H L D"], own: Rows, upstream: Upstream) -> Gradients:
        """Returns the gradients of what `local` reads."""
        ...

    def context_gradients(
        self,
        queries: Float[Array, "B H L D"],
        rows: Rows,
        plan: Plan,
        upstream: Upstream,
        *,
        segments: Int[Array, "B L"],
    ) -> Gradients:
        """Returns the gradients of what `contexts` reads."""
        ...


@dataclasses.dataclass(frozen=True)
class ContextsAlone:
    """A backend without the own chunk, for the two softmaxes of the Memorizing Transformer."""

    backend: Backend

    def local(self, queries, own: Rows) -> Partial:
        """Attends to no key."""
        return softmax.empty_partial(queries)

    def local_gradients(self, queries, own: Rows, upstream: Upstream) -> Gradients:
        """Returns zeros."""
        dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (queries, own.keys, own.values))
        return dq, dk, dv

    def contexts(self, queries, rows: Rows, plan: Plan, *, segments) -> Partial:
        """See `Backend`."""
        return self.backend.contexts(queries, rows, plan, segments=segments)

    def context_gradients(self, queries, rows: Rows, plan: Plan, upstream: Upstream, *, segments) -> Gradients:
        """See `Backend`."""
        return self.backend.context_gradients(queries, rows, plan, upstream, segments=segments)
