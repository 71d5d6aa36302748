r"""The model of dictionary_cpu trained without crossbatch: definitions and questions in one row of 120 tokens.

Command:  python -m launch.train --config=configs/dictionary_cpu_plain.py
          python -m launch.evaluate --workdir=runs/dictionary_cpu --baseline-workdir=runs/dictionary_cpu_plain \
            --task=dictionary
Hardware: two CPU cores.
Time:     1200 steps of 1,920 tokens, 5.5 minutes on one core (2026-11-22).
Expected: fails. Measured 2026-11-22 with dictionaries of 60 / 240 / 960 / 3840 tokens, value tokens right: .443 /
          .099 / .029 / .029 from its context, .328 / .141 / .034 / .021 with the memory it was not trained for.
"""

from ml_collections import config_dict

from configs import dictionary_cpu


def get_config() -> config_dict.ConfigDict:
    """Returns dictionary_cpu with the plan off and a local context that holds a whole document."""
    config = dictionary_cpu.get_config()
    config.name = "dictionary_cpu_plain"
    config.model.local_context = 120
    config.crossbatch.plan = "off"
    config.crossbatch.schedule.kind = "constant"
    config.crossbatch.schedule.num_contexts = (1,)
    config.train.batch_rows = 16
    return config
