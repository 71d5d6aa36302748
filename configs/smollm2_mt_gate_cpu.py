"""smollm2_mt_cpu with the Memorizing Transformer's gate between memory and local context instead of one softmax.

Command:  python -m launch.train --config=configs/smollm2_mt_gate_cpu.py
Hardware: two CPU cores, as smollm2_fot_cpu.
Time:     48 steps of 2,048 tokens, 7 minutes while tests ran (median 231 tokens/s, 2026-11-22).
Expected: experiments/smollm2.md, "Perplexity against context".
"""

from ml_collections import config_dict

from configs import smollm2_mt_cpu


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_mt_cpu with the gate."""
    config = smollm2_mt_cpu.get_config()
    config.name = "smollm2_mt_gate_cpu"
    config.model.memory_gate = True
    return config
