"""smollm2_fot_cpu's twin without crossbatch: the same weights, the same rows, the same parameters trained.

Command:  python -m launch.train --config=configs/smollm2_plain_cpu.py
Hardware: two CPU cores.
Time:     48 steps of 2,048 tokens, 7 minutes while tests ran (median 238 tokens/s, 2026-11-22).
Expected: perplexity of held-out windows of 256 tokens without memory, standard library / proofs / prose, with
          model.dtype=float32: 8.083 / 31.15 / 31.91 (2026-11-27); in bfloat16 8.09 on the standard library
          (experiments/smollm2.md).
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_fot_cpu with rows that read no other row."""
    config = smollm2_fot_cpu.get_config()
    config.name = "smollm2_plain_cpu"
    config.crossbatch.segments = ((0, 0),) * 4  # (own, others) of a document's rows; plan `off` would take other rows
    config.evaluation.reading = "sliding"
    return config
