"""Explains a config: which row reads which context and why, d by step, the costs; nothing is trained.

python -m launch.explain --config=configs/tiny_code.py
python -m launch.explain --config=configs/dictionary.py --contexts=8 --show-rows=40
python -m launch.explain --config=configs/paper.py:184m --at-step=460000
python -m launch.explain --config=configs/tiny_code.py --resolved=gin > tiny_code.gin
python -m launch.explain --retrieval-layers --workdir=runs/smollm2 --length=1024

--resolved prints the whole config, defaults and changes included, and nothing else: as JSON, or as gin for --gin_file.
The last one measures which layers and heads of a trained model attend to a fact that is asked for. Give those memory.
"""

import argparse
import json
from typing import assert_never

from fot_jax.config import ConfigError, CrossbatchConfig, ExperimentConfig, PlanKind, ScheduleKind, check
from fot_jax.config.build import to_dict
from fot_jax.storage.paths import storage_path
from launch import cli

GIGA = 1e9


def describe_row(crossbatch: CrossbatchConfig, *, row: int, batch_rows: int) -> str:
    """Names a row's stream and chunk: "stream 3, chunk t+1"; t is the stream's chunk at the step's start."""
    per_stream = crossbatch.rows_per_stream
    if crossbatch.plan is PlanKind.TWO_PASS:
        place, stream = divmod(row, batch_rows // per_stream)
        name = "C_curr" if place == crossbatch.previous_chunks else "C_prev"
        return f"stream {stream}, chunk t+{place} {name}"
    stream, place = divmod(row, per_stream)
    return f"stream {stream}, chunk t+{place}"


def draw_row(ids: list[int], own: list[bool], *, row: int, batch_rows: int) -> str:
    """Draws one character a batch row: `*` the reader, `+` read, own document, `-` read, another's, `.` not read."""
    marks = ["."] * batch_rows
    marks[row] = "*"
    for context, mine in zip(ids, own, strict=True):
        marks[context] = "+" if mine else "-"
    return "".join(marks)


def plan_lines(config: ExperimentConfig, *, num_contexts: int, shown_rows: int) -> list[str]:
    """Draws the plan of one micro-batch as a table, one line a row."""
    from fot_jax.ops.plans import make_plan

    crossbatch = config.crossbatch
    B = config.train.batch_rows // config.train.accumulation
    plan = make_plan(crossbatch, batch_rows=B, num_contexts=num_contexts)
    drawn = B <= 128
    heading = "read rows, one mark a row" if drawn else "read rows"
    lines = [f"{'row':>4}  {'what it holds':<30} {'own':>4} {'other':>5}  {heading}"]
    rows = rows_to_show(crossbatch, batch_rows=B, most=shown_rows)
    for before, row in zip([-1, *rows], rows, strict=False):
        if row != before + 1:
            lines.append("   ...")
        filled = plan.context_ids[row] >= 0
        ids, own = plan.context_ids[row][filled].tolist(), plan.own_document[row][filled].tolist()
        what = describe_row(crossbatch, row=row, batch_rows=B)
        picture = draw_row(ids, own, row=row, batch_rows=B) if drawn else _first(ids)
        lines.append(f"{row:>4}  {what:<30} {sum(own):>4} {len(own) - sum(own):>5}  {picture}")
    if len(rows) < B:
        lines.append(f"   ... {B - len(rows)} of {B} rows not shown: --show-rows={B} shows all")
    return lines


def rows_to_show(crossbatch: CrossbatchConfig, *, batch_rows: int, most: int) -> list[int]:
    """Chooses all rows, or the first ones; in a two-pass batch two of C_prev and the first of C_curr, which read."""
    if batch_rows <= most or crossbatch.plan is not PlanKind.TWO_PASS:
        return list(range(min(batch_rows, most)))
    first_reader = batch_rows * crossbatch.previous_chunks // crossbatch.rows_per_stream
    head = min(2, first_reader, most)
    return [*range(head), *range(first_reader, min(first_reader + most - head, batch_rows))]


def _first(ids: list[int]) -> str:
    shown = " ".join(str(i) for i in ids[:12])
    return shown + (f" ... {ids[-1]}" if len(ids) > 12 else "") if ids else "none"


REASONS = {
    PlanKind.OFF: "Plain training: no row reads another.",
    PlanKind.TWO_PASS: "C_curr of stream i reads the previous chunks of streams i, i+1, ..., i+d-1 (modulo their "
    "number): its own first, as the positive. C_prev reads nothing: it is there to be read (sec. 3.2).",
    PlanKind.PACKED: "A row reads its nearest earlier own rows (at most previous_chunks), then the d-1 nearest earlier "
    "rows of other streams. Never a later row: two memory layers would carry its future back.",
    PlanKind.SEGMENTS: "The place in the pack fixes the counts (positives, negatives), as LongLLaMA trains (sec. 4).",
    PlanKind.CONSTANT_RANGE: "A row reads the rows just before it, as many as the authors' range and stepping allow.",
    PlanKind.OWN_PAST: "A row reads at most w of its own earlier rows, as the Memorizing Transformer trains.",
}


def schedule_line(config: ExperimentConfig) -> str:
    """Describes the schedule of d in words."""
    schedule = config.crossbatch.schedule
    ds = schedule.num_contexts
    if not config.crossbatch.uses_num_contexts:
        return f"the plan '{config.crossbatch.plan.value}' does not use d"
    if schedule.kind is ScheduleKind.CONSTANT:
        return f"d = {ds[0]} at every step"
    if schedule.kind is ScheduleKind.SWITCH_AT_STEP:
        return f"d = {ds[0]} before step {schedule.switch_step:,}, then d = {ds[1]}"
    if schedule.kind is ScheduleKind.SWITCH_AT_ACCURACY:
        return f"d = {ds[0]} until the training accuracy reaches {schedule.switch_accuracy:.0%}, then d = {ds[1]}"
    if schedule.kind is ScheduleKind.RANDOM:
        return f"d drawn at each step from {', '.join(map(str, ds))}"
    assert_never(schedule.kind)


def contexts_at(config: ExperimentConfig, flags: argparse.Namespace) -> int:
    """Returns the d to draw: `--contexts`, or the schedule's at `--at-step`, or its last."""
    from fot_jax.train.context_schedule import ContextSchedule

    if flags.contexts is not None:
        streams = config.train.batch_rows // config.train.accumulation // config.crossbatch.rows_per_stream
        most = streams if config.crossbatch.plan is PlanKind.TWO_PASS else config.train.batch_rows
        if not 1 <= flags.contexts <= most:
            raise ConfigError(f"--contexts must be in 1..{most} for this batch, got {flags.contexts}.")
        return flags.contexts
    schedule = ContextSchedule(config.crossbatch.schedule, config.seed)
    return schedule.final if flags.at_step is None else schedule.num_contexts(flags.at_step)


def account_lines(config: ExperimentConfig, *, num_contexts: int) -> list[str]:
    """Lists parameters, FLOPs and bytes of the config."""
    from fot_jax.models import account
    from fot_jax.ops.plans import make_plan

    model, train = config.model, config.train
    rows = train.batch_rows // train.accumulation
    contexts = account.mean_contexts(make_plan(config.crossbatch, batch_rows=rows, num_contexts=num_contexts))
    parameters, flops = account.count_parameters(model), account.flops_per_token(model, contexts_per_row=contexts)
    memory = account.memory_bytes(config)
    tokens = train.batch_rows * model.local_context
    lines = ["Parameters"]
    lines += [f"  {name:<18} {value:>18,}" for name, value in account.as_dict(parameters).items() if value]
    lines += [f"  {'total':<18} {parameters.total:>18,}   ({parameters.layers:,} without embeddings)"]
    lines += [f"FLOPs per token, training (3 x forward), {contexts:.2f} contexts a row"]
    lines += [f"  {name:<18} {3 * value:>18,.0f}" for name, value in account.as_dict(flops).items() if value]
    lines += [f"  {'total':<18} {flops.train:>18,.0f}"]
    lines += [f"  a step ({tokens:,} tokens): {flops.train * tokens:.3g} FLOPs"]
    lines += [
        f"  the run ({train.steps:,} steps, {tokens * train.steps:,} tokens): {flops.train * tokens * train.steps:.3g}"
    ]
    lines += ["Bytes of a training step, all devices together (activations: an estimate)"]
    lines += [f"  {name:<18} {value / GIGA:>15.3f} GB" for name, value in account.as_dict(memory).items()]
    lines += [f"  {'total':<18} {memory.total / GIGA:>15.3f} GB"]
    entry = account.memory_entry_bytes(model, config.memory.dtype)
    lines += [f"External memory: {entry:,} bytes a token ({entry * 1e6 / GIGA:.3f} GB a million tokens)"]
    return lines


def explain(config: ExperimentConfig, *, num_contexts: int, shown_rows: int) -> str:
    """Returns the whole explanation of a config as text."""
    from fot_jax.train.plan_notice import plan_notice

    model, crossbatch, train = config.model, config.crossbatch, config.train
    micro = f" in {train.accumulation} micro-batches, one of them drawn" if train.accumulation > 1 else ""
    layers = ", ".join(map(str, model.memory_layers)) or "none"
    at_d = f" at d = {num_contexts}" if crossbatch.uses_num_contexts else ""
    lines = [
        f"{config.name}: {model.family.value} family, {model.num_layers} layers, memory layers {layers}"
        f" ({model.memory_positions.value})",
        f"Batch: {train.batch_rows} rows of {model.local_context} tokens"
        f" = {train.batch_rows // crossbatch.rows_per_stream} streams x {crossbatch.rows_per_stream} rows{micro};"
        f" a stream advances {crossbatch.chunks_per_step} chunk(s) a step",
        f"Schedule: {schedule_line(config)}",
        "",
        f"Plan '{crossbatch.plan.value}'{at_d}. {REASONS[crossbatch.plan]}",
        "Marks: * the reader, + read, own document (positive), - read, another document (negative), . not read",
        *plan_lines(config, num_contexts=num_contexts, shown_rows=shown_rows),
        *([] if (notice := plan_notice(config)) is None else [f"note: {notice}"]),
        "",
        *account_lines(config, num_contexts=num_contexts),
    ]
    return "\n".join(lines)


def resolved(config: ExperimentConfig, form: str) -> str:
    """Returns every field of a config as text, in the form "json" (as in a run's config.json) or "gin"."""
    if form == "gin":
        from fot_jax.config.gin import to_gin

        return to_gin(config)
    return json.dumps(to_dict(config), indent=1) + "\n"


def explain_retrieval(flags: argparse.Namespace) -> None:
    """Measures the retrieval layers of a run; writes table, JSON and heat map into its folder."""
    if not flags.workdir or flags.config or flags.gin_file or flags.gin_bindings or flags.overrides or flags.resolved:
        raise ConfigError("--retrieval-layers needs --workdir=DIR, the folder of a run, and no config.")
    check(flags.length >= 1, "--length", "be >= 1", flags.length)
    check(flags.trials >= 1, "--trials", "be >= 1", flags.trials)
    from fot_jax.eval.report import render_terminal, write_report
    from fot_jax.eval.tasks.retrieval import retrieval_report

    workdir = storage_path(flags.workdir)
    directory = workdir / "eval"
    report = retrieval_report(
        workdir,
        step=flags.step,
        length=flags.length,
        trials=flags.trials,
        least=flags.least,
        directory=directory,
    )
    write_report(report, directory=directory)
    print("\n\n".join([*map(render_terminal, report.tables), report.method]))
    print(f"\nwritten to {directory}: {report.task}.md, .json and .png")


def main(flags: argparse.Namespace) -> None:
    """Prints the explanation."""
    if flags.retrieval_layers:
        explain_retrieval(flags)
        return
    if flags.step != "latest":
        raise ConfigError("--step is a run's checkpoint, for --retrieval-layers. A config's plan is drawn --at-step=N.")
    if flags.workdir:
        raise ConfigError("--workdir is for --retrieval-layers. A config is explained with --config=FILE.")
    from fot_jax.data.survey import data_lines

    config = cli.load_experiment(flags)
    if flags.resolved:
        print(resolved(config, flags.resolved), end="")
        return
    print(explain(config, num_contexts=contexts_at(config, flags), shown_rows=flags.show_rows))
    print("\n".join(data_lines(config)))


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_experiment_flags(parser)
    parser.add_argument(
        "--at-step", type=int, metavar="N", help="draw the plan at this step of the schedule; default: its last d"
    )
    parser.add_argument("--contexts", type=int, metavar="D", help="contexts of a row (d); those of the drawn plan")
    parser.add_argument("--show-rows", type=int, default=32, metavar="N", help="rows to draw at most (default 32)")
    resolved_help = "print the resolved config instead, as json (default) or gin"
    parser.add_argument("--resolved", nargs="?", const="json", choices=["json", "gin"], help=resolved_help)
    group = parser.add_argument_group("retrieval layers of a trained model")
    group.add_argument("--retrieval-layers", action="store_true", help="measure them instead")
    group.add_argument(
        "--workdir", type=cli.in_storage, metavar="DIR", help="the run's folder (config, checkpoints, metrics)"
    )
    cli.add_step_flag(group)
    group.add_argument("--length", type=int, default=512, metavar="N", help="tokens of the prompts (default 512)")
    group.add_argument("--trials", type=int, default=10, metavar="N", help="prompts (default 10)")
    group.add_argument("--least", type=float, default=0.5, metavar="M", help="mass of a proposed layer (default 0.5)")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
