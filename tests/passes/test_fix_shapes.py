"""``fix_shapes``: the inputs accept exactly the sizes given, and wrong sizes are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import support
from exact import InProcess, assert_equal_outputs, context, feed_for

import converter
from converter.core import recipe, registry
from converter.core.context import Context
from converter.core.contract import Outcome
from converter.core.spec import format_passes, parse
from converter.errors import ParameterError, PreconditionError, SpecError
from converter.pipeline.structure import check_structure
from passes import FixShapes, Simplify


def net(shapes: dict[str, list[int | str | None]] | None = None) -> ir.Model:
    """A model with a tail that depends on sizes."""
    model = support.model_from_text(
        """m (float[batch,seq,4] x, float[batch,seq,4] w)
            => (float[batch,seq,4] y, int64[K] z, float[n,4] flat) {
            h = Add (x, w)
            y = Relu (h)
            z = Shape (h)
            f = Shape <start = 0, end = 1> (h)
            g = Shape <start = 1, end = 2> (h)
            p = Mul (f, g)
            four = Constant <value = int64[1] {4}> ()
            to = Concat <axis = 0> (p, four)
            flat = Reshape (y, to)
        }"""
    )
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in (shapes or {}):
            value.shape = ir.Shape((shapes or {})[value.name or ""])
    return model


def dims(model: ir.Model, name: str) -> list[int | str | None]:
    ports = {v.name: v for v in (*model.graph.inputs, *model.graph.outputs)}
    shape = ports[name].shape
    assert shape is not None
    return [d if isinstance(d, int) else d.value for d in shape]


def fix(model: ir.Model, text: str) -> Outcome:
    (pass_,) = parse(text)
    before = model.clone()
    pass_.requires(model, context())
    outcome = pass_.apply(model, context())
    check_structure(model, "fix_shapes")
    assert_equal_outputs(before, model, feed_for(model))
    return outcome


class TestSizes:
    def test_names_are_set_everywhere_they_stand(self) -> None:
        model = net()
        outcome = fix(model, "fix_shapes:batch=2,seq=3")
        assert [dims(model, name) for name in ("x", "w", "y")] == [[2, 3, 4]] * 3
        assert dims(model, "z") == ["K"]
        assert outcome.counts == {"dimensions_fixed": 6}

    def test_other_sizes_are_refused_by_the_runtime(self) -> None:
        model = net()
        fix(model, "fix_shapes:batch=2,seq=3")
        feed = {name: np.zeros((2, 4, 4), np.float32) for name in ("x", "w")}
        with pytest.raises(Exception, match="Got: 4 Expected: 3"):
            support.run(model, feed)

    def test_an_axis_without_a_name(self) -> None:
        model = net({"x": [None, "seq", 4], "w": [-1, "seq", 4]})
        fix(model, "fix_shapes:x.0=2,w.-3=2")
        assert (dims(model, "x"), dims(model, "w")) == ([2, "seq", 4], [2, "seq", 4])

    def test_an_axis_with_a_name_means_the_name(self) -> None:
        model = net()
        fix(model, "fix_shapes:x.1=5")
        assert (dims(model, "w"), dims(model, "y")) == (["batch", 5, 4], ["batch", 5, 4])

    def test_axes_of_one_name_with_two_sizes(self) -> None:
        model = net()
        fix(model, "fix_shapes:x.0=1,w.0=2")
        assert (dims(model, "x"), dims(model, "w")) == ([1, "seq", 4], [2, "seq", 4])
        assert dims(model, "y") == ["batch", "seq", 4]

    def test_arithmetic_of_names(self) -> None:
        model = net({"flat": ["batch*seq", 4], "w": ["batch", "1*seq + 0", 4]})
        fix(model, "fix_shapes:batch=2,seq=3")
        assert (dims(model, "flat"), dims(model, "w")) == ([6, 4], [2, 3, 4])

    def test_an_output_whose_name_lies_keeps_it(self) -> None:
        model = net({"flat": ["batch", 4]})
        outcome = fix(model, "fix_shapes:batch=2,seq=3")
        assert dims(model, "flat") == ["batch", 4]
        assert outcome.skipped[0].subject == "flat"

    def test_names_in_inner_graphs_are_forgotten(self) -> None:
        model = support.model_from_text(
            """m (float[N] x, bool c) => (float[N] y) {
                y = If (c) <
                    then_branch = yes () => (float[N] t) { t = Neg (x) },
                    else_branch = no () => (float[M] e) { e = Abs (x) } >
            }"""
        )
        fix(model, "fix_shapes:N=2")
        then, other = (g.outputs[0].shape for g in model.graph.subgraphs())
        assert (str(then), str(other)) == ("[None]", "[M]")

    def test_simplify_computes_what_depended_on_sizes(self) -> None:
        model = net()
        fix(model, "fix_shapes:batch=2,seq=3")
        Simplify().apply(model, context())
        assert set(support.op_types(model)) <= {"Add", "Relu", "Reshape", "Identity", "Constant"}

    def test_nothing_asked_says_what_there_is(self) -> None:
        outcome = FixShapes().apply(net(), context())
        assert not outcome.modified
        assert "batch, seq" in outcome.notes[0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("fix_shapes:batsh=1", 'allowed: batch, seq.* perhaps "batch"'),
            ("fix_shapes:x=1", "say which axis: x.0"),
            ("fix_shapes:K=1", "of outputs only"),
            ("fix_shapes:x.3=1", "no axis 3.*0 to 2"),
            ("fix_shapes:x.2=5", "is 4 and cannot become 5"),
            ("fix_shapes:seq=99999999999", "cannot be 99999999999"),
        ],
    )
    def test_dimensions_that_there_are_not(self, text: str, words: str) -> None:
        (pass_,) = parse(text)
        with pytest.raises(PreconditionError, match="(?is)" + words):
            pass_.requires(net(), context())

    @pytest.mark.parametrize("size", ["0", "-1", "2.5", "many", "none"])
    def test_sizes_that_there_are_not(self, size: str) -> None:
        with pytest.raises(ParameterError, match="batch"):
            parse(f"fix_shapes:batch={size}")

    def test_sizes_that_do_not_fit_each_other(self) -> None:
        model = net({"w": ["other", "seq", 4]})
        with pytest.raises(PreconditionError, match="does not run with these sizes"):
            FixShapes(dims=(("batch", 2), ("other", 3))).apply(model, context())

    def test_a_default_value_of_another_size(self) -> None:
        model = support.model_from_text(
            "m (float[N] x, float[N] k) => (float[N] y) { y = Add (x, k) }",
            k=np.ones(3, np.float32),
        )
        with pytest.raises(PreconditionError, match="default value of input 'k'"):
            FixShapes(dims=(("N", 4),)).apply(model.clone(), context())
        fix(model, "fix_shapes:N=3")

    def test_an_input_of_unknown_rank(self) -> None:
        model = support.model_from_text("m (float x) => (float y) { y = Neg (x) }")
        model.graph.inputs[0].shape = None
        with pytest.raises(PreconditionError, match="declares no shape"):
            FixShapes(dims=(("x.0", 1),)).requires(model, context())

    def test_a_model_that_cannot_be_run_here_is_not_blamed(self) -> None:
        model = support.model_from_text("m (float[N] x) => (float[N] y) { y = Neg (x) }")
        model.graph[0].op_type = "Unheard"
        outcome = FixShapes(dims=(("N", 1),)).apply(model, Context(services=InProcess()))
        assert outcome.modified
        assert "was not run" in outcome.notes[0]


class TestText:
    @pytest.mark.parametrize(
        "text",
        [
            "fix_shapes:batch=1,seq=128",
            "fix_shapes:input.0=1,fix=2",
            'fix_shapes:"input:0.1"=1,"past + 1"=4,"a\\"b"=2',
            "simplify,fix_shapes:dims=3,name=2,simplify",
        ],
    )
    def test_round_trip(self, text: str) -> None:
        passes = parse(text)
        assert format_passes(passes) == text
        assert parse(format_passes(passes)) == passes

    def test_recipes(self) -> None:
        text = '[[pass]]\nname = "fix_shapes"\nbatch = 1\n"x.0" = 2\ndims = {name = 3}\n'
        read = recipe.parse_recipe(text)
        (pass_,) = read.passes
        assert isinstance(pass_, FixShapes)
        assert dict(pass_.dims) == {"batch": 1, "x.0": 2, "name": 3}
        assert recipe.parse_recipe(recipe.write_recipe(read)).passes == read.passes

    def test_python(self) -> None:
        assert FixShapes(dims={"batch": 1}) == FixShapes(dims=(("batch", 1),))  # type: ignore[arg-type]
        assert len({FixShapes(dims=(("a", 1),)), FixShapes(dims=(("a", 2),))}) == 2

    def test_a_key_given_twice(self) -> None:
        with pytest.raises(ParameterError, match="more than once"):
            parse("fix_shapes:batch=1,batch=2")
        with pytest.raises(ParameterError, match="more than once"):
            FixShapes(dims=(("a", 1), ("a", 2)))

    def test_a_key_without_a_value(self) -> None:
        with pytest.raises(SpecError, match="needs a value"):
            parse('fix_shapes:"a b"')
        with pytest.raises((SpecError, ParameterError)):
            parse("fix_shapes:batch")

    def test_declaration(self) -> None:
        (parameter,) = registry.describe("fix_shapes").parameters
        assert (parameter.kind, parameter.bounds) == ("any name=integer", ">= 1")


def test_conversion_makes_samples_of_the_new_sizes(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(ir.to_proto(net()).SerializeToString())
    artifact = converter.convert(
        tmp_path / "in.onnx", tmp_path / "out.onnx", passes="fix_shapes:batch=3,seq=17,simplify"
    )
    assert artifact.verdict is not None
    assert artifact.verdict.passed
    assert dims(ir.load(tmp_path / "out.onnx"), "x") == [3, 17, 4]


def test_conversion_cuts_the_samples_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(ir.to_proto(net()).SerializeToString())
    rows = np.random.default_rng(0).standard_normal((6, 5, 4), np.float32)
    np.savez(tmp_path / "data.npz", x=rows, w=rows)
    artifact = converter.convert(
        tmp_path / "in.onnx",
        tmp_path / "out.onnx",
        passes="fix_shapes:batch=2",
        data=tmp_path / "data.npz",
    )
    assert artifact.verdict is not None
    assert artifact.verdict.passed
