"""What onnxruntime makes of a model: operators after its extended optimisations."""

from __future__ import annotations

import collections
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir


def optimised_ops(model: ir.Model) -> collections.Counter[str]:
    """Count the operators of the main graph that onnxruntime would run."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        data = ir.to_proto(model).SerializeToString()
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return collections.Counter(node.op_type for node in onnx.load(str(target)).graph.node)
