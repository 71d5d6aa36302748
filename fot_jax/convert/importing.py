"""From a LLaMA-family checkpoint to a run's folder that training, evaluation and generation load.

    WORKDIR/config.json           the experiment: model and memory from the checkpoint, the rest defaults
    WORKDIR/checkpoints/0/        the parameters
    WORKDIR/tokenizer/            the tokenizer's files as they came
    WORKDIR/source_config.json    the checkpoint's own config.json, for export

Memory: the output's buffers and one block of rows. Every buffer is filled in place.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fot_jax import checkpoint
from fot_jax.config import (
    CrossbatchConfig,
    DataConfig,
    Dtype,
    ExperimentConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    PlanKind,
    SourceConfig,
    SourceKind,
    TrainConfig,
    UserError,
    VocabularyConfig,
    VocabularyKind,
)
from fot_jax.config.build import validated
from fot_jax.convert import names
from fot_jax.convert.folders import new_folder
from fot_jax.convert.hf_config import Changes, read_config
from fot_jax.convert.sources import Source, copy_tokenizer, open_source
from fot_jax.data.vocabulary import HuggingFaceVocabulary, SentencePieceVocabulary
from fot_jax.models.init import param_shapes
from fot_jax.models.layers import DTYPES
from fot_jax.workdir import write_config

TOKENIZER, SOURCE_CONFIG = "tokenizer", "source_config.json"
VOCABULARIES = {
    "tokenizer.json": (VocabularyKind.HF_TOKENIZER, HuggingFaceVocabulary),
    "tokenizer.model": (VocabularyKind.SENTENCEPIECE, SentencePieceVocabulary),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a conversion is; bytes are the source's."""

    tensors: int
    tensors_total: int
    bytes: int
    bytes_total: int
    seconds: float


def import_checkpoint(
    source: str | Path,
    workdir: str | Path,
    *,
    changes: Changes = Changes(),
    dtype: Dtype = Dtype.FLOAT32,
    tokenizer: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ExperimentConfig:
    """Writes a run's folder from a Hugging Face folder (safetensors) or a GGUF file.

    Args:
      source: the folder or the file.
      workdir: a new folder. It appears when it is whole; after an error nothing is left of it.
      changes: settings of the model that the checkpoint does not know.
      dtype: of the stored parameters; they are float32 again once loaded.
      tokenizer: a tokenizer.json, a tokenizer.model or a folder of one, in place of the checkpoint's own.
      progress: called after every tensor.

    Returns:
      The experiment as written. Its vocabulary is BYTES where no tokenizer was found.

    Raises:
      UserError: an unsupported or damaged checkpoint, a missing, unexpected or misshapen tensor, a tokenizer
        with more tokens than the embedding has rows.
    """
    final = Path(workdir).absolute()
    with open_source(Path(source)) as opened, new_folder(final) as folder:
        model, memory = read_config(opened.config, source=str(opened.path), changes=changes)
        _check_tensors(opened, model)
        main = _write_tokenizer(opened, folder / TOKENIZER, tokenizer, model)
        config = _experiment(final, model, memory, main)
        params = read_params(opened, model, dtype=dtype, progress=progress)
        _check_tied_head(opened, model, params)
        checkpoint.save_imported(folder, config, params, dtype=dtype)
        del params
        (folder / SOURCE_CONFIG).write_text(json.dumps(opened.config, indent=2) + "\n", encoding="utf-8")
        write_config(folder, config)
    return config


def _check_tensors(source: Source, model: ModelConfig) -> None:
    """Raises UserError unless the source holds exactly the model's tensors in their shapes."""
    if model.num_layers > len(source.shapes):  # before any list as long as that is made
        raise UserError(
            f"{source.path}: the checkpoint must hold {model.num_layers} layers, as its config says, got"
            f" {len(source.shapes)} tensors."
        )
    wanted = names.slots(model)
    missing = [name for name in wanted if name not in source.shapes]
    if missing:
        tied = " Or set tie_word_embeddings to true." if missing == [names.UNEMBEDDING] else ""
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{source.path}: the checkpoint must hold {missing[0]}{more}, but does not.{tied}")
    unexpected = [name for name in source.shapes if name not in wanted and not names.is_ignored(name, model)]
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise UserError(
            f"{source.path}: the checkpoint must hold no tensor but a LLaMA's, got {unexpected[0]}{more}."
            " Nothing here computes with it."
        )
    for name, slot in wanted.items():
        if source.shapes[name] != slot.shape:
            raise UserError(f"{source.path}: {name} must have shape {slot.shape}, got {source.shapes[name]}.")


def _check_tied_head(source: Source, model: ModelConfig, params: Any) -> None:
    """Raises UserError where a tied model comes with an unembedding of its own that is another."""
    if not model.tie_embeddings or names.UNEMBEDDING not in source.shapes:
        return
    embedding = params["embedding"]
    same = source.shapes[names.UNEMBEDDING] == embedding.shape and all(
        np.array_equal(embedding[rows], block.astype(embedding.dtype))
        for rows, block in source.blocks(names.UNEMBEDDING)
    )
    if not same:
        raise UserError(
            f"{source.path}: {names.UNEMBEDDING} must equal {names.EMBEDDING} where tie_word_embeddings is true, got"
            " others. Set it to false."
        )


def read_params(
    source: Source, model: ModelConfig, *, dtype: Dtype, progress: Callable[[Progress], None] | None = None
) -> Any:
    """The decoder's parameters as numpy arrays, filled one block of rows at a time.

    Args:
      source: holds every tensor of the model.
      model: LLAMA family, scanned layers.
      dtype: of the result.
      progress: called after every tensor.

    Raises:
      UserError: a tensor that cannot be read.
    """
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, DTYPES[dtype]), param_shapes(model))
    wanted = names.slots(model)
    total = sum(source.num_bytes[name] for name in wanted)
    done, start = 0, time.perf_counter()
    for count, (name, slot) in enumerate(wanted.items(), start=1):
        target = names.view(params, slot)
        for rows, block in source.blocks(name):
            target[rows] = block
        done += source.num_bytes[name]
        if progress is not None:
            seconds = time.perf_counter() - start
            progress(Progress(tensors=count, tensors_total=len(wanted), bytes=done, bytes_total=total, seconds=seconds))
    return params


