"""Run folders of tiny models with random parameters, and the evaluate command on them."""

import json

import numpy as np

from fot_jax.checkpoint import Checkpointer
from fot_jax.config import ExperimentConfig
from fot_jax.config.build import build
from fot_jax.workdir import write_config
from launch import cli, evaluate
from tests.eval.tiny_models import random_params

LENGTH = 16


def experiment(folder, **model) -> ExperimentConfig:
    """Bytes of text files; a model that can also be asked for dictionaries."""
    return build(
        ExperimentConfig,
        {
            "name": "tiny",
            "model": {
                "num_layers": 2,
                "embed_dim": 16,
                "num_heads": 2,
                "num_kv_heads": 1,
                "head_dim": 8,
                "mlp_dim": 32,
                "vocab_size": 259,
                "local_context": LENGTH,
                "memory_layers": [1],
                "attention": "reference",
                **model,
            },
            "data": {
                "sources": [{"name": "text", "kind": "text", "path": str(folder / "corpus.txt")}],
                "dictionary": {"definition_tokens": 10, "question_tokens": 10},
                "heldout_fraction": 0.75,
                "cache_dir": str(folder / "cache"),
            },
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 1, "batch_rows": 4},
            "memory": {"retrieval": "dense"},
            "evaluation": {
                "memory_contexts": [0, 16],
                "documents": 3,
                "target_chunks": 1,
                "distraction_contexts": [1, 16],
                "dictionary_tokens": [20],
                "dictionary_episodes": 3,
            },
        },
    )


def write_run(workdir, config: ExperimentConfig, **trained: str) -> None:
    """Writes what training leaves: config, one checkpoint (with digests of sources it was `trained` on), metrics."""
    workdir.mkdir()
    write_config(workdir, config)
    state = {"params": random_params(config.model), "optimizer": {"count": np.zeros(())}}
    with Checkpointer(workdir, config) as checkpoints:
        checkpoints.save(1, **state, data={"step": 1, "documents": trained}, heldout_loss=None)
    rows = [{"step": step, "loss": 5.0 / step, "heldout_loss": 5.5 / step} for step in (1, 2, 3)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_evaluate(*arguments: str) -> None:
    """The command, in this process."""
    cli.run(evaluate.main, evaluate.make_parser(), arguments)
