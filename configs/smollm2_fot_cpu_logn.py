"""smollm2_fot_cpu with queries that grow with log n, in training too: as good at text as the twin without crossbatch.

Command:  python -m launch.train --config=configs/smollm2_fot_cpu_logn.py
          python -m launch.convert average --workdir=runs/smollm2_fot_cpu_logn --with=runs/smollm2 --to=runs/average
          python -m launch.evaluate --workdir=runs/average --task=passkey --evaluation.window=512
Hardware: two CPU cores; in float32, which is quicker than bfloat16 where they have no matrix unit (AMX).
Time:     48 steps of 2,048 tokens, 13.5 minutes on two vCPUs of one AMD EPYC (Zen 3) core (2026-11-27).
Expected: averaged, passkeys repeated exactly: 20 of 20 at 1,024, 2,048 and 4,096 tokens, 17 of 20 at 8,192, 10 of 10 at
          16,384; perplexity of windows of 256 tokens without memory, standard library / proofs / prose: 8.073 / 31.00 /
          31.93, of smollm2_plain_cpu 8.083 / 31.15 / 31.91 (experiments/smollm2.md, recipe B).
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_fot_cpu; a memory layer's queries that see n > 512 keys are multiplied by log n / log 512.

    Rows that read no other row (256 tokens) are unchanged. The factor is at most 1.22 in the fourth row of a document,
    which sees up to 2,048 keys, and 1.67 when a text of 32,768 tokens is read.
    """
    config = smollm2_fot_cpu.get_config()
    config.name = "smollm2_fot_cpu_logn"
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.crossbatch.log_length_scaling_from = 512
    config.memory.log_length_scaling_from = 512
    return config
