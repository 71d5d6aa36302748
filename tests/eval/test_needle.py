"""Needles: what counts as found, that prompts are shared, that a model that knows is right, and the command."""

import dataclasses
import json

import numpy as np
import pytest

from fot_jax.config import NeedleKind, UserError
from fot_jax.data.vocabulary import ByteVocabulary
from fot_jax.eval import needle
from fot_jax.eval.plots import Curve, Panel, plot_panels
from fot_jax.eval.statistics import bounded_mean, wilson
from fot_jax.infer.generate import FINISHED
from launch import cli, evaluate
from tests.eval.tiny_models import MODEL, tiny_model
from tests.eval.workdirs import experiment, write_run

VOCABULARY = ByteVocabulary()


def trial(generated, *answers):
    return needle.Trial(kind=NeedleKind.SINGLE, length=9, places=(0.5,), answers=answers, generated=generated)


@pytest.mark.parametrize(
    ("generated", "answers", "recall"),
    [
        (": 1234567.", ("1234567",), 1.0),
        ("it is 1234567", ("1234567",), 1.0),
        ("123 4567", ("1234567",), 0.0),
        ("", ("1234567",), 0.0),
        ("abcde, FGHIJ and ABCDE", ("ABCDE", "FGHIJ", "KLMNO", "PQRST"), 0.5),
        ("1. Brave-Otter 2. calm-cave", ("calm-cave", "brave-otter"), 1.0),
        ("2, 1", ("1", "2", "3"), 2 / 3),
    ],
)
def test_the_share_of_the_answers_that_stand_in_the_text(generated, answers, recall):
    found = trial(generated, *answers)
    assert found.recall == pytest.approx(recall)
    assert found.right is (recall == 1)


def test_the_interval_of_a_mean_recall():
    """Wilson's for zeros and ones; it holds the true mean of values between at least as often as it says."""
    assert bounded_mean([1.0, 0.0, 1.0, 1.0]) == wilson(3, trials=4)
    assert bounded_mean([0.0] * 20).high == pytest.approx(0.1611, abs=1e-4)
    assert bounded_mean([0.5, 0.25]).estimate == 0.375
    rng = np.random.default_rng(0)
    for chance in (0.05, 0.5, 0.9):
        draws = rng.binomial(4, chance, size=(400, 20)) / 4
        intervals = [bounded_mean(row.tolist()) for row in draws]
        assert np.mean([found.low <= chance <= found.high for found in intervals]) >= 0.95
    for wrong in ([], [0.5, 1.5], [-0.1]):
        with pytest.raises(ValueError, match="bounded_mean needs"):
            bounded_mean(wrong)


def prompts(*, kinds=tuple(NeedleKind), lengths=(2500,), trials=3, seed=3):
    return needle.make_prompts(VOCABULARY, kinds=kinds, lengths=lengths, trials=trials, seed=seed)


def test_a_trial_is_the_same_whatever_else_is_measured():
    whole = prompts(lengths=(2500, 3000))
    assert list(whole) == [(kind, length) for kind in NeedleKind for length in (2500, 3000)]
    alone = prompts(kinds=(NeedleKind.MULTI_KEY,), lengths=(3000,), trials=2)
    texts = [prompt.prompt for prompt in whole[NeedleKind.MULTI_KEY, 3000]]
    assert [prompt.prompt for prompt in alone[NeedleKind.MULTI_KEY, 3000]] == texts[:2]
    assert len({prompt.prompt for asked in whole.values() for prompt in asked}) == 36
    again = prompts(kinds=(NeedleKind.MULTI_KEY,), lengths=(3000,), seed=4)
    assert not {prompt.prompt for prompt in again[NeedleKind.MULTI_KEY, 3000]} & set(texts)


