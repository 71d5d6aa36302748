"""Files that are cut off, damaged or of another kind: each is told what it is and what to do."""

import gzip
import io
import json
import struct
import zipfile

import gguf
import numpy as np
import pytest
import safetensors.numpy

from fot_jax.config import UserError
from fot_jax.convert.importing import import_checkpoint
from tests.convert.checkpoints import SMALL, random_tensors, write_folder, write_gguf


def zipped():
    """Returns the first bytes of a file that torch.save writes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 100)
    return data.getvalue()


OTHERS = [
    (b"", "is empty. Download it again"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is a Git LFS pointer .* git lfs pull"),
    (b"\n<!DOCTYPE html><html>".lstrip(), "is a web page, of an error or a login"),
    (b"\x80\x04\x95" + b"x" * 100, "is pickled .* Convert it to safetensors first"),
    (zipped(), "is pickled .* Convert it to safetensors first"),
    (b"tjgg\x03\0\0\0" + b"x" * 90, "is a GGML file, older than GGUF. Convert it with llama.cpp"),
    (gzip.compress(b"GGUF", mtime=0), r"is compressed \(gzip\). Decompress it"),
]


def refuse(tmp_path, source, message):
    """One line, and nothing is left."""
    with pytest.raises(UserError, match=message) as caught:
        import_checkpoint(source, tmp_path / "to/run")
    assert "\n" not in str(caught.value) and not (tmp_path / "to").exists()


@pytest.fixture
def whole(tmp_path):
    """A model.safetensors of a folder."""
    return write_folder(tmp_path / "hf", SMALL, random_tensors(SMALL)) / "model.safetensors"


@pytest.fixture
def file(tmp_path):
    """A GGUF file."""
    return write_gguf(tmp_path / "m.gguf", SMALL, random_tensors(SMALL))


@pytest.mark.parametrize(("content", "message"), OTHERS, ids=range(len(OTHERS)))
def test_other_kinds_of_files_are_named(tmp_path, whole, file, content, message):
    """In place of safetensors and of GGUF."""
    for path, source in ((whole, whole.parent), (file, file)):
        path.write_bytes(content)
        refuse(tmp_path, source, message)


def test_each_kind_in_place_of_the_other(tmp_path, whole, file):
    """The fix says where it belongs."""
    safetensors_bytes, gguf_bytes = whole.read_bytes(), file.read_bytes()
    whole.write_bytes(gguf_bytes)
    refuse(tmp_path, whole.parent, "must be a safetensors file, but is a GGUF file. Give the file itself to --from")
    file.write_bytes(safetensors_bytes)
    refuse(tmp_path, file, "must be a GGUF file, but is a safetensors file. Give the folder of its config.json")
    file.write_bytes(b"nothing known at all")
    refuse(tmp_path, file, "must be a GGUF file, but begins with b'noth'. Give another file")


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.02, 0.5, 0.9999])
def test_truncated_safetensors_say_how_many_bytes(tmp_path, whole, share):
    """The header states the length; the header itself may be cut."""
    data = whole.read_bytes()
    cut = max(1, int(len(data) * share))
    whole.write_bytes(data[:cut])
    header = 8 if cut < 8 else 8 + struct.unpack("<Q", data[:8])[0] if cut < 3000 else len(data)
    refuse(tmp_path, whole.parent, rf"truncated or damaged: it must have {header:,} bytes or more.* got {cut:,}\. Down")


def test_damaged_safetensors_are_not_called_truncated(tmp_path, whole):
    """A header that is no JSON, one that is absurdly long, and bytes behind the last tensor."""
    data = whole.read_bytes()
    for damaged in (data[:20] + b"\xff" + data[21:], struct.pack("<Q", 2**62) + data[8:], data + b"xxxx"):
        whole.write_bytes(damaged)
        refuse(tmp_path, whole.parent, r"is no safetensors file, or damaged: .*Download it again")


@pytest.mark.parametrize("share", [0.0001, 0.0005, 0.01, 0.05, 0.5, 0.9999])
def test_truncated_gguf_says_how_many_bytes(tmp_path, file, share):
    """Wherever it is cut: in the magic, a key, the list of tensors, a tensor."""
    data = file.read_bytes()
    file.write_bytes(data[: max(1, int(len(data) * share))])
    refuse(tmp_path, file, r"m\.gguf is truncated or damaged: it must have [\d,]+ bytes or more, .* got [\d,]+\. Down")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (4, struct.pack("<I", 1), "must be GGUF of version 2 to 3, got 1, which is older. Convert the model again"),
        (4, struct.pack("<I", 9), "must be GGUF of version 2 to 3, got 9, which is newer. Install a newer gguf"),
        (4, struct.pack(">I", 3), "must be little-endian, but is big-endian. Convert it with gguf-py"),
        (16, struct.pack("<Q", 2**60), "truncated or damaged: it must have"),
        (24, struct.pack("<Q", 2**63), "truncated or damaged: it must have"),
    ],
)
def test_headers_of_gguf_are_checked(tmp_path, file, at, value, message):
    """Version, byte order, number of keys, length of the first key."""
    data = bytearray(file.read_bytes())
    data[at : at + len(value)] = value
    file.write_bytes(data)
    refuse(tmp_path, file, message)


def test_a_big_endian_file_is_refused(tmp_path):
    """A file that the package itself writes so; its tensors would be read backwards."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse(tmp_path, tmp_path / "m.gguf", "must be little-endian, but is big-endian")


