"""``simplify``: whole models; nothing may break, grow, or change its signature."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support
from exact import apply, assert_equal_outputs, check, context, feed_for
from support import model_from_text, op_types

from passes import Simplify

ZOO = Path(os.environ.get("CONVERTER_ZOO", Path(__file__).parents[3] / "shared" / "zoo"))


def test_parts_feed_each_other() -> None:
    rng = np.random.default_rng(0)
    norm = {name: rng.uniform(0.5, 1, 8).astype(np.float32) for name in ("s", "b", "m", "v")}
    model = model_from_text(
        """g (float[N,3,8,8] x) => (float[N,10] y) {
            wt = Transpose <perm = [1, 0, 2, 3]> (w)
            c = Conv (x, wt) i = Identity (c) n = BatchNormalization (i, s, b, m, v)
            r = Relu (n) r2 = Relu (n) a = Add (r, r2)
            p = GlobalAveragePool (a) sh = Shape (p) n0 = Gather (sh, zero)
            u = Concat <axis = 0> (n0, minus) f = Reshape (p, u)
            k = Constant <value_float = 1.0> () f2 = Mul (f, k) y = MatMul (f2, o) d = Exp (y) }""",
        w=rng.standard_normal((3, 8, 3, 3)).astype(np.float32),
        o=rng.standard_normal((8, 10)).astype(np.float32),
        zero=np.array([0]),
        minus=np.array([-1]),
        **norm,
    )
    check(Simplify(), model, tolerance=1e-5)
    assert op_types(model) == ["Conv", "Relu", "Add", "GlobalAveragePool", "Reshape", "MatMul"]
    assert model.graph[4].inputs[1].const_value.numpy().tolist() == [0, -1]


def synthetic(blocks: int) -> ir.Model:
    """Duplicates, identities, transposes and shape arithmetic, as exporters write them."""
    body, constants = [], {"zero": np.array([0]), "m1": np.array([-1])}
    for b in range(blocks):
        constants[f"w{b}"] = np.full((4, 4), b, np.float32)
        body.append(
            f"""a{b} = MatMul (h{b}, w{b}) c{b} = Constant <value_float = 2.0> ()
            d{b} = Constant <value_float = 0.5> () e{b} = Mul (c{b}, d{b}) f{b} = Mul (a{b}, e{b})
            i{b} = Identity (f{b}) t{b} = Transpose <perm = [1, 0]> (i{b})
            u{b} = Transpose <perm = [1, 0]> (t{b}) r{b} = Relu (u{b}) q{b} = Relu (u{b})
            s{b} = Add (r{b}, q{b}) j{b} = Shape (s{b}) k{b} = Gather <axis = 0> (j{b}, zero)
            l{b} = Concat <axis = 0> (k{b}, m1) n{b} = Reshape (s{b}, l{b})
            o{b} = Sigmoid (n{b}) h{b + 1} = Tanh (n{b})"""
        )
    text = f"g (float[N,4] h0) => (float[N,4] h{blocks}) {{ {' '.join(body)} }}"
    return model_from_text(text, **constants)


def test_cost_grows_with_the_size_of_the_graph_only() -> None:
    def seconds(blocks: int) -> float:
        model = synthetic(blocks)
        best = float("inf")
        for _ in range(2):
            clone = model.clone()
            before = os.times()
            Simplify().apply(clone, context())
            after = os.times()
            best = min(best, after.user + after.system - before.user - before.system)
        assert len(clone.graph) == 4 * blocks
        return best

    assert seconds(300) < 4 * 2.5 * max(seconds(75), 0.01)


def test_never_random_never_frozen() -> None:
    model = model_from_text(
        """g (float[2,3] x) => (float[2,3] y) {
            s = Shape (x) c = ConstantOfShape (s) a = RandomNormalLike (c)
            b = RandomNormalLike (c) d = Sub (a, b) y = Add (x, d) }"""
    )
    apply(Simplify(), model)
    assert op_types(model).count("RandomNormalLike") == 2


def test_an_empty_batch_still_runs() -> None:
    model = model_from_text(
        """g (float[N,4] x, float[M,3] z) => (float[A,B] y) {
            s = Shape (x) n = Gather (s, i) t = Concat <axis = 0> (n, k)
            a = Relu (x) y = Reshape (a, t) }""",
        i=np.array([0]),
        k=np.array([2, 2]),
    )
    before = model.clone()
    Simplify().apply(model, context())
    feed = {"x": np.zeros((0, 4), np.float32), "z": np.zeros((1, 3), np.float32)}
    assert_equal_outputs(before, model, feed)


def load(path: Path) -> ir.Model:
    from converter.errors import ConverterError
    from converter.io import formats

    try:
        return formats.load(path)
    except ConverterError as error:
        pytest.skip(f"refused: {error.what}")


def models(folder: str) -> list[Any]:
    found = sorted(p for p in (ZOO / folder).rglob("*.onnx") if p.is_file())
    return [pytest.param(path, id=f"{folder}/{path.stem}") for path in found]


FEEDS: dict[str, dict[str, Any]] = {
    "silero_vad_16k_op15": {
        "input": np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000),
    },
    "minilm_l6_sts": {
        "input_ids": np.array([[101, 2023, 2003, 102]]),
        "attention_mask": np.ones((1, 4), np.int64),
        "token_type_ids": np.zeros((1, 4), np.int64),
    },
}
RANDOM = ("Random", "Bernoulli", "Multinomial")


def _in_training(node: ir.Node) -> bool:
    return node.op_type == "Dropout" and len(node.inputs) == 3


@pytest.mark.parametrize("path", models("torture57") + models("torture") + models("models"))
def test_models_of_the_zoo(path: Path) -> None:
    """Loads, keeps its signature, equal outputs, never bigger, stable, on every model we have."""
    model = load(path)
    before = model.clone()
    apply(Simplify(), model)
    assert len(list(model.graph)) <= len(list(before.graph))
    if any(node.op_type.startswith(RANDOM) or _in_training(node) for node in before.graph):
        return
    try:
        feed = FEEDS.get(path.stem) or feed_for(before)
        support.run(before, feed)
    except Exception as error:  # noqa: BLE001 - whatever it is, there is nothing to compare
        pytest.skip(f"onnxruntime cannot run the original: {str(error)[:80]}")
    half = any(value.dtype == ir.DataType.FLOAT16 for value in before.graph.outputs)
    assert_equal_outputs(before, model, feed, tolerance=5e-3 if half else 1e-4)


@pytest.fixture(scope="module")
def node_cases() -> list[Any]:
    """Node tests of the ONNX specification, which onnx makes when asked."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(load_model_tests(kind="node"), key=lambda case: case.name)


