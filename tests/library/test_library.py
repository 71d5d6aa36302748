"""The library on a tiny run: against launch.generate, a float64 reader of single tokens, and itself."""

import io
import itertools
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest

import fot_jax
from fot_jax.config import MemoryPositions
from fot_jax.infer.cuts import window_lengths
from fot_jax.infer.progress import ReadProgress
from fot_jax.library import StopReading
from launch import cli, generate
from tests.eval.tiny_models import random_params
from tests.eval.workdirs import LENGTH, experiment, write_run
from tests.infer.oracle_reader import Reader

ROOT = pathlib.Path(__file__).parents[2]
TEXT = "The whale was naïvely drawn by one Ishmael, in 1851, and nobody has seen it since."  # six windows of bytes
OTHER = "Another book: of a garden, of two sisters, and of rain."
SHORT, LONG = "Who?", "Who drew the whale, when, and who saw it after that?"  # one window; several


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    write_run(folder / "run", experiment(folder, memory_layers=[0, 1]))
    write_run(folder / "plain", experiment(folder, memory_layers=[]))
    write_run(folder / "other", experiment(folder, memory_layers=[0, 1], mlp_dim=40))
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return fot_jax.load(folder / "run")


@pytest.fixture(scope="module")
def book(model):
    return model.read(TEXT)


def entries(memory) -> list[np.ndarray]:
    store = memory.source.store
    return [array.copy() for array in store.take(0, store.live(0))]


def generated(capfd, *arguments: str) -> str:
    cli.run(generate.main, generate.make_parser(), arguments)
    return capfd.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize("question", [SHORT, LONG])
def test_ask_equals_the_generate_command(folder, book, model, capfd, tmp_path, question):
    """One new token, which is not read, leaves the command's memory with exactly the text."""
    run, saved = f"--workdir={folder / 'run'}", tmp_path / "memory"
    generated(capfd, run, f"--prompt-file={folder / 'text.txt'}", "--max-new-tokens=1", f"--save-memory={saved}")
    want = generated(capfd, run, f"--load-memory={saved}", f"--prompt={question}", "--max-new-tokens=24")
    assert len(want) > 12
    assert book.ask(question, max_new_tokens=24) == want
    assert model.load_memory(saved).ask(question, max_new_tokens=24) == want
    assert book.num_tokens == len(TEXT.encode())
    alone = generated(capfd, run, f"--prompt={question}", "--max-new-tokens=24")
    assert model.new_memory().ask(question, max_new_tokens=24) == alone != want


@pytest.mark.parametrize("changes", [{}, {"budget": 40}, {"last_context": "exact"}], ids=["all", "budget", "exact"])
def test_a_question_leaves_the_memory_as_it_was(model, changes):
    """Asked twice, and by two streams at once, with answers that overflow the local context."""
    book = model.with_memory(**changes).read(TEXT)
    before, tokens = entries(book), book.num_tokens
    first = [book.ask(question, max_new_tokens=24) for question in (SHORT, LONG)]
    pieces = [book.stream(question, max_new_tokens=24) for question in (SHORT, LONG)]
    streamed = list(itertools.zip_longest(*pieces, fillvalue=""))
    assert ["".join(column) for column in zip(*streamed, strict=True)] == first
    assert [book.ask(question, max_new_tokens=24) for question in (SHORT, LONG)] == first
    assert book.num_tokens == tokens
    for old, new in zip(before, entries(book), strict=True):
        np.testing.assert_array_equal(old, new)


def test_questions_of_a_batch_are_answered_as_alone(book):
    """Short answers share a batch, long ones would share a memory and must not."""
    questions = [SHORT, LONG, "When?", OTHER, "It was a"]
    for new in (6, 24):
        alone = [book.ask(question, max_new_tokens=new) for question in questions]
        assert book.ask_each(questions, max_new_tokens=new) == alone
    assert len(set(alone)) > 2


def test_short_questions_are_read_in_one_batch(book, monkeypatch):
    rows = []
    read = fot_jax.library.model.windows.read
    monkeypatch.setattr("fot_jax.infer.windows.read", lambda *a, **f: rows.append(len(a[2])) or read(*a, **f))
    book.ask_each([SHORT, LONG, "When?"], max_new_tokens=6)
    assert rows == [2, 1]


@pytest.mark.parametrize("retrieval", ["exact", "approx", "scann"])
def test_retrievals_that_find_everything_score_alike(model, book, retrieval):
    """The nearest entry alone gives other scores."""
    found, few = (model.with_memory(retrieval=retrieval, top_k=k).read(TEXT) for k in (500, 1))
    want = model.score(OTHER, memory=book)
    np.testing.assert_allclose(model.score(OTHER, memory=found), want, rtol=1e-4, atol=1e-3)
    assert np.abs(model.score(OTHER, memory=few) - want).max() > 0.1


