"""Dictionary lookup at a size for two CPU cores (after FoT fig. 4, app. D).

Command:  python -m launch.train --config=configs/dictionary_cpu.py
          python -m launch.evaluate --workdir=runs/dictionary_cpu --task=dictionary
Hardware: two CPU cores.
Time:     1200 steps of 1,920 tokens, 7 minutes on one core (2026-11-22).
Expected: at least 90 % of answers right with dictionaries 16 times longer than in training.
          Measured 2026-11-22 with dictionaries of 60 / 240 / 960 / 3840 tokens, value tokens right: .987 / .995 /
          .992 / .888; without memory .271 / .083 / .005 / .023.
"""

from ml_collections import config_dict

from fot_jax.config.build import template


def get_config() -> config_dict.ConfigDict:
    """Returns the unresolved experiment; enums are written by value (fot_jax/config/enums.py)."""
    config = template()
    config.name = "dictionary_cpu"
    model = config.model
    model.family = "paper"
    model.num_layers = 2
    model.embed_dim = 128
    model.num_heads = model.num_kv_heads = 4
    model.head_dim = 32
    model.mlp_dim = 256
    model.vocab_size = 64
    model.local_context = 60  # six definitions of ten tokens: no window cuts one in two
    model.memory_layers = (1,)
    model.memory_positions = "nope"
    model.rope.theta = 100.0  # short context: sharp positions help the first layer look a few tokens back

    config.crossbatch.plan = "two_pass"
    config.crossbatch.schedule.kind = "switch_at_accuracy"
    config.crossbatch.schedule.num_contexts = (1, 16)
    config.crossbatch.schedule.switch_accuracy = 0.98

    config.data.sources = ({"name": "dictionary", "kind": "dictionary"},)
    config.data.vocabulary.kind = "symbols"
    config.data.dictionary.definition_tokens = 60
    config.data.dictionary.question_tokens = 60
    config.data.document_end = "pad"

    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.min_learning_rate = 1.5e-4
    config.optimizer.beta2 = 0.98
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50

    config.train.steps = 1200
    config.train.batch_rows = 32  # 16 documents: definitions and questions
    config.train.log_every = 50
    config.train.checkpoint_every = 250

    config.memory.top_k = 32
    config.evaluation.dictionary_tokens = (60, 240, 960, 3840)
    config.evaluation.dictionary_episodes = 16
    return config
