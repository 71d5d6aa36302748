"""The state of a reading: its memory, its local context, the next token's logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fot_jax.config import MemoryConfig, ModelConfig, UserError
from fot_jax.infer.cuts import last_context
from fot_jax.infer.steps import place_on_mesh
from fot_jax.memory.store import MemoryStore
from fot_jax.memory.views import ViewSource
from fot_jax.models.cache import init_cache
from fot_jax.types import KeyValue, LocalCache, MemoryView


@dataclasses.dataclass(kw_only=True)
class Reading:
    """State of a reading, ready to continue; `generate` and `flush_local_cache` change it in place.

    Attributes:
      store: the memory; None for a model without memory layers.
      source: the views of that store.
      cache: the local context.
      lengths: int64 [B], tokens in the local context of each row (the host's copy of cache.lengths).
      logits: float32 [B, V], the next token's.
      keep: tokens a row keeps in the local cache when it overflows.
    """

    store: MemoryStore | None
    source: ViewSource | None
    cache: LocalCache
    lengths: np.ndarray
    logits: jax.Array
    keep: int

    def view(self, rows: np.ndarray | None = None) -> MemoryView | None:
        """Returns a view of the memory as it is now; with `rows`, of these rows alone."""
        return None if self.source is None else self.source.view(rows)

    def place(self, cache: LocalCache, logits: Any = None) -> tuple[LocalCache, Any]:
        """Splits a local cache and logits like a memory on a mesh; returns them unchanged without a mesh."""
        if self.source is None or self.source.layout is None or self.source.mesh is None:
            return cache, logits
        return place_on_mesh(cache, logits, layout=self.source.layout, mesh=self.source.mesh)

    def pasts(self) -> np.ndarray:
        """Returns int [B], a number for each row's past: one for all in a new memory with one stream per row."""
        rows = np.arange(len(self.lengths))
        alike = self.source is not None and self.source.can_select and not self.source.store.appended.any()
        return 0 * rows if alike else rows

    def append_entries(self, entries: KeyValue, counts: np.ndarray) -> None:
        """Appends the first counts[b] entries of each row to its stream (or to the shared one)."""
        if self.store is not None:
            shared = [0] * len(counts) if self.store.streams == 1 else None
            self.store.append(entries, counts, streams=shared)


def start_reading(
    config: ModelConfig,
    memory: MemoryConfig,
    store: MemoryStore | ViewSource | None,
    *,
    batch: int,
    mesh: Mesh | None = None,
) -> Reading:
    """Returns a reading of `batch` rows that has read nothing yet; arguments and errors as in `read`."""
    source, store = (store, store.store) if isinstance(store, ViewSource) else (None, store)
    if store is None and config.memory_layers:
        store = MemoryStore.for_model(config, streams=batch, budget=memory.budget, dtype=memory.dtype)
    if store is not None:
        wanted = (config.memory_layers, config.num_kv_heads, config.head_dim)
        got = (store.memory_layers, store.kv_heads, store.head_dim)
        if got != wanted:
            raise UserError(f"memory must have this model's (memory layers, kv heads, head dim) = {wanted}, got {got}.")
        if store.streams not in (1, batch):
            raise UserError(f"memory must have one stream or one per input ({batch}), got {store.streams} streams.")
    reading = Reading(
        store=store,
        source=source if source or store is None else ViewSource(store, memory, mesh=mesh),
        cache=init_cache(config, batch),
        lengths=np.zeros(batch, np.int64),
        logits=jnp.zeros((batch, config.vocab_size), jnp.float32),
        keep=last_context(config, memory),
    )
    reading.cache, reading.logits = reading.place(reading.cache, reading.logits)
    return reading
