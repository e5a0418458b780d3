"""Layers of a cut or pruned model are fitted so that the outputs come back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.core import graph as g
from converter.core.context import Batch, Limits, RunSettings
from converter.core.select import Selection
from passes.reconstruction.fit import Recipe
from passes.reconstruction.repair import Repair
from passes.reconstruction.walk import reconstruct

RNG = np.random.default_rng(11)


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def residual(*, late: bool = False) -> ir.Model:
    """A stem, a block with a shortcut convolution, a head; ``late``: the shortcut comes last."""
    shortcut = "s = Conv (r, ws, bs)"
    first, last = ("", shortcut) if late else (shortcut, "")
    return support.model_from_text(
        f"""net (float[N,3,10,10] x) => (float[N,6] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
            r = Relu (a)
            {first}
            c = Conv <pads = [1, 1, 1, 1]> (r, w1)
            m = Relu (c)
            d = Conv <pads = [1, 1, 1, 1]> (m, w2, b2)
            {last}
            z = Add (d, s)
            q = Relu (z)
            p = GlobalAveragePool (q)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, w3, b3)
        }}""",
        w0=weights(8, 3, 3, 3),
        b0=weights(8, 1)[:, 0],
        w1=weights(12, 8, 3, 3),
        w2=weights(10, 12, 3, 3),
        b2=weights(10, 1)[:, 0],
        ws=weights(10, 8, 1, 1),
        bs=weights(10, 1)[:, 0],
        w3=weights(6, 10),
        b3=weights(6, 1)[:, 0],
    )


def smooth(count: int, seed: int = 0, shape: tuple[int, ...] = (3, 10, 10)) -> list[Batch]:
    """Images whose neighbours are alike, one per batch, so that channels can stand in."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, *shape)).cumsum(axis=-1).cumsum(axis=-2) / 5
    return [Batch({"x": image[None].astype(np.float32)}) for image in images]


def without_middle(model: ir.Model, left: list[int]) -> tuple[ir.Model, dict[str, Any]]:
    """Cut the channels between the two convolutions of the block, without mending anything."""
    student = model.clone()
    inits = student.graph.initializers
    index = np.asarray(left, np.int64)
    g.set_constant(inits["w1"], inits["w1"].const_value.numpy()[index])  # type: ignore[union-attr]
    g.set_constant(inits["w2"], inits["w2"].const_value.numpy()[:, index])  # type: ignore[union-attr]
    gone = (None, index, None, None)
    for node in student.graph:
        for value in node.outputs:
            if value.name in ("c", "m"):
                value.shape = None
    return student, {"c": gone, "m": gone}


def mend(
    teacher: ir.Model, student: ir.Model, kept: Mapping[str, Any], count: int = 48, **how: Any
) -> Repair:
    selection = how.pop("selection", None)
    return reconstruct(
        teacher,
        student,
        kept,
        smooth(count),
        RunSettings(),
        recipe=Recipe(**how),
        selection=selection,
    )


def damage(teacher: ir.Model, student: ir.Model, name: str = "y") -> float:
    """Error power on other samples, as a share of the variance."""
    feeds = [batch.inputs for batch in smooth(24, seed=99)]
    old = np.concatenate([out[name] for out in support.run_all(teacher, feeds)])
    new = np.concatenate([out[name] for out in support.run_all(student, feeds)])
    return float(np.square(old - new).mean() / old.var())


@pytest.mark.parametrize("late", [False, True])
def test_a_cut_is_made_up_for(late: bool) -> None:
    teacher = residual(late=late)
    student, kept = without_middle(teacher, [0, 2, 3, 5, 6, 8, 9])
    before = damage(teacher, student)
    original = ir.to_proto(teacher).SerializeToString()
    repair = mend(teacher, student, kept)
    assert repair.modified
    assert damage(teacher, student) < 0.2 * before
    assert repair.after < 0.2 * repair.before
    assert ir.to_proto(teacher).SerializeToString() == original
    what = {layer.name.split(" ")[0]: layer.what for layer in repair.layers}
    exact = [name for name, said in what.items() if said == "it is exact already"]
    assert len(exact) >= 2, what  # the stem and what lost only outputs


