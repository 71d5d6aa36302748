"""The Focused Transformer (FoT) in JAX.

The pipeline in eight lines:

    configs/NAME.py   -> config.build              an experiment as frozen dataclasses
    files             -> data.documents            seqio tasks, token cache, whole documents held out
    documents         -> data.batches              each row keeps its document; a batch is f(seed, step)
    d of the step     -> ops.plans.make_plan       context_ids[B, C]: which row reads which
    batch, plan       -> models.transformer        local ∪ contexts in one softmax: ops.crossbatch
    loss              -> train.loop, checkpoint    jitted step, Orbax state and data position
    long input        -> infer.windows, memory     windows into a memory: dense, exact top-k, ScaNN
    trained runs      -> eval                      loss against memory size, r_d, dictionary accuracy

From Python (docs/library.md):

    model = fot_jax.load("runs/smollm2")           a run, or an imported checkpoint
    book = model.read(text)                        into memory, window by window
    book.ask("Who wrote this?")                    the memory stays as it was

docs/paper.md has a table from the paper (arXiv 2307.03170) to the code and its tests;
docs/differences.md lists the conventions in which the authors' code differs.
Importing this package imports nothing else; the first name that is used imports JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fot_jax.config import MemoryConfig, MeshConfig, UserError
    from fot_jax.infer.sampling import SamplingConfig
    from fot_jax.library import Memory, Model, load

__all__ = ["Memory", "MemoryConfig", "MeshConfig", "Model", "SamplingConfig", "UserError", "load"]

_MODULES = {
    "Memory": "fot_jax.library",
    "MemoryConfig": "fot_jax.config",
    "MeshConfig": "fot_jax.config",
    "Model": "fot_jax.library",
    "SamplingConfig": "fot_jax.infer.sampling",
    "UserError": "fot_jax.config",
    "load": "fot_jax.library",
}


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__` when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Lists the library's names with those of the module."""
    return sorted({*globals(), *__all__})
