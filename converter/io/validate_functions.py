"""Rules for model functions: names, calls without recursion, and the size when all are expanded.

Thirty functions that each call the next one twice are a model of a kilobyte and of 2^30 nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING

from converter.core.graph import DEFAULT_DOMAINS
from converter.errors import InvalidModelError, LimitExceededError
from converter.io.limits import LoadLimits, quoted

if TYPE_CHECKING:
    import onnx

Key = tuple[str, str, str]


def function_key(function: onnx.FunctionProto) -> Key:
    """Return (domain, name, overload), by which nodes call a function."""
    domain = "" if function.domain in DEFAULT_DOMAINS else function.domain
    return (domain, function.name, function.overload)


def check_functions(
    functions: Sequence[onnx.FunctionProto], main: onnx.GraphProto, limits: LoadLimits
) -> None:
    """Check the functions of a model as a whole; their bodies are checked like graphs.

    Raises:
        InvalidModelError: One has no name, two have the same, or one calls itself through others.
        LimitExceededError: There are too many, or too many nodes when all calls are expanded.
    """
    if not functions:
        return
    if len(functions) > limits.functions:
        raise LimitExceededError(f"the model has more than {limits.functions} functions")
    bodies: dict[Key, onnx.FunctionProto] = {}
    for function in functions:
        key = function_key(function)
        if not function.name:
            raise InvalidModelError("a function has no name")
        if key in bodies:
            raise InvalidModelError(f"there are two functions {quoted(function.name)}")
        bodies[key] = function
    calls: dict[Key, Counter[Key]] = {}
    own: dict[Key, int] = {}
    for key, function in bodies.items():
        calls[key], own[key] = _calls(function.node, bodies.keys())
    sizes = dict(own)
    for key in _callees_first(calls):
        sizes[key] += sum(count * sizes[callee] for callee, count in calls[key].items())
        # sizes double from level to level: stop before they become numbers of thousands of digits
        sizes[key] = min(sizes[key], limits.expanded_nodes + 1)
    used, nodes = _calls(main.node, bodies.keys())
    total = nodes + sum(count * sizes[callee] for callee, count in used.items())
    if total > limits.expanded_nodes:
        raise LimitExceededError(
            "the functions of the model expand to too many nodes",
            allowed=f"at most {limits.expanded_nodes} nodes",
        )


def _calls(nodes: Sequence[onnx.NodeProto], known: Container[Key]) -> tuple[Counter[Key], int]:
    """Count the calls of functions in a body with its sub-graphs, and its nodes."""
    calls: Counter[Key] = Counter()
    total = 0
    for node in _all_nodes(nodes):
        total += 1
        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        key = (domain, node.op_type, node.overload)
        if key in known:
            calls[key] += 1
    return calls, total


def _all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    waiting = [nodes]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g.node)
                waiting.extend(graph.node for graph in attribute.graphs)


def _callees_first(calls: dict[Key, Counter[Key]]) -> Iterator[Key]:
    """Yield every function after those that it calls.

    Raises:
        InvalidModelError: There is a cycle of calls.
    """
    done: set[Key] = set()
    open_: set[Key] = set()
    for start in calls:
        stack = [start]
        while stack:
            key = stack[-1]
            if key in done:
                stack.pop()
            elif key in open_:
                # all callees are done by now
                open_.discard(key)
                done.add(key)
                stack.pop()
                yield key
            else:
                open_.add(key)
                for callee in calls[key]:
                    if callee in open_:
                        raise InvalidModelError(
                            "a function calls itself, directly or through others",
                            where=f"function {quoted(callee[1])}",
                        )
                    if callee not in done:
                        stack.append(callee)
