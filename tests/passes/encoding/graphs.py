"""Models with one weight each, and runs at the optimisation levels that users have."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from tests.support import model_from_text

_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session(model, level="all", optimized=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def outputs(model, feed, level="all"):
    return session(model, level).run(None, feed)[0]


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matmul(columns=64, rows=48, opset=21):
    return model_from_text(
        f"g (float[N,{columns}] x) => (float[N,{rows}] y) {{ y = MatMul(x, w) }}",
        opset=opset,
        w=random(0, columns, rows) * 0.1,
    ), {"x": random(1, 5, columns)}


def gemm(opset=21):
    return model_from_text(
        "g (float[N,64] x) => (float[N,48] y) { y = Gemm <transB = 1> (x, w, b) }",
        opset=opset,
        w=random(0, 48, 64) * 0.1,
        b=random(2, 48),
    ), {"x": random(1, 5, 64)}


def conv(opset=13, group=1):
    return model_from_text(
        "g (float[N,16,9,9] x) => (float[N,32,9,9] y) "
        f"{{ y = Conv <pads = [1, 1, 1, 1], group = {group}> (x, w, b) }}",
        opset=opset,
        w=random(0, 32, 16 // group, 3, 3) * 0.1,
        b=random(2, 32),
    ), {"x": random(1, 2, 16, 9, 9)}


def transposed(opset=13):
    return model_from_text(
        "g (float[N,16,9,9] x) => (float[N,24,19,19] y) "
        "{ y = ConvTranspose <strides = [2, 2]> (x, w) }",
        opset=opset,
        w=random(0, 16, 24, 3, 3) * 0.1,
    ), {"x": random(1, 2, 16, 9, 9)}


def table(opset=13):
    return model_from_text(
        "g (int64[A,B] x) => (float[A,B,32] y) { y = Gather <axis = 0> (w, x) }",
        opset=opset,
        w=random(0, 300, 32),
    ), {"x": np.array([[0, 299, 5], [7, 7, 120]])}


def lstm(opset=14):
    return model_from_text(
        "g (float[T,N,16] x) => (float[T,1,N,24] y) "
        "{ y, h, c = LSTM <hidden_size = 24> (x, w, r) }",
        opset=opset,
        w=random(0, 1, 96, 16) * 0.2,
        r=random(2, 1, 96, 24) * 0.2,
    ), {"x": random(1, 6, 2, 16)}


ALL = {
    "matmul": matmul,
    "gemm": gemm,
    "conv": conv,
    "transposed": transposed,
    "table": table,
    "lstm": lstm,
}
