"""A whole experiment, its inference and evaluation, and the checks between sections."""

import dataclasses
import functools
import re

from fot_jax.config.crossbatch import CrossbatchConfig
from fot_jax.config.data import DataConfig
from fot_jax.config.enums import LastContext, MemoryDtype, NeedleKind, PastReading, PlanKind, Retrieval, Trainable
from fot_jax.config.errors import check, check_all
from fot_jax.config.model import ModelConfig
from fot_jax.config.train import MeshConfig, OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """External memory at inference (FoT sec. 3.1). `budget` is in entries per layer, head and stream."""

    retrieval: Retrieval = Retrieval.EXACT
    top_k: int = 128
    approx_recall: float = 0.95  # share of the top_k that `approx` is meant to find on TPUs; elsewhere it finds all
    budget: int = 0  # 0: unbounded
    dtype: MemoryDtype = MemoryDtype.MODEL  # in which entries are held: less memory, at an error (docs/memory.md)
    last_context: LastContext = LastContext.AT_LEAST  # may the last window hold more tokens than the next line says?
    last_context_length: int = 0  # tokens of the last window, which stays local; 0: half a window or more (exact: none)
    overlap: int = 0  # newest tokens of a window that the next one, unless it is the last, reads again; 0: none
    log_length_scaling_from: int = 0  # queries grow as log n beyond this many visible entries; 0: never
    scann_brute_force_below: int = 16384  # entries; a shorter memory is read exactly, on the device
    scann_leaves_fraction: float = 0.1

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range."""
        check(self.top_k >= 1, f"{path}.top_k", "be >= 1", self.top_k)
        check(0 < self.approx_recall <= 1, f"{path}.approx_recall", "be in (0, 1]", self.approx_recall)
        check(self.budget >= 0, f"{path}.budget", "be >= 0 (0: unbounded)", self.budget)
        check(self.last_context_length >= 0, f"{path}.last_context_length", "be >= 0", self.last_context_length)
        check(self.overlap >= 0, f"{path}.overlap", "be >= 0", self.overlap)
        start = self.log_length_scaling_from
        check(start == 0 or start >= 2, f"{path}.log_length_scaling_from", "be 0 (never) or >= 2", start)
        below, fraction = self.scann_brute_force_below, self.scann_leaves_fraction
        check(below >= 0, f"{path}.scann_brute_force_below", "be >= 0 (below 64: as 64)", below)
        check(0 < fraction <= 1, f"{path}.scann_leaves_fraction", "be in (0, 1]", fraction)

    def validate_window(self, path: str, local_context: int) -> None:
        """Raises ConfigError where windows of `local_context` tokens do not fit overlap, last window or scaling.

        An overlap is at most half of a window, the last window at most a whole one, and `log_length_scaling_from` must
        not scale queries that see only a local context.
        """
        half, last = local_context // 2, self.last_context_length
        check(self.overlap <= half, f"{path}.overlap", f"be at most half of the local context, {half}", self.overlap)
        allowed = f"be at most the local context, {local_context}"
        check(last <= local_context, f"{path}.last_context_length", allowed, last)
        allowed = f"be 0 (never) or at least the local context, {local_context}"
        start = self.log_length_scaling_from
        check(start == 0 or start >= local_context, f"{path}.log_length_scaling_from", allowed, start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The measurements of `launch.evaluate` and the demo; lengths in tokens unless a comment says otherwise."""

    window: int = 0  # local context while measured; 0: the model's
    memory_contexts: tuple[int, ...] = (0, 1, 2, 4, 8, 16)  # memory size, in local contexts
    reading: PastReading = PastReading.MEMORY  # how this model reads, in --task=context
    context_windows: tuple[int, ...] = (1, 4, 16, 64)  # context in windows, the scored one included
    documents: int = 8
    target_chunks: int = 2  # scored chunks per document
    distraction_contexts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    dictionary_tokens: tuple[int, ...] = (256, 1024, 4096)
    dictionary_episodes: int = 8
    passkey_tokens: tuple[int, ...] = (1024, 4096, 16384)  # prompt lengths
    passkey_trials: tuple[int, ...] = (20,)  # prompts of each length; one number serves all lengths
    passkey_batch: int = 4  # prompts read in one batch
    needle_kinds: tuple[NeedleKind, ...] = tuple(NeedleKind)
    needle_tokens: tuple[int, ...] = (1024, 4096, 16384)  # prompt lengths
    needle_trials: int = 20  # prompts a kind and length
    needle_batch: int = 4  # prompts read in one batch

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range or a list is empty."""
        check(self.window >= 0, f"{path}.window", "be >= 0 (0: the model's local_context)", self.window)
        counts = ("documents", "target_chunks", "dictionary_episodes")
        for name in (*counts, "passkey_batch", "needle_trials", "needle_batch"):
            check(getattr(self, name) >= 1, f"{path}.{name}", "be >= 1", getattr(self, name))
        for name, least in (
            ("memory_contexts", 0),
            ("context_windows", 1),
            ("distraction_contexts", 1),
            ("dictionary_tokens", 1),
            ("passkey_tokens", 1),
            ("passkey_trials", 1),
            ("needle_tokens", 1),
        ):
            values = getattr(self, name)
            check(min(values, default=-1) >= least, f"{path}.{name}", f"be integers >= {least}", values)
            once = name == "passkey_trials" or len(values) == len(set(values))
            check(once, f"{path}.{name}", "name no number twice", values)
        kinds = [kind.value for kind in self.needle_kinds]
        distinct = 0 < len(kinds) == len(set(kinds))
        check(distinct, f"{path}.needle_kinds", "name at least one kind and none twice", kinds)
        lengths, trials = len(self.passkey_tokens), self.passkey_trials
        check(
            len(trials) in (1, lengths),
            f"{path}.passkey_trials",
            f"hold one number, or one for each of the {lengths} passkey_tokens",
            trials,
        )

    @property
    def passkey_lengths(self) -> dict[int, int]:
        """The mapping of prompt length -> number of prompts of that length."""
        trials = self.passkey_trials
        return dict(
            zip(self.passkey_tokens, trials * len(self.passkey_tokens) if len(trials) == 1 else trials, strict=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole experiment."""

    name: str
    seed: int = 0
    model: ModelConfig
    crossbatch: CrossbatchConfig = CrossbatchConfig()
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()
    memory: MemoryConfig = MemoryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def validate(self) -> None:
        """Checks every section, then what must hold between sections.

        Raises ConfigError with the first error of each section, or else the first error of each check between them.
        """
        sections = ("model", "crossbatch", "data", "optimizer", "train", "mesh", "memory", "evaluation")
        check_all(self._validate_name, *(functools.partial(getattr(self, name).validate, name) for name in sections))
        check_all(
            self._validate_decay,
            self._validate_log_length_scaling,
            self._validate_rows,
            self._validate_memory_layers,
            self._validate_last_context,
        )

    def _validate_name(self) -> None:
        check(
            bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name)),
            "name",
            "be letters, digits, '_', '-' and '.', as it names the run's folder",
            self.name,
        )
        check(self.seed >= 0, "seed", "be >= 0", self.seed)

    def _validate_decay(self) -> None:
        room = self.train.steps - self.optimizer.warmup_steps
        decay = self.optimizer.decay_steps
        check(
            decay <= max(room, 0),
            "optimizer.decay_steps",
            f"be at most train.steps - optimizer.warmup_steps = {room}",
            decay,
        )

    def _validate_memory_layers(self) -> None:
        check(
            self.crossbatch.plan is PlanKind.OFF or bool(self.model.memory_layers),
            "model.memory_layers",
            "name at least one layer when crossbatch.plan is not 'off'",
            self.model.memory_layers,
        )
        trainable = self.train.trainable
        check(
            trainable is Trainable.ALL or bool(self.model.memory_layers),
            "model.memory_layers",
            f"name at least one layer when train.trainable is '{trainable.value}'",
            self.model.memory_layers,
        )

    def _validate_last_context(self) -> None:
        check(
            self.memory.last_context_length <= self.model.local_context,
            "memory.last_context_length",
            f"be at most model.local_context={self.model.local_context}",
            self.memory.last_context_length,
        )

    def _validate_rows(self) -> None:
        """Raises ConfigError where a batch or micro-batch is not a whole number of streams, or has too few of them."""
        rows = self.train.batch_rows
        per_stream = self.crossbatch.rows_per_stream
        plan = self.crossbatch.plan.value
        check(
            rows % per_stream == 0,
            "train.batch_rows",
            f"be a multiple of {per_stream}, the rows one stream fills under crossbatch.plan='{plan}'",
            rows,
        )
        check(
            rows % self.train.accumulation == 0 and (rows // self.train.accumulation) % per_stream == 0,
            "train.accumulation",
            f"divide the {rows // per_stream} streams of a batch",
            self.train.accumulation,
        )
        if self.crossbatch.plan is PlanKind.TWO_PASS:
            streams = rows // self.train.accumulation // per_stream
            most = max(self.crossbatch.schedule.num_contexts)
            check(
                most <= streams,
                "crossbatch.schedule.num_contexts",
                f"be at most the {streams} streams of a micro-batch (batch_rows / {per_stream} / accumulation)",
                most,
                "Raise train.batch_rows or lower d.",
            )

    def _validate_log_length_scaling(self) -> None:
        """Raises ConfigError where training would scale queries by another rule than reading, or without contexts."""
        trained, read = self.crossbatch.log_length_scaling_from, self.memory.log_length_scaling_from
        check(
            trained in (0, read),
            "crossbatch.log_length_scaling_from",
            f"be 0 (never) or that of reading, memory.log_length_scaling_from, which is {read}",
            trained,
            "Set both to the same number.",
        )
        if trained:
            self.memory.validate_window("memory", self.model.local_context)
