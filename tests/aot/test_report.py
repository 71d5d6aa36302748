"""Verdicts and bounds in closed form, and how they read."""

import dataclasses
import types

from fot_jax.aot.chips import parse_topology
from fot_jax.aot.hlo_costs import Costs
from fot_jax.aot.report import Memory, Report, lines, memory_of, refusal_memory, time_bounds

GIBI = 2**30
POD = parse_topology("v5e:16x16")
MEMORY = Memory(
    inputs={"parameters": GIBI, "optimizer": 2 * GIBI},
    arguments=3 * GIBI,
    outputs=0,
    temporaries=5 * GIBI,
    code=0,
    peak=8 * GIBI,
    limit=16 * GIBI,
)
COSTS = Costs(
    flops=197e12,
    hbm_bytes=819e9 / 2,
    received={"all-gather": 100e9, "all-reduce": 500e9},
    collectives={"all-gather": 3.0, "all-reduce": 1.0},
)
REPORT = Report(
    config="mine",
    program="train",
    pod=POD,
    mesh={"data": 4, "fsdp": 64, "tensor": 1},
    variant="d = 8",
    tokens=262144,
    memory=MEMORY,
    costs=COSTS,
    formula_flops=98.5e12,
    compiler={"flops": 1e12, "optimal_seconds": -1.5},
    seconds={"tracing": 6.2, "compiling": 81.0},
    attention="pallas (auto)",
)


def test_time_bounds_are_work_over_speed():
    """Divides FLOPs and bytes by what the chip does in a second; the roofline is the largest."""
    assert time_bounds(COSTS, chip=POD.chip) == {"matrix units": 1.0, "HBM": 0.5, "interconnect": 3.0}
    assert REPORT.record()["roofline_seconds"] == 3.0


def test_memory_of_a_program_has_peak_and_verdict():
    """Adds up the compiler's sizes and says whether they fit, and what is largest."""
    stats = types.SimpleNamespace(
        output_size_in_bytes=10, alias_size_in_bytes=8, argument_size_in_bytes=100, temp_size_in_bytes=1000,
        generated_code_size_in_bytes=5,
    )  # fmt: skip
    memory = memory_of(stats, inputs={"parameters": 60}, chip=parse_topology("v3:2x2").chip)
    assert (memory.peak, memory.outputs, memory.limit) == (100 + 2 + 1000 + 5, 2, 16 * GIBI)
    assert (MEMORY.fits, MEMORY.spare, MEMORY.largest) == (True, 0.5, "temporaries")
    over = dataclasses.replace(MEMORY, peak=20 * GIBI)
    assert (over.fits, over.spare) == (False, -0.25)


def test_report_lines_name_everything():
    """Writes mesh, memory, costs, bounds and times; a negative estimate is not to be trusted."""
    text = "\n".join(lines(REPORT))
    for part in (
        "mine train, d = 8: v5e:16x16, 256 devices, mesh data 4 x fsdp 64 x tensor 1, attention pallas (auto)",
        "8.000 GiB  of 16.000 GiB: fits, 50% to spare; largest: temporaries",
        "50% of them by formula",
        "500.000 GB  1 of them",
        "3.000 s  interconnect; 87,381 tokens/s at most",
        "-1.500 s  not to be trusted: it is negative",
        "tracing 6 s, compiling 81 s",
    ):
        assert part in text, part


def test_report_of_a_program_that_does_not_fit():
    """Says by how much, in the compiler's own words."""
    refused = dataclasses.replace(REPORT, memory=None, costs=None, refusal="Used 20.30G of 15.75G hbm.")
    assert not refused.fits
    assert lines(refused)[1] == "  does NOT fit: Used 20.30G of 15.75G hbm."
    assert "roofline_seconds" not in refused.record()
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm."
        " Used 20.30G of 15.75G hbm. Exceeded hbm capacity by 4.55G.\n\nTotal"
    )
    assert refusal_memory(message) == "Used 20.30G of 15.75G hbm. Exceeded hbm capacity by 4.55G"
