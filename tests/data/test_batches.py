"""Rows are drawn by hand; batches are pure; documents stay in their rows."""

import itertools

import numpy as np
import pytest

from fot_jax.config import (
    Boundaries,
    ConfigError,
    CrossbatchConfig,
    DataConfig,
    DocumentEnd,
    PlanKind,
    SourceConfig,
    SourceKind,
)
from fot_jax.data.batches import BatchStream
from fot_jax.data.document_order import DocumentOrder

A, B, C, D = [11, 12, 13, 14, 1], [21, 22, 1], [31, 32, 33, 34, 35, 36, 1], [41, 1]


def make(documents, *, rows, length=4, end=DocumentEnd.PACK, seed=5, **crossbatch):
    data = DataConfig(sources=(SourceConfig(name="a", kind=SourceKind.STDLIB),), document_end=end)
    config = CrossbatchConfig(**crossbatch)
    return BatchStream(documents, crossbatch=config, data=data, rows=rows, length=length, seed=seed)


@pytest.fixture
def abcd(make_documents, monkeypatch):
    """Draws A B C D A B C D ...: of two streams one reads A C A C ..., the other B D B D ..."""
    monkeypatch.setattr(DocumentOrder, "documents", lambda self, start, stop: np.arange(start, stop) % 4)
    return make_documents({"a": (1.0, [A, B, C, D])})


def assert_batch(batch, *, tokens, targets, segments, loss_mask):
    np.testing.assert_array_equal(batch.tokens, tokens)
    np.testing.assert_array_equal(batch.targets, targets)
    np.testing.assert_array_equal(batch.segments, segments)
    np.testing.assert_array_equal(batch.loss_mask, loss_mask)
    assert (batch.tokens.dtype, batch.loss_mask.dtype) == (np.int32, np.float32)


def test_off_packs_documents_one_after_another(abcd):
    stream = make(abcd, rows=2)
    assert_batch(
        stream.batch(0),
        tokens=[[11, 12, 13, 14], [21, 22, 1, 41]],
        targets=[[12, 13, 14, 1], [22, 1, 41, 1]],
        segments=[[1, 1, 1, 1], [2, 2, 2, 4]],
        loss_mask=[[1, 1, 1, 1], [1, 1, 0, 1]],  # the end of B does not predict D
    )
    assert_batch(
        stream.batch(1),
        tokens=[[1, 31, 32, 33], [1, 21, 22, 1]],
        targets=[[31, 32, 33, 34], [21, 22, 1, 41]],
        segments=[[1, 3, 3, 3], [4, 2, 2, 2]],
        loss_mask=[[0, 1, 1, 1], [0, 1, 1, 0]],
    )


def test_joined_boundaries_bear_loss_on_the_next_document(abcd):
    batch = make(abcd, rows=2, boundaries=Boundaries.JOINED).batch(0)
    np.testing.assert_array_equal(batch.loss_mask, np.ones((2, 4)))


@pytest.mark.parametrize("boundaries", list(Boundaries))
def test_pad_starts_documents_at_chunks(abcd, boundaries):
    stream = make(abcd, rows=2, end=DocumentEnd.PAD, boundaries=boundaries)
    assert_batch(
        stream.batch(1),
        tokens=[[1, 0, 0, 0], [41, 1, 0, 0]],
        targets=[[0, 0, 0, 31], [1, 0, 0, 21]],
        segments=[[1, 0, 0, 0], [4, 4, 0, 0]],
        loss_mask=[[0, 0, 0, 0], [1, 0, 0, 0]],
    )


@pytest.mark.parametrize("boundaries", list(Boundaries))
def test_pad_adds_nothing_to_a_whole_chunk(make_documents, monkeypatch, boundaries):
    monkeypatch.setattr(DocumentOrder, "documents", lambda self, start, stop: np.arange(start, stop) % 2)
    documents = make_documents({"a": (1.0, [[11, 12, 13, 1], B])})
    stream = make(documents, rows=1, end=DocumentEnd.PAD, boundaries=boundaries)
    np.testing.assert_array_equal(
        [stream.batch(t).tokens[0] for t in range(3)], [[11, 12, 13, 1], [*B, 0], [11, 12, 13, 1]]
    )
    np.testing.assert_array_equal(stream.batch(0).loss_mask, [[1, 1, 1, boundaries is Boundaries.JOINED]])


def test_one_pass_packing_two(abcd):
    stream = make(abcd, rows=4, plan=PlanKind.PACKED, packing=2)
    np.testing.assert_array_equal(
        stream.batch(0).tokens, [[11, 12, 13, 14], [1, 31, 32, 33], [21, 22, 1, 41], [1, 21, 22, 1]]
    )
    np.testing.assert_array_equal(
        stream.batch(1).tokens, [[34, 35, 36, 1], [11, 12, 13, 14], [41, 1, 21, 22], [1, 41, 1, 21]]
    )


