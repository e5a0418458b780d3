"""Rules for one node: its attributes and the number and types of its values.

What an operator allows comes from the schemas of the installed ``onnx``. An operator without a
schema there (another domain, a model function, an operator set newer than the installed one) is
checked for form alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import onnx
from onnx.defs import OpSchema, SchemaError, get_schema

from converter.core.graph import DEFAULT_DOMAINS
from converter.errors import InvalidModelError
from converter.io.limits import quoted

Attribute = onnx.AttributeProto
_DATA_TYPE = onnx.TensorProto.DataType
_KIND = Attribute.AttributeType.Value
_SINGLE = {
    "f": Attribute.FLOAT,
    "i": Attribute.INT,
    "s": Attribute.STRING,
    "t": Attribute.TENSOR,
    "g": Attribute.GRAPH,
    "tp": Attribute.TYPE_PROTO,
    "sparse_tensor": Attribute.SPARSE_TENSOR,
}
_REPEATED = {
    "floats": Attribute.FLOATS,
    "ints": Attribute.INTS,
    "strings": Attribute.STRINGS,
    "tensors": Attribute.TENSORS,
    "graphs": Attribute.GRAPHS,
    "type_protos": Attribute.TYPE_PROTOS,
    "sparse_tensors": Attribute.SPARSE_TENSORS,
}
FIELDS = {kind: name for name, kind in (*_SINGLE.items(), *_REPEATED.items())}
"""Attribute type -> the field of ``AttributeProto`` that holds it."""

# a number or text that is not there reads as zero or empty, as proto3 writers mean it
_MAY_BE_EMPTY = {Attribute.FLOAT, Attribute.INT, Attribute.STRING, *_REPEATED.values()}
# onnxruntime takes a sparse tensor where a tensor is wanted
_ALSO = {int(Attribute.TENSOR): {0, int(Attribute.TENSOR), int(Attribute.SPARSE_TENSOR)}}
_INTERNAL = "__"  # onnxruntime's own notes on nodes
_FIRST_WITH_TYPES = 2  # IR version from which attributes say their type


@dataclass(frozen=True)
class Parameter:
    """One input or output of an operator schema.

    Attributes:
        required: It must be there and have a name.
        types: Element types allowed for a tensor, None when not only tensors are allowed.
        variable: Name of the type variable that it shares with other parameters, or "".
    """

    required: bool
    types: frozenset[int] | None
    variable: str


@dataclass(frozen=True)
class Schema:
    """What the checks need of an operator schema.

    Attributes:
        attributes: Attribute types by name.
        required: Names of the attributes that must be there.
        inputs: The parameters; the last one repeats when ``variadic``.
        variadic: Any number of further inputs may follow.
        counts: Least and most inputs, least and most outputs.
    """

    attributes: Mapping[str, int]
    required: frozenset[str]
    inputs: tuple[Parameter, ...]
    variadic: bool
    counts: tuple[int, int, int, int]

    def parameter(self, index: int) -> Parameter | None:
        """Return the parameter of an input, or None when there is no such input."""
        if index < len(self.inputs):
            return self.inputs[index]
        return self.inputs[-1] if self.variadic else None


@lru_cache(maxsize=4096)
def schema_of(domain: str, op_type: str, version: int) -> Schema | None:
    """Return the schema in force at an operator set version, or None when there is none."""
    try:
        found = get_schema(op_type, version, "" if domain in DEFAULT_DOMAINS else domain)
    except SchemaError:
        return None
    if found.deprecated:
        return None
    variadic = OpSchema.FormalParameterOption.Variadic
    return Schema(
        {name: _KIND(_enum_name(row.type)) for name, row in found.attributes.items()},
        frozenset(name for name, row in found.attributes.items() if row.required),
        tuple(_parameter(found, each) for each in found.inputs),
        bool(found.inputs) and found.inputs[-1].option == variadic,
        (found.min_input, found.max_input, found.min_output, found.max_output),
    )


def _enum_name(kind: Any) -> str:
    """Return the name of an enum of ``onnx.defs``, whose type stubs hide that it is one."""
    return str(kind.name)


def _parameter(schema: OpSchema, parameter: OpSchema.FormalParameter) -> Parameter:
    names = set(parameter.types)
    tensors = {name for name in names if name.startswith("tensor(")}
    types = None
    if names and names == tensors:
        types = frozenset(_element(name) for name in names)
    single = parameter.option == OpSchema.FormalParameterOption.Single
    shared = any(parameter.type_str == each.type_param_str for each in schema.type_constraints)
    variable = parameter.type_str if shared and parameter.is_homogeneous else ""
    return Parameter(single, types, variable)


def _element(name: str) -> int:
    """Return the element type of ``tensor(float16)``."""
    inner = name[len("tensor(") : -1].upper()
    return int(_DATA_TYPE.Value(inner))


def check_attributes(
    attributes: Sequence[onnx.AttributeProto],
    *,
    ir_version: int,
    references: frozenset[str] | None,
) -> dict[str, onnx.AttributeProto]:
    """Check the attributes of a node on their own and return them by name.

    Args:
        attributes: Of the node.
        ir_version: Of the model.
        references: Attributes of the model function around the node, None outside of functions.

    Raises:
        InvalidModelError: A name is missing or given twice, the type does not fit the value, there
            is no value or more than one, or a reference leads nowhere.
    """
    found: dict[str, onnx.AttributeProto] = {}
    for attribute in attributes:
        name = attribute.name
        if not name:
            raise _bad("an attribute has no name")
        if name in found:
            raise _bad(f"the attribute {quoted(name)} is there twice")
        found[name] = attribute
        if attribute.type or ir_version >= _FIRST_WITH_TYPES:
            _check_value(attribute, references)
    return found


def _check_value(attribute: onnx.AttributeProto, references: frozenset[str] | None) -> None:
    name = quoted(attribute.name)
    if attribute.type not in FIELDS:
        raise _bad(f"the attribute {name} has no known type")
    used = _used(attribute)
    if attribute.ref_attr_name:
        if references is None or attribute.ref_attr_name not in references:
            target = quoted(attribute.ref_attr_name)
            raise _bad(f"the attribute {name} refers to {target}, which no function around it has")
        if used:
            raise _bad(f"the attribute {name} has both a value and a reference")
    elif used - {FIELDS[attribute.type]}:
        raise _bad(f"the value of the attribute {name} is not of the type that it names")
    elif not used and attribute.type not in _MAY_BE_EMPTY:
        raise _bad(f"the attribute {name} has no value")


def _used(attribute: onnx.AttributeProto) -> set[str]:
    """Return the value fields that are set."""
    return {
        descriptor.name
        for descriptor, _ in attribute.ListFields()
        if descriptor.name in _SINGLE or descriptor.name in _REPEATED
    }


def value_of(attribute: onnx.AttributeProto) -> Any:
    """Return the value of an attribute; lists as lists, texts as bytes."""
    content = getattr(attribute, FIELDS[attribute.type])
    return list(content) if attribute.type in _REPEATED.values() else content


def check_schema(
    node: onnx.NodeProto,
    attributes: Mapping[str, onnx.AttributeProto],
    schema: Schema,
) -> None:
    """Check a node against its operator's schema.

    Raises:
        InvalidModelError: An attribute is missing, unknown or of another type, or there are too few
            or too many inputs or outputs.
    """
    for name, attribute in attributes.items():
        wanted = schema.attributes.get(name)
        if wanted is None and not name.startswith(_INTERNAL):
            known = ", ".join(sorted(schema.attributes)) or "none"
            raise _bad(f"the operator has no attribute {quoted(name)}", known)
        if wanted is not None and attribute.type not in _ALSO.get(wanted, {wanted, 0}):
            text = Attribute.AttributeType.Name(wanted)
            raise _bad(f"the attribute {quoted(name)} has the wrong type", text)
    missing = schema.required - attributes.keys()
    if missing:
        raise _bad(f"the attribute {quoted(min(missing))} is missing")
    low, high, low_out, high_out = schema.counts
    inputs = list(node.input) if len(node.input) <= high else _trimmed(node.input)
    if not low <= len(inputs) <= high:
        raise _bad(f"the operator has {len(inputs)} inputs", f"{low} to {high}")
    outputs = _trimmed(node.output)
    if not low_out <= len(outputs) <= high_out:
        raise _bad(f"the operator has {len(outputs)} outputs", f"{low_out} to {high_out}")
    for index, name in enumerate(inputs):
        parameter = schema.parameter(index)
        if not name and parameter is not None and parameter.required:
            raise _bad(f"input {index} of the operator has no name")


def check_types(types: Sequence[int | None], schema: Schema) -> None:
    """Check the element types of a node's inputs, as far as they are known (else None).

    Raises:
        InvalidModelError: The operator does not take such a type, or two inputs that must have one
            type have two.
    """
    bound: dict[str, int] = {}
    for index, kind in enumerate(types):
        parameter = schema.parameter(index)
        if kind is None or parameter is None or parameter.types is None:
            continue
        name = _DATA_TYPE.Name(kind)
        if kind not in parameter.types:
            raise _bad(f"input {index} has the element type {name}, which is not taken")
        if parameter.variable and bound.setdefault(parameter.variable, kind) != kind:
            raise _bad(f"input {index} has the element type {name}, unlike those before")


def _trimmed(names: Sequence[str]) -> list[str]:
    """Return names without the empty ones at the end: those are values left out."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _bad(what: str, allowed: str = "") -> InvalidModelError:
    return InvalidModelError(what, allowed=allowed)
