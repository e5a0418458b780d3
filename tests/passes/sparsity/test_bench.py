"""The bench: exact zeros, weights that make up for them, and a damage that follows."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

from converter.core.context import Batch, Context
from converter.core.select import Selection
from passes.sparsity.bench import Bench, measured
from passes.sparsity.layers import find
from passes.sparsity.patterns import Pattern
from passes.sparsity.prepared import ranks_of
from passes.sparsity.problem import Problem
from tests.support import model_from_text


def network() -> ir.Model:
    """A convolution, a transposed one, a depthwise one, and a Gemm."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return model_from_text(
        """
        g (float[N,3,6,6] x) => (float[N,5] y) {
            a = Conv<pads = [1,1,1,1]>(x, w0)
            b = Relu(a)
            c = ConvTranspose<strides = [2,2]>(b, w1)
            d = Relu(c)
            e = Conv<group = 6, strides = [2,2]>(d, w2, b2)
            f = Relu(e)
            h = GlobalAveragePool(f)
            i = Flatten(h)
            y = Gemm<transB = 1>(i, w3)
        }
        """,
        w0=weight(8, 3, 3, 3),
        w1=weight(8, 6, 2, 2),
        w2=weight(6, 1, 3, 3),
        b2=weight(6, 1)[:, 0],
        w3=weight(5, 6),
    )


class Samples:
    """64 smooth pictures, one by one."""

    samples = 64
    synthetic = False
    description = "pictures"

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Any:
        rng = np.random.default_rng(1)
        for _ in range(self.samples):
            base = rng.standard_normal((1, 3, 6, 6))
            picture = (base + np.roll(base, 1, 3) + np.roll(base, 1, 2)).astype(np.float32)
            yield Batch({"x": picture}, None, 1)


def problem(recover: Literal["least_squares", "moments", "obs", "none"]) -> Problem:
    model = network()
    layers, _ = find(model, Selection(()))

    def scores(index: int) -> np.ndarray:
        return np.abs(layers[index].tensor.numpy()).reshape(-1)

    def build(zeros: np.ndarray, samples: Any = None) -> ir.Model:
        raise NotImplementedError

    context = Context(dataset=Samples())
    return Problem(
        model, layers, 0.5, context, "magnitude", Pattern(), recover, scores, build=build
    )


def zeros_of(bench: Bench) -> list[int]:
    """Count what the weights of the changed model hold at present."""
    tensors = [layer.value.const_value for layer in bench.problem.layers]
    return [int((t.numpy() == 0).sum()) for t in tensors if t is not None]


@pytest.mark.parametrize("recover", ["least_squares", "moments", "obs", "none"])
def test_masks_are_exact_at_points_and_between(recover: Any) -> None:
    given = problem(recover)
    wanted = np.asarray([101, 97, 20, 11])

    def task(bench: Bench) -> dict[str, Any]:
        bench.settle(np.asarray([100, 90, 22, 10]))
        return {"loss": bench.loss(wanted), "zeros": zeros_of(bench), "own": bench.own(wanted)[0]}

    found = measured(given, task)
    assert found["zeros"] == wanted.tolist()
    assert 0.0 < found["loss"] < 10.0
    assert 0.0 < found["own"] < 10.0


def test_weights_that_are_fitted_do_less_damage() -> None:
    wanted = np.asarray([108, 96, 27, 15])
    losses = {
        recover: measured(problem(recover), lambda bench: bench.own(wanted)[0])
        for recover in ("none", "moments", "least_squares")
    }
    assert losses["least_squares"] < 0.5 * losses["none"]
    assert losses["least_squares"] < losses["moments"]


def test_a_bias_that_a_node_makes_is_replaced() -> None:
    """The node goes with its only reader; both models stay node for node the same."""
    given = problem("least_squares")
    gemm = given.model.graph[-1]
    made = ir.node("Constant", [], {"value": ir.tensor(np.ones(5, np.float32))})
    given.model.graph.insert_before(gemm, made)
    gemm.resize_inputs(3)
    gemm.replace_input_with(2, made.outputs[0])
    nothing = np.zeros(4, np.int64)
    assert measured(given, lambda bench: bench.own(nothing)[0]) < 1e-5


def test_no_zeros_do_no_damage() -> None:
    nothing = np.zeros(4, np.int64)

    def task(bench: Bench) -> list[float]:
        bench.settle()
        return [bench.loss(nothing), bench.loss(nothing, "held"), bench.own(nothing)[0]]

    assert max(measured(problem("least_squares"), task)) < 1e-5


def test_one_layer_at_a_time_is_the_same_as_all_at_once() -> None:
    zeros = np.asarray([100, 90, 22, 10])
    tried = [[50, 150], [40], [10, 40], [5]]

    def task(bench: Bench) -> dict[str, Any]:
        bench.settle(zeros)
        found = bench.around(zeros, tried)
        plain = []
        for i, counts in enumerate(tried):
            changed = [np.where(np.arange(4) == i, count, zeros) for count in counts]
            plain.append([bench.loss(each) for each in changed])
        return {"found": found, "plain": plain}

    both = measured(problem("least_squares"), task)
    for found, plain in zip(both["found"], both["plain"], strict=True):
        assert np.allclose(found, plain, rtol=1e-3)


def test_zeros_go_first_and_equal_scores_by_index() -> None:
    scores = np.asarray([3.0, 1.0, 1.0, 2.0, 0.5])
    weights = np.asarray([1.0, 1.0, 1.0, 0.0, 1.0])
    assert ranks_of(scores, weights).tolist() == [4, 2, 3, 0, 1]
