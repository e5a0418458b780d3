"""How much of the original's values lies beyond the grids of a quantized model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.execution import sandbox
from converter.search.debug import Comparison, grid_ends
from converter.search.grids import read_pair
from converter.search.pairs import pair_values
from converter.search.wiring import Assembly, assemble

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset, RunSettings

MOST_SAMPLES = 16


def find_saturation(
    original: ir.Model, quantized: ir.Model, dataset: Dataset, *, settings: RunSettings
) -> dict[str, float]:
    """Return the share of each value's elements beyond its grid, the largest first.

    Args:
        original: Runs on the samples; every value is looked at where it is still a float.
        quantized: Gives the grids.
        dataset: A few batches are used.
        settings: Limits, workspace.

    Returns:
        Shares above 0 and up to 1 by the original's value.

    Raises:
        ModelError: The original cannot be run.
    """
    import onnxruntime  # noqa: F401 - imported here, the child has it

    from converter.io import formats
    from converter.io.layout import Layout

    with tempfile.TemporaryDirectory(
        prefix="saturation-", dir=settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        paths = Path(folder) / "first.onnx", Path(folder) / "second.onnx"
        for model, path in zip((original, quantized), paths, strict=True):
            formats.save(model, path, layout=Layout(external_data="yes"))
        found = sandbox.call(
            _count,
            Comparison(*paths, settings, MOST_SAMPLES),
            dataset,
            limits=settings.limits,
            on_progress=lambda _: None,
            task="looking for values beyond their grids",
        )
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _count(
    work: Comparison, dataset: Dataset, *, progress: Callable[[int], None]
) -> dict[str, float]:
    import onnx

    from converter.execution.session import Session

    batches = list(islice(dataset, work.samples))
    fed = set(batches[0].inputs) if batches else set()
    a, b = read_pair(work.first, work.second, fed)
    grids = {
        name: ends
        for name, pair in pair_values(a, b).items()
        if name in a.maker and (ends := grid_ends(b, pair)) is not None
    }
    if not grids or not batches:
        return {}
    model, names = assemble(Assembly((a,), ({},), {}), list(grids))
    path = work.first.parent / "values.onnx"
    onnx.save(model, str(path))
    session = Session(path, custom_op_library=work.settings.custom_op_library)
    beyond, seen = dict.fromkeys(grids, 0), dict.fromkeys(grids, 0)
    for batch in batches:
        found = session.run({port.name: batch.inputs[port.name] for port in session.inputs}, names)
        for (name, ends), array in zip(grids.items(), found.values(), strict=True):
            beyond[name] += outside(array, ends)
            seen[name] += array.size
        progress(0)
    return {name: count / seen[name] for name, count in beyond.items() if count}


def outside(array: np.ndarray[Any, Any], ends: tuple[float, float]) -> int:
    """Count the elements beyond both ends of a grid."""
    low, high = ends
    if array.size == 0 or (array.min() >= low and array.max() <= high):
        return 0
    return int(np.count_nonzero((array < low) | (array > high)))
