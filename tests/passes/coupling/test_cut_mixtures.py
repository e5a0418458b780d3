"""Any mixture of operators can be cut anywhere and equals its masked original.

CONVERTER_MIXTURES=2000 tries more of them than the suite has time for.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support
from coupling_blocks import MAPS, SEQUENCES
from coupling_blocks_more import MORE_MAPS, MORE_SEQUENCES
from coupling_mixtures import mixture
from coupling_models import Block, Net
from exact import feed_for

from converter.core.graph import tensors
from converter.coupling.couple import couple
from converter.pipeline.interface import interface_of, port_changes
from passes.coupling.agreement import difference_of, tolerance_of
from passes.coupling.cut import cut
from passes.coupling.mask import mask
from passes.coupling.settle import settle

_MIXTURES = int(os.environ.get("CONVERTER_MIXTURES", "25"))


def _weights(model: ir.Model) -> int:
    return sum(tensor.size for tensor in tensors(model) if tensor.dtype.is_floating_point())


def _shapes(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """As ``observe_shapes``, without a child process."""
    proto = ir.to_proto(model)
    names = [name for node in proto.graph.node for name in node.output]
    have = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in have
    )
    found = {name: array.shape for name, array in support.run(proto, feed).items()}
    found |= {name: array.shape for name, array in feed.items()}
    return found | {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def _check(model: ir.Model, seed: int, ratio: float) -> float:
    """Cut random atoms, compare with the masked original; return the share of weights left."""
    shapes = _shapes(model, feed_for(model, seed, 2))
    coupling = couple(model, shapes)
    rng = np.random.default_rng(seed)
    alive = coupling.all_alive()
    for component in coupling.components:
        alive[component.atoms[rng.random(component.atoms.size) < ratio]] = False
    alive = settle(coupling, alive)
    student, masked = model.clone(), model.clone()
    cut(student, couple(student, shapes), alive)
    mask(masked, couple(masked, shapes), alive)
    onnx.checker.check_model(ir.to_proto(student), full_check=True)
    assert port_changes(interface_of(model), interface_of(student)) == ()
    free = not isinstance(model.graph.inputs[0].shape[0], int)
    for batch in (2, 3) if free else (2,):
        feed = feed_for(model, seed, batch)
        expected, found = support.run(masked, feed), support.run(student, feed)
        assert difference_of(expected, found) <= tolerance_of(model)
    return _weights(student) / _weights(model)


@pytest.mark.parametrize("seed", range(_MIXTURES))
def test_a_mixture_equals_its_masked_original(seed: int) -> None:
    model = mixture(seed)
    ratio = float(np.random.default_rng((seed, 1)).uniform(0.2, 0.9))
    assert _check(model, seed, ratio) <= 1.0


@pytest.mark.parametrize("block", MAPS + MORE_MAPS, ids=lambda block: block.__name__)
def test_a_block_of_maps_loses_its_weights(block: Block) -> None:
    net = Net(3, (3, 8, 8))
    x = net.conv(block(net, net.block(net.input, 16)), 8)
    model = net.model(net.conv(net.act(x), 3, 1))
    assert _check(model, 0, 0.5) < 0.75


@pytest.mark.parametrize("block", SEQUENCES + MORE_SEQUENCES, ids=lambda block: block.__name__)
def test_a_block_of_sequences_loses_its_weights(block: Block) -> None:
    net = Net(4, (6, 16))
    model = net.model(net.dense(block(net, net.dense(net.input, 16)), 3))
    assert _check(model, 0, 0.5) < 0.75
