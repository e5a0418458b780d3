"""What the first layers of a model say about its inputs: their axes, mean and deviation.

A model that normalises its own inputs knows their mean and deviation: it subtracts and divides. A
BatchNormalization at the start has them from its training, and one behind the first Conv knows
those of the Conv's outputs, from which they follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import constant_array, is_op

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
_FARTHEST = 16  # nodes between an input and the layer that reads it
_WAVE = 128  # from this length on, rows of numbers are taken for a wave
_FAR = 8.0  # median of bias / (deviation of the output) from which on inputs are no small numbers
_BYTE = 64.0  # deviation of pictures of 0 to 255
_HALF, _QUARTER = 0.45, 0.25  # mean and deviation of usual pictures between 0 and 1


@dataclass(frozen=True)
class Layout:
    """The axes of a signal.

    Attributes:
        smooth: Axes along which neighbours are alike: height and width, or time.
        channel: Axis of the channels, or None.
    """

    smooth: tuple[int, ...] = ()
    channel: int | None = None


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation, each of all channels (1,) or per channel (channels,).

    Attributes:
        mean: float64.
        std: float64, positive.
        source: Where they come from, for people.
    """

    mean: Array = field(default_factory=lambda: np.zeros(1))
    std: Array = field(default_factory=lambda: np.ones(1))
    source: str = ""


@dataclass(frozen=True, eq=False)
class _State:
    """The value that a node reads: ``scale * input + shift`` per channel, with its axes moved.

    Attributes:
        shape: Its sizes.
        axes: Axis of the input at each of its axes; None for a new axis of size 1.
        scale: (1,) or (channels,).
        shift: Likewise.
        channel: Axis of the input that ``scale`` and ``shift`` go along, once known.
    """

    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    scale: Array = field(default_factory=lambda: np.ones(1))
    shift: Array = field(default_factory=lambda: np.zeros(1))
    channel: int | None = None


def look(value: ir.Value, shape: tuple[int, ...]) -> tuple[Layout, Moments | None]:
    """Follow an input to the first layer that mixes its elements.

    Args:
        value: The input.
        shape: Its sizes.

    Returns:
        Its layout, and its moments where the model tells them.
    """
    state = _State(shape, tuple(range(len(shape))))
    current = value
    for _ in range(_FARTHEST):
        readers = [(n, i) for n, i in current.uses() if not is_op(n, "Shape", "Size")]
        if len(readers) != 1 or current.is_graph_output():
            break
        node, index = readers[0]
        if is_op(node, "Conv", "BatchNormalization", "RNN", "LSTM", "GRU") and index == 0:
            return _layer(node, state)
        step = _STEPS.get(node.op_type) if is_op(node, node.op_type) else None
        moved = step(node, index, state) if step is not None else None
        if moved is None:
            break
        state, current = moved, node.outputs[0]
    layout = _guess(shape)
    if state.channel is not None and layout.channel is None:
        layout = replace(layout, channel=state.channel)
    return layout, _normalised(state, layout)


def _guess(shape: tuple[int, ...]) -> Layout:
    """Tell the layout from sizes alone."""
    if len(shape) == 4:
        return Layout((1, 2), 3) if shape[3] <= 4 < shape[1] else Layout((2, 3), 1)
    if len(shape) == 5:
        return Layout((2, 3, 4), 1)
    if len(shape) == 3:
        return Layout((1,), 2)
    return Layout((1,)) if len(shape) == 2 and shape[1] >= _WAVE else Layout()


# --- elementwise steps --------------------------------------------------------------------------


def _same(node: ir.Node, index: int, state: _State) -> _State | None:
    return state if index == 0 else None


def _transpose(node: ir.Node, index: int, state: _State) -> _State | None:
    rank = len(state.shape)
    permutation = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
    if sorted(permutation) != list(range(rank)):
        return None
    return replace(
        state,
        shape=tuple(state.shape[a] for a in permutation),
        axes=tuple(state.axes[a] for a in permutation),
    )


