"""Flags and steps that launch.generate and launch.read share: how an answer is made, and memories on disk."""

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from fot_jax.config import ExperimentConfig, MemoryConfig, UserError, check
from launch import cli, compilation_cache, interrupts

if TYPE_CHECKING:
    from fot_jax import Model, SamplingConfig
    from fot_jax.memory.store import MemoryStore


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a prompt and of what follows it."""
    chat_help = "the prompt is the user's message in the chat template of the checkpoint"
    parser.add_argument("--chat", action="store_true", help=chat_help)
    parser.add_argument("--system", metavar="TEXT", help="the system's message, with --chat; default: the template's")
    most_help = "tokens to write at most; default 256"
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help=most_help)
    sampling = parser.add_argument_group("sampling")
    temperature_help = "temperature of sampling; 0 (default): greedy"
    sampling.add_argument("--temperature", type=float, default=0.0, metavar="T", help=temperature_help)
    sampling.add_argument("--top-k", type=int, default=0, metavar="K", help="likeliest tokens kept; 0 (default): all")
    sampling.add_argument("--top-p", type=float, default=1.0, metavar="P", help="probability mass kept; default 1: all")
    sampling.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling; default 0")


def add_memory_flags(parser: argparse.ArgumentParser, *, load: str, save: str) -> None:
    """Adds the flags of a memory, on disk and on devices.

    Args:
      parser: of the command.
      load: says what is done with the memory that was loaded.
      save: says when the memory is saved.
    """
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--load-memory", type=cli.in_storage, metavar="DIR", help=f"a memory that --save-memory wrote; {load}"
    )
    memory.add_argument(
        "--save-memory", type=cli.in_storage, metavar="DIR", help=f"the folder of the memory to save; {save}"
    )
    replace_help = "--save-memory may replace a memory, once the new one is whole"
    memory.add_argument("--replace", action="store_true", help=replace_help)
    window_help = "tokens of the local context (the window); default: the run's"
    memory.add_argument("--model.local_context", type=int, dest="local_context", metavar="N", help=window_help)
    cli.add_section_flags(parser, "memory")
    cli.add_mesh_flags(parser, "spread memory and parameters over this process's devices; default: one device")
    compilation_cache.add_flag(parser)


def sampling_of(flags: argparse.Namespace) -> "SamplingConfig":
    """Returns how the flags choose tokens. Raises UserError where a flag of an answer is wrong."""
    from fot_jax.infer.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p, seed=flags.seed)
    sampling.validate("sampling")
    check(flags.max_new_tokens >= 1, "--max-new-tokens", "be >= 1", flags.max_new_tokens)
    if flags.system is not None and not flags.chat:
        raise UserError("--system needs --chat: the chat template says where the system's message goes.")
    return sampling


def read_run_config(flags: argparse.Namespace) -> ExperimentConfig:
    """Returns the run's config with the fields that the flags change, checked. Raises UserError."""
    from fot_jax.workdir import read_config

    config = read_config(flags.workdir)
    if flags.local_context is not None:
        check(flags.local_context >= 1, "--model.local_context", "be >= 1", flags.local_context)
        model = dataclasses.replace(config.model, local_context=flags.local_context)
        config = dataclasses.replace(config, model=model)
    memory = dataclasses.replace(config.memory, **cli.section_changes(flags, "memory"))
    memory.validate("memory")
    memory.validate_window("memory", config.model.local_context)
    return dataclasses.replace(config, memory=memory)


def check_place(flags: argparse.Namespace) -> None:
    """Raises UserError where --save-memory would write over something, before anything is read."""
    from fot_jax.memory import files

    place = flags.save_memory
    if not place:
        if flags.replace:
            raise UserError("--replace needs --save-memory=DIR, the memory that may be replaced.")
        return
    files.check_writable(place)
    if files.is_memory(place) and not flags.replace:
        raise UserError(
            f"--save-memory must name a new or empty folder, got '{place}', which holds a memory. Name another one, or"
            " add --replace."
        )


def load_model(flags: argparse.Namespace, memory: MemoryConfig) -> "Model":
    """Loads the model of the flags, with a memory config; what it compiles is kept for other processes."""
    from fot_jax.config.build import to_dict
    from fot_jax.library import load

    compilation_cache.use(flags.compilation_cache, log=print_to_stderr)
    model = load(flags.workdir, step=flags.step, mesh=cli.mesh_of(flags), local_context=flags.local_context)
    return model.with_memory(**to_dict(memory))


def print_to_stderr(line: str) -> None:
    """Prints a line where answers do not go."""
    print(line, file=sys.stderr, flush=True)


def save_memory(
    model: "Model",
    store: "MemoryStore",
    place: str,
    *,
    new: int,
    stop: interrupts.SignalStop,
    texts: tuple[tuple[str, str], ...] = (),
) -> None:
    """Writes a memory; after a signal it says so and ends the process.

    A part of what was to be read goes to PLACE.interrupted where PLACE holds a memory.

    Args:
      model: that read it.
      store: the memory.
      place: the folder.
      new: tokens that this command added.
      stop: the signals of this command.
      texts: names and texts that were read, to be kept with it.
    """
    from fot_jax.memory import files

    if stop.number and not new:
        interrupts.exit_interrupted(stop.number, "nothing was read, no memory is saved.")
    if stop.number and files.is_memory(place):
        place += ".interrupted"
    model.save_store(store, place, texts=texts)
    saved = f"memory of {store.bytes() / 2**20:,.1f} MiB saved to {place}"
    if stop.number:
        line = f"{saved}, {new:,} tokens read or written; --load-memory={place} reads on."
        interrupts.exit_interrupted(stop.number, line)
    print_to_stderr(saved)
