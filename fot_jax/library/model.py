"""The model of a run or an imported checkpoint, loaded: the parts that read, score and load memories."""

import dataclasses
import functools
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from fot_jax.checkpoint import load_params
from fot_jax.config import Dtype, ExperimentConfig, MemoryConfig, MeshConfig, ModelConfig, UserError
from fot_jax.config.build import build, to_dict
from fot_jax.data.vocabulary import Vocabulary, check_vocabulary, load_vocabulary
from fot_jax.infer import windows
from fot_jax.infer.generate import decoding_params, generate
from fot_jax.infer.progress import Progress, show_on_terminal
from fot_jax.infer.reading import Reading, start_reading
from fot_jax.infer.sampling import SamplingConfig
from fot_jax.infer.score import score_forced, score_windows
from fot_jax.library.memory import Memory
from fot_jax.library.texts import Text, check_several, encode, name_texts, only_texts, to_ids
from fot_jax.logging import info_once
from fot_jax.memory import files
from fot_jax.memory.fingerprint import fingerprint
from fot_jax.memory.store import MemoryStore
from fot_jax.memory.views import ViewSource
from fot_jax.models.init import boxed_shapes
from fot_jax.sharding import make_mesh, param_shardings
from fot_jax.storage.explain import explained
from fot_jax.storage.paths import storage_path


def load(
    workdir: str | os.PathLike[str],
    *,
    step: int | Literal["latest", "best"] = "latest",
    mesh: MeshConfig | Mesh | None = None,
    dtype: Dtype | str | None = None,
    local_context: int | None = None,
) -> "Model":
    """Loads the model of a run or an imported checkpoint.

    Args:
      workdir: its folder.
      step: a checkpoint's number, "latest", or "best" (smallest held-out loss).
      mesh: devices of this process over which parameters and memories are split; None: one device.
      dtype: of computation and memory, "float32" or "bfloat16"; None: the run's own. Parameters stay float32.
      local_context: tokens of a window; None: the run's own.

    Raises:
      UserError: there is no such run or checkpoint, it is damaged, or the model does not fit the mesh.
    """
    path = storage_path(workdir) / "config.json"
    with explained(path):
        found = path.is_file()
    if not found:
        raise UserError(
            f"a run's folder must hold config.json, got {os.fspath(workdir)!r}, which has none. Name the folder of a"
            " run of launch.train, or the one that launch.convert import wrote."
        )
    experiment, params, _ = load_params(workdir, step=step)
    config = experiment.model
    given = {"dtype": dtype, "local_context": local_context}
    if changes := {name: value for name, value in given.items() if value is not None}:
        config = build(ModelConfig, {**to_dict(config), **changes}, path="model")
    identity = fingerprint(params, config)
    if isinstance(mesh, MeshConfig):
        mesh.validate("mesh")
        mesh = make_mesh(mesh)
    if mesh is not None:
        params = jax.device_put(params, param_shardings(boxed_shapes(config), mesh))
    return Model(
        config=config,
        memory=experiment.memory,
        params=params,
        vocabulary=open_vocabulary(experiment),
        fingerprint=identity,
        mesh=mesh,
    )


