"""Recorded structure of whole models after whole pipelines; a change is explained in its commit.

python tests/golden/test_structure.py     # records anew
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

import converter

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parents[1] / "fixtures"
RECORD = HERE / "structure.json"
MODELS = {
    "digits_resnet": "digits_calibration.npz",
    "digits_depthwise": "digits_calibration.npz",
    "digits_transformer": "digits_calibration.npz",
    "digits_gru": "digits_rows_calibration.npz",
    "digits_lstm": "digits_rows_calibration.npz",
}
SAMPLES = 64  # the structure does not depend on how many
PIPELINES = ("simplify", "simplify,quantize", "prune:sparsity=0.5")


def structure(model: str, passes: str, folder: Path) -> dict[str, Any]:
    """Operators, parameters and what each pass counted. Bytes of weights are left out on purpose:
    their last bits depend on the kernels of the processor."""
    out = folder / "out.onnx"
    artifact = converter.convert(
        FIXTURES / f"{model}.onnx",
        out,
        passes=passes,
        data=FIXTURES / MODELS[model],
        samples=SAMPLES,
    )
    proto = onnx.load(out)
    return {
        "operators": dict(sorted(Counter(n.op_type for n in proto.graph.node).items())),
        "initializers": len(proto.graph.initializer),
        "counts": {s.spec: dict(sorted(s.outcome.counts.items())) for s in artifact.run.steps},
    }


@pytest.mark.parametrize("passes", PIPELINES)
@pytest.mark.parametrize("model", MODELS)
def test_structure_is_as_recorded(model: str, passes: str, tmp_path: Path) -> None:
    recorded = json.loads(RECORD.read_text())[f"{model} {passes}"]
    assert structure(model, passes, tmp_path) == recorded


def record() -> None:
    found = {}
    for model in MODELS:
        for passes in PIPELINES:
            with tempfile.TemporaryDirectory() as folder:
                found[f"{model} {passes}"] = structure(model, passes, Path(folder))
    RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record()
