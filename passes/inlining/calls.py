"""Which calls of model functions can be replaced by the body, and the order to do it in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import onnx_ir as ir

from converter.core.graph import DEFAULT_DOMAINS, subgraphs

Key = ir.OperatorIdentifier
_STANDARD = (*DEFAULT_DOMAINS, "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
_GRAPH_KINDS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of a graph and of all graphs inside it."""
    stack = [graph]
    while stack:
        for node in stack.pop():
            yield node
            stack.extend(subgraphs(node))


def callers_first(functions: Mapping[Key, ir.Function]) -> tuple[list[Key], set[Key]]:
    """Sort functions so that each comes before those that it calls.

    Returns:
        The order, and the functions that call themselves in the end, which are not part of it.
    """
    callees = {
        key: [n.op_identifier() for n in all_nodes(f.graph) if n.op_identifier() in functions]
        for key, f in functions.items()
    }
    waiting = dict.fromkeys(functions, 0)
    for called in callees.values():
        for key in called:
            waiting[key] += 1
    order = [key for key, count in waiting.items() if not count]
    for key in order:
        for inner in callees[key]:
            waiting[inner] -= 1
            if not waiting[inner]:
                order.append(inner)
    return order, set(functions) - set(order)


@dataclass(frozen=True)
class Verdict:
    """Whether one call can be inlined.

    Attributes:
        reason: Why not; "" when it can.
        imports: Operator sets that the caller has to import for it.
    """

    reason: str = ""
    imports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Needs:
    """What the body of a function uses: operator types by domain, and domains of calls only."""

    operators: Mapping[str, frozenset[str]]
    domains: frozenset[str]


class Judge:
    """Decides about calls; what it knows of a function is found out once."""

    def __init__(self, functions: Mapping[Key, ir.Function]) -> None:
        self._functions = functions
        self._needs: dict[Key, _Needs] = {}

    def verdict(self, call: ir.Node, root: ir.Graph, declared: Mapping[str, ir.Attr]) -> Verdict:
        """Say whether the call can be replaced by the body of its function.

        Args:
            call: The node.
            root: Main graph or function body that the call is in, at any depth.
            declared: Attributes of that function; empty for the main graph.
        """
        function = self._functions[call.op_identifier()]
        reason = _ports(call, function) or _attributes(call, function, declared)
        if call.domain in _STANDARD:
            reason = "its function has the name of a standard domain; runtimes differ on who wins"
        if reason:
            return Verdict(reason)
        return self._imports(function, root.opset_imports)

    def _imports(self, function: ir.Function, around: Mapping[str, int]) -> Verdict:
        own, needs = function.opset_imports, self._needed(function)
        missing: dict[str, int] = {}
        for domain in sorted(needs.domains):
            version, other = _version(own, domain), _version(around, domain)
            if version is None:
                return Verdict(f"its function does not import the domain {domain or 'ai.onnx'!r}")
            if other is None:
                missing[domain] = version
                continue
            for op_type in sorted(needs.operators.get(domain, ())):
                if version != other and not _same_meaning(op_type, domain, version, other):
                    return Verdict(
                        f"its function uses {op_type} of opset {version}, which opset {other} "
                        "around it defines in another way"
                    )
        return Verdict(imports=missing)

    def _needed(self, function: ir.Function) -> _Needs:
        key = function.identifier()
        if key not in self._needs:
            operators: dict[str, set[str]] = {}
            domains: set[str] = set()
            for node in all_nodes(function.graph):
                domain = "" if node.domain == "ai.onnx" else node.domain
                domains.add(domain)
                if node.op_identifier() not in self._functions:
                    operators.setdefault(domain, set()).add(node.op_type)
            frozen = {domain: frozenset(types) for domain, types in operators.items()}
            self._needs[key] = _Needs(frozen, frozenset(domains))
        return self._needs[key]


def _version(imports: Mapping[str, int], domain: str) -> int | None:
    return imports.get(domain, imports.get("ai.onnx") if domain == "" else None)


@cache
def _same_meaning(op_type: str, domain: str, version: int, other: int) -> bool:
    """Tell whether two versions of an operator set define the operator alike."""
    import onnx

    try:
        schemas = [onnx.defs.get_schema(op_type, v, domain) for v in (version, other)]
    except onnx.defs.SchemaError:
        return False
    return schemas[0].since_version == schemas[1].since_version


def _ports(call: ir.Node, function: ir.Function) -> str:
    if len(call.inputs) > len(function.inputs) or len(call.outputs) > len(function.outputs):
        return "it has more inputs or outputs than its function"
    given = (*call.inputs, *[None] * (len(function.inputs) - len(call.inputs)))
    for formal, actual in zip(function.inputs, given, strict=True):
        if actual is None and formal.is_graph_output():
            return "its function passes on an input that the call leaves out"
    return ""


def _attributes(call: ir.Node, function: ir.Function, declared: Mapping[str, ir.Attr]) -> str:
    for name, attribute in call.attributes.items():
        if attribute.type in _GRAPH_KINDS:
            return "it passes a graph to its function"
        default = function.attributes.get(name)
        if not attribute.is_ref() or default is None or default.value is None:
            continue
        outer = declared.get(attribute.ref_attr_name or "")
        if outer is None or outer.value is None:
            return "it passes on an attribute that its own caller may leave out"
    for node in all_nodes(function.graph):
        for attribute in node.attributes.values():
            if not attribute.is_ref():
                continue
            name = attribute.ref_attr_name or ""
            source = call.attributes.get(name, function.attributes.get(name))
            if source is not None and source.type != attribute.type:
                typed = source.is_ref() or source.value is not None
                if typed and source.type != ir.AttributeType.UNDEFINED:
                    return f"it gives attribute {name!r} a type that its function does not expect"
    return ""