def oracle(model) -> Reader:
    config = model.config
    return Reader(
        jax.tree.map(lambda x: np.asarray(x, np.float64), random_params(config)),
        memory_layers=config.memory_layers,
        top_k=None,
        rotate_memory_layers=config.memory_positions is MemoryPositions.ROPE0,
        theta=config.rope.theta,
        epsilon=config.norm_epsilon,
    )


def log_probability(logits: np.ndarray, token: int) -> float:
    return logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def oracle_scores(reader: Reader, ids, cuts: list[int], overlap: int) -> list[float]:
    """Scores of a text in windows; at its end all of it is in memory."""
    scores, start, logits = [], 0, np.zeros(0)
    waiting = {n: [] for n in reader.memory_layers}
    for number, cut in enumerate(cuts):
        again = 0 if number in (0, len(cuts) - 1) else overlap
        stay = overlap if number < len(cuts) - 2 else 0
        if number:
            scores.append(log_probability(logits, ids[start]))  # by the window before
        for place in range(start - again, start + cut):
            if place > start:
                scores.append(log_probability(logits, ids[place]))
            logits = reader.feed(int(ids[place]))
        for n in reader.memory_layers:
            pairs = waiting[n] + reader.local[n][again:]
            reader.memory[n] += pairs[: len(pairs) - stay]
            waiting[n] = pairs[len(pairs) - stay :]
        reader.local = [[] for _ in reader.local]
        start += cut
    return scores


@pytest.mark.parametrize("overlap", [0, 5])
def test_scores_equal_the_oracle(model, overlap):
    """A text alone, and another one after it in memory."""
    model, reader = model.with_memory(overlap=overlap), oracle(model)
    first, second = model.encode(TEXT), model.encode(OTHER)
    cuts = [window_lengths(len(ids), model.config, model.memory) for ids in (first, second)]
    assert min(map(len, cuts)) >= 4
    want = [oracle_scores(reader, ids, cut, overlap) for ids, cut in zip((first, second), cuts, strict=True)]
    book = model.read(TEXT)
    got = [model.score(TEXT), model.score(second, memory=book)]
    for scores, expected, ids in zip(got, want, (first, second), strict=True):
        assert scores.shape == (len(ids) - 1,)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)
    assert np.abs(got[1] - model.score(second)).max() > 0.1, "the memory counts"
    assert book.num_tokens == len(first)


