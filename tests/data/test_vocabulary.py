"""Vocabularies: round trips, bytes per token, and clear refusals."""

import json
import pathlib

import pytest

from fot_jax.config import ConfigError, DictionaryConfig, ModelConfig, UserError, VocabularyConfig, VocabularyKind
from fot_jax.data.vocabulary import check_vocabulary, load_vocabulary

TEXT = "def naïve(x):\n    return 'Ωmega' + x  # 你好\n"


TEXT_KINDS = [VocabularyKind.BYTES, VocabularyKind.SENTENCEPIECE, VocabularyKind.HF_TOKENIZER]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_round_trip_and_bytes_per_token(vocabulary_files, kind):
    vocabulary = load_vocabulary(VocabularyConfig(kind=kind, path=vocabulary_files.get(kind, "")))
    ids = vocabulary.encode(TEXT)
    assert vocabulary.decode(ids) == TEXT
    assert sum(map(vocabulary.token_bytes, ids)) == len(TEXT.encode("utf-8"))
    assert 0 <= min(ids) <= max(ids) < vocabulary.size
    assert vocabulary.token_bytes(vocabulary.eos_id) == 0


def test_bytes_are_shifted_by_three():
    vocabulary = load_vocabulary(VocabularyConfig())
    assert vocabulary.encode("aé") == [100, 0xC3 + 3, 0xA9 + 3]
    assert vocabulary.decode([100, 1, 0]) == "a"
    assert vocabulary.size == 259


def test_symbols():
    vocabulary = load_vocabulary(VocabularyConfig(kind=VocabularyKind.SYMBOLS), DictionaryConfig())
    assert vocabulary.size == 64
    assert vocabulary.encode("<k> s0 s59 <v>") == [1, 4, 63, 2]
    assert vocabulary.decode([1, 4, 63, 2]) == "<k> s0 s59 <v>"
    with pytest.raises(UserError, match="got 's60'"):
        vocabulary.encode("s60")


def test_a_tokenizer_names_its_end(vocabulary_files, tmp_path):
    original = pathlib.Path(vocabulary_files[VocabularyKind.HF_TOKENIZER])
    renamed = original.read_text("utf-8").replace("<|endoftext|>", "<fin>")
    (tmp_path / "tokenizer.json").write_text(renamed, "utf-8")
    config = VocabularyConfig(kind=VocabularyKind.HF_TOKENIZER, path=str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="must hold an end-of-text token"):
        load_vocabulary(config)
    for broken in ('{"eos_token":', "[]", '{"eos_token": {"text": "<fin>"}}'):
        (tmp_path / "tokenizer_config.json").write_text(broken, "utf-8")
        with pytest.raises(UserError, match="must be a Hugging Face tokenizer_config"):
            load_vocabulary(config)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<fin>"}}), "utf-8")
    assert load_vocabulary(config).eos_id == 0


@pytest.mark.parametrize("kind", TEXT_KINDS[1:])
def test_broken_and_missing_files(tmp_path, kind):
    with pytest.raises(UserError, match=r"data.vocabulary.path must name a file, got .*absent"):
        load_vocabulary(VocabularyConfig(kind=kind, path=str(tmp_path / "absent")))
    (tmp_path / "broken").write_bytes(b"not a vocabulary")
    with pytest.raises(UserError, match=r"data.vocabulary.path must be a .*broken"):
        load_vocabulary(VocabularyConfig(kind=kind, path=str(tmp_path / "broken")))


def test_a_vocabulary_larger_than_the_models():
    sizes = {"num_layers": 1, "embed_dim": 8, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 8}
    vocabulary = load_vocabulary(VocabularyConfig())
    check_vocabulary(vocabulary, ModelConfig(vocab_size=259, local_context=8, **sizes))
    with pytest.raises(ConfigError, match=r"model.vocab_size must be >= 259.*got 258"):
        check_vocabulary(vocabulary, ModelConfig(vocab_size=258, local_context=8, **sizes))
