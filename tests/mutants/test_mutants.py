"""Each term of the method, broken in the source itself, must fail the check that claims to hold it.

A mutant is one edit of one line of `fot_jax`: the edited module is run, what it defines takes the place of the real
definitions wherever they were imported, and the check (the same that the tests of ops, paper and models run) has to
raise AssertionError. An edit whose line is no longer in the source fails: renew it with the line. Errors that a wrong
formula shows as well are wrong oracles next to the right one, in tests/paper.
"""

import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionBackend, Boundaries
from fot_jax.models import transformer
from fot_jax.models.cache import init_cache
from fot_jax.ops.backends import cpu
from tests import cases
from tests.models import decoders
from tests.ops import (
    kernel_cases,
    test_cache_attention,
    test_crossbatch,
    test_memory_attention,
)
from tests.paper import test_equation_1_memory_attention, test_equation_2_crossbatch
from tests.scale import test_ring, test_sharded_memory


def by_head(check: Callable[[], None]) -> Callable[[], None]:
    """The check with the loop of CPUs for all sizes."""

    def checked():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "CACHE_BYTES", 0)
            cases.force_loop(patch, "cpu")
            check()

    return checked


def joint(name: str = "cpu", boundaries: Boundaries = Boundaries.MASKED, **settings) -> Callable[[], None]:
    """The hard case of crossbatch, values and gradients."""

    def check():
        case = cases.crossbatch_case()
        got = test_crossbatch.joint(case, cases.backend_of(name, boundaries), **settings)
        cases.assert_close(got, cases.joint_expected(case, boundaries, **settings), cases.JOINT_NAMES)

    return by_head(check)


def equation_2(name: str) -> Callable[[], None]:
    return by_head(lambda: test_equation_2_crossbatch.check(name))


tiles = by_head(lambda: test_crossbatch.test_tiles_of_large_blocks_are_the_reference())


def apply(model, tokens, **fields):
    """The decoder as it is now (a mutant's is not the one that other tests have compiled)."""
    decoder, variables = transformer.Decoder(model), {"params": decoders.params(model)}
    tokens = jnp.asarray(tokens)
    return jax.jit(lambda tokens: decoder.apply(variables, tokens, decoders.inputs_of(tokens, **fields)))(tokens)


def ring(backend: AttentionBackend = AttentionBackend.BLOCKWISE) -> Callable[[], None]:
    """Rows of one device that travel over two hops, values and gradients."""
    return lambda: test_ring.check("packed", {"data": 4}, Boundaries.MASKED, backend=backend)


def ring_of_gpu_kernels() -> None:
    """By the kernels for GPUs, interpreted."""
    with kernel_cases.on(kernel_cases.GPU):
        ring(AttentionBackend.PALLAS)()


def cache_by_head() -> None:
    """Keys of each row, some of them not valid, read by the loop of CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        test_cache_attention.test_cache_attention_is_the_oracle("grouped", 3, "cpu", patch)


def int8() -> None:
    """Keys and values with scales, all at once."""
    with pytest.MonkeyPatch.context() as patch:
        test_cache_attention.test_int8_keys_count_times_their_scales("grouped", "default", 1, patch)


def grouped_top_k() -> None:
    """Many equal scores."""
    test_memory_attention.test_top_k_in_groups_is_that_of_all(1 << 15, 5)


def sharded(k: int | None) -> Callable[[], None]:
    """Entries over four devices, most of which hold none of row 1."""
    return lambda: test_sharded_memory.check("data 2, fsdp 2, context 2", k, test_sharded_memory.part_filled())


def decoder(model, **settings) -> Callable[[], None]:
    """The whole decoder on the hard case."""

    def check():
        tokens, case = decoders.tokens_for(6), {**decoders.hard_case(), **settings}
        want = decoders.oracle_logits(model, decoders.params(model), tokens, **case)
        cases.assert_close([apply(model, tokens, **case).logits], [want], ["logits"])

    return check


def cache() -> None:
    """A row read with a cache is the oracle's."""
    model, tokens = decoders.config(), decoders.tokens_for(2)
    got = apply(model, tokens, cache=init_cache(model, 2)).logits
    want = decoders.oracle_logits(model, decoders.params(model), tokens, segments=np.ones(tokens.shape, int))
    cases.assert_close([got], [want], ["logits"])


