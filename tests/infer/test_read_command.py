"""`python -m launch.read` in process: reading for later, and questions by flag, by pipe and at a terminal."""

import io
import json
import os
import re
import signal
import sys

import pytest

import fot_jax
from fot_jax.config.build import to_dict
from launch import cli, read
from tests.eval.workdirs import experiment, write_run

TEXT = "The whale was naïvely drawn by one Ishmael, in 1851, and nobody has seen it since."
OTHER = "Another book: of a garden, of two sisters, and of rain."
QUESTIONS = ["Who?", "Who drew the whale, when, and who saw it after that?"]
SHORT = "--max-new-tokens=12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, two texts, and a memory of both that the command has saved."""
    folder = tmp_path_factory.mktemp("read")
    write_run(folder / "run", experiment(folder, memory_layers=[0, 1]))
    write_run(folder / "plain", experiment(folder, memory_layers=[]))
    for name, text in (("whale.txt", TEXT), ("garden.txt", OTHER), ("empty.txt", "")):
        (folder / name).write_text(text, encoding="utf-8")
    call(f"--workdir={folder / 'run'}", *texts(folder), f"--save-memory={folder / 'both.mem'}")
    return folder


def texts(folder) -> list[str]:
    return [f"--text={folder / name}" for name in ("whale.txt", "garden.txt")]


def call(*arguments: str) -> None:
    cli.run(read.main, read.make_parser(), arguments)


@pytest.fixture(scope="module")
def answers(folder) -> list[str]:
    """The library's."""
    book = fot_jax.load(folder / "run").read(folder / "whale.txt", folder / "garden.txt")
    return [book.ask(question, max_new_tokens=12) for question in QUESTIONS]


def usual(folder) -> tuple[str, ...]:
    return f"--workdir={folder / 'run'}", f"--load-memory={folder / 'both.mem'}", SHORT


def under_questions(answers: list[str]) -> str:
    return "".join(f"== {question}\n{answer}\n" for question, answer in zip(QUESTIONS, answers, strict=True))


def test_prompts_are_answered_as_by_the_library(folder, answers, capfd):
    """Several under their questions, one alone; of a saved memory, and of texts that are read and not saved."""
    prompts = [f"--prompt={question}" for question in QUESTIONS]
    call(*usual(folder), *prompts)
    assert capfd.readouterr().out == under_questions(answers)
    call(*usual(folder), prompts[1])
    assert capfd.readouterr().out == answers[1] + "\n"
    call(f"--workdir={folder / 'run'}", *texts(folder), *prompts, SHORT)
    assert capfd.readouterr().out == under_questions(answers)
    assert len(set(answers)) == 2


def test_a_pipe_holds_a_question_a_line(folder, answers, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTIONS[0]}\n\n  {QUESTIONS[1]}  \n"))
    call(*usual(folder))
    assert capfd.readouterr().out == under_questions(answers)


def at_terminal(monkeypatch, lines: list) -> None:
    """Types lines: a text, or an exception, such as Ctrl-D (EOFError) or Ctrl-C at the prompt."""

    def typed(prompt: str) -> str:
        line = lines.pop(0)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    stdin = io.StringIO()
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin)


def test_a_terminal_asks_until_its_end(folder, answers, capfd, monkeypatch):
    lines = [QUESTIONS[0], "  ", KeyboardInterrupt, QUESTIONS[1], EOFError, "not typed"]
    at_terminal(monkeypatch, lines)
    call(*usual(folder))
    written = capfd.readouterr()
    assert written.out == f"{answers[0]}\n\n{answers[1]}\n\n"
    assert f"{len(TEXT.encode()) + len(OTHER)} tokens in memory. Ctrl-C ends an answer" in written.err
    assert lines == ["not typed"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, None), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_answer_at_the_terminal(folder, answers, capfd, monkeypatch, number, code):
    """Ctrl-C ends the first answer after one piece, and the second question is answered; SIGTERM ends the command."""
    stream, streams = fot_jax.Memory.stream, []

    def interrupted(book, *args, **how):
        streams.append(book)
        for piece in stream(book, *args, **how):
            if len(streams) == 1:
                os.kill(os.getpid(), number)
            yield piece

    monkeypatch.setattr(fot_jax.Memory, "stream", interrupted)
    at_terminal(monkeypatch, [QUESTIONS[0], QUESTIONS[1], EOFError])
    before = signal.getsignal(number)
    if code:
        with pytest.raises(SystemExit) as ended:
            call(*usual(folder))
        assert ended.value.code == code
    else:
        call(*usual(folder))
    first, rest = capfd.readouterr().out.split("\n", 1)
    assert answers[0].startswith(first) and len(first) < len(answers[0])
    assert rest == ("" if code else f"{answers[1]}\n\n")
    assert signal.getsignal(number) == before


def test_the_line_of_an_answer_is_shown(folder, capfd, monkeypatch):
    pieces = {"Who?": [" one Ish", "mael.\nAnd more"], "When?": ["1852"]}
    monkeypatch.setattr(fot_jax.Memory, "stream", lambda book, ids, **_: pieces[book.model.vocabulary.decode(ids)])
    call(*usual(folder), "--prompt=Who?", "--prompt=When?")
    shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith("source: ")]
    assert shown == [
        f"source: {folder / 'whale.txt'}:1: {TEXT}",
        "source: none, the texts do not have these words",
    ]


