"""Makes seqio tasks and the mixture of a config: source -> text -> tokens -> BOS before, end of document after.

Only this module imports seqio, and only a build of a token cache imports this module: training from an existing cache
starts without seqio and TensorFlow.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator

if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets 1
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before TensorFlow is imported: it logs an error where no GPU is

import numpy as np

from fot_jax.config import DataConfig, SourceConfig, VocabularyConfig, VocabularyKind
from fot_jax.data.readers import read_source
from fot_jax.data.sentencepiece_vocabulary import SentencePieceVocabulary
from fot_jax.data.vocabulary import Vocabulary, load_vocabulary
from fot_jax.extras import needs

with needs("data", "Making a token cache"):
    import seqio
    import tensorflow as tf

tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's

FEATURE = "targets"


class WrappedVocabulary(seqio.Vocabulary):
    """Vocabulary of this package inside a seqio task; documents are text, whatever names they hold."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self._vocabulary = vocabulary

    @property
    def eos_id(self) -> int:
        """See seqio.Vocabulary."""
        return self._vocabulary.eos_id

    @property
    def unk_id(self) -> None:
        """See seqio.Vocabulary."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self._vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return self._vocabulary.encode(s)

    def _decode(self, ids: list[int]) -> str:
        return self._vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes) -> np.ndarray:
            return np.asarray(self._vocabulary.encode(text.decode("utf-8")), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(lambda i: self._vocabulary.decode(i.tolist()).encode("utf-8"), [ids], tf.string)


def seqio_vocabulary(config: VocabularyConfig) -> seqio.Vocabulary:
    """Returns seqio's own vocabulary for bytes and for bare SentencePiece models, else this package's, wrapped.

    seqio ends documents with the model's own </s>: a model whose files name another end token is wrapped too.
    """
    if config.kind is VocabularyKind.BYTES:
        return seqio.ByteVocabulary()
    vocabulary = load_vocabulary(config)
    if isinstance(vocabulary, SentencePieceVocabulary) and vocabulary.ends_as_model:
        return seqio.SentencePieceVocabulary(vocabulary.path)
    return WrappedVocabulary(vocabulary)


class _Records:
    """The documents of a source as a tf.data.Dataset that remembers the error which ended it.

    TensorFlow turns an exception of a generator into its own error and prints the traceback, but users
    need only ours. With `keep_error` the dataset ends at the error, and `SourceTask.documents` raises it.
    """

    def __init__(self, source: SourceConfig, *, vocabulary: Vocabulary, seed: int, max_documents: int):
        self._arguments = {"vocabulary": vocabulary, "seed": seed, "max_documents": max_documents}
        self._source = source
        self.error: Exception | None = None
        self.keep_error = False

    def _examples(self) -> Iterator[dict[str, object]]:
        try:
            for name, text in read_source(self._source, **self._arguments):
                yield {"name": name.encode("utf-8", "backslashreplace"), FEATURE: text.encode("utf-8")}
        except Exception as error:
            self.error = error
            if not self.keep_error:
                raise

    def dataset(self, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        """Makes the dataset of a `seqio.FunctionDataSource`; the order is always the reader's."""
        del split, shuffle_files, seed
        spec = {"name": tf.TensorSpec([], tf.string), FEATURE: tf.TensorSpec([], tf.string)}
        dataset = tf.data.Dataset.from_generator(self._examples, output_signature=spec)
        limit = self._arguments["max_documents"]
        return dataset.take(limit) if limit else dataset


def _drop_empty(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Drops documents without text (a text preprocessor)."""
    return dataset.filter(lambda example: tf.strings.length(example[FEATURE]) > 0)


def _prepend_bos(dataset: tf.data.Dataset, *, bos_id: int | None) -> tf.data.Dataset:
    """Puts the vocabulary's BOS, where it has one, before each document (a token preprocessor)."""
    if bos_id is None:
        return dataset
    first = tf.constant([bos_id], tf.int32)
    return dataset.map(lambda example: {**example, FEATURE: tf.concat([first, example[FEATURE]], axis=0)})


@dataclasses.dataclass(frozen=True)
class SourceTask:
    """A registered seqio task and its reader."""

    task: seqio.Task
    records: _Records

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, int32 token ids: BOS where there is one, text, end of document), in the source's order.

        Raises UserError where the source cannot be read.
        """
        self.records.keep_error = True
        dataset = self.task.get_dataset(sequence_length=None, split="train", shuffle=False)
        for example in dataset.as_numpy_iterator():
            yield example["name"].decode("utf-8"), example[FEATURE]
        if self.records.error is not None:
            raise self.records.error


def register_task(source: SourceConfig, *, data: DataConfig, seed: int) -> SourceTask:
    """Registers the seqio task `source.name`, replacing one of that name; examples hold `name` and `targets`."""
    vocabulary = load_vocabulary(data.vocabulary, data.dictionary)
    records = _Records(source, vocabulary=vocabulary, seed=seed, max_documents=data.max_documents)
    if source.name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(source.name)
    task = seqio.TaskRegistry.add(
        source.name,
        source=seqio.FunctionDataSource(dataset_fn=records.dataset, splits=["train"]),  # pyright: ignore[reportArgumentType]
        preprocessors=[
            _drop_empty,
            lambda dataset, output_features: seqio.preprocessors.tokenize(
                dataset, output_features, copy_pretokenized=False
            ),
            functools.partial(_prepend_bos, bos_id=vocabulary.bos_id),
            seqio.preprocessors.append_eos,
        ],
        output_features={FEATURE: seqio.Feature(vocabulary=seqio_vocabulary(data.vocabulary), add_eos=True)},
    )
    return SourceTask(task, records)


def register_mixture(name: str, *, data: DataConfig, seed: int) -> seqio.Mixture:
    """Registers every source as a task and the seqio mixture `name` of them by rate.

    For seqio's own tools. Training mixes by `fot_jax/data/document_order.py`, which can start at any step.
    """
    for source in data.sources:
        register_task(source, data=data, seed=seed)
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, [(source.name, source.rate) for source in data.sources])
