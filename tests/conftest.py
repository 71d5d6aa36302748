"""Every test: eight devices on the CPU, shapes checked at run time, no silent rank promotion."""

import difflib
import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Eight devices on few busy cores may wait long for each other; XLA's 40 s would abort the process.
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
)

if any(name == "fot_jax.ops" or name.startswith("fot_jax.ops.") for name in sys.modules):
    raise RuntimeError("fot_jax.ops was imported before conftest: its shapes would go unchecked.")

import jax
import pytest
from jaxtyping import install_import_hook

CHECKED = ["fot_jax.ops"]  # packages whose jaxtyping signatures beartype checks
install_import_hook(CHECKED, "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

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


@pytest.fixture(scope="session")
def compilation_folder(tmp_path_factory) -> str:
    """Where `quick_compiles` keeps programs for the other modules of the session."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session", autouse=True)
def _commands_compile_apart(compilation_folder) -> Iterator[None]:
    """Keeps the programs of commands that run in this process out of the user's own folder."""
    from launch import compilation_cache

    before, compilation_cache.COMPILATION_CACHE = compilation_cache.COMPILATION_CACHE, compilation_folder
    yield
    compilation_cache.COMPILATION_CACHE = before


@pytest.fixture(scope="module")
def quick_compiles(compilation_folder) -> Iterator[None]:
    """Compiles the programs of a module quickly, and those that modules share once a session."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", compilation_folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def optimised_compiles() -> Iterator[None]:
    """Compiles as users do, in a module with `quick_compiles`: for a test that reads the compiled program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


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
