"""The matrix products of projections and unembedding, in the forms that are cheap everywhere."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fot_jax.ops import target


def project(x: Float[Array, "B L ..."], weight: Float[Array, "..."], contracted: int = 1) -> Float[Array, "B L ..."]:
    """Contracts the last `contracted` axes of x with the first of the weight: [B, L, E]·[E, F] → [B, L, F].

    The same numbers as einsum. Only the gradient differs in form: dW = xᵀ·g with x on the left,
    where JAX's own rule puts g there; XLA on CPUs transposes the left operand, and fusing that
    with the arithmetic that made g cost a fifth of a training step.

    Args:
      x: activations.
      weight: in the compute dtype of x.
      contracted: number of contracted axes (2 for the output projection over H and D).
    """
    return _project(x, weight, contracted)  # pyright: ignore[reportReturnType]


def unembed(x: Float[Array, "B L E"], table: Float[Array, "..."], *, tied: bool) -> Float[Array, "B L V"]:
    """Float32 logits. In bfloat16 on CPUs their gradient is rounded to bfloat16, as TPUs do at default precision.

    Args:
      x: activations.
      table: in the compute dtype of x; the embedding [V, E] where it is tied to it, else [E, V].
      tied: which of the two it is.
    """
    if _on_matrix_unit(x):
        return _unembed(x, table, tied)  # pyright: ignore[reportReturnType]
    return _logits(x, table, tied)


def _logits(x: Array, table: Array, tied: bool) -> Array:
    return jnp.einsum("BLE,VE->BLV" if tied else "BLE,EV->BLV", x, table, preferred_element_type=jnp.float32)


def _on_matrix_unit(x: Array) -> bool:
    """Whether products of x are for a CPU's matrix unit, if it has one."""
    return x.dtype == jnp.bfloat16 and target.current().platform == "cpu"


def _dot(a: Array, b: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """a·b over `axes` in the dtype of a.

    XLA has bfloat16 products on a CPU's matrix unit (AMX) only where the result is float32, elsewhere it widens the
    operands: three to five times slower. TPUs and GPUs sum in float32 either way and keep the narrow result, which is
    half the traffic where it is added up over devices.
    """
    wanted = jnp.float32 if _on_matrix_unit(a) else None
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=wanted).astype(a.dtype)


def _product(x: Array, weight: Array, contracted: int) -> Array:
    return _dot(x, weight, (tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))))


_project = jax.custom_vjp(_product, nondiff_argnums=(2,))


def _forward(x, weight, contracted):
    return _product(x, weight, contracted), (x, weight)


def _backward(contracted, saved, g):
    x, weight = saved
    outputs = weight.ndim - contracted
    dx = _dot(g, weight, (tuple(range(g.ndim - outputs, g.ndim)), tuple(range(contracted, weight.ndim))))
    return dx, _dot(x, g, ((0, 1), (0, 1)))


_project.defvjp(_forward, _backward)


_unembed = jax.custom_vjp(_logits, nondiff_argnums=(2,))


def _unembed_forward(x, table, tied):
    return _logits(x, table, tied), (x, table)


def _unembed_backward(tied, saved, g):
    x, table = saved
    g, positions = g.astype(x.dtype), ((0, 1), (0, 1))
    dx = _dot(g, table, ((2,), (0 if tied else 1,)))
    return dx, _dot(g, x, positions) if tied else _dot(x, g, positions)


_unembed.defvjp(_unembed_forward, _unembed_backward)
