"""smollm2_fot's first baseline: the same weights, documents and tokens without crossbatch, read with a sliding window.

Command:  python -m launch.train --config=configs/smollm2_plain.py
Hardware: one GPU or TPU host, as smollm2_fot.
Time:     sized as smollm2_fot, 400 steps of 32,768 tokens. Not yet run: no accelerator was at hand.
Expected: not measured.
"""

from ml_collections import config_dict

from configs import smollm2_fot


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_fot without crossbatch and without memory layers."""
    config = smollm2_fot.get_config()
    config.name = "smollm2_plain"
    config.model.memory_layers = ()
    config.crossbatch.plan = "off"
    config.evaluation.reading = "sliding"
    return config
