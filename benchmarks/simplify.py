"""CPU seconds, nodes and bytes of ``simplify`` on a graph of 20,000 nodes, beside other tools.

    python benchmarks/simplify.py
    python benchmarks/simplify.py --blocks 1906 --peer onnxslim=/path/to/venv/bin/python

Every run is one process on one thread; the figures are those of the whole process, load and save
included. A peer runs in the Python that is given for it. Outputs are compared with the original's.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 32
ROOT = Path(__file__).resolve().parent.parent

PEERS = {
    "onnxslim": "import onnxslim, sys; onnxslim.slim(sys.argv[1], sys.argv[2])",
    "onnxsim": (
        "import onnx, onnxsim, sys\n"
        "model, _ = onnxsim.simplify(onnx.load(sys.argv[1])); onnx.save(model, sys.argv[2])"
    ),
    "onnxscript": (
        "import onnx_ir as ir, onnxscript.optimizer as o, sys\n"
        "model = ir.load(sys.argv[1]); o.optimize(model); ir.save(model, sys.argv[2])"
    ),
    "onnxruntime": (
        "import onnxruntime as r, sys\n"
        "s = r.SessionOptions(); s.optimized_model_filepath = sys.argv[2]\n"
        "s.graph_optimization_level = r.GraphOptimizationLevel.ORT_ENABLE_BASIC\n"
        "r.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider'])"
    ),
}


def graph(blocks: int) -> onnx.ModelProto:
    """Blocks of 21 nodes with what exporters leave behind: duplicates, identities, dead code ..."""
    rng = np.random.default_rng(0)
    nodes, initializers = [], []

    def constant(name: str, array: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(array, name))
        return name

    def add(op_type: str, inputs: list[str], **attributes: object) -> str:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [name], f"n{len(nodes)}", **attributes))
        return name

    zero, minus = constant("zero", np.array([0])), constant("m1", np.array([-1]))
    current = "x"
    for block in range(blocks):
        weight = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 6
        y = add("MatMul", [current, constant(f"w{block}", weight)])
        y = add("Add", [y, constant(f"b{block}", np.full(WIDTH, block % 3, np.float32))])
        two = add("Constant", [], value=numpy_helper.from_array(np.float32(2.0)))
        half = add("Constant", [], value=numpy_helper.from_array(np.float32(0.5)))
        y = add("Identity", [add("Mul", [y, add("Mul", [two, half])])])
        y = add("Transpose", [add("Transpose", [y], perm=[1, 0])], perm=[1, 0])
        y = add("Add", [add("Relu", [y]), add("Relu", [y])])
        size = add("Gather", [add("Shape", [y]), zero], axis=0)
        y = add("Reshape", [y, add("Concat", [size, minus], axis=0)])
        y = add("Cast", [add("Tanh", [y])], to=TensorProto.FLOAT)
        y = add("Add", [y, current])
        add("Sigmoid", [y])
        current = add("Mul", [y, half])
    nodes.append(helper.make_node("Identity", [current], ["y"], "out"))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in "xy"]
    made = helper.make_graph(nodes, "synthetic", ports[:1], ports[1:], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(command: list[str]) -> tuple[float, float, str]:
    """Run a process; return its CPU seconds, peak memory in MB, and the end of its errors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **single}, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_maxrss / 1024, done.stderr[-200:] if done.returncode else ""


def output(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def row(name: str, command: list[str], source: Path, target: Path) -> str:
    seconds, peak, error = measure([*command, str(source), str(target)])
    if error or not target.is_file():
        return f"| {name} | {seconds:.1f} | {peak:.0f} | failed | | |"
    model = onnx.load(target)
    feed = {"x": np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)}
    difference = float(np.abs(output(source, feed) - output(target, feed)).max())
    nodes, nbytes = len(model.graph.node), target.stat().st_size
    return f"| {name} | {seconds:.1f} | {peak:.0f} | {nodes} | {nbytes} | {difference:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=953, help="21 nodes each")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help=f"also measure {', '.join(PEERS)}",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.onnx")
        model = graph(arguments.blocks)
        onnx.save(model, source)
        print("| tool | CPU s | peak MB so far | nodes | bytes | largest difference |")
        print("| --- | --- | --- | --- | --- | --- |")
        print(f"| original | | | {len(model.graph.node)} | {source.stat().st_size} | |")
        options = ["--passes", "simplify", "--no-verify", "--no-provenance", "--quiet"]
        ours = [sys.executable, "-m", "converter", *options]
        print(row("onnxpress", ours, source, Path(folder, "ours.onnx")), flush=True)
        for peer in arguments.peer:
            name, _, python = peer.partition("=")
            command = [python or sys.executable, "-c", PEERS[name]]
            print(row(name, command, source, Path(folder, f"{name}.onnx")), flush=True)


if __name__ == "__main__":
    main()
