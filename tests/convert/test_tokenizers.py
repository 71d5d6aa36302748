"""Tokenizers through import and export: end tokens, tokens without a row, GGUF metadata, agreement of transformers."""

import json
import logging

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from fot_jax.config import UserError
from fot_jax.convert.exporting import export_checkpoint
from fot_jax.convert.gguf_tokenizer import DEFAULT_SPLITS, LLAMA3_NAMES, write_tokenizer
from fot_jax.convert.importing import import_checkpoint
from fot_jax.data.vocabulary import encode_prompt, load_vocabulary
from tests.convert import checkpoints
from tests.convert.checkpoints import SMALL, random_tensors
from tests.convert.test_gguf import bpe_metadata
from tests.data import tokenizer_folders
from tests.data.tokenizer_folders import NAMES, assert_same_ids, decoder_of, random_texts, save_json, save_model

ROWS = 404


def write_checkpoint(folder, *, rows=ROWS, **config):
    """config.json and tensors next to a tokenizer's files."""
    values = {**SMALL, "vocab_size": rows, **config}
    return checkpoints.write_folder(folder, values, random_tensors(values))


def vocabulary_of(config):
    return load_vocabulary(config.data.vocabulary)


@pytest.mark.parametrize("kind", ["bytes", "first", "always", "never", "model", "bare"])
def test_exports_give_transformers_the_same_ids(tmp_path, kind):
    """And the same BOS and end tokens, though the files did not state them; importing gives them again."""
    import transformers

    if kind == "model":
        save_model(tmp_path / "hf", decoder_of({"tokenizer_class": "LlamaTokenizer", **NAMES, "legacy": True}))
    elif kind == "bare":
        save_model(tmp_path / "hf", {})
        (tmp_path / "hf/tokenizer_config.json").unlink()
    else:
        save_json(tmp_path / "hf", NAMES, kind=kind)
    write_checkpoint(tmp_path / "hf", eos_token_id=[2, 5])
    ours = vocabulary_of(import_checkpoint(tmp_path / "hf", tmp_path / "run"))
    assert ours.end_ids == (2, 5) and ours.bos_id == 1
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert_same_ids(tmp_path / "out", ours)
    assert theirs("a fox</s>x")["input_ids"] == encode_prompt(ours, "a fox</s>x")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 5]
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 5]
    again = vocabulary_of(import_checkpoint(tmp_path / "out", tmp_path / "again"))
    assert (again.end_ids, again.eos_id, again.bos_id) == (ours.end_ids, ours.eos_id, ours.bos_id)
    assert [again.encode_trusted(text) for text in random_texts()] == [ours.encode_trusted(t) for t in random_texts()]


def test_generation_config_goes_before_config(tmp_path):
    """Also with a tokenizer from elsewhere; an id without a token is refused by the file's name."""
    save_json(tmp_path / "hf", NAMES, kind="bytes")
    write_checkpoint(tmp_path / "hf", eos_token_id=2)
    (tmp_path / "hf/generation_config.json").write_text('{"eos_token_id": [400, 401], "temperature": 0.6}')
    assert vocabulary_of(import_checkpoint(tmp_path / "hf", tmp_path / "a")).end_ids == (400, 401)
    other = save_json(tmp_path / "other", NAMES, kind="bytes")
    (tmp_path / "other/config.json").unlink()
    given = import_checkpoint(tmp_path / "hf", tmp_path / "b", tokenizer=other)
    assert vocabulary_of(given).end_ids == (400, 401)
    (tmp_path / "hf/generation_config.json").write_text('{"eos_token_id": [400, 999]}')
    with pytest.raises(UserError, match=r"'generation_config\.json' must have eos_token_id below 404.*got \[999\]"):
        import_checkpoint(tmp_path / "hf", tmp_path / "c")


def test_a_pad_token_behind_the_last_row_loads(tmp_path, caplog):
    """It is named once; tokens of text and end tokens without a row are refused by name."""
    save_json(tmp_path / "hf", {**NAMES, "pad_token": "<pad>"}, kind="bytes")
    write_checkpoint(tmp_path / "hf")
    with caplog.at_level(logging.INFO):
        vocabulary = vocabulary_of(import_checkpoint(tmp_path / "hf", tmp_path / "a"))
    assert vocabulary.size == ROWS + 1 and "special tokens without a row in the embedding: <pad>" in caplog.text
    for rows, name in ((402, "<tool>"), (400, r"<\|im_end\|>")):
        save_json(tmp_path / f"hf{rows}", NAMES, kind="bytes")
        write_checkpoint(tmp_path / f"hf{rows}", rows=rows)
        with pytest.raises(UserError, match=f"must have at most {rows} tokens.*got 404: .*'{name}'.* have none"):
            import_checkpoint(tmp_path / f"hf{rows}", tmp_path / "b")


def test_a_tokenizer_in_other_files_is_refused(tmp_path):
    write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/vocab.json").write_text("{}")
    (tmp_path / "hf/merges.txt").write_text("")
    with pytest.raises(UserError, match=r"as tokenizer\.json or tokenizer\.model, got vocab\.json and merges\.txt"):
        import_checkpoint(tmp_path / "hf", tmp_path / "a")


