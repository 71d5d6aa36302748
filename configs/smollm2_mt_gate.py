"""smollm2_mt with the Memorizing Transformer's gate between memory and local context instead of one softmax.

Command:  python -m launch.train --config=configs/smollm2_mt_gate.py
Hardware: one GPU or TPU host, as smollm2_fot.
Time:     sized as smollm2_fot, 400 steps of 32,768 tokens. Not yet run: no accelerator was at hand.
Expected: not measured.
"""

from ml_collections import config_dict

from configs import smollm2_mt


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_mt with the gate."""
    config = smollm2_mt.get_config()
    config.name = "smollm2_mt_gate"
    config.model.memory_gate = True
    return config
