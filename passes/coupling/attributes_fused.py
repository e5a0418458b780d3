"""Attributes of recurrent layers, fused attention and block-quantized products.

Rows of the table in :mod:`passes.coupling.attributes`. Scales of attention are not here: whole
heads go, so the size of a head, which the default scale comes from, stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from converter.ops.table import Entry

if TYPE_CHECKING:
    from passes.coupling.attributes import Call

Rule = Callable[["Call"], dict[str, Any]]
MICROSOFT = "com.microsoft"


def _hidden(axis: int) -> Rule:
    """Read the hidden size off an axis of the recurrent weights."""
    return lambda call: {"hidden_size": call.size(2, axis)}


def _portion(call: Call, number: int) -> int:
    """Return what is left of a number of heads, by the last axis of the output."""
    rank = call.output_rank()
    axis = 1 if rank == 4 else rank - 1
    return number * call.output_size(axis) // max(call.old_output_size(axis), 1)


def _heads(*names: str) -> Rule:
    """Shrink attributes with numbers of heads as the output shrinks."""

    def rule(call: Call) -> dict[str, Any]:
        given = {name: call.integer(name) for name in names}
        return {name: _portion(call, number) for name, number in given.items() if number}

    return rule


def _projecting(call: Call) -> dict[str, Any]:
    found = _heads("num_heads")(call)
    sizes = call.node.attributes.get("qkv_hidden_sizes")
    if sizes is not None:
        found["qkv_hidden_sizes"] = [_portion(call, int(size)) for size in sizes.as_ints()]
    return found


def _rotary(call: Call) -> dict[str, Any]:
    if call.output_rank() != 4:
        return _heads("num_heads")(call)
    found = {"num_heads": call.output_size(1)} if call.integer("num_heads") else {}
    if call.integer("rotary_embedding_dim"):
        found["rotary_embedding_dim"] = call.output_size(3)
    return found


def _blocks(call: Call) -> dict[str, Any]:
    rank = call.output_rank()
    return {"K": call.size(0, rank - 1), "N": call.output_size(rank - 1)}


ENTRIES: list[Entry[Rule]] = [
    Entry("LSTM", _hidden(2)),
    Entry("GRU", _hidden(2)),
    Entry("RNN", _hidden(2)),
    Entry("DynamicQuantizeLSTM", _hidden(1), MICROSOFT),
    Entry("Attention", _heads("q_num_heads", "kv_num_heads"), since=23),
    Entry("RotaryEmbedding", _rotary, since=23),
    Entry("RotaryEmbedding", _rotary, MICROSOFT),
    Entry("MultiHeadAttention", _heads("num_heads"), MICROSOFT),
    Entry("GroupQueryAttention", _heads("num_heads", "kv_num_heads"), MICROSOFT),
    Entry("Attention", _projecting, MICROSOFT),
    Entry("QAttention", _projecting, MICROSOFT),
    Entry("MatMulNBits", _blocks, MICROSOFT),
]
