"""The smallest experiment that uses everything: dictionary lookup, two layers, one of them a memory layer.

Attention is by `reference`, which is traced and compiled in half of the time. Tests that are about attention, or about
the command as users have it, ask for `blockwise`.
"""

from typing import Any

from fot_jax.config import ExperimentConfig
from fot_jax.config.build import build, to_dict

SMALL: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "num_layers": 2,
        "embed_dim": 16,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_dim": 32,
        "vocab_size": 8,
        "local_context": 24,
        "memory_layers": [1],
        "attention": "reference",
    },
    "crossbatch": {"plan": "two_pass", "schedule": {"num_contexts": [2]}},
    "data": {
        "sources": [{"name": "lookup", "kind": "dictionary"}],
        "vocabulary": {"kind": "symbols"},
        "dictionary": {"num_symbols": 4, "definition_tokens": 24, "question_tokens": 24},
    },
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
    "train": {"steps": 6, "batch_rows": 8, "log_every": 1, "checkpoint_every": 2},
    "mesh": {"data": 1},
}


def tiny(**changes: Any) -> ExperimentConfig:
    """The experiment with fields changed by path, dots written as two underscores: `train__steps=3`."""
    values = to_dict(build(ExperimentConfig, SMALL))
    for path, value in changes.items():
        *sections, name = path.split("__")
        node = values
        for section in sections:
            node = node[section]
        node[name] = value
    return build(ExperimentConfig, values)
