"""Dictionary lookup with the paper's 37M model, d from 1 to 128 (FoT fig. 4, app. D).

Command:  python -m launch.train --config=configs/dictionary.py
          python -m launch.evaluate --workdir=runs/dictionary --task=dictionary
Hardware: one TPU v2/v3 host, 8 cores (the paper's).
Time:     5k steps of 32K tokens; not measured here.
Expected: the paper's numbers. Accuracy above 92 % with a dictionary of 16M tokens and k = 32; the plain
          Transformer fails at 16K. Ten seeds (--config.seed=0 ... 9), bars from the smallest to the largest.
"""

from ml_collections import config_dict

from fot_jax.config.build import template


def get_config() -> config_dict.ConfigDict:
    """Returns the unresolved experiment; enums are written by value (fot_jax/config/enums.py)."""
    config = template()
    config.name = "dictionary"
    model = config.model
    model.family = "paper"
    model.num_layers = 12
    model.embed_dim = 512
    model.num_heads = model.num_kv_heads = 8
    model.head_dim = 64
    model.mlp_dim = 2048
    model.vocab_size = 64
    model.local_context = 256
    model.memory_layers = (8,)
    model.memory_positions = "nope"
    model.tie_embeddings = True
    model.norm_epsilon = 1e-5

    # A document is two chunks: 256 tokens of definitions (C_prev), 256 of questions (C_curr).
    config.crossbatch.plan = "two_pass"
    config.crossbatch.schedule.kind = "switch_at_accuracy"
    config.crossbatch.schedule.num_contexts = (1, 128)
    config.crossbatch.schedule.switch_accuracy = 0.98

    config.data.sources = ({"name": "dictionary", "kind": "dictionary"},)
    config.data.vocabulary.kind = "symbols"
    config.data.dictionary.num_symbols = 60
    config.data.dictionary.definition_tokens = 256
    config.data.dictionary.question_tokens = 256
    config.data.document_end = "pad"

    config.optimizer.kind = "adafactor"
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.learning_rate = 2e-2
    config.optimizer.min_learning_rate = 1e-2
    config.optimizer.warmup_steps = 1000

    config.train.steps = 5000
    config.train.batch_rows = 256  # 128 documents
    config.train.checkpoint_every = 500

    config.memory.top_k = 32
    config.evaluation.dictionary_tokens = (256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)
    return config
