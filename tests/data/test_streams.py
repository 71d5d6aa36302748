"""From a config to batches: splits, minimum lengths, mixtures, and a cache that needs no TensorFlow."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from fot_jax.config import (
    ConfigError,
    CrossbatchConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    PlanKind,
    SourceConfig,
    SourceKind,
    TrainConfig,
    UserError,
    VocabularyConfig,
    VocabularyKind,
)
from fot_jax.data import DictionaryStream, build_store, make_stream
from fot_jax.data.seeds import generator

SIZES = {"num_layers": 1, "embed_dim": 8, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 8}


def experiment(data, *, vocab_size=259, local_context=16, rows=8):
    return ExperimentConfig(
        name="t",
        model=ModelConfig(vocab_size=vocab_size, local_context=local_context, memory_layers=(0,), **SIZES),
        crossbatch=CrossbatchConfig(plan=PlanKind.TWO_PASS),
        data=data,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(steps=1, batch_rows=rows),
    )


@pytest.fixture
def two_sources(tmp_path):
    """Sources a (30 documents of 5..150 tokens) and b (4 documents of 40 tokens), each document one letter."""
    for name, lengths in (("a", range(5, 155, 5)), ("b", [40] * 4)):
        lines = [json.dumps({"text": chr(97 + i % 26) * (n - 1)}) for i, n in enumerate(lengths)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = tuple(
        SourceConfig(name=name, kind=SourceKind.JSONL, path=str(tmp_path / f"{name}.jsonl"), rate=rate, min_tokens=20)
        for name, rate in (("a", 3.0), ("b", 1.0))
    )
    return DataConfig(sources=sources, heldout_fraction=0.25, cache_dir=str(tmp_path / "cache"))


def test_splits_hold_whole_documents_once(two_sources):
    store = build_store(two_sources, seed=0)
    train, heldout = store.split("train"), store.split("heldout")
    ids = np.concatenate([train.segment_ids, heldout.segment_ids])
    np.testing.assert_array_equal(np.sort(ids), np.arange(4, 35))  # 3 of the 34 are shorter than 20 tokens
    assert heldout.sizes == (7, 1)  # a quarter of 27 and of 4
    assert min(train.lengths.min(), heldout.lengths.min()) == 20
    assert heldout.name(heldout.num_documents - 1).endswith(f"b.jsonl:{heldout.segment_ids[-1] - 30}")
    np.testing.assert_array_equal(store.split("heldout").segment_ids, heldout.segment_ids)
    other = build_store(two_sources, seed=1).split("heldout")
    assert set(other.segment_ids.tolist()) != set(heldout.segment_ids.tolist())
    with pytest.raises(UserError, match=r"split must be one of .* got 'test'"):
        store.split("test")


def test_no_document_long_enough(two_sources):
    long = tuple(dataclasses.replace(source, min_tokens=100) for source in two_sources.sources)
    store = build_store(dataclasses.replace(two_sources, sources=long), seed=0)
    with pytest.raises(UserError, match=r"sources\['b'\] must hold a training document of at least min_tokens=100"):
        store.split("train")
    none = build_store(dataclasses.replace(two_sources, heldout_fraction=0.0), seed=0)
    with pytest.raises(UserError, match=r"data.heldout_fraction must leave documents for evaluation"):
        none.split("heldout")


def test_a_changed_file_is_tokenised_again(two_sources, tmp_path):
    before = build_store(two_sources, seed=0).caches
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write('\n{"text": "one more"}')
    after = build_store(two_sources, seed=0).caches
    assert [len(cache.lengths) for cache in before] == [30, 4]
    assert [len(cache.lengths) for cache in after] == [30, 5]
    assert before[0].folder == after[0].folder  # a's cache is used again


def test_streams_of_both_splits(two_sources):
    config = experiment(two_sources)
    train, heldout = make_stream(config, "train"), make_stream(config, "heldout")
    held = set(build_store(two_sources, seed=0).split("heldout").segment_ids.tolist())
    seen = {int(i) for step in range(300) for i in np.unique(train.batch(step).segments)}
    assert not seen & held
    assert len(seen) == 31 - len(held)
    assert {int(i) for step in range(50) for i in np.unique(heldout.batch(step).segments)} <= held
    assert heldout.batch(0).tokens.shape == (8, 16)


def two_sources_code(data):
    """The config as an expression."""
    return re.sub(r"<(\w+\.\w+): [^>]*>", r"\1", repr(data))


def test_an_existing_cache_needs_no_tensorflow(two_sources):
    build_store(two_sources, seed=0)
    program = f"""
import sys
from fot_jax.config import *
from fot_jax.data import build_store
assert build_store({two_sources_code(two_sources)}, seed=0).split("train").num_documents == 23
bad = [name for name in ("tensorflow", "seqio", "scann", "matplotlib") if name in sys.modules]
assert not bad, bad
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_seqio_knows_the_sources_and_their_mixture(two_sources):
    from fot_jax.data import tasks  # TensorFlow

    mixture = tasks.register_mixture("both", data=two_sources, seed=0)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {"a": 3.0, "b": 1.0}
    example = next(mixture.get_dataset(None, split="train", shuffle=False).as_numpy_iterator())
    assert example["targets"][-1] == 1


