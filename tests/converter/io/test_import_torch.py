"""PyTorch models in: what is accepted, what comes out, and that PyTorch agrees with it."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import run

import converter
from converter.errors import (
    ConverterError,
    FormatError,
    InvalidModelError,
    ModelError,
    UnsupportedOperatorError,
    UsageError,
    VerificationError,
)
from converter.io.formats import load
from converter.io.import_torch import load_torch
from converter.io.meta import EXAMPLE, NOTES

pytest.importorskip("onnxscript", reason="PyTorch's exporter needs onnxscript (make test-torch)")
torch = pytest.importorskip("torch", reason="torch is not installed (make test-torch)")
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch and onnxscript, which are not ours

FACTORIES = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
    def forward(self, x, factor=None):
        y = self.linear(x)
        return y if factor is None else y * factor

def pair():
    print("a factory that talks")
    return Scale(), (torch.ones(4, 3),)

def module():
    return Scale()

def named():
    return {"model": Scale(), "args": (torch.ones(4, 3),), "input_names": ["picture"],
            "output_names": ["score"], "dynamic_shapes": ({0: torch.export.Dim("batch")},)}

def parameters(x):
    return x

def broken():
    raise RuntimeError("no weights here")

def nothing():
    return None

instance = Scale()
number = 3
"""


class Cnn(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: Any, *, mask: Any = None, scale: int = 2) -> Any:
        y = self.linear(x) * scale * mask["weights"]
        return {"scores": y, "parts": [y + 1, y.sum(1)]}


class Choice(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x + self.calls


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "net_factories", raising=False)
    return "net_factories"


