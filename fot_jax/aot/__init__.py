"""Compiling for pods that are not here: chips, programs, and what the compiler's own text says they cost."""
