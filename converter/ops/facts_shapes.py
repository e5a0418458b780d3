"""Rules for operators that move data about, for element-wise ones, constants and loops."""

from __future__ import annotations

import math

import onnx

from converter.ops.node_facts import (
    LARGEST,
    NodeFacts,
    Problems,
    Rule,
    Shape,
    broadcast,
    fits,
    normal_axis,
)

_MOST_TURNS = 1 << 36


def transpose(node: NodeFacts) -> Problems:
    """``perm`` is a permutation of the axes."""
    perm, x = node.get("perm"), node.shape(0)
    if perm is None:
        return
    if sorted(perm) != list(range(len(perm))):
        yield f"perm {perm} is no permutation"
    elif x is not None and len(perm) != len(x):
        yield f"perm has {len(perm)} numbers for {len(x)} dimensions"


def reshape(node: NodeFacts) -> Problems:
    """The target shape is one, and takes all elements."""
    shape, x = node.array(1), node.shape(0)
    target = node.get("shape") if shape is None else shape.reshape(-1).tolist()
    if target is None:
        return
    if any(size < -1 for size in target) or target.count(-1) > 1:
        yield f"the shape {target} has negative numbers other than one -1"
        return
    if node.get("allowzero", 0):
        if 0 in target and -1 in target:
            yield f"the shape {target} has both 0 and -1"
        return
    if x is None or None in x:
        return
    if any(size == 0 and i >= len(x) for i, size in enumerate(target)):
        yield f"the shape {target} copies a dimension that the data does not have"
        return
    sizes = [x[i] if size == 0 else size for i, size in enumerate(target)]
    found = math.prod(size for size in x if size is not None)
    fixed = math.prod(size for size in sizes if size is not None and size != -1)
    if found != fixed and (-1 not in sizes or (fixed and found % fixed)):
        yield f"{found} elements cannot take the shape {target}"


def concat(node: NodeFacts) -> Problems:
    """The inputs differ along the axis at most."""
    shapes = [node.shape(i) for i in range(len(node.inputs))]
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return
    rank = len(known[0])
    axis = normal_axis(node.get("axis", 1), rank)
    if any(len(shape) != rank for shape in known):
        yield "the inputs have different numbers of dimensions"
    elif axis is None:
        yield f"axis {node.get('axis')} is out of range for {rank} dimensions"
    elif any(not fits(_without(shape, axis), _without(known[0], axis)) for shape in known):
        yield f"the inputs differ in other dimensions than axis {axis}"


def split(node: NodeFacts) -> Problems:
    """The axis exists and the sizes add up to it."""
    x, sizes = node.shape(0), node.array(1)
    given = node.get("split") if sizes is None else sizes.reshape(-1).tolist()
    count = node.get("num_outputs")
    if count is not None and (count < 1 or count != node.outputs):
        yield f"num_outputs is {count} but there are {node.outputs} outputs"
    if given and any(size < 0 for size in given):
        yield f"the sizes {given} are negative"
        return
    if x is None:
        return
    axis = normal_axis(node.get("axis", 0), len(x))
    if axis is None:
        yield f"axis {node.get('axis', 0)} is out of range for {len(x)} dimensions"
    elif given and x[axis] is not None and sum(given) != x[axis]:
        yield f"the sizes {given} do not add up to {x[axis]}"


def axis_in_range(default: int, *, past: int = 0) -> Rule:
    """Attribute ``axis`` must be an axis of input 0 (``past`` = 1: or the end of them)."""

    def rule(node: NodeFacts) -> Problems:
        x = node.shape(0)
        axis = node.get("axis", default)
        # many kernels take a scalar as a list of one
        rank = None if x is None else max(len(x), 1) + past
        if x is not None and rank is not None and not -rank <= axis < rank:
            yield f"axis {axis} is out of range for {len(x)} dimensions"

    return rule


def axes_in_range(index: int | None) -> Rule:
    """Attribute ``axes``, or the constant input at ``index``: axes of input 0, each once."""

    def rule(node: NodeFacts) -> Problems:
        x, axes = node.shape(0), node.get("axes")
        array = None if index is None else node.array(index)
        if array is not None:
            axes = array.reshape(-1).tolist()
        if axes is None or x is None:
            return
        found = [normal_axis(axis, len(x)) for axis in axes]
        if None in found or len(set(found)) < len(found):
            yield f"the axes {axes} do not fit {len(x)} dimensions"

    return rule


def unsqueeze(node: NodeFacts) -> Problems:
    """The new axes exist, each once."""
    x, axes, array = node.shape(0), node.get("axes"), node.array(1)
    axes = axes if array is None else array.reshape(-1).tolist()
    if axes is None or x is None:
        return
    found = [normal_axis(axis, len(x) + len(axes)) for axis in axes]
    if None in found or len(set(found)) < len(found):
        yield f"the axes {axes} do not fit {len(x)} dimensions"


