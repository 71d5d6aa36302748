"""Every source through its seqio task into a token cache, and what broken ones say. Needs TensorFlow."""

import dataclasses
import gzip
import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from fot_jax.config import (
    ConfigError,
    DataConfig,
    SourceConfig,
    SourceKind,
    UserError,
    VocabularyConfig,
    VocabularyKind,
)
from fot_jax.data import build_store, load_vocabulary

TEXTS = ["first document", "naïve Ωmega 你好\n", "", "line one\nline two\u2028still two", "x" * 5000]
BYTES = load_vocabulary(VocabularyConfig())


def records(texts=TEXTS, field="text"):
    return b"".join(json.dumps({field: text, "id": i}).encode() + b"\n" for i, text in enumerate(texts))


def write_zst(path, data):
    """Two frames, as parallel compressors write them."""
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(compress(data[:50]) + compress(data[50:]))


def write_parquet(path, texts):
    column = pyarrow.array([text if isinstance(text, bytes) else text.encode() for text in texts], pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"text": column, "n": list(range(len(texts)))}), path, row_group_size=2)


def write_tfrecord(path, texts, field="text"):
    import tensorflow as tf

    options = tf.io.TFRecordOptions(compression_type="GZIP" if path.suffix == ".gz" else "")
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for text in texts:
            value = tf.train.BytesList(value=[text if isinstance(text, bytes) else text.encode()])
            features = tf.train.Features(feature={field: tf.train.Feature(bytes_list=value)})
            writer.write(tf.train.Example(features=features).SerializeToString())


def data_config(folder, kind, pattern, **fields):
    source = SourceConfig(name="corpus", kind=kind, path=str(folder / pattern), **fields)
    return DataConfig(sources=(source,), heldout_fraction=0.0, cache_dir=str(folder / "cache"))


def texts_of(data, seed=0):
    documents = build_store(data, seed=seed).split("train")
    found = [documents.tokens(i).tolist() for i in range(documents.num_documents)]
    assert all(tokens[-1] == BYTES.eos_id for tokens in found)
    return [BYTES.decode(tokens) for tokens in found]