def test_methods_in_order_of_strength() -> None:
    teacher = residual()
    found = []
    for method in ("least_squares", "moments", "bias"):
        student, kept = without_middle(teacher, [0, 2, 3, 5, 6, 8, 9])
        mend(teacher, student, kept, method=method)
        found.append(damage(teacher, student))
    student, _ = without_middle(teacher, [0, 2, 3, 5, 6, 8, 9])
    found.append(damage(teacher, student))
    assert found == sorted(found)
    assert found[0] < 0.7 * found[1]


def test_same_bytes_again_and_whatever_the_batches() -> None:
    teacher = residual()
    made = []
    for size in (1, 1, 16):
        student, kept = without_middle(teacher, [0, 2, 3, 5, 6, 8, 9])
        arrays = [batch.inputs["x"] for batch in smooth(48)]
        batches = [
            Batch({"x": np.concatenate(arrays[i : i + size])}, samples=size)
            for i in range(0, 48, size)
        ]
        reconstruct(teacher, student, kept, batches, RunSettings())
        made.append(ir.to_proto(student).SerializeToString(deterministic=True))
    assert made[0] == made[1]
    assert len(made[2]) == len(made[0])


def test_zeros_stay_zeros() -> None:
    teacher = residual()
    student = teacher.clone()
    for name in ("w1", "w2", "w3"):
        value = student.graph.initializers[name]
        array = np.array(value.const_value.numpy())  # type: ignore[union-attr]
        array[np.abs(array) < np.quantile(np.abs(array), 0.6)] = 0
        g.set_constant(value, array)
    zeros = {n: v.const_value.numpy() == 0 for n, v in student.graph.initializers.items()}  # type: ignore[union-attr]
    before = damage(teacher, student)
    assert mend(teacher, student, {}).modified
    assert damage(teacher, student) < 0.3 * before
    for name in ("w1", "w2", "w3"):
        array = student.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        np.testing.assert_array_equal(array == 0, zeros[name])


def test_equal_models_are_left_alone() -> None:
    teacher = residual()
    student = teacher.clone()
    before = ir.to_proto(student).SerializeToString()
    repair = mend(teacher, student, {})
    assert not repair.modified
    assert ir.to_proto(student).SerializeToString() == before
    assert repair.notes == ("no layer gained by a fit",)


def test_selection_and_shared_weights() -> None:
    teacher = residual()
    student, kept = without_middle(teacher, [0, 2, 3, 5, 6, 8, 9])
    before = {n: v.const_value for n, v in student.graph.initializers.items()}
    repair = mend(teacher, student, kept, selection=Selection(("op:Gemm",), ()))
    assert len(repair.layers) == 1
    changed = [n for n, v in student.graph.initializers.items() if v.const_value is not before[n]]
    assert changed == ["w3", "b3"]


def test_few_samples_do_no_harm() -> None:
    teacher = residual()
    for count in (1, 3, 9):
        student, kept = without_middle(teacher, [0, 2, 3, 5, 6, 8, 9])
        before = damage(teacher, student)
        repair = mend(teacher, student, kept, count=count)
        assert damage(teacher, student) < before
        assert ("too few to hold some out" in repair.notes[0]) == (count < 8)


def test_layers_with_few_rows_are_named() -> None:
    teacher = transformer_block()
    student = teacher.clone()
    value = student.graph.initializers["w2"]
    g.set_constant(value, value.const_value.numpy() * np.float32(0.7))  # type: ignore[union-attr]
    batches = [Batch({"x": b.inputs["x"][0, :, :1]}) for b in smooth(24, shape=(1, 7, 8))]
    repair = reconstruct(teacher, student, {}, batches, RunSettings())
    assert "more samples would help" in repair.notes[1]


def test_samples_that_are_no_numbers_change_nothing() -> None:
    teacher = residual()
    student, kept = without_middle(teacher, [0, 2, 3, 5, 6, 8, 9])
    batches = [Batch({"x": np.full((1, 3, 10, 10), np.nan, np.float32)}) for _ in range(9)]
    repair = reconstruct(teacher, student, kept, batches, RunSettings())
    assert not repair.modified


