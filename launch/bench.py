r"""Times an experiment's programs: training steps, reading, decoding, data; all in one run, taking turns.

python -m launch.bench --config=configs/tiny_code.py --contexts=2,8,64
python -m launch.bench --config=configs/tiny_code.py --measure=step,read,decode,data --out=runs/bench
python -m launch.bench --config=configs/smollm2_135m.py --measure=decode --entries=4096,65536,1048576 \
    --retrievals=dense,exact,scann
python -m launch.bench --shape=authors     # steps at the shapes at which the authors' code was measured, and its record

Compare the ratios of one run, not seconds across runs: programs take turns, so that other load slows all
alike. FLOPs are counted by formula. "FLOPs" compares them with a matrix product timed in the same run, "bytes"
compares bytes with a pass over memory. With seconds and FLOPs a token relative to the first program of a
measure, "x FLOPs" is seconds / FLOPs and "added" is (seconds - 1) / (FLOPs - 1): 1 where time grows as FLOPs do.
Decoding and reading with top-k have no FLOPs by formula. "spread" is the interquartile range of a program's
calls as a share of their median. Parameters are random; temporary memory is the compiler's own figure.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from fot_jax.config import AttentionBackend, ConfigError, ExperimentConfig, Retrieval
from fot_jax.config.override import whole_number
from launch import cli

MEBIBYTE = 2**20
MEASURES = ("step", "read", "decode", "data")
BACKENDS = tuple(backend.value for backend in AttentionBackend)


def _integers(text: str, flag: str) -> list[int]:
    numbers = [whole_number(part.strip()) for part in text.split(",")]
    if not all(numbers):
        raise ConfigError(f"{flag} must be integers >= 1, got {text!r}.")
    return [number for number in numbers if number]


def _names(text: str, flag: str, allowed: tuple[str, ...]) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if part not in allowed]
    if wrong:
        raise ConfigError(f"{flag} must name some of {', '.join(allowed)}, got {wrong[0]!r}.")
    return parts


def make_programs(config: ExperimentConfig, flags: argparse.Namespace) -> dict[str, list[Any]]:
    """Compiles the programs of each measure; 'machine' is always there."""
    contexts, lengths = _integers(flags.contexts, "--contexts"), _integers(flags.lengths, "--lengths")
    entries = _integers(flags.entries, "--entries")
    retrievals = [
        Retrieval(name) for name in _names(flags.retrievals, "--retrievals", tuple(kind.value for kind in Retrieval))
    ]
    backends = [AttentionBackend(name) for name in _names(flags.backends, "--backends", BACKENDS)]
    wanted = _names(flags.measure, "--measure", MEASURES)
    model = config.model
    if not model.memory_layers and wanted != ["data"]:
        raise ConfigError("model.memory_layers must name at least one layer to time crossbatch and memory, got ().")
    short = [length for length in lengths if length % model.local_context]
    if "read" in wanted and short:
        raise ConfigError(f"--lengths must be whole windows of {model.local_context} tokens, got {short[0]}.")

    import jax

    from fot_jax.bench import inference, machine, pipeline, steps
    from fot_jax.ops.backends.choose import check_platform

    if "step" in wanted:
        check_platform(model.attention, jax.devices()[0].platform)
        for backend in backends:
            check_platform(backend, jax.devices()[0].platform, field="--backends")
    found = {"machine": machine.machine_programs(model)}
    params = inference.random_params(model) if wanted != ["data"] else None
    if "step" in wanted:
        found["step"] = steps.step_programs(config, params, contexts=contexts, backends=backends)
    if "read" in wanted:
        found["read"] = inference.reading_programs(model, params, memory=config.memory, lengths=lengths)
    if "decode" in wanted:
        found["decode"] = inference.decoding_programs(
            model, params, memory=config.memory, entries=entries, retrievals=retrievals
        )
    if "data" in wanted:
        found["data"] = pipeline.pipeline_programs(config)
    return found


def check_alone(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Raises ConfigError where a flag is given that `--shape` sets itself."""
    kept = ("shape", "repeats", "out")
    given = [name for name, value in vars(flags).items() if name not in kept and value != parser.get_default(name)]
    if given:
        raise ConfigError(
            f"--shape={flags.shape} must go without --{given[0]}: it has its own models and contexts. Leave one out."
        )


def _programs_of_shape() -> dict[str, list[Any]]:
    from fot_jax.bench import authors, machine

    steps = authors.authors_programs()
    model = authors.experiment(authors.SHAPES[0], vocabulary=authors.VOCABULARIES[0]).model
    return {"machine": machine.machine_programs(model), **steps}


