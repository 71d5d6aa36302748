"""Each term of the method, broken in the source itself, must fail the check that claims to hold it.

A mutant is one edit of one line of `fot_jax`: the edited module is run and put in the place of the real
one for the length of a test, and the check (the same that the tests of ops, paper and models run) has to
raise AssertionError. An edit whose line is no longer in the source fails: renew it with the line.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.models import transformer
from fot_jax.models.cache import init_cache
from fot_jax.ops import plans
from tests import cases
from tests.models import decoders
from tests.ops import (
    kernel_cases,
    test_crossbatch,
    test_joint_blocks,
    test_losses,
    test_memory_attention,
    test_plans,
    test_prefix,
    test_rope,
)
from tests.paper import test_equation_1_memory_attention, test_equation_2_crossbatch
from tests.scale import test_ring, test_sharded_memory

REFERENCE, BLOCKWISE = AttentionForm.REFERENCE, AttentionForm.BLOCKWISE


def contexts(form: AttentionForm, boundaries: Boundaries = Boundaries.MASKED) -> Callable[[], None]:
    """The hard case of crossbatch, values and gradients."""

    def check():
        case = cases.crossbatch_case()
        op = test_crossbatch.operator(case, boundaries, form, 2)
        got = cases.value_and_gradients(op, (case.queries, case.keys, case.values), case.upstream)
        cases.assert_close(got, test_crossbatch.expected(case, boundaries), test_crossbatch.NAMES)

    return check


def tiles() -> None:
    """Several contexts in one tile, values and gradients."""
    test_crossbatch.test_large_blocks_in_tiles_are_the_reference_in_values_and_gradients()


def joint() -> None:
    """Local attention and contexts as one function."""
    with pytest.MonkeyPatch.context() as patch:
        check = test_joint_blocks.test_joined_is_the_oracle_in_values_and_all_gradients
        check(Boundaries.MASKED, "cpu", patch)


def unread() -> None:
    test_joint_blocks.test_layers_that_read_nothing_and_contexts_that_get_no_gradient({"reads": False})


def stopped() -> None:
    test_joint_blocks.test_layers_that_read_nothing_and_contexts_that_get_no_gradient({"stopped": True})


def equation_1() -> None:
    test_equation_1_memory_attention.check()


def equation_2(form: AttentionForm) -> Callable[[], None]:
    return lambda: test_equation_2_crossbatch.check(form)


def apply(model, tokens, **arguments):
    """The decoder as it is now (a mutant's is not the one that other tests have compiled)."""
    decoder, variables = transformer.Decoder(model), {"params": decoders.params(model)}
    return jax.jit(lambda tokens: decoder.apply(variables, tokens, **arguments))(jnp.asarray(tokens))


def ring() -> None:
    """Rows of one device that travel over two hops, values and gradients."""
    test_ring.check("packed", {"data": 4}, Boundaries.MASKED)


def ring_of_kernels() -> None:
    """The same by the kernels, interpreted."""
    test_ring.check("packed", {"data": 4}, Boundaries.MASKED, form=AttentionForm.PALLAS)


def ring_of_gpu_kernels() -> None:
    """The same by those for GPUs."""
    with kernel_cases.on(kernel_cases.GPU):
        ring_of_kernels()


def prefix_of_few_queries() -> None:
    """Keys of each row, of which some are not valid, read as one wide head."""
    with pytest.MonkeyPatch.context() as patch:
        test_prefix.test_prefix_is_the_oracle_in_values_and_gradients("grouped", 3, "few queries", patch)


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


def authors_table() -> None:
    plan = plans.constant_range_plan(8, k=4, r=6, stepping=True)
    assert test_plans.as_drawn(plan) == test_plans.drawn(test_plans.DRAWN["authors' range 6"][1])


def rotation() -> None:
    test_rope.test_rotation_is_the_oracle_in_values_and_gradient(1.0)


def gate() -> None:
    test_memory_attention.test_gate_mixes_two_softmaxes_per_head_in_values_and_gradients()


LLAMA, PAPER = decoders.config(), decoders.paper()
LLAMA_BY_PARTS = decoders.config(attention=REFERENCE)
ROTATED_KEYS = (
    "local, queries, rotate(keys, jnp.arange(keys.shape[1])[None], "
    "*rope_frequencies(config.rope, config.head_dim, 8)), values, call.plan,"
)
MUTANTS = {  # name: (module, line or part of it, what it becomes, check that must fail)
    "no causal mask": ("ops.attention", "causal = jnp.arange(S)[None, :] <=", "causal = -jnp.arange(S)[None, :] <=",
                       equation_2(REFERENCE)),
    "no causal mask, blockwise": ("ops.blocks", "inside = (start +", "inside = -(start +", equation_2(BLOCKWISE)),
    "neighbours i - 1 for i + 1": ("ops.plans", "(i + offset) % streams", "(i - offset) % streams",
                                   equation_2(BLOCKWISE)),
    "two softmaxes": ("ops.crossbatch", "attention.normalise(attention.merge(near, far))",
                      "((attention.normalise(near) + attention.normalise(far)) / 2)", equation_2(REFERENCE)),
    "two softmaxes in the decoder": ("models.attention_layer", "attention.normalise(attention.merge(local, extra))",
                                     "((attention.normalise(local) + attention.normalise(extra)) / 2)",
                                     decoder(LLAMA_BY_PARTS)),
    "contexts in place of the own chunk": ("ops.joint_blocks", "return attention.merge(local, far)", "return far",
                                           decoder(LLAMA)),
    "tau = 1": ("models.layers", "return queries * D**-0.5", "return queries", decoder(LLAMA)),
    "no temperature": ("models.layers", "_unit(queries) * temperature", "_unit(queries)", decoder(PAPER)),
    "keys not normalised": ("models.layers", "_unit(keys), values", "keys, values", decoder(PAPER)),
    "keys rotated in memory": ("models.attention_layer", "local, queries, keys, values, call.plan,",
                               ROTATED_KEYS, decoder(LLAMA)),
    "positions in nope memory layers": ("models.attention_layer", "still = role.is_memory &", "still = False &",
                                        decoder(PAPER)),
    "no positions in rope0 memory layers": ("models.attention_layer", "MemoryPositions.ROPE0: False",
                                            "MemoryPositions.ROPE0: True", decoder(LLAMA)),
    "no layer's own softmax": ("models.attention_layer", "return attention.normalise(local)\n\n        # Branch",
                               "return jnp.zeros_like(attention.normalise(local))\n\n        # Branch",
                               decoder(LLAMA_BY_PARTS)),
    "log n of the local keys alone": ("ops.crossbatch", "return local + filled[:, None] * local.shape[1]",
                                      "return local + 0 * filled[:, None]", decoder(LLAMA, logn_from=7)),
    "log n of empty slots too": ("ops.crossbatch", "jnp.asarray(plan.context_ids) >= 0, axis=1",
                                 "jnp.asarray(plan.context_ids) >= -1, axis=1", decoder(LLAMA, logn_from=7)),
    "log n in every layer": ("models.attention_layer", "scale = jnp.where(role.is_memory, scale, 1.0)[",
                             "scale = jnp.where(True, scale, 1.0)[", decoder(LLAMA, logn_from=7)),
    "every layer reads contexts": ("models.attention_layer", "reads=role.is_memory, stopped=call",
                                   "reads=role.is_memory | True, stopped=call", decoder(LLAMA)),
    "every layer reads contexts, by parts": ("models.attention_layer", "cond(role.is_memory,", "cond(True,",
                                             decoder(LLAMA_BY_PARTS)),
    "contexts without gradient": ("ops.crossbatch", "keys[rows].reshape", "jax.lax.stop_gradient(keys)[rows].reshape",
                                  equation_2(REFERENCE)),
    "contexts without gradient, blockwise": ("ops.by_head", "_add_tile(dk_all, dk[block], at)", "dk_all",
                                             equation_2(BLOCKWISE)),
    "no gradient through the normaliser": ("ops.by_head", "(through + d_total[b, g][None])", "through",
                                           equation_2(BLOCKWISE)),
    "tiles that overlap": ("ops.by_head", "places(i * together, together)", "places(i, together)", tiles),
    "what nobody sees first": ("ops.by_head", "argsort(-sights", "argsort(sights", contexts(BLOCKWISE)),
    "what is seen in part left out": ("ops.by_head", "seen=(sights != Sight.NOBODY)", "seen=(sights == Sight.ALL)",
                                      contexts(BLOCKWISE)),
    "blocks after the last tile left out": ("ops.by_head", "fori_loop(tiles * together, order",
                                            "fori_loop(order.clear[b], order", tiles),
    "a tile's gradients to its first context": ("ops.by_head", "slice(i * length, (i + 1) * length)",
                                                "slice(0, length)", tiles),
    "local attention by its own peak": ("ops.joint_blocks", "d_weighted * shrink[..., None]", "d_weighted", joint),
    "local totals by their own peak": ("ops.joint_blocks", "total=d_total * shrink", "total=d_total", joint),
    "contexts of layers that read none": ("ops.joint_blocks", "jax.lax.cond(reads, far, none)", "far()", unread),
    "stopped contexts with a gradient": ("ops.joint_blocks", "if rule.stopped", "if False", stopped),
    "peaks not rescaled": ("ops.by_head", "weighted * shrink[:, None] + _product(", "weighted + _product(",
                           contexts(BLOCKWISE)),
    "merge without rescaling": ("ops.attention", "a.total * scale_a + b.total * scale_b", "a.total + b.total",
                                equation_1),
    "padding seen": ("ops.blocks", "(key_segments != 0)[:, None, :] & jnp.where(", "jnp.where(",
                     contexts(REFERENCE, Boundaries.JOINED)),
    "the own document met elsewhere": ("ops.blocks", "mine, ~same)", "mine, jnp.ones_like(same))",
                                       contexts(BLOCKWISE)),
    "masked as joined": ("ops.blocks", "same if boundaries is Boundaries.MASKED else jnp.ones_like(same)",
                         "jnp.ones_like(same)", contexts(BLOCKWISE)),
    "joined as masked": ("ops.blocks", "same if boundaries is Boundaries.MASKED else jnp.ones_like(same)", "same",
                         contexts(BLOCKWISE, Boundaries.JOINED)),
    "empty slots read row 0": ("ops.blocks", "none |= (ids < 0) |", "none |=", contexts(BLOCKWISE)),
    "all seen where some are": ("ops.blocks", "jnp.where(every & whole", "jnp.where(~none", contexts(BLOCKWISE)),
    "padding among all that is seen": ("ops.blocks", "every & whole", "every",
                                       contexts(BLOCKWISE, Boundaries.JOINED)),
    "holes in a memory seen": ("ops.prefix", "ok[None] & ((start", "((start", prefix_of_few_queries),
    "holes in a memory overlooked": ("ops.prefix", "clear=jnp.all(ok) & (", "clear=(", prefix_of_few_queries),
    "nobody sees what some do": ("ops.blocks", "jnp.where(own, apart, same)", "~same", contexts(BLOCKWISE)),
    "no mask": ("ops.by_head", "jax.lax.cond(clear, weigh,", "jax.lax.cond(True, weigh,", contexts(BLOCKWISE)),
    "heads of another group": ("ops.attention", "queries.reshape(B, L, G, H // G, D)",
                               "queries.reshape(B, L, H // G, G, D).swapaxes(2, 3)", contexts(REFERENCE)),
    "blocks of the wrong device": ("ops.ring", "jax.lax.axis_index(route.axes) - route.step",
                                   "jax.lax.axis_index(route.axes) + route.step", ring),
    "gradients lost past the last device": ("ops.ring", "sums = _shift(sums, route.axes, route.step)",
                                            "sums = _along(route, sums)", ring),
    "gradients of rows that stay behind": ("ops.ring", "if following is None or row not in following.rows]",
                                           "if following is None]", ring),
    "kernels by the peak of each hop": ("ops.hops", "saved, cotangents = (*inputs, peak[:, :, None])",
                                        "saved, cotangents = pallas_attention.forward(rule, *inputs)[1]",
                                        ring_of_kernels),
    "a GPU's totals of different peaks": ("ops.triton_kernels", "jnp.exp(peak - new_peak)", "jnp.ones_like(peak)",
                                          ring_of_gpu_kernels),
    "a GPU's keys read by one head of the group": ("ops.triton_kernels", "0, repeats * (end - first), step",
                                                   "0, end - first, step", ring_of_gpu_kernels),
    "devices of different peaks": ("ops.sharded_memory", "peak = jax.lax.pmax(part.peak, layout.entries)",
                                   "peak = part.peak", sharded(None)),
    "the k best of each device": ("ops.sharded_memory", "count = min(k, everywhere.shape[-1])",
                                  "count = everywhere.shape[-1]", sharded(3)),
    "neighbours of the wrong device": ("ops.sharded_memory", "place // own == jax", "place // own != jax", sharded(3)),
    "the k smallest": ("ops.memory_attention", "jax.lax.top_k(scores.reshape(-1, M), min(k, M))",
                       "(lambda x: (-x[0], x[1]))(jax.lax.top_k(-scores.reshape(-1, M), min(k, M)))", equation_1),
    "k one too small": ("ops.memory_attention", "jax.lax.top_k(scores.reshape(-1, M), min(k, M))",
                        "jax.lax.top_k(scores.reshape(-1, M), min(k - 1, M))", equation_1),
    "gate the wrong way round": ("ops.memory_attention", "jax.nn.sigmoid(gate_bias)", "jax.nn.sigmoid(-gate_bias)",
                                 gate),
    "rotation the wrong way round": ("ops.rope", "first * cos - second * sin", "first * cos + second * sin", rotation),
    "authors' range one too long": ("ops.plans", "for i in range(1, reach)", "for i in range(1, min(reach, b) + 1)",
                                    authors_table),
    "no stepping": ("ops.plans", "if stepping and k > 1:", "if not stepping:", authors_table),
    "z not squared": ("ops.losses", "z_loss * normaliser**2", "z_loss * normaliser",
                      test_losses.test_sums_are_the_oracle),
    "cache sees the next token": ("models.attention_layer", "counts=index + 1", "counts=index + 2", cache),
    "cache rotated from the wrong place": ("models.attention_layer", "index = call.lengths[:, None] +",
                                           "index = call.lengths[:, None] + 1 +", cache),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch, tmp_path):
    path, old, new, check = MUTANTS[name]
    module = importlib.import_module(f"fot_jax.{path}")
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{name}: {old!r} stands {source.count(old)} times in {path}; renew the mutant"
    edited = tmp_path / "mutant.py"
    edited.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(module.__name__, edited)
    assert spec is not None and spec.loader is not None
    mutated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutated)
    for attribute, value in vars(mutated).items():
        if getattr(value, "__module__", None) == module.__name__ and callable(value):
            monkeypatch.setattr(module, attribute, value)
    with pytest.raises(AssertionError):
        check()


def test_checks_hold_without_a_mutant():
    """Those of the checks above that no other test runs in this form."""
    decoded = (decoder(LLAMA), decoder(LLAMA_BY_PARTS), decoder(PAPER), decoder(LLAMA, logn_from=7))
    for check in (cache, *decoded, contexts(BLOCKWISE), contexts(REFERENCE, Boundaries.JOINED)):
        check()
