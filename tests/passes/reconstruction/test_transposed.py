"""ConvTranspose written as a convolution, and fitted as one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.core import graph as g
from converter.core.context import Batch, RunSettings
from passes.reconstruction.linear import Linear, linear_of
from passes.reconstruction.transposed import from_matrices, matrices
from passes.reconstruction.walk import reconstruct

RNG = np.random.default_rng(21)
ATTRIBUTES = [
    "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
    "strides = [2, 1], pads = [0, 1, 1, 0]",
    "dilations = [2, 2], pads = [1, 1, 1, 1]",
    "strides = [3, 2]",
]


def net(attributes: str, groups: int) -> ir.Model:
    return support.model_from_text(
        f"""net (float[N,6,5,7] x) => (float[N,4,H,W] y) {{
            y = ConvTranspose <group = {groups}, {attributes}> (x, w, b)
        }}""",
        w=RNG.standard_normal((6, 4 // groups, 3, 3)).astype(np.float32),
        b=RNG.standard_normal(4).astype(np.float32),
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("attributes", ATTRIBUTES)
def test_rows_times_weight_is_the_output(attributes: str, groups: int) -> None:
    model = net(attributes, groups)
    layer = linear_of(next(iter(model.graph)))
    assert isinstance(layer, Linear)
    x = RNG.standard_normal((2, 6, 5, 7)).astype(np.float32)
    expected = support.run(model, {"x": x})["y"]
    assert layer.shape(x) == expected.shape
    made = np.einsum("ngk,gok->ngo", layer.rows(x, 10_000, 0), layer.weight)
    made = made.reshape(2, *expected.shape[2:], 4) + layer.bias
    np.testing.assert_allclose(np.moveaxis(made, -1, 1), expected, atol=1e-4)
    array = g.constant_array(model.graph.initializers["w"])
    np.testing.assert_array_equal(layer.stored(layer.weight), array)
    assert array is not None
    np.testing.assert_array_equal(from_matrices(matrices(array, groups), array.shape), array)


def test_sizes_that_are_not_known_are_left_alone() -> None:
    model = net('auto_pad = "SAME_UPPER"', 1)
    assert linear_of(next(iter(model.graph))) == "its padding follows from sizes"


def test_a_cut_in_front_is_made_up_for() -> None:
    teacher = support.model_from_text(
        """net (float[N,3,6,6] x) => (float[N,4,12,12] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w0)
            y = ConvTranspose <strides = [2, 2]> (c, w1)
        }""",
        w0=RNG.standard_normal((12, 3, 3, 3)).astype(np.float32),
        w1=RNG.standard_normal((12, 4, 2, 2)).astype(np.float32),
    )
    student, left = teacher.clone(), np.arange(0, 12, 2)
    for name in ("w0", "w1"):
        value = student.graph.initializers[name]
        array = g.constant_array(value)
        assert array is not None
        g.set_constant(value, array[left])
    next(iter(student.graph)).outputs[0].shape = None
    batches = [
        Batch({"x": RNG.standard_normal((4, 3, 6, 6)).cumsum(axis=-1).astype(np.float32)}, None, 4)
        for _ in range(8)
    ]
    kept = {"c": (None, left, None, None)}
    repair = reconstruct(teacher, student, kept, batches, RunSettings())
    assert repair.modified
    assert repair.after < 0.8 * repair.before  # half of the channels hold half of the image
