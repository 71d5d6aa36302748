"""Mixture rates hold exactly in every block, and an epoch repeats nothing."""

import numpy as np

from fot_jax.data.document_order import DRAWS_PER_BLOCK, DocumentOrder, quotas


def test_quotas_are_the_rates_by_largest_remainder():
    # LongLLaMA's mixture (FoT app. A.3), and rates that do not divide a block.
    np.testing.assert_array_equal(quotas((25, 25, 10, 29, 5, 2, 2, 2)), [250, 250, 100, 290, 50, 20, 20, 20])
    np.testing.assert_array_equal(quotas((1, 1, 1)), [334, 333, 333])
    np.testing.assert_array_equal(quotas((1e-9, 1)), [1, 999])  # a named source is never left out


def test_blocks_hold_rates_and_epochs_hold_every_document(make_documents):
    rates = {"a": (0.7, [[1]] * 100), "b": (0.25, [[1]] * 7), "c": (0.05, [[1]] * 3)}
    order = DocumentOrder(make_documents(rates), seed=3)
    drawn = order.documents(0, 3 * DRAWS_PER_BLOCK)
    component = np.digitize(drawn, [100, 107])
    for block in component.reshape(3, DRAWS_PER_BLOCK):
        np.testing.assert_array_equal(np.bincount(block), [700, 250, 50])
    for index, size in enumerate((100, 7, 3)):
        own = drawn[component == index]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.unique(own), (len(epochs), 1)))
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
    np.testing.assert_array_equal(order.documents(1234, 2345), drawn[1234:2345])
    assert (DocumentOrder(make_documents(rates), seed=4).documents(0, 1000) != drawn[:1000]).any()
