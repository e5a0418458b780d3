"""The public functions on the models that the project ships."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support

import converter
from converter.core.recipe import Recipe
from converter.errors import (
    LimitExceededError,
    MissingDataError,
    UsageError,
    VerificationError,
)
from passes import Prune, Simplify

PASSES = "simplify,prune:sparsity=0.5,quantize"
MINMAX = f"{PASSES}:method=minmax"  # decides nothing, where the numbers do not matter


@pytest.fixture
def resnet(fixtures: Path) -> Path:
    return fixtures / "digits_resnet.onnx"


@pytest.fixture
def samples(fixtures: Path) -> Path:
    return fixtures / "digits_calibration.npz"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def provenance(path: Path) -> list[str]:
    props = onnx.load(path).metadata_props
    return [p.value for p in props if p.key == "converter.provenance"]


def test_the_main_job(resnet: Path, samples: Path, tmp_path: Path) -> None:
    before = digest(resnet)
    artifact = converter.convert(
        resnet,
        tmp_path / "out.onnx",
        passes=PASSES,
        data=samples,
        budget=["size<=0.3x", "agreement>=0.95"],
    )
    assert artifact.verdict is not None
    assert artifact.verdict.passed
    assert artifact.path == tmp_path / "out.onnx"
    assert artifact.path.stat().st_size < 0.3 * resnet.stat().st_size
    assert digest(resnet) == before
    assert [step.spec for step in artifact.run.steps] == PASSES.split(",")
    report = artifact.report.to_dict()
    assert report["status"] == "done"
    assert report["data"]["samples"] == {"calibration": 256, "verification": 256}


def test_same_input_recipe_and_seed_give_the_same_bytes(
    resnet: Path, samples: Path, tmp_path: Path
) -> None:
    for name in ("one.onnx", "two.onnx"):
        converter.convert(resnet, tmp_path / name, passes=PASSES, data=samples, seed=3, samples=64)
    assert digest(tmp_path / "one.onnx") == digest(tmp_path / "two.onnx")


def test_provenance_is_small_and_does_not_grow(resnet: Path, tmp_path: Path) -> None:
    converter.convert(resnet, tmp_path / "1.onnx", passes="simplify")
    converter.convert(tmp_path / "1.onnx", tmp_path / "2.onnx", passes="simplify")
    for name in ("1.onnx", "2.onnx"):
        (text,) = provenance(tmp_path / name)
        assert len(text) < 2000
        record = json.loads(text)
        assert record["recipe"] == "simplify"
        assert record["versions"]["onnxpress"] == converter.__version__
    assert json.loads(provenance(tmp_path / "2.onnx")[0])["source"] != ""


def test_no_provenance_and_no_passes_keep_the_content(resnet: Path, tmp_path: Path) -> None:
    converter.convert(resnet, tmp_path / "copy.onnx", provenance=False)
    old, new = onnx.load(resnet), onnx.load(tmp_path / "copy.onnx")
    assert provenance(tmp_path / "copy.onnx") == []
    assert [n.SerializeToString() for n in new.graph.node] == [
        n.SerializeToString() for n in old.graph.node
    ]
    for a, b in zip(old.graph.initializer, new.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))


def test_a_missed_budget_names_the_pass_and_leaves_nothing(
    resnet: Path, samples: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"an older result")
    with pytest.raises(VerificationError) as caught:
        converter.convert(resnet, target, passes=MINMAX, data=samples, budget="sqnr>=60")
    assert "prune:sparsity=0.5 cost most" in str(caught.value)
    assert target.read_bytes() == b"an older result"
    assert not caught.value.verdict.passed
    assert caught.value.report.status == "budget missed"


def test_keep_writes_the_file_all_the_same(resnet: Path, samples: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="was kept"):
        converter.convert(
            resnet,
            tmp_path / "out.onnx",
            passes="quantize:method=minmax",
            data=samples,
            budget="sqnr>=90",
            keep=True,
        )
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_a_reproducer_holds_no_weights_and_repeats_the_failure(
    resnet: Path, samples: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "failure"
    with pytest.raises(VerificationError):
        converter.convert(
            resnet,
            passes="quantize:method=minmax",
            data=samples,
            budget="size<=0.01x",
            reproducer=folder,
        )
    real = {onnx.numpy_helper.to_array(t).tobytes() for t in onnx.load(resnet).graph.initializer}
    for tensor in onnx.load(folder / "model.onnx").graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        assert array.size < 64 or array.tobytes() not in real
    assert json.loads((folder / "failure.json").read_text())["kind"] == "VerificationError"
    with pytest.raises(VerificationError, match=r"size<=0\.01x"):
        converter.convert(folder / "model.onnx", recipe=folder / "recipe.toml")


def test_a_model_in_memory_is_not_changed(resnet: Path) -> None:
    model = converter.load(resnet)
    before = ir.to_proto(model).SerializeToString()
    artifact = converter.convert(model, passes=[Simplify(), Prune(sparsity=0.3)])
    assert artifact.path is None
    assert ir.to_proto(model).SerializeToString() == before


def test_an_edited_model_is_compared_as_edited(resnet: Path) -> None:
    model = converter.load(resnet)
    value = model.graph.initializers["head.bias"]
    value.const_value = ir.tensor(value.const_value.numpy() + 100, name="head.bias")
    artifact = converter.convert(model, passes="simplify")
    assert artifact.verdict is not None
    assert artifact.verdict.max_abs < 1e-2


def test_a_proto_is_a_source(resnet: Path) -> None:
    artifact = converter.convert(onnx.load(resnet), passes="simplify")
    assert artifact.run.steps[0].outcome is not None
    assert artifact.run.steps[0].outcome.modified


def test_sources_of_other_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="list is no model"):
        converter.convert([1, 2])


def test_passes_and_recipe_exclude_each_other(resnet: Path) -> None:
    with pytest.raises(UsageError, match="both passes and a recipe"):
        converter.convert(resnet, passes="simplify", recipe=Recipe())


def test_data_is_asked_for_before_anything_runs(resnet: Path) -> None:
    with pytest.raises(MissingDataError):
        converter.convert(resnet, passes="simplify,quantize")


def test_without_verification_nothing_is_run(resnet: Path, tmp_path: Path) -> None:
    artifact = converter.convert(
        resnet, tmp_path / "out.onnx", passes="prune:sparsity=0.5", verify=False
    )
    assert artifact.verdict is None
    assert artifact.report.status == "not verified"


def test_budgets_need_verification(resnet: Path) -> None:
    with pytest.raises(UsageError, match=r"sqnr>=20"):
        converter.convert(resnet, passes="simplify", budget="sqnr>=20", verify=False)


def test_load_save_verify_bench_inspect(resnet: Path, samples: Path, tmp_path: Path) -> None:
    copy = converter.save(converter.load(resnet), tmp_path / "copy.onnx")
    verdict = converter.verify(resnet, copy, data=samples, samples=8, budget="max_error<=0")
    assert verdict.passed
    assert verdict.samples == 8
    timing = converter.bench(resnet, copy, seconds=0.2)
    assert [m.ratio > 0 for m in timing.models] == [True, True]
    assert converter.inspect(copy).to_dict()["parameters"] == 223562


def test_a_pipeline_runs_by_itself(resnet: Path) -> None:
    from converter.core.context import Context

    model = converter.load(resnet)
    run = converter.Pipeline([Prune(sparsity=0.5)]).run(model, Context())
    feed = {"image": np.ones((2, 1, 8, 8), np.float32)}
    assert support.run(run.model, feed)["scores"].shape == (2, 10)
    assert str(converter.Pipeline([Prune(sparsity=0.3)])) == "prune:sparsity=0.3"


def test_size_budgets_need_no_verification(resnet: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"size<=0\.5x measured"):
        converter.convert(resnet, tmp_path / "o.onnx", budget="size<=0.5x", verify=False)
    assert not (tmp_path / "o.onnx").exists()
    converter.convert(resnet, tmp_path / "o.onnx", budget="size<=1.1x", verify=False)


def test_a_model_that_never_ends_is_given_up(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1] x, int64 n) => (float[1] y) {
            go = Constant <value = bool {1}> ()
            y = Loop (n, go, x) <
                body = b (int64 i, bool c, float[1] a) => (bool d, float[1] e) {
                    d = Identity (c) e = Sin (a)
                }
            >
        }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "loop.onnx")
    feed = {"x": np.ones((1,), np.float32), "n": np.asarray(1 << 40)}
    with pytest.raises(LimitExceededError, match="seconds for one run"):
        converter.convert(tmp_path / "loop.onnx", data=[feed], time_limit=None)
