"""Choosing the numbers of a quantization by what they do to the model's results."""
