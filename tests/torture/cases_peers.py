"""What today's simplifiers break: wrong values, lost names, invalid files, files blown up."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from torture.case import Case, ints, norm, rand

_FN = '<ir_version: 8, opset_import: ["" : 18, "my.fn" : 1]>\n'
_MS = '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>\n'
_ML = '<ir_version: 8, opset_import: ["" : 18, "ai.onnx.ml" : 1]>\n'
_CONV_BN = "y = BatchNormalization (c, s, b, m, v)"

CASES = {
    "bfloat16_weight": Case(
        "g (float[N,8] x) => (float[N,8] y) { f = Cast <to = 1> (w) y = MatMul (x, f) }",
        arrays={"w": rand(8, 8).astype(ml_dtypes.bfloat16)},
    ),
    "batch_norm_opset_9": Case(
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) "
        f"{{ c = Conv <pads = [1,1,1,1]> (x, w) {_CONV_BN} }}",
        opset=9,
        arrays={"w": rand(4, 3, 3, 3), **norm(4)},
    ),
    "constant_output_without_input": Case(
        "g () => (float[4] y) { y = Add (a, c) }",
        arrays={"a": rand(4), "c": rand(4, seed=1)},
    ),
    "constant_of_shape_grows": Case(
        """g (float[512] x) => (float[512] y) <int64[2] shape = {512, 512}, int64 zero = {0}> {
            big = ConstantOfShape <value = float[1] {1.0}> (shape)
            s = ReduceSum <keepdims = 0> (big)
            a = Add (x, s) row = Gather (big, zero) y = Add (a, row)
        }"""
    ),
    "conv_weight_shared_by_two": Case(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) "
        f"{{ c = Conv (x, w) {_CONV_BN} z = Conv (x, w) }}",
        arrays={"w": rand(4, 3, 3, 3), **norm(4)},
    ),
    "conv_read_twice": Case(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) "
        f"{{ c = Conv (x, w) {_CONV_BN} z = Relu (c) }}",
        arrays={"w": rand(4, 3, 3, 3), **norm(4)},
    ),
    "conv_output_public": Case(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] c) "
        f"{{ c = Conv (x, w) {_CONV_BN} }}",
        arrays={"w": rand(4, 3, 3, 3), **norm(4)},
    ),
    "dropout_mask_public": Case(
        """g (float[N,4] x) => (float[N,4] y, bool[N,4] mask) <float r = {0.5}, bool t = {0}>
        { y, mask = Dropout (x, r, t) }"""
    ),
    "duplicates_in_branches": Case(
        """g (float[6] x, bool f) => (float[6] y) {
            a = Exp (x) b = Exp (x) c = Add (a, b)
            y = If (f) <then_branch = t () => (float[6] p) { d = Exp (x) p = Add (d, c) },
                        else_branch = e () => (float[6] q) { d = Exp (x) q = Sub (d, c) }>
        }"""
    ),
    "reshape_by_own_batch": Case(
        """g (float[N,2,8] x) => (float[N,16] y)
        <int64 z = {0}, int64[1] a = {0}, int64[1] m = {-1}> {
            s = Shape (x) n = Gather (s, z) n1 = Unsqueeze (n, a)
            t = Concat <axis = 0> (n1, m) y = Reshape (x, t)
        }"""
    ),
    "integer_division": Case(
        """g (float[4] x) => (float[4] y) <int64[1] a = {7}, int64[1] b = {-2}>
        { c = Div (a, b) m = Mod (a, b) d = Add (c, m) f = Cast <to = 1> (d) y = Add (x, f) }"""
    ),
    "float16": Case(
        "g (float16[N,8] x) => (float16[N,8] y) "
        "{ a = MatMul (x, w) i = Identity (a) y = Relu (i) }",
        arrays={"w": rand(8, 8).astype(np.float16)},
    ),
    "float8_weight": Case(
        """g (float[N,8] x) => (float[N,8] y) <float s = {0.5}>
        { f = DequantizeLinear (w, s) y = MatMul (x, f) }""",
        opset=19,
        arrays={"w": rand(8, 8).astype(ml_dtypes.float8_e4m3fn)},
    ),
    "int4_weight": Case(
        """g (float[N,8] x) => (float[N,8] y)
        { f = DequantizeLinear <axis = 0, block_size = 4> (w, s) y = MatMul (x, f) }""",
        opset=21,
        arrays={
            "w": np.arange(64).reshape(8, 8).astype(np.int8).astype(ml_dtypes.int4),
            "s": np.full((2, 8), 0.1, np.float32),
        },
    ),
    "identity_alone": Case("g (float[N,4] x) => (float[N,4] y) { y = Identity (x) }"),
    "if_constant": Case(
        """g (float[4] x) => (float[4] y) <bool c = {0}> {
            y = If (c) <then_branch = t () => (float[4] p) { p = Mul (x, w) },
                        else_branch = e () => (float[4] q) { q = Add (x, w) }>
        }""",
        arrays={"w": rand(4)},
    ),
    "if_constant_empty_branch": Case(
        """g (float[4] x) => (float[4] y) <bool c = {1}> {
            h = Relu (x)
            y = If (c) <then_branch = t () => (float[4] p) { p = Identity (h) },
                        else_branch = e () => (float[4] q) { q = Neg (h) }>
        }"""
    ),
    "same_names_in_branches": Case(
        """g (float[4] x, bool c) => (float[4] y) {
            y = If (c) <then_branch = t () => (float[4] o) <float[4] k = {1, 2, 3, 4}>
                        { o = Mul (x, k) },
                        else_branch = e () => (float[4] o) <float[4] k = {5, 6, 7, 8}>
                        { o = Mul (x, k) }>
        }"""
    ),
    "initializer_is_output": Case(
        "g (float[4] x) => (float[4] y, float[4] w) { y = Relu (x) }", arrays={"w": rand(4)}
    ),
    "input_is_output": Case(
        "g (float[4] x) => (float[4] y, float[4] x) { i = Identity (x) y = Relu (i) }"
    ),
    "function": Case(
        _FN
        + """g (float[N,4] x) => (float[N,4] y) { a = my.fn.Half (x) y = my.fn.Half (a) }
        <domain: "my.fn", opset_import: ["" : 18]> Half (x) => (y) {
            h = Constant <value = float {0.5}> () i = Identity (x) e = Erf (i) m = Mul (e, h)
            y = Mul (x, m)
        }"""
    ),
    "function_with_attribute": Case(
        _FN
        + """g (float[N,4] x) => (float[N,4] y)
        { a = my.fn.Lk <alpha: float = 0.3> (x) y = my.fn.Lk <alpha: float = 0.7> (a) }
        <domain: "my.fn", opset_import: ["" : 18]>
        Lk <alpha> (x) => (y) { i = Identity (x) y = LeakyRelu <alpha: float = @alpha> (i) }"""
    ),
    "loop_carried_and_scanned": Case(
        """g (float[4] x) => (float[4] y, float[T,4] ys) <int64 n = {3}, bool go = {1}> {
            y, ys = Loop (n, go, x) <body = b (int64 i, bool c, float[4] acc)
                => (bool d, float[4] acc2, float[4] out) <float two = {2.0}>
                { acc2 = Add (acc, w) d = Identity (c) m = Mul (acc2, two) out = Identity (m) }>
        }""",
        arrays={"w": rand(4)},
    ),
    "loop_nothing_carried": Case(
        """g (float[3,4] x) => (float[T,4] y) <int64 n = {3}, bool go = {1}> {
            y = Loop (n, go) <body = b (int64 i, bool c) => (bool d, float[4] o)
                { r = Gather (x, i) o = Mul (r, w) d = Identity (c) }>
        }""",
        arrays={"w": rand(4)},
    ),
    "unused_initializers": Case(
        "g (float[4] x) => (float[4] y) { y = Relu (x) }",
        arrays={f"dead{i}": rand(30, 30, seed=i) for i in range(5)},
    ),
    "matmul_add_of_rank_3": Case(
        "g (float[N,3,8] x) => (float[N,3,8] y) { a = MatMul (x, w) y = Add (a, b) }",
        arrays={"w": rand(8, 8), "b": rand(3, 8)},
    ),
    "metadata": Case(
        """<ir_version: 8, opset_import: ["" : 18], producer_name: "somebody", doc_string: "text",
            metadata_props: ["author": "me", "key": "value"]>
        g (float[N,8] x) => (float[N,8] y) { [keep] a = MatMul (x, w) [too] i = Identity (a)
            [last] y = Relu (i) }""",
        arrays={"w": rand(8, 8)},
    ),
    "contrib_operator": Case(
        _MS
        + """g (float[N,4] x) => (float[N,4] y)
        { a = com.microsoft.Gelu (x) b = Identity (a) y = MatMul (b, w) }""",
        arrays={"w": rand(4, 4)},
    ),
    "contrib_fused_matmul": Case(
        _MS
        + """g (float[N,4] x) => (float[N,6] y)
        { y = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, w) }""",
        arrays={"w": rand(6, 4)},
    ),
    "constants_become_nan": Case(
        """g (float[4] x) => (float[4] y) <float one = {1.0}, float zero = {0.0}> {
            i = Div (one, zero) n = Sub (i, i) b = IsNaN (n) m = Where (b, one, zero)
            p = Add (x, m) y = Min (p, i)
        }"""
    ),
    "upsample_opset_7": Case(
        '<ir_version: 3, opset_import: ["" : 7]> g (float[1,3,4,4] x) => (float[1,3,8,8] y) '
        "{ i = Identity (x) y = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (i) }"
    ),
    "optional_inputs_and_outputs": Case(
        """g (float[4] x, float[2,1,5] s) => (float[4] y, float[1,1,3] h) <float top = {1.0}>
        { y = Clip (x, "", top) "", h = LSTM <hidden_size = 3> (s, W, R) }""",
        arrays={"W": rand(1, 12, 5), "R": rand(1, 12, 3)},
    ),
    "captured_only": Case(
        """g (float[4] x, bool c) => (float[4] y) {
            r = Relu (x) n = Neg (x)
            y = If (c) <then_branch = t () => (float[4] p) { p = Identity (r) },
                        else_branch = e () => (float[4] q) { q = Identity (n) }>
        }"""
    ),
    "default_that_callers_override": Case(
        "g (float[4] x, float[4] w) => (float[4] y) { t = Add (x, w) a = Add (w, w) "
        "u = Add (t, a) y = Mul (u, v) }",
        arrays={"w": np.zeros(4, np.float32), "v": np.ones(4, np.float32)},
        feeds={"w": rand(4, seed=3)},
    ),
    "divide_and_multiply_back": Case(
        """g (float[4] x) => (float[4] y) <float three = {3.0}, float huge = {1e20}>
        { a = Div (x, three) b = Mul (a, three) y = Add (b, huge) }"""
    ),
    "quantized": Case(
        """g (float[N,16] x) => (float[N,16] y) <float a = {0.05}, uint8 z = {128}> {
            q = QuantizeLinear (x, a, z) d = DequantizeLinear (q, a, z)
            f = DequantizeLinear <axis = 1> (w, s, t) m = MatMul (d, f)
            r = QuantizeLinear (m, a, z) y = DequantizeLinear (r, a, z)
        }""",
        arrays={
            "w": np.arange(256).reshape(16, 16).astype(np.int8),
            "s": np.full(16, 0.01, np.float32),
            "t": np.zeros(16, np.int8),
        },
    ),
    "random_of_constant_shape": Case(
        "g (float[4] x) => (float[4] y, int64[1] n) "
        "{ a = RandomNormal <shape = [4]> () y = Add (x, a) n = Shape (a) }"
    ),
    "random_with_seed_twice": Case(
        """g (float[4] x) => (float[4] y) { a = RandomNormalLike <seed = 1.0> (x)
        b = RandomNormalLike <seed = 1.0> (x) y = Sub (a, b) }"""
    ),
    "strange_names": Case(
        """g (float[N,3,4,4] x) => (float[N,4,8,8] y) <float[4] sc = {1, 1, 2, 2}> {
            "r/with:odd*name" = Resize <mode = "linear"> (x, "", sc)
            "i d" = Identity ("r/with:odd*name") y = Conv <pads = [1,1,1,1]> ("i d", w)
        }""",
        arrays={"w": rand(4, 3, 3, 3)},
    ),
    "scan_two_outputs_of_one_value": Case(
        """g (float[5,4] x) => (float[4] last, float[5,4] y) <float[4] z = {0, 0, 0, 0}> {
            last, y = Scan <num_scan_inputs = 1, body = b (float[4] s, float[4] e)
                => (float[4] s2, float[4] o) { s2 = Add (s, e) o = Identity (s2) }> (z, x)
        }"""
    ),
    "sequences": Case(
        """g (float[4,3] x) => (float[1,3] y) <int64 i = {1}>
        { s = SplitToSequence <axis = 0> (x) t = Identity (s) y = SequenceAt (t, i) }"""
    ),
    "part_of_a_shape": Case(
        """g (float[1,3,8,8] x) => (float[1,3,2,2] y, int64[2] z) <int64[2] two = {2, 2},
            int64[2] st = {1, 1}, int64[2] ax = {2, 3}>
        { s = Shape <start = 2, end = 4> (x) z = Div (s, two) e = Sub (z, st)
          y = Slice (x, st, e, ax) }"""
    ),
    "weight_transposed_twice": Case(
        """g (float[N,32] x) => (float[N,96] y) { t = Transpose <perm = [1,0]> (w) a = MatMul (x, t)
        u = Transpose <perm = [1,0]> (w) b = MatMul (x, u) c = MatMul (x, w)
        y = Concat <axis = 1> (a, b, c) }""",
        arrays={"w": rand(32, 32)},
    ),
    "slices_of_slices": Case(
        """g (float[N,20,20] x) => (float[N,6,C] y) <int64[1] s0 = {5}, int64[1] e0 = {18},
            int64[1] a0 = {1}, int64[1] s1 = {-7}, int64[1] e1 = {-1}, int64[1] s2 = {4},
            int64[1] e2 = {0}, int64[1] st = {-2}, int64[1] a2 = {2}>
        { a = Slice (x, s0, e0, a0) b = Slice (a, s1, e1, a0) y = Slice (b, s2, e2, a2, st) }"""
    ),
    "strings": Case(
        """g (string[N] x) => (float[N] y) <string[1] k = {"a"}>
        { i = Identity (x) e = Equal (i, k) y = Cast <to = 1> (e) }""",
        opset=19,
    ),
    "tied_embedding": Case(
        """g (int64[N] ids) => (float[N,64] y)
        { e = Gather (w, ids) t = Transpose <perm = [1,0]> (w) y = MatMul (e, t) }""",
        arrays={"w": rand(64, 32)},
    ),
    "equal_weights": Case(
        "g (float[N,32] x) => (float[N,32] y) { a = MatMul (x, w) y = MatMul (a, v) }",
        arrays={"w": rand(32, 32), "v": rand(32, 32)},
    ),
    "expand_grows": Case(
        """g (float[300,300] x) => (float[300,300] y) <int64[2] s = {300, 300}>
        { b = Expand (w, s) t = Tile (v, r) c = Add (x, b) y = Add (c, t) }""",
        arrays={"w": rand(1, 300), "v": rand(1, 300), "r": ints(300, 1)},
    ),
    "views_in_a_row": Case(
        """g (float[2,3,4] x) => (float[2,12] y) <int64[3] s = {2, 3, 4}, int64[2] t = {2, 12}>
        { a = Transpose <perm = [0,2,1]> (x) b = Transpose <perm = [0,2,1]> (a)
          c = Reshape (b, s) y = Reshape (c, t) }"""
    ),
    "two_names_of_one_value": Case(
        "g (float[4] x) => (float[4] y, float[4] z) "
        "{ r = Relu (x) y = Identity (r) z = Identity (r) }"
    ),
    "two_names_of_an_input": Case(
        "g (float[4] x) => (float[4] y, float[4] z) { y = Identity (x) z = Identity (x) }"
    ),
    "custom_operator": Case(
        """<ir_version: 8, opset_import: ["" : 18, "acme" : 1]> g (float[N,4] x) => (float[N,4] y)
        { i = Identity (x) a = acme.MyOp (i) b = acme.MyOp (i) c = Add (a, b) y = Relu (c) }""",
        runs=False,
    ),
    "unknown_operator": Case(
        "g (float[N,4] x) => (float[N,4] y) { a = TotallyUnknown (x) b = TotallyUnknown (x) "
        "c = Add (a, b) y = Relu (c) }",
        runs=False,
    ),
    "unused_input": Case("g (float[4] x, float[2] unused) => (float[4] y) { y = Relu (x) }"),
    "zero_size": Case(
        "g (float[4] x) => (float[4] y) { a = Concat <axis = 0> (x, e) y = Relu (a) }",
        arrays={"e": np.zeros(0, np.float32)},
    ),
    "zipmap": Case(
        _ML
        + """g (float[N,3] x) => (seq(map(int64, float)) y) { i = Identity (x)
        p = ai.onnx.ml.Normalizer <norm = "L1"> (i)
        y = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (p) }"""
    ),
    "tree_ensemble": Case(
        _ML
        + """g (float[N,3] x) => (float[N,1] y) { i = Identity (x)
        y = ai.onnx.ml.TreeEnsembleRegressor <n_targets = 1, nodes_treeids = [0, 0, 0],
            nodes_nodeids = [0, 1, 2], nodes_featureids = [1, 0, 0],
            nodes_values = [0.5, 0.0, 0.0], nodes_modes = ["BRANCH_LEQ", "LEAF", "LEAF"],
            nodes_truenodeids = [1, 0, 0], nodes_falsenodeids = [2, 0, 0],
            target_treeids = [0, 0], target_nodeids = [1, 2], target_ids = [0, 0],
            target_weights = [1.5, -2.0]> (i) }"""
    ),
}
