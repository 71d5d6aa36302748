"""smollm2_fot_cpu with four times the rows and 31 contexts, 19 minutes: keys are repeated from 16,384 tokens.

Command:  python -m launch.train --config=configs/smollm2_fot_cpu_long.py
          python -m launch.convert average --workdir=runs/smollm2_fot_cpu_long --with=runs/smollm2 --to=runs/average
          python -m launch.evaluate --workdir=runs/average --task=passkey --evaluation.window=512
Hardware: two CPU cores, as smollm2_fot_cpu.
Time:     48 steps of 8,192 tokens, 19 minutes on two AMD cores partly beside tests (median 366 tokens/s, 2026-11-23).
Expected: passkeys repeated exactly, averaged: 20 of 20 at 1,024, 2,048 and 4,096 tokens, 19 of 20 at 8,192, 10 of 10 at
          16,384, 3 of 10 at 32,768; perplexity of windows of 256 tokens of the standard library without memory: 7.845,
          as trained 7.894 (docs/smollm2.md, "Longer").
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu


def get_config() -> config_dict.ConfigDict:
    """smollm2_fot_cpu with eight documents a step.

    Of a document's four rows two read no other row; the third reads the two before it alone, a small memory, and the
    fourth the three before it and all 28 of the seven others.
    """
    config = smollm2_fot_cpu.get_config()
    config.name = "smollm2_fot_cpu_long"
    config.train.batch_rows = 32
    config.crossbatch.segments = ((0, 0), (0, 0), (2, 0), (3, 28))
    config.optimizer.decay_steps = 16
    config.optimizer.min_learning_rate = 3e-5
    return config
