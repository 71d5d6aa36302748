"""Every backend, for tests that run by each."""

from collections.abc import Iterator

import pytest

from fot_jax.config import AttentionBackend
from tests.ops.kernel_cases import GPU, TPU, on

PALLAS = AttentionBackend.PALLAS
PLAIN = [pytest.param((name, TPU), id=name.value) for name in (AttentionBackend.REFERENCE, AttentionBackend.BLOCKWISE)]
KERNELS = [  # and the chip whose kernels run; the others ask for none
    pytest.param((PALLAS, TPU), id="pallas tpu"),
    pytest.param((PALLAS, GPU), id="pallas gpu", marks=pytest.mark.slow),
]


def _run(request) -> Iterator[AttentionBackend]:
    name, chip = request.param
    with on(chip):
        yield name


@pytest.fixture(params=[*PLAIN, *KERNELS])
def backend(request) -> Iterator[AttentionBackend]:
    """Runs a test by every backend; kernels are those of `ring_cases.interpreted_kernels`."""
    yield from _run(request)


@pytest.fixture(params=PLAIN)
def plain_backend(request) -> Iterator[AttentionBackend]:
    """Runs a test by every backend without kernels."""
    yield from _run(request)


@pytest.fixture(params=KERNELS)
def kernels(request) -> Iterator[AttentionBackend]:
    """Runs a test by the kernels alone: interpreted, they take several times as long."""
    yield from _run(request)
