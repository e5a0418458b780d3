"""Opening files without trust: what is refused, what --allow-links relaxes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converter.errors import FormatError, InvalidModelError, LimitExceededError, ModelError
from converter.io.limits import (
    DataFiles,
    LoadLimits,
    check_location,
    data_folders,
    open_beside,
    open_model,
    quoted,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a data file, and a secret beside it."""
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    (made / "data.bin").write_bytes(b"data")
    (made / "sub" / "data.bin").write_bytes(b"deep")
    (tmp_path / "secret.bin").write_bytes(b"secret")
    return made


def test_a_regular_file_is_opened(folder: Path):
    handle = open_model(folder / "data.bin")
    assert handle.read(0, 4) == b"data"
    assert handle.path == str(folder / "data.bin")
    assert not os.get_inheritable(handle.descriptor)


def test_a_bare_name_gets_its_full_path(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    assert open_model("data.bin").path == str(folder / "data.bin")
    assert data_folders("data.bin") == (folder,)
    with pytest.raises(InvalidModelError):
        open_beside("", "../secret.bin")


def test_errors_of_the_model_file(folder: Path):
    os.mkfifo(folder / "pipe")
    (folder / "empty").touch()
    (folder / "loop").symlink_to("loop")
    for name, kind, text in (
        ("none", ModelError, "does not exist"),
        ("none/deeper", ModelError, "does not exist"),
        ("data.bin/deeper", ModelError, "cannot be opened"),
        ("pipe", InvalidModelError, "a named pipe"),
        ("sub", InvalidModelError, "a folder"),
        ("empty", FormatError, "empty"),
        ("loop", ModelError, "cannot be opened"),
        ("a" * 5000, ModelError, "cannot be opened"),
        ("nul\0", ModelError, "cannot be opened"),
    ):
        with pytest.raises(kind, match=text):
            open_model(folder / name)
    with pytest.raises(LimitExceededError):
        open_model(folder / "data.bin", LoadLimits(file_bytes=3))


def test_a_device_is_refused():
    with pytest.raises(InvalidModelError, match="a device"):
        open_model("/dev/zero")


@pytest.mark.parametrize("location", ["data.bin", "./data.bin", "sub/data.bin", "sub//./data.bin"])
def test_locations_below_the_folder(folder: Path, location: str):
    assert open_beside(folder, location).read(0, 4) in {b"data", b"deep"}


@pytest.mark.parametrize(
    "location",
    [
        "",
        ".",
        "/",
        "..",
        "../secret.bin",
        "sub/../data.bin",
        "sub/../../secret.bin",
        "/etc/passwd",
        "//etc/passwd",
        "..\\secret.bin",
        "C:data.bin",
        "C:\\data.bin",
        "data.bin\0",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_locations_that_are_no_plain_path(folder: Path, location: str):
    for allow_links in (False, True):
        with pytest.raises(InvalidModelError):
            open_beside(folder, location, allow_links=allow_links)
    with pytest.raises(InvalidModelError):
        check_location(location)


def test_links_need_permission_and_must_stay_inside(folder: Path):
    (folder / "inside").symlink_to("data.bin")
    (folder / "deep").symlink_to("sub")
    (folder / "outside").symlink_to("../secret.bin")
    (folder / "up").symlink_to("..")
    (folder / "hard").hardlink_to(folder.parent / "secret.bin")
    for name in ("inside", "deep/data.bin", "outside", "up/secret.bin", "hard"):
        with pytest.raises(InvalidModelError, match="link"):
            open_beside(folder, name)
    assert open_beside(folder, "inside", allow_links=True).read(0, 4) == b"data"
    assert open_beside(folder, "deep/data.bin", allow_links=True).read(0, 4) == b"deep"
    assert open_beside(folder, "hard", allow_links=True).read(0, 6) == b"secret"
    for name in ("outside", "up/secret.bin"):
        with pytest.raises(InvalidModelError, match="leaves the folder"):
            open_beside(folder, name, allow_links=True)


def test_the_cache_of_the_hub_works_with_links(tmp_path: Path):
    repository = tmp_path / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "f00", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("model.onnx", "model.onnx_data"):
        (blobs / f"sha-{name}").write_bytes(name.encode())
        (snapshot / name).symlink_to(f"../../blobs/sha-{name}")
    assert open_model(snapshot / "model.onnx").nbytes == 10
    with pytest.raises(InvalidModelError):
        DataFiles(snapshot / "model.onnx").open("model.onnx_data")
    files = DataFiles(snapshot / "model.onnx", allow_links=True)
    assert files.open("model.onnx_data").nbytes == 15


def test_data_beside_the_real_file_of_a_linked_model(tmp_path: Path):
    real, shown = tmp_path / "real", tmp_path / "shown"
    real.mkdir()
    shown.mkdir()
    (real / "m.onnx").write_bytes(b"m")
    (real / "m.bin").write_bytes(b"weights")
    (shown / "m.onnx").symlink_to("../real/m.onnx")
    assert data_folders(shown / "m.onnx") == (shown, real)
    assert DataFiles(shown / "m.onnx").open("m.bin").read(0, 7) == b"weights"


def test_one_handle_per_file(folder: Path):
    files = DataFiles(folder / "m.onnx")
    assert files.open("data.bin") is files.open("data.bin")


def test_other_kinds_of_files(folder: Path):
    os.mkfifo(folder / "pipe")
    for name, text in (("pipe", "a named pipe"), ("sub", "a folder")):
        with pytest.raises(InvalidModelError, match=text):
            open_beside(folder, name)
    with pytest.raises(ModelError, match="missing"):
        open_beside(folder, "none.bin")
    with pytest.raises(ModelError, match=r"missing|cannot be opened"):
        open_beside(folder, "data.bin/deeper")


def test_a_hole_and_a_file_beyond_the_limit(folder: Path):
    with (folder / "hole.bin").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(LimitExceededError, match="stores only"):
        open_beside(folder, "hole.bin")
    with pytest.raises(LimitExceededError):
        open_beside(folder, "data.bin", limits=LoadLimits(tensor_bytes=3))


def test_refusals_leave_no_descriptor_open(folder: Path):
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("../secret.bin")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("pipe", "link", "sub", "none", "../x") * 3:
        with pytest.raises(ModelError):
            open_beside(folder, name)
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_are_escaped_in_messages(folder: Path):
    with pytest.raises(ModelError) as caught:
        open_model(folder / "a\x1b[2J\nb")
    assert str(caught.value).isprintable()
    assert quoted("\x1b\u202e\n") == "'\\x1b\\u202e\\n'"
    assert len(quoted("x" * 10_000)) < 300
