"""Operators that work on every element by itself: aligned axes go together."""

from __future__ import annotations

from converter.ops.axes.align import aligned, rows
from converter.ops.axes.site import Site

_ONE = """
    Abs Acos Acosh Affine Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp
    Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not
    ParametricSoftplus Reciprocal Relu Round ScaledTanh Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Swish Tan Tanh ThresholdedRelu Bernoulli RandomNormalLike RandomUniformLike
"""
_SEVERAL = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor
"""
_FIRST = "Clip Dropout CastLike"
_CONTRIB = "QuickGelu FastGelu BiasGelu Gelu"


def broadcast(site: Site) -> None:
    """Inputs are broadcast against each other; aligned axes go together."""
    operands = [
        (site.labels(i), site.shape(i)) for i in range(len(site.node.inputs)) if site.given(i)
    ]
    site.put(aligned(site, operands, site.output_shape()))


def same(site: Site) -> None:
    """Every number by itself: labels pass."""
    for index in range(len(site.node.outputs)):
        site.put(site.labels(0), index)


ENTRIES = [
    *rows(same, *_ONE.split(), *_FIRST.split()),
    *rows(broadcast, *_SEVERAL.split()),
    *rows(broadcast, *_CONTRIB.split(), domain="com.microsoft"),
]