def sliced(node: NodeFacts) -> Problems:
    """Starts, ends, axes and steps belong together, and no step is 0."""
    arrays = [node.array(index) for index in range(1, len(node.inputs))]
    sizes = {array.size for array in arrays if array is not None}
    if len(sizes) > 1:
        yield "starts, ends, axes and steps have different lengths"
    steps = node.array(4)
    if steps is not None and (steps == 0).any():
        yield "a step is 0"


def pad(node: NodeFacts) -> Problems:
    """There are two pads per axis."""
    x, pads, axes = node.shape(0), node.array(1), node.shape(3)
    if pads is None or x is None:
        return
    count = len(x) if axes is None else axes[0] if axes else None
    if count is not None and pads.size != 2 * count:
        yield f"there are {pads.size} pads for {count} axes"


def block(node: NodeFacts) -> Problems:
    """The block size is a positive number."""
    size = node.get("blocksize", 0)
    if not 1 <= size <= LARGEST:
        yield f"blocksize is {size}"


def depth_to_space(node: NodeFacts) -> Problems:
    """The channels can be cut into blocks."""
    yield from block(node)
    x, size = node.shape(0), node.get("blocksize", 0)
    if x is not None and len(x) == 4 and size > 0 and x[1] is not None and x[1] % size**2:
        yield f"{x[1]} channels cannot be cut into blocks of {size}"


def elementwise(node: NodeFacts) -> Problems:
    """The inputs can be broadcast together."""
    shapes = [node.shape(i) for i in range(len(node.inputs))]
    if broadcast([shape for shape in shapes if shape is not None]) is None:
        text = ", ".join(str(list(shape)) for shape in shapes if shape is not None)
        yield f"the shapes {text} do not fit together"


def constant_of_shape(node: NodeFacts) -> Problems:
    """The shape has no negative size and the value is one number."""
    shape, value = node.array(0), node.get("value")
    if shape is not None and (shape < 0).any():
        yield f"the shape {shape.reshape(-1).tolist()} is negative"
    if value is not None and math.prod(value.dims) != 1:
        yield "the value is not one number"


def expand(node: NodeFacts) -> Problems:
    """The shape has no negative size."""
    shape = node.array(1)
    if shape is not None and (shape < 0).any():
        yield f"the shape {shape.reshape(-1).tolist()} is negative"


def tile(node: NodeFacts) -> Problems:
    """There is one number of repeats per axis, none negative."""
    x, repeats = node.shape(0), node.array(1)
    if repeats is not None and (repeats < 0).any():
        yield "a number of repeats is negative"
    elif repeats is not None and x is not None and repeats.size != len(x):
        yield f"there are {repeats.size} repeats for {len(x)} dimensions"


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def constant(node: NodeFacts) -> Problems:
    """A constant has exactly one value."""
    if len(node.attributes) != 1:
        yield f"a constant has {len(node.attributes)} values, not one"


def loop(node: NodeFacts) -> Problems:
    """A loop whose condition stays true must have a count that ends in our lifetime."""
    start = node.array(1)
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    if (given and (start is None or not start.all())) or not _goes_on(node.get("body")):
        return
    count = node.array(0)
    if node.inputs and node.inputs[0] is None:
        yield "the loop has no count and a condition that stays true: it never ends"
    elif count is not None and count.size == 1 and int(count.reshape(-1)[0]) > _MOST_TURNS:
        yield f"the loop turns {int(count.reshape(-1)[0])} times"


def _goes_on(body: onnx.GraphProto) -> bool:
    """Tell whether the body hands its condition on as it came."""
    if len(body.input) < 2 or not body.output:
        return False
    name = body.output[0].name
    for inner in body.node:
        if inner.op_type == "Identity" and inner.input and list(inner.output) == [name]:
            name = inner.input[0]
    return bool(name == body.input[1].name)


def cast(node: NodeFacts) -> Problems:
    """The element type to cast to exists."""
    kind = node.get("to")
    if isinstance(kind, int) and kind not in onnx.TensorProto.DataType.values()[1:]:
        yield f"the element type {kind} is unknown"


def same_lengths(*prefixes: str) -> Rule:
    """List attributes that begin alike describe one table and have one length."""

    def rule(node: NodeFacts) -> Problems:
        for prefix in prefixes:
            lengths = {
                len(content)
                for name, content in node.attributes.items()
                if name.startswith(prefix) and isinstance(content, list) and content
            }
            if len(lengths) > 1:
                yield f"the lists {prefix}* have different lengths"

    return rule
