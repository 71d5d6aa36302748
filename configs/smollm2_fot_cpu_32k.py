"""The recipe for two CPU cores: SmolLM2-135M repeats keys from 32,768 tokens; averaged, text within 1 % of its twin.

Command:  make smollm2                                       # the published weights -> runs/smollm2
          python -m launch.train --config=configs/smollm2_fot_cpu_32k.py
          python -m launch.convert average --workdir=runs/smollm2_fot_cpu_32k --with=runs/smollm2 --to=runs/average
          python -m launch.evaluate --workdir=runs/average --task=passkey --evaluation.window=512
Hardware: two CPU cores; 14 GB of memory.
Time:     36 steps of 8,192 tokens: 22 minutes on two cores of an Intel Xeon with AVX-512 (median 226 tokens/s,
          2026-11-28, with GLIBC_TUNABLES=glibc.malloc.hugetlb=1), 45 on two vCPUs of one AMD EPYC (Zen 3) core (114,
          2026-11-27), both while other work ran.
Expected: averaged, passkeys repeated exactly: 20 of 20 at 1,024, 2,048, 4,096 and 8,192 tokens, 10 of 10 at 16,384 and
          32,768; perplexity of windows of 256 tokens without memory, standard library / proofs / prose: 7.826 / 30.69 /
          31.30, of smollm2_plain_cpu_32k 7.770 / 30.47 / 31.36 (experiments/smollm2.md).
"""

from ml_collections import config_dict

from configs import smollm2_fot_cpu_logn


def get_config() -> config_dict.ConfigDict:
    """Returns smollm2_fot_cpu_logn with eight documents a step.

    Two of a document's four rows read no other row. The third reads only the two before it, a small memory. The fourth
    reads the three before it and all 28 rows of the seven other documents: 8,192 visible keys, whose scale is 1.44. In
    reading, windows overlap by 64 tokens: text at a cut between windows, except the last cut, is seen whole once.
    """
    config = smollm2_fot_cpu_logn.get_config()
    config.name = "smollm2_fot_cpu_32k"
    config.train.batch_rows = 32
    config.train.steps = 36
    config.train.checkpoint_every = 9
    config.crossbatch.segments = ((0, 0), (0, 0), (2, 0), (3, 28))
    config.optimizer.decay_steps = 12
    config.optimizer.min_learning_rate = 3e-5
    config.memory.overlap = 64
    return config
