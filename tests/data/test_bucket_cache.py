"""Token caches in a bucket: built once, seen whole or not at all, and copied to each machine."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from fot_jax.config import DataConfig, SourceConfig, SourceKind, UserError, VocabularyConfig, VocabularyKind
from fot_jax.config.errors import NotHereError
from fot_jax.data import bucket_cache
from fot_jax.data.bucket_cache import load_counts, open_or_build_copy
from fot_jax.data.cache import fingerprint
from fot_jax.data.documents import build_store, open_store
from fot_jax.data.vocabulary import existing_file, load_vocabulary
from fot_jax.storage.paths import bucket_files, storage_path

DOCUMENTS = [("one", np.array([5, 6, 1], np.int32)), ("two", np.array([70_000, 1], np.int32))]
CACHE_FILES = {"tokens.bin", "offsets.npy", "contents.npy", "names.json", "meta.json"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(name, first=)`: from now on this is another machine with a disk of its own."""

    def become(name, *, first=True):
        monkeypatch.setattr(bucket_cache, "COPIES", str(tmp_path / name))
        monkeypatch.setattr(bucket_cache, "is_first", lambda: first)
        monkeypatch.setattr(bucket_cache, "LOOK_SECONDS", 0.05)

    become("a")
    return become


def build(remote, documents=lambda: iter(DOCUMENTS)):
    return open_or_build_copy(storage_path(remote), documents, source="s", expected="abc", vocab_size=80_000)


def never():
    pytest.fail("built again")


def objects(remote) -> set[str]:
    return {name.rpartition("/")[2] for name in bucket_files().find(str(remote))}


def check(found):
    np.testing.assert_array_equal(found.tokens, [5, 6, 1, 70_000, 1])
    np.testing.assert_array_equal(found.lengths, [3, 2])
    assert found.names() == ["one", "two"]
    assert isinstance(found.tokens, np.memmap)


def test_one_machine_builds_and_the_others_map_a_copy(bucket, machine):
    remote = f"{bucket}/tokens/s-abc"
    built = build(remote)
    check(built)
    assert objects(remote) == CACHE_FILES
    machine("b", first=False)
    copied = build(remote, never)
    check(copied)
    assert copied.digest == built.digest and copied.folder != built.folder
    files = bucket_files()
    files.rm(f"{remote}/tokens.bin")
    check(build(remote, never))  # the copy is kept
    assert list(copied.folder.parent.glob(".copying*")) == []


def test_meta_json_is_uploaded_last(bucket, machine, monkeypatch):
    """An upload that ends early leaves no cache; the next one builds nothing again."""
    remote, files = f"{bucket}/s-abc", bucket_files()
    put, sent = files.put_file, []

    def failing(local, path, **options):
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(path)
        put(local, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "put_file", failing, raising=False)
        with pytest.raises(KeyboardInterrupt):
            build(remote)
    assert objects(remote) < CACHE_FILES - {"meta.json"}
    assert load_counts(storage_path(remote), expected="abc") is None
    check(build(remote, never))
    assert objects(remote) == CACHE_FILES


def test_a_cache_without_meta_json_is_waited_for(bucket, machine, capfd):
    remote = f"{bucket}/s-abc"
    build(remote)
    files = bucket_files()
    meta = files.cat_file(f"{remote}/meta.json")
    files.rm(f"{remote}/meta.json")
    machine("b", first=False)
    found = []
    reader = threading.Thread(target=lambda: found.append(build(remote, never)))
    reader.start()
    reader.join(0.5)
    assert not found and reader.is_alive()
    files.pipe_file(f"{remote}/meta.json", meta)
    reader.join(20)
    check(found[0])
    assert capfd.readouterr().err.count("waiting for process 0, which builds gs://") == 1


@pytest.mark.parametrize("first", [True, False])
def test_processes_of_other_files_end_before_one_waits(bucket, machine, monkeypatch, first):
    def refuse(what, text):
        raise UserError(f"{what} differ: {text}")

    machine("b", first=first)
    monkeypatch.setattr(bucket_cache, "check_agreement", refuse)
    monkeypatch.setattr(bucket_cache, "_wait_for", lambda _: pytest.fail("waits"))
    with pytest.raises(UserError, match=r"^files and vocabulary of data\.sources\['s'\] differ: abc$"):
        build(f"{bucket}/s-abc", never)


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "other"])
def test_damage_in_the_bucket_is_noticed_and_not_kept(bucket, machine, damage):
    remote, files = f"{bucket}/s-abc", bucket_files()
    folder = build(remote).folder
    tokens = files.cat_file(f"{remote}/tokens.bin")
    if damage == "missing":
        files.rm(f"{remote}/tokens.bin")
    elif damage == "other":
        files.pipe_file(f"{remote}/meta.json", files.cat_file(f"{remote}/meta.json").replace(b"abc", b"abd"))
    else:
        files.pipe_file(f"{remote}/tokens.bin", tokens[:-4] if damage == "cut" else b"\1" + tokens[1:])
    machine("b")
    with pytest.raises(UserError, match=rf"^'{remote}' must be a whole token cache, got a damaged one") as error:
        build(remote, never)
    assert "Delete it." in str(error.value)
    assert not bucket_cache.local_folder(storage_path(remote)).exists()
    assert folder.exists()


