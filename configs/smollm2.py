"""SmolLM2-135M fine-tuned on code, formal proofs and books, for one GPU or TPU host: crossbatch and its baselines.

fot         crossbatch
plain       the first baseline: the same weights, documents and tokens without crossbatch, read with a sliding window
mt          the second: the Memorizing Transformer's protocol with one softmax
mt_gate     the same with the Memorizing Transformer's gate between memory and local context
rope        the third: plain fine-tuning with scaled rotary positions, read with full attention

Command:  make smollm2 corpora                               # the published weights -> runs/smollm2; the documents
          python -m launch.train --config=configs/smollm2.py:fot
          python -m launch.evaluate --workdir=runs/smollm2_fot --task=passkey
          python -m launch.evaluate --workdir=runs/smollm2_fot --task=context \
              --baseline-workdir=runs/smollm2_plain --baseline-workdir=runs/smollm2_mt \
              --baseline-workdir=runs/smollm2_mt_gate --baseline-workdir=runs/smollm2_rope
Hardware: one GPU or TPU host.
Time:     each sized for 30 minutes: 400 steps of 32,768 tokens. Not yet run: no accelerator was at hand.
Expected: not measured.
"""

from ml_collections import config_dict

from configs import smollm2_135m

ARGUMENTS = ("fot", "plain", "mt", "mt_gate", "rope")


def get_config(variant: str) -> config_dict.ConfigDict:
    """Returns smollm2_135m, from the imported weights: 1,024-token rows, 32 a step, four documents of eight rows."""
    config = smollm2_135m.get_config()
    config.name = f"smollm2_{variant}"
    config.model.local_context = 1024
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.crossbatch.packing = 8
    config.crossbatch.previous_chunks = 7
    config.crossbatch.schedule.kind = "random"
    config.crossbatch.schedule.num_contexts = (2, 25)  # contexts of other documents, 1 or up to 24, and the own past

    config.data.sources = (
        {"name": "code", "kind": "jsonl", "path": "data_cache/corpora/code.jsonl", "rate": 1.0, "min_tokens": 4096},
        {"name": "proofs", "kind": "jsonl", "path": "data_cache/corpora/proofs.jsonl", "rate": 1.0, "min_tokens": 4096},
        {"name": "prose", "kind": "jsonl", "path": "data_cache/corpora/prose.jsonl", "rate": 1.0, "min_tokens": 4096},
    )
    config.data.heldout_fraction = 0.25
    config.data.vocabulary.path = "runs/smollm2/tokenizer/tokenizer.json"

    config.train.init_from = "runs/smollm2"
    config.train.steps = 400
    config.train.batch_rows = 32
    config.train.log_every = 10
    config.train.checkpoint_every = 400
    config.optimizer.learning_rate = 3e-4
    config.optimizer.min_learning_rate = 3e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20

    config.memory.retrieval = "dense"
    config.evaluation.passkey_tokens = (1024, 2048, 4096, 8192, 16384, 32768)
    config.evaluation.passkey_trials = (20, 20, 20, 20, 10, 10)

    if variant in ("plain", "rope"):
        config.model.memory_layers = ()
        config.crossbatch.plan = "off"
        config.evaluation.reading = "sliding"
    if variant == "rope":  # YaRN stretches the published 8,192 positions to 65,536; the same tokens, rows of 8,192
        config.model.local_context = 8192
        config.model.rope.scaling = "yarn"
        config.model.rope.factor = 8.0
        config.model.rope.original_context = 8192
        config.train.batch_rows = 4
        config.evaluation.reading = "full"
    if variant in ("mt", "mt_gate"):  # a row reads its own past, seven rows at most, without gradient (FoT sec. 5.6.1)
        config.crossbatch.plan = "own_past"
        config.crossbatch.gradients = "stopped"
        config.crossbatch.schedule.kind = "constant"
        config.crossbatch.schedule.num_contexts = (1,)
        config.model.memory_gate = variant == "mt_gate"
    return config
