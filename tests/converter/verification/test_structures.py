"""Outputs that are sequences, maps or optional: classical models as skl2onnx writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx import helper as h

import converter
from converter.errors import PostconditionError
from converter.measure.difference import DifferenceMeter
from converter.verification.exact import summarize

ML = "ai.onnx.ml"
MAPS = {
    "int64": h.make_map_type_proto(TensorProto.INT64, h.make_tensor_type_proto(1, [])),
    "string": h.make_map_type_proto(TensorProto.STRING, h.make_tensor_type_proto(1, [])),
}
X = h.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
FEED = {"x": np.random.default_rng(5).standard_normal((6, 3)).astype(np.float32)}


def save(path: Path, nodes: list[Any], outputs: list[Any], *, inputs: Any = (X,)) -> Path:
    opsets = [h.make_opsetid("", 17), h.make_opsetid(ML, 3)]
    graph = h.make_graph(nodes, "g", list(inputs), outputs)
    onnx.save(h.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def maps(name: str, kind: str) -> Any:
    return h.make_value_info(name, h.make_sequence_type_proto(MAPS[kind]))


def tensor(name: str, kind: int, shape: list[Any]) -> Any:
    return h.make_tensor_value_info(name, kind, shape)


def ml(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return h.make_node(op_type, inputs, outputs, domain=ML, **attributes)


TREE = {
    "nodes_treeids": [0, 0, 0],
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [1, 0, 0],
    "nodes_values": [0.1, 0.0, 0.0],
    "nodes_hitrates": [1.0, 1.0, 1.0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
    "nodes_missing_value_tracks_true": [0, 0, 0],
    "class_treeids": [0, 0, 0, 0],
    "class_nodeids": [1, 1, 2, 2],
    "class_ids": [0, 1, 0, 1],
    "class_weights": [0.25, 0.75, 0.5, 0.5],
    "classlabels_strings": ["no", "yes"],
    "post_transform": "NONE",
}
STRINGS = {"x": np.array([["a"], ["b"], ["z"]], object)}


def linear(path: Path) -> Path:
    """Scaler and logistic regression with class numbers."""
    weights = [0.5, -1.0, 0.25, 1.0, 0.0, -0.5, -0.75, 0.5, 0.125]
    nodes = [
        ml("Scaler", ["x"], ["s"], offset=[0.1, 0.2, 0.3], scale=[2.0, 1.0, 0.5]),
        ml(
            "LinearClassifier",
            ["s"],
            ["label", "raw"],
            coefficients=weights,
            intercepts=[0.1, 0.0, -0.1],
            classlabels_ints=[3, 5, 7],
            multi_class=1,
            post_transform="SOFTMAX",
        ),
        h.make_node("Identity", ["raw"], ["same"]),
        ml("Normalizer", ["same"], ["p"], norm="L1"),
        ml("ZipMap", ["p"], ["probability"], classlabels_int64s=[3, 5, 7]),
    ]
    outputs = [tensor("label", TensorProto.INT64, ["N"]), maps("probability", "int64")]
    return save(path, nodes, outputs)


def trees(path: Path) -> Path:
    """A tree with class names."""
    nodes = [
        ml("TreeEnsembleClassifier", ["x"], ["label", "raw"], **TREE),
        h.make_node("Identity", ["raw"], ["p"]),
        ml("ZipMap", ["p"], ["probability"], classlabels_strings=["no", "yes"]),
    ]
    return save(
        path, nodes, [tensor("label", TensorProto.STRING, ["N"]), maps("probability", "string")]
    )


def columns(path: Path) -> Path:
    """Imputer and features as a sequence of columns."""
    nodes = [
        ml("Imputer", ["x"], ["filled"], imputed_value_floats=[0.5], replaced_value_float=np.nan),
        h.make_node("SplitToSequence", ["filled"], ["columns"], axis=1),
    ]
    kind = h.make_sequence_type_proto(h.make_tensor_type_proto(TensorProto.FLOAT, None))
    return save(path, nodes, [h.make_value_info("columns", kind)])


def categories(path: Path) -> Path:
    """Text to numbers."""
    nodes = [
        ml(
            "LabelEncoder",
            ["x"],
            ["code"],
            keys_strings=["a", "b"],
            values_int64s=[1, 2],
            default_int64=9,
        ),
        ml("OneHotEncoder", ["x"], ["hot"], cats_strings=["a", "b", "c"], zeros=1),
    ]
    outputs = [
        tensor("code", TensorProto.INT64, ["N", 1]),
        tensor("hot", TensorProto.FLOAT, ["N", 1, 3]),
    ]
    return save(path, nodes, outputs, inputs=[tensor("x", TensorProto.STRING, ["N", 1])])


def mixed(path: Path) -> Path:
    """A type that numpy does not know, beside maps."""
    nodes = [
        h.make_node("Cast", ["x"], ["small"], to=TensorProto.BFLOAT16),
        ml("ZipMap", ["x"], ["probability"], classlabels_int64s=[3, 5, 7]),
    ]
    outputs = [tensor("small", TensorProto.BFLOAT16, ["N", 3]), maps("probability", "int64")]
    return save(path, nodes, outputs)


def run(path: Path, feed: dict[str, Any]) -> list[Any]:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize(
    ("build", "feed", "nodes"),
    [(linear, FEED, 4), (trees, FEED, 2), (columns, FEED, 2), (categories, STRINGS, 2)],
)
def test_classical_models_are_simplified_and_verified(
    tmp_path: Path, build: Any, feed: dict[str, Any], nodes: int
) -> None:
    source = build(tmp_path / "in.onnx")
    made = converter.convert(source, tmp_path / "out.onnx", passes="simplify", provenance=False)
    assert made.verdict is not None
    assert made.verdict.passed
    assert all(output.equal and output.elements for output in made.verdict.outputs)
    assert len(made.model.graph) <= nodes
    before, after = onnx.load(source), onnx.load(tmp_path / "out.onnx")
    assert list(after.graph.output) == list(before.graph.output)
    for old, new in zip(run(source, feed), run(tmp_path / "out.onnx", feed), strict=True):
        assert repr(old) == repr(new)


def test_small_floats_beside_maps_are_compared(tmp_path: Path) -> None:
    """onnxruntime hands these two out by different functions; its defaults open both."""
    source = mixed(tmp_path / "in.onnx")
    verdict = converter.verify(source, source, data=FEED, batch=6)
    assert {o.name: (o.elements, o.equal) for o in verdict.outputs} == {
        "small": (18, True),
        "probability": (18, True),
    }


def scaled(path: Path, factor: float) -> Path:
    nodes = [
        ml("Scaler", ["x"], ["s"], offset=[0.0], scale=[factor]),
        ml("ZipMap", ["s"], ["probability"], classlabels_int64s=[3, 5, 7]),
    ]
    return save(path, nodes, [maps("probability", "int64")])


def test_a_map_with_other_numbers_misses_a_budget(tmp_path: Path) -> None:
    a, b = scaled(tmp_path / "a.onnx", 1.0), scaled(tmp_path / "b.onnx", 1.25)
    verdict = converter.verify(a, b, data=FEED, budget="max_rel_error<=0.01")
    assert not verdict.passed
    assert verdict.outputs[0].max_rel == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("old", "new", "equal"),
    [
        ([{1: 0.5}], [{1: 0.5 * (1 + 1e-5)}], True),  # rounding of float32, as in tensors
        ([{1: 0.5}], [{1: 0.6}], False),
        ([{1: 0.5}], [{2: 0.5}], False),
        ([{1: 0.5}], [{1: 0.5}, {1: 0.5}], False),
        ([np.array([5, 6])], [np.array([5, 6])], True),
        ([np.array([50, 60])], [np.array([50, 61])], False),  # within a fifth, yet another class
        ([np.array(["a"])], [np.array(["b"])], False),
        (None, None, True),
        (None, np.zeros(2), False),
        ([], [], True),
    ],
)
def test_exact_passes_are_held_to_structures_as_to_tensors(old: Any, new: Any, equal: bool) -> None:
    meter = DifferenceMeter("y")
    meter.update(old, new)
    found = summarize([meter.result()])
    assert found.equal is equal
    assert equal or "'y'" in found.detail


def test_a_wrong_exact_pass_is_found_out_on_maps(tmp_path: Path) -> None:
    from typing import ClassVar

    import onnx_ir as ir

    from converter.core.contract import Outcome, Pass

    class Wrong(Pass):
        """Says that it changes nothing, and doubles the scale."""

        name: ClassVar[str] = "wrong"
        summary: ClassVar[str] = "wrong"
        exact: ClassVar[bool] = True

        def apply(self, model: ir.Model, context: Any) -> Outcome:
            del context
            node = next(iter(model.graph))
            node.attributes["scale"] = ir.AttrFloat32s("scale", [2.0])
            return Outcome(modified=True)

    source = scaled(tmp_path / "in.onnx", 1.0)
    with pytest.raises(PostconditionError, match="probability"):
        converter.convert(source, passes=[Wrong()])
