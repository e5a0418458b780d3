"""Bad sample files end in our data error, exit code 5: no crash, hang, pickle or blow-up."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import model_from_text

from converter.core.context import Limits
from converter.data.sources import open_data
from converter.errors import DataError
from converter.execution import sandbox

MODEL = model_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
LIMITS = Limits(seconds=10, memory_bytes=1 << 30)
MARK = "pickle-was-run"


class Evil:
    def __reduce__(self):
        return (os.mkdir, (MARK,))


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _headed(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _shape(shape: str, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


def _zip(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def _arrays(**arrays) -> bytes:
    return _zip(*((f"{name}.npy", _npy(array)) for name, array in arrays.items()))


def _twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        return _zip(("x.npy", _npy(GOOD)), ("x.npy", _npy(GOOD + 1)))


def _bomb() -> bytes:
    """An array of 384 MiB of zeros in 2 MiB."""
    rows = 32 << 20
    header = _headed(_shape(f"({rows}, 3)"))
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as member,
    ):
        member.write(header)
        for _ in range(rows // 1024):
            member.write(bytes(12 * 1024))
    return buffer.getvalue()


GOOD = np.zeros((4, 3), np.float32)
BAD: dict[str, bytes | Callable[[], bytes]] = {
    "empty": b"",
    "text": b"x,y\n1,2\n",
    "bare pickle": pickle.dumps(Evil()),
    "bare npy of objects": _npy(np.array([Evil()], object)),
    "objects": _arrays(x=np.array([Evil()] * 4, object)),
    "pickle as a member": _zip(("x.npy", pickle.dumps(Evil()))),
    "code in the header": _zip(("x.npy", _headed(f"__import__('os').mkdir('{MARK}')"))),
    "deep header": _zip(("x.npy", _headed("(" * 5000 + ")" * 5000))),
    "shape of 2^60": _zip(("x.npy", _headed(_shape("(1152921504606846976, 3)"), bytes(48)))),
    "shape that wraps": _zip(("x.npy", _headed(_shape("(4294967296, 4294967296)"), bytes(48)))),
    "shape negative": _zip(("x.npy", _headed(_shape("(-4, -3)"), bytes(48)))),
    "shape of text": _zip(("x.npy", _headed(_shape("('a', 3)"), bytes(48)))),
    "cut": _zip(("x.npy", _npy(GOOD)[:-3])),
    "longer than its shape": _zip(("x.npy", _npy(GOOD) + bytes(12))),
    "archive cut": _arrays(x=GOOD)[:-30],
    "archive empty": _zip(),
    "damaged": _arrays(x=GOOD).replace(bytes(20), b"\1" * 20, 1),
    "bomb": _bomb,
    "twice": _twice,
    "not an array": _zip(("x.txt", b"hello")),
    "wrong name": _arrays(z=GOOD),
    "name from above": _zip(("../x.npy", _npy(GOOD))),
    "one name too many": _arrays(x=GOOD, other=GOOD),
    "wrong rank": _arrays(x=np.zeros((4, 3, 2, 2), np.float32)),
    "wrong size": _arrays(x=np.zeros((4, 5), np.float32)),
    "text as numbers": _arrays(x=np.full((4, 3), "a")),
    "structs": _arrays(x=np.zeros(4, [("a", "<f4"), ("b", "<f4")])),
    "complex": _arrays(x=np.zeros((4, 3), np.complex64)),
    "dates": _arrays(x=np.zeros((4, 3), "M8[s]")),
    "no samples": _arrays(x=np.zeros((0, 3), np.float32)),
    "not a number": _arrays(x=np.full((4, 3), np.nan, np.float32)),
    "infinite": _arrays(x=np.full((4, 3), np.inf, np.float32)),
    "labels do not fit": _arrays(x=GOOD, labels=np.zeros(9, np.int64)),
}


def _read(path: Path) -> int:
    os.chdir(path.parent)
    return sum(batch.samples for batch in open_data(str(path), MODEL))


@pytest.mark.parametrize("name", BAD)
def test_bad_samples(name: str, tmp_path: Path):
    content = BAD[name]
    path = tmp_path / "data.npz"
    path.write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(DataError) as caught:
        sandbox.call(_read, path, limits=LIMITS)
    assert caught.value.exit_code == 5
    assert not (tmp_path / MARK).exists()
    assert len(str(caught.value)) < 2000


def test_other_kinds_of_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("pipe.npz", "folder.npz", "zero.npz", "none.npz"):
        with pytest.raises(DataError):
            sandbox.call(_read, tmp_path / name, limits=LIMITS)


def test_good_samples(tmp_path: Path):
    path = tmp_path / "data.npz"
    path.write_bytes(_arrays(x=GOOD))
    assert sandbox.call(_read, path, limits=LIMITS) == 4