def example_of(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(model.meta[EXAMPLE].inputs), dict(model.meta[EXAMPLE].outputs)


def batch() -> Any:
    return torch.export.Dim("batch", min=1, max=64)


CASES: dict[str, Any] = {
    "cnn": lambda: (Cnn(), (torch.randn(2, 3, 8, 8),)),
    "lstm": lambda: (torch.nn.LSTM(4, 6, 2, batch_first=True), (torch.randn(2, 5, 4),)),
    "two inputs": lambda: (
        Two(),
        (torch.randn(2, 4),),
        {"mask": {"weights": torch.rand(2, 3)}, "scale": 3},
    ),
    "cond": lambda: (Choice(), torch.randn(3, 4)),
    "dynamic": lambda: {
        "model": torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        "args": (torch.randn(2, 7, 16),),
        "dynamic_shapes": ({0: batch(), 1: torch.export.Dim("length", min=2, max=99)},),
    },
    "half": lambda: (torch.nn.Linear(4, 3).half(), (torch.randn(2, 4).half(),)),
    "integers": lambda: (torch.nn.Embedding(10, 4), (torch.tensor([[1, 9]]),)),
}


@pytest.mark.parametrize("case", CASES)
def test_converted_models_give_what_pytorch_gives(tmp_path: Path, case: str) -> None:
    source = CASES[case]()
    target = tmp_path / "out.onnx"
    made = converter.convert(source, target, passes="simplify")
    assert made.verdict is not None
    assert made.verdict.passed
    assert made.verdict.data == "the example inputs of the PyTorch model"
    assert any(note.startswith("export checked against PyTorch") for note in made.report.notes)
    feed, expected = example_of(load_torch(source))
    found = run(target, feed)
    assert list(found) == list(expected)
    for name, array in expected.items():
        # 5e-3: half precision keeps three digits
        bound = 5e-3 if array.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(found[name], array, rtol=bound, atol=bound)


def test_the_module_stays_as_it_was() -> None:
    module = Cnn()
    module.head.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    load_torch((module, (torch.randn(2, 3, 8, 8),)))
    assert module.training
    assert module.norm.training
    assert not module.head.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    counter = Counter()
    load_torch((counter, (torch.zeros(2),)))
    assert counter.calls.item() == 0


def test_evaluation_mode_is_what_is_exported() -> None:
    model = load_torch((Cnn(), (torch.randn(2, 3, 8, 8),)))
    assert not {node.op_type for node in model.graph} & {"Dropout", "BatchNormalization"}


def test_names_and_dynamic_axes_arrive(tmp_path: Path, factories: str) -> None:
    converter.convert(f"{factories}:named", tmp_path / "out.onnx", passes="simplify")
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert [value.name for value in graph.input] == ["picture"]
    assert [value.name for value in graph.output] == ["score"]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_outputs_of_a_dict_are_named_after_its_keys() -> None:
    model = load_torch(CASES["two inputs"]())
    assert [value.name for value in model.graph.outputs] == ["scores", "parts_0", "parts_1"]
    assert [value.name for value in model.graph.inputs] == ["x", "mask_weights"]


class Through(torch.nn.Module):
    def forward(self, x: Any, times: int) -> Any:
        return x, x * times


def test_an_input_that_is_an_output_keeps_its_name() -> None:
    model = load_torch((Through(), (torch.ones(2), 3)))
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["x_output", "mul"]
    assert any("fixed in the model: times = 3" in note for note in model.meta[NOTES])


def test_weights_are_not_copied() -> None:
    linear = torch.nn.Linear(64, 64, bias=False)
    model = load_torch((linear, (torch.randn(1, 64),)))
    shared = [
        np.shares_memory(value.const_value.numpy(), linear.weight.detach().numpy())
        for value in model.graph.initializers.values()
        if value.const_value is not None
    ]
    assert any(shared)


def test_nothing_of_the_machine_is_left_in_the_file(tmp_path: Path) -> None:
    made = converter.convert((Cnn(), (torch.randn(1, 3, 8, 8),)), tmp_path / "out.onnx")
    content = (tmp_path / "out.onnx").read_bytes()
    for trace in (b"stack_trace", b".py", b"torch.nn", b"site-packages", b"fx_node"):
        assert trace not in content
    assert b"pkg.torch.onnx.name_scopes" in content
    assert any("stack traces" in note for note in made.report.notes)


# --- other forms ----------------------------------------------------------------------------------


def exported() -> Any:
    return torch.export.export(Cnn().eval(), (torch.randn(2, 3, 8, 8),))


def test_programs_in_memory_and_in_files(tmp_path: Path) -> None:
    program = exported()
    torch.export.save(program, tmp_path / "net.pt2")
    (tmp_path / "other.name").write_bytes((tmp_path / "net.pt2").read_bytes())
    onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
    kept = [dict(node.metadata_props) for node in onnx_program.model.graph]
    sources = (program, onnx_program, tmp_path / "net.pt2", tmp_path / "other.name")
    results = []
    for source in sources:
        made = converter.convert(source, tmp_path / "out.onnx", provenance=False)
        assert any(note.startswith("export checked") for note in made.report.notes)
        results.append((tmp_path / "out.onnx").read_bytes())
        report = made.report.to_dict()["source"]
        on_disk = isinstance(source, Path) and source.suffix == ".pt2"
        assert report["bytes"] == (source.stat().st_size if on_disk else 0)
    assert len(set(results)) == 1
    assert [dict(node.metadata_props) for node in onnx_program.model.graph] == kept


def test_a_program_with_dynamic_shapes_survives_its_file(tmp_path: Path) -> None:
    program = torch.export.export(Choice(), (torch.randn(3, 4),), dynamic_shapes=({0: batch()},))
    torch.export.save(program, tmp_path / "net.pt2")
    model = load(tmp_path / "net.pt2")
    assert not isinstance(model.graph.inputs[0].shape[0], int)
    assert EXAMPLE in model.meta


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_inside_a_program_does_not_run(tmp_path: Path) -> None:
    import pickle
    import zipfile

    path, evil, trace = tmp_path / "net.pt2", tmp_path / "evil.pt2", tmp_path / "ran"
    torch.export.save(exported(), path)
    bomb = tmp_path / "bomb.pt"
    torch.save(Evil(trace), bomb, pickle_module=pickle)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(evil, "w") as new:
        for info in old.infolist():
            inner = "data/sample_inputs/model.pt" in info.filename
            new.writestr(info.filename, bomb.read_bytes() if inner else old.read(info))
    with pytest.raises(FormatError, match="cannot load the program"):
        load(evil)
    assert not trace.exists()
    with contextlib.suppress(Exception):  # torch runs it first and complains of what it gave
        torch.export.load(evil)
    assert trace.exists(), "torch became safer: this test has lost its meaning"


def test_damaged_programs(tmp_path: Path) -> None:
    torch.export.save(exported(), tmp_path / "net.pt2")
    content = (tmp_path / "net.pt2").read_bytes()
    for size in (100, len(content) // 2, len(content) - 10):
        (tmp_path / "cut.pt2").write_bytes(content[:size])
        with pytest.raises(ModelError):
            load(tmp_path / "cut.pt2")
    other = content.replace(b"torch.ops.aten.relu.default", b"torch.distributed.run.mainn")
    assert other != content
    (tmp_path / "other.pt2").write_bytes(other)
    with pytest.raises((InvalidModelError, FormatError)):
        load(tmp_path / "other.pt2")


# --- factories and examples -----------------------------------------------------------------------


def test_factories(tmp_path: Path, factories: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = load(f"{factories}:pair")
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert "talks" not in capfd.readouterr().out
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3), np.float32), factor=np.float32(2))
    np.savez(tmp_path / "p.npz", arg_0=np.ones((2, 3), np.float32))
    by_name = load(f"{factories}:module", example=tmp_path / "x.npz")
    assert [value.name for value in by_name.graph.inputs] == ["x", "factor"]
    by_position = load(f"{factories}:instance", example=str(tmp_path / "p.npz"))
    assert [value.name for value in by_position.graph.inputs] == ["x"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "cannot be imported"),
        ("number", "no function"),
        ("parameters", "fails: TypeError"),
        ("broken", "no weights here"),
        ("nothing", "NoneType is no PyTorch model"),
        ("module", "no example inputs"),
    ],
)
def test_factories_that_are_none(factories: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(f"{factories}:{name}")
    assert caught.value.where
    assert caught.value.allowed


def test_examples_of_the_module_itself() -> None:
    module = torch.nn.Linear(4, 3)
    for name, value in (
        ("example_input_array", torch.ones(2, 4)),
        ("dummy_inputs", {"input": torch.ones(2, 4)}),
        ("example_inputs", (torch.ones(2, 4),)),
    ):
        setattr(module, name, value)
        assert load_torch(module).graph.inputs[0].shape.numpy() == (2, 4)
        delattr(module, name)
    with pytest.raises(UsageError, match="no example inputs"):
        load_torch(module)
    made = converter.convert(module, example=np.ones((5, 4), np.float32))
    assert made.model.graph.inputs[0].shape.numpy() == (5, 4)


@pytest.mark.parametrize(
    "source",
    [
        lambda m: {"model": m, "arguments": ()},
        lambda m: {"model": m, "args": (torch.ones(1, 4),), "opset": 7},
        lambda m: {"model": m, "args": (torch.ones(1, 4),), "input_names": "x"},
        lambda m: (m, (), {}, {}),
        lambda m: (m, (), [1]),
    ],
)
def test_sources_of_a_wrong_form(source: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load_torch(source(torch.nn.Linear(4, 3)))
    assert caught.value.allowed


def test_unknown_arguments_in_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", nonsense=np.ones(2))
    with pytest.raises(UsageError, match="no argument 'nonsense'"):
        load_torch(torch.nn.Linear(4, 3), example=tmp_path / "x.npz")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        load_torch(torch.nn.Linear(4, 3), example=tmp_path / "bad.npz")


# --- what cannot be exported ----------------------------------------------------------------------


class Eigen(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.linalg.eigvals(x).real


class Branch(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else x * 2


class Number(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2, 7


class Noise(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.randn_like(x)


class Outside(torch.nn.Module):
    """Depends on something that no tracer sees."""

    calls = 0

    def forward(self, x: Any) -> Any:
        if not torch.compiler.is_compiling():
            return x + 1
        return x


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (Eigen(), UnsupportedOperatorError, r"operator aten\.linalg_eig"),
        (Branch(), UnsupportedOperatorError, r"data-dependent.*return x if x\.sum\(\) > 0"),
        (Number(), ModelError, "return tensors only: the module also returns int"),
        (torch.nn.Linear(9, 9), ModelError, "fails on its example inputs"),
    ],
)
def test_the_error_names_what_stopped_the_exporter(
    module: Any, kind: type[ConverterError], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_torch((module, (torch.ones(3, 3),)))
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert "\x1b" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_torchscript_is_refused() -> None:
    module = torch.jit.script(torch.nn.Linear(3, 3))  # deprecated, and still around
    with pytest.raises(UnsupportedOperatorError, match="TorchScript"):
        load_torch((module, (torch.ones(3, 3),)))


def test_random_outputs_are_compared_by_shape() -> None:
    made = converter.convert((Noise(), (torch.zeros(3),)))
    assert any("random outputs" in note for note in made.report.notes)


def test_an_export_that_differs_is_refused(tmp_path: Path) -> None:
    source = (Outside(), (torch.zeros(3),))
    with pytest.raises(VerificationError, match="PyTorch module give other outputs") as caught:
        converter.convert(source, tmp_path / "out.onnx")
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out.onnx").exists()
    converter.convert(source, tmp_path / "out.onnx", verify=False)
    assert (tmp_path / "out.onnx").exists()


def test_the_command_line(
    tmp_path: Path, factories: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from converter.cli.entry import main
    from converter.cli.render import render

    np.savez(tmp_path / "x.npz", x=np.ones((2, 3), np.float32))
    target = tmp_path / "out.onnx"
    words = [f"{factories}:module", str(target), "--passes", "simplify", "--json"]
    assert main([*words, "--example-inputs", str(tmp_path / "x.npz")]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["source"]["file"] == f"{factories}:module"
    lines = [line.split() for line in render("conversion", report).splitlines()]
    assert next(line for line in lines if line[:1] == ["size"])[1] == "-"
    assert target.is_file()
    assert main(["inspect", f"{factories}:named", "--json"]) == 0
    assert '"picture"' in capfd.readouterr().out
    assert main([f"{factories}:broken", str(target)]) == 2
    assert "no weights here" in capfd.readouterr().err


def test_notes_say_when_nothing_could_be_checked() -> None:
    program = torch.onnx.export(
        torch.nn.Linear(4, 3), (torch.ones(1, 4),), dynamo=True, verbose=False
    )
    program.exported_program.example_inputs = None
    model = load_torch(program)
    assert EXAMPLE not in model.meta
    assert any("not checked" in note for note in model.meta[NOTES])
