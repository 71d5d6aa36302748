"""Crossbatch training: which row reads which, and the schedule of d (FoT sec. 3.2, app. B.3)."""

import dataclasses
from typing import assert_never

from fot_jax.config.enums import Boundaries, ContextGradients, PlanKind, ScheduleKind
from fot_jax.config.errors import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The schedule of d, by which a plan sets how many contexts a row reads; each `PlanKind` says what d counts.

    `num_contexts` holds one d (CONSTANT), the d before and after (SWITCH_*), or the choices
    (RANDOM). `switch_step` counts optimizer steps; `switch_accuracy` is a training accuracy.
    """

    kind: ScheduleKind = ScheduleKind.CONSTANT
    num_contexts: tuple[int, ...] = (1,)
    switch_step: int = 0
    switch_accuracy: float = 0.98

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range or the counts do not fit the kind."""
        ds = self.num_contexts
        check(len(ds) >= 1 and min(ds) >= 1, f"{path}.num_contexts", "be one or more integers >= 1", ds)
        if self.kind is ScheduleKind.CONSTANT:
            check(len(ds) == 1, f"{path}.num_contexts", "hold one value when kind is 'constant'", ds)
        if self.kind in (ScheduleKind.SWITCH_AT_STEP, ScheduleKind.SWITCH_AT_ACCURACY):
            check(len(ds) == 2, f"{path}.num_contexts", "hold two values (before, after) when kind is 'switch_*'", ds)
        check(0 < self.switch_accuracy <= 1, f"{path}.switch_accuracy", "be in (0, 1]", self.switch_accuracy)
        check(self.switch_step >= 0, f"{path}.switch_step", "be >= 0", self.switch_step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossbatchConfig:
    """Crossbatch training (FoT sec. 3.2, app. B.3).

    `previous_chunks` is the paper's w. `packing` is LongLLaMA's k: consecutive chunks of one
    document in consecutive rows. `segments` holds (positives, negatives) that place j of a pack reads.
    """

    plan: PlanKind = PlanKind.OFF
    previous_chunks: int = 1
    packing: int = 1
    schedule: ScheduleConfig = ScheduleConfig()
    segments: tuple[tuple[int, int], ...] = ()
    stepping: bool = True  # CONSTANT_RANGE only; ignored without packing, as in the authors' code
    boundaries: Boundaries = Boundaries.MASKED
    gradients: ContextGradients = ContextGradients.FLOW
    loss_on_previous: bool = False
    log_length_scaling_from: int = 0  # as memory.log_length_scaling_from, of visible keys; 0: never

    @property
    def rows_per_stream(self) -> int:
        """The number of batch rows that one stream of documents fills in a step."""
        match self.plan:
            case PlanKind.OFF:
                return 1
            case PlanKind.TWO_PASS:
                return self.previous_chunks + 1
            case PlanKind.PACKED | PlanKind.SEGMENTS | PlanKind.CONSTANT_RANGE | PlanKind.OWN_PAST:
                return self.packing
            case unknown:
                assert_never(unknown)

    @property
    def chunks_per_step(self) -> int:
        """The number of chunks by which a stream advances in a step (two-pass re-reads C_prev)."""
        return 1 if self.plan is PlanKind.TWO_PASS else self.rows_per_stream

    @property
    def uses_num_contexts(self) -> bool:
        """Whether the plan depends on d."""
        match self.plan:
            case PlanKind.TWO_PASS | PlanKind.PACKED | PlanKind.CONSTANT_RANGE:
                return True
            case PlanKind.OFF | PlanKind.SEGMENTS | PlanKind.OWN_PAST:
                return False
            case unknown:
                assert_never(unknown)

    def loss_rows(self, batch_rows: int) -> int:
        """Returns the number of rows that bear loss: all but C_prev's in two-pass plans without `loss_on_previous`."""
        if self.plan is PlanKind.TWO_PASS and not self.loss_on_previous:
            return batch_rows // self.rows_per_stream
        return batch_rows

    def validate(self, path: str) -> None:
        """Raises ConfigError where the plan's own fields do not fit it."""
        check(self.previous_chunks >= 1, f"{path}.previous_chunks", "be >= 1", self.previous_chunks)
        check(self.packing >= 1, f"{path}.packing", "be >= 1", self.packing)
        self.schedule.validate(f"{path}.schedule")
        if self.plan in (PlanKind.PACKED, PlanKind.SEGMENTS, PlanKind.OWN_PAST):
            check(self.packing >= 2, f"{path}.packing", f"be >= 2 for plan '{self.plan.value}'", self.packing)
        if self.plan is PlanKind.SEGMENTS:
            check(
                len(self.segments) == self.packing and all(p <= j for j, (p, _) in enumerate(self.segments)),
                f"{path}.segments",
                f"hold packing={self.packing} pairs (positives, negatives) with at most j positives at place j",
                self.segments,
            )
            check(
                self.schedule.kind is ScheduleKind.CONSTANT,
                f"{path}.schedule.kind",
                "be 'constant': segments fix the counts",
                self.schedule.kind.value,
            )
