"""The training step's loss and gradient, plain and with crossbatch at several d."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fot_jax.bench.timing import Program
from fot_jax.config import AttentionBackend, CrossbatchConfig, ExperimentConfig, PlanKind
from fot_jax.models import account
from fot_jax.train.step import loss_gradient
from fot_jax.types import Batch, Plan

PLAIN = "plain"


def step_programs(
    config: ExperimentConfig, params: Any, *, contexts: Sequence[int], backends: Sequence[AttentionBackend]
) -> list[Program]:
    """Returns the plain step, then each backend at each d; `x` is d, `series` the backend."""
    plain = step_program(config, params, backend=config.model.attention, contexts=0)
    return [plain] + [step_program(config, params, backend=one, contexts=d) for d in contexts for one in backends]


def step_program(config: ExperimentConfig, params: Any, *, backend: AttentionBackend, contexts: int) -> Program:
    """Compiles loss and gradient of one batch of random tokens with `contexts` contexts in every row.

    d contexts do not need d rows: slots wrap around the batch, as the cost does not depend on which row is read.
    """
    model = dataclasses.replace(config.model, attention=backend)
    off = CrossbatchConfig(plan=PlanKind.OFF)  # the plan is given, rows need no layout
    config = dataclasses.replace(
        config, model=model, crossbatch=off, train=dataclasses.replace(config.train, accumulation=1)
    )
    B, L = config.train.batch_rows, model.local_context
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (B, L), dtype=np.int32)
    segments = np.broadcast_to(np.arange(1, B + 1, dtype=np.int32)[:, None], (B, L))
    batch = Batch(
        tokens=tokens, targets=np.roll(tokens, -1, 1), loss_mask=np.ones((B, L), np.float32), segments=segments
    )
    plan = None
    if contexts:
        ids = (np.arange(B)[:, None] + 1 + np.arange(contexts)) % B
        plan = Plan(context_ids=ids.astype(np.int32), own_document=ids == np.arange(B)[:, None])
    gradient = jax.jit(lambda params, batch, plan: loss_gradient(params, batch, plan, config=config))
    compiled = gradient.lower(params, batch, plan).compile()
    memory: Any = compiled.memory_analysis()
    return Program(
        name=PLAIN if not contexts else f"{backend.value} d={contexts}",
        call=lambda: jax.block_until_ready(compiled(params, batch, plan)),
        tokens=B * L,
        x=contexts,
        series=PLAIN if not contexts else backend.value,
        flops=B * L * account.flops_per_token(model, contexts_per_row=contexts).train,
        temp_bytes=int(memory.temp_size_in_bytes),
    )
