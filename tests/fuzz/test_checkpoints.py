"""Damaged checkpoints of others: see `fuzzing`."""

import pytest

from tests.fuzz.kinds_convert import KINDS

pytestmark = pytest.mark.fuzz


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_inputs_are_read_or_refused(kind, fuzzing):
    fuzzing(kind)
