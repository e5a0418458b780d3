"""Arithmetic that looks like nothing and is something: zeros, NaN, rounding, saturation, types."""

from __future__ import annotations

import numpy as np
from torture.case import Case, ints, norm, rand

_F = "g (float[4] x) => (float[4] y) "
_I = "g (int64[N] x) => (int64[N] y) "
_EDGES = {"x": np.array([-9, -1, 0, 1, 7, 2**62, -(2**63)], np.int64)}


def _around(op: str, number: str, *, left: bool = False) -> Case:
    call = f"{op} (k, x)" if left else f"{op} (x, k)"
    return Case(f"{_F}<float k = {{{number}}}> {{ y = {call} }}")


def _integer(op: str, number: int, *, left: bool = False) -> Case:
    call = f"{op} (k, x)" if left else f"{op} (x, k)"
    return Case(f"{_I}<int64 k = {{{number}}}> {{ y = {call} }}", feeds=_EDGES)


def _twice(op: str, attributes: str = "") -> Case:
    return Case(f"{_F}{{ a = {op} {attributes} (x) y = {op} {attributes} (a) }}")


def _casts(*types: int) -> Case:
    """Cast float through element types and back; values are whole and fit."""
    steps = [f"v{i + 1} = Cast <to = {t}> (v{i})" for i, t in enumerate(types)]
    return Case(
        f"{_F}{{ v0 = Round (x) {' '.join(steps)} y = Cast <to = 1> (v{len(types)}) }}",
        feeds={"x": np.array([0.0, 1.4, 100.0, 3.0], np.float32)},
        special=False,
    )


