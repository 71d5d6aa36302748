"""Fills a prompt with as much filler as a wanted length allows."""

import dataclasses
import sys
from collections.abc import Callable

from fot_jax.config import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledPrompt:
    """The longest prompt that fits.

    Attributes:
      fillers: its number of fillers.
      tokens: its token ids.
    """

    fillers: int
    tokens: list[int]


def fill_prompt(
    tokens_of: Callable[[int], list[int]], *, length_tokens: int, what: str, most: int = sys.maxsize
) -> FilledPrompt:
    """Finds the largest number of fillers whose prompt has at most `length_tokens` tokens.

    Guesses from the tokens that the last fillers took and closes in on the answer, so that a long
    prompt is encoded a few times only.

    Args:
      tokens_of: gives the prompt's tokens for a number of fillers; one more filler never makes it shorter.
      length_tokens: the most tokens the prompt may have.
      what: names the prompt in errors, such as "a passkey prompt".
      most: how many fillers there are, at least 1.

    Raises:
      UserError: not even a prompt without filler fits, or one with all fillers is shorter.
    """
    fits, tokens = 0, tokens_of(0)
    if len(tokens) > length_tokens:
        raise UserError(f"length_tokens must be >= {len(tokens)}, {what} without filler, got {length_tokens}.")
    too_many, each = most + 1, float(len(tokens_of(1)) - len(tokens))
    while too_many - fits > 1:
        guess = fits + max(1, int((length_tokens - len(tokens)) / max(each, 1.0)))
        guess = min(guess, too_many - 1)
        longer = tokens_of(guess)
        each = (len(longer) - len(tokens)) / (guess - fits)
        if len(longer) > length_tokens:
            too_many = guess
        else:
            fits, tokens = guess, longer
    if fits == most and len(tokens) < length_tokens:
        raise UserError(f"length_tokens must be <= {len(tokens)}, {what} with all {most} fillers, got {length_tokens}.")
    return FilledPrompt(fillers=fits, tokens=tokens)