def test_gguf_damage_is_named(tmp_path, file):
    """A key that is there twice, a kind of tensor that the package does not know, arrays in arrays without end."""
    data = file.read_bytes()
    key = struct.pack("<Q", len(b"llama.block_count")) + b"llama.block_count"
    again = key + struct.pack("<II", 4, 2)
    counts = struct.unpack_from("<QQ", data, 8)
    file.write_bytes(data[:16] + struct.pack("<Q", counts[1] + 1) + again + data[24:])
    refuse(tmp_path, file, "is damaged: its header cannot be read .*Duplicate llama.block_count")
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8
    file.write_bytes(data[:at] + struct.pack("<I", 999) + data[at + 4 :])
    refuse(tmp_path, file, "holds a tensor of kind 999, which the installed gguf package does not know")
    nested = key + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    file.write_bytes(data[:16] + struct.pack("<Q", counts[1] + 1) + nested + data[24:])
    refuse(tmp_path, file, "is damaged: its header cannot be read")


def test_names_of_other_models_are_told(tmp_path):
    """A safetensors file that is whole, of tensors that are no LLaMA's."""
    tensors = random_tensors(SMALL)
    cases = {
        r"It holds base_model\.model\.q_proj\.lora_A\.weight, of an adapter \(LoRA\): merge it": {
            "base_model.model.q_proj.lora_A.weight": np.zeros(4, np.float32)
        },
        r"It holds layers\.0\.attention\.wq\.weight, of Meta's format": {
            "layers.0.attention.wq.weight": np.zeros(4, np.float32)
        },
        r"Its names lack the prefix model\.": {name.removeprefix("model."): t for name, t in tensors.items()},
        r"Its names begin with language_model\., which must be taken off": {
            f"language_model.{name}": t for name, t in tensors.items()
        },
        r"It holds x and 0 more\.": {"x": np.zeros(4, np.float32)},
    }
    for message, held in cases.items():
        folder = write_folder(tmp_path / "hf", SMALL, held)
        refuse(tmp_path, folder, message)


def test_folders_of_other_kinds_are_told(tmp_path, file):
    """Without a config.json: an adapter, a folder of GGUF files, Meta's format."""
    folder = tmp_path / "other"
    folder.mkdir()
    refuse(tmp_path, folder, r"config\.json is missing\. --from must name a Hugging Face folder or a GGUF file")
    (folder / "params.json").write_text("{}")
    refuse(tmp_path, folder, r"The folder is in Meta's format")
    file.rename(folder / "m.gguf")
    refuse(tmp_path, folder, r"Give the GGUF file itself: --from=.*other/m\.gguf")
    (folder / "adapter_config.json").write_text("{}")
    refuse(tmp_path, folder, r"adapter_config\.json says that the folder holds an adapter \(LoRA\), not a model")


def test_an_adapter_next_to_a_model_is_refused(tmp_path, whole):
    """transformers would load the adapter too, which changes every number."""
    (whole.parent / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    refuse(tmp_path, whole.parent, r"adapter_config\.json .* adapter .* next to the model")
    safetensors.numpy.save_file(
        {"x.lora_A.weight": np.zeros(4, np.float32)}, whole.parent / "adapter_model.safetensors"
    )
    (whole.parent / "adapter_config.json").unlink()
    import_checkpoint(whole.parent, tmp_path / "run")
