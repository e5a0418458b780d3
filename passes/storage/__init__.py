"""Constants in fewer bytes: forms that onnxruntime turns back into tensors when it loads a file."""
