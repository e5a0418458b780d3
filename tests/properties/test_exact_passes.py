"""Random graphs: every exact pass keeps outputs, signature and size, in any order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from exact import apply, assert_equal_outputs, feed_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import model_from_text

from passes import Deduplicate, Eliminate, FoldConstants, Fuse, Simplify

PASSES = (Eliminate(), Deduplicate(), FoldConstants(), Fuse(), Simplify())

UNARY = ("Relu", "Tanh", "Neg", "Abs", "Identity", "Sigmoid", "Cast <to = 1>", "Dropout")
BINARY = ("Add", "Sub", "Mul", "Max")
NEUTRAL = (0.0, -0.0, 1.0, 2.5)


@dataclass
class Sketch:
    """A graph being drawn; every tensor in it has rank 2, its sizes are (N, 4) or (4, N)."""

    lines: list[str] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    values: list[tuple[str, bool]] = field(default_factory=lambda: [("x", False)])

    def add(self, call: str, *, turned: bool) -> None:
        name = f"t{len(self.values)}"
        self.lines.append(f"{name} = {call}")
        self.values.append((name, turned))

    def constant(self, array: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    sketch = Sketch()
    for _ in range(draw(st.integers(1, 14))):
        name, turned = draw(st.sampled_from(sketch.values))
        same = [other for other, flag in sketch.values if flag == turned]
        kind = draw(st.sampled_from(("unary", "binary", "constant", "turn", "view", "fold", "if")))
        step = len(sketch.values)
        if kind == "unary":
            sketch.add(f"{draw(st.sampled_from(UNARY))} ({name})", turned=turned)
        elif kind == "binary":
            other = draw(st.sampled_from(same))
            sketch.add(f"{draw(st.sampled_from(BINARY))} ({name}, {other})", turned=turned)
        elif kind == "constant":
            number = sketch.constant(np.float32(draw(st.sampled_from(NEUTRAL))))
            sketch.add(f"{draw(st.sampled_from(BINARY))} ({name}, {number})", turned=turned)
        elif kind == "turn":
            sketch.add(f"Transpose <perm = [1, 0]> ({name})", turned=not turned)
        elif kind == "view":
            other = draw(st.sampled_from(same))
            sketch.lines.append(f"s{step} = Shape ({other})")
            sketch.add(f"Reshape ({name}, s{step})", turned=turned)
        elif kind == "fold":
            first, second = sketch.constant(np.float32(2)), sketch.constant(np.float32([3]))
            sketch.lines.append(f"f{step} = Mul ({first}, {second})")
            sketch.add(f"Add ({name}, f{step})", turned=turned)
        else:
            sketch.add(
                f"If (flag) <then_branch = a{step} () => (float u{step}) "
                f"{{ u{step} = Identity ({name}) }}, else_branch = b{step} () => (float v{step}) "
                f"{{ w{step} = Abs ({name}) v{step} = Identity (w{step}) }}>",
                turned=turned,
            )
    return sketch


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    sketch=sketches(),
    order=st.lists(st.sampled_from(PASSES), min_size=1, max_size=4),
    outputs=st.integers(1, 3),
)
def test_exact_passes_keep_everything(sketch: Sketch, order: list, outputs: int) -> None:
    chosen = [name for name, _ in sketch.values[-outputs:] if name != "x"]
    declared = ", ".join(f"float {name}" for name in chosen)
    text = f"g (float[N,4] x, bool flag) => ({declared}) {{ {' '.join(sketch.lines)} }}"
    model = model_from_text(text, **sketch.constants)
    for value in model.graph.outputs:
        value.shape = None
    for node in model.graph:
        for attribute in node.attributes.values():
            if node.op_type == "If":
                for value in attribute.as_graph().outputs:
                    value.shape = None
    before = model.clone()
    for pass_ in order:
        apply(pass_, model)
    for seed, free in ((0, 3), (1, 1)):
        feed = feed_for(before, seed, free)
        assert_equal_outputs(before, model, feed, tolerance=1e-6)
