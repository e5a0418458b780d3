"""Opening samples: what ``--data`` and ``data=`` accept.

    FILE.npz            arrays named after the model's inputs, and optionally ``labels``
    FOLDER              npz files, sorted by name; or images together with ``image=``
    module:function     a function that returns an iterable of feeds, called for every iteration
    synthetic           made up from the model's own shapes
    smooth              the same, but pictures, waves and sequences look like signals; the scale is
                        what the model says, or given: smooth,mean=0.45/0.46/0.41,std=0.25
    {name: array}, array, [feed, ...], a data set                     (in Python)

An array with one axis more than its input holds complete inputs as its elements. An array with the
input's own number of axes is cut along axis 0, ``batch`` samples per run, which the model must
allow: its axis 0 is dynamic or 1 (or a fixed k: then it is cut into groups of k). In a folder a
file whose arrays cannot be cut alike is one complete feed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.context import Dataset
from converter.core.factory import resolve, split_reference
from converter.data import dataset as d
from converter.data import ports as p
from converter.data.npz import read_columns
from converter.data.ports import Port
from converter.errors import BatchError, DataError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

LABELS = "labels"
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
)


def open_data(  # noqa: PLR0913 - one argument per word of the command line
    spec: Any,
    model: ir.Model,
    *,
    batch: int = 1,
    samples: int | None = None,
    labels: str | None = None,
    image: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Open samples for a model and check all of them.

    Args:
        spec: What to open; see the module.
        model: Whose inputs the samples must fit.
        batch: Samples per run.
        samples: Use at most so many, from the first on.
        labels: Name of the array with labels; default ``labels`` unless an input has that name.
        image: Preprocessing of a folder of images; see :mod:`converter.data.images`.
        seed: Of made-up inputs.

    Returns:
        A re-iterable, picklable data set.

    Raises:
        DataError: The data is missing, damaged, empty, or does not fit the model.
        UsageError: An argument is out of range.
    """
    for value, option in ((batch, "--batch"), (samples, "--samples")):
        if value is not None and value < 1:
            raise UsageError(f"{option} is {value}", allowed="1 or more")
    if _is_dataset(spec):
        return _checked(spec)
    opener = _Opener(p.ports_of(model), batch, samples, labels)
    if isinstance(spec, str | os.PathLike):
        text = os.fspath(spec)
        if text == "synthetic" and not Path(text).exists():
            from converter.data.synthetic import make_synthetic

            return make_synthetic(model, opener.ports, batch=batch, samples=samples, seed=seed)
        if text.split(",")[0] == "smooth" and not Path(text).exists():
            from converter.data.smooth import SAMPLES, make_smooth

            count = SAMPLES if samples is None else samples
            scale = _scale(text)
            return make_smooth(model, opener.ports, batch=batch, samples=count, seed=seed, **scale)
        return opener.path(str(text), image)
    return opener.value(spec)


def _scale(text: str) -> dict[str, tuple[float, ...]]:
    """Read ``smooth,mean=0.45/0.46/0.41,std=0.25``."""
    found: dict[str, tuple[float, ...]] = {}
    for option in text.split(",")[1:]:
        key, _, numbers = option.partition("=")
        try:
            found[key] = tuple(float(number) for number in numbers.split("/"))
        except ValueError:
            key = ""
        if key not in {"mean", "std"}:
            raise UsageError(
                f"{option!r} is no option of made-up samples",
                where=f"--data {text}",
                allowed="mean=... and std=..., one number or one per channel",
                hint='for example "smooth,mean=0.45/0.46/0.41,std=0.25"',
            )
    return found


def _is_dataset(spec: Any) -> bool:
    return all(hasattr(spec, name) for name in ("samples", "synthetic", "description", "__iter__"))


def _checked(dataset: Dataset) -> Dataset:
    if not dataset.samples:
        raise DataError("the data holds no samples", where=dataset.description)
    return dataset


