"""Report of one compiled program: memory against the chip, FLOPs, traffic, time bounds; as a record and as a table."""

import dataclasses
import re
from typing import Any

from fot_jax.aot.chips import Chip, Pod
from fot_jax.aot.hlo_costs import Costs

GIBI = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device.

    Attributes:
      inputs: bytes of each group of inputs, without the padding of tiles.
      arguments: all inputs as the compiler lays them out.
      outputs: results that do not reuse an input's buffer.
      temporaries: activations, gradients and buffers of exchanges.
      code: the program itself.
      peak: the most that is in use at once.
      limit: memory of the device.
    """

    inputs: dict[str, int]
    arguments: int
    outputs: int
    temporaries: int
    code: int
    peak: int
    limit: int

    @property
    def fits(self) -> bool:
        """True if the peak is within the limit."""
        return self.peak <= self.limit

    @property
    def spare(self) -> float:
        """Share of the device's memory that stays free; negative where the program does not fit."""
        return 1 - self.peak / self.limit

    @property
    def largest(self) -> str:
        """Name of the largest term."""
        terms = {**self.inputs, "outputs": self.outputs, "temporaries": self.temporaries, "code": self.code}
        return max(terms, key=lambda name: terms[name])


def memory_of(stats: Any, *, inputs: dict[str, int], chip: Chip) -> Memory:
    """Reads `compiled.memory_analysis()`. Peak: arguments + outputs not aliased + temporaries + code."""
    outputs = int(stats.output_size_in_bytes - stats.alias_size_in_bytes)
    arguments, temporaries = int(stats.argument_size_in_bytes), int(stats.temp_size_in_bytes)
    code = int(stats.generated_code_size_in_bytes)
    return Memory(
        inputs=inputs,
        arguments=arguments,
        outputs=outputs,
        temporaries=temporaries,
        code=code,
        peak=arguments + outputs + temporaries + code,
        limit=chip.device.hbm_bytes,
    )


