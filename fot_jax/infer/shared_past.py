"""Sharing among rows of a batch that have read the same so far: one of them is processed for all.

    row 0   A B C D         window 0   row 0 reads A for 0, 1 and 2
    row 1   A B C E                1   row 0 reads B for 0 and 1, row 2 reads F
    row 2   A F C D                2   row 0 reads C for 0 and 1, row 2 reads C

Many questions about one document, or one haystack with its needle at many places, cost little more
than one reading up to where they differ.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from fot_jax.memory.device_copy import power_of_two


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniqueRows:
    """The rows that process a window for all.

    Attributes:
      rows: int [U], the rows processed.
      place: int [B], row b gets the result of rows[place[b]].
    """

    rows: Int[np.ndarray, " U"]
    place: Int[np.ndarray, " B"]


def number_pasts(pasts: Int[np.ndarray, " B"], parts: list[Int[np.ndarray, " n"]]) -> Int[np.ndarray, " B"]:
    """Numbers the rows' pasts after one more window each; equal pasts get equal numbers."""
    numbers: dict[tuple[int, bytes], int] = {}
    return np.array(
        [numbers.setdefault((int(past), part.tobytes()), len(numbers)) for past, part in zip(pasts, parts, strict=True)]
    )


def unique_rows(pasts: Int[np.ndarray, " B"]) -> UniqueRows:
    """Chooses one row per past; their number is a power of two or B, so that few shapes are compiled."""
    B = len(pasts)
    _, first, place = np.unique(pasts, return_index=True, return_inverse=True)
    width = power_of_two(len(first))
    if width >= B:
        return UniqueRows(rows=np.arange(B), place=np.arange(B))
    return UniqueRows(rows=np.pad(first, (0, width - len(first)), mode="edge"), place=place)
