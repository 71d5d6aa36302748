"""Batches of the configured data, made on the host: how many tokens a second the step may wait for."""

import itertools

from fot_jax.bench.timing import Program
from fot_jax.config import ExperimentConfig
from fot_jax.data.streams import make_stream


def pipeline_programs(config: ExperimentConfig) -> list[Program]:
    """The next batch of the training split; tokenising and caching happen before, and are not timed."""
    stream, steps = make_stream(config, "train"), itertools.count()
    tokens = config.train.batch_rows * config.model.local_context
    return [Program(name="data pipeline", call=lambda: stream.batch(next(steps)), tokens=tokens, series="pipeline")]
