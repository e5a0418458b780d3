"""Normalizations and softmax that exporters write as arithmetic.

The figures are latencies with onnxruntime 1.31 on a CPU, fused over written out, one thread, for
float32 tensors of a hundred thousand elements. What is slower there is off by default, and so is
double precision, for which its kernels take up to three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant
from passes.fusion.activation import ALSO_DOUBLE, BROADCASTS, SINGLE
from passes.rewriting.facts import Dims
from passes.rewriting.pattern import attribute_value
from passes.rewriting.substitute import Found, New, Substitution, UnfitError, needs

Array = np.ndarray[Any, Any]
ROUNDING = (
    "float rounding of sums over the normalized axes: relative 1e-5 for float32; float16 as exact "
    "as float32 statistics allow, where the written-out form rounds each step"
)


def _deviation(index: int) -> str:
    return f"Sub(x, (mean{index} := ReduceMean(x, ...)))"


def _inverse(variance: str) -> str:
    """Write one over the root of a variance in all ways that are in use."""
    root = f"Sqrt(Add({variance}, E))"
    return f"Reciprocal({root}) | Div(1.0, {root}) | Pow(Add({variance}, E), -0.5)"


def _over_root(value: str, variance: str) -> str:
    return f"Div({value}, Sqrt(Add({variance}, E))) | Mul({value}, {_inverse(variance)})"


_VARIANCE = (
    f"(variance := ReduceMean(Pow({_deviation(1)}, 2.0)"
    f" | Mul({_deviation(1)}, {_deviation(2)}), ...))"
)
_SQUARES = "(variance := ReduceMean(Pow(x, 2.0) | Mul(x, x), ...))"
_MEAN = "(mean0 := ReduceMean(x, ...))"
_FACTOR = f"Mul({_inverse(_VARIANCE)}, w)"
_EXPANDED = f"Add(Mul(x, {_FACTOR}), Sub(b, Mul({_MEAN}, {_FACTOR})))"
"""The form of ``tf.nn.batch_normalization``, which Keras uses for all its normalizations."""


@dataclass(frozen=True)
class Axes:
    """What is reduced.

    Attributes:
        axes: Sorted; non-negative if the rank is known, else all negative.
        dims: Dimensions of the input, if certain.
    """

    axes: tuple[int, ...]
    dims: Dims | None

    @property
    def trailing(self) -> int:
        """How many axes at the end these are; 0 when they are not the last ones."""
        count, end = len(self.axes), 0 if self.dims is None else len(self.dims)
        return count if self.axes == tuple(range(end - count, end)) else 0

    @property
    def spatial(self) -> bool:
        """All axes but the first two, and there are some."""
        rank = 0 if self.dims is None else len(self.dims)
        return rank > 2 and self.axes == tuple(range(2, rank))

    def sizes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Return the fixed sizes of axes."""
        dims = () if self.dims is None else tuple(self.dims[i] for i in axes)
        sizes = tuple(size for size in dims if isinstance(size, int))
        if len(sizes) != len(axes):
            raise UnfitError("the sizes of the normalized axes are not known")
        return sizes


def reduced(found: Found, node: ir.Node, dims: Dims | None) -> Axes:
    """Return the axes that a reduction with ``keepdims=1`` works on."""
    if not attribute_value(node, "keepdims", found.opset):
        raise UnfitError(f"{node.op_type} drops its axes")
    axes = attribute_value(node, "axes", found.opset)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = constant(node.inputs[1])
        axes = None if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]
    if not axes:
        raise UnfitError(f"the axes of {node.op_type} are not given as constants")
    if dims is None and max(axes) >= 0:
        raise UnfitError("the rank of its input is not known")
    return Axes(tuple(sorted({axis % len(dims) if dims else axis for axis in axes})), dims)


