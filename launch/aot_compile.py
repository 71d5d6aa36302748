"""Compiles a config's real programs for a TPU pod without having it, and reports the load of each device.

python -m launch.aot_compile --config=configs/longllama.py:3b --topology=v3:8x8
python -m launch.aot_compile --config=configs/longllama.py:7b --topology=v5e:16x16 --programs=train,read,decode
python -m launch.aot_compile --config=configs/paper.py:600m --topology=v5p:4x4x4 --contexts=2,16,64 \
    --meshes=fsdp=8,fsdp=32:tensor=2
python -m launch.aot_compile --config=configs/tiny_code.py --topology=cpu:8      # a dry run, without libtpu

Memory, FLOPs, traffic and time bounds of each device go to the terminal; --out writes them as JSON. Needs libtpu
(make libtpu), no TPU. One process at a time compiles; others wait. See docs/aot.md.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fot_jax.config import ConfigError, ExperimentConfig, MeshConfig, UserError
from fot_jax.config.override import whole_number
from launch import cli

if TYPE_CHECKING:
    from fot_jax.aot.compiling import Job
    from fot_jax.aot.report import Report

PROGRAMS = ("train", "read", "decode")


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_experiment_flags(parser)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:NxM", help="the TPU chips; v3:8x8, v5e:16x16, v5p:4x4x4, cpu:8, ..."
    )
    parser.add_argument(
        "--programs", default="train", metavar="P,P", help=f"which of {', '.join(PROGRAMS)}; default %(default)s"
    )
    parser.add_argument(
        "--rows", metavar="B", help="rows of read and decode; default: one for each device along data and fsdp"
    )
    parser.add_argument(
        "--entries",
        default="16384",
        metavar="M",
        help="entries in memory; of a row in read and decode, default %(default)s",
    )
    sweep = parser.add_argument_group("every mesh with every d, one program after another")
    sweep.add_argument(
        "--meshes", metavar="MESH,...", help="meshes to compile for; as fsdp=64:tensor=2, default: the config's"
    )
    sweep.add_argument(
        "--contexts", metavar="D,D,...", help="contexts of a row (d); of train, default: the schedule's last"
    )
    parser.add_argument("--out", type=cli.on_disk, metavar="FILE", help="where the results go; the reports as JSON")
    parser.add_argument("--hlo", type=cli.on_disk, metavar="DIR", help="also write each program's text (HLO)")
    return parser


def integer(text: str, flag: str, *, least: int) -> int:
    """Parses a flag's integer. Raises ConfigError where it is none, or too small."""
    number = whole_number(text.strip())
    if number is None or number < least:
        raise ConfigError(f"{flag} must be an integer >= {least}, got {text!r}.")
    return number


def meshes(flags: argparse.Namespace, config: ExperimentConfig) -> list[MeshConfig]:
    """Lists the meshes to compile for."""
    if not flags.meshes:
        return [config.mesh]
    return [_mesh(text) for text in flags.meshes.split(",")]


def _mesh(text: str) -> MeshConfig:
    """Parses a mesh such as "fsdp=64:tensor=2"; data takes the remaining devices unless it is named."""
    axes = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes = {}
    for part in text.split(":"):
        name, _, size = part.strip().partition("=")
        number = whole_number(size)
        if name not in axes or not number:
            raise ConfigError(
                f"--meshes must be AXIS=SIZE joined by ':' (meshes by ','), of {', '.join(axes)}; got {part!r}."
            )
        sizes[name] = number
    return MeshConfig(**sizes)


def contexts(flags: argparse.Namespace, config: ExperimentConfig) -> list[int]:
    """Lists the values of d to compile the train step for."""
    if flags.contexts:
        if not config.crossbatch.uses_num_contexts:
            plan = config.crossbatch.plan.value
            raise ConfigError(f"--contexts needs a plan that uses d, got crossbatch.plan='{plan}'.")
        return [integer(text, "--contexts", least=1) for text in flags.contexts.split(",")]
    from fot_jax.train.context_schedule import ContextSchedule

    return [ContextSchedule(config.crossbatch.schedule, config.seed).final]


