"""Integers that become float weights at load, stored once more in what of all forms is smallest.

A quantizer writes its integers so that they stand alone: every tensor has a Cast, a Mul, a vector
of scales and names for all of them, and two integers of 4 bits that share a byte hide that one of
them is zero. Computed and coded again, the weights share decoders and leave zeros out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from converter.core import graph as g
from passes.storage import pool
from passes.storage.content import contents
from passes.storage.emit import INITIALIZER_BYTES, NODE_BYTES
from passes.storage.find import Place, find
from passes.storage.form import Constant
from passes.storage.offers import pooled
from passes.storage.unpack import converted, unpack

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context
    from converter.core.select import Selection

_MOST_BYTES = 1 << 30
"""Of all weights as floats, which are in memory together."""


def recode(model: ir.Model, selection: Selection, context: Context) -> int:
    """Turn converted integers into plain floats where floats can be stored in fewer bytes.

    Nothing is rounded: floats whose integers are not found again stay as they are written.

    Args:
        model: Edited in place.
        selection: The nodes whose constants may be stored anew.
        context: Says how models are run.

    Returns:
        Number of weights that are plain floats now.
    """
    chains = converted(model)
    known = [v.shape.numpy() for v in chains if v.shape is not None and v.shape.is_static()]
    if not chains or 4 * sum(map(math.prod, known)) > _MOST_BYTES:
        return 0
    plain = model.clone()
    unpack(plain, context, only={v.name for v in chains if v.name})
    places = {place.name: place for place in find(plain, selection)[0]}
    better: dict[int, tuple[str, Constant]] = {}
    for value, chain in chains.items():
        place = places.get(value.name or "")
        if place is None:
            continue
        constant = place.constant()
        if _smallest(constant) < _chain_bytes(model, chain):
            better[id(constant)] = (place.name, constant)
    pools = pooled([constant for _, constant in better.values()], g.opset(model))
    kept = {better[id(member.constant)][0] for found in pools for member in found.members}
    if not kept:
        return 0
    return int(unpack(model, context, only=kept).counts.get("constants_unpacked", 0))


def _chain_bytes(model: ir.Model, chain: list[ir.Node]) -> int:
    """Estimate what nodes and the constants they read take, those in their smallest forms."""
    read = dict.fromkeys(v for node in chain for v in node.inputs if g.constant(v) is not None)
    places = [Place(value, model.graph, 1, "") for value in read if value is not None]
    held = sum(_smallest(place.constant()) for place in places)
    return len(chain) * NODE_BYTES + len(places) * INITIALIZER_BYTES + held


def _smallest(constant: Constant) -> int:
    """Return the bytes of the smallest exact form, a decoder shared with others apart."""
    ways = (way for one in contents(constant, "exact") for way in pool.ways(constant, one))
    return min([constant.nbytes, *(way.nbytes for way in ways)])
