"""What versions of the default operator set say about operators."""

from __future__ import annotations

from functools import cache
from typing import Any

OLDEST = 7
"""The oldest target: before it, broadcasting was written in another way."""
NEWEST = 21
"""The default target: from 22 on onnxruntime lacks kernels, those of random operators for one."""
_RUNTIME_LIMIT = 26
"""The newest that onnxruntime loads at all."""


def newest() -> int:
    """Return the newest target that both onnx and onnxruntime know."""
    import onnx

    return int(min(_RUNTIME_LIMIT, onnx.defs.onnx_opset_version()))


@cache
def schema(op_type: str, version: int) -> Any:
    """Return the definition in force, or None where that version has none or withdrew it."""
    import onnx

    try:
        found = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
    return None if found.deprecated else found


def known(op_type: str, version: int) -> bool:
    """Tell whether the version defines the operator, withdrawn ones included."""
    import onnx

    try:
        onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return False
    return True


def is_same(op_type: str, version: int, other: int) -> bool:
    """Tell whether two versions have one and the same definition of the operator."""
    first, second = schema(op_type, version), schema(op_type, other)
    if first is None or second is None:
        return False
    return bool(first.since_version == second.since_version)


@cache
def least_ir_version(version: int) -> int:
    """Return the IR version that came with an operator set; a model may not be older."""
    import onnx

    opset = onnx.helper.make_opsetid("", version)
    return int(onnx.helper.find_min_ir_version_for([opset], ignore_unknown=True))
