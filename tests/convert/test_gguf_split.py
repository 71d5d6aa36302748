"""A model that llama.cpp split into files: read as one, or refused by what is missing or does not fit."""

import shutil

import gguf
import jax
import pytest

from fot_jax.checkpoint import load_stored_params
from fot_jax.config import UserError
from fot_jax.convert.importing import import_checkpoint
from tests.convert.checkpoints import SMALL, gguf_name, interleave, random_tensors, write_gguf

PARTS = 3


def split(folder, tensors, *, count=PARTS, total=True, name="m"):
    """The files that llama.cpp's gguf-split makes: metadata in the first, tensors one after another."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = write_gguf(folder / "whole.gguf", SMALL, tensors)
    held = [list(tensors)[n::count] for n in range(count)]
    paths = []
    for number in range(count):
        path = folder / f"{name}-{number + 1:05d}-of-{count:05d}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for key, field in gguf.GGUFReader(whole).fields.items():
                if key.startswith("llama."):
                    writer.add_key_value(key, field.contents(), field.types[0])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        if total:
            writer.add_int32("split.tensors.count", len(tensors))
        for tensor in held[number]:
            value = tensors[tensor]
            value = interleave(value, 4) if tensor.endswith(("q_proj.weight", "k_proj.weight")) else value
            writer.add_tensor(gguf_name(tensor), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return whole, paths


@pytest.fixture
def parts(tmp_path):
    """The whole file and its parts."""
    return split(tmp_path / "in", random_tensors(SMALL))


def refuse(tmp_path, source, message):
    """One line, and nothing is left."""
    with pytest.raises(UserError, match=message) as caught:
        import_checkpoint(source, tmp_path / "to/run")
    assert "\n" not in str(caught.value) and not (tmp_path / "to").exists()


@pytest.mark.parametrize("given", range(PARTS))
def test_a_split_model_equals_the_whole_bit_for_bit(tmp_path, parts, given):
    """Whichever part is given; the config is that of the whole."""
    whole, files = parts
    configs = [import_checkpoint(source, tmp_path / f"{n}/run") for n, source in enumerate((whole, files[given]))]
    assert configs[0].model == configs[1].model and not configs[0].model.tie_embeddings
    (one, _), (two, _) = (load_stored_params(tmp_path / f"{n}/run") for n in range(2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_split_model_may_be_tied(tmp_path):
    """No output.weight in any part, and the number of tensors says that none is missing; without the number: no."""
    tensors = random_tensors({**SMALL, "tie_word_embeddings": True})
    _, files = split(tmp_path / "a", tensors)
    assert import_checkpoint(files[0], tmp_path / "run").model.tie_embeddings
    _, files = split(tmp_path / "b", tensors, total=False)
    refuse(tmp_path, files[0], r"the parts must hold output\.weight, or say by split\.tensors\.count that no tensor")


def test_a_missing_part_is_named(tmp_path, parts):
    """The first too, which holds the metadata."""
    for missing, given in ((1, 0), (0, 2)):
        kept = parts[1][missing].read_bytes()
        parts[1][missing].unlink()
        name = parts[1][missing].name
        refuse(tmp_path, parts[1][given], rf"{name} is missing: the model is split into 3 files")
        parts[1][missing].write_bytes(kept)


def test_a_part_of_another_name_is_refused(tmp_path, parts):
    """Its neighbours cannot be found."""
    other = parts[1][1].rename(tmp_path / "model.gguf")
    refuse(tmp_path, other, r"is part 2 of a model in 3 files: they must be named NAME-00002-of-00003\.gguf")


def test_parts_that_do_not_fit_are_refused(tmp_path, parts):
    """Another part under its name, a part of another split, fewer tensors than the first says, one tensor twice."""
    _, files = parts
    shutil.copyfile(files[2], files[1])
    refuse(tmp_path, files[0], r"m-00002-of-00003\.gguf: split\.no must be 1, as the file's name says, got 2")
    _, others = split(tmp_path / "other", random_tensors(SMALL), count=4)
    shutil.copyfile(others[1], files[1])
    refuse(tmp_path, files[0], r"m-00002-of-00003\.gguf: split\.count must be 3, as the file's name says, got 4")
    tensors = random_tensors(SMALL)
    fewer = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    _, others = split(tmp_path / "fewer", fewer)
    _, files = split(tmp_path / "again", tensors)
    shutil.copyfile(others[2], files[2])
    refuse(tmp_path, files[0], r"the 3 parts must hold 21 tensors, as split\.tensors\.count says, got 20")
    moved = dict(reversed(tensors.items()))
    _, others = split(tmp_path / "moved", moved)
    shutil.copyfile(others[2], files[2])
    refuse(tmp_path, files[0], r"m-00003-of-00003\.gguf: .* must be in one part of the model, but is in .*m-0000")


def test_a_part_by_name_alone_is_refused(tmp_path):
    """A file that is called a part and does not say so: its absent head would be taken for tied."""
    file = write_gguf(tmp_path / "m-00001-of-00002.gguf", SMALL, random_tensors(SMALL))
    refuse(tmp_path, file, r"must hold split\.count 2, as its name says that it is a part, but does not")
    one = file.rename(tmp_path / "m-00001-of-00001.gguf")
    import_checkpoint(one, tmp_path / "run")


def test_a_truncated_part_is_named(tmp_path, parts):
    """The part, not the file that was given."""
    data = parts[1][2].read_bytes()
    parts[1][2].write_bytes(data[:-100])
    refuse(tmp_path, parts[1][0], r"m-00003-of-00003\.gguf is truncated or damaged")
