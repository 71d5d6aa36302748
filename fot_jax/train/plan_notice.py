"""Notices, one line each, of plans without contexts, without negatives, or with contexts that no query sees."""

import numpy as np

from fot_jax.config import Boundaries, ContextGradients, CrossbatchConfig, ExperimentConfig, PlanKind, ScheduleKind
from fot_jax.ops.plans import make_plan
from fot_jax.types import Batch, Plan


def plan_notice(config: ExperimentConfig) -> str | None:
    """Returns a line about contexts that the plan's tables lack; None if they have all that their kind needs.

    Looks at the table of every d of the schedule, as training makes it, not at names and defaults of the config.
    OWN_PAST, and training with stopped gradients (the Memorizing Transformer's memory), need no other documents.
    """
    crossbatch = config.crossbatch
    if crossbatch.plan is PlanKind.OFF:
        return None
    rows = config.train.batch_rows // config.train.accumulation
    counts = {d: _counts(make_plan(crossbatch, batch_rows=rows, num_contexts=d)) for d in _contexts(crossbatch)}
    plan, fix = f"crossbatch.plan '{crossbatch.plan.value}'", _advice(crossbatch)
    empty = [d for d, (own, other) in counts.items() if own + other == 0]
    if empty:
        return f"{plan} has no contexts{_at_d(empty, crossbatch)}: training is plain, as with 'off'. {fix}."
    own_past = crossbatch.plan is PlanKind.OWN_PAST or crossbatch.gradients is ContextGradients.STOPPED
    alone = [] if own_past else [d for d, (_, other) in counts.items() if other == 0]
    if alone:
        return (
            f"{plan} has no negatives{_at_d(alone, crossbatch)}: rows read earlier chunks of their own document alone,"
            f" as with 'own_past'. {fix}, if others are meant."
        )
    lonely = [d for d, (own, _) in counts.items() if own == 0]
    if lonely:
        return (
            f"{plan} has no positives{_at_d(lonely, crossbatch)}: no row reads an earlier chunk of its own document."
            " Raise crossbatch.packing."
        )
    return None


def unseen_notice(config: ExperimentConfig, batch: Batch, *, num_contexts: int) -> str | None:
    """Returns a line if a plan has contexts but no query of a batch sees any of their keys; else None.

    This happens with documents no longer than a row: the earlier chunk of the reader's own stream belongs to another
    document and is masked.

    Args:
      config: the experiment.
      batch: a whole batch, numpy arrays.
      num_contexts: d.
    """
    crossbatch = config.crossbatch
    if crossbatch.plan is PlanKind.OFF:
        return None
    pieces = _micro_batch_segments(config, np.asarray(batch.segments))
    plan = make_plan(crossbatch, batch_rows=pieces.shape[1], num_contexts=num_contexts)
    filled = list(zip(*np.nonzero(plan.context_ids >= 0), strict=True))
    for segments in pieces:
        for row, slot in filled:
            queries, keys = _documents(segments[row]), _documents(segments[plan.context_ids[row, slot]])
            if _sees(queries, keys, own=plan.own_document[row, slot], boundaries=crossbatch.boundaries):
                return None
    if not filled:
        return None  # plan_notice reports this
    return (
        f"crossbatch.plan '{crossbatch.plan.value}': no query sees a key of its contexts in the first batch, every one"
        " is masked. Take longer documents, shorter rows, or data.document_end='pack'."
    )


def _sees(queries: set[int], keys: set[int], *, own: bool, boundaries: Boundaries) -> bool:
    """True if a query of documents `queries` sees a key of documents `keys` in one slot (`visibility.context_mask`)."""
    if not (queries and keys):
        return False
    if not own:
        return len(queries | keys) > 1  # all documents but the query's
    return boundaries is Boundaries.JOINED or bool(queries & keys)


def _documents(segments: np.ndarray) -> set[int]:
    return set(np.unique(segments[segments > 0]).tolist())


def _micro_batch_segments(config: ExperimentConfig, segments: np.ndarray) -> np.ndarray:
    """Returns the segments [A, B/A, L] of the micro-batches, as `step.micro_batches` cuts them on one device."""
    stacked = config.crossbatch.rows_per_stream if config.crossbatch.plan is PlanKind.TWO_PASS else 1
    accumulation, (B, L) = config.train.accumulation, segments.shape
    cut = segments.reshape(stacked, accumulation, B // (stacked * accumulation), L)
    return cut.swapaxes(0, 1).reshape(accumulation, B // accumulation, L)


def _counts(plan: Plan) -> tuple[int, int]:
    """Counts the contexts in the whole table: of the reader's own document, and of others."""
    filled = np.asarray(plan.context_ids) >= 0
    own = int((filled & np.asarray(plan.own_document)).sum())
    return own, int(filled.sum()) - own


def _contexts(crossbatch: CrossbatchConfig) -> list[int]:
    """Returns every d of the schedule once, in its order."""
    return list(dict.fromkeys(crossbatch.schedule.num_contexts))


def _advice(crossbatch: CrossbatchConfig) -> str:
    """Returns the advice that gives a row more contexts."""
    if crossbatch.plan is PlanKind.SEGMENTS:
        return "Raise the counts of crossbatch.segments, or train.batch_rows"
    if not crossbatch.uses_num_contexts:
        return "Raise crossbatch.packing, crossbatch.previous_chunks or train.batch_rows"
    return "Raise crossbatch.schedule.num_contexts, or train.batch_rows"


def _at_d(found: list[int], crossbatch: CrossbatchConfig) -> str:
    """Returns ` at d = 1` and the part of the schedule with that d; "" for plans that do not use d."""
    if not crossbatch.uses_num_contexts:
        return ""
    listed = f" at d = {', '.join(map(str, found))}"
    ds = _contexts(crossbatch)
    if len(found) == len(ds):
        return listed
    if crossbatch.schedule.kind is ScheduleKind.RANDOM:
        return f"{listed} (of {', '.join(map(str, ds))})"
    return f"{listed} ({'before' if found == ds[:1] else 'after'} the switch)"
