"""Pad with zeros into the padding of the convolution or pooling after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.core.graph import constant, is_op
from passes.fusion.layer import unpadded
from passes.rewriting import sizes
from passes.rewriting.pattern import attribute_value
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

_INPUTS_SINCE = 11  # operator set from which on Pad gets its numbers as inputs
_COUNTS_SINCE = 7  # and from which on AveragePool can count padding


def _pad(node: ir.Node, work: Work) -> Result:
    source = node.inputs[0]
    pad = source.producer() if source is not None else None
    if source is None or pad is None or not is_op(pad, "Pad") or pad.overload:
        return None
    if "Pad" in work.redefined or pad not in work.selection or pad.inputs[0] is None:
        return None
    reason = _obstacle(node, pad, source)
    if reason is not None:
        return reason
    rank = _rank(node, pad, work)
    amounts = None if rank is None else _amounts(pad, work.opset(pad), rank)
    if rank is None or amounts is None:
        return "where Pad adds elements is not certain"
    reason = _misfit(amounts, rank) or _FITS[node.op_type](node, amounts, rank, work.opset(node))
    return reason if reason is not None else _install(node, pad, amounts, work)


def _obstacle(node: ir.Node, pad: ir.Node, source: ir.Value) -> str | None:
    if any(a.is_ref() for n in (node, pad) for a in n.attributes.values()):
        return "it depends on an attribute of the function's call"
    if len(source.uses()) != 1 or source.is_graph_output():
        return "the padded values are used elsewhere"
    if pad.graph is not node.graph:
        return "Pad before it belongs to another graph"
    mode = node.attributes.get("auto_pad")
    if mode is not None and mode.as_string() not in {"NOTSET", "VALID"}:
        return f"{node.op_type} chooses its padding by the size of its input"
    if not _adds_zeros(pad):
        return "Pad does not add zeros"
    return None


def _adds_zeros(pad: ir.Node) -> bool:
    mode, value = pad.attributes.get("mode"), pad.attributes.get("value")
    if mode is not None and mode.as_string() != "constant":
        return False
    if value is not None and value.as_float() != 0:
        return False
    given = pad.inputs[2] if len(pad.inputs) > 2 else None
    if given is None:
        return True
    tensor = constant(given)
    return tensor is not None and tensor.size == 1 and not tensor.numpy().any()


def _rank(node: ir.Node, pad: ir.Node, work: Work) -> int | None:
    """Return the number of axes of what is padded, where that is certain."""
    dims = work.facts.of(pad.inputs[0]).dims
    if dims is not None:
        return len(dims)
    if node.op_type == "Conv":
        weight = work.facts.of(node.inputs[1]).dims
        return None if weight is None else len(weight)
    kernel = node.attributes.get("kernel_shape")
    return None if kernel is None else 2 + len(kernel.as_ints())


def _amounts(pad: ir.Node, version: int, rank: int) -> list[int] | None:
    """Return what is added at the start of every axis and then at every end."""
    if version < _INPUTS_SINCE:
        attribute = pad.attributes.get("pads" if version >= 2 else "paddings")
        given = None if attribute is None else list(attribute.as_ints())
    else:
        given = _integers(pad.inputs[1] if len(pad.inputs) > 1 else None)
    axes: list[int] | None = list(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes = _integers(pad.inputs[3])
    if given is None or axes is None or len(given) != 2 * len(axes):
        return None
    if any(not -rank <= axis < rank for axis in axes):
        return None
    amounts = [0] * (2 * rank)
    for index, axis in enumerate(axes):
        amounts[axis % rank] += given[index]
        amounts[rank + axis % rank] += given[len(axes) + index]
    return amounts


def _integers(value: ir.Value | None) -> list[int] | None:
    tensor = constant(value)
    return None if tensor is None else [int(i) for i in tensor.numpy().reshape(-1)]


def _misfit(amounts: list[int], rank: int) -> str | None:
    if min(amounts, default=0) < 0:
        return "Pad takes elements away"
    if any(amounts[axis] or amounts[rank + axis] for axis in (0, 1)):
        return "Pad adds samples or channels"
    return None


def _conv(node: ir.Node, amounts: list[int], rank: int, version: int) -> str | None:
    del node, amounts, rank, version
    return None


def _average(node: ir.Node, amounts: list[int], rank: int, version: int) -> str | None:
    """Say why the average would come out otherwise."""
    counts = attribute_value(node, "count_include_pad", version)
    if version < _COUNTS_SINCE:
        return "AveragePool counts padding from opset 7 on"
    if attribute_value(node, "ceil_mode", version):
        return "AveragePool rounds its size up, where padding counts otherwise"
    if not counts and not unpadded(node):
        return "AveragePool leaves its own padding out of the average"
    kernel = node.attributes["kernel_shape"].as_ints()
    total = [
        new + old for new, old in zip(_spatial(amounts, rank), _given(node, rank), strict=True)
    ]
    if any(amount >= size for amount, size in zip(total, [*kernel, *kernel], strict=True)):
        return "AveragePool cannot be padded by as much as its window"
    return None


_FITS = {"Conv": _conv, "AveragePool": _average}


def _spatial(amounts: list[int], rank: int) -> list[int]:
    return [*amounts[2:rank], *amounts[rank + 2 :]]


def _given(node: ir.Node, rank: int) -> list[int]:
    attribute = node.attributes.get("pads")
    return [0] * (2 * (rank - 2)) if attribute is None else list(attribute.as_ints())


def _install(node: ir.Node, pad: ir.Node, amounts: list[int], work: Work) -> Result:
    import onnx_ir as ir

    old = _given(node, len(amounts) // 2)
    pads = [a + b for a, b in zip(_spatial(amounts, len(amounts) // 2), old, strict=True)]
    source = pad.inputs[0]
    more = {"pads": pads}
    if node.op_type == "AveragePool":
        more["count_include_pad"] = [1]
    cost = sum(sizes.attribute_bytes(k, v) for k, v in more.items() if k not in node.attributes)
    listed = pad.attributes.get("pads")
    gain = sizes.node_bytes(pad) + (0 if listed is None else 2 * len(listed.as_ints()))
    gain += sum(work.constant_saving(v, {pad}) for v in pad.inputs[1:])
    if source is None or not work.affords(cost - gain):
        return "the numbers of Pad would make the file bigger"
    work.set_input(node, 0, source)
    node.attributes.pop("auto_pad", None)
    if any(pads):
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    if node.op_type == "AveragePool" and unpadded(node) is False:
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    return Applied((node,))


RULES = (Rule("pads_fused", tuple(_FITS), _pad),)
