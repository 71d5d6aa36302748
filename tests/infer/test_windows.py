"""Reading in windows and generating past the cache, against a float64 reader of single tokens."""

import dataclasses
import logging

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fot_jax.config import ConfigError, LastContext, MemoryConfig, MemoryPositions, ModelConfig, Retrieval, UserError
from fot_jax.infer import past, windows
from fot_jax.infer.cuts import reads_memory, window_lengths_at_least, window_lengths_exact
from fot_jax.infer.generate import FINISHED, generate
from fot_jax.infer.reading import Reading
from fot_jax.infer.sampling import SamplingConfig
from fot_jax.infer.steps import absorb
from fot_jax.infer.windows import flush_local_cache, read
from fot_jax.logging import warn_once
from fot_jax.memory.scann_index import ScannIndex
from fot_jax.memory.store import MemoryStore
from fot_jax.models.transformer import Decoder
from fot_jax.types import KeyValue
from tests.infer.oracle_reader import Reader

MODEL = ModelConfig(
    num_layers=3, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, vocab_size=31, local_context=8,
    memory_layers=(0, 2),
)  # fmt: skip
DENSE = MemoryConfig(retrieval=Retrieval.DENSE, last_context_length=5)
GREEDY = SamplingConfig()
TEXTS = [np.random.default_rng(0).integers(0, 31, n).astype(np.int32) for n in (45, 18)]  # 6 and 3 windows


@pytest.fixture(scope="module")
def params():
    """Fresh parameters: scaled up, rounding alone (1e-7) would move the logits by 1e-4."""
    return nn.unbox(jax.jit(Decoder(MODEL).init)(jax.random.key(3), np.zeros((1, 2), np.int32))["params"])


def test_cuts_are_drawn_as_documented():
    cuts = {n: window_lengths_at_least(n, window=8, last=4) for n in (1, 8, 9, 12, 13, 16, 18)}
    assert cuts == {1: [1], 8: [8], 9: [5, 4], 12: [8, 4], 13: [8, 5], 16: [8, 8], 18: [8, 6, 4]}
    assert window_lengths_at_least(17, window=8, last=8) == [8, 1, 8]
    lapped = {n: window_lengths_at_least(n, window=8, last=4, overlap=3) for n in (1, 8, 9, 13, 16, 18, 30)}
    assert lapped == {
        1: [1], 8: [8], 9: [5, 4], 13: [8, 5], 16: [8, 8], 18: [8, 5, 1, 4], 30: [8, 5, 5, 5, 1, 6]
    }  # fmt: skip


