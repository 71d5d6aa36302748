"""Finds the line of a text in which an answer is, word for word."""

import dataclasses
import re
from collections.abc import Sequence

END_OF_SENTENCE = ".,;:!?\"'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A line of a text; str() writes it as grep does.

    Attributes:
      name: the text's name.
      number: the line's number, from 1.
      line: the line.
      occurrences: how often the words are in all texts.
    """

    name: str
    number: int
    line: str
    occurrences: int

    def __str__(self) -> str:
        more = f" (first of {self.occurrences})" if self.occurrences > 1 else ""
        return f"{self.name}:{self.number}: {self.line.strip()}{more}"


def find_source(texts: Sequence[tuple[str, str]], answer: str) -> Source | None:
    """Returns where the first line of an answer is first in the texts; None where it is in none.

    Words must be the same, in upper and lower case too. White space may differ, as lines may be broken elsewhere;
    punctuation at the end of the answer's line does not count.

    Args:
      texts: name and text of each.
      answer: what to look for.
    """
    first = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    words = (first.rstrip(END_OF_SENTENCE) or first).split()
    if not words:
        return None
    pattern = re.compile(r"\s+".join(map(re.escape, words)))
    found = [(name, text, match.start()) for name, text in texts for match in pattern.finditer(text)]
    if not found:
        return None
    name, text, place = found[0]
    begin = text.rfind("\n", 0, place) + 1
    line = text[begin:].split("\n", 1)[0]
    return Source(name=name, number=text.count("\n", 0, place) + 1, line=line, occurrences=len(found))
