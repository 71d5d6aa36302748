"""Programs that one process has compiled are loaded by the next: none is compiled twice."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.eval.workdirs import experiment, write_run

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
CODE = """
import collections, json, sys
import jax
from launch import cli, evaluate, generate, read
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rsplit("/", 1)[1]]))
command = {"evaluate": evaluate, "generate": generate, "read": read}[sys.argv[1]]
cli.run(command.main, command.make_parser(), sys.argv[2:])
print(json.dumps([counts["compile_requests_use_cache"], counts["cache_hits"]]))
"""


@pytest.mark.parametrize(
    "command",
    [
        "read --text={folder}/text.txt --prompt=Who? --max-new-tokens=40",
        "generate --prompt-file={folder}/text.txt --max-new-tokens=20 --memory.retrieval=exact --memory.top_k=4",
        "evaluate --task=passkey --evaluation.passkey_tokens=400 --evaluation.passkey_trials=1",
    ],
    ids=lambda command: command.split()[0],
)
def test_a_second_process_compiles_nothing(tmp_path, command):
    write_run(tmp_path / "run", experiment(tmp_path, memory_layers=[0, 1]))
    (tmp_path / "text.txt").write_text("A whale was drawn, by Ishmael, and nobody has seen it since.")
    name, *flags = command.format(folder=tmp_path).split()
    flags += [f"--workdir={tmp_path / 'run'}", f"--compilation-cache={tmp_path / 'xla'}"]
    found = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", CODE, name, *flags, *[f"--out={tmp_path / hash_seed}"] * (name == "evaluate")],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout.splitlines()[-1]))
    (asked, hits), again = found
    assert asked > 10 and hits < asked
    assert again == [asked, asked]
