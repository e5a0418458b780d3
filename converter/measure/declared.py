"""Declared types and shapes of inner values that onnx infers just so without them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import onnx

from converter.execution import sandbox
from converter.io.skeleton import to_skeleton

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Limits


def redundant(model: ir.Model, names: Collection[str], limits: Limits) -> dict[str, int]:
    """Return the values whose declarations follow from the rest of a model.

    Args:
        model: Left as it is.
        names: Values to look at; those that are not declared, or have a text, are left out.
        limits: Inference runs in a child process within them.

    Returns:
        Bytes of each declaration by name, sorted.

    Raises:
        ConverterError: The model cannot be expressed as ONNX, or its shapes cannot be inferred.
    """
    proto, _ = to_skeleton(model)
    wanted = set(names)
    claims = {
        info.name: info
        for info in proto.graph.value_info
        if info.name in wanted and not info.doc_string
    }
    if not claims:
        return {}
    texts = {name: _text(info) for name, info in claims.items()}
    found: list[str] = sandbox.call(_inferred, proto, texts, limits=limits, task="inferring shapes")
    return {name: claims[name].ByteSize() for name in found}


def _inferred(proto: onnx.ModelProto, claimed: dict[str, bytes]) -> list[str]:
    """Return the names of values that are inferred to be what was claimed of them.

    What cannot be left out is a claim that inference starts from the next time.
    """
    claims = list(proto.graph.value_info)
    gone = set(claimed)
    while gone:
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(info for info in claims if info.name not in gone)
        found = onnx.shape_inference.infer_shapes(proto).graph.value_info
        again = {info.name for info in found if claimed.get(info.name) == _text(info)} & gone
        if again == gone:
            break
        gone = again
    return sorted(gone)


def _text(info: onnx.ValueInfoProto) -> bytes:
    text: bytes = info.type.SerializeToString(deterministic=True)
    return text
