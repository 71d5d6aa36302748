"""Reads a prompt of any length, window by window into memory, and continues it.

python -m launch.generate --workdir=runs/tiny_code --prompt-file=prompt.txt
cat book.txt | python -m launch.generate --workdir=DIR --prompt-file=- --memory.retrieval=scann
python -m launch.generate --workdir=DIR --prompt-file=book.txt --save-memory=book.mem
python -m launch.generate --workdir=DIR --load-memory=book.mem --question="Who is the murderer?" --chat
python -m launch.generate --workdir=DIR --prompt-file=book.txt --memory.retrieval=approx --mesh.fsdp=8

The text streams to stdout; progress goes to stderr. With several --prompt-file the prompts are read as
one batch and each text is printed when all are done. --save-memory keeps all that was read and written,
the local context included. Ctrl-C (exit code 130) and SIGTERM (143) end it after the current window or token and save
what has been read: to DIR, or to DIR.interrupted where DIR holds a memory. A second signal ends it at once.

--question follows each prompt after a blank line, or is the prompt where no file is named. With --chat each
prompt becomes the user's message in the checkpoint's own chat template. Without it names of special tokens in a
prompt are special tokens; with it they are text.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fot_jax.config import ExperimentConfig, MemoryConfig, ModelConfig, Retrieval, UserError, check
from fot_jax.infer.progress import show_progress
from launch import cli, interrupts

if TYPE_CHECKING:
    from fot_jax import Model


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags; memory flags default to the run's own config."""
    cli.add_workdir_flag(parser, required=True)
    cli.add_step_flag(parser)
    prompt_help = "UTF-8 text; '-': stdin; may be repeated; may be left out where --question is given"
    parser.add_argument("--prompt-file", action="append", default=[], metavar="FILE", help=prompt_help)
    parser.add_argument("--question", metavar="TEXT", help="text after each prompt and a blank line")
    chat_help = "the prompt is the user's message in the chat template of the checkpoint"
    parser.add_argument("--chat", action="store_true", help=chat_help)
    parser.add_argument("--system", metavar="TEXT", help="the system's message, with --chat; default: the template's")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="tokens to write at most; default 256"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="temperature of sampling; 0 (default): greedy"
    )
    sampling.add_argument("--top-k", type=int, default=0, metavar="K", help="likeliest tokens kept; 0 (default): all")
    sampling.add_argument("--top-p", type=float, default=1.0, metavar="P", help="probability mass kept; default 1: all")
    sampling.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling; default 0")
    memory = parser.add_argument_group("memory on disk")
    memory.add_argument("--load-memory", metavar="DIR", help="read on with a memory that --save-memory wrote")
    memory.add_argument("--save-memory", metavar="DIR", help="write the memory at the end")
    cli.add_section_flags(parser, "memory")
    cli.add_mesh_flags(parser, "spread memory and parameters over this process's devices; default: one device")


def memory_config(config: ExperimentConfig, changes: dict[str, Any]) -> MemoryConfig:
    """Returns the run's memory config with the changed fields, checked. Raises ConfigError."""
    chosen = dataclasses.replace(config.memory, **changes)
    chosen.validate("memory")
    chosen.validate_window("memory", config.model.local_context)
    return chosen


def read_prompt(path: str) -> str:
    """Reads a prompt, without a byte order mark. Raises UserError where a file is missing, unreadable or not UTF-8."""
    from fot_jax.data.utf8 import decode_file

    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--prompt-file must name a readable file or '-', got {path!r} ({error.strerror}).") from error
    return decode_file(data, where=f"--prompt-file {path!r}")


