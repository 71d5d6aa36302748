"""Every test: eight devices on the CPU, shapes checked at run time, no silent rank promotion."""

import difflib
import gc
import json
import os
import sys
from pathlib import Path

from tests.buckets import bucket, gcs  # noqa: F401  # fixtures
from tests.processes import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"  # threads of PyTorch that outnumber the cores wait for each other, busily
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}"

if any(name == "fot_jax.ops" or name.startswith("fot_jax.ops.") for name in sys.modules):
    raise RuntimeError("fot_jax.ops was imported before conftest: its shapes would go unchecked.")

import jax
import pytest
from jaxtyping import install_import_hook

CHECKED = ["fot_jax.ops"]  # packages whose jaxtyping signatures beartype checks
install_import_hook(CHECKED, "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # of LLVM: the optimised HLO is the same
gc.set_threshold(20_000, 10, 10)  # tracing makes many objects: the default, 700, spends a tenth of the time on them

LONG = ("e2e", "train", "mutants", "aot", "scale", "convert", "eval", "infer", "library", "ops", "checkpoint")
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    """`make update-golden` gives this."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden and print the difference")


def pytest_collection_modifyitems(items):
    """Puts long files first: handed out last, one of them would keep one worker busy and the others idle."""

    def place(item) -> int:
        name = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _shared_programs(tmp_path_factory) -> None:
    """Keeps compiled programs for other tests of the session, and those of commands out of the user's own folder."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def abandoned_reads():
    """For a test that damages checkpoints: what Orbax abandons is finalised at its end, not within another test."""
    yield
    gc.collect()


@pytest.fixture
def golden(request, capsys):
    """`golden(name, value)`: compares a JSON-able value with tests/golden/NAME.json; a missing file fails."""

    def compare(name: str, value) -> None:
        path = GOLDEN / f"{name}.json"
        text = json.dumps(value, indent=1, sort_keys=True) + "\n"
        if request.config.getoption("--update-golden"):
            old = path.read_text().splitlines() if path.exists() else []
            with capsys.disabled():
                print(
                    *difflib.unified_diff(old, text.splitlines(), f"{name} before", f"{name} now", n=0, lineterm=""),
                    sep="\n",
                )
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run `make update-golden`, look at the difference and commit it."
        assert json.loads(path.read_text()) == json.loads(text)

    return compare
