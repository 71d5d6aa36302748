"""Helpers of all commands: flags, loading an experiment, and errors in one line.

    def main(flags: argparse.Namespace) -> None: ...

    if __name__ == "__main__":
        parser = cli.make_parser(__doc__)
        cli.add_experiment_flags(parser)
        cli.run(main, parser)

Importing this module imports neither JAX nor TensorFlow, so that `--help` is quick.
"""

import argparse
import dataclasses
import itertools
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fot_jax.config import ConfigError, ExperimentConfig, MeshConfig, UserError
from fot_jax.config.build import build, construct, field_types, type_name
from fot_jax.config.errors import disk_full, is_disk_full
from fot_jax.config.override import parse, whole_number
from fot_jax.malloc import keep_freed_memory
from fot_jax.storage.explain import bucket_error
from fot_jax.storage.paths import StoragePath, check_storage_path, in_bucket, local_path, storage_path
from launch.config_files import load_config_file
from launch.unknown_flags import explain_unknown

USER_ERROR = 2  # exit code of every error that the user can fix, as argparse's own
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as every other user error, and name the flag that was meant."""

    _arguments: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses as argparse does; `error` looks at the arguments."""
        self._arguments = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            overrides = self.get_default("overrides") is not None
            message = explain_unknown(self, self._arguments, overrides=overrides) or message
        _fail(f"{message} (--help lists the flags)")


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USER_ERROR)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Makes a parser whose help is a module's docstring, as written."""
    return _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


OVERRIDES_HELP = (
    "Any number of --config.PATH=VALUE change single fields of the config file: "
    "--config.train.steps=100 --config.model.memory_layers=1,3 --config.crossbatch.plan=off"
)


def add_experiment_flags(parser: argparse.ArgumentParser, *, workdir: bool = False) -> None:
    """Adds `--config` with its overrides, `--gin_file`, `--gin_bindings`; `--workdir` for commands that use one."""
    group = parser.add_argument_group("experiment, from --config or from gin", OVERRIDES_HELP)
    config_help = "a config file, see configs/: plain Python with get_config(), or FILE.py:ARG with get_config(ARG)"
    group.add_argument("--config", type=on_disk, metavar="FILE", help=config_help)
    group.set_defaults(overrides=[])
    gin_help = "a gin file; may be repeated"
    group.add_argument("--gin_file", type=on_disk, action="append", default=[], metavar="FILE", help=gin_help)
    bindings_help = "'TrainConfig.steps = 100'; may be repeated"
    group.add_argument("--gin_bindings", action="append", default=[], metavar="BINDING", help=bindings_help)
    if workdir:
        add_workdir_flag(group)


def add_workdir_flag(parser: Any, *, required: bool = False) -> None:
    """Adds `--workdir`, the folder of a run."""
    default = "" if required else "; default: runs/NAME of the config"
    text = "the run's folder (config, checkpoints, metrics)" + default
    parser.add_argument("--workdir", type=in_storage, metavar="DIR", required=required, help=text)


def in_storage(text: str) -> str:
    """Parses a flag that is a path of this machine or of a bucket (gs://). Raises argparse.ArgumentTypeError."""
    try:
        return check_storage_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def on_disk(text: str) -> str:
    """Parses a flag that must be a path of this machine. Raises argparse.ArgumentTypeError for a URL."""
    try:
        local_path(text, what="it")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_step_flag(parser: Any) -> None:
    """Adds `--step`, the checkpoint to load: a number, "latest" or "best"."""
    text = "the checkpoint to load: a number, 'latest' (default) or 'best' (smallest held-out loss)"
    parser.add_argument("--step", type=_step, default="latest", metavar="N", help=text)


def _step(text: str) -> int | str:
    if text in ("latest", "best"):
        return text
    number = whole_number(text)
    if number is not None:
        return number
    raise argparse.ArgumentTypeError(f"must be a number, 'latest' or 'best', got {text!r}")


def add_section_flags(parser: Any, *sections: str) -> None:
    """Adds `--SECTION.FIELD` for every field of some sections of a run's config, such as "memory"."""
    for section in sections:
        fields = field_types(field_types(ExperimentConfig)[section])
        lines = "\n".join(f"{name:<26}{type_name(annotation)}" for name, annotation in fields.items())
        group = parser.add_argument_group(f"--{section}.FIELD=VALUE changes the run's config; FIELD is", lines)
        for name in fields:
            group.add_argument(f"--{section}.{name}", metavar="VALUE", default=None, help=argparse.SUPPRESS)


def section_changes(flags: argparse.Namespace, section: str) -> dict[str, object]:
    """Returns the fields of a section that `add_section_flags`'s flags set, as values of their types.

    Raises:
      ConfigError: a text is no value of the field's type.
    """
    kind = field_types(ExperimentConfig)[section]
    changes = {}
    for name, annotation in field_types(kind).items():
        text = getattr(flags, f"{section}.{name}")
        if text is not None:
            path = f"{section}.{name}"
            changes[name] = getattr(construct(kind, {name: parse(annotation, text, path=path)}, section), name)
    return changes


