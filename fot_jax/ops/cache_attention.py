"""Attention to the first keys of each row: the local cache and the dense memory at inference.

Three loops over the same tiles; which one runs is decided where the program is compiled:

    accelerators      one block of keys after another, all rows and heads at once
    CPUs              one row and key/value head after another: its scores stay in the core's cache, which was
                      worth a factor of four to five in a window of 512 tokens that reads 4,096 entries
    CPUs, decoding    one row after another, all its key/value heads folded into one wide head

Keys [B, S, G, D] are stored as B matrices [S, G·D]. A query that is zero outside the D columns of its own head has the
same inner products with their rows, and the weighted sum of rows holds its value in the same columns. So no head's keys
are copied out of the others', which costs more than the products: these grow G-fold, but wait for memory. Keys that
count must be finite: zero times infinity would reach all heads.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from fot_jax.ops import softmax
from fot_jax.ops.backends.cpu import CACHE_BYTES, add_keys, no_keys
from fot_jax.ops.softmax import heads_first
from fot_jax.types import Partial

MOST_FOLDED_QUERIES = 32  # of a row, heads counted; beyond it the wider products cost more than the copies
LEAST_FOLDED_BYTES = 1 << 21  # of a row's keys; smaller ones stay in a core's cache


def cache_attention(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    *,
    valid: Bool[Array, "B S"],
    counts: Int[Array, "B L"],
    block: int = 1024,
) -> Partial:
    """Attends to the keys s < counts[b, l] that are valid, a block of keys at a time.

    Args:
      queries: scaled queries; query head h reads key/value head h // (H // G).
      keys: keys of each row.
      values: values of each row.
      valid: True where a key exists.
      counts: how many keys each query sees at most.
      block: keys per block; blocks that no query sees are skipped.

    Returns:
      The partial, with axes [B, L, H].
    """
    B, L, H, _ = queries.shape
    S = keys.shape[1]
    if S == 0:
        return softmax.empty_partial(queries)
    block = min(block, S)
    pad = -S % block
    keys, values = (jnp.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)]) for x in (keys, values))
    valid = jnp.pad(valid, [(0, 0), (0, pad)])
    together = functools.partial(_all_heads, block=block)
    if should_fold_heads(queries, keys):
        on_cpus = functools.partial(_folded_heads, block=block)
    elif B * H * L * block * 4 <= CACHE_BYTES:
        return together(queries, keys, values, valid, counts)
    else:
        on_cpus = functools.partial(_head_by_head, block=block)
    return jax.lax.platform_dependent(queries, keys, values, valid, counts, cpu=on_cpus, default=together)


def should_fold_heads(queries: Float[Array, "B L H D"], keys: Float[Array, "B S G D"]) -> bool:
    """Whether a CPU should read all key/value heads as one wide head."""
    L, H = queries.shape[1:3]
    _, S, G, D = keys.shape
    return G > 1 and L * H <= MOST_FOLDED_QUERIES and S * G * D * keys.dtype.itemsize >= LEAST_FOLDED_BYTES


def widen(queries: Float[Array, "B L H D"], *, key_heads: int) -> Float[Array, "B L H GD"]:
    """Makes queries for the one wide head: zero but in the columns of key/value head h // (H // G)."""
    B, L, H, D = queries.shape
    own = jnp.eye(key_heads, dtype=bool)[:, None, :, None]
    grouped = queries.reshape(B, L, key_heads, H // key_heads, 1, D)
    return jnp.where(own, grouped, 0).reshape(B, L, H, key_heads * D)


def fold_heads(x: Num[Array, "B S G D"]) -> Num[Array, "B S 1 GD"]:
    """Views keys or values of all heads as those of one wide head. No copy."""
    return x.reshape(*x.shape[:2], 1, -1)


def own_columns(weighted: Float[Array, "B L H GD"], *, key_heads: int) -> Float[Array, "B L H D"]:
    """Selects each query head's own D columns from the wide weighted sum."""
    B, L, H, wide = weighted.shape
    by_head = weighted.reshape(B, L, key_heads, H // key_heads, key_heads, wide // key_heads)
    return jnp.einsum("BLGRGD->BLGRD", by_head).reshape(B, L, H, -1)


def _all_heads(queries, keys, values, valid, counts, *, block: int) -> Partial:
    B, S = valid.shape
    queries = heads_first(queries)

    def blocks(x):
        return jnp.moveaxis(x.reshape(B, S // block, block, *x.shape[2:]), 1, 0)

    def visit(partial: Partial, entry):
        start, k, v, ok = entry

        def add(partial):
            inside = (start + jnp.arange(block))[None, None, :] < counts[:, :, None]
            mask = ok[:, None, :] & inside
            return softmax.add(partial, queries, heads_first(k), heads_first(v), mask=mask)

        seen = jnp.any(ok) & (start < counts.max())
        return jax.lax.cond(seen, add, lambda same: same, partial), None

    starts = jnp.arange(0, S, block, dtype=counts.dtype)
    entries = starts, blocks(keys), blocks(values), blocks(valid)
    partial = jax.lax.scan(visit, softmax.empty_partial(queries), entries)[0]
    return jax.tree.map(heads_first, partial)


def _folded_heads(queries, keys, values, valid, counts, *, block: int) -> Partial:
    B, L, H, _ = queries.shape
    S, G = keys.shape[1:3]
    wide = widen(queries, key_heads=G).reshape(B, L * H, -1)
    keys, values = (fold_heads(x)[:, :, 0] for x in (keys, values))

    def one(row):
        limits = jnp.repeat(counts[row], H)

        def visit(carry, start):
            k, v = (jax.lax.dynamic_slice(x, (row, start, 0), (1, block, x.shape[2]))[0] for x in (keys, values))
            ok = jax.lax.dynamic_slice(valid, (row, start), (1, block))[0]
            return _add_block(carry, wide[row], k, v, start=start, ok=ok, limits=limits), None

        return jax.lax.scan(visit, no_keys(L * H, wide.shape[2]), jnp.arange(0, S, block, dtype=counts.dtype))[0]

    weighted, peak, total = jax.lax.map(one, jnp.arange(B))
    weighted = own_columns(weighted.reshape(B, L, H, -1), key_heads=G)
    return Partial(weighted=weighted, peak=peak.reshape(B, L, H), total=total.reshape(B, L, H))


def _add_block(carry, queries, keys, values, *, start, ok, limits):
    """`add_keys` of the block [S, D] that begins at `start`: query t sees its valid keys before limits[t]."""
    block = len(ok)

    def add(carry):
        def mask():
            return ok[None] & ((start + jnp.arange(block))[None] < limits[:, None])

        return add_keys(carry, queries, keys, values, mask, clear=jnp.all(ok) & (start + block <= limits.min()))

    return jax.lax.cond(jnp.any(ok) & (start < limits.max()), add, lambda same: same, carry)


def _head_by_head(queries, keys, values, valid, counts, *, block: int) -> Partial:
    B, L, H, D = queries.shape
    G, S = keys.shape[2], keys.shape[1]
    R = H // G
    tiles = heads_first(queries).reshape(B * G, R * L, D)
    keys, values = (heads_first(x).reshape(B * G, S // block, block, D) for x in (keys, values))
    starts = jnp.arange(0, S, block, dtype=counts.dtype)

    def one(n):
        row = n // G
        limits = jnp.tile(counts[row], R)

        def visit(carry, entry):
            start, k, v, ok = entry
            return _add_block(carry, tiles[n], k, v, start=start, ok=ok, limits=limits), None

        return jax.lax.scan(visit, no_keys(R * L, D), (starts, keys[n], values[n], valid[row].reshape(-1, block)))[0]

    weighted, peak, total = (heads_first(x.reshape(B, H, L, *x.shape[2:])) for x in jax.lax.map(one, jnp.arange(B * G)))
    return Partial(weighted=weighted, peak=peak, total=total)
