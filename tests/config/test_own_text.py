"""configs/own_text.py chooses by the documents it finds, the same before and after they are tokenised."""

import json
import random

import pytest

from fot_jax.config import UserError
from fot_jax.config.build import to_dict
from fot_jax.data.streams import make_stream
from fot_jax.data.survey import check_data
from launch import cli
from tests.config.test_golden import defaults, flat

FLAGS = "--config=configs/own_text.py"


def load(path, *flags):
    parser = cli.make_parser(None)
    cli.add_experiment_flags(parser)
    given = [] if path is None else [f"--config.data.sources[0].path={path}"]
    config = cli.load_experiment(cli.parse_flags(parser, [FLAGS, *given, *flags]))
    check_data(config)
    return config


def words(count, seed):
    """Makes text of about `count` bytes."""
    rng = random.Random(seed)
    return " ".join(rng.choice(("the", "memory", "of", "a", "focused", "reader")) for _ in range(count // 5))[:count]


def write(folder, lengths):
    folder.mkdir()
    for i, length in enumerate(lengths):
        (folder / f"{i}.txt").write_text(words(length, i))
    return folder


@pytest.mark.parametrize(
    ("lengths", "streams", "held_out", "steps", "contexts"),
    [
        ([1000] * 4, 2, 2, 16, (0, 1, 2, 4)),
        ([5000] * 10, 2, 2, 388, (0, 1, 2, 4, 8, 16)),
        ([5000] * 20, 4, 4, 388, (0, 1, 2, 4, 8, 16)),
        ([2000] * 50 + [100] * 50, 4, 5, 436, (0, 1, 2, 4, 8)),
        ([10_000] * 100, 4, 10, 1400, (0, 1, 2, 4, 8, 16)),
    ],
)
def test_rows_and_steps_follow_the_documents(tmp_path, lengths, streams, held_out, steps, contexts):
    """Two streams for fewer than 16; at least one held-out document a stream; ten epochs, or 1.4 million tokens."""
    config = load(write(tmp_path / "texts", lengths))
    assert config.train.batch_rows == 4 * streams
    assert config.crossbatch.schedule.num_contexts == (4 * streams - 3,)  # a row reads all earlier rows of others
    long = sum(length >= 963 for length in lengths)
    assert round(config.data.heldout_fraction * long) == held_out
    assert (config.train.steps, config.train.eval_every) == (steps, steps // 4)
    assert config.evaluation.memory_contexts == contexts


def test_lines_are_documents_as_files_are(tmp_path):
    """A folder of text, JSON lines and a pattern of them differ in path alone."""
    texts = write(tmp_path / "texts", [3000] * 6)
    lines = [json.dumps({"text": path.read_text()}) for path in sorted(texts.iterdir())]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    found = [to_dict(load(path)) for path in (texts, f"{texts}/*.txt", tmp_path / "lines.jsonl")]
    for config in found:
        del config["data"]["sources"][0]["path"]
    assert found[0] == found[1] == found[2]


def test_what_is_set_stays(tmp_path):
    """Fields of the command line, and those that follow them."""
    texts = write(tmp_path / "texts", [3000] * 20)
    config = load(texts, "--config.train.batch_rows=24", "--config.train.steps=3", "--config.data.heldout_fraction=0.5")
    assert (config.train.batch_rows, config.crossbatch.schedule.num_contexts) == (24, (21,))
    assert (config.train.steps, config.train.eval_every, config.data.heldout_fraction) == (3, 1, 0.5)
    config = load(texts, "--config.crossbatch.schedule.num_contexts=2", "--config.data.sources[0].min_tokens=9")
    assert (config.crossbatch.schedule.num_contexts, config.data.sources[0].min_tokens) == ((2,), 9)


def test_the_chosen_fields_outlive_tokenising(tmp_path):
    """A run goes on: its config is the same once the documents are tokenised, and both splits have streams."""
    texts = write(tmp_path / "texts", [1000, 1200, 5000, 7000])
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    config = load(texts, cache)
    for split in ("train", "heldout"):
        assert make_stream(config, split).batch(0).loss_mask.any()
    assert load(texts, cache) == config


REFUSALS = {
    "no folder is named": (None, r"data\.sources\[0\]\.path must name a file.* got ''\. Set it with --config\.data\."),
    "a folder without files": ({}, "must match at least one file, got a folder without files for"),
    "a missing folder": ("gone", "must match at least one file, got none for"),
    "one document": ({"a.txt": words(9000, 0)}, r"at least 4 different documents .* got 1\. Give more, or split"),
    "equal documents": (
        dict.fromkeys(("a.txt", "b.txt", "c.txt", "d.txt"), words(9000, 0)),
        r"documents .* got 1 and 3 copies\.",
    ),
    "short documents": ({f"{i}.txt": words(300, i) for i in range(90)}, r"of 1\.0 kB or more, got most .* Join what"),
    "another suffix": ({"a.txt": "a", "b.pdf": "b"}, r"got '.*b\.pdf'\. Rename it, move it away, or name a pattern"),
    "a picture": ({"a.txt": b"\x89PNG\r\n"}, r"a\.txt' must be valid UTF-8, got byte 0x89 at .* or remove it"),
    "Latin-1": ({"a.txt": "déjà".encode("latin-1")}, r"a\.txt' must be valid UTF-8, got byte 0xe9 .* Re-encode it"),
    "a list": ({"a.json": '[{"text": "a"}]'}, r"line 1 must be a JSON object, got .* Write each document as one line"),
    "no field text": ({"a.jsonl": '{"body": "a"}'}, r"line 1 must hold a string under 'text', got fields \['body'\]\."),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_folder_that_cannot_do_is_refused(tmp_path, name):
    """In one line with the fix."""
    files, message = REFUSALS[name]
    folder = tmp_path / files if isinstance(files, str) else tmp_path
    for file, text in files.items() if isinstance(files, dict) else ():
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as raised:
        load(None if files is None else folder)
    assert "\n" not in str(raised.value)


def test_the_chosen_fields_are_golden(tmp_path, golden):
    """For 66 documents of 65 kB, as tests/config/test_golden.py has the experiments of the paper."""
    config = to_dict(load(write(tmp_path / "texts", [65_000] * 66)))
    del config["data"]["sources"][0]["path"]
    ordinary = defaults()
    golden("config_own_text", {path: value for path, value in flat(config) if ordinary.get(path) != value})
