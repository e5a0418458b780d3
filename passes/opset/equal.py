"""Nodes that mean the same in two versions although the versions define the operator anew.

Most new definitions only allow more types, or add an attribute whose default is what was before.
The converter of onnx knows that for few operators, and downwards for hardly any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from passes.opset import definitions

_FIRST = 7
_NEGATIVE_AXES = 11
"""The version from which on axes may be negative."""
_NEW_MEANING = {
    # First version with another meaning that attributes and inputs do not show.
    "GroupNormalization": (21,),
    "Hardmax": (13,),
    "LogSoftmax": (13,),
    "Max": (8,),
    "Mean": (8,),
    "Min": (8,),
    "PRelu": (7, 9),
    "Resize": (11,),
    "RoiAlign": (16,),
    "Softmax": (13,),
    "Sum": (8,),
    "Upsample": (9, 10),
}


_WIDER = frozenset({"Max", "Mean", "Min", "PRelu", "Sum"})
"""Those of them whose newer meaning includes the older one."""
_LAST_AXIS = frozenset({"Hardmax", "LogSoftmax", "Softmax"})


@dataclass(frozen=True)
class Known:
    """What is known about the inputs of a node.

    Attributes:
        types: Element types by name; 0 or missing where not known.
        constants: Small constants by name.
    """

    types: Mapping[str, int]
    constants: Mapping[str, Any]

    def array(self, node: Any, index: int) -> Any:
        """Return a constant input as an array, else None."""
        import onnx

        name = node.input[index] if index < len(node.input) else ""
        tensor = self.constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def type_of(self, name: str) -> int:
        """Return the element type, 0 where it is not known."""
        tensor = self.constants.get(name)
        return tensor.data_type if tensor is not None else self.types.get(name, 0)


def rewritten(node: Any, known: Known, version: int, target: int) -> Any:
    """Return the node as the target writes it, or None where that cannot be told.

    Args:
        node: A node of the default domain.
        known: Types and constants among its inputs.
        version: The version that the node is written in.
        target: Another version.
    """
    old, new = (definitions.schema(node.op_type, v) for v in (version, target))
    low, high = sorted((version, target))
    if old is None or new is None or low < _FIRST:
        return None
    if any(low < first <= high for first in _NEW_MEANING.get(node.op_type, ())):
        return None
    twin = type(node).FromString(node.SerializeToString())
    allowed = _SPECIAL.get(node.op_type)
    fits = (
        (allowed is None or allowed(twin, known, low, high))
        and _ports_fit(twin, old, new)
        and _types_fit(twin, known, new)
        and _fit_attributes(twin, old, new)
        and not (target < _NEGATIVE_AXES <= version and _has_negative_axis(twin))
    )
    return twin if fits else None


def changes_meaning(fragment: Any, version: int, target: int) -> bool:
    """Tell whether a node that looks alike in both versions means something else in one of them."""
    node = fragment.graph.node[0]
    low, high = sorted((version, target))
    if not any(low < first <= high for first in _NEW_MEANING.get(node.op_type, ())):
        return False
    if node.op_type in _WIDER and target > version:
        return False
    return not (node.op_type in _LAST_AXIS and _is_last_axis(node, fragment.graph.input))


def with_positive_axis(fragment: Any) -> Any:
    """Write a negative axis from the front, since onnx forgets that; None for unknown ranks."""
    node = fragment.graph.node[0]
    axes = [attribute for attribute in node.attribute if attribute.name == "axis"]
    if node.op_type not in _LAST_AXIS or not axes or axes[0].i >= 0:
        return fragment
    ranks = [
        len(info.type.tensor_type.shape.dim)
        for info in fragment.graph.input
        if info.name == node.input[0] and info.type.tensor_type.HasField("shape")
    ]
    if not ranks:
        return None
    twin = type(fragment).FromString(fragment.SerializeToString())
    for attribute in twin.graph.node[0].attribute:
        if attribute.name == "axis":
            attribute.i += ranks[0]
    return twin


def _is_last_axis(node: Any, inputs: Any) -> bool:
    """On the last axis, coercing a tensor to two axes makes no difference."""
    axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
    ranks = [
        len(info.type.tensor_type.shape.dim)
        for info in inputs
        if info.name == node.input[0] and info.type.tensor_type.HasField("shape")
    ]
    return bool(axes) and (axes[0] == -1 or (bool(ranks) and axes[0] == ranks[0] - 1))


def _ports_fit(node: Any, old: Any, new: Any) -> bool:
    """Tell whether inputs and outputs that are given stand for the same in both versions."""
    if not new.min_input <= len(node.input) <= new.max_input:
        return False
    if not new.min_output <= len(node.output) <= new.max_output:
        return False
    for names, before, after in (
        (node.input, old.inputs, new.inputs),
        (node.output, old.outputs, new.outputs),
    ):
        for name, one, other in zip(names, before, after, strict=False):
            if _plain(one.name) != _plain(other.name):
                return False
            if one.option != other.option and not name:
                return False
    return True


def _plain(name: str) -> str:
    return name.removeprefix("input_").lower()


def _types_fit(node: Any, known: Known, new: Any) -> bool:
    """Tell whether the target allows the types that are known."""
    import onnx

    for index, name in enumerate(node.input):
        number = known.type_of(name)
        formal = new.inputs[min(index, len(new.inputs) - 1)] if new.inputs else None
        if formal is None or not number:
            continue
        text = onnx.TensorProto.DataType.Name(number).lower()
        if f"tensor({text})" not in formal.types:
            return False
    return True


def _fit_attributes(node: Any, old: Any, new: Any) -> bool:
    """Drop attributes that the target lacks and write out defaults that it has otherwise."""
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, attribute in given.items():
        if name in new.attributes:
            if name in old.attributes and old.attributes[name].type != new.attributes[name].type:
                return False
        elif _is_default(attribute, old.attributes.get(name)):
            node.attribute.remove(attribute)
        else:
            return False
    for name, declared in new.attributes.items():
        before = old.attributes.get(name)
        if name in given:
            continue
        default = before.default_value if before is not None else None
        if default is not None and default.name:
            if default.SerializeToString() != declared.default_value.SerializeToString():
                node.attribute.add().CopyFrom(default)
        elif declared.required:
            return False
    return True


def without_defaults(node: Any, old: Any, new: Any) -> Any:
    """Leave out attributes that say what is said without them and that the other version lacks."""
    twin = type(node).FromString(node.SerializeToString())
    for attribute in list(twin.attribute):
        lacks = new is not None and attribute.name not in new.attributes
        if lacks and _is_default(attribute, old.attributes.get(attribute.name)):
            twin.attribute.remove(attribute)
    return twin


def _is_default(attribute: Any, declared: Any) -> bool:
    if declared is None or not declared.default_value.name:
        return False
    import onnx

    value, default = (
        onnx.helper.get_attribute_value(a) for a in (attribute, declared.default_value)
    )
    return bool(value == default)


def _has_negative_axis(node: Any) -> bool:
    for attribute in node.attribute:
        if attribute.name in {"axis", "axes"} and (
            attribute.i < 0 or any(axis < 0 for axis in attribute.ints)
        ):
            return True
    return False


def _one_scale(node: Any, known: Known, low: int, high: int) -> bool:
    """Before opset 13 there was one scale for the whole tensor."""
    if not low < 13 <= high:
        return True
    scale = known.array(node, 1)
    if scale is None or scale.ndim:
        return False
    for attribute in [a for a in node.attribute if a.name == "axis"]:
        node.attribute.remove(attribute)  # it means nothing for one scale
    return True


def _inference(node: Any, known: Known, low: int, high: int) -> bool:
    """Before opset 12 the ratio was an attribute, before 10 the mask had the type of the data."""
    import onnx

    if low < 10 <= high and len(node.output) > 1:
        return False
    if not low < 12 <= high or len(node.input) < 2:
        return True
    ratio, training = known.array(node, 1), known.array(node, 2)
    if len(node.input) > 2 and node.input[2] and (training is None or training.any()):
        return False
    del node.input[1:]
    if ratio is not None:
        node.attribute.append(onnx.helper.make_attribute("ratio", float(ratio)))
    return True


def _no_zeros(node: Any, known: Known, low: int, high: int) -> bool:
    """What zeros in the shape mean does not matter where there are none."""
    shape = known.array(node, 1)
    if low < 14 <= high and shape is not None and shape.all():
        for attribute in [a for a in node.attribute if a.name == "allowzero"]:
            node.attribute.remove(attribute)
    return True


_SPECIAL: dict[str, Callable[[Any, Known, int, int], bool]] = {
    "DequantizeLinear": _one_scale,
    "Dropout": _inference,
    "QuantizeLinear": _one_scale,
    "Reshape": _no_zeros,
}
"""Conditions that depend on the node; they may drop attributes that mean nothing."""
