"""Hostile cases inside the model: header, tensors, graph, bombs, types."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx
from hostile import builders as b
from hostile.builders import Case, edited, node, saved, tensor, value
from onnx import AttributeProto, TensorProto, helper

LONG = 10 << 20


def headers() -> Iterator[Case]:
    def with_ir(number: int):
        return edited(b.relu, lambda m: setattr(m, "ir_version", number))

    for number, expect in ((0, "reject"), (-1, "reject"), (3, "accept"), (13, "accept")):
        yield Case("header", f"ir {number}", expect, with_ir(number))
    yield Case("header", "ir 14", "reject", with_ir(14))
    yield Case("header", "ir 2^40", "reject", with_ir(1 << 40))
    yield Case("header", "no ir", "reject", edited(b.relu, lambda m: m.ClearField("ir_version")))
    for number, expect in ((0, "reject"), (-3, "reject"), (27, "reject"), (1 << 40, "reject")):
        yield Case("header", f"opset {number}", expect, saved(lambda n=number: b.relu(opset=n)))
    for number in (7, 26):
        made = saved(lambda n=number: b.relu(opset=n, ir=13))
        yield Case("header", f"opset {number}", "accept", made)
    for number in ((1 << 31), (1 << 63) - 1):
        made = edited(b.relu, lambda m, n=number: _other_domain(m, n))
        yield Case("header", f"opset {number} of a domain", "reject", made)
    yield Case("header", "no opset", "reject", edited(b.relu, lambda m: m.opset_import.pop()))
    yield Case("header", "no graph", "reject", edited(b.relu, lambda m: m.ClearField("graph")))
    yield Case("header", "empty graph", "reject", edited(b.relu, lambda m: m.graph.Clear()))
    yield Case("header", "no domain", "reject", edited(b.relu, _custom_domain))
    texts = {
        "escape": "\x1b[2J\x1b]0;owned\x07",
        "newline": "a\nb",
        "nul": "a\0b",
        "direction": "\u202e\u2066",
        "path": "../../../etc/passwd",
        "long": "n" * LONG,
    }
    for name, text in texts.items():
        yield Case("header", f"producer {name}", "either", edited(b.relu, _producer(text)))
        yield Case("header", f"node name {name}", "either", edited(b.relu, _node_name(text)))
        yield Case("header", f"value name {name}", "either", edited(_chain, _rename(text)))
    yield Case(
        "header", "metadata twice", "reject", edited(b.relu, _metadata(("a", "1"), ("a", "2")))
    )
    many = [(f"k{i}", "v") for i in range(20_000)]
    yield Case("header", "20,000 entries", "accept", edited(b.relu, _metadata(*many)))


def _other_domain(made: onnx.ModelProto, version: int) -> None:
    made.graph.node[0].domain = "other"
    made.opset_import.add(domain="other", version=version)


def _custom_domain(made: onnx.ModelProto) -> None:
    made.graph.node[0].domain = "no.such.domain"


def _producer(text: str):
    return lambda m: setattr(m, "producer_name", text)


def _node_name(text: str):
    return lambda m: setattr(m.graph.node[0], "name", text)


def _rename(text: str):
    def edit(made: onnx.ModelProto) -> None:
        made.graph.node[0].output[0] = text
        made.graph.node[1].input[0] = text

    return edit


def _metadata(*entries: tuple[str, str]):
    def edit(made: onnx.ModelProto) -> None:
        for key, text in entries:
            made.metadata_props.add(key=key, value=text)

    return edit


def _chain(count: int = 2) -> onnx.ModelProto:
    names = ["x", *(f"h{i}" for i in range(count - 1)), "y"]
    nodes = [node("Relu", [a], [c]) for a, c in itertools.pairwise(names)]
    return b.model(nodes, [value("x")], [value("y")])


def tensors() -> Iterator[Case]:
    def weight(**fields):
        def build() -> onnx.ModelProto:
            made = TensorProto(name="w", **fields)
            return b.matmul(made)

        return saved(build)

    raw = bytes(48)
    f, i64 = b.FLOAT, b.INT64
    broken = {
        "raw too short": {"data_type": f, "dims": (3, 4), "raw_data": raw[:-1]},
        "raw one element short": {"data_type": f, "dims": (3, 4), "raw_data": raw[:-4]},
        "raw too long": {"data_type": f, "dims": (3, 4), "raw_data": raw + b"\0"},
        "raw twice as long": {"data_type": f, "dims": (3, 4), "raw_data": raw * 2},
        "raw large and short": {"data_type": f, "dims": (3, 4000), "raw_data": raw * 900},
        "raw large and long": {"data_type": f, "dims": (3, 4), "raw_data": raw * 900},
        "no data": {"data_type": f, "dims": (3, 4)},
        "typed too short": {"data_type": f, "dims": (3, 4), "float_data": [0.0] * 11},
        "typed too long": {"data_type": f, "dims": (3, 4), "float_data": [0.0] * 13},
        "wrong typed field": {"data_type": f, "dims": (3, 4), "int32_data": [0] * 12},
        "two typed fields": {
            "data_type": f,
            "dims": (3, 4),
            "float_data": [0.0] * 12,
            "int64_data": [0] * 12,
        },
        "raw and typed": {
            "data_type": f,
            "dims": (3, 4),
            "raw_data": raw,
            "float_data": [0.0] * 12,
        },
        "type undefined": {"data_type": 0, "dims": (3, 4), "raw_data": raw},
        "type 99": {"data_type": 99, "dims": (3, 4), "raw_data": raw},
        "type -1": {"data_type": -1, "dims": (3, 4), "raw_data": raw},
        "dims negative": {"data_type": f, "dims": (-3, 4), "raw_data": raw},
        "dims both negative": {"data_type": f, "dims": (-3, -4), "raw_data": raw},
        "dims one negative, no data": {"data_type": f, "dims": (-1,)},
        "dims of 2^40": {"data_type": f, "dims": (1 << 20, 1 << 20)},
        "dims of 2^40, typed": {"data_type": f, "dims": (1 << 40,), "float_data": [0.0]},
        "dims wrap to 0": {"data_type": f, "dims": (1 << 32, 1 << 32)},
        "dims wrap to 12": {"data_type": f, "dims": (3, 4, 1 << 62, 4), "raw_data": raw},
        "dims overflow beside 0": {"data_type": f, "dims": (0, 1 << 62, 1 << 62)},
        "dims of 2^63 - 1": {"data_type": f, "dims": ((1 << 63) - 1,), "raw_data": raw},
        "rank 1,000": {"data_type": f, "dims": (1,) * 1000, "raw_data": raw[:4]},
        "strings as raw": {"data_type": TensorProto.STRING, "dims": (1,), "raw_data": b"ab"},
        "strings missing": {"data_type": TensorProto.STRING, "dims": (2,), "string_data": [b"a"]},
        "uint8 of 300": {"data_type": b.UINT8, "dims": (1,), "int32_data": [300]},
        "float16 of 70000": {
            "data_type": TensorProto.FLOAT16,
            "dims": (1,),
            "int32_data": [70000],
        },
        "int64 in int32": {"data_type": i64, "dims": (2,), "int32_data": [1, 2]},
        "int4 short": {"data_type": TensorProto.INT4, "dims": (3,), "raw_data": b"\0"},
        "int4 long": {"data_type": TensorProto.INT4, "dims": (3,), "raw_data": bytes(3)},
        "complex odd": {"data_type": TensorProto.COMPLEX64, "dims": (2,), "float_data": [0.0] * 3},
        "segment": {
            "data_type": f,
            "dims": (3, 4),
            "raw_data": raw,
            "segment": TensorProto.Segment(begin=0, end=48),
        },
    }
    for name, fields in broken.items():
        yield Case("tensor", name, "reject", weight(**fields))
    good = {
        "scalar": {"data_type": f, "dims": (), "raw_data": raw[:4]},
        "nothing in it": {"data_type": f, "dims": (0, 4), "raw_data": b""},
        "nothing in it, no data": {"data_type": f, "dims": (0,)},
        "int4": {"data_type": TensorProto.INT4, "dims": (3,), "raw_data": bytes(2)},
        "int4 typed": {"data_type": TensorProto.INT4, "dims": (3,), "int32_data": [18, 3]},
        "bfloat16": {"data_type": TensorProto.BFLOAT16, "dims": (2,), "int32_data": [16256, 0]},
        "float8": {"data_type": TensorProto.FLOAT8E4M3FN, "dims": (2,), "raw_data": b"\x01\x02"},
        "complex": {"data_type": TensorProto.COMPLEX64, "dims": (2,), "float_data": [0.0] * 4},
        "strings": {"data_type": TensorProto.STRING, "dims": (2,), "string_data": [b"", b"\xff"]},
        "rank 20": {"data_type": f, "dims": (1,) * 20, "raw_data": raw[:4]},
    }
    for name, fields in good.items():
        yield Case("tensor", f"fine: {name}", "accept", saved(lambda g=fields: _beside(g)))
    yield from _sparse()


def _beside(fields: dict) -> onnx.ModelProto:
    """A valid model with one more initializer that nothing uses."""
    made = b.matmul()
    made.graph.initializer.append(TensorProto(name="extra", **fields))
    return made


def _sparse() -> Iterator[Case]:
    def build(values, indices, dims, kind=b.INT64, shape=None):
        made = b.matmul()
        del made.graph.initializer[:]
        shape = shape or [len(indices)]
        sparse = onnx.SparseTensorProto(
            values=tensor("w", b.FLOAT, [len(values)], values),
            indices=tensor("", kind, shape, indices),
            dims=dims,
        )
        made.graph.sparse_initializer.append(sparse)
        return made

    cases = {
        "fine": ("accept", ([1.0, 2.0], [0, 5], [3, 4])),
        "fine, coordinates": ("accept", ([1.0, 2.0], [0, 0, 1, 2], [3, 4], b.INT64, [2, 2])),
        "fine, empty": ("either", ([], [], [3, 4])),
        "index too large": ("reject", ([1.0], [12], [3, 4])),
        "index negative": ("reject", ([1.0], [-1], [3, 4])),
        "coordinate too large": ("reject", ([1.0], [0, 4], [3, 4], b.INT64, [1, 2])),
        "unsorted": ("reject", ([1.0, 2.0], [5, 0], [3, 4])),
        "twice": ("reject", ([1.0, 2.0], [5, 5], [3, 4])),
        "too few indices": ("reject", ([1.0, 2.0], [5], [3, 4])),
        "int32 indices": ("reject", ([1.0], [5], [3, 4], TensorProto.INT32)),
        "dims of 2^40": ("reject", ([1.0], [5], [1 << 20, 1 << 20])),
        "dims negative": ("reject", ([1.0], [5], [-3, 4])),
        "dims wrap": ("reject", ([1.0], [5], [1 << 32, 1 << 32])),
    }
    for name, (expect, arguments) in cases.items():
        yield Case("tensor", f"sparse {name}", expect, saved(lambda a=arguments: build(*a)))


def graphs() -> Iterator[Case]:
    x, y = [value("x")], [value("y")]

    def nodes(*made, constants=(), outputs=y, **options):
        return saved(lambda: b.model(made, x, outputs, constants, **options))

    def r(source: str, target: str):
        return node("Relu", [source], [target])

    ring = [r("x", "start"), node("Add", ["start", "n999"], ["n0"])]
    ring += [r(f"n{i}", f"n{i + 1}") for i in range(999)] + [r("n999", "y")]
    reject = {
        "self loop": nodes(node("Add", ["x", "y"], ["y"])),
        "cycle of two": nodes(node("Add", ["x", "a"], ["y"]), r("y", "a")),
        "ring of 1,000": nodes(*ring),
        "undefined input": nodes(r("nothing", "y")),
        "undefined output": nodes(r("x", "z")),
        "output twice defined": nodes(r("x", "y"), node("Neg", ["x"], ["y"])),
        "one node, one name twice": nodes(node("Split", ["x"], ["y", "y"])),
        "defines the input": nodes(r("x", "x"), r("x", "y")),
        "defines an initializer": nodes(r("x", "w"), r("w", "y"), constants=[b.weights()]),
        "initializer twice": nodes(
            node("MatMul", ["x", "w"], ["y"]), constants=[b.weights(), b.weights()]
        ),
        "initializer without a name": nodes(r("x", "y"), constants=[b.weights("")]),
        "no operator": nodes(node("", ["x"], ["y"])),
        "no inputs": nodes(node("Relu", [], ["y"])),
        "too many inputs": nodes(node("Relu", ["x", "x"], ["y"])),
        "required input left out": nodes(node("Add", ["x", ""], ["y"])),
        "output without a name": nodes(r("x", "y"), outputs=[value("y"), value("")]),
        "too many outputs": nodes(node("Relu", ["x"], ["y", "z"])),
        "no outputs": nodes(r("x", "y"), node("Relu", ["x"], [])),
        "attribute unknown": nodes(node("Relu", ["x"], ["y"], foo=1)),
        "attribute of the wrong type": nodes(node("Elu", ["x"], ["y"], alpha=1)),
        "attribute missing": nodes(node("Concat", ["x", "x"], ["y"])),
        "constant with two values": nodes(
            node("Constant", [], ["c"], value_int=1, value_float=1.0), r("x", "y")
        ),
        "constant without a value": nodes(node("Constant", [], ["c"]), r("x", "y")),
    }
    for name, make in reject.items():
        yield Case("graph", name, "reject", make)
    yield Case(
        "graph", "input twice", "reject", edited(b.relu, lambda m: m.graph.input.append(x[0]))
    )
    yield Case("graph", "input nameless", "reject", edited(b.relu, _nameless))
    yield Case("graph", "unsorted", "either", nodes(r("a", "y"), r("x", "a")))
    yield Case("graph", "output twice", "either", nodes(r("x", "y"), outputs=[value("y")] * 2))
    yield Case("graph", "output is the input", "accept", nodes(r("x", "y"), outputs=[*y, x[0]]))
    yield Case("graph", "dead nodes", "accept", nodes(r("x", "y"), r("x", "z"), r("z", "u")))
    yield Case("graph", "no outputs at all", "reject", nodes(r("x", "y"), outputs=[]))
    yield Case("graph", "unknown operator", "either", nodes(node("Nonsense", ["x"], ["y"])))
    yield Case("graph", "names twice", "either", nodes(*[_named("Relu", *p) for p in ("xa", "ay")]))
    yield from _attributes()
    yield from _subgraphs()
    yield from _functions()


def _named(op: str, source: str, target: str) -> onnx.NodeProto:
    return node(op, [source], [target], name="same")


def _nameless(made: onnx.ModelProto) -> None:
    made.graph.input.add().CopyFrom(value("z"))
    made.graph.input[1].name = ""


def _attributes() -> Iterator[Case]:
    def elu(edit):
        def build() -> onnx.ModelProto:
            made = b.model([node("Elu", ["x"], ["y"], alpha=1.0)], [value("x")], [value("y")])
            edit(made.graph.node[0].attribute)
            return made

        return saved(build)

    reject = {
        "twice": lambda a: a.append(a[0]),
        "nameless": lambda a: setattr(a[0], "name", ""),
        "no type": lambda a: setattr(a[0], "type", 0),
        "type 99": lambda a: a[0].MergeFromString(b"\xa0\x01\x63"),
        "two values": lambda a: setattr(a[0], "i", 1),
        "another field": lambda a: (a[0].ClearField("f"), setattr(a[0], "s", b"x")),
        "reference in the main graph": lambda a: (
            a[0].ClearField("f"),
            setattr(a[0], "ref_attr_name", "q"),
        ),
        "tensor without one": lambda a: a.add(name="t", type=AttributeProto.TENSOR),
        "graph without one": lambda a: a.add(name="t", type=AttributeProto.GRAPH),
    }
    for name, edit in reject.items():
        yield Case("graph", f"attribute {name}", "reject", elu(edit))


def _branch(name: str, nodes=None, inputs=(), outputs=None, constants=()) -> onnx.GraphProto:
    out = f"{name}_out"
    nodes = [node("Relu", ["x"], [out])] if nodes is None else nodes
    outputs = [value(out)] if outputs is None else outputs
    return helper.make_graph(nodes, name, list(inputs), outputs, list(constants))


def _if(then=None, other=None, outputs=("y",), **attributes) -> onnx.ModelProto:
    branches = {"then_branch": then or _branch("t"), "else_branch": other or _branch("e")}
    branches.update(attributes)
    kept = {name: graph for name, graph in branches.items() if graph is not False}
    return b.model(
        [node("If", ["c"], list(outputs), **kept)],
        [value("x")],
        [value("y")],
        [tensor("c", TensorProto.BOOL, (), [True])],
    )


def _nested(depth: int) -> onnx.ModelProto:
    graph = _branch("leaf")
    for level in range(depth):
        out = f"o{level}"
        inner = node("If", ["c"], [out], then_branch=graph, else_branch=_branch(f"e{level}"))
        graph = helper.make_graph([inner], f"g{level}", [], [value(out)])
    return _if(graph)


def _subgraphs() -> Iterator[Case]:
    relu, shown = node("Relu", ["x"], ["y"]), [value("t_out")]
    undefined = _branch("t", [node("Relu", ["nothing"], ["t_out"])])
    later = [node("Relu", ["a"], ["t_out"]), node("Neg", ["x"], ["a"])]
    cycle = [node("Add", ["x", "t_out"], ["t_out"])]
    through = _if(_branch("t", [node("Add", ["x", "y"], ["t_out"])]))
    reject = {
        "no else": lambda: _if(else_branch=False),
        "branch with an input": lambda: _if(_branch("t", inputs=[value("q")])),
        "branch with two outputs": lambda: _if(_branch("t", outputs=shown * 2)),
        "undefined inside": lambda: _if(undefined),
        "undefined output": lambda: _if(_branch("t", outputs=[value("zz")])),
        "outer value returned": lambda: _if(_branch("t", [], outputs=[value("x")])),
        "defines an outer name": lambda: _if(
            _branch("t", [node("Relu", ["x"], ["c"]), *later[::-1]])
        ),
        "unsorted": lambda: _if(_branch("t", later)),
        "cycle": lambda: _if(_branch("t", cycle)),
        "cycle through the node": lambda: through,
        "broken tensor inside": lambda: _if(
            _branch("t", constants=[TensorProto(name="k", data_type=1, dims=(5,))])
        ),
        "bad operator inside": lambda: _if(_branch("t", [node("Relu", [], ["t_out"])])),
        "initializer twice": lambda: _if(_branch("t", constants=[b.weights("k"), b.weights("k")])),
        "loop with too few inputs": lambda: _loop(inputs=1),
        "loop with too many inputs": lambda: _loop(inputs=5),
        "loop with too few outputs": lambda: _loop(outputs=1),
        "scan inputs of 0": lambda: _scan(0),
        "scan inputs of -1": lambda: _scan(-1),
        "scan inputs of 2^40": lambda: _scan(1 << 40),
        "no body": lambda: b.model(
            [node("Loop", ["", "", "x"], ["y"])], [value("x")], [value("y")]
        ),
    }
    for name, build in reject.items():
        yield Case("graph", f"sub-graph {name}", "reject", saved(build))
    yield Case("graph", "sub-graph fine", "accept", saved(_if))
    yield Case("graph", "loop fine", "accept", saved(_loop))
    yield Case("graph", "scan fine", "accept", saved(lambda: _scan(1)))
    del relu
    for depth, expect in ((5, "accept"), (20, "accept"), (30, "either"), (45, "reject")):
        if depth < 45:
            yield Case("graph", f"nested {depth}", expect, saved(lambda d=depth: _nested(d)))


def _loop(inputs: int = 3, outputs: int = 2) -> onnx.ModelProto:
    bool_, int_ = TensorProto.BOOL, b.INT64
    names = [value("i", (), int_), value("go", (), bool_), value("s"), value("t"), value("u")]
    nodes = [node("Identity", ["go"], ["go_on"]), node("Relu", ["s" if inputs > 2 else "x"], ["r"])]
    results = [value("go_on", (), bool_), value("r")]
    body = helper.make_graph(nodes, "body", names[:inputs], results[:outputs])
    return b.model(
        [node("Loop", ["n", "", "x"], ["y"], body=body)],
        [value("x")],
        [value("y")],
        [tensor("n", int_, (), [3])],
    )


def _scan(count: int) -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Relu", ["s"], ["r"])], "body", [value("s", (3,))], [value("r", (3,))]
    )
    return b.model(
        [node("Scan", ["x"], ["y"], body=body, num_scan_inputs=count)], [value("x")], [value("y")]
    )


def _function(name: str, body, inputs=("a",), outputs=("r",), attributes=(), domains=()):
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, outputs, body, imports, attributes)


def _calling(*functions: onnx.FunctionProto, name: str = "F", **attributes) -> onnx.ModelProto:
    return b.model(
        [node(name, ["x"], ["y"], domain="local", **attributes)],
        [value("x")],
        [value("y")],
        functions=functions,
        domains=["local"],
    )


def _call(name: str, source: str, target: str) -> onnx.NodeProto:
    return node(name, [source], [target], domain="local")


def _functions() -> Iterator[Case]:
    good = _function("F", [node("Relu", ["a"], ["r"])])
    ref = node("Elu", ["a"], ["r"])
    ref.attribute.add(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="al")
    pair = [_function("F", [_call("G", "a", "r")]), _function("G", [_call("F", "a", "r")])]
    unsorted = [node("Relu", ["h"], ["r"]), node("Neg", ["a"], ["h"])]
    outer = [node("Add", ["a", "x"], ["r"])]
    reject = {
        "recursion": lambda: _calling(_function("F", [_call("F", "a", "r")])),
        "recursion of two": lambda: _calling(*pair),
        "recursion never called": lambda: _calling(good, *[_renamed(p, "Q") for p in pair]),
        "twice": lambda: _calling(good, good),
        "nameless": lambda: _calling(good, _function("", [node("Relu", ["a"], ["r"])])),
        "undefined output": lambda: _calling(_function("F", [node("Relu", ["a"], ["q"])])),
        "undefined input": lambda: _calling(_function("F", [node("Relu", ["q"], ["r"])])),
        "sees the caller": lambda: _calling(_function("F", outer)),
        "input twice": lambda: _calling(_function("F", [node("Relu", ["a"], ["r"])], ("a", "a"))),
        "unsorted": lambda: _calling(_function("F", unsorted)),
        "cycle": lambda: _calling(_function("F", [node("Add", ["a", "r"], ["r"])])),
        "reference to nothing": lambda: _calling(_function("F", [ref])),
        "bad operator": lambda: _calling(_function("F", [node("Relu", [], ["r"])])),
        "attribute twice": lambda: _calling(
            _function("F", [node("Relu", ["a"], ["r"])], attributes=["p", "p"])
        ),
    }
    for name, build in reject.items():
        yield Case("graph", f"function {name}", "reject", saved(build))
    yield Case("graph", "function fine", "accept", saved(lambda: _calling(good)))
    with_attribute = _function("F", [ref], attributes=["al"])
    yield Case(
        "graph",
        "function with an attribute",
        "accept",
        saved(lambda: _calling(with_attribute, al=0.5)),
    )
    yield Case("graph", "function not called", "accept", saved(lambda: _unused(good)))


def _renamed(function: onnx.FunctionProto, suffix: str) -> onnx.FunctionProto:
    made = onnx.FunctionProto()
    made.CopyFrom(function)
    made.name += suffix
    made.node[0].op_type += suffix
    return made


def _unused(function: onnx.FunctionProto) -> onnx.ModelProto:
    return b.relu(functions=[function], domains=["local"])


def bombs() -> Iterator[Case]:
    def doubling(levels: int) -> onnx.ModelProto:
        functions = []
        for level in range(levels):
            name, callee = f"F{level}", f"F{level + 1}"
            body = [_call(callee, "a", "h"), _call(callee, "h", "r")]
            functions.append(_function(name, body))
        functions.append(_function(f"F{levels}", [node("Relu", ["a"], ["r"])]))
        return _calling(*functions, name="F0")

    yield Case("bomb", "2^30 nodes", "reject", saved(lambda: doubling(30)))
    yield Case("bomb", "2^5000 nodes", "reject", saved(lambda: doubling(5000)))
    yield Case("bomb", "2^8 nodes", "accept", saved(lambda: doubling(8)))
    yield Case("bomb", "concat doubling", "either", saved(lambda: _doubling_concat(40)))
    shapes = {
        "constant of 4 TiB": [1 << 20, 1 << 20],
        "constant of 2^62": [1 << 62],
    }
    for name, shape in shapes.items():
        yield Case("bomb", name, "either", saved(lambda s=shape: _of_shape(s)))
    yield Case("bomb", "tile", "either", saved(_tile))
    yield Case("bomb", "range", "either", saved(_range))
    yield Case("bomb", "endless loop", "reject", saved(_endless))
    yield Case("bomb", "division by -1", "either", saved(lambda: _division(-1)))
    yield Case("bomb", "division by 0", "either", saved(lambda: _division(0)))
    yield Case("bomb", "20,000 inputs of one node", "either", saved(lambda: _sum(20_000)))
    yield Case("bomb", "chain of 5,000", "accept", saved(lambda: _chain(5_000)))
    wide = saved(
        lambda: b.model([node("Split", ["x"], [f"o{i}" for i in range(50_000)])], [value("x")])
    )
    yield Case("bomb", "50,000 outputs", "either", wide)
    text = node("Relu", ["x"], ["y"])
    text.doc_string = "d" * LONG
    yield Case("bomb", "text of 10 MiB", "accept", saved(lambda: _only(text)))


def _only(made: onnx.NodeProto, *constants: onnx.TensorProto) -> onnx.ModelProto:
    return b.model([made], [value("x")], [value("y", None)], constants)


def _doubling_concat(levels: int) -> onnx.ModelProto:
    nodes = [
        node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0, name=f"n{i}")
        for i in range(levels)
    ]
    nodes.append(node("Relu", ["x"], ["y"]))
    outputs = [value("y"), value(f"c{levels}", None)]
    return b.model(nodes, [value("x")], outputs, [b.weights("c0", (64,))])


def _of_shape(shape: list[int]) -> onnx.ModelProto:
    constant = tensor("s", b.INT64, [len(shape)], shape)
    nodes = [node("ConstantOfShape", ["s"], ["y"])]
    return b.model(nodes, [value("x")], [value("y", None)], [constant])


def _tile() -> onnx.ModelProto:
    repeats = tensor("r", b.INT64, [2], [1 << 30, 1 << 30])
    return b.model(
        [node("Tile", ["c", "r"], ["y"])], [], [value("y", None)], [b.weights("c"), repeats]
    )


def _range() -> onnx.ModelProto:
    limits = [tensor(n, b.INT64, (), [v]) for n, v in (("a", 0), ("b", 1 << 50), ("d", 1))]
    return b.model([node("Range", ["a", "b", "d"], ["y"])], [], [value("y", None, b.INT64)], limits)


def _endless() -> onnx.ModelProto:
    made = _loop()
    made.graph.initializer[0].CopyFrom(tensor("n", b.INT64, (), [(1 << 63) - 1]))
    return made


def _division(by: int) -> onnx.ModelProto:
    constants = [tensor("a", b.INT64, (1,), [-(1 << 63)]), tensor("b", b.INT64, (1,), [by])]
    nodes = [node("Div", ["a", "b"], ["d"]), node("Relu", ["x"], ["y"])]
    return b.model(nodes, [value("x")], [value("y"), value("d", (1,), b.INT64)], constants)


def _sum(count: int) -> onnx.ModelProto:
    return b.model([node("Sum", ["x"] * count, ["y"])], [value("x")], [value("y")])


def types() -> Iterator[Case]:
    def one(kind: int, op: str = "Identity", expect_output: int | None = None) -> onnx.ModelProto:
        out = kind if expect_output is None else expect_output
        made = b.model([node(op, ["x"], ["y"])], [value("x", (2,), kind)], [], ir=10, opset=21)
        made.graph.output.add().CopyFrom(value("y", (2,), out))
        return made

    fine = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "INT64", "BOOL", "STRING", "UINT4")
    for name in fine:
        kind = TensorProto.DataType.Value(name)
        yield Case("types", f"identity of {name.lower()}", "accept", saved(lambda k=kind: one(k)))
    for kind in (0, 99, -1):
        made = saved(lambda k=kind: one(b.FLOAT) if k is None else _typed(one(b.FLOAT), k))
        yield Case("types", f"input of type {kind}", "reject", made)
    yield Case("types", "relu of text", "reject", saved(lambda: one(TensorProto.STRING, "Relu")))
    yield Case("types", "conv of integers", "reject", edited(b.conv, _integer_input))
    yield Case("types", "two types", "reject", saved(_two_types))
    yield Case("types", "input without a type", "reject", edited(b.relu, _untyped))
    yield Case("types", "output without a type", "either", edited(b.relu, _untyped_output))
    yield Case("types", "negative dimension", "either", edited(b.relu, _dimension(-5)))
    yield Case("types", "dimension of 2^62", "either", edited(b.relu, _dimension(1 << 62)))
    yield Case("types", "dimension of 0", "either", edited(b.relu, _dimension(0)))
    yield Case("types", "many dimensions", "reject", saved(lambda: _ranked(5000)))
    yield Case("types", "map to nothing", "reject", edited(b.relu, _map))
    yield Case("types", "sequence of nothing", "reject", edited(b.relu, _sequence))
    yield Case("types", "wrong output type", "either", saved(lambda: one(b.FLOAT, "Relu", b.INT64)))
    yield Case("types", "wrong value info", "either", edited(_chain, _claim))


def _typed(made: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    made.graph.input[0].type.tensor_type.elem_type = kind
    return made


def _integer_input(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = b.INT64


def _two_types() -> onnx.ModelProto:
    inputs = [value("x"), value("z", (2, 3), b.INT64)]
    return b.model([node("Add", ["x", "z"], ["y"])], inputs, [value("y")])


def _untyped(made: onnx.ModelProto) -> None:
    made.graph.input[0].ClearField("type")


def _untyped_output(made: onnx.ModelProto) -> None:
    made.graph.output[0].ClearField("type")


def _dimension(size: int):
    def edit(made: onnx.ModelProto) -> None:
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

    return edit


def _ranked(rank: int) -> onnx.ModelProto:
    return b.model([node("Relu", ["x"], ["y"])], [value("x", [1] * rank)], [value("y", None)])


def _map(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.map_type.key_type = 0


def _sequence(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.sequence_type.elem_type.Clear()
    made.graph.input[0].type.sequence_type.SetInParent()


def _claim(made: onnx.ModelProto) -> None:
    made.graph.value_info.append(value("h0", (7, 7, 7), b.INT64))
