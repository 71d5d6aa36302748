"""Reads texts into a memory, and answers questions about them.

python -m launch.read --workdir=DIR --text=book.txt --save-memory=book.mem            # once; --text may be repeated
python -m launch.read --workdir=DIR --load-memory=book.mem                            # asks for questions
python -m launch.read --workdir=DIR --load-memory=book.mem --prompt="The murderer is" --prompt="She was born in"
cat questions.txt | python -m launch.read --workdir=DIR --load-memory=book.mem --chat # one question a line
python -m launch.read --workdir=DIR --load-memory=book.mem --text=sequel.txt --save-memory=both.mem

Questions are those of --prompt, else the lines of stdin, or those that you type: Ctrl-C ends an answer, Ctrl-D the
command. With --save-memory and no --prompt nothing is asked. A question sees the memory and nothing of the questions
before it; it and its answer leave the memory as it was. launch.generate continues one text instead.

Answers stream to stdout, under the question where there may be several. stderr says the cost of reading before it
starts, the tokens per second without compiling, and the line of the text in which the first line of an answer is, word
for word. Ctrl-C (exit code 130) and SIGTERM (143) end reading for --save-memory after the current window and save what
was read: to DIR, or to DIR.interrupted where DIR holds a memory. A second signal ends it at once.

With --chat a question becomes the user's message in the checkpoint's own chat template. Compiled programs are kept for
the next process, as in launch.train.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fot_jax.config import ExperimentConfig, UserError
from fot_jax.config.errors import check_room
from fot_jax.infer.progress import ReadProgress, StopReading, show_progress
from fot_jax.storage.paths import in_bucket
from launch import answering, cli, interrupts

if TYPE_CHECKING:
    from fot_jax import Memory, Model
    from fot_jax.library import Text


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_workdir_flag(parser, required=True)
    cli.add_step_flag(parser)
    text_help = "UTF-8 text to read; '-': stdin; repeated: one after another into one memory"
    parser.add_argument("--text", type=cli.on_disk, action="append", default=[], metavar="FILE", help=text_help)
    prompt_help = "a prompt; a question or words to continue; repeated: each sees the memory alone"
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help=prompt_help)
    answering.add_answer_flags(parser)
    answering.add_memory_flags(
        parser, load="ask about it, or add --text to it", save="written once all texts are read"
    )  # fmt: skip
    return parser


def main(flags: argparse.Namespace) -> None:
    """Loads the model, reads or loads the memory, and answers."""
    how = {"sampling": answering.sampling_of(flags), "max_new_tokens": flags.max_new_tokens}
    check_flags(flags)

    from fot_jax.library import encode, open_vocabulary

    config = answering.read_run_config(flags)
    check_memory_layers(config, flags)
    answering.check_place(flags)
    texts = load_texts(flags.text)
    vocabulary = open_vocabulary(config)
    for question in flags.prompt or ["?"] * flags.chat:  # a template that fails does so before anything is read
        encode(vocabulary, question, chat=flags.chat, system=flags.system)
    model = answering.load_model(flags, config.memory)
    book = read_texts(model, texts, flags)
    if flags.save_memory and not flags.prompt:
        return

    def ask(question: str) -> Iterator[str]:
        return book.stream(model.encode(question, chat=flags.chat, system=flags.system), **how)

    if not flags.prompt and sys.stdin.isatty():
        converse(book, ask)
        return
    for question in flags.prompt or questions_of(sys.stdin):
        if len(flags.prompt) != 1:
            print(f"== {question}", flush=True)
        write_answer(book, ask(question))


def check_flags(flags: argparse.Namespace) -> None:
    """Raises UserError where there is nothing to read or to ask, before anything is loaded."""
    if not flags.text and not flags.load_memory:
        raise UserError("launch.read needs a text or a memory: --text=FILE, --load-memory=DIR or both.")
    if flags.save_memory and not flags.text:
        raise UserError("--save-memory needs --text=FILE: the memory that was loaded is saved already.")
    if flags.text.count("-") > 1 or ("-" in flags.text and not flags.prompt and not flags.save_memory):
        raise UserError("--text=- takes all of stdin as one text: ask with --prompt=TEXT, or save with --save-memory.")
    if not all(text.strip() for text in flags.prompt):
        raise UserError("--prompt must hold text, got an empty one.")


def check_memory_layers(config: ExperimentConfig, flags: argparse.Namespace) -> None:
    """Raises UserError for a model that cannot read a text into memory."""
    if not config.model.memory_layers:
        raise UserError(
            f"launch.read needs a model with memory layers; {flags.workdir} has none. launch.generate continues a text"
            " that fits its local context."
        )


def load_texts(names: Iterable[str]) -> list["Text"]:
    """Returns the files of --text, and the text of stdin for '-'. Raises UserError where one is empty or no text."""
    from fot_jax.data.utf8 import decode_file
    from fot_jax.library.texts import load_text

    texts: list[Text] = []
    for name in names:
        texts.append(Path(name) if name != "-" else decode_file(sys.stdin.buffer.read(), where="--text=-"))
        if not load_text(texts[-1]):
            raise UserError(f"--text must hold text, got {name!r}, which is empty.")
    return texts


def read_texts(model: "Model", texts: list["Text"], flags: argparse.Namespace) -> "Memory":
    """Returns the memory to ask: loaded, read, and saved, as the flags say."""
    book = model.load_memory(flags.load_memory) if flags.load_memory else model.new_memory()
    if not texts:
        return book
    cost = book.cost(*texts)
    answering.print_to_stderr(f"{cost}; the time left is shown once a window is read")
    if flags.save_memory and not in_bucket(flags.save_memory):
        check_room(Path(flags.save_memory).parent, cost.memory_bytes)
    stop, shown, before = interrupts.SignalStop(), [0.0], book.num_tokens

    def progress(so_far: ReadProgress) -> None:
        show_progress(so_far, shown=shown)
        if stop.number:
            raise StopReading

    with stop.catch_signals() if flags.save_memory else contextlib.nullcontext():
        book = book.read(*texts, progress=progress)
        if flags.save_memory:
            assert book.source is not None
            new = book.num_tokens - before
            store, place = book.source.store, flags.save_memory
            answering.save_memory(model, store, place, new=new, stop=stop, texts=book.texts)
    return book


def questions_of(lines: Iterable[str]) -> Iterator[str]:
    """Yields the lines that hold a question."""
    yield from filter(None, map(str.strip, lines))


def write_answer(book: "Memory", pieces: Iterable[str]) -> None:
    """Prints an answer as it comes, and on stderr the line of the text in which it is."""
    written = []
    for piece in pieces:
        print(piece, end="", flush=True)
        written.append(piece)
    print(flush=True)
    if book.texts:
        source = book.find("".join(written))
        answering.print_to_stderr(f"source: {source or 'none, the texts do not have these words'}")


def converse(book: "Memory", ask: Any) -> None:
    """Answers what is typed on a terminal until its end (Ctrl-D)."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # lets input() edit lines and recall earlier ones
    answering.print_to_stderr(f"{book.num_tokens:,} tokens in memory. Ctrl-C ends an answer, Ctrl-D the command.")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        stop = interrupts.SignalStop()
        with stop.catch_signals():
            try:
                if question:
                    write_answer(book, stop.until(ask(question)))
            except UserError as error:
                answering.print_to_stderr(f"error: {error}")
        if stop.number == signal.SIGTERM:
            interrupts.exit_interrupted(stop.number, "the answer ends here.")


if __name__ == "__main__":
    cli.run(main, make_parser())