def test_a_length_without_room_names_the_kind_and_the_fix():
    message = r"kind 'common_words' without filler, got 1024\. Change evaluation\.needle_tokens, or leave the kind out"
    with pytest.raises(UserError, match=message):
        prompts(lengths=(1024,))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_model_that_knows_a_share_of_the_answers(monkeypatch, share):
    asked = prompts()
    known = {tuple(prompt.tokens.tolist()): prompt for group in asked.values() for prompt in group}
    rows, steps = [], {}

    def read(params, model, tokens, **_):
        rows.append(len(tokens))
        return [known[tuple(ids.tolist())] for ids in tokens]

    def generate(params, model, reading, *, sampling, max_new_tokens, end_ids):
        assert sampling.vocab_limit == VOCABULARY.size
        steps[reading[0].kind] = max_new_tokens
        texts = [", ".join(one.answers[: round(share * len(one.answers))]).lower() for one in reading]
        ids = [VOCABULARY.encode(f" {text}.")[:max_new_tokens] + [end_ids[0]] for text in texts]
        longest = max(map(len, ids))
        yield from np.array([row + [FINISHED] * (longest - len(row)) for row in ids]).T

    monkeypatch.setattr("fot_jax.infer.windows.read", read)
    monkeypatch.setattr("fot_jax.library.model.generate", generate)
    evaluated = tiny_model(dataclasses.replace(MODEL, vocab_size=VOCABULARY.size))
    seen = []
    results = needle.measure(
        evaluated, vocabulary=VOCABULARY, prompts=asked, batch=2,
        progress=lambda found: seen.append((found.kind, found.length, len(found.trials))),
    )  # fmt: skip
    assert rows == [2, 1] * 6
    assert seen == [(kind, 2500, done) for kind in NeedleKind for done in (2, 3)]
    assert [(found.kind, found.length) for found in results] == list(asked)
    for found in results:
        expected = len(found.trials[0].answers)
        assert found.recalls == [round(share * expected) / expected] * 3
        assert found.num_right == (3 if share == 1 else 0)
        assert all(one.length <= 2500 and one.generated.startswith(" ") for one in found.trials)
    assert steps == needle.ANSWER_TOKENS


def test_panels_need_curves(tmp_path):
    panel = Panel(title="t", x_label="x", y_label="y")
    curve = Curve(label="c", x=[1, 2], y=[0.1, 0.2])
    plot_panels(tmp_path / "three.png", panels=[(panel, [curve])] * 3)
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"three\.png needs at least one curve a panel"):
        plot_panels(tmp_path / "three.png", panels=[(panel, [curve]), (panel, [])])


def run_evaluate(workdir, *arguments: str) -> None:
    cli.run(evaluate.main, evaluate.make_parser(), [f"--workdir={workdir}", "--task=needle", *arguments])


@pytest.mark.slow
def test_the_command_writes_table_plot_and_examples(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(needle, "ANSWER_TOKENS", dict.fromkeys(NeedleKind, 4))
    workdir = tmp_path / "tiny"
    write_run(workdir, experiment(tmp_path, local_context=256))
    kinds, lengths = ("single", "variable_tracking"), (930, 1000)
    run_evaluate(
        workdir,
        f"--evaluation.needle_kinds={','.join(kinds)}",
        f"--evaluation.needle_tokens={','.join(map(str, lengths))}",
        "--evaluation.needle_trials=2",
    )
    output = capsys.readouterr()
    assert "variable_tracking" in output.out
    assert "tiny, last window: single, 1,000 tokens, recall 0.000 of 2 prompts (of 2)" in output.err
    page = (workdir / "eval" / "needle.md").read_text()
    assert "templates version 1" in page
    assert "![needle](needle.png)" in page
    assert (workdir / "eval" / "needle.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((workdir / "eval" / "needle.json").read_text())["results"]
    assert (results["templates_version"], results["trials"]) == (1, 2)
    assert [model["model"] for model in results["models"]] == ["tiny, memory", "tiny, last window"]
    for model in results["models"]:
        assert [(p["kind"], p["length"]) for p in model["points"]] == [(k, n) for k in kinds for n in lengths]
        assert model["points"][0]["recall"] == {"estimate": 0.0, "low": 0.0, "high": pytest.approx(0.6576, abs=1e-4)}
    rows = [json.loads(line) for line in (workdir / "eval" / "needle_examples.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 2 * 2
    assert set(rows[0]) == {"model", "kind", "length", "places", "answers", "generated", "recall"}
    by_model = [
        [(r["kind"], r["answers"]) for r in rows if r["model"] == f"tiny, {w}"] for w in ("memory", "last window")
    ]
    assert by_model[0] == by_model[1]


def test_a_user_error_comes_before_anything_is_read(tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "tiny"
    write_run(workdir, experiment(tmp_path))
    monkeypatch.setattr("fot_jax.infer.windows.read", None)
    with pytest.raises(SystemExit) as exit_:
        run_evaluate(workdir, "--evaluation.needle_kinds=single,multi_query", "--evaluation.needle_tokens=500")
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "kind 'multi_query' without filler, got 500. Change evaluation.needle_tokens" in error
    assert [line[:6] for line in error.splitlines() if not line.startswith("compilation cache: ")] == ["error:"]
