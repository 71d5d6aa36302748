"""Vocabularies: round trips, bytes per token, and clear refusals."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from fot_jax.config import ConfigError, DictionaryConfig, ModelConfig, UserError, VocabularyConfig, VocabularyKind
from fot_jax.data.synthetic import passkey
from fot_jax.data.vocabulary import check_ids, check_vocabulary, encode_prompt, load_vocabulary

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


def load_beside(folder, file, settings, *, before=()):
    """The vocabulary of a copy of a tokenizer's file with these settings next to it (None: none)."""
    folder.mkdir()
    path = pathlib.Path(shutil.copy(file, folder))
    if before:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A"], special_tokens=[(token, tokenizer.token_to_id(token)) for token in set(before)]
        )
        tokenizer.save(str(path))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    kind = VocabularyKind.HF_TOKENIZER if path.suffix == ".json" else VocabularyKind.SENTENCEPIECE
    return load_vocabulary(VocabularyConfig(kind=kind, path=str(path)))


END = "<|endoftext|>"
BEGINNINGS = {
    "bare": (None, (), None),
    "post_processor": (None, (END,), 0),
    "post_processor_and_settings": ({"bos_token": END, "add_bos_token": True}, (END,), 0),
    "settings": ({"bos_token": {"content": END}, "add_bos_token": True}, (), 0),
    "settings_forbid": ({"bos_token": END, "add_bos_token": False}, (END,), None),
    "only_named": ({"bos_token": END}, (), None),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_how_a_tokenizer_json_begins_texts(tmp_path, vocabulary_files, name):
    settings, before, wanted = BEGINNINGS[name]
    vocabulary = load_beside(tmp_path / "v", vocabulary_files[VocabularyKind.HF_TOKENIZER], settings, before=before)
    assert vocabulary.bos_id == wanted
    assert encode_prompt(vocabulary, TEXT) == [0] * (wanted is not None) + vocabulary.encode(TEXT)
    assert vocabulary.decode(encode_prompt(vocabulary, TEXT)) == TEXT


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (None, None),
        ({"tokenizer_class": "LlamaTokenizer"}, 1),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, None),
        ({"add_bos_token": True}, 1),
        ({"add_bos_token": True, "bos_token": "</s>"}, 2),
        ({"tokenizer_class": "T5Tokenizer"}, None),
    ],
)
def test_how_a_sentencepiece_model_begins_texts(tmp_path, vocabulary_files, settings, wanted):
    vocabulary = load_beside(tmp_path / "v", vocabulary_files[VocabularyKind.SENTENCEPIECE], settings)
    assert vocabulary.bos_id == wanted
    assert encode_prompt(vocabulary, TEXT) == [wanted] * (wanted is not None) + vocabulary.encode(TEXT)


def test_beginnings_that_cannot_be(tmp_path, vocabulary_files):
    cases = [
        ({"add_bos_token": True}, (), "must hold the token that begins a text.*got None"),
        ({"add_bos_token": True, "bos_token": "<none>"}, (), "must hold the token that begins a text.*got '<none>'"),
        ({"add_bos_token": "yes"}, (), "must have add_bos_token true or false, got 'yes'"),
        (None, (END, END), r"must put at most one token before a text, got \[0, 0\]"),
    ]
    for index, (settings, before, message) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            load_beside(tmp_path / str(index), vocabulary_files[VocabularyKind.HF_TOKENIZER], settings, before=before)
    spm = vocabulary_files[VocabularyKind.SENTENCEPIECE]
    with pytest.raises(UserError, match="must hold the token that begins a text"):
        load_beside(tmp_path / "spm", spm, {"add_bos_token": True, "bos_token": "the"})


def test_passkey_prompts_begin_as_texts_do(tmp_path, vocabulary_files):
    file = vocabulary_files[VocabularyKind.HF_TOKENIZER]
    plain, begun = load_beside(tmp_path / "a", file, None), load_beside(tmp_path / "b", file, None, before=(END,))
    for length in (400, 407):
        made = passkey(np.random.default_rng(0), length_tokens=length, vocabulary=begun)
        assert made.tokens == [0, *plain.encode(made.prompt)] and len(made.tokens) <= length


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


def test_only_special_tokens_may_lack_a_row(tmp_path, vocabulary_files):
    """A <pad> behind the last row loads; a prompt that names it, an end token and plain tokens are refused."""
    sizes = {"num_layers": 1, "embed_dim": 8, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 8}
    settings = {"eos_token": END, "pad_token": "<pad>"}
    vocabulary = load_beside(tmp_path / "v", vocabulary_files[VocabularyKind.HF_TOKENIZER], settings)
    assert vocabulary.size == 301
    model = ModelConfig(vocab_size=300, local_context=8, **sizes)
    check_vocabulary(vocabulary, model)
    check_ids(vocabulary, vocabulary.encode("a<pad>b"), model)
    with pytest.raises(UserError, match="must hold tokens of the model, got '<pad>', token 300"):
        check_ids(vocabulary, encode_prompt(vocabulary, "a<pad>b"), model)
    with pytest.raises(ConfigError, match=r"model.vocab_size must be >= 301.*got 299"):
        check_vocabulary(vocabulary, ModelConfig(vocab_size=299, local_context=8, **sizes))
    ending = load_beside(
        tmp_path / "w", vocabulary_files[VocabularyKind.HF_TOKENIZER], {**settings, "bos_token": "<b>"}
    )
    (tmp_path / "w/generation_config.json").write_text('{"eos_token_id": [0, 301]}')
    (tmp_path / "w/t.json").write_bytes(pathlib.Path(ending.path).read_bytes())
    ends = load_vocabulary(VocabularyConfig(kind=VocabularyKind.HF_TOKENIZER, path=str(tmp_path / "w/t.json")))
    with pytest.raises(ConfigError, match=r"model.vocab_size must be >= 302"):
        check_vocabulary(ends, model)
