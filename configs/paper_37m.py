"""The paper's 37M model (FoT app. B.1): the ablations of w, d and the training recipe.

Command:  python -m launch.train --config=configs/paper_37m.py --config.data.sources[0].path='GLOB'
Hardware: one TPU v2/v3 host, 8 cores (the paper's).
Time:     5k steps of 64K tokens; not measured here.
Expected: the paper's number, arXiv at 128K of memory: 2.171 for (w, d) = (1, 2), as set here;
          2.187 for (1, 1), 2.152 for (2, 1), 2.148 for (2, 2); MT with 32K of training memory 2.166.

37M counts the layers; the tied embedding adds 16M.
"""

from ml_collections import config_dict

from fot_jax.config.build import template


def get_config() -> config_dict.ConfigDict:
    """Returns the unresolved experiment; enums are written by value (fot_jax/config/enums.py)."""
    config = template()
    config.name = "paper_37m"
    model = config.model
    model.family = "paper"
    model.num_layers = 12
    model.embed_dim = 512
    model.num_heads = model.num_kv_heads = 8
    model.head_dim = 64
    model.mlp_dim = 2048
    model.vocab_size = 32128  # T5's 32,000 pieces, padded as T5 pads them
    model.local_context = 512
    model.memory_layers = (8,)
    model.memory_positions = "nope"
    model.tie_embeddings = True
    model.norm_epsilon = 1e-5
    model.dtype = "bfloat16"
    model.remat = "dots"

    config.crossbatch.plan = "two_pass"
    config.crossbatch.schedule.num_contexts = (2,)

    config.data.sources = ({"name": "arxiv", "kind": "jsonl", "path": "~/data/arxiv_math/*.jsonl.zst"},)
    config.data.vocabulary.kind = "sentencepiece"
    config.data.vocabulary.path = "~/tokenizers/t5_32k.model"
    config.data.document_end = "pad"

    config.optimizer.kind = "adafactor"
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.learning_rate = 2e-2
    config.optimizer.min_learning_rate = 1e-2
    config.optimizer.warmup_steps = 1000

    config.train.steps = 5000
    config.train.batch_rows = 256  # 128 rows of C_curr, 64K tokens; C_prev doubles the rows
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    config.mesh.fsdp = 1
    return config
