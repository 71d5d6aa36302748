"""Reads documents from Parquet files."""

import os
import pathlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from fot_jax.config import UserError
from fot_jax.data.compressed import format_of
from fot_jax.data.files import open_binary
from fot_jax.data.utf8 import decode_utf8
from fot_jax.extras import needs
from fot_jax.storage.paths import StoragePath

if TYPE_CHECKING:
    import pyarrow


def read_parquet(path: StoragePath, text_field: str, content: bytes | None = None) -> Iterator[tuple[str, str]]:
    """Yields one document a row, from a string or binary column; `content` is the file's bytes."""
    with needs("data", f"Reading Parquet files ('{path}')"):
        import pyarrow
        import pyarrow.parquet

    try:
        with open_binary(path, content) as opened:
            _check_parquet_ends(opened, path)
            file = pyarrow.parquet.ParquetFile(path if isinstance(path, pathlib.Path) and content is None else opened)
            _check_column(file.schema_arrow, path, text_field)
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                for value in batch.column(batch.schema.get_field_index(text_field)).cast(pyarrow.large_binary()):
                    where = f"'{path}' row {row}"
                    if not value.is_valid:
                        raise UserError(f"{where} must hold text under '{text_field}', got null. Remove the row.")
                    yield f"{path}[{row}]", decode_utf8(value.as_py(), where=where)
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"'{path}' must be a Parquet file that can be read, got: {reason}") from error


def _check_parquet_ends(file: IO[bytes], path: StoragePath) -> None:
    """Raises UserError for another format, encryption, and a file that is cut short."""
    head = file.read(16)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 4))
    tail = file.read(4)
    found = format_of(head)
    if found == "encrypted Parquet":
        raise UserError(f"'{path}' must be readable without a key, got an encrypted Parquet file. Decrypt it first.")
    if found != "Parquet":
        raise UserError(f"'{path}' must be a Parquet file, got {found or repr(head)}. Set kind of the source.")
    if tail != b"PAR1" or size < 12:
        raise UserError(f"'{path}' must be a whole Parquet file, got one cut short. Fetch it again.")


def _check_column(schema: "pyarrow.Schema", path: StoragePath, text_field: str) -> None:
    """Raises UserError unless one column of that name holds strings or bytes."""
    import pyarrow.types as kinds

    count = schema.names.count(text_field)
    if count != 1:
        raise UserError(
            f"'{path}' must hold one column '{text_field}', got {count} among {schema.names}."
            " Set text_field of the source."
        )
    kind = schema.field(text_field).type
    plain = kind.value_type if kinds.is_dictionary(kind) else kind
    tests = (kinds.is_string, kinds.is_large_string, kinds.is_string_view,
             kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary)  # fmt: skip
    if not any(test(plain) for test in tests):
        raise UserError(
            f"'{path}' must hold strings or bytes in column '{text_field}', got {kind}."
            " Set text_field of the source, or write the text into a column of its own."
        )
