"""`fuzzing(kind)`: tries FUZZ_INPUTS damaged inputs of a kind; every fault fails the test and keeps its input."""

import pytest

from tests.fuzz import harness


@pytest.fixture
def fuzzing(tmp_path):
    """Tries the inputs, writes a summary, and asserts that each was read right or refused in one line."""

    def run(kind) -> None:
        report = harness.fuzz(kind, tmp_path / "worker")
        lines = report.lines()
        harness.FOUND.mkdir(exist_ok=True)
        (harness.FOUND / f"{kind.name}.txt").write_text("\n".join(lines) + "\n")
        assert not report.faults, "\n".join(lines)

    return run
