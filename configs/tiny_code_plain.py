"""tiny_code trained without crossbatch: the demo's other half, for comparison.

Command:  python -m launch.train --config=configs/tiny_code_plain.py
          python -m launch.evaluate --workdir=runs/tiny_code --baseline-workdir=runs/tiny_code_plain --task=distraction
Hardware: two CPU cores.
Time:     as tiny_code, 4 minutes.
Expected: 2.11 bits per byte held out with no memory, 2.2 % worse with 16 contexts of memory, r_16 0.064
          (two loaded cores, 2026-11-22).

The memory layer is named, so that evaluation can give it a memory; training never uses it.
"""

from ml_collections import config_dict

from configs import tiny_code


def get_config() -> config_dict.ConfigDict:
    """tiny_code with the plan off; every other field is its own."""
    config = tiny_code.get_config()
    config.name = "tiny_code_plain"
    config.crossbatch.plan = "off"
    config.crossbatch.schedule.kind = "constant"
    config.crossbatch.schedule.num_contexts = (1,)
    return config
