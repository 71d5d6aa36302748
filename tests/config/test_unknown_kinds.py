"""A member added to an enum of the config, and to nothing else, is refused where it would be read."""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import (
    AttentionBackend,
    Boundaries,
    CrossbatchConfig,
    MemoryConfig,
    OptimizerConfig,
    RopeConfig,
    ScheduleConfig,
    VocabularyConfig,
)
from fot_jax.data.document_order import StreamLayout
from fot_jax.data.needles import needle_prompt
from fot_jax.data.vocabulary import ByteVocabulary, load_vocabulary
from fot_jax.memory.views import DeviceView
from fot_jax.models import account
from fot_jax.models.init import init_params
from fot_jax.models.inputs import TrainInputs
from fot_jax.models.transformer import Decoder
from fot_jax.ops.backends.choose import choose
from fot_jax.ops.losses import Losses
from fot_jax.ops.rope import rope_frequencies
from fot_jax.train.context_schedule import ContextSchedule
from fot_jax.train.optimizer import learning_rate, make_optimizer
from fot_jax.train.step import _minimised
from fot_jax.train.trainable import trainable_mask
from fot_jax.types import Batch
from launch.explain import schedule_line
from tests.train.tiny import tiny

NEW = enum.Enum("Kind", "NEW")["NEW"]
NEW_BACKEND = object.__new__(AttentionBackend)  # a member of its type: another type would be refused as such
NEW_BACKEND._name_ = NEW_BACKEND._value_ = "NEW"
TINY = tiny()
TOKENS = jnp.zeros((2, 8), jnp.int32)


def changed(config, name):
    return dataclasses.replace(config, **{name: NEW})


def fresh(**fields):
    return init_params(dataclasses.replace(TINY.model, **fields), jax.random.key(0))


def called(**fields):
    inputs = TrainInputs(segments=TOKENS, **fields)
    return Decoder(TINY.model).init(jax.random.key(0), TOKENS, inputs)


class Documents:
    """Two documents of three tokens."""

    lengths, sizes, sources, rates = np.array([3, 3]), (2,), ("a",), (1.0,)


def minimised():
    batch = Batch(tokens=TOKENS, targets=TOKENS, loss_mask=jnp.ones((2, 8)), segments=TOKENS)
    config = dataclasses.replace(TINY, train=changed(TINY.train, "loss_mean"))
    one = jnp.ones(())
    return _minimised(config, batch)(Losses(**{field.name: one for field in dataclasses.fields(Losses)}))


READERS = {
    "plan, rows": lambda: changed(CrossbatchConfig(), "plan").rows_per_stream,
    "plan, chunks": lambda: changed(CrossbatchConfig(), "plan").chunks_per_step,
    "schedule of d": lambda: ContextSchedule(changed(ScheduleConfig(), "kind"), 0).num_contexts(0),
    "last d": lambda: ContextSchedule(changed(ScheduleConfig(), "kind"), 0).final,
    "schedule in words": lambda: schedule_line(
        dataclasses.replace(
            TINY, crossbatch=dataclasses.replace(TINY.crossbatch, schedule=changed(ScheduleConfig(), "kind"))
        )
    ),
    "learning rate": lambda: learning_rate(changed(OptimizerConfig(learning_rate=1.0), "schedule"), steps=9)(0),
    "optimizer": lambda: make_optimizer(changed(OptimizerConfig(learning_rate=1.0), "kind"), TINY.train),
    "optimizer's bytes": lambda: account.memory_bytes(
        dataclasses.replace(TINY, optimizer=changed(TINY.optimizer, "kind"))
    ),
    "loss": minimised,
    "trainable": lambda: trainable_mask(TINY.model, {"layer_0": {"up": TOKENS}}, NEW),
    "family": lambda: fresh(family=NEW),
    "family's parameters": lambda: account.count_parameters(changed(TINY.model, "family")),
    "positions": lambda: fresh(memory_positions=NEW),
    "init": lambda: fresh(init=NEW),
    "remat": lambda: fresh(remat=NEW),
    "attention backend": lambda: choose(NEW_BACKEND, boundaries=Boundaries.MASKED, block=2),
    "boundaries": lambda: called(boundaries=NEW),
    "rope's scaling": lambda: rope_frequencies(changed(RopeConfig(), "scaling"), 8, 16),
    "vocabulary": lambda: load_vocabulary(changed(VocabularyConfig(), "kind")),
    "document's end": lambda: StreamLayout(Documents(), streams=1, length=8, document_end=NEW, seed=0),
    "needle": lambda: needle_prompt(np.random.default_rng(0), kind=NEW, length_tokens=99, vocabulary=ByteVocabulary()),
    "retrieval": lambda: DeviceView.of((), TOKENS, config=changed(MemoryConfig(), "retrieval")),
}


@pytest.mark.parametrize("name", READERS)
def test_an_unknown_kind_is_refused(name):
    """Not read as the last of the known ones."""
    with pytest.raises((AssertionError, ValueError, KeyError, TypeError), match="NEW"):
        READERS[name]()
