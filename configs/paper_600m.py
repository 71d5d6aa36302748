"""The paper's 600M model (FoT app. B.1).

Command:  python -m launch.train --config=configs/paper_600m.py --config.data.sources[0].path='GLOB'
Hardware: TPU v2/v3 hosts of 8 cores (the paper's); the parameters are split over 8 (mesh.fsdp).
Time:     150k steps of 256K tokens; not measured here.
Expected: the paper has no number for this size alone; d = 2 is this project's choice.

600M counts the layers; the tied embedding adds 66M.
"""

from ml_collections import config_dict

from fot_jax.config.build import template


def get_config() -> config_dict.ConfigDict:
    """Returns the unresolved experiment; enums are written by value (fot_jax/config/enums.py)."""
    config = template()
    config.name = "paper_600m"
    model = config.model
    model.family = "paper"
    model.num_layers = 12
    model.embed_dim = 2048
    model.num_heads = model.num_kv_heads = 16
    model.head_dim = 128
    model.mlp_dim = 8192
    model.vocab_size = 32128  # T5's 32,000 pieces, padded as T5 pads them
    model.local_context = 2048
    model.memory_layers = (8,)
    model.memory_positions = "nope"
    model.tie_embeddings = True
    model.norm_epsilon = 1e-5
    model.dtype = "bfloat16"
    model.remat = "dots"

    config.crossbatch.plan = "two_pass"
    config.crossbatch.schedule.num_contexts = (2,)

    config.data.sources = ({"name": "pg19", "kind": "text", "path": "~/data/pg19/train/*.txt"},)
    config.data.vocabulary.kind = "sentencepiece"
    config.data.vocabulary.path = "~/tokenizers/t5_32k.model"
    config.data.document_end = "pad"

    config.optimizer.kind = "adafactor"
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.min_learning_rate = 5e-4
    config.optimizer.warmup_steps = 1000

    config.train.steps = 150000
    config.train.batch_rows = 256  # 128 rows of C_curr, 256K tokens; C_prev doubles the rows
    config.train.eval_every = 5000
    config.train.checkpoint_every = 5000
    config.mesh.fsdp = 8
    return config
