"""Memory attention for some query positions at a time, to bound its temporaries."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fot_jax.types import Partial


def over_query_blocks(attend: Callable[[jax.Array], Partial], queries: jax.Array, block: int) -> Partial:
    """Computes attend(queries) for `block` query positions at a time, to bound its temporaries.

    Args:
      attend: [B, block, H, D] -> Partial.
      queries: [B, L, H, D]; L is padded to whole blocks.
      block: query positions at once.
    """
    B, L, H, D = queries.shape
    if block >= L:
        return attend(queries)
    blocks = jnp.pad(queries, ((0, 0), (0, -L % block), (0, 0), (0, 0)), mode="edge").reshape(B, -1, block, H, D)
    parts = jax.lax.map(attend, jnp.moveaxis(blocks, 1, 0))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1, *x.shape[3:])[:, :L], parts)
