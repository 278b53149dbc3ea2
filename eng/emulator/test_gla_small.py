"""Tests of Gla/small_*.cu. In this folder: /usr/bin/python3 -m unittest test_gla_small"""

import ctypes
import unittest

import numpy as np

import emulate
from test_gla_chunks import LIMITS, Shape, _pointers, _views
from test_gla_recurrent import GLA, Case, fetch, laid_out, store

BLOCK_TOKENS = 16


class Forward(ctypes.Structure):
    """GlaSmallForward."""

    _fields_ = [("shape", Shape), *_views(*"qkvgo"), *_pointers("initial", "final", "states"), ("scale", ctypes.c_float)]


class Cluster(ctypes.Structure):
    """GlaSmallCluster."""

    _fields_ = [("maps", emulate.TensorMap * 4), ("forward", Forward), ("unused", ctypes.c_char * (-ctypes.sizeof(Forward) % 64))]


class Backward(ctypes.Structure):
    """GlaSmallBackward."""

    _fields_ = [("shape", Shape), *_views("q", "k", "v", "g", "do", "dq", "dk", "dv", "dg"),
                *_pointers("states", "final_gradient", "initial_gradient"), ("scale", ctypes.c_float)]


class SmallCase(Case):
    """A call of the kernels for small heads, with the launches of GlaSmallKernels.cs."""

    def __init__(self, K, V, *, warps=4, blocks=2, cluster=None, **options):
        super().__init__(K, V, **{"element": "bf16", **options})
        self.warps, self.blocks = warps, blocks
        self.cluster = cluster  # the kernel of clusters is to run forward: its WARPS, BLOCKS, CLUSTER and BOXES
        self.length = self.q.shape[1] if self.offsets is None else int(np.diff(self.offsets).max())
        self.keys, self.values = (8 if size <= 8 else 16 for size in (K, V))

    def run(self):
        B, T, H, K = self.q.shape
        V, group = self.v.shape[3], H // self.k.shape[2]
        vector = 1 if self.layout == "sliced" else int(np.gcd.reduce((K, V, 8)))
        buffers = {}

        def tensor(name, values, kind):
            part, buffers[name] = laid_out(store(values, kind), self.layout)
            return part

        def output(name, size, kind):
            return tensor(name, np.full((B, T, H, size), np.nan), kind)

        def floats(name, values):
            buffers[name] = emulate.guarded(np.asarray(values, np.float32))
            return buffers[name]

        def address(array):
            return None if array is None else array.ctypes.data

        def launch(kernel, parameters, shared=0, grid=self.count * H, **defines):
            defines = {"TYPE": self.element, "GATE_TYPE": self.gate, "KEY_TILE": self.keys, "VALUE_TILE": self.values,
                       "WARPS": self.warps, "VECTOR": vector, **defines}
            emulate.launch(GLA / f"small_{kernel}.cu", f"gla_small_{kernel}", defines, grid, 32 * defines["WARPS"], shared,
                           parameters, seed=self.seed, buffers=buffers, in_order=self.cluster is not None)

        q, k, v, do = (tensor(n, x, self.element) for n, x in (("q", self.q), ("k", self.k), ("v", self.v), ("do", self.do)))
        g, o = tensor("g", self.g, self.gate), output("o", V, self.element)
        unknown = np.full((self.count, H, K, V), np.nan)
        initial, final_gradient = (
            None if x is None else floats(n, x) for n, x in (("S0", self.initial), ("dST", self.final_gradient)))
        final, d_initial = floats("ST", unknown), floats("dS0", unknown)
        offsets = None if self.offsets is None else np.array(self.offsets, np.int32)
        sequences = emulate.Sequences(address(offsets), self.count, self.length, self.reverse)
        shape = Shape(sequences, H, group, K, V, 1, -(-self.length // BLOCK_TOKENS))
        saved_tokens = BLOCK_TOKENS * self.warps
        slots = self.count * -(-T // saved_tokens) if offsets is None else T // saved_tokens + self.count
        states = floats("states", np.full((slots, H, 16 * self.keys), np.nan))

        token_bytes = 2 * (2 * self.keys + self.values) + self.keys * (4 if self.gate == "float" else 2)
        forward = Forward(shape, *map(emulate.view, (q, k, v, g, o)), *map(address, (initial, final, states)), self.scale)
        if self.cluster:
            warps, blocks, cluster, boxes = self.cluster
            maps = [emulate.tensor_map(x.reshape(B, T, 1, H * K), 4 * K, BLOCK_TOKENS) for x in (q, k, v, g)] if boxes else []
            launch("forward_cluster", Cluster((emulate.TensorMap * 4)(*maps), forward), warps * blocks * 4096,
                   (cluster * self.count, H // 4), WARPS=warps, BLOCKS=blocks, CLUSTER=cluster, BOXES=int(boxes),
                   SAVED_EVERY=saved_tokens)
        else:
            warps = max(self.warps // 2, 4)
            launch("forward", forward, BLOCK_TOKENS * warps * self.blocks * token_bytes, WARPS=warps, BLOCKS=self.blocks,
                   SAVED_EVERY=saved_tokens)
        results = {"o": fetch(o, self.element), "final": final}
        gradients = [output(name, size, kind) for name, size, kind in (
            ("dq", K, self.element), ("dk", K, self.element), ("dv", V, self.element), ("dg", K, self.gate))]
        launch("backward", Backward(
            shape, *map(emulate.view, (q, k, v, g, do, *gradients)), *map(address, (states, final_gradient, d_initial)), self.scale))
        dq, dk, dv, dg = gradients
        return {**results, "d_initial": d_initial, "dq": fetch(dq, self.element), "dk": fetch(dk, self.element),
                "dv": fetch(dv, self.element), "dg": fetch(dg, self.gate)}


class GlaSmallTests(unittest.TestCase):
    def check(self, case, without=()):
        expected, actual = case.expected(), case.run()
        for name in (name for name in LIMITS if name in actual and name not in without):
            error, size = (np.sqrt(np.mean(np.square(y))) for y in (actual[name] - expected[name], expected[name]))
            self.assertLessEqual(error, LIMITS[name] * size, f"{name}, relative error {error / size if size else error:.1e}")

    def test_plain(self):
        for size in (8, 16):
            with self.subTest(size):
                self.check(SmallCase(size, size, B=2, T=300))

    def test_lengths(self):
        for length in (1, 2, 15, 16, 17, 63, 64, 65, 128, 129):
            with self.subTest(length):
                self.check(SmallCase(16, 8, T=length, gate="float"))

    def test_gates(self):
        for gates in ("none", "weak", "-5", "resets", "mixed", "wide", "half"):
            for size in (8, 16):
                with self.subTest(gates=gates, size=size):
                    self.check(SmallCase(size, size, T=140, gates=gates))

    def test_strongest_gates(self):
        # Gradients of the gates are e^-20 of what they are sums of, or 0; the others are not.
        for gates in ("-20", "strong", "all resets"):
            with self.subTest(gates):
                self.check(SmallCase(16, 16, T=100, gates=gates), without=("dg",) if gates != "all resets" else ("dg", "d_initial"))

    def test_odd_sizes(self):
        for K, V in ((1, 1), (1, 16), (4, 4), (5, 15), (15, 5), (8, 16), (16, 8), (12, 4), (6, 10)):
            with self.subTest(K=K, V=V):
                self.check(SmallCase(K, V, T=70, gates="resets"))

    def test_packed(self):
        offsets = [0, 0, 20, 20, 170, 171, 171]
        self.check(SmallCase(16, 16, T=171, offsets=offsets, reverse=True, gates="half"))
        self.check(SmallCase(8, 8, T=171, offsets=offsets, states=False))

    def test_grouped_heads(self):
        self.check(SmallCase(16, 8, B=2, T=130, H=4, Hkv=2))

    def test_layouts(self):
        for layout in ("sliced", "heads first", "backwards"):
            with self.subTest(layout):
                self.check(SmallCase(16, 8, T=40, layout=layout))

    def test_types(self):
        for size, element, gate in ((8, "bf16", "float"), (16, "bf16", "float"), (16, "fp16", "fp16"), (16, "fp16", "float")):
            with self.subTest(size=size, element=element, gate=gate):
                self.check(SmallCase(size, size, T=100, element=element, gate=gate, gates="half"))

    def test_warps(self):
        for warps, blocks in ((8, 1), (8, 2), (16, 2)):
            with self.subTest(warps=warps, blocks=blocks):
                self.check(SmallCase(16, 16, T=16 * warps + 100, warps=warps, blocks=blocks, H=1))

    def test_blocks(self):
        for blocks in (1, 4):
            for size in (8, 16):
                with self.subTest(blocks=blocks, size=size):
                    self.check(SmallCase(size, size, T=2 * 64 * blocks + 20, blocks=blocks, H=2, gates="mixed"))

    def test_orders(self):
        for seed in range(6):
            with self.subTest(seed):
                self.check(SmallCase(8, 8, T=200, H=1, seed=seed))

    def test_clusters(self):
        for warps, blocks, cluster, T in ((8, 1, 1, 20), (8, 1, 4, 400), (9, 2, 3, 702)):
            for gates, boxes in (("normal", True), ("mixed", False), ("mixed", True), ("-20", True)):
                with self.subTest(warps=warps, blocks=blocks, cluster=cluster, gates=gates, boxes=boxes):
                    case = SmallCase(8, 8, B=2, T=T, H=4, Hkv=4 if boxes else 2, gates=gates,
                                     cluster=(warps, blocks, cluster, boxes))
                    self.check(case, without=("dg",) if gates == "-20" else ())

    def test_clusters_packed(self):
        offsets = [0, 0, 20, 20, 170, 171, 171]
        for seed in range(4):
            with self.subTest(seed):
                self.check(SmallCase(8, 8, T=171, H=8, Hkv=8, offsets=offsets, reverse=True, gates="resets", seed=seed,
                                     element="fp16", cluster=(8, 2, 1, False), states=seed < 2))

    def test_far_frames(self):
        # In range each, but their decays together are not; and a way to the middle that would lose the state.
        for decay in (-1.5, -4, -6, -9, -12):
            case = SmallCase(16, 16, T=100, H=1, gates="weak")
            case.g[:] = decay
            with self.subTest(decay=decay):
                self.check(case, without=("dg",) if decay == -12 else ())


if __name__ == "__main__":
    unittest.main()
