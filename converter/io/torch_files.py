"""Files of PyTorch: which are refused and why, and ``.pt2`` programs looked at before torch is.

A checkpoint (``.pt``, ``.pth``, ``.ckpt``, ``.bin``, ``.pkl``) is a pickle: reading it may run any
code, and it holds weights without a graph. A ``.pt2`` file of ``torch.export.save`` holds a graph
as JSON and weights as plain bytes, but torch's own loader trusts it: it unpickles parts that say
so, evaluates expressions, resolves names of functions and loads shared libraries. So everything in
the archive is checked first, and whatever could make that loader run code is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from converter.errors import FormatError
from converter.io.limits import quoted

PICKLES = frozenset({".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_PICKLE_MARKS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ZIP = b"PK\x03\x04"
_MOST_NAMES = 100_000
FACTORY = """\
write a factory, e.g. in net.py: \
import torch; from mymodel import Net; \
def factory(): net = Net(); \
net.load_state_dict(torch.load("weights.pt", weights_only=True)); \
return net, (torch.zeros(1, 3, 224, 224),) \
- and convert that: convert net:factory OUT.onnx"""


def is_program(path: Path) -> bool:
    """Tell by its content whether a file is an exported program (``.pt2``), whatever its name."""
    return _kind(path) == _PROGRAM


def refuse_checkpoint(path: Path) -> None:
    """Refuse files that hold pickles, by their content or their suffix.

    Raises:
        FormatError: Says what the file is and how to get at the model all the same.
    """
    kind = _kind(path)
    if kind == _PROGRAM:
        return
    if kind:
        raise _refused(kind, path)
    if path.suffix.lower() in PICKLES and path.is_file():
        raise _refused("by its name a PyTorch checkpoint", path)


def _kind(path: Path) -> str:
    """Say what a file of PyTorch is; empty for all others, also for what cannot be read."""
    head = _head(path)
    if head.startswith(_PICKLE_MARKS):
        return "a Python pickle, perhaps a PyTorch checkpoint"
    if not head.startswith(_ZIP):
        return ""
    names = _names(path)
    return next((kind for test, kind in _ZIPS if any(map(test, names))), "")


_PROGRAM = "an exported program"
_ZIPS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda name: name == "models/model.json", _PROGRAM),
    (lambda name: name == "serialized_exported_program.json", _PROGRAM),  # before torch 2.8
    (lambda name: name == "constants.pkl" or name.startswith("code/"), "a TorchScript archive"),
    (lambda name: name == "data.pkl", "a PyTorch checkpoint"),
)


def _refused(what: str, path: Path) -> FormatError:
    return FormatError(
        f"the file is {what}; it is never opened, because unpickling can run any code, and a "
        "checkpoint holds weights without a graph",
        where=quoted(str(path)),
        allowed="ONNX, a .pt2 file of torch.export.save, or MODULE:FACTORY",
        hint=FACTORY,
    )


def _head(path: Path) -> bytes:
    """Return the first bytes; nothing for what is no readable regular file: loading says why."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError:
        return b""


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:_MOST_NAMES]
            return [name.split("/", 1)[-1] for name in names]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return []