def load_metadata(metadata, folder):
    folder.mkdir()
    assert write_tokenizer(metadata, folder, source="m.gguf") == "tokenizer.json"
    return tokenizer_folders.load(folder / "tokenizer.json")


def llama3_metadata():
    """The metadata of a GGUF file of LLaMA 3 from before `pre` was written."""
    bpe = checkpoints.bpe_tokenizer()
    metadata = {**bpe_metadata(bpe), "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1}
    names = [*sorted(LLAMA3_NAMES), *metadata["tokenizer.ggml.tokens"][3:]]
    types = [3] * len(LLAMA3_NAMES) + [1] * (len(names) - len(LLAMA3_NAMES))
    del metadata["tokenizer.ggml.pre"]
    return {**metadata, "tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": types}


def test_gguf_without_pre_is_llama3_or_refused(tmp_path, caplog):
    """LLaMA 3 is known by its special tokens and logged; the ids are those of the file with `pre`."""
    metadata = llama3_metadata()
    with caplog.at_level(logging.INFO):
        guessed = load_metadata(metadata, tmp_path / "a")
    assert "m.gguf: tokenizer.ggml.pre is absent; llama-bpe is taken" in caplog.text
    stated = load_metadata({**metadata, "tokenizer.ggml.pre": "llama-bpe"}, tmp_path / "b")
    text = "I'VE read 1000 pages in 2024"
    assert encode_prompt(guessed, text) == encode_prompt(stated, text) and guessed.bos_id == 0
    load_metadata({**metadata, "tokenizer.ggml.pre": "gpt-2"}, tmp_path / "c")
    cuts = [json.loads((tmp_path / name / "tokenizer.json").read_text())["pre_tokenizer"] for name in "abc"]
    assert cuts[0] == cuts[1] != cuts[2]
    del (plain := bpe_metadata(checkpoints.bpe_tokenizer()))["tokenizer.ggml.pre"]
    with pytest.raises(
        UserError, match=r"pre must be smollm.* got none, as files of before May 2024 have\. Give --tok"
    ):
        write_tokenizer(plain, tmp_path, source="m.gguf")


def test_gguf_default_split_is_that_of_llama_cpp(tmp_path):
    """Punctuation apart and digits by three, unlike GPT-2's split."""
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in DEFAULT_SPLITS])
    pieces = [piece for piece, _ in cut.pre_tokenize_str("It's 12345 (a)")]
    assert pieces == ["It", "'", "s", " ", "123", "45", " ", "(", "a", ")"]
    metadata = {**bpe_metadata(checkpoints.bpe_tokenizer()), "tokenizer.ggml.pre": "default"}
    assert (
        load_metadata(metadata, tmp_path / "a").decode(load_metadata(metadata, tmp_path / "b").encode("é (7)"))
        == "é (7)"
    )


def test_gguf_without_token_types_holds_normal_tokens(tmp_path):
    metadata = bpe_metadata(checkpoints.bpe_tokenizer())
    del metadata["tokenizer.ggml.token_type"]
    vocabulary = load_metadata(metadata, tmp_path / "a")
    assert vocabulary.encode_trusted("make <|im_end|>") == checkpoints.bpe_tokenizer().encode("make <|im_end|>").ids
    assert vocabulary.special_ids == {"<|im_start|>": 1, "<|im_end|>": 2}, "those that the file names"


def test_gguf_end_tokens_are_eos_eot_and_eom(tmp_path):
    metadata = bpe_metadata(checkpoints.bpe_tokenizer())
    ends = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 2}
    assert load_metadata({**metadata, **ends}, tmp_path / "a").end_ids == (2, 0)
    assert load_metadata(metadata, tmp_path / "b").end_ids == (2,)
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.eot_token_id must be a token's id below 400, got 400"):
        write_tokenizer({**metadata, "tokenizer.ggml.eot_token_id": 400}, tmp_path, source="m.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.token_type": [1]}, r"token_type must be a number for each of 4 tokens"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, r"tokens must be distinct texts"),
        ({"tokenizer.ggml.scores": []}, r"scores must be a number for each token"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces must be absent"),
        ({"tokenizer.ggml.precompiled_charsmap": [1]}, "precompiled_charsmap must be absent"),
    ],
)
def test_gguf_metadata_that_do_not_fit(tmp_path, changes, message):
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
        "tokenizer.ggml.scores": [0.0] * 4, "tokenizer.ggml.token_type": [2, 3, 3, 1],
    }  # fmt: skip
    with pytest.raises(UserError, match=message):
        write_tokenizer({**metadata, **changes}, tmp_path, source="m.gguf")


def test_a_converted_tokenizer_config_is_not_lost(tmp_path):
    """A class that transformers rebuilds tokenizers by is replaced: it takes tokenizer.json as it is."""
    save_json(tmp_path / "hf", {**NAMES, "tokenizer_class": "GPT2Tokenizer", "chat_template": "x"}, kind="bytes")
    write_checkpoint(tmp_path / "hf")
    ours = vocabulary_of(import_checkpoint(tmp_path / "hf", tmp_path / "run"))
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert_same_ids(tmp_path / "out", ours)
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["chat_template"] == "x"
