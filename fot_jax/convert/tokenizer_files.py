"""Checks a checkpoint's tokenizer files at import, and completes them at export so that transformers agrees.

import    the files as they came; generation_config.json holds the tokens that end generated text
export    the files also state our defaults and guesses: class, BOS, end tokens
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from fot_jax.config import ModelConfig, UserError, VocabularyKind
from fot_jax.convert.safetensors_files import read_json
from fot_jax.convert.sources import HuggingFaceFolder, Source, copy_tokenizer
from fot_jax.data import llama_tokenizer, tokenizer_settings
from fot_jax.data.sentencepiece_vocabulary import SentencePieceVocabulary, open_sentencepiece, read_model
from fot_jax.data.tokenizer_settings import FILE, GENERATION_FILE
from fot_jax.data.tokenizer_vocabulary import read_definition
from fot_jax.data.vocabulary import Vocabulary, open_tokenizer_json, tokens_beyond

VOCABULARIES = {
    "tokenizer.json": (VocabularyKind.HF_TOKENIZER, open_tokenizer_json),
    "tokenizer.model": (VocabularyKind.SENTENCEPIECE, open_sentencepiece),
}
UNSUPPORTED = ("vocab.json", "merges.txt", "vocab.txt", "tekken.json", "spiece.model", "tokenizer.model.v3")
SHOWN = 3  # names in an error

logger = logging.getLogger(__name__)


def write_tokenizer(source: Source, folder: Path, given: str | Path | None, model: ModelConfig) -> str | None:
    """Writes the tokenizer's files to a new folder; returns the main one's name, None if there is none.

    Args:
      source: the checkpoint.
      folder: the new folder.
      given: a tokenizer.json, a tokenizer.model or a folder of one, in place of the checkpoint's own.
      model: its embedding must have a row for each token except special ones.

    Raises:
      UserError: the tokenizer cannot be read, is of an unsupported kind, or has tokens without a row.
    """
    folder.mkdir()
    main = source.write_tokenizer(folder) if given is None else _copy_given_tokenizer(source, folder, Path(given))
    if main is None:
        _refuse_unsupported(source)
        return None
    if main == "tokenizer.model" and not (folder / FILE).exists():
        (folder / FILE).write_text('{"tokenizer_class": "LlamaTokenizer"}\n', encoding="utf-8")
    _copy_end_ids(folder, source)
    try:
        vocabulary = VOCABULARIES[main][1](str(folder / main))
    except UserError as error:
        raise UserError(str(error).replace(f"{folder}/", "")) from error  # the folder's name is temporary
    _check_rows(vocabulary, model.vocab_size, main=main)
    return main


def _copy_given_tokenizer(source: Source, folder: Path, place: Path) -> str:
    main = copy_tokenizer(place if place.is_dir() else place.parent, folder)
    main = main if place.is_dir() else place.name
    if main not in VOCABULARIES or not (folder / main).is_file():
        allowed = " or ".join(VOCABULARIES)
        raise UserError(f"--tokenizer must name a {allowed}, or a folder of one, got {str(place)!r}.")
    if isinstance(source, HuggingFaceFolder) and not (folder / GENERATION_FILE).exists():
        own = source.folder / GENERATION_FILE
        if own.is_file():
            shutil.copyfile(own, folder / GENERATION_FILE)
    return main


def _refuse_unsupported(source: Source) -> None:
    if not isinstance(source, HuggingFaceFolder):
        return
    found = [name for name in UNSUPPORTED if (source.folder / name).is_file()]
    if found:
        raise UserError(
            f"'{source.folder}' must hold its tokenizer as tokenizer.json or tokenizer.model, got"
            f" {' and '.join(found)}. Save it with transformers, whose save_pretrained writes a tokenizer.json,"
            " and give that with --tokenizer=FILE."
        )


def _copy_end_ids(folder: Path, source: Source) -> None:
    """Copies config.json's end tokens to generation_config.json if that states none."""
    place = folder / GENERATION_FILE
    values = read_json(place) if place.is_file() else {}
    stated = source.config.get("eos_token_id")
    if values.get("eos_token_id") is None and stated is not None:
        tokenizer_settings.parse_end_ids(stated, where=str(source.path))
        _write(place, {**values, "eos_token_id": stated})