def test_the_cost_is_said_before_reading(folder, capfd, tmp_path):
    """Two texts of 83 and 55 bytes, cut as 16 16 16 16 11 8 and 16 16 15 8."""
    call(f"--workdir={folder / 'run'}", *texts(folder), f"--save-memory={tmp_path / 'memory'}")
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("compilation cache")]
    assert lines[0] == (
        "to read: 2 texts, 138 tokens in 10 windows of 16; memory then: 0.0 MiB; the time left is shown once a window"
        " is read"
    )
    assert lines[1].startswith("read 138 of 138 tokens, ") and lines[2].startswith("memory of 0.0 MiB saved to ")
    assert json.loads((tmp_path / "memory" / "meta.json").read_text())["lengths"] == [138]


def test_a_memory_is_replaced_only_when_told_to(folder, capfd, tmp_path):
    memory, flags = tmp_path / "memory", (f"--workdir={folder / 'run'}", texts(folder)[0])
    call(*flags, f"--save-memory={memory}")
    before = (memory / "meta.json").read_bytes()
    message = fails(capfd, f"--workdir={folder / 'run'}", texts(folder)[1], f"--save-memory={memory}")
    assert f"got '{memory}', which holds a memory. Name another one, or add --replace." in message
    assert (memory / "meta.json").read_bytes() == before
    added = f"--load-memory={memory}"
    call(f"--workdir={folder / 'run'}", texts(folder)[1], added, f"--save-memory={memory}", "--replace")
    assert fot_jax.load(folder / "run").load_memory(memory).num_tokens == len(TEXT.encode()) + len(OTHER)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_reading_saves_its_windows(folder, capfd, monkeypatch, tmp_path, number, code):
    """A signal after the second window of 16 keeps 32 tokens; a memory is not replaced by a part."""
    flags = (f"--workdir={folder / 'run'}", *texts(folder), f"--save-memory={tmp_path / 'memory'}")
    call(*flags)
    whole = (tmp_path / "memory" / "meta.json").read_bytes()

    def stop(so_far, shown):
        if so_far.tokens_read >= 32:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(read, "show_progress", stop)
    with pytest.raises(SystemExit) as ended:
        call(*flags, "--replace", "--prompt=Who?")
    assert ended.value.code == code
    written = capfd.readouterr()
    part = tmp_path / "memory.interrupted"
    saved = f"interrupted: memory of 0.0 MiB saved to {part}, 32 tokens read or written; --load-memory={part} reads on."
    assert (written.out, written.err.splitlines()[-1]) == ("", saved)
    assert (tmp_path / "memory" / "meta.json").read_bytes() == whole
    assert fot_jax.load(folder / "run").load_memory(part).num_tokens == 32


def fails(capfd, *arguments: str) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as error:
        call(*arguments)
    assert error.value.code == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_what_a_user_gets_wrong_is_one_line(folder, capfd, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(experiment(folder))))
    (tmp_path / "binary").write_bytes(b"ab\xff")
    run, text, load = f"--workdir={tmp_path / 'run'}", f"--text={folder / 'whale.txt'}", "--load-memory=x"
    cases = [
        ((run,), "needs a text or a memory: --text=FILE, --load-memory=DIR or both"),
        ((run, load, "--save-memory=y"), "--save-memory needs --text=FILE"),
        ((run, text, "--replace"), "--replace needs --save-memory=DIR"),
        ((run, "--text=-"), "--text=- takes all of stdin as one text"),
        ((run, text, "--prompt= "), "--prompt must hold text, got an empty one"),
        ((run, f"--text={folder / 'empty.txt'}"), "--text must hold text, got '.*empty.txt', which is empty"),
        ((run, f"--text={tmp_path / 'none'}"), "a text's file must be readable, got '.*none'"),
        ((run, f"--text={tmp_path / 'binary'}"), "binary' must be valid UTF-8, got byte 0xff at offset 2"),
        ((run, text, "--system=x"), "--system needs --chat"),
        ((run, text, "--chat"), "chat needs a tokenizer with a chat template"),
        ((run, text, "--max-new-tokens=0"), "--max-new-tokens must be >= 1, got 0"),
        ((run, text, "--model.local_context=0"), "--model.local_context must be >= 1, got 0"),
        ((run, text, "--memory.overlap=9"), "memory.overlap must be at most half of the local context, 8, got 9"),
        ((run, text, "--model.local_context=8", "--memory.overlap=5"), "at most half of the local context, 4, got 5"),
        ((run, text, f"--save-memory={folder}"), "memory folder must be new, empty or an earlier memory"),
        ((f"--workdir={folder / 'plain'}", text), "needs a model with memory layers; .*plain has none"),
        ((run, text), "holds no checkpoint yet"),
    ]
    for arguments, message in cases:
        assert re.search(message, fails(capfd, *arguments)), arguments
