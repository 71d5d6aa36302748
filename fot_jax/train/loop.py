"""The training run: set up, resume, step, and every cadence one visible `if`."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fot_jax import checkpoint, distributed
from fot_jax import workdir as run_folder
from fot_jax.config import ExperimentConfig, PlanKind, UserError
from fot_jax.data.batches import Stream
from fot_jax.data.streams import make_stream
from fot_jax.data.survey import check_data
from fot_jax.models import account
from fot_jax.ops.backends.choose import check_platform
from fot_jax.ops.distributed import ring_schedule
from fot_jax.ops.plans import make_plan
from fot_jax.sharding import batch_sharding, make_mesh, replicated
from fot_jax.storage.access import check_access
from fot_jax.storage.lease import LEASE_SECONDS, end_process
from fot_jax.storage.mirror import OutputFolder
from fot_jax.storage.paths import StoragePath, storage_path
from fot_jax.train import state as train_state
from fot_jax.train.context_schedule import ContextSchedule
from fot_jax.train.metrics import METRICS
from fot_jax.train.plan_notice import plan_notice, unseen_notice
from fot_jax.train.prefetch import Prefetcher
from fot_jax.train.profile import Profile, ProfileSteps
from fot_jax.train.recorder import Recorder
from fot_jax.train.saver import Saver, storage_errors_in_one_line
from fot_jax.train.step import check_batch, crossbatch_ring, make_eval_step, make_train_step
from fot_jax.train.stop_signal import StopSignal
from fot_jax.train.time_accounting import Part, TimeAccount
from fot_jax.types import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run.

    Attributes:
      step: optimizer steps done.
      stopped: True if a signal ended it early; everything is saved then.
      interrupted: True if that signal was SIGINT (Ctrl-C).
    """

    step: int
    stopped: bool
    interrupted: bool = False


