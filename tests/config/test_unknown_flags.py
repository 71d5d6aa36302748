"""An unknown flag ends in one line that names the flag that was meant, also under a former name."""

import importlib
import re

import pytest

from launch import cli
from launch.unknown_flags import config_paths

ERROR = re.compile(r"error: the flag (\S+) is unknown\.(?: Did you mean (\S+)\?)? \(--help lists the flags\)\n")
CASES = [
    # a command that starts from a run
    ("generate --workdir=x --overlap=8", "--overlap", "--memory.overlap"),
    ("generate --overlap=8", "--overlap", "--memory.overlap"),  # though --workdir is missing, too
    ("generate --workdir=x --memory=dense", "--memory", "--memory.retrieval"),
    ("generate --workdir=x --top-k-memory 64", "--top-k-memory", "--memory.top_k"),
    ("generate --workdir=x --last-context=exact", "--last-context", "--memory.last_context"),
    ("generate --workdir=x --last-context-length=8", "--last-context-length", "--memory.last_context_length"),
    ("generate --workdir=x --log-length-scaling-from=64", "--log-length-scaling-from",
     "--memory.log_length_scaling_from"),
    ("generate --workdir=x --config.memory.overlap=8", "--config.memory.overlap", "--memory.overlap"),
    ("generate --workdir=x --memory.overlpa=8", "--memory.overlpa", "--memory.overlap"),
    ("generate --workdir=x --mesh.fspd=8", "--mesh.fspd", "--mesh.fsdp"),
    ("generate -workdir=x", "-workdir", "--workdir"),
    ("generate --workdir=x --quux", "--quux", None),
    ("evaluate --checkpoint=x --task=passkey", "--checkpoint", "--workdir"),
    ("evaluate --workdir=x --task=passkey --evaluation.passkey_token=8", "--evaluation.passkey_token",
     "--evaluation.passkey_tokens"),
    # a command that starts from a config
    ("explain --retrieval-layers --checkpoint=x", "--checkpoint", "--workdir"),
    ("explain --config=x --memory.overlap=8", "--memory.overlap", "--config.memory.overlap"),
    ("train --config=x --overlap=8", "--overlap", "--config.memory.overlap"),
    ("train --config=x --train.steps=8", "--train.steps", "--config.train.steps"),
    ("train --config=x --steps=8", "--steps", "--config.train.steps"),
    ("bench --confg=x", "--confg", "--config"),
    ("explain --config=x --rows=8", "--rows", "--show-rows"),
    ("aot_compile --config=x --sweep-contexts=8", "--sweep-contexts", "--contexts"),
    ("aot_compile --config=x --sweep-mesh=fsdp=8", "--sweep-mesh", "--meshes"),
    ("aot_compile --config=x --memory-entries=8", "--memory-entries", "--entries"),
    ("aot_compile --config=x --topologie=v3:8x8", "--topologie", "--topology"),
    # subcommands
    ("convert import --from=x --memory-layers=1", "--memory-layers", "--model.memory_layers"),
    ("convert import --from=x --to=y --local-context=1", "--local-context", "--model.local_context"),
    ("convert export --workdir=x --local-context=1", "--local-context", None),
    ("pods.jobset apply --output=x -- --foo=1", "--output", "--out"),
    ("pods.jobset apply --nme=x -- --foo=1", "--nme", "--name"),
    ("pods.jobset --nme=x", "--nme", "--name"),
]  # fmt: skip


def refused(command: str, capsys) -> str:
    name, *arguments = command.split(" ")
    parser = importlib.import_module(f"launch.{name}").make_parser()
    with pytest.raises(SystemExit) as stop:
        cli.parse_flags(parser, arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("command", "given", "meant"), CASES, ids=[case[0] for case in CASES])
def test_an_unknown_flag_names_the_one_meant(command, given, meant, capsys):
    error = refused(command, capsys)
    match = ERROR.fullmatch(error)
    assert match, error
    assert (match[1], match[2]) == (given, meant)


def test_other_errors_of_flags_stay(capsys):
    """Arguments behind `--` belong to another command; a value may look like a flag."""
    assert "invalid choice: 'create'" in refused("pods.jobset create --nme=x", capsys)
    assert "required: --image, --topology" in refused("pods.jobset apply --name=x -- --nme=1", capsys)
    assert "--workdir: expected one argument" in refused("generate --workdir --overlap=8", capsys)


def test_a_former_step_of_explain_names_at_step(capsys):
    """--step was the training step of the plan; everywhere it is a run's checkpoint."""
    from launch import explain

    config = "--config=configs/tiny_code.py"
    for arguments, message in (
        (
            (config, "--step=3"),
            "--step is a run's checkpoint, for --retrieval-layers. A config's plan is drawn --at-step=N.",
        ),
        ((config, "--workdir=x"), "--workdir is for --retrieval-layers."),
        (
            (config, "--workdir=x", "--retrieval-layers"),
            "--retrieval-layers needs --workdir=DIR, the folder of a run, and no config.",
        ),
        (("--retrieval-layers",), "--retrieval-layers needs --workdir=DIR, the folder of a run, and no config."),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.run(explain.main, explain.make_parser(), arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_paths_of_a_config_are_those_of_overrides():
    assert {"seed", "train.steps", "model.rope.theta", "data.sources[0].path"} <= set(config_paths())