def _common(found: Found, names: tuple[str, ...]) -> Axes:
    """Return the axes of the named reductions of ``x``, which have to agree."""
    nodes = [found.match.nodes[name] for name in names if name in found.match.nodes]
    every = [reduced(found, node, found.dims("x")) for node in nodes]
    if any(axes.axes != every[0].axes for axes in every):
        raise UnfitError("it reduces over different axes")
    return every[0]


def _epsilon(found: Found) -> float:
    value = found.number("E")
    if value is None or value < 0:
        raise UnfitError("its epsilon is not one number of at least 0")
    return value


def _source(found: Found) -> ir.Value:
    """Return the input, before a Cast to the type that the statistics are computed in."""
    out = found.work.facts.of(found.root.outputs[0]).dtype
    if not any(node.op_type == "Cast" for node in found.match.inner):
        return found["x"]
    if found.dtype("x") != ir.DataType.FLOAT:
        raise UnfitError("its statistics are not computed in float32")
    if out == ir.DataType.FLOAT:
        return found["x"]
    producer = found["x"].producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    if source is None or found.work.facts.of(source).dtype != out:
        raise UnfitError("its type changes")
    return source


def _parameter(found: Found, name: str, axes: tuple[int, ...]) -> ir.Value | Array:
    """Return a factor or shift with one number per element of the axes, other axes left out."""
    dims, shape = found.dims("x"), found.work.facts.of(found[name]).static
    if dims is None or shape is None or len(shape) > len(dims):
        raise UnfitError(f"{found[name].name} may have more axes than what is normalized")
    wanted = tuple(size if i in axes else 1 for i, size in enumerate(dims))
    if (1,) * (len(dims) - len(shape)) + shape != wanted:
        raise UnfitError(
            f"{found[name].name} has shape {shape}, not one number per normalized element"
        )
    flat = tuple(int(dims[i]) for i in axes)
    if shape == flat:
        return found[name]
    tensor = constant(found[name])
    if tensor is None:
        raise UnfitError(f"{found[name].name} has shape {shape} and is no constant")
    return np.asarray(tensor.numpy()).reshape(flat)


def _filled(found: Found, value: float, axes: Axes, which: tuple[int, ...]) -> New:
    """Return equal numbers, made when the model is loaded: a constant would take up the file."""
    dtype = found.work.facts.of(found.root.outputs[0]).dtype
    assert dtype is not None
    one = ir.tensor(np.full(1, value, dtype.numpy()))
    return New("ConstantOfShape", (np.array(axes.sizes(which), np.int64),), {"value": one})


def _parameters(found: Found, axes: Axes, which: tuple[int, ...]) -> list[Any]:
    """Return scale and, if there is one, bias."""
    scale = _parameter(found, "w", which) if "w" in found else _filled(found, 1.0, axes, which)
    return [scale, _parameter(found, "b", which)] if "b" in found else [scale]


def _layer_norm(found: Found, axes: Axes, epsilon: float) -> New:
    """Normalize over the last axes; 0.5 to 1.0."""
    count = axes.trailing
    which = axes.axes if axes.dims is not None else ()
    if axes.dims is None:
        raise UnfitError("the sizes of the normalized axes are not known")
    axes.sizes(which)
    inputs = (_source(found), *_parameters(found, axes, which))
    return New("LayerNormalization", inputs, {"axis": -count, "epsilon": epsilon})


def _instance_norm(found: Found, axes: Axes, epsilon: float) -> New:
    """Normalize over the spatial axes; 0.3."""
    axes.sizes((1,))
    parameters = _parameters(found, axes, (1,))
    if len(parameters) == 1:
        parameters.append(_filled(found, 0.0, axes, (1,)))
    inputs = (_same_type(found), *parameters)
    return New("InstanceNormalization", inputs, {"epsilon": epsilon})


