"""Targets of Reshape: certain dimensions as the integers that the operator understands."""

from __future__ import annotations

from passes.rewriting.facts import Dims


def target_of(content: Dims, dims: Dims | None) -> list[int] | None:
    """Write dimensions as numbers, 0 (as the input's) and -1, or None where that is not certain.

    Args:
        content: What the result has to be; sizes that are unknown are those of a tensor.
        dims: Dimensions of the input.
    """
    target: list[int] = []
    for index, size in enumerate(content):
        if isinstance(size, int):
            target.append(size)
        elif dims is not None and index < len(dims) and dims[index] is size:
            target.append(0)
        else:
            target.append(-2)
    if -2 not in target:
        return target
    # An inferred size is certain only if no other one can be 0 in a run with an empty batch.
    if target.count(-2) > 1 or any(size <= 0 for size in target if size != -2):
        return None
    return [-1 if size == -2 else size for size in target]
