"""Rules of fused attention: heads go whole, with the groups of queries that share keys and values.

Heads do not see each other inside these operators, so what is removed needs to be zero only where
the output is read: the sink "heads" marks the place and asks for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from converter.ops.axes.align import extent
from converter.ops.axes.blocks import (
    by_block,
    count,
    freeze_axes,
    freeze_inputs,
    spread,
    wanted,
)
from converter.ops.axes.site import Axes, Labels, Rule, Site
from converter.ops.table import Entry

MICROSOFT = "com.microsoft"
_SCORES = "scores of attention are an output"


@dataclass(frozen=True)
class _Heads:
    """Numbers of heads of one node: of the queries, and of keys and values."""

    queries: int
    shared: int

    @property
    def group(self) -> int:
        return self.queries // self.shared


@dataclass(frozen=True)
class Fused:
    """Heads go whole, with the groups of queries that share keys and values.

    Every tensor is (batch, sequence, heads * size) or (batch, heads, sequence, size).

    Attributes:
        queries: Attribute with the number of heads of the queries.
        shared: Attribute with the number of heads of keys and values; "": as many.
        mask: Position of what is added to the scores, (batch, heads, queries, keys) or less.
        past: Positions of former keys and values, (batch, heads, sequence, size).
        bias: Position of the bias of queries, keys and values in one, or None.
        cut: Other inputs with an axis of heads: (position, axis).
        scores: Index of the output with the scores, which must not be there.
    """

    queries: str = "num_heads"
    shared: str = ""
    mask: int = 5
    past: tuple[int, int] = (6, 7)
    bias: int | None = None
    cut: tuple[tuple[int, int], ...] = ()
    scores: int = 3

    def __call__(self, site: Site) -> None:
        """Unite the heads of all inputs."""
        heads = self._heads(site)
        if heads is None or wanted(site, self.scores):
            freeze_inputs(site, _SCORES if heads else "the heads of attention are packed")
            return
        if site.given(1) and site.given(2):
            self._separate(site, heads)
        elif len(site.shape(0)) == 3:
            self._packed(site, heads)
        else:
            freeze_inputs(site, "the heads of attention are packed")

    def _heads(self, site: Site) -> _Heads | None:
        """Read the numbers of heads; None where they say nothing or do not fit."""
        shape = site.shape(0)
        number = shape[1] if len(shape) == 4 else site.node.attributes.get_int(self.queries, 0)
        shared = number
        if self.shared:
            fits = len(shape) == 4 and site.given(1) and len(site.shape(1)) == 4
            attribute = site.node.attributes.get_int(self.shared, number)
            shared = site.shape(1)[1] if fits else attribute
        if number < 1 or shared < 1 or number % shared:
            return None
        return _Heads(number, shared)

    def _separate(self, site: Site, heads: _Heads) -> None:
        batch = site.unite(site.labels(0)[0], site.unite(site.labels(1)[0], site.labels(2)[0]))
        query = self._of_groups(site, 0, heads.queries, heads.group)
        key = self._of_groups(site, 1, heads.shared, 1)
        value = self._of_groups(site, 2, heads.shared, 1)
        atoms = site.unite(site.unite(query, key), value)
        self._dimensions(site)
        atoms = self._biases(site, atoms, heads)
        atoms = self._others(site, atoms, heads)
        self._finish(site, batch, atoms, heads)

    def _dimensions(self, site: Site) -> None:
        """Freeze the sizes of heads and the sequences: only heads go."""
        for position in range(3):
            labels = site.labels(position)
            rest = (labels[2], labels[3]) if len(labels) == 4 else (labels[1],)
            freeze_axes(site, rest, "it is a sequence or the size of a head of fused attention")

    def _of_groups(self, site: Site, position: int, number: int, group: int) -> Labels:
        """Return a label for every head, or group of heads, of one input."""
        labels, shape = site.labels(position), site.shape(position)
        if len(shape) == 4:
            return by_block(site, labels[1], group)
        if len(shape) != 3 or shape[2] % number:
            freeze_axes(site, labels, "the heads of attention are packed")
            return None
        return by_block(site, labels[2], shape[2] // number * group)

    def _packed(self, site: Site, heads: _Heads) -> None:
        """Queries, keys and values lie one after the other on the last axis."""
        labels, size = site.labels(0), site.shape(0)[2]
        per_head, rest = divmod(size, heads.queries + 2 * heads.shared)
        if rest or labels[2] is None:
            freeze_axes(site, labels, "the heads of attention are packed")
            atoms = None
        else:
            end, width = heads.queries * per_head, heads.shared * per_head
            query = by_block(site, labels[2][:end], per_head * heads.group)
            key = by_block(site, labels[2][end : end + width], per_head)
            value = by_block(site, labels[2][end + width :], per_head)
            atoms = site.unite(site.unite(query, key), value)
        site.freeze(labels[1], "it is a sequence or the size of a head of fused attention")
        atoms = self._others(site, atoms, heads)
        self._finish(site, labels[0], atoms, heads)

    def _biases(self, site: Site, atoms: Labels, heads: _Heads) -> Labels:
        if self.bias is None or not site.given(self.bias):
            return atoms
        sizes = [self._width(site, position, heads) for position in range(3)]
        return unite_blocks(site, self.bias, 0, sizes, heads.queries, atoms)

    def _width(self, site: Site, position: int, heads: _Heads) -> int:
        """Return the size of all heads of an input together."""
        shape = site.shape(position)
        if len(shape) == 3:
            return shape[2]
        return shape[1] * shape[3]

    def _others(self, site: Site, atoms: Labels, heads: _Heads) -> Labels:
        """Unite the axes of heads of masks and caches, and of further inputs."""
        if site.given(self.mask):
            labels, shape = site.labels(self.mask), site.shape(self.mask)
            at = len(shape) - 3
            freeze_axes(site, labels[max(at, 0) + 1 :], "it is a mask of attention")
            if at >= 0 and shape[at] > 1:
                atoms = site.unite(atoms, by_block(site, labels[at], heads.group))
        for position in self.past:
            if site.given(position) and len(site.shape(position)) == 4:
                labels = site.labels(position)
                freeze_axes(site, labels[2:], "it is a cache of keys and values")
                atoms = site.unite(atoms, labels[1])
        for position, axis in self.cut:
            if site.given(position):
                vector = by_block(site, site.labels(position)[axis], heads.group)
                atoms = site.unite(atoms, vector)
        return atoms

    def _finish(self, site: Site, batch: Labels, atoms: Labels, heads: _Heads) -> None:
        shape = site.output_shape(0)
        queries = spread(atoms, heads.group)
        four = len(shape) == 4
        axis = 1 if len(site.shape(0)) == 4 else 2
        size = shape[3] if four else shape[2] // heads.queries
        output: Axes = (
            (batch, queries, None, None) if four else (batch, None, spread(queries, size))
        )
        site.put(output)
        for index in (1, 2):
            if wanted(site, index):
                site.put((batch, atoms, None, None), index)
        site.sink(0, axis, "heads")
        site.mark(atoms, "head")
        products = 2 * size * count((shape[0], shape[2] if four else shape[1], self._keys(site)))
        site.work(products, extent(queries, heads.queries))

    def _keys(self, site: Site) -> int:
        """Return how many keys each query meets."""
        position = 1 if site.given(1) else 0
        shape = site.shape(position)
        before = site.shape(self.past[0])[2] if site.given(self.past[0]) else 0
        return before + (shape[2] if len(shape) == 4 else shape[1])


def unite_blocks(
    site: Site, position: int, axis: int, sizes: list[int], heads: int, atoms: Labels
) -> Labels:
    """Unite heads with an axis of an input that holds queries, keys and values in this order.

    Args:
        site: The node.
        position: Of the input.
        axis: Of that input.
        sizes: Widths of queries, keys and values: heads times the size of a head.
        heads: How many.
        atoms: A label for every head, or None.
    """
    labels = site.labels(position)[axis]
    if labels is None or sum(sizes) != len(labels) or any(size % heads for size in sizes):
        site.freeze(labels, "the heads of attention are packed")
        site.freeze(atoms, "the heads of attention are packed")
        return None
    start = 0
    found: Labels = None
    for size in sizes:
        part = by_block(site, labels[start : start + size], size // heads)
        found = part if found is None else site.unite(found, part)
        start += size
    return found if atoms is None else site.unite(atoms, found)


@dataclass(frozen=True)
class Projecting:
    """Heads go whole, with their columns of the projection; the input is summed over.

    Attributes:
        scales: Positions of scale and zero point of the weights, which may go by column.
        past: Position of former keys and values, (2, batch, heads, sequence, size).
        mask: Position of what is added to the scores.
    """

    scales: tuple[int, ...] = ()
    past: int = 4
    mask: int | None = 5

    def __call__(self, site: Site) -> None:
        """Unite the columns of the weights, head by head."""
        x, weights = site.labels(0), site.labels(1)
        heads = site.node.attributes.get_int("num_heads", 1)
        width = site.shape(1)[1]
        sizes = list(site.node.attributes.get_ints("qkv_hidden_sizes", (width // 3,) * 3))
        site.unite(x[2], weights[0])
        site.sink(0, 2, "weights", weight=1, weight_axis=0)
        site.freeze(x[1], "it is a sequence or the size of a head of fused attention")
        atoms = unite_blocks(site, 1, 1, sizes, heads, None)
        for position in (2, *self.scales):
            if site.given(position) and site.shape(position) == (width,):
                atoms = unite_blocks(site, position, 0, sizes, heads, atoms)
        atoms = self._others(site, atoms)
        site.put((x[0], None, spread(atoms, sizes[2] // heads)))
        if wanted(site, 1):
            site.put((None, x[0], atoms, None, None), 1)
        site.sink(0, 2, "heads")
        site.mark(atoms, "head")
        batch, steps = site.shape(0)[:2]
        channels = extent(x[2], site.shape(0)[2])
        site.work(batch * steps, channels, extent(weights[1], width))
        each = (sizes[0] + sizes[2]) // heads
        site.work(batch * steps * steps * each, extent(atoms, heads))

    def _others(self, site: Site, atoms: Labels) -> Labels:
        if self.mask is not None and site.given(self.mask):
            labels, shape = site.labels(self.mask), site.shape(self.mask)
            if shape[1] > 1:
                atoms = site.unite(atoms, labels[1])
        if site.given(self.past):
            labels = site.labels(self.past)
            freeze_axes(site, (labels[0], *labels[3:]), "it is a cache of keys and values")
            atoms = site.unite(atoms, labels[2])
        return atoms


@dataclass(frozen=True)
class Rotary:
    """Dimensions of a head turn in pairs and go in pairs; heads pass.

    Attributes:
        cos: Position of the cosines; the sines follow.
    """

    cos: int = 1

    def __call__(self, site: Site) -> None:
        """Pair the dimensions of (batch, heads, sequence, size); keep heads whole otherwise."""
        labels, shape = site.labels(0), site.shape(0)
        caches = [site.labels(position) for position in (self.cos, self.cos + 1)]
        if len(shape) == 4:
            self._pairs(site, labels[3], caches)
            site.put(labels)
            return
        for axes in caches:
            site.freeze(axes[-1], "heads are rotated in pairs of dimensions")
        size = self._size(site)
        if len(shape) != 3 or shape[2] % size:
            freeze_axes(site, labels, "heads are rotated in pairs of dimensions")
            return
        heads = by_block(site, labels[2], size)
        site.mark(heads, "head")
        site.put((*labels[:2], spread(heads, size)))

    def _size(self, site: Site) -> int:
        """Return the size of one head of an input (batch, sequence, heads * size)."""
        heads = site.node.attributes.get_int("num_heads", 0)
        if heads:
            return max(site.shape(0)[2] // heads, 1)
        return 2 * site.shape(self.cos)[-1]

    def _pairs(self, site: Site, labels: Labels, caches: list[Axes]) -> None:
        turned = site.node.attributes.get_int("rotary_embedding_dim", 0)
        if labels is None or (turned and turned != len(labels)) or len(labels) % 2:
            freeze_axes(site, (labels, *(axes[-1] for axes in caches)), "a part of it is rotated")
            return
        half = len(labels) // 2
        interleaved = bool(site.node.attributes.get_int("interleaved", 0))
        first, second = (
            (labels[0::2], labels[1::2]) if interleaved else (labels[:half], labels[half:])
        )
        pairs = site.unite(first, second)
        for axes in caches:
            pairs = site.unite(pairs, axes[-1])


_STANDARD = Fused(
    queries="q_num_heads", shared="kv_num_heads", mask=3, past=(4, 5), cut=(), scores=3
)

ENTRIES: tuple[Entry[Rule], ...] = (
    Entry("Attention", _STANDARD, since=23),
    Entry("RotaryEmbedding", Rotary(cos=1), since=23),
    Entry("RotaryEmbedding", Rotary(cos=2), domain=MICROSOFT),
    Entry("MultiHeadAttention", Fused(bias=3), domain=MICROSOFT),
    Entry(
        "GroupQueryAttention",
        Fused(shared="kv_num_heads", mask=10, past=(3, 4), cut=((11, 0),)),
        domain=MICROSOFT,
    ),
    Entry("Attention", Projecting(), domain=MICROSOFT),
    Entry(
        "QAttention",
        Projecting(scales=(4, 7), past=8, mask=None),
        domain=MICROSOFT,
    ),
)
