"""Pretrained networks of other people, half of every component removed: the cut is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exact import InProcess

from converter.core.context import Batch, Context
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from passes.coupling.certificate import certified_cut

# a unit that there is, and the share of multiply-accumulates that is left at most
EXPECTED = {
    "gtcrn_simple": ("hidden", 0.9),  # the caches of its layers are inputs and outputs
    "minilm_l6_sts": ("head", 0.55),
    "mlperf_resnet8_cifar10_qdq": ("channel", 0.3),
    "mobilenetv2_imagenet_qdq_int8": ("channel", 0.3),
    "nnsplit_en_bilstm": ("hidden", 0.3),
    "silero_vad_16k_op15": ("channel", 0.5),  # its LSTM lies in a branch and stays
}
SIZES = {"batch": 2, "N": 2, "T": 12, "length": 12, "sequence": 512}


def feed_of(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """Return inputs that the model takes; whole numbers are small."""
    source = np.random.default_rng(0)
    feed: dict[str, np.ndarray[Any, Any]] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [d if isinstance(d, int) else SIZES.get(str(d.value), 2) for d in value.shape]
        if value.dtype == ir.DataType.FLOAT:
            array = source.normal(size=shape)
        elif not shape:
            array = np.array(16000)
        elif "mask" in (value.name or ""):
            array = np.ones(shape)
        else:
            array = source.integers(0, 2, shape)
        feed[value.name or ""] = array.astype(value.dtype.numpy())
    return feed


class Samples(list[Batch]):
    """Data that a user gave."""

    synthetic = False


@pytest.mark.parametrize("name", EXPECTED)
def test_half_of_everything_can_go(name: str, zoo: Path) -> None:
    unit, most = EXPECTED[name]
    model = ir.from_proto(onnx.load(zoo / "models" / f"{name}.onnx"))
    context = Context(dataset=Samples([Batch(feed_of(model))]), services=InProcess())  # type: ignore[arg-type]
    shapes = observe_shapes(model, context)
    coupling = couple(model, shapes)
    assert unit in {component.unit for component in coupling.components}
    alive = coupling.all_alive()
    for component in coupling.components:
        alive[component.atoms[1::2]] = False
    assert coupling.macs(alive) <= most * coupling.macs()
    done = certified_cut(model, shapes, alive, context)
    assert not done.refused
    assert done.difference <= 1e-4
    after = couple(model, observe_shapes(model, context))
    assert after.macs() == coupling.macs(done.alive)