@given(length=st.integers(1, 200), window=st.integers(1, 20), data=st.data())
def test_cuts_cover_the_input_in_the_fewest_windows(length, window, data):
    overlap = data.draw(st.integers(0, window // 2))
    step = window - overlap
    last = data.draw(st.integers(1, window))
    cuts = window_lengths_at_least(length, window=window, last=last, overlap=overlap)
    plain = window_lengths_at_least(length, window=window, last=last)
    assert sum(cuts) == length and cuts[-1] == plain[-1] >= min(last, length)
    assert len(plain) == -(-length // window)
    before = length - cuts[-1]
    assert len(cuts) - 1 == (before > 0) + max(0, -(-(before - window) // step))
    assert 1 <= cuts[0] <= window and all(1 <= cut <= step for cut in cuts[1:-1]) and cuts[-1] <= window
    assert cuts[:-2] == [window, *[step] * len(cuts)][: len(cuts[:-2])]


def authors_cuts(length: int, window: int, last: int) -> list[int]:
    """`_handle_long_input` of LongLLaMA: a prefix in windows, then what is left of the input."""
    prefix = max(length - last, 0)
    cuts = []
    for begin in range(0, prefix, window):
        cuts.append(min(prefix, begin + window) - begin)
    return cuts + [length - prefix]


@given(length=st.integers(1, 200), window=st.integers(1, 20), data=st.data())
def test_exact_cuts_are_the_authors(length, window, data):
    """With 0 their last window is empty; it is left out here, and the one before it goes to memory once it is read."""
    last = data.draw(st.integers(0, window))
    cuts = window_lengths_exact(length, window=window, last=last)
    expected = authors_cuts(length, window, last)
    assert cuts == (expected if expected[-1] else expected[:-1])


def test_reads_memory_tells_inputs_that_are_cut():
    exact = dataclasses.replace(DENSE, last_context=LastContext.EXACT, last_context_length=5)
    lengths = (5, 6, 8, 9)
    assert [reads_memory(n, MODEL, DENSE) for n in lengths] == [False, False, False, True]
    assert [reads_memory(n, MODEL, exact) for n in lengths] == [False, True, True, True]
    none = dataclasses.replace(exact, last_context_length=0)  # all of the input goes to memory, however short
    assert [reads_memory(n, MODEL, none) for n in lengths] == [True] * 4
    plain = dataclasses.replace(MODEL, memory_layers=())
    assert not reads_memory(99, plain, DENSE) and not reads_memory(99, plain, none)


def test_exact_cuts_are_drawn_as_documented():
    assert {n: window_lengths_exact(n, window=8, last=4) for n in (3, 8, 13)} == {3: [3], 8: [4, 4], 13: [8, 1, 4]}
    assert {n: window_lengths_exact(n, window=8, last=0) for n in (3, 8, 13)} == {3: [3], 8: [8], 13: [8, 5]}
    assert {n: window_lengths_exact(n, window=8, last=4, overlap=3) for n in (8, 18)} == {8: [4, 4], 18: [8, 5, 1, 4]}


def oracle_reading(
    params, text, model: ModelConfig, cuts: list[int], *, top_k: int | None, scaling_from: int = 0, overlap: int = 0
) -> tuple[Reader, np.ndarray]:
    reader = Reader(
        jax.tree.map(lambda x: np.asarray(x, np.float64), params),
        memory_layers=model.memory_layers,
        top_k=top_k,
        rotate_memory_layers=model.memory_positions is MemoryPositions.ROPE0,
        theta=model.rope.theta,
        epsilon=model.norm_epsilon,
        scaling_from=scaling_from,
    )
    logits, start, waiting = np.zeros(0), 0, [[] for _ in range(model.num_layers)]
    for number, cut in enumerate(cuts):
        last = number == len(cuts) - 1
        again = 0 if number == 0 or last else overlap
        for token in text[start - again : start + cut]:
            logits = reader.feed(int(token))
        start += cut
        if not last:
            stay = overlap if number < len(cuts) - 2 else 0
            for n in model.memory_layers:  # what was read again is remembered as it was first
                pairs = waiting[n] + reader.local[n][again:]
                reader.memory[n] += pairs[: len(pairs) - stay]
                waiting[n] = pairs[len(pairs) - stay :]
            reader.local = [[] for _ in reader.local]
    return reader, logits


@pytest.mark.parametrize(
    ("model", "memory", "top_k"),
    [
        (MODEL, DENSE, None),
        (
            dataclasses.replace(MODEL, memory_positions=MemoryPositions.NOPE),
            MemoryConfig(retrieval=Retrieval.EXACT, top_k=3, last_context_length=5),
            3,
        ),
        (dataclasses.replace(MODEL, smear_keys=True), DENSE, None),
        (dataclasses.replace(MODEL, memory_layers=(1,)), DENSE, None),
        (dataclasses.replace(MODEL, memory_layers=(0,), scan_layers=False), DENSE, None),
        (MODEL, dataclasses.replace(DENSE, log_length_scaling_from=8), None),
        (MODEL, MemoryConfig(retrieval=Retrieval.EXACT, top_k=3, last_context_length=5, log_length_scaling_from=9), 3),
        (MODEL, MemoryConfig(retrieval=Retrieval.SCANN, top_k=3, last_context_length=5, log_length_scaling_from=9), 3),
        (MODEL, dataclasses.replace(DENSE, overlap=3), None),
        (
            dataclasses.replace(MODEL, smear_keys=True, memory_layers=(1,)),
            MemoryConfig(
                retrieval=Retrieval.EXACT, top_k=3, last_context_length=5, log_length_scaling_from=9, overlap=1
            ),
            3,
        ),
    ],
    ids=[
        "rope0-dense",
        "nope-top3",
        "smeared",
        "layers above the last memory",
        "not scanned",
        "scaled-dense",
        "scaled-top3",
        "scaled-scann",
        "overlap-dense",
        "overlap-smeared-scaled-top3",
    ],
)
def test_reading_and_generation_equal_the_oracle(params, model, memory, top_k, monkeypatch):
    """Two rows of 45 and 18 tokens (6 and 3 windows), then 12 new tokens, which overflow the cache."""
    monkeypatch.setattr(ScannIndex, "has_trees", True)
    if model.smear_keys:
        params = smeared(params)
    given = params if model.scan_layers else unstacked(params)
    reading = read(given, model, TEXTS, memory=memory)
    cuts = {
        0: ([8, 8, 8, 8, 8, 5], [8, 5, 5]),
        1: ([8, 7, 7, 7, 7, 4, 5], [8, 5, 5]),
        3: ([8, 5, 5, 5, 5, 5, 5, 2, 5], [8, 5, 5]),
    }[memory.overlap]
    how = {"top_k": top_k, "scaling_from": memory.log_length_scaling_from, "overlap": memory.overlap}
    oracles = [oracle_reading(params, text, model, cut, **how) for text, cut in zip(TEXTS, cuts, strict=True)]
    assert reading.lengths.tolist() == np.asarray(reading.cache.lengths).tolist() == [5, 5]
    expected = [logits for _, logits in oracles]
    slides = 0
    for step, tokens in enumerate(generate(given, model, reading, sampling=GREEDY, max_new_tokens=12)):
        np.testing.assert_allclose(reading.logits, expected, rtol=1e-5, atol=2e-5)
        for row, (reader, _) in enumerate(oracles):
            assert tokens[row] == np.argmax(expected[row])
            if len(reader.local[0]) == model.local_context:
                reader.push_oldest(model.local_context - 5)
                slides += 1
            expected[row] = reader.feed(int(tokens[row]))
            assert reading.lengths[row] + reading.store.lengths[row] == len(TEXTS[row]) + step
    assert slides >= 4
    for row, (reader, _) in enumerate(oracles):
        keys, values = reading.store.take(row, reading.store.live(row))
        for p, layer in enumerate(model.memory_layers):
            held = reader.memory[layer][: keys.shape[2]]
            np.testing.assert_allclose(keys[p].swapaxes(0, 1), [k for k, _ in held], rtol=1e-5, atol=2e-5)
            np.testing.assert_allclose(values[p].swapaxes(0, 1), [v for _, v in held], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("last", [0, 3, 5])
def test_exact_last_context_reads_and_decodes_as_the_authors(params, last):
    """Prompts of 45, 18 and 7 tokens, the last shorter than a window; then 12 new tokens.

    With 0 all of a prompt is in memory, the logits are those of its last window, and the cache leaves as a whole.
    """
    memory = dataclasses.replace(DENSE, last_context=LastContext.EXACT, last_context_length=last)
    texts = [*TEXTS, TEXTS[0][:7]]
    reading = read(params, MODEL, texts, memory=memory)
    oracles = []
    for text in texts:
        cuts = authors_cuts(len(text), 8, last)
        reader, logits = oracle_reading(params, text, MODEL, cuts, top_k=None)
        oracles.append(reader)
        assert len(reader.memory[0]) == max(0, len(text) - last)
        np.testing.assert_allclose(reading.logits[len(oracles) - 1], logits, rtol=1e-5, atol=2e-5)
    assert reading.lengths.tolist() == [last, last, last]
    expected, whole = list(np.asarray(reading.logits)), 0
    for tokens in generate(params, MODEL, reading, sampling=GREEDY, max_new_tokens=12):
        np.testing.assert_allclose(reading.logits, expected, rtol=1e-5, atol=2e-5)
        for row, reader in enumerate(oracles):
            if len(reader.local[0]) == 8:
                reader.push_oldest(8 - last)
                whole += last == 0
            expected[row] = reader.feed(int(tokens[row]))
    assert whole == (3 if last == 0 else 0)
    assert reading.store.lengths.tolist() == [len(reader.memory[0]) for reader in oracles]


def smeared(params):
    """The parameters with shares of the key before, each head its own."""
    attention = params["layers"]["attention"]
    shares = np.random.default_rng(8).normal(0.5, 1.0, (3, 2)).astype(np.float32)
    projections = {**attention["projections"], "smear": shares}
    return {**params, "layers": {**params["layers"], "attention": {**attention, "projections": projections}}}


def unstacked(params):
    """The parameters of the same model with `scan_layers` off."""
    rest = {name: leaf for name, leaf in params.items() if name != "layers"}
    layers = {f"layer_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"]) for n in range(MODEL.num_layers)}
    return rest | layers


def continue_greedily(params, reading: Reading, *, end_ids: tuple[int, ...] = (), model=MODEL) -> np.ndarray:
    return np.stack(list(generate(params, model, reading, sampling=GREEDY, max_new_tokens=10, end_ids=end_ids)), axis=1)


def test_a_row_does_not_depend_on_its_neighbour(params):
    """Next to a shorter text, a longer one, and itself; each row ends on its own, and the other goes on."""
    readings = [read(params, MODEL, [TEXTS[1], other], memory=DENSE) for other in (TEXTS[0], TEXTS[0][:3], TEXTS[1])]
    for reading in readings[1:]:
        np.testing.assert_allclose(reading.logits[0], readings[0].logits[0], rtol=1e-5, atol=1e-5)
    texts = [continue_greedily(params, reading) for reading in readings]
    assert texts[0][0].tolist() == texts[1][0].tolist() == texts[2][0].tolist() == texts[2][1].tolist()
    assert texts[0][1].tolist() != texts[0][0].tolist()
    eos = int(texts[0][1][2])
    first = texts[0][1].tolist().index(eos)
    ended = continue_greedily(params, read(params, MODEL, [TEXTS[1], TEXTS[0]], memory=DENSE), end_ids=(-7, eos))
    assert ended[1].tolist()[: first + 1] == texts[0][1].tolist()[: first + 1]
    assert set(ended[1].tolist()[first + 1 :]) <= {FINISHED}
    kept = texts[0][0].tolist()
    until = kept.index(eos) + 1 if eos in kept else ended.shape[1]
    assert ended[0].tolist()[:until] == kept[:until]


@pytest.mark.parametrize(("smear", "scaling_from", "overlap"), [(False, 0, 0), (True, 0, 3), (False, 9, 0)])
def test_pieces_change_nothing(params, smear, scaling_from, overlap):
    """Prefill in pieces of three tokens equals one call a window, and greedy generation after it."""
    memory = dataclasses.replace(DENSE, log_length_scaling_from=scaling_from, overlap=overlap)
    model, params = dataclasses.replace(MODEL, smear_keys=smear), smeared(params) if smear else params
    whole, pieces = (read(params, model, TEXTS, memory=memory, piece=piece) for piece in (0, 3))
    np.testing.assert_allclose(pieces.logits, whole.logits, rtol=1e-5, atol=1e-5)
    for row in range(2):
        for a, b in zip(*(r.store.take(row, r.store.live(row)) for r in (whole, pieces)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert (
        continue_greedily(params, whole, model=model).tolist()
        == continue_greedily(params, pieces, model=model).tolist()
    )


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (DENSE, [2, 4, 4, 4, 5]),
        (dataclasses.replace(DENSE, budget=12), [2, 4, 4, 4, 5]),
        (dataclasses.replace(DENSE, overlap=3), [2, 4, 4, 4, 4, 4, 5, 5]),
    ],
    ids=["unbounded", "budget", "overlap"],
)
def test_rows_with_one_past_are_read_once(params, monkeypatch, memory, expected):
    """Five texts that part in windows 0, 1 and 4, one shorter; each equals its reading alone."""
    base = np.random.default_rng(5).integers(0, 31, 45).astype(np.int32)
    texts = [base.copy() for _ in range(5)]
    texts[1][33] += 1 - 2 * (texts[1][33] == 30)
    texts[2][0] += 1 - 2 * (texts[2][0] == 30)
    texts[3][9] += 1 - 2 * (texts[3][9] == 30)
    texts[4] = base[:37]
    processed = []

    def counting(params, config, tokens, *inputs):
        processed.append(len(tokens))
        return absorb(params, config, tokens, *inputs)

    monkeypatch.setattr(past, "absorb", counting)
    together = read(params, MODEL, texts, memory=memory)
    assert processed == expected, "2 pasts, then 3 (a power of two is read), then all"
    for row, text in enumerate(texts):
        alone = read(params, MODEL, [text], memory=memory)
        np.testing.assert_allclose(together.logits[row], alone.logits[0], rtol=1e-5, atol=1e-5)
        assert together.store.appended[row] == alone.store.appended[0]
        for a, b in zip(*(r.store.take(s, r.store.live(s)) for r, s in ((together, row), (alone, 0))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_memories_with_different_entries_are_not_shared(params):
    """Two rows with one text, each reading on with a memory of its own."""
    kept = [read(params, MODEL, [text], memory=DENSE).store for text in TEXTS]
    store = MemoryStore.for_model(MODEL, streams=2)
    for stream, held in enumerate(kept):
        keys, values = held.take(0, held.live(0))  # [P, G, n, D]
        rows = KeyValue(keys=keys.swapaxes(1, 2)[:, None], values=values.swapaxes(1, 2)[:, None])
        store.append(rows, np.asarray([keys.shape[2]]), streams=[stream])
    text = np.random.default_rng(6).integers(0, 31, 20).astype(np.int32)
    both = read(params, MODEL, [text, text], memory=DENSE, store=store)
    for row, held in enumerate(kept):
        alone = read(params, MODEL, [text], memory=DENSE, store=held)
        np.testing.assert_allclose(both.logits[row], alone.logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("overlap", "read_so_far"), [(0, [16, 29, 37, 45, 53, 63]), (3, [16, 26, 31, 36, 41, 46, 51, 53, 63])]
)
def test_budget_bounds_memory_and_push_local_empties_the_cache(params, overlap, read_so_far):
    reports = []
    memory = dataclasses.replace(DENSE, budget=12, overlap=overlap)
    reading = read(params, MODEL, TEXTS, memory=memory, progress=reports.append)
    assert reading.store.lengths.tolist() == [12, 12]
    assert [report.tokens_read for report in reports] == read_so_far
    assert {report.tokens_total for report in reports} == {63}
    assert reports[-1].memory_bytes == reading.store.bytes()
    flush_local_cache(MODEL, reading)
    assert reading.store.appended.tolist() == [45, 18]
    assert np.asarray(reading.cache.lengths).tolist() == reading.lengths.tolist() == [0, 0]


def test_compiling_does_not_count_as_reading(params, monkeypatch):
    """Each window takes a second by this clock, of which three quarters are spent on compiling."""
    now, extend = [0.0], past.absorb

    def compile_and_extend(*arguments):
        now[0] += 1
        jax.monitoring.record_event_time_span("/jax/core/compile/backend_compile_duration", now[0] - 0.75, now[0])
        return extend(*arguments)

    monkeypatch.setattr(windows.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(past, "absorb", compile_and_extend)
    reports = []
    read(params, MODEL, TEXTS, memory=DENSE)  # compiles
    now[0] = 0.0
    read(params, MODEL, TEXTS, memory=DENSE, progress=reports.append)
    assert [report.seconds for report in reports] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.25]


def test_a_shared_memory_takes_all_rows_and_is_read_on(params):
    shared = MemoryStore.for_model(MODEL, streams=1)
    read(params, MODEL, TEXTS, memory=DENSE, store=shared)
    assert shared.lengths.tolist() == [40 + 13]
    short = [TEXTS[0][:6], TEXTS[1][:6]]
    alone, helped = (read(params, MODEL, short, memory=DENSE, store=store) for store in (None, shared))
    assert np.abs(np.asarray(alone.logits) - np.asarray(helped.logits)).max() > 1e-2


def test_without_memory_layers_only_the_last_window_counts(params, caplog):
    warn_once.cache_clear()
    plain = dataclasses.replace(MODEL, memory_layers=())
    with caplog.at_level(logging.WARNING):
        long, short = (read(params, plain, [text], memory=DENSE) for text in (TEXTS[0], TEXTS[0][-5:]))
        assert long.store is None
    np.testing.assert_array_equal(long.logits, short.logits)
    assert [r.message.split(",")[0] for r in caplog.records] == ["model.memory_layers: none"]


@pytest.mark.parametrize(
    ("texts", "memory", "store", "error", "message"),
    [
        ([], DENSE, None, UserError, "inputs must hold at least one input"),
        ([TEXTS[0], TEXTS[0][:0]], DENSE, None, UserError, "input 1 must hold at least one token"),
        ([np.array([3, 31])], DENSE, None, UserError, r"input 0 must hold token ids in 0..30, got 31"),
        (
            TEXTS,
            MemoryConfig(last_context_length=9),
            None,
            ConfigError,
            "last_context_length must be at most .*8, got 9",
        ),
        (
            TEXTS,
            dataclasses.replace(DENSE, log_length_scaling_from=7),
            None,
            ConfigError,
            r"log_length_scaling_from must be 0 \(never\) or at least the local context, 8, got 7",
        ),
        (
            TEXTS,
            dataclasses.replace(DENSE, overlap=5),
            None,
            ConfigError,
            r"memory\.overlap must be at most half of the local context, 4, got 5",
        ),
        (TEXTS, DENSE, (MODEL, 3), UserError, r"memory must have one stream or one per input \(2\), got 3"),
        (TEXTS, DENSE, (dataclasses.replace(MODEL, head_dim=8), 2), UserError, "memory must have this model's"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(params, texts, memory, store, error, message):
    held = None if store is None else MemoryStore.for_model(store[0], streams=store[1])
    with pytest.raises(error, match=message):
        read(params, MODEL, texts, memory=memory, store=held)


def test_a_diverged_model_is_named(params):
    broken = jax.tree.map(lambda x: x, params)
    broken["embedding"] = broken["embedding"].at[TEXTS[0][3]].set(np.nan)
    with pytest.raises(UserError, match="memory keys must be finite, got nan in memory layer 0"):
        read(broken, MODEL, TEXTS, memory=DENSE)
    reading = read(broken, MODEL, [TEXTS[0][:5], TEXTS[0][4:5]], memory=DENSE)
    with pytest.raises(UserError, match="logits must be finite, got NaN or infinity in row 0 at new token 0"):
        next(generate(broken, MODEL, reading, sampling=GREEDY, max_new_tokens=1))
