"""Training on data in a bucket, as a user starts it: two hosts with a disk each, and the losses of a local copy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fot_jax.config import VocabularyKind
from fot_jax.storage.paths import bucket_files, storage_path
from fot_jax.train.metrics import read_rows
from tests.data.conftest import vocabulary_files  # noqa: F401  # a fixture
from tests.e2e.test_multihost import LIMIT, free_port
from tests.processes import environment

pytestmark = pytest.mark.slow
SENTENCES = ("The quick brown fox jumps over the lazy dog. ", "def f(x):\n    return x + 1\n", "import os, sys\n")


def put_corpus(folder: str, tokenizer: str) -> list[str]:
    """Writes 12 documents and a tokenizer; returns the flags that train on them."""
    files = {f"corpus/{n % 3}/{n}.txt": (SENTENCES[n % 3] * 40 + str(n)).encode() for n in range(12)}
    files["tokenizer.json"] = Path(tokenizer).read_bytes()
    for name, data in files.items():
        path = storage_path(f"{folder}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return [
        f"--config.data.sources[0].path={folder}/corpus/**/*.txt",
        *(f"--config.data.vocabulary.path={folder}/tokenizer.json", "--config.data.vocabulary.kind=hf_tokenizer"),
        *(f"--config.data.cache_dir={folder}/tokens", "--config.model.vocab_size=300"),
        *(f"--workdir={folder}/run", f"--compilation-cache={folder}/xla"),
    ]


def train(folder: str, flags: list[str], homes: Path) -> list[str]:
    """Trains on two hosts of one device each, with a home each; returns what they print."""
    port, started = free_port(), []
    for number in range(2):
        home = homes / f"home{number}"
        home.mkdir(parents=True)
        command = [sys.executable, "-m", "launch.train", "--config=tests/e2e/text_config.py", *flags]
        command += ["--config.train.steps=4", "--config.train.checkpoint_every=2", "--config.mesh.data=-1"]
        command += [f"--coordinator=localhost:{port}", "--num-processes=2", f"--process-id={number}"]
        variables = environment(devices=1) | {
            "HOME": str(home), "FOT_TOUR": "unused", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip
        with (homes / f"{number}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    said = [(homes / f"{number}.log").read_text() for number in range(2)]
    assert codes == [0, 0], said[0][-3000:] + said[1][-3000:]
    return said


def losses(folder: str) -> list[tuple]:
    return [(row["step"], row["loss"]) for row in read_rows(storage_path(f"{folder}/run/metrics.jsonl"))]


def test_two_hosts_train_from_a_bucket_as_from_a_disk(bucket, tmp_path, vocabulary_files):  # noqa: F811
    tokenizer = vocabulary_files[VocabularyKind.HF_TOKENIZER]
    disk = str(tmp_path / "disk")
    said = train(bucket, put_corpus(bucket, tokenizer), tmp_path / "a")
    train(disk, put_corpus(disk, tokenizer), tmp_path / "b")
    assert losses(bucket) == losses(disk) and [step for step, _ in losses(bucket)] == [1, 2, 3, 4]
    assert "tokenising" in said[0] and "tokenising" not in said[1]
    copies = [list(tmp_path.glob(f"a/home{n}/.cache/fot_jax/tokens/**/tokens.bin")) for n in range(2)]
    assert [len(found) for found in copies] == [1, 1]
    assert copies[0][0].read_bytes() == copies[1][0].read_bytes()
    assert not list(tmp_path.glob("b/home*/.cache/fot_jax/tokens"))
    assert bucket_files().find(f"{bucket}/xla")
    assert not Path("gs:").exists() and not [name for name in os.listdir() if name.startswith("gs:")]
