"""Inputs of the measurements, loaded from workdirs: models, documents, token bytes."""

import dataclasses
import logging
import pathlib
from collections.abc import Iterable, Sequence
from typing import Literal

import jax
import numpy as np

from fot_jax.checkpoint import COMMITTED, load_params, trained_documents
from fot_jax.config import (
    EvaluationConfig,
    ExperimentConfig,
    MemoryConfig,
    Retrieval,
    SourceConfig,
    SourceKind,
    UserError,
    VocabularyKind,
)
from fot_jax.config.build import to_dict
from fot_jax.data.cache import vocabulary_identity
from fot_jax.data.documents import COPIES_TOGETHER, DocumentSet, build_store
from fot_jax.data.vocabulary import load_vocabulary
from fot_jax.eval.reading import EvaluatedModel, borrow_memory_layers
from fot_jax.infer.cuts import reads_memory
from fot_jax.logging import warn_once
from fot_jax.storage.paths import StoragePath, storage_path, version

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model of one workdir.

    Attributes:
      workdir: its folder.
      config: the experiment's config.
      step: optimizer steps for which its parameters were trained.
      saved: when its checkpoint was saved (nanoseconds, in a bucket its generation); 0 if the checkpoint is gone.
      evaluated: the model as it is measured.
    """

    workdir: StoragePath
    config: ExperimentConfig
    step: int
    saved: int
    evaluated: EvaluatedModel

    @property
    def identity(self) -> dict[str, object]:
        """JSON record of the parameters, when they were saved, and the model in which they are measured."""
        return {
            "workdir": str(_resolved(self.workdir)),
            "step": self.step,
            "saved": self.saved,
            "seed": self.config.seed,
            "vocabulary": vocabulary_identity(self.config.data.vocabulary),
            "model": to_dict(self.evaluated.model),
            "reading": self.config.evaluation.reading.value,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs that one evaluation compares: a model and any number of baselines; for "dictionary" seeds of both.

    Attributes:
      runs: the model's runs, at least one.
      baselines: the baselines' runs, possibly none.
      evaluation: what is measured.
      memory: how memory is retrieved, the same for all.
      sources: documents to measure on instead of those that the run held out.
    """

    runs: tuple[Run, ...]
    baselines: tuple[Run, ...]
    evaluation: EvaluationConfig
    memory: MemoryConfig
    sources: tuple[SourceConfig, ...] = ()

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """All runs: the model's, then the baselines'."""
        return (*self.runs, *self.baselines)

    @property
    def retrieval(self) -> str:
        """Name of the retrieval: 'dense', 'exact top-128' or 'scann top-128'."""
        kind = self.memory.retrieval
        return kind.value if kind is Retrieval.DENSE else f"{kind.value} top-{self.memory.top_k}"

    @property
    def windows(self) -> str:
        """Phrase for reports: 'in windows of 512 tokens, the newest 64 of each read again in the next but the last'."""
        sizes, again = sorted({run.evaluated.model.local_context for run in self.all_runs}), self.memory.overlap
        lapped = f", the newest {again} of each read again in the next but the last" if again else ""
        return f"in windows of {' or '.join(map(str, sizes))} tokens{lapped}"

    @property
    def origin(self) -> str:
        """Origin of the measured documents: 'held-out' or 'given'."""
        return "given" if self.sources else "held-out"

    @property
    def identity(self) -> dict[str, object]:
        """JSON record of the models and the settings, without the inputs and this program's version."""
        return {
            "runs": [run.identity for run in self.all_runs],
            "evaluation": to_dict(self.evaluation),
            "memory": to_dict(self.memory),
            "backend": jax.default_backend(),
        }

    @property
    def variants(self) -> dict[str, EvaluatedModel]:
        """Models by label: the model and the baselines, each with memory, and without it ('last window')."""
        variants = {}
        for run in self.all_runs:
            evaluated = run.evaluated
            variants[f"{evaluated.label}, memory"] = evaluated
            window = dataclasses.replace(evaluated.model, memory_layers=())
            variants[f"{evaluated.label}, last window"] = dataclasses.replace(evaluated, model=window)
        return variants


