"""Tokenizers with files next to them: the ids of transformers, names that are text, what each file states."""

import json
import logging

import pytest

from fot_jax.config import DataConfig, SourceConfig, SourceKind, UserError, VocabularyConfig, VocabularyKind
from fot_jax.data.documents import build_store
from fot_jax.data.sentencepiece_vocabulary import SentencePieceVocabulary
from fot_jax.data.tokenizer_settings import read_settings
from fot_jax.data.vocabulary import encode_prompt, encode_text
from fot_jax.logging import info_once
from tests.data.tokenizer_folders import (
    CHAT,
    NAMES,
    SPECIALS,
    assert_same_ids,
    decoder_of,
    load,
    random_texts,
    save_json,
    save_model,
)

FAST, LLAMA = {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "LlamaTokenizer"}
JSON = {
    "bytes": ("bytes", FAST),
    "first": ("first", FAST),
    "always": ("always", FAST),
    "never": ("never", FAST),
    "llama_first": ("always", LLAMA),
    "llama_always": ("first", {**LLAMA, "legacy": True}),
    "llama_never": ("first", {**LLAMA, "add_prefix_space": False}),
    "llama_prepend": ("prepend", LLAMA),
    "prepend": ("prepend", FAST),
}
MODEL = {
    "first": LLAMA,
    "always": {**LLAMA, "legacy": True},
    "never": {**LLAMA, "legacy": True, "add_prefix_space": False},
}


@pytest.mark.parametrize("name", JSON)
def test_tokenizer_json_gives_the_ids_of_transformers(tmp_path, name):
    """For byte-level BPE, Metaspace of each scheme, and LLaMA's class around each."""
    kind, settings = JSON[name]
    vocabulary = load(save_json(tmp_path / "t", {**settings, **NAMES}, kind=kind))
    assert_same_ids(tmp_path / "t", vocabulary)


@pytest.mark.parametrize("name", MODEL)
def test_tokenizer_model_gives_the_ids_of_transformers(tmp_path, name):
    """With added tokens of every flag, named in added_tokens_decoder."""
    vocabulary = load(save_model(tmp_path / "t", decoder_of({**MODEL[name], **NAMES})))
    assert_same_ids(tmp_path / "t", vocabulary)
    assert encode_prompt(vocabulary, "x<|im_end|>")[0] == 1 and 400 in vocabulary.encode_trusted("x<|im_end|>y")
    assert 2 in vocabulary.encode_trusted("a</s>b")


def test_older_files_state_added_tokens_and_roles(tmp_path):
    """added_tokens.json, user-defined and control pieces, and special_tokens_map.json before tokenizer_config.json."""
    settings = {**LLAMA, **NAMES, "eos_token": "</s>", "sep_token": "<sp>", "pad_token": "<new>"}
    path = save_model(tmp_path / "t", settings, control_symbols=["<c>"], user_defined_symbols=["[INST]"])
    (tmp_path / "t/added_tokens.json").write_text(json.dumps(dict(reversed(CHAT.items()))))
    roles = {"eos_token": {"content": "<|im_end|>", "lstrip": False}}
    (tmp_path / "t/special_tokens_map.json").write_text(json.dumps(roles))
    vocabulary = load(path)
    assert_same_ids(tmp_path / "t", vocabulary)
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<c>": 3, "<|im_end|>": 400, "<sp>": 403, "<new>": 404}
    assert vocabulary.special_ids == special
    assert vocabulary.decode([402]) == "<tool>" and vocabulary.token_bytes(402) == 6
    assert vocabulary.token_bytes(400) == 0 == vocabulary.token_bytes(3)
    assert vocabulary.token_bytes(4) == len("[INST]")


def test_tokenizer_config_goes_before_the_older_map(tmp_path):
    """With added_tokens_decoder; the map is read for what it alone states."""
    path = save_model(tmp_path / "t", decoder_of({**LLAMA, "eos_token": "<|im_end|>"}))
    roles = {"eos_token": "</s>", "pad_token": "<unk>"}
    (tmp_path / "t/special_tokens_map.json").write_text(json.dumps(roles))
    assert load(path).eos_id == 400
    assert read_settings(path).names()["pad_token"] == "<unk>"


