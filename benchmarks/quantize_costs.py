"""Measure what operators cost in float and on integers, and fit ``converter/ops/integer_cost.py``.

    python -m benchmarks.quantize_costs [--quick]

Every figure is the difference between a longer and a shorter chain of the same operator, so that
opening, borders and layout changes drop out; the smallest of many interleaved runs counts. Prints
the rates in nanoseconds and the relative error of each fitted kernel. One thread.
"""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from converter.ops.integer_cost import Product, float_conv, integer_conv, matrix

LENGTHS = (2, 6)
Array = np.ndarray[Any, Any]
Sample = tuple[dict[str, float], float]
Step = Callable[["Chain", str], str]
generator = np.random.default_rng(0)


class Chain:
    """A graph between uint8 (or float) input and output, in float or with grids."""

    def __init__(self, shape: Sequence[int], *, integer: bool) -> None:
        self.integer = integer
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.shape = list(shape)
        self.kind = TensorProto.UINT8 if integer else TensorProto.FLOAT

    def op(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def start(self) -> str:
        return self.op("DequantizeLinear", ["x", *self.grid()]) if self.integer else "x"

    def grid(self) -> list[str]:
        return [self.constant(np.float32(0.02)), self.constant(np.uint8(128))]

    def rounded(self, value: str) -> str:
        if not self.integer:
            return value
        return self.op(
            "DequantizeLinear", [self.op("QuantizeLinear", [value, *self.grid()]), *self.grid()]
        )

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        if not self.integer:
            return self.constant((generator.standard_normal(shape) * 0.05).astype(np.float32))
        count = shape[axis]
        integers = generator.integers(-90, 90, shape).astype(np.int8)
        scale, zero = np.full(count, 0.001, np.float32), np.zeros(count, np.int8)
        inputs = [self.constant(integers), self.constant(scale), self.constant(zero)]
        return self.op("DequantizeLinear", inputs, axis=axis)

    def bias(self, count: int) -> str:
        if not self.integer:
            return self.constant(np.zeros(count, np.float32))
        step = np.full(count, np.float32(0.02) * np.float32(0.001), np.float32)
        inputs = [self.constant(np.zeros(count, np.int32)), self.constant(step)]
        return self.op("DequantizeLinear", inputs, axis=0)

    def session(self, output: str) -> tuple[Any, dict[str, Array]]:
        if self.integer:
            output = next(n for n in self.nodes if output in n.output).input[0]
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", self.kind, self.shape)],
            [helper.make_tensor_value_info(output, self.kind, None)],
            self.constants,
        )
        opset = [helper.make_opsetid("", 17)]
        return opened(helper.make_model(graph, opset_imports=opset, ir_version=8))


