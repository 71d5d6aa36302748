"""Inference: reading long inputs in windows, sampling, and generation with a memory."""