class _Opener:
    """Opens one specification; holds what all kinds have in common."""

    def __init__(
        self, ports: Mapping[str, Port], batch: int, samples: int | None, labels: str | None
    ) -> None:
        if labels is not None and labels in ports:
            raise BatchError(
                f"{labels!r} is an input of the model, not an array of labels",
                where=f"--labels {labels}",
                allowed="the name of an array that is no input",
            )
        self.ports = ports
        self.batch = batch
        self.samples = samples
        self.labels = labels if labels is not None else LABELS if LABELS not in ports else None
        self.labels_required = labels is not None

    def path(self, text: str, image: str | None) -> Dataset:
        path = Path(text)
        if path.is_dir():
            return self._folder(path, image)
        if image is not None:
            raise DataError("preprocessing was given and the data is no folder", where=text)
        reference = split_reference(text)
        if reference is not None:
            return self._callable(*reference)
        if path.exists() and path.is_file() and path.suffix.lower() != ".npz":
            raise DataError(
                f"data of type {path.suffix or '(no suffix)'} cannot be read",
                where=text,
                allowed="FILE.npz, a folder, module:function, synthetic or smooth",
            )
        table = self._table(path)
        return replace(table.first(self.samples).check(), description=f"{path.name} (npz)")

    def value(self, spec: Any) -> Dataset:
        """Open arrays that are in memory already, or a function."""
        where = "data given from Python"
        if callable(spec):
            return self._feeds(spec, f"function {getattr(spec, '__name__', 'given')}")
        if isinstance(spec, np.ndarray) or hasattr(spec, "__array__"):
            spec = {d.only_input(self.ports, where): spec}
        if isinstance(spec, Mapping):
            columns = {str(k): d.ArrayColumn(_array(k, v, where)) for k, v in spec.items()}
            table = self._with_labels(dict(columns), where).first(self.samples).check()
            return replace(table, description="arrays given from Python")
        if isinstance(spec, Sequence) and not isinstance(spec, bytes):
            return self._feeds(partial(list, spec), "feeds given from Python")
        raise DataError(
            f"{type(spec).__name__} cannot be used as data",
            allowed="a path, a dict of arrays, an array, a list of feeds, a function or a data set",
            hint="wrap a generator in a function that makes a new one"
            if isinstance(spec, Iterable)
            else "",
        )

    def _callable(self, module: str, function: str) -> Dataset:
        where = f"--data {module}:{function}"
        try:
            found = resolve(module, function)
        except Exception as error:
            # code of the user's own: whatever it raises is a matter of the data
            raise DataError(
                f"the function cannot be imported: {type(error).__name__}: {error}",
                where=where,
                hint="check the name, and that the module lies in the current folder or PYTHONPATH",
            ) from error
        if not callable(found):
            raise DataError("it is no function", where=where, allowed="module:function")
        return self._feeds(found, f"{module}:{function}")

    def _feeds(self, source: Any, description: str) -> Dataset:
        feeds = d.Feeds(source, self.ports, self.labels, self.samples, description=description)
        checked = feeds.check()
        if self.labels_required and not checked.labelled:
            raise BatchError(f"not every feed has labels {self.labels!r}", where=description)
        return checked

    def _table(self, path: Path) -> d.Table:
        return self._with_labels(dict(read_columns(path)), str(path))

    def _with_labels(self, columns: dict[str, Any], where: str) -> d.Table:
        labels = columns.pop(self.labels, None) if self.labels is not None else None
        if labels is None and self.labels_required:
            raise BatchError(
                f"there is no array {self.labels!r} with labels",
                where=where,
                allowed=", ".join(columns),
                hint=p.nearest(str(self.labels), columns),
            )
        return d.make_table(columns, self.ports, batch=self.batch, labels=labels, where=where)

    # --- folders ---------------------------------------------------------------------------------

    def _folder(self, folder: Path, image: str | None) -> Dataset:
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - sorted by name, not by path
        except OSError as error:
            raise DataError(
                f"the folder cannot be read: {error.strerror}", where=str(folder)
            ) from error
        archives = [folder / n for n in names if n.lower().endswith(".npz")]
        pictures = any(Path(n).suffix.lower() in IMAGE_SUFFIXES for n in names)
        if image is not None or (pictures and not archives):
            from converter.data.images import open_images

            return open_images(folder, self.ports, image, batch=self.batch, samples=self.samples)
        if not archives:
            raise DataError(
                "the folder holds no samples",
                where=str(folder),
                allowed="npz files, or images together with --image",
            )
        return self._files(folder, archives)

    def _files(self, folder: Path, files: Sequence[Path]) -> Dataset:
        parts: list[d.Table] = []
        left = self.samples
        for path in files:
            if left is not None and left <= 0:
                break
            part = self._file(path).first(left).check()
            parts.append(part)
            left = None if left is None else left - part.samples
        labelled = [part.labelled for part in parts]
        if any(labelled) and not all(labelled):
            raise BatchError(
                "some files have labels and some have none",
                where=str(files[labelled.index(False)]),
                allowed="labels in every file or in none",
            )
        description = f"{folder.name} ({len(parts)} npz files)"
        return d.Chain(tuple(parts), description=description)

    def _file(self, path: Path) -> d.Table:
        """Cut a file into samples; one whose arrays do not agree on that is a complete feed."""
        columns = dict(read_columns(path))
        try:
            return self._with_labels(dict(columns), str(path))
        except BatchError as error:
            labels = columns.pop(self.labels, None) if self.labels is not None else None
            whole = self._complete_feed(columns, labels, str(path))
            if whole is None:
                raise error from None
            return whole

    def _complete_feed(self, columns: Mapping[str, Any], labels: Any, where: str) -> d.Table | None:
        try:
            p.check_names(columns, self.ports, where)
            shapes = {name: column.shape for name, column in columns.items()}
            p.check_shapes(shapes, self.ports, where)
        except BatchError:
            return None
        cuts = tuple(d.Cut(c, self.ports[n], rows=0) for n, c in columns.items())
        table = d.Table(cuts, 1, where=where)
        if labels is None:
            return table
        count = labels.shape[0] if labels.shape else 0
        return replace(table, labels=labels, labels_per_unit=max(1, count))


def _array(name: object, value: Any, where: str) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise BatchError(f"array {name!r} is no array: {error}", where=where) from error
