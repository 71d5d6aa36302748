"""SmolLM2-135M fine-tuned with crossbatch on code, formal proofs and books, for one GPU or TPU host.

Command:  make smollm2 corpora                               # the published weights -> runs/smollm2; the documents
          python -m launch.train --config=configs/smollm2_fot.py
          python -m launch.evaluate --workdir=runs/smollm2_fot --task=passkey
          python -m launch.evaluate --workdir=runs/smollm2_fot --task=context \
              --baseline-workdir=runs/smollm2_plain --baseline-workdir=runs/smollm2_mt \
              --baseline-workdir=runs/smollm2_mt_gate --baseline-workdir=runs/smollm2_rope
Hardware: one GPU or TPU host.
Time:     sized for 30 minutes: 400 steps of 32,768 tokens. Not yet run: no accelerator was at hand.
Expected: not measured.
"""

from ml_collections import config_dict

from configs import smollm2_135m


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_135m, from the imported weights: 1,024-token rows, 32 a step, four documents of eight rows."""
    config = smollm2_135m.get_config()
    config.name = "smollm2_fot"
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
    return config
