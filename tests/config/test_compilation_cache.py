"""Compiled programs are kept on disk, in one place for all commands, and where is said."""

import jax
import pytest

from launch import compilation_cache


@pytest.fixture
def settings(monkeypatch):
    """The settings of the compilation cache, put back."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv(compilation_cache.LEAST_SECONDS, raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_what_is_compiled_is_kept_and_where_is_said(settings, tmp_path, monkeypatch):
    """The flag's folder, else JAX's own, else one in the user's home; small programs too, but not in a bucket."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(compilation_cache, "COMPILATION_CACHE", "~/.cache/fot_jax/xla")
    said = []
    for given, least, want in [
        ("gs://bucket/xla", 1.0, "gs://bucket/xla"),
        (None, 1.0, "gs://bucket/xla"),
        ("/elsewhere", 0.0, "/elsewhere"),
    ]:
        compilation_cache.use(given, log=said.append)
        assert jax.config.jax_compilation_cache_dir == want
        assert jax.config.jax_persistent_cache_min_compile_time_secs == least
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.use(None, log=said.append)
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/.cache/fot_jax/xla"
    assert said[-1] == f"compilation cache: {tmp_path}/.cache/fot_jax/xla (--compilation-cache=DIR or off)"
    compilation_cache.use("off", log=said.append)
    assert not jax.config.jax_enable_compilation_cache
    assert len(said) == 4


def test_a_time_that_the_user_sets_is_kept(settings, monkeypatch):
    monkeypatch.setenv(compilation_cache.LEAST_SECONDS, "3")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
    compilation_cache.use("/elsewhere", log=lambda _: None)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 3.0
