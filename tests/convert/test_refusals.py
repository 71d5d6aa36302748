"""Every hostile checkpoint: one clear line, nothing left behind."""

import json
import os

import numpy as np
import pytest

from fot_jax.config import UserError
from fot_jax.convert import importing
from fot_jax.convert.gguf_file import GGUFFile
from fot_jax.convert.hf_config import Changes
from fot_jax.convert.importing import import_checkpoint
from tests.convert import checkpoints
from tests.convert.checkpoints import SMALL, bpe_tokenizer, random_tensors, write_folder, write_gguf

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def refuse(tmp_path, source, message, **options):
    """Importing raises one line, and the place where it would have written is empty."""
    target = tmp_path / "target"
    target.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message) as caught:
        import_checkpoint(source, target / "run", **options)
    assert "\n" not in str(caught.value)
    assert not list(target.iterdir()), "something half-written was left"


def folder(tmp_path, config=None, tensors=None, *, shards=1, without=(), **changes):
    """A small checkpoint; `changes` go into config.json."""
    values = {**SMALL, **changes}
    tensors = {**random_tensors(SMALL), **(tensors or {})}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in without}
    return write_folder(tmp_path / "hf", values, tensors, shards=shards)


def cut(path, bytes_left):
    path.write_bytes(path.read_bytes()[:bytes_left])


def test_a_missing_shard(tmp_path):
    source = folder(tmp_path, shards=3)
    (source / SHARD).unlink()
    refuse(tmp_path, source, rf"must hold all 3 shards .*{SHARD} is missing")


def test_a_truncated_shard(tmp_path):
    source = folder(tmp_path, shards=3)
    cut(source / SHARD, 2000)
    refuse(tmp_path, source, rf"{SHARD} is truncated or damaged: it must have")


def test_a_missing_index(tmp_path):
    source = folder(tmp_path, shards=3)
    (source / INDEX).unlink()
    refuse(tmp_path, source, r"must hold model\.safetensors\.index\.json for its 3 shards")


def test_an_index_that_lies(tmp_path):
    source = folder(tmp_path, shards=3)
    index = json.loads((source / INDEX).read_text())
    name = next(name for name, file in index["weight_map"].items() if file != SHARD)
    index["weight_map"][name] = SHARD
    (source / INDEX).write_text(json.dumps(index))
    refuse(tmp_path, source, rf"{SHARD} must hold {name}, as model\.safetensors\.index\.json says")
    index["weight_map"][name] = "../hf/" + SHARD
    (source / INDEX).write_text(json.dumps(index))
    refuse(tmp_path, source, "must name files in its own folder")
    (source / INDEX).write_text("[]")
    refuse(tmp_path, source, "must be a JSON object")


def test_a_missing_tensor(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    refuse(tmp_path, folder(tmp_path, without=(name,)), rf"must hold {name}, but does not")


def test_a_missing_unembedding_names_the_key(tmp_path):
    refuse(tmp_path, folder(tmp_path, without=("lm_head.weight",)), "Or set tie_word_embeddings to true")


def test_a_config_of_absurd_size(tmp_path):
    refuse(tmp_path, folder(tmp_path, num_hidden_layers=10**12), r"must hold 1000000000000 layers, .* got 21 tensors")


def test_an_unexpected_tensor(tmp_path):
    extra = {"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)}
    refuse(tmp_path, folder(tmp_path, tensors=extra), r"got model\.layers\.0\.self_attn\.q_proj\.bias")
    refuse(tmp_path, folder(tmp_path, num_hidden_layers=1), r"got model\.layers\.1\..* and 8 more")


def test_old_checkpoints_hold_frequencies(tmp_path):
    """Leaves out what is computed anyway, and the head of a tied model where it is the same."""
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)}
    source = folder(tmp_path, tensors=extra)
    import_checkpoint(source, tmp_path / "run")


def test_a_tied_head_that_differs(tmp_path):
    refuse(tmp_path, folder(tmp_path, tie_word_embeddings=True), r"lm_head\.weight must equal model\.embed_tokens")
    same = random_tensors(SMALL)["model.embed_tokens.weight"]
    source = folder(tmp_path, tensors={"lm_head.weight": same}, tie_word_embeddings=True)
    import_checkpoint(source, tmp_path / "run")