def test_two_pass_w1_rereads_the_previous_chunk(abcd):
    stream = make(abcd, rows=4, plan=PlanKind.TWO_PASS)
    assert_batch(
        stream.batch(0),
        tokens=[[11, 12, 13, 14], [21, 22, 1, 41], [1, 31, 32, 33], [1, 21, 22, 1]],  # C_prev of 0, 1; C_curr of 0, 1
        targets=[[12, 13, 14, 1], [22, 1, 41, 1], [31, 32, 33, 34], [21, 22, 1, 41]],
        segments=[[1, 1, 1, 1], [2, 2, 2, 4], [1, 3, 3, 3], [4, 2, 2, 2]],
        loss_mask=[[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]],  # B comes twice in stream 1
    )
    np.testing.assert_array_equal(stream.batch(1).tokens[:2], stream.batch(0).tokens[2:])
    both = make(abcd, rows=4, plan=PlanKind.TWO_PASS, loss_on_previous=True)
    np.testing.assert_array_equal(both.batch(0).loss_mask[:2], [[1, 1, 1, 1], [1, 1, 0, 1]])


def test_two_pass_w2_stacks_oldest_first(abcd):
    batch = make(abcd, rows=6, plan=PlanKind.TWO_PASS, previous_chunks=2).batch(0)
    expected = [[11, 12, 13, 14], [21, 22, 1, 41], [1, 31, 32, 33], [1, 21, 22, 1], [34, 35, 36, 1], [41, 1, 21, 22]]
    np.testing.assert_array_equal(batch.tokens, expected)
    np.testing.assert_array_equal(batch.loss_mask.any(axis=1), [0, 0, 0, 0, 1, 0])  # B, D twice


def test_segments_are_global_document_ids(make_documents):
    documents = make_documents({"a": (1.0, [A, B]), "b": (1.0, [C])})
    np.testing.assert_array_equal(documents.segment_ids, [1, 2, 3])
    np.testing.assert_array_equal(documents.tokens(2, start=1, stop=3), [32, 33])


def fields(batch):
    return np.stack([batch.tokens, batch.targets, batch.segments, batch.loss_mask.astype(np.int32)])


LAYOUTS = [
    {"plan": PlanKind.OFF},
    {"plan": PlanKind.PACKED, "packing": 4},
    {"plan": PlanKind.TWO_PASS, "previous_chunks": 1},
]


@pytest.mark.parametrize("end", list(DocumentEnd))
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout["plan"].value)
def test_batches_are_pure_and_hosts_share_them(random_documents, layout, end):
    stream = make(random_documents, rows=8, end=end, **layout)
    sequential = [fields(stream.batch(step)) for step in range(60)]
    for step in (59, 17, 3):  # a fresh stream, at once at a later step
        resumed = make(random_documents, rows=8, end=end, **layout)
        np.testing.assert_array_equal(fields(resumed.batch(step)), sequential[step])
        for hosts in (1, 2, 4):
            share = 8 // hosts
            parts = [fields(resumed.batch(step, slice(h * share, (h + 1) * share))) for h in range(hosts)]
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), sequential[step])
    other = make(random_documents, rows=8, end=end, seed=6, **layout)
    assert (fields(other.batch(0)) != sequential[0]).any()


@pytest.mark.parametrize("end", list(DocumentEnd))
def test_documents_stay_in_their_stream_to_the_end(random_documents, end):
    stream = make(random_documents, rows=8, length=8, end=end, plan=PlanKind.PACKED, packing=4)
    batches = [stream.batch(step) for step in range(30)]

    def streams(name):  # [streams, tokens]: rows of a stream in order, step after step
        rows = np.stack([getattr(batch, name) for batch in batches])
        return rows.reshape(30, 2, 4, 8).transpose(1, 0, 2, 3).reshape(2, -1)

    for tokens, segments in zip(streams("tokens"), streams("segments"), strict=True):
        starts = np.flatnonzero(np.diff(segments, prepend=-1))
        runs = [(segments[a], tokens[a:b]) for a, b in itertools.pairwise(starts)]
        documents = [(segment - 1, run) for segment, run in runs if segment]
        assert len(documents) > 15
        for document, run in documents:
            np.testing.assert_array_equal(run, random_documents.tokens(document))
        if end is DocumentEnd.PAD:
            assert all(a % 8 == 0 for a in starts if segments[a])


def test_two_documents_alternate_in_a_stream(make_documents):
    stream = make(make_documents({"a": (1.0, [A, B])}), rows=1, length=8)
    read = np.concatenate([stream.batch(step).segments[0] for step in range(50)])
    starts = np.concatenate([[True], read[1:] != read[:-1]])
    runs = np.diff(np.append(np.flatnonzero(starts), len(read)))[:-1]
    np.testing.assert_array_equal(np.unique(runs), [3, 5])  # never A A or B B


def test_a_single_document_is_read_again_without_loss_at_its_end(make_documents):
    batch = make(make_documents({"a": (1.0, [A])}), rows=1, length=10).batch(0)
    np.testing.assert_array_equal(batch.tokens, [A + A])
    np.testing.assert_array_equal(batch.loss_mask, [[1, 1, 1, 1, 0, 1, 1, 1, 1, 0]])


