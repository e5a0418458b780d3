"""Saying what stopped PyTorch's exporter, without its pages of advice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from converter.errors import ConverterError, ModelError, UnsupportedOperatorError
from converter.io.torch_source import TorchSource

_NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='(?P<op>[^']+)'")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ADVICE = re.compile(r"\(Size-like|consider using|For more information|Caused by:|from user code")
_CALL = re.compile(
    r'The following call raised this error:\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in \w+\s+'
    r"(?P<code>[^\n]+)"
)
_DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "UserError", "Unsupported")


def explained(error: BaseException, source: TorchSource, results: Any) -> ConverterError:
    """Return the error for users.

    Args:
        error: What the exporter raised.
        source: What was exported.
        results: What the module returned on its example, which may explain it.
    """
    chain = list(_causes(error))
    own = next((e for e in chain if isinstance(e, ConverterError)), None)
    if own is not None:
        return own
    missing = sorted({m["op"] for e in chain for m in _NO_FUNCTION.finditer(str(e))})
    if missing:
        return UnsupportedOperatorError(
            f"PyTorch's exporter has no ONNX form of operator {', '.join(missing)}",
            where=source.where,
            hint="write that part with other operators, or install a newer torch and onnxscript",
        )
    root = next((e for e in reversed(chain) if str(e)), error)
    words = f"{type(root).__name__}: {short(_ADVICE.split(str(root))[0])}"
    if type(root).__name__ in _DATA_DEPENDENT:
        return UnsupportedOperatorError(
            f"the model cannot be exported: {words}",
            where=_line(chain) or source.where,
            hint="decisions that depend on values of tensors need torch.cond or torch.where; "
            "shapes that differ from the example need dynamic_shapes",
        )
    return ModelError(
        f"the model cannot be exported: {words}",
        where=source.where,
        hint=_other_outputs(results)
        or "torch.onnx.export(model, args, dynamo=True, report=True) writes all of its report",
    )


def _line(chain: Sequence[BaseException]) -> str:
    """Return the line of the user's own code that the exporter stopped at, if it says so."""
    found = next((m for e in chain if (m := _CALL.search(str(e)))), None)
    return (
        "" if found is None else f"{found['file']}, line {found['line']}: {found['code'].strip()}"
    )


def _other_outputs(results: Any) -> str:
    import torch

    leaves = torch.utils._pytree.tree_leaves(results)  # noqa: SLF001 - flattens as the exporter does
    kinds = {type(leaf).__name__ for leaf in leaves if not isinstance(leaf, torch.Tensor)}
    kinds.discard("NoneType")
    words = ", ".join(sorted(kinds))
    return f"return tensors only: the module also returns {words}" if kinds else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def short(text: str, length: int = 400) -> str:
    """Return text of torch as one line of bounded length, without colours."""
    flat = " ".join(_COLOURS.sub("", text).split())
    return flat if len(flat) <= length else flat[:length] + "..."
