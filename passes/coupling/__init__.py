"""Cutting atoms out of a model, and the proof that nothing else changed."""
