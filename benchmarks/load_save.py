"""Peak memory and CPU of loading and saving large models, each tool in its own process.

    python benchmarks/load_save.py            # all rows, as a markdown table
    python benchmarks/load_save.py --small    # a tenth of the size, to try it out

Peak is the largest resident set of the process, touched file pages included. Only one model and one
copy of it are on the disk at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LAYERS = {"single": 27, "external": 40}
WIDTH = {"single": 2008, "external": 4096}


def generate(path: Path, layers: int, width: int, *, external: bool) -> int:
    """Write a chain of MatMul and Relu nodes with random weights; returns all bytes."""
    from onnx import TensorProto, helper

    random = np.random.default_rng(0)
    nodes, initializers, last = [], [], "x"
    data = path.with_suffix(".weights") if external else None
    with data.open("wb") if data else tempfile.TemporaryFile() as file:
        for index in range(layers):
            name = f"w{index}"
            array = random.standard_normal((width, width), dtype=np.float32)
            tensor = TensorProto(name=name, data_type=1, dims=array.shape)
            if data is not None:
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": data.name, "offset": file.tell(), "length": array.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                file.write(array)
            else:
                tensor.raw_data = array.tobytes()
            initializers.append(tensor)
            nodes.append(helper.make_node("MatMul", [last, name], [f"m{index}"], f"mm{index}"))
            nodes.append(helper.make_node("Relu", [f"m{index}"], [f"r{index}"], f"relu{index}"))
            last = f"r{index}"
    info = helper.make_tensor_value_info
    ends = [info("x", 1, ["N", width])], [info(last, 1, ["N", width])]
    graph = helper.make_graph(nodes, "chain", *ends, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with path.open("wb") as file:
        file.write(model.SerializeToString())
    return path.stat().st_size + (data.stat().st_size if data else 0)


def ours(source: Path, target: Path) -> None:
    from converter.io import formats

    formats.save(formats.load(source), target)


def with_onnx(source: Path, target: Path) -> None:
    import onnx

    model = onnx.load(source)
    big = source.with_suffix(".weights").exists()
    onnx.save(model, target, save_as_external_data=big, location=target.name + ".data")


def with_onnx_ir(source: Path, target: Path) -> None:
    import onnx_ir

    big = source.with_suffix(".weights").exists()
    model = onnx_ir.load(source)
    onnx_ir.save(model, target, external_data=target.name + ".data" if big else None)


TOOLS = {"converter": ours, "onnx_ir": with_onnx_ir, "onnx": with_onnx}


def measure(tool: str, source: Path, target: Path) -> dict[str, float]:
    """Run one tool in a child process."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--tool", tool, str(source), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout), "wall": time.perf_counter() - start}


def run_tool(tool: str, source: str, target: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    TOOLS[tool](Path(source), Path(target))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # not ru_maxrss: a child starts with the peak of the process that started it
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split()[0])
    print(json.dumps({"mb": peak / 1024, "cpu": usage.ru_utime + usage.ru_stime}))


def weights_equal(source: Path, target: Path) -> bool:
    """Compare all weights of two models, one tensor at a time."""
    import onnx
    from onnx import external_data_helper, numpy_helper

    def tensors(path):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            yield tensor.name, numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")

    pairs = zip(tensors(source), tensors(target), strict=True)
    return all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", help="where to put the models (default: a temporary folder)")
    parser.add_argument("--tool", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tool:
        run_tool(*arguments.tool)
        return
    print("| model | tool | peak MB | peak / model | CPU s | wall s | weights |")
    print("|---|---|---|---|---|---|---|")
    for kind, layers in LAYERS.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            source, out = Path(folder, "model.onnx"), Path(folder, "out")
            count = max(1, layers // 10) if arguments.small else layers
            nbytes = generate(source, count, WIDTH[kind], external=kind == "external")
            for tool in TOOLS:
                out.mkdir()
                got = measure(tool, source, out / "model.onnx")
                same = "identical" if weights_equal(source, out / "model.onnx") else "DIFFER"
                shutil.rmtree(out)
                print(
                    f"| {kind}, {nbytes / 1e6:.0f} MB | {tool} | {got['mb']:.0f} | "
                    f"{got['mb'] * 2**20 / nbytes:.2f} | {got['cpu']:.2f} | {got['wall']:.1f} | "
                    f"{same} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
