"""Runs that the evaluate command measures."""

import numpy as np
import pytest

from fot_jax.data.cache import fingerprint, open_or_build
from tests.eval.workdirs import LENGTH, experiment, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(model's workdir, baseline's): four documents, three of them held out; the baseline has no memory layer, a third
    one next to them (wide) rows twice as long.
    """
    folder = tmp_path_factory.mktemp("runs")
    (folder / "corpus.txt").write_text("unused: the token cache is written beforehand")
    config = experiment(folder)
    source = config.data.sources[0]
    expected = fingerprint(source, data=config.data, seed=config.seed)
    rng = np.random.default_rng(0)
    documents = [(f"file {i}", rng.integers(3, 259, 18 * LENGTH + 1)) for i in range(4)]
    cache = folder / "cache" / f"text-{expected}"
    open_or_build(cache, lambda: documents, source="text", expected=expected, vocab_size=259)
    write_run(folder / "fot", config)
    write_run(folder / "plain", experiment(folder, memory_layers=[]))
    write_run(folder / "wide", experiment(folder, local_context=2 * LENGTH))
    return folder / "fot", folder / "plain"
