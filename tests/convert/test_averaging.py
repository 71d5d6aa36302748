"""The run between a fine-tuned one and the one it started from."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from fot_jax.checkpoint import load_stored_params, save_imported, trained_documents
from fot_jax.config import Dtype, UserError
from fot_jax.convert.averaging import average_runs
from fot_jax.convert.exporting import Format, export_checkpoint
from fot_jax.convert.hf_config import Changes
from fot_jax.convert.importing import import_checkpoint
from fot_jax.data.vocabulary import load_vocabulary
from fot_jax.workdir import SOURCE_CONFIG, inherit_source, read_config, with_tokenizer, write_config
from tests.convert.checkpoints import SMALL, bpe_tokenizer, random_tensors, write_folder

VALUES = {**SMALL, "vocab_size": 300}


@pytest.fixture
def started(tmp_path):
    """An imported run with a tokenizer."""
    write_folder(tmp_path / "hf", VALUES, random_tensors(VALUES))
    bpe_tokenizer(300).save(str(tmp_path / "hf/tokenizer.json"))
    import_checkpoint(tmp_path / "hf", tmp_path / "started", changes=Changes(memory_layers=(1,), local_context=32))
    return tmp_path / "started"


def tuned(started, *, change, dtype="float32", name="tuned", documents=None, **model):
    """A run fine-tuned from it: its parameters changed, its own config."""
    folder = started.parent / name
    config = read_config(started)
    config = dataclasses.replace(config, name=name, model=dataclasses.replace(config.model, **model))
    params, _ = load_stored_params(started)
    params = jax.tree.map(change, params)
    save_imported(folder, config, params, dtype=Dtype(dtype), documents=documents or {"text": "digest"})
    write_config(folder, config)
    return folder


def test_every_parameter_is_the_weighted_mean(started, tmp_path):
    """Against float64; what was not trained keeps its very bits; config, tokenizer and documents come along."""
    rng = np.random.default_rng(0)
    trained = lambda x: x + rng.standard_normal(x.shape).astype(x.dtype) if x.ndim == 3 else x  # noqa: E731
    one, out = tuned(started, change=trained), tmp_path / "out"
    assert average_runs(one, other=started, folder=out, share=0.85).name == "tuned"
    ours, its, found = (jax.tree.leaves(load_stored_params(folder)[0]) for folder in (one, started, out))
    for a, b, c in zip(ours, its, found, strict=True):
        want = 0.85 * a.astype(np.float64) + (1 - 0.85) * b.astype(np.float64)
        np.testing.assert_allclose(c, want, rtol=1e-6, atol=1e-6)
        assert a.ndim == 3 or b.tobytes() == c.tobytes()
    config = read_config(out)
    assert config.model == read_config(one).model and trained_documents(out) == {"text": "digest"}
    assert config.data.vocabulary.path.startswith(str(out)) and load_vocabulary(config.data.vocabulary).size == 300


@pytest.mark.parametrize(("share", "which"), [(1.0, 0), (0.0, 1)])
def test_the_ends_are_the_runs_themselves(started, tmp_path, share, which):
    folders = (tuned(started, change=lambda x: 3 * x + 1), started)
    average_runs(folders[0], other=started, folder=tmp_path / "out", share=share)
    want, found = load_stored_params(folders[which])[0], load_stored_params(tmp_path / "out")[0]
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_the_first_runs_dtype_is_kept(started, tmp_path):
    one = tuned(started, change=lambda x: (2 * x).astype(ml_dtypes.bfloat16), dtype="bfloat16")
    average_runs(one, other=started, folder=tmp_path / "out", share=0.5)
    params, dtype = load_stored_params(tmp_path / "out")
    assert dtype is Dtype.BFLOAT16 and all(leaf.dtype == ml_dtypes.bfloat16 for leaf in jax.tree.leaves(params))
    sources = (jax.tree.leaves(load_stored_params(folder)[0]) for folder in (one, started))
    for a, b, c in zip(*sources, jax.tree.leaves(params), strict=True):
        mean = (a.astype(np.float64) + b.astype(np.float64)) / 2  # rounded once
        np.testing.assert_array_equal(c, mean.astype(np.float32).astype(ml_dtypes.bfloat16))


def test_evaluation_warns_of_the_documents_of_both(started, tmp_path):
    one = tuned(started, change=lambda x: x)
    first = tuned(started, change=lambda x: 2 * x, name="first", documents={"text": "older", "books": "digest"})
    average_runs(one, other=first, folder=tmp_path / "out", share=0.5)
    assert trained_documents(tmp_path / "out") == {"text": "digest", "books": "digest"}


def test_a_run_of_an_imported_one_is_exported_as_that_was(started, tmp_path):
    """The experiment holds neither special tokens nor the trained context; the training rows are shorter."""
    own = json.loads((started / SOURCE_CONFIG).read_text()) | {"eos_token_id": 7, "max_position_embeddings": 4096}
    (started / SOURCE_CONFIG).write_text(json.dumps(own))
    one = tuned(started, change=lambda x: 2 * x)
    average_runs(one, other=started, folder=tmp_path / "average", share=0.5)
    export_checkpoint(tmp_path / "average", tmp_path / "bare", form=Format.ORBAX)
    inherit_source(one, started)
    for folder in (one, tmp_path / "average", tmp_path / "bare"):
        assert json.loads((folder / SOURCE_CONFIG).read_text()) == own
    for name, folder in (("exported", one), ("averaged", tmp_path / "average")):
        export_checkpoint(folder, tmp_path / name, form=Format.HF)
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert (written["eos_token_id"], written["max_position_embeddings"]) == (7, 4096)


def test_end_tokens_of_a_config_next_to_the_tokenizer_are_kept(started, tmp_path):
    """A run may name a checkpoint's own tokenizer.json, whose config.json is not copied with it."""
    (tmp_path / "hf/config.json").write_text(json.dumps({**VALUES, "eos_token_id": [2, 5]}))
    run = tuned(started, change=lambda x: x)
    write_config(run, with_tokenizer(read_config(run), str(tmp_path / "hf/tokenizer.json")))
    average_runs(run, other=run, folder=tmp_path / "average", share=0.5)
    export_checkpoint(run, tmp_path / "bare", form=Format.ORBAX)
    for folder in (run, tmp_path / "average", tmp_path / "bare"):
        assert load_vocabulary(read_config(folder).data.vocabulary).end_ids == (2, 5)


