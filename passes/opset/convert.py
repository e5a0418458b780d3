"""Converting a model to another version of the default operator set, all or nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.core import graph as g
from converter.core.select import Selection
from converter.errors import ConverterError
from passes.inline import inline
from passes.opset.definitions import least_ir_version
from passes.opset.kernels import lost
from passes.opset.splice import Splicer, places
from passes.opset.stub import stub
from passes.rewriting.work import Work

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir

    from converter.core.context import Context

_SHOWN = 3


_MASK_IS_TRUE_SINCE = 12


@dataclass(frozen=True)
class Conversion:
    """What became of a conversion.

    Attributes:
        reasons: Why there was none, with the nodes that each is about; then nothing was changed.
        converted: Nodes that were replaced.
        inlined: Calls of functions that were replaced by their bodies first.
    """

    reasons: tuple[tuple[str, str], ...] = ()
    converted: int = 0
    inlined: int = 0

    @property
    def reason(self) -> str:
        """All reasons in one phrase; empty when the model was converted."""
        counts = Counter(reason for _, reason in self.reasons)
        first = {reason: subject for subject, reason in reversed(self.reasons)}
        parts = [
            f"{first[reason]}: {reason}" + (f" (and {count - 1} more)" if count > 1 else "")
            for reason, count in counts.items()
        ]
        rest = f"; and {len(parts) - _SHOWN} other reasons" if len(parts) > _SHOWN else ""
        return "; ".join(parts[:_SHOWN]) + rest


def convert(model: ir.Model, target: int, context: Context) -> Conversion:
    """Convert the model in place, or leave it as it is.

    Names, inner graphs, functions, other domains and weights are never shown to the converter of
    onnx: see :mod:`passes.opset.fragments`. A function with a node that changes is inlined first.
    """
    version = g.opset(model)
    reason = _unfit(model, version)
    if reason:
        return Conversion((("the model", reason),))
    refused = _read_masks(model, version, target) or lost(model, version, target)
    if refused:
        return Conversion(refused)
    draft = model.clone()
    try:
        found = _ask(draft, version, target, context)
        inlined = 0
        if found["functions"]:
            inlined, reasons = _inline(draft, found["functions"], context)
            if reasons:
                return Conversion(reasons)
            found = _ask(draft, version, target, context)
    except ConverterError as error:
        return Conversion((("the model", f"the converter of onnx fails on it: {error.what}"),))
    converted, reasons = _apply(draft, found["nodes"])
    if reasons:
        return Conversion(reasons)
    _set_versions(draft, target)
    take_over(model, draft)
    return Conversion(converted=converted, inlined=inlined)


def _unfit(model: ir.Model, version: int) -> str:
    if not version:
        return "it does not use the default operator set"
    if any(key[0] in g.DEFAULT_DOMAINS for key in model.functions):
        return "it defines operators of the default operator set itself"
    return ""


def _read_masks(model: ir.Model, version: int, target: int) -> tuple[tuple[str, str], ...]:
    """Find Dropout nodes whose mask is read: out of training it was all false, and is all true."""
    if not min(version, target) < _MASK_IS_TRUE_SINCE <= max(version, target):
        return ()
    reason = f"its mask means something else before opset {_MASK_IS_TRUE_SINCE} and from there on"
    return tuple(
        (g.label(node), reason)
        for node in g.walk(model)
        if g.is_op(node, "Dropout")
        and any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:])
    )


def _ask(model: ir.Model, version: int, target: int, context: Context) -> Mapping[str, Any]:
    """Let the child process convert what changes."""
    from onnx import version_converter  # noqa: F401 - loaded once, before the child process

    from converter.execution import sandbox
    from passes.opset.fragments import convert_model

    found: Mapping[str, Any] = sandbox.call(
        convert_model,
        stub(model),
        version,
        target,
        limits=context.settings.limits,
        task="converting the opset",
    )
    return found


def _inline(
    model: ir.Model, blocking: Mapping[str, str], context: Context
) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Inline the functions that stand in the way; returns how many calls, and what stayed."""
    keys = list(model.functions)
    wanted = {keys[int(index)]: reason for index, reason in blocking.items()}
    work = Work(model, context, Selection())
    inline(work, only=wanted.keys())
    stayed = _called(model, wanted)
    if not stayed:
        return int(work.counts["calls_inlined"]), ()
    skips = {skip.subject: skip.reason for skip in work.outcome().skipped}
    why = next(iter(skips.values()), "it cannot be inlined")
    return 0, tuple((f"function {key[1]}", f"{wanted[key]}, and {why}") for key in stayed)


def _called(model: ir.Model, keys: Collection[Any]) -> list[Any]:
    return [key for key in keys if key in model.functions]


def _apply(model: ir.Model, nodes: Mapping[str, Any]) -> tuple[int, tuple[tuple[str, str], ...]]:
    if not nodes:
        return 0, ()
    found = list(places(model.graph, as_nodes=False))
    wrong = tuple(
        (g.label(found[int(index)].node), result)
        for index, result in nodes.items()
        if isinstance(result, str)
    )
    if wrong:
        return 0, wrong
    splicer = Splicer(model.graph)
    for index, data in nodes.items():
        splicer.replace(found[int(index)], bytes(data))
    return len(nodes), ()


def _set_versions(model: ir.Model, target: int) -> None:
    for imports in (model.opset_imports, *(f.opset_imports for f in model.functions.values())):
        for domain in g.DEFAULT_DOMAINS:
            if domain in imports:
                imports[domain] = target
    model.ir_version = max(model.ir_version, least_ir_version(target))


def take_over(model: ir.Model, draft: ir.Model) -> None:
    """Give the model the content of the draft."""
    meta = dict(model.graph.meta)
    model.graph = draft.graph
    model.graph.meta.update(meta)
    model.functions.clear()
    model.functions.update(draft.functions)
    model.ir_version = draft.ir_version
