"""The compiled programs of inference: one call of the decoder on a block of tokens of every row."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from fot_jax.config import ModelConfig
from fot_jax.memory.views import DeviceView
from fot_jax.models import cache as local_cache
from fot_jax.models.absorb import AbsorbingParams, absorb_tokens
from fot_jax.models.attention_layer import rotations
from fot_jax.models.inputs import ReadInputs
from fot_jax.models.transformer import run
from fot_jax.types import KeyValue, LayerCache, LocalCache, MemoryLayout, MemoryView


@functools.partial(jax.jit, static_argnums=1)
def extend_cache(
    params: Any, config: ModelConfig, tokens, counts, cache: LocalCache, view: MemoryView | None
) -> LocalCache:
    """Returns the cache after the first counts[b] of each row's tokens [B, T]; computes no logits."""
    after = run(config, params, tokens, ReadInputs(cache=cache, token_counts=counts, memory=view)).cache
    assert after is not None
    return _constrain_shardings(after, layout_of(view))[0]


@functools.partial(jax.jit, static_argnums=(1, 6))
def absorb(
    params: AbsorbingParams,
    config: ModelConfig,
    tokens,
    counts,
    cache: LocalCache,
    view: MemoryView | None,
    layout: MemoryLayout | None = None,
) -> LocalCache:
    """Returns the cache, up to the last memory layer, after the first counts[b] of each row's tokens [B, T].

    `view` may be None where no layer below the last memory layer reads the memory; `layout` is the memory's.
    """
    after = absorb_tokens(config, params, tokens, ReadInputs(cache=cache, token_counts=counts, memory=view))
    return _constrain_shardings(after, layout)[0]


def _next_logits(params: Any, config: ModelConfig, tokens, counts, cache: LocalCache, view: MemoryView | None, logits):
    """Returns (logits [B, V] after each row's last counted token, cache); a row without tokens keeps its logits."""
    output = run(config, params, tokens, ReadInputs(cache=cache, token_counts=counts, memory=view), last_logits=True)
    assert output.cache is not None
    after, logits = _constrain_shardings(
        output.cache, layout_of(view), jnp.where((counts > 0)[:, None], output.logits[:, 0], logits)
    )
    return logits, after


next_logits = jax.jit(_next_logits, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=4)
def decode_logits(params: Any, config: ModelConfig, tokens, counts, cache: LocalCache, view: MemoryView | None, logits):
    """Computes `next_logits` of one token of each row, [B, 1]; writes into the arrays of `cache`, which is used up.

    On CPUs wanted with model and parameters of `layer_ranges.unscanned`, so that each layer has a program of its own.
    """
    return _next_logits(params, config, tokens, counts, cache, view, logits)


@functools.partial(jax.jit, static_argnums=1)
def score_tokens(
    params: Any, config: ModelConfig, tokens, targets, counts, cache: LocalCache, view: MemoryView | None
) -> tuple[jax.Array, LocalCache]:
    """Returns (log p(targets) [B, T], each the next of tokens [B, T], cache); scores from counts[b] on say nothing."""
    output = run(config, params, tokens, ReadInputs(cache=cache, token_counts=counts, memory=view))
    assert output.cache is not None
    picked = jnp.take_along_axis(output.logits, targets[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(output.logits, axis=-1), _constrain_shardings(output.cache, layout_of(view))[0]


memory_entries = jax.jit(local_cache.memory_entries, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def slide(config: ModelConfig, cache: LocalCache, counts) -> tuple[LocalCache, KeyValue]:
    """Takes the oldest counts[b] entries of each row out of the local context; see `models.cache.slide`."""
    return local_cache.slide(config, cache, counts, rotate=rotations(config))


def place_on_mesh(cache: LocalCache, logits: Any, *, layout: MemoryLayout, mesh: Mesh) -> tuple[LocalCache, Any]:
    """Splits cache and logits over the mesh of a memory, with rows and heads as the memory's."""
    return jax.device_put((cache, logits), _shardings(cache, logits, layout, mesh))


def layout_of(view: MemoryView | None) -> MemoryLayout | None:
    """Returns how a memory is split over a mesh; None on one device and on the host."""
    return view.layout if isinstance(view, DeviceView) else None


def _constrain_shardings(cache: LocalCache, layout: MemoryLayout | None, logits: Any = None) -> tuple[LocalCache, Any]:
    """Constrains outputs to the input shardings of a memory on a mesh, so that the step compiles only once."""
    if layout is None:
        return cache, logits
    return jax.lax.with_sharding_constraint((cache, logits), _shardings(cache, logits, layout, layout.mesh))


def cache_shardings(cache: LocalCache, layout: MemoryLayout, mesh: Mesh | AbstractMesh) -> LocalCache:
    """Returns the shardings of a local cache next to a memory on a mesh: rows and heads are split as the memory's."""

    def sharding_of(letters: str) -> NamedSharding:
        return NamedSharding(mesh, layout.spec(letters))

    layers = tuple(
        LayerCache(
            keys=sharding_of("B W G D"),
            rotated=sharding_of("B G D W"),
            values=sharding_of("B G W D"),
            products=None if layer.products is None else sharding_of("B G D"),
        )
        for layer in cache.layers
    )
    return LocalCache(layers=layers, lengths=sharding_of("B"))


def _shardings(cache: LocalCache, logits: Any, layout: MemoryLayout, mesh: Mesh | AbstractMesh) -> Any:
    over_rows = None if logits is None else NamedSharding(mesh, layout.spec("B V"))
    return cache_shardings(cache, layout, mesh), over_rows
