"""`python -m launch.convert` as a user types it: one process for all, progress, one line for a mistake."""

import json
import runpy
import sys

import pytest

from fot_jax.checkpoint import load_params
from fot_jax.workdir import read_config
from tests.convert.checkpoints import SMALL, bpe_tokenizer, random_tensors, write_folder


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("import", "--from=x")` -> (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["launch.convert", *map(str, arguments)])
        code = 0
        try:
            runpy.run_module("launch.convert", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_there_and_back(tmp_path, command):
    values = {**SMALL, "vocab_size": 300}
    source = write_folder(tmp_path / "hf", values, random_tensors(values))
    bpe_tokenizer(300).save(str(source / "tokenizer.json"))
    workdir, out = tmp_path / "run", tmp_path / "out"
    code, printed, progress = command(
        "import", f"--from={source}", f"--to={workdir}", "--model.memory_layers=0,1", "--model.local_context=32",
        "--dtype=bfloat16",
    )  # fmt: skip
    assert code == 0
    assert "2 layers, 16 wide, 4 heads (2 of keys), 300 tokens, local context 32, memory layers 0,1" in printed
    assert "read 21 of 21 tensors" in progress and "MiB" in progress
    config, params, step = load_params(workdir)
    assert step == 0 and config == read_config(workdir) and params["embedding"].shape == (300, 16)
    assert config.model.memory_layers == (0, 1)
    code, printed, _ = command("export", f"--workdir={workdir}", f"--to={out}", "--step=latest", "--max-shard-size=5KB")
    assert code == 0 and "model.safetensors.index.json" in printed and "tokenizer.json" in printed
    assert json.loads((out / "config.json").read_text())["mem_layers"] == [0, 1]
    code, printed, _ = command("export", f"--workdir={workdir}", f"--to={tmp_path / 'bare'}", "--format=orbax")
    assert code == 0 and "params" in printed


def test_without_a_tokenizer_it_says_so(tmp_path, command):
    source = write_folder(tmp_path / "hf", SMALL, random_tensors(SMALL))
    code, _, said = command("import", f"--from={source}", f"--to={tmp_path / 'run'}", "--mesh.fsdp=8")
    assert code == 0 and "no tokenizer was found" in said and "read 21 of 21 tensors" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a command: import, export or average"),
        (["import"], "required: --from, --to"),
        (
            ["import", "--from=nowhere", "--to=x"],
            "--from must name a Hugging Face folder or a GGUF file, got 'nowhere'",
        ),
        (["import", "--from=a", "--to=b", "--model.memory_layers=1,x"], "must be layers such as 14,17"),
        (["import", "--from=a", "--to=b", "--dtype=int8"], "invalid choice: 'int8'"),
        (["export", "--workdir=nowhere", "--to=x"], "--workdir must hold a run"),
        (["export", "--workdir=a", "--to=b", "--max-shard-size=5XB"], "must be a number and one of KB, MB"),
        (["export", "--workdir=a", "--to=b", "--format=onnx"], "invalid choice: 'onnx'"),
        (["import", "--from=a", "--to=b", "--mesh.fsdp=0"], "mesh.fsdp must be >= 1, got 0"),
        (["import", "--from=a", "--to=b", "--mesh.tensor=3"], "must multiply to the 8 devices present"),
        (["average", "--workdir=a", "--to=b"], "required: --with"),
        (["average", "--workdir=a", "--with=c", "--to=b", "--share=1.5"], "--share must be between 0"),
        (["average", "--workdir=nowhere", "--with=c", "--to=b"], "--workdir must hold a run"),
        (["convert"], "invalid choice: 'convert'"),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, printed, said = command(*arguments)
    assert code == 2 and printed == ""
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not list(tmp_path.iterdir())


def test_help_of_every_command(command):
    for name, flag in (("import", "--model.memory_layers"), ("export", "--max-shard-size"), ("average", "--share")):
        code, printed, _ = command(name, "--help")
        assert code == 0 and flag in printed
