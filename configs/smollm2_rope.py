"""smollm2_fot's third baseline: plain fine-tuning with scaled rotary positions, read with full attention.

YaRN stretches the published model's 8,192 positions to 65,536; the same tokens in rows of 8,192.

Command:  python -m launch.train --config=configs/smollm2_rope.py
Hardware: one GPU or TPU host, as smollm2_fot.
Time:     sized as smollm2_fot, 400 steps of 32,768 tokens. Not yet run: no accelerator was at hand.
Expected: not measured.
"""

from ml_collections import config_dict

from configs import smollm2_plain


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_plain with YaRN and longer rows."""
    config = smollm2_plain.get_config()
    config.name = "smollm2_rope"
    config.model.local_context = 8192
    config.model.rope.scaling = "yarn"
    config.model.rope.factor = 8.0
    config.model.rope.original_context = 8192
    config.train.batch_rows = 4
    config.evaluation.reading = "full"
    return config
