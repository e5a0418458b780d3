"""Zeros that pruning made stay zero in all passes behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import converter

FIXTURES = Path(__file__).parents[3] / "fixtures"
PRUNE = "simplify,prune:sparsity=0.6,recover=none"
ROW_PASSES = ("quantize_dynamic", "quantize_weights:bits=4", "cluster_weights", "reconstruct")
IMAGE_PASSES = (
    "quantize:method=minmax",
    "quantize:method=minmax,rounding=gptq",
    "quantize:method=minmax,format=qoperator",
    "quantize:method=minmax,per_channel=false",
    "quantize_weights:method=rtn",
    "quantize_weights:method=hqq",
    "quantize_weights:method=rtn,symmetric=true",
    "cluster_weights:bits=4",
    "reconstruct",
    "reconstruct:method=moments",
    "correct_bias",
    "equalize",
    "smooth",
    "cast:to=float16",
)
PORTS = {
    "Conv": (1,),
    "Gemm": (1,),
    "MatMul": (1,),
    "LSTM": (1, 2),
    "QLinearConv": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "DynamicQuantizeLSTM": (1, 2),
    "DynamicQuantizeMatMul": (1,),
}


def weights(model: ir.Model) -> list[np.ndarray]:
    """Let onnxruntime compute what every layer multiplies with."""
    copy = model.clone()
    found = [node.inputs[i] for node in copy.graph for i in PORTS.get(node.op_type, ())]
    found = [value for value in found if constant(value)]
    plain = {v.name: v.const_value.numpy() for v in found if v.const_value is not None}
    made = [value for value in dict.fromkeys(found) if value.name not in plain]
    if made:
        copy.graph.outputs.clear()
        copy.graph.outputs.extend(made)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = ort.InferenceSession(ir.to_proto(copy).SerializeToString(), options)
        feed = {
            each.name: np.zeros([d if isinstance(d, int) else 1 for d in each.shape], np.float32)
            for each in session.get_inputs()
        }
        names = [value.name for value in made]
        plain |= dict(zip(names, session.run(names, feed), strict=True))
    return [np.asarray(plain[value.name]) for value in found]


def constant(value: ir.Value) -> bool:
    """Tell whether a value depends on constants alone."""
    if value.producer() is None:
        return value.const_value is not None and not value.is_graph_input()
    return all(constant(each) for each in value.producer().inputs if each is not None)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Pruned fixtures with some of their samples."""
    folder = tmp_path_factory.mktemp("pruned")
    result = {}
    for net, data in (("resnet", ""), ("lstm", "rows_"), ("transformer", "")):
        arrays = dict(np.load(FIXTURES / f"digits_{data}calibration.npz"))
        names = {v.name for v in ir.load(FIXTURES / f"digits_{net}.onnx").graph.inputs}
        few = {name: array[:16] for name, array in arrays.items() if name in names}
        found = converter.convert(FIXTURES / f"digits_{net}.onnx", passes=PRUNE, verify=False)
        ir.save(found.model, folder / f"{net}.onnx")
        result[net] = folder / f"{net}.onnx", few
    return result


def compare(path: Path, spec: str, data: dict[str, np.ndarray]) -> None:
    before = weights(ir.load(path))
    given = None if spec.startswith("cluster") else data  # with data they take long
    after = weights(converter.convert(path, passes=spec, data=given, verify=False).model)
    assert sum(int((one == 0).sum()) for one in before) > 0.5 * sum(map(np.size, before))
    for one, two in zip(before, after, strict=True):
        # integers: their zero point is 0 where weights are symmetric
        if one.shape == two.shape:
            assert not two[one == 0].any()
        else:  # stored the other way round
            assert one.size == two.size
            assert np.count_nonzero(two == 0) >= np.count_nonzero(one == 0)


@pytest.mark.parametrize("spec", IMAGE_PASSES)
def test_zeros_of_kernels_stay(pruned, spec) -> None:
    compare(pruned["resnet"][0], spec, pruned["resnet"][1])


@pytest.mark.parametrize("net", ["lstm", "transformer"])
@pytest.mark.parametrize("spec", ROW_PASSES)
def test_zeros_of_products_and_gates_stay(pruned, net, spec) -> None:
    compare(pruned[net][0], spec, pruned[net][1])


def test_channels_that_go_leave_the_zeros_of_the_others(pruned) -> None:
    path, data = pruned["resnet"]
    found = converter.convert(path, passes="prune_channels:sparsity=0.2", data=data, verify=False)
    for one, two in zip(weights(ir.load(path)), weights(found.model), strict=True):
        assert np.mean(two == 0) > 0.7 * np.mean(one == 0)
