"""The cheapest way to divide nodes in two: minimum cut by Dinic's algorithm, in whole numbers."""

from __future__ import annotations

from collections import deque

UNBOUNDED = 1 << 60


class Network:
    """A flow network with a source and a sink.

    Capacities are integers, so that the result does not depend on the order of sums.
    """

    SOURCE, SINK = 0, 1

    def __init__(self) -> None:
        self._edges: list[list[int]] = [[], []]
        self._to: list[int] = []
        self._left: list[int] = []

    def add(self) -> int:
        """Add a node and return its number."""
        self._edges.append([])
        return len(self._edges) - 1

    def join(self, tail: int, head: int, capacity: int) -> None:
        """Add an edge: ``capacity`` is paid when the tail is kept and the head is not."""
        for start, end, room in ((tail, head, capacity), (head, tail, 0)):
            self._edges[start].append(len(self._to))
            self._to.append(end)
            self._left.append(room)

    def kept(self) -> set[int]:
        """Return the nodes on the source's side of the smallest minimum cut."""
        level = self._levels()
        while level[self.SINK] >= 0:
            self._saturate(level)
            level = self._levels()
        return {node for node, depth in enumerate(level) if depth >= 0}

    def _levels(self) -> list[int]:
        level = [-1] * len(self._edges)
        level[self.SOURCE] = 0
        queue = deque([self.SOURCE])
        while queue:
            node = queue.popleft()
            for edge in self._edges[node]:
                if self._left[edge] and level[self._to[edge]] < 0:
                    level[self._to[edge]] = level[node] + 1
                    queue.append(self._to[edge])
        return level

    def _saturate(self, level: list[int]) -> None:
        """Push flow along shortest paths until none is left, without recursion."""
        following = [0] * len(self._edges)
        path: list[int] = []
        node = self.SOURCE
        while True:
            if node == self.SINK:
                room = min(self._left[edge] for edge in path)
                for edge in path:
                    self._left[edge] -= room
                    self._left[edge ^ 1] += room
                first = next(i for i, edge in enumerate(path) if not self._left[edge])
                node = self._to[path[first] ^ 1]
                del path[first:]
            edge = self._next(node, level, following)
            if edge >= 0:
                path.append(edge)
                node = self._to[edge]
            elif path:
                node = self._to[path.pop() ^ 1]
                following[node] += 1
            else:
                return

    def _next(self, node: int, level: list[int], following: list[int]) -> int:
        """Return an edge one level further, or -1."""
        edges = self._edges[node]
        while following[node] < len(edges):
            edge = edges[following[node]]
            if self._left[edge] and level[self._to[edge]] == level[node] + 1:
                return edge
            following[node] += 1
        return -1