def _unsqueeze(node: ir.Node, index: int, state: _State) -> _State | None:
    axes = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    given = node.attributes.get_ints("axes", ()) if axes is None else axes.reshape(-1).tolist()
    rank = len(state.shape) + len(given)
    places = sorted(int(a) % rank for a in given) if given else []
    if index or not places:
        return None
    shape, moved = list(state.shape), list(state.axes)
    for place in places:
        shape.insert(place, 1)
        moved.insert(place, None)
    return replace(state, shape=tuple(shape), axes=tuple(moved))


def _arithmetic(
    combine: Callable[[Array, Array, Array], tuple[Array, Array]], *, either: bool
) -> Callable[[ir.Node, int, _State], _State | None]:
    """Return the step of an operation with a constant; ``either``: the constant may come first."""

    def step(node: ir.Node, index: int, state: _State) -> _State | None:
        other = constant_array(node.inputs[1 - index])
        if other is None or (index and not either) or other.ndim > len(state.shape):
            return None
        wide = [i for i, n in enumerate(other.shape) if n != 1]
        if len(wide) > 1:
            return None
        channel = state.channel
        if wide:
            place = len(state.shape) - other.ndim + wide[0]
            axis = state.axes[place]
            if axis is None or state.shape[place] != other.size or channel not in {None, axis}:
                return None
            channel = axis
        with np.errstate(all="ignore"):
            scale, shift = combine(state.scale, state.shift, other.astype(np.float64).reshape(-1))
        if not (np.isfinite(scale).all() and np.isfinite(shift).all() and scale.all()):
            return None
        return replace(state, scale=scale, shift=shift, channel=channel)

    return step


_STEPS: dict[str, Callable[[ir.Node, int, _State], _State | None]] = {
    "Cast": _same,
    "Identity": _same,
    "Dropout": _same,
    "Pad": _same,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Add": _arithmetic(lambda a, b, c: (a, b + c), either=True),
    "Sub": _arithmetic(lambda a, b, c: (a, b - c), either=False),
    "Mul": _arithmetic(lambda a, b, c: (a * c, b * c), either=True),
    "Div": _arithmetic(lambda a, b, c: (a / c, b / c), either=False),
}


# --- what the values tell -----------------------------------------------------------------------


def _normalised(state: _State, layout: Layout) -> Moments | None:
    """Take what the first layers make of the input for mean 0 and deviation 1."""
    if state.channel is not None and state.channel != layout.channel:
        return None
    scale, shift = np.broadcast_arrays(state.scale, state.shift)
    if shift.any():
        return Moments(-shift / scale, 1 / np.abs(scale), "scaled as the model normalises them")
    if (scale == 1).all():
        return None
    # a scale alone, such as 1/255, leads to numbers between 0 and 1
    return Moments(_HALF / scale, _QUARTER / np.abs(scale), "scaled as the model normalises them")


def _layer(node: ir.Node, state: _State) -> tuple[Layout, Moments | None]:
    """Read the layout from a layer whose axes have a meaning, and moments from a normalization."""
    channel_at = 1 if is_op(node, "Conv", "BatchNormalization") else 2
    if len(state.shape) <= channel_at:
        return Layout(), None
    smooth = [0] if channel_at == 2 else range(2, len(state.shape))
    if channel_at == 2 and node.attributes.get_int("layout", 0) == 1:
        smooth = [1]
    axes = [state.axes[a] for a in smooth]
    layout = Layout(tuple(sorted(a for a in axes if a is not None)), state.axes[channel_at])
    if state.channel is not None and state.channel != layout.channel:
        return layout, None
    trained = None
    if layout.channel is not None and is_op(node, "BatchNormalization"):
        trained = _statistics(node)
    elif layout.channel is not None and is_op(node, "Conv"):
        trained = _before_conv(node)
    if trained is None or state.shape[1] != trained[0].size:
        told = _normalised(state, layout)
        if told is None and layout.channel is not None and is_op(node, "Conv"):
            told = _bytes(node)
        return layout, told
    mean, std = trained
    said = "scaled as the first BatchNormalization expects"
    return layout, Moments((mean - state.shift) / state.scale, std / np.abs(state.scale), said)