@pytest.mark.parametrize("make", ["bytes", "always", "model", "bare"])
def test_names_in_plain_text_are_text(tmp_path, make):
    """For each kind: no special token from `encode`, every byte of the text is kept and counted."""
    if make == "model":
        path = save_model(tmp_path / "t", decoder_of({**LLAMA, **NAMES, "add_prefix_space": False}))
    elif make == "bare":
        path = save_model(tmp_path / "t", {}, add_dummy_prefix=False)
        (tmp_path / "t/tokenizer_config.json").unlink()
    else:
        path = save_json(tmp_path / "t", {**FAST, **NAMES}, kind=make)
    vocabulary = load(path)
    assert isinstance(vocabulary, SentencePieceVocabulary) == (make == "bare")
    special = set(vocabulary.special_ids.values())
    for text in random_texts():
        ids = vocabulary.encode(text)
        assert not special & set(ids), text
        if make not in ("always", "bytes"):
            assert vocabulary.decode(ids).replace("▁", " ") == text.replace("▁", " ")
        if make in ("bytes", "model"):
            added = text.count("▁") * (2 if make == "model" else 0)  # "▁" is a space to SentencePiece
            assert sum(map(vocabulary.token_bytes, ids)) == len(text.encode()) - added
    begin = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
    assert encode_text(vocabulary, "</s>") == [*begin, *vocabulary.encode("</s>")]
    assert vocabulary.special_ids["</s>"] in vocabulary.encode_trusted("</s>")


def test_marks_give_the_ids_of_the_names(tmp_path):
    """For each scheme, text around the marks is cut as around the names."""
    for kind in ("bytes", "first", "always", "never"):
        vocabulary = load(save_json(tmp_path / kind, {**FAST, **NAMES}, kind=kind))
        for text in random_texts(50):
            marked, marks = text, {}
            for number, name in enumerate(sorted(vocabulary.special_ids, key=len, reverse=True)):
                mark = chr(0xF0000 + number)
                marked, marks[mark] = marked.replace(name, mark), vocabulary.special_ids[name]
            assert vocabulary.encode_marked(marked, marks) == vocabulary.encode_trusted(text)


def test_merges_into_special_tokens_are_no_merges(tmp_path):
    """A model that holds the pieces of "</s>" as text merges them; the id of "</s>" is kept for the token."""
    path = save_json(tmp_path / "t", {**FAST, **NAMES}, kind="never")
    definition = json.loads(path.read_text())
    definition["model"]["merges"] = [["<", "/"], ["</", "s"], ["</s", ">"]]
    for piece in ("</", "</s", "<", "/", ">"):
        definition["model"]["vocab"].setdefault(piece, definition["model"]["vocab"].pop(f"<0x{len(piece):02X}>", 3))
    definition["model"]["vocab"] = {p: i for i, p in enumerate([*SPECIALS, "<", "/", "s", ">", "</", "</s"])}
    definition["added_tokens"] = definition["added_tokens"][:3]
    path.write_text(json.dumps(definition))
    (tmp_path / "t/tokenizer_config.json").write_text(json.dumps({**FAST, "eos_token": "</s>"}))
    vocabulary = load(path)
    assert vocabulary.encode("</s>") == [8, 6] and vocabulary.encode_trusted("</s>") == [2]


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("added_tokens.json", {"<a>": 7}, r"added_tokens\.json' must give '<a>' the id that it has.*, 400, got 7"),
        ("added_tokens.json", {"<a>": "7"}, r"must be a Hugging Face added_tokens\.json, got '<a>': '7'"),
        ("special_tokens_map.json", [], r"must be a Hugging Face special_tokens_map\.json, got list"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, r"got added_tokens_decoder\['x'\]={}"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "must have split_special_tokens false"),
        ("tokenizer_config.json", {"legacy": "no"}, "must have legacy true or false, got 'no'"),
        ("generation_config.json", {"eos_token_id": [2, 400]}, r"must have eos_token_id below 400.*got \[400\]"),
        ("generation_config.json", {"eos_token_id": -1}, "must have token ids as eos_token_id, got -1"),
    ],
)
def test_files_that_state_what_cannot_be(tmp_path, file, values, message):
    path = save_model(tmp_path / "t", {"eos_token": "</s>", **LLAMA})
    if file == "tokenizer_config.json":
        values = {"eos_token": "</s>", **LLAMA, **values}
    (tmp_path / "t" / file).write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load(path)


