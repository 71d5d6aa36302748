"""smollm2_fot_cpu_long with twice the rows and contexts, 36 minutes: keys are repeated from 32,768 tokens.

Command:  python -m launch.train --config=configs/smollm2_fot_cpu_32k.py
          python -m launch.convert average --workdir=runs/smollm2_fot_cpu_32k --with=runs/smollm2 --to=runs/average
          python -m launch.evaluate --workdir=runs/average --task=passkey --evaluation.window=512
Hardware: two CPU cores, as smollm2_fot_cpu.
Time:     40 steps of 16,384 tokens, 36 minutes on two AMD cores (median 306 tokens/s; 42 beside tests; 2026-11-23).
Expected: passkeys repeated exactly, averaged: 20 of 20 at 1,024, 2,048, 4,096 and 8,192 tokens, 10 of 10 at 16,384,
          9 of 10 at 32,768; perplexity of windows of 256 tokens of the standard library without memory: 7.722,
          as trained 7.740 (docs/smollm2.md, "To 32,768 tokens").
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu_long


def get_config() -> config_dict.ConfigDict:
    """smollm2_fot_cpu_long with sixteen documents a step, and queries that grow with the memory when it is read."""
    config = smollm2_fot_cpu_long.get_config()
    config.name = "smollm2_fot_cpu_32k"
    config.train.batch_rows = 64
    config.train.steps = 40
    config.crossbatch.segments = ((0, 0), (0, 0), (2, 0), (3, 60))
    config.optimizer.decay_steps = 14
    config.memory.logn_from = 2048
    return config
