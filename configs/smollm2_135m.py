"""SmolLM2-135M's shape, continued with crossbatch on local source code.

Command:  python -m launch.train --config=configs/smollm2_135m.py --config.data.vocabulary.path=TOKENIZER.json
Hardware: two CPU cores are enough to try it.
Time:     60 steps of 2,048 tokens; loss and gradient of one took 15.8 s, with d = 8, on two cores of an Intel Xeon
          (2026-11-29, experiments/performance.md). A token's forward pass is 0.27 GFLOP.
Expected: not measured from random weights, which this config starts from; configs/smollm2_cpu.py starts from the
          published ones.

The memory layers are the layers from 14 on in which the published model already attends to a passkey when it answers
(0.39-0.81 of the largest head's mass, experiments/smollm2.md).
"""

from ml_collections import config_dict

from fot_jax.config.build import template


def get_config() -> config_dict.ConfigDict:
    """Returns the unresolved experiment; enums are written by value (fot_jax/config/enums.py)."""
    config = template()
    config.name = "smollm2_135m"
    model = config.model
    model.family = "llama"
    model.num_layers = 30
    model.embed_dim = 576
    model.num_heads = 9
    model.num_kv_heads = 3
    model.head_dim = 64
    model.mlp_dim = 1536
    model.vocab_size = 49152
    model.local_context = 256  # of the 8,192 tokens that the published model was trained for
    model.memory_layers = (14, 15, 17, 18, 20, 21, 22, 23)
    model.memory_positions = "rope0"
    model.rope.theta = 1e5
    model.tie_embeddings = True
    model.norm_epsilon = 1e-5

    config.crossbatch.plan = "packed"
    config.crossbatch.packing = 4
    config.crossbatch.previous_chunks = 3
    config.crossbatch.schedule.num_contexts = (5,)  # 3 own rows and 4 of the other document at most

    config.data.sources = ({"name": "stdlib", "kind": "stdlib"},)
    config.data.vocabulary.kind = "hf_tokenizer"
    config.data.vocabulary.path = "~/models/smollm2_135m/tokenizer.json"

    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 10

    config.train.steps = 60
    config.train.batch_rows = 8  # two documents, four chunks of each
    config.train.log_every = 1
    config.train.checkpoint_every = 20
    return config