def train(
    config: ExperimentConfig,
    *,
    workdir: str | os.PathLike[str],
    allow_changes: Collection[str] = (),
    devices: list[jax.Device] | None = None,
    log: Callable[[str], None] = print,
    profile: ProfileSteps | None = None,
    lease_seconds: float = LEASE_SECONDS,
    lost: Callable[[str], object] = end_process,
) -> Outcome:
    """Trains to `train.steps`, continuing from the newest checkpoint in the folder if there is one.

    A run that was stopped or killed anywhere and resumed gives the same losses, bit for bit, as one that was
    not: the batch, d and the learning rate are functions of (seed, step), and the checkpoint holds the rest.
    On SIGTERM and SIGINT it finishes the current step, saves and returns (`StopSignal`).
    Every process of a run (`fot_jax.distributed`) calls this with a folder that all share; the first one writes
    metrics and prints.

    Args:
      config: the experiment.
      workdir: the run's folder, which may be in a bucket: config.json, checkpoints/, metrics.jsonl, tensorboard/.
      allow_changes: config paths that may differ from the run already there.
      devices: the devices of the mesh; None: all.
      log: prints one line of progress.
      profile: the steps to trace; None: no trace.
      lease_seconds: in a bucket, how long the lock of the run outlives a killed process.
      lost: called with one line when another process takes that lock; by default ends this process.

    Raises:
      UserError: the folder belongs to another config, or another process trains in it; an unreadable checkpoint,
        an indivisible mesh, unusable or changed data, a checkpoint that could not be saved, a full disk.
      KeyboardInterrupt: SIGINT came before the first step was done.
      NonFiniteError: a metric became NaN or infinite; the last good checkpoint stays.
    """
    folder = storage_path(workdir)
    log = log if distributed.is_first() else _log_nothing
    mesh = make_mesh(config.mesh, devices)
    rows = config.train.batch_rows // config.train.accumulation
    check_batch(config, mesh)
    check_platform(config.model.attention, mesh.devices.flat[0].platform)
    abstract = train_state.abstract_state(config, mesh)
    check_access(folder)  # fail before the data takes minutes
    run_folder.compare_config(folder, config, allow_changes=allow_changes)
    if (notice := plan_notice(config)) is not None:
        log(f"note: {notice}")
    check_data(config)  # what can be told without tokens, before tokenising takes minutes
    stream = make_stream(config, "train")
    distributed.check_agreement("data.sources' tokens", repr(sorted(stream.digests.items())))
    evaluate = _make_evaluate(config, mesh) if config.train.eval_every else None
    schedule = ContextSchedule(config.crossbatch.schedule, config.seed)
    plans = functools.cache(functools.partial(_plan, config, mesh, rows))
    train_step = make_train_step(config, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors_in_one_line(folder))
        time_account = stack.enter_context(TimeAccount())
        lease = stack.enter_context(run_folder.only_writer(folder, lease_seconds=lease_seconds, lost=lost))
        for line in run_folder.compare_config(folder, config, allow_changes=allow_changes):
            log(f"config changed: {line}")
        stop = stack.enter_context(StopSignal())
        checkpoints = stack.enter_context(checkpoint.Checkpointer(folder, config))
        start = checkpoints.latest_step() or 0
        distributed.check_agreement("the newest checkpoints", str(start))
        if start > config.train.steps:
            raise UserError(f"train.steps must be at least the {start} done in {folder}, got {config.train.steps}.")
        state, position = _restore(checkpoints, start, abstract) if start else _initial_state(config, mesh)
        for line in _changed_documents(position, stream.digests, folder, allow_changes):
            log(line)
        if distributed.is_first():
            run_folder.write_config(folder, config)  # only now: all that the config asks for is there
            run_folder.keep_vocabulary(folder, config)
            if config.train.init_from:
                run_folder.inherit_source(folder, config.train.init_from)
        log(train_state.parameter_table(config))
        log(f"resumed after step {start}" if start else f"new run in {folder}")
        for line in _notices(config, mesh, stream, start=start, final=schedule.final, plans=plans):
            log(line)
        outputs = stack.enter_context(OutputFolder(folder, lease=lease, fetch=[METRICS]))
        recorder = stack.enter_context(
            Recorder(
                outputs.local,
                config,
                schedule=schedule,
                step=start,
                switch_step=position["switch_step"],
                log=log,
                time_account=time_account,
                flops_per_token=functools.cache(functools.partial(_flops_per_token, config, rows)),
            )
        )
        load = functools.partial(_load, stream, mesh, config.train.batch_rows)
        batches = stack.enter_context(Prefetcher(load, stop=config.train.steps))
        trace = stack.enter_context(Profile(folder, profile, local=outputs.local, log=log))

        resumed_from = {"step": start, "documents": stream.digests}
        saver = Saver(checkpoints, config, **resumed_from, time_account=time_account, before=outputs.flush)
        done = start
        for step in range(start, config.train.steps):
            if stop.reached(step):
                break
            checkpoints.check()  # a save that has failed meanwhile ends the run here
            trace.before(step + 1, wait=recorder.finish)
            num_contexts = schedule.num_contexts(step, switch_step=recorder.switch_step)
            with time_account.charge(Part.DATA_WAIT):
                batch = batches.take(step)
            with _jax_guards(), trace.step(step + 1):
                state, metrics = train_step(state, batch, plans(num_contexts))
            recorder.finish()  # the step before, while this one computes
            recorder.begin(step + 1, metrics, num_contexts=num_contexts)
            done, stop.begun = step + 1, True
            heldout = None
            if evaluate and (saver.due(done) or done % config.train.eval_every == 0):
                with time_account.charge(Part.EVALUATION):
                    heldout = evaluate(state.params, plans(schedule.final))
                recorder.finish(heldout)
            if saver.due(done):
                recorder.finish()  # nothing is saved before its metrics are known to be finite
                saver.save(done, state, switch_step=recorder.switch_step, heldout=heldout)
        recorder.finish()
        if done > saver.saved:
            saver.save(done, state, switch_step=recorder.switch_step)
        saver.wait()
        log(time_account.summary())
    stopped = stop.requested and done < config.train.steps
    if stopped:
        log(f"stopped by {stop.name} after step {done}, nothing is lost: the same command goes on from there")
    return Outcome(step=done, stopped=stopped, interrupted=stopped and stop.interrupted)


def _initial_state(config: ExperimentConfig, mesh: jax.sharding.Mesh) -> tuple[train_state.TrainState, dict]:
    """Returns the state before the first step, and the data position of a new run."""
    first = checkpoint.load_params(config.train.init_from)[1] if config.train.init_from else None
    return train_state.create_state(config, mesh, params=first), {"switch_step": None}


def _restore(checkpoints: checkpoint.Checkpointer, step: int, abstract: train_state.TrainState) -> tuple[Any, dict]:
    """Restores the state after `step` optimizer steps, and the data position saved with it."""
    params, opt_state, data = checkpoints.restore(step, params=abstract.params, optimizer=abstract.opt_state)
    number = distributed.put(np.asarray(step, np.int32), abstract.step.sharding)
    return train_state.TrainState(step=number, params=params, opt_state=opt_state), data