def transformer_block() -> ir.Model:
    return support.model_from_text(
        """block (float[N,T,8] x) => (float[N,T,8] y) {
            n = LayerNormalization (x, scale)
            h = MatMul (n, w1)
            hb = Add (b1, h)
            r = Relu (hb)
            o = MatMul (r, w2)
            ob = Add (o, b2)
            y = Add (x, ob)
        }""",
        scale=np.ones(8, np.float32),
        w1=weights(24, 8).T.copy(),
        b1=weights(24, 1)[:, 0],
        w2=weights(8, 24).T.copy(),
        b2=weights(8, 1)[:, 0],
    )


def test_a_bias_behind_matmul_takes_part() -> None:
    teacher = transformer_block()
    student = teacher.clone()
    left = np.arange(0, 24, 2)
    for name, axis in (("w1", 1), ("b1", 0), ("w2", 0)):
        value = student.graph.initializers[name]
        g.set_constant(value, np.take(value.const_value.numpy(), left, axis=axis))  # type: ignore[union-attr]
    axes = (None, None, left)
    batches = [Batch({"x": b.inputs["x"][0]}) for b in smooth(48, shape=(1, 7, 8))]
    for value in (v for node in student.graph for v in node.outputs if v.name in {"h", "hb", "r"}):
        value.shape = None
    kept = {"h": axes, "hb": axes, "r": axes}
    repair = reconstruct(teacher, student, kept, batches, RunSettings())
    assert repair.modified
    assert repair.after < 0.5 * repair.before
    changed = [n for n in ("b1", "b2") if student.graph.initializers[n].const_value is not None]
    assert changed == ["b1", "b2"]
    old = teacher.graph.initializers["b2"].const_value.numpy()  # type: ignore[union-attr]
    new = student.graph.initializers["b2"].const_value.numpy()  # type: ignore[union-attr]
    assert not np.array_equal(old, new)


def test_a_layer_without_bias_gets_one() -> None:
    teacher = residual()
    student, kept = without_middle(teacher, [0, 2, 3, 5, 6, 8, 9])
    first = student.graph.initializers["w0"]
    g.set_constant(first, first.const_value.numpy() * np.float32(0.8))  # type: ignore[union-attr]
    mend(teacher, student, kept)
    node = next(n for n in student.graph if n.outputs[0].name == "c")
    assert len(node.inputs) == 3
    support.run(student, smooth(1)[0].inputs)


def test_a_bias_behind_identity_is_replaced_alone() -> None:
    """Exporters keep one copy of equal constants and put Identity before it."""
    teacher = support.model_from_text(
        """net (float[N,3,8,8] x) => (float[N,6,8,8] y) {
            shared = Identity (b)
            c = Conv <pads = [1, 1, 1, 1]> (x, w1, b)
            r = Relu (c)
            y = Conv <pads = [1, 1, 1, 1]> (r, w2, shared)
        }""",
        w1=weights(6, 3, 3, 3),
        b=weights(6, 1)[:, 0],
        w2=weights(6, 6, 3, 3),
    )
    student = teacher.clone()
    value = student.graph.initializers["w1"]
    array = np.array(value.const_value.numpy())
    array[::2] *= np.float32(0.5)
    g.set_constant(value, array)
    batches = smooth(32, shape=(3, 8, 8))
    repair = reconstruct(teacher, student, {}, batches, RunSettings())
    assert repair.modified
    assert repair.after < 0.01 * repair.before
    support.run(student, batches[0].inputs)
    last = next(n for n in student.graph if n.outputs[0].name == "y")
    assert last.inputs[2] is not student.graph.initializers["b"]


def test_what_no_time_is_left_for_stays_as_it_is() -> None:
    teacher = residual()
    student, kept = without_middle(teacher, [0, 1, 2, 3, 4, 5])
    before = [v.const_value.numpy().copy() for v in student.graph.initializers.values()]  # type: ignore[union-attr]
    limits = Limits(seconds=120.0, patience=120.0, deadline=time.monotonic() + 1.0)
    repair = reconstruct(teacher, student, kept, smooth(16), RunSettings(limits=limits))
    assert repair.skipped
    assert all("--time-limit" in skip.reason for skip in repair.skipped)
    after = [v.const_value.numpy() for v in student.graph.initializers.values()]  # type: ignore[union-attr]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
