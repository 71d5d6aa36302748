"""smollm2_fot_cpu_long's twin without crossbatch: the same weights, the same rows, the same parameters trained.

Command:  python -m launch.train --config=configs/smollm2_plain_cpu_long.py
Hardware: two CPU cores.
Time:     48 steps of 8,192 tokens, 34 minutes beside tests (median 209 tokens/s, 2026-11-23).
Expected: perplexity of held-out windows of 256 tokens, standard library / proofs / prose: 7.765 / 24.688 / 23.895
          (docs/smollm2.md, "Longer").
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu_long


def get_config() -> config_dict.ConfigDict:
    """smollm2_fot_cpu_long with rows that read no other row."""
    config = smollm2_fot_cpu_long.get_config()
    config.name = "smollm2_plain_cpu_long"
    config.crossbatch.segments = ((0, 0),) * 4  # (own, others) of a document's rows; plan `off` has other rows
    config.evaluation.reading = "sliding"
    return config
