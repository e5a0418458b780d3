"""Converting a model of one node: with the converter of onnx, or because nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from passes.opset import definitions
from passes.opset.equal import (
    Known,
    changes_meaning,
    rewritten,
    with_positive_axis,
    without_defaults,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

UNCHANGED = "unchanged"
IR_VERSION = 10
_STAND_INS = {"Hardmax": ("Softmax", 13)}
"""Operators that onnx forgot, with one that changed in the same way and when."""
_NO_WAY_BACK = {"GridSample": 20}
"""Where the converter of onnx says that nothing changes, and is wrong."""


def stepwise(fragment: Any, version: int, target: int, *, typed: bool) -> bytes | str:
    """Convert a fragment; the converter of onnx first, since it knows what really changes.

    Args:
        fragment: A model of one node.
        version: Its version.
        target: The version wanted.
        typed: All its types are known.

    Returns:
        A model, or why there is none, or :data:`UNCHANGED`.
    """
    op_type = fragment.graph.node[0].op_type
    if target < _NO_WAY_BACK.get(op_type, 0) <= version:
        return f"{op_type} names its modes in another way before opset {_NO_WAY_BACK[op_type]}"
    start = with_positive_axis(fragment) if changes_meaning(fragment, version, target) else fragment
    if start is None:
        return f"the rank of the input of {op_type} is not known"
    result = _through_onnx(start, target, typed=typed)
    if result == UNCHANGED and changes_meaning(start, version, target):
        return f"onnx does not know that {op_type} means something else in opset {target}"
    if isinstance(result, bytes) or result == UNCHANGED:
        return result
    return _by_steps(fragment, version, target, typed=typed) or result


def _by_steps(fragment: Any, version: int, target: int, *, typed: bool) -> bytes | str:
    """Go where definitions stay equal, and let onnx do what lies between; "" where stuck."""
    current, at = fragment, version
    while at != target:
        stepped = _equal_step(current, at, target)
        if stepped is None and target < at:
            stepped = _onnx_step(current, at, target, typed=typed)
        if stepped is None:
            return ""
        current, at = stepped
    if _is_equal(fragment, current):
        return UNCHANGED
    data: bytes = current.SerializeToString(deterministic=True)
    return "" if _broken(current, target) else data


def _only_node(fragment: Any) -> Any:
    """Return the node of a fragment that does the work, None if there are several."""
    if len(fragment.graph.node) == 1:
        return fragment.graph.node[0]
    nodes = [node for node in fragment.graph.node if node.op_type != "Constant"]
    return nodes[0] if len(nodes) == 1 else None


def _equal_step(fragment: Any, version: int, target: int) -> tuple[Any, int] | None:
    """Go as far towards the target as the definitions stay equal for this node."""
    node = _only_node(fragment)
    if node is None:
        return None
    known = Known(
        {info.name: _element(info.type) for info in fragment.graph.input},
        {tensor.name: tensor for tensor in fragment.graph.initializer},
    )
    for at in range(target, version, 1 if target < version else -1):
        twin = rewritten(node, known, version, at)
        if twin is not None:
            return _with_node(fragment, node, twin, at), at
    return None


def _element(kind: Any) -> int:
    return int(kind.tensor_type.elem_type) if kind.HasField("tensor_type") else 0


def _onnx_step(fragment: Any, version: int, target: int, *, typed: bool) -> tuple[Any, int] | None:
    """Let onnx go back by one definition."""
    node = _only_node(fragment)
    schema = None if node is None else definitions.schema(node.op_type, version)
    if schema is None:
        return None
    at = max(target, schema.since_version - 1)
    plain = without_defaults(node, schema, definitions.schema(node.op_type, at))
    result = _through_onnx(_with_node(fragment, node, plain, version), at, typed=typed)
    if not isinstance(result, bytes):
        return None
    return type(fragment).FromString(result), at


def _with_node(fragment: Any, node: Any, twin: Any, version: int) -> Any:
    result = type(fragment).FromString(fragment.SerializeToString())
    index = list(fragment.graph.node).index(node)
    result.graph.node[index].CopyFrom(twin)
    for entry in result.opset_import:
        entry.version = version
    return result


def _broken(model: Any, target: int) -> str:
    """Say what the checker of onnx has against the nodes of a model; "" if nothing."""
    import onnx

    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = IR_VERSION, {"": target}
    try:
        for node in model.graph.node:
            if node.domain or definitions.schema(node.op_type, target) is None:
                return f"opset {target} has no operator {node.op_type}"
            onnx.checker.check_node(node, context)
    except Exception as error:  # noqa: BLE001 - native code raises whatever it likes
        return _short(error)
    return ""


def _through_onnx(fragment: Any, target: int, *, typed: bool) -> bytes | str:
    from onnx import version_converter

    op_type = fragment.graph.node[0].op_type
    refused = f"onnx cannot convert {op_type} to opset {target}"
    try:
        converted = _through_stand_in(fragment, target)
        if converted is None:
            converted = version_converter.convert_version(fragment, target)
    except Exception as error:  # noqa: BLE001 - native code raises whatever it likes
        return f"{refused}: {_short(error)}"
    wrong = _broken(converted, target)
    if wrong:
        return f"{refused}: {wrong}"
    if _is_equal(fragment, converted):
        return UNCHANGED
    if not typed and not _fits_any_type(op_type, converted):
        return f"{refused}, because the type of an input is not known"
    converted.ir_version = IR_VERSION
    result: bytes = converted.SerializeToString(deterministic=True)
    return result


def _through_stand_in(fragment: Any, target: int) -> Any:
    """Convert an operator as another that changed in the same way; None where there is none."""
    from onnx import version_converter

    node = fragment.graph.node[0]
    name, first = _STAND_INS.get(node.op_type, ("", 0))
    version = fragment.opset_import[0].version
    if len(fragment.graph.node) > 1 or not min(version, target) < first <= max(version, target):
        return None
    twin = type(fragment).FromString(fragment.SerializeToString())
    twin.graph.node[0].op_type = name
    converted = version_converter.convert_version(twin, target)
    for made in converted.graph.node:
        if made.op_type == name:
            made.op_type = node.op_type
    return converted


def _fits_any_type(op_type: str, converted: Any) -> bool:
    """Tell whether only attributes became inputs, such as axes, whatever types the others have."""
    import onnx

    others = [node for node in converted.graph.node if node.op_type != "Constant"]
    constants = [a.t for n in converted.graph.node for a in n.attribute if a.name == "value"]
    constants += [t for t in converted.graph.initializer if not t.name.startswith("i")]
    whole = all(tensor.data_type == onnx.TensorProto.INT64 for tensor in constants)
    return whole and [node.op_type for node in others] == [op_type]


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].rpartition("Assertion ")[2].replace("`", "").removeprefix("false failed: ")
    return text if len(text) <= 160 else text[:157] + "..."


def _is_equal(before: Any, after: Any) -> bool:
    """Tell whether the conversion left the node as it was."""
    if len(after.graph.node) != 1 or len(after.graph.initializer) > len(before.graph.initializer):
        return False
    old, new = before.graph.node[0], after.graph.node[0]
    same = (old.op_type, list(old.input), list(old.output)) == (
        new.op_type,
        list(new.input),
        list(new.output),
    )
    return same and _attributes(old) == _attributes(new)


def _attributes(node: Any) -> Mapping[str, bytes]:
    return {a.name: a.SerializeToString(deterministic=True) for a in node.attribute}