def _channel_norm(found: Found, axes: Axes, epsilon: float) -> New:
    """Normalize over axis 1: LayerNormalization between two Transposes; 0.7."""
    assert axes.dims is not None
    rank = len(axes.dims)
    inputs = _parameters(found, axes, (1,))
    last = New("Transpose", (_source(found),), {"perm": [0, *range(2, rank), 1]})
    norm = New("LayerNormalization", (last, *inputs), {"axis": -1, "epsilon": epsilon})
    return New("Transpose", (norm,), {"perm": [0, rank - 1, *range(1, rank - 1)]})


def _same_type(found: Found) -> ir.Value:
    if _source(found) is not found["x"]:
        raise UnfitError("its type changes")
    return found["x"]


def _normalize(found: Found) -> New:
    axes = _common(found, ("variance", "mean0", "mean1", "mean2"))
    epsilon = _epsilon(found)
    if axes.spatial and _per_channel(found, axes):
        return _instance_norm(found, axes, epsilon)
    if found.opset < 17:
        raise UnfitError(needs("LayerNormalization", 17, found.opset))
    if axes.trailing:
        return _layer_norm(found, axes, epsilon)
    if axes.axes == (1,):
        return _channel_norm(found, axes, epsilon)
    raise UnfitError("the normalized axes are neither the last ones nor those of one channel")


def _per_channel(found: Found, axes: Axes) -> bool:
    """Tell whether a norm over spatial axes is that of an instance, not of a layer."""
    if "w" not in found:
        return axes.trailing > 1 or found.opset < 17
    shape = found.work.facts.of(found["w"]).static
    return shape is not None and shape[-1:] == (1,)


def _rms(found: Found) -> New:
    axes = _common(found, ("variance",))
    if not axes.trailing or axes.dims is None:
        raise UnfitError("the normalized axes are not known to be the last ones")
    axes.sizes(axes.axes)
    inputs = (_source(found), *_parameters(found, axes, axes.axes))
    return New("RMSNormalization", inputs, {"axis": -axes.trailing, "epsilon": _epsilon(found)})


def _norm(patterns: tuple[str, ...]) -> Substitution:
    return Substitution(
        name="normalizations_fused",
        patterns=patterns,
        rewrite=_normalize,
        since=BROADCASTS,
        tolerance=ROUNDING,
        dtypes=SINGLE,
        shaped="x",
    )


def _rms_norm(patterns: tuple[str, ...]) -> Substitution:
    return Substitution(  # 0.4 to 1.0
        name="rms_normalizations_fused",
        makes="RMSNormalization",
        patterns=patterns,
        rewrite=_rms,
        since=23,
        tolerance=ROUNDING,
        dtypes=SINGLE,
        shaped="x",
    )


def _bare(value: str, variance: str) -> tuple[str, ...]:
    """Write the division alone as patterns of their own: a pattern starts with one operator."""
    root = f"Sqrt(Add({variance}, E))"
    return (f"Div({value}, {root})", f"Mul({value}, {_inverse(variance)})")


def _weighted(core: str) -> str:
    """Write the factor before or after the Cast back to half precision."""
    return f"Mul(Cast({core}) | {core}, w)"


# Softmax


def _softmax(found: Found) -> New:
    axes = _common(found, tuple(n for n in ("top0", "top1", "total") if n in found.match.nodes))
    if len(axes.axes) != 1:
        raise UnfitError("it sums over several axes")
    if not axes.trailing and found.opset < 13:
        raise UnfitError("Softmax over an inner axis needs opset 13")
    axis = -1 if axes.trailing else axes.axes[0]
    op_type = "Softmax" if found.root.op_type in {"Div", "Mul"} else "LogSoftmax"
    if op_type == "LogSoftmax" and found.dtype("x") == ir.DataType.DOUBLE:
        raise UnfitError("LogSoftmax of onnxruntime loses NaN in double")
    return New(op_type, (found["x"],), {"axis": axis})