LLAMA, PAPER = decoders.config(), decoders.paper()
SCALED = {"log_length_scaling_from": 7}
MUTANTS = {  # name: (module, line or part of it, what it becomes, check that must fail)
    # who sees what
    "empty slots read row 0": ("ops.visibility", "return seen & filled[:, None, None]", "return seen",
                               joint("reference")),
    "a skipped block that some see": ("ops.visibility", "return none | (own & apart)", "return none | own", joint()),
    "no mask where some are hidden": ("ops.visibility", "(shown_own | (jnp.logical_not(own) & apart)) & whole",
                                      "shown_own | jnp.logical_not(own)", joint()),
    "log n of empty slots too": ("ops.visibility", "plan.context_ids >= 0, axis=1",
                                 "plan.context_ids >= -1, axis=1", decoder(LLAMA, **SCALED)),
    # one softmax, and its gradient
    "contexts in place of the own chunk": ("ops.crossbatch", "return softmax.merge(partial, found)", "return found",
                                           decoder(LLAMA)),
    "merge without rescaling": ("ops.softmax", "a.total * scale_a + b.total * scale_b", "a.total + b.total",
                                joint("reference")),
    "no gradient through the normaliser": ("ops.softmax", "(through + d_total[..., None])", "through", joint("xla")),
    "heads of another group": ("ops.softmax", "return x.reshape(B, G, H // G, *tail)",
                               "return x.reshape(B, H // G, G, *tail).swapaxes(1, 2)", joint("reference")),
    "contexts of layers that read none": ("ops.crossbatch", "partial = jax.lax.cond(reads, with",
                                          "partial = jax.lax.cond(True, with", joint(reads=False)),
    "stopped contexts with a gradient": ("ops.crossbatch", "if stopped", "if False", joint(stopped=True)),
    # the loops of CPUs
    "blocks after the last tile left out": ("ops.backends.cpu", "fori_loop(tiles * together, order",
                                            "fori_loop(order.clear[b], order", tiles),
    "a tile's gradients to its first context": ("ops.backends.cpu", "slice(i * loop.block, (i + 1) * loop.block)",
                                                "slice(0, loop.block)", tiles),
    "peaks not rescaled": ("ops.backends.cpu", "weighted * shrink[:, None] + product(", "weighted + product(",
                           equation_2("cpu")),
    "holes in a memory overlooked": ("ops.cache_attention", "clear = jnp.all(ok) & (", "clear = (", cache_by_head),
    "values without their scales": ("ops.cache_attention", "weights = weights * scales[1]",
                                    "weights = weights * scales[0]", int8),
    "groups in the order of their peaks": ("ops.top_k", "jnp.sort(jax.lax.top_k(groups.max(axis=-1), k)[1]",
                                           "jnp.flip(jax.lax.top_k(groups.max(axis=-1), k)[1]", grouped_top_k),
    # devices
    "blocks of the wrong device": ("ops.distributed.ring", "jax.lax.axis_index(ring.axes) - ring.step",
                                   "jax.lax.axis_index(ring.axes) + ring.step", ring()),
    "gradients of rows that stay behind": ("ops.distributed.ring", "if following is None or row not in following.rows]",
                                           "if following is None]", ring()),
    "a GPU's keys read by one head of the group": ("ops.backends.pallas_gpu", "0, spec.repeats * (end - first), step",
                                                   "0, end - first, step", ring_of_gpu_kernels),
    "devices of different peaks": ("ops.distributed.memory", "peak = jax.lax.pmax(part.peak, layout.entries)",
                                   "peak = part.peak", sharded(None)),
    "the k best of each device": ("ops.distributed.memory", "count = min(k, everywhere.shape[-1])",
                                  "count = everywhere.shape[-1]", sharded(3)),
    # the layer
    "every layer reads contexts": ("models.attention_layer", "reads=role.is_memory, yarn", "reads=True, yarn",
                                   decoder(LLAMA)),
    "keys rotated in memory": ("models.attention_layer", "apply_rope(keys, positions), keys, values",
                               "apply_rope(keys, positions), apply_rope(keys, positions), values", decoder(LLAMA)),
    "positions in nope memory layers": ("models.attention_layer", "no_rope = is_memory &", "no_rope = False &",
                                        decoder(PAPER)),
    "log n in every layer": ("models.attention_layer", "scale = jnp.where(role.is_memory, scale, 1.0)[",
                             "scale = jnp.where(True, scale, 1.0)[", decoder(LLAMA, **SCALED)),
    "keys not normalised": ("models.layers", "_unit(keys), values", "keys, values", decoder(PAPER)),
    "cache sees the next token": ("models.attention_layer", "counts=positions + 1", "counts=positions + 2", cache),
    # the rest of the method
    "the k smallest": ("ops.top_k", "functools.partial(jax.lax.top_k, k=min(k, M))",
                       "lambda rows: (lambda x: (-x[0], x[1]))(jax.lax.top_k(-rows, min(k, M)))",
                       test_equation_1_memory_attention.check),
    "gate the wrong way round": ("ops.memory_attention", "jax.nn.sigmoid(gate_bias)", "jax.nn.sigmoid(-gate_bias)",
                                 test_memory_attention.test_gate_mixes_two_softmaxes_per_head),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch, tmp_path):
    """Fails the check that holds the broken term."""
    path, old, new, check = MUTANTS[name]
    module = importlib.import_module(f"fot_jax.{path}")
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{name}: {old!r} is {source.count(old)} times in {path}; renew the mutant"
    edited = tmp_path / "mutant.py"
    edited.write_text(source.replace(old, new), encoding="utf-8")
    real = dict(vars(module))
    try:
        importlib.machinery.SourceFileLoader(module.__name__, str(edited)).exec_module(module)
        replace_imported(real, module, monkeypatch)
        with pytest.raises(AssertionError):
            check()
    finally:
        vars(module).update(real)


def replace_imported(real: dict, module: ModuleType, monkeypatch) -> None:
    """Puts the mutated functions and classes of a module in the place of the real ones wherever they were imported."""
    changed = {
        id(value): vars(module)[name]
        for name, value in real.items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    }
    for importer in [m for n, m in sys.modules.items() if n.split(".")[0] in ("fot_jax", "tests") and m is not module]:
        for name, value in list(vars(importer).items()):
            if id(value) in changed:
                monkeypatch.setattr(importer, name, changed[id(value)])


def test_checks_hold_without_a_mutant():
    """Passes those of the checks above that no other test runs in this form."""
    for check in (
        cache,
        decoder(LLAMA),
        decoder(PAPER),
        decoder(LLAMA, **SCALED),
        joint("reference", Boundaries.JOINED),
        joint(),
    ):
        check()
