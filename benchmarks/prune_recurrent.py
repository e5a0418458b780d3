"""Half of the hidden units of recurrent networks: is the cut right, and how much faster is it?

    python benchmarks/prune_recurrent.py [--hidden 128 256 512] [--steps 50] [--batch 1 8]

For LSTM, GRU and RNN, in one direction, in both, and two layers deep, between two projections:
half of the hidden units are removed as ``prune_channels:sparsity=0.5,units=all`` removes them
(which of them does not matter for the time). Prints the multiply-accumulates and weights that are
left, the largest difference to the masked original as a share of the largest output, and the
latency of the original over that of the cut model: one thread, default optimizations, both in turn.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402
from latency import ratios  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
NETS = (
    ("LSTM", "forward", 1),
    ("LSTM", "bidirectional", 1),
    ("LSTM", "forward", 2),
    ("GRU", "forward", 1),
    ("GRU", "bidirectional", 1),
    ("GRU", "forward", 2),
    ("RNN", "forward", 1),
)
INPUTS, OUTPUTS = 64, 16


def network(
    kind: str, direction: str, layers: int, hidden: int, steps: int, batch: int
) -> onnx.ModelProto:
    """Return layers of one kind, then a projection; random weights of a usual size."""
    source = np.random.default_rng(hidden)
    sides = 2 if direction == "bidirectional" else 1
    constants: dict[str, np.ndarray] = {"shape": np.array([0, 0, -1])}  # type: ignore[type-arg]
    nodes, value, width = [], "x", INPUTS
    for layer in range(layers):
        rows = GATES[kind] * hidden
        sizes = {"W": (sides, rows, width), "R": (sides, rows, hidden), "B": (sides, 2 * rows)}
        for name, size in sizes.items():
            drawn = source.uniform(-1, 1, size) / np.sqrt(hidden)
            constants[f"{name}{layer}"] = drawn.astype(np.float32)
        given = [value, *(f"{name}{layer}" for name in sizes)]
        extra = {"linear_before_reset": 1} if kind == "GRU" else {}
        nodes += [
            helper.make_node(
                kind, given, [f"y{layer}"], hidden_size=hidden, direction=direction, **extra
            ),
            helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"t{layer}", "shape"], [f"h{layer}"]),
        ]
        value, width = f"h{layer}", sides * hidden
    drawn = source.uniform(-1, 1, (width, OUTPUTS)) / np.sqrt(width)
    constants["P"] = drawn.astype(np.float32)
    nodes.append(helper.make_node("MatMul", [value, "P"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, batch, OUTPUTS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(model: onnx.ModelProto, folder: Path, rounds: int) -> tuple[float, ...]:
    """Return shares of work and weights that are left, the difference, and the speed-up."""
    from exact import InProcess

    from converter.core.context import Context
    from converter.coupling.couple import couple
    from converter.coupling.shapes import observe_shapes
    from passes.coupling.certificate import certified_cut

    context = Context(services=InProcess())
    student = ir.from_proto(model)
    shapes = observe_shapes(student, context)
    coupling = couple(student, shapes)
    alive = coupling.all_alive()
    for component in coupling.components:
        alive[np.random.default_rng(0).permutation(component.atoms)[::2]] = False
    work, weights = (part(alive) / part() for part in (coupling.macs, coupling.parameters))
    done = certified_cut(student, shapes, alive, context)
    if done.refused:
        raise RuntimeError(f"the cut was refused: {done.refused[0].reason}")
    paths = [folder / "original.onnx", folder / "cut.onnx"]
    onnx.save(model, paths[0])
    onnx.save(ir.to_proto(student), paths[1])
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": np.random.default_rng(1).normal(size=sizes).astype(np.float32)}
    _, found = ratios(paths, [feed], rounds)
    return work, weights, done.difference, 1 / float(np.median(found[1]))


def main() -> int:
    """Print one row per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| network | hidden | batch | MACs left | weights left | difference | faster |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, direction, layers in NETS:
        for hidden in options.hidden:
            for batch in options.batch:
                with tempfile.TemporaryDirectory() as folder:
                    model = network(kind, direction, layers, hidden, options.steps, batch)
                    row = measure(model, Path(folder), options.rounds)
                name = f"{layers} {kind}, {direction}"
                work, weights, difference, faster = row
                print(
                    f"| {name} | {hidden} | {batch} | {work:.2f} | {weights:.2f} "
                    f"| {difference:.0e} | {faster:.2f}x |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
