"""Shapes: empty tensors, negative axes and steps, views that only look alike, dynamic sizes."""

from __future__ import annotations

import numpy as np
from torture.case import Case, ints, rand

_LAST = 2**63 - 1
_FIRST = -(2**63)


def _slice(start: int, end: int, step: int, axis: int = 0) -> Case:
    return Case(
        "g (float[N,5] x) => (float[A,B] y) { y = Slice (x, s, e, a, t) }",
        arrays={"s": ints(start), "e": ints(end), "a": ints(axis), "t": ints(step)},
    )


def _reduce(op: str, attributes: str, out: str, opset: int = 18) -> Case:
    return Case(f"g (float[2,1,3] x) => (float[{out}] y) {{ y = {op} <{attributes}> (x) }}", opset)


CASES = {
    "slice_all": _slice(0, _LAST, 1),
    "slice_all_from_lowest": _slice(_FIRST, _LAST, 1),
    "slice_backwards": _slice(-1, _FIRST, -1),
    "slice_backwards_from_highest": _slice(_LAST, _FIRST, -1, axis=1),
    "slice_none": _slice(3, 3, 1),
    "slice_beyond": _slice(7, 9, 1, axis=1),
    "slice_to_minus_one": _slice(0, -1, 1),
    "slice_static_exact": _slice(0, 5, 1, axis=1),
    "slice_negative_axis": _slice(1, _LAST, 2, axis=-1),
    "slice_int_max": _slice(0, 2**31 - 1, 1),
    "slice_int32_indices": Case(
        "g (float[N,5] x) => (float[A,5] y) { a = Slice (x, s, e) y = Slice (a, s, e) }",
        arrays={"s": np.array([0], np.int32), "e": np.array([2**31 - 1], np.int32)},
    ),
    "slice_opset_9": Case(
        "g (float[N,5] x) => (float[N,5] y) "
        "{ a = Slice <starts = [0, 0], ends = [9223372036854775807, 5]> (x) y = Identity (a) }",
        opset=9,
    ),
    "slice_of_input_ends": Case(
        "g (float[N,5] x, int64[1] e) => (float[A,5] y) <int64[1] s = {0}> { y = Slice (x, s, e) }",
        feeds={"e": ints(1)},
    ),
    "slice_two_after_each_other": Case(
        """g (float[N,20] x) => (float[N,A] y) <int64[1] a = {-1}, int64[1] s = {15},
            int64[1] t = {-3}, int64[1] u = {1}, int64[1] v = {4}, int64[1] one = {1}>
        { p = Slice (x, s, z, a, t) y = Slice (p, u, v, one, one) }""",
        arrays={"z": ints(_FIRST)},
    ),
    "gather_negative": Case(
        "g (float[3,4] x) => (float[4] y, float[3] z) <int64 a = {-1}, int64 b = {-4}> "
        "{ y = Gather (x, a) z = Gather <axis = 1> (x, b) }"
    ),
    "gather_of_all": Case(
        "g (float[3,4] x) => (float[3,4] y) <int64[3] i = {0, 1, 2}> { y = Gather (x, i) }"
    ),
    "gather_all_of_more": Case(
        "g (float[N,4] x) => (float[2,4] y) <int64[2] i = {0, 0}> { y = Gather (x, i) }"
    ),
    "transpose_scalar": Case("g (float x) => (float y) { a = Transpose (x) y = Neg (a) }"),
    "transpose_vector": Case("g (float[N] x) => (float[N] y) { a = Transpose (x) y = Neg (a) }"),
    "transpose_of_ones": Case(
        "g (float[1,N,1] x) => (float[N,1,1] y) { a = Transpose <perm = [1,2,0]> (x) y = Neg (a) }"
    ),
    "transpose_default_twice": Case(
        "g (float[2,3,4] x) => (float[2,3,4] y) { a = Transpose (x) b = Transpose (a) y = Neg (b) }"
    ),
    "transpose_unknown_rank_twice": Case(
        "g (float[2,3,4] x, int64[R] s) => (float y) "
        "{ r = Reshape (x, s) a = Transpose (r) b = Transpose (a) c = Neg (b) "
        "y = ReduceSum <keepdims = 0> (c) }",
        feeds={"s": ints(4, 6)},
    ),
    "concat_one": Case("g (float[N,4] x) => (float[N,4] y) { y = Concat <axis = -1> (x) }"),
    "concat_empty": Case(
        "g (float[N,4] x) => (float[N,4] y) { a = Concat <axis = 0> (e, x, e) y = Neg (a) }",
        arrays={"e": np.zeros((0, 4), np.float32)},
    ),
    "concat_of_splits": Case(
        "g (float[4,6] x) => (float[4,6] y) { a, b = Split <axis = 1> (x, s) "
        "y = Concat <axis = 1> (a, b) }",
        arrays={"s": ints(2, 4)},
    ),
    "concat_of_splits_swapped": Case(
        "g (float[4,6] x) => (float[4,6] y) { a, b = Split <axis = 1> (x, s) "
        "y = Concat <axis = 1> (b, a) }",
        arrays={"s": ints(3, 3)},
    ),
    "split_one": Case(
        "g (float[4,6] x) => (float[4,6] y) { a = Split <num_outputs = 1> (x) y = Neg (a) }"
    ),
    "split_uneven": Case(
        "g (float[5] x) => (float[2] y, float[1] z) { y, b, z = Split <num_outputs = 3> (x) }"
    ),
    "split_into_nothing": Case(
        "g (float[4] x) => (float[4] y) { a, b = Split (x, s) y = Concat <axis = 0> (b, a) }",
        arrays={"s": ints(4, 0)},
    ),
    "squeeze_without_axes": Case(
        "g (float[N,1,3] x) => (float y) { a = Squeeze (x) b = ReduceSum <keepdims = 0> (a) "
        "y = Neg (b) }"
    ),
    "squeeze_shape_is_read": Case(
        "g (float[N,1,3] x) => (int64[R] y) { a = Squeeze (x) y = Shape (a) }"
    ),
    "squeeze_of_unsqueeze": Case(
        """g (float[N,3] x) => (float[N,3] y, float[N,3] z) <int64[1] a = {1}, int64[1] b = {-2}>
        { u = Unsqueeze (x, a) y = Squeeze (u, b) v = Unsqueeze (x, b) z = Squeeze (v, a) }"""
    ),
    "unsqueeze_two": Case(
        "g (float[N,3] x) => (float[1,N,3,1] y) <int64[2] a = {-1, 0}> { y = Unsqueeze (x, a) }"
    ),
    "unsqueeze_then_other_squeeze": Case(
        "g (float[1,3] x) => (float[3,1] y) <int64[1] a = {2}, int64[1] b = {0}> "
        "{ u = Unsqueeze (x, a) y = Squeeze (u, b) }"
    ),
    "reshape_zero_is_copy": Case(
        "g (float[N,2,3] x) => (float[N,6] y) <int64[2] s = {0, -1}> { y = Reshape (x, s) }"
    ),
    "reshape_allowzero": Case(
        "g (float[0,3] x) => (float[3,0] y) <int64[2] s = {3, 0}> "
        "{ y = Reshape <allowzero = 1> (x, s) }"
    ),
    "reshape_twice_with_zero": Case(
        """g (float[4,6] x) => (float[2,A] y) <int64[3] s = {2, 2, 6}, int64[2] t = {0, -1}>
        { a = Reshape (x, s) y = Reshape (a, t) }"""
    ),
    "reshape_to_own_shape": Case(
        "g (float[N,M] x) => (float[N,M] y) { s = Shape (x) y = Reshape (x, s) }"
    ),
    "reshape_to_other_shape": Case(
        "g (float[N,4] x, float[4,N] z) => (float[4,N] y) { s = Shape (z) y = Reshape (x, s) }"
    ),
    "flatten_0": Case("g (float[N,4] x) => (float[1,A] y) { y = Flatten <axis = 0> (x) }"),
    "flatten_nothing": Case("g (float[N,4] x) => (float[N,4] y) { a = Flatten (x) y = Neg (a) }"),
    "flatten_vector": Case("g (float[N] x) => (float[N,1] y) { y = Flatten <axis = 1> (x) }"),
    "flatten_negative": Case(
        "g (float[2,3,4] x) => (float[6,4] y) { y = Flatten <axis = -1> (x) }"
    ),
    "expand_to_own_shape": Case(
        "g (float[N,4] x) => (float[N,4] y) { s = Shape (x) y = Expand (x, s) }"
    ),
    "expand_by_ones": Case(
        "g (float[N,4] x) => (float[N,4] y, float[1,N,4] z) <int64[2] a = {1, 1}, "
        "int64[3] b = {1, 1, 1}> { y = Expand (x, a) z = Expand (x, b) }"
    ),
    "expand_before_add": Case(
        "g (float[1,4] x, float[3,4] z) => (float[3,4] y, float[5,4] v) <int64[2] a = {3, 4}, "
        "int64[2] b = {5, 4}, float k = {1.0}> { e = Expand (x, a) y = Add (e, z) "
        "f = Expand (x, b) v = Add (f, k) }"
    ),
    "tile_by_ones": Case(
        "g (float[N,4] x) => (float[N,4] y) <int64[2] r = {1, 1}> { a = Tile (x, r) y = Neg (a) }"
    ),
    "tile_by_zero": Case(
        "g (float[N,4] x) => (float[N,0] y) <int64[2] r = {1, 0}> { y = Tile (x, r) }"
    ),
    "pad_nothing": Case(
        "g (float[N,4] x) => (float[N,4] y) <int64[4] p = {0, 0, 0, 0}> "
        '{ a = Pad <mode = "edge"> (x, p) y = Neg (a) }'
    ),
    "pad_negative": Case(
        "g (float[N,4] x) => (float[N,3] y) <int64[4] p = {0, -2, 0, 1}> { y = Pad (x, p) }"
    ),
    "pad_there_and_back": Case(
        """g (float[N,4] x) => (float[N,4] y)
        <int64[4] p = {0, 1, 0, 1}, int64[4] q = {0, -1, 0, -1}>
        { a = Pad (x, p) y = Pad (a, q) }"""
    ),
    "pads_of_two_values": Case(
        """g (float[N,4] x) => (float[N,8] y) <int64[4] p = {0, 1, 0, 1}, float k = {2.0}>
        { a = Pad (x, p) y = Pad (a, p, k) }"""
    ),
    "pad_before_conv_of_other_value": Case(
        """g (float[N,2,4,4] x) => (float[N,2,4,4] y)
        <int64[8] p = {0,0,1,1,0,0,1,1}, float k = {1.0}>
        { a = Pad (x, p, k) y = Conv (a, w) }""",
        arrays={"w": rand(2, 2, 3, 3)},
    ),
    "pad_before_conv": Case(
        """g (float[N,2,4,4] x) => (float[N,2,4,5] y) <int64[8] p = {0,0,1,0,0,0,1,1}>
        { a = Pad (x, p) y = Conv <pads = [0, 1, 0, 1]> (a, w) }""",
        arrays={"w": rand(2, 2, 3, 3)},
    ),
    "pad_of_channels_before_conv": Case(
        """g (float[N,2,4,4] x) => (float[N,2,2,2] y) <int64[8] p = {0,1,0,0,0,0,0,0}>
        { a = Pad (x, p) y = Conv (a, w) }""",
        arrays={"w": rand(2, 3, 3, 3)},
    ),
    "pad_before_max_pool": Case(
        """g (float[N,2,4,4] x) => (float[N,2,4,4] y) <int64[8] p = {0,0,1,1,0,0,1,1}>
        { a = Pad (x, p) y = MaxPool <kernel_shape = [3, 3]> (a) }"""
    ),
    "pad_before_average_pool": Case(
        """g (float[N,2,4,4] x) => (float[N,2,4,4] y) <int64[8] p = {0,0,1,1,0,0,1,1}>
        { a = Pad (x, p) y = AveragePool <kernel_shape = [3, 3]> (a) }"""
    ),
    "resize_by_one": Case(
        """g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[4] s = {1, 1, 1, 1}>
        { a = Resize <mode = "cubic"> (x, "", s) y = Neg (a) }"""
    ),
    "resize_same_size_from_roi": Case(
        """g (float[1,1,4,4] x) => (float[1,1,4,4] y) <int64[4] s = {1, 1, 4, 4},
            float[8] roi = {0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8}>
        { y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, "", s) }"""
    ),
    "resize_nearly_one": Case(
        """g (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[4] s = {1.0, 1.0, 1.1, 1.1}>
        { y = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric">
          (x, "", s) }"""
    ),
    "pools_of_one": Case(
        """g (float[1,2,4,4] x) => (float[1,2,4,4] y, float[1,2,2,2] z)
        { y = MaxPool <kernel_shape = [1, 1]> (x)
          z = AveragePool <kernel_shape = [1, 1], strides = [2, 2]> (x) }"""
    ),
    "reduce_one_axis_of_size_1": _reduce("ReduceMax", "keepdims = 1", "1,1,1"),
    "reduce_noop": _reduce("ReduceSum", "noop_with_empty_axes = 1, keepdims = 1", "2,1,3"),
    "reduce_noop_squares": _reduce("ReduceSumSquare", "noop_with_empty_axes = 1", "2,1,3"),
    "reduce_noop_l2": _reduce("ReduceL2", "noop_with_empty_axes = 1", "2,1,3"),
    "reduce_of_size_1": Case(
        """g (float[2,1,3] x) => (float[2,1,3] y, float[2,3] z, float[2,1,3] v) <int64[1] a = {1}>
        { y = ReduceMean <keepdims = 1> (x, a) z = ReduceMax <keepdims = 0> (x, a)
          v = ReduceL1 <keepdims = 1> (x, a) }"""
    ),
    "reduce_empty_axes": Case(
        "g (float[2,1,3] x) => (float[1,1,1] y) { y = ReduceSum (x, a) }",
        arrays={"a": ints()},
    ),
    "reduce_twice": Case(
        """g (float[2,3,4] x) => (float[2] y) <int64[1] a = {-1}>
        { b = ReduceSum <keepdims = 0> (x, a) y = ReduceSum <keepdims = 0> (b, a) }"""
    ),
    "mean_of_mean_uneven": Case(
        """g (float[N,3,4] x) => (float y) <int64[1] a = {2}>
        { b = ReduceMean <keepdims = 0> (x, a) y = ReduceMean <keepdims = 0> (b) }"""
    ),
    "empty_batch": Case(
        "g (float[N,4] x) => (float[M,4] y) { a = Concat <axis = 0> (x, x) b = Identity (a) "
        "y = Relu (b) }",
        feeds={"x": np.zeros((0, 4), np.float32)},
    ),
    "empty_static": Case(
        "g (float[0,4] x) => (float[0,4] y) { a = Transpose <perm = [1,0]> (x) "
        "b = Transpose <perm = [1,0]> (a) y = Relu (b) }"
    ),
    "shape_of_constant": Case(
        "g (float[N] x) => (int64[2] y) { t = Transpose (w) y = Shape (t) }",
        arrays={"w": rand(3, 5)},
    ),
    "size_of_dynamic": Case(
        """g (float[N,4] x) => (int64 y, int64 z) <int64 k = {4}>
        { y = Size (x) s = Shape <start = 0, end = 1> (x) p = Squeeze (s) z = Mul (p, k) }"""
    ),
    "shape_negative_ends": Case(
        "g (float[N,3,4] x) => (int64[2] y, int64[0] z, int64[1] v) "
        "{ y = Shape <start = -2> (x) z = Shape <start = 2, end = 1> (x) v = Shape <end = -2> (x) }"
    ),
    "half_of_a_dynamic_size": Case(
        """g (float[N,4] x) => (float[M,4] y) <int64 z = {0}, int64 two = {2}, int64[1] a = {0}>
        { s = Shape (x) n = Gather (s, z) h = Div (n, two) h1 = Unsqueeze (h, a)
          y = Slice (x, a, h1, a) }"""
    ),
    "dynamic_sum_of_sizes": Case(
        """g (float[N,M] x) => (float[K] y) <int64[1] m = {-1}>
        { s = Shape (x) p = ReduceProd (s) r = Reshape (x, p) q = Reshape (x, m)
          y = Add (r, q) }"""
    ),
    "range_from_shape": Case(
        """g (float[N,4] x) => (float[N,4] y) <int64 z = {0}, int64 one = {1}>
        { s = Shape (x) n = Gather (s, z) r = Range (z, n, one) y = Gather (x, r) }"""
    ),
    "range_constant": Case(
        "g (float[4] x) => (float[4] y) <float a = {0.0}, float b = {4.0}, float c = {1.0}> "
        "{ r = Range (a, b, c) y = Add (x, r) }"
    ),
    "constant_of_negative_shape": Case(
        "g (float[4] x, int64[1] n) => (float[K] y) { c = ConstantOfShape (n) "
        "y = Concat <axis = 0> (x, c) }",
        feeds={"n": ints(2)},
    ),
    "non_zero_is_dynamic": Case(
        "g (float[4] x) => (int64[1,K] y) { n = NonZero (c) y = Add (n, n) }",
        arrays={"c": np.array([0, 1, 0, 2], np.float32)},
    ),
    "unique_counts": Case(
        'g (float[4] x) => (int64[K] y) { u, "", "", y = Unique (x) }', special=False
    ),
    "depth_to_space_and_back": Case(
        """g (float[1,8,2,2] x) => (float[1,8,2,2] y) { a = DepthToSpace <blocksize = 2> (x)
        y = SpaceToDepth <blocksize = 2> (a) }"""
    ),
    "dead_views_of_a_shape": Case(
        """g (float[2,50] x) => (float[2,50] y) <int64[2] t = {2, 1}>
        { [a] s = Shape (x) [b] i = Identity (s) d = Reshape (s, t) e = Shape (d)
          y = Expand (x, i) }"""
    ),
    "declared_dims_are_kept": Case(
        "g (float[batch,3] x) => (float[batch_out,3] y) { a = Identity (x) y = Relu (a) }"
    ),
    "scalar_through_views": Case(
        """g (float x) => (float y) <int64[1] a = {0}>
        { u = Unsqueeze (x, a) e = Reshape (u, n) y = Neg (e) }""",
        arrays={"n": ints()},
    ),
    "einsum_identity": Case(
        'g (float[N,4] x) => (float[N,4] y) { a = Einsum <equation = "ij->ij"> (x) y = Neg (a) }'
    ),
    "cumsum_of_one": Case(
        "g (float[N,1] x) => (float[N,1] y, float[N,1] z) <int64 a = {1}> "
        "{ y = CumSum (x, a) z = CumSum <exclusive = 1> (x, a) }"
    ),
}