def time_bounds(costs: Costs, *, chip: Chip) -> dict[str, float]:
    """Returns the seconds that each unit of a device needs at least; their maximum is the roofline bound.

    FLOPs over peak bfloat16 FLOP/s, bytes through HBM over its bandwidth, bytes received over all links together.
    """
    device = chip.device
    return {
        "matrix units": costs.flops / device.flops,
        "HBM": costs.hbm_bytes / device.hbm_bytes_per_second,
        "interconnect": sum(costs.received.values()) / device.ici_bytes_per_second,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Result of compiling one program; figures are of one device unless said.

    Attributes:
      config: the experiment's name.
      program: "train", "read" or "decode".
      pod: the pod.
      mesh: devices per axis.
      variant: what was varied, "" where nothing was.
      tokens: tokens of all devices in one run.
      memory: None if the compiler refused for lack of memory.
      costs: costs by the program's text.
      formula_flops: FLOPs by fot_jax/models/account.py.
      compiler: `flops` and `bytes accessed` of the compiler's own analysis (loop bodies once), `optimal_seconds`.
      seconds: seconds of tracing and of compiling.
      refusal: the compiler's words if the program does not fit.
      attention: the backend of a train step's attention, and the config's name for it if that is 'auto'.
      arrays: (shape, bytes, origin) of the largest arrays the program makes; some are never in HBM whole.
    """

    config: str
    program: str
    pod: Pod
    mesh: dict[str, int]
    variant: str
    tokens: int
    memory: Memory | None
    costs: Costs | None
    formula_flops: float
    compiler: dict[str, float]
    seconds: dict[str, float]
    refusal: str = ""
    attention: str = ""
    arrays: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)

    @property
    def fits(self) -> bool:
        """True if it compiled and its peak is within the device's memory."""
        return self.memory is not None and self.memory.fits

    def record(self) -> dict[str, Any]:
        """Returns everything, for JSON."""
        values = dataclasses.asdict(self)
        values["fits"] = self.fits
        if self.memory is not None and self.costs is not None:
            bounds = time_bounds(self.costs, chip=self.pod.chip)
            values["costs"]["beside"] = values["costs"].pop("overlapped")  # the records' key since the first one
            values["memory"] |= {"fits": self.memory.fits, "spare": self.memory.spare, "largest": self.memory.largest}
            values["bounds_seconds"] = bounds
            values["roofline_seconds"] = max(bounds.values())
        return values


def refusal_memory(message: str) -> str:
    """Returns the line of the compiler's out-of-memory error that states used and allowed memory."""
    match = re.search(r"Used [\d.]+\w* of [\d.]+\w* \w+\.[^.\n]*(?:\.[\d]+\w*)?", message)
    return " ".join((match[0] if match else message[:200]).split())


def lines(report: Report) -> list[str]:
    """Returns the report as lines of text."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    variant = f", {report.variant}" if report.variant else ""
    head = (
        f"{report.config} {report.program}{variant}: {report.pod.topology}, {report.pod.devices} devices, mesh {mesh}"
    )
    head += f", attention {report.attention}" if report.attention else ""
    if report.memory is None or report.costs is None:
        return [head, f"  does NOT fit: {report.refusal}", _time_line(report)]
    return [
        head,
        *_memory_lines(report.memory),
        *(["  largest arrays"] if report.arrays else []),
        *(_row(shape, _gib(size), name[-70:]) for shape, size, name in report.arrays),
        *_flops_lines(report, report.costs),
        *_traffic_lines(report.costs),
        *_bound_lines(report, report.costs),
        _time_line(report),
    ]


def _row(name: str, value: str, note: str = "") -> str:
    return f"  {name:<28} {value:>14}  {note}".rstrip()


def _gib(value: float) -> str:
    return f"{value / GIBI:.3f} GiB"


def _memory_lines(memory: Memory) -> list[str]:
    rows = [_row(name, _gib(value)) for name, value in memory.inputs.items() if value]
    rows.append(_row("outputs not aliased", _gib(memory.outputs)))
    rows.append(_row("temporaries", _gib(memory.temporaries), "activations, gradients, exchanged blocks"))
    rows.append(_row("code", _gib(memory.code)))
    verdict = f"fits, {memory.spare:.0%} to spare" if memory.fits else f"does NOT fit, {-memory.spare:.0%} too much"
    note = f"of {_gib(memory.limit)}: {verdict}; largest: {memory.largest}"
    return ["  memory of a device", *rows, _row("peak", _gib(memory.peak), note)]


def _flops_lines(report: Report, costs: Costs) -> list[str]:
    share = f"{report.formula_flops / costs.flops:.0%} of them by formula" if costs.flops else ""
    kernels = ", ".join(f"{count:.0f} {name}" for name, count in costs.kernels.items())
    return [
        "  FLOPs of a device",
        _row("in the compiled program", f"{costs.flops:.3e}", share),
        _row("by formula", f"{report.formula_flops:.3e}", f"{report.tokens:,} tokens a run, all devices"),
        *([_row("compiler's count", f"{report.compiler['flops']:.3e}", "loop bodies once")] if report.compiler else []),
        *([f"  kernels: {kernels}"] if kernels else []),
    ]


def _traffic_lines(costs: Costs) -> list[str]:
    rows = ["  bytes of a device", _row("through HBM", f"{costs.hbm_bytes / 1e9:.2f} GB")]
    for kind, received in sorted(costs.received.items(), key=lambda item: -item[1]):
        number = f"{costs.collectives[kind]:.0f} of them"
        if kind == "collective-permute":
            number += f", {costs.overlapped.get(kind, 0):.0f} overlapped with other work"
        rows.append(_row(f"received, {kind}", f"{received / 1e9:.3f} GB", number))
    if costs.unknown_loops:
        rows.append(f"  {costs.unknown_loops:.0f} loops without a known trip count are counted once")
    return rows


def _bound_lines(report: Report, costs: Costs) -> list[str]:
    bounds = time_bounds(costs, chip=report.pod.chip)
    bounding = max(bounds, key=lambda name: bounds[name])
    longest = bounds[bounding]
    parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in bounds.items())
    speed = f"{report.tokens / longest:,.0f} tokens/s at most" if longest else ""
    rows = ["  seconds a run at least", _row("roofline", f"{longest:.3f} s", f"{bounding}; {speed} ({parts})")]
    estimate = report.compiler.get("optimal_seconds")
    if estimate is not None:
        trust = "not to be trusted: it is negative" if estimate < 0 else "loop bodies once"
        rows.append(_row("compiler's own estimate", f"{estimate:.3f} s", trust))
    return rows


def _time_line(report: Report) -> str:
    return "  " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