def warn_if_memory_unread(comparison: Comparison, lengths: Iterable[int]) -> None:
    """Logs once per prompt length that no model reads a memory, because the prompt fits one window."""
    for length in lengths:
        models = [run.evaluated for run in comparison.all_runs]
        if not any(reads_memory(length, evaluated.model, evaluated.memory) for evaluated in models):
            window = max(evaluated.model.local_context for evaluated in models)
            warn_once("memory", f"not read by prompts of {length} tokens, which fit one window of {window}")


def load_comparison(
    workdirs: Sequence[StoragePath],
    *,
    baseline_workdirs: Sequence[StoragePath],
    step: int | Literal["latest", "best"],
    memory_changes: dict[str, object],
    evaluation_changes: dict[str, object],
    sources: tuple[SourceConfig, ...] = (),
) -> Comparison:
    """Loads the runs; the first one's config and the changes say what is measured.

    Args:
      workdirs: workdirs of the model.
      baseline_workdirs: workdirs of the model trained without crossbatch.
      step: the checkpoint to load, see `checkpoint.load_params`.
      memory_changes: fields of MemoryConfig to set.
      evaluation_changes: fields of EvaluationConfig to set.
      sources: documents to measure on instead of those that the first run held out.

    Raises:
      UserError: a workdir holds no such checkpoint, or a changed field is out of range.
    """
    folders = (*workdirs, *baseline_workdirs)
    loaded = [load_params(folder, step=step) for folder in folders]
    first = loaded[0][0]
    memory = dataclasses.replace(first.memory, **memory_changes)
    evaluation = dataclasses.replace(first.evaluation, **evaluation_changes)
    memory.validate("memory")
    evaluation.validate("evaluation")
    if not first.model.memory_layers:
        raise UserError(
            f"{workdirs[0]} must hold a model with memory layers, got none."
            " Evaluate a model without them as --baseline-workdir."
        )
    count = len(workdirs)
    labels = _labels(folders, [config.name for config, _, _ in loaded], compared=[0, *range(count, len(folders))])
    runs = []
    for folder, label, (config, params, at) in zip(folders, labels, loaded, strict=True):
        model = borrow_memory_layers(config.model, lender=first.model)
        if evaluation.window:
            model = dataclasses.replace(model, local_context=evaluation.window)
        memory.validate_window("memory", model.local_context)
        evaluated = EvaluatedModel(label=label, params=params, model=model, memory=memory)
        runs.append(
            Run(
                workdir=storage_path(folder), config=config, step=at, saved=_saved_time(folder, at), evaluated=evaluated
            )
        )
    return Comparison(
        runs=tuple(runs[:count]),
        baselines=tuple(runs[count:]),
        evaluation=evaluation,
        memory=memory,
        sources=sources,
    )


def _labels(folders: Sequence[StoragePath], names: list[str], *, compared: list[int]) -> list[str]:
    """Returns the configs' names; folders' names or paths where compared runs would otherwise share a label."""
    for labels in (names, [storage_path(folder).name for folder in folders]):
        if len({labels[number] for number in compared}) == len(compared):
            return labels
    return [str(folder) for folder in folders]


def _resolved(workdir: StoragePath) -> StoragePath:
    return workdir.resolve() if isinstance(workdir, pathlib.Path) else workdir


def _saved_time(workdir: StoragePath, step: int) -> int:
    """Returns when a checkpoint was saved; 0 if a concurrent training has removed it."""
    path = storage_path(workdir) / "checkpoints" / str(step)
    try:
        return int(version(path if isinstance(path, pathlib.Path) else path / COMMITTED))
    except FileNotFoundError:
        return 0


