"""Attention to the first keys of each row: the local cache and the dense memory at inference.

Three loops over the same tiles; which one runs is decided where the program is compiled:

    accelerators      one block of keys after another, all rows and heads at once
    CPUs              one row and key/value head after another: its scores stay in the core's cache, which was
                      worth a factor of four to five in a window of 512 tokens that reads 4,096 entries
    CPUs, decoding    one row after another, all its heads as one (`few_queries`)
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fot_jax.ops import attention, few_queries
from fot_jax.ops.by_head import CACHE_BYTES, add_keys, no_keys
from fot_jax.types import Partial


def prefix_partial(
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
    """
    B, L, H, _ = queries.shape
    S = keys.shape[1]
    if S == 0:
        return attention.empty_partial(queries)
    block = min(block, S)
    pad = -S % block
    keys, values = (jnp.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)]) for x in (keys, values))
    valid = jnp.pad(valid, [(0, 0), (0, pad)])
    together = functools.partial(_all_heads, block=block)
    if few_queries.pays(queries, keys):
        on_cpus = functools.partial(_one_wide_head, block=block)
    elif B * H * L * block * 4 <= CACHE_BYTES:
        return together(queries, keys, values, valid, counts)
    else:
        on_cpus = functools.partial(_head_by_head, block=block)
    return jax.lax.platform_dependent(queries, keys, values, valid, counts, cpu=on_cpus, default=together)


def _all_heads(queries, keys, values, valid, counts, *, block: int) -> Partial:
    B, S = valid.shape

    def blocks(x):
        return jnp.moveaxis(x.reshape(B, S // block, block, *x.shape[2:]), 1, 0)

    def visit(carry: Partial, entry):
        start, k, v, ok = entry

        def attend(carry):
            inside = (start + jnp.arange(block))[None, None, :] < counts[:, :, None]
            mask = ok[:, None, :] & inside
            return attention.merge(carry, attention.partial_attention(queries, k, v, mask=mask))

        seen = jnp.any(ok) & (start < counts.max())
        return jax.lax.cond(seen, attend, lambda same: same, carry), None

    starts = jnp.arange(0, S, block, dtype=counts.dtype)
    return jax.lax.scan(visit, attention.empty_partial(queries), (starts, blocks(keys), blocks(values), blocks(valid)))[
        0
    ]


def _one_wide_head(queries, keys, values, valid, counts, *, block: int) -> Partial:
    B, L, H, _ = queries.shape
    S, G = keys.shape[1:3]
    wide = few_queries.widen(queries, key_heads=G).reshape(B, L * H, -1)
    keys, values = (few_queries.as_one_head(x)[:, :, 0] for x in (keys, values))

    def one(row):
        limits = jnp.repeat(counts[row], H)

        def visit(carry, start):
            k, v = (jax.lax.dynamic_slice(x, (row, start, 0), (1, block, x.shape[2]))[0] for x in (keys, values))
            ok = jax.lax.dynamic_slice(valid, (row, start), (1, block))[0]
            return _add_block(carry, wide[row], k, v, start=start, ok=ok, limits=limits), None

        return jax.lax.scan(visit, no_keys(L * H, wide.shape[2]), jnp.arange(0, S, block, dtype=counts.dtype))[0]

    weighted, peak, total = jax.lax.map(one, jnp.arange(B))
    weighted = few_queries.own_columns(weighted.reshape(B, L, H, -1), key_heads=G)
    return Partial(weighted=weighted, peak=peak.reshape(B, L, H), total=total.reshape(B, L, H))


def _add_block(carry, queries, keys, values, *, start, ok, limits):
    """`add_keys` of the block [S, D] that begins at `start`: query t sees its valid keys before limits[t]."""
    block = len(ok)

    def attend(carry):
        def mask():
            return ok[None] & ((start + jnp.arange(block))[None] < limits[:, None])

        return add_keys(carry, queries, keys, values, mask, clear=jnp.all(ok) & (start + block <= limits.min()))

    return jax.lax.cond(jnp.any(ok) & (start < limits.max()), attend, lambda same: same, carry)


def _head_by_head(queries, keys, values, valid, counts, *, block: int) -> Partial:
    B, L, H, D = queries.shape
    G, S = keys.shape[2], keys.shape[1]
    R = H // G
    tiles = queries.reshape(B, L, G, R, D).transpose(0, 2, 3, 1, 4).reshape(B * G, R * L, D)
    keys, values = (x.transpose(0, 2, 1, 3).reshape(B * G, S // block, block, D) for x in (keys, values))
    starts = jnp.arange(0, S, block, dtype=counts.dtype)

    def one(n):
        row = n // G
        limits = jnp.tile(counts[row], R)

        def visit(carry, entry):
            start, k, v, ok = entry
            return _add_block(carry, tiles[n], k, v, start=start, ok=ok, limits=limits), None

        return jax.lax.scan(visit, no_keys(R * L, D), (starts, keys[n], values[n], valid[row].reshape(-1, block)))[0]

    weighted, peak, total = jax.lax.map(one, jnp.arange(B * G))

    def to_heads(x, *tail):
        return jnp.moveaxis(x.reshape(B, G, R, L, *tail), 3, 1).reshape(B, L, H, *tail)

    return Partial(weighted=to_heads(weighted, D), peak=to_heads(peak), total=to_heads(total))