_SHIFTED0 = "Sub(x, (top0 := ReduceMax(x, ...)))"
_SHIFTED1 = "Sub(x, (top1 := ReduceMax(x, ...)))"
_TOTAL = f"(total := ReduceSum(Exp({_SHIFTED1}), ...))"
SOFTMAX = Substitution(  # 0.5; 0.2 for the logarithm
    name="softmaxes_fused",
    patterns=(
        f"Div(Exp({_SHIFTED0}), {_TOTAL})",
        f"Mul(Exp({_SHIFTED0}), Reciprocal({_TOTAL}))",
        f"Sub({_SHIFTED0}, Log({_TOTAL}))",
        "Sub(x, (total := ReduceLogSumExp(x, ...)))",
    ),
    rewrite=_softmax,
    since=BROADCASTS,
    tolerance=ROUNDING,
    dtypes=ALSO_DOUBLE,
)
LOG_SOFTMAX = Substitution(
    name="log_softmaxes_fused",
    patterns=("Log((softmax := Softmax(x)))",),
    rewrite=lambda found: New(
        "LogSoftmax", (found["x"],), {"axis": found.attribute("softmax", "axis")}
    ),
    tolerance=ROUNDING + "; finite where a share is too small for a number above 0",
    dtypes=SINGLE,  # in double onnxruntime loses NaN
    extra="LogSoftmax is finite where the logarithm of a tiny share is not",
)


def _group_norm(found: Found) -> New:
    dims, groups = found.dims("x"), found.work.facts.of(found["S"]).content
    if dims is None or len(dims) < 3 or groups is None or len(groups) != 3:
        raise UnfitError("the shape of what is normalized is not known")
    if found.work.facts.of(found.node("back").outputs[0]).dims != dims:
        raise UnfitError("it does not come back to the shape of its input")
    count = groups[1]
    if not isinstance(count, int) or groups[0] not in (0, dims[0]) or groups[2] != -1 or count < 1:
        raise UnfitError("it does not split the channels into groups")
    if found.array("ONES").size != count or not (found.array("ONES") == 1).all():
        raise UnfitError("its groups have factors of their own")
    if found.array("ZEROS").any():
        raise UnfitError("its groups have shifts of their own")
    channels = Axes((1,), dims).sizes((1,))[0]
    if channels % count:
        raise UnfitError("its channels are no multiple of its groups")
    inputs = (found["x"], _parameter(found, "w", (1,)), _parameter(found, "b", (1,)))
    epsilon = found.attribute("norm", "epsilon")
    return New("GroupNormalization", inputs, {"num_groups": count, "epsilon": epsilon})


_GROUPS = "(norm := InstanceNormalization(Reshape(x, S), ONES, ZEROS))"
GROUP_NORM = Substitution(
    name="group_normalizations_fused",
    makes="GroupNormalization",
    patterns=(f"Add(Mul((back := Reshape({_GROUPS}, _)), w), b)",),
    rewrite=_group_norm,
    since=21,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    extra="onnxruntime on a CPU takes twice as long for the fused operator",
)

_CENTRED_CORE = _over_root(_deviation(0), _VARIANCE)
_RMS_CORE = _over_root("x", _SQUARES)
STAGES = (
    (
        _norm((f"Add({_weighted(_CENTRED_CORE)}, b)", _EXPANDED)),
        _rms_norm((_weighted(_RMS_CORE), f"Mul(x, Mul({_inverse(_SQUARES)}, w))")),
        SOFTMAX,
        LOG_SOFTMAX,
        GROUP_NORM,
    ),
    (
        _norm((_weighted(_CENTRED_CORE),)),
        _rms_norm(_bare("x", _SQUARES)),
    ),
    (_norm(_bare(_deviation(0), _VARIANCE)),),
)
"""What is tried on the whole model before the next is: the longest first."""
RULES = tuple(substitution.rule() for substitution in STAGES[0])
LATER = tuple(tuple(substitution.rule() for substitution in stage) for stage in STAGES[1:])
EXTRA = tuple(s.name for stage in STAGES for s in stage if s.extra)
"""Names of the rules that are off by default."""