def make_records(groups: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Makes a record of each program: median seconds, spread, tokens/s, ratios to its group's first, shares, memory."""
    product, memory = groups["machine"]
    peak, bandwidth = product.flops / product.median, memory.bytes / memory.median
    records = []
    for measure, programs in groups.items():
        for program in programs:
            seconds = program.median
            times_flops, added = _relative_to_flops(program, programs[0])
            records.append(
                {
                    "measure": measure,
                    "program": program.name,
                    "x": program.x,
                    "series": program.series,
                    "seconds": seconds,
                    "spread": program.spread,
                    "calls": len(program.seconds),
                    "tokens_per_second": program.tokens / seconds,
                    "times_first": None if measure == "machine" else seconds / programs[0].median,
                    "times_flops": times_flops,
                    "added_times_flops": added,
                    "flops_per_second": program.flops / seconds,
                    "flops_share": program.flops / seconds / peak,
                    "bytes_per_second": program.bytes / seconds,
                    "bytes_share": program.bytes / seconds / bandwidth,
                    "temp_mebibytes": None if program.temp_bytes is None else program.temp_bytes / MEBIBYTE,
                }
            )
    return records


def _relative_to_flops(program: Any, first: Any) -> tuple[float | None, float | None]:
    """Returns "x FLOPs" and "added" of the module's docstring, relative to `first`; None where one has no value."""
    if program is first or not (program.flops and first.flops and program.tokens and first.tokens):
        return None, None
    seconds = program.median / program.tokens / (first.median / first.tokens)
    flops = program.flops / program.tokens / (first.flops / first.tokens)
    return seconds / flops, None if flops == 1 else (seconds - 1) / (flops - 1)


def _text(value: float | None, form: str) -> str:
    return format(value, form) if value else "–"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def print_table(records: list[dict[str, Any]]) -> None:
    """Prints the records, a line each."""
    print(
        f"{'program':<26} {'seconds':>10} {'spread':>6} {'tokens/s':>10} {'x first':>8} {'x FLOPs':>8} {'added':>6}"
        f" {'FLOPs':>6} {'bytes':>6} {'temp MiB':>9}"
    )
    for row in records:
        print(
            f"{row['program']:<26} {row['seconds']:>10.4g} {_percent(row['spread']):>6}"
            f" {_text(row['tokens_per_second'], '.0f'):>10}"
            f" {_text(row['times_first'], '.2f'):>8} {_text(row['times_flops'], '.2f'):>8}"
            f" {_text(row['added_times_flops'], '.2f'):>6} {_text(row['flops_share'], '.0%'):>6}"
            f" {_text(row['bytes_share'], '.0%'):>6} {_text(row['temp_mebibytes'], '.1f'):>9}"
        )


def plot(path: Path, records: list[dict[str, Any]], *, title: str) -> bool:
    """Plots cost against d, length and memory size, a panel each; returns False where there is nothing to plot."""
    from fot_jax.eval.plots import Curve, Panel, plot_panels

    axes = {
        "step": ("contexts d", "seconds a step"),
        "read": ("tokens of the text", "seconds a token"),
        "decode": ("entries in memory", "seconds a token"),
    }
    panels = []
    for measure, (x_label, y_label) in axes.items():
        rows = [row for row in records if row["measure"] == measure]
        curves = []
        for series in dict.fromkeys(row["series"] for row in rows):
            points = [row for row in rows if row["series"] == series]
            y = [row["seconds"] if measure == "step" else 1 / row["tokens_per_second"] for row in points]
            curves.append(Curve(label=series, x=[row["x"] for row in points], y=y))
        if curves:
            panel = Panel(title=title, x_label=x_label, y_label=y_label, y_log=measure == "decode")
            panels.append((panel, curves))
    if panels:
        plot_panels(path, panels=panels)
    return bool(panels)


def _write(folder: Path, name: str, records: list[dict[str, Any]], *, repeats: int) -> None:
    import jax

    from fot_jax.eval.report import to_json
    from fot_jax.workdir import write_whole

    device = jax.devices()[0].device_kind
    about = {"config": name, "device": device, "devices": jax.device_count(), "repeats": repeats}
    write_whole(folder / "bench.json", to_json({**about, "rows": records}, indent=2) + "\n")
    drawn = plot(folder / "bench.png", records, title=f"{name}, {device}")
    print(f"written to {folder}: bench.json{', bench.png' if drawn else ''}", file=sys.stderr)


def main(flags: argparse.Namespace) -> None:
    """Measures and prints; also writes JSON and a plot where --out says so."""
    if flags.shape:
        check_alone(make_parser(), flags)
    config = None if flags.shape else cli.load_experiment(flags)
    repeats = _integers(flags.repeats, "--repeats")[0]
    if flags.out and Path(flags.out).exists() and not Path(flags.out).is_dir():
        raise ConfigError(f"--out must be a folder, got the file {flags.out!r}. Name another.")
    groups = _programs_of_shape() if config is None else make_programs(config, flags)

    from fot_jax.bench.timing import time_interleaved

    def progress(done: int, total: int, name: str) -> None:
        print(f"\r{done}/{total} {name:<26}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    time_interleaved([program for group in groups.values() for program in group], repeats=repeats, progress=progress)
    records = make_records(groups)
    print_table(records)
    if config is None:
        from fot_jax.bench.authors import comparison

        print("\n" + "\n".join(comparison(records)))
    if flags.out:
        _write(Path(flags.out), flags.shape if config is None else config.name, records, repeats=repeats)


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_experiment_flags(parser)
    parser.add_argument(
        "--shape",
        choices=["authors"],
        help="instead of a config: training steps at the shapes at which the authors' code was measured",
    )
    parser.add_argument(
        "--measure",
        default="step",
        metavar="NAMES",
        help=f"what is timed; some of {','.join(MEASURES)}, default %(default)s",
    )
    parser.add_argument(
        "--contexts", default="2,8", metavar="D,D,…", help="contexts of a row (d); of step, default %(default)s"
    )
    parser.add_argument(
        "--backends", default="reference,blockwise", metavar="NAMES",
        help=f"backends of attention; in step, of {','.join(BACKENDS)}, default %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--lengths", default="4096,16384", metavar="N,…", help="tokens of the texts; of read, default %(default)s"
    )
    parser.add_argument(
        "--entries", default="4096,65536", metavar="M,…", help="entries in memory; of decode, default %(default)s"
    )
    parser.add_argument(
        "--retrievals",
        default="dense,exact",
        metavar="NAMES",
        help="how memory is read; in decode, default %(default)s",
    )
    parser.add_argument(
        "--repeats",
        default="7",
        metavar="N",
        help="turns of each program, of a call or a quarter second; default %(default)s",
    )
    parser.add_argument("--out", type=cli.on_disk, metavar="DIR", help="where the results go; bench.json and bench.png")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
