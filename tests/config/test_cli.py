"""The door: a user's error is one line on stderr and exit code 2."""

import errno
import logging
import os

import pytest

from fot_jax.config import ConfigError, UserError
from launch import cli
from launch.config_files import addresses

TINY = "--config=configs/tiny_code.py"


def parser():
    made = cli.make_parser("A command.")
    cli.add_experiment_flags(made, workdir=True)
    cli.add_step_flag(made)
    return made


def load(*arguments):
    return cli.load_experiment(cli.parse_flags(parser(), arguments))


def run_and_fail(main, *arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(main, parser(), arguments)
    return stop.value.code, capsys.readouterr().err


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    """For every command."""

    def main(flags):
        raise KeyboardInterrupt

    assert run_and_fail(main, capsys=capsys) == (130, "interrupted\n")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_one_line_that_names_the_folder(wrapped, tmp_path, capsys):
    """The file's folder, or that of --workdir where the error names no file, as those of libraries."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([] if wrapped else [str(tmp_path / "cache" / "x")]))

    def main(flags):
        if wrapped:
            raise RuntimeError("write failed") from full
        raise full

    code, err = run_and_fail(main, f"--workdir={tmp_path / 'run'}", capsys=capsys)
    assert code == 2 and len(err.splitlines()) == 1
    assert err.startswith(f"error: {tmp_path / ('run' if wrapped else 'cache')}: the disk is full (")


def test_overrides_with_and_without_equals_sign():
    config = load(TINY, "--config.train.steps=5", "--config.seed", "3", "--config.data.cache_dir=a=b")
    assert (config.train.steps, config.seed, config.data.cache_dir) == (5, 3, "a=b")


def test_gin_and_workdir():
    flags = cli.parse_flags(parser(), ["--gin_file=configs/tiny_code.gin", "--gin_bindings=TrainConfig.steps = 5"])
    config = cli.load_experiment(flags)
    assert config.train.steps == 5
    assert str(cli.workdir_of(flags, config)) == "runs/tiny_code"


def test_the_checkpoint_to_load():
    steps = [cli.parse_flags(parser(), arguments).step for arguments in ([], ["--step=best"], ["--step=250"])]
    assert steps == ["latest", "best", 250]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TINY, "--step=first"], "must be a number, 'latest' or 'best', got 'first'"),
        ([], "Name one of --config=configs/NAME.py and --gin_file=FILE, got neither."),
        ([TINY, "--gin_file=configs/tiny_code.gin"], "got both."),
        (["--config=nope.py"], "--config must name an existing file, got 'nope.py'."),
        (["--config=configs/tiny_cod"], "got 'configs/tiny_cod'. Did you mean 'configs/tiny_code.py'?"),
        ([TINY, "--config.crosbatch.plan=off"], "Did you mean 'crossbatch'?"),
        (["--gin_bindings=TrainConfig.steps = 1", "--config.train.steps=1"], "needs --config"),
        ([TINY, "--config.train.steps"], "--config.train.steps needs a value"),
        ([TINY, "--stepz=1"], "the flag --stepz is unknown. Did you mean --step? (--help lists the flags)"),
        ([TINY, "leftover"], "unrecognized arguments: leftover (--help"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(arguments, message, capsys):
    code, err = run_and_fail(cli.load_experiment, *arguments, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_programming_errors_keep_their_traceback():
    def main(flags):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.run(main, parser(), [])


def test_what_is_chosen_is_logged(caplog):
    caplog.set_level(logging.NOTSET, logger="fot_jax")  # an earlier test may have called `run`
    logger = logging.getLogger("fot_jax.ops.backends.choose")
    cli.run(lambda flags: logger.info("the backend"), parser(), [])
    assert "the backend" in caplog.text


def test_any_user_error_is_caught(capsys):
    def main(flags):
        raise UserError("the corpus is empty:\nadd files")

    assert run_and_fail(main, capsys=capsys) == (2, "error: the corpus is empty: add files\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "c = template(); c.model.num_layer = 3; return c",
            "the key 'num_layer' is unknown. Did you mean 'num_layers'?",
        ),
        ("c = template(); c.modl.num_layers = 3; return c", "the key 'modl' is unknown. Did you mean 'model'?"),
        ("c = template(); c.model.num_layers = 'x'; return c", "Could not override field 'num_layers'"),
        ("return {'seed': 1}", "get_config() must return a ConfigDict, got dict"),
    ],
)
def test_mistakes_in_a_config_file(body, message, tmp_path):
    path = tmp_path / "mistake.py"
    path.write_text(f"from fot_jax.config.build import template\ndef get_config():\n    {body}\n")
    with pytest.raises(ConfigError) as error:
        load(f"--config={path}")
    assert message in str(error.value)


SIZED = """from configs import tiny_code
ARGUMENTS = ("small", "large")
def get_config(size):
    config = tiny_code.get_config()
    config.name = size
    return config
"""


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        (SIZED, "", "FILE:ARG must name one of small, large; got no argument."),
        (SIZED, ":", "FILE:ARG must name one of small, large; got ''."),
        (SIZED, ":larg", "FILE:ARG must name one of small, large; got 'larg'. Did you mean FILE:large?"),
        (SIZED.replace("ARGUMENTS", "_"), "", "FILE:ARG must name the argument of its get_config(); got no argument."),
        (SIZED.replace("(size)", "(size='small')"), ":7", "FILE:ARG must name one of small, large; got '7'."),
        (SIZED.replace("(size)", "()"), ":small", "FILE takes no argument, got ':small'. Leave it out."),
        (SIZED.replace("get_config(size)", "config()"), ":small", "FILE must define get_config()"),
    ],
)
def test_an_argument_that_a_file_does_not_know(text, argument, message, tmp_path):
    path = tmp_path / "sized.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(f"--config={path}{argument}")
    assert message.replace("FILE", str(path)) in str(error.value)


def test_get_config_gets_its_argument(tmp_path):
    """Hands over text: of the ARGUMENTS, any where none are listed, or the default of get_config()."""
    path = tmp_path / "sized.py"
    path.write_text(SIZED)
    assert load(f"--config={path}:large", "--config.seed=3").name == "large"
    assert addresses(str(path)) == [f"{path}:small", f"{path}:large"]
    path.write_text(SIZED.replace("ARGUMENTS", "_"))
    assert load(f"--config={path}:12").name == "12"
    path.write_text(SIZED.replace("(size)", "(size='small')"))
    assert [load(f"--config={path}{argument}").name for argument in ("", ":large")] == ["small", "large"]
    assert addresses("configs/tiny_code.py") == ["configs/tiny_code.py"]


def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path):
    path = tmp_path / "bug.py"
    path.write_text("def get_config():\n    return None.x\n")
    with pytest.raises(AttributeError, match="NoneType"):
        load(f"--config={path}")
