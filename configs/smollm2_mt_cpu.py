"""smollm2_fot_cpu's second baseline: the Memorizing Transformer's protocol with one softmax.

A row reads the rows of its own document before it, three at most; no gradient reaches their keys and values, and no
other document is seen (FoT sec. 5.6.1).

Command:  python -m launch.train --config=configs/smollm2_mt_cpu.py
Hardware: two CPU cores, as smollm2_fot_cpu.
Time:     48 steps of 2,048 tokens, 5.5 minutes (median 304 tokens/s, 2026-11-22).
Expected: experiments/smollm2.md, "Perplexity against context".
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_fot_cpu with a memory of only its own past, whose keys and values get no gradient."""
    config = smollm2_fot_cpu.get_config()
    config.name = "smollm2_mt_cpu"
    config.crossbatch.plan = "own_past"
    config.crossbatch.segments = ()
    config.crossbatch.gradients = "stopped"
    return config
