"""What ``pack`` says about its work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from converter.core.tensors import chunks
from passes.storage.choose import Chosen
from passes.storage.content import Values
from passes.storage.find import Place

if TYPE_CHECKING:
    from passes.storage.measure import RunTime
    from passes.storage.prove import Proof

_LISTED = 12
_BITS: dict[Values, int] = {"float16": 16, "int8": 8, "int4": 4}
_MUCH = 0.9
"""Only what makes the file smaller than this share of now is worth a sentence."""


def told(members: Sequence[Chosen], proof: Proof, measured: RunTime | None) -> list[str]:
    """Say what was stored how, and what is known about the result."""
    listed = sorted(members, key=lambda m: (m.after - m.before, m.index))
    lines = [f"{m.name}: {_size(m.before)} -> {_size(m.after)}, {m.form}" for m in listed]
    more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    notes = ["stored: " + "; ".join(lines[:_LISTED]) + more]
    worst = max(members, key=lambda m: (m.error, -m.index))
    if worst.error:
        notes.append(
            f"rounded weights differ by at most {worst.error:.2g} of the largest weight of their "
            f"tensor ({worst.name})"
        )
    signed = sum(member.signed for member in members)
    if signed:
        notes.append(f"negative zeros of {signed} weights became zeros, which add up to the same")
    notes.append(
        "proven: at the optimisation levels basic and all onnxruntime runs the same operators on "
        + ("the rounded numbers" if worst.error else "the same numbers")
        + " as in a plain file"
    )
    elements = sum(m.size for m in members)
    longer = max(0.0, proof.seconds[1] - proof.seconds[0])
    expected = sum(m.nanoseconds * m.size for m in members) / elements
    notes.append(
        f"opening the file takes {1e3 * longer:.1f} ms longer: {1e9 * longer / elements:.1f} ns "
        f"per element that is decoded (expected {expected:.1f} ns, and 0.1 ms per node)"
    )
    if measured is not None:
        notes.append(
            f"run time: {measured.ratio:.3f} times that of the plain file, measured in turn"
        )
    return notes


def nothing(places: Sequence[Place], values: Values) -> list[str]:
    """Say why nothing was stored differently."""
    if not places:
        return ["there is no constant that is worth packing"]
    text = "packing brings nothing: there are too few zeros and repeated values"
    return [text, *alternatives(places, values, sum(p.tensor.nbytes for p in places))]


def alternatives(places: Sequence[Place], values: Values, now: int) -> list[str]:
    """Estimate what rounding the weights would bring."""
    if values != "exact":
        return []
    lines = []
    for kind, bits in _BITS.items():
        estimate = sum(_rounded_bytes(place, bits) for place in places)
        if estimate < _MUCH * now:
            lines.append(f"values={kind}: about {_size(estimate)}")
    return [f"the constants take {_size(now)}; with rounded weights: {', '.join(lines)}"] * bool(
        lines
    )


def _rounded_bytes(place: Place, bits: int) -> int:
    """Estimate the bytes of a constant whose numbers take so many bits."""
    tensor = place.tensor
    if place.view is None or tensor.dtype.itemsize * 8 <= bits:
        return int(tensor.nbytes)
    kept = sum(int(np.count_nonzero(chunk)) for _, chunk in chunks(tensor))
    return min(tensor.size * bits, tensor.size + kept * bits) // 8 + 4 * place.rows


def _size(nbytes: float) -> str:
    """Write a number of bytes for people."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes:.0f} bytes"
