"""Every backend, for tests that run by each."""

from collections.abc import Iterator

import pytest

from fot_jax.config import AttentionBackend
from tests.ops.kernel_cases import GPU, TPU, on

REFERENCE, BLOCKWISE, PALLAS = AttentionBackend.REFERENCE, AttentionBackend.BLOCKWISE, AttentionBackend.PALLAS
BACKENDS = [  # and the chip whose kernels run; the others ask for none
    pytest.param((REFERENCE, TPU), id="reference"),
    pytest.param((BLOCKWISE, TPU), id="blockwise"),
    pytest.param((PALLAS, TPU), id="pallas tpu"),
    pytest.param((PALLAS, GPU), id="pallas gpu", marks=pytest.mark.slow),
]


@pytest.fixture(params=BACKENDS)
def backend(request) -> Iterator[AttentionBackend]:
    """Runs a test by every backend; kernels are those of `ring_cases.interpreted_kernels`."""
    name, chip = request.param
    with on(chip):
        yield name
