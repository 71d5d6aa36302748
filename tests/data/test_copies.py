"""The first of equal documents, by their digests."""

import numpy as np

from fot_jax.data.copies import content_digest, digest_table, first_copies, is_first_copy


def test_first_copies_names_the_first_equal_one():
    """The table of its docstring."""
    digests = digest_table(b"".join(map(content_digest, [b"a", b"b", b"a", b"c", b"b", b"a"])))
    np.testing.assert_array_equal(first_copies(digests), [0, 1, 0, 3, 1, 0])
    np.testing.assert_array_equal(is_first_copy(first_copies(digests)), [1, 1, 0, 1, 0, 0])
    assert first_copies(digest_table(b"")).shape == is_first_copy(np.zeros(0, np.int64)).shape == (0,)


def test_first_copies_agrees_with_a_loop():
    """Digests that agree in one half only are different ones."""
    rng = np.random.default_rng(0)
    for most in (2, 5, 40):
        digests = rng.integers(0, most, size=(200, 2), dtype=np.uint64)
        keys = [tuple(row) for row in digests.tolist()]
        expected = [keys.index(key) for key in keys]
        np.testing.assert_array_equal(first_copies(digests), expected)
        leads = [expected.index(content) == place for place, content in enumerate(expected)]
        np.testing.assert_array_equal(is_first_copy(np.array(expected)), leads)
