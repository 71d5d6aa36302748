"""Training: state, optimizer, step, metrics and the loop that tells the story."""
