"""`python -m launch.generate` in process: a run folder, streaming, memories on disk, one line an error."""

import dataclasses
import functools
import io
import json
import os
import re
import signal
import types

import flax.linen as nn
import jax
import numpy as np
import pytest

from fot_jax.checkpoint import Checkpointer
from fot_jax.config import ExperimentConfig, MemoryConfig, UserError
from fot_jax.config.build import build, to_dict
from fot_jax.data.vocabulary import ByteVocabulary
from fot_jax.infer.generate import FINISHED
from fot_jax.infer.text_stream import TextStream
from fot_jax.models.transformer import Decoder
from launch import cli, generate
from tests.data.chat_tokenizers import save_tokenizer

RUN = {
    "name": "tiny",
    "model": {
        "num_layers": 2, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 16,
        "vocab_size": 259, "local_context": 16, "memory_layers": [1],
    },
    "data": {"sources": [{"name": "code", "kind": "stdlib"}]},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"steps": 1, "batch_rows": 2},
    "memory": {"retrieval": "dense"},
}  # fmt: skip


@functools.cache
def initial_params():
    config = build(ExperimentConfig, RUN)
    return nn.unbox(jax.jit(Decoder(config.model).init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"])


def make_run(folder, *, scale: float = 1.0):
    """A workdir with a config and one checkpoint."""
    folder.mkdir()
    config = build(ExperimentConfig, RUN)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    with Checkpointer(folder, config) as checkpoints:
        params = jax.tree.map(lambda x: x * scale, initial_params())
        checkpoints.save(1, params=params, optimizer={"count": np.zeros(())}, data={"step": 1}, heldout_loss=None)
    return folder


def call(*arguments: str) -> None:
    cli.run(generate.main, generate.make_parser(), arguments)


def fails(capfd, *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        call(*arguments)
    assert error.value.code == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_saves_and_reads_on_and_refuses_another_models_memory(tmp_path, capfd, monkeypatch):
    run, prompt = make_run(tmp_path / "run"), tmp_path / "prompt"
    prompt.write_text("def naïve(): return 'a text of more than two windows'", encoding="utf-8")
    usual = (f"--workdir={run}", "--max-new-tokens=9")
    call(*usual, f"--prompt-file={prompt}", f"--save-memory={tmp_path / 'memory'}")
    first = capfd.readouterr()
    assert "read 54 of 54 tokens" in first.err
    assert "MiB saved to" in first.err
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(prompt.read_bytes())))
    call(*usual, "--prompt-file=-")
    assert capfd.readouterr().out == first.out
    load = f"--load-memory={tmp_path / 'memory'}"
    call(*usual, f"--prompt-file={prompt}", load, f"--save-memory={tmp_path / 'more'}")
    lengths = [json.loads((tmp_path / name / "meta.json").read_text())["lengths"] for name in ("memory", "more")]
    assert lengths == [[62], [124]]
    other = make_run(tmp_path / "other", scale=1.01)
    message = fails(capfd, f"--workdir={other}", f"--prompt-file={prompt}", load)
    assert "must come from this model" in message


def interrupted(capfd, monkeypatch, number: int, *arguments: str, at: int) -> tuple[int, str, str]:
    """Exit code, text and errors of a call that gets a signal once `at` tokens are read, or with its first text."""
    push = TextStream.push

    def signal_from(tokens: int) -> None:
        if tokens >= at:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(generate, "show_progress", lambda so_far, shown: signal_from(so_far.tokens_read))
        patched.setattr(TextStream, "push", lambda stream, token: signal_from(at) or push(stream, token))
        with pytest.raises(SystemExit) as ended:
            call(*arguments)
    output = capfd.readouterr()
    return ended.value.code, output.out, output.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_reading_saves_its_windows(tmp_path, capfd, monkeypatch, number, code):
    """54 tokens in windows of 16: a signal after the second one keeps 32, which are those of the whole reading."""
    run, prompt, memory = make_run(tmp_path / "run"), tmp_path / "prompt", tmp_path / "memory"
    prompt.write_text("def naïve(): return 'a text of more than two windows'", encoding="utf-8")
    usual = (f"--workdir={run}", "--max-new-tokens=9", f"--prompt-file={prompt}", f"--save-memory={memory}")
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    got, text, errors = interrupted(capfd, monkeypatch, number, *usual, at=32)
    assert (got, text) == (code, "")
    line = f"memory of 0.0 MiB saved to {memory}, 32 tokens read or written; --load-memory={memory} reads on."
    assert errors.splitlines()[-1] == f"interrupted: {line}"
    assert json.loads((memory / "meta.json").read_text())["lengths"] == [32]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert f"got '{memory}', which holds a memory. Name another one, or add --replace." in fails(capfd, *usual)
    usual += ("--replace",)
    call(*usual)
    whole = json.loads((memory / "meta.json").read_text())
    assert whole["lengths"] == [62]
    got, _, errors = interrupted(capfd, monkeypatch, number, *usual, at=16)
    assert got == code and f"saved to {memory}.interrupted, 16 tokens" in errors
    assert json.loads((memory / "meta.json").read_text()) == whole, "a memory is not replaced by a part"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory", "memory.interrupted", "prompt", "run"]


def test_an_interrupted_generation_saves_what_it_wrote(tmp_path, capfd, monkeypatch):
    """A signal with the first token: the prompt is saved; the token itself is not read yet."""
    run, memory = make_run(tmp_path / "run"), tmp_path / "memory"
    usual = (f"--workdir={run}", "--max-new-tokens=9", "--prompt=who?", f"--save-memory={memory}")
    got, text, errors = interrupted(capfd, monkeypatch, signal.SIGINT, *usual, at=999)
    assert got == 130 and len(text) >= 1
    assert "4 tokens read or written" in errors.splitlines()[-1]
    assert json.loads((memory / "meta.json").read_text())["lengths"] == [4]


def test_a_memory_that_is_not_read_is_said_by_name(capsys):
    """Asked for by a flag: no memory layer, a prompt that fits the window, a top_k beyond all entries."""
    model, memory = build(ExperimentConfig, RUN).model, MemoryConfig(top_k=99)
    plain = dataclasses.replace(model, memory_layers=())
    for case, length in ((plain, 40), (model, 16), (model, 40), (model, 200)):
        generate.warn_if_memory_unread(case, memory, [np.zeros(length, np.int32)])
    assert capsys.readouterr().err.splitlines() == [
        "memory: not read, as model.memory_layers names no layer",
        "memory: not read before the local context of 16 overflows, as the prompts (16 tokens) fit it",
        "memory: read whole, as by 'dense': memory.top_k=99 is not below its entries, 40 at most",
    ]


def test_a_second_signal_ends_at_once(tmp_path, capfd, monkeypatch):
    run, memory = make_run(tmp_path / "run"), tmp_path / "memory"

    def save(*args, **fields):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("fot_jax.memory.files.save", save)
    usual = (f"--workdir={run}", "--max-new-tokens=9", "--prompt=who?", f"--save-memory={memory}")
    got, _, errors = interrupted(capfd, monkeypatch, signal.SIGINT, *usual, at=999)
    assert got == 130 and "saved" not in errors
    assert not memory.exists()


def test_a_memory_over_devices_gives_the_same_text(tmp_path, capfd):
    """One prompt over all eight devices, parameters over fsdp; a mesh that is not there is refused."""
    run, prompt = make_run(tmp_path / "run"), tmp_path / "prompt"
    prompt.write_text("def name(): return 'a text of more than two windows'", encoding="utf-8")
    usual = (f"--workdir={run}", "--max-new-tokens=9", f"--prompt-file={prompt}")
    texts = []
    for more in ((), ("--mesh.fsdp=4",), ("--mesh.fsdp=8", "--memory.retrieval=approx", "--memory.top_k=99")):
        call(*usual, *more)
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    assert "must multiply to the 8 devices present" in fails(capfd, *usual, "--mesh.data=3")


def test_a_question_goes_behind_every_prompt(tmp_path, capfd, monkeypatch):
    read_tokens = []
    monkeypatch.setattr("fot_jax.infer.windows.read", lambda *args, **fields: read_tokens.append(args[2]) or stop())

    def stop():
        raise UserError("seen")

    run, prompt = make_run(tmp_path / "run"), tmp_path / "prompt"
    prompt.write_text("a book\n\n")
    for arguments in ((f"--prompt-file={prompt}",), ("--prompt=a poem\n", f"--prompt-file={prompt}")):
        fails(capfd, f"--workdir={run}", "--question=who?", *arguments)
    texts = [[ByteVocabulary().decode(row) for row in rows] for rows in read_tokens]
    assert texts == [["a book\n\nwho?"], ["a book\n\nwho?", "a poem\n\nwho?"]]


def test_read_prompt_drops_a_byte_order_mark(tmp_path, monkeypatch):
    """The mark of a file and of stdin; everything else is text."""
    data = b"\xef\xbb\xbfHello\r\n"
    (tmp_path / "prompt").write_bytes(data)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert [generate.read_prompt(path) for path in (str(tmp_path / "prompt"), "-")] == ["Hello\r\n"] * 2


def test_prompts_begin_as_the_tokenizer_says(tmp_path):
    """BOS once, with a chat template or without."""
    template = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
    vocabulary = save_tokenizer(tmp_path / "t", template=template)

    def prompts(*arguments):
        flags = cli.parse_flags(generate.make_parser(), ("--workdir=x", "--prompt=who?", *arguments))
        (ids,) = generate.encode_prompts(vocabulary, generate.read_prompts(flags)[1], flags)
        return ids.tolist()

    encode = vocabulary.encode_trusted
    assert prompts() == encode("<s>who?")
    assert prompts("--chat") == encode("<s><|im_start|>user:who?")
    assert prompts("--chat", "--system=be brief") == encode("<s><|im_start|>system:be brief<|im_start|>user:who?")


def test_texts_of_several_prompts_are_told_apart(capfd):
    vocabulary = ByteVocabulary()
    rows = [vocabulary.encode("one") + [vocabulary.eos_id, FINISHED], vocabulary.encode("zwölf")[:5]]
    generate.write_texts(iter(np.array(rows).T), vocabulary, ["a", "b"])
    assert capfd.readouterr().out == "== a\none\n== b\nzwöl\n"


def test_what_a_user_gets_wrong_is_one_line(tmp_path, capfd):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_dict(build(ExperimentConfig, RUN))))
    good, empty, binary, wide = (tmp_path / name for name in ("good", "empty", "binary", "wide"))
    good.write_text("text")
    empty.write_text("")
    binary.write_bytes(b"ab\xff")
    wide.write_bytes("\ufefftext".encode("utf-16-le"))
    work = f"--workdir={run}"
    cases = [
        ((f"--workdir={tmp_path / 'none'}", f"--prompt-file={good}"), "--workdir must hold a run"),
        ((work,), "needs a prompt: --prompt=TEXT, --prompt-file=FILE or both"),
        ((work, "--question=who?"), "--question follows a prompt; launch.read asks a saved memory"),
        ((work, "--prompt="), "--prompt must hold text, got '', which is empty"),
        ((work, f"--prompt-file={good}", "--system=x"), "--system needs --chat"),
        ((work, "--prompt=who?", "--chat"), "chat needs a tokenizer with a chat template"),
        ((work, f"--prompt-file={tmp_path / 'missing'}"), "must name a readable file or '-'"),
        ((work, f"--prompt-file={binary}"), "binary' must be valid UTF-8, got byte 0xff at offset 2"),
        ((work, f"--prompt-file={wide}"), "wide' must be UTF-8, got UTF-16LE by its byte order mark. Convert it"),
        ((work, f"--prompt-file={empty}"), "must hold text, got .*empty', which is empty"),
        ((work, f"--prompt-file={good}", "--memory.retrieval=fast"), "memory.retrieval must be one of .*, got .fast."),
        (
            (work, f"--prompt-file={good}", "--memory.last_context_length=17"),
            "memory.last_context_length must be at most the local context, 16, got 17",
        ),
        (
            (work, f"--prompt-file={good}", "--memory.log_length_scaling_from=15"),
            r"memory.log_length_scaling_from must be 0 \(never\) or .*, 16, got 15",
        ),
        ((work, f"--prompt-file={good}", "--memory.overlap=9"), "memory.overlap must be at most half .*, 8, got 9"),
        ((work, f"--prompt-file={good}", "--memory.top_k=0"), "memory.top_k must be >= 1, got 0"),
        ((work, f"--prompt-file={good}", "--top-p=0"), r"sampling.top_p must be in \(0, 1\], got 0.0"),
        ((work, f"--prompt-file={good}", "--max-new-tokens=0"), "--max-new-tokens must be >= 1, got 0"),
        ((work, f"--prompt-file={good}", f"--save-memory={tmp_path}"), "memory folder must be new, empty or"),
        ((work, f"--prompt-file={good}"), "holds no checkpoint yet"),
    ]
    for arguments, message in cases:
        assert re.search(message, fails(capfd, *arguments)), arguments
