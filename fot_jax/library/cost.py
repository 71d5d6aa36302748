"""The cost of reading texts, known before it starts."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadCost:
    """The cost of a reading; str() says it.

    Attributes:
      texts: how many.
      tokens: of all texts.
      windows: into which the texts are cut.
      window_tokens: tokens of a window.
      memory_bytes: of the whole memory afterwards, in the host's memory and, once saved, on disk.
    """

    texts: int
    tokens: int
    windows: int
    window_tokens: int
    memory_bytes: int

    def __str__(self) -> str:
        plural = "s" if self.texts != 1 else ""
        return (
            f"to read: {self.texts:,} text{plural}, {self.tokens:,} tokens in {self.windows:,} windows of"
            f" {self.window_tokens:,}; memory then: {self.memory_bytes / 2**20:,.1f} MiB"
        )
