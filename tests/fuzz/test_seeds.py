"""Every fault that fuzzing found, as a small input of its own: read right, or refused in one line."""

import argparse
import gzip
import json
import math
import shutil

import pytest

from configs import tiny_code
from fot_jax.checkpoint import load_params, load_stored_params
from fot_jax.config import ConfigError, ExperimentConfig, UserError
from fot_jax.config.build import build, to_dict
from fot_jax.config.gin import build_from_gin
from fot_jax.config.override import apply_override, whole_number
from fot_jax.convert.gguf_reader import read_contents
from fot_jax.data.chat import load_chat_template
from fot_jax.data.sentencepiece_vocabulary import open_sentencepiece
from fot_jax.data.tfrecord import read_tfrecord
from fot_jax.data.vocabulary import open_tokenizer_json
from launch import cli, make_vocabulary
from tests.fuzz import kinds_convert, kinds_data, kinds_runs
from tests.fuzz.edits import protobuf_edit, put, record_length
from tests.fuzz.kind import write_files


def _experiment(path, value):
    values = to_dict(build(ExperimentConfig, tiny_code.get_config()))
    section, name = path.split(".")
    values[section][name] = value
    return build(ExperimentConfig, values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.learning_rate", math.inf, r"optimizer\.learning_rate must be a finite number, got inf"),
        ("train.peak_tflops", math.nan, r"train\.peak_tflops must be a finite number, got nan"),
        ("model.norm_epsilon", -1.0, r"model\.norm_epsilon must be above 0, got -1"),
        ("optimizer.epsilon", 10**400, r"optimizer\.epsilon must be float, got 1000"),
        ("train.steps", 2**63, r"train\.steps must be an integer of 64 bits, got one of 64 bits"),
        ("train.steps", 10**400, r"train\.steps must be an integer of 64 bits, got one of 1329 bits"),
    ],
)
def test_config_number_out_of_range_is_refused(path, value, message):
    """Infinity and integers beyond 64 bits once passed every `>=`, or raised OverflowError."""
    with pytest.raises(ConfigError, match=message):
        _experiment(path, value)


def test_config_number_at_the_border_is_read():
    """The largest integer of 64 bits is a number like any other."""
    assert _experiment("train.steps", 2**63 - 1).train.steps == 2**63 - 1
    assert _experiment("optimizer.clip_norm", 2).optimizer.clip_norm == 2.0


@pytest.mark.parametrize(
    ("section", "path", "message"),
    [
        (None, "train.steps", r"train must be a mapping of TrainConfig's fields in the config file, got None"),
        ("x", "train.steps", r"train must be a mapping of TrainConfig's fields in the config file, got 'x'"),
        (0.5, "train.steps", r"train must be a mapping of TrainConfig's fields in the config file, got 0\.5"),
    ],
)
def test_override_in_a_section_that_is_none_is_refused(section, path, message):
    """A section of the config file that holds something else once raised TypeError under an override."""
    config = tiny_code.get_config()
    with config.unlocked(), config.ignore_type():
        config.train = section
    with pytest.raises(ConfigError, match=message):
        apply_override(config, path, "5")


def test_override_of_a_list_that_is_none_is_refused():
    """`data.sources` that is no list once raised TypeError under `--config.data.sources[0].path`."""
    config = tiny_code.get_config()
    with config.ignore_type():
        config.data.sources = 3
    with pytest.raises(ConfigError, match=r"data\.sources\[0\] must be in a list in the config file, got 3"):
        apply_override(config, "data.sources[0].path", "x")


def test_override_replaces_a_value_of_another_type():
    """A value of the wrong type in the config file once raised ml_collections' TypeError under an override."""
    config = tiny_code.get_config()
    with config.ignore_type():
        config.optimizer.learning_rate = "x"
    apply_override(config, "optimizer.learning_rate", "0.5")
    assert build(ExperimentConfig, config).optimizer.learning_rate == 0.5


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("9" * 18, 10**18 - 1), ("9" * 19, None), ("9" * 5000, None), ("-1", None), ("²", None)],
)
def test_number_of_a_flag_has_18_digits_at_most(text, number):
    """Python's int() refuses more than 4,300 digits with a ValueError; flags of thousands of digits met it."""
    assert whole_number(text) == number


