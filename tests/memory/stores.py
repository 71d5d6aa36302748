"""Small stores of random entries, and a float64 loop that reads them."""

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.memory.store import MemoryStore
from fot_jax.ops.softmax import normalise
from fot_jax.types import KeyValue

P, B, L, H, G, D = 2, 2, 5, 4, 2, 8


def append_random(store: MemoryStore, rng: np.random.Generator, counts: list[int]) -> None:
    shape = (P, len(counts), max(counts), G, D)
    keys, values = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    store.append(KeyValue(keys=keys, values=values), np.array(counts))


def make_store(*, streams: int = B, budget: int = 0) -> MemoryStore:
    return MemoryStore(memory_layers=(1, 4), streams=streams, kv_heads=G, head_dim=D, budget=budget)


def attend_by_loops(store: MemoryStore, queries: np.ndarray, slot: int, top_k: int) -> np.ndarray:
    """softmax over the top_k largest inner products of one query at a time; zeros from an empty memory."""
    output = np.zeros(queries.shape)
    for b, l, h in np.ndindex(B, L, H):
        stream = b if store.streams > 1 else 0
        keys, values = (x[slot, h // (H // G)].astype(np.float64) for x in store.take(stream, store.live(stream)))
        scores = keys @ queries[b, l, h].astype(np.float64)
        best = sorted(range(len(scores)), key=lambda m: -scores[m])[:top_k]
        weights = np.exp(scores[best] - scores.max(initial=-np.inf))
        if best:
            output[b, l, h] = weights @ values[best] / weights.sum()
    return output


@jax.jit
def read_all_layers(view, queries):
    """[P, B, L, H, D], inside jit and a scan over the memory layers, as the decoder reads."""
    return jax.lax.scan(lambda _, slot: (None, normalise(view.partial(queries, slot))), None, jnp.arange(P))[1]


QUERIES = np.random.default_rng(1).standard_normal((B, L, H, D)).astype(np.float32)


def check_view(view, store: MemoryStore, top_k: int | None, *, tolerance: float = 1e-5) -> None:
    """Every layer reads of a view what the loops read of its store; top_k None: all entries."""
    want = np.stack([attend_by_loops(store, QUERIES, slot, top_k or 4096) for slot in range(P)])
    np.testing.assert_allclose(np.asarray(read_all_layers(view, QUERIES)), want, rtol=tolerance, atol=tolerance)