def open_vocabulary(config: ExperimentConfig) -> Vocabulary:
    """Opens a run's vocabulary. Raises UserError where it is missing or has tokens without a row in the embedding."""
    vocabulary = load_vocabulary(config.data.vocabulary, config.data.dictionary)
    check_vocabulary(vocabulary, config.model)
    return vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A loaded model, from `load`.

    Attributes:
      config: its shape; `config.memory_layers` are the layers that read memory.
      memory: how memories are written and read (`with_memory`).
      params: its parameters, unboxed.
      vocabulary: from text to token ids and back.
      fingerprint: by which its memories are known.
      mesh: the devices over which it is split; None: one.
    """

    config: ModelConfig
    memory: MemoryConfig
    params: Any = dataclasses.field(repr=False)
    vocabulary: Vocabulary
    fingerprint: str
    mesh: Mesh | None = None

    def with_memory(self, **changes: Any) -> "Model":
        """Returns the model with other fields of MemoryConfig: `model.with_memory(retrieval="scann", top_k=64)`.

        Raises:
          ConfigError: a field is unknown (with a suggestion) or its value is out of range.
        """
        memory = build(MemoryConfig, {**to_dict(self.memory), **changes}, path="memory")
        memory.validate_window("memory", self.config.local_context)
        changed = dataclasses.replace(self, memory=memory)
        if "_decoding" in self.__dict__:
            changed.__dict__["_decoding"] = self._decoding  # of the same parameters
        return changed

    @functools.cached_property
    def _decoding(self) -> tuple[ModelConfig, Any]:
        return decoding_params(self.config, self.params)

    def encode(self, text: str, *, chat: bool = False, system: str | None = None) -> Int[np.ndarray, " n"]:
        """Returns the token ids of a prompt; see `encode`. All that takes a text takes them, too."""
        return encode(self.vocabulary, text, chat=chat, system=system)

    def new_memory(self) -> Memory:
        """Returns an empty memory: asked without a text."""
        store = self.new_store(streams=1)
        return Memory(self, None if store is None else ViewSource(store, self.memory, mesh=self.mesh))

    def read(self, *texts: Text, progress: Progress = show_on_terminal) -> Memory:
        """Reads texts one after another into a new memory; see `Memory.read`."""
        return self.new_memory().read(*texts, progress=progress)

    def read_each(self, texts: Sequence[Text], *, progress: Progress = show_on_terminal) -> list[Memory]:
        """Reads texts as one batch, each into a memory of its own. Arguments and errors as in `Memory.read`."""
        check_several(texts)
        self.check_memory_layers()
        named = name_texts(texts)
        reading = self.read_prompts(self.encode_all([text for _, text in named]), progress=progress)
        windows.flush_local_cache(self.config, reading)
        assert reading.store is not None
        stores = [reading.store.fork([row]) for row in range(len(texts))]
        sources = [ViewSource(store, self.memory, mesh=self.mesh) for store in stores]
        return [Memory(self, source, only_texts([text])) for source, text in zip(sources, named, strict=True)]

    def load_memory(self, directory: str | os.PathLike[str], *, stream: int | None = None) -> Memory:
        """Loads a memory that `Memory.save`, `launch.read` or `launch.generate --save-memory` wrote.

        Args:
          directory: its folder, here or at gs://BUCKET/FOLDER.
          stream: the prompt's number, where launch.generate read several.

        Raises:
          UserError: no memory, a damaged one, one of another model, or several streams and none is named.
        """
        self.check_memory_layers()
        store = self.load_store(directory)
        if stream is None and store.streams > 1:
            raise UserError(
                f"memory '{os.fspath(directory)}' must hold one stream, got {store.streams}, one for each prompt."
                " Name one: load_memory(…, stream=0)."
            )
        source = ViewSource(store.fork([stream or 0]), self.memory, mesh=self.mesh)
        return Memory(self, source, files.load_texts(directory))

    def score(
        self,
        text: Text,
        *,
        memory: Memory | None = None,
        after: Text | None = None,
        progress: Progress = show_on_terminal,
    ) -> Float[np.ndarray, " n"]:
        """Returns the log-probability (nats) of every token of a text but the first: scores[i] is for tokens[i + 1].

        The text is cut into windows as if it were read; its own past joins a fork of the memory. With `after`, the text
        is a continuation that is forced on the model: every token has a score, the one that generation computes.

        Args:
          text: a text, a file or token ids.
          memory: in which this model has read something before, with the settings by which it was read.
          after: the prompt that the text continues.
          progress: called after each window; by default a line with the time left, on a terminal.

        Raises:
          UserError: the memory is another model's, an empty text, ids that the model lacks, or scores that are not
            finite.
        """
        memory = memory or self.new_memory()
        if memory.model.fingerprint != self.fingerprint:
            raise UserError(
                f"memory must come from this model (fingerprint {self.fingerprint}), got one of another model"
                f" (fingerprint {memory.model.fingerprint}). Read the text again with this model."
            )
        model = memory.model
        if after is None:
            (ids,) = model.encode_all([text])
            reading = start_reading(model.config, model.memory, memory.fork(), batch=1, mesh=model.mesh)
            return score_windows(model.params, model.config, ids, reading, memory=model.memory, progress=progress)
        continuation = to_ids(model.vocabulary, model.config, text, begins=False)
        prompt, ids = model.encode_all([after, continuation])
        reading = model.read_prompts([prompt], store=memory.fork(), progress=progress)
        return score_forced(model.params, model.config, ids, reading)

    # What launch.generate is made of, too.

    def encode_all(self, texts: Sequence[Text]) -> list[Int[np.ndarray, " n"]]:
        """Returns the token ids of texts, files and token ids. Raises UserError where they are not the model's."""
        rows = [to_ids(self.vocabulary, self.config, text) for text in texts]
        windows.check_inputs(self.config, rows)
        return rows

    def new_store(self, *, streams: int) -> MemoryStore | None:
        """Returns an empty store of this model's shape; None for a model without memory layers."""
        if not self.config.memory_layers:
            return None
        return MemoryStore.for_model(self.config, streams=streams, budget=self.memory.budget, dtype=self.memory.dtype)

    def load_store(self, directory: str | os.PathLike[str]) -> MemoryStore:
        """Loads a store of this model, in the dtype in which it was saved; see `files.load`."""
        scaling, budget = self.memory.log_length_scaling_from, self.memory.budget
        store = files.load(directory, fingerprint=self.fingerprint, scaling_from=scaling, budget=budget)
        empty = self.new_store(streams=1)
        if empty is not None and empty.dtype != store.dtype:
            asked = f"not {empty.dtype.name} as memory.dtype asks"
            info_once("memory.dtype", f"'{directory}' was saved as {store.dtype.name} and stays so, {asked}")
        return store

    def save_store(
        self, store: MemoryStore, directory: str | os.PathLike[str], *, texts: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Saves a store of this model; see `files.save`."""
        scaling = self.memory.log_length_scaling_from
        files.save(store, directory, fingerprint=self.fingerprint, scaling_from=scaling, texts=texts)

    def read_prompts(
        self,
        prompts: Sequence[Int[np.ndarray, " n"]],
        *,
        store: MemoryStore | ViewSource | None = None,
        progress: Progress = lambda _: None,
    ) -> Reading:
        """Reads a batch of prompts; arguments and errors as in `windows.read`."""
        how = {"memory": self.memory, "store": store, "mesh": self.mesh, "progress": progress}
        return windows.read(self.params, self.config, prompts, **how)

    def next_tokens(
        self,
        reading: Reading,
        *,
        max_new_tokens: int,
        sampling: SamplingConfig = SamplingConfig(),
        end_ids: Collection[int] | None = None,
    ) -> Iterator[Int[np.ndarray, " B"]]:
        """Yields the next token of every row, as `generate` does; `end_ids` None: the vocabulary's."""
        sampling = dataclasses.replace(sampling, vocab_limit=sampling.vocab_limit or self.vocabulary.size)
        end_ids = self.vocabulary.end_ids if end_ids is None else end_ids
        how = {"sampling": sampling, "max_new_tokens": max_new_tokens, "end_ids": end_ids}
        config, params = self._decoding if max_new_tokens > 1 else (self.config, self.params)
        return generate(params, config, reading, **how)

    def check_memory_layers(self) -> None:
        """Raises UserError for a model that cannot read a text into memory."""
        if not self.config.memory_layers:
            raise UserError(
                "a text is read into memory by a model with memory layers, got model.memory_layers=(). Train or import"
                " one with them, or put the text before the question: model.new_memory().ask(…)."
            )
