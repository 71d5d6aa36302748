"""Program that makes batches of the configured data on the host, for which the step may have to wait."""

import itertools

from fot_jax.bench.timing import Program
from fot_jax.config import ExperimentConfig
from fot_jax.data.streams import make_stream


def pipeline_programs(config: ExperimentConfig) -> list[Program]:
    """Returns the program that makes the next training batch; tokenising and caching happen before, untimed."""
    stream, steps = make_stream(config, "train"), itertools.count()
    tokens = config.train.batch_rows * config.model.local_context
    return [Program(name="data pipeline", call=lambda: stream.batch(next(steps)), tokens=tokens, series="pipeline")]
