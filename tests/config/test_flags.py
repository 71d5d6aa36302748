"""Flags of all commands: a field of the config has one spelling, and a flag one meaning wherever it is found."""

import argparse
import collections
import importlib
import pathlib
import re

from fot_jax.config import ExperimentConfig
from fot_jax.config.build import all_names, field_types
from launch.unknown_flags import config_paths

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
# Flags named like a field of the config, and what else they are.
OTHERS = {
    "--seed": "of sampling; --config.seed is that of training",
    "--top-k": "of sampling; --memory.top_k is that of the memory",
    "--documents": "files; --evaluation.documents is how many of them are measured",
    "--dtype": "of the stored parameters; model.dtype is that of computing",
    "--name": "in the cloud; --config.name is that of the experiment",
    "--slices": "to ask for; --config.mesh.slices is how they are used",
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command and subcommand."""
    found = {}
    for path in sorted(LAUNCH.rglob("*.py")):
        if '\nif __name__ == "__main__"' in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(LAUNCH).with_suffix("").parts)
            found[name] = importlib.import_module(f"launch.{name}").make_parser()
            for action in found[name]._actions:
                if isinstance(action, argparse._SubParsersAction):
                    found |= {f"{name} {subcommand}": parser for subcommand, parser in action.choices.items()}
    return found


def flags() -> dict[str, dict[str, argparse.Action]]:
    """Flag -> command -> how it is declared there."""
    found: dict[str, dict[str, argparse.Action]] = collections.defaultdict(dict)
    for command, parser in parsers().items():
        for action in parser._actions:
            for flag in action.option_strings:
                found[flag][command] = action
    return found


def meaning(action: argparse.Action) -> str:
    """The help's first clause."""
    return re.split(r"[;(]", action.help or "")[0].strip()


def test_every_flag_is_two_dashes_and_words():
    """Has one spelling at a time, and says what it is; sections list their fields instead of each one's help."""
    for flag, places in flags().items():
        for command, action in places.items():
            assert action.option_strings in ([flag], ["-h", "--help"]), (command, flag)
            assert meaning(action), f"launch.{command} must say what {flag} is"
    assert {"--workdir", "--step", "--config", "--memory.overlap", "--mesh.fsdp"} <= set(flags())


def test_a_field_of_the_config_has_one_spelling():
    """Is SECTION.FIELD; in commands that start from a config, --config.SECTION.FIELD changes it."""
    fields = {name.replace("_", "-") for name in all_names(ExperimentConfig)}
    sections = set(field_types(ExperimentConfig))
    for flag, places in flags().items():
        name = flag.removeprefix("--")
        if "." in name:
            assert name in config_paths(), f"{flag} is no field of the config"
            starts_from_config = [
                command for command in places if "--config" in parsers()[command]._option_string_actions
            ]
            assert not starts_from_config, f"{flag}: {starts_from_config} have --config.{name}"
            continue
        words = name.replace("_", "-")
        spelled = {words} | {
            words.removeprefix(f"{section}-").removesuffix(f"-{section}")
            for section in sections
            if words.startswith(f"{section}-") or words.endswith(f"-{section}")
        }
        if flag not in OTHERS:
            assert not spelled & (fields | sections - {"data"}), (
                f"{flag} of {list(places)} spells a field of the config"
            )
    assert set(OTHERS) <= set(flags()), "a flag is gone: take it out of OTHERS"


def test_a_flag_has_one_meaning_everywhere():
    for flag, places in flags().items():
        meanings = {command: meaning(action) for command, action in places.items()}
        assert len(set(meanings.values())) == 1, (flag, meanings)


def test_a_meaning_has_one_flag():
    by_meaning = collections.defaultdict(set)
    for flag, places in flags().items():
        if flag not in ("-h", "--help"):
            by_meaning[next(iter({meaning(action) for action in places.values()}))].add(flag)
    assert not {text: found for text, found in by_meaning.items() if len(found) > 1 and text != argparse.SUPPRESS}