def test_a_wrong_shape(tmp_path):
    wrong = {"model.layers.0.self_attn.k_proj.weight": np.zeros((16, 16), np.float32)}
    refuse(tmp_path, folder(tmp_path, tensors=wrong), r"k_proj\.weight must have shape \(8, 16\), got \(16, 16\)")


def test_a_wrong_dtype(tmp_path):
    wrong = {"model.norm.weight": np.zeros(16, np.int8)}
    refuse(tmp_path, folder(tmp_path, tensors=wrong), r"model\.norm\.weight must be one of F64, .*got I8")


def test_pickled_weights(tmp_path):
    source = folder(tmp_path)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refuse(tmp_path, source, r"got pytorch_model\.bin, which is pickled: convert it to safetensors first")


def test_no_checkpoint_at_all(tmp_path):
    refuse(tmp_path, tmp_path / "nothing", r"--from must name .* which does not exist")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path, tmp_path / "empty", r"config\.json is missing")


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    source = folder(tmp_path)
    bpe_tokenizer(300).save(str(source / "tokenizer.json"))
    refuse(tmp_path, source, r"tokenizer\.json must have at most 40 tokens, the rows of the embedding, got 300")


def test_a_broken_tokenizer(tmp_path):
    source = folder(tmp_path)
    (source / "tokenizer.json").write_text("{")
    refuse(tmp_path, source, r"must be a Hugging Face tokenizer\.json, got 'tokenizer\.json'")
    refuse(tmp_path, folder(tmp_path), "--tokenizer must name", tokenizer=tmp_path / "nothing.json")


def test_a_tokenizer_may_be_given(tmp_path):
    source = folder(tmp_path, tensors={"model.embed_tokens.weight": np.zeros((300, 16), np.float32),
                                       "lm_head.weight": np.zeros((300, 16), np.float32)}, vocab_size=300)  # fmt: skip
    (source / "tokenizer.json").write_text("{")
    bpe_tokenizer(300).save(str(tmp_path / "tokenizer.json"))
    config = import_checkpoint(source, tmp_path / "run", tokenizer=tmp_path / "tokenizer.json")
    assert config.data.vocabulary.path == str(tmp_path / "run/tokenizer/tokenizer.json")