def test_runs_that_do_not_match_are_refused(started, tmp_path):
    one, out = tuned(started, change=lambda x: x), tmp_path / "out"
    write_folder(tmp_path / "wide", wide := {**VALUES, "intermediate_size": 40}, random_tensors(wide))
    import_checkpoint(tmp_path / "wide", tmp_path / "other", tokenizer=tmp_path / "hf/tokenizer.json")
    with pytest.raises(UserError, match="--with must hold a run"):
        average_runs(one, other=tmp_path / "nowhere", folder=out, share=0.5)
    with pytest.raises(UserError, match=r"same shapes: layers/feed_forward/down.* is .*40.* in .*other"):
        average_runs(one, other=tmp_path / "other", folder=out, share=0.5)
    config = read_config(started)
    bpe_tokenizer(290).save(str(tmp_path / "tokenizer.json"))
    write_config(started, with_tokenizer(config, str(tmp_path / "tokenizer.json")))
    with pytest.raises(UserError, match="--with must have the vocabulary of"):
        average_runs(one, other=started, folder=out, share=0.5)
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_a_folder_that_exists_is_left_alone(started, tmp_path):
    one = tuned(started, change=lambda x: x)
    with pytest.raises(UserError, match="--to must name a new folder"):
        average_runs(one, other=started, folder=one, share=0.5)
