r"""The model of dictionary_cpu trained without crossbatch: definitions and questions in one row of 120 tokens.

Command:  python -m launch.train --config=configs/dictionary_cpu_plain.py
          python -m launch.evaluate --workdir=runs/dictionary_cpu --baseline-workdir=runs/dictionary_cpu_plain \
            --task=dictionary
Hardware: two CPU cores.
Time:     as dictionary_cpu, the same tokens a step.
Expected: learns the dictionaries of training (60 tokens, in its context); fails on longer ones.
"""

from ml_collections import config_dict

from configs import dictionary_cpu


def get_config() -> config_dict.ConfigDict:
    """dictionary_cpu with the plan off and a local context that holds a whole document."""
    config = dictionary_cpu.get_config()
    config.name = "dictionary_cpu_plain"
    config.model.local_context = 120
    config.crossbatch.plan = "off"
    config.crossbatch.schedule.kind = "constant"
    config.crossbatch.schedule.num_contexts = (1,)
    config.train.batch_rows = 16
    return config
