"""Turns documents into batches. seqio and TensorFlow are imported only while a token cache is built (`tasks.py`)."""

from fot_jax.data.batches import BatchStream, Stream
from fot_jax.data.dictionary_stream import DictionaryStream
from fot_jax.data.documents import DocumentSet, DocumentStore, build_store
from fot_jax.data.streams import make_store, make_stream, make_vocabulary
from fot_jax.data.vocabulary import Vocabulary, check_vocabulary, load_vocabulary

__all__ = [
    "BatchStream",
    "DictionaryStream",
    "DocumentSet",
    "DocumentStore",
    "Stream",
    "Vocabulary",
    "build_store",
    "check_vocabulary",
    "load_vocabulary",
    "make_store",
    "make_stream",
    "make_vocabulary",
]
