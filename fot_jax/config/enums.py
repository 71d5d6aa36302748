"""The choices a config names: one enum each, written in a config by value (`"two_pass"`)."""

import enum


class Family(enum.Enum):
    """LLAMA: RMSNorm, SwiGLU, scale 1/sqrt(D).

    PAPER: LayerNorm, GELU, QK-norm with a temperature per head (app. B.1).
    """

    LLAMA = "llama"
    PAPER = "paper"


class MemoryPositions(enum.Enum):
    """NOPE: no positions at all in memory layers. ROPE0: local RoPE, memory keys at position 0."""

    NOPE = "nope"
    ROPE0 = "rope0"


class Init(enum.Enum):
    """NORMAL: independent random weights. COPYING: memory layers start as copying heads (models/init.py)."""

    NORMAL = "normal"
    COPYING = "copying"


class RopeScaling(enum.Enum):
    """Hugging Face `rope_scaling` kinds."""

    NONE = "none"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"


class AttentionForm(enum.Enum):
    """REFERENCE materialises all scores; BLOCKWISE is an online softmax over blocks of keys.

    PALLAS: the same in kernels, for TPUs and GPUs. AUTO: by backend (`fot_jax/ops/forms.py`).
    """

    REFERENCE = "reference"
    BLOCKWISE = "blockwise"
    PALLAS = "pallas"
    AUTO = "auto"


class Remat(enum.Enum):
    """What the backward pass keeps of a layer: everything, matrix products, or nothing.

    DOTS and FULL keep the output, peaks and totals of a joint softmax: by the kernels attention runs forward once, by
    blocks attention to contexts does.
    """

    NONE = "none"
    DOTS = "dots"
    FULL = "full"


class Dtype(enum.Enum):
    """Compute dtype; parameters, softmax and loss are always float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class PlanKind(enum.Enum):
    """The published ways to fill `context_ids` (see `fot_jax/ops/plans.py` for drawn tables)."""

    OFF = "off"  # plain training: no row reads another
    TWO_PASS = "two_pass"  # paper: (w, d), rows i .. i+d-1 of C_prev
    PACKED = "packed"  # one pass: w nearest own rows, then the d-1 nearest earlier rows of other documents
    SEGMENTS = "segments"  # LongLLaMA 3B/7B: (positives, negatives) per place in the pack
    CONSTANT_RANGE = "constant_range"  # authors' code: range r, optional stepping
    OWN_PAST = "own_past"  # d = 1: only the reader's own earlier chunks


class ContextGradients(enum.Enum):
    """FLOW into the contexts' keys and values: crossbatch. STOPPED: the Memorizing Transformer's memory."""

    FLOW = "flow"
    STOPPED = "stopped"


class Boundaries(enum.Enum):
    """What a query sees across a document's end inside a chunk: its own document, or all."""

    MASKED = "masked"
    JOINED = "joined"


class DocumentEnd(enum.Enum):
    """PAD: a new document starts at a new chunk. PACK: it starts right after the last one."""

    PAD = "pad"
    PACK = "pack"


class ScheduleKind(enum.Enum):
    """How d changes during training (sec. 3.2, app. B.3, D)."""

    CONSTANT = "constant"
    SWITCH_AT_STEP = "switch_at_step"
    SWITCH_AT_ACCURACY = "switch_at_accuracy"
    RANDOM = "random"


class SourceKind(enum.Enum):
    """Where documents come from."""

    STDLIB = "stdlib"
    JSONL = "jsonl"
    TEXT = "text"
    PARQUET = "parquet"
    TFRECORD = "tfrecord"
    DICTIONARY = "dictionary"
    PASSKEY = "passkey"


class VocabularyKind(enum.Enum):
    """BYTES: 3 special ids and 256 bytes. SYMBOLS: synthetic ids, no text."""

    BYTES = "bytes"
    SENTENCEPIECE = "sentencepiece"
    HF_TOKENIZER = "hf_tokenizer"
    SYMBOLS = "symbols"


class OptimizerKind(enum.Enum):
    """Optimizers of the paper (ADAFACTOR) and of LongLLaMA (ADAMW)."""

    ADAMW = "adamw"
    ADAFACTOR = "adafactor"


class LearningRateKind(enum.Enum):
    """INVERSE_SQRT: the paper's; CONSTANT: LongLLaMA's; COSINE, and WSD in its last steps: to min_learning_rate."""

    INVERSE_SQRT = "inverse_sqrt"
    CONSTANT = "constant"
    COSINE = "cosine"
    WSD = "wsd"  # warm-up, stable, decay


class LossMean(enum.Enum):
    """What the training loss is a mean over: tokens that bear loss, or rows, each its own mean (the authors' code)."""

    TOKENS = "tokens"
    ROWS = "rows"


class Trainable(enum.Enum):
    """The parameters that training changes: all, whole memory layers, or their attention and its norm."""

    ALL = "all"
    MEMORY_LAYERS = "memory_layers"
    MEMORY_ATTENTION = "memory_attention"


class Retrieval(enum.Enum):
    """How a memory layer reads its memory: all of it, or about its nearest entries (fot_jax/memory/views.py)."""

    DENSE = "dense"
    EXACT = "exact"
    APPROX = "approx"
    SCANN = "scann"


class LastContext(enum.Enum):
    """Tokens of an input's last window, which stays in the local cache (fot_jax/infer/windows.py).

    AT_LEAST: `last_context_length` or more, so that an input is cut into the fewest windows. EXACT: that many, as
    LongLLaMA's code has it; with 0 no token stays.
    """

    AT_LEAST = "at_least"
    EXACT = "exact"


class PastReading(enum.Enum):
    """How a model reads what lies before a scored window, while perplexity is measured against context.

    MEMORY: window by window into the memory layers' memory. SLIDING: a window that slides, each token with
    about `local_context` others before it. FULL: ordinary attention over everything.
    """

    MEMORY = "memory"
    SLIDING = "sliding"
    FULL = "full"


class NeedleKind(enum.Enum):
    """What a needle prompt asks (see `fot_jax/data/needles.py`)."""

    SINGLE = "single"
    MULTI_KEY = "multi_key"
    MULTI_VALUE = "multi_value"
    MULTI_QUERY = "multi_query"
    VARIABLE_TRACKING = "variable_tracking"
    COMMON_WORDS = "common_words"
