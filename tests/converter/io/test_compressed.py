"""Compressed files: what comes back, what is refused, what is said about them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from support import model_from_text

import converter
from converter.cli.entry import main
from converter.core.recipe import parse_recipe
from converter.errors import (
    ConverterError,
    FormatError,
    LimitExceededError,
    ModelError,
    UsageError,
    WriteError,
)
from converter.io import compressed
from converter.io.formats import load
from converter.io.limits import LoadLimits

WEIGHT = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
WEIGHT[np.abs(WEIGHT) < 1] = 0
Bytes = bytes


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    model = model_from_text("g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }", w=WEIGHT)
    return converter.save(model, tmp_path / "m.onnx")


def squeeze(data: Bytes, **options: bool) -> Bytes:
    return zstandard.ZstdCompressor(level=3, **options).compress(data)


def test_the_content_comes_back_bit_by_bit(plain: Path, tmp_path: Path) -> None:
    made = converter.convert(plain, tmp_path / "m.onnx.zst", provenance=False)
    packed = tmp_path / "m.onnx.zst"
    assert made.path == packed
    assert packed.stat().st_size < 0.8 * plain.stat().st_size
    assert zstandard.ZstdDecompressor().decompress(packed.read_bytes()) == plain.read_bytes()
    converter.convert(packed, tmp_path / "again.onnx", provenance=False)
    assert (tmp_path / "again.onnx").read_bytes() == plain.read_bytes()


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the tool zstd is not installed")
def test_the_tool_of_the_system_reads_and_writes_such_files(plain: Path, tmp_path: Path) -> None:
    converter.save(converter.load(plain), tmp_path / "m.onnx.zst")
    subprocess.run(["zstd", "-q", "-d", "m.onnx.zst", "-o", "d.onnx"], cwd=tmp_path, check=True)
    assert (tmp_path / "d.onnx").read_bytes() == plain.read_bytes()
    subprocess.run(["zstd", "-q", "-19", "m.onnx", "-o", "t.onnx.zst"], cwd=tmp_path, check=True)
    assert converter.inspect(tmp_path / "t.onnx.zst").parameters == WEIGHT.size


def test_equal_bytes_and_option_and_suffix_are_one(plain: Path, tmp_path: Path) -> None:
    made = converter.convert(plain, tmp_path / "a.onnx", compress="zstd", verify=False)
    converter.convert(plain, tmp_path / "b.onnx.zst", verify=False)
    assert made.path == tmp_path / "a.onnx.zst"
    assert not (tmp_path / "a.onnx").exists()
    assert (tmp_path / "a.onnx.zst").read_bytes() == (tmp_path / "b.onnx.zst").read_bytes()
    assert made.report.recipe["output"]["compress"] == "zstd"
    recipe = parse_recipe('version = 1\n[output]\ncompress = "zstd"\n')
    again = converter.convert(plain, tmp_path / "c.onnx", recipe=recipe, verify=False)
    assert again.path == tmp_path / "c.onnx.zst"


def test_every_function_takes_such_files(plain: Path, tmp_path: Path) -> None:
    packed = converter.save(converter.load(plain), tmp_path / "p.onnx.zst")
    verdict = converter.verify(plain, packed, budget="size<=1.0x")
    assert verdict.passed
    (timing,) = converter.bench(packed, seconds=0.1).to_dict()["models"]
    assert timing["model"] == packed.name
    found = converter.inspect(packed)
    assert (found.content, found.nbytes) == (plain.stat().st_size, packed.stat().st_size)
    assert found.external_files == ()


def test_the_report_counts_the_model_and_says_what_is_on_disk(plain: Path, tmp_path: Path) -> None:
    made = converter.convert(plain, tmp_path / "p.onnx.zst", provenance=False)
    target = made.report.to_dict()["target"]
    assert target["uncompressed_bytes"] == plain.stat().st_size
    assert target["bytes"] == (tmp_path / "p.onnx.zst").stat().st_size
    assert any("onnxruntime cannot open it" in note for note in made.report.notes)
    with pytest.raises(ConverterError, match=r"size<=0\.9x"):  # the compression does not count
        converter.convert(plain, tmp_path / "q.onnx.zst", budget="size<=0.9x")
    assert not (tmp_path / "q.onnx.zst").exists()


def test_content_counts_more_than_the_name(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(squeeze(plain.read_bytes()))
    (tmp_path / "b.onnx.zst").write_bytes(plain.read_bytes())
    for name in ("a.onnx", "b.onnx.zst"):
        made = converter.convert(tmp_path / name, tmp_path / "out.onnx")
        assert made.verdict is not None
        assert made.verdict.passed


def test_several_frames_and_frames_to_skip(plain: Path, tmp_path: Path) -> None:
    data = plain.read_bytes()
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    parts = (skipped, squeeze(data[:5000]), skipped, squeeze(data[5000:], write_checksum=True))
    (tmp_path / "f.onnx.zst").write_bytes(b"".join(parts))
    assert converter.inspect(tmp_path / "f.onnx.zst").content == len(data)


def test_text_in_a_compressed_file_is_read(plain: Path, tmp_path: Path) -> None:
    converter.save(converter.load(plain), tmp_path / "m.json")
    (tmp_path / "m.json.zst").write_bytes(squeeze((tmp_path / "m.json").read_bytes()))
    assert converter.inspect(tmp_path / "m.json.zst").parameters == WEIGHT.size


def damaged(data: Bytes) -> dict[str, Bytes]:
    packed = squeeze(data, write_checksum=True)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 16
    foreign = squeeze(b"<html>" + b"x" * 100)
    return {
        "cut in a block": packed[: len(packed) // 2],
        "cut in the header": packed[:5],
        "cut before the sum": packed[:-2],
        "flipped": bytes(flipped),
        "noise": compressed.MAGIC + os.urandom(100),
        "tail": packed + b"tail",
        "nothing inside": squeeze(b""),
        "foreign": foreign,
        "twice": squeeze(packed),
        "no graph": squeeze(onnx.ModelProto(ir_version=8).SerializeToString()),
    }


@pytest.mark.parametrize("name", damaged(b""))
def test_damaged_files_are_format_errors(plain: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.onnx.zst"
    path.write_bytes(damaged(plain.read_bytes())[name])
    with pytest.raises(FormatError) as caught:
        converter.load(path)
    assert "bad.onnx.zst" in str(caught.value)


def test_bombs_are_stopped_early(tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx.zst"
    bomb = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 30)
    zeros = bytes(1 << 24)
    with path.open("wb") as file:
        for _ in range(1 << 6):
            file.write(bomb.compress(zeros))
        file.write(bomb.flush())
    assert path.stat().st_size < 1 << 17
    with pytest.raises(LimitExceededError, match="and more"):
        converter.load(path)
    with pytest.raises(LimitExceededError, match="1000000 bytes"):
        load(path, limits=LoadLimits(file_bytes=1_000_000))


def test_many_empty_frames_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_MOST_FRAMES", 100)
    path = tmp_path / "frames.onnx.zst"
    path.write_bytes(squeeze(b"") * 200)
    with pytest.raises(LimitExceededError, match="frames"):
        converter.load(path)


@pytest.mark.parametrize("name", ["m.zst", "m.json.zst", "m.ort.zst", "m.tar.zst"])
def test_only_binary_models_are_written_compressed(plain: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.onnx\.zst"):
        converter.convert(plain, tmp_path / name)


def test_weights_beside_are_refused_and_those_of_the_source_move_in(
    plain: Path, tmp_path: Path
) -> None:
    for options in ({"external_data": "yes"}, {"weights_format": "safetensors"}):
        with pytest.raises(UsageError, match="one file"):
            converter.convert(plain, tmp_path / "m.onnx.zst", **options)
    converter.convert(plain, tmp_path / "beside.onnx", external_data="yes")
    converter.convert(tmp_path / "beside.onnx", tmp_path / "one.onnx.zst")
    (moved := tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "one.onnx.zst", moved)
    assert converter.inspect(moved / "one.onnx.zst").external_files == ()
    converter.convert(moved / "one.onnx.zst", tmp_path / "last.onnx")


def test_nothing_is_left_when_the_disk_is_full(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = converter.load(plain)
    (tmp_path / "m.onnx.zst").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("converter.io.export_data.write_tensor", full)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(WriteError):
        converter.save(model, tmp_path / "m.onnx.zst")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (tmp_path / "m.onnx.zst").read_bytes() == b"old"


def test_without_the_package(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = converter.save(converter.load(plain), tmp_path / "p.onnx.zst")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ModelError, match=r"onnxpress\[zstd\]"):
        converter.load(packed)
    with pytest.raises(UsageError, match=r"onnxpress\[zstd\]"):
        converter.convert(plain, tmp_path / "q.onnx.zst")
    converter.convert(plain, tmp_path / "q.onnx")


def test_the_command_line(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.onnx"
    assert main([str(plain), str(target), "--compress", "zstd", "--no-verify"]) == 0
    assert "out.onnx.zst" in capsys.readouterr().out
    assert main(["inspect", f"{target}.zst"]) == 0
    assert "compressed" in capsys.readouterr().out
    assert main([str(plain), str(target), "--compress", "zstd", "--external-data", "yes"]) == 2
    assert "--external-data yes" in capsys.readouterr().err
