"""How packed constants are told from others: by the name of the node that makes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from converter.core.graph import walk

if TYPE_CHECKING:
    import onnx_ir as ir

DECODER = "unpack"
"""The last node of everything that the pass ``pack`` writes is called so, with a number."""
_NAME = re.compile(rf"{DECODER}(_\d+)?")


def is_decoder(node: ir.Node) -> bool:
    """Tell whether the node hands out a constant that was packed."""
    return _NAME.fullmatch(node.name or "") is not None


def is_packed(model: ir.Model) -> bool:
    """Tell whether the model holds packed constants."""
    return any(is_decoder(node) for node in walk(model))
