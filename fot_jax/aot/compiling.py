"""Compilation of one program for a pod, and its report."""

import dataclasses
import time
from typing import Any

import jax
from jax.sharding import Mesh

from fot_jax.aot import programs
from fot_jax.aot.chips import Pod
from fot_jax.aot.hlo import largest_arrays, parse_module
from fot_jax.aot.hlo_costs import count
from fot_jax.aot.programs import Program, ProgramKind
from fot_jax.aot.report import Report, memory_of, refusal_memory
from fot_jax.config import ExperimentConfig, ModelConfig
from fot_jax.ops.backends.choose import resolve
from fot_jax.train.trainable import first_trained

# op_name of the conditionals in crossbatch.py and attention_layer.py: is this a memory layer?
MEMORY_BRANCH = r"memory_branch/cond$"
COMPILER_KEYS = ("flops", "bytes accessed", "optimal_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One program to compile.

    Attributes:
      config: the experiment, with the mesh to compile for.
      kind: kind of the program.
      num_contexts: d of TRAIN.
      rows: rows of READ and DECODE; 0: one for each device along data and fsdp.
      memory_entries: memory entries per row of READ and DECODE.
      variant: its name in a sweep.
    """

    config: ExperimentConfig
    kind: ProgramKind
    num_contexts: int
    rows: int
    memory_entries: int
    variant: str = ""


def _program(job: Job, mesh: Mesh) -> Program:
    if job.kind is ProgramKind.TRAIN:
        return programs.train_program(job.config, mesh, num_contexts=job.num_contexts)
    return programs.inference_program(job.config, mesh, kind=job.kind, rows=job.rows, memory_entries=job.memory_entries)


def attention_of(job: Job, mesh: Mesh) -> str:
    """Returns the backend of the train step's attention on the mesh; "" for inference, which has only one."""
    if job.kind is not ProgramKind.TRAIN:
        return ""
    named = job.config.model.attention
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        backend = resolve(named)
    return backend.value if backend is named else f"{backend.value} ({named.value})"


def branch_shares(model: ModelConfig, *, first: int = 0) -> dict[str, float]:
    """Returns the share of runs that take a memory layer's branch: P of the N − first layers that are scanned."""
    scanned = model.num_layers - first
    return {MEMORY_BRANCH: len(model.memory_layers) / scanned} if model.scan_layers and scanned else {}


def compile_program(job: Job, *, pod: Pod, mesh: Mesh) -> tuple[Report, str]:
    """Returns the report of one program, and its text (the compiler's error if memory does not suffice)."""
    start = time.perf_counter()
    program = _program(job, mesh)
    traced = time.perf_counter()
    common: dict[str, Any] = {
        "config": job.config.name,
        "program": job.kind.value,
        "pod": pod,
        "mesh": dict(mesh.shape),
        "variant": job.variant,
        "tokens": program.tokens,
        "formula_flops": program.flops,
        "attention": attention_of(job, mesh),
    }
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = {"tracing": traced - start, "compiling": time.perf_counter() - traced}
        refusal = refusal_memory(str(error))
        return Report(**common, memory=None, costs=None, compiler={}, seconds=seconds, refusal=refusal), str(error)
    seconds = {"tracing": traced - start, "compiling": time.perf_counter() - traced}
    text = compiled.as_text()
    module = parse_module(text)
    analysis = compiled.cost_analysis() or {}
    trained = job.kind is ProgramKind.TRAIN
    first = first_trained(program.model, job.config.train.trainable) if trained else 0
    report = Report(
        **common,
        memory=memory_of(compiled.memory_analysis(), inputs=program.bytes, chip=pod.chip),
        costs=count(module, devices=pod.devices, branch_shares=branch_shares(program.model, first=first)),
        arrays=largest_arrays(module, most=6),
        compiler={key: float(analysis[key]) for key in COMPILER_KEYS if key in analysis},
        seconds=seconds,
    )
    return report, text
