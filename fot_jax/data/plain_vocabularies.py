"""Vocabularies without files: bytes, and the symbols of dictionary lookup."""

from collections.abc import Iterable

from fot_jax.config import UserError


class ByteVocabulary:
    """Byte vocabulary: 0 <pad>, 1 end of document, 2 unknown, byte b as b + 3 (as `seqio.ByteVocabulary`)."""

    size = 259
    pad_id = 0
    eos_id = 1
    end_ids: tuple[int, ...] = (1,)
    bos_id: int | None = None
    first_byte = 3
    special_ids: dict[str, int] = {}  # noqa: RUF012
    identity: list[object] = []  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        return [byte + self.first_byte for byte in text.encode("utf-8")]

    def encode_trusted(self, text: str) -> list[int]:
        """See Vocabulary; no special token has a name."""
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """See Vocabulary; bytes that are not UTF-8 show as U+FFFD."""
        return bytes(i - self.first_byte for i in ids if i >= self.first_byte).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> int:
        """See Vocabulary."""
        return int(token >= self.first_byte)


class SymbolVocabulary:
    """Vocabulary of dictionary lookup (app. D): <pad>, <k>, <v>, <q>, then letters; it holds no text."""

    pad_id = 0
    eos_id = 0
    end_ids: tuple[int, ...] = (0,)
    bos_id: int | None = None
    key_id = 1
    value_id = 2
    question_id = 3
    first_letter = 4
    special_ids: dict[str, int] = {}  # noqa: RUF012
    identity: list[object] = []  # noqa: RUF012

    def __init__(self, num_symbols: int):
        self.size = self.first_letter + num_symbols
        self._names = ["<pad>", "<k>", "<v>", "<q>"] + [f"s{i}" for i in range(num_symbols)]
        self._ids = {name: i for i, name in enumerate(self._names)}

    def encode(self, text: str) -> list[int]:
        """Returns ids of symbols separated by spaces: "<q> s3 s1 <v>". Raises UserError for an unknown one."""
        unknown = [word for word in text.split() if word not in self._ids]
        if unknown:
            raise UserError(f"prompt must hold symbols <k>, <v>, <q>, s0..{self._names[-1]}, got {unknown[0]!r}.")
        return [self._ids[word] for word in text.split()]

    def encode_trusted(self, text: str) -> list[int]:
        """See Vocabulary; a text of symbols holds nothing else."""
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """See Vocabulary."""
        return " ".join(self._names[i] for i in ids)

    def token_bytes(self, token: int) -> int:
        """Counts a symbol as one byte (bits per symbol)."""
        return int(token != self.pad_id)