def opened(model: Any) -> tuple[Any, dict[str, Array]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feed = {}
    for value in session.get_inputs():
        array = generator.integers(0, 255, value.shape)
        feed[value.name] = array.astype(np.float32 if "float" in value.type else np.uint8)
    return session, feed


def fastest(sessions: Sequence[tuple[Any, dict[str, Array]]], seconds: float) -> list[float]:
    """Return the smallest time of each in nanoseconds, run in turn."""
    times = [float("inf")] * len(sessions)
    end, rounds = time.perf_counter() + seconds * len(sessions), 0
    while rounds < 7 or (time.perf_counter() < end and rounds < 400):
        for k, (session, feed) in enumerate(sessions):
            start = time.perf_counter_ns()
            session.run(None, feed)
            times[k] = min(times[k], time.perf_counter_ns() - start)
        rounds += 1
    return times


def repeated(shape: Sequence[int], step: Step, plain: Step | None = None) -> tuple[float, float]:
    """Return nanoseconds of one step in float and on integers; ``plain`` is what to subtract."""

    def build(length: int, *, integer: bool, with_step: bool) -> tuple[Any, dict[str, Array]]:
        chain = Chain(shape, integer=integer)
        value = chain.start()
        for _ in range(length):
            value = step(chain, value) if with_step or plain is None else plain(chain, value)
        return chain.session(value)

    short, long = LENGTHS
    if plain is None:
        sessions = [build(n, integer=i, with_step=True) for i in (False, True) for n in LENGTHS]
        times = fastest(sessions, 0.05)
        return (times[1] - times[0]) / (long - short), (times[3] - times[2]) / (long - short)
    sessions = [build(long, integer=i, with_step=s) for i in (False, True) for s in (False, True)]
    times = fastest(sessions, 0.05)
    return (times[1] - times[0]) / long, (times[3] - times[2]) / long


def conv_step(p: Product) -> Step:
    kernel = round(p.taps**0.5) if p.planar else p.taps
    axes = 2 if p.planar else 1

    def one(chain: Chain, value: str, inputs: int, outputs: int) -> str:
        shape = (outputs, inputs // p.groups, *[kernel] * axes)
        arguments = [value, chain.weight(shape, 0), chain.bias(outputs)]
        pads = [kernel // 2] * axes * 2
        return chain.rounded(chain.op("Conv", arguments, pads=pads, group=p.groups))

    def step(chain: Chain, value: str) -> str:
        value = one(chain, value, p.inputs, p.outputs)
        return value if p.inputs == p.outputs else one(chain, value, p.outputs, p.inputs)

    return step


def matrix_step(op_type: str, p: Product) -> Step:
    def one(chain: Chain, value: str, inputs: int, outputs: int) -> str:
        arguments = [value, chain.weight((inputs, outputs), 1)]
        if op_type == "Gemm":
            arguments.append(chain.bias(outputs))
        return chain.rounded(chain.op(op_type, arguments))

    def step(chain: Chain, value: str) -> str:
        value = one(chain, value, p.inputs, p.outputs)
        return value if p.inputs == p.outputs else one(chain, value, p.outputs, p.inputs)

    return step


def back(p: Product) -> Product:
    return Product(p.rows, p.outputs, p.inputs, p.taps, p.groups, p.planar)


def both_ways(p: Product, amounts: Callable[[Product], tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [amounts(p)] if p.inputs == p.outputs else [amounts(p), amounts(back(p))]


def conv_cases() -> list[tuple[Product, int]]:
    cases = [(3, c, 3, 1, s) for c in (16, 32, 64) for s in (32, 64, 112)]
    for c in (4, 8, 12, 16, 20, 24, 32, 33, 48, 64, 100, 128, 256):
        for s in (56, 28, 14, 7):
            cases += [(c, c, k, 1, s) for k in (1, 3) if c * c * k * k * s * s < 4e8]
    for c, d in ((16, 96), (32, 192), (96, 24), (160, 960), (512, 128), (64, 16)):
        cases += [(c, d, 1, 1, s) for s in (28, 14, 7)]
    for c in (8, 16, 24, 32, 64, 96, 144, 192, 384):
        cases += [(c, c, 3, c, s) for s in (56, 28, 14, 7)]
    for c, g in ((32, 4), (64, 4), (64, 32), (128, 32), (16, 2)):
        cases += [(c, c, 3, g, s) for s in (28, 14)]
    cases += [(c, c, 5, g, 28) for c in (16, 64) for g in (1, c)]
    found = [(Product(s * s, c, d, k * k, g), s) for c, d, k, g, s in cases]
    for c in (16, 32, 64, 128):
        for s in (100, 1000):
            found += [(Product(s, c, c, k, g, planar=False), s) for k in (1, 3) for g in (1, c)]
    return found


def measure_products(samples: dict[str, list[list[Sample]]], *, quick: bool) -> None:
    for p, side in conv_cases()[:: 9 if quick else 1]:
        shape = [1, p.inputs, side, side] if p.planar else [1, p.inputs, side]
        times = repeated(shape, conv_step(p))
        for place, amounts, took in zip(
            ("float", "integer"), (float_conv, integer_conv), times, strict=True
        ):
            parts = [(f"{place}:{kernel}", a) for kernel, a in both_ways(p, amounts)]
            samples["conv"].append([(kernel, a, took) for kernel, a in parts])
    for op_type in ("Gemm", "MatMul"):
        for m in (1, 4, 16, 64, 128)[:: 4 if quick else 1]:
            for k, n in MATRICES:
                p = Product(m, k, n)
                if p.rows * k * n > 2e8:
                    continue
                times = repeated([m, k], matrix_step(op_type, p))
                for place, each, took in zip(("float", "integer"), (4, 1), times, strict=True):
                    parts = both_ways(p, lambda q, e=each: ("", matrix(q, e)))
                    samples["conv"].append([(f"{place}:{op_type}", a, took) for _, a in parts])


MATRICES = (
    (16, 16), (64, 64), (128, 128), (256, 256), (384, 384), (640, 128), (768, 768), (768, 3072),
    (1024, 1024),
)  # fmt: skip
SHAPES = ((16, 8), (16, 28), (64, 28), (64, 56), (32, 112))


def between(op_type: str, channels: int, **attributes: Any) -> tuple[Step, Step]:
    """Return a convolution with and without the operator after it."""
    conv = conv_step(Product(1, channels, channels))

    def step(chain: Chain, value: str) -> str:
        made = conv(chain, value)
        inputs = [made, value] if op_type in {"Add", "Mul"} else [made]
        return chain.rounded(chain.op(op_type, inputs, **attributes))

    return step, conv


def resized(channels: int) -> tuple[Step, Step]:
    def conv(chain: Chain, value: str, stride: int) -> str:
        weight = chain.weight((channels, channels, 1, 1), 0)
        return chain.rounded(chain.op("Conv", [value, weight], strides=[stride] * 2))

    def step(chain: Chain, value: str) -> str:
        scales = chain.constant(np.array([1, 1, 2, 2], np.float32))
        large = chain.op("Resize", [value, "", scales], mode="nearest")
        return conv(chain, chain.rounded(large), 2)

    return step, lambda chain, value: conv(chain, value, 1)


def joined(channels: int) -> tuple[Step, Step]:
    def conv(chain: Chain, value: str, outputs: int) -> str:
        weight = chain.weight((outputs, channels, 1, 1), 0)
        return chain.rounded(chain.op("Conv", [value, weight]))

    def step(chain: Chain, value: str) -> str:
        halves = [conv(chain, value, channels // 2) for _ in range(2)]
        return chain.rounded(chain.op("Concat", halves, axis=1))

    return step, lambda chain, value: conv(chain, value, channels)


def measure_others(samples: dict[str, list[list[Sample]]], *, quick: bool) -> None:
    pool = {"kernel_shape": [3, 3], "pads": [1] * 4}
    for channels, side in SHAPES[:: 2 if quick else 1]:
        elements = channels * side * side
        cases = {name: (between(name, channels), elements) for name in ELEMENTWISE}
        cases["LeakyRelu"] = (between("LeakyRelu", channels, alpha=0.1), elements)
        for name in ("MaxPool", "AveragePool"):
            cases[name] = (between(name, channels, **pool), elements * 9)
        cases["Resize"] = (resized(channels), elements * 4)
        cases["Concat"] = (joined(channels), elements)
        for name, ((step, plain), amount) in cases.items():
            times = repeated([1, channels, side, side], step, plain)
            for place, took in zip(("float", "integer"), times, strict=True):
                one = (f"{place}:{name}", {"node": 1, "element": amount}, max(took, 1.0))
                samples["other"].append([one])
        for name, took in borders(channels, side).items():
            samples["other"].append([(name, {"node": 1, "element": elements}, took)])


ELEMENTWISE = ("Add", "Mul", "Sigmoid", "Relu")


def borders(channels: int, side: int) -> dict[str, float]:
    """Return the times of Q, DQ, both transposes and the average over all positions."""
    shape = [1, channels, side, side]
    whole, small = TensorProto.FLOAT, TensorProto.UINT8
    grid = [
        helper.make_tensor("s", whole, [], [0.02]),
        helper.make_tensor("z", small, [], [128]),
    ]
    forms = {
        "": ([1], whole, [helper.make_node("Neg", ["x"], ["y"])], whole),
        "integer:QuantizeLinear": (
            shape, whole, [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], small,
        ),
        "integer:DequantizeLinear": (
            shape, small, [helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])], whole,
        ),
        "float:Transpose": (
            shape, whole, [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3])], whole,
        ),
        "integer:Transpose": (
            shape, small, [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3])], small,
        ),
        "float:GlobalAveragePool": (
            shape, whole, [helper.make_node("GlobalAveragePool", ["x"], ["y"])], whole,
        ),
        "integer:GlobalAveragePool": (
            shape,
            small,
            [
                helper.make_node("DequantizeLinear", ["x", "s", "z"], ["a"]),
                helper.make_node("GlobalAveragePool", ["a"], ["b"]),
                helper.make_node("QuantizeLinear", ["b", "s", "z"], ["y"]),
            ],
            small,
        ),
    }  # fmt: skip
    sessions = []
    for size, kind, nodes, result in forms.values():
        graph = helper.make_graph(
            nodes,
            "border",
            [helper.make_tensor_value_info("x", kind, size)],
            [helper.make_tensor_value_info("y", result, None)],
            grid if len(nodes[0].input) > 1 else [],
        )
        opset = [helper.make_opsetid("", 17)]
        sessions.append(opened(helper.make_model(graph, opset_imports=opset, ir_version=8)))
    empty, *times = fastest(sessions, 0.05)
    # A lone operator's own call is part of its price; about 400 ns each.
    found = {
        name: max(took - empty, 0.0) + 400
        for name, took in zip(list(forms)[1:], times, strict=True)
    }
    return found | layouts(shape, empty)


def layouts(shape: list[int], empty: float) -> dict[str, float]:
    """Return the time of one change between plain channels and those of convolutions."""
    step, (short, long) = conv_step(Product(1, shape[1], shape[1])), LENGTHS
    found = {}
    for place in ("float", "integer"):
        sessions = []
        for length in LENGTHS:
            chain = Chain(shape, integer=place == "integer")
            value = chain.start()
            for _ in range(length):
                value = step(chain, value)
            sessions.append(chain.session(value))
        few, many = fastest(sessions, 0.05)
        rest = few - empty - short * (many - few) / (long - short)
        found[f"{place}:layout"] = max(rest / 2, 0.0) + 400
    return found


def fitted(samples: list[list[tuple[str, dict[str, float], float]]]) -> dict[str, dict[str, float]]:
    """Fit non-negative rates so that relative errors are small (active set by elimination)."""
    names = sorted({(k, a) for parts in samples for k, amounts, _ in parts for a in amounts})
    rows = np.zeros((len(samples), len(names)))
    for i, parts in enumerate(samples):
        took = max(parts[0][2], 1.0)
        for kernel, amounts, _ in parts:
            for amount, number in amounts.items():
                rows[i, names.index((kernel, amount))] += number / took
    # A column without entries, or one that only a negative rate would fit, leaves.
    active = [j for j in range(len(names)) if rows[:, j].any()]
    while True:
        size = rows[:, active].max(axis=0)
        found = np.linalg.lstsq(rows[:, active] / size, np.ones(len(rows)), rcond=1e-9)[0] / size
        if (found >= 0).all():
            break
        active.pop(int(np.argmin(found * size)))
    rates: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for (kernel, amount), rate in zip([names[j] for j in active], found, strict=True):
        rates[kernel][amount] = float(f"{rate:.3g}")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    samples: dict[str, list[Any]] = {"conv": [], "other": []}
    measure_products(samples, quick=quick)
    measure_others(samples, quick=quick)
    everything = [*samples["conv"], *samples["other"]]
    rates = fitted(everything)
    errors: dict[str, list[float]] = collections.defaultdict(list)
    for parts in everything:
        guess = sum(
            rates.get(k, {}).get(name, 0.0) * n
            for k, amounts, _ in parts
            for name, n in amounts.items()
        )
        errors[parts[0][0]].append(guess / parts[0][2])
    print("RATES: dict[str, dict[str, float]] = {")
    for kernel in sorted(rates):
        print(f'    "{kernel}": {rates[kernel]},'.replace("'", '"'))
    print("}")
    for kernel, ratio in sorted(errors.items()):
        low, middle, high = np.percentile(ratio, [10, 50, 90])
        print(f"# {kernel}: {len(ratio)} cases, guess / measured {low:.2f} {middle:.2f} {high:.2f}")


if __name__ == "__main__":
    main()
