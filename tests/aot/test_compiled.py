"""The cost walk on programs that XLA compiles here, for the eight CPU devices of the tests."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fot_jax.aot.chips import parse_topology
from fot_jax.aot.compiling import Job, compile_program
from fot_jax.aot.hlo import parse_module
from fot_jax.aot.hlo_costs import count
from fot_jax.aot.programs import ProgramKind, device_bytes
from fot_jax.config import ConfigError, MeshConfig
from fot_jax.models.account import count_parameters
from fot_jax.sharding import make_mesh
from tests.train.tiny import tiny

POD = parse_topology("cpu:8")


@functools.cache
def report(kind: ProgramKind, *, rows: int = 0, memory_entries: int = 0, **changes):
    """The report of one program of the tiny experiment on data 2 x fsdp 2 x tensor 2."""
    config = tiny(mesh__data=2, mesh__fsdp=2, mesh__tensor=2, **{"model__attention": "blockwise", **changes})
    job = Job(config=config, kind=kind, num_contexts=2, rows=rows, memory_entries=memory_entries)
    return compile_program(job, pod=POD, mesh=make_mesh(config.mesh))[0]


def test_count_of_collectives_in_a_scan():
    """Counts seven runs of a permute, an all-gather and a sum of f32[16] over eight devices."""
    mesh = make_mesh(MeshConfig(data=8))
    ring = [(i, (i + 1) % 8) for i in range(8)]

    def once(x, _):
        x = jax.lax.ppermute(x, "data", ring)
        whole = jax.lax.all_gather(x, "data")
        return jax.lax.psum(jnp.sin(x), "data") + whole.max(axis=0), None

    def scanned(x):
        return jax.lax.scan(once, x, None, length=7)[0]

    over_rows = PartitionSpec("data")
    step = jax.jit(jax.shard_map(scanned, mesh=mesh, in_specs=over_rows, out_specs=over_rows, check_vma=False))
    x = jax.ShapeDtypeStruct((128,), jnp.float32, sharding=NamedSharding(mesh, over_rows))
    found = count(parse_module(step.lower(x).compile().as_text()), devices=8)
    assert found.received == {
        "collective-permute": 7 * 64,
        "all-gather": 7 * 64 * 8 * 7 / 8,
        "all-reduce": 7 * 2 * 64 * 7 / 8,
    }
    assert found.collectives == {"collective-permute": 7, "all-gather": 7, "all-reduce": 7}
    assert not any(found.overlapped.values())
    assert found.unknown_loops == 0


@pytest.mark.parametrize("layers", [(1,), (0, 2, 3)])
@pytest.mark.parametrize("kind", [ProgramKind.READ, ProgramKind.DECODE])
def test_inference_flops_are_those_of_the_formula(kind, layers):
    """Counts each device's share of 4 x 2; the layers of reading are scanned, some of them read the memory."""
    changes = {"model__num_layers": 4, "model__memory_layers": layers}
    found = report(kind, rows=8, memory_entries=64, memory__retrieval="dense", **changes)
    assert found.costs.flops == pytest.approx(found.formula_flops, rel=1e-6)


def test_program_refuses_a_memory_on_the_host():
    """Names the retrievals that are compiled."""
    with pytest.raises(
        ConfigError, match=r"memory\.retrieval must be 'dense', 'exact' or 'approx' to compile, got 'scann'"
    ):
        report(ProgramKind.READ, memory_entries=64, memory__retrieval="scann")


def test_decode_of_one_row_splits_its_memory():
    """Splits 16,384 entries over data 2 x fsdp 2, heads over tensor 2; a device is sent no more of them than scores."""
    found = report(ProgramKind.DECODE, rows=1, memory_entries=16384, memory__retrieval="approx", memory__top_k=4)
    model = tiny().model
    entry = 2 * len(model.memory_layers) * model.num_kv_heads * model.head_dim * 4
    assert found.memory.inputs["memory"] == 16384 * entry // 8 + 4  # and the row's length
    one_layer = 16384 * model.num_kv_heads * model.head_dim * 4
    assert found.costs.received["all-gather"] < one_layer / 8


PLAIN = {"model__num_layers": 4, "model__attention": "reference", "crossbatch__plan": "off"}


@pytest.mark.slow
def test_train_flops_hold_the_formula():
    """Counts scanned layers as often as they run: the same as layers one by one, and the formula within them."""
    scanned, plain = report(ProgramKind.TRAIN, **PLAIN), report(ProgramKind.TRAIN, **PLAIN, model__scan_layers=False)
    assert scanned.costs.flops == pytest.approx(plain.costs.flops, rel=0.01)
    assert scanned.formula_flops < scanned.costs.flops < 1.3 * scanned.formula_flops
    assert scanned.compiler["flops"] < 0.8 * plain.compiler["flops"]  # why we count ourselves


@pytest.mark.slow
def test_train_flops_of_trained_memory_layers():
    """Counts the branch of contexts always: the upper two of four layers are memory layers, and alone in its scan."""
    upper = {"model__num_layers": 4, "model__memory_layers": (2, 3), "train__trainable": "memory_layers"}
    config = {**upper, "model__attention": "reference"}
    scanned, plain = (
        report(ProgramKind.TRAIN, **config),
        report(ProgramKind.TRAIN, **config, model__scan_layers=False),
    )
    assert scanned.costs.flops == pytest.approx(plain.costs.flops, rel=0.01)


def test_report_of_the_train_step():
    """Adds up inputs, outputs and temporaries, and names the collectives and the slowest bound."""
    found = report(ProgramKind.TRAIN, **PLAIN)
    memory, record = found.memory, found.record()
    parameters = count_parameters(tiny(**PLAIN).model).total * 4
    assert parameters / 4 < memory.inputs["parameters"] < parameters  # over fsdp and tensor; norms are whole
    assert memory.inputs["optimizer"] == 2 * memory.inputs["parameters"] + 8  # AdamW's moments, two counts
    inputs = sum(memory.inputs.values())
    assert inputs + 4 == pytest.approx(memory.arguments, rel=0.01)  # the step's number too
    assert memory.peak == memory.arguments + memory.outputs + memory.temporaries + memory.code
    assert found.fits and record["fits"] and record["memory"]["largest"] in {*memory.inputs, "temporaries", "code"}
    assert {"all-gather", "all-reduce"} <= set(found.costs.received)
    assert record["roofline_seconds"] == max(record["bounds_seconds"].values()) > 0


def test_device_bytes_of_split_arrays():
    """Counts the bytes of one device's part."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    assert device_bytes({"x": jax.ShapeDtypeStruct((8, 3, 10), jnp.bfloat16, sharding=split)}) == 2 * 3 * 5 * 2
    assert device_bytes(None) == 0
