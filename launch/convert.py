"""Imports, exports and averages checkpoints of the LLaMA family.

python -m launch.convert import --from=DIR_OR_FILE --to=WORKDIR [--model.memory_layers=14,17]
    [--model.local_context=1024] [--dtype=float32|bfloat16] [--tokenizer=FILE] [--mesh.fsdp=8] [--mesh.tensor=1]
python -m launch.convert export --workdir=DIR --to=DIR [--format=hf|orbax] [--step=N|latest|best]
    [--max-shard-size=5GB]
python -m launch.convert average --workdir=DIR --with=DIR --to=DIR [--share=0.85] [--step=N|latest|best]

import reads a Hugging Face folder (config.json and safetensors; LLaMA 1, 2, 3 and LongLLaMA) or a GGUF file (every
quantisation that the package gguf dequantises; of a split model any part) and writes a run's folder: config.json,
checkpoints/0, tokenizer/.
export writes a folder that transformers loads as LlamaForCausalLM (hf), or bare parameters for serving (orbax).
average writes a run's folder between a fine-tuned run and the one it started from (WiSE-FT, arXiv 2109.01903).
Every output appears whole or not at all. `python -m launch.convert import --help` lists the flags of import.
"""

import argparse
import re
import sys
import time
from typing import Any

from fot_jax.config import Dtype, UserError
from launch import cli

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_layers(text: str) -> tuple[int, ...]:
    """Parses the layers of a flag: "14,17" -> (14, 17), "" -> (). Raises argparse.ArgumentTypeError."""
    parts = [part for part in text.split(",") if part]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be layers such as 14,17 (counted from 0), got {text!r}")
    return tuple(int(part) for part in parts)