def test_index_of_thousands_of_digits_is_refused():
    """`--config.data.sources[999...].path` once ended in int()'s ValueError."""
    with pytest.raises(ConfigError, match="is not a path"):
        apply_override(tiny_code.get_config(), f"data.sources[{'9' * 5000}].path", "x")


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("ModelConfig.num_layers = " + "[" * 3000, "gin cannot read the bindings: "),
        ("ModelConfig.num_layers = " + "-" * 3000 + "1", "gin cannot read the bindings: "),
        ("ModelConfig.num_layers = @gin.constant()", "gin cannot read the bindings: "),
        ("import nothing.here", "gin cannot read the bindings: ModuleNotFoundError: "),
    ],
)
def test_gin_that_cannot_be_read_is_one_line(binding, message):
    """Deep nesting, gin's own functions and unknown modules once ended in tracebacks."""
    with pytest.raises(ConfigError, match=message) as error:
        build_from_gin(["configs/tiny_code.gin"], [binding])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A run that an import wrote."""
    root = tmp_path_factory.mktemp("imported")
    write_files(root / "run", kinds_runs.imported_files())
    return root / "run"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "[" * 20000 + "]" * 20000, r"config\.json cannot be read: maximum recursion depth"),
        ("checkpoints/0/_CHECKPOINT_METADATA", "[" * 20000 + "]" * 20000, "checkpoint of step 0 cannot be read"),
        ("checkpoints/0/data/metadata", '{"step": 0, "dtype": "int7"}', "its parameters' dtype is 'int7'"),
        ("checkpoints/0/data/metadata", '{"step": 0, "dtype": []}', r"its parameters' dtype is \[\]"),
    ],
)
def test_damaged_run_is_refused_in_one_line(imported, tmp_path, file, text, message):
    """JSON nested too deeply, and a dtype that is none, once ended in tracebacks."""
    shutil.copytree(imported, tmp_path / "run")
    (tmp_path / "run" / file).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_stored_params(tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", ["1000000000000", "257", "9" * 5000])
def test_vocabulary_size_out_of_range_is_refused(size):
    """A size of 10^12 once ended the process in native code, as the trainer reserves memory for every token."""
    with pytest.raises(ConfigError, match=r"--size must be an integer from 258 .* to 4194304, got"):
        make_vocabulary.main(argparse.Namespace(size=size))


def test_gguf_tensor_out_of_order_is_refused(tmp_path):
    """An offset of 2^64 - 1 once was one byte before the data: the package adds modulo 2^64."""
    data = kinds_convert.gguf_files()["model.gguf"]
    place = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8 + 4  # of its offset
    for value in (2**64 - 1, 2**64 - 32, 32):
        (tmp_path / "model.gguf").write_bytes(put(data, place, value.to_bytes(8, "little")))
        with pytest.raises(UserError, match=r"token_embd\.weight must begin at byte 0 of the data"):
            read_contents(tmp_path / "model.gguf")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data + b"\0" * 7, r"record 5 must be a whole record .* ends 7 bytes after the record before"),
        (lambda data: data[:-2], "record 4 must be a whole record .* ends before its 17 bytes do"),
        (lambda data: record_length(data, 0, 2**40), "record 0 must be a whole record .* before its 1099511627776"),
        (lambda data: record_length(data, 4, 2**40), "record 4 must be a whole record .* before its 1099511627776"),
        (lambda data: record_length(data, 4, 2**64 - 16), "record 4 must be a whole record "),
    ],
)
def test_tfrecord_that_ends_within_a_record_is_refused(tmp_path, suffix, damage, message):
    """Less than 12 bytes at the end were no record to TensorFlow; a length of 2^40 ended the process."""
    path = tmp_path / f"a.tfrecord{suffix}"
    data = damage(kinds_data.tfrecord_files()["a.tfrecord"])
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(UserError, match=message):
        list(read_tfrecord(path, "text"))


@pytest.mark.parametrize("metrics", ['{"heldout_loss": [0]}', '{"heldout_loss": true}', "[]", "[1.0]"])
def test_loss_that_is_no_number_is_refused(tmp_path, metrics):
    """A list for a held-out loss once raised TypeError where the best checkpoint was looked for."""
    write_files(tmp_path, kinds_runs.trained_files())
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text(metrics)
    with pytest.raises(UserError, match=r"checkpoint of step 2 .*its heldout_loss is not a number"):
        load_params(tmp_path, step="best")


@pytest.mark.parametrize("step", ["²", "-1", "9" * 5000])
def test_step_that_is_no_number_is_refused(step):
    """A digit that is no decimal, and more digits than int() takes, once raised ValueError."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    cli.add_step_flag(parser)
    with pytest.raises(argparse.ArgumentError, match="must be a number, 'latest' or 'best'"):
        parser.parse_args([f"--step={step}"])


