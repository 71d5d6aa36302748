"""Every quantisation of GGUF: against loops over bytes, and against the package's own reading of whole tensors."""

import gguf
import ml_dtypes
import numpy as np
import pytest

from fot_jax.config import UserError
from fot_jax.convert import safetensors_files
from fot_jax.convert.gguf_file import GGUFFile
from tests.convert import checkpoints, oracle_gguf
from tests.convert.checkpoints import SMALL, random_tensors

WIDE = {**SMALL, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}


def raw_blocks(rng, shape, kind):
    """Random blocks with scales of ordinary size: the package cannot quantise to K kinds itself."""
    values, size = oracle_gguf.BLOCK[kind]
    data = rng.integers(0, 256, (shape[0], shape[1] // values, size)).astype(np.uint8)
    halves = {"Q4_K": (0, 2), "Q6_K": (208,)}[kind]
    for at in halves:
        scales = rng.uniform(-0.1, 0.1, data.shape[:2]).astype(np.float16)
        data[..., at : at + 2] = scales[..., None].view(np.uint8)
    return data.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *oracle_gguf.BLOCK])
def test_every_quantisation_reads_back_to_its_values(tmp_path, monkeypatch, kind):
    """Against loops over bytes; blocks of few rows, so that several make a tensor."""
    monkeypatch.setattr(safetensors_files, "BLOCK_BYTES", 40 * 4 * 256)
    rng = np.random.default_rng(0)
    tensors = random_tensors(WIDE)
    if kind.endswith("_K"):
        matrices = {name for name, tensor in tensors.items() if tensor.ndim == 2}
        tensors |= {name: raw_blocks(rng, tensors[name].shape, kind) for name in matrices}
    file = checkpoints.write_gguf(tmp_path / "m.gguf", WIDE, tensors, kind=kind)
    with GGUFFile(file) as source:
        assert source.shapes == checkpoints.shapes(WIDE)
        for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight",
                     "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"):  # fmt: skip
            got = np.full(source.shapes[name], np.nan, np.float32)
            blocks = 0
            for rows, block in source.blocks(name):
                got[rows], blocks = block, blocks + 1
            assert blocks > 1 or got.size <= 40 * 256
            wanted = tensors[name]
            if got.ndim == 2 and kind not in ("F32", "F16", "BF16"):
                stored = gguf.quantize(wanted, gguf.GGMLQuantizationType[kind]) if wanted.dtype != np.uint8 else wanted
                wanted = oracle_gguf.dequantise(stored, kind)
            elif got.ndim == 2 and kind != "F32":
                wanted = wanted.astype({"F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind])
            np.testing.assert_allclose(got, wanted.astype(np.float64), rtol=1e-6, atol=1e-7, err_msg=name)


def every_kind():
    """The kinds that the installed package dequantises, tried by hand."""
    for kind in gguf.GGMLQuantizationType:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        yield kind.name


@pytest.mark.parametrize("kind", list(every_kind()))
def test_blocks_of_rows_equal_the_whole_tensor(tmp_path, monkeypatch, kind):
    """Bit for bit as the package dequantises the whole; bytes below 60 keep every half-precision scale finite."""
    monkeypatch.setattr(safetensors_files, "BLOCK_BYTES", 40 * 4 * 256)
    rng = np.random.default_rng(1)
    stored = {}
    for name, tensor in random_tensors(WIDE).items():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        stored[name] = rng.integers(0, 60, shape).astype(np.uint8) if tensor.ndim == 2 else tensor
    file = write_raw(tmp_path / "m.gguf", stored, kind)
    with GGUFFile(file) as source:
        for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
            got = np.full(source.shapes[name], np.nan, np.float32)
            for rows, block in source.blocks(name):
                got[rows] = block
            wanted = gguf.dequantize(stored[name], gguf.GGMLQuantizationType[kind]).astype(np.float32)
            assert np.isfinite(wanted).all() and len(np.unique(wanted)) > 2
            np.testing.assert_array_equal(got, wanted, err_msg=name)


def write_raw(path, stored, kind):
    """A file of WIDE's shape whose matrices are raw bytes of a kind; F32 too."""
    if kind == "F32":
        stored = {name: tensor.view(np.float32) if tensor.ndim == 2 else tensor for name, tensor in stored.items()}
    return checkpoints.write_gguf(path, WIDE, stored, kind=kind)


@pytest.mark.parametrize("kind", ["F64", "I32"])
def test_kinds_that_cannot_be_dequantised_are_refused(tmp_path, kind):
    """The message lists those that can, from the package's own table."""
    tensors = {name: tensor.astype({"F64": np.float64, "I32": np.int32}[kind])
               for name, tensor in random_tensors(SMALL).items()}  # fmt: skip
    file = checkpoints.write_gguf(tmp_path / "m.gguf", SMALL, tensors)
    with pytest.raises(UserError, match=rf"must be one of F32, F16, .*NVFP4, got {kind}\. Take the file in another"):
        GGUFFile(file)


def test_quantisations_of_another_version_are_refused(tmp_path):
    """Blocks of version 1 had other layouts; a file without quantised tensors may say what it will."""
    values = {**SMALL, "hidden_size": 32, "intermediate_size": 32}
    extra = {"general.quantization_version": 1}
    tensors = random_tensors(values)
    with pytest.raises(UserError, match=r"general\.quantization_version must be 2, got 1\. Quantise the model again"):
        GGUFFile(checkpoints.write_gguf(tmp_path / "a.gguf", values, tensors, kind="Q8_0", metadata=extra))
    GGUFFile(checkpoints.write_gguf(tmp_path / "b.gguf", values, tensors, metadata=extra))
