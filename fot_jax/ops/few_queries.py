"""Few queries and many keys on CPUs, as in decoding with a memory: all key/value heads as one wide head.

Keys [B, S, G, D] lie in memory as B matrices [S, G·D]. A query that is zero outside the D columns of its own head has
the same inner products with their rows, and the weighted sum of rows holds its value in the same columns. So no head's
keys are copied out of the others', which costs more than the products: these grow G-fold, but wait for memory. Keys
that count must be finite: zero times infinity would reach all heads.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

MOST_QUERIES = 32  # of a row, heads counted; beyond it the wider products cost more than the copies
LEAST_BYTES = 1 << 21  # of a row's keys; smaller ones stay in a core's cache


def pays(queries: Float[Array, "B L H D"], keys: Float[Array, "B S G D"]) -> bool:
    """Whether a CPU should read all heads as one."""
    L, H = queries.shape[1:3]
    _, S, G, D = keys.shape
    return G > 1 and L * H <= MOST_QUERIES and S * G * D * keys.dtype.itemsize >= LEAST_BYTES


def widen(queries: Float[Array, "B L H D"], *, key_heads: int) -> Float[Array, "B L H GD"]:
    """Queries for the one wide head: zero but in the columns of key/value head h // (H // G)."""
    B, L, H, D = queries.shape
    own = jnp.eye(key_heads, dtype=bool)[:, None, :, None]
    grouped = queries.reshape(B, L, key_heads, H // key_heads, 1, D)
    return jnp.where(own, grouped, 0).reshape(B, L, H, key_heads * D)


def as_one_head(x: Num[Array, "B S G D"]) -> Num[Array, "B S 1 GD"]:
    """Keys or values of all heads beside one another, where they lie."""
    return x.reshape(*x.shape[:2], 1, -1)


def own_columns(weighted: Float[Array, "B L H GD"], *, key_heads: int) -> Float[Array, "B L H D"]:
    """Of each query's weighted sum of wide values those of its own head."""
    B, L, H, wide = weighted.shape
    by_head = weighted.reshape(B, L, key_heads, H // key_heads, key_heads, wide // key_heads)
    return jnp.einsum("BLGRGD->BLGRD", by_head).reshape(B, L, H, -1)
