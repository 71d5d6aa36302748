"""UTF-8 loses its byte order mark; other encodings are named."""

import pytest

from fot_jax.config import UserError
from fot_jax.data.utf8 import decode_file


def test_a_byte_order_mark_is_no_text():
    """The first mark alone: a second one is a character of the text, as Python's utf-8-sig has it."""
    for data in (b"\xef\xbb\xbfHi\r\n", b"Hi\r\n", b"\xef\xbb\xbf\xef\xbb\xbfHi", b"", b"\xef\xbb\xbf", b"a\0b"):
        assert decode_file(data, where="x") == data.decode("utf-8-sig")


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
def test_other_encodings_are_named(encoding):
    """By their mark, and without one by the zero bytes of the first characters, which are valid UTF-8."""
    for text, sign, source in (("\ufeff你好", "byte order mark", encoding[:6]), ("Hello", "zero bytes", encoding)):
        message = rf"'f' must be UTF-8, got {encoding} by its {sign}. Convert it: iconv -f {source} -t UTF-8"
        with pytest.raises(UserError, match=message):
            decode_file(text.encode(encoding), where="'f'")


def test_bad_bytes_are_named():
    """By value and place."""
    with pytest.raises(UserError, match="'f' must be valid UTF-8, got byte 0xe9 at offset 3"):
        decode_file(b"caf\xe9", where="'f'")
