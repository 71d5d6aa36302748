"""The axis legend, and the types that flow between stages.

Letters of axes, in code, einsum, docstring and sharding table:

    B batch row          L query position     S key position     C crossbatch context slot
    K retrieved neighbour  M memory entry     H query head       G key/value head
    D head dim           E embedding          F mlp              V vocabulary
    N layer              P memory layer (index into `ModelConfig.memory_layers`)
    R query heads per key/value head, H/G; in plans, streams of a batch
"""

import dataclasses
import math
from typing import Protocol

import flax.struct
import jax
import numpy as np
from jax.sharding import AbstractMesh, PartitionSpec

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class Batch:
    """One global batch of rows; every row is one chunk of one stream of documents.

    Attributes:
      tokens: int32 [B, L].
      targets: int32 [B, L], the next token of the same stream.
      loss_mask: float32 [B, L], 1 where the target bears loss.
      segments: int32 [B, L], the id (>= 1) of each token's document, 0 for padding.
    """

    tokens: Array
    targets: Array
    loss_mask: Array
    segments: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class RingStage:
    """Hops of a ring on which the same rows travel.

    Attributes:
      rows: which rows of each device's block travel, ascending, counted within the block.
      hops: the number of hops, one device further each.
      slots: the most slots that one reader finds in one of these blocks.
    """

    rows: tuple[int, ...]
    hops: int
    slots: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RingSchedule:
    """When which blocks of rows travel to the devices that read them: static, one program each.

    Attributes:
      axes: the mesh axes that split rows, the slower first.
      heads: the mesh axis that splits heads.
      length: the mesh axis that splits positions.
      shards: devices along `axes`.
      step: +1, blocks travel to later devices; -1, to earlier ones.
      wraps: whether the last device sends to the first.
      home_slots: the most slots that one reader finds in its own device's rows.
      stages: in the order of travel; the rows of each are among those of the stage before.
    """

    axes: tuple[str, ...]
    heads: str
    length: str
    shards: int
    step: int
    wraps: bool
    home_slots: int
    stages: tuple[RingStage, ...]

    @property
    def hops(self) -> int:
        """How far a block travels, in devices."""
        return sum(stage.hops for stage in self.stages)

    @property
    def rows_sent(self) -> int:
        """Rows that a device sends in one pass."""
        return sum(stage.hops * len(stage.rows) for stage in self.stages)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryLayout:
    """The layout of a memory over devices: static, one program each. Mesh axes of one device are not named.

    Attributes:
      mesh: the arrangement of the devices.
      rows: the mesh axes that split its streams.
      entries: the mesh axes that split the entries of a stream, the slower first.
      heads: the mesh axes that split key/value heads.
    """

    mesh: AbstractMesh
    rows: tuple[str, ...]
    entries: tuple[str, ...]
    heads: tuple[str, ...]

    def parts(self, axes: tuple[str, ...]) -> int:
        """Returns the number of devices along mesh axes."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def devices(self) -> int:
        """The number of parts that a memory is split into: rows, entries and heads together."""
        return self.parts(self.rows + self.entries + self.heads)

    @property
    def shards(self) -> int:
        """The number of parts that the entries of a stream are split into."""
        return self.parts(self.entries)

    def spec(self, letters: str) -> PartitionSpec:
        """Returns the spec of an array with the legend's axes, as "B M G D": B, M, G and H are split, others whole.

        It is written as XLA writes the shardings of results, so that a program's result has its argument's sharding.
        """
        over = {"B": self.rows, "M": self.entries, "G": self.heads, "H": self.heads}
        entries: list = [over.get(letter, ()) for letter in letters.split()]
        while entries and not entries[-1]:
            entries.pop()
        return PartitionSpec(*(axes[0] if len(axes) == 1 else axes or None for axes in entries))


@flax.struct.dataclass
class Plan:
    """Which rows' chunks each row reads in the memory layers (crossbatch).

    Attributes:
      context_ids: int32 [B, C], the batch row read through slot C, -1 where the slot is empty.
      own_document: bool [B, C], True where that row holds an earlier chunk of the reader's own stream (a positive),
        which may show another document too where streams join documents; False for another stream's (a negative).
      ring: how the rows travel where they are split over several devices, set by the training step; None: they do
        not.
    """

    context_ids: Array
    own_document: Array
    ring: RingSchedule | None = flax.struct.field(pytree_node=False, default=None)


@flax.struct.dataclass
class Rows:
    """Keys and values of batch rows that a backend reads, heads first, not copied for any reader.

    Attributes:
      keys: [B, G, S, D].
      values: [B, G, S, D].
      segments: int32 [B, S], document ids, 0 for padding.
    """

    keys: Array
    values: Array
    segments: Array


@flax.struct.dataclass
class Partial:
    """Attention to one set of keys before normalisation, so that sets can be merged exactly.

    `softmax.merge` of partials followed by `softmax.normalise` is ONE softmax over the union of their keys. The axes
    are those of the queries: [B, H, L, D] in `ops/backends`, [B, L, H, D] for caches and memories.

    Attributes:
      weighted: float32, the queries' shape, sum_s exp(score_s - peak) * value_s.
      peak: float32, one per query and head, the largest score (a large negative number where no key is visible).
      total: float32, one per query and head, sum_s exp(score_s - peak).
    """

    weighted: Array
    peak: Array
    total: Array


@flax.struct.dataclass
class Upstream:
    """The gradients that one softmax hands to each set of its keys.

    Attributes:
      peak: float32 [B, H, L], the peak over all sets, which the two others are relative to.
      d_weighted: float32 [B, H, L, D], the gradient of `Partial.weighted`.
      d_total: float32 [B, H, L], the gradient of `Partial.total`.
    """

    peak: Array
    d_weighted: Array
    d_total: Array


@flax.struct.dataclass
class KeyValue:
    """Keys and values of one chunk as memory holds them: the keys are not rotated (position 0).

    Attributes:
      keys: [P, B, L, G, D], one entry along P per memory layer.
      values: [P, B, L, G, D].
    """

    keys: Array
    values: Array


@flax.struct.dataclass
class LayerMemory:
    """Entries of one memory layer as a device holds them: in the layouts in which `ops.cache_attention` reads them.

    Attributes:
      keys: [B, G, D, M], not rotated.
      values: [B, G, M, D].
      scales: float32 factors of keys and of values [B, G, M] that are held as int8; None: 1.
    """

    keys: Array
    values: Array
    scales: tuple[Array, Array] | None = None


@flax.struct.dataclass
class LayerCache:
    """The local context of one layer; row b holds `LocalCache.lengths[b]` entries at the front.

    Attributes:
      keys: [B, W, G, D], W the local context in tokens; not rotated, as they leave for the memory or move to the front.
      rotated: [B, G, D, W], the keys rotated by their index in the cache, as queries read them.
      values: [B, G, W, D].
      products: [B, G, D], the key of each row's newest token before smearing; None unless `smear_keys`.
    """

    keys: Array
    rotated: Array
    values: Array
    products: Array | None = None


@flax.struct.dataclass
class LocalCache:
    """The local context of every layer while reading and generating.

    Attributes:
      layers: one per layer; arrays of their own, so that a new token is written into them in place.
      lengths: int32 [B], entries of each row.
    """

    layers: tuple[LayerCache, ...]
    lengths: Array


@flax.struct.dataclass
class DecoderOutput:
    """The result of one call of the decoder.

    Attributes:
      logits: float32 [B, L, V].
      hidden: [B, L, E] after the last layer, before its norm.
      cache: the updated local cache, None when none was given.
      queries: scaled queries [N, B, L, H, D] as the memory sees them; None unless captured.
      keys: keys not rotated [N, B, L, G, D]; None unless captured.
      values: [N, B, L, G, D]; None unless captured.
    """

    logits: Array
    hidden: Array
    cache: LocalCache | None = None
    queries: Array | None = None
    keys: Array | None = None
    values: Array | None = None


class MemoryView(Protocol):
    """The interface of a memory to a memory layer; implemented in `fot_jax/memory`, a pytree."""

    def partial(self, queries: Array, slot: Array | int) -> Partial:
        """Attends to the memory of memory layer `slot` (index into P).

        Args:
          queries: [B, L, H, D], already scaled: the score is the plain inner product.
          slot: a number, or an int32 scalar that is traced.
        """
        ...

    def any_entries(self) -> Array:
        """Returns a bool scalar, whether any stream holds an entry."""
        ...

    def query_scale(self, local: Array) -> Array | None:
        """Returns the factor on queries of memory layers that `memory.log_length_scaling_from` sets; None: no factor.

        Args:
          local: int32 [#B, L], the number of local context entries that each query sees.

        Returns:
          float32 [#B, L].
        """
        ...