def test_vocabularies_that_do_not_fit(two_sources):
    with pytest.raises(ConfigError, match=r"model.vocab_size must be >= 259.*got 64"):
        make_stream(experiment(two_sources, vocab_size=64), "train")
    symbols = dataclasses.replace(two_sources, vocabulary=VocabularyConfig(kind=VocabularyKind.SYMBOLS))
    with pytest.raises(ConfigError, match="for text, got 'symbols'"):
        make_stream(experiment(symbols), "train")


def test_dictionary_streams(two_sources):
    lookup = SourceConfig(name="lookup", kind=SourceKind.DICTIONARY)
    symbols = VocabularyConfig(kind=VocabularyKind.SYMBOLS)
    config = experiment(DataConfig(sources=(lookup,), vocabulary=symbols), vocab_size=64, local_context=256)
    train, heldout = make_stream(config, "train"), make_stream(config, "heldout")
    assert isinstance(train, DictionaryStream)
    assert (train.batch(0).tokens != heldout.batch(0).tokens).any()
    with pytest.raises(ConfigError, match="must hold a 'dictionary' source alone"):
        make_stream(experiment(DataConfig(sources=(lookup, *two_sources.sources), vocabulary=symbols)), "train")
    with pytest.raises(ConfigError, match="must be 'symbols' for a 'dictionary' source, got 'bytes'"):
        make_stream(experiment(DataConfig(sources=(lookup,))), "train")


def copies_of(tmp_path, sources, **fields):
    """A config of sources that hold these texts, the cache in the same folder."""
    made = []
    for name, found in sources.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in found))
        made.append(SourceConfig(name=name, kind=SourceKind.JSONL, path=str(tmp_path / f"{name}.jsonl")))
    return DataConfig(sources=tuple(made), cache_dir=str(tmp_path / "cache"), **fields)


def texts_of(documents):
    return [bytes((documents.tokens(i)[:-1] - 3).astype(np.uint8)).decode() for i in range(documents.num_documents)]


def test_equal_documents_share_a_side_of_the_split(tmp_path, caplog):
    """Within a source and across sources; the log says how many there are, once."""
    a = [f"text {i % 20}" for i in range(40)]  # every document twice
    b = [f"text {i}" for i in range(12, 44)]  # 8 of a's, 24 others
    data = copies_of(tmp_path, {"a": a, "b": b}, heldout_fraction=0.2)
    with caplog.at_level(logging.INFO, logger="fot_jax"):
        store = build_store(data, seed=0)
        build_store(data, seed=0)
    train, heldout = store.split("train"), store.split("heldout")
    assert not set(texts_of(train)) & set(texts_of(heldout))
    assert sorted(texts_of(train) + texts_of(heldout)) == sorted(a + b)
    mine = texts_of(heldout.only_source("a"))
    assert len(mine) == 2 * len(set(mine)) == 8  # a fifth of 20 texts, twice each
    assert set(texts_of(heldout)) - set(mine) <= set(b)
    assert len(set(texts_of(heldout)) - set(mine)) == 5  # round(0.2 * 24) of the texts that b alone holds
    for documents in (train, heldout):
        found = texts_of(documents)
        first = [(a + b).index(text) for text in found]
        np.testing.assert_array_equal(documents.content_ids, first)
        np.testing.assert_array_equal(documents.segment_ids, np.array(first) + 1)
        assert documents.num_contents == len(set(found))
    assert caplog.text.count("data.sources['a']: 20 of 40 documents are copies of others, token by token") == 1
    assert caplog.text.count("data.sources['b']: 8 of 32 documents are copies of others, token by token") == 1


def test_a_source_without_copies_is_split_as_ever(tmp_path, caplog):
    """The rule of a store without copies, and copies in one source leave the choice in another as it was."""
    b = [f"other {i}" for i in range(30)]
    data = copies_of(tmp_path, {"a": ["one", "two", "one", "three"], "b": b}, heldout_fraction=0.3)
    held = build_store(data, seed=5).split("heldout").only_source("b")
    order = generator(5, "heldout", "b").permutation(30)
    assert texts_of(held) == [b[i] for i in sorted(order[:9])]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="fot_jax"):
        build_store(copies_of(tmp_path, {"b": b}), seed=5)
    assert "copies" not in caplog.text


def test_the_digest_of_a_source_tells_that_it_holds_copies(tmp_path):
    """Earlier versions split the same tokens otherwise: their runs must not go on, or be evaluated, unnoticed."""
    store = build_store(copies_of(tmp_path, {"a": ["one", "two", "one", "three"], "b": ["x", "y", "z"]}), seed=0)
    plain = [cache.digest for cache in store.caches]
    for split in ("train", "heldout"):
        assert store.split(split).digests == {"a": f"{plain[0]}+copies", "b": plain[1]}


def test_a_source_whose_copies_are_all_held_out_is_named(tmp_path):
    """The fix is another than for a source whose documents are too short."""
    a = [f"text {i}" for i in range(10)]
    data = copies_of(tmp_path, {"a": a, "b": ["text 0"]}, heldout_fraction=0.5)
    held = texts_of(build_store(data, seed=0).split("heldout"))
    data = copies_of(tmp_path, {"a": a, "b": held[:1] * 3}, heldout_fraction=0.5)
    with pytest.raises(UserError, match=r"'b'\] must hold a training document .*all 3 are copies of documents"):
        build_store(data, seed=0).split("train")
    one = copies_of(tmp_path, {"a": ["same"] * 4}, heldout_fraction=0.5)
    with pytest.raises(UserError, match=r"got none at 0.5.*two different ones or more"):
        build_store(one, seed=0).split("heldout")
