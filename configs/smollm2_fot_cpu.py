"""SmolLM2-135M fine-tuned with crossbatch on the standard library, at a size for two CPU cores.

Command:  make smollm2                                       # the published weights -> runs/smollm2
          python -m launch.train --config=configs/smollm2_fot_cpu.py
          python -m launch.evaluate --workdir=runs/smollm2_fot_cpu --task=passkey --evaluation.window=512
Hardware: two CPU cores.
Time:     48 steps of 2,048 tokens, 26 minutes on cores shared with other work (110 tokens/s at best, 2026-11-22).
Expected: passkeys repeated exactly (generated text, read in windows of 512 tokens, dense memory) at 4,096 / 16,384 /
          32,768 tokens: 10 of 10, 5 of 5, 1 of 4. Perplexity of windows of 1,024 tokens without memory, standard
          library / prose: 4.99 / 21.18, of the imported weights 4.98 / 21.34. Measured 2026-11-22, one seed; the
          training text holds no passkeys (docs/smollm2.md).
"""

from ml_collections import config_dict

from configs import smollm2_135m


def get_config() -> config_dict.ConfigDict:
    """smollm2_135m from the imported weights, for two cores; only the attention of its memory layers is trained."""
    config = smollm2_135m.get_config()
    config.name = "smollm2_fot_cpu"
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
    return config
