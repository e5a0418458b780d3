"""How many zeros every tensor has and gets, for the steps of pruning and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.contract import Skip
from converter.core.tensors import chunks
from passes.allocation.order import Cut, Plan, plan, plan_below
from passes.importance.magnitude import Magnitude

if TYPE_CHECKING:
    from passes.removal.account import Account
    from passes.sparsity.layers import Layer
    from passes.sparsity.masks import Choice

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Counted:
    """What happens to one tensor.

    Attributes:
        layer: The tensor.
        before: Zeros that are there.
        after: Zeros afterwards.
        choice: What goes; None: the tensor stays as it is.
    """

    layer: Layer
    before: int
    after: int
    choice: Choice

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(self.layer.tensor.size)


def census(layers: Sequence[Layer]) -> tuple[list[Layer], list[int], list[Skip]]:
    """Read all tensors once, in chunks: return those without NaN, their zeros, and the others."""
    sound, zeros, skipped = [], [], []
    for layer in layers:
        nonzero, largest = 0, 0
        space = Magnitude.of([layer.tensor])
        for _, chunk in chunks(layer.tensor):
            keys = space.keys(chunk)
            nonzero += int(np.count_nonzero(keys))
            largest = max(largest, int(keys.max()))
        if largest > space.infinity:
            skipped.append(Skip(layer.name, "holds NaN"))
            continue
        sound.append(layer)
        zeros.append(int(layer.tensor.size) - nonzero)
    return sound, zeros, skipped


def by_size(layers: Sequence[Layer], share: float, *, together: bool) -> list[Plan]:
    """Choose the smallest weights in a single pass over all tensors, whatever their size.

    Args:
        layers: The tensors.
        share: Zeros afterwards.
        together: One threshold for all; False: the share in each.
    """
    tensors = [layer.tensor for layer in layers]
    if together:
        return plan(tensors, share)
    return [plan([tensor], share)[0] for tensor in tensors]


def below(layers: Sequence[Layer], threshold: float) -> list[Plan]:
    """Choose all weights whose absolute value is below a threshold."""
    return [plan_below(layer.tensor, threshold) for layer in layers]


def planned(layers: Sequence[Layer], plans: Sequence[Plan]) -> tuple[list[Counted], list[Skip]]:
    """Put plans into the form of counts; tensors with NaN are left out."""
    found, skipped = [], []
    for layer, each in zip(layers, plans, strict=True):
        if each.invalid:
            skipped.append(Skip(layer.name, "holds NaN"))
        else:
            found.append(Counted(layer, each.zeros_before, each.zeros_after, each.cut))
    return found, skipped


def chosen(
    layers: Sequence[Layer], zeros: Sequence[int], wanted: Array, choices: Sequence[Choice]
) -> list[Counted]:
    """Put masks into the form of counts.

    Args:
        layers: The tensors.
        zeros: That are there.
        wanted: Zeros that each gets: int64 (layers,).
        choices: What goes; masks include the zeros that are there.
    """
    found = []
    for layer, before, after, choice in zip(layers, zeros, wanted.tolist(), choices, strict=True):
        reached = before
        if isinstance(choice, Cut):
            reached = max(before, after)
        elif choice is not None:
            reached = int(np.count_nonzero(choice))
        found.append(Counted(layer, before, reached, choice))
    return found


def tell(account: Account, first: Sequence[int], last: Sequence[Counted]) -> None:
    """Say how many weights are zero now, and where.

    Args:
        account: Takes what is to be told.
        first: Zeros of every tensor before the pass.
        last: What the last step did.
    """
    total = sum(each.size for each in last)
    before, after = sum(first), sum(each.after for each in last)
    account.counts |= {
        "weights_zeroed": after - before,
        "weights_total": total,
        "zeros_before": before,
        "zeros_after": after,
        "sparsity": after / total if total else 0.0,
    }
    if after > before:
        account.notes.append(
            "zeros make onnxruntime no faster, its CPU kernels are dense, and files only smaller "
            "with pack behind them; prune_channels makes models faster"
        )
    dead = sum(1 for each in last if each.size and each.after == each.size)
    if dead:
        tensors = "1 weight tensor is" if dead == 1 else f"{dead} weight tensors are"
        account.notes.append(f"{tensors} zero throughout now: the share is too high")
    account.notes += _spread(last)


def _spread(last: Sequence[Counted]) -> list[str]:
    """Name the tensors with the least and with the most zeros."""
    shares = sorted((each.after / each.size, i) for i, each in enumerate(last) if each.size)
    if len(shares) < 2 or shares[-1][0] - shares[0][0] < 0.01:
        return []
    (low, first), (high, second) = shares[0], shares[-1]
    return [
        f"zeros by tensor: from {100 * low:.0f} % ({last[first].layer.name}) "
        f"to {100 * high:.0f} % ({last[second].layer.name})"
    ]
