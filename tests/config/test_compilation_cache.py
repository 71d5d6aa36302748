"""Compiled programs are kept on disk, in one place for all commands, and where is said."""

import os
import re
import subprocess
import sys

import jax
import pytest

from fot_jax.config import UserError
from fot_jax.storage.paths import bucket_files
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


def test_a_limit_and_other_schemes_are_refused_in_a_bucket(settings):
    """The limit's lock would be a local file, which keeps no other host out."""
    jax.config.update("jax_compilation_cache_max_size", 1 << 30)
    try:
        with pytest.raises(UserError, match=r"^jax_compilation_cache_max_size must be -1 .*, got 1073741824: its lock"):
            compilation_cache.use("gs://bucket/xla", log=print)
        compilation_cache.use("/elsewhere", log=print)
    finally:
        jax.config.update("jax_compilation_cache_max_size", -1)
    with pytest.raises(UserError, match=r"^a path must be a local one or gs://BUCKET/FOLDER, got 's3://b/xla'"):
        compilation_cache.use("s3://b/xla", log=print)


def test_programs_in_a_bucket_are_loaded_by_the_next_process(bucket):
    code = f"""
import collections, sys
import jax, jax.monitoring
from launch import compilation_cache
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
compilation_cache.use("{bucket}/xla", log=print)
jax.jit(lambda x: x * 3 + 1)(4.0).block_until_ready()
print(events["cache_hits"], events["cache_misses"], "tensorflow" in sys.modules)
"""
    environment = {**os.environ, compilation_cache.LEAST_SECONDS: "0", "PYTHONPATH": os.getcwd()}
    counts = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
        said, line = done.stdout.splitlines()
        assert said == f"compilation cache: {bucket}/xla (--compilation-cache=DIR or off)"
        hits, misses, tensorflow = re.fullmatch(r"(\d+) (\d+) (True|False)", line).groups()
        assert tensorflow == "False"
        counts.append((int(hits), int(misses)))
    (first_hits, compiled), (loaded, last_misses) = counts
    assert first_hits == last_misses == 0 and loaded == compiled > 0
    assert len(bucket_files().find(f"{bucket}/xla")) == compiled
