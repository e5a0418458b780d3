"""Names and scopes: captured values, branches, loops, functions, sequences, duplicates."""

from __future__ import annotations

import numpy as np
from torture.case import Case, ints, rand

_LOCAL = '<ir_version: 8, opset_import: ["" : 18, "local" : 1]>\n'
_IF = "g (float[4] x, bool c) => (float[4] y) "
_NOT = {"c": np.array(0, np.bool_)}

CASES = {
    "branch_names_like_outer": Case(
        _IF
        + """{ y = If (c) <then_branch = t () => (float[4] o) { a = Neg (x) o = Identity (a) },
             else_branch = e () => (float[4] o) { a = Abs (x) o = Identity (a) }> }"""
    ),
    "outer_value_behind_identity": Case(
        _IF
        + """{ i = Identity (x) r = Relu (i) j = Identity (r)
          y = If (c) <then_branch = t () => (float[4] p) { p = Add (j, i) },
                      else_branch = e () => (float[4] q) { q = Identity (j) }> }""",
        feeds=_NOT,
    ),
    "branch_returns_input": Case(
        _IF
        + """{ y = If (c) <then_branch = t () => (float[4] p) { p = Identity (x) },
                      else_branch = e () => (float[4] q) { q = Identity (x) }> }"""
    ),
    "branch_returns_constant": Case(
        _IF
        + """{ y = If (c) <then_branch = t () => (float[4] p)
                { p = Constant <value = float[4] {1, 2, 3, 4}> () },
              else_branch = e () => (float[4] q) <float[4] q = {5, 6, 7, 8}> { z = Neg (x) }> }"""
    ),
    "branch_returns_one_value_twice": Case(
        """g (float[4] x, bool c) => (float[4] y, float[4] z)
        { y, z = If (c) <then_branch = t () => (float[4] p, float[4] q)
                { p = Neg (x) q = Identity (p) },
              else_branch = e () => (float[4] u, float[4] v) { u = Abs (x) v = Abs (x) }> }"""
    ),
    "if_output_unused": Case(
        """g (float[4] x, bool c) => (float[4] y)
        { y, z = If (c) <then_branch = t () => (float[4] p, float[4] q) { p = Neg (x) q = Exp (x) },
              else_branch = e () => (float[4] u, float[4] v) { u = Abs (x) v = Log (x) }> }"""
    ),
    "if_constant_two_outputs": Case(
        """g (float[4] x) => (float[4] y, float[4] z) <bool c = {1}>
        { y, z = If (c) <then_branch = t () => (float[4] p, float[4] q)
                { p = Neg (x) q = Identity (p) },
              else_branch = e () => (float[4] u, float[4] v) { u = Abs (x) v = Log (x) }> }"""
    ),
    "if_constant_twice_same_names": Case(
        """g (float[4] x) => (float[4] y) <bool c = {1}, bool d = {0}>
        { h = If (c) <then_branch = t () => (float[4] o) <float[4] k = {1, 2, 3, 4}>
                { a = Mul (x, k) o = Neg (a) },
              else_branch = e () => (float[4] o) { o = Abs (x) }>
          y = If (d) <then_branch = t () => (float[4] o) { o = Abs (h) },
              else_branch = e () => (float[4] o) <float[4] k = {5, 6, 7, 8}>
                { a = Mul (h, k) o = Neg (a) }> }"""
    ),
    "if_of_shapes_that_differ": Case(
        """g (float[4] x, bool c) => (float[M] y) <int64[1] s = {0}, int64[1] e = {2}>
        { y = If (c) <then_branch = t () => (float[P] p) { p = Slice (x, s, e) },
                      else_branch = f () => (float[Q] q) { q = Identity (x) }> }""",
        feeds=_NOT,
    ),
    "nested_branches": Case(
        """g (float[4] x, bool c, bool d) => (float[4] y) <float two = {2.0}>
        { h = Identity (x)
          y = If (c) <then_branch = t () => (float[4] p) {
                g1 = Mul (h, two)
                p = If (d) <then_branch = tt () => (float[4] r)
                              { s = Mul (h, two) r = Add (s, g1) },
                            else_branch = te () => (float[4] r2) { r2 = Identity (g1) }> },
              else_branch = e () => (float[4] q) { q = Identity (h) }> }"""
    ),
    "loop_zero_trips": Case(
        """g (float[4] x) => (float[4] y, float[T,4] s) <int64 n = {0}, bool go = {1}>
        { y, s = Loop (n, go, x) <body = b (int64 i, bool c, float[4] a)
            => (bool d, float[4] b, float[4] o)
            { b = Neg (a) o = Identity (b) d = Identity (c) }> }"""
    ),
    "loop_condition_ends_it": Case(
        """g (float[4] x) => (float[4] y) <int64 n = {9}, bool go = {1}, int64 three = {3}>
        { y = Loop (n, go, x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] b)
            { b = Add (a, a) d = Less (i, three) }> }"""
    ),
    "loop_never_starts": Case(
        """g (float[4] x) => (float[4] y) <int64 n = {9}, bool go = {0}>
        { y = Loop (n, go, x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] b)
            { b = Add (a, a) d = Identity (c) }> }"""
    ),
    "loop_dynamic_trips": Case(
        """g (float[4] x, int64 n) => (float[4] y) <float k = {0.5}> { h = Identity (x)
          y = Loop (n, "", h) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] b)
            { t = Mul (h, k) u = Mul (h, k) v = Add (t, u) b = Add (a, v) d = Identity (c) }> }""",
        feeds={"n": np.array(2, np.int64)},
    ),
    "loop_swaps_states": Case(
        """g (float[4] x) => (float[4] y, float[4] z) <int64 n = {3}, bool go = {1}> { m = Neg (x)
          y, z = Loop (n, go, x, m) <body = b (int64 i, bool c, float[4] p, float[4] q)
            => (bool d, float[4] r, float[4] s)
            { r = Identity (q) s = Identity (p) d = Identity (c) }> }"""
    ),
    "loop_state_never_changes": Case(
        """g (float[4] x) => (float[4] y, float[4] z) <int64 n = {3}, bool go = {1}> { m = Neg (x)
          y, z = Loop (n, go, x, m) <body = b (int64 i, bool c, float[4] p, float[4] q)
            => (bool d, float[4] r, float[4] s)
            { r = Add (p, q) s = Identity (q) d = Identity (c) }> }"""
    ),
    "loop_grows_a_value": Case(
        """g (float[N] x) => (float[M] y) <int64 n = {3}, bool go = {1}>
        { y = Loop (n, go, x) <body = b (int64 i, bool c, float[P] a) => (bool d, float[Q] b)
            { b = Concat <axis = 0> (a, x) d = Identity (c) }> }"""
    ),
    "loop_output_unused": Case(
        """g (float[4] x) => (float[4] y) <int64 n = {2}, bool go = {1}>
        { y, s = Loop (n, go, x) <body = b (int64 i, bool c, float[4] a)
            => (bool d, float[4] b, float[4] o) { b = Neg (a) o = Exp (b) d = Identity (c) }> }"""
    ),
    "loop_invariant_inside": Case(
        """g (float[4,4] x) => (float[4,4] y) <int64 n = {2}, bool go = {1}>
        { y = Loop (n, go, x) <body = b (int64 i, bool c, float[4,4] a) => (bool d, float[4,4] b)
            { t = Transpose <perm = [1,0]> (w) b = MatMul (a, t) d = Identity (c) }> }""",
        arrays={"w": rand(4, 4)},
    ),
    "scan_backwards": Case(
        """g (float[5,4] x) => (float[4] s, float[5,4] y) <float[4] z = {0, 0, 0, 0}> {
          s, y = Scan <num_scan_inputs = 1, scan_input_directions = [1],
            scan_output_directions = [1],
            body = b (float[4] a, float[4] e) => (float[4] t, float[4] o)
            { t = Add (a, e) u = Add (a, e) o = Mul (t, u) }> (z, x) }"""
    ),
    "scan_output_is_input": Case(
        """g (float[5,4] x) => (float[4] s, float[5,4] y) <float[4] z = {0, 0, 0, 0}> {
          s, y = Scan <num_scan_inputs = 1, body = b (float[4] a, float[4] e)
            => (float[4] t, float[4] o) { t = Add (a, e) o = Identity (e) }> (z, x) }"""
    ),
    "function_calls_function": Case(
        _LOCAL
        + """g (float[N,4] x) => (float[N,4] y) { a = local.Outer (x) y = local.Inner (a) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        Outer (x) => (y) { a = local.Inner (x) b = local.Inner (x) y = Add (a, b) }
        <domain: "local", opset_import: ["" : 18]>
        Inner (x) => (y) { i = Identity (x) r = Relu (i) y = Identity (r) }"""
    ),
    "function_of_other_opset": Case(
        '<ir_version: 8, opset_import: ["" : 18, "local" : 1]>\n'
        """g (float[2,1,4] x) => (float[2,4] y) { a = local.F (x) y = Relu (a) }
        <domain: "local", opset_import: ["" : 18]>
        F (x) => (y) { a = Constant <value = int64[1] {1}> () y = Squeeze (x, a) }"""
    ),
    "function_is_identity": Case(
        _LOCAL
        + """g (float[N,4] x) => (float[N,4] y, float[N,4] z)
        { a, z = local.Two (x) y = Relu (a) }
        <domain: "local", opset_import: ["" : 18]>
        Two (x) => (p, q) { p = Identity (x) q = Identity (x) }"""
    ),
    "function_with_branch": Case(
        _LOCAL
        + """g (float[N,4] x, bool c) => (float[N,4] y) { a = local.F (x, c) y = local.F (a, c) }
        <domain: "local", opset_import: ["" : 18]>
        F (x, c) => (y) { h = Identity (x)
            y = If (c) <then_branch = t () => (float[A,B] p) { p = Relu (h) },
                        else_branch = e () => (float[C,D] q) { q = Identity (h) }> }"""
    ),
    "function_without_output_used": Case(
        _LOCAL
        + """g (float[N,4] x) => (float[N,4] y) { a, b = local.Two (x) y = Relu (b) }
        <domain: "local", opset_import: ["" : 18]>
        Two (x) => (p, q) { p = Exp (x) q = Abs (x) }"""
    ),
    "function_random_inside": Case(
        _LOCAL
        + """g (float[4] x) => (int64[1] y) { a = local.R (x) b = local.R (x) c = Sub (a, b)
            y = Shape (c) }
        <domain: "local", opset_import: ["" : 18]>
        R (x) => (y) { n = RandomNormalLike (x) y = Add (x, n) }"""
    ),
    "function_default_attribute": Case(
        _LOCAL
        + """g (float[4] x) => (float[4] y)
        { a = local.L <alpha: float = 0.5> (x) y = local.L (a) }
        <domain: "local", opset_import: ["" : 18]>
        L <alpha: float = 0.1> (x) => (y) { y = LeakyRelu <alpha: float = @alpha> (x) }"""
    ),
    "sequence_in_loop": Case(
        """g (float[4] x) => (float[M] y) <int64 n = {3}, bool go = {1}> {
          s = SequenceEmpty ()
          t = Loop (n, go, s) <body = b (int64 i, bool c, seq(float[P]) a)
            => (bool d, seq(float[Q]) o) { o = SequenceInsert (a, x) d = Identity (c) }>
          y = ConcatFromSequence <axis = 0> (t) }"""
    ),
    "sequence_length": Case(
        """g (float[4,3] x) => (int64 y, float[1,3] z) <int64 i = {-1}> {
          s = SplitToSequence <axis = 0> (x) t = SplitToSequence <axis = 0> (x)
          y = SequenceLength (s) z = SequenceAt (t, i) }"""
    ),
    "optional_values": Case(
        "g (float[4] x) => (float[4] y, bool z) { o = Optional (x) z = OptionalHasElement (o) "
        "y = OptionalGetElement (o) }"
    ),
    "equal_nodes_of_public_names": Case(
        "g (float[4] x) => (float[4] y, float[4] z) { y = Relu (x) z = Relu (x) }"
    ),
    "equal_nodes_but_for_an_attribute": Case(
        "g (float[4] x) => (float[4] y) { a = LeakyRelu <alpha = 0.1> (x) "
        "b = LeakyRelu <alpha = 0.2> (x) c = LeakyRelu (x) d = LeakyRelu <alpha = 0.01> (x) "
        "e = Sum (a, b, c, d) y = Neg (e) }"
    ),
    "equal_nodes_swapped_inputs": Case(
        "g (float[4] x, float[4] z) => (float[4] y) { a = Sub (x, z) b = Sub (z, x) "
        "c = Add (x, z) d = Add (z, x) y = Sum (a, b, c, d) }"
    ),
    "equal_nodes_missing_outputs": Case(
        """g (float[2,4] x) => (float[2,2] y, int64[2,2] z) { a, z = TopK (x, k)
        b, i = TopK (x, k) y = Add (a, b) }""",
        arrays={"k": ints(2)},
        special=False,
    ),
    "equal_constants_of_two_types": Case(
        "g (float[4] x, int32[4] i) => (float[4] y, int32[4] j) <float a = {0}, int32 b = {0}> "
        "{ y = Add (x, a) j = Add (i, b) }"
    ),
    "signed_zeros_are_two_constants": Case(
        "g (float[4] x) => (float[4] y, float[4] z) { y = Div (x, p) z = Div (x, n) }",
        arrays={"p": np.float32(0.0), "n": np.float32(-0.0)},
    ),
    "constant_in_many_forms": Case(
        """g (float[2] x) => (float[2] y) { a = Constant <value_float = 2.0> ()
        b = Constant <value_floats = [1.0, 2.0]> () c = Constant <value_ints = [1, 0]> ()
        d = Constant <value_int = 2> () e = Cast <to = 1> (c) f = Cast <to = 1> (d)
        y = Sum (x, a, b, e, f) }"""
    ),
    "constant_is_output": Case(
        """g (float[2] x) => (float[2] y, float[2] k, float[2] l)
        { k = Constant <value_floats = [1.0, 2.0]> ()
        l = Constant <value_floats = [1.0, 2.0]> () y = Add (x, k) }"""
    ),
    "dead_branch_of_the_graph": Case(
        "g (float[4] x) => (float[4] y) { a = Exp (x) b = Neg (a) y = Relu (x) }"
    ),
    "dead_bias_of_a_layer": Case(
        """g (float[1,2,4,4] x) => (float[1,2,4,4] y)
        { c = Conv (x, w) d = Add (c, b) e = BatchNormalization (d, s, s, s, s) y = Relu (x) }""",
        arrays={"w": rand(4, 2, 3, 3), "b": rand(1, 4, 1, 1), "s": np.ones(4, np.float32)},
    ),
    "short_name_of_a_long_input": Case(
        "g (float[4] a_name_of_an_input_that_is_long) => (float[4] y) "
        "{ i = Identity (a_name_of_an_input_that_is_long) y = Sum (i, i, i, i, i, i, i, i, i) }"
    ),
    "short_name_of_a_long_value": Case(
        "g (float[4] x) => (float[4] y) { a_name_of_a_value_that_is_long = Neg (x) "
        "i = Identity (a_name_of_a_value_that_is_long) y = Sum (i, i, i, i, i, i, i, i, i) }"
    ),
    "cast_of_cast_that_stays": Case(
        "g (bool[4] condition) => (float16[4] y, int64[4] z) "
        "{ z = Cast <to = 7> (condition) y = Cast <to = 10> (z) }"
    ),
    "branch_hides_a_vector_from_range": Case(
        """g (float[4] x, int64[1] n) => (float[M] y)
        <bool c = {1}, int64 z = {0}, int64 one = {1}> {
          e = If (c) <then_branch = t () => (int64[P] p) { p = Add (n, n) },
                      else_branch = f () => (int64[Q] q) { q = Mul (n, n) }>
          r = Range (z, e, one) y = Cast <to = 1> (r) }""",
        feeds={"n": ints(2)},
    ),
    "name_looks_generated": Case(
        """g (float[4] x) => (float[4] y) <float two = {2.0}, float three = {3.0}>
        { y_constant = Neg (x) v0 = Mul (two, three) node_Constant_0 = Mul (y_constant, v0)
          y = Add (node_Constant_0, v0) }"""
    ),
    "ir_version_3": Case(
        '<ir_version: 3, opset_import: ["" : 8]> g (float[4] x, float[4] w, float[4] u) => '
        "(float[4] y) { a = Add (w, u) b = Add (x, a) i = Identity (b) y = Relu (i) }",
        arrays={"w": rand(4), "u": rand(4, seed=1)},
    ),
    "double_precision": Case(
        "g (double[N,4] x) => (double[N,4] y) <double k = {1.0}> "
        "{ a = MatMul (x, w) b = Mul (a, k) y = Tanh (b) }",
        arrays={"w": rand(4, 4).astype(np.float64)},
    ),
    "same_input_twice": Case(
        "g (float[4,4] x) => (float[4,4] y) { i = Identity (x) a = MatMul (i, x) y = Add (a, i) }"
    ),
    "no_nodes_left": Case("g (float[4] x) => (float[4] x) { a = Neg (x) }"),
}
