"""FoT on Python's standard library, at a size for two CPU cores: the demo's crossbatch half.

Command:  python -m launch.train --config=configs/tiny_code.py
          python -m launch.evaluate --workdir=runs/tiny_code --task=perplexity
Hardware: two CPU cores.
Time:     1400 steps of 1,024 tokens at 7 k tokens/s, 3.5 minutes on two cores (2026-11-22).
Expected: 1.952 bits per byte held out without memory, 1.172 with 16 local contexts of it (-40 %), r_16 0.258.
          Measured 2026-11-22 by `make demo`, two cores. The cost of a step: docs/performance.md.
"""

from ml_collections import config_dict

from fot_jax.config.build import template


def get_config() -> config_dict.ConfigDict:
    """Returns the unresolved experiment; enums are written by value (fot_jax/config/enums.py)."""
    config = template()
    config.name = "tiny_code"
    model = config.model
    model.family = "paper"
    model.num_layers = 2
    model.embed_dim = 128
    model.num_heads = model.num_kv_heads = 4
    model.head_dim = 32
    model.mlp_dim = 384
    model.vocab_size = 1024
    model.local_context = 64  # about 200 bytes
    model.memory_layers = (1,)
    model.memory_positions = "nope"
    model.smear_keys = True  # without these two, copying did not form within 2.3 M tokens
    model.init = "copying"
    model.rope.theta = 30.0  # short context: sharp positions help the first layer look a few tokens back

    config.crossbatch.plan = "packed"
    config.crossbatch.packing = 4
    config.crossbatch.previous_chunks = 3
    config.crossbatch.schedule.num_contexts = (13,)  # 0, 4, 8 or 12 rows of other documents, by stream

    config.data.sources = ({"name": "stdlib", "kind": "stdlib"},)
    config.data.vocabulary.kind = "hf_tokenizer"
    config.data.vocabulary.path = "configs/tiny_code_bpe.json"  # made by launch.make_vocabulary
    config.data.document_end = "pack"

    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.min_learning_rate = 2e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 60
    config.optimizer.beta2 = 0.98

    config.train.steps = 1400
    config.train.batch_rows = 16  # four documents, four chunks of each
    config.train.log_every = 50
    config.train.eval_every = 350
    config.train.checkpoint_every = 350

    config.memory.retrieval = "dense"
    return config
