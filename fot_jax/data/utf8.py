"""Decodes UTF-8 bytes, and nothing else, without the byte order mark that a file may begin with."""

import codecs

from fot_jax.config import UserError

# Marks of other encodings; UTF-32's come first because UTF-16LE's mark begins UTF-32LE's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)
# Zeros among the first four bytes of a text that begins with two ASCII characters (RFC 4627, section 3).
ZEROS = {
    (True, True, True, False): "UTF-32BE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (False, True, False, True): "UTF-16LE",
}


def without_byte_order_mark(data: bytes, *, where: str) -> bytes:
    """Returns the bytes of a file, or of its beginning, without UTF-8's byte order mark.

    Raises UserError naming `where` and the encoding where the file is UTF-16 or UTF-32.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            raise _utf16_error(where, encoding, "byte order mark", convert_from=encoding[:6])
    encoding = ZEROS.get(tuple(byte == 0 for byte in data[:4]))
    if encoding:
        raise _utf16_error(where, encoding, "zero bytes", convert_from=encoding)
    return data.removeprefix(codecs.BOM_UTF8)


def _utf16_error(where: str, encoding: str, sign: str, *, convert_from: str) -> UserError:
    return UserError(
        f"{where} must be UTF-8, got {encoding} by its {sign}. Convert it: iconv -f {convert_from} -t UTF-8 OLD > NEW."
    )


def decode_utf8(data: bytes, *, where: str) -> str:
    """Decodes UTF-8 bytes. Raises UserError naming `where` and the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} must be valid UTF-8, got byte 0x{data[error.start]:02x} at offset {error.start}"
            f" ({error.reason}). Re-encode it as UTF-8 or remove it."
        ) from error


def decode_file(data: bytes, *, where: str) -> str:
    """Decodes a whole file, without its byte order mark. Raises the errors of the two functions above."""
    return decode_utf8(without_byte_order_mark(data, where=where), where=where)
