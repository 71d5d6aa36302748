"""Measurements of a trained model: perplexity, distraction, dictionary lookup; tables and plots."""
