"""Holds what `launch.bench` counts and prints, and that its programs run. No test here measures time."""

import json
import shlex
import subprocess
import time

import jax
import numpy as np
import pytest

from fot_jax.bench import authors, machine
from fot_jax.bench.inference import decoding_programs, filled_store, random_params, reading_flops
from fot_jax.bench.timing import Program, time_interleaved
from fot_jax.config import MemoryConfig, ModelConfig, Retrieval
from launch import bench, cli

MODEL = ModelConfig(
    num_layers=3, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12, vocab_size=19, local_context=4,
    memory_layers=(1,),
)  # fmt: skip
TINY = [
    "--config=configs/tiny_code.py", "--config.model.num_layers=2", "--config.model.memory_layers=0",
    "--config.model.embed_dim=16", "--config.model.mlp_dim=16", "--config.model.num_heads=2",
    "--config.model.num_kv_heads=1", "--config.model.head_dim=8", "--config.model.local_context=16",
    "--config.train.batch_rows=16",
]  # fmt: skip


def test_the_flops_of_a_reading_are_counted_key_by_key():
    """16 tokens in four windows: counted with loops from the definition; layer 1 only projects until the last one."""
    matrices = 2 * (2 * 8 * 8 + 2 * 8 * 4) + 2 * 3 * 8 * 12  # of one layer and token
    total = 2 * 8 * 19  # logits of the last token
    for window in range(4):
        for layer in range(3 if window == 3 else 2):
            for _ in range(4):
                if layer == 1 and window < 3:
                    total += 2 * (2 * 8 * 4)
                    continue
                keys = 4 + (4 * window if layer == 1 else 0)
                total += matrices + sum(2 * 2 * 2 * 4 for _ in range(keys))
    assert reading_flops(MODEL, tokens=16) == total


def test_a_filled_memory_and_the_bytes_of_a_token():
    store = filled_store(MODEL, entries=20000)
    assert store.lengths.tolist() == [20000]
    keys, _ = store.take(0, np.array([0, 17000]))
    np.testing.assert_allclose(np.linalg.norm(keys, axis=-1), 1, rtol=1e-6)
    params = random_params(MODEL)
    kinds = [Retrieval.DENSE, Retrieval.EXACT]
    dense, exact = decoding_programs(MODEL, params, memory=MemoryConfig(top_k=4), entries=[64], retrievals=kinds)
    memory, local = 64 * 2 * 4 * 4, 3 * 2 * 4 * 4 * 4
    weights = sum(leaf.nbytes for name in params if name != "embedding" for leaf in jax.tree.leaves(params[name]))
    weights += local  # an untied embedding gives one row
    assert (dense.bytes, exact.bytes) == (weights + memory, weights + memory / 2)
    assert np.isfinite(np.asarray(dense.call())).all()


def test_programs_take_turns_after_one_call_each_to_warm_up():
    called, seen = [], []
    programs = [Program(name=name, call=lambda name=name: called.append(name)) for name in "ab"]
    time_interleaved(programs, repeats=2, least=0, progress=lambda *state: seen.append(state))
    assert called == ["a", "b"] * 3
    assert [len(program.seconds) for program in programs] == [2, 2]
    assert seen[0] == (1, 6, "a") and seen[-1] == (6, 6, "b")