def scored_documents(comparison: Comparison) -> DocumentSet:
    """Returns all of `comparison.sources`, or else the documents that every run has held out.

    Raises:
      UserError: there are no documents of text, or the runs' vocabulary, documents or local context differ.
    """
    first, runs = comparison.runs[0].config, comparison.all_runs
    _check_text(first, given=bool(comparison.sources))
    _check_comparable(runs, given=bool(comparison.sources))
    if comparison.sources:
        data = dataclasses.replace(first.data, sources=comparison.sources, heldout_fraction=0.0, max_documents=0)
        documents = build_store(data, seed=first.seed).split("train")  # nothing is held out of them: all
    else:
        documents = build_store(first.data, seed=first.seed).split("heldout")
    for run in runs:
        _warn_if_trained_on(documents, run, given=bool(comparison.sources))
    return documents


def _check_text(config: ExperimentConfig, *, given: bool) -> None:
    """Raises UserError if the run's data, or with given documents its vocabulary, are not of text."""
    kinds = (SourceKind.DICTIONARY, SourceKind.PASSKEY)
    generated = [source.name for source in config.data.sources if source.kind in kinds]
    if given and config.data.vocabulary.kind is VocabularyKind.SYMBOLS:
        raise UserError("--documents must go with a vocabulary of text, got data.vocabulary.kind='symbols'.")
    if generated and not given:
        raise UserError(
            f"this task needs documents of text, but data.sources {generated} are generated. Use --task=dictionary,"
            " or give some with --documents."
        )


def _check_comparable(runs: Sequence[Run], *, given: bool) -> None:
    """Raises UserError unless all runs can be scored on the same chunks: of the data's documents, or of given ones."""
    first = runs[0].config
    for run in runs[1:]:
        theirs = dataclasses.replace(
            run.config.data,
            cache_dir=first.data.cache_dir,
            document_end=first.data.document_end,
            vocabulary=first.data.vocabulary,  # compared by its file's content: every imported run has its own copy
        )
        shared: dict[str, tuple[object, object]] = {
            "model.local_context": (runs[0].evaluated.model.local_context, run.evaluated.model.local_context),
            "data.vocabulary": (
                vocabulary_identity(first.data.vocabulary),
                vocabulary_identity(run.config.data.vocabulary),
            ),
        }
        if not given:
            shared |= {"data": (first.data, theirs), "seed": (first.seed, run.config.seed)}
        for name, (ours, others) in shared.items():
            if ours != others:
                fix = " Set --evaluation.window." if name == "model.local_context" else ""
                raise UserError(
                    f"{run.workdir} must have the same {name} as {runs[0].workdir}, so that both are scored"
                    f" on the same chunks; got {others!r} and {ours!r}.{fix}"
                )


def _warn_if_trained_on(documents: DocumentSet, run: Run, *, given: bool) -> None:
    """Warns of given sources that equal a source of the run token by token, and of held-out ones that differ now."""
    trained = trained_documents(run.workdir, step=run.step)
    tokens = {digest.removesuffix(COPIES_TOGETHER) for digest in trained.values()}
    same = [name for name, digest in documents.digests.items() if digest.removesuffix(COPIES_TOGETHER) in tokens]
    changed = [name for name, digest in documents.digests.items() if trained.get(name, digest) != digest]
    if given and same:
        logger.warning("documents %s: a source that %s was trained on; most were not held out.", same, run.workdir)
    if changed and not given:
        logger.warning(
            "data.sources %s: not the tokens that %s was trained on (files, the vocabulary or the split of"
            " copies changed); what is held out now may have been trained on.",
            changed,
            run.workdir,
        )


def token_bytes(config: ExperimentConfig) -> np.ndarray:
    """Returns int64 [V], the UTF-8 bytes of each token id (0 for ids beyond the vocabulary)."""
    vocabulary = load_vocabulary(config.data.vocabulary, config.data.dictionary)
    table = np.zeros(max(config.model.vocab_size, vocabulary.size), np.int64)
    table[: vocabulary.size] = [vocabulary.token_bytes(token) for token in range(vocabulary.size)]
    return table
