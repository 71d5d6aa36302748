"""Recognises files of a wrong kind by their first bytes, and says what to do with them."""

import struct
from pathlib import Path

HEAD = 64  # bytes looked at
PICKLED = "pickled (PyTorch's own format). Convert it to safetensors first"
KINDS = (  # first bytes, what it is and the fix
    (b"GGUF", "a GGUF file. Give the file itself to --from"),
    (b"version https://git-lfs", "a Git LFS pointer to the file, not the file. Fetch it: git lfs pull"),
    (b"PK\x03\x04", PICKLED),
    *((b"\x80" + bytes([protocol]), PICKLED) for protocol in range(2, 6)),
    (b"lmgg", "a GGML file, older than GGUF. Convert it with llama.cpp's convert_llama_ggml_to_gguf.py"),
    (b"fmgg", "a GGML file, older than GGUF. Convert it with llama.cpp's convert_llama_ggml_to_gguf.py"),
    (b"tjgg", "a GGML file, older than GGUF. Convert it with llama.cpp's convert_llama_ggml_to_gguf.py"),
    (b"algg", "a GGML LoRA adapter. Merge it into its model and convert that"),
    (b"<!doctype", "a web page, of an error or a login perhaps. Download the file itself"),
    (b"<html", "a web page, of an error or a login perhaps. Download the file itself"),
    (b"\x1f\x8b", "compressed (gzip). Decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd). Decompress it first"),
    (b"\xfd7zXZ", "compressed (xz). Decompress it first"),
    (b"\x89HDF", "an HDF5 file. Convert it to safetensors first"),
)


def describe_wrong_kind(path: Path, *, wanted: str) -> str | None:
    """Names a file of another kind: "PATH must be WANTED, but is a web page. FIX."; None where none is recognised.

    Args:
      path: exists.
      wanted: "a GGUF file" or "a safetensors file"; a file of that kind gives None.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return f"{path} is empty. Download it again."
    for begins, what in KINDS:
        if head.lower().startswith(begins.lower()) and not what.startswith(wanted):
            return f"{path} must be {wanted}, but is {what}."
    size = struct.unpack("<Q", head[:8])[0] if len(head) > 8 else 0
    if 0 < size < path.stat().st_size and head[8:9] == b"{" and wanted != "a safetensors file":
        return f"{path} must be {wanted}, but is a safetensors file. Give the folder of its config.json to --from."
    return None


def describe_truncated(path: Path, *, needed: int) -> str:
    """Says that a file is shorter than its header declares.

    Args:
      path: the file.
      needed: the least bytes it must have by its own header.
    """
    return (
        f"{path} is truncated or damaged: it must have {needed:,} bytes or more, as its header says, got"
        f" {path.stat().st_size:,}. Download it again."
    )
