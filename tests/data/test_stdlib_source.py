"""The family rule on a library of our own, and long documents from the interpreter's."""

import logging

import pytest

from fot_jax.config import UserError
from fot_jax.data import stdlib_source
from fot_jax.data.stdlib_source import families, read_stdlib, stdlib_root


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib_source, "LARGE_PACKAGE", 100)
    monkeypatch.setattr(stdlib_source, "GROUP", 40)
    files = {
        "alpha.py": 20, "_beta.py": 20, "beta.py": 15, "gamma.py": 50, "zeta.py": 1,
        "json/__init__.py": 10, "json/tool/deep.py": 10,
        "test/__init__.py": 1, "test/test_a.py": 38, "test/test_b.py": 38, "test/sub/one.py": 60, "test/sub/two.py": 30,
        "site-packages/numpy/core.py": 10, "json/__pycache__/x.py": 10, "config-3.11/y.py": 10,
    }  # fmt: skip
    for name, size in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#" * size)
    return tmp_path


def test_families(library):
    named = {
        name: [path.relative_to(library).as_posix() for path in files] for name, files in families(library).items()
    }
    assert named == {
        "alpha.py.._beta.py": ["alpha.py", "_beta.py"],  # 20 + 20 bytes
        "beta.py": ["beta.py"],  # gamma alone is over the group's size
        "gamma.py": ["gamma.py"],
        "zeta.py": ["zeta.py"],
        "json": ["json/__init__.py", "json/tool/deep.py"],  # a package, whole
        "test/__init__.py..test_a.py": ["test/__init__.py", "test/test_a.py"],  # a large package, split
        "test/test_b.py": ["test/test_b.py"],
        "test/sub": ["test/sub/one.py", "test/sub/two.py"],
    }


def test_files_in_seeded_order_with_their_paths(library, caplog):
    for index in range(5):
        (library / f"json/m{index}.py").write_text(f"value = {index}")
    (library / "json/latin.py").write_bytes(b"# caf\xe9")
    with caplog.at_level(logging.WARNING):
        texts = [dict(read_stdlib(seed=seed, root=library))["json"] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert sorted(texts[0].splitlines()) == sorted(texts[2].splitlines())
    assert "# json/m3.py\nvalue = 3\n" in texts[0]
    assert "latin" not in texts[0]
    assert "json/latin.py: skipped, it is not UTF-8" in caplog.text


def test_an_interpreter_without_source(tmp_path):
    with pytest.raises(UserError, match=r"must hold .py files, got none under"):
        families(tmp_path)


def test_the_interpreters_own_library_gives_long_documents():
    sizes = {name: sum(path.stat().st_size for path in files) for name, files in families(stdlib_root()).items()}
    assert {"json", "asyncio", "email"} <= set(sizes)
    assert not any("site-packages" in name or "__pycache__" in name for name in sizes)
    long = [size for size in sizes.values() if size >= 20 * 128]  # bytes: 20 local contexts of 128 tokens
    assert len(long) > 60
    assert len(long) > 0.9 * len(sizes)
