"""SmolLM2-135M fine-tuned with crossbatch on the standard library, at a size for two CPU cores.

Command:  make smollm2                                       # the published weights -> runs/smollm2
          python -m launch.train --config=configs/smollm2_fot_cpu.py
          python -m launch.evaluate --workdir=runs/smollm2_fot_cpu --task=passkey --evaluation.window=512
Hardware: two CPU cores; quick where they have a matrix unit for bfloat16 (AMX), elsewhere try model.dtype=float32.
Time:     48 steps of 2,048 tokens, 12 minutes on cores shared with tests (127-185 tokens/s, 2026-11-22).
Expected: passkeys repeated exactly (generated text, read in windows of 512 tokens, dense memory): 20 of 20 at 1,024,
          2,048 and 4,096 tokens, 15 of 20 at 8,192, 10 of 10 at 16,384. Perplexity of windows of 256 tokens of the
          standard library without memory: 8.22, of the imported weights 8.92. Measured 2026-11-22, one seed; the
          training text holds no passkeys (experiments/smollm2.md, recipe A; proofs and prose are there).
"""

from ml_collections import config_dict

from configs import smollm2_135m


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_135m, from the imported weights, for two cores; trains only the attention of its memory layers.

    Two of a document's four rows read no other row, as the first window of a text has no memory. The third reads the
    two before it, the fourth all three. In the second document both also read the four rows of the first document.
    """
    config = smollm2_135m.get_config()
    config.name = "smollm2_fot_cpu"
    config.model.dtype = "bfloat16"
    config.model.remat = "full"  # in bfloat16 running a layer again is quicker than keeping its results
    config.crossbatch.plan = "segments"
    config.crossbatch.segments = ((0, 0), (0, 0), (2, 4), (3, 4))
    config.crossbatch.schedule.num_contexts = (1,)  # not used: the segments fix the contexts
    config.train.init_from = "runs/smollm2"
    config.data.vocabulary.path = "runs/smollm2/tokenizer/tokenizer.json"
    config.train.trainable = "memory_attention"
    config.train.steps = 48
    config.train.checkpoint_every = 12
    config.optimizer.learning_rate = 1e-3
    config.optimizer.min_learning_rate = 1e-4
    config.optimizer.schedule = "wsd"
    config.optimizer.decay_steps = 12
    config.optimizer.warmup_steps = 5
    config.memory.retrieval = "dense"
    config.evaluation.passkey_tokens = (1024, 2048, 4096, 8192, 16384, 32768)
    config.evaluation.passkey_trials = (20, 20, 20, 20, 10, 10)
    config.evaluation.passkey_batch = 10  # prompts that begin with the same windows share their reading
    return config
