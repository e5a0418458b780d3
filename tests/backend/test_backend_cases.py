"""onnx's own backend cases: what onnxruntime passes it still passes after ``simplify``.

Each case also runs with all inputs, and with all but the first, turned into constants, which makes
most of them foldable.
"""

from __future__ import annotations

from collections import Counter

import pytest
from backend.cases import Tally, examine, originals, variants

PARTS = 8
"""Tests in which the cases are dealt out, so that several processes can share them."""

_FAIR = 0.85  # of the variants that onnxruntime can load and run at all
_CANNOT = (
    "Could not find an implementation",
    "Failed to find kernel",
    "onnxruntime cannot load",
    "Load model from",
    "Exception during initialization",
    "Non-zero status code",
    "No corresponding Numpy type",
    "can't be converted to MLDataType",
    "Type Error",
    "which is not taken",
    "the operator has no attribute",
    "optional input without value",
    "Type parameter",
    "Unexpected input data type",
)
"""Why onnxruntime does not run a case; a new reason has to be looked at."""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("part", range(PARTS))
def test_cases_still_pass_after_simplify(part: int) -> None:
    tally = Tally()
    for case in originals()[part::PARTS]:
        for variant in variants(case):
            examine(variant, tally)
    assert tally.complaints == {}
    total = tally.passed + tally.ran + len(tally.skipped)
    assert total > 400
    assert tally.passed > 0.7 * total
    assert tally.passed > _FAIR * (total - len(tally.skipped))
    strange = [why for why in tally.skipped.values() if not any(known in why for known in _CANNOT)]
    assert Counter(strange) == Counter()
