"""Makes the vocabulary, the documents and the batches of an experiment."""

from fot_jax.config import ConfigError, ExperimentConfig, SourceKind, VocabularyKind
from fot_jax.data.batches import BatchStream, Stream
from fot_jax.data.dictionary_stream import DictionaryStream
from fot_jax.data.documents import DocumentStore, build_store
from fot_jax.data.seeds import generator
from fot_jax.data.vocabulary import Vocabulary, check_vocabulary, load_vocabulary


def make_vocabulary(config: ExperimentConfig) -> Vocabulary:
    """Loads the experiment's vocabulary. Raises ConfigError when the model lacks rows for it (`check_vocabulary`)."""
    vocabulary = load_vocabulary(config.data.vocabulary, config.data.dictionary)
    check_vocabulary(vocabulary, config.model)
    return vocabulary


def make_store(config: ExperimentConfig) -> DocumentStore:
    """Opens the experiment's documents; tokenises them when no cache of them exists.

    Raises:
      ConfigError: a vocabulary without text, or larger than the model's.
      UserError: a source that cannot be read or is empty.
    """
    make_vocabulary(config)
    if config.data.vocabulary.kind is VocabularyKind.SYMBOLS:
        raise ConfigError(
            "data.vocabulary.kind must be 'bytes', 'sentencepiece' or 'hf_tokenizer' for text, got 'symbols'."
        )
    return build_store(config.data, seed=config.seed)


def is_dictionary(config: ExperimentConfig) -> bool:
    """True if the data is dictionary lookup. Raises ConfigError when it is mixed with text or another vocabulary."""
    kinds = {source.kind for source in config.data.sources}
    if SourceKind.DICTIONARY not in kinds:
        return False
    if kinds != {SourceKind.DICTIONARY} or len(config.data.sources) > 1:
        names = [source.name for source in config.data.sources]
        raise ConfigError(f"data.sources must hold a 'dictionary' source alone, got {names}.")
    if config.data.vocabulary.kind is not VocabularyKind.SYMBOLS:
        kind = config.data.vocabulary.kind.value
        raise ConfigError(f"data.vocabulary.kind must be 'symbols' for a 'dictionary' source, got '{kind}'.")
    return True


def make_stream(config: ExperimentConfig, split: str) -> Stream:
    """Makes the batches of "train" or "heldout" under the experiment's crossbatch layout.

    Every split has its own order; a held-out stream never ends (it starts over).
    Raises the errors of `make_store`.
    """
    rows, length = config.train.batch_rows, config.model.local_context
    seed = int(generator(config.seed, "split", split).integers(1 << 31))
    if is_dictionary(config):
        make_vocabulary(config)
        return DictionaryStream(
            config.data.dictionary, crossbatch=config.crossbatch, rows=rows, length=length, seed=seed
        )
    return BatchStream(
        make_store(config).split(split),
        crossbatch=config.crossbatch,
        data=config.data,
        rows=rows,
        length=length,
        seed=seed,
        split=split,
    )
