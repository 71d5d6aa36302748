"""Attention to the first keys of each row: the local cache and the dense memory at inference.

Two loops over the same tiles; which one runs is decided where the program is compiled:

    accelerators   one block of keys after another, all rows and heads at once
    CPUs           one row and key/value head after another: its scores stay in the core's cache, which was
                   worth a factor of four to five in a window of 512 tokens that reads 4,096 entries
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fot_jax.ops import attention
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
    if B * H * L * block * 4 <= CACHE_BYTES:
        return together(queries, keys, values, valid, counts)
    return jax.lax.platform_dependent(
        queries, keys, values, valid, counts, cpu=functools.partial(_head_by_head, block=block), default=together
    )


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
        most = limits.max()

        def visit(carry, entry):
            start, k, v, ok = entry

            def attend(carry):
                mask = ok[None, :] & ((start + jnp.arange(block))[None, :] < limits[:, None])
                return add_keys(carry, tiles[n], k, v, mask)

            return jax.lax.cond(jnp.any(ok) & (start < most), attend, lambda same: same, carry), None

        return jax.lax.scan(visit, no_keys(R * L, D), (starts, keys[n], values[n], valid[row].reshape(-1, block)))[0]

    weighted, peak, total = jax.lax.map(one, jnp.arange(B * G))

    def to_heads(x, *tail):
        return jnp.moveaxis(x.reshape(B, G, R, L, *tail), 3, 1).reshape(B, L, H, *tail)

    return Partial(weighted=to_heads(weighted, D), peak=to_heads(peak), total=to_heads(total))
