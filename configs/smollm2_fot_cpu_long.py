"""smollm2_fot_cpu with four times the rows: 31 contexts, 35 minutes on two CPU cores, keys repeated from 16,384 tokens.

Command:  python -m launch.train --config=configs/smollm2_fot_cpu_long.py
          python -m launch.convert average --workdir=runs/smollm2_fot_cpu_long --with=runs/smollm2 --to=runs/smollm2_average
          python -m launch.evaluate --workdir=runs/smollm2_average --task=passkey --evaluation.window=512
Hardware: two CPU cores, as smollm2_fot_cpu.
Time:     48 steps of 8,192 tokens, 37 minutes on cores shared with tests (median 0.18k tokens/s, 2026-11-23).
Expected: docs/smollm2.md, "Longer": passkeys and perplexity as trained and averaged with the imported weights.
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
