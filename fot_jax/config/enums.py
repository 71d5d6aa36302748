"""The choices that a config names, each an enum, written in a config by value (`"two_pass"`)."""

import enum


class Family(enum.Enum):
    """Model families. LLAMA: RMSNorm, SwiGLU, scale 1/sqrt(D).

    PAPER: LayerNorm, GELU, QK-norm with a temperature per head (FoT app. B.1).
    """

    LLAMA = "llama"
    PAPER = "paper"


class MemoryPositions(enum.Enum):
    """Positions in memory layers. NOPE: none at all. ROPE0: local RoPE, memory keys at position 0."""

    NOPE = "nope"
    ROPE0 = "rope0"


class Init(enum.Enum):
    """First weights. NORMAL: independent, random. COPYING: memory layers start as copying heads (models/init.py)."""

    NORMAL = "normal"
    COPYING = "copying"


class RopeScaling(enum.Enum):
    """Hugging Face `rope_scaling` kinds."""

    NONE = "none"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"


class AttentionBackend(enum.Enum):
    """Attention backends. REFERENCE materialises all scores; BLOCKWISE is an online softmax over blocks of keys.

    PALLAS: that softmax in kernels, for TPUs and GPUs. AUTO: chosen by platform (`fot_jax/ops/backends/choose.py`).
    """

    REFERENCE = "reference"
    BLOCKWISE = "blockwise"
    PALLAS = "pallas"
    AUTO = "auto"


class Remat(enum.Enum):
    """Activations of a layer that the backward pass keeps: all (NONE), matrix products (DOTS), or none (FULL).

    DOTS and FULL still keep the output, peaks and totals of a layer's softmax: attention runs forward only once.
    """

    NONE = "none"
    DOTS = "dots"
    FULL = "full"


class Dtype(enum.Enum):
    """Compute dtype; parameters, softmax and loss are always float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return {Dtype.FLOAT32: 4, Dtype.BFLOAT16: 2}[self]


class PlanKind(enum.Enum):
    """The published ways to fill `context_ids` (see `fot_jax/ops/plans.py` for drawn tables)."""

    OFF = "off"  # plain training: no row reads another
    TWO_PASS = "two_pass"  # paper: (w, d), rows i .. i+d-1 of C_prev
    PACKED = "packed"  # one pass: w nearest own rows, then the d-1 nearest earlier rows of other documents
    SEGMENTS = "segments"  # LongLLaMA 3B/7B: (positives, negatives) per place in the pack
    CONSTANT_RANGE = "constant_range"  # authors' code: range r, optional stepping
    OWN_PAST = "own_past"  # d = 1: only the reader's own earlier chunks


class ContextGradients(enum.Enum):
    """Gradients into the contexts' keys and values. FLOW: crossbatch. STOPPED: the Memorizing Transformer's memory."""

    FLOW = "flow"
    STOPPED = "stopped"


class Boundaries(enum.Enum):
    """Attention across a document's end inside a chunk. MASKED: only to the own document. JOINED: to all."""

    MASKED = "masked"
    JOINED = "joined"


class DocumentEnd(enum.Enum):
    """The start of a new document. PAD: at a new chunk. PACK: right after the last document."""

    PAD = "pad"
    PACK = "pack"


class ScheduleKind(enum.Enum):
    """Schedules of d during training (FoT sec. 3.2, app. B.3, D)."""

    CONSTANT = "constant"
    SWITCH_AT_STEP = "switch_at_step"
    SWITCH_AT_ACCURACY = "switch_at_accuracy"
    RANDOM = "random"


class SourceKind(enum.Enum):
    """Kinds of document sources. AUTO: files of text, JSON lines, Parquet or TFRecord, each told by its name."""

    AUTO = "auto"
    STDLIB = "stdlib"
    JSONL = "jsonl"
    TEXT = "text"
    PARQUET = "parquet"
    TFRECORD = "tfrecord"
    DICTIONARY = "dictionary"
    PASSKEY = "passkey"


class VocabularyKind(enum.Enum):
    """Kinds of vocabulary. BYTES: 3 special ids and 256 bytes. SYMBOLS: synthetic ids, no text."""

    BYTES = "bytes"
    SENTENCEPIECE = "sentencepiece"
    HF_TOKENIZER = "hf_tokenizer"
    SYMBOLS = "symbols"


class OptimizerKind(enum.Enum):
    """Optimizers of the paper (ADAFACTOR) and of LongLLaMA (ADAMW)."""

    ADAMW = "adamw"
    ADAFACTOR = "adafactor"


class LearningRateKind(enum.Enum):
    """Schedules of the learning rate. INVERSE_SQRT: the paper's. CONSTANT: LongLLaMA's.

    COSINE falls to min_learning_rate; WSD does so in its last steps.
    """

    INVERSE_SQRT = "inverse_sqrt"
    CONSTANT = "constant"
    COSINE = "cosine"
    WSD = "wsd"  # warm-up, stable, decay


class LossMean(enum.Enum):
    """The mean of the training loss: over tokens that bear loss, or over the rows' own means (the authors' code)."""

    TOKENS = "tokens"
    ROWS = "rows"


class Trainable(enum.Enum):
    """The parameters that training changes: all, whole memory layers, or their attention and its norm."""

    ALL = "all"
    MEMORY_LAYERS = "memory_layers"
    MEMORY_ATTENTION = "memory_attention"


class MemoryDtype(enum.Enum):
    """Dtypes in which a memory is held. MODEL: that of the model's computations; INT8: a scale per entry and head."""

    MODEL = "model"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class Retrieval(enum.Enum):
    """Ways in which a layer reads its memory: all of it, or about its nearest entries (fot_jax/memory/views.py)."""

    DENSE = "dense"
    EXACT = "exact"
    APPROX = "approx"
    SCANN = "scann"


class LastContext(enum.Enum):
    """The length of an input's last window, which stays in the local cache (fot_jax/infer/windows.py).

    AT_LEAST: `last_context_length` tokens or more, so that an input is cut into the fewest windows. EXACT: that many,
    as in LongLLaMA's code; with 0 no token stays.
    """

    AT_LEAST = "at_least"
    EXACT = "exact"


class PastReading(enum.Enum):
    """Ways in which a model reads the text before a scored window, when perplexity is measured against context.

    MEMORY: window by window into the memory layers' memory. SLIDING: a window that slides, each token with
    about `local_context` others before it. FULL: ordinary attention over everything.
    """

    MEMORY = "memory"
    SLIDING = "sliding"
    FULL = "full"


class NeedleKind(enum.Enum):
    """Kinds of needle prompts (see `fot_jax/data/needles.py`)."""

    SINGLE = "single"
    MULTI_KEY = "multi_key"
    MULTI_VALUE = "multi_value"
    MULTI_QUERY = "multi_query"
    VARIABLE_TRACKING = "variable_tracking"
    COMMON_WORDS = "common_words"
