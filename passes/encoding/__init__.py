"""Storing weights in few bits, in forms that onnxruntime fuses or folds when it loads the file."""
