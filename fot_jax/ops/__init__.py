"""Pure functions of arrays: the mathematics, callable without Flax, parameters or a config."""
