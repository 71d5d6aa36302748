"""Programs that read long texts into memory, and that decode with memories of several sizes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.bench.timing import Program
from fot_jax.config import MemoryConfig, ModelConfig, Retrieval
from fot_jax.infer.generate import decoding_params
from fot_jax.infer.steps import decode_logits
from fot_jax.infer.windows import read
from fot_jax.memory.store import MemoryStore
from fot_jax.memory.views import DeviceView, make_view
from fot_jax.models import account
from fot_jax.models.cache import init_cache
from fot_jax.models.init import init_params
from fot_jax.types import KeyValue, LocalCache, MemoryView

FILLED_AT_ONCE = 1 << 14  # entries


def random_params(model: ModelConfig) -> Any:
    """Returns unboxed parameters as initialised."""
    return nn.unbox(jax.jit(lambda: init_params(model, jax.random.key(0)))())


def reading_flops(model: ModelConfig, *, tokens: int) -> float:
    """Returns the forward FLOPs of reading a text of whole windows with dense memory, by formula.

    Every window but the last runs the layers below the last memory layer; their queries score W local keys (the
    whole cache), in memory layers also the keys of all windows before. One token's logits are computed.
    """
    W = model.local_context
    windows = tokens // W
    past = sum(account.absorbing_flops(model, memory=number * W) for number in range(windows - 1))
    last = account.inference_flops(model, memory=(windows - 1) * W, logits=False)
    return W * (past + last) + account.flops_per_token(model).unembedding


def reading_programs(model: ModelConfig, params: Any, *, memory: MemoryConfig, lengths: Sequence[int]) -> list[Program]:
    """Returns a `read` of random tokens at each length, host copies included; `x` is the length."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, max(lengths)).astype(np.int32)

    def program(length: int) -> Program:
        return Program(
            name=f"read {length}",
            call=lambda: read(params, model, [tokens[:length]], memory=memory),
            tokens=length,
            x=length,
            series=memory.retrieval.value,
            flops=reading_flops(model, tokens=length) if memory.retrieval is Retrieval.DENSE else 0.0,
        )

    return [program(length) for length in lengths]


def filled_store(model: ModelConfig, *, entries: int) -> MemoryStore:
    """Returns a memory of one stream with `entries` random keys of norm 1 and random values."""
    store, generator = MemoryStore.for_model(model, streams=1), np.random.default_rng(0)
    for start in range(0, entries, FILLED_AT_ONCE):
        count = min(FILLED_AT_ONCE, entries - start)
        shape = (len(model.memory_layers), 1, count, model.num_kv_heads, model.head_dim)
        keys, values = (generator.standard_normal(shape, np.float32) for _ in range(2))
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
        store.append(KeyValue(keys=keys.astype(store.dtype), values=values.astype(store.dtype)), np.array([count]))
    return store


def decoding_programs(
    model: ModelConfig, params: Any, *, memory: MemoryConfig, entries: Sequence[int], retrievals: Sequence[Retrieval]
) -> list[Program]:
    """Returns one decoding step of one row after half a window, per memory size (`x`) and retrieval.

    `bytes` are those that every token must read: the parameters in their own dtype (without an untied
    embedding, of which one row is read), the local cache, and the memory's keys and values (dense), keys
    alone (exact, approx, and scann without trees) or nothing (scann's trees).
    """
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if not model.tie_embeddings:
        weights -= params["embedding"].nbytes
    programs, (single, own) = [], decoding_params(model, params)
    for size in entries:
        store, on_device = filled_store(model, entries=size), None
        for retrieval in retrievals:
            wanted = dataclasses.replace(memory, retrieval=retrieval)
            if retrieval is Retrieval.SCANN:
                view = make_view(store, wanted)
            else:  # one copy serves them all
                on_device = on_device or make_view(store, dataclasses.replace(memory, retrieval=Retrieval.DENSE))
                assert isinstance(on_device, DeviceView)
                view = DeviceView.of(on_device.layers, on_device.lengths, config=wanted)
            cache = init_cache(model, 1)
            half = jnp.full((1,), model.local_context // 2, jnp.int32)
            cache = dataclasses.replace(cache, lengths=half)
            on_host = not isinstance(view, DeviceView)
            read_share = 0.0 if on_host else 1.0 if retrieval is Retrieval.DENSE else 0.5
            local = sum(layer.rotated.nbytes + layer.values.nbytes for layer in cache.layers)
            programs.append(
                Program(
                    name=f"decode {retrieval.value} {size}",
                    call=_decode_call(single, own, cache, view),
                    tokens=1,
                    x=size,
                    series=retrieval.value,
                    bytes=weights + local + read_share * store.bytes(),
                )
            )
    return programs


def _decode_call(model: ModelConfig, params: Any, cache: LocalCache, view: MemoryView) -> Callable[[], Any]:
    tokens, counts = np.ones((1, 1), np.int32), np.ones(1, np.int32)
    state = [jnp.zeros((1, model.vocab_size), jnp.float32), jax.tree.map(jnp.copy, cache)]
    lengths = np.asarray(cache.lengths)

    def call():
        """Decodes a token always at the same place: the cache is written into, its length is not."""
        state[0], after = decode_logits(params, model, tokens, counts, state[1], view, state[0])
        state[1] = dataclasses.replace(after, lengths=lengths)
        return jax.block_until_ready(state[0])

    return call