def test_changes_that_cannot_be(tmp_path):
    source = folder(tmp_path)
    refuse(tmp_path, source, r"model\.memory_layers must be in 0\.\.1", changes=Changes(memory_layers=(2,)))
    refuse(tmp_path, source, r"model\.local_context must be >= 1", changes=Changes(local_context=0))


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    """Even one that is no user's error, after the parameters are there."""

    def fail(*args, **kwargs):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(importing, "write_config", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        import_checkpoint(folder(tmp_path), tmp_path / "target/run")
    assert not list((tmp_path / "target").iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("precious")
    with pytest.raises(UserError, match="--to must name a new folder"):
        import_checkpoint(folder(tmp_path), tmp_path / "run")
    assert (tmp_path / "run/config.json").read_text() == "precious"
    assert os.listdir(tmp_path / "run") == ["config.json"]


class TestGGUF:
    """Refusals of llama.cpp's files."""

    def test_another_architecture(self, tmp_path):
        file = write_gguf(tmp_path / "m.gguf", SMALL, random_tensors(SMALL), arch="qwen2")
        refuse(tmp_path, file, r"general\.architecture must be 'llama', got 'qwen2'")

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"llama.attention.causal": False}, r"llama\.attention\.causal must be absent or True, got False"),
            ({"llama.attention.scale": 0.25}, r"attention\.scale must be absent or 1/sqrt\(4\) = 0\.500000, got 0\.25"),
            ({"llama.attention.scale": 0.5, "llama.logit_scale": 1.0, "llama.pooling_type": 0}, None),
            ({"llama.logit_scale": 0.5}, r"llama\.logit_scale must be absent or 0 or 1, got 0\.5"),
            ({"llama.residual_scale": 0.2}, r"llama\.residual_scale must be absent or 0 or 1"),
            ({"llama.pooling_type": 1}, r"llama\.pooling_type must be absent or 0, got 1"),
            ({"llama.attention.clamp_kqv": 8.0}, r"llama\.attention\.clamp_kqv must be absent or 0"),
            ({"llama.attention.sliding_window": 8}, r"llama\.attention\.sliding_window must be absent or 0"),
            ({"llama.rope.dimension_count": 2}, r"rope\.dimension_count must equal the head's 4, got 2"),
            ({"llama.rope.freq_base": "x"}, r"llama\.rope\.freq_base must be a finite number, got 'x'.*convert it"),
            ({"llama.rope.freq_base": float("nan")}, r"llama\.rope\.freq_base must be a finite number, got nan"),
            ({"llama.block_count": 2.0}, r"llama\.block_count must be an integer, got 2\.0"),
            ({"general.type": "adapter"}, r"m\.gguf is an adapter \(LoRA\), not a model\. Merge it"),
            ({"adapter.type": "lora"}, r"m\.gguf is an adapter \(LoRA\), not a model\. Merge it"),
            ({"general.type": "mmproj"}, r"general\.type must be 'model', got 'mmproj'"),
            ({"llama.expert_count": 8}, r"llama\.expert_count must be absent or 0, got 8"),
            ({"llama.rope.scaling.attn_factor": 1.2}, r"rope\.scaling\.attn_factor must be absent or 1, got 1\.2"),
            ({"llama.rope.scaling.yarn_ext_factor": 1.0}, r"yarn_ext_factor must be absent, .* got 1\.0 for 'none'"),
            ({"llama.rope.scaling.alpha": 4.0}, r"llama\.rope\.scaling\.alpha must be absent or 0, got 4\.0"),
            ({"llama.rope.scaling.type": "longrope"}, r"llama\.rope\.scaling\.type must be none, linear or yarn"),
            ({"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1]},
             r"tokenizer\.ggml\.model must be 'gpt2' or 'llama', got 'bert'"),
            ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": ["a"],
              "tokenizer.ggml.token_type": [1]}, r"tokenizer\.ggml\.pre must be smollm, .* got 'qwen2'"),
            ({"llama.vocab_size": 40, "llama.rope.dimension_sections": [4]}, None),
        ],
    )  # fmt: skip
    def test_features(self, tmp_path, metadata, message):
        file = write_gguf(tmp_path / "m.gguf", SMALL, random_tensors(SMALL), metadata=metadata)
        if message is None:
            import_checkpoint(file, tmp_path / "run")
        else:
            refuse(tmp_path, file, message)

    def test_keys_that_nothing_knows_are_logged(self, tmp_path, caplog):
        """Once, all of them; those of every other file are known."""
        known = {"llama.vocab_size": 40, "llama.rope.scaling.finetuned": True, "general.name": "x"}
        GGUFFile(write_gguf(tmp_path / "a.gguf", SMALL, random_tensors(SMALL), metadata=known))
        assert not caplog.records
        extra = {"llama.zzz": 1, "llama.attention.yyy": "x"}
        GGUFFile(write_gguf(tmp_path / "b.gguf", SMALL, random_tensors(SMALL), metadata=extra))
        assert "nothing here knows what it says: llama.attention.yyy, llama.zzz" in caplog.text

    def test_a_missing_and_an_unexpected_tensor(self, tmp_path):
        tensors = random_tensors(SMALL)
        norm = tensors.pop("model.norm.weight")
        refuse(tmp_path, write_gguf(tmp_path / "a", SMALL, tensors), r"must hold model\.norm\.weight")
        tensors |= {"model.norm.weight": norm, "rope_other.weight": norm}
        refuse(tmp_path, write_gguf(tmp_path / "b", SMALL, tensors), r"got rope_other\.weight")


def test_the_builder_itself_is_accepted(tmp_path):
    """Or every refusal above could be for another reason."""
    import_checkpoint(folder(tmp_path, shards=3), tmp_path / "a")
    import_checkpoint(write_gguf(tmp_path / "m.gguf", SMALL, checkpoints.random_tensors(SMALL)), tmp_path / "b")