def test_short_programs_fill_their_turn(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def program(name: str, seconds: float) -> Program:
        return Program(name=name, call=lambda: clock.__setitem__(0, clock[0] + seconds))

    short, long = program("short", 0.125), program("long", 2.0)
    time_interleaved([short, long], repeats=2, least=0.5)
    assert (short.seconds, long.seconds) == ([0.125] * 8, [2.0] * 2)


def test_the_spread_is_the_middle_half_beside_the_median():
    program = Program(name="m", call=lambda: None, seconds=[1.0, 2.0, 3.0, 4.0, 50.0])
    assert program.spread == (4.0 - 2.0) / 3.0
    assert Program(name="m", call=lambda: None, seconds=[3.0]).spread is None


def test_records_are_shares_of_the_machine():
    product = Program(name="product", call=lambda: None, flops=200.0, seconds=[2.0])
    memory = Program(name="pass", call=lambda: None, bytes=50.0, seconds=[1.0])
    first = Program(name="plain", call=lambda: None, tokens=8, flops=40.0, seconds=[1.0, 2.0, 9.0], temp_bytes=2**20)
    second = Program(name="d", call=lambda: None, tokens=8, bytes=10.0, seconds=[4.0])
    *_, plain, crossbatch = bench.make_records({"machine": [product, memory], "step": [first, second]})
    assert (plain["seconds"], plain["tokens_per_second"], plain["times_first"]) == (2.0, 4.0, 1.0)
    assert (plain["flops_share"], plain["temp_mebibytes"], plain["calls"]) == (0.2, 1.0, 3)
    assert (plain["spread"], crossbatch["spread"]) == ((5.5 - 1.5) / 2.0, None)
    assert (crossbatch["times_first"], crossbatch["bytes_share"]) == (2.0, 0.05)
    assert crossbatch["times_flops"] is None and crossbatch["added_times_flops"] is None  # no FLOPs are given


def test_seconds_of_a_token_are_set_beside_its_flops():
    """Twice the tokens at three times the seconds and 2.5 times the FLOPs: 1.5 and 1.25 a token, 0.5 for 0.25 added."""
    machine_programs = [Program(name="m", call=lambda: None, flops=1.0, bytes=1.0, seconds=[1.0])] * 2
    first = Program(name="short", call=lambda: None, tokens=8, flops=40.0, seconds=[2.0])
    second = Program(name="long", call=lambda: None, tokens=16, flops=100.0, seconds=[6.0])
    *_, short, long = bench.make_records({"machine": machine_programs, "read": [first, second]})
    assert (short["times_flops"], short["added_times_flops"]) == (None, None)
    assert (long["times_flops"], long["added_times_flops"]) == (1.5 / 1.25, 2.0)


def run(*flags: str) -> None:
    cli.run(bench.main, bench.make_parser(), [*TINY, *flags])


@pytest.mark.parametrize(
    ("measures", "programs"),
    [
        (["read", "decode"], ["read 32", "decode exact 32"]),
        pytest.param(["step"], ["plain", "reference d=2", "blockwise d=2"], marks=pytest.mark.slow),
    ],
)
def test_the_table_the_records_and_the_plot_of_a_tiny_model(measures, programs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "SIDE", {"cpu": 64})
    monkeypatch.setattr(machine, "PASS_BYTES", {"cpu": 4096})
    sizes = ("--contexts=2", "--lengths=32", "--entries=32", "--retrievals=exact", "--repeats=1", f"--out={tmp_path}")
    run(f"--measure={','.join(measures)}", *sizes)
    table = capsys.readouterr().out
    for name in ("matrix product", "spread", *programs):
        assert name in table
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert {row["measure"] for row in rows} == {"machine", *measures}
    assert all(row["seconds"] > 0 for row in rows)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_shapes_of_the_authors_are_those_measured():
    """Tokens of a step and d as recorded; what the record leaves open is chosen in one place."""
    made = [authors.experiment(shape, vocabulary=n) for shape in authors.SHAPES for n in authors.VOCABULARIES]
    sizes = [(c.model.embed_dim, c.model.num_heads, c.model.head_dim, c.train.batch_rows) for c in made]
    assert sizes == [(256, 8, 32, 16)] * 2 + [(576, 9, 64, 8)] * 2
    assert [config.model.vocab_size for config in made] == [1024, 8192] * 2
    assert {(config.model.num_layers, config.model.local_context) for config in made} == {(8, 256)}
    assert {0, *authors.CONTEXTS} == authors.RECORD.speed.keys()


def test_authors_shapes_print_the_record_next_to_our_steps(tmp_path, capsys, monkeypatch):
    """With tiny models: every width, vocabulary and d has its line, with seconds added and the record's ratio."""
    monkeypatch.setattr(machine, "SIDE", {"cpu": 64})
    monkeypatch.setattr(machine, "PASS_BYTES", {"cpu": 4096})
    small = authors.Shape(embed_dim=16, num_heads=2, head_dim=8, rows=2, mlp_dim=16, num_layers=2, length=8)
    monkeypatch.setattr(authors, "SHAPES", (small,))
    monkeypatch.setattr(authors, "VOCABULARIES", (32,))
    cli.run(bench.main, bench.make_parser(), ["--shape=authors", "--repeats=1", f"--out={tmp_path}"])
    printed = capsys.readouterr().out
    rows = [row for row in json.loads((tmp_path / "bench.json").read_text())["rows"] if row["measure"] != "machine"]
    plain, seven, fifteen = rows
    assert [row["x"] for row in rows] == [0, 7, 15] and plain["tokens_per_second"] == 16 / plain["seconds"]
    lines = printed.split("The authors' code")[1].splitlines()[2:]
    assert lines[0].split()[:4] == ["16", "32", "0", f"{plain['tokens_per_second']:.0f}"]
    assert lines[1].split()[4:] == [f"{seven['seconds'] - plain['seconds']:.3f}", "1.22", "to", "1.31"]
    assert lines[2].split()[2:] == ["15", f"{fifteen['tokens_per_second']:.0f}", lines[2].split()[4], "1.38"]
    assert "0.80 s to our step of width 576 and 2.60 s to theirs" in lines[3]


@pytest.mark.parametrize("flag", ["--config=configs/tiny_code.py", "--contexts=3", "--measure=read"])
def test_a_shape_refuses_flags_that_it_sets_itself(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.run(bench.main, bench.make_parser(), ["--shape=authors", flag])
    error = capsys.readouterr().err
    assert f"--shape=authors must go without {flag.split('=')[0]}" in error and error.count("\n") == 1


SHRUNK = [
    "--config.model.num_layers=2", "--config.model.memory_layers=1", "--config.model.embed_dim=16",
    "--config.model.mlp_dim=16", "--config.model.num_heads=2", "--config.model.num_kv_heads=2",
    "--config.model.head_dim=8", "--config.model.local_context=16", "--config.model.vocab_size=32",
    "--config.crossbatch.plan=off", "--lengths=32", "--entries=32", "--contexts=2", "--retrievals=exact", "--repeats=1",
]  # fmt: skip


def commands_of(target: str) -> list[list[str]]:
    """The flags of each `launch.bench` that `make target` runs."""
    command = ["make", "-n", target, "GPU_BACKENDS=blockwise"]  # the kernels are for GPUs
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    commands = [shlex.split(line) for line in lines.replace("\\\n", " ").splitlines()]
    return [words[words.index("launch.bench") + 1 :] for words in commands if "launch.bench" in words]


@pytest.mark.parametrize(
    ("target", "number"),
    [
        *(pytest.param("bench", n, marks=pytest.mark.slow) for n in (0, 1)),
        ("bench-gpu", 0),
        pytest.param("bench-gpu", 1, marks=pytest.mark.slow),
    ],
)
def test_the_makefiles_commands_run_with_smaller_models(target, number, tmp_path, monkeypatch):
    """Asks for what a person with a GPU will: the config is valid, and each file is in the repository."""
    monkeypatch.setattr(machine, "SIDE", {"cpu": 64})
    monkeypatch.setattr(machine, "PASS_BYTES", {"cpu": 4096})
    commands = commands_of(target)
    assert len(commands) == 2
    asked = cli.parse_flags(bench.make_parser(), commands[number])  # as it is, before it is made small
    window = cli.load_experiment(asked).model.local_context
    assert not [length for length in asked.lengths.split(",") if int(length) % window]
    assert {*asked.retrievals.split(",")} <= {kind.value for kind in Retrieval}
    assert all(number.isdecimal() for number in f"{asked.entries},{asked.contexts},{asked.repeats}".split(","))
    cli.run(bench.main, bench.make_parser(), [*commands[number], *SHRUNK, f"--out={tmp_path}"])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert {row["measure"] for row in rows} == {"machine", "step", "read", "decode"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--contexts=2,x"], "--contexts must be integers >= 1, got '2,x'"),
        (["--repeats=0"], "--repeats must be integers >= 1, got '0'"),
        (["--measure=steps"], "--measure must name some of step, read, decode, data, got 'steps'"),
        (["--measure=read", "--lengths=40"], "--lengths must be whole windows of 16 tokens, got 40"),
        (["--backends=cudnn"], "--backends must name some of reference, blockwise, pallas, auto, got 'cudnn'"),
        (
            ["--backends=pallas"],
            "--backends must be one of 'reference', 'blockwise', 'auto' on a cpu, got 'pallas'",
        ),
        (["--retrievals=faiss"], "--retrievals must name some of dense, exact"),
        (["--config.model.memory_layers=", "--config.crossbatch.plan=off"], "must name at least one layer"),
    ],
)
def test_bad_flags_give_one_line(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(*flags)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
