"""FoT on Python's standard library, at a size for two CPU cores: the demo's crossbatch half.

Command:  python -m launch.train --config=configs/tiny_code.py
          python -m launch.evaluate --workdir=runs/tiny_code --task=perplexity
Hardware: two CPU cores.
Time:     minutes. <!-- FIGURE: tiny_code minutes -->
Expected: held-out bits per byte at least 3 % lower with 16 local contexts of memory than with none;
          r_d at d = 16 of at least 4/16. <!-- FIGURE: tiny_code bits per byte, r_16 -->
"""

from ml_collections import config_dict

from fot_jax.config.build import template


def get_config() -> config_dict.ConfigDict:
    """The experiment, unresolved; enums stand by value (fot_jax/config/enums.py)."""
    config = template()
    config.name = "tiny_code"
    model = config.model
    model.family = "llama"
    model.num_layers = 4
    model.embed_dim = 128
    model.num_heads = model.num_kv_heads = 4
    model.head_dim = 32
    model.mlp_dim = 352
    model.vocab_size = 264  # 259 used: bytes and three special ids
    model.local_context = 128
    model.memory_layers = (2,)
    model.memory_positions = "rope0"
    model.attention_block = 128

    config.crossbatch.plan = "packed"
    config.crossbatch.packing = 4
    config.crossbatch.previous_chunks = 3
    config.crossbatch.schedule.num_contexts = (8,)

    config.data.sources = ({"name": "stdlib", "kind": "stdlib"},)
    config.data.vocabulary.kind = "bytes"
    config.data.document_end = "pack"

    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.min_learning_rate = 3e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 30

    config.train.steps = 300
    config.train.batch_rows = 32  # eight documents, four chunks of each
    config.train.log_every = 10
    config.train.eval_every = 100
    config.train.checkpoint_every = 100
    return config