def parse_size(text: str) -> int:
    """Parses the bytes of a flag: "5GB" -> 5 * 10**9. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    if not match or match[2] not in UNITS or not int(match[1]):
        raise argparse.ArgumentTypeError(f"must be a number and one of {', '.join(UNITS)[2:]}, got {text!r}")
    return int(match[1]) * UNITS[match[2]]


def add_import(commands: Any) -> None:
    """Adds `import` and its flags."""
    parser = commands.add_parser("import", help="a Hugging Face folder or a GGUF file -> a run's folder")
    parser.set_defaults(command=run_import)
    parser.add_argument(
        "--from",
        dest="source",
        type=cli.on_disk,
        required=True,
        metavar="PATH",
        help="the folder, the .gguf file or any part of one",
    )
    parser.add_argument(
        "--to", type=cli.in_storage, required=True, metavar="DIR", help="the folder to write; the run's, must be new"
    )
    layers = "layers that get a memory, from 0, e.g. 14,17; default: the checkpoint's own (LongLLaMA), else none"
    parser.add_argument("--model.memory_layers", dest="memory_layers", type=parse_layers, metavar="N,N", help=layers)
    context = "tokens of the local context (the window); default: the checkpoint's max_position_embeddings"
    parser.add_argument("--model.local_context", dest="local_context", type=int, metavar="N", help=context)
    dtypes = [kind.value for kind in Dtype]
    stored = "type of the stored parameters (they compute as float32 either way); default float32"
    parser.add_argument("--dtype", choices=dtypes, default=Dtype.FLOAT32.value, help=stored)
    tokenizer = "a tokenizer.json or tokenizer.model in place of the checkpoint's own"
    parser.add_argument("--tokenizer", type=cli.on_disk, metavar="FILE", help=tokenizer)
    cli.add_mesh_flags(parser, "spread the parameters over this process's devices and save them from there")


def add_export(commands: Any) -> None:
    """Adds `export` and its flags."""
    parser = commands.add_parser("export", help="a run's folder -> a Hugging Face folder or bare Orbax parameters")
    parser.set_defaults(command=run_export)
    cli.add_workdir_flag(parser, required=True)
    parser.add_argument(
        "--to", type=cli.in_storage, required=True, metavar="DIR", help="the folder to write; must be new"
    )
    parser.add_argument("--format", choices=["hf", "orbax"], default="hf", help="of the written checkpoint; default hf")
    cli.add_step_flag(parser)
    size = "size of one safetensors file, e.g. 500MB; default 5GB"
    parser.add_argument("--max-shard-size", type=parse_size, default=parse_size("5GB"), metavar="SIZE", help=size)


def add_average(commands: Any) -> None:
    """Adds `average` and its flags."""
    parser = commands.add_parser(
        "average", help="a fine-tuned run and what it started from -> the run's folder between"
    )
    parser.set_defaults(command=run_average)
    cli.add_workdir_flag(parser, required=True)
    start = "the run's folder that it started from (train.init_from); its latest checkpoint"
    parser.add_argument("--with", type=cli.in_storage, dest="other", required=True, metavar="DIR", help=start)
    parser.add_argument(
        "--to", type=cli.in_storage, required=True, metavar="DIR", help="the folder to write; the run's, must be new"
    )
    share = "share of the fine-tuned parameters, 0 to 1; default %(default)s"
    parser.add_argument("--share", type=float, default=0.85, metavar="X", help=share)
    cli.add_step_flag(parser)


def make_progress() -> Any:
    """Makes a callback that prints a line on stderr at most every second, and the last one."""
    shown = 0.0

    def show(progress: Any) -> None:
        nonlocal shown
        done = progress.tensors == progress.tensors_total
        if done or time.monotonic() - shown >= 1:
            shown = time.monotonic()
            line = (
                f"read {progress.tensors} of {progress.tensors_total} tensors, {progress.bytes / 2**20:,.1f} of"
                f" {progress.bytes_total / 2**20:,.1f} MiB, {progress.seconds:.1f} s"
            )
            print(line + "; writing the checkpoint" * done, file=sys.stderr, flush=True)

    return show


def run_import(flags: argparse.Namespace) -> None:
    """Imports a checkpoint and prints its shape."""
    from fot_jax.config import VocabularyKind
    from fot_jax.convert.hf_config import Changes
    from fot_jax.convert.importing import import_checkpoint

    changes = Changes(memory_layers=flags.memory_layers, local_context=flags.local_context)
    config = import_checkpoint(
        flags.source,
        flags.to,
        changes=changes,
        dtype=Dtype(flags.dtype),
        tokenizer=flags.tokenizer,
        mesh=cli.mesh_of(flags),
        progress=make_progress(),
    )
    model = config.model
    if config.data.vocabulary.kind is VocabularyKind.BYTES:
        print("no tokenizer was found: text would be read as bytes. --tokenizer=FILE gives one", file=sys.stderr)
    print(
        f"{flags.to}: {model.num_layers} layers, {model.embed_dim} wide, {model.num_heads} heads ({model.num_kv_heads}"
        f" of keys), {model.vocab_size} tokens, local context {model.local_context}, memory layers"
        f" {','.join(map(str, model.memory_layers)) or 'none'}, stored as {flags.dtype}"
    )


def run_export(flags: argparse.Namespace) -> None:
    """Exports a run and lists the written files."""
    from fot_jax.convert.exporting import Format, export_checkpoint

    written = export_checkpoint(
        flags.workdir,
        flags.to,
        form=Format(flags.format),
        step=flags.step,
        max_shard_bytes=flags.max_shard_size,
    )
    print(f"{flags.to}: {', '.join(written)}")


def run_average(flags: argparse.Namespace) -> None:
    """Averages two runs and prints their shares."""
    from fot_jax.convert.averaging import average_runs

    config = average_runs(flags.workdir, other=flags.other, folder=flags.to, share=flags.share, step=flags.step)
    print(f"{flags.to}: {config.name}, {flags.share:g} of {flags.workdir} and {1 - flags.share:g} of {flags.other}")


def main(flags: argparse.Namespace) -> None:
    """Runs the named command."""
    if flags.command is None:
        raise UserError("launch.convert needs a command: import, export or average. --help tells more.")
    flags.command(flags)


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    add_import(commands)
    add_export(commands)
    add_average(commands)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
