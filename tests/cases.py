"""Small inputs that hold every hard case at once, and the comparison all op tests use."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import Boundaries
from fot_jax.ops.backends import Backend, cpu, reference, xla
from fot_jax.types import Plan
from tests import oracles

TOLERANCE = 1e-5  # relative, in norm, float32 against float64
FAR = 1e-2  # a wrong formula must be at least this far away: a thousand tolerances

HEADS = {"grouped": (4, 2), "equal": (2, 2), "single": (3, 1)}  # (H, G)


@dataclasses.dataclass(frozen=True)
class Case:
    """Arrays of one crossbatch problem, float64 holding float32 values."""

    queries: np.ndarray
    keys: np.ndarray
    rotated_keys: np.ndarray
    values: np.ndarray
    upstream: np.ndarray
    segments: np.ndarray
    plan: Plan


def arrays(seed: int, *shapes: tuple[int, ...], scale: float = 1.0) -> list[np.ndarray]:
    """Gaussian float64 arrays that float32 represents exactly."""
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64) for shape in shapes]


# Rows of 5 tokens: whole documents, borders inside, padding at the end, a row of padding only,
# and document 7 met again in a row (3) that is not an own slot of row 1 or 4.
SEGMENTS = np.array(
    [[7, 7, 7, 7, 7], [7, 7, 8, 8, 8], [8, 8, 9, 0, 0], [4, 4, 7, 7, 0], [7, 7, 5, 5, 5], [0, 0, 0, 0, 0]]
)

# More slots than rows, empty slots between, an all-empty row, a row read twice, the row itself.
CONTEXT_IDS = np.array(
    [
        [-1, -1, -1, -1, -1, -1, -1],
        [0, -1, -1, -1, -1, -1, -1],
        [1, 0, -1, -1, -1, -1, -1],
        [2, 1, 0, 5, -1, -1, -1],
        [3, 2, 1, 0, 5, 4, -1],
        [3, 3, 2, 2, 1, 0, 4],
    ]
)
OWN = np.array(
    [
        [False] * 7,
        [True] + [False] * 6,
        [True, False] + [False] * 5,
        [False] * 7,
        [True, False, False, True] + [False] * 3,
        [True, True, False, False, False, True, False],
    ]
)


def crossbatch_case(heads: str = "grouped", *, head_dim: int = 6, seed: int = 0, scale: float = 1.0) -> Case:
    """The hard case of this file with random queries, keys and values."""
    num_heads, groups = HEADS[heads]
    rows, length = SEGMENTS.shape
    q, k = (rows, length, num_heads, head_dim), (rows, length, groups, head_dim)
    queries, keys, rotated_keys, values, upstream = arrays(seed, q, k, k, k, q)
    plan = Plan(context_ids=CONTEXT_IDS.astype(np.int32), own_document=OWN)
    return Case(scale * queries, keys, rotated_keys, values, upstream, SEGMENTS, plan)


JOINT_NAMES = ("values", "d queries", "d keys", "d context keys", "d values")


def joint_arguments(case: Case) -> tuple[np.ndarray, ...]:
    """The case's arrays in the order of `crossbatch_attention`: queries, keys, context keys, values."""
    return case.queries, case.rotated_keys, case.keys, case.values


def joint_expected(
    case: Case, boundaries: Boundaries, *, reads: bool = True, stopped: bool = False, yarn_factor: float = 1.0
) -> list[np.ndarray]:
    """The joint softmax of the own chunk and the contexts in float64, and its gradients: in order of JOINT_NAMES.

    Args:
      case: its queries meet the rotated keys of the own chunk, and the other keys of contexts.
      boundaries: whether documents of one row see each other.
      reads: whether there are contexts.
      stopped: whether the contexts' keys and values get no gradient.
      yarn_factor: the factor of queries that meet contexts.
    """
    sources = {
        "local": (case.queries, case.rotated_keys, case.values),
        "context": (yarn_factor * case.queries, case.keys, case.values),
    }
    visible = oracles.local_visible(case.segments, boundaries=boundaries.value)
    if reads:
        plan = case.plan.context_ids, case.plan.own_document
        contexts = oracles.context_visible(case.segments, *plan, boundaries=boundaries.value)
        visible = oracles.union(visible, contexts)
    local, context = oracles.attend_gradients(sources, visible, case.upstream).values()
    flows = 0.0 if stopped else 1.0
    return [
        oracles.attend(sources, visible),
        local[0] + yarn_factor * context[0],
        local[1],
        flows * context[1],
        local[2] + flows * context[2],
    ]


def backend_of(name: str, boundaries: Boundaries, *, block: int = 2) -> Backend:
    """Makes the backend "reference", "xla" or "cpu" anew, so that a changed class is the one that runs."""
    if name == "reference":
        return reference.Reference(boundaries=boundaries)
    return {"xla": xla.Xla, "cpu": cpu.Cpu}[name](boundaries=boundaries, block=block)


LOOPS = ("cpu", "default")  # the branches of jax.lax.platform_dependent


def force_loop(monkeypatch, loop: str) -> None:
    """Compiles the loop of one kind of device, whatever this machine is."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, **loops: loops[loop](*arguments))


def as_read(keys, values):
    """Keys [..., S, G, D] as [..., G, D, S] and values as [..., G, S, D], in which caches and memories are held."""
    return jnp.moveaxis(jnp.asarray(keys), -3, -1), jnp.moveaxis(jnp.asarray(values), -3, -2)


def to_float32(*values: np.ndarray) -> list[jax.Array]:
    """Arrays as the ops get them."""
    return [jnp.asarray(value, jnp.float32) for value in values]


def value_and_gradients(op: Callable, arguments: Sequence[np.ndarray], upstream: np.ndarray) -> list[np.ndarray]:
    """[op(*arguments), gradient of sum(op * upstream) by each argument], jitted once."""

    def run(*inputs):
        out, pullback = jax.vjp(op, *inputs)
        return out, *pullback(jnp.asarray(upstream, out.dtype))

    return [np.asarray(value) for value in jax.jit(run)(*to_float32(*arguments))]


def assert_close(got: Sequence, want: Sequence, names: Sequence[str], *, tolerance: float = TOLERANCE) -> None:
    """Every pair agrees relative to its own norm; the first that does not is named."""
    for name, g, w in zip(names, got, want, strict=True):
        error = oracles.relative_error(g, w)
        assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"
