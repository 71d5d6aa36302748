"""The eight mistakes every user makes once, through the commands: exit code 2, one line, no traceback, nothing lost.

In this process, as a start costs seconds; `test_kill.py` meets some of them in processes of their own.
"""

import shutil
from pathlib import Path

import jax
import pytest

from launch import cli, generate, train

TRAIN = (
    *("train", "--config=tests/e2e/text_config.py", "--config.train.checkpoint_every=1"),
    *("--config.mesh.data=-1", "--config.crossbatch.plan=off"),  # without a ring of eight devices to compile
)


def command(name, *flags) -> int:
    """Exit code of python -m launch.NAME FLAGS."""
    module = {"train": train, "generate": generate}[name]
    if name == "train":  # which else keeps its programs in the user's folder
        flags = (*flags, f"--compilation-cache={jax.config.jax_compilation_cache_dir}")
    try:
        cli.run(module.main, module.make_parser(), flags)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """A folder with a corpus, an empty one, one with invalid UTF-8, a run, and the memory of its step 1."""
    root = tmp_path_factory.mktemp("tour")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOT_TOUR", str(root))
        for name in ("corpus", "empty", "broken"):
            (root / name).mkdir()
        for number in range(8):
            (root / "corpus" / f"{number}.txt").write_text(f"line {number}\n" * 60)
            (root / "broken" / f"{number}.txt").write_bytes(b"caf\xe9 \xff\xfe\n" * 60)
        (root / "empty" / "0.txt").write_text("")
        (root / "prompt.txt").write_text("line 3\n" * 20)
        assert command(*TRAIN, f"--workdir={root / 'run'}") == 0
        saved = (f"--prompt-file={root / 'prompt.txt'}", "--max-new-tokens=2", f"--save-memory={root / 'memory'}")
        assert command("generate", f"--workdir={root / 'run'}", "--step=1", *saved) == 0
        yield root


CASES = {
    "unknown config key": (
        (*TRAIN, "--config.model.layers=2"),
        "model.layers is unknown to ModelConfig. Did you mean 'num_layers'?",
    ),
    "indivisible mesh": ((*TRAIN, "--config.mesh.data=3", "--workdir={root}/new"), "mesh.data=3"),
    "empty corpus": (
        (*TRAIN, "--config.data.sources[0].path={root}/empty/*.txt", "--workdir={root}/new"),
        "must hold at least one document with text",
    ),
    "invalid UTF-8": (
        (*TRAIN, "--config.data.sources[0].path={root}/broken/*.txt", "--workdir={root}/new"),
        "must be valid UTF-8",
    ),
    "vocabulary larger than the model's": (
        (*TRAIN, "--config.model.vocab_size=100", "--workdir={root}/new"),
        "model.vocab_size must be >= 259",
    ),
    "workdir of another config": (
        (*TRAIN, "--config.model.mlp_dim=48", "--workdir={root}/run"),
        "model.mlp_dim: 32 -> 48",
    ),
    "memory file of another model": (
        ("generate", "--workdir={root}/run", "--prompt-file={root}/prompt.txt", "--load-memory={root}/memory"),
        "must come from this model",
    ),
    "truncated checkpoint": ((*TRAIN, "--workdir={root}/cut"), "checkpoint of step 2 cannot be read"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops its other reads
@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_exit_code_2(tour, name, capfd):
    arguments, message = CASES[name]
    if name == "truncated checkpoint":
        shutil.copytree(tour / "run", tour / "cut")
        for file in (tour / "cut" / "checkpoints" / "2").rglob("*"):
            if file.is_file() and file.parent.name == "d":
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = sorted(path.name for path in Path(tour / "run").rglob("*"))
    assert command(*[argument.format(root=tour) for argument in arguments]) == 2
    err = capfd.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    assert message in errors[0]
    assert sorted(path.name for path in Path(tour / "run").rglob("*")) == before
    assert not (tour / "new" / "config.json").exists()