def test_end_tokens_are_those_of_the_files(tmp_path):
    """generation_config.json, else config.json, else the eos_token; a number or a list."""
    path = save_json(tmp_path / "t", {**FAST, **NAMES}, kind="bytes")
    assert load(path).end_ids == (400,)
    cases = [("config.json", [2, 401], (2, 401)), ("generation_config.json", 401, (401,))]
    for number, (file, stated, wanted) in enumerate(cases):
        (tmp_path / "t" / file).write_text(json.dumps({"eos_token_id": stated}))
        copy = tmp_path / f"t/tokenizer{number}.json"
        copy.write_bytes(path.read_bytes())  # vocabularies are cached by path
        assert load(copy).end_ids == wanted and load(copy).eos_id == 400


def test_a_guessed_end_token_is_logged_once(tmp_path, caplog):
    """No file names it: the guess is named; a stated id is no guess."""
    info_once.cache_clear()
    path = save_json(tmp_path / "t", FAST, kind="bytes")
    with caplog.at_level(logging.INFO):
        assert load(path).eos_id == 2
    assert "t/tokenizer.json: no file names the eos_token; '</s>' is taken" in caplog.text
    caplog.clear()
    stated = save_json(tmp_path / "u", FAST, kind="bytes")
    (tmp_path / "u/generation_config.json").write_text('{"eos_token_id": [401, 402]}')
    assert load(stated).eos_id == 401 and not caplog.text


def test_models_that_change_text_take_no_added_tokens(tmp_path):
    """transformers drops the model's normalization; the sentencepiece library has no added tokens."""
    path = save_model(tmp_path / "t", decoder_of({**LLAMA, **NAMES}), remove_extra_whitespaces=True)
    with pytest.raises(UserError, match=r"adds '<\|im_end\|>' to a SentencePiece model that is no LLaMA tokenizer"):
        load(path)


def test_documents_end_with_the_token_that_is_named(tmp_path):
    """A model that is no LLaMA tokenizer, with a chat's end token: seqio alone would end them with </s>."""
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "<|im_end|>"}
    path = save_model(tmp_path / "t", settings, model_type="unigram", vocab_size=300, control_symbols=["<|im_end|>"])
    vocabulary = load(path)
    assert vocabulary.eos_id == vocabulary.special_ids["<|im_end|>"] != vocabulary.special_ids["</s>"]
    (tmp_path / "a.txt").write_text("the quick </s> fox")
    data = DataConfig(
        sources=(SourceConfig(name="a", kind=SourceKind.TEXT, path=str(tmp_path / "a.txt")),),
        vocabulary=VocabularyConfig(kind=VocabularyKind.SENTENCEPIECE, path=str(path)),
        cache_dir=str(tmp_path / "cache"),
    )
    tokens = build_store(data, seed=0).caches[0].tokens.tolist()
    assert tokens == [*vocabulary.encode("the quick </s> fox"), vocabulary.eos_id]


def test_end_tokens_beyond_a_model_as_it_is_are_refused(tmp_path):
    path = save_model(tmp_path / "t", {"tokenizer_class": "T5Tokenizer"}, model_type="unigram", vocab_size=300)
    (tmp_path / "t/generation_config.json").write_text('{"eos_token_id": [2, 300]}')
    with pytest.raises(UserError, match=r"must have eos_token_id below 300.*got \[300\]"):
        load(path)
