"""SmolLM2-135M fine-tuned on Python's standard library on two CPU cores: the recipe, its twins and its baselines.

fot_32k     the recipe: keys repeated from 32,768 tokens; averaged, text within 1 % of its twin
plain_32k   its twin without crossbatch
fot         a quarter of the rows: keys from 4,096 tokens, with a third of the tokens
fot_logn    fot with queries that grow with log n, in training too: as good at text as the twin
plain       the twin of fot and fot_logn without crossbatch
mt          fot's second baseline: the Memorizing Transformer's protocol with one softmax
mt_gate     the same with the Memorizing Transformer's gate
rope        fot's third baseline: plain fine-tuning with scaled rotary positions, read with full attention

Command:  make smollm2                                       # the published weights -> runs/smollm2
          python -m launch.train --config=configs/smollm2_cpu.py:fot_32k
          python -m launch.convert average --workdir=runs/smollm2_fot_cpu_32k --with=runs/smollm2 --to=runs/average
          python -m launch.evaluate --workdir=runs/average --task=passkey --evaluation.window=512
Hardware: two CPU cores; 14 GB of memory for fot_32k. fot_logn, fot_32k and plain_32k compute in float32, the
          others in bfloat16, which is quick on cores with a matrix unit (AMX); elsewhere try model.dtype=float32.
Time:     5 to 45 minutes; each variant's function below says its own, and what to expect.
Expected: the functions count passkeys repeated exactly in generated text, read with dense memory in windows of 512
          tokens; the training text holds none. Perplexity is of windows of 256 tokens without memory, on standard
          library / proofs / prose; the imported weights have 8.92 on the first. One seed each (experiments/smollm2.md).
"""

from ml_collections import config_dict

from configs import smollm2_135m


def fot(config: config_dict.ConfigDict) -> None:
    """Keeps what all variants start from: half of the rows read others.

    Two of a document's four rows read no other row, as the first window of a text has no memory. The third reads the
    two before it, the fourth all three. In the second document both also read the four rows of the first document.

    Time:     48 steps of 2,048 tokens, 12 minutes on cores shared with tests (127-185 tokens/s, 2026-11-22).
    Expected: passkeys: 20 of 20 at 1,024, 2,048 and 4,096 tokens, 15 of 20 at 8,192, 10 of 10 at 16,384. Perplexity of
              the standard library 8.22. Measured 2026-11-22 (experiments/smollm2.md, recipe A).
    """
    config.name = "smollm2_fot_cpu"


def fot_logn(config: config_dict.ConfigDict) -> None:
    """Multiplies a memory layer's queries that see n > 512 keys by log n / log 512.

    Rows that read no other row (256 tokens) are unchanged. The factor is at most 1.22 in the fourth row of a document,
    which sees up to 2,048 keys, and 1.67 when a text of 32,768 tokens is read.

    Time:     48 steps of 2,048 tokens, 13.5 minutes on two vCPUs of one AMD EPYC (Zen 3) core (2026-11-27), in float32,
              which is quicker than bfloat16 on cores without a matrix unit.
    Expected: averaged, passkeys: 20 of 20 at 1,024, 2,048 and 4,096 tokens, 17 of 20 at 8,192, 10 of 10 at 16,384;
              perplexity 8.073 / 31.00 / 31.93, of plain 8.083 / 31.15 / 31.91 (experiments/smollm2.md, recipe B).
    """
    config.name = "smollm2_fot_cpu_logn"
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.crossbatch.log_length_scaling_from = 512
    config.memory.log_length_scaling_from = 512


def fot_32k(config: config_dict.ConfigDict) -> None:
    """Changes fot_logn to eight documents a step.

    Two of a document's four rows read no other row. The third reads only the two before it, a small memory. The fourth
    reads the three before it and all 28 rows of the seven other documents: 8,192 visible keys, whose scale is 1.44. In
    reading, windows overlap by 64 tokens: text at a cut between windows, except the last cut, is seen whole once.

    Time:     36 steps of 8,192 tokens: 22 minutes on two cores of an Intel Xeon with AVX-512 (median 226 tokens/s,
              2026-11-28, with GLIBC_TUNABLES=glibc.malloc.hugetlb=1), 45 on two vCPUs of one AMD EPYC (Zen 3) core
              (114, 2026-11-27), both while other work ran.
    Expected: averaged, passkeys: 20 of 20 at 1,024, 2,048, 4,096 and 8,192 tokens, 10 of 10 at 16,384 and 32,768;
              perplexity 7.826 / 30.69 / 31.30, of plain_32k 7.770 / 30.47 / 31.36.
    """
    fot_logn(config)
    config.name = "smollm2_fot_cpu_32k"
    config.train.batch_rows = 32
    config.train.steps = 36
    config.train.checkpoint_every = 9
    config.crossbatch.segments = ((0, 0), (0, 0), (2, 0), (3, 28))
    config.optimizer.decay_steps = 12
    config.optimizer.min_learning_rate = 3e-5
    config.memory.overlap = 64


