"""Run an IR model in a child: write it where onnxruntime can open it, bring back results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.execution import sandbox
from converter.io.meta import DATA_FILES, NOTES, PATH

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from converter.core.context import RunSettings

_PROTOBUF_SUFFIXES = frozenset({".onnx", ".pb"})


def run_model(
    model: ir.Model,
    feeds: Iterable[Mapping[str, Any]],
    outputs: Sequence[str] | None = None,
    *,
    settings: RunSettings,
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Run a model once per feed in a child process.

    Args:
        model: Left as it is.
        feeds: Arrays by input name.
        outputs: Names of graph outputs or of any other value of the main graph; None: the outputs.
        settings: Limits, threads and folder for temporary files.

    Returns:
        One dict of arrays per feed.

    Raises:
        ModelError: The model cannot be opened or run, or crashes onnxruntime.
        BatchError: onnxruntime refuses a feed.
    """
    import onnxruntime  # noqa: F401 - imported here, every child has it

    with tempfile.TemporaryDirectory(prefix="run-", dir=settings.workspace) as folder:
        path = materialize(with_outputs(model, outputs), Path(folder))
        found: list[dict[str, Any]] = sandbox.call(
            _run,
            path,
            feeds,
            outputs,
            settings=settings,
            limits=settings.limits,
            on_progress=lambda _: None,
        )
    return found


def _run(
    path: Path,
    feeds: Iterable[Mapping[str, Any]],
    outputs: Sequence[str] | None,
    *,
    settings: RunSettings,
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    from converter.execution.session import Session

    session = Session(path, threads=settings.threads, custom_op_library=settings.custom_op_library)
    found = []
    for feed in feeds:
        found.append(session.run(feed, outputs))
        progress(1)
    return found


def with_outputs(model: ir.Model, names: Sequence[str] | None) -> ir.Model:
    """Return a model that has the named values of the main graph among its outputs.

    Raises:
        KeyError: A name is no value of the main graph.
    """
    have = {value.name for value in model.graph.outputs}
    missing = [name for name in names or () if name not in have]
    if not missing:
        return model
    model = model.clone()
    values = {value.name: value for value in model.graph.inputs}
    for node in model.graph:
        values.update((value.name, value) for value in node.outputs)
    model.graph.outputs.extend(values[name] for name in missing)
    return model


def materialize(model: ir.Model, folder: Path) -> Path:
    """Return a file with the model that onnxruntime can open.

    A model as it came from loading lies in its file already; every other one is written into
    ``folder``. A model that was edited in place after loading must be cloned first.
    """
    path = model.meta.get(PATH)
    if path is not None and not model.meta.get(NOTES):
        source = Path(str(path))
        if (
            source.suffix.lower() in _PROTOBUF_SUFFIXES
            and source.is_file()
            and _plain(model, source)
        ):
            return source
    from converter.io import formats

    folder = Path(tempfile.mkdtemp(prefix="model-", dir=folder))
    target = folder / "model.onnx"
    formats.save(model, target)
    return target


def _plain(model: ir.Model, source: Path) -> bool:
    """Tell whether onnxruntime opens the external data: it refuses links that we may accept."""
    files = [Path(str(file)) for file in model.graph.meta.get(DATA_FILES, ())]
    folder = source.parent
    return not files or all(
        file.resolve() == file and file.is_relative_to(folder) for file in (source, *files)
    )
