"""What the suffix of a file says about its form."""

TEXT = {
    ".json": "json",
    ".onnxjson": "json",
    ".textproto": "textproto",
    ".prototxt": "textproto",
    ".pbtxt": "textproto",
    ".onnxtxt": "onnxtxt",
    ".onnxtext": "onnxtxt",
    ".txt": "onnxtxt",
}
"""File suffix -> text form."""

ORT = ".ort"
"""onnxruntime's own format."""

FOREIGN = {
    ".safetensors": "write a .onnx file with --weights-format safetensors",
    ".data": "write a .onnx file; its data files are named after it",
    ".npz": "write a .onnx file",
    **dict.fromkeys((".pt", ".pth", ".pt2", ".bin", ".ckpt"), "PyTorch does not read ONNX graphs"),
    **dict.fromkeys((".tflite", ".h5", ".keras"), "write a .onnx file and convert it with onnx2tf"),
    **dict.fromkeys((".engine", ".trt", ".plan"), "write a .onnx file and build it with trtexec"),
    **dict.fromkeys((".xml", ".mlmodel", ".mlpackage"), "write a .onnx file for that toolkit"),
    ".gguf": "write a .onnx file",
}
"""Suffixes of formats that are not written -> what to do instead."""
