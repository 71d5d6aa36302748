"""Trains a byte-level BPE tokenizer.json on a config's training documents (held-out ones are not read).

python -m launch.make_vocabulary --config=configs/tiny_code.py --size=1024 --out=configs/tiny_code_bpe.json

Ids: 0 <pad>, 1 <|endoftext|>, then the 256 bytes and the merges. Every text can be encoded.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from fot_jax.config import ConfigError, ExperimentConfig, VocabularyConfig, VocabularyKind
from fot_jax.config.override import whole_number
from launch import cli

SPECIAL = ["<pad>", "<|endoftext|>"]
SMALLEST = len(SPECIAL) + 256
LARGEST = 1 << 22  # the trainer takes memory for all of them at once, and ends the process where there is too little


def texts(config: ExperimentConfig) -> Iterator[str]:
    """Yields the training documents of a config, as text."""
    from fot_jax.data.streams import make_store, make_vocabulary

    data = dataclasses.replace(config.data, vocabulary=VocabularyConfig(kind=VocabularyKind.BYTES))
    model = dataclasses.replace(config.model, vocab_size=max(config.model.vocab_size, 259))
    config = dataclasses.replace(config, data=data, model=model)
    vocabulary, documents = make_vocabulary(config), make_store(config).split("train")
    for index in range(documents.num_documents):
        yield vocabulary.decode(documents.tokens(index)[:-1])


def main(flags: argparse.Namespace) -> None:
    """Trains, writes the file and prints how many bytes a token covers."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from fot_jax.workdir import write_whole

    size = whole_number(flags.size)
    if size is None or not SMALLEST <= size <= LARGEST:
        allowed = f"{SMALLEST} (the bytes and special ids) to {LARGEST}"
        raise ConfigError(f"--size must be an integer from {allowed}, got {flags.size!r}.")
    config = cli.load_experiment(flags)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split_digits, byte_level = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split_digits, byte_level])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts(config), trainer)
    out = Path(flags.out)
    write_whole(out, tokenizer.to_str(pretty=True))
    sample = next(texts(config))
    tokens = len(tokenizer.encode(sample).ids)
    print(f"{out}: {tokenizer.get_vocab_size()} tokens, {len(sample.encode()) / tokens:.2f} bytes a token")


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_experiment_flags(parser)
    parser.add_argument("--size", default="1024", metavar="N", help="tokens of the vocabulary; default %(default)s")
    parser.add_argument(
        "--out", type=cli.on_disk, required=True, metavar="FILE", help="where the results go; the tokenizer.json"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
