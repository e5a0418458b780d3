"""npz files that are damaged or made to do harm."""

from __future__ import annotations

import io
import os
import pickle
import time
import warnings
import zipfile

import numpy as np
import pytest
from support import model_from_text

from converter.data.sources import open_data
from converter.errors import DataError

MODEL = model_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text, version=b"\x01\x00"):
    body = text.encode() + b"\n"
    return b"\x93NUMPY" + version + len(body).to_bytes(2, "little") + body


GOOD = npy(np.zeros((4, 3), np.float32))


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/onnxpress-was-here",)


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 3), }"
MEMBERS = {
    "pickle": npy(np.zeros((4, 3), np.float32))[:0] + pickle.dumps(Evil()),
    "objects": header("{'descr': '|O', 'fortran_order': False, 'shape': (4, 3), }")
    + pickle.dumps([Evil()]),
    "huge shape": header(HUGE) + b"\0" * 48,
    "negative shape": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3), }")
    + b"\0" * 48,
    "truncated": GOOD[:-5],
    "longer": GOOD + b"\0\0\0\0",
    "no header": b"\0" * 10,
    "empty": b"",
    "code in the header": header("__import__('os').system('touch /tmp/onnxpress-was-here')"),
    "deep header": header("{'descr':" + "(" * 3000 + ")" * 3000 + "}"),
    "struct type": header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 3), }")
    + b"\0" * 48,
    "void type": header("{'descr': '|V4', 'fortran_order': False, 'shape': (4, 3), }") + b"\0" * 48,
    "version 9": b"\x93NUMPY\x09\x00" + GOOD[8:],
    "two lines": header("{'descr': '<f4', 'fortran_order': False, 'shape': 12, }") + b"\0" * 48,
}


@pytest.mark.parametrize("name", MEMBERS)
def test_hostile_members(tmp_path, name):
    path = tmp_path / "evil.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", MEMBERS[name])
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        open_data(path, MODEL)
    assert "evil.npz" in str(caught.value)
    assert time.process_time() - start < 2
    assert not os.path.exists("/tmp/onnxpress-was-here")


def test_bomb(tmp_path):
    path = tmp_path / "bomb.npz"
    start = header("{'descr': '<f4', 'fortran_order': False, 'shape': (89478485, 3), }")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(start)
        for _ in range(64):  # a gibibyte, four bytes more than the header says
            file.write(b"\0" * (1 << 24))
    before = time.process_time()
    with pytest.raises(DataError):
        open_data(path, MODEL)
    assert time.process_time() - before < 1


def test_bomb_with_an_honest_header(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((30_000_000, 3), np.float32))
    with pytest.raises(DataError, match="bomb"):
        open_data(path, MODEL)


def test_duplicate_members(tmp_path):
    path = tmp_path / "twice.npz"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", GOOD)
        archive.writestr("x.npy", npy(np.ones((4, 3), np.float32)))
    with pytest.raises(DataError, match="twice"):
        open_data(path, MODEL)


@pytest.mark.parametrize("cut", [0, 1, 30, 100, -1, -30])
def test_damaged_archives(tmp_path, cut):
    path = tmp_path / "cut.npz"
    np.savez(path, x=np.zeros((4, 3), np.float32))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError):
        open_data(path, MODEL)


def test_bit_flips_are_found_or_harmless(tmp_path):
    path = tmp_path / "flip.npz"
    np.savez_compressed(path, x=np.arange(12, dtype=np.float32).reshape(4, 3))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            for batch in open_data(path, MODEL):
                assert batch.inputs["x"].shape == (1, 3)
        except DataError:
            pass


def test_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match="not a regular file"):
        open_data(tmp_path / "pipe.npz", MODEL)
    with pytest.raises(DataError):
        open_data("/dev/zero", MODEL)


def test_other_files(tmp_path):
    for name, content in (("a.npz", b"not a zip"), ("a.txt", b"text"), ("a.npy", GOOD)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError):
            open_data(tmp_path / name, MODEL)


def test_a_file_that_changes_after_it_was_opened(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((4, 3), np.float32))
    dataset = open_data(path, MODEL)
    np.savez(path, x=np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match="changed"):
        list(dataset)
    path.unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        list(dataset)