def test_forced_tokens_equal_the_oracle(model, book):
    """A prompt of one window, then 40 tokens, for which the local context slides."""
    reader = oracle(model)
    ids = model.encode(TEXT)
    oracle_scores(reader, ids, window_lengths(len(ids), model.config, model.memory), 0)
    prompt, forced = model.encode("It was a"), model.encode(OTHER)[:40]
    for token in prompt:
        logits = reader.feed(int(token))
    want, slides = [], 0
    for token in forced:
        want.append(log_probability(logits, token))
        if len(reader.local[0]) == LENGTH:
            reader.push_oldest(LENGTH // 2)
            slides += 1
        logits = reader.feed(int(token))
    assert slides == 4
    got = model.score(forced, memory=book, after=prompt)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_forced_tokens_equal_the_scores_of_the_whole(model, book):
    """Prompt and continuation fit one window."""
    prompt, forced = "It was", " a whale"
    whole = model.score(prompt + forced, memory=book)
    got = model.score(forced, memory=book, after=prompt)
    np.testing.assert_allclose(got, whole[len(prompt) - 1 :], rtol=1e-5, atol=1e-4)
    assert len(got) == len(forced)


def test_a_greedy_answer_is_the_likeliest(model, book):
    """Each token of a forced answer scores at least as well as any other in its place."""
    (answer,) = book.generate_each([SHORT], max_new_tokens=4, end_ids=())
    scores = model.score(answer, memory=book, after=SHORT)
    for place in range(4):
        for other in range(3, 259, 17):
            changed = [*answer[:place], other]
            assert model.score(changed, memory=book, after=SHORT)[place] <= scores[place] + 1e-4


def test_any_of_several_end_tokens_ends_an_answer(book):
    (free,) = book.generate_each([LONG], max_new_tokens=24, end_ids=())
    assert len(free) == 24 and len(set(free)) > 3
    ends = {free[9], free[5]}
    first = min(free.index(end) for end in ends)
    assert book.generate_each([LONG, SHORT], max_new_tokens=24, end_ids=ends)[0] == free[: first + 1]
    text = book.ask(LONG, max_new_tokens=24, end_ids=ends)
    assert text == book.model.vocabulary.decode(free[:first])


def test_documents_share_a_memory_or_have_their_own(model, book, folder):
    """Reading on leaves the first memory alone; a file and token ids read as their text does."""
    both = book.read(OTHER)
    assert both.num_tokens == book.num_tokens + len(OTHER)
    ask = {"max_new_tokens": 24}
    want = both.ask(LONG, **ask)
    assert model.read(TEXT, OTHER).ask(LONG, **ask) == want
    assert model.read(folder / "text.txt", model.encode(OTHER).tolist()).ask(LONG, **ask) == want
    own = model.read_each([TEXT, OTHER])
    assert [memory.ask(LONG, **ask) for memory in own] == [
        book.ask(LONG, **ask),
        model.read(OTHER).ask(LONG, **ask),
    ]
    for old, new in zip(entries(book), entries(both), strict=True):
        np.testing.assert_array_equal(old, new[:, :, : book.num_tokens])


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_saved_memory_answers_alike(model, book, folder, tmp_path, place, request):
    saved = f"{tmp_path if place == 'disk' else request.getfixturevalue('bucket')}/memory"
    book.save(saved)
    loaded = model.load_memory(saved)
    for old, new in zip(entries(book), entries(loaded), strict=True):
        np.testing.assert_array_equal(old, new)
    assert loaded.ask(LONG, max_new_tokens=24) == book.ask(LONG, max_new_tokens=24)
    with pytest.raises(fot_jax.UserError, match=r"which holds a memory\. Name another folder, or .* replace=True"):
        loaded.save(saved)
    loaded.read(OTHER).save(saved, replace=True)
    assert model.load_memory(saved).num_tokens == book.num_tokens + len(OTHER)
    with pytest.raises(fot_jax.UserError, match="must come from this model"):
        fot_jax.load(folder / "other").load_memory(saved)


def test_memories_of_several_prompts_are_loaded_by_number(model, folder, capfd, tmp_path):
    (tmp_path / "other.txt").write_text(OTHER)
    prompts = [f"--prompt-file={path}" for path in (folder / "text.txt", tmp_path / "other.txt")]
    where = f"--save-memory={tmp_path / 'memory'}"
    generated(capfd, f"--workdir={folder / 'run'}", *prompts, "--max-new-tokens=1", where)
    with pytest.raises(fot_jax.UserError, match="must hold one stream, got 2"):
        model.load_memory(tmp_path / "memory")
    second = model.load_memory(tmp_path / "memory", stream=1)
    assert second.ask(LONG, max_new_tokens=24) == model.read(OTHER).ask(LONG, max_new_tokens=24)


def test_a_mesh_and_another_dtype_are_of_the_model(folder, book):
    """Eight devices answer as one; bfloat16 is the dtype of the memory too."""
    spread = fot_jax.load(folder / "run", mesh=fot_jax.MeshConfig(fsdp=4))
    assert spread.read(TEXT).ask(LONG, max_new_tokens=12) == book.ask(LONG, max_new_tokens=12)
    half = fot_jax.load(folder / "run", dtype="bfloat16").read(TEXT)
    assert half.source.store.dtype.name == "bfloat16" != book.source.store.dtype.name
    assert half.source.store.bytes() * 2 == book.source.store.bytes()


def test_a_model_without_memory_answers_and_scores(folder):
    plain = fot_jax.load(folder / "plain")
    answers = [plain.new_memory().ask(question, max_new_tokens=12) for question in (SHORT, "When?")]
    assert plain.new_memory().ask_each([SHORT, "When?"], max_new_tokens=12) == answers
    assert plain.score(TEXT).shape == (len(TEXT.encode()) - 1,)
    for refused in (lambda: plain.read(TEXT), lambda: plain.read_each([TEXT])):
        with pytest.raises(fot_jax.UserError, match="by a model with memory layers"):
            refused()


@pytest.mark.parametrize(
    ("at", "read", "texts"), [(32, 32, 1), (len(TEXT.encode()), len(TEXT.encode()), 1), (99, 99, 2)]
)
def test_a_reading_that_is_stopped_keeps_its_windows(model, folder, at, read, texts):
    """Within the first text, at its end, and within the second; what is kept is what reading on would have."""

    def stop(so_far):
        if so_far.tokens_read >= at:
            raise StopReading

    part = model.read(folder / "text.txt", OTHER, progress=stop)
    assert part.num_tokens == read
    assert part.texts == ((str(folder / "text.txt"), TEXT), ("text 2", OTHER))[:texts]
    for got, whole in zip(entries(part), entries(model.read(TEXT, OTHER)), strict=True):
        np.testing.assert_array_equal(got, whole[:, :, :read])


def test_prompts_of_an_empty_memory_are_one_batch(model, monkeypatch):
    """Long ones too, each with a memory of its own."""
    prompts = [TEXT, OTHER, SHORT, TEXT + OTHER]
    want = [model.new_memory().ask(prompt, max_new_tokens=12) for prompt in prompts]
    rows = []
    read = fot_jax.library.model.windows.read
    monkeypatch.setattr("fot_jax.infer.windows.read", lambda *a, **f: rows.append(len(a[2])) or read(*a, **f))
    assert model.new_memory().ask_each(prompts, max_new_tokens=12) == want
    assert rows == [4] and len(set(want)) == 4


def test_the_line_of_an_answer_is_found(model, folder):
    """Words count, not where lines are broken nor the punctuation at the end; token ids have no lines."""
    text = "A garden.\nTwo sisters\nand some rain.\nThe garden was\nbig. [a+b]"
    book = model.read(text, model.encode("Where is Ishmael?"), folder / "text.txt")
    assert [name for name, _ in book.texts] == ["text 1", str(folder / "text.txt")]
    for answer, want in [
        (" Two sisters and some rain!\nNothing else", "text 1:2: Two sisters"),
        ("\n  garden", "text 1:1: A garden. (first of 2)"),
        ("one Ishmael,", f"{folder / 'text.txt'}:1: {TEXT}"),
        ("[a+b]", "text 1:5: big. [a+b]"),
        ("Where is Ishmael?", "None"),
        ("two sisters", "None"),
        (" \n", "None"),
    ]:
        assert str(book.find(answer)) == want, answer


def test_the_texts_of_a_memory_are_saved_with_it(model, book, tmp_path):
    both = book.read(OTHER)
    both.save(tmp_path / "memory")
    assert model.load_memory(tmp_path / "memory").texts == both.texts == (("text 1", TEXT), ("text 2", OTHER))
    assert [one.texts for one in model.read_each([TEXT, OTHER])] == [(("text 1", TEXT),), (("text 2", OTHER),)]


def test_another_local_context_is_that_of_the_windows(folder, model):
    """Windows of 8: the cost tells; memories of both are read by both."""
    narrow = fot_jax.load(folder / "run", local_context=8)
    lengths = [len(window_lengths(83, one.config, one.memory)) for one in (model, narrow)]
    costs = [one.new_memory().cost(TEXT) for one in (model, narrow)]
    assert [cost.windows for cost in costs] == lengths == [6, 11]
    assert str(costs[1]) == "to read: 1 text, 83 tokens in 11 windows of 8; memory then: 0.0 MiB"
    assert costs[0].memory_bytes == model.read(TEXT).source.store.bytes()
    assert narrow.fingerprint == model.fingerprint
    with pytest.raises(fot_jax.UserError, match=r"model\.local_context must be >= 1, got 0"):
        fot_jax.load(folder / "run", local_context=0)


def test_scores_show_their_progress(model, book):
    seen = []
    model.score(TEXT, progress=seen.append)
    model.score(SHORT, memory=book, after=TEXT, progress=seen.append)
    assert [one.tokens_read for one in seen] == [16, 32, 48, 64, 75, 83] * 2
    assert {one.tokens_total for one in seen} == {83}


def test_progress_counts_all_documents(model):
    seen = []
    model.read(TEXT, OTHER, progress=seen.append)
    assert [one.tokens_read for one in seen] == sorted({one.tokens_read for one in seen})
    assert {one.tokens_total for one in seen} == {seen[-1].tokens_read} == {len(TEXT.encode()) + len(OTHER)}


def test_progress_is_shown_on_a_terminal_alone(monkeypatch):
    progress = {"tokens_total": 4000, "memory_bytes": 2**20}
    for terminal, want in (
        (False, ""),
        (
            True,
            "\r\x1b[Kread 1,000 of 4,000 tokens, 20 tokens/s, memory 1.0 MiB, 2:30 left"
            "\r\x1b[Kread 4,000 of 4,000 tokens, 40 tokens/s, memory 1.0 MiB\n",
        ),
    ):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", stream)
        fot_jax.library.model.show_on_terminal(ReadProgress(tokens_read=1000, seconds=50.0, **progress))
        fot_jax.library.model.show_on_terminal(ReadProgress(tokens_read=4000, seconds=100.0, **progress))
        assert stream.getvalue() == want


def test_what_a_user_gets_wrong_is_one_line(model, book, folder, tmp_path):
    other = fot_jax.load(folder / "other")
    (tmp_path / "binary").write_bytes(b"ab\xff")
    cases = [
        (lambda: fot_jax.load(tmp_path), "must hold config.json, got '.*', which has none. Name the folder"),
        (lambda: fot_jax.load(folder / "run", step=7), r"must hold the checkpoint asked for \(7\)"),
        (lambda: fot_jax.load(folder / "run", dtype="float8"), "model.dtype must be one of 'float32', 'bfloat16'"),
        (lambda: fot_jax.load(folder / "run", mesh=fot_jax.MeshConfig(data=3)), "must multiply to the 8 devices"),
        (lambda: model.with_memory(retreival="exact"), "retreival is unknown .* Did you mean 'retrieval'"),
        (lambda: model.with_memory(top_k=0), "memory.top_k must be >= 1, got 0"),
        (lambda: model.with_memory(overlap=9), "memory.overlap must be at most half of the local context, 8, got 9"),
        (model.read, "inputs must hold at least one input, got 0"),
        (lambda: model.read(""), "a text must hold at least one character, got ''"),
        (lambda: model.read([]), "input 0 must hold at least one token"),
        (lambda: model.read(TEXT, [3, 259]), r"input 1 must hold token ids in 0..258, got 259"),
        (lambda: model.read([3, -1]), r"input 0 must hold token ids in 0..258, got -1"),
        (lambda: model.read([2**40]), r"input 0 must hold token ids in 0..258, got 1099511627776"),
        (lambda: model.read([0.5]), "must be a str, a Path or one sequence of token ids, got a list of float64"),
        (lambda: model.read([TEXT, OTHER]), "one sequence of token ids, got a list of <U"),
        (lambda: model.read(tmp_path / "none"), "a text's file must be readable, got '.*none'"),
        (lambda: model.read(tmp_path / "binary"), "must be valid UTF-8, got byte 0xff at offset 2"),
        (lambda: book.ask(""), "a text must hold at least one character"),
        (lambda: book.ask(SHORT, max_new_tokens=0), "max_new_tokens must be >= 1, got 0"),
        (lambda: book.stream(SHORT, sampling=fot_jax.SamplingConfig(top_p=0.0)), "sampling.top_p must be in"),
        (lambda: other.score(TEXT, memory=book), "memory must come from this model .* got one of another model"),
        (lambda: model.score([5], after=[]), "input 0 must hold at least one token"),
        (lambda: model.load_memory(tmp_path), "memory folder must hold meta.json"),
        (lambda: book.ask_each(SHORT), "several texts must be a list, got one text"),
        (lambda: model.read_each(TEXT), "several texts must be a list, got one text"),
    ]
    for call, message in cases:
        with pytest.raises(fot_jax.UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def code_of(page: str, heading: str) -> str:
    """Returns the indented lines of a page's section."""
    section = (ROOT / page).read_text(encoding="utf-8").split(f"# {heading}\n")[1].split("\n## ")[0]
    return "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("README.md", "From Python"),
        ("docs/library.md", "The library"),
        ("docs/tutorial.md", "2. From Python"),
        ("docs/tutorial.md", "The same from Python"),
    ],
)
def test_the_lines_of_the_docs_run(folder, tmp_path, monkeypatch, page, heading):
    """On this run and this text instead of the page's."""
    code = code_of(page, heading)
    runs = ("runs/tiny_code", "runs/smollm2", "runs/reader")
    for theirs, ours in (*((run, "run") for run in runs), ("README.md", "text.txt"), ("book.txt", "text.txt")):
        code = code.replace(f'"{theirs}"', repr(str(folder / ours)))
    assert len(code.splitlines()) >= 5 and str(folder / "run") in code
    (tmp_path / "lines.py").write_text(f"text = {TEXT!r}\n{code}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    book = runpy.run_path("lines.py")["book"]
    assert book.num_tokens == len(TEXT.encode())


def test_the_name_of_a_file_is_read_as_a_text(model, tmp_path, monkeypatch, caplog):
    """Says so: read("book.txt") would otherwise answer from eight characters."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("another text")
    assert model.read("book.txt").num_tokens == len("book.txt")
    assert "'book.txt': read as a text of its own, not as the file of that name" in caplog.text


def test_every_name_of_the_package_is_there():
    assert sorted(fot_jax._MODULES) == sorted(fot_jax.__all__)
    assert all(getattr(fot_jax, name).__name__ == name for name in fot_jax.__all__)
    assert set(fot_jax.__all__) <= set(dir(fot_jax))
    with pytest.raises(AttributeError, match="module 'fot_jax' has no attribute 'lode'"):
        fot_jax.lode  # noqa: B018