def _changed_documents(
    position: dict, digests: dict[str, str], folder: StoragePath, allow_changes: Collection[str]
) -> list[str]:
    """Returns a line for each source whose tokens differ from those trained on. Raises UserError unless allowed."""
    saved = position.get("documents", {})
    changed = [name for name, digest in digests.items() if saved.get(name, digest) != digest]
    if changed and not any(run_folder.allows(name, run_folder.DOCUMENTS) for name in allow_changes):
        raise UserError(
            f"data.sources {changed} must give the tokens that {folder} was trained on, got others: files, the"
            " vocabulary or the split of copies changed. Put them back, use another --workdir,"
            f" or go on with --allow-change={run_folder.DOCUMENTS}"
        )
    return [f"documents changed: {name}" for name in changed]


@contextlib.contextmanager
def _jax_guards() -> Iterator[None]:
    """Holds JAX's guards: no implicit transfer between host and device, no implicit rank promotion."""
    with jax.transfer_guard("disallow"), jax.numpy_rank_promotion("raise"):
        yield


def _load(stream: Stream, mesh: Mesh, rows: int, step: int) -> Any:
    """Loads the batch of a step onto the devices; each process makes only its own rows."""
    sharding = batch_sharding(mesh)
    parts = [stream.batch(step, rows=span) for span in distributed.local_rows(sharding, rows)]
    return distributed.put_rows(parts, sharding, rows=rows)


def _log_nothing(line: str) -> None:
    del line  # the first process prints it


def _plan(config: ExperimentConfig, mesh: Mesh, rows: int, num_contexts: int) -> Plan | None:
    """Returns the plan of a micro-batch of `rows` rows, on the devices; None for plain training."""
    if config.crossbatch.plan is PlanKind.OFF:
        return None
    plan = make_plan(config.crossbatch, batch_rows=rows, num_contexts=num_contexts)
    return distributed.put(plan, replicated(mesh))


def _notices(
    config: ExperimentConfig, mesh: Mesh, stream: Stream, *, start: int, final: int, plans: Callable[[int], Plan | None]
) -> list[str]:
    """Returns lines about crossbatch, printed before the first step: how rows travel, and contexts that are masked."""
    lines = _ring_lines(config, mesh, plans(final))
    if distributed.is_first() and config.crossbatch.plan is not PlanKind.OFF:
        notice = unseen_notice(config, stream.batch(start), num_contexts=final)
        lines += [] if notice is None else [f"note: {notice}"]
    return lines


def _ring_lines(config: ExperimentConfig, mesh: Mesh, plan: Plan | None) -> list[str]:
    """Returns a line on how the plan's rows travel between devices; no line where they do not."""
    ring = None if plan is None else crossbatch_ring(config, mesh, columns=plan.context_ids.shape[1])
    if ring is None:
        return []
    model = config.model
    row_bytes = 2 * model.local_context * model.num_kv_heads * model.head_dim * model.dtype.itemsize
    return [ring_schedule.describe(ring, row_bytes=row_bytes)]


def _flops_per_token(config: ExperimentConfig, rows: int, num_contexts: int) -> float:
    """Returns the model FLOPs of a training step per token (without what remat computes again)."""
    plan = make_plan(config.crossbatch, batch_rows=rows, num_contexts=num_contexts)
    return account.flops_per_token(config.model, contexts_per_row=account.mean_contexts(plan)).train


def _make_evaluate(config: ExperimentConfig, mesh: Mesh) -> Callable[[Any, Plan | None], dict[str, float]]:
    """Returns a function that measures held-out loss and accuracy, over the same `train.eval_batches` batches."""
    stream = make_stream(config, "heldout")
    if not any(stream.batch(index).loss_mask.any() for index in range(config.train.eval_batches)):
        raise UserError(
            "train.eval_batches must hold tokens that bear loss, got none: the held-out documents are so few that"
            " every batch reads each of them twice. Give more documents, raise data.heldout_fraction, lower"
            " train.batch_rows or crossbatch.packing, or set train.eval_every=0."
        )
    eval_step = make_eval_step(config, mesh)

    def evaluate(params: Any, plan: Plan | None) -> dict[str, float]:
        totals = np.zeros(3)
        for index in range(config.train.eval_batches):
            batch = _load(stream, mesh, config.train.batch_rows, index)
            with _jax_guards():
                sums = eval_step(params, batch, plan)
            # One batch in flight: a mesh of CPU devices may hang with many.
            totals += jax.device_get((sums.cross_entropy, sums.correct, sums.weight))
        loss, correct, weight = totals
        return {"heldout_loss": loss / weight, "heldout_accuracy": correct / weight}

    return evaluate
