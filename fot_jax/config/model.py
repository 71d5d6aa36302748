"""The decoder: family, sizes, rotary positions, memory layers."""

import dataclasses

from fot_jax.config.enums import AttentionBackend, Dtype, Family, Init, MemoryPositions, Remat, RopeScaling
from fot_jax.config.errors import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions; field names follow Hugging Face's `rope_scaling`.

    `original_context` is in tokens.
    """

    theta: float = 10000.0
    scaling: RopeScaling = RopeScaling.NONE
    factor: float = 1.0
    original_context: int = 2048
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range."""
        check(self.theta > 0, f"{path}.theta", "be > 0", self.theta)
        check(self.theta > 1 or self.scaling is not RopeScaling.YARN, f"{path}.theta", "be > 1 for yarn", self.theta)
        check(self.factor >= 1, f"{path}.factor", "be >= 1", self.factor)
        check(self.original_context >= 1, f"{path}.original_context", "be >= 1", self.original_context)
        low, high = (self.low_freq_factor, self.high_freq_factor)
        check(0 < low < high, f"{path}.low_freq_factor", f"be between 0 and high_freq_factor={high}", low)
        slow, fast = (self.beta_slow, self.beta_fast)
        check(0 < slow < fast, f"{path}.beta_slow", f"be between 0 and beta_fast={fast}", slow)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder-only language model.

    `memory_layers` are 0-based. `local_context` is the chunk/window length in tokens.
    """

    family: Family = Family.LLAMA
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    vocab_size: int
    local_context: int
    memory_layers: tuple[int, ...] = ()
    memory_positions: MemoryPositions = MemoryPositions.ROPE0
    memory_gate: bool = False  # the Memorizing Transformer's gate, for the baseline
    smear_keys: bool = False  # each key mixes in the one before it: copying needs one layer, not two
    init: Init = Init.NORMAL
    rope: RopeConfig = RopeConfig()
    tie_embeddings: bool = False
    norm_epsilon: float = 1e-6
    dtype: Dtype = Dtype.FLOAT32
    attention: AttentionBackend = AttentionBackend.BLOCKWISE
    attention_block: int = 512  # keys per block, tokens; the whole chunk when it is shorter
    remat: Remat = Remat.NONE
    scan_layers: bool = True

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value or a pair of values cannot work."""
        for name in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "local_context"):
            check(getattr(self, name) >= 1, f"{path}.{name}", "be >= 1", getattr(self, name))
        check(self.vocab_size >= 2, f"{path}.vocab_size", "be >= 2", self.vocab_size)
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"{path}.num_heads",
            f"be a multiple of num_kv_heads={self.num_kv_heads}",
            self.num_heads,
        )
        check(self.head_dim % 2 == 0, f"{path}.head_dim", "be even (RoPE rotates pairs)", self.head_dim)
        stretched = self.rope.scaling is RopeScaling.DYNAMIC
        check(self.head_dim > 2 or not stretched, f"{path}.head_dim", "be > 2 for dynamic scaling", self.head_dim)
        check(self.attention_block >= 1, f"{path}.attention_block", "be >= 1", self.attention_block)
        layers = self.memory_layers
        check(
            len(set(layers)) == len(layers) and list(layers) == sorted(layers),
            f"{path}.memory_layers",
            "be sorted and without repeats",
            layers,
        )
        check(
            all(0 <= layer < self.num_layers for layer in layers),
            f"{path}.memory_layers",
            f"be in 0..{self.num_layers - 1} (layers count from 0)",
            layers,
        )
        check(self.norm_epsilon > 0, f"{path}.norm_epsilon", "be above 0", self.norm_epsilon)
        self.rope.validate(f"{path}.rope")
