"""Times of layers: what is measured, remembered, and made of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import model_from_text

from converter.core.context import Batch, Context
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from converter.errors import MissingDataError
from passes.allocation import blocks, latency
from passes.allocation.channels import Source, plan
from passes.allocation.cost import Cost, mac_terms
from passes.allocation.latency import Table
from passes.allocation.plan import Choice, Target

NET = """g (float[N,3,16,16] x) => (float[N,10,12,12] y) {
  a = Conv(x, wa, ba)
  ra = Relu(a)
  b = Conv(ra, wb)
  rb = Relu(b)
  y = Conv <kernel_shape = [1, 1]> (rb, wc)
}"""


def weights(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return latency.cache_file()


def net():
    return model_from_text(
        NET,
        wa=weights(48, 3, 3, 3),
        ba=weights(48),
        wb=weights(64, 48, 3, 3),
        wc=weights(10, 64, 1, 1),
    )


def source(count=4):
    model, context = net(), Context()
    shapes = observe_shapes(model, context)
    coupling = couple(model, shapes)
    x = weights(4, 3, 16, 16)[:count]
    given = [Batch({"x": x}, None, count)] if count else []
    return Source(model, coupling, coupling.components, given, context, lambda m: couple(m, shapes))


def test_latencies_are_measured_once_and_remembered(cache, monkeypatch):
    given = source()
    feed = given.batches[0].inputs
    found = latency.layer_latencies(given.model, given.coupling, feed, given.context)
    assert [layer.node.op_type for layer in found.layers] == ["Conv"] * 3
    for table in found.tables:
        assert (table.seconds > 0).all()
        assert (np.diff(table.seconds, axis=0) >= 0).all()
        assert (np.diff(table.seconds, axis=1) >= 0).all()
    known = json.loads(cache.read_text())
    assert len(known) >= sum(t.seconds.size for t in found.tables) - 1
    asked = []
    real = latency._timings

    def timings(model, jobs, *rest):
        asked.append(len(jobs))
        return real(model, jobs, *rest)

    monkeypatch.setattr(latency, "_timings", timings)
    latency.layer_latencies(given.model, given.coupling, feed, given.context)
    assert asked == [0]
    assert json.loads(cache.read_text()) == known


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a": "x", "b": -1.0, "c": NaN}', "\x00"])
def test_a_broken_cache_counts_as_empty(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert latency._remembered() == {}


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    latency._remember({"a": 1.0})
    assert latency._remembered() == {}


def test_latency_targets_are_planned_from_the_tables(cache):
    found = plan(source(), Choice(allocation="error"))
    got = found.at(Target("latency", 0.7))
    assert got.met
    assert got.share <= 0.7
    assert cache.exists()


def test_a_latency_target_needs_samples(cache):
    found = plan(source(0), Choice())
    with pytest.raises(MissingDataError, match="timed"):
        found.at(Target("latency", 0.5))
    assert not cache.exists()


def test_times_between_measured_counts():
    table = Table(np.array([16, 32]), np.array([16, 64]), np.array([[1.0, 4.0], [2.0, 8.0]]), 16)
    assert table.at(16, 16) == 1.0
    assert table.at(32, 64) == 8.0
    assert table.at(32, 50) == 8.0  # the next whole block
    assert table.at(20, 16) == table.at(32, 16)
    assert table.at(21, 16) == pytest.approx(blocks.SLOWER * 2.0)
    assert table.at(8, 16) == pytest.approx(0.5)
    plain = Table(np.array([10, 20]), np.array([10]), np.array([[1.0], [2.0]]), 1)
    assert plain.at(15, 10) == pytest.approx(1.5)


def test_padded_work_is_that_of_whole_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "vector_channels", lambda: 16)
    given = source()
    found = plan(given, Choice(allocation="error", round_to=1))
    work = blocks.Padded(given.coupling, found.curves, 16)
    plain = Cost(mac_terms(given.coupling), found.curves, given.coupling.size)
    batch = given.coupling.shapes["x"][0]
    sizes = [14 * 14 * 9 * batch, 12 * 12 * 9 * batch, 12 * 12 * batch]

    def expected(a, b, slow=(1.0, 1.0)):
        up_a, up_b = -(-a // 16) * 16, -(-b // 16) * 16
        return (
            sizes[0] * 3 * up_a + sizes[1] * up_a * up_b * slow[0] + sizes[2] * up_b * 16 * slow[1]
        )

    assert work.total([0, 0]) == expected(48, 64)
    assert work.total([8, 4]) == expected(40, 60)
    assert work.total([16, 3]) == expected(32, 61, (1.0, blocks.SLOWER))
    assert plain.total([8, 4]) < work.total([8, 4])


def test_counts_are_rounded_where_that_saves_work(monkeypatch):
    monkeypatch.setattr(blocks, "vector_channels", lambda: 16)
    given = source()
    found = plan(given, Choice(allocation="error"))
    got = found.at(Target("flops", 0.6))
    assert got.met
    left = [int(got.alive[c.atoms].sum()) for c in given.coupling.components]
    if got.rounded > 1:
        assert all(count % 4 == 0 for count in left)
    assert got.loss <= 1.08 * _plain(given).loss + 0.01


def test_fewer_inputs_than_a_block_have_to_be_put_in_rows():
    got = blocks.effective_inputs(np.array([3, 8, 15, 16, 20, 25]), np.array([3] + [32] * 5), 16)
    np.testing.assert_allclose(got, [3, 10.7, 18.75, 16, 32, 32 * blocks.SLOWER])


def _plain(given):
    return plan(given, Choice(allocation="error", round_to=1)).at(Target("flops", 0.6))
