"""Optimizer, training run and mesh."""

import dataclasses

from fot_jax.config.enums import LearningRateKind, LossMean, OptimizerKind, Trainable
from fot_jax.config.errors import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning rate; warm-up and decay lengths in optimizer steps.

    AdamW's weight decay is scaled by the learning rate and skips norms, temperatures and gates.
    """

    kind: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float
    min_learning_rate: float = 0.0
    schedule: LearningRateKind = LearningRateKind.CONSTANT
    warmup_steps: int = 0
    decay_steps: int = 0  # WSD only: the last steps of the run
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0  # 0: no clipping

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range."""
        check(self.learning_rate > 0, f"{path}.learning_rate", "be > 0", self.learning_rate)
        check(
            0 <= self.min_learning_rate <= self.learning_rate,
            f"{path}.min_learning_rate",
            f"be in [0, learning_rate={self.learning_rate}]",
            self.min_learning_rate,
        )
        check(self.warmup_steps >= 0, f"{path}.warmup_steps", "be >= 0", self.warmup_steps)
        wsd, decay = self.schedule is LearningRateKind.WSD, self.decay_steps
        check(
            decay >= 1 if wsd else decay == 0,
            f"{path}.decay_steps",
            "be >= 1 with schedule='wsd' and 0 with any other",
            decay,
        )
        check(self.clip_norm >= 0, f"{path}.clip_norm", "be >= 0 (0: no clipping)", self.clip_norm)
        check(self.weight_decay >= 0, f"{path}.weight_decay", "be >= 0", self.weight_decay)
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, f"{path}.{name}", "be in [0, 1)", getattr(self, name))
        check(self.epsilon > 0, f"{path}.epsilon", "be > 0", self.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training run. `batch_rows` counts all rows of a step (in two-pass form C_prev's too).

    Cadences are in optimizer steps; 0 turns one off. `accumulation` micro-batches make a step.
    """

    steps: int
    batch_rows: int
    accumulation: int = 1
    init_from: str = ""  # a run's folder, to start from its newest parameters; "": fresh ones
    trainable: Trainable = Trainable.ALL
    loss_mean: LossMean = LossMean.TOKENS
    z_loss: float = 0.0
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 4
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    keep_best: bool = True
    peak_tflops: float = 0.0  # of all devices together; 0: unknown, no utilisation is printed

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range."""
        for name in (
            "steps",
            "batch_rows",
            "accumulation",
            "log_every",
            "eval_batches",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            check(getattr(self, name) >= 1, f"{path}.{name}", "be >= 1", getattr(self, name))
        check(self.eval_every >= 0, f"{path}.eval_every", "be >= 0", self.eval_every)
        check(self.z_loss >= 0, f"{path}.z_loss", "be >= 0", self.z_loss)
        check(self.peak_tflops >= 0, f"{path}.peak_tflops", "be >= 0 (0: unknown)", self.peak_tflops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices per mesh axis; -1 for `data` takes all that remain.

    `data` and `fsdp` split rows, `context` the positions of a row, `tensor` heads, mlp and vocabulary. `fsdp` and
    `tensor` split parameters. The data centre's network joins the `slices` of a TPU, along `data`.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    slices: int = 1

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range."""
        check(self.data >= 1 or self.data == -1, f"{path}.data", "be >= 1 or -1 (all that remain)", self.data)
        for name in ("fsdp", "context", "tensor", "slices"):
            check(getattr(self, name) >= 1, f"{path}.{name}", "be >= 1", getattr(self, name))
