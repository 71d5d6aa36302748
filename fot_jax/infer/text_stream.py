"""Text from a stream of tokens; each character is returned as soon as it is complete."""

from collections.abc import Callable, Iterable

UNFINISHED = "\ufffd"  # how decoders show bytes that are not (yet) a character


class TextStream:
    """Decodes one row incrementally; the concatenation of all pieces is the text of all tokens.

    The text of a token depends on its neighbours (a leading space is dropped, bytes are joined), so each
    piece is the difference of two decodings that start at tokens already shown.
    """

    def __init__(self, decode: Callable[[Iterable[int]], str]):
        self._decode = decode  # ids -> text, a vocabulary's own
        self._ids: list[int] = []  # the last piece's tokens, then those not shown yet
        self._shown = 0  # number of these tokens that were shown

    def push(self, token: int) -> str:
        """Returns the text that this token completes, "" while a character is unfinished."""
        self._ids.append(token)
        return "" if self._decode(self._ids).endswith(UNFINISHED) else self.finish()

    def finish(self) -> str:
        """Returns the rest of the text, with unfinished characters as U+FFFD."""
        piece = self._decode(self._ids)[len(self._decode(self._ids[: self._shown])) :]
        if piece:
            self._ids = self._ids[self._shown :]
            self._shown = len(self._ids)
        return piece
