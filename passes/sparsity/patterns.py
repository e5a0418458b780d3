"""The units in which weights go: one by one, N of M, blocks, or whole rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pattern:
    """A pattern as given: ``unstructured``, ``2:4``, ``1x4``, ``4x4``, ``row``.

    Attributes:
        kind: Which of them.
        first: Of N:M the zeros among ``second`` neighbours; of a block its rows.
        second: M, or the columns of a block.

    Rows are outputs of the layer and columns the axis that products are summed over (for Conv:
    input channels and kernel, flattened), however the tensor is stored.
    """

    kind: Literal["unstructured", "n:m", "block", "row"] = "unstructured"
    first: int = 1
    second: int = 1
