"""The inputs of the decoder in addition to its tokens: of training, and of reading with a cache or a memory."""

import flax.struct
import jax

from fot_jax.config import Boundaries, ContextGradients
from fot_jax.types import LocalCache, MemoryView, Plan


@flax.struct.dataclass
class TrainInputs:
    """Inputs of training and of losses on whole chunks: contexts come from the batch itself.

    Attributes:
      segments: int32 [B, L] document ids, 0 for padding; None, without a plan: one document a row.
      plan: the crossbatch plan; memory layers then read other rows of the batch. None: no layer does.
      boundaries: whether documents of one row see each other.
      gradients: whether the loss reaches the keys and values that other rows read.
      log_length_scaling_from: with a plan, queries of memory layers grow as log n beyond this many keys in sight;
        0: never.
    """

    segments: jax.Array | None = None
    plan: Plan | None = None
    boundaries: Boundaries = flax.struct.field(pytree_node=False, default=Boundaries.MASKED)
    gradients: ContextGradients = flax.struct.field(pytree_node=False, default=ContextGradients.FLOW)
    log_length_scaling_from: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class ReadInputs:
    """Inputs of reading and generation: a local cache that grows, a memory, or both.

    Attributes:
      cache: the local context so far; tokens are appended at `cache.lengths` of each row. None: the tokens are all
        there is of the local context.
      token_counts: int32 [B], how many of the tokens count (the rest is padding), with a cache; None: all.
      memory: the external memory that memory layers read.
      segments: int32 [B, L] document ids, 0 for padding, without a cache; None: one document a row.
      boundaries: whether documents of one row see each other; with a cache a row is one document.
    """

    cache: LocalCache | None = None
    token_counts: jax.Array | None = None
    memory: MemoryView | None = None
    segments: jax.Array | None = None
    boundaries: Boundaries = flax.struct.field(pytree_node=False, default=Boundaries.MASKED)


Inputs = TrainInputs | ReadInputs
