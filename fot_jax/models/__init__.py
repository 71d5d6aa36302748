"""Thin Flax linen modules over `fot_jax.ops`."""
