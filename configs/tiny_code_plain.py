"""tiny_code trained without crossbatch: the demo's other half, for comparison.

Command:  python -m launch.train --config=configs/tiny_code_plain.py
          python -m launch.evaluate --workdir=runs/tiny_code --baseline-workdir=runs/tiny_code_plain --task=distraction
Hardware: two CPU cores.
Time:     minutes. <!-- FIGURE: tiny_code_plain minutes -->
Expected: about the bits per byte of tiny_code with no memory, less or no gain from memory, r_d near 1/d.
          <!-- FIGURE: tiny_code_plain bits per byte, r_16 -->

The memory layer is named, so that evaluation can give it a memory; training never uses it.
"""

from ml_collections import config_dict

from configs import tiny_code


def get_config() -> config_dict.ConfigDict:
    """tiny_code with the plan off; every other field is its own."""
    config = tiny_code.get_config()
    config.name = "tiny_code_plain"
    config.crossbatch.plan = "off"
    return config