UNSTABLE = ("bernoulli", "random", "dropout", "training", "multinomial")


@pytest.mark.parametrize("part", range(8))
def test_cases_of_the_specification(part: int, node_cases: list[Any]) -> None:
    """Whatever onnxruntime runs gives the same after ``simplify``."""
    kept = 0
    for case in node_cases[part::24]:
        feed = _case_feed(case)
        if feed is None or any(word in case.name for word in UNSTABLE):
            continue
        try:
            before = ir.from_proto(case.model)
            expected = support.run(case.model, feed)
        except Exception:  # noqa: BLE001 - what onnxruntime or the IR lacks is no case
            continue
        model = before.clone()
        apply(Simplify(), model)
        _assert_close(case.name, expected, support.run(model, feed))
        kept += 1
    assert kept >= 25


def _case_feed(case: Any) -> dict[str, Any] | None:
    names = [value.name for value in case.model.graph.input]
    if not case.data_sets or len(case.data_sets[0][0]) != len(names):
        return None
    arrays = case.data_sets[0][0]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        return None
    return dict(zip(names, arrays, strict=True))


def _assert_close(case: str, expected: dict[str, Any], actual: dict[str, Any]) -> None:
    assert list(expected) == list(actual), case
    for name, array in expected.items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            # onnxruntime computes half precision in float32 where it can join neighbours.
            bound = 2e-3 if array.dtype == np.float16 else 1e-5
            np.testing.assert_allclose(actual[name], array, rtol=bound, atol=1e-6, err_msg=case)
        else:
            assert repr(actual[name]) == repr(array), case
