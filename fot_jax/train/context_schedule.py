"""The schedule of d, the number of contexts that a row reads at each step (FoT sec. 3.2, app. B.3, app. D)."""

import dataclasses
from typing import assert_never

import numpy as np

from fot_jax.config import ScheduleConfig, ScheduleKind

ACCURACY_DELAY = 2  # steps; the loop dispatches step t+1 before it knows the accuracy of step t


@dataclasses.dataclass(frozen=True)
class ContextSchedule:
    """The schedule of d: a pure function of (config, seed, step) and of the step at which the accuracy was reached.

        CONSTANT            d
        SWITCH_AT_STEP      before  for step < switch_step, then after     (paper: 2 → 64)
        SWITCH_AT_ACCURACY  before  until a step's training accuracy is >= switch_accuracy (dictionary: 1 → 128)
        RANDOM              drawn for each step from the choices           (fine-tuning: {2, 128})

    The step at which an accuracy switch takes effect is the only state; checkpoints hold it. It is always
    ACCURACY_DELAY steps after the accuracy was seen, so that a run that was stopped anywhere and resumed makes
    the same choices.

    Attributes:
      config: the schedule section of the experiment.
      seed: the experiment's seed.
    """

    config: ScheduleConfig
    seed: int

    def num_contexts(self, step: int, *, switch_step: int | None = None) -> int:
        """Returns the d of a step.

        Args:
          step: optimizer steps done before it (the first step is 0).
          switch_step: the last result of `observe`; used by SWITCH_AT_ACCURACY only.
        """
        choices = self.config.num_contexts
        match self.config.kind:
            case ScheduleKind.CONSTANT:
                return choices[0]
            case ScheduleKind.RANDOM:
                return choices[int(np.random.default_rng([self.seed, step]).integers(len(choices)))]
            case ScheduleKind.SWITCH_AT_STEP:
                return choices[int(step >= self.config.switch_step)]
            case ScheduleKind.SWITCH_AT_ACCURACY:
                return choices[int(switch_step is not None and step >= switch_step)]
            case unknown:
                assert_never(unknown)

    def observe(self, switch_step: int | None, *, step: int, accuracy: float) -> int | None:
        """Returns the step from which the accuracy switch holds, once the training accuracy of `step` is known."""
        if self.config.kind is not ScheduleKind.SWITCH_AT_ACCURACY or switch_step is not None:
            return switch_step
        return step + ACCURACY_DELAY if accuracy >= self.config.switch_accuracy else None

    @property
    def final(self) -> int:
        """The d of evaluation: the last of a switch, the largest of a random choice."""
        choices = self.config.num_contexts
        match self.config.kind:
            case ScheduleKind.RANDOM:
                return max(choices)
            case ScheduleKind.CONSTANT | ScheduleKind.SWITCH_AT_STEP | ScheduleKind.SWITCH_AT_ACCURACY:
                return choices[-1]
            case unknown:
                assert_never(unknown)