def add_mesh_flags(parser: Any, purpose: str) -> None:
    """Adds `--mesh.AXIS` for every field of MeshConfig, in a group that names its purpose."""
    mesh = parser.add_argument_group(f"mesh: {purpose}")
    for field in dataclasses.fields(MeshConfig):
        mesh.add_argument(f"--mesh.{field.name}", type=int, metavar="N", help=f"devices along {field.name}")


def mesh_of(flags: argparse.Namespace) -> MeshConfig | None:
    """Returns the mesh that these flags name; None where none was given. Raises ConfigError."""
    given = {field.name: getattr(flags, f"mesh.{field.name}") for field in dataclasses.fields(MeshConfig)}
    given = {name: size for name, size in given.items() if size is not None}
    if not given:
        return None
    mesh = MeshConfig(**given)
    mesh.validate("mesh")
    return mesh


def parse_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags; gathers `--config.a.b=v` (or `--config.a.b v`) in `flags.overrides` as (path, text).

    Exits with code 2 and one line on an unknown flag.
    """
    if parser.get_default("overrides") is None:
        return parser.parse_args(arguments)
    overrides, rest = _take_overrides(parser, arguments)
    flags = parser.parse_args(rest)
    flags.overrides = overrides
    return flags


def _take_overrides(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the (path, text) of every override, and the other arguments."""
    overrides, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        match = re.fullmatch(r"--config\.([^=]*)(=?)(.*)", argument, flags=re.DOTALL)
        if not match:
            rest.append(argument)
            continue
        text = match[3] if match[2] else next(remaining, None)
        if text is None:
            parser.error(f"{argument} needs a value: {argument}=VALUE")
        overrides.append((match[1], text))
    return overrides, rest


def load_experiment(flags: argparse.Namespace) -> ExperimentConfig:
    """Builds the validated experiment that `--config` with its overrides, or gin, describes.

    Raises:
      ConfigError: no config or two are named; a key is unknown, missing or mistyped; a check fails.
    """
    from_gin = bool(flags.gin_file or flags.gin_bindings)
    if bool(flags.config) == from_gin:
        given = "both" if from_gin else "neither"
        raise ConfigError(f"Name one of --config=configs/NAME.py and --gin_file=FILE, got {given}.")
    if from_gin:
        if flags.overrides:
            raise ConfigError(f"--config.{flags.overrides[0][0]} needs --config; with gin use --gin_bindings.")
        from fot_jax.config.gin import build_from_gin  # only gin configs need gin

        config = build_from_gin(flags.gin_file, flags.gin_bindings)
    else:
        config = build(ExperimentConfig, load_config_file(flags.config, flags.overrides))
    check_storage_path(config.train.init_from)
    return config


def workdir_of(flags: argparse.Namespace, config: ExperimentConfig) -> StoragePath:
    """Returns `--workdir`, or runs/NAME of the config."""
    return storage_path(flags.workdir) if flags.workdir else Path("runs") / config.name


def run(
    main: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> None:
    """Calls `main(flags)`. An error of the user or a full disk gives one line and exit code 2; Ctrl-C one and 130.

    Args:
      main: the command.
      parser: made by `make_parser`.
      arguments: the command line without the program's name; `sys.argv[1:]` if None.
    """
    flags = parse_flags(parser, sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig()
    logging.getLogger("fot_jax").setLevel(logging.INFO)  # shows what was chosen or left out
    if arguments is None and _is_a_command(sys.orig_argv):
        keep_freed_memory()
    try:
        main(flags)
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        name = getattr(error, "filename", None)
        if is_disk_full(error):
            _fail(str(disk_full(Path(name).parent if isinstance(name, str) else _folder_of(flags), error)))
        bucket = _bucket_of(flags)
        if bucket and (refused := bucket_error(error, bucket)) is not None:
            _fail(str(refused))
        if isinstance(error, OSError) and name is not None:
            _fail(f"{name!r} cannot be used: {error.strerror}.")
        raise


def _bucket_of(flags: argparse.Namespace) -> str | None:
    """Returns the first flag that is a path in a bucket, None where there is none."""
    given = [value for each in vars(flags).values() for value in (each if isinstance(each, list) else [each])]
    return next((value for value in given if isinstance(value, str) and in_bucket(value)), None)


def _is_a_command(argv: Sequence[str]) -> bool:
    """True if the interpreter was started with `-m launch.NAME`, so that starting it again does the same."""
    return any(flag == "-m" and name.startswith("launch.") for flag, name in itertools.pairwise(argv))


def _folder_of(flags: argparse.Namespace) -> Path:
    """Returns the folder that a command writes to: --workdir, --out, or the current one."""
    given = [getattr(flags, name, None) for name in ("workdir", "out")]
    return Path(next((path for path in given if path), "."))
