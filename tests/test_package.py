"""The installed package: what it requires, what it runs without, and the error for an extra that is missing."""

import email
import gzip
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from fot_jax.config import UserError
from fot_jax.extras import EXTRAS, needs
from fot_jax.workdir import write_config
from tests.data import tokenizer_folders
from tests.eval import workdirs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DATA, SCANN, CONVERT, PLOTS, GCS = EXTRAS
PER_EXTRA = {name: PROJECT["optional-dependencies"][name] for name in EXTRAS}

# Each module of fot_jax that cannot be imported without an extra; every other one can.
NEEDY = {
    "fot_jax.convert.averaging": CONVERT,
    "fot_jax.convert.exporting": CONVERT,
    "fot_jax.convert.gguf_file": CONVERT,
    "fot_jax.convert.gguf_reader": CONVERT,
    "fot_jax.convert.importing": CONVERT,
    "fot_jax.convert.parameters": CONVERT,
    "fot_jax.convert.safetensors_files": CONVERT,
    "fot_jax.convert.sources": CONVERT,
    "fot_jax.convert.tokenizer_files": CONVERT,
    "fot_jax.data.tasks": DATA,
    "fot_jax.eval.plots": PLOTS,
    "fot_jax.eval.summary": PLOTS,
    "fot_jax.eval.tasks": PLOTS,
}

WITHOUT_EXTRAS = f"""
import contextlib, importlib, importlib.machinery, io, json, pathlib, runpy, sys

class WithoutExtras(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {[module for modules in EXTRAS.values() for module in modules]}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutExtras

def error_of(function, *arguments):
    try:
        result = function(*arguments)
        return f"no error, but {{result if isinstance(result, str) else list(result)}}"
    except UserError as error:
        return str(error)

def output_of(command, *arguments):
    sys.argv, out, err, code = [command, *arguments], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"launch.{{command}}", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()

from fot_jax.config import UserError
"""


