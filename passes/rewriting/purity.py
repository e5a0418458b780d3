"""Which nodes may be removed, merged or computed in advance: never a guess about unknown ones."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from converter.core.graph import DEFAULT_DOMAINS, subgraphs

if TYPE_CHECKING:
    import onnx_ir as ir

RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators whose outputs differ from run to run by definition."""

TRAINABLE = frozenset({"Dropout", "BatchNormalization"})
"""Operators that are random or stateful when they run in training mode."""

_STANDARD = (*DEFAULT_DOMAINS, "ai.onnx.ml")


@lru_cache(maxsize=1)
def _standard_operators() -> frozenset[tuple[str, str]]:
    import onnx

    return frozenset((s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history())


def is_standard(node: ir.Node) -> bool:
    """Tell whether the ONNX specification defines the operator, so that we know what it does.

    A model function may take the name of a standard operator; the pipeline treats the ones with an
    overload as opaque.
    """
    if node.domain not in _STANDARD or node.overload:
        return False
    domain = "" if node.domain == "ai.onnx" else node.domain
    return (domain, node.op_type) in _standard_operators()


def is_pure(node: ir.Node) -> bool:
    """Tell whether the node does nothing but compute its outputs; inner nodes count."""
    if not is_standard(node):
        return False
    return all(is_pure(inner) for graph in subgraphs(node) for inner in graph)


def is_repeatable(node: ir.Node) -> bool:
    """Tell whether a pure node without sub-graphs gives equal outputs for equal inputs."""
    if node.op_type in RANDOM or not is_standard(node):
        return False
    if node.op_type in TRAINABLE:
        return False
    return next(subgraphs(node), None) is None
