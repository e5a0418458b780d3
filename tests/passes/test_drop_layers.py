"""Leaving out blocks: which are found, what becomes of the graph, how much survives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support
from exact import InProcess
from support import model_from_text

import converter
from converter.core.context import Batch, Context
from converter.core.contract import Outcome, Skip
from converter.core.select import Selection
from converter.coupling.shapes import observe_shapes
from converter.errors import PreconditionError, VerificationError
from converter.io import formats
from converter.measure.macs import sum_macs
from converter.pipeline.structure import check_structure
from passes.drop_layers import DropLayers
from passes.layers.blocks import Block, find_blocks
from passes.layers.remove import remove
from passes.simplify import Simplify

FIXTURES = Path(__file__).parents[2] / "fixtures"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 6)).astype(np.float32)


class Rows:
    """Calibration data in batches of eight."""

    synthetic = False
    description = "rows"
    samples = len(X)

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        return (Batch({"x": X[i : i + 8]}, None, 8) for i in range(0, len(X), 8))


def context() -> Context:
    return Context(dataset=Rows(), services=InProcess())


def drop(model: ir.Model, **parameters: Any) -> Outcome:
    outcome = DropLayers(**{"recover": "none", **parameters}).apply(model, context())
    check_structure(model, "drop_layers")
    return outcome


def weight(scale: float, *shape: int) -> np.ndarray:
    rng = np.random.default_rng([int(1000 * scale), *shape])
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def residual() -> ir.Model:
    """Three residual blocks with weak, strong and very weak branches, and a head."""
    lines = [
        f"h{i} = MatMul({before}, a{i}) r{i} = Relu(h{i}) f{i} = MatMul(r{i}, b{i}) "
        f"s{i} = Add({before}, f{i})"
        for i, before in enumerate(["x", "s0", "s1"])
    ]
    text = f"g (float[N,6] x) => (float[N,3] y) {{ {' '.join(lines)} y = Gemm(s2, w, c) }}"
    scales = [0.1, 1.0, 0.01]
    weights = {f"a{i}": weight(1.0, 6, 8) for i in range(3)}
    weights |= {f"b{i}": weight(scales[i], 8, 6) for i in range(3)}
    return model_from_text(text, w=weight(1, 6, 3), c=weight(1, 3), **weights)


def find(
    model: ir.Model, made: Context | None = None, **words: Any
) -> tuple[list[Block], list[Skip]]:
    sizes = observe_shapes(model, made or context())
    return find_blocks(model, sizes, Selection(**words), sum_macs(model, sizes)[0])


def blocks(model: ir.Model, **words: Any) -> list[Block]:
    return find(model, **words)[0]


def names(found: list[Block]) -> list[str]:
    return [block.made.name or "" for block in found]


def left(model: ir.Model) -> list[str]:
    """Names of the sums of residual blocks that are there."""
    values = [node.outputs[0].name or "" for node in model.graph]
    return [name for name in values if name in {"s0", "s1", "s2"}]


def test_residual_blocks_are_found_with_their_branches() -> None:
    found = blocks(residual())
    assert names(found) == ["s0", "s1", "s2"]
    assert [node.op_type for node in found[0].nodes] == ["MatMul", "Relu", "MatMul", "Add"]
    # observed on the first batch of eight
    assert found[0].macs == 8 * 2 * 6 * 8


def test_a_projection_on_the_shortcut_stays() -> None:
    text = """g (float[N,6] x) => (float[N,4] y)
    { p = MatMul(x, p0) h = MatMul(x, a) r = Relu(h) f = MatMul(r, b) s = Add(f, p)
      y = MatMul(s, w) }"""
    numbers = {"p0": weight(1, 6, 4), "a": weight(1, 6, 5), "b": weight(0.1, 5, 4)}
    model = model_from_text(text, w=weight(1, 4, 9)[:, :4], **numbers)
    (block,) = [block for block in blocks(model) if block.branch]
    assert block.given.name == "p"
    outcome = drop(model, count=1)
    assert support.op_types(model) == ["MatMul", "Add", "MatMul"]  # the mean
    assert outcome.counts["blocks_dropped"] == 1


def test_masks_and_the_whole_model_are_no_blocks() -> None:
    text = """g (float[N,6] x) => (float[N,6] y)
    { m = Sign(x) t = Add(x, m) h = MatMul(t, a) f = MatMul(h, b) s = Add(x, f)
      y = Tanh(s) }"""
    model = model_from_text(text, a=weight(1, 6, 8), b=weight(0.1, 8, 6))
    found, skipped = find(model)
    assert found == []
    assert [skip.reason for skip in skipped] == ["it is most of the model"]


def test_the_block_with_the_least_damage_goes_first() -> None:
    model = residual()
    outcome = drop(model, count=2)
    assert left(model) == ["s1"]
    assert outcome.counts["blocks_dropped"] == 2
    assert "left out s2 (Add) (error " in outcome.notes[0]
    assert "% of the multiply-accumulates are gone" in outcome.notes[0]
    feed = {"x": X}
    before, after = support.run(residual(), feed)["y"], support.run(model, feed)["y"]
    assert before.shape == after.shape


def test_errors_bound_what_goes() -> None:
    model = residual()
    outcome = drop(model, max_error=3e-3)
    assert left(model) == ["s0", "s1"]
    reasons = {skip.reason for skip in outcome.skipped}
    assert reasons == {"it changes what it is given by more than max_error"}
    model = residual()
    assert names(blocks(model)) == ["s0", "s1", "s2"]
    outcome = drop(model, max_error=1e-9)
    assert not outcome.modified
    assert "no block has an error of 1e-09 or less" in outcome.notes


def test_branches_that_are_constant_go_without_a_trace() -> None:
    """What a branch adds on average goes into the bias of the layer before."""
    text = """g (float[N,6] x) => (float[N,3] y)
    { u = Gemm(x, v, d) h = MatMul(u, a) k = Mul(h, zero) f = Add(k, e) s = Add(u, f)
      y = MatMul(s, w) }"""
    numbers = {"v": weight(1, 6, 6), "d": weight(1, 6), "a": weight(1, 6, 6)}
    numbers |= {"zero": np.zeros(1, np.float32), "e": weight(1, 6), "w": weight(1, 6, 3)}
    model = model_from_text(text, **numbers)
    before = model.clone()
    outcome = drop(model, max_error=1e-6)
    assert outcome.modified
    assert support.op_types(model) == ["Gemm", "MatMul"]
    support.assert_same_outputs(before, model, {"x": X})
    assert set(model.graph.initializers) == {"v", "d_shifted", "w"}


def test_relu_behind_what_is_not_negative_goes_too() -> None:
    text = """g (float[N,6] x) => (float[N,3] y)
    { u = Relu(x) h = MatMul(u, a) s = Add(u, h) r = Relu(s) y = MatMul(r, w) }"""
    model = model_from_text(text, a=weight(1, 6, 6), w=weight(1, 6, 6)[:, :3])
    (block,) = [block for block in blocks(model) if block.branch]
    remove(model, block, None, -1)
    assert support.op_types(model) == ["Relu", "MatMul"]
    assert set(model.graph.initializers) == {"w"}


def test_outputs_keep_their_names() -> None:
    text = """g (float[N,6] x) => (float[N,6] y)
    { u = MatMul(x, a) v = MatMul(u, c) h = MatMul(v, b) y = Add(v, h) }"""
    model = model_from_text(text, a=weight(1, 6, 6), b=weight(0.01, 6, 6), c=weight(1, 6, 6))
    outcome = drop(model, include=("y",))
    assert outcome.modified
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert support.run(model, {"x": X})["y"].shape == X.shape


def test_selection_goes_by_any_node_of_a_block() -> None:
    assert names(blocks(residual(), include=("h1",))) == ["s1"]
    assert names(blocks(residual(), exclude=("f0", "s2"))) == ["s1"]
    outcome = drop(residual(), include=("s7",))
    assert ("s7", "matches no node") in [(s.subject, s.reason) for s in outcome.skipped]


def test_more_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(PreconditionError, match="has 3 blocks that can be left out, not 4"):
        drop(residual(), count=4)


def test_a_model_without_blocks_is_left_alone() -> None:
    model = model_from_text("g (float[N,6] x) => (float[N,3] y) { y = MatMul(x, w) }", w=X[:6, :3])
    outcome = drop(model)
    assert not outcome.modified
    assert "there is no block" in outcome.notes[0]


def test_without_data_noise_takes_its_place() -> None:
    model = residual()
    outcome = DropLayers(recover="none").apply(model, Context(services=InProcess()))
    assert left(model) == ["s0", "s1"]
    assert any("smooth noise" in note for note in outcome.notes)


def digits(passes: list[Any], name: str = "digits_resnet", **words: Any) -> converter.Artifact:
    return converter.convert(
        FIXTURES / f"{name}.onnx",
        passes=passes,
        data=FIXTURES / "digits_test.npz",
        samples=64,
        batch=8,
        **words,
    )


def test_the_layers_behind_make_up_for_a_block() -> None:
    plain = digits([Simplify(), DropLayers(recover="none")])
    fitted = digits([Simplify(), DropLayers()])
    assert plain.verdict is not None
    assert fitted.verdict is not None
    assert plain.verdict.macs == fitted.verdict.macs
    assert fitted.verdict.macs is not None
    assert fitted.verdict.macs.ratio is not None
    assert fitted.verdict.macs.ratio < 0.85
    worst = [made.verdict.worst for made in (plain, fitted) if made.verdict]
    assert worst[0] is not None
    assert worst[1] is not None
    assert worst[1].sqnr_db > worst[0].sqnr_db + 3
    assert (fitted.verdict.agreement or 0.0) > 0.96  # one block of three is gone


def test_transformer_layers_are_blocks() -> None:
    model = formats.load(FIXTURES / "digits_transformer.onnx")
    found = find(model, Context())[0]
    joined = [block for block in found if block.branch and block.node.op_type == "Add"]
    kinds = [{node.op_type for node in block.nodes} for block in joined]
    assert sum("Softmax" in kind for kind in kinds) >= 2  # attention
    assert sum("Softmax" not in kind for kind in kinds) >= 2  # feed-forward


def test_the_budget_stops_in_time() -> None:
    made = digits([DropLayers(count=2)], budget=["agreement>=0.99"])
    assert made.verdict is not None
    assert made.verdict.passed
    outcome = made.run.steps[-1].outcome
    assert outcome is not None
    assert outcome.counts.get("blocks_dropped", 0) < 2
    assert any("agreement>=0.99" in note for note in outcome.notes)


def test_a_stop_that_misses_another_bound_is_a_missed_budget() -> None:
    passes = [DropLayers(count=2, recover="none")]
    with pytest.raises(VerificationError, match="macs"):
        digits(passes, budget=["agreement>=0.99", "macs<=0.5x"])


def test_infinite_values_never_hold_anything_up() -> None:
    model = residual()
    tensor = model.graph.initializers["b1"].const_value
    assert tensor is not None
    broken = tensor.numpy().copy()
    broken[0, 0] = math.inf
    model.graph.initializers["b1"].const_value = ir.tensor(broken, name="b1")
    outcome = drop(model, count=1)
    assert outcome.modified
