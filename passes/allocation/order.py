"""The exact k-th smallest magnitude of tensors that are too large to hold, in one pass over them.

A sample tells between which two keys the wanted one must lie; one pass counts what is below that
bracket and collects what is inside (well below 1 % of the weights); the answer is selected among
the collected ones. A bracket that misses, or that holds too many equal weights to collect, is
found by a radix search instead: slower, equally exact, and as small in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.tensors import FileTensor, MappedTensor, chunks
from passes.importance.magnitude import Magnitude, drop_below

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 20  # bytes; the work on one chunk stays in the second-level cache
_COLLECT = 8 << 20  # keys held at once
_WHOLE = 1 << 18  # fewer weights are collected without a sample
_RUNS, _RUN = 1 << 14, 64  # most sampled places, and weights taken at each
_FEWEST, _PART = 256, 1 << 15  # fewest places, and weights for which there is one more
_FEW = 16  # different weights that are tried one by one
_SIGMAS = 5.0  # half width of the bracket in standard errors of the sampled rank
_DIGIT = 16  # bits decided per pass of the radix search


@dataclass(frozen=True)
class Cut:
    """Which weights of one tensor are set to zero. A pure function for ``MappedTensor``.

    Attributes:
        key: Weights with a smaller key (see :class:`Magnitude`, the tensor's own type) go.
        edge: Weights with exactly this key go as well when their flat index is below this.
    """

    key: int
    edge: int = 0

    def __call__(self, chunk: Array, start: int) -> Array:
        """Return a copy of the flat chunk, whose first element has index ``start``, cut."""
        ties = min(max(self.edge - start, 0), chunk.size)
        if ties in (0, chunk.size):
            return drop_below(chunk, self.key + (ties > 0))
        parts = (drop_below(chunk[:ties], self.key + 1), drop_below(chunk[ties:], self.key))
        return np.concatenate(parts)


@dataclass(frozen=True)
class Plan:
    """What happens to one tensor.

    Attributes:
        cut: The weights to set to zero; None: the tensor stays as it is.
        size, zeros_before, zeros_after: Numbers of weights.
        invalid: The tensor holds NaN and takes no part.
    """

    cut: Cut | None
    size: int
    zeros_before: int
    zeros_after: int
    invalid: bool = False


@dataclass(frozen=True)
class Census:
    """Counts of one tensor relative to a bracket of keys.

    Attributes:
        size, zeros: Numbers of weights.
        below: Weights whose key is below the bracket.
        inside: Weights whose key is in the bracket.
        found: The keys in the bracket, less its lower end; None where they were not collected.
        invalid: The tensor holds NaN.
    """

    size: int
    zeros: int
    below: int
    inside: int
    found: Array | None
    invalid: bool

    def split(self, key: int, low: int) -> tuple[int, int]:
        """Return how many keys are below ``key`` and how many equal it (in a bracket from low)."""
        if self.found is None:
            return self.below, self.inside
        offset = key - low
        less = int(np.count_nonzero(self.found < offset))
        return self.below + less, int(np.count_nonzero(self.found == offset))


def count(
    tensor: ir.TensorProtocol, space: Magnitude, low: int, high: int, *, room: int = 0
) -> Census:
    """Count the weights of a tensor below and inside the keys ``low`` to ``high``, in one pass.

    Args:
        tensor: Floats.
        space: Type of the keys.
        low: Lower end of the bracket, included.
        high: Upper end of the bracket, included.
        room: Collect the keys inside the bracket, unless there are more than this many.
    """
    zeros = below = inside = top = 0
    found: list[Array] = []
    for _, chunk in chunks(tensor, _CHUNK):
        keys = space.keys(chunk)
        zeros += keys.size - int(np.count_nonzero(keys))
        top = max(top, int(keys.max()))
        below += int(np.count_nonzero(keys < space.key_type(low)))
        # unsigned: what is below the bracket wraps around to a huge number
        np.subtract(keys, space.key_type(low), out=keys)
        member = keys <= space.key_type(high - low)
        number = int(np.count_nonzero(member))
        inside += number
        if inside <= room:
            found.append(keys[member])
    collected = inside <= room and high > low
    empty = np.empty(0, space.key_type)
    together = np.concatenate([empty, *found]) if collected else None
    return Census(tensor.size, zeros, below, inside, together, top > space.infinity)


def plan(tensors: Sequence[ir.TensorProtocol], sparsity: float) -> list[Plan]:
    """Choose the smallest weights of all tensors together, exactly ``round(sparsity * total)``.

    Zeros that are there already count. Of equal weights those go first that come first, in the
    order of the tensors and within a tensor by flat index, so the result is reproducible. Tensors
    with NaN are left out and not counted.

    Args:
        tensors: Float tensors; several element types are compared by their exact values.
        sparsity: Share of zeros afterwards, 0 <= sparsity < 1.
    """
    return _planned(tensors, lambda size: round(sparsity * size))


def plan_zeros(tensors: Sequence[ir.TensorProtocol], zeros: int) -> list[Plan]:
    """Choose like :func:`plan`, by the number of zeros afterwards: 0 <= zeros <= all weights."""
    return _planned(tensors, lambda size: min(zeros, size))


def _planned(tensors: Sequence[ir.TensorProtocol], rank: Callable[[int], int]) -> list[Plan]:
    active = [tensor for tensor in tensors if tensor.size]
    plans: dict[int, Plan] = {}
    while active:
        found = _plan_valid(active, rank(sum(tensor.size for tensor in active)))
        bad = [i for i, p in enumerate(found) if p.invalid]
        chosen = [(active[i], found[i]) for i in (bad or range(len(active)))]
        plans.update((id(tensor), p) for tensor, p in chosen)
        active = [t for i, t in enumerate(active) if i not in set(bad)] if bad else []
    nothing = Plan(None, 0, 0, 0)
    return [plans.get(id(tensor), nothing) for tensor in tensors]


def plan_below(tensor: ir.TensorProtocol, threshold: float) -> Plan:
    """Choose the weights of one tensor whose absolute value is below ``threshold`` (>= 0)."""
    if not tensor.size:
        return Plan(None, 0, 0, 0)
    space = Magnitude.of([tensor])
    key = min(space.at_least(threshold), space.infinity + 1)
    census = count(tensor, space, key, key)
    changed = census.below > census.zeros
    after = max(census.below, census.zeros)
    return Plan(Cut(key) if changed else None, census.size, census.zeros, after, census.invalid)


def _plan_valid(tensors: Sequence[ir.TensorProtocol], rank: int) -> list[Plan]:
    space = Magnitude.of(tensors)
    low, high = _bracket(tensors, space, rank)
    census = _census(tensors, space, low, high)
    if any(c.invalid for c in census):
        return [Plan(None, c.size, c.zeros, c.zeros, invalid=c.invalid) for c in census]
    if rank <= sum(c.zeros for c in census):
        return [Plan(None, c.size, c.zeros, c.zeros) for c in census]
    key = _select(census, rank, low, high)
    if key is None:
        found = _among_few(tensors, space, rank, (low, high))
        if found is None:
            low = _radix(tensors, space, rank)
            found = low, _census(tensors, space, low, low)
        key, census = found
        low = key
    return _share_out(tensors, space, census, rank=rank, split=(key, low))


def _census(
    tensors: Sequence[ir.TensorProtocol], space: Magnitude, low: int, high: int
) -> list[Census]:
    room = _COLLECT
    result = []
    for tensor in tensors:
        census = count(tensor, space, low, high, room=room)
        room = max(0, room - census.inside)
        result.append(census)
    return result


def _select(census: Sequence[Census], rank: int, low: int, high: int) -> int | None:
    """Return the key of the given rank (from 1), or None when the bracket does not tell."""
    place = rank - sum(c.below for c in census)
    if not 1 <= place <= sum(c.inside for c in census):
        return None
    if low == high:
        return low
    found = [c.found for c in census if c.found is not None]
    if len(found) < len(census):
        return None
    together = np.concatenate(found)
    together.partition(place - 1)
    return low + int(together[place - 1])


def _share_out(
    tensors: Sequence[ir.TensorProtocol],
    space: Magnitude,
    census: Sequence[Census],
    *,
    rank: int,
    split: tuple[int, int],
) -> list[Plan]:
    """Turn the key of the given rank into one cut per tensor; ``split`` is (key, bracket low)."""
    key, low = split
    parts = [c.split(key, low) for c in census]
    ties = rank - sum(below for below, _ in parts)
    plans = []
    for tensor, counts, (below, equal) in zip(tensors, census, parts, strict=True):
        take = min(ties, equal)
        ties -= take
        after = below + take
        cut = None
        if after > counts.zeros:
            own = Magnitude.of([tensor]).at_least(space.value(key))
            edge = tensor.size if take == equal else edge_of(tensor, own, take)
            cut = Cut(own, edge if equal else 0)
        plans.append(Plan(cut, counts.size, counts.zeros, max(after, counts.zeros)))
    return plans


def edge_of(tensor: ir.TensorProtocol, key: int, take: int) -> int:
    """Return the flat index just after the ``take``-th weight with this key."""
    if not take:
        return 0
    space = Magnitude.of([tensor])
    for start, chunk in chunks(tensor, _CHUNK):
        equal = space.keys(chunk) == space.key_type(key)
        number = int(np.count_nonzero(equal))
        if take <= number:
            return start + int(np.flatnonzero(equal)[take - 1]) + 1
        take -= number
    raise RuntimeError("the tensor changed while it was read")


def _bracket(tensors: Sequence[ir.TensorProtocol], space: Magnitude, rank: int) -> tuple[int, int]:
    """Return two keys that almost surely enclose the key of the given rank (from 1)."""
    total = sum(tensor.size for tensor in tensors)
    if total <= min(_WHOLE, _COLLECT):
        return 0, space.infinity
    runs = [space.keys(run) for run in _sample(tensors, total)]
    together = np.concatenate(runs)
    together.sort()
    middle = min(int(rank / total * together.size), together.size - 1)
    # Weights of one place resemble each other, so the error of the rank is taken from the places
    # and not from the binomial distribution; from neighbours among them, because the places are
    # spread evenly: differences between whole tensors add no error.
    shares = np.array([np.count_nonzero(run <= together[middle]) for run in runs], np.float64)
    variance = float(np.square(np.diff(shares)).sum()) / 2
    spread = _SIGMAS * variance**0.5 + 2
    low = max(0, int(middle - spread))
    high = min(together.size - 1, int(middle + spread) + 1)
    at_end = middle + spread >= together.size
    return (0 if low == 0 else int(together[low])), (
        space.infinity if at_end else int(together[high])
    )


def _sample(tensors: Sequence[ir.TensorProtocol], total: int) -> Iterator[Array]:
    """Yield runs of weights from places spread evenly, with a fixed random shift, over all."""
    stride = max(_RUN, total // min(_RUNS, max(_FEWEST, total // _PART)))
    # The sample decides how fast the answer is found and never what it is: no seed is needed.
    shifts = np.random.default_rng(0)
    for tensor in tensors:
        yield from _runs_of(tensor, stride, shifts)


def runs_of(tensor: ir.TensorProtocol, places: int) -> Iterator[Array]:
    """Yield short runs of weights from about so many places spread evenly over a tensor."""
    yield from _runs_of(tensor, max(_RUN, tensor.size // places), np.random.default_rng(0))


def _runs_of(
    tensor: ir.TensorProtocol, stride: int, shifts: np.random.Generator
) -> Iterator[Array]:
    places = np.arange(0, tensor.size, stride)
    places += shifts.integers(0, stride, places.size)
    yield from _runs(tensor, np.minimum(places, max(0, tensor.size - _RUN)))


def _runs(tensor: ir.TensorProtocol, places: Array) -> Iterator[Array]:
    if isinstance(tensor, FileTensor):
        kind = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
        for place in places.tolist():
            width = min(_RUN, tensor.size - place) * kind.itemsize
            raw = tensor.handle.read(tensor.offset + place * kind.itemsize, width)
            yield np.frombuffer(raw, kind)
    elif isinstance(tensor, MappedTensor):
        for start, chunk in chunks(tensor):
            here = places[(places >= start) & (places < start + chunk.size)] - start
            yield from (chunk[place : place + _RUN].copy() for place in here.tolist())
    else:
        flat = tensor.numpy().reshape(-1)
        yield from (flat[place : place + _RUN] for place in places.tolist())


def _among_few(
    tensors: Sequence[ir.TensorProtocol], space: Magnitude, rank: int, ends: tuple[int, int]
) -> tuple[int, list[Census]] | None:
    """Return the key of the given rank, and its census, where few are in the bracket.

    The first guess is the key of that rank in the sample; further passes over the weights halve the
    other candidates. None: not found.
    """
    total = sum(tensor.size for tensor in tensors)
    seen = np.concatenate([space.keys(run) for run in _sample(tensors, total)])
    seen.sort()
    guess = seen[min(int(rank / total * len(seen)), len(seen) - 1)]
    seen = np.unique(seen)
    candidates = seen[(seen >= ends[0]) & (seen <= ends[1])].tolist()
    if len(candidates) > _FEW:
        return None
    middle = candidates.index(guess) if guess in candidates else len(candidates) // 2
    while candidates:
        key = int(candidates[middle])
        census = [count(tensor, space, key, key) for tensor in tensors]
        below = sum(c.below for c in census)
        if below < rank <= below + sum(c.inside for c in census):
            return key, census
        candidates = candidates[:middle] if rank <= below else candidates[middle + 1 :]
        middle = len(candidates) // 2
    return None


def _radix(tensors: Sequence[ir.TensorProtocol], space: Magnitude, rank: int) -> int:
    """Return the key of the given rank (from 1), deciding 16 bits in each pass over the data."""
    prefix, place = 0, rank
    width = shift = 8 * space.float_type.itemsize
    while shift:
        shift -= _DIGIT
        histogram = np.zeros(1 << _DIGIT, np.int64)
        for tensor in tensors:
            for _, chunk in chunks(tensor, _CHUNK):
                keys = space.keys(chunk)
                if shift + _DIGIT < width:
                    keys = keys[(keys >> space.key_type(shift + _DIGIT)) == prefix]
                digits = (keys >> space.key_type(shift)) & space.key_type((1 << _DIGIT) - 1)
                histogram += np.bincount(digits.astype(np.intp), minlength=1 << _DIGIT)
        reached = np.cumsum(histogram)
        digit = int(np.searchsorted(reached, place))
        place -= int(reached[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
    return prefix
