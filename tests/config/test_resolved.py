"""`launch.explain --resolved`: the whole config alone on stdout, as JSON or gin that is read back."""

import json

import pytest

from fot_jax.config import ExperimentConfig
from fot_jax.config.build import build, to_dict
from fot_jax.config.gin import build_from_gin
from launch import cli, explain
from tests.shipped import load

GIVEN = ("--config=configs/paper.py:37m", "--config.train.steps=7", "--config.data.cache_dir=a 'b'")
CONFIG = load("paper:37m", *GIVEN[1:])


def printed(*arguments: str, capsys) -> str:
    cli.run(explain.main, explain.make_parser(), arguments)
    return capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--resolved", "--resolved=json"])
def test_json_holds_every_field(flag, capsys):
    values = json.loads(printed(*GIVEN, flag, capsys=capsys))
    assert values == to_dict(CONFIG)
    assert build(ExperimentConfig, values) == CONFIG


def test_gin_is_read_back(tmp_path, capsys):
    path = tmp_path / "resolved.gin"
    path.write_text(printed(*GIVEN, "--resolved=gin", capsys=capsys))
    assert build_from_gin([str(path)]) == CONFIG
    again = printed(f"--gin_file={path}", "--resolved=gin", capsys=capsys)
    assert again == path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*GIVEN, "--resolved=yaml"), "argument --resolved: invalid choice: 'yaml'"),
        ((*GIVEN, "--config.train.steps=0", "--resolved"), "train.steps must be >= 1, got 0."),
        (("--retrieval-layers", "--workdir=x", "--resolved"), "--retrieval-layers needs --workdir=DIR, the folder"),
    ],
)
def test_what_cannot_be_resolved_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(explain.main, explain.make_parser(), arguments)
    output = capsys.readouterr()
    assert stop.value.code == 2 and not output.out
    assert output.err.startswith(f"error: {message}") and output.err.count("\n") == 1
