"""Experiments: a config file's values, overrides, gin, command lines."""

import contextlib
import functools
import importlib
import json
import math
import os
import runpy
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fuzz.edits import VALUES, Files, any_of, byte_arguments, json_arguments, of, value_arguments
from tests.fuzz.edits import word_arguments as words
from tests.fuzz.kind import Kind, require
from tests.fuzz.words import CONFIG_VALUES, FLAG_VALUES, FLAG_WORDS, GIN_VALUES, GIN_WORDS, OVERRIDE_WORDS

ROOT = Path(__file__).parents[2]
CONFIG_FILE = b'''"""A config file whose values another file holds."""
import json
import pathlib

from ml_collections import config_dict


def get_config():
    try:
        values = json.loads((pathlib.Path(__file__).parent / "values.json").read_text("utf-8"))
    except (ValueError, RecursionError):
        return config_dict.ConfigDict()
    return config_dict.ConfigDict(values) if isinstance(values, dict) else values
'''
OVERRIDES = b"""train.steps=5
model.memory_layers=1
crossbatch.schedule.num_contexts=2
data.sources[0].path=a/*.jsonl
model.tie_embeddings=true
optimizer.learning_rate=1e-3
evaluation.needle_kinds=single,multi_key
memory.retrieval=exact
"""


def check_experiment(config: Any) -> None:
    """An accepted experiment is finite, survives being written and read, and can be explained."""
    from fot_jax.config import ExperimentConfig
    from fot_jax.config.build import build, to_dict
    from launch.explain import explain

    text = json.dumps(to_dict(config))
    require(build(ExperimentConfig, json.loads(text)) == config, "the written experiment is another one")
    require(all(map(math.isfinite, _floats(to_dict(config)))), "a number of the experiment is not finite")
    rows = config.train.batch_rows
    if rows <= 4096 and config.model.num_layers <= 4096:  # drawing more is the user's wish
        explain(config, num_contexts=max(config.crossbatch.schedule.num_contexts), shown_rows=8)


def _floats(tree: Any) -> Iterator[float]:
    if isinstance(tree, float):
        yield tree
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _floats(inner)


@functools.cache
def config_files() -> Files:
    """A config file, its values, and overrides."""
    from fot_jax.config.build import to_dict
    from tests.train.tiny import tiny

    values = to_dict(tiny())
    values["data"]["sources"][0] |= {"kind": "jsonl", "path": "a.jsonl"}
    values["data"]["vocabulary"]["kind"] = "bytes"
    values["model"]["vocab_size"] = 300
    return {"config.py": CONFIG_FILE, "values.json": json.dumps(values).encode(), "overrides.txt": OVERRIDES}


def _arguments(path: Path) -> list[str]:
    """The lines of a file as arguments of a command, as the system passes bytes that are no UTF-8."""
    return [os.fsdecode(line) for line in path.read_bytes().split(b"\n") if line and b"\0" not in line]


def _attempt_config(source: Path, target: Path, intact: Path) -> None:
    from launch import cli

    parser = cli.make_parser("fuzz")
    cli.add_experiment_flags(parser)
    overrides = [f"--config.{line}" for line in _arguments(source / "overrides.txt")]
    flags = cli.parse_flags(parser, [f"--config={source / 'config.py'}", *overrides])
    check_experiment(cli.load_experiment(flags))


def gin_files() -> Files:
    """A gin file."""
    return {
        "a.gin": (ROOT / "configs/tiny_code.gin").read_bytes(),
        "bindings.txt": b"TrainConfig.steps = 7\nRopeConfig.theta = 5e5",
    }


def _attempt_gin(source: Path, target: Path, intact: Path) -> None:
    from fot_jax.config.gin import build_from_gin

    with contextlib.chdir(source):
        check_experiment(build_from_gin(["a.gin"], _arguments(source / "bindings.txt")))


