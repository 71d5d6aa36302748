"""GGUF files written by llama.cpp's own package: order of rows, config, tokenizer."""

import json
import logging

import numpy as np
import pytest
import sentencepiece
import tokenizers

from fot_jax.config import RopeScaling, UserError, VocabularyConfig, VocabularyKind
from fot_jax.convert.gguf_file import GGUFFile
from fot_jax.convert.gguf_tokenizer import write_tokenizer
from fot_jax.convert.hf_config import read_config
from fot_jax.convert.importing import import_checkpoint
from fot_jax.data.vocabulary import encode_prompt, load_vocabulary
from tests.convert import checkpoints
from tests.convert.checkpoints import SMALL, TEXT, llama, our_logits, random_tensors, their_logits, tokens_for


@pytest.fixture(scope="module")
def model():
    """Grouped queries: the order of key rows matters apart from that of query rows."""
    return llama(num_key_value_heads=2, tie_word_embeddings=True)


def written(path, model, **options):
    """A `transformers` model as GGUF."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    config = {**model.config.to_dict(), "rope_theta": model.config.rope_parameters["rope_theta"]}
    return checkpoints.write_gguf(path, config, state, **options)


def test_rows_of_queries_and_keys_are_put_in_order(tmp_path, model):
    import_checkpoint(written(tmp_path / "m.gguf", model), tmp_path / "ours")
    tokens = tokens_for(model.config.vocab_size, 512)
    wanted = their_logits(model, tokens)
    difference = np.abs(wanted - our_logits(tmp_path / "ours", tokens)).max()
    print(f"max |difference| {difference:.2e}")
    assert difference <= 2e-4


def test_without_the_permutation_logits_would_differ(tmp_path, model, monkeypatch):
    monkeypatch.setattr(checkpoints, "interleave", lambda tensor, head_dim: tensor)
    import_checkpoint(written(tmp_path / "m.gguf", model), tmp_path / "ours")
    tokens = tokens_for(model.config.vocab_size, 512)
    assert np.abs(their_logits(model, tokens) - our_logits(tmp_path / "ours", tokens)).max() > 0.5


def config_of(path, extra=None, tensors=None, **changes):
    values = {**SMALL, **changes}
    file = checkpoints.write_gguf(path, values, {**random_tensors(values), **(tensors or {})}, metadata=extra)
    return read_config(GGUFFile(file).config, source="m.gguf")[0]


def test_metadata_become_the_config(tmp_path):
    model = config_of(tmp_path / "a", head_dim=8, tie_word_embeddings=True)
    assert (model.num_layers, model.embed_dim, model.mlp_dim, model.vocab_size) == (2, 16, 24, 40)
    assert (model.num_heads, model.num_kv_heads, model.head_dim) == (4, 2, 8)
    assert model.tie_embeddings and model.norm_epsilon == 1e-5 and model.local_context == 64
    scaling = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
               "llama.rope.scaling.original_context_length": 16}  # fmt: skip
    rope = config_of(tmp_path / "b", scaling).rope
    assert (rope.scaling, rope.factor, rope.original_context) == (RopeScaling.YARN, 4.0, 16)
    betas = {"llama.rope.scaling.yarn_beta_fast": 24.0, "llama.rope.scaling.yarn_beta_slow": 2.0}
    neutral = {"llama.rope.scaling.yarn_ext_factor": 1.0, "llama.rope.scaling.attn_factor": 1.0}
    rope = config_of(tmp_path / "c", {**scaling, **betas, **neutral}).rope
    assert (rope.beta_fast, rope.beta_slow) == (24.0, 2.0)


def test_lists_of_equal_numbers_are_one_number(tmp_path):
    """llama.cpp may write one number of heads a layer; layers that differ are refused."""
    assert config_of(tmp_path / "a", {"llama.attention.head_count": [4, 4]}).num_heads == 4
    with pytest.raises(UserError, match=r"feed_forward_length must be the same in every layer, got \[24, 12\]"):
        config_of(tmp_path / "b", {"llama.feed_forward_length": [24, 12]})


def test_the_head_is_tied_where_it_is_absent_and_said(tmp_path, caplog):
    """llama.cpp's rule for a whole file; nothing is said where the file has a head."""
    caplog.set_level(logging.INFO, logger="fot_jax")
    assert not config_of(tmp_path / "a").tie_embeddings and not caplog.records
    assert config_of(tmp_path / "b", tie_word_embeddings=True).tie_embeddings
    assert caplog.text.count("has no output.weight: the embedding unembeds too, as in llama.cpp") == 1


@pytest.mark.parametrize("extra", [{"llama.rope.scaling.type": "linear"}, {"llama.rope.scaling.factor": 0.0}])
def test_no_factor_is_no_scaling_as_in_llama_cpp(tmp_path, extra):
    """A kind alone, or a factor of 0."""
    assert config_of(tmp_path / "a", extra).rope.scaling is RopeScaling.NONE


