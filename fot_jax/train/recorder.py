"""Checks, holds, writes and prints the metrics of each step."""

import contextlib
import logging
import math
from collections.abc import Callable
from pathlib import Path

import jax

from fot_jax import distributed
from fot_jax.config import ExperimentConfig
from fot_jax.train.context_schedule import ContextSchedule
from fot_jax.train.metrics import MetricsWriter, Speed, progress_line
from fot_jax.train.step import StepMetrics
from fot_jax.train.time_accounting import TimeAccount

logger = logging.getLogger(__name__)

MEANS = ("loss", "z_loss", "accuracy", "row_mean_loss")  # over a step's loss tokens; not written if there are none


class NonFiniteError(ArithmeticError):
    """The error of a metric that became NaN or infinite; the message names step and metric."""


class Recorder:
    """The metrics of the last dispatched step, held until the next one is dispatched.

    `begin` takes a step's metrics as device arrays; `finish` fetches them. It is called after the next dispatch,
    so that the device never waits for the host.

    Attributes:
      switch_step: the step from which the accuracy switch of d holds, None before it is known.
    """

    def __init__(
        self,
        workdir: Path,
        config: ExperimentConfig,
        *,
        schedule: ContextSchedule,
        step: int,
        switch_step: int | None,
        log: Callable[[str], None],
        time_account: TimeAccount,
        flops_per_token: Callable[[int], float],
    ) -> None:
        """Continues after `step` optimizer steps.

        Args:
          workdir: the folder of metrics.jsonl and tensorboard/, a local one.
          config: the experiment.
          schedule: the schedule of d; observes the accuracies.
          step: optimizer steps done.
          switch_step: the switch step in the checkpoint.
          log: prints a progress line.
          time_account: the time accounting, written with the metrics.
          flops_per_token: FLOPs of a training step per token, as a function of d.
        """
        self.switch_step = switch_step
        self._train = config.train
        self._schedule = schedule
        self._writer = MetricsWriter(workdir, step=step) if distributed.is_first() else None
        self._log = log
        self._account = time_account
        self._flops_per_token = flops_per_token
        self._speed = Speed(
            tokens_per_step=config.train.batch_rows * config.model.local_context, steps=config.train.steps
        )
        self._without_loss = 0  # steps
        self._pending: tuple[int, int, StepMetrics] | None = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        if self._without_loss > 1:
            self._log(
                f"{self._without_loss} steps had no token that bears loss: there are few documents for the streams"
            )
        if self._writer:
            # Rows that a full disk did not take are still buffered: closing would fail once more.
            with contextlib.suppress(*((OSError,) if kind else ())):
                self._writer.close()

    def begin(self, step: int, metrics: StepMetrics, *, num_contexts: int) -> None:
        """Takes the metrics of step `step`, counted from 1; they may still be computing."""
        assert self._pending is None, "finish() the step before"
        self._pending = (step, num_contexts, metrics)

    def finish(self, heldout: dict[str, float] | None = None) -> None:
        """Fetches, checks and writes the metrics that `begin` took; does nothing if that is done.

        Args:
          heldout: held-out metrics of the same step, written in the same row.

        Raises:
          NonFiniteError: a metric is NaN or infinite.
        """
        if self._pending is None:
            return
        (step, num_contexts, metrics), self._pending = self._pending, None
        fetched = jax.device_get(metrics)
        scalars = {name: float(value) for name, value in vars(fetched).items() if value is not None} | (heldout or {})
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"step {step}: {name} is {value}. Training stopped; no checkpoint was written after the last"
                    " good one. Lower optimizer.learning_rate or optimizer.clip_norm, or look at the data of this step."
                )
        if scalars["loss_tokens"]:
            self.switch_step = self._schedule.observe(self.switch_step, step=step - 1, accuracy=scalars["accuracy"])
        else:
            self._without_loss += 1
            if self._without_loss == 1:
                logger.warning("step %d: no token bore loss; a document that a batch holds twice bears none", step)
            scalars = {name: value for name, value in scalars.items() if name not in MEANS}
        self._speed.start(step)
        if heldout or step % self._train.log_every == 0 or step == self._train.steps:
            self._write(step, scalars | {"num_contexts": num_contexts})

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        tokens_per_second, seconds_left = self._speed.report(step)
        if math.isfinite(tokens_per_second):
            scalars["tokens_per_second"] = tokens_per_second
            if self._train.peak_tflops:
                flops = tokens_per_second * self._flops_per_token(int(scalars["num_contexts"]))
                scalars["model_flops_utilisation"] = flops / (self._train.peak_tflops * 1e12)
        if self._writer:
            self._writer.write(step, scalars | self._account.scalars())
        self._log(progress_line(step, scalars, steps=self._train.steps, seconds_left=seconds_left))
