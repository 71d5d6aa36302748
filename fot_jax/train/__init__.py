"""Training: state, optimizer, step, metrics and the loop."""
