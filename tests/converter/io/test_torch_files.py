"""Files of PyTorch without torch: what is refused, and what a program archive may hold."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import converter
from converter.errors import FormatError, InvalidModelError, LimitExceededError, ModelError
from converter.io.formats import load
from converter.io.limits import DEFAULT_LIMITS, LoadLimits
from converter.io.torch_program import check_program, is_arithmetic


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def archive(path: Path, entries: dict[str, bytes], *, compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(f"net/{name}", content)
    return path


@pytest.mark.parametrize(
    "name", ["net.pt", "net.pth", "net.ckpt", "net.bin", "net.pkl", "net.onnx"]
)
@pytest.mark.parametrize("form", ["pickle", "checkpoint", "torchscript"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str, form: str) -> None:
    trace = tmp_path / "ran"
    content = pickle.dumps(Bomb(trace))
    path = tmp_path / name
    if form == "pickle":
        path.write_bytes(content)
    else:
        inner = {"checkpoint": "data.pkl", "torchscript": "constants.pkl"}[form]
        archive(path, {inner: content, "data.pkl": content})
    with pytest.raises(FormatError, match="never opened") as caught:
        load(path)
    assert caught.value.exit_code == 3
    assert "weights_only=True" in caught.value.hint
    assert "module:factory" in caught.value.allowed.lower()
    assert not trace.exists()


def test_a_name_alone_is_enough_where_the_content_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"(dp0\n.")  # a pickle of the first protocol has no mark
    with pytest.raises(FormatError, match="by its name"):
        load(path)


def test_other_files_keep_their_own_messages(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "net.pt")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(64))
    with pytest.raises(FormatError) as caught:
        load(weights)
    assert "pickle" not in caught.value.what
    with pytest.raises(FormatError, match="zip archive"):
        load(archive(tmp_path / "other.zip", {"readme.txt": b"hello"}))


def test_without_torch_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    program = archive(tmp_path / "net.pt2", {"models/model.json": b"{}"})
    for source in ("somewhere:factory", program):
        with pytest.raises(ModelError, match="is not installed") as caught:
            converter.convert(source)
        assert caught.value.hint == 'pip install "onnxpress[torch]"'


def test_example_inputs_are_refused_where_nothing_is_traced(fixtures: Path) -> None:
    with pytest.raises(converter.errors.UsageError, match="example inputs"):
        converter.convert(fixtures / "digits_resnet.onnx", example={"x": 1})


# --- program archives -----------------------------------------------------------------------------


def entries(**changes: bytes) -> dict[str, bytes]:
    """A program with one operator, as torch 2.13 writes it."""
    node = {
        "target": "torch.ops.aten.relu.default",
        "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}],
        "outputs": [{"as_tensor": {"name": "relu"}}],
        "metadata": {"stack_trace": 'File "net.py", line 1, in forward\n  return x'},
    }
    model = {
        "graph_module": {
            "graph": {"nodes": [node], "custom_obj_values": {}},
            "signature": {"input_specs": [{"parameter": {"parameter_name": "layer.0.w"}}]},
        },
        "range_constraints": {"s0": {"min_val": 2, "max_val": 9}},
        "guards_code": ["L['x'].size()[0] >= 2", "Mod(L['x'].size()[1], 4) == 0"],
    }
    found = {
        "archive_format": b"pt2",
        "models/model.json": json.dumps(model).encode(),
        "data/weights/weight_0": bytes(16),
        "data/weights/model_weights_config.json": b'{"config": {"w": {"path_name": "weight_0", '
        b'"use_pickle": false}}}',
        "data/constants/model_constants_config.json": b'{"config": {}}',
    }
    return {**found, **changes}


def replaced(old: str, new: str) -> dict[str, bytes]:
    text = entries()["models/model.json"].decode()
    assert text.count(old) == 1
    return entries(**{"models/model.json": text.replace(old, new).encode()})


def check(
    content: dict[str, bytes], limits: LoadLimits = DEFAULT_LIMITS, compression: int = 0
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in content.items():
            file.writestr(f"net/{name}", data)
    check_program(buffer, "net.pt2", limits)


def test_a_plain_program_is_let_through() -> None:
    check(entries())
    check(entries(**{"extra/readme.txt": b"hello", "data/sample_inputs/model.pt": b"x"}))
    check(replaced("torch.ops.aten.relu.default", "_operator.getitem"))
    check(replaced("torch.ops.aten.relu.default", "torch.ops.aten.__and__.Tensor"))


WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
CONFIG = b'{"config": {"w": {"path_name": "%s", "use_pickle": %s}}}'


@pytest.mark.parametrize(
    "content",
    [
        replaced("torch.ops.aten.relu.default", "torch.os.system"),
        replaced("torch.ops.aten.relu.default", "torch.ops.load_library"),
        replaced("torch.ops.aten.relu.default", "torch.ops.aten.__class__.mro"),
        replaced("torch.ops.aten.relu.default", "torch.ops.aten.relu.__globals__"),
        replaced("torch.ops.aten.relu.default", "_operator.attrgetter"),
        replaced("torch.ops.aten.relu.default", "#evil:op"),
        replaced('"name": "self"', '"name": "a=print(1), b"'),
        replaced("L['x'].size()[0] >= 2", "__import__('os').system('true')"),
        replaced("L['x'].size()[0] >= 2", "print(1)"),
        replaced('"s0"', "\"exec('1')\""),
        replaced('"stack_trace"', '"in_spec": "[1, {\\"__enum__\\": true}]", "stack_trace"'),
        replaced('"custom_obj_values": {}', '"custom_obj_values": {"a": {"name": "b"}}'),
        entries(**{"data/aotinductor/model/net.so": b"\x7fELF"}),
        entries(**{"data/constants/custom_obj_0": b"x"}),
        entries(**{"data/weights/model.pt": b"x"}),
        entries(**{"../weight_1": b"x"}),
        entries(**{WEIGHTS: CONFIG % (b"weight_0", b"true")}),
        entries(**{CONSTANTS: CONFIG % (b"opaque_obj_0", b"false")}),
    ],
)  # fmt: skip
def test_what_would_run_code_is_refused(content: dict[str, bytes]) -> None:
    with pytest.raises(InvalidModelError, match="the program holds") as caught:
        check(content)
    assert "torch.export.load" in caught.value.hint


def test_damaged_and_oversized_archives() -> None:
    with pytest.raises(FormatError, match="no JSON"):
        check(entries(**{"models/model.json": b"{"}))
    with pytest.raises(FormatError, match="no JSON"):
        check(entries(**{"models/model.json": b"[" * 100_000}))
    with pytest.raises(FormatError, match="lacks"):
        check({name: data for name, data in entries().items() if name != WEIGHTS})
    with pytest.raises(FormatError, match="no exported program"):
        check({"archive_format": b"pt2"})
    with pytest.raises(InvalidModelError, match="compressed"):
        check(entries(), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(LimitExceededError, match="bytes"):
        check(entries(), LoadLimits(tensor_bytes=100))
    with pytest.raises(LimitExceededError, match=r"model\.json"):
        check(entries(), LoadLimits(skeleton_bytes=100))
    with pytest.raises(FormatError, match="damaged"):
        check_program(io.BytesIO(b"PK\x03\x04" + bytes(40)), "net.pt2", LoadLimits())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s0", True),
        ("2*s0 + Mod(s1, 4) - (s0//2)**2", True),
        ("Eq(Max(s0, 1), s1) and not s2 < 3", True),
        ("L['a']['b'].size()[0] == args[0].stride()[1]", True),
        ("Mul(Integer(2), Symbol('s77', positive=True, integer=True))", True),
        ("Pow(Symbol('s1', integer=True), Integer(-2))", True),
        ("Pow(Integer(9), Pow(Integer(9), Integer(9)))", False),
        ("Pow(Integer(9), Integer(999999))", False),
        ("Float('1.0', precision=53)", True),
        ("Float('1.0', precision=10**9)", False),
        ("Symbol(**s)", False),
        ("L['x'].__class__", False),
        ("().__class__.__base__", False),
        ("getattr(s0, 'x')", False),
        ("lambda: 0", False),
        ("[x for x in (1,)]", False),
        ("f'{s0}'", False),
        ("9**9**9", False),
        ("s0**s1", False),
        ("s0; s1", False),
        ("(" * 1000 + ")" * 1000, False),
        ("1+" * 5000 + "1", False),
        ("Max(*s0)", False),
        ("L['x'].size()()", False),
    ],
)
def test_expressions(text: str, expected: bool) -> None:
    assert is_arithmetic(text) is expected
