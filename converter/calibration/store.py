"""Statistics that were gathered already: within one conversion, and in a file between them.

Within a conversion a model counts as the same while it has the same nodes and the very same
tensors. In the file entries are kept by digests of the model's and of the data's content, and of
what else decides the numbers.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration import fingerprint
from converter.calibration.kinds import STATISTICS
from converter.calibration.patches import Geometry
from converter.calibration.statistic import Request, Statistic
from converter.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset

logger = logging.getLogger(__name__)
_FORMAT = "converter.calibration/1"
_INDEX = "index"
_ARRAY = "converter.array"
_MOST_ENTRIES = 8
_MOST_BYTES = 4 << 30
Known = dict[Request, Statistic]


@dataclass
class _Recent:
    """Statistics of one model in memory.

    Attributes:
        model: Digest by identity of tensors.
        tensors: Those tensors: while they are held, nothing else has their identity.
        dataset: The very data set.
        known: What was gathered.
        key: Of the entry in the file, "" while nobody needed it.
    """

    model: str
    tensors: list[ir.TensorProtocol]
    dataset: Dataset
    known: Known = field(default_factory=dict)
    key: str = ""


class Store:
    """Remembers statistics.

    Args:
        path: The cache file, read now if it exists, or None.
        runtime: What else decides the numbers, such as the runtime's version.

    Attributes:
        notes: What to tell the user about the file.

    Raises:
        UsageError: There is a file that is no readable cache.
    """

    def __init__(self, path: Path | None = None, runtime: str = "") -> None:
        self.path = path
        self.runtime = runtime
        self.notes: list[str] = []
        self._recent: _Recent | None = None
        self._entries: dict[str, Known] = {}
        if path is not None and path.exists():
            self._entries = read(path)
        self._loaded = bool(self._entries)

    def known(self, model: ir.Model, dataset: Dataset, requests: Iterable[Request]) -> Known:
        """Return the statistics that are there already, for some of the requests."""
        recent = self._current(model, dataset)
        if self.path is not None and not recent.key:
            recent.key = self._key(model, dataset)
            found = self._entries.get(recent.key)
            if found:
                recent.known.update(found)
                self._note(f"statistics of the calibration data were taken from {self.path}")
            elif self._loaded:
                self._note(
                    f"{self.path} held statistics of another model, other data or another runtime; "
                    "those of this one were added"
                )
        return {r: recent.known[r] for r in requests if r in recent.known}

    def add(self, found: Known) -> None:
        """Remember statistics of the model and data last asked about; write the file if any.

        Raises:
            WriteError: The file cannot be written.
        """
        recent = self._recent
        assert recent is not None, "nothing was asked for"
        recent.known.update(found)
        if self.path is None:
            return
        self._entries.pop(recent.key, None)
        self._entries[recent.key] = recent.known
        for old in list(self._entries)[:-_MOST_ENTRIES]:
            del self._entries[old]
        write(self.path, self._entries)

    def _current(self, model: ir.Model, dataset: Dataset) -> _Recent:
        """Return what is remembered of this very model; the one before is forgotten."""
        tensors: list[ir.TensorProtocol] = []

        def identity(tensor: ir.TensorProtocol) -> str:
            tensors.append(tensor)
            return str(id(tensor))

        digest, recent = fingerprint.of_model(model, identity), self._recent
        if recent is None or recent.model != digest or recent.dataset is not dataset:
            recent = self._recent = _Recent(digest, tensors, dataset)
        return recent

    def _key(self, model: ir.Model, dataset: Dataset) -> str:
        parts = (fingerprint.of_model(model), fingerprint.of_data(dataset), self.runtime)
        return " ".join(parts)

    def _note(self, text: str) -> None:
        logger.info(text)
        if text not in self.notes:
            self.notes.append(text)


def read(path: Path) -> dict[str, Known]:
    """Read a cache file.

    Returns:
        Statistics by request, by key of the entry.

    Raises:
        UsageError: It is no cache, it is damaged, or it is too large.
    """
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {
                key: dict(_statistic(item, arrays) for item in items)
                for key, items in _index(arrays)["entries"].items()
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"the calibration cache cannot be read: {error}",
            where=str(path),
            allowed="a file that --calibration-cache wrote, or a new one",
            hint="delete the file, or name another one",
        ) from error


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > _MOST_BYTES:
        raise ValueError(f"it holds {size >> 20} MiB")


def _index(arrays: Any) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(arrays[_INDEX].tobytes())
    if index["format"] != _FORMAT:
        raise ValueError(f"its format is {index['format']!r}")
    return index


def write(path: Path, entries: Mapping[str, Known]) -> None:
    """Write a cache file, replacing an old one as a whole.

    Raises:
        WriteError: It cannot be written.
    """
    from converter.io.atomic import replace_file

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    index = {
        "format": _FORMAT,
        "entries": {
            key: [_described(request, statistic, arrays) for request, statistic in known.items()]
            for key, known in entries.items()
        },
    }
    arrays[_INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with replace_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _described(
    request: Request, statistic: Statistic, arrays: dict[str, np.ndarray[Any, Any]]
) -> dict[str, Any]:
    state = dict(statistic.state())
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            key = f"a{len(arrays)}"
            arrays[key], state[name] = value, {_ARRAY: key}
    geometry = request.geometry.state() if request.geometry is not None else None
    return {"request": {**request._asdict(), "geometry": geometry}, "state": state}


def _statistic(item: Mapping[str, Any], arrays: Any) -> tuple[Request, Statistic]:
    fields = dict(item["request"])
    if fields["geometry"] is not None:
        fields["geometry"] = Geometry.restore(fields["geometry"])
    state = {
        name: arrays[value[_ARRAY]] if isinstance(value, dict) and _ARRAY in value else value
        for name, value in item["state"].items()
    }
    return Request(**fields), STATISTICS[fields["kind"]].restore(state)
