"""Exports a run's folder to a Hugging Face folder that stock transformers loads, or to bare Orbax parameters.

hf       config.json (our settings under "fot_jax"), model.safetensors or shards with an index, tokenizer files
orbax    params/ (one Orbax item), config.json (the experiment), tokenizer/, source_config.json if it was imported
"""

import enum
import json
import shutil
from pathlib import Path
from typing import Any, Literal

from fot_jax import checkpoint
from fot_jax.config import Dtype, ExperimentConfig
from fot_jax.convert import names
from fot_jax.convert.folders import new_folder
from fot_jax.convert.hf_config import check_exportable
from fot_jax.convert.hf_config import write_config as hugging_face_config
from fot_jax.convert.safetensors_files import read_json, write_folder
from fot_jax.convert.sources import copy_tokenizer
from fot_jax.convert.tokenizer_files import VOCABULARIES, complete_for_transformers, one_or_list, write_end_ids
from fot_jax.data.tokenizer_settings import parse_end_ids, read_settings
from fot_jax.data.vocabulary import existing_file, load_vocabulary
from fot_jax.storage.paths import StoragePath, storage_path
from fot_jax.workdir import HERE, SOURCE_CONFIG, TOKENIZER, inherit_source, read_config, with_tokenizer, write_config

MAX_SHARD_BYTES = 5 * 10**9  # as transformers writes them


class Format(enum.Enum):
    """Format of an export."""

    HF = "hf"
    ORBAX = "orbax"


def export_checkpoint(
    workdir: str | Path,
    folder: str | Path,
    *,
    form: Format = Format.HF,
    step: int | Literal["latest", "best"] = "latest",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
    """Writes a checkpoint of a run for others to load; tensors keep the dtype they are stored in.

    Importing an HF export gives the same parameters, bit for bit.

    Args:
      workdir: the run's folder.
      folder: a new folder. It appears only when it is whole; an error leaves nothing.
      form: the format.
      step: a checkpoint's number, "latest", or "best".
      max_shard_bytes: of one safetensors file; one tensor is never split.

    Returns:
      The names of the files and folders.

    Raises:
      UserError: no such checkpoint, a model that transformers' LLaMA would not compute (HF), or a full disk.
    """
    config = read_config(workdir)
    if form is Format.HF:
        check_exportable(config.model)
    needed = checkpoint.stored_bytes(workdir, step=step)
    with new_folder(storage_path(folder), needed=needed, compressed=form is Format.ORBAX) as target:
        params, dtype = checkpoint.load_stored_params(workdir, step=step)
        if form is Format.ORBAX:
            checkpoint.write_bare_params(target / "params", params)
            write_experiment(target, config)
            inherit_source(target, workdir)
        else:
            _write_hugging_face(target, storage_path(workdir), config, params, dtype, max_shard_bytes=max_shard_bytes)
        return sorted(path.name for path in target.iterdir())


def _copy_tokenizer(config: ExperimentConfig, target: Path) -> str | None:
    """Copies the tokenizer's files; returns the main one's name, None where the vocabulary is no file.

    Raises:
      UserError: the file that the config names is gone.
    """
    main = next((name for name, (kind, _) in VOCABULARIES.items() if kind is config.data.vocabulary.kind), None)
    if main is None:
        return None
    path = Path(existing_file(config.data.vocabulary.path))
    if path.name in VOCABULARIES:  # the files next to it belong to it
        copy_tokenizer(path.parent, target)
    shutil.copyfile(path, target / main)
    return main


def write_experiment(target: Path, config: ExperimentConfig) -> None:
    """Writes config.json and, if the vocabulary is a file, copies it into a folder next to it: the whole may move."""
    place = target / TOKENIZER
    place.mkdir()
    main = _copy_tokenizer(config, place)
    if main is None:
        place.rmdir()  # an empty folder would suggest a tokenizer
    else:
        stated = read_settings(existing_file(config.data.vocabulary.path)).end_ids
        if stated is not None:  # maybe by a config.json next to the tokenizer, which is not copied with it
            write_end_ids(place, stated)
        config = with_tokenizer(config, f"{HERE}{TOKENIZER}/{main}")
    write_config(target, config)


def _write_hugging_face(
    target: Path, workdir: StoragePath, config: ExperimentConfig, params: Any, dtype: Dtype, *, max_shard_bytes: int
) -> None:
    tensors = {name: names.tensor_view(params, slot) for name, slot in names.tensor_slots(config.model).items()}
    write_folder(target, tensors, max_shard_bytes=max_shard_bytes)
    origin = workdir / SOURCE_CONFIG
    source_values = read_json(origin) if origin.is_file() else {}
    values = hugging_face_config(config, dtype=dtype, source_values=source_values)
    main = _copy_tokenizer(config, target)
    if main is not None:
        vocabulary = load_vocabulary(config.data.vocabulary)
        ends = read_settings(existing_file(config.data.vocabulary.path)).end_ids
        stated = source_values.get("eos_token_id")
        if ends is None and stated is not None:  # the import did not yet write it next to the tokenizer
            ends = parse_end_ids(stated, where=str(origin))
        ends = ends or vocabulary.end_ids
        complete_for_transformers(target, main, vocabulary, ends)
        values["eos_token_id"] = one_or_list(ends)
        if vocabulary.bos_id is not None:
            values["bos_token_id"] = vocabulary.bos_id
    (target / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
