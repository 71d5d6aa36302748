"""Times the training step of a config: plain, and crossbatch in both forms at several d, in one run.

python -m launch.bench --config=configs/tiny_code.py --contexts=2,8,64
python -m launch.bench --config=configs/tiny_code.py --contexts=8 --repeats=15 --out=runs/bench.json

The forms take turns, so that other load on the machine falls on all of them alike: compare the
ratios of one run, not seconds across runs. Temporary memory is the compiler's own figure.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

from fot_jax.config import AttentionForm, ConfigError, CrossbatchConfig, ExperimentConfig, PlanKind
from launch import cli

MEBIBYTE = 2**20
FORMS = (AttentionForm.REFERENCE, AttentionForm.BLOCKWISE)  # PALLAS runs on TPUs only


@dataclasses.dataclass(kw_only=True)
class Row:
    """One measured program.

    Attributes:
      name: "plain", or the form and d.
      contexts: d.
      temp_bytes: temporary memory by the compiler's analysis.
      seconds: wall seconds of each repeat.
    """

    name: str
    contexts: int
    temp_bytes: int
    call: Any
    seconds: list[float] = dataclasses.field(default_factory=list)


def prepare(config: ExperimentConfig, *, form: AttentionForm, contexts: int) -> Row:
    """Compiles the loss and gradient of one batch of random tokens with `contexts` contexts in every row.

    d contexts need no d rows: slots wrap around the batch, as the cost does not depend on which row is read.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import linen as nn

    from fot_jax.models.transformer import Decoder
    from fot_jax.train.step import loss_gradient
    from fot_jax.types import Batch, Plan

    model = dataclasses.replace(config.model, attention=form)
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
    params = nn.unbox(jax.jit(Decoder(model).init)(jax.random.key(0), jnp.asarray(tokens))["params"])
    gradient = jax.jit(lambda params, batch, plan: loss_gradient(params, batch, plan, config=config))
    compiled = gradient.lower(params, batch, plan).compile()
    memory: Any = compiled.memory_analysis()
    name = "plain" if not contexts else f"{form.value} d={contexts}"
    call = lambda: jax.block_until_ready(compiled(params, batch, plan))  # noqa: E731
    call()
    return Row(name=name, contexts=contexts, temp_bytes=int(memory.temp_size_in_bytes), call=call)


def measure(rows: list[Row], *, repeats: int) -> None:
    """Runs all programs in turn, `repeats` times."""
    for _ in range(repeats):
        for row in rows:
            start = time.perf_counter()
            row.call()
            row.seconds.append(time.perf_counter() - start)


def table(rows: list[Row], *, tokens: int) -> list[dict[str, Any]]:
    """One record a program: median seconds, tokens/s, the ratio to the plain step, memory."""
    plain = statistics.median(rows[0].seconds)
    records = []
    for row in rows:
        seconds = statistics.median(row.seconds)
        records.append(
            {
                "step": row.name,
                "contexts": row.contexts,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "times_plain": seconds / plain,
                "temp_mebibytes": row.temp_bytes / MEBIBYTE,
            }
        )
    return records


def _positive(text: str, flag: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ConfigError(f"{flag} must be integers >= 1, got {text!r}.")
    return int(text)


def main(flags: argparse.Namespace) -> None:
    """Measures and prints; also writes JSON where --out says so."""
    config = cli.load_experiment(flags)
    if not config.model.memory_layers:
        raise ConfigError("model.memory_layers must name at least one layer to time crossbatch, got ().")
    contexts = [_positive(text, "--contexts") for text in flags.contexts.split(",")]
    repeats = _positive(flags.repeats, "--repeats")
    rows = [prepare(config, form=config.model.attention, contexts=0)]
    rows += [prepare(config, form=form, contexts=d) for d in contexts for form in FORMS]
    measure(rows, repeats=repeats)
    records = table(rows, tokens=config.train.batch_rows * config.model.local_context)
    print(f"{'step':<18} {'seconds':>9} {'tokens/s':>10} {'x plain':>8} {'temp MiB':>9}")
    for record in records:
        print(
            f"{record['step']:<18} {record['seconds']:>9.3f} {record['tokens_per_second']:>10.0f}"
            f" {record['times_plain']:>8.2f} {record['temp_mebibytes']:>9.1f}"
        )
    if flags.out:
        path = Path(flags.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"config": config.name, "repeats": repeats, "rows": records}, indent=2) + "\n")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    cli.add_experiment_flags(parser)
    parser.add_argument("--contexts", default="2,8", metavar="D,D,…", help="contexts per row; default %(default)s")
    parser.add_argument("--repeats", default="7", metavar="N", help="timed steps of each program; default %(default)s")
    parser.add_argument("--out", metavar="FILE", help="also write the table as JSON")
    cli.run(main, parser)