def jobs(flags: argparse.Namespace, config: ExperimentConfig) -> "list[Job]":
    """Lists all programs to compile, in order."""
    from fot_jax.aot.compiling import Job
    from fot_jax.aot.programs import ProgramKind

    names = flags.programs.split(",")
    for name in names:
        if name not in PROGRAMS:
            raise ConfigError(f"--programs must be some of {', '.join(PROGRAMS)}, got {name!r}.")
    rows = integer(flags.rows, "--rows", least=1) if flags.rows else 0
    entries = integer(flags.entries, "--entries", least=0)
    found = []
    for mesh in meshes(flags, config):
        own = dataclasses.replace(config, mesh=mesh)
        for name in names:
            for d in contexts(flags, config) if name == "train" else [0]:
                found.append(
                    Job(
                        config=own,
                        kind=ProgramKind(name),
                        num_contexts=d,
                        rows=rows,
                        memory_entries=entries,
                        variant=f"d = {d}" if name == "train" and flags.contexts else "",
                    )
                )
    return found


def summary(reports: "list[Report]") -> list[str]:
    """Formats one line a program, for a sweep."""
    heads = f"{'program':<8} {'mesh':<12} {'variant':<9} {'peak GiB':>9} {'of':>6} {'fits':>5}"
    rows = [f"{heads} {'received GB':>12} {'roofline s':>11}"]
    for report in reports:
        record = report.record()
        mesh = "x".join(map(str, report.mesh.values()))
        if report.memory is None or report.costs is None:
            rows.append(f"{report.program:<8} {mesh:<12} {report.variant:<9} {report.refusal}")
            continue
        received = sum(report.costs.received.values()) / 1e9
        rows.append(
            f"{report.program:<8} {mesh:<12} {report.variant:<9} {report.memory.peak / 2**30:>9.2f}"
            f" {report.memory.limit / 2**30:>6.1f} {'yes' if report.fits else 'NO':>5} {received:>12.2f}"
            f" {record['roofline_seconds']:>11.3f}"
        )
    return rows


def main(flags: argparse.Namespace) -> None:
    """Compiles and reports. Exit code 2 where a program does not fit."""
    from fot_jax.aot.chips import parse_topology
    from fot_jax.aot.devices import only_libtpu, pod_devices, prepare_environment

    config = cli.load_experiment(flags)
    pod = parse_topology(flags.topology)
    prepare_environment(pod)
    reports = []
    with only_libtpu(pod):
        from fot_jax.aot.compiling import compile_program
        from fot_jax.aot.report import lines
        from fot_jax.sharding import make_mesh
        from fot_jax.workdir import write_whole

        todo = jobs(flags, config)
        devices = pod_devices(pod)
        for number, job in enumerate(todo):
            report, text = compile_program(job, pod=pod, mesh=make_mesh(job.config.mesh, devices))
            reports.append(report)
            print(*lines(report), sep="\n", flush=True)
            if flags.hlo:
                write_whole(Path(flags.hlo) / f"{number}_{config.name}_{job.kind.value}.txt", text)
            if flags.out:
                write(Path(flags.out), reports)
    if len(reports) > 1:
        print("", *summary(reports), sep="\n")
    unfit = [f"{report.program} {report.variant}".strip() for report in reports if not report.fits]
    if unfit:
        raise UserError(f"{config.name} does not fit on {pod.topology}: {', '.join(unfit)}. Split more, or lower d.")


def write(path: Path, reports: "list[Report]") -> None:
    """Writes the reports so far, as JSON."""
    from fot_jax.workdir import write_whole

    write_whole(path, json.dumps([report.record() for report in reports], indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, make_parser())