def _statistics(node: ir.Node) -> tuple[Array, Array] | None:
    """Return the running mean and deviation of a BatchNormalization, or None."""
    found = [constant_array(v) for v in node.inputs[3:5]]
    if len(found) != 2 or found[0] is None or found[1] is None:
        return None
    mean, variance = (np.asarray(f, np.float64).reshape(-1) for f in found)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    std = np.sqrt(np.maximum(variance, 0) + epsilon)
    return (mean, std) if np.isfinite(mean).all() and np.isfinite(std).all() else None


def _before_conv(conv: ir.Node) -> tuple[Array, Array] | None:
    """Return the mean and deviation of a Conv's input that fit a BatchNormalization behind it.

    Of the deviations of the outputs the median is compared with what smooth noise gives.
    """
    first = _first(conv)
    readers = [node for node, _ in conv.outputs[0].uses()]
    if first is None or len(readers) != 1 or not is_op(readers[0], "BatchNormalization"):
        return None
    trained = _statistics(readers[0])
    if trained is None or trained[0].size != first.bias.size:
        return None
    mean, std = trained
    told = first.usable & (std > 1e-3 * std.max())
    if not told.any():
        return None
    scale = float(np.median(std[told] / first.unit[told]))
    centre = _centre(
        first.sums[told] / std[told, None] * scale, (mean - first.bias)[told] / std[told]
    )
    return centre * scale, np.full(centre.size, scale)


def _bytes(conv: ir.Node) -> Moments | None:
    """Tell pictures of 0 to 255 by biases far larger than what smaller numbers make of weights.

    With a BatchNormalization folded in, biases take away the mean of the pictures.
    """
    first = _first(conv)
    if first is None or not first.usable.any():
        return None
    unit, bias = first.unit[first.usable], first.bias[first.usable]
    if np.median(np.abs(bias) / unit) < _FAR:
        return None
    centre = _centre(first.sums[first.usable] / unit[:, None] * _BYTE, -bias / unit) * _BYTE
    mean, std = np.clip(centre, 0, 2.5 * _BYTE), np.full(centre.size, _BYTE)
    return Moments(mean, std, "scaled as pictures of 0 to 255, as the first layer's biases suggest")


@dataclass(frozen=True, eq=False)
class _First:
    """The first Conv.

    Attributes:
        bias: float64 (rows,).
        sums: Sums of the kernels: float64 (rows, channels).
        unit: Deviation of each output for smooth noise of deviation 1: float64 (rows,).
        usable: Rows whose weights are not next to nothing: bool (rows,).
    """

    bias: Array
    sums: Array
    unit: Array
    usable: Array


def _first(conv: ir.Node) -> _First | None:
    """Look at a Conv over pictures, or return None for another one."""
    weight = constant_array(conv.inputs[1])
    bias = constant_array(conv.inputs[2]) if len(conv.inputs) > 2 else None
    if weight is None or weight.ndim != 4 or conv.attributes.get_int("group", 1) != 1:
        return None
    kernels = weight.astype(np.float64)
    if not np.isfinite(kernels).all() or len(kernels) < 2 * kernels.shape[1]:
        return None
    added = np.zeros(len(kernels)) if bias is None else bias.astype(np.float64).reshape(-1)
    unit = np.sqrt(_power(kernels))
    if added.size != unit.size or not np.isfinite(added).all():
        return None
    return _First(added, kernels.sum(axis=(2, 3)), unit, unit > 1e-3 * unit.max())


def _centre(sums: Array, outputs: Array) -> Array:
    """Return the input means that fit those of the outputs, drawn towards zero: (channels,)."""
    gram = sums.T @ sums + np.eye(sums.shape[1])
    return np.asarray(np.linalg.solve(gram, sums.T @ outputs))


def _power(kernels: Array) -> Array:
    """Return the variance of each output of a Conv for smooth noise of variance 1: (rows,)."""
    from converter.data.noise import signal

    rows, channels, high, wide = kernels.shape
    noise = signal(np.random.default_rng(0), (4, channels, high + 40, wide + 40), (2, 3), 1)
    windows = np.lib.stride_tricks.sliding_window_view(noise, (high, wide), (2, 3))[:, :, ::4, ::4]
    outputs = np.tensordot(windows, kernels, ((1, 4, 5), (1, 2, 3)))
    return np.asarray(outputs.reshape(-1, rows).var(axis=0))
