"""Compilation for absent pods: chips, programs, and their costs by the compiler's own text."""