def test_override_nested_too_deeply_is_refused():
    """A list of lists of lists once raised RecursionError."""
    with pytest.raises(ConfigError, match=r"model\.memory_layers must be tuple"):
        apply_override(tiny_code.get_config(), "model.memory_layers", "[" * 5000)


@pytest.mark.parametrize("product", ["'ab' * 10**9", "10**9 * [1]", "'a' * 99999 * 99999", "9 ** (9 ** 9)"])
def test_chat_template_that_multiplies_without_end_is_refused(tmp_path, product):
    """It would take gigabytes; small products are computed."""
    files = kinds_convert.chat_files()
    template = "{{ 'ab' * 3 }}{{ 2 ** 3 * 2 }}"
    write_files(tmp_path, files | {"chat_template.jinja": template.encode()})
    path = str(tmp_path / "tokenizer.json")
    assert load_chat_template(open_tokenizer_json(path)).render(user="hi") == "ababab16"
    (tmp_path / "chat_template.jinja").write_text("{{ " + product + " }}")
    with pytest.raises(UserError, match=r"may (be repeated up to|have up to)"):
        load_chat_template(open_tokenizer_json(path)).render(user="hi")


def test_special_token_of_a_huge_name_is_refused(tmp_path):
    """Its length is named, not its text."""
    files = {"tokenizer.json": kinds_convert.chat_files()["tokenizer.json"]}
    write_files(tmp_path, files | {"special_tokens_map.json": json.dumps({"pad_token": "a" * 100_000}).encode()})
    with pytest.raises(UserError, match=r"pad_token of 100,000 characters, where 1,024 are allowed"):
        open_tokenizer_json(str(tmp_path / "tokenizer.json"))


def test_chat_template_nested_too_deeply_is_refused(tmp_path):
    """A sum of thousands of terms once raised RecursionError."""
    files = kinds_convert.chat_files()
    write_files(tmp_path, files | {"chat_template.jinja": b"{{ " + b"1 + " * 5000 + b"1 }}"})
    with pytest.raises(UserError, match=r"jinja': the chat template must be one that Python can compile"):
        load_chat_template(open_tokenizer_json(str(tmp_path / "tokenizer.json")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: protobuf_edit(data, (818, 189, 215), "fixed", b"\xbc\x84"),
        lambda data: data.replace(b"<s>", b"<\xff>"),
    ],
    ids=["message", "piece"],
)
def test_sentencepiece_text_that_is_not_utf8_is_refused(tmp_path, damage):
    """A piece, or what the library quotes in an error, once raised UnicodeDecodeError."""
    data = protobuf_edit(
        kinds_convert.tokenizer_model_files()["tokenizer.model"], (818, 189, 215), "fixed", b"\xbc\x84"
    )
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match=r"must be a SentencePiece model, got .*: invalid start byte"):
        open_sentencepiece(str(tmp_path / "tokenizer.model"))


def _edited(change):
    tree = json.loads(kinds_convert.tokenizer_json_files()["tokenizer.json"])
    change(tree)
    return json.dumps(tree)


@pytest.mark.parametrize(
    "text",
    [
        _edited(lambda tree: tree.update(added_tokens=3)),
        _edited(lambda tree: tree["added_tokens"].append(None)),
        _edited(lambda tree: tree["added_tokens"][0].pop("content")),
        _edited(lambda tree: tree["added_tokens"][0].update(content=[])),
        _edited(lambda tree: tree["model"].update(continuing_subword_prefix="{{ x }}")),
        _edited(lambda tree: tree["model"]["merges"].append([1, 2])),
        _edited(lambda tree: tree["model"]["vocab"].update(a=tree["model"]["vocab"]["b"])),
        _edited(lambda tree: None).replace('"model": {', '"model": {"type": 3, ', 1),
    ],
    ids=["number", "null", "nameless", "list", "panic", "merge", "id twice", "name twice"],
)
def test_tokenizer_json_of_another_shape_is_refused(tmp_path, text):
    """TypeError, KeyError, the library's own Exception and a panic in Rust once came through; ids were mixed up."""
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"must be a Hugging Face tokenizer\.json, got "):
        open_tokenizer_json(str(tmp_path / "tokenizer.json"))


def test_special_token_that_is_no_text_is_refused(tmp_path):
    """A lone surrogate as a special token's name once raised UnicodeEncodeError."""
    files = kinds_convert.chat_files() | {"special_tokens_map.json": b'{"pad_token": "\\ud800"}'}
    files.pop("tokenizer_config.json")
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=r"special_tokens_map\.json.*surrogates not allowed"):
        open_tokenizer_json(str(tmp_path / "tokenizer.json"))