def test_a_copy_of_other_tokens_is_made_anew(bucket, machine):
    remote = f"{bucket}/s-abc"
    build(remote)
    other = [("one", np.array([9, 1], np.int32))]
    machine("b")
    bucket_files().rm(remote, recursive=True)
    build(remote, lambda: iter(other))
    machine("a")
    np.testing.assert_array_equal(build(remote, never).tokens, [9, 1])


def test_counting_reads_no_tokens(bucket, machine):
    remote = storage_path(f"{bucket}/s-abc")
    assert load_counts(remote, expected="abc") is None
    built = build(remote)
    bucket_files().rm(f"{remote}/tokens.bin")
    found = load_counts(remote, expected="abc")
    assert found is not None and found.digest == built.digest
    assert len(found.tokens) == 5 and found.tokens.strides == (0,)
    np.testing.assert_array_equal(found.lengths, built.lengths)
    np.testing.assert_array_equal(found.contents, built.contents)
    with pytest.raises(UserError, match=rf"^'{remote}' must be a whole token cache, got a damaged one"):
        load_counts(remote, expected="other")


def put_corpus(folder: str, vocabulary_files) -> DataConfig:
    """Writes documents and a tokenizer; returns the config that reads them."""
    text = b'{"text": "def f(x):"}\n{"text": "import os"}\n{"text": "return x"}\n'
    tokenizer = vocabulary_files[VocabularyKind.HF_TOKENIZER]
    with open(tokenizer, "rb") as file:
        files = {"data/a.jsonl": text, "data/b/c.jsonl": text[:50].rpartition(b"\n")[0], "tokenizer.json": file.read()}
    for name, data in files.items():
        path = storage_path(f"{folder}/{name}")
        if not folder.startswith("gs://"):
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return DataConfig(
        sources=(SourceConfig(name="a", kind=SourceKind.JSONL, path=f"{folder}/data/**/*.jsonl"),),
        vocabulary=VocabularyConfig(kind=VocabularyKind.HF_TOKENIZER, path=f"{folder}/tokenizer.json"),
        cache_dir=f"{folder}/tokens",
    )


def test_a_corpus_in_a_bucket_gives_the_tokens_of_its_copy(bucket, machine, tmp_path, vocabulary_files):
    in_bucket, on_disk = (put_corpus(folder, vocabulary_files) for folder in (bucket, str(tmp_path / "disk")))
    assert open_store(in_bucket, seed=0) is None
    first, second = (build_store(data, seed=0) for data in (in_bucket, on_disk))
    for name in ("train", "heldout"):
        assert first.split(name).digests == second.split(name).digests
        assert first.split(name).lengths.tolist() == second.split(name).lengths.tolist()
    counted = open_store(in_bucket, seed=0)
    assert counted is not None and counted.counts("train") == first.counts("train")


def test_the_fingerprint_follows_content_and_not_time(bucket, vocabulary_files):
    data = put_corpus(bucket, vocabulary_files)
    first = fingerprint(data.sources[0], data=data, seed=0)
    put_corpus(bucket, vocabulary_files)  # the same again, later
    assert fingerprint(data.sources[0], data=data, seed=0) == first
    bucket_files().pipe_file(f"{bucket}/data/b/c.jsonl", b'{"text": "other"}\n')
    assert fingerprint(data.sources[0], data=data, seed=0) != first


def test_a_tokenizer_is_copied_with_the_files_next_to_it(bucket, vocabulary_files):
    data = put_corpus(bucket, vocabulary_files)
    bucket_files().pipe_file(f"{bucket}/tokenizer_config.json", b'{"eos_token": "<|endoftext|>"}')
    bucket_files().pipe_file(f"{bucket}/model.safetensors", b"large")
    copy = existing_file(data.vocabulary.path)
    assert sorted(os.listdir(os.path.dirname(copy))) == ["tokenizer.json", "tokenizer_config.json"]
    assert existing_file(data.vocabulary.path) == copy
    assert load_vocabulary(data.vocabulary).encode("def f") == load_vocabulary(
        VocabularyConfig(kind=VocabularyKind.HF_TOKENIZER, path=copy)
    ).encode("def f")
    with pytest.raises(NotHereError, match=r"^data\.vocabulary\.path must name a file, got 'gs://.*/none\.json'"):
        existing_file(f"{bucket}/none.json")


def test_copies_of_tokenizers_end_with_the_process(bucket, tmp_path):
    bucket_files().pipe_file(f"{bucket}/tokenizer.json", b"{}")
    code = f"from fot_jax.data.vocabulary import existing_file; print(existing_file('{bucket}/tokenizer.json'))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(str(tmp_path)) and list(tmp_path.iterdir()) == []


def test_local_data_imports_no_client_of_buckets(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    code = f"""
import sys
from fot_jax.config import DataConfig, SourceConfig, SourceKind
from fot_jax.data.documents import open_store
source = SourceConfig(name="a", kind=SourceKind.TEXT, path={str(tmp_path)!r})
print(open_store(DataConfig(sources=(source,), cache_dir={str(tmp_path / "c")!r}), seed=0))
print([name for name in ("fsspec", "gcsfs", "google.cloud") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["None", "[]"]
