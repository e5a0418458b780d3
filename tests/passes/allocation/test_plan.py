"""Curves measured on samples, and plans that follow from them."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from support import model_from_text, run

from converter.core.context import Batch, Context
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from passes.allocation import curves
from passes.allocation import plan as planning
from passes.allocation.channels import Source, plan
from passes.allocation.plan import Choice, Target
from passes.coupling.cut import cut

NET = """g (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
  ra = Relu(a)
  b = Conv <pads = [1, 1, 1, 1]> (ra, wb, bb)
  rb = Relu(b)
  s = Add(rb, ra)
  c = Conv <strides = [2, 2]> (s, wc, bc)
  rc = Relu(c)
  p = GlobalAveragePool(rc)
  f = Flatten(p)
  h = MatMul(f, wd)
  d = Add(h, bd)
  rd = Relu(d)
  y = Gemm <transB = 1> (rd, we, be)
}"""


def weights(*shape, seed):
    rng = np.random.default_rng(seed)
    scale = np.sqrt(2.0 / max(1, int(np.prod(shape[1:]))))
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def net():
    return model_from_text(
        NET,
        wa=weights(16, 3, 3, 3, seed=0),
        ba=weights(16, seed=1),
        wb=weights(16, 16, 3, 3, seed=2),
        bb=weights(16, seed=3),
        wc=weights(24, 16, 3, 3, seed=4),
        bc=weights(24, seed=5),
        wd=weights(24, 20, seed=6),
        bd=weights(20, seed=7),
        we=weights(5, 20, seed=8),
        be=weights(5, seed=9),
    )


def batches(count=48, size=16):
    x = weights(count, 3, 8, 8, seed=10) * 5
    return [Batch({"x": x[i : i + size]}, None, size) for i in range(0, count, size)]


def source(model, given, **more):
    context = Context()
    shapes = observe_shapes(model, context)
    coupling = couple(model, shapes)
    return Source(
        model, coupling, coupling.components, given, context, lambda m: couple(m, shapes), **more
    )


@pytest.fixture(scope="module")
def made():
    model = net()
    given = source(model, batches())
    return model, given, plan(given, Choice(round_to=1))


def test_every_component_has_a_curve(made):
    _, given, found = made
    assert [c.component for c in found.curves] == [c.index for c in given.coupling.components]
    for curve, component in zip(found.curves, found.components, strict=True):
        assert sorted(curve.order) == component.atoms.tolist()
        assert curve.errors[0] == curve.losses[0] == 0.0
        assert (np.diff(curve.errors) >= 0).all()
        assert (np.diff(curve.losses) >= 0).all()
        assert curve.losses[-1] > 0


@pytest.mark.parametrize("allocation", ["kl", "error", "uniform", "global", "dp"])
@pytest.mark.parametrize("share", [0.8, 0.4])
def test_targets_are_met_exactly_by_the_cut_model(made, allocation, share):
    model, given, found = made
    choice = Choice(allocation=allocation, round_to=1)
    way = planning.Plan(found.coupling, found.components, found.curves, choice)
    got = way.at(Target("flops", share))
    assert got.met
    assert got.share <= share
    assert got.share > share - 0.1
    assert given.coupling.macs(got.alive) == pytest.approx(got.share * given.coupling.macs())
    student = model.clone()
    cut(student, couple(student, given.coupling.shapes), got.alive)
    assert run(student, batches()[0].inputs)["y"].shape == (16, 5)


def test_parameters_can_be_the_target(made):
    _, given, found = made
    got = found.at(Target("params", 0.5))
    assert got.met
    assert given.coupling.parameters(got.alive) <= 0.5 * given.coupling.parameters()


def test_a_share_of_every_component(made):
    _, _, found = made
    got = found.at(Target("sparsity", 0.5))
    assert got.met
    for component in found.components:
        assert got.alive[component.atoms].sum() == len(component.atoms) // 2


def test_a_share_of_every_component_in_multiples(made):
    _, _, found = made
    way = planning.Plan(found.coupling, found.components, found.curves, Choice(round_to=8))
    got = way.at(Target("sparsity", 0.4))
    assert got.rounded == 8
    for component in found.components:
        left = got.alive[component.atoms].sum()
        if component.producers[0][0].op_type == "Conv":
            assert left in (8, 16)


def test_what_time_does_not_suffice_for_is_estimated(made, monkeypatch):
    _, given, found = made
    limits = replace(given.context.settings.limits, deadline=time.monotonic() + 300, seconds=600)
    context = replace(given.context, settings=replace(given.context.settings, limits=limits))
    monkeypatch.setattr(curves, "_HALF", 0.0)
    hasty = plan(replace(given, context=context), Choice(round_to=1))
    assert "3 of 3 sets of channels" in hasty.notes[0]
    for curve, other in zip(hasty.curves, found.curves, strict=True):
        np.testing.assert_array_equal(curve.order, other.order)
        np.testing.assert_array_equal(curve.losses, curve.errors)


def test_the_base_may_be_another_models(made):
    _, given, found = made
    macs = given.coupling.macs()
    got = found.at(Target("flops", 0.25, base=2.0 * macs))
    assert given.coupling.macs(got.alive) <= 0.5 * macs
    assert given.coupling.macs(got.alive) > 0.4 * macs


def test_what_cannot_be_reached_is_said(made):
    _, _, found = made
    got = found.at(Target("flops", 0.001))
    assert not got.met
    assert "can go down to" in got.notes[0]
    for component in found.components:
        assert got.alive[component.atoms].sum() == np.ceil(0.08 * len(component.atoms))
    deep = found.at(Target("sparsity", 0.99))
    assert not deep.met
    assert "stays (keep)" in deep.notes[0]


def test_counts_are_rounded_and_the_target_holds(made):
    _, _, found = made
    way = planning.Plan(found.coupling, found.components, found.curves, Choice(round_to=8))
    got = way.at(Target("flops", 0.5))
    assert got.met
    assert got.rounded == 8
    for component in found.components:
        if component.producers[0][0].op_type == "Conv":
            assert got.alive[component.atoms].sum() % 8 == 0


def test_measured_order_beats_a_random_one(made):
    model, given, found = made
    random = plan(given, Choice(criterion="random", round_to=1))
    ours, others = (sum(c.errors[c.rounds // 3] for c in p.curves) for p in (found, random))
    assert ours < 0.9 * others
    assert found.at(Target("flops", 0.5)).loss < random.at(Target("flops", 0.5)).loss
    assert model.graph.num_nodes() == 13  # the original was left as it is


def test_the_same_samples_give_the_same_curves(made):
    _, given, found = made
    again = plan(given, Choice(round_to=1))
    for first, second in zip(found.curves, again.curves, strict=True):
        np.testing.assert_array_equal(first.order, second.order)
        np.testing.assert_array_equal(first.losses, second.losses)


def test_without_samples_weights_decide():
    model = net()
    found = plan(source(model, []), Choice(round_to=1))
    assert "no samples" in found.notes[0]
    assert found.at(Target("flops", 0.5)).met


def test_few_samples_are_enough_to_run():
    found = plan(source(net(), batches(1, 1)), Choice(round_to=1))
    assert found.at(Target("flops", 0.5)).met


def test_handing_over_weights_counts_as_work(monkeypatch, tmp_path):
    given = source(net(), batches(32, 8))
    wanted = curves.Wanted(given.model, given.coupling, given.components)
    settings = given.context.settings
    trials = curves._Measurement(wanted, given.batches, settings, tmp_path, lambda _: None)
    levels, samples = trials._budget(given.components)
    assert samples >= 32
    monkeypatch.setattr(curves, "_LOAD", 1e12)
    fewer, _ = trials._budget(given.components)
    assert fewer < levels


def test_atoms_with_other_readers_are_masked():
    model = model_from_text(
        """g (float[N,6,8] x) => (float[N,6,4] y) {
          h = MatMul(x, w)
          n = LayerNormalization(h, s, b)
          y = MatMul(n, v)
        }""",
        w=weights(8, 12, seed=0),
        s=np.ones(12, np.float32),
        b=np.zeros(12, np.float32),
        v=weights(12, 4, seed=1),
    )
    x = weights(32, 6, 8, seed=2)
    given = source(model, [Batch({"x": x}, None, 32)])
    found = plan(given, Choice(round_to=1))
    assert len(found.curves) == 1
    assert {s.kind for s in given.coupling.components[0].sinks} == {"layer_norm", "weights"}
    assert 0 < found.curves[0].losses[3] < found.curves[0].losses[-1]


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_hidden_units_of_recurrent_layers(op, gates):
    model = model_from_text(
        f"""g (float[5,N,6] x) => (float[5,N,4] y) {{
          h = {op} <hidden_size = 12> (x, w, r)
          f = Squeeze(h, one)
          y = MatMul(f, v)
        }}""",
        w=weights(1, 12 * gates, 6, seed=0),
        r=weights(1, 12 * gates, 12, seed=1),
        one=np.array([1]),
        v=weights(12, 4, seed=2),
    )
    x = weights(5, 16, 6, seed=3)
    found = plan(source(model, [Batch({"x": x}, None, 16)]), Choice(round_to=1))
    assert [len(c.order) for c in found.curves] == [12]
    assert found.curves[0].losses[-1] > found.curves[0].losses[2] > 0
    assert found.at(Target("flops", 0.5)).met


def test_nothing_to_remove():
    model = model_from_text(
        "g (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", w=weights(3, 2, seed=0)
    )
    found = plan(source(model, [Batch({"x": weights(4, 3, seed=1)}, None, 4)]), Choice())
    assert not found.curves
    assert not found.at(Target("flops", 0.5)).met
