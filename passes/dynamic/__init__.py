"""Dynamic quantization: int8 weights, and ranges of activations taken anew at every run."""
