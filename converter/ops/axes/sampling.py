"""Rules of operators that sample images, move along sequences, or make values that stay whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.ops.axes.align import extent, normal
from converter.ops.axes.blocks import (
    by_block,
    by_position,
    count,
    freeze_axes,
    freeze_inputs,
)
from converter.ops.axes.site import Axes, Labels, Rule, Site, Unclear
from converter.ops.table import Entry


@dataclass(frozen=True)
class Stays:
    """Nothing that the operator touches can be removed from.

    Attributes:
        reason: Why, as a short phrase.
    """

    reason: str

    def __call__(self, site: Site) -> None:
        """Freeze all inputs; outputs without labels are frozen."""
        freeze_inputs(site, self.reason)


def grid_sample(site: Site) -> None:
    """GridSample: batch and channels pass, places stay."""
    x, grid = site.labels(0), site.labels(1)
    batch = site.unite(x[0], grid[0])
    freeze_axes(site, (*x[2:], *grid[1:]), "an image is sampled along it")
    site.put((batch, x[1], *(None for _ in x[2:])))


def regions(site: Site) -> None:
    """RoiAlign and MaxRoiPool: channels pass, and so does the list of regions."""
    x, boxes = site.labels(0), site.labels(1)
    freeze_axes(site, (x[0], *x[2:], boxes[1]), "regions are cut out of it")
    number = site.unite(boxes[0], site.labels(2)[0]) if site.given(2) else boxes[0]
    site.put((number, x[1], None, None))


def deform_conv(site: Site) -> None:
    """DeformConv: as a convolution; offsets and masks stay."""
    x, weights = site.labels(0), site.labels(1)
    groups = site.node.attributes.get_int("group", 1)
    shifts = site.node.attributes.get_int("offset_group", 1)
    batch = x[0]
    for position in (2, 4):
        if site.given(position):
            labels = site.labels(position)
            batch = site.unite(batch, labels[0])
            freeze_axes(site, labels[1:], "it moves the places that a convolution reads")
    freeze_axes(site, x[2:], "a convolution runs over it")
    if groups > 1 or shifts > 1:
        freeze_axes(site, (x[1], weights[0], weights[1]), "DeformConv with groups is not cut")
    else:
        site.unite(x[1], weights[1])
        site.sink(0, 1, "weights", weight=1, weight_axis=1)
    channels = site.unite(weights[0], site.labels(3)[0]) if site.given(3) else weights[0]
    site.put((batch, channels, *(None for _ in x[2:])))
    kernel, result = site.shape(1), site.output_shape()
    places = count(kernel[2:]) * result[0] * count(result[2:])
    site.work(places, extent(weights[1], kernel[1]), extent(channels, kernel[0]))


def reverse(site: Site) -> None:
    """ReverseSequence: time stays, the batch goes with the lengths."""
    time = site.node.attributes.get_int("time_axis", 0)
    batch = site.node.attributes.get_int("batch_axis", 1)
    lengths, rank = site.labels(1), len(site.labels(0))
    if len(lengths) != 1 or not {time, batch} <= set(range(rank)):
        raise Unclear("the axes of ReverseSequence do not fit")
    site.unite(site.labels(0)[batch], lengths[0])
    site.put(_without(site, [time], "its order is reversed"))


def spectrum(site: Site) -> None:
    """DFT: the axis of the transform and that of the complex numbers stay."""
    rank = len(site.labels(0))
    given = site.constant(2)
    if site.opset >= 20 and site.given(2) and given is None:
        raise Unclear("the axis of DFT is computed")
    default = -2 if site.opset >= 20 else site.node.attributes.get_int("axis", 1)
    axis = normal(default if given is None else int(given.reshape(-1)[0]), rank)
    site.put(_without(site, [axis, rank - 1], "a Fourier transform runs over it"))


def short_spectrum(site: Site) -> None:
    """STFT: the batch passes."""
    labels = site.labels(0)
    freeze_axes(site, labels[1:], "a Fourier transform runs over it")
    freeze_inputs(site, "a Fourier transform runs over it", only=(2,))
    site.put((labels[0], *(None for _ in site.output_shape()[1:])))


def crop_or_pad(site: Site) -> None:
    """CenterCropPad: the axes that get a new size stay."""
    rank = len(site.labels(0))
    axes = site.node.attributes.get_ints("axes", range(rank))
    site.put(_without(site, [normal(axis, rank) for axis in axes], "it is cropped"))


def _without(site: Site, axes: list[int], reason: str) -> Axes:
    """Freeze some axes of the first input and return the labels of all others."""
    labels = site.labels(0)
    freeze_axes(site, (labels[axis] for axis in axes), reason)
    return tuple(None if i in axes else axis for i, axis in enumerate(labels))


def blocks_to_image(site: Site) -> None:
    """Col2Im: the numbers of one channel under the kernel go together."""
    labels, shape = site.labels(0), site.shape(0)
    kernel = site.constant(2)
    if kernel is None:
        raise Unclear("the kernel of Col2Im is computed")
    site.freeze(labels[2], "columns become an image")
    size = int(np.prod(kernel))
    if shape[1] % size:
        raise Unclear("the kernel of Col2Im does not fit")
    rest = (None for _ in site.output_shape()[2:])
    site.put((labels[0], by_block(site, labels[1], size), *rest))


def experts(site: Site) -> None:
    """MoE: the inner units of all experts, the same of each; experts and router stay.

    With ``swiglu_fusion`` 1 the two halves of a unit are neighbours, with 2 they are halves.
    """
    x, up, down = site.labels(0), site.labels(2), site.labels(4)
    freeze_axes(site, (*site.labels(1), up[0], down[0]), "it chooses between experts")
    inner = _inner(site, up[1], site.shape(2)[1] // max(site.shape(4)[2], 1))
    inner = site.unite(inner, down[2])
    outer, into = down[1], site.unite(x[-1], up[2])
    if site.given(3):
        _inner_bias(site, inner)
    if site.given(5):
        outer = site.unite(outer, site.labels(5)[1])
    if site.given(6):
        third = site.labels(6)
        inner = site.unite(inner, third[1])
        into = site.unite(into, third[2])
        if site.given(7):
            site.unite(inner, site.labels(7)[1])
    # columns of two or more constants: one is enough where the activation is zero
    site.sink(0, len(x) - 1, "weights", weight=2, weight_axis=2)
    site.sink(4, 2, "recurrent", weight=4, weight_axis=2)
    site.put((*x[:-1], outer))
    chosen = site.node.attributes.get_int("k", 1) * count(site.shape(0)[:-1])
    _, rows, columns = site.shape(2)
    site.work(chosen, extent(up[1], rows), extent(into, columns))
    site.work(chosen, extent(inner, site.shape(4)[2]), extent(outer, site.shape(4)[1]))


def _inner(site: Site, rows: Labels, parts: int) -> Labels:
    """Return a label for every inner unit from the rows of the first weights."""
    if parts <= 1:
        return rows
    if site.node.attributes.get_int("swiglu_fusion", 0) == 1:
        return by_block(site, rows, parts)
    return by_position(site, rows, parts)


def _inner_bias(site: Site, inner: Labels) -> None:
    labels, size = site.labels(3)[1], site.shape(3)[1]
    site.unite(inner, _inner(site, labels, size // max(site.shape(4)[2], 1)))


_CONTROL = "it is read or made by a sub-graph"
_SEQUENCE = "it is a part of a sequence of tensors"
_CHOSEN = "its numbers decide what is chosen"
_STAYS = {
    _CONTROL: "If Loop Scan SequenceMap",
    _SEQUENCE: "SequenceConstruct SequenceAt SequenceInsert SequenceErase SequenceEmpty "
    "SequenceLength SplitToSequence ConcatFromSequence Optional OptionalGetElement "
    "OptionalHasElement",
    _CHOSEN: "NonZero Unique Compress NonMaxSuppression",
    "it is random": "Multinomial",
    "it is a grid of places": "AffineGrid",
    "a matrix is taken as a whole": "Det MelWeightMatrix",
    "it is text": "StringNormalizer StringSplit StringConcat RegexFullMatch",
    "it is a window or a loss": "BlackmanWindow HammingWindow HannWindow SoftmaxCrossEntropyLoss "
    "NegativeLogLikelihoodLoss",
}
_RULES: dict[str, Rule] = {
    "GridSample": grid_sample,
    "RoiAlign": regions,
    "MaxRoiPool": regions,
    "DeformConv": deform_conv,
    "ReverseSequence": reverse,
    "DFT": spectrum,
    "STFT": short_spectrum,
    "CenterCropPad": crop_or_pad,
    "Col2Im": blocks_to_image,
}
_WHOLE: dict[str, Rule] = {
    name: Stays(reason) for reason, names in _STAYS.items() for name in names.split()
}
ENTRIES: tuple[Entry[Rule], ...] = (
    *(Entry(name, rule) for name, rule in (_RULES | _WHOLE).items()),
    Entry("MoE", experts, domain="com.microsoft"),
)
