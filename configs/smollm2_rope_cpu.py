"""smollm2_fot_cpu's third baseline: plain fine-tuning with scaled rotary positions, read with full attention.

YaRN stretches the published model's 8,192 positions to 16,384. The same parameters are trained on the same number of
tokens, in rows of 2,048, one a step.

Command:  python -m launch.train --config=configs/smollm2_rope_cpu.py
Hardware: two CPU cores, as smollm2_fot_cpu.
Time:     48 steps of 2,048 tokens, 10 minutes while tests ran (median 159 tokens/s, 2026-11-22).
Expected: experiments/smollm2.md, "Perplexity against context"; measured with --evaluation.window=256, its rows being
          longer.
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_fot_cpu without crossbatch, with YaRN and longer rows."""
    config = smollm2_fot_cpu.get_config()
    config.name = "smollm2_rope_cpu"
    config.model.local_context = 2048
    config.model.rope.scaling = "yarn"
    config.model.rope.factor = 2.0
    config.model.rope.original_context = 8192
    config.crossbatch.plan = "off"
    config.crossbatch.packing = 1
    config.crossbatch.segments = ()
    config.train.batch_rows = 1
    config.evaluation.reading = "full"
    return config
