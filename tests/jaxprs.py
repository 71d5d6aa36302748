"""Contents of a traced or compiled program: shapes of all its arrays, names of all its primitives."""

import re
from collections.abc import Callable, Iterator

import jax


def equations(jaxpr) -> Iterator:
    """All equations, those of inner programs (scan, cond, custom_vjp …) included."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


def shapes(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of everything any equation makes."""
    return {tuple(v.aval.shape) for e in equations(jaxpr) for v in e.outvars if hasattr(v.aval, "shape")}


def primitives(jaxpr) -> set[str]:
    """Names of all primitives."""
    return {equation.primitive.name for equation in equations(jaxpr)}


def compiled_shapes(step: Callable, arguments: tuple) -> set[tuple[int, ...]]:
    """Shapes that appear in the optimised HLO."""
    text = jax.jit(step).lower(*arguments).compile().as_text()
    return {tuple(int(n) for n in match.split(",") if n) for match in re.findall(r"\b(?:f32|bf16)\[([\d,]*)\]", text)}
