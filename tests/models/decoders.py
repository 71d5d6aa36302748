"""Tiny decoders for the tests of models: configs, perturbed parameters, jitted calls, the oracle's parameters."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import AttentionBackend, Boundaries, Family, MemoryPositions, ModelConfig, RopeConfig
from fot_jax.models.inputs import Inputs, ReadInputs, TrainInputs
from fot_jax.models.transformer import Decoder
from fot_jax.ops import memory_attention
from fot_jax.types import Plan
from tests import cases, oracle_decoder, oracles

LENGTH = 5  # tokens of a row: cases.SEGMENTS and its plan fit


def config(**changes) -> ModelConfig:
    """Three layers, memory layers 0 and 2, grouped heads, blocks that do not divide the row."""
    fields = {
        "num_layers": 3, "embed_dim": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "mlp_dim": 10,
        "vocab_size": 31, "local_context": LENGTH, "memory_layers": (0, 2), "attention_block": 2,
        "rope": RopeConfig(theta=100.0), "attention": AttentionBackend.BLOCKWISE,
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


def paper(**changes) -> ModelConfig:
    """A decoder of the paper's family: no positions in memory layers."""
    return config(family=Family.PAPER, memory_positions=MemoryPositions.NOPE, num_kv_heads=4, **changes)


@functools.cache
def params(model: ModelConfig) -> Any:
    """Unboxed random parameters: norms, biases, temperatures and gates are away from where they do nothing."""
    init = functools.partial(Decoder(model).init, jax.random.key(0))
    shapes = nn.unbox(jax.eval_shape(init, jnp.zeros((1, 2), jnp.int32))["params"])
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        middle = 1.0 if path[-1].key in ("scale", "log_temperature") else 0.0
        return jnp.asarray(middle + 0.3 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


READING = ("cache", "token_counts", "memory")  # fields of `ReadInputs` alone


def inputs_of(tokens, **fields) -> Inputs:
    """Inputs of reading where a field of READING is given, else of training; all rows are one document unless told."""
    if any(name in fields for name in READING):
        return ReadInputs(**fields)
    if fields.get("plan") is not None:
        fields.setdefault("segments", jnp.ones_like(tokens))
    return TrainInputs(**fields)


@functools.partial(jax.jit, static_argnames=("model", "boundaries", "capture", "log_length_scaling_from"))
def call(model: ModelConfig, parameters, tokens, boundaries=Boundaries.MASKED, capture=False, **arguments):
    """The decoder's output by fields of its inputs (`inputs_of`), jitted once per model and set of arguments."""
    inputs = inputs_of(tokens, boundaries=boundaries, **arguments)
    return Decoder(model).apply({"params": parameters}, tokens, inputs, capture=capture)


def logits(model: ModelConfig, tokens, **arguments) -> np.ndarray:
    """Logits under `params(model)`."""
    return np.asarray(call(model, params(model), jnp.asarray(tokens), **arguments).logits)


def tokens_for(rows: int, *, length: int = LENGTH, vocab: int = 31, seed: int = 5) -> np.ndarray:
    """Random tokens."""
    return np.random.default_rng(seed).integers(1, vocab, (rows, length)).astype(np.int32)


def hard_case() -> dict[str, Any]:
    """Segments and plan of tests/cases.py as the decoder takes them."""
    plan = Plan(context_ids=jnp.asarray(cases.CONTEXT_IDS, jnp.int32), own_document=jnp.asarray(cases.OWN))
    return {"segments": jnp.asarray(cases.SEGMENTS, jnp.int32), "plan": plan}


@flax.struct.dataclass
class Memory:
    """A memory of given keys and values [P, B, M, G, D]: dense (k = 0) or exact top-k."""

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    k: int = flax.struct.field(pytree_node=False, default=0)

    def any_entries(self):
        return self.valid.any()

    def query_scale(self, local):
        return None

    def partial(self, queries, slot):
        keys, values = cases.as_read(*(jnp.take(x, jnp.asarray(slot), axis=0) for x in (self.keys, self.values)))
        if self.k:
            return memory_attention.topk_memory_partial(queries, keys, values, valid=self.valid, k=self.k)
        return memory_attention.dense_memory_partial(queries, keys, values, valid=self.valid)


def memory_for(model: ModelConfig, rows: int, entries: int, *, k: int = 0) -> Memory:
    """Random entries, all valid."""
    shape = (len(model.memory_layers), rows, entries, model.num_kv_heads, model.head_dim)
    keys, values = cases.to_float32(*cases.arrays(41, shape, shape))
    return Memory(keys=keys, values=values, valid=jnp.ones((rows, entries), bool), k=k)


def oracle_parameters(model: ModelConfig, parameters) -> dict[str, Any]:
    """The scanned parameters under the oracle's names, float64."""
    numbers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    layers = []
    for n in range(model.num_layers):
        layer = jax.tree.map(lambda leaf, n=n: leaf[n], numbers["layers"])
        projections, attention = layer["attention"]["projections"], layer["attention"]
        optional = {"smear": 1 / (1 + np.exp(-projections["smear"]))} if model.smear_keys else {}
        if model.memory_gate:
            optional["memory_share"] = 1 / (1 + np.exp(-attention["gate"]))
        layers.append({
            "attention_norm": layer["attention_norm"], "mlp_norm": layer["feed_forward_norm"],
            "q": projections["query"], "k": projections["key"], "v": projections["value"], "o": attention["output"],
            "temperature": np.exp(projections.get("log_temperature", 0.0)), **layer["feed_forward"], **optional,
        })  # fmt: skip
    head = numbers["embedding"].T if model.tie_embeddings else numbers["unembedding"]
    return {"embed": numbers["embedding"], "layers": layers, "final": numbers["final_norm"], "head": head}


def oracle_logits(model: ModelConfig, parameters, tokens, *, segments, boundaries=Boundaries.MASKED, plan=None,
                  memory=None, log_length_scaling_from: int = 0) -> np.ndarray:  # fmt: skip
    """The whole decoder as float64 loops."""
    frequencies, _ = oracles.rope_frequencies(model.head_dim, theta=model.rope.theta)
    far = {}
    if memory is not None:
        stacked = [np.asarray(a, np.float64) for a in (memory.keys, memory.values)]
        far = {layer: (stacked[0][slot], stacked[1][slot]) for slot, layer in enumerate(model.memory_layers)}
    return oracle_decoder.decoder(
        oracle_parameters(model, parameters), tokens, family=model.family.value, segments=np.asarray(segments),
        boundaries=boundaries.value, memory_layers=model.memory_layers, positions=model.memory_positions.value,
        frequencies=frequencies, epsilon=model.norm_epsilon, memory=far,
        scaling_from=log_length_scaling_from,
        context_ids=None if plan is None else np.asarray(plan.context_ids),
        own=None if plan is None else np.asarray(plan.own_document),
    )  # fmt: skip
