"""Programs that show the machine's best speed, of which utilisation is a share."""

import jax
import jax.numpy as jnp

from fot_jax.bench.timing import Program
from fot_jax.config import ModelConfig
from fot_jax.models.layers import DTYPES

PRODUCT, PASS = "matrix product", "pass over memory"
SIDE = {"cpu": 2048}  # side of the square matrices; elsewhere SIDE_ELSEWHERE
SIDE_ELSEWHERE = 8192
PASS_BYTES = {"cpu": 1 << 28}
PASS_BYTES_ELSEWHERE = 1 << 31


def machine_programs(model: ModelConfig) -> list[Program]:
    """Returns a square matrix product in the model's compute dtype, and a sum over an array too large for caches."""
    platform, dtype = jax.default_backend(), DTYPES[model.dtype]
    side = SIDE.get(platform, SIDE_ELSEWHERE)
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    size = PASS_BYTES.get(platform, PASS_BYTES_ELSEWHERE)
    array = jnp.ones((size // 4,), jnp.float32)
    total = jax.jit(jnp.sum)
    return [
        Program(name=PRODUCT, call=lambda: jax.block_until_ready(product(matrix, matrix)), flops=2.0 * side**3),
        Program(name=PASS, call=lambda: jax.block_until_ready(total(array)), bytes=size),
    ]
