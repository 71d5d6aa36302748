"""Kinds that the project writes itself and reads again: memories, checkpoints of training and of imports."""

import functools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.edits import VALUES, Edit, Files, any_of, byte_arguments, json_arguments, of, removal
from tests.fuzz.kind import Kind, read_files, require


@functools.cache
def memory_files() -> Files:
    """A memory of three streams, the last of them empty."""
    from fot_jax.memory import files
    from fot_jax.memory.store import MemoryStore
    from fot_jax.types import KeyValue

    rng = np.random.default_rng(0)
    store = MemoryStore(memory_layers=(0, 2), streams=3, kv_heads=2, head_dim=4, dtype=np.dtype(np.float32), budget=0)
    for _ in range(2):
        keys, values = (rng.standard_normal((2, 3, 8, 2, 4)).astype(np.float32) for _ in range(2))
        store.append(KeyValue(keys=keys, values=values), np.array([8, 3, 0]))
    with tempfile.TemporaryDirectory() as place:
        files.save(
            store, Path(place) / "memory", fingerprint="f", scaling_from=64, texts=[("a", "A text."), ("b", "ß")]
        )
        return read_files(Path(place) / "memory")


def _entries(folder: Path) -> list[Any]:
    """Layers, lengths and texts of a memory, and every entry."""
    from fot_jax.memory import files

    store = files.load(folder, fingerprint="f", scaling_from=64)
    taken = [store.take(stream, store.live(stream)) for stream in range(store.streams)]
    arrays = [array for pair in taken for array in pair]
    return [[list(store.memory_layers), store.lengths.tolist(), files.load_texts(folder)], *arrays]


def _attempt_memory(source: Path, target: Path, intact: Path) -> None:
    """An accepted memory is the one that was saved."""
    got, want = _entries(source), _entries(intact)
    require(got[0] == want[0], "other layers, lengths or texts than were saved")
    same = all(g.dtype == w.dtype and np.array_equal(g, w) for g, w in zip(got[1:], want[1:], strict=True))
    require(same, "other entries than were saved")


@functools.cache
def trained_files() -> Files:
    """A run with two checkpoints, as training saves them."""
    import jax

    from fot_jax.checkpoint import Checkpointer
    from fot_jax.sharding import make_mesh
    from fot_jax.train.state import create_state
    from fot_jax.workdir import write_config
    from tests.train.tiny import tiny

    config = tiny()
    state = create_state(config, make_mesh(config.mesh, jax.devices()[:1]))
    with tempfile.TemporaryDirectory() as place:
        write_config(place, config)
        with Checkpointer(place, config) as checkpoints:
            for step, loss in ((1, 2.0), (2, 1.0)):
                params = jax.tree.map(lambda leaf, step=step: leaf * step, state.params)
                data = {"step": step, "documents": {"lookup": "0" * 32}}
                checkpoints.save(step, params=params, optimizer=state.opt_state, data=data, heldout_loss=loss)
        return read_files(Path(place))


@functools.cache
def imported_files() -> Files:
    """A run that an import wrote."""
    from fot_jax.convert.importing import import_checkpoint
    from tests.fuzz.kind import write_files
    from tests.fuzz.kinds_convert import folder_files

    with tempfile.TemporaryDirectory() as place:
        write_files(Path(place) / "hf", folder_files())
        import_checkpoint(Path(place) / "hf", Path(place) / "run")
        return read_files(Path(place) / "run")


def _params(workdir: Path, step: Any) -> list[np.ndarray]:
    """Every parameter of a run."""
    import jax

    from fot_jax.checkpoint import load_params

    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_params(workdir, step=step)[1])]


def _state(workdir: Path) -> list[np.ndarray]:
    """Restores parameters and the optimizer's state of the last step, from which training goes on."""
    import jax

    from fot_jax.checkpoint import Checkpointer
    from fot_jax.sharding import make_mesh
    from fot_jax.train.state import abstract_state
    from fot_jax.workdir import read_config

    config = read_config(workdir)
    abstract = abstract_state(config, make_mesh(config.mesh, jax.devices()[:1]))
    with Checkpointer(workdir, config, read_only=True) as checkpoints:
        restored = checkpoints.restore(2, params=abstract.params, optimizer=abstract.opt_state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored[:2])]


def _same(got: list[np.ndarray], want: list[np.ndarray], what: str) -> None:
    same = len(got) == len(want) and all(
        g.shape == w.shape and g.dtype == w.dtype and np.array_equal(g, w) for g, w in zip(got, want, strict=True)
    )
    require(same, f"other {what} than were saved")


_want = functools.cache(_params)
_want_state = functools.cache(_state)


def _best(workdir: Path) -> int | None:
    """The step of the smallest loss by an own reading; the earlier one of equals."""
    losses = {}
    for path in (workdir / "checkpoints").glob("*/metrics/metrics"):
        loss = json.loads(path.read_bytes()).get("heldout_loss")
        if isinstance(loss, (int, float)) and math.isfinite(loss):
            losses[int(path.parents[1].name)] = loss
    return min(losses, key=lambda step: (losses[step], step), default=None)


def _attempt_trained(source: Path, target: Path, intact: Path) -> None:
    """Loads the newest checkpoint and the best one, and what training goes on from."""
    from fot_jax.checkpoint import trained_documents

    _same(_params(source, "latest"), _want(intact, 2), "parameters")
    best = _best(source)
    require(best is not None, "a best checkpoint without a loss")
    _same(_params(source, "best"), _want(intact, best), "best parameters")
    require(trained_documents(source) == {"lookup": "0" * 32}, "other digests of documents than were saved")
    _same(_state(source), _want_state(intact), "parameters or optimizer state")


def _attempt_imported(source: Path, target: Path, intact: Path) -> None:
    """Exports the run: the numbers of the intact one."""
    from fot_jax.convert.exporting import export_checkpoint

    _same(_params(source, "latest"), _want(intact, "latest"), "parameters")
    export_checkpoint(source, target)
    require(json.loads((target / "config.json").read_bytes())["hidden_size"] == 16, "another config is exported")


def _edits(files: Files) -> st.SearchStrategy[Edit]:
    """Edits of every file; JSON where the file is JSON."""
    found = []
    for name, data in files.items():
        try:
            json.loads(data)
            found.append(of(name, *[json_arguments(VALUES)] * 3, byte_arguments()))
        except ValueError:
            found.append(of(name, byte_arguments()))
    return any_of(*found, *found, any_of(*map(removal, files)))


def _memory_edits(files: Files) -> st.SearchStrategy[Edit]:
    meta = of("meta.json", *[json_arguments(VALUES)] * 5, byte_arguments())
    return any_of(meta, meta, _edits(files))


KINDS = [
    Kind(name="memory", files=memory_files, edits=_memory_edits, attempt=_attempt_memory),
    Kind(name="checkpoint", files=trained_files, edits=_edits, attempt=_attempt_trained),
    Kind(name="imported_run", files=imported_files, edits=_edits, attempt=_attempt_imported),
]
