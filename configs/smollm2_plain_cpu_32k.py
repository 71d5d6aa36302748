"""smollm2_fot_cpu_32k's twin without crossbatch: the same weights, the same rows, the same parameters trained.

Command:  python -m launch.train --config=configs/smollm2_plain_cpu_32k.py
Hardware: two CPU cores.
Time:     36 steps of 8,192 tokens, 38 minutes on two vCPUs of one AMD EPYC (Zen 3) core (median 137 tokens/s,
          2026-11-28).
Expected: perplexity of windows of 256 tokens, standard library / proofs / prose: 7.770 / 30.47 / 31.36
          (experiments/smollm2.md).
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu_32k


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_fot_cpu_32k with rows that read no other row."""
    config = smollm2_fot_cpu_32k.get_config()
    config.name = "smollm2_plain_cpu_32k"
    config.crossbatch.segments = ((0, 0),) * 4  # (own, others) of a document's rows; plan `off` would take other rows
    config.evaluation.reading = "sliding"
    return config