COMMANDS = {  # {in}: the folder of the input, {out}: a place to write, {repo}: the repository
    "train": "--config={repo}/configs/tiny_code.py --config.train.steps=5 --workdir={out} --allow-change=train.steps"
    " --profile-steps=2:4 --compilation-cache=off --hosts=one --preflight-seconds=3",
    "explain": "--config={repo}/configs/tiny_code.py --contexts=4 --show-rows=8 --length=128 --trials=2 --least=0.5",
    "generate": "--workdir={in}/run --step=latest --prompt=what --prompt-file={in}/prompt.jsonl --question=why"
    " --max-new-tokens=4"
    " --temperature=0.5 --top-k=3 --top-p=0.9 --seed=1 --memory.retrieval=exact --memory.top_k=4"
    " --memory.last_context_length=8 --memory.overlap=2 --memory.log_length_scaling_from=64 --load-memory={in}/memory"
    " --save-memory={out} --replace --mesh.fsdp=1 --compilation-cache=off",
    "read": "--workdir={in}/run --text={in}/prompt.jsonl --text={in}/run/config.json --prompt=who"
    " --max-new-tokens=4 --model.local_context=16 --memory.retrieval=dense --load-memory={in}/memory"
    " --save-memory={out} --replace --compilation-cache=off",
    "evaluate": "--workdir={in}/run --task=perplexity --step=best --out={out} --evaluation.documents=2"
    " --memory.top_k=4 --documents=prose={in}/prompt.jsonl --evaluation.memory_contexts=0,1 --compilation-cache=off",
    "convert": "import --from={in}/hf --to={out} --model.memory_layers=0,1 --model.local_context=32 --dtype=bfloat16",
    "bench": "--config={repo}/configs/tiny_code.py --measure=step,read --contexts=2,8 --lengths=64,128"
    " --retrievals=dense,exact --entries=64 --backends=blockwise --repeats=2 --out={out}",
    "aot_compile": "--config={repo}/configs/tiny_code.py --topology=cpu:1 --programs=train,read --rows=2"
    " --entries=64 --meshes=fsdp=1,data=1:tensor=1 --contexts=1,5",
    "make_vocabulary": "--config={repo}/configs/tiny_code.py --size=300 --out={out}",
    "demo_report": "--workdir={in}/run --baseline-workdir={in}/run",
    "pods.queued_resources": "create --name=fot --project=my-project-1 --zone=us-central2-b"
    " --accelerator-type=v4-32 --runtime-version=v2"
    " --slices=2 --spot --dry-run",
}
STUBS = {  # what takes long, writes or talks to others
    "fot_jax.train.loop": ("train",),
    "launch.multihost.supervisor": ("run",),
    "fot_jax.checkpoint": ("load_params",),
    "fot_jax.library.model": ("load_params",),
    "fot_jax.convert.exporting": ("export_checkpoint",),
    "fot_jax.convert.averaging": ("average_runs",),
    "fot_jax.eval.tasks.retrieval": ("retrieval_report",),
    "fot_jax.eval.summary": ("summarise",),
    "fot_jax.aot.compiling": ("compile_program",),
    "fot_jax.bench.machine": ("machine_programs",),
    "fot_jax.data.streams": ("make_store",),
    "fot_jax.data.survey": ("survey",),
    "launch.pods.shell": ("Shell.run", "Shell.ask"),
    "time": ("sleep",),
}


class ReachedError(Exception):
    """The command understood its flags and began its work."""


@functools.cache
def command_files() -> Files:
    """One command line a file, an argument a line, and what the commands read."""
    from tests.fuzz.kinds_convert import folder_files

    lines = {f"{name}.txt": "\n".join(flags.split(" ")).encode() for name, flags in COMMANDS.items()}
    run = config_files()["values.json"]
    prompt = b"".join(json.dumps({"text": f"line {i}"}).encode() + b"\n" for i in range(8))
    checkpoint = {f"hf/{name}": data for name, data in folder_files().items()}
    return {**lines, "run/config.json": run, "prompt.jsonl": prompt, **checkpoint}


@contextlib.contextmanager
def _stubbed(source: Path, target: Path) -> Iterator[None]:
    """Stops a command where its work begins; an import writes at `target` whatever it was told."""
    from fot_jax.convert import importing

    def reach(*args: Any, **kwargs: Any) -> None:
        raise ReachedError

    whole = importing.import_checkpoint

    def import_here(source_: Any, workdir: Any, **options: Any) -> Any:
        whole(source / "hf", target, **options)
        raise ReachedError

    with contextlib.ExitStack() as stack:
        for module, names in STUBS.items():
            importlib.import_module(module)
            for name in names:
                stack.enter_context(mock.patch(f"{module}.{name}", reach))
        runs = importlib.import_module("fot_jax.eval.runs")
        if hasattr(runs, "load_params"):
            stack.enter_context(mock.patch.object(runs, "load_params", reach))
        stack.enter_context(mock.patch.object(importing, "import_checkpoint", import_here))
        yield


def _attempt_command(source: Path, target: Path, intact: Path) -> None:
    """Runs the commands whose lines were changed; of the intact input all of them."""
    for name in COMMANDS:
        path = source / f"{name}.txt"
        if source != intact and path.read_bytes() == (intact / path.name).read_bytes():
            continue
        places = {"{in}": str(source), "{out}": str(target), "{repo}": str(ROOT)}
        arguments = _arguments(path)
        for mark, place in places.items():
            arguments = [argument.replace(mark, place) for argument in arguments]
        with _stubbed(source, target), contextlib.chdir(target.parent), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, where a module is known already
            try:
                with mock.patch.object(sys, "argv", [name, *arguments]):
                    runpy.run_module(f"launch.{name}", run_name="__main__")
            except ReachedError:
                shutil.rmtree(target, ignore_errors=True)
            except SystemExit as stop:
                if stop.code not in (None, 0):
                    raise


KINDS = [
    Kind(
        name="config_file",
        files=config_files,
        edits=lambda files: any_of(
            of("values.json", json_arguments(VALUES)),
            of("values.json", json_arguments(CONFIG_VALUES)),
            of(
                "overrides.txt",
                *[value_arguments(FLAG_VALUES + OVERRIDE_WORDS)] * 2,
                byte_arguments(),
                words(OVERRIDE_WORDS),
            ),
        ),
        attempt=_attempt_config,
    ),
    Kind(
        name="gin",
        files=gin_files,
        edits=lambda files: any_of(
            of("a.gin", *[value_arguments(GIN_VALUES)] * 2, byte_arguments(), words(GIN_WORDS)),
            of("bindings.txt", value_arguments(GIN_VALUES), byte_arguments(), words(GIN_WORDS)),
        ),
        attempt=_attempt_gin,
    ),
    Kind(
        name="command_line",
        files=command_files,
        edits=lambda files: any_of(
            *(
                of(f"{name}.txt", *[value_arguments(FLAG_VALUES)] * 6, byte_arguments(), words(FLAG_WORDS))
                for name in COMMANDS
            )
        ),
        attempt=_attempt_command,
    ),
]