def _check_rows(vocabulary: Vocabulary, rows: int, *, main: str) -> None:
    """Raises UserError if a token lacks a row, unless it is special and no text begins or ends with it."""
    special, others = tokens_beyond(vocabulary, rows)
    if others:
        known = {i: name for name, i in vocabulary.special_ids.items()}
        names = ", ".join(repr(known.get(i) or vocabulary.decode([i])) for i in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise UserError(
            f"{main} must have at most {rows} tokens, the rows of the embedding, got {vocabulary.size}:"
            f" {names}{more} have none. Give the model's own with --tokenizer=FILE."
        )
    if special:
        logger.info("%s: special tokens without a row in the embedding: %s.", main, ", ".join(special.values()))


def complete_for_transformers(target: Path, main: str, vocabulary: Vocabulary, ends: tuple[int, ...]) -> None:
    """States in the files what transformers would guess differently, so that it gives equal ids and end tokens.

    Args:
      target: the folder with the tokenizer's files.
      main: tokenizer.json or tokenizer.model.
      vocabulary: of the run.
      ends: the tokens that end generated text.
    """
    place = target / FILE
    values = read_json(place) if place.is_file() else {}
    completed = dict(values)
    settings = tokenizer_settings.read_settings(target / main)
    if isinstance(vocabulary, SentencePieceVocabulary) and _write_json(target, vocabulary):
        main = "tokenizer.json"
    if main == "tokenizer.model":
        completed.setdefault("tokenizer_class", "LlamaTokenizer")
        completed.setdefault("add_bos_token", vocabulary.bos_id is not None)
        if not read_model(str(target / main))[1].normalizer_spec.add_dummy_prefix:
            completed.setdefault("add_prefix_space", False)
    else:
        definition = read_definition(str(target / main))
        if llama_tokenizer.as_llama(definition, settings) is definition:  # else transformers rebuilds it by its class
            completed["tokenizer_class"] = "PreTrainedTokenizerFast"
        _set_bos_post_processor(target / main, vocabulary)
    names = {index: name for name, index in vocabulary.special_ids.items()}
    for role, index in (("bos", vocabulary.bos_id), ("eos", vocabulary.eos_id)):
        if settings.name_of(role) is None and index in names:
            completed[f"{role}_token"] = names[index]
    if completed != values:
        _write(place, completed)
    write_end_ids(target, ends)


def write_end_ids(target: Path, ends: tuple[int, ...]) -> None:
    """Writes the tokens that end generated text to generation_config.json if that states none."""
    generation = target / GENERATION_FILE
    stated = read_json(generation) if generation.is_file() else {}
    if stated.get("eos_token_id") is None:
        _write(generation, {**stated, "eos_token_id": one_or_list(ends)})


def one_or_list(ends: tuple[int, ...]) -> int | list[int]:
    """Returns end tokens as Hugging Face writes them: one as a number, several as a list."""
    return ends[0] if len(ends) == 1 else list(ends)


def _set_bos_post_processor(path: Path, vocabulary: Vocabulary) -> None:
    """Makes tokenizer.json put BOS before a text exactly if documents and prompts begin with it."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    text = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    wanted = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
    if whole[: len(wanted) + len(text)] == [*wanted, *text]:
        return
    begin = [str(tokenizer.id_to_token(index)) for index in wanted]
    special = list(zip(begin, wanted, strict=True))
    tokenizer.post_processor = processors.TemplateProcessing(single=[*begin, "$A"], special_tokens=special)
    tokenizer.save(str(path))


def _write_json(target: Path, vocabulary: SentencePieceVocabulary) -> bool:
    """Writes a tokenizer.json that gives a SentencePiece model's ids; returns False where none does."""
    proto = read_model(vocabulary.path)[1]
    if not llama_tokenizer.is_plain_bpe(proto):
        logger.warning("tokenizer.model changes texts before it cuts them; transformers may give other ids.")
        return False
    rows = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    pieces, scores, types = zip(*rows, strict=True)
    prefix = proto.normalizer_spec.add_dummy_prefix
    _write(target / "tokenizer.json", llama_tokenizer.as_sentencepiece(pieces, scores, types, dummy_prefix=prefix))
    return True


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
