"""Random networks of blocks in any order."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from coupling_blocks import MAPS, SEQUENCES, VECTORS
from coupling_blocks_more import MORE_MAPS, MORE_SEQUENCES
from coupling_models import Block, Flow, Net


def mixture(seed: int) -> ir.Model:
    """Return a random network of a few blocks: a map, perhaps a sequence, a vector."""
    start = np.random.default_rng(seed)
    opset, free = int(start.choice([11, 13, 17, 18, 21])), bool(start.integers(2))
    kind = int(start.integers(4))
    net = Net(seed, (3, 8, 8) if kind else (6, 16), opset=opset, free=free)
    x = net.input
    if kind:
        x = net.block(x, 16)
        x = _several(net, x, MAPS + MORE_MAPS, 4)
        x, more = _leave_map(net, x, kind)
        if more is not None:
            return net.model(more, x)
    if len(x.shape) == 2:
        x = _several(net, x, SEQUENCES + MORE_SEQUENCES, 3)
        x = Flow(net.mean(x.name, [1], keep=0), x.shape[1:])
    x = _several(net, x, VECTORS, 2)
    return net.model(net.dense(x, 5))


def _several(net: Net, x: Flow, blocks: tuple[Block, ...], most: int) -> Flow:
    for _ in range(int(net.rng.integers(1, most + 1))):
        x = net.pick(blocks)(net, x)
    return x


def _leave_map(net: Net, x: Flow, kind: int) -> tuple[Flow, Flow | None]:
    """Turn a map into a sequence or a vector; kind 3: it is an output beside another one."""
    c, h, w = x.shape
    if kind == 1:
        return net.transpose(net.reshape(x, (c, h * w)), 2, 1), None
    if kind == 2:
        if net.rng.random() < 0.5:
            return Flow(net.mean(x.name, [2, 3], keep=0), (c,)), None
        return Flow(net.op("Flatten", x.name, axis=1), (c * h * w,)), None
    return x, net.conv(x, 4, 1)
