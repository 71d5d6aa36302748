"""Every test of training compiles the same few programs: quickly, and once a session."""

import pytest


@pytest.fixture(scope="session")
def _compiled(compilation_folder):
    """For test files that still import it; `pytest.mark.usefixtures("quick_compiles")` is the way."""
    return compilation_folder


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles(quick_compiles):
    return quick_compiles
