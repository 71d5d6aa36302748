"""smollm2_fot_cpu with four times the rows and 31 contexts, 36 minutes: keys are repeated from 16,384 tokens.

Command:  python -m launch.train --config=configs/smollm2_fot_cpu_long.py
          python -m launch.convert average --workdir=runs/smollm2_fot_cpu_long --with=runs/smollm2 --to=runs/average
          python -m launch.evaluate --workdir=runs/average --task=passkey --evaluation.window=512
Hardware: two CPU cores, as smollm2_fot_cpu.
Time:     48 steps of 8,192 tokens, 36 minutes on cores shared with tests (median 186 tokens/s, 2026-11-23).
Expected: passkeys repeated exactly, averaged: 17, 19, 20 and 19 of 20 at 1,024, 2,048, 4,096 and 8,192 tokens, 10 of 10
          at 16,384; perplexity of windows of 256 tokens without memory, standard library / proofs / prose:
          7.895 / 24.967 / 23.903. As trained: 16, 19, 20, 20 and 10; 7.963 / 25.623 / 24.067 (docs/smollm2.md,
          "Longer").
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu


def get_config() -> config_dict.ConfigDict:
    """smollm2_fot_cpu with eight documents a step.

    Of a document's four rows two read no other row; the third reads the two before it and eight of other documents,
    the fourth the three before it and all 28 of the seven others.
    """
    config = smollm2_fot_cpu.get_config()
    config.name = "smollm2_fot_cpu_long"
    config.train.batch_rows = 32
    config.crossbatch.segments = ((0, 0), (0, 0), (2, 8), (3, 28))
    config.optimizer.decay_steps = 16
    config.optimizer.min_learning_rate = 3e-5
    return config
