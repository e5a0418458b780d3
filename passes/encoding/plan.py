"""How each weight is stored: in a form that onnxruntime fuses or folds, if the file shrinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from converter.core import graph as g
from passes.affine.eligible import only_user
from passes.encoding.affine import write_cast, write_dequantize, write_lookup, write_packed
from passes.encoding.build import Builder, owner
from passes.encoding.choose import Form
from passes.encoding.codes import Codes, even_block
from passes.encoding.nbits import write_nbits
from passes.encoding.packed import OLDEST_OPSET
from passes.encoding.weights import Weight

if TYPE_CHECKING:
    import onnx_ir as ir

PER_CHANNEL_OPSET = 13
BLOCKED_OPSET = 21
"""First opset with 4-bit integers and with blocks in DequantizeLinear."""
_NEGATIVE_AXIS_OPSET = 11
_SMALLEST_BLOCK = 16
_GAIN = 0.95
"""A weight is stored anew only when it becomes smaller than this share."""

_JOINED = (
    "Elu",
    "HardSigmoid",
    "LeakyRelu",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "ThresholdedRelu",
)
"""Activations that become part of a FusedGemm."""

_NODES: Mapping[str, int] = {"cast": 7, "packed": 15, "dequantize": 2, "lookup": 4, "nbits": 1}
"""Nodes that a form adds to the file."""
_NODE_BYTES = 55


@dataclass(frozen=True)
class Wish:
    """What the user asked for.

    Attributes:
        bits: Width of weights.
        block: Columns per scale; 0: one scale per channel.
        symmetric: No zero points.
        storage: "auto", "dequantize", "nbits" or "cast".
        embedding: Width of tables that are looked up; 0: leave them.
    """

    bits: int
    block: int
    symmetric: bool
    storage: str
    embedding: int


@dataclass(eq=False)
class Job:
    """One weight and what is to become of it.

    Attributes:
        weight: The weight.
        way: Key of the writers.
        form: The codes to choose.
    """

    weight: Weight
    way: str
    form: Form = field(default_factory=lambda: Form(8, 1, symmetric=True))

    def write(self, model: ir.Model, names: g.Names, codes: Codes) -> None:
        """Replace the weight in the model it was found in."""
        build = Builder(owner(self.weight.value, model), names, g.opset(model))
        if self.way == "nbits":
            write_nbits(build, model, self.weight, codes)
        else:
            _WRITERS[self.way](build, self.weight, codes)

    def nbytes(self) -> int:
        """Estimate the size in the file."""
        view, form = self.weight.view, self.form
        blocks = view.rows * math.ceil(view.summed / form.block)
        zeros = 0 if form.symmetric else math.ceil(blocks * form.bits / 8)
        scale = 4 if self.way == "nbits" else 2
        integers = math.ceil(view.rows * view.summed * form.bits / 8)
        return integers + blocks * scale + zeros + _overhead(self)


_WRITERS: Mapping[str, Callable[[Builder, Weight, Codes], None]] = {
    "cast": write_cast,
    "packed": write_packed,
    "dequantize": write_dequantize,
    "lookup": write_lookup,
}


def plan(weight: Weight, wish: Wish, opset: int) -> Job | str:
    """Decide how a weight is stored.

    Returns:
        The job, or why the weight stays as it is.
    """
    job = _lookup(weight, wish, opset) if weight.embedding else _product(weight, wish, opset)
    if isinstance(job, Job) and job.nbytes() > _GAIN * weight.tensor.nbytes:
        return "too small: the file would not shrink"
    return job


def fuses(weight: Weight, wish: Wish, opset: int) -> bool:
    """Tell whether the product with the weight is fused when a DequantizeLinear stores it."""
    if wish.storage not in {"auto", "dequantize"} or wish.bits not in {4, 8}:
        return False
    if not _fusible(weight):
        return False
    if _block(weight, wish) == 0:
        return opset >= (PER_CHANNEL_OPSET if wish.bits == 8 else BLOCKED_OPSET)
    return opset >= BLOCKED_OPSET and _is_power(wish.block)


def _lookup(weight: Weight, wish: Wish, opset: int) -> Job | str:
    if not wish.embedding:
        return "a table that is looked up, and those were to stay"
    bits = wish.embedding
    if bits == 4 and (opset < _NEGATIVE_AXIS_OPSET or weight.shape[-1] % 2):
        bits = 8
    if opset < OLDEST_OPSET:
        return _too_old(opset)
    return Job(weight, "lookup", Form(bits, weight.view.summed, symmetric=True))


def _product(weight: Weight, wish: Wish, opset: int) -> Job | str:
    if opset < OLDEST_OPSET:
        return _too_old(opset)
    columns = weight.view.summed
    block = _block(weight, wish) or columns
    if wish.storage == "nbits" and _fusible(weight) and _is_power(wish.block):
        return Job(weight, "nbits", Form(wish.bits, wish.block, wish.symmetric))
    if fuses(weight, wish, opset):
        return Job(weight, "dequantize", Form(wish.bits, block, wish.symmetric))
    small = wish.bits == 8 or (wish.bits == 4 and opset >= BLOCKED_OPSET)
    form = Form(wish.bits, even_block(columns, wish.block), wish.symmetric)
    return Job(weight, "cast" if small else "packed", form)


def _block(weight: Weight, wish: Wish) -> int:
    """Return the columns per scale; 0 when one block holds them all."""
    return wish.block if wish.block < weight.view.summed else 0


def _is_power(block: int) -> bool:
    return block >= _SMALLEST_BLOCK and block & (block - 1) == 0


def _too_old(opset: int) -> str:
    return f"opset {opset} is too old to decode integers: raise it with convert_opset"


def _fusible(weight: Weight) -> bool:
    """Tell whether the only user is a product that onnxruntime fuses with a DequantizeLinear."""
    uses = list(weight.value.uses())
    if len(uses) != 1:  # it leaves integers that two products share as they are
        return False
    node, graph = uses[0].node, weight.value.graph
    if weight.value.is_initializer() and graph is not node.graph:
        return False
    late = _joins_activation(node) or _is_clipped(node)
    return weight.single and weight.matrices() and _plain(node) and not late


def _joins_activation(node: ir.Node) -> bool:
    """Tell whether onnxruntime joins a Gemm and the activation after it, before it fuses integers.

    MatMul and an Add of a bias become a Gemm where the input has two axes.
    """
    last: ir.Node | None = node
    if g.is_op(node, "MatMul"):
        shape = None if node.inputs[0] is None else node.inputs[0].shape
        last = only_user(node.outputs[0])
        if (shape is not None and len(shape) > 2) or not g.is_op(last, "Add"):
            return False
    return last is not None and g.is_op(only_user(last.outputs[0]), *_JOINED)


def _is_clipped(node: ir.Node) -> bool:
    """Tell whether what uses the product cuts it off, as a step of quantization could do.

    onnxruntime takes both for one group then, finds no integers behind it, and fuses nothing: the
    weight would become float with every run, which takes three times as long as the product.
    """
    clip = only_user(node.outputs[0])
    if not g.is_op(clip, "Relu", "Clip") or clip is None:
        return False
    return only_user(clip.outputs[0]) is not None


def _plain(node: ir.Node) -> bool:
    if g.is_op(node, "MatMul"):
        return True
    read = node.attributes
    if read.get_int("transA", 0) or read.get_float("alpha", 1.0) != 1.0:
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    bias = g.constant(node.inputs[2])
    return bias is not None and len(bias.shape) == 1 and read.get_float("beta", 1.0) == 1.0


def _overhead(job: Job) -> int:
    """Estimate the bytes of nodes, names and headers."""
    uses = len(job.weight.uses) if job.way in {"lookup", "nbits"} else 1
    return _NODES[job.way] * _NODE_BYTES * uses + 3 * (40 + 2 * len(job.weight.name))
