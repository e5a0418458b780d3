"""Large weights behind a Transpose: turned when they are read, so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant
from converter.core.tensors import CHUNK_BYTES, MappedTensor
from passes.rewriting.pattern import attribute_value
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

Array = np.ndarray[Any, Any]
_EAGER_BYTES = 1 << 20  # smaller ones are computed with all other constants


def _same(chunk: Array, start: int) -> Array:
    return chunk


class TurnedTensor(MappedTensor):
    """Another tensor with its axes in another order, computed when it is read.

    Args:
        source: Tensor of at least 8 bits per element.
        perm: As of Transpose.
    """

    def __init__(self, source: ir.TensorProtocol, perm: tuple[int, ...]) -> None:
        super().__init__(source, _same)
        self.perm = perm

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """Shape, that of the source in another order."""
        sizes = self.source.shape.numpy()
        return ir.Shape([sizes[axis] for axis in self.perm])

    def chunks(self, nbytes: int = CHUNK_BYTES) -> Iterator[tuple[int, Array]]:
        """Yield (start, flat chunk); one copy of the source is in memory meanwhile."""
        whole = self.numpy().reshape(-1)
        step = max(1, nbytes // whole.itemsize)
        for start in range(0, whole.size, step):
            yield start, whole[start : start + step]

    def numpy(self) -> Array:
        """Compute the whole array."""
        return np.ascontiguousarray(np.asarray(self.source.numpy()).transpose(self.perm))


def _turn(node: ir.Node, work: Work) -> Result:
    """Turn a weight that nothing else uses; a second copy would make the file bigger."""
    source = node.inputs[0]
    weight = constant(source)
    if source is None or weight is None or weight.nbytes <= _EAGER_BYTES:
        return None
    if not source.is_initializer() or work.wants_nodes(node) or node.outputs[0].is_graph_output():
        return None
    if len(source.uses()) != 1 or weight.dtype.bitwidth < 8 or weight.dtype == ir.DataType.STRING:
        return None
    rank = len(weight.shape)
    perm = attribute_value(node, "perm", work.opset(node)) or range(rank)[::-1]
    if sorted(perm) != list(range(rank)) or any(a.is_ref() for a in node.attributes.values()):
        return None
    if isinstance(weight, TurnedTensor):
        perm, weight = [weight.perm[axis] for axis in perm], weight.source
    turned = work.new_constant(node, source.name or "weight", TurnedTensor(weight, tuple(perm)))
    applied = work.replace(node, turned)
    if applied is None:
        work.drop_initializer(turned)
    return applied


RULES = (Rule("weights_turned", ("Transpose",), _turn),)
"""The rule of this module, part of ``fold_constants``."""