@pytest.mark.parametrize("key", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_a_factor_without_a_kind_is_linear_as_in_llama_cpp(tmp_path, key):
    rope = config_of(tmp_path / "a", {key: 4.0}).rope
    assert (rope.scaling, rope.factor) == (RopeScaling.LINEAR, 4.0)


def test_llama3_scaling_is_recognised_by_its_divisors(tmp_path):
    wave = 2 * np.pi * 5e5 ** (np.arange(0, 128, 2) / 128)
    smooth = np.clip((8192 / wave - 1) / 3, 0, 1)
    divisors = (1 / (smooth + (1 - smooth) / 32)).astype(np.float32)
    shape = {"head_dim": 128, "rope_theta": 5e5}
    rope = config_of(tmp_path / "a", tensors={"rope_freqs.weight": divisors}, **shape).rope
    assert (rope.scaling, rope.factor, rope.original_context) == (RopeScaling.LLAMA3, 32.0, 8192)
    both = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    with pytest.raises(
        UserError, match=r"scaling\.type must be none where the tensor rope_freqs\.weight is, got 'linear'"
    ):
        config_of(tmp_path / "c", both, tensors={"rope_freqs.weight": divisors}, **shape)
    with pytest.raises(UserError, match=r"rope_freqs\.weight must be those of LLaMA 3"):
        config_of(tmp_path / "b", tensors={"rope_freqs.weight": divisors[::-1].copy()}, **shape)


def bpe_metadata(tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]], "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip


def test_a_byte_level_tokenizer_comes_along(tmp_path):
    tokenizer = checkpoints.bpe_tokenizer()
    values = {**SMALL, "vocab_size": tokenizer.get_vocab_size()}
    file = checkpoints.write_gguf(tmp_path / "m.gguf", values, random_tensors(values), metadata=bpe_metadata(tokenizer))
    config = import_checkpoint(file, tmp_path / "run")
    assert config.data.vocabulary.kind is VocabularyKind.HF_TOKENIZER
    vocabulary = load_vocabulary(config.data.vocabulary)
    for text in (TEXT, "In 1984, 7 × 8 = 56.\n\tπ naïve 🙂", "<|im_start|>user\nhi<|im_end|>\n", " a  b"):
        assert vocabulary.encode_trusted(text) == tokenizer.encode(text).ids
        assert vocabulary.decode(vocabulary.encode_trusted(text)) == tokenizer.decode(tokenizer.encode(text).ids)
    assert vocabulary.eos_id == 2 == vocabulary.encode_trusted("<|im_end|>")[0]
    assert vocabulary.bos_id is None
    settings = json.loads((tmp_path / "run/tokenizer/tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ messages }}" and settings["eos_token"] == "<|im_end|>"
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "run/tokenizer/tokenizer.json"))
    assert again.decode(again.encode("a<|im_end|>b").ids, skip_special_tokens=True) == "ab"


@pytest.mark.parametrize(
    ("extra", "begins"),
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),
        ({"tokenizer.ggml.add_bos_token": True}, True),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, False),
    ],
)
def test_how_texts_begin_comes_along(tmp_path, extra, begins):
    """LLaMA 3 begins with BOS unless the file says otherwise, as in llama.cpp; others where it says so."""
    metadata = {**bpe_metadata(checkpoints.bpe_tokenizer()), **extra}
    assert write_tokenizer(metadata, tmp_path, source="m.gguf") == "tokenizer.json"
    path = str(tmp_path / "tokenizer.json")
    vocabulary = load_vocabulary(VocabularyConfig(kind=VocabularyKind.HF_TOKENIZER, path=path))
    assert vocabulary.bos_id == (1 if begins else None)
    assert tokenizers.Tokenizer.from_file(path).encode("ab").ids == encode_prompt(vocabulary, "ab"), "for transformers"


def test_a_sentencepiece_tokenizer_comes_along(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "sp"), vocab_size=500, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    ids = range(theirs.get_piece_size())
    kinds = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in ids]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in ids], "tokenizer.ggml.token_type": kinds,
    }  # fmt: skip
    values = {**SMALL, "vocab_size": 512}
    file = checkpoints.write_gguf(tmp_path / "m.gguf", values, random_tensors(values), metadata=metadata)
    config = import_checkpoint(file, tmp_path / "run")
    assert config.data.vocabulary.kind is VocabularyKind.HF_TOKENIZER, "transformers gives the same ids"
    ours = load_vocabulary(config.data.vocabulary)
    assert ours.bos_id == theirs.bos_id() == 1, "SentencePiece: LLaMA 1 and 2"
    for text in (TEXT, "In 1984, 7 × 8 = 56.\n\tπ naïve 🙂", " a  b"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.eos_id == theirs.eos_id()
