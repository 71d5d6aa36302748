"""Tiny corpora without files: a document is a list of token ids."""

import pathlib

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fot_jax.config import VocabularyKind
from fot_jax.data.cache import SourceCache
from fot_jax.data.documents import DocumentSet


@pytest.fixture
def make_documents():
    """Builds a DocumentSet from {source name: (rate, documents)}; contents count on over the sources."""

    def make(sources: dict[str, tuple[float, list[list[int]]]]) -> DocumentSet:
        caches, contents, seen = [], [], []
        for _, documents in sources.values():
            lengths = [len(document) for document in documents]
            tokens = np.array([token for document in documents for token in document], np.uint16)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            unused = np.zeros((0, 2), np.uint64)
            caches.append(SourceCache(tokens=tokens, offsets=offsets, contents=unused, folder=pathlib.Path("none")))
            seen += documents
            contents.append(np.array([seen.index(document) for document in documents], np.int64))
        return DocumentSet(
            caches=tuple(caches),
            local_ids=tuple(np.arange(len(documents)) for _, documents in sources.values()),
            contents=tuple(contents),
            rates=tuple(rate for rate, _ in sources.values()),
            sources=tuple(sources),
        )

    return make


@pytest.fixture
def random_documents(make_documents):
    """40 documents of 1..60 tokens ending in 1; every token names its document and place: 10 + 100 * i + place."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, size=40)
    return make_documents({"a": (1.0, [[*range(10 + 100 * i, 10 + 100 * i + n), 1] for i, n in enumerate(lengths)])})


@pytest.fixture(scope="session")
def vocabulary_files(tmp_path_factory):
    """{kind: path} of a SentencePiece model with byte fallback and of a byte-level BPE tokenizer.json."""
    folder = tmp_path_factory.mktemp("vocabularies")
    fox = "The quick brown fox jumps over the lazy dog. " * 3
    lines = ["def naïve(x):\n    return 'Ωmega' + x  # 你好\n", fox, "import os\nprint(os.getcwd())\n"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "spm"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(lines, trainer)
    bpe.save(str(folder / "tokenizer.json"))
    return {
        VocabularyKind.SENTENCEPIECE: str(folder / "spm.model"),
        VocabularyKind.HF_TOKENIZER: str(folder / "tokenizer.json"),
    }
