"""Structural validation of a model that is not trusted, before any of its tensors is read.

It works on the protobuf form, also on a skeleton whose large tensors are elsewhere, because much of
what can be wrong is gone or raises odd errors once there is an ``ir.Model``. It is iterative (deep
models cannot exhaust the stack) and linear in the size of the model. What onnxruntime and the
specification both accept is accepted; where they differ:

- nodes of the main graph out of order are accepted as long as there is no cycle (loading sorts
  them), as onnxruntime does;
- graphs without a name and outputs without a type are accepted, as onnxruntime does;
- everything else that ``onnx.checker`` refuses is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from converter.core.graph import DEFAULT_DOMAINS
from converter.errors import InvalidModelError, LimitExceededError
from converter.io.limits import DEFAULT_LIMITS, LoadLimits, quoted
from converter.io.validate_bodies import body_problems
from converter.io.validate_functions import check_functions, function_key
from converter.io.validate_node import (
    check_attributes,
    check_schema,
    check_types,
    schema_of,
    value_of,
)
from converter.io.validate_scope import Scope
from converter.io.validate_tensor import (
    TensorRules,
    check_type,
    sparse_tensors_of,
    tensors_of,
)
from converter.ops.facts import FACTS
from converter.ops.node_facts import Known, NodeFacts

OLDEST_IR = 1
NEWEST_IR = 13
NEWEST_OPSET = {"": 26, "ai.onnx.ml": 5}
"""What onnxruntime 1.31 loads; to be raised together with it."""

_LARGEST_VERSION = (1 << 31) - 1
_FIRST_WITH_OPSETS = 3  # IR version
_FIRST_WITH_FREE_INITIALIZERS = 4
_NO_IMPORT_NEEDED = {"com.microsoft"}  # onnxruntime brings its own set; files leave it out
_PLAIN = {
    onnx.AttributeProto.INT,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.FLOATS,
}
_WITH_GRAPHS = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
_Graph = onnx.GraphProto | onnx.FunctionProto


def validate(proto: onnx.ModelProto, limits: LoadLimits = DEFAULT_LIMITS) -> None:
    """Check a model, or its skeleton whose bulk tensors carry no bytes.

    Raises:
        InvalidModelError: The model breaks a rule of the ONNX specification.
        LimitExceededError: The model is larger than the limits.
    """
    try:
        _Validator(proto, limits).run()
    except UnicodeDecodeError as error:
        raise InvalidModelError("a text in the model is not UTF-8") from error


@dataclass(frozen=True)
class _Body:
    """A graph or function body that waits to be checked."""

    graph: _Graph
    scope: Scope
    imports: Mapping[str, int]
    references: frozenset[str] | None


class _Validator:
    def __init__(self, proto: onnx.ModelProto, limits: LoadLimits) -> None:
        self._proto = proto
        self._limits = limits
        self._tensors = TensorRules(limits)
        self._nodes = 0
        self._functions = {function_key(f) for f in proto.functions}
        self._waiting: list[_Body] = []

    def run(self) -> None:
        proto = self._proto
        _check_header(proto)
        imports = _imports(proto.opset_import, "the model")
        if proto.ir_version < _FIRST_WITH_OPSETS and not imports:
            imports = {"": 1}
        check_functions(proto.functions, proto.graph, self._limits)
        scope = Scope("the main graph", proto.graph.node)
        self._add_graph(_Body(proto.graph, scope, imports, None))
        scopes = [scope]
        scopes.extend([self._add_function(function, imports) for function in proto.functions])
        while self._waiting:
            body = self._waiting.pop()
            if body.scope.depth:
                scopes.append(body.scope)
            self._check_nodes(body)
            _check_outputs(body)
        for each in scopes:
            self._check_names(each)
        if not proto.graph.output:
            raise InvalidModelError("the model has no outputs", where="the main graph")
        # inner scopes first: they enter what they take from outside
        for each in reversed(scopes):
            each.check_order()

    def _add_function(self, function: onnx.FunctionProto, imports: Mapping[str, int]) -> Scope:
        where = f"function {quoted(function.name)}"
        own = _imports(function.opset_import, where) or dict(imports)
        scope = Scope(where, function.node, function=True)
        scope.define_inputs(function.input)
        scope.define_outputs()
        names = [*function.attribute, *(a.name for a in function.attribute_proto)]
        if len(set(names)) < len(names):
            raise InvalidModelError("a function has two attributes of one name", where=where)
        check_attributes(
            function.attribute_proto, ir_version=self._proto.ir_version, references=None
        )
        self._count(len(function.node))
        self._waiting.append(_Body(function, scope, own, frozenset(names)))
        return scope

    def _add_graph(self, body: _Body) -> None:
        """Enter the names of a graph and check its values and tensors."""
        graph, scope = body.graph, body.scope
        assert isinstance(graph, onnx.GraphProto)
        if scope.depth > self._limits.depth:
            raise LimitExceededError(
                f"sub-graphs are nested deeper than {self._limits.depth}", where=scope.where
            )
        self._count(len(graph.node))
        scope.define_inputs(value.name for value in graph.input)
        scope.define_initializers(
            [
                *(t.name for t in graph.initializer),
                *(s.values.name for s in graph.sparse_initializer),
            ]
        )
        self._check_values(graph, scope)
        for tensor in graph.initializer:
            self._tensors.check(tensor, f"initializer {quoted(tensor.name)}")
            scope.known[tensor.name] = Known(tensor.data_type, tuple(tensor.dims), tensor)
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            self._tensors.check_sparse(sparse, f"sparse initializer {quoted(name)}")
            scope.known[name] = Known(sparse.values.data_type, tuple(sparse.dims))
        if self._proto.ir_version < _FIRST_WITH_FREE_INITIALIZERS:
            _check_old_initializers(graph, scope)
        self._forget_defaults(graph, scope)
        scope.define_outputs()
        self._waiting.append(body)

    def _forget_defaults(self, graph: onnx.GraphProto, scope: Scope) -> None:
        """A caller may give another value for an initializer that is an input, too."""
        for value in graph.input:
            known = scope.known.get(value.name)
            if known is not None and known.tensor is not None:
                scope.known[value.name] = Known(known.element, known.shape)

    def _check_values(self, graph: onnx.GraphProto, scope: Scope) -> None:
        """Check the declared types; those of inputs are facts, the others only claims."""
        inner = scope.depth > 0
        for value in graph.input:
            where = f"input {quoted(value.name)}"
            if value.type.WhichOneof("value") is not None:
                check_type(value.type, where, limits=self._limits)
                if not inner:
                    scope.known[value.name] = _declared(value.type)
            elif not inner:
                raise InvalidModelError("an input has no type", where=where)
        for value in (*graph.output, *graph.value_info):
            if value.type.WhichOneof("value") is not None:
                check_type(value.type, f"value {quoted(value.name)}", limits=self._limits)

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > self._limits.nodes:
            raise LimitExceededError(f"the model has more than {self._limits.nodes} nodes")

    def _check_names(self, scope: Scope) -> None:
        longest = max(map(len, scope.positions), default=0)
        if longest > self._limits.name_length:
            raise LimitExceededError(
                f"a name has {longest} characters",
                where=scope.where,
                allowed=f"at most {self._limits.name_length}",
            )

    def _check_nodes(self, body: _Body) -> None:
        for position, node in enumerate(body.scope.nodes):
            try:
                self._check_node(node, position, body)
            except (InvalidModelError, LimitExceededError) as error:
                # the place is put in here: to name it for every node costs more than the checks
                place = _place(node, position, body.scope)
                error.where = f"{place}, {error.where}" if error.where else place
                raise
            if any(attribute.type in _WITH_GRAPHS for attribute in node.attribute):
                self._enter_subgraphs(node, position, body)

    def _check_node(self, node: onnx.NodeProto, position: int, body: _Body) -> None:
        if not node.op_type:
            raise InvalidModelError("a node has no operator type")
        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        version = body.imports.get(domain)
        if version is None and domain not in _NO_IMPORT_NEEDED:
            raise InvalidModelError(
                f"no version is imported for the operator set {quoted(domain or 'ai.onnx')}"
            )
        attributes = check_attributes(
            node.attribute, ir_version=self._proto.ir_version, references=body.references
        )
        known = [body.scope.use(name, position) if name else None for name in node.input]
        for name, attribute in attributes.items():
            if attribute.type not in _PLAIN:
                self._check_contents(attribute, f"attribute {quoted(name)}")
        if node.domain in DEFAULT_DOMAINS:
            _raise_first(body_problems(node, attributes))
        if (domain, node.op_type, node.overload) in self._functions:
            return
        self._check_operator(node, attributes, known, domain, version or 1)
        if node.op_type == "Constant" and not domain and node.output:
            _note_constant(body.scope, node.output[0], attributes)

    def _check_operator(
        self,
        node: onnx.NodeProto,
        attributes: Mapping[str, onnx.AttributeProto],
        known: Sequence[Known | None],
        domain: str,
        version: int,
    ) -> None:
        schema = schema_of(domain, node.op_type, version)
        if schema is not None:
            check_schema(node, attributes, schema)
            check_types([k.element if k is not None else None for k in known], schema)
        rule = FACTS.find(domain, node.op_type, version)
        if rule is None or any(a.ref_attr_name for a in attributes.values()):
            return
        values = {name: value_of(a) for name, a in attributes.items() if a.type}
        outputs = sum(1 for name in node.output if name)
        _raise_first(rule(NodeFacts(known, values, outputs, version)), node.op_type)

    def _check_contents(self, attribute: onnx.AttributeProto, place: str) -> None:
        """Check tensors, types and lengths inside an attribute."""
        for tensor in tensors_of(attribute):
            self._tensors.check(tensor, place)
        for sparse in sparse_tensors_of(attribute):
            self._tensors.check_sparse(sparse, place)
        for kind in (*([attribute.tp] if attribute.HasField("tp") else []), *attribute.type_protos):
            check_type(kind, place, limits=self._limits)
        if len(attribute.s) > self._limits.attribute_bytes:
            raise LimitExceededError("the text of an attribute is too long", where=place)

    def _enter_subgraphs(self, node: onnx.NodeProto, position: int, body: _Body) -> None:
        for attribute in node.attribute:
            for graph in _graphs_of(attribute):
                where = f"{_place(node, position, body.scope)}, {quoted(attribute.name)}"
                scope = Scope(where, graph.node, body.scope, position, body.scope.depth + 1)
                self._add_graph(_Body(graph, scope, body.imports, body.references))


def _raise_first(problems: Iterable[str], op_type: str = "") -> None:
    for problem in problems:
        raise InvalidModelError(f"{op_type}: {problem}" if op_type else problem)


def _check_header(proto: onnx.ModelProto) -> None:
    if not OLDEST_IR <= proto.ir_version <= NEWEST_IR:
        raise InvalidModelError(
            f"the model has the IR version {proto.ir_version}",
            allowed=f"{OLDEST_IR} to {NEWEST_IR}, which onnxruntime loads",
            hint="export the model again, for an IR version that onnxruntime loads",
        )
    if not proto.HasField("graph"):
        raise InvalidModelError("the model has no graph")
    seen: dict[str, str] = {}
    for entry in proto.metadata_props:
        if seen.setdefault(entry.key, entry.value) != entry.value:
            raise InvalidModelError(
                f"the metadata of the model has two values for {quoted(entry.key)}"
            )


def _imports(entries: Iterable[onnx.OperatorSetIdProto], where: str) -> dict[str, int]:
    """Return the operator set versions by domain, "" for the default one."""
    # of several versions the last counts: onnxruntime and onnx_ir read them so
    found = {"" if e.domain in DEFAULT_DOMAINS else e.domain: e.version for e in entries}
    for domain, version in found.items():
        newest = NEWEST_OPSET.get(domain, _LARGEST_VERSION)
        if not 1 <= version <= newest:
            raise InvalidModelError(
                f"version {version} of the operator set {quoted(domain or 'ai.onnx')}",
                where=where,
                allowed=f"1 to {newest}",
                hint="export the model for an operator set that onnxruntime loads",
            )
    return found


def _check_old_initializers(graph: onnx.GraphProto, scope: Scope) -> None:
    """Before IR version 4 every initializer is the default of an input."""
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in inputs:
            raise InvalidModelError(
                f"the initializer {quoted(tensor.name)} is no input",
                where=scope.where,
                allowed="free initializers from IR version 4 on",
            )


def _check_outputs(body: _Body) -> None:
    """The outputs of a scope must be made, or at least defined, in that very scope."""
    graph, scope = body.graph, body.scope
    if isinstance(graph, onnx.GraphProto):
        names: list[str] = [value.name for value in graph.output]
    else:
        names = list(graph.output)
    for name in names:
        if name not in scope.positions:
            raise InvalidModelError(f"the output {quoted(name)} is not defined", where=scope.where)


def _declared(proto: onnx.TypeProto) -> Known:
    """Return what the type of a graph input says about it."""
    if proto.WhichOneof("value") != "tensor_type":
        return Known()
    kind = proto.tensor_type
    if not kind.HasField("shape"):
        return Known(kind.elem_type)
    # onnxruntime reads a negative dimension as an unknown one
    sizes = (d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Known(kind.elem_type, tuple(size if size >= 0 else None for size in sizes))


def _note_constant(scope: Scope, name: str, attributes: Mapping[str, onnx.AttributeProto]) -> None:
    attribute = attributes.get("value")
    if attribute is not None and attribute.HasField("t"):
        tensor = attribute.t
        scope.known[name] = Known(tensor.data_type, tuple(tensor.dims), tensor)
        return
    attribute = attributes.get("value_ints")
    if attribute is not None:
        tensor = onnx.helper.make_tensor(
            "", onnx.TensorProto.INT64, [len(attribute.ints)], list(attribute.ints)
        )
        scope.known[name] = Known(tensor.data_type, tuple(tensor.dims), tensor)


def _graphs_of(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _place(node: onnx.NodeProto, position: int, scope: Scope) -> str:
    """Name a node for messages."""
    name = node.name or next((output for output in node.output if output), "")
    title = quoted(name, 80) if name else f"number {position}"
    return f"{scope.where}, node {title} ({quoted(node.op_type, 40)[1:-1]})"
