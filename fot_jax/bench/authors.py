"""Training steps at the shapes at which the authors' own code was measured, and what was measured then.

The authors' code is not run here. Its figures are ratios from one run in which both codes took turns, with the same
weights and batches: float32, losses equal to 1e-6, gradients to 7e-7.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fot_jax.bench.inference import random_params
from fot_jax.bench.steps import step_programs
from fot_jax.bench.timing import Program
from fot_jax.config import ExperimentConfig
from fot_jax.config.build import build

CONTEXTS = (7, 15)
VOCABULARIES = (1024, 8192)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of the LLaMA family and its batch: `rows` rows of `length` tokens.

    The record does not name `mlp_dim` and the memory layer; both are chosen here: 8/3 of `embed_dim`, rounded up to
    a multiple of 64, and the layer in the middle.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    rows: int
    mlp_dim: int
    num_layers: int = 8
    length: int = 256


SHAPES = (
    Shape(embed_dim=256, num_heads=8, head_dim=32, rows=16, mlp_dim=704),
    Shape(embed_dim=576, num_heads=9, head_dim=64, rows=8, mlp_dim=1536),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Ratios measured of the authors' code.

    Attributes:
      speed: contexts -> our tokens/s divided by theirs: the smallest and the largest ratio over the shapes.
      added_seconds: embed_dim -> seconds that contexts add to a step: ours, theirs.
    """

    source: str
    date: str
    machine: str
    speed: dict[int, tuple[float, float]]
    added_seconds: dict[int, tuple[float, float]]


RECORD = Record(
    source="github.com/CStanKonrad/long_llama, PyTorch",
    date="2026-11-30",
    machine="two AMD Zen 3 cores, float32",
    speed={0: (1.03, 1.06), 7: (1.22, 1.31), 15: (1.38, 1.38)},
    added_seconds={576: (0.80, 2.6)},
)


def experiment(shape: Shape, *, vocabulary: int) -> ExperimentConfig:
    """Returns the experiment of a shape; only its model and batch are used."""
    model = {
        "num_layers": shape.num_layers,
        "embed_dim": shape.embed_dim,
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_heads,
        "head_dim": shape.head_dim,
        "mlp_dim": shape.mlp_dim,
        "vocab_size": vocabulary,
        "local_context": shape.length,
        "memory_layers": (shape.num_layers // 2,),
    }
    parts = {
        "name": f"authors_{shape.embed_dim}",
        "model": model,
        "crossbatch": {"plan": "off"},
        "data": {"sources": ({"name": "stdlib", "kind": "stdlib"},), "vocabulary": {"kind": "bytes"}},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 1, "batch_rows": shape.rows},
    }
    return build(ExperimentConfig, parts)


def authors_programs() -> dict[str, list[Program]]:
    """Returns the plain step and one for each of CONTEXTS, per shape and vocabulary."""
    found = {}
    for shape in SHAPES:
        for vocabulary in VOCABULARIES:
            config = experiment(shape, vocabulary=vocabulary)
            params = random_params(config.model)
            backends = [config.model.attention]
            programs = step_programs(config, params, contexts=CONTEXTS, backends=backends)
            for program in programs:
                program.name = f"{shape.embed_dim}, {vocabulary:,}: {program.name}"
            found[f"step {shape.embed_dim} {vocabulary}"] = programs
    return found


def comparison(records: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the lines that set the steps of a run next to the record.

    Args:
      records: of `launch.bench`, those of `authors_programs` among them.
    """
    steps = [row for row in records if str(row["measure"]).startswith("step ")]
    first = {row["measure"]: row["seconds"] for row in steps if not row["x"]}
    lines = [
        f"The authors' code ({RECORD.source}), measured {RECORD.date} on {RECORD.machine}; not run here:",
        f"{'width':>5} {'vocabulary':>10} {'contexts':>8} {'tokens/s':>9} {'added s':>8}   ours / theirs of the record",
    ]
    for row in steps:
        width, vocabulary = (int(number) for number in row["measure"].split()[1:])
        low, high = RECORD.speed[int(row["x"])]
        ratio = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        added = format(row["seconds"] - first[row["measure"]], ".3f") if row["x"] else "–"
        lines.append(
            f"{width:>5} {vocabulary:>10,} {int(row['x']):>8} {row['tokens_per_second']:>9.0f} {added:>8}   {ratio}"
        )
    return lines + [
        f"Contexts added {ours:.2f} s to our step of width {width} and {theirs:.2f} s to theirs, of the record."
        for width, (ours, theirs) in RECORD.added_seconds.items()
    ]
