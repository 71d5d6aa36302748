"""Memory attention over devices against the float64 loops of one memory; ties, empty devices, what is sent."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases, oracles
from tests.scale import memory_cases
from tests.scale.memory_cases import DIM, ENTRIES, HEADS, LENGTH, MESHES, ROWS, arrays, whole_numbers

EVEN, ODD = "data 2, fsdp 2, context 2", "fsdp 3"


def part_filled() -> np.ndarray:
    """Row 0 holds 11 entries, with holes; row 1 two, both in the last third: most devices hold nothing of it."""
    valid = np.zeros((ROWS, ENTRIES), bool)
    valid[0, [0, 1, 2, 5, 8, 9, 12, 15, 18, 20, 23]] = True
    valid[1, [16, 22]] = True
    return valid


def full() -> np.ndarray:
    return np.ones((ROWS, ENTRIES), bool)


def check(mesh: str, k: int | None, valid: np.ndarray, *, given=None, recall: float | None = None) -> None:
    """The op on a mesh is the loop's."""
    given = given or arrays()
    layout, placed = memory_cases.laid_out(memory_cases.mesh_of(**MESHES[mesh]), given, valid)
    got = jax.jit(memory_cases.operator(layout, k=k, recall=recall))(*placed)
    visible = oracles.memory_visible(valid) if k is None else oracles.topk_visible(*given[:2], valid, k=k)
    cases.assert_close([got], [oracles.attend({"memory": given}, visible)], ["output"])


@pytest.mark.parametrize("mesh", MESHES)
def test_sharded_dense_is_the_oracle(mesh):
    """Reads the whole memory."""
    check(mesh, None, full())


@pytest.mark.parametrize("mesh", MESHES)
def test_sharded_topk_is_the_oracle(mesh):
    """Reads more entries, k = 5, than the 3 that each of 8 devices has."""
    check(mesh, 5, full())


@pytest.mark.parametrize("k", [1, 7, ENTRIES, 100, None])
@pytest.mark.parametrize("mesh", [EVEN, ODD])
def test_sharded_memory_with_holes_is_the_oracle(mesh, k):
    """Takes k beyond the entries of a device, of the row, and of the capacity; some devices have no entry."""
    check(mesh, k, part_filled())


@pytest.mark.parametrize("k", [3, None])
def test_sharded_memory_that_is_empty_gives_nothing(k):
    """Gives zeros."""
    check(EVEN, k, np.zeros((ROWS, ENTRIES), bool))


@pytest.mark.parametrize("k", [2, 5, 9])
@pytest.mark.parametrize("mesh", ["fsdp 8", EVEN, ODD])
def test_sharded_topk_breaks_ties_by_device(mesh, k):
    """Leaves exactly k of equal scores at the threshold, those of the earlier device first."""
    given = whole_numbers()
    for b, l, h in np.ndindex(ROWS, LENGTH, HEADS):
        scores = np.sort(given[1][b, :, h // 2] @ given[0][b, l, h])[::-1]
        if scores[k - 1] == scores[k]:
            break
    else:
        pytest.fail("no score ties at the threshold")
    check(mesh, k, full(), given=given)


def test_sharded_approximate_search_asks_for_its_recall():
    """Sorts on CPUs and GPUs; the program names each device's k and the target."""
    for mesh in (EVEN, ODD):
        check(mesh, 5, part_filled(), recall=0.9)
    layout, placed = memory_cases.laid_out(memory_cases.mesh_of(**MESHES[EVEN]), arrays(), full())
    text = str(jax.make_jaxpr(memory_cases.operator(layout, k=9, recall=0.8))(*placed))
    assert text.count("approx_top_k[") == 1
    assert "k=6" in text and "recall_target=0.8" in text


def test_sharded_approximate_search_misses_nothing_else(monkeypatch):
    """Weighs the k best of what is left by a search that never finds the best of a device."""

    def miss(scores, k, *, recall_target):
        best, index = jax.lax.top_k(scores, k + 1)
        return best[..., 1:], index[..., 1:]

    monkeypatch.setattr(jax.lax, "approx_max_k", miss)
    given, each = arrays(), ENTRIES // 4
    layout, placed = memory_cases.laid_out(memory_cases.mesh_of(**MESHES[EVEN]), given, full())
    got = jax.jit(memory_cases.operator(layout, k=4, recall=0.9))(*placed)

    def visible(b, l, h):
        scores = given[1][b, :, h // 2] @ given[0][b, l, h]
        parts = [sorted(range(s, s + each), key=lambda m: -scores[m])[1:] for s in range(0, ENTRIES, each)]
        return [("memory", b, m) for m in sorted(itertools.chain(*parts), key=lambda m: -scores[m])[:4]]

    cases.assert_close([got], [oracles.attend({"memory": given}, visible)], ["output"])


@pytest.mark.parametrize("k", [3, None])
def test_sharded_memory_sends_neither_keys_nor_values(k):
    """Compiles for entries over 4 devices: only scores are gathered, only values of the queries are summed."""
    layout, placed = memory_cases.laid_out(memory_cases.mesh_of(**MESHES[EVEN]), arrays(), full())
    found = memory_cases.collectives(jax.jit(memory_cases.operator(layout, k=k)).lower(*placed).compile().as_text())
    queries = ROWS // 2 * LENGTH * HEADS  # of one device
    assert sum(found.pop("all-gather", [])) == (0 if k is None else queries * k * 4 * 4)  # devices · k float32
    assert sum(found.pop("all-reduce")) == queries * 4 * (DIM if k else DIM + 2)
    assert not found


def test_collectives_show_keys_that_travel():
    """Counts them in a memory that jit splits by itself."""
    layout, placed = memory_cases.laid_out(memory_cases.mesh_of(**MESHES["fsdp 8"]), arrays(), full())

    def gathering(queries, keys, values, valid):
        keys, values = (jax.lax.with_sharding_constraint(x, jax.P()) for x in (keys, values))
        return memory_cases.operator(layout, k=3)(queries, keys, values, valid)

    with jax.sharding.use_abstract_mesh(layout.mesh):
        program = jax.jit(gathering).lower(*placed).compile()
    assert max(memory_cases.collectives(program.as_text())["all-gather"]) == ROWS * ENTRIES * 2 * DIM * 4
    assert jnp.isfinite(program(*placed)).all()
