"""Labels of indices: a growing union-find, worked on with whole arrays.

The smaller label becomes the root, so the result does not depend on the order of unions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converter.ops.axes.site import STAYS

Array = np.ndarray[Any, Any]
_FIRST = 1 << 10
_FREE = 1 << 40
"""Stands for the reason of what is not frozen: later than any."""


class Labels:
    """Sets of labels, each with the first reason why it is frozen, if it is."""

    def __init__(self) -> None:
        self._parent = np.arange(_FIRST)
        self._reason = np.full(_FIRST, _FREE)
        self._size = 1
        self.reasons: list[tuple[Any, str]] = [(None, "it stays")]
        self._known: dict[tuple[int, str], int] = {}
        self._reason[STAYS] = 1
        self.reasons.append((None, "it stays"))

    def __len__(self) -> int:
        return self._size

    def fresh(self, count: int) -> Array:
        """Return new labels, ascending."""
        while self._size + count > len(self._parent):
            more = len(self._parent)
            self._parent = np.append(self._parent, np.arange(more, 2 * more))
            self._reason = np.append(self._reason, np.full(more, _FREE))
        made = np.arange(self._size, self._size + count)
        self._size += count
        return made

    def find(self, labels: Array) -> Array:
        """Return the root of every label."""
        roots = self._parent[labels]
        while True:
            up = self._parent[roots]
            if np.array_equal(up, roots):
                self._parent[labels] = roots
                return roots
            roots = up

    def unite(self, first: Array, second: Array) -> None:
        """Unite the labels of two arrays one by one."""
        while True:
            first, second = self.find(first), self.find(second)
            differ = first != second
            if not differ.any():
                return
            low = np.minimum(first, second)[differ]
            high = np.maximum(first, second)[differ]
            np.minimum.at(self._parent, high, low)
            touched = np.concatenate([low, high])
            touched = touched[self._reason[touched] < _FREE]
            if touched.size:  # roots that are none any more hand on their reasons
                np.minimum.at(self._reason, self.find(touched), self._reason[touched])

    def freeze(self, labels: Array, subject: Any, reason: str) -> None:
        """Forbid the removal of labels; what is frozen already keeps its reason."""
        roots = self.find(labels)
        free = roots[self._reason[roots] == _FREE]
        if not free.size:
            return
        key = (id(subject), reason)
        if key not in self._known:
            self._known[key] = len(self.reasons)
            self.reasons.append((subject, reason))
        self._reason[free] = self._known[key]

    def reason(self, labels: Array) -> Array:
        """Return the number of the reason of every label, 0 for what is free."""
        found = self._reason[self.find(labels)]
        return np.where(found == _FREE, 0, found)

    def frozen(self, labels: Array) -> bool:
        """Tell whether none of the labels can be removed."""
        return bool((self._reason[self.find(labels)] < _FREE).all())
