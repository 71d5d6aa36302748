"""Continues a prompt of any length, which is read window by window into memory.

python -m launch.generate --workdir=runs/tiny_code --prompt="def main("
python -m launch.generate --workdir=runs/tiny_code --prompt-file=prompt.txt
cat book.txt | python -m launch.generate --workdir=DIR --prompt-file=- --memory.retrieval=scann
python -m launch.generate --workdir=DIR --prompt-file=book.txt --question="Who is the murderer?" --chat
python -m launch.generate --workdir=DIR --prompt-file=story.txt --save-memory=story.mem
python -m launch.generate --workdir=DIR --prompt="And then" --load-memory=story.mem --save-memory=longer.mem
python -m launch.generate --workdir=DIR --prompt-file=book.txt --memory.retrieval=approx --mesh.fsdp=8

For one text and its continuation; launch.read reads texts once and answers any number of questions about them.

The text streams to stdout; progress goes to stderr. Several prompts are read as one batch, each with a memory of its
own, and each text is printed when all are done. --question follows each prompt after a blank line. --save-memory keeps
all that was read and written, the local context included. Ctrl-C (exit code 130) and SIGTERM (143) end it after the
current window or token and save what has been read: to DIR, or to DIR.interrupted where DIR holds a memory. A second
signal ends it at once.

With --chat each prompt becomes the user's message in the checkpoint's own chat template. Without it names of special
tokens in a prompt are special tokens; with it they are text. Compiled programs are kept for the next process, as in
launch.train.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fot_jax.config import MemoryConfig, ModelConfig, Retrieval, UserError
from fot_jax.infer.progress import show_progress
from launch import answering, cli, interrupts


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags; memory flags default to the run's own config."""
    cli.add_workdir_flag(parser, required=True)
    cli.add_step_flag(parser)
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="a prompt; repeated: each is continued"
    )
    file_help = "a prompt as UTF-8 text; '-': stdin; may be repeated"
    parser.add_argument("--prompt-file", type=cli.on_disk, action="append", default=[], metavar="FILE", help=file_help)
    parser.add_argument("--question", metavar="TEXT", help="text after each prompt and a blank line")
    answering.add_answer_flags(parser)
    answering.add_memory_flags(parser, load="go on with it", save="written at the end")


def read_prompt(path: str) -> str:
    """Reads a prompt, without a byte order mark. Raises UserError where a file is missing, unreadable or not UTF-8."""
    from fot_jax.data.utf8 import decode_file

    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--prompt-file must name a readable file or '-', got {path!r} ({error.strerror}).") from error
    return decode_file(data, where=f"--prompt-file {path!r}")


def read_prompts(flags: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Reads the prompts, files first: the name of each, and its text with the question after it.

    Raises:
      UserError: there is no prompt, one is empty, or a file cannot be read.
    """
    if not flags.prompt_file and not flags.prompt:
        alone = " --question follows a prompt; launch.read asks a saved memory." if flags.question else ""
        raise UserError(f"launch.generate needs a prompt: --prompt=TEXT, --prompt-file=FILE or both.{alone}")
    named = [(path, read_prompt(path), "--prompt-file") for path in flags.prompt_file]
    named += [(text, text, "--prompt") for text in flags.prompt]
    for name, text, flag in named:
        if not text:
            raise UserError(f"{flag} must hold text, got {name!r}, which is empty.")
    after = f"\n\n{flags.question}" if flags.question else ""
    texts = [(text.rstrip("\n") if after else text) + after for _, text, _ in named]
    return [name for name, _, _ in named], texts


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
    sampling = answering.sampling_of(flags)

    from fot_jax.data.vocabulary import check_ids
    from fot_jax.infer.windows import flush_local_cache
    from fot_jax.library import open_vocabulary

    config = answering.read_run_config(flags)
    names, texts = read_prompts(flags)
    if (flags.load_memory or flags.save_memory) and not config.model.memory_layers:
        raise UserError(f"--load-memory and --save-memory need a model with memory layers; {flags.workdir} has none.")
    answering.check_place(flags)
    vocabulary = open_vocabulary(config)
    prompts = encode_prompts(vocabulary, texts, flags)
    for prompt in prompts:
        check_ids(vocabulary, prompt.tolist(), config.model)
    model = answering.load_model(flags, config.memory)
    store = model.load_store(flags.load_memory) if flags.load_memory else model.new_store(streams=len(prompts))
    before = 0 if store is None else int(store.appended.sum())
    if {"retrieval", "top_k"} & set(cli.section_changes(flags, "memory")) and not before:
        warn_if_memory_unread(model.config, config.memory, prompts)
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
                flush_local_cache(model.config, reading)
        except interrupts.Stopped:
            pass  # between two windows: the store holds those before
        if flags.save_memory and store is not None:
            new = int(store.appended.sum()) - before
            answering.save_memory(model, store, flags.save_memory, new=new, stop=stop)


def warn_if_memory_unread(model: ModelConfig, memory: MemoryConfig, prompts: list[Any]) -> None:
    """Says that the memory flags change nothing: no memory layer, nothing in memory, or top-k takes all of it."""
    from fot_jax.infer.cuts import reads_memory

    longest, W = max(map(len, prompts)), model.local_context
    if not model.memory_layers:
        print("memory: not read, as model.memory_layers names no layer", file=sys.stderr)
    elif not any(reads_memory(len(ids), model, memory) for ids in prompts):
        line = f"memory: not read before the local context of {W} overflows, as the prompts ({longest} tokens) fit it"
        print(line, file=sys.stderr)
    elif memory.retrieval is not Retrieval.DENSE and memory.top_k >= longest:
        line = f"memory: read whole, as by 'dense': memory.top_k={memory.top_k} is not below its entries"
        print(f"{line}, {longest} at most", file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    add_flags(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