def plain(config: config_dict.ConfigDict) -> None:
    """Trains the same weights on the same rows, the same parameters, but no row reads another.

    Time:     48 steps of 2,048 tokens, 7 minutes while tests ran (median 238 tokens/s, 2026-11-22).
    Expected: perplexity with model.dtype=float32 8.083 / 31.15 / 31.91 (2026-11-27); in bfloat16 8.09 on the standard
              library.
    """
    config.name = "smollm2_plain_cpu"
    config.crossbatch.segments = ((0, 0),) * 4  # (own, others) of a document's rows; plan `off` would take other rows
    config.evaluation.reading = "sliding"


def plain_32k(config: config_dict.ConfigDict) -> None:
    """Trains the same weights on the rows of fot_32k, the same parameters, but no row reads another.

    Time:     36 steps of 8,192 tokens, 38 minutes on two vCPUs of one AMD EPYC (Zen 3) core (median 137 tokens/s,
              2026-11-28).
    Expected: perplexity 7.770 / 30.47 / 31.36.
    """
    fot_32k(config)
    plain(config)
    config.name = "smollm2_plain_cpu_32k"


def mt(config: config_dict.ConfigDict) -> None:
    """Gives a row a memory of only its own past, whose keys and values get no gradient (FoT sec. 5.6.1).

    A row reads the rows of its own document before it, three at most, and no other document.

    Time:     48 steps of 2,048 tokens, 5.5 minutes (median 304 tokens/s, 2026-11-22).
    Expected: experiments/smollm2.md, "Perplexity against context".
    """
    config.name = "smollm2_mt_cpu"
    config.crossbatch.plan = "own_past"
    config.crossbatch.segments = ()
    config.crossbatch.gradients = "stopped"


def mt_gate(config: config_dict.ConfigDict) -> None:
    """Changes mt to a gate between memory and local context instead of one softmax.

    Time:     48 steps of 2,048 tokens, 7 minutes while tests ran (median 231 tokens/s, 2026-11-22).
    Expected: experiments/smollm2.md, "Perplexity against context".
    """
    mt(config)
    config.name = "smollm2_mt_gate_cpu"
    config.model.memory_gate = True


def rope(config: config_dict.ConfigDict) -> None:
    """Trains without crossbatch on longer rows, with YaRN from the published model's 8,192 positions to 16,384.

    The same parameters are trained on the same number of tokens, in rows of 2,048, one a step.

    Time:     48 steps of 2,048 tokens, 10 minutes while tests ran (median 159 tokens/s, 2026-11-22).
    Expected: experiments/smollm2.md, "Perplexity against context"; measured with --evaluation.window=256, as
              its rows are longer.
    """
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


VARIANTS = {
    "fot_32k": fot_32k,
    "plain_32k": plain_32k,
    "fot": fot,
    "fot_logn": fot_logn,
    "plain": plain,
    "mt": mt,
    "mt_gate": mt_gate,
    "rope": rope,
}
ARGUMENTS = tuple(VARIANTS)


def get_config(variant: str) -> config_dict.ConfigDict:
    """Returns smollm2_135m, from the imported weights; trains only the attention of its memory layers."""
    config = smollm2_135m.get_config()
    config.model.dtype = "bfloat16"
    config.model.remat = "full"  # in bfloat16 running a layer again is quicker than keeping its results
    config.crossbatch.plan = "segments"
    config.crossbatch.segments = ((0, 0), (0, 0), (2, 4), (3, 4))
    config.crossbatch.schedule.num_contexts = (1,)  # not used: the segments fix the contexts
    config.train.init_from = "runs/smollm2"
    config.data.vocabulary.path = "runs/smollm2/tokenizer/tokenizer.json"
    config.train.trainable = "memory_attention"
    config.train.steps = 48
    config.train.checkpoint_every = 12
    config.optimizer.learning_rate = 1e-3
    config.optimizer.min_learning_rate = 1e-4
    config.optimizer.schedule = "wsd"
    config.optimizer.decay_steps = 12
    config.optimizer.warmup_steps = 5
    config.memory.retrieval = "dense"
    config.evaluation.passkey_tokens = (1024, 2048, 4096, 8192, 16384, 32768)
    config.evaluation.passkey_trials = (20, 20, 20, 20, 10, 10)
    config.evaluation.passkey_batch = 10  # prompts that begin with the same windows share their reading
    VARIANTS[variant](config)
    return config
