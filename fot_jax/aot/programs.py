"""The real programs (train step, reading a window, decoding a token) on shapes alone, ready to be compiled."""

import dataclasses
import enum
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from fot_jax.config import ExperimentConfig, ModelConfig, PlanKind, Retrieval, check
from fot_jax.infer.steps import absorb, cache_shardings, decode_logits, extend_cache
from fot_jax.memory.device_copy import abstract_layers, capacity_for
from fot_jax.memory.store import MemoryStore
from fot_jax.memory.views import DeviceView
from fot_jax.models import account
from fot_jax.models.absorb import AbsorbingParams, projecting
from fot_jax.models.cache import init_cache
from fot_jax.models.layer_ranges import below_last_memory_layer, up_to_last_memory_layer
from fot_jax.ops.plans import make_plan
from fot_jax.sharding import batch_sharding, memory_layout, param_shardings, replicated, shards
from fot_jax.train.state import abstract_params, abstract_state
from fot_jax.train.step import make_train_step
from fot_jax.types import Batch


class ProgramKind(enum.Enum):
    """Programs to compile: one optimizer step; one window of every row, no logits; one token of every row."""

    TRAIN = "train"
    READ = "read"
    DECODE = "decode"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program to compile, with its known sizes.

    Attributes:
      lowered: `jax.stages.Lowered`.
      model: the model that is run; reading runs the layers below the last memory layer, and its projections.
      bytes: bytes of each group of inputs, on one device.
      flops: FLOPs of one device by formula (fot_jax/models/account.py), without those that remat repeats.
      tokens: tokens of all devices in one run of the program.
    """

    lowered: Any
    model: ModelConfig
    bytes: dict[str, int]
    flops: float
    tokens: int


def device_bytes(tree: Any) -> int:
    """Returns the bytes that the arrays of a tree take on one device, without the padding of tiles."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        entries = 1
        for size in leaf.sharding.shard_shape(leaf.shape):
            entries *= size
        total += entries * leaf.dtype.itemsize
    return total


def _shape(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def train_program(config: ExperimentConfig, mesh: Mesh, *, num_contexts: int) -> Program:
    """Returns the train step at d = `num_contexts`, as `fot_jax.train.loop` calls it.

    Raises:
      ConfigError: rows or a parameter do not divide over the mesh.
    """
    B, L = config.train.batch_rows, config.model.local_context
    rows = batch_sharding(mesh)
    integers = _shape((B, L), jnp.int32, rows)
    batch = Batch(tokens=integers, targets=integers, loss_mask=_shape((B, L), jnp.float32, rows), segments=integers)
    micro = B // config.train.accumulation
    host_plan = make_plan(config.crossbatch, batch_rows=micro, num_contexts=num_contexts)
    whole = replicated(mesh)
    plan = jax.tree.map(lambda x: _shape(x.shape, x.dtype, whole), host_plan)
    plan = None if config.crossbatch.plan is PlanKind.OFF else plan
    state = abstract_state(config, mesh)
    per_token = account.flops_per_token(config.model, contexts_per_row=account.mean_contexts(host_plan))
    return Program(
        lowered=make_train_step(config, mesh).lower(state, batch, plan),
        model=config.model,
        bytes={
            "parameters": device_bytes(state.params),
            "optimizer": device_bytes(state.opt_state),
            "batch and plan": device_bytes((batch, plan)),
        },
        flops=per_token.train * B * L / mesh.size,
        tokens=B * L,
    )


def _absorbing_shapes(model: ModelConfig, params: Any, mesh: Mesh) -> AbsorbingParams:
    """Returns what `absorbing_params` makes of parameters, as shapes with shardings."""
    last = model.memory_layers[-1]
    if not model.scan_layers:
        return AbsorbingParams(lower=params, last=projecting(params[f"layer_{last}"]))

    def layer(leaf):
        return _shape(leaf.shape[1:], leaf.dtype, NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[1:])))

    stacked = params["layers"]
    lower = jax.tree.map(lambda leaf: _shape((last, *leaf.shape[1:]), leaf.dtype, leaf.sharding), stacked)
    return AbsorbingParams(lower={**params, "layers": lower}, last=jax.tree.map(layer, projecting(stacked)))


