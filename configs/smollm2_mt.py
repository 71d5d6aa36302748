"""smollm2_fot's second baseline: the Memorizing Transformer's protocol with one softmax.

A row reads the rows of its own document before it, seven at most; no gradient reaches their keys and values, and no
other document is seen (FoT sec. 5.6.1).

Command:  python -m launch.train --config=configs/smollm2_mt.py
Hardware: one GPU or TPU host, as smollm2_fot.
Time:     sized as smollm2_fot, 400 steps of 32,768 tokens. Not yet run: no accelerator was at hand.
Expected: not measured.
"""

from ml_collections import config_dict

from configs import smollm2_fot


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_fot with a memory of only its own past, whose keys and values get no gradient."""
    config = smollm2_fot.get_config()
    config.name = "smollm2_mt"
    config.crossbatch.plan = "own_past"
    config.crossbatch.gradients = "stopped"
    config.crossbatch.schedule.kind = "constant"
    config.crossbatch.schedule.num_contexts = (1,)
    return config
