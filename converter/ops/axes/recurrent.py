"""Rules of LSTM, GRU and RNN: hidden units, over all gates and both directions.

A hidden unit that is gone leaves no trace where its column of R is zero and nothing reads it
afterwards: gates, cell state and peepholes act on each unit alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from converter.ops.axes.align import extent
from converter.ops.axes.blocks import (
    by_position,
    count,
    freeze_axes,
    wanted,
)
from converter.ops.axes.site import Axes, Labels, Rule, Site
from converter.ops.table import Entry

_X, _W, _R, _BIAS, _LENGTHS, _STATE_H, _STATE_C, _PEEPHOLES = range(8)


@dataclass(frozen=True)
class Recurrent:
    """Hidden units go, over all gates and both directions; the input is summed over.

    Attributes:
        gates: Blocks of W and R: 4 of LSTM, 3 of GRU, 1 of RNN.
        transposed: W and R are (directions, in, gates * hidden), as DynamicQuantizeLSTM has them.
        scales: Positions of scales and zero points of W (first two) and R, which may go by column.
    """

    gates: int
    transposed: bool = False
    scales: tuple[int, ...] = ()

    def __call__(self, site: Site) -> None:
        """Read the labels of all inputs and give Y, Y_h and Y_c theirs."""
        out, into = (2, 1) if self.transposed else (1, 2)
        x, w, r = site.labels(_X), site.labels(_W), site.labels(_R)
        freeze_axes(site, (w[0], r[0]), "it is a direction of a recurrent layer")
        hidden = site.unite(r[into], by_position(site, r[out], self.gates))
        hidden = site.unite(hidden, by_position(site, w[out], self.gates))
        hidden = self._vectors(site, hidden)
        site.mark(hidden, "hidden")
        site.unite(x[2], w[into])
        site.sink(_X, 2, "weights", weight=_W, weight_axis=into)
        site.sink(_R, into, "recurrent", weight=_R, weight_axis=into)
        first, batch = self._free_axes(site, x)
        hidden = self._states(site, hidden, batch)
        self._put(site, hidden, first, batch)
        steps = count(site.shape(_X)[:2]) * site.shape(_W)[0]
        rows = extent(w[out], site.shape(_W)[out])
        site.work(steps, rows, extent(x[2], site.shape(_X)[2]))
        site.work(steps, rows, extent(hidden, site.shape(_R)[into]))

    def _vectors(self, site: Site, hidden: Labels) -> Labels:
        """Unite biases, peepholes and scales by column with the hidden units."""
        blocks = {_BIAS: 2 * self.gates, _PEEPHOLES: 3, **dict.fromkeys(self.scales, self.gates)}
        for position, number in blocks.items():
            if not site.given(position) or not site.shape(position)[1:]:
                continue
            hidden = site.unite(hidden, by_position(site, site.labels(position)[1], number))
        return hidden

    def _free_axes(self, site: Site, x: Axes) -> tuple[Labels, Labels]:
        """Return the labels of time and batch: time stays, the batch goes along."""
        swapped = bool(site.node.attributes.get_int("layout", 0))
        time, batch = (x[1], x[0]) if swapped else (x[0], x[1])
        site.freeze(time, "it is the time of a recurrent layer")
        if site.given(_LENGTHS):
            batch = site.unite(batch, site.labels(_LENGTHS)[0])
        return time, batch

    def _states(self, site: Site, hidden: Labels, batch: Labels) -> Labels:
        """Unite initial states with the hidden units and the batch."""
        at = 0 if site.node.attributes.get_int("layout", 0) else 1
        size = site.shape(_X)[at]
        for position in (_STATE_H, _STATE_C):
            if site.given(position) and len(site.shape(position)) == 3:
                labels = site.labels(position)
                site.freeze(labels[1 - at], "it is a direction of a recurrent layer")
                if site.shape(position)[at] == size:
                    site.unite(batch, labels[at])
                hidden = site.unite(hidden, labels[2])
        return hidden

    def _put(self, site: Site, hidden: Labels, time: Labels, batch: Labels) -> None:
        swapped = bool(site.node.attributes.get_int("layout", 0))
        outputs: tuple[Axes, ...] = (
            (batch, time, None, hidden) if swapped else (time, None, batch, hidden),
            (batch, None, hidden) if swapped else (None, batch, hidden),
            (batch, None, hidden) if swapped else (None, batch, hidden),
        )
        for index, labels in enumerate(outputs):
            if wanted(site, index):
                site.put(labels, index)


ENTRIES: tuple[Entry[Rule], ...] = (
    Entry("LSTM", Recurrent(4)),
    Entry("GRU", Recurrent(3)),
    Entry("RNN", Recurrent(1)),
    Entry(
        "DynamicQuantizeLSTM",
        Recurrent(4, transposed=True, scales=(8, 9, 10, 11)),
        domain="com.microsoft",
    ),
)