def inference_program(
    config: ExperimentConfig, mesh: Mesh, *, kind: ProgramKind, rows: int, memory_entries: int
) -> Program:
    """Returns READ or DECODE of `rows` rows (0: one per shard), with `memory_entries` per row in device arrays.

    Heads are split over tensor; rows and the entries of their memory over the other axes (`sharding.memory_layout`).
    With fewer rows than devices along data and fsdp, the memory is split by entries, as `infer.windows.read` does.

    Raises:
      ConfigError: rows or a parameter do not divide over the mesh; the memory is ScaNN's, which is on the host.
    """
    rows = rows or shards(mesh, "batch")
    data = mesh.shape["data"]
    check(rows == 1 or rows % data == 0, "--rows", f"be 1 or a multiple of mesh.data={data}", rows)
    retrieval = config.memory.retrieval
    allowed = "be 'dense', 'exact' or 'approx' to compile"
    check(retrieval is not Retrieval.SCANN, "memory.retrieval", allowed, retrieval.value)
    model = config.model
    layout = memory_layout(mesh, streams=rows, kv_heads=model.num_kv_heads)
    over_rows = NamedSharding(mesh, layout.spec("B"))
    absorbs = kind is ProgramKind.READ and bool(model.memory_layers)
    if absorbs:
        model = up_to_last_memory_layer(model)
    boxed = abstract_params(dataclasses.replace(config, model=model))
    params = jax.tree.map(
        lambda leaf, sharding: _shape(leaf.shape, leaf.dtype, sharding), nn.unbox(boxed), param_shardings(boxed, mesh)
    )
    cache = jax.eval_shape(lambda: init_cache(model, rows))
    cache = jax.tree.map(
        lambda x, sharding: _shape(x.shape, x.dtype, sharding), cache, cache_shardings(cache, layout, mesh)
    )
    view, M = None, capacity_for(memory_entries, shards=layout.shards)
    if memory_entries and (below_last_memory_layer(model) if absorbs else model).memory_layers:
        store = MemoryStore.for_model(model, streams=rows, dtype=config.memory.dtype)
        far = abstract_layers(store, M, layout=layout, mesh=mesh)
        view = DeviceView.of(far, _shape((rows,), jnp.int32, over_rows), config=config.memory, layout=layout)
    T = 1 if kind is ProgramKind.DECODE else model.local_context
    flops = account.inference_flops(model, memory=M if view else 0, logits=kind is ProgramKind.DECODE)
    if absorbs:
        flops = account.absorbing_flops(model, memory=M if view else 0)
    tokens, counts = _shape((rows, T), jnp.int32, over_rows), _shape((rows,), jnp.int32, over_rows)
    # Activations are pinned if their rows and positions divide; otherwise they follow the cache.
    divide = rows % shards(mesh, "batch") == 0 and T % shards(mesh, "length") == 0
    pinned = mesh.abstract_mesh
    if not divide:  # no axes, but still the chip that is traced for
        pinned = AbstractMesh((), (), abstract_device=pinned.abstract_device)
    with jax.sharding.use_abstract_mesh(pinned):
        if kind is ProgramKind.DECODE:
            logits = _shape((rows, model.vocab_size), jnp.float32, over_rows)
            lowered = decode_logits.lower(params, model, tokens, counts, cache, view, logits)
        elif absorbs:
            params = _absorbing_shapes(model, params, mesh)
            lowered = absorb.lower(params, model, tokens, counts, cache, view, layout)
        else:
            lowered = extend_cache.lower(params, model, tokens, counts, cache, view)
    return Program(
        lowered=lowered,
        model=below_last_memory_layer(model) if absorbs else model,
        bytes={
            "parameters": device_bytes(params),
            "local cache": device_bytes(cache),
            "memory": device_bytes(view),
            "tokens": device_bytes((tokens, counts)),
        },
        flops=flops * rows * T / mesh.size,
        tokens=rows * T,
    )
