"""The Dockerfile against what it copies, what is required and the command that Kubernetes gives it."""

import pathlib
import re
import shlex
import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launch.pods import jobset

ROOT = pathlib.Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions with their arguments, joined over lines that go on."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], " ".join(line.partition(" ")[2].split())) for line in lines]


def arguments_of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def test_the_image_has_a_python_that_the_package_supports():
    (image,) = arguments_of("FROM")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.fullmatch(r"python:(3\.\d+)-slim", image)
    assert version
    assert version[1] in SpecifierSet(project["requires-python"])


def test_what_is_copied_is_there_and_in_the_build_context():
    """Every command runs from `launch`, which imports `fot_jax` and loads `configs`."""
    copied = [arguments.split()[:-1] for arguments in arguments_of("COPY")]
    sources = [source.rstrip("/") for group in copied for source in group]
    assert {"fot_jax", "launch", "configs", "requirements.txt"} == set(sources)
    assert all((ROOT / source).exists() for source in sources)
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {line[1:] for line in rules if line.startswith("!")} == set(sources)


def test_requirements_are_installed_before_the_code_is_copied():
    """A change of the code then keeps the layer of 3 GB."""
    order = [
        name for name, arguments in instructions() if name == "RUN" or arguments.startswith(("requirements", "fot"))
    ]
    assert order == ["COPY", "RUN", "COPY"]
    (run,) = arguments_of("RUN")
    words = shlex.split(run)
    assert words[words.index("-r") + 1] == "requirements.txt"
    assert words[-1] == "${JAX}"


def test_the_build_argument_is_bounded_by_the_requirements():
    """`jax` alone, or the `jax[tpu]` of the JobSet command, take the version of requirements.txt."""
    assert arguments_of("ARG") == ["JAX=jax"]
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    (line,) = re.findall(r"^(jax[<>=][^\s]*)", text, flags=re.MULTILINE)
    assert len(Requirement(line).specifier) == 2
    places = [ROOT / "launch/pods/jobset.py", ROOT / "Dockerfile"]
    named = re.findall(r"--build-arg=JAX='?([^'\"\s]+)", "".join(path.read_text(encoding="utf-8") for path in places))
    assert len(named) == 2
    assert {(Requirement(name).name, str(Requirement(name).specifier)) for name in named} == {("jax", "")}


def test_the_image_works_where_the_jobset_starts_it():
    (folder,) = arguments_of("WORKDIR")
    assert f"workingDir: {folder}\n" in jobset.TEMPLATE.read_text(encoding="utf-8")