WRITERS = {
    "a.jsonl": (SourceKind.JSONL, lambda path: path.write_bytes(records())),
    "a.jsonl.gz": (SourceKind.JSONL, lambda path: path.write_bytes(gzip.compress(records()))),
    "a.jsonl.zst": (SourceKind.JSONL, lambda path: write_zst(path, records())),
    "a.parquet": (SourceKind.PARQUET, lambda path: write_parquet(path, TEXTS)),
    "a.tfrecord": (SourceKind.TFRECORD, lambda path: write_tfrecord(path, TEXTS)),
    "a.tfrecord.gz": (SourceKind.TFRECORD, lambda path: write_tfrecord(path, TEXTS)),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_round_trip(tmp_path, name):
    kind, write = WRITERS[name]
    write(tmp_path / name)
    assert texts_of(data_config(tmp_path, kind, name)) == [text for text in TEXTS if text]  # the empty one is dropped


def test_text_folder_and_most_documents(tmp_path):
    for index, text in enumerate(TEXTS):
        path = tmp_path / "books" / f"part{index % 2}" / f"{index}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    expected = [TEXTS[0], TEXTS[4], TEXTS[1], TEXTS[3]]  # by path
    assert texts_of(data_config(tmp_path, SourceKind.TEXT, "books")) == expected
    data = data_config(tmp_path, SourceKind.TEXT, "books/**/*.txt")
    most = DataConfig(sources=data.sources, heldout_fraction=0.0, max_documents=3, cache_dir=data.cache_dir)
    assert texts_of(most) == [TEXTS[0], TEXTS[4]]  # of the first three one is empty


def test_passkey_documents(tmp_path):
    source = SourceConfig(name="keys", kind=SourceKind.PASSKEY, min_tokens=400)
    data = DataConfig(sources=(source,), heldout_fraction=0.0, max_documents=3, cache_dir=str(tmp_path))
    texts = texts_of(data)
    assert len(set(texts)) == 3
    assert texts != texts_of(data, seed=1)
    for text in texts:
        prompt, answer = text.rsplit(" ", 1)
        assert f"The pass key is {answer}." in prompt
        assert 400 <= len(text) + 1 < 400 + 100  # at least min_tokens, the end of the document included


def bad_zst(path):
    write_zst(path, records())
    path.write_bytes(path.read_bytes()[:-9])


def bad_tfrecord(path):
    write_tfrecord(path, TEXTS)
    path.write_bytes(path.read_bytes()[:-9])


def bad_parquet(path):
    write_parquet(path, TEXTS)
    path.write_bytes(path.read_bytes()[:-9])


INVALID = b'{"text": "good"}\n{"text": "caf\xe9"}\n'
BAD = {
    "utf8.jsonl": (SourceKind.JSONL, lambda p: p.write_bytes(INVALID), "line 2 must be valid UTF-8, got byte 0xe9"),
    "utf8.txt": (SourceKind.TEXT, lambda p: p.write_bytes(b"ab\xff"), "valid UTF-8, got byte 0xff at offset 2"),
    "utf8.parquet": (SourceKind.PARQUET, lambda p: write_parquet(p, ["a", b"\xff"]), "row 1 must be valid UTF-8"),
    "utf8.tfrecord": (SourceKind.TFRECORD, lambda p: write_tfrecord(p, ["a", b"\xff"]), "record 1 must be valid UTF-8"),
    "surrogate.jsonl": (SourceKind.JSONL, lambda p: p.write_text('{"text": "\\ud800"}'), "lone surrogate"),
    "json.jsonl": (SourceKind.JSONL, lambda p: p.write_text('{"text": '), "line 1 must be a JSON object"),
    "list.jsonl": (SourceKind.JSONL, lambda p: p.write_text("[1]"), "line 1 must be a JSON object"),
    "field.jsonl": (SourceKind.JSONL, lambda p: p.write_bytes(records(field="body")), r"got fields \['body', 'id'\]"),
    "field.tfrecord": (SourceKind.TFRECORD, lambda p: write_tfrecord(p, ["a"], field="b"), r"features are \['b'\]"),
    "cut.jsonl.gz": (SourceKind.JSONL, lambda p: p.write_bytes(gzip.compress(records())[:-9]), "cut short"),
    "cut.jsonl.zst": (SourceKind.JSONL, bad_zst, "cut short"),
    "no.jsonl.zst": (SourceKind.JSONL, lambda p: p.write_bytes(records()), "must be zstd"),
    "cut.tfrecord": (SourceKind.TFRECORD, bad_tfrecord, "record 4 must be a whole record"),
    "cut.parquet": (SourceKind.PARQUET, bad_parquet, "must be a whole Parquet file"),
    "empty.jsonl": (SourceKind.JSONL, lambda p: p.write_bytes(b"\n"), "at least one document with text"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_broken_sources_are_named(tmp_path, name):
    kind, write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as raised:
        build_store(data_config(tmp_path, kind, name), seed=0)
    assert name in str(raised.value) or "data.sources['corpus']" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "cache").glob("corpus-????????????????"))


def test_no_match_and_wrong_kind(tmp_path):
    with pytest.raises(UserError, match=r"data.sources\['corpus'\].path must match at least one file"):
        build_store(data_config(tmp_path, SourceKind.JSONL, "*.jsonl"), seed=0)
    with pytest.raises(ConfigError, match="kind must be one that holds text, got 'dictionary'"):
        build_store(data_config(tmp_path, SourceKind.DICTIONARY, "x"), seed=0)


@pytest.mark.parametrize("kind", [VocabularyKind.SENTENCEPIECE, VocabularyKind.HF_TOKENIZER])
def test_seqio_tokenises_as_the_vocabulary_does(tmp_path, vocabulary_files, kind):
    """seqio runs TensorFlow's SentencePiece; prompts are encoded without TensorFlow: the ids must agree."""
    config = VocabularyConfig(kind=kind, path=vocabulary_files[kind])
    (tmp_path / "a.jsonl").write_bytes(records())
    source = SourceConfig(name="corpus", kind=SourceKind.JSONL, path=str(tmp_path / "a.jsonl"))
    data = DataConfig(sources=(source,), vocabulary=config, heldout_fraction=0.0, cache_dir=str(tmp_path / "cache"))
    documents, vocabulary = build_store(data, seed=0).split("train"), load_vocabulary(config)
    for index, text in enumerate(text for text in TEXTS if text):
        assert documents.tokens(index).tolist() == [*vocabulary.encode(text), vocabulary.eos_id]
    folder = tmp_path / "begins"
    folder.mkdir()
    path = shutil.copy(vocabulary_files[kind], folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"add_bos_token": True} | ({"bos_token": "<|endoftext|>"} if path.endswith("json") else {}))
    )
    data = dataclasses.replace(data, vocabulary=dataclasses.replace(config, path=path))
    begun, begins = build_store(data, seed=0).split("train"), load_vocabulary(data.vocabulary).bos_id
    assert begins is not None
    for index in range(documents.num_documents):
        assert begun.tokens(index).tolist() == [begins, *documents.tokens(index)]
