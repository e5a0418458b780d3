"""Least squares after lossy passes, on a trained net and through the pipeline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.core import graph as g
from converter.core.contract import Outcome
from converter.core.spec import parse
from converter.errors import MissingDataError, ParameterError
from passes.prune import Prune
from passes.quantize import Quantize
from passes.reconstruct import Reconstruct

sys.path.insert(0, str(Path(__file__).parent / "affine"))
from samples import context_for

FIXTURES = Path(__file__).parents[2] / "fixtures"


def digits(name: str = "digits_resnet") -> ir.Model:
    return ir.load(FIXTURES / f"{name}.onnx")


def rows(name: str, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = np.load(FIXTURES / name)
    inputs = [k for k in arrays.files if k not in {"labels", "label", "y"}]
    labels = next((arrays[k][:count] for k in arrays.files if k not in inputs), None)
    return arrays[inputs[0]][:count], labels


def feeds(model: ir.Model, count: int = 48) -> list[dict[str, Any]]:
    name = model.graph.inputs[0].name or ""
    return [{name: row[None]} for row in rows("digits_calibration.npz", count)[0]]


def agreement(first: ir.Model, second: ir.Model) -> float:
    name = first.graph.inputs[0].name or ""
    images, _ = rows("digits_test.npz", 300)
    old, new = (next(iter(support.run(m, {name: images}).values())) for m in (first, second))
    return float((old.argmax(-1) == new.argmax(-1)).mean())


def repair(original: ir.Model, changed: ir.Model, **parameters: Any) -> Outcome:
    context = context_for(original, feeds(original), reference=original)
    return Reconstruct(**parameters).apply(changed, context)


def pruned(model: ir.Model, sparsity: float = 0.85) -> ir.Model:
    changed = model.clone()
    plain = Prune(sparsity=sparsity, allocation="global", recover="none")
    plain.apply(changed, context_for(model, feeds(model, 4)))
    return changed


def test_pruned_net_agrees_again_and_stays_pruned() -> None:
    original = digits()
    changed = pruned(original)
    zeros = {
        n: v.const_value.numpy() == 0  # type: ignore[union-attr]
        for n, v in changed.graph.initializers.items()
        if len(v.shape or ()) > 1
    }
    before = agreement(original, changed)
    outcome = repair(original, changed)
    assert outcome.modified
    assert outcome.counts["layers_fitted"] > 2
    after = agreement(original, changed)
    assert before < 0.9
    assert after > before + 0.5 * (1 - before)
    for name, mask in zeros.items():
        array = changed.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        assert not array[mask].any(), name


def test_weaker_methods_gain_less() -> None:
    original = digits()
    found = []
    for method in ("least_squares", "bias"):
        changed = pruned(original)
        repair(original, changed, method=method)
        found.append(agreement(original, changed))
    assert found[0] > found[1] > agreement(original, pruned(original))


def test_same_bytes_again() -> None:
    original = digits()
    made = []
    for _ in range(2):
        changed = pruned(original)
        repair(original, changed, samples=12, positions=8)
        made.append(ir.to_proto(changed).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_nothing_before_is_said() -> None:
    model = digits()
    outcome = Reconstruct().apply(model, context_for(model, feeds(model, 4)))
    assert not outcome.modified
    assert "no pass before it changed the outputs" in outcome.notes[0]


def test_quantized_layers_are_left_to_correct_bias() -> None:
    original = digits()
    changed = original.clone()
    context = context_for(original, feeds(original, 16))
    Quantize().apply(changed, context)
    integers = {
        n: v.const_value.numpy().copy()  # type: ignore[union-attr]
        for n, v in changed.graph.initializers.items()
        if v.const_value is not None and v.const_value.numpy().dtype.kind == "i"
    }
    outcome = repair(original, changed)
    assert any("quantized" in skip.reason for skip in outcome.skipped)
    for name, array in integers.items():
        now = changed.graph.initializers[name].const_value
        assert now is not None
        np.testing.assert_array_equal(now.numpy(), array)


def test_float16_weights_stay_float16() -> None:
    model = support.model_from_text(
        """half (float16[N,6] x) => (float16[N,4] y) {
            a = MatMul (x, w)
            b = Relu (a)
            y = MatMul (b, v)
        }""",
        w=np.random.default_rng(0).standard_normal((6, 16)).astype(np.float16),
        v=np.random.default_rng(1).standard_normal((16, 4)).astype(np.float16),
    )
    rng = np.random.default_rng(2)
    samples = [{"x": rng.standard_normal((8, 6)).astype(np.float16)} for _ in range(16)]
    changed = model.clone()
    value = changed.graph.initializers["w"]
    array = np.array(g.constant_array(value))
    array[:, ::3] *= np.float16(0.4)
    g.set_constant(value, array)
    context = context_for(model, samples, reference=model)
    assert Reconstruct().apply(changed, context).modified
    assert {v.dtype for v in changed.graph.initializers.values()} == {ir.DataType.FLOAT16}
    old, new = support.run(model, samples[0])["y"], support.run(changed, samples[0])["y"]
    assert float(np.square(old - new).mean() / np.square(old).mean()) < 1e-3


def test_exclude_and_unknown_names() -> None:
    original = digits()
    changed = pruned(original)
    outcome = repair(original, changed, exclude=("op:Conv", "nobody"))
    assert [s.subject for s in outcome.skipped if s.reason == "matches no node"] == ["nobody"]
    assert outcome.counts["layers_fitted"] <= 2


def test_parameters_are_checked() -> None:
    with pytest.raises(ParameterError):
        Reconstruct(ridge=0.0)
    assert parse("reconstruct:method=moments")[0] == Reconstruct(method="moments")


def test_needs_data() -> None:
    from converter.api import convert

    with pytest.raises(MissingDataError):
        convert(FIXTURES / "digits_resnet.onnx", passes="prune,reconstruct")
