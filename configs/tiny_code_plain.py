"""tiny_code trained without crossbatch: the demo's other half, for comparison.

Command:  python -m launch.train --config=configs/tiny_code_plain.py
          python -m launch.evaluate --workdir=runs/tiny_code --baseline-workdir=runs/tiny_code_plain --task=distraction
Hardware: two CPU cores.
Time:     1400 steps at 10 k tokens/s, 2.5 minutes on two cores (2026-11-22).
Expected: 1.794 bits per byte held out without memory, 1.470 with 16 local contexts of it, r_16 0.158; with its own
          document among 8 in memory 2.017, worse than without. Measured 2026-11-22 by `make demo`.

The memory layer is named, so that evaluation can give it a memory; training never uses it.
"""

from ml_collections import config_dict

from configs import tiny_code


def get_config() -> config_dict.ConfigDict:
    """Returns tiny_code with the plan off; only the fields below differ."""
    config = tiny_code.get_config()
    config.name = "tiny_code_plain"
    config.crossbatch.plan = "off"
    config.crossbatch.schedule.kind = "constant"
    config.crossbatch.schedule.num_contexts = (1,)
    return config