CASES = {
    **{f"add_{n}": _around("Add", n) for n in ("0.0", "-0.0", "1.0")},
    **{f"{n}_add": _around("Add", n, left=True) for n in ("0.0", "-0.0")},
    **{f"sub_{n}": _around("Sub", n) for n in ("0.0", "-0.0")},
    **{f"{n}_sub": _around("Sub", n, left=True) for n in ("0.0", "-0.0")},
    **{f"mul_{n}": _around("Mul", n) for n in ("1.0", "-1.0", "0.0", "-0.0")},
    **{f"div_{n}": _around("Div", n) for n in ("1.0", "-1.0", "0.0", "3.0", "1e-40")},
    **{f"{n}_div": _around("Div", n, left=True) for n in ("1.0", "0.0")},
    **{f"pow_{n}": _around("Pow", n) for n in ("0.0", "1.0", "2.0", "0.5", "-1.0", "3.0")},
    **{f"{n}_pow": _around("Pow", n, left=True) for n in ("1.0", "0.0", "2.0")},
    **{f"max_{n}": _around("Max", n) for n in ("0.0", "-0.0", "-3.4e38")},
    **{f"min_{n}": _around("Min", n) for n in ("0.0", "3.4e38")},
    **{f"integer_add_{n}": _integer("Add", n) for n in (0, 1)},
    **{f"integer_sub_{n}": _integer("Sub", n) for n in (0, 3)},
    **{f"{n}_integer_sub": _integer("Sub", n, left=True) for n in (0, -1)},
    **{f"integer_mul_{n}": _integer("Mul", n) for n in (0, 1, -1, 2)},
    **{f"integer_div_{n}": _integer("Div", n) for n in (1, 2, -2)},
    **{f"integer_mod_{n}": _integer("Mod", n) for n in (1, 3, -3)},
    **{
        f"twice_{op}": _twice(op)
        for op in ("Neg", "Abs", "Relu", "Floor", "Ceil", "Round", "Sign", "Sigmoid", "Reciprocal")
    },
    "twice_elu": _twice("Elu", "<alpha = 0.5>"),
    "twice_leaky": _twice("LeakyRelu", "<alpha = 0.5>"),
    "twice_hard_sigmoid": _twice("HardSigmoid", "<alpha = 2.0, beta = 0.0>"),
    "twice_not": Case("g (bool[4] x) => (bool[4] y) { a = Not (x) y = Not (a) }"),
    "twice_integer_abs": Case(f"{_I}{{ a = Abs (x) y = Abs (a) }}", feeds=_EDGES),
    "twice_integer_neg": Case(f"{_I}{{ a = Neg (x) y = Neg (a) }}", feeds=_EDGES),
    "relu_of_integers": Case("g (int32[4] x) => (int32[4] y) { a = Relu (x) y = Relu (a) }"),
    "sqrt_of_square": Case(f"{_F}<float t = {{2.0}}> {{ a = Pow (x, t) y = Sqrt (a) }}"),
    "exp_of_log": Case(f"{_F}{{ a = Log (x) y = Exp (a) }}"),
    "x_minus_x": Case(f"{_F}{{ a = Sub (x, x) y = Add (a, x) }}"),
    "x_over_x": Case(f"{_F}{{ a = Div (x, x) y = Mul (a, x) }}"),
    "x_equal_x": Case("g (float[4] x) => (bool[4] y) { y = Equal (x, x) }"),
    "not_less_is_not_greater_or_equal": Case(
        "g (float[4] x, float[4] z) => (bool[4] y) { a = Less (x, z) y = Not (a) }",
        feeds={"z": np.array([np.nan, 0, 1, -1], np.float32)},
    ),
    "where_equal_branches": Case(
        "g (bool[4] c, float[4] x) => (float[4] y) { y = Where (c, x, x) }"
    ),
    "where_broadcasts_by_condition": Case(
        "g (bool[3,4] c, float[4] x) => (float[3,4] y) { y = Where (c, x, x) }"
    ),
    "where_constant": Case(
        f"{_F}<bool t = {{1}}, float[4] k = {{1, 2, 3, 4}}> {{ y = Where (t, x, k) }}"
    ),
    "where_constant_broadcasts": Case(
        "g (float[4] x) => (float[3,4] y) <bool[3,1] t = {1, 1, 1}, float k = {0}> "
        "{ y = Where (t, x, k) }"
    ),
    "and_with_true": Case("g (bool[4] x) => (bool[4] y) <bool t = {1}> { y = And (x, t) }"),
    "or_with_true_keeps_shape": Case(
        "g (bool[N,4] x) => (bool[N,4] y) <bool t = {1}> { y = Or (x, t) }"
    ),
    "min_above_max": Case(f"{_F}<float a = {{2.0}}, float b = {{1.0}}> {{ y = Clip (x, a, b) }}"),
    "clips_in_a_row": Case(
        f"{_F}<float a = {{0.0}}, float b = {{6.0}}, float c = {{-1.0}}, float d = {{7.0}}> "
        "{ p = Clip (x, a, b) q = Clip (p, c, d) y = Clip (q, b, a) }"
    ),
    "clips_apart": Case(
        f"{_F}<float a = {{0.0}}, float b = {{1.0}}, float c = {{2.0}}, float d = {{3.0}}> "
        "{ p = Clip (x, a, b) y = Clip (p, c, d) }"
    ),
    "clip_of_nothing": Case(f'{_F}{{ a = Clip (x) b = Clip (a, "", "") y = Relu (b) }}'),
    "clip_infinite": Case(
        f"{_F}{{ a = Clip (x, lo, hi) y = Neg (a) }}",
        arrays={"lo": np.float32(-np.inf), "hi": np.float32(np.inf)},
    ),
    "clip_largest": Case(
        f"{_F}{{ a = Clip (x, lo, hi) y = Neg (a) }}",
        arrays={"lo": np.finfo(np.float32).min, "hi": np.finfo(np.float32).max},
    ),
    "clip_from_input": Case("g (float[4] x, float a) => (float[4] y) { y = Clip (x, a) }"),
    "clip_opset_6": Case(f"{_F}{{ a = Clip <min = 0.0> (x) y = Clip <max = 6.0> (a) }}", opset=6),
    "relu_of_clip": Case(
        f"{_F}<float a = {{-2.0}}, float b = {{-1.0}}> {{ p = Clip (x, a, b) y = Relu (p) }}"
    ),
    "clip_without_min_of_relu": Case(
        f'{_F}<float a = {{1.0}}> {{ [n] p = Relu (x) [m] y = Clip (p, "", a) }}'
    ),
    "clip_of_relu": Case(f"{_F}<float a = {{-2.0}}> {{ p = Relu (x) y = Clip (p, a) }}"),
    "dropout_mask_of_opset_11": Case(
        "g (float[4] x) => (float[4] y, bool[4] m) { y, m = Dropout (x) }", opset=11
    ),
    "cast_half_and_back": _casts(10),
    "cast_double_and_back": _casts(11),
    "cast_int_chain": _casts(7, 6, 7),
    "cast_int8_and_back": _casts(7, 3, 7),
    "cast_bool_and_back": _casts(9, 7),
    "cast_uint8": _casts(6, 2, 7, 11),
    "cast_bfloat16_and_back": _casts(16),
    "cast_narrow_integers": Case(
        "g (int64[N] x) => (int64[N] y) { a = Cast <to = 6> (x) y = Cast <to = 7> (a) }",
        feeds={"x": np.array([2**40 + 3, -(2**33), 5], np.int64)},
    ),
    "cast_wide_integers": Case(
        "g (int64[N] x) => (int64[N] y) { a = Cast <to = 11> (x) y = Cast <to = 7> (a) }",
        feeds={"x": np.array([2**60 + 1, 2**53 + 1, -3], np.int64)},
    ),
    "cast_bool_of_half": Case(
        "g (float[4] x) => (bool[4] y) { a = Cast <to = 10> (x) y = Cast <to = 9> (a) }",
        feeds={"x": np.array([1e-9, 0, 1, -1e-12], np.float32)},
    ),
    "cast_saturates": Case(
        "g (float[4] x) => (float[4] y) { a = Cast <to = 10> (x) y = Cast <to = 1> (a) }",
        feeds={"x": np.array([1e9, -1e9, 65519, 65520], np.float32)},
    ),
    "cast_float8": Case(
        "g (float[4] x) => (float[4] y) { a = Cast <to = 17, saturate = 0> (x) "
        "y = Cast <to = 1> (a) }",
        opset=19,
    ),
    "cast_like": Case(
        "g (float[4] x, float[1] l) => (float[4] y) { a = CastLike (x, l) y = CastLike (a, x) }"
    ),
    "cast_to_own_type_then_string": Case(
        "g (int64[4] x) => (string[4] y) { a = Cast <to = 7> (x) y = Cast <to = 8> (a) }"
    ),
    "constants_of_three_types": Case(
        """g (float[4] x, double[4] d, int64[4] i) => (float[4] y, double[4] e, int64[4] j)
        <float a = {1.0}, double b = {1.0}, int64 c = {1}>
        { y = Mul (x, a) e = Mul (d, b) j = Mul (i, c) }"""
    ),
    "tiny_factor_chain": Case(
        f"{_F}<float a = {{1e-30}}, float b = {{1e30}}> {{ p = Mul (x, a) q = Mul (p, a) "
        "r = Mul (q, b) y = Mul (r, b) }"
    ),
    "large_terms_cancel": Case(
        f"{_F}<float a = {{1e8}}, float b = {{-1e8}}> {{ p = Add (x, a) y = Add (p, b) }}",
        feeds={"x": np.array([1.25, 3.0, -7.5, 0.1], np.float32)},
    ),
    "integer_chain_overflows": Case(
        f"{_I}<int64 a = {{4611686018427387904}}> {{ p = Mul (x, a) q = Mul (p, a) "
        "y = Add (q, a) }",
        feeds=_EDGES,
    ),
    "integer_mul_then_div": Case(
        f"{_I}<int64 a = {{6}}, int64 b = {{3}}> {{ p = Mul (x, a) y = Div (p, b) }}", feeds=_EDGES
    ),
    "integer_div_then_mul": Case(
        f"{_I}<int64 a = {{2}}> {{ p = Div (x, a) y = Mul (p, a) }}", feeds=_EDGES
    ),
    "integer_divs_in_a_row": Case(
        f"{_I}<int64 a = {{3}}, int64 b = {{-2}}> {{ p = Div (x, a) y = Div (p, b) }}", feeds=_EDGES
    ),
    "uint8_wraps": Case(
        "g (uint8[4] x) => (uint8[4] y) <uint8 a = {200}> { p = Add (x, a) y = Add (p, a) }"
    ),
    "mod_of_floats": Case(f"{_F}<float a = {{1.0}}> {{ y = Mod <fmod = 1> (x, a) }}"),
    "factor_raises_rank": Case(
        "g (float[4] x) => (float[1,4] y) { y = Mul (x, k) }",
        arrays={"k": np.ones((1, 1), np.float32)},
    ),
    "term_broadcasts": Case(
        "g (float[N] x) => (float[M] y) { y = Add (x, k) }",
        arrays={"k": np.full(3, -0.0, np.float32)},
    ),
    "factor_of_zero_size": Case(
        "g (float[1] x) => (float[0] y) { y = Mul (x, k) }",
        arrays={"k": np.zeros(0, np.float32)},
    ),
    "sum_of_one": Case(f"{_F}{{ a = Sum (x) b = Max (a) c = Min (b) y = Mean (c) }}"),
    "max_of_same": Case(f"{_F}{{ a = Max (x, x) y = Min (a, a, a) }}"),
    "bernoulli_twice": Case(
        "g (float[4] x) => (float[4] y, float[4] z) { p = Sigmoid (x) y = Bernoulli (p) "
        "z = Bernoulli (p) }",
        feeds={"x": np.zeros(4, np.float32)},
        special=False,
    ),
    "batch_norm_of_zero_scale": Case(
        "g (float[N,3,4,4] x) => (float[N,4,4,4] y) "
        "{ c = Conv (x, w) y = BatchNormalization (c, s, b, m, v) }",
        arrays={"w": rand(4, 3, 1, 1), **norm(4), "s": np.zeros(4, np.float32)},
    ),
    "batch_norm_shares_its_inputs": Case(
        "g (float[N,4] x) => (float[N,4] y) "
        "{ c = Gemm (x, w) y = BatchNormalization (c, s, s, s, s) }",
        arrays={"w": rand(4, 4), "s": np.array([1, 2, 3, 4], np.float32)},
    ),
    "batch_norm_in_training": Case(
        """g (float[2,3] x) => (float[2,3] y, float[3] m2, float[3] v2) { c = Gemm (x, w)
        y, m2, v2 = BatchNormalization <training_mode = 1> (c, s, b, m, v) }""",
        arrays={"w": rand(3, 3), **norm(3)},
        special=False,
    ),
    "batch_norm_without_variance": Case(
        "g (float[N,4] x) => (float[N,4] y) "
        "{ c = Gemm (x, w) y = BatchNormalization (c, s, b, m, v) }",
        arrays={"w": rand(4, 4), **norm(4), "v": np.zeros(4, np.float32)},
    ),
    "conv_bias_is_public": Case(
        "g (float[N,3,4,4] x) => (float[N,4,4,4] y, float[4] k) "
        "{ c = Conv (x, w, k) y = BatchNormalization (c, s, b, m, v) }",
        arrays={"w": rand(4, 3, 1, 1), "k": rand(4, seed=7), **norm(4)},
    ),
    "conv_bias_is_shared": Case(
        "g (float[N,3,4,4] x) => (float[N,4,4,4] y, float[N,4,4,4] z) { c = Conv (x, w, k) "
        "y = BatchNormalization (c, s, b, m, v) z = Conv (x, w, k) }",
        arrays={"w": rand(4, 3, 1, 1), "k": rand(4, seed=7), **norm(4)},
    ),
    "conv_add_of_wrong_axis": Case(
        "g (float[N,4,4,4] x) => (float[N,4,4,4] y) { c = Conv (x, w) y = Add (c, k) }",
        arrays={"w": rand(4, 4, 1, 1), "k": rand(4, seed=7)},
    ),
    "conv_add_raises_rank": Case(
        "g (float[N,4,4,4] x) => (float[1,N,4,4,4] y) { c = Conv (x, w) y = Add (c, k) }",
        arrays={"w": rand(4, 4, 1, 1), "k": rand(1, 1, 4, 1, 1, seed=7)},
    ),
    "conv_mul_by_zero": Case(
        "g (float[N,4,4,4] x) => (float[N,4,4,4] y) { c = Conv (x, w) y = Mul (c, k) }",
        arrays={"w": rand(4, 4, 1, 1), "k": np.float32(0)},
    ),
    "gemm_zero_beta": Case(
        "g (float[N,4] x) => (float[N,3] y) { g = Gemm <beta = 0.0> (x, w, k) y = Add (g, b) }",
        arrays={"w": rand(4, 3), "k": rand(3), "b": rand(3, seed=5)},
    ),
    "gemm_alpha": Case(
        "g (float[N,4] x) => (float[N,3] y) { g = Gemm <alpha = 0.5, transB = 1> (x, w) "
        "a = Mul (g, k) y = Add (a, b) }",
        arrays={"w": rand(3, 4), "k": rand(3), "b": rand(1, 3, seed=5)},
    ),
    "matmul_of_vectors": Case(
        "g (float[4] x) => (float y) { m = MatMul (x, w) y = Add (m, b) }",
        arrays={"w": rand(4), "b": np.float32(2)},
    ),
    "matmul_add_raises_rank": Case(
        "g (float[N,4] x) => (float[2,N,3] y) { m = MatMul (x, w) y = Add (m, b) }",
        arrays={"w": rand(4, 3), "b": rand(2, 1, 3)},
    ),
    "matmul_add_needs_rows": Case(
        "g (float[1,4] x) => (float[5,3] y) { m = MatMul (x, w) y = Add (m, b) }",
        arrays={"w": rand(4, 3), "b": rand(5, 3)},
    ),
    "argmax_ties": Case(
        "g (float[2,4] x) => (int64[2,1] y, int64[2,1] z) { y = ArgMax <axis = 1> (x) "
        "z = ArgMax <axis = 1, select_last_index = 1> (x) }",
        feeds={"x": np.array([[1, 1, 0, 1], [0, 0, 0, 0]], np.float32)},
    ),
    "top_k_indices_unused": Case(
        "g (float[2,4] x) => (float[2,2] y) { a, j = TopK (x, k) b, i = TopK (x, k) "
        "y = Add (a, b) }",
        arrays={"k": ints(2)},
        special=False,
    ),
}
