"""Multiply-accumulates by operator, against counts made by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from converter.ops.work import WORK, counted, macs

MS = "com.microsoft"


def count(
    op_type: str,
    inputs: list[tuple[int, ...] | None],
    output: tuple[int, ...],
    domain: str = "",
    **attributes: object,
) -> int | None:
    sizes: dict[ir.Value, tuple[int, ...]] = {}
    values = []
    for i, shape in enumerate(inputs):
        values.append(None if shape is None else ir.Value(name=f"i{i}"))
        if shape is not None:
            sizes[values[-1]] = shape
    node = ir.node(op_type, values, attributes=attributes, domain=domain)
    sizes[node.outputs[0]] = output
    return macs(node, 1 if domain else 23, sizes.get)


def test_convolutions_count_positions_times_kernels() -> None:
    assert count("Conv", [(2, 8, 9, 9), (16, 8, 3, 3)], (2, 16, 7, 7)) == 2 * 16 * 49 * 8 * 9
    assert count("Conv", [(1, 8, 9, 9), (8, 1, 3, 3)], (1, 8, 7, 7), group=8) == 8 * 49 * 9
    assert count("ConvTranspose", [(1, 8, 4, 4), (8, 3, 2, 2)], (1, 3, 8, 8)) == 8 * 16 * 3 * 4
    quantized = [(1, 8, 9, 9), (), (), (16, 8, 3, 3)]
    assert count("QLinearConv", quantized, (1, 16, 7, 7)) == 16 * 49 * 8 * 9


def test_products_count_what_is_summed() -> None:
    assert count("Gemm", [(4, 6), (6, 3)], (4, 3)) == 72
    assert count("Gemm", [(6, 4), (6, 3)], (4, 3), transA=1) == 72
    assert count("MatMul", [(2, 5, 4, 6), (6, 3)], (2, 5, 4, 3)) == 2 * 5 * 72
    assert count("MatMul", [(6,), (6, 3)], (3,)) == 18
    assert count("FusedMatMul", [(6, 4), (6, 3)], (4, 3), MS, transA=1) == 72
    assert count("MatMulNBits", [(4, 64), (8, 2, 16)], (4, 8), MS, K=64, N=8) == 4 * 64 * 8


def test_einsum_counts_all_indices() -> None:
    shapes: list[tuple[int, ...] | None] = [(2, 3, 4), (4, 5)]
    assert count("Einsum", shapes, (2, 3, 5), equation="bij, jk -> bik") == 2 * 3 * 4 * 5
    assert count("Einsum", shapes, (2, 3, 5), equation="...j,jk->...k") == 2 * 3 * 4 * 5
    assert count("Einsum", [(2, 3)], (3, 2), equation="ij->ji") == 0


def test_recurrent_layers_count_every_step() -> None:
    shapes: list[tuple[int, ...] | None] = [(7, 2, 10), (2, 32, 10), (2, 32, 8)]
    assert count("LSTM", shapes, (7, 2, 2, 8), hidden_size=8) == 7 * 2 * 2 * 32 * 18


def test_attention_counts_scores_and_mixture() -> None:
    by_heads: list[tuple[int, ...] | None] = [(1, 4, 5, 16), (1, 4, 9, 16), (1, 4, 9, 8)]
    assert count("Attention", by_heads, (1, 4, 5, 8)) == 4 * 5 * 9 * (16 + 8)
    packed = count("Attention", [(1, 5, 64), (64, 192)], (1, 5, 64), MS, num_heads=4)
    assert packed == 5 * 64 * 192 + 5 * 5 * 2 * 64
    shared = count("MultiHeadAttention", [(1, 5, 64), (1, 9, 64), (1, 9, 64)], (1, 5, 64), MS)
    assert shared == 2 * 5 * 9 * 64


def test_other_operators_count_nothing_and_unknown_sizes_are_told() -> None:
    assert count("Relu", [(4, 4)], (4, 4)) == 0
    assert count("Foo", [(4, 4)], (4, 4), "com.acme") == 0
    assert count("Conv", [(1, 8, 9, 9), None], (1, 16, 7, 7)) is None
    node = ir.node("MatMul", [ir.Value(name="a"), ir.Value(name="b")])
    assert macs(node, 17, lambda _: None) is None


@pytest.mark.parametrize("op_type", ["Conv", "Gemm", "MatMul", "LSTM", "Einsum"])
def test_counted_tells_what_sums_products(op_type: str) -> None:
    assert counted(ir.node(op_type, []), 17)
    assert not counted(ir.node("Add", []), 17)
    assert len(WORK) > 20
