"""A memory that a model has read: to ask, to continue, to read on with, to save."""

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from fot_jax.config import UserError, check
from fot_jax.infer import windows
from fot_jax.infer.cuts import reads_memory, window_lengths
from fot_jax.infer.generate import FINISHED
from fot_jax.infer.progress import Progress, ReadProgress, StopReading, show_on_terminal
from fot_jax.infer.sampling import SamplingConfig
from fot_jax.infer.text_stream import TextStream
from fot_jax.library.cost import ReadCost
from fot_jax.library.sources import Source, find_source
from fot_jax.library.texts import Text, check_several, name_texts, only_texts
from fot_jax.memory import files
from fot_jax.memory.views import ViewSource

if TYPE_CHECKING:
    from fot_jax.library.model import Model


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Memory:
    """Texts that a model has read, in one memory; from `Model.read`. It never changes.

    In all methods `max_new_tokens` is the most new tokens of an answer, `sampling` says how they are chosen (default:
    greedily), and each of `end_ids` ends an answer (None: the vocabulary's end tokens).

    Attributes:
      model: the model that read them.
      source: its views of them; None for a model without memory layers.
      texts: name and text of each, but of token ids.
    """

    model: "Model"
    source: ViewSource | None
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in memory, not counting those that `memory.budget` has evicted."""
        return 0 if self.source is None else int(self.source.store.lengths[0])

    def __repr__(self) -> str:
        held = 0 if self.source is None else self.source.store.bytes()
        return f"Memory({self.num_tokens:,} tokens, {held / 2**20:,.1f} MiB)"

    def fork(self) -> ViewSource | None:
        """Returns views of these entries for a reading, which may append to them; this memory stays as it is."""
        return None if self.source is None else self.source.fork()

    def cost(self, *texts: Text) -> ReadCost:
        """Returns what reading these texts into this memory takes. Arguments and errors as in `read`."""
        self.model.check_memory_layers()
        config, memory = self.model.config, self.model.memory
        lengths = [len(ids) for ids in self.model.encode_all(texts)]
        assert self.source is not None
        held = self.num_tokens + sum(lengths)
        return ReadCost(
            texts=len(lengths),
            tokens=sum(lengths),
            windows=sum(len(window_lengths(length, config, memory)) for length in lengths),
            window_tokens=config.local_context,
            memory_bytes=min(held, memory.budget or held) * self.source.store.entry_bytes,
        )

    def read(self, *texts: Text, progress: Progress = show_on_terminal) -> "Memory":
        """Returns a memory of these texts too, each read with all before it in memory.

        Args:
          texts: texts, files (`pathlib.Path`) or token ids.
          progress: called after each window; by default a line with the time left, on a terminal. Where it raises
            StopReading, reading ends and what was read until then is returned.

        Raises:
          UserError: there is no text, an empty one, ids that the model lacks, or a model without memory layers.
        """
        self.model.check_memory_layers()
        named = name_texts(texts, first=len(self.texts) + 1)
        rows = self.model.encode_all([text for _, text in named])
        source, total = self.fork(), sum(map(len, rows))
        begun: list[tuple[str, Text]] = []
        reports: list[ReadProgress] = []
        done, seconds, stopped = 0, 0.0, False  # the first two: of the texts before

        def report(so_far: ReadProgress) -> None:
            nonlocal stopped
            whole = {"tokens_read": done + so_far.tokens_read, "tokens_total": total}
            reports.append(dataclasses.replace(so_far, seconds=seconds + so_far.seconds, **whole))
            try:
                progress(reports[-1])
            except StopReading:
                if so_far.tokens_read < so_far.tokens_total:
                    raise
                stopped = True  # once the last window is in memory too

        with contextlib.suppress(StopReading):
            for ids, text in zip(rows, named, strict=True):
                begun.append(text)
                reading = self.model.read_prompts([ids], store=source, progress=report)
                windows.flush_local_cache(self.model.config, reading)
                done, seconds = reports[-1].tokens_read, reports[-1].seconds
                if stopped:
                    break
        return Memory(self.model, source, (*self.texts, *only_texts(begun)))

    def find(self, answer: str) -> Source | None:
        """Returns where the first line of an answer is in the texts, word for word; see `find_source`.

        None where it is in none, or where the texts are not known: token ids, or a memory of launch.generate.
        """
        return find_source(self.texts, answer)

    def ask(
        self,
        question: Text,
        *,
        max_new_tokens: int = 256,
        sampling: SamplingConfig = SamplingConfig(),
        end_ids: Collection[int] | None = None,
    ) -> str:
        """Returns the model's answer: the text that follows the question."""
        how = {"max_new_tokens": max_new_tokens, "sampling": sampling, "end_ids": end_ids}
        return self.ask_each([question], **how)[0]

    def ask_each(
        self,
        questions: Sequence[Text],
        *,
        max_new_tokens: int = 256,
        sampling: SamplingConfig = SamplingConfig(),
        end_ids: Collection[int] | None = None,
    ) -> list[str]:
        """Returns the answer to each question, none of which sees the others; see `generate_each`."""
        rows = self.generate_each(questions, max_new_tokens=max_new_tokens, sampling=sampling, end_ids=end_ids)
        ends = self._ends(end_ids)
        return [self.model.vocabulary.decode([token for token in row if token not in ends]) for row in rows]

    def stream(
        self,
        prompt: Text,
        *,
        max_new_tokens: int = 256,
        sampling: SamplingConfig = SamplingConfig(),
        end_ids: Collection[int] | None = None,
    ) -> Iterator[str]:
        """Reads a prompt and returns an iterator over its answer, whose pieces come as they are generated."""
        rows = self.model.encode_all([prompt])
        steps = self._steps(rows, max_new_tokens=max_new_tokens, sampling=sampling, end_ids=end_ids)
        return self._pieces(steps, self._ends(end_ids))

    def generate_each(
        self,
        prompts: Sequence[Text],
        *,
        max_new_tokens: int = 256,
        sampling: SamplingConfig = SamplingConfig(),
        end_ids: Collection[int] | None = None,
    ) -> list[list[int]]:
        """Returns the token ids that follow each prompt, with the end token where one ended it.

        Prompts that fit the local context with their answers are one batch. The others would append to memory, which
        one memory for many rows shows to all of them, so they are read one by one; from an empty memory all are one
        batch, each with a memory of its own.
        """
        check_several(prompts)
        rows = self.model.encode_all(prompts)
        empty = self.num_tokens == 0
        local = [empty or self._stays_local(len(ids) + max_new_tokens - 1, prompt=len(ids)) for ids in rows]
        together = [row for row, fits in enumerate(local) if fits]
        answers: list[list[int]] = [[] for _ in rows]
        for group in [together] * bool(together) + [[row] for row, fits in enumerate(local) if not fits]:
            chosen = [rows[row] for row in group]
            steps = self._steps(chosen, max_new_tokens=max_new_tokens, sampling=sampling, end_ids=end_ids)
            columns = np.stack(list(steps), axis=1).tolist()
            for row, tokens in zip(group, columns, strict=True):
                answers[row] = [token for token in tokens if token != FINISHED]
        return answers

    def save(self, directory: str | os.PathLike[str], *, replace: bool = False) -> None:
        """Writes the memory to a folder, from which `Model.load_memory` reads it.

        Args:
          directory: a new or empty folder, here or at gs://BUCKET/FOLDER; with `replace`, also one that holds
            another memory.
          replace: whether that one may be replaced, once the new one is whole.

        Raises:
          UserError: the folder holds something else, or a memory without `replace`.
        """
        self.model.check_memory_layers()
        assert self.source is not None
        if files.is_memory(directory) and not replace:
            raise UserError(
                f"memory folder must be new or empty, got '{os.fspath(directory)}', which holds a memory. Name another"
                " folder, or replace it: save(…, replace=True)."
            )
        self.model.save_store(self.source.store, directory, texts=self.texts)

    def _ends(self, end_ids: Collection[int] | None) -> set[int]:
        """Returns the tokens that are no text of an answer."""
        return {*self.model.vocabulary.end_ids, *(end_ids or ())}

    def _stays_local(self, length: int, *, prompt: int) -> bool:
        """True if nothing goes to memory while a prompt of `prompt` tokens is read and continued to `length`."""
        config, memory = self.model.config, self.model.memory
        fits = length <= config.local_context and not reads_memory(prompt, config, memory)
        return fits or not config.memory_layers

    def _steps(
        self,
        rows: Sequence[Int[np.ndarray, " n"]],
        *,
        max_new_tokens: int,
        sampling: SamplingConfig,
        end_ids: Collection[int] | None,
    ) -> Iterator[Int[np.ndarray, " B"]]:
        """Reads rows of tokens into a fork and yields the next token of each."""
        check(max_new_tokens >= 1, "max_new_tokens", "be >= 1", max_new_tokens)
        sampling.validate("sampling")
        reading = self.model.read_prompts(rows, store=self.fork() if self.num_tokens else None)
        how = {"max_new_tokens": max_new_tokens, "sampling": sampling, "end_ids": end_ids}
        return self.model.next_tokens(reading, **how)

    def _pieces(self, steps: Iterator[Int[np.ndarray, " B"]], ends: set[int]) -> Iterator[str]:
        stream = TextStream(self.model.vocabulary.decode)
        for (token,) in steps:
            if int(token) not in ends and (piece := stream.push(int(token))):
                yield piece
        if rest := stream.finish():
            yield rest
