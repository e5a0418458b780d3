"""No file makes loading and saving crash, hang, leak, or fail with anything but our error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile.attempt import attempt, prepare
from hostile.builders import Case
from hostile.corpus import all_cases

from converter.core.graph import tensors
from converter.core.tensors import chunks
from converter.io import export_onnx, formats, import_onnx

IMPORTED = (export_onnx, import_onnx)  # before the forks, or every child would import them anew
CASES = all_cases()


def copy(path: Path, target: Path) -> None:
    """Load, read every tensor, save."""
    model = formats.load(path)
    for tensor in tensors(model):
        if tensor.nbytes < 1 << 28:
            for _ in chunks(tensor):
                pass
    if sum(tensor.nbytes for tensor in tensors(model)) < 1 << 28:
        formats.save(model, target, source=path)


def test_there_are_many_cases_with_their_own_names():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names) >= 300


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hostile_file(case: Case, tmp_path: Path):
    prepare(case, tmp_path)
    allowed = {"accept", "reject"} if case.expect == "either" else {case.expect}
    for bare in (False, True):
        result = attempt(tmp_path, copy, bare=bare)
        assert result.verdict in allowed, result.text
        assert not result.leaked, result.text
        assert result.code == (3 if result.verdict == "reject" else 0), result.text
        assert len(result.text) < 4000
        assert result.text.isprintable()
