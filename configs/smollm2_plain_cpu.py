"""smollm2_fot_cpu's twin without crossbatch: the same weights, documents and number of tokens.

Command:  python -m launch.train --config=configs/smollm2_plain_cpu.py
Hardware: two CPU cores.
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu


def get_config() -> config_dict.ConfigDict:
    """smollm2_fot_cpu, plain."""
    config = smollm2_fot_cpu.get_config()
    config.name = "smollm2_plain_cpu"
    config.model.memory_layers = ()
    config.crossbatch.plan = "off"
    config.evaluation.reading = "sliding"
    return config
