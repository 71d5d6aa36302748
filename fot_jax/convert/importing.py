"""Imports a LLaMA-family checkpoint into a run's folder that training, evaluation and generation load.

    WORKDIR/config.json           the experiment: model and memory from the checkpoint, the rest defaults
    WORKDIR/checkpoints/0/        the parameters
    WORKDIR/tokenizer/            the tokenizer's files as they came, and the end tokens in generation_config.json
    WORKDIR/source_config.json    the checkpoint's own config.json, for export

Memory: the output's buffers and one block of rows (with a mesh: the output on its devices and one tensor).
"""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fot_jax import checkpoint
from fot_jax.config import (
    CrossbatchConfig,
    DataConfig,
    Dtype,
    ExperimentConfig,
    MemoryConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PlanKind,
    SourceConfig,
    SourceKind,
    TrainConfig,
    UserError,
    VocabularyConfig,
)
from fot_jax.config.build import validated
from fot_jax.convert import names
from fot_jax.convert.folders import new_folder
from fot_jax.convert.hf_config import Changes
from fot_jax.convert.hf_config import read_config as read_source_config
from fot_jax.convert.parameters import Progress, check_tied_head, read_params
from fot_jax.convert.sources import Source, open_source
from fot_jax.convert.tokenizer_files import VOCABULARIES, write_tokenizer
from fot_jax.ops.rope import rope_frequencies
from fot_jax.sharding import make_mesh
from fot_jax.storage.paths import absolute
from fot_jax.workdir import HERE, SOURCE_CONFIG, TOKENIZER, read_config, write_config


def import_checkpoint(
    source: str | Path,
    workdir: str | Path,
    *,
    changes: Changes = Changes(),
    dtype: Dtype = Dtype.FLOAT32,
    tokenizer: str | Path | None = None,
    mesh: MeshConfig | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ExperimentConfig:
    """Writes a run's folder from a Hugging Face folder (safetensors) or a GGUF file.

    Args:
      source: the folder or the file.
      workdir: a new folder. It appears only when it is whole; an error leaves nothing.
      changes: settings of the model that the checkpoint does not know.
      dtype: of the stored parameters; they are float32 again once loaded.
      tokenizer: a tokenizer.json, a tokenizer.model or a folder of one, in place of the checkpoint's own.
      mesh: devices to spread the parameters over, tensor by tensor, and to save them from; None: the host's memory.
        The checkpoint holds the same numbers and loads on any mesh.
      progress: called after every tensor.

    Returns:
      The experiment as `read_config` gives it. Its vocabulary is BYTES where no tokenizer was found.

    Raises:
      UserError: an unsupported or damaged checkpoint, a missing, unexpected or misshapen tensor, a tokenizer
        that is not supported or has other than special tokens without a row in the embedding; a full disk.
      ConfigError: the mesh does not fit the devices or the model.
    """
    final = absolute(workdir)
    devices = None if mesh is None else make_mesh(mesh)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_source(Path(source)))
        model, memory = read_source_config(opened.config, source=str(opened.path), changes=changes)
        _check_tensors(opened, model)
        _check_frequencies(opened, model)
        needed = checkpoint.num_bytes(model, dtype)
        folder = stack.enter_context(new_folder(final, needed=needed, compressed=True))
        main = write_tokenizer(opened, folder / TOKENIZER, tokenizer, model)
        config = _experiment(final.name, model, memory, main)
        params = read_params(opened, model, dtype=dtype, mesh=devices, progress=progress)
        check_tied_head(opened, model, params)
        checkpoint.save_imported(folder, config, params, dtype=dtype, documents={})
        del params
        (folder / SOURCE_CONFIG).write_text(json.dumps(opened.config, indent=2) + "\n", encoding="utf-8")
        write_config(folder, config)
    return read_config(final)


def _check_tensors(source: Source, model: ModelConfig) -> None:
    """Raises UserError unless the source holds exactly the model's tensors in their shapes."""
    if model.num_layers > len(source.shapes):  # before a list of that length is made
        raise UserError(
            f"{source.path}: the checkpoint must hold {model.num_layers} layers, as its config says, got"
            f" {len(source.shapes)} tensors. {names.describe_foreign_names(source.shapes)}"
        )
    wanted = names.tensor_slots(model)
    missing = [name for name in wanted if name not in source.shapes]
    if missing:
        hint = names.describe_foreign_names(source.shapes)
        if missing == [names.UNEMBEDDING]:
            hint = "Or set tie_word_embeddings to true."
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{source.path}: the checkpoint must hold {missing[0]}{more}, but does not. {hint or ''}".rstrip()
        )
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


def _check_frequencies(source: Source, model: ModelConfig) -> None:
    """Raises UserError where the rotary settings give frequencies that are not finite or not above 0."""
    with np.errstate(all="ignore"):
        try:
            frequencies, _ = rope_frequencies(model.rope, model.head_dim, model.local_context)
        except OverflowError:
            frequencies = np.array([np.inf])
    if not (np.isfinite(frequencies) & (frequencies > 0)).all():
        raise UserError(
            f"{source.path}: rope_theta and its scaling must give finite frequencies above 0, got {model.rope}."
        )


def _experiment(folder: str, model: ModelConfig, memory: MemoryConfig, tokenizer: str | None) -> ExperimentConfig:
    """Builds an experiment around an imported model: plain training on the standard library, for now."""
    vocabulary = VocabularyConfig()
    if tokenizer is not None:
        kind, _ = VOCABULARIES[tokenizer]
        vocabulary = VocabularyConfig(kind=kind, path=f"{HERE}{TOKENIZER}/{tokenizer}")
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", folder).lstrip("_.-")
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