def _write_tokenizer(source: Source, folder: Path, given: str | Path | None, model: ModelConfig) -> str | None:
    """Writes the tokenizer's files to a new folder; the name of the main one, None if there is none.

    Raises:
      UserError: it cannot be read, or has more tokens than the embedding has rows.
    """
    folder.mkdir()
    if given is None:
        main = source.write_tokenizer(folder)
    else:
        place = Path(given)
        main = copy_tokenizer(place if place.is_dir() else place.parent, folder)
        main = main if place.is_dir() else place.name
        if main not in VOCABULARIES or not (folder / main).is_file():
            allowed = " or ".join(VOCABULARIES)
            raise UserError(f"--tokenizer must name a {allowed}, or a folder of one, got {str(given)!r}.")
    if main is None:
        return None
    try:
        size = VOCABULARIES[main][1](str(folder / main)).size
    except UserError as error:
        raise UserError(str(error).replace(f"{folder}/", "")) from error  # the folder's name is a passing one
    if size > model.vocab_size:
        raise UserError(
            f"{main} must have at most {model.vocab_size} tokens, the rows of the embedding, got {size}."
            " Give the model's own with --tokenizer=FILE."
        )
    return main


def _experiment(workdir: Path, model: ModelConfig, memory: MemoryConfig, tokenizer: str | None) -> ExperimentConfig:
    """An experiment around an imported model: plain training on the standard library until a config says else."""
    vocabulary = VocabularyConfig()
    if tokenizer is not None:
        kind, _ = VOCABULARIES[tokenizer]
        vocabulary = VocabularyConfig(kind=kind, path=str(workdir / TOKENIZER / tokenizer))
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", workdir.name).lstrip("_.-")
    return validated(
        ExperimentConfig(
            name=name or "imported",
            model=model,
            crossbatch=CrossbatchConfig(plan=PlanKind.OFF),
            data=DataConfig(sources=(SourceConfig(name="stdlib", kind=SourceKind.STDLIB),), vocabulary=vocabulary),
            optimizer=OptimizerConfig(learning_rate=2e-5),
            train=TrainConfig(steps=1, batch_rows=8),
            memory=memory,
        )
    )