def run_without_extras(code: str, *arguments: object) -> Any:
    """Runs code in a fresh interpreter in which no module of an extra can be found; returns the JSON it prints."""
    command = [sys.executable, "-c", WITHOUT_EXTRAS + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def bounds(lines: list[str]) -> dict[str, Requirement]:
    """Parses requirements by canonical name; a name may be there once."""
    parsed = [Requirement(line) for line in lines]
    names = [canonicalize_name(one.name) for one in parsed]
    assert len(names) == len(set(names)), names
    return dict(zip(names, parsed, strict=True))


def test_requirements_are_the_core_and_the_extras():
    """Each line of requirements.txt, with its bound, is in the core or in exactly one extra, and nothing else is."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    wanted = bounds([line for line in (re.sub(r"\s*#.*", "", line) for line in text.splitlines()) if line])
    stated = bounds([*PROJECT["dependencies"], *(line for lines in PER_EXTRA.values() for line in lines)])
    assert stated == wanted
    assert all(len(list(one.specifier)) >= 2 for one in wanted.values()), "a bound is missing"


def test_extras_have_the_modules_that_errors_name():
    assert {name: {canonicalize_name(module) for module in modules} for name, modules in EXTRAS.items()} == {
        name: set(bounds(lines)) for name, lines in PER_EXTRA.items()
    }


def test_all_is_every_extra():
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert set(PROJECT["optional-dependencies"]) == {*EXTRAS, "all"}
    assert Requirement(line).name == PROJECT["name"]
    assert Requirement(line).extras == set(EXTRAS)


def missing(module: str, extra: str) -> str:
    """Returns the end of the error for a package that is not installed."""
    return f"needs {module}, which is not installed: pip install 'fot_jax[{extra}]'."


def test_only_these_modules_need_an_extra():
    """Imports every module without TensorFlow, seqio, pyarrow, ScaNN, safetensors, gguf and matplotlib."""
    failed = run_without_extras("""
failed = {}
for path in sorted(pathlib.Path("fot_jax").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except UserError as error:
        failed[name] = str(error)
print(json.dumps(failed))
""")
    tasks = {f"fot_jax.eval.tasks.{path.stem}": PLOTS for path in (ROOT / "fot_jax/eval/tasks").glob("[a-z]*.py")}
    expected = NEEDY | tasks
    assert set(failed) == set(expected)
    assert not [name for name, error in failed.items() if f"pip install 'fot_jax[{expected[name]}]'." not in error]


def test_a_run_reads_a_text_without_extras(tmp_path):
    """Loads a run and continues a text read into memory; only ScaNN is asked for, before anything is read."""
    workdirs.write_run(tmp_path / "run", workdirs.experiment(tmp_path))
    (tmp_path / "book.txt").write_text("It was a dark and stormy night. " * 4)
    outputs = run_without_extras(
        """
flags = [f"--workdir={sys.argv[1]}/run", f"--prompt-file={sys.argv[1]}/book.txt", "--max-new-tokens=2",
         "--memory.top_k=4"]
print(json.dumps([output_of("generate", *flags, f"--memory.retrieval={kind}") for kind in ("exact", "scann")]))
""",
        tmp_path,
    )
    assert (outputs[0][0], bool(outputs[0][1])) == (0, True), outputs[0]
    error = missing("scann", SCANN).removesuffix(".") + ", or choose 'exact'."
    code, text, errors = outputs[1]
    assert (code, text) == (2, "")
    assert errors.splitlines()[1:] == [f"error: memory.retrieval='scann' (Linux x86-64) {error}"]


def test_vocabularies_encode_without_extras(tmp_path):
    model = tokenizer_folders.save_model(tmp_path / "model", {})
    texts = run_without_extras(
        """
from fot_jax.config import VocabularyConfig, VocabularyKind
from fot_jax.data import load_vocabulary
texts = []
for kind, path in zip(("bytes", "sentencepiece", "hf_tokenizer"), ("", *sys.argv[1:])):
    vocabulary = load_vocabulary(VocabularyConfig(kind=VocabularyKind(kind), path=path))
    texts.append(vocabulary.decode(vocabulary.encode("def f(x)")))
print(json.dumps(texts))
""",
        model,
        ROOT / "configs/tiny_code_bpe.json",
    )
    assert texts == ["def f(x)"] * 3


def test_reading_files_names_the_data_extra(tmp_path):
    """Reads plain and gzip text; zstd, Parquet and TFRecord files, and a token cache to make, end in one line."""
    (tmp_path / "corpus.txt").write_text("a\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a"))
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.tfrecord").write_bytes(b"")
    write_config(tmp_path, workdirs.experiment(tmp_path))
    errors = run_without_extras(
        """
from fot_jax.data import compressed, make_store, parquet, tfrecord
from fot_jax.workdir import read_config
folder = pathlib.Path(sys.argv[1])
assert b"".join(compressed.decompressed(folder / "a.txt.gz")) == b"a"
print(json.dumps([
    error_of(lambda: list(compressed.decompressed(folder / "a.txt.zst"))),
    error_of(lambda: list(parquet.read_parquet(folder / "a.parquet", "text"))),
    error_of(lambda: list(tfrecord.read_tfrecord(folder / "a.tfrecord", "text"))),
    error_of(lambda: make_store(read_config(folder))),
]))
""",
        tmp_path,
    )
    assert errors == [
        f"Reading zstd files ('{tmp_path}/a.txt.zst') {missing('zstandard', DATA)}",
        f"Reading Parquet files ('{tmp_path}/a.parquet') {missing('pyarrow', DATA)}",
        f"Reading TFRecord files ('{tmp_path}/a.tfrecord') {missing('tensorflow', DATA)}",
        f"Making a token cache {missing('seqio', DATA)}",
    ]
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*/*"))


def test_a_path_in_a_bucket_names_the_gcs_extra():
    [error] = run_without_extras("""
from fot_jax.storage.paths import storage_path
print(json.dumps([error_of(storage_path, "gs://bucket/run")]))
""")
    assert error == f"A path in a bucket (gs://) {missing('gcsfs', GCS)}"


def test_commands_name_the_extra_in_one_line(tmp_path):
    workdirs.write_run(tmp_path / "run", workdirs.experiment(tmp_path))
    outputs = run_without_extras(
        """
folder = sys.argv[1]
print(json.dumps([
    output_of("evaluate", f"--workdir={folder}/run", "--task=perplexity"),
    output_of("convert", "import", f"--from={folder}", f"--to={folder}/imported"),
    output_of("convert", "export", f"--workdir={folder}/run", f"--to={folder}/exported"),
]))
""",
        tmp_path,
    )
    convert = f"error: Importing and exporting checkpoints {missing('safetensors', CONVERT)}\n"
    assert outputs == [
        [2, "", f"error: A report of an evaluation {missing('matplotlib', PLOTS)}\n"],
        [2, "", convert],
        [2, "", convert],
    ]


@pytest.mark.parametrize(
    ("extra", "error", "line"),
    [
        (
            "plots",
            ModuleNotFoundError("No module named 'matplotlib.pyplot'", name="matplotlib.pyplot"),
            "It needs matplotlib, which is not installed: pip install 'fot_jax[plots]', or draw it.",
        ),
        (
            "scann",
            ImportError("x.so: no\n symbol"),
            "It needs scann, but an import failed (x.so: no symbol):"
            " pip install --force-reinstall 'fot_jax[scann]', or draw it.",
        ),
        (
            "convert",
            ModuleNotFoundError("No module named 'yaml'", name="yaml"),
            "It needs safetensors, gguf, but an import failed (No module named 'yaml'):"
            " pip install --force-reinstall 'fot_jax[convert]', or draw it.",
        ),
    ],
)
def test_needs_tells_missing_from_broken(extra, error, line):
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"), needs(extra, "It", otherwise="draw it"):
        raise error


def test_needs_lets_other_errors_pass():
    with pytest.raises(KeyError), needs("data", "It"):
        raise KeyError("x")


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(tmp_path):
    """Builds the wheel: every tracked file of fot_jax, nothing else, and the metadata of pyproject.toml."""
    pytest.importorskip("hatchling")
    code = "import sys, hatchling.build; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, timeout=600)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        about = f"fot_jax-{PROJECT['version']}.dist-info"
        files = {name for name in wheel.namelist() if not name.startswith(about)}
        metadata = email.message_from_bytes(wheel.read(f"{about}/METADATA"))
    tracked = subprocess.run(["git", "ls-files", "fot_jax"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert files == set(tracked.stdout.splitlines())
    assert "fot_jax/py.typed" in files
    assert set(metadata.get_all("Provides-Extra", [])) == {*EXTRAS, "all"}
    assert metadata["License-Expression"] == PROJECT["license"]


def test_python_versions_agree():
    """The versions of pyproject.toml are those of the Makefile; the workflow runs the oldest and the newest."""
    supported = SpecifierSet(PROJECT["requires-python"])
    versions = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported]
    assert versions == ["3.11", "3.12", "3.13"]
    assert "(3, 11) <= sys.version_info < (3, 14)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]
    assert job["steps"][-1] == {"run": "bash .ci/run"}


def test_the_citation_names_this_code_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")
