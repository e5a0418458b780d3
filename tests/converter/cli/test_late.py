"""sympy starts only when somebody calculates with names of dimensions."""

from __future__ import annotations

import subprocess
import sys

HEAD = """
import sys
from converter.cli.late import import_late
import_late()
import onnx_ir as ir
def started(): return type(sys.modules["sympy"]).__name__ != "_LazyModule"
assert not started()
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_reading_and_writing_does_without() -> None:
    code = """
shape = ir.Shape(["batch", "seq", 3])
assert shape == ["batch", "seq", 3] and str(shape[0]) == "batch"
value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
assert ir.to_proto(value).type.tensor_type.shape.dim[0].dim_param == "batch"
print(started())
"""
    assert run(code) == "False"


def test_it_is_there_when_it_is_needed() -> None:
    assert run("print(ir.SymbolicDim('n*2') + 1, started())") == "2*n + 1 True"
    assert run("from sympy import Symbol; print(Symbol('x') * 2)") == "2*x"
    assert run("import sympy.abc; print(sympy.abc.x)") == "x"
