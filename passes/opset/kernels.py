"""Which versions of operators the installed onnxruntime computes on the CPU."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from converter.core import graph as g
from passes.opset.definitions import schema

if TYPE_CHECKING:
    import onnx_ir as ir

_OPEN = 2**31 - 1
"""End of a kernel's range that names no end: it is then for its first version alone."""


def lost(model: ir.Model, version: int, target: int) -> tuple[tuple[str, str], ...]:
    """Name nodes whose definition in ``target`` has no kernel while that in ``version`` has one.

    Operators that are functions of others need no kernel.

    Returns:
        Node and reason, in the order of the model.
    """
    found = []
    for node in g.walk(model):
        # What the target does not define any more becomes another operator.
        if node.domain not in g.DEFAULT_DOMAINS or schema(node.op_type, target) is None:
            continue
        if not _computes(node.op_type, version):
            continue
        if not _computes(node.op_type, target):
            found.append(
                (g.label(node), f"onnxruntime does not compute {node.op_type} of opset {target}")
            )
    return tuple(found)


@cache
def _computes(op_type: str, version: int) -> bool:
    definition = schema(op_type, version)
    if definition is None or op_type not in _kernels():
        return definition is not None
    if definition.has_function or definition.has_context_dependent_function:
        return True
    since = definition.since_version
    return any(
        first == since or (last != _OPEN and first <= since <= last)
        for first, last in _kernels()[op_type]
    )


@cache
def _kernels() -> dict[str, list[tuple[int, int]]]:
    """Return the versions of all CPU kernels; empty where the build does not list them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    listed: dict[str, list[tuple[int, int]]] = {}
    for kernel in getattr(state, "get_all_opkernel_def", list)():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain in g.DEFAULT_DOMAINS:
            listed.setdefault(kernel.op_name, []).append(tuple(kernel.version_range))
    return listed