@pytest.mark.parametrize("boundaries", list(Boundaries))
def test_later_copies_in_one_stream_bear_no_loss(abcd, boundaries):
    stream = make(abcd, rows=8, plan=PlanKind.PACKED, packing=4, boundaries=boundaries)
    batch = stream.batch(0)  # stream 0 reads A C A(4 of 5), stream 1 reads B D B D B D B(1 of 3)
    np.testing.assert_array_equal(batch.segments[:4].ravel(), [1] * 5 + [3] * 7 + [1] * 4)
    end = int(boundaries is Boundaries.JOINED)  # a document's last token, which predicts the next document
    np.testing.assert_array_equal(batch.loss_mask[:4].ravel(), [1] * 4 + [end] + [1] * 6 + [end] + [0] * 4)
    np.testing.assert_array_equal(batch.loss_mask[4:].ravel(), [1, 1, end, 1, end] + [0] * 11)


@pytest.mark.parametrize("layout", [{"plan": PlanKind.PACKED, "packing": 2}, {"plan": PlanKind.TWO_PASS}])
def test_a_document_live_in_two_streams_bears_no_loss(make_documents, monkeypatch, layout):
    monkeypatch.setattr(
        DocumentOrder, "documents", lambda self, start, stop: np.array([0, 1, 2, 0])[np.arange(start, stop) % 4]
    )
    long = [[10 * (i + 1) + j % 10 for j in range(16)] for i in range(3)]  # streams read 0 2 0 2 ..., 1 0 1 0 ...
    stream = make(make_documents({"a": (1.0, long)}), rows=4, **layout)
    for step in range(12):
        batch = stream.batch(step)
        owners = np.array([0, 0, 1, 1] if layout["plan"] is PlanKind.PACKED else [0, 1, 0, 1])
        both = set(batch.segments[owners == 0].ravel()) & set(batch.segments[owners == 1].ravel())
        assert not batch.loss_mask[np.isin(batch.segments, list(both))].any()
        alone = ~np.isin(batch.segments, list(both))
        alone[:, :-1] &= batch.segments[:, :-1] == batch.segments[:, 1:]
        if layout["plan"] is PlanKind.PACKED:
            assert batch.loss_mask[:, :-1][alone[:, :-1]].all()


COPIED = [[10 * (i + 1) + j % 10 for j in range(n)] + [1] for i, n in enumerate((7, 3, 10, 5))]


@pytest.mark.parametrize("apart", [False, True], ids=["one source", "two sources"])
@pytest.mark.parametrize("end", list(DocumentEnd))
@pytest.mark.parametrize("boundaries", list(Boundaries))
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout["plan"].value)
def test_equal_documents_count_as_one(make_documents, monkeypatch, layout, boundaries, end, apart):
    """Tokens, targets, segments and loss are those of a corpus without copies that is drawn in the same order."""
    copies = [*COPIED, COPIED[0], COPIED[2]]
    sources = {"a": (1.0, copies[:4]), "b": (1.0, copies[4:])} if apart else {"a": (1.0, copies)}
    order = np.random.default_rng(3).integers(6, size=100_000)

    def batches(documents, drawn):
        monkeypatch.setattr(DocumentOrder, "documents", lambda self, start, stop: drawn[start:stop])
        stream = make(documents, rows=8, end=end, boundaries=boundaries, **layout)
        return np.stack([fields(stream.batch(step)) for step in range(40)])

    copied = batches(make_documents(sources), order)
    np.testing.assert_array_equal(
        copied, batches(make_documents({"a": (1.0, COPIED)}), np.array([0, 1, 2, 3, 0, 2])[order])
    )
    if layout["plan"] is not PlanKind.OFF:
        assert (copied[:, 3] == 0).mean() > 0.3, "copies in a batch bear no loss"


def test_a_corpus_of_copies_of_one_is_read_again(make_documents):
    """It is read like a corpus of one document; passing over every draw would never end."""
    stream = make(make_documents({"a": (1.0, [A, A, A])}), rows=1, length=10)
    np.testing.assert_array_equal(stream.batch(0).tokens, [A + A])


def test_copies_do_not_count_as_documents_of_streams(make_documents):
    """Two streams of one text would read their own document as another's."""
    with pytest.raises(ConfigError, match=r"at least 2 documents, one a stream.*got 1 and 2 copies of them\."):
        make(make_documents({"a": (1.0, [C, C, C])}), rows=4, plan=PlanKind.PACKED, packing=2)


def test_fewer_documents_than_streams_are_refused(make_documents):
    with pytest.raises(ConfigError, match=r"the train split at least 2 documents, one a stream.*got 1"):
        make(make_documents({"a": (1.0, [C])}), rows=4, plan=PlanKind.PACKED, packing=2)


def test_rows_must_hold_whole_streams(abcd):
    with pytest.raises(ConfigError, match=r"train.batch_rows must be a multiple of 4.*got 6"):
        make(abcd, rows=6, plan=PlanKind.PACKED, packing=4)
