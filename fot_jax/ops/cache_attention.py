"""Attention to the first keys of each row: the local cache and the dense memory at inference.

Keys are held as [B, G, D, S] and values as [B, G, S, D]: the layouts in which one query's products read them from
end to end, so that a token that is decoded copies neither. Three loops; which one runs is decided where the program is
compiled:

    one token       all keys in one product, all values in another; each is read once
    CPUs            one row and key/value head after another, a block of keys at a time: its scores stay in the core's
                    cache, which was worth a factor of four to five in a window of 512 tokens that reads 4,096 entries
    accelerators    one block of keys after another, all rows and heads at once
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from fot_jax.ops import softmax
from fot_jax.ops.backends.cpu import CACHE_BYTES, add_keys, no_keys
from fot_jax.ops.softmax import by_key_head, heads_first, product
from fot_jax.types import Partial

WHOLE_BYTES = 1 << 28  # of the scores that one token's products may hold at once
SUMMED_AT_ONCE = 1024  # values of one product; XLA on CPUs is 2.5 times slower with one long sum for one query
NARROW_BLOCK = 256  # keys at once that a CPU widens to the compute dtype


def cache_attention(
    queries: Float[Array, "B L H D"],
    keys: Num[Array, "B G D S"],
    values: Num[Array, "B G S D"],
    *,
    counts: Int[Array, "B L"],
    valid: Bool[Array, "B S"] | None = None,
    scales: tuple[Float[Array, "B G S"], Float[Array, "B G S"]] | None = None,
    block: int = 1024,
) -> Partial:
    """Attends to the keys s < counts[b, l] that are valid, a block of keys at a time.

    Args:
      queries: scaled queries; query head h reads key/value head h // (H // G).
      keys: keys of each row, in the dtype of the queries or a narrower one.
      values: values of each row.
      counts: how many keys each query sees at most.
      valid: True where a key exists; None: everywhere.
      scales: factors of keys and of values that are held as int8; None: 1.
      block: keys per block of several queries; blocks that none of them sees are skipped.

    Returns:
      The partial, with axes [B, L, H].
    """
    B, L, H, _ = queries.shape
    S = values.shape[2]
    if S == 0:
        return softmax.empty_partial(queries)
    valid = jnp.ones((B, S), bool) if valid is None else valid
    arguments = queries, keys, values, valid, counts, scales
    score_bytes, narrow = 4 * B * H * L * S, keys.dtype != queries.dtype
    if (L == 1 and score_bytes <= WHOLE_BYTES) or score_bytes <= CACHE_BYTES:
        if not narrow:
            return _whole(*arguments)
        by_blocks = functools.partial(_all_heads, block=NARROW_BLOCK)  # a CPU would widen the whole array first
        return jax.lax.platform_dependent(*arguments, cpu=by_blocks, default=_whole)
    together = functools.partial(_all_heads, block=block)
    by_head = functools.partial(_head_by_head, block=block)
    return jax.lax.platform_dependent(*arguments, cpu=by_head, default=together)


def _whole(queries, keys, values, valid, counts, scales) -> Partial:
    """Holds the scores of all pairs."""
    B, L, H, D = queries.shape
    S = values.shape[2]
    mask = valid[:, None, :] & (jnp.arange(S)[None, None] < counts[:, :, None])
    scores = scores_of(queries, keys, None if scales is None else scales[0])
    scores = jnp.where(mask[:, None, None], scores, softmax.MASKED_SCORE)
    weights, peak, total = softmax.weigh(scores, jnp.full(scores.shape[:-1], softmax.LOWEST_PEAK))
    if scales is not None:
        weights = weights * scales[1][:, :, None, None, :]
    weighted = _summed(weights.astype(queries.dtype), values.astype(queries.dtype))
    numbers = B, H, L
    partial = Partial(weighted.reshape(*numbers, D), peak=peak.reshape(numbers), total=total.reshape(numbers))
    return jax.tree.map(heads_first, partial)


def scores_of(
    queries: Float[Array, "B L H D"], keys: Num[Array, "B G D S"], scale: Float[Array, "B G S"] | None = None
) -> Float[Array, "B G R L S"]:
    """Returns the inner products of queries and keys in float32; `scale` multiplies those of each key."""
    grouped = by_key_head(heads_first(queries), keys.shape[1])
    found = product("BGRLD,BGDS->BGRLS", grouped, keys.astype(queries.dtype))
    return found if scale is None else found * scale[:, :, None, None, :]


def _summed(weights: Float[Array, "B G R L S"], values: Float[Array, "B G S D"]) -> Float[Array, "B G R L D"]:
    S, part = values.shape[2], SUMMED_AT_ONCE
    if weights.shape[2] * weights.shape[3] > 1 or S % part or part == S:
        return product("BGRLS,BGSD->BGRLD", weights, values)
    B, G, R, L, _ = weights.shape
    parts = weights.reshape(B, G, R, L, S // part, part)
    return product("BGRLXS,BGXSD->BGXRLD", parts, values.reshape(B, G, S // part, part, -1)).sum(axis=2)


def _blocks(keys, values, valid, scales, *, block: int):
    """Pads to whole blocks; returns the arrays and how many blocks there are."""
    pad = -values.shape[2] % block

    def padded(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, pad)
        return jnp.pad(x, widths) if pad else x

    scales = None if scales is None else tuple(padded(x, 2) for x in scales)
    return padded(keys, 3), padded(values, 2), padded(valid, 1), scales


def _all_heads(queries, keys, values, valid, counts, scales, *, block: int) -> Partial:
    S = values.shape[2]
    block = min(block, S)
    keys, values, valid, scales = _blocks(keys, values, valid, scales, block=block)
    queries = heads_first(queries)

    def widened(x, scale, start, *, axis: int):
        cut = jax.lax.dynamic_slice_in_dim(x, start, block, axis=axis)
        if scale is not None:
            own = jax.lax.dynamic_slice_in_dim(scale, start, block, axis=2)
            cut = cut.astype(scale.dtype) * jnp.expand_dims(own, 5 - axis)
        return cut.astype(queries.dtype)

    def visit(partial: Partial, start):
        ok = jax.lax.dynamic_slice_in_dim(valid, start, block, axis=1)

        def add(partial):
            k = widened(keys, None if scales is None else scales[0], start, axis=3)
            v = widened(values, None if scales is None else scales[1], start, axis=2)
            inside = (start + jnp.arange(block))[None, None, :] < counts[:, :, None]
            return softmax.add(partial, queries, k.swapaxes(2, 3), v, mask=ok[:, None, :] & inside)

        seen = jnp.any(ok) & (start < counts.max())
        return jax.lax.cond(seen, add, lambda same: same, partial), None

    starts = jnp.arange(0, S, block, dtype=counts.dtype)
    return jax.tree.map(heads_first, jax.lax.scan(visit, softmax.empty_partial(queries), starts)[0])


def _head_by_head(queries, keys, values, valid, counts, scales, *, block: int) -> Partial:
    B, L, H, D = queries.shape
    G, S = values.shape[1:3]
    block, R = min(block, S), H // G
    keys, values, valid, scales = _blocks(keys, values, valid, scales, block=block)
    tiles = heads_first(queries).reshape(B * G, R * L, D)
    keys, values = (x.reshape(B * G, *x.shape[2:]) for x in (keys, values))
    scales = None if scales is None else tuple(x.reshape(B * G, 1, -1) for x in scales)

    def one(n):
        row = n // G
        limits = jnp.tile(counts[row], R)

        def cut(x, start, *, axis: int):
            at, sizes = [n, 0, 0], [1, *x.shape[1:]]
            at[axis], sizes[axis] = start, block
            return jax.lax.dynamic_slice(x, at, sizes)[0]

        def visit(carry, start):
            ok = jax.lax.dynamic_slice(valid, (row, start), (1, block))[0]

            def add(carry):
                k, v = cut(keys, start, axis=2), cut(values, start, axis=1)
                if scales is not None:
                    k_scale, v_scale = (cut(x, start, axis=2) for x in scales)
                    k, v = k.astype(k_scale.dtype) * k_scale, v.astype(v_scale.dtype) * v_scale.T
                k, v = k.astype(tiles.dtype), v.astype(tiles.dtype)

                def mask():
                    return ok[None] & ((start + jnp.arange(block))[None] < limits[:, None])

                clear = jnp.all(ok) & (start + block <= limits.min())
                return add_keys(carry, tiles[n], k.T, v, mask, clear=clear)

            return jax.lax.cond(jnp.any(ok) & (start < limits.max()), add, lambda same: same, carry), None

        return jax.lax.scan(visit, no_keys(R * L, D), jnp.arange(0, S, block, dtype=counts.dtype))[0]

    weighted, peak, total = (heads_first(x.reshape(B, H, L, *x.shape[2:])) for x in jax.lax.map(one, jnp.arange(B * G)))
    return Partial(weighted=weighted, peak=peak, total=total)
