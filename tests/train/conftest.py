"""Every test of training compiles the same few programs: quickly, and once a session."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles(quick_compiles):
    return quick_compiles