def read_prompts(flags: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Reads the prompts: the name of each, and its text with the question after it.

    Raises:
      UserError: there is neither file nor question, a text is empty, or a file cannot be read.
    """
    if not flags.prompt_file and not flags.question:
        raise UserError("launch.generate needs a prompt: --prompt-file=FILE, --question=TEXT or both.")
    if flags.system is not None and not flags.chat:
        raise UserError("--system needs --chat: the chat template says where the system's message goes.")
    texts = [read_prompt(path) for path in flags.prompt_file]
    for path, text in zip(flags.prompt_file, texts, strict=True):
        if not text:
            raise UserError(f"--prompt-file must hold text, got {path!r}, which is empty.")
    if not texts:
        return ["--question"], [flags.question]
    if flags.question:
        texts = [text.rstrip("\n") + "\n\n" + flags.question for text in texts]
    return flags.prompt_file, texts


def encode_prompts(vocabulary: Any, texts: Iterable[str], flags: argparse.Namespace) -> list[Any]:
    """Returns token ids of each prompt from its beginning (BOS), with --chat as a message in the chat template."""
    from fot_jax.library import encode

    return [encode(vocabulary, text, chat=flags.chat, system=flags.system) for text in texts]


def write_texts(steps: Any, vocabulary: Any, paths: list[str]) -> None:
    """Streams the text of one row; prints those of several rows under their names once all are done."""
    from fot_jax.infer.generate import FINISHED
    from fot_jax.infer.text_stream import TextStream

    streams = [TextStream(vocabulary.decode) for _ in paths]
    texts = [""] * len(paths)
    for tokens in steps:
        for row, token in enumerate(tokens.tolist()):
            if token not in (FINISHED, *vocabulary.end_ids):
                piece = streams[row].push(token)
                texts[row] += piece
                if len(paths) == 1:
                    print(piece, end="", flush=True)
    for row, stream in enumerate(streams):
        rest = stream.finish()
        if len(paths) == 1:
            print(rest, flush=True)
        else:
            print(f"== {paths[row]}\n{texts[row]}{rest}", flush=True)


def main(flags: argparse.Namespace) -> None:
    """Loads the run, reads the prompts, generates, saves."""
    from fot_jax.infer.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p, seed=flags.seed)
    sampling.validate("sampling")
    check(flags.max_new_tokens >= 1, "--max-new-tokens", "be >= 1", flags.max_new_tokens)

    from fot_jax.config.build import to_dict
    from fot_jax.data.vocabulary import check_ids
    from fot_jax.infer.windows import flush_local_cache
    from fot_jax.library import load, open_vocabulary
    from fot_jax.memory import files
    from fot_jax.workdir import read_config

    config = read_config(flags.workdir)
    names, texts = read_prompts(flags)
    changes = cli.section_changes(flags, "memory")
    memory = memory_config(config, changes)
    if (flags.load_memory or flags.save_memory) and not config.model.memory_layers:
        raise UserError(f"--load-memory and --save-memory need a model with memory layers; {flags.workdir} has none.")
    if flags.save_memory:
        files.check_writable(flags.save_memory)
        if files.is_memory(flags.save_memory):
            print(f"the memory in {flags.save_memory} is replaced once the new one is whole", file=sys.stderr)
    vocabulary = open_vocabulary(config)
    prompts = encode_prompts(vocabulary, texts, flags)
    for prompt in prompts:
        check_ids(vocabulary, prompt.tolist(), config.model)
    model = load(flags.workdir, step=flags.step, mesh=cli.mesh_of(flags)).with_memory(**to_dict(memory))
    store = model.load_store(flags.load_memory) if flags.load_memory else model.new_store(streams=len(prompts))
    before = 0 if store is None else int(store.appended.sum())
    if ("retrieval" in changes or "top_k" in changes) and not before:
        warn_if_memory_unread(model.config.model, memory, prompts)
    stop, shown = interrupts.SignalStop(), [0.0]

    def progress(so_far: Any) -> None:
        show_progress(so_far, shown=shown)
        stop.check()

    with stop.catch_signals() if flags.save_memory else contextlib.nullcontext():
        try:
            reading = model.read_prompts(prompts, store=store, progress=progress)
            steps = model.next_tokens(reading, sampling=sampling, max_new_tokens=flags.max_new_tokens)
            write_texts(stop.until(steps), vocabulary, names)
            if flags.save_memory:
                flush_local_cache(model.config.model, reading)
        except interrupts.Stopped:
            pass  # between two windows: the store holds those before
        if flags.save_memory and store is not None:
            save_memory(model, store, flags, before=before, stop=stop)


def warn_if_memory_unread(model: ModelConfig, memory: MemoryConfig, prompts: list[Any]) -> None:
    """Says that the memory flags change nothing: no memory layer, nothing in memory, or top-k takes all of it."""
    from fot_jax.infer.windows import reads_memory

    longest, W = max(map(len, prompts)), model.local_context
    if not model.memory_layers:
        print("memory: not read, as model.memory_layers names no layer", file=sys.stderr)
    elif not any(reads_memory(len(ids), model, memory) for ids in prompts):
        line = f"memory: not read before the local context of {W} overflows, as the prompts ({longest} tokens) fit it"
        print(line, file=sys.stderr)
    elif memory.retrieval is not Retrieval.DENSE and memory.top_k >= longest:
        line = f"memory: read whole, as by 'dense': memory.top_k={memory.top_k} is not below its entries"
        print(f"{line}, {longest} at most", file=sys.stderr)


def save_memory(
    model: "Model", store: Any, flags: argparse.Namespace, *, before: int, stop: interrupts.SignalStop
) -> None:
    """Writes the memory, which held `before` entries at the start; after a signal it says so and ends the process."""
    from fot_jax.memory import files

    new = int(store.appended.sum()) - before
    if stop.number and not new:
        interrupts.exit_interrupted(stop.number, "nothing was read, no memory is saved.")
    place = flags.save_memory
    if stop.number and files.is_memory(place):
        place += ".interrupted"
    model.save_store(store, place)
    saved = f"memory of {store.bytes() / 2**20:,.1f} MiB saved to {place}"
    if stop.number:
        interrupts.exit_interrupted(
            stop.number, f"{saved}, {new:,} tokens read or written; --load-memory={place} reads on."
        )
    print(saved, file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    add_flags(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
