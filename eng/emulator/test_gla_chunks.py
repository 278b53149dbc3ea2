"""Tests of Gla/chunk_*.cu and Gla/segment_scan.cu. In this folder: /usr/bin/python3 -m unittest test_gla_chunks"""

import ctypes
import unittest

import numpy as np

import emulate
from test_gla_recurrent import GLA, Case, fetch, store

CHUNKS = {"float": 32, "bf16": 64, "fp16": 64}  # of backward
TILES = (16, 32, 64, 128, 256)
MULTIPROCESSORS = 2
LIMITS = {"o": 4e-3, "dq": 5e-3, "dk": 5e-3, "dv": 5e-3, "dg": 1.5e-2, "final": 5e-3, "d_initial": 5e-3}  # relative RMS errors
FLOAT_LIMITS = {name: 3e-5 if name == "dg" else 1e-5 for name in LIMITS}


def _ints(*names):
    return [(name, ctypes.c_int) for name in names]


def _pointers(*names):
    return [(name, ctypes.c_void_p) for name in names]


def _views(*names):
    return [(name, emulate.TensorView) for name in names]


class Shape(ctypes.Structure):
    """fla::GlaShape."""

    _fields_ = [("sequences", emulate.Sequences),
                *_ints("heads", "group", "key_size", "value_size", "segments", "segment_chunks")]


class Forward(ctypes.Structure):
    """GlaChunkForward."""

    _fields_ = [("shape", Shape), *_views(*"qkvgo"), *_pointers("initial", "final", "states", "plain"),
                ("scale", ctypes.c_float)]


class State(ctypes.Structure):
    """GlaChunkState."""

    _fields_ = [("shape", Shape), *_views(*"xyg"), *_pointers("initial", "local", "decay", "final", "states", "plain"),
                ("scale", ctypes.c_float), *_ints("x_group", "y_group")]


class Scan(ctypes.Structure):
    """GlaSegmentScan."""

    _fields_ = [*_pointers("states", "decay", "initial"), ("size", ctypes.c_int64),
                *_ints("segments", "key_size", "value_size", "backward")]


class Backward(ctypes.Structure):
    """GlaChunkBackward."""

    _fields_ = [("shape", Shape), *_views("q", "k", "v", "g", "do", "dq", "dk", "dv", "dg"),
                *_pointers("states", "state_grads", "plain_states", "plain_grads"), *_ints("state_values"),
                ("scale", ctypes.c_float), *_ints("blocks")]


class ChunkCase(Case):
    """A call of the kernels over chunks, with the launches of GlaChunkKernels.cs and the tile of GlaChunkTile.cs."""

    def __init__(self, K, V, *, segments=1, stages=2, producers=4, consumers=4, values=None, all_values=None, backward_warps=8,
                 forward_chunk=None, hopper=False, state_slots=4, cluster=0, **options):
        super().__init__(K, V, **{"element": "bf16", **options})
        T, self.bytes, self.chunk = self.q.shape[1], 4 if self.element == "float" else 2, CHUNKS[self.element]
        self.length = T if self.offsets is None else int(np.diff(self.offsets).max())
        self.chunks, self.stages = -(-self.length // self.chunk), stages
        self.segment_chunks = -(-self.chunks // segments)
        self.segments = -(-self.chunks // self.segment_chunks)
        self.slots = self.count * self.chunks if self.offsets is None else T // self.chunk + self.count
        self.keys, self.all_values = (next(tile for tile in TILES if tile >= size) for size in (K, V))
        self.all_values = all_values or self.all_values
        self.values = values or min(self.all_values, 64 if self.keys > 128 else 128)
        self.forward_chunk = forward_chunk or (32 if self.keys > 64 else self.chunk)
        self.pairs_threads = min(512, self.chunk * self.keys // 2)
        self.shorter = self.chunk // self.forward_chunk
        self.producers, self.consumers, self.backward_warps = producers, min(consumers, self.values // 16), backward_warps
        self.state_slots = state_slots
        self.hopper = int(hopper or cluster > 0)
        self.cluster = cluster  # values of each block of forward's clusters, or 0
        self.value_tiles = -(-V // self.values)

    def shared_bytes(self, kernel):
        """As the kernel lays it out, which asserts it."""
        keys, values, all_values = (self.bytes * self.chunk * size for size in (self.keys, self.values, self.all_values))  # tiles
        pairs, row, gradients = self.bytes * self.chunk**2, 4 * self.chunk, 4 * self.chunk * self.keys
        states, barriers = 2 * self.keys * min(self.bytes * self.all_values, 128), 16
        if self.hopper:
            states = 64 * self.keys * self.state_slots
        if kernel == "chunk_forward":
            output = values if self.values > self.keys else 0
            return self.stages * ((3 * keys + output + values) // self.shorter + self.bytes * self.forward_chunk**2 + barriers)
        if kernel == "chunk_forward_cluster":
            keys, output, gate = self.keys // 2, 2 * self.forward_chunk * self.cluster, 4 if self.gate == "float" else 2
            half = -(-(4 * self.forward_chunk * keys + 2 * self.forward_chunk**2 + 20 * keys + 16) // 1024) * 1024
            return self.stages * (2 * half + output + gate * self.forward_chunk * keys + barriers) + 2 * output
        if kernel == "chunk_state":
            return self.stages * (2 * keys + values + barriers) + 256 * self.producers
        if kernel == "chunk_backward":
            own = sum(gradients for place in (2 * all_values, states) if place < gradients)
            sums = 384 * self.backward_warps + (16 if self.hopper else 8) * self.keys
            barriers = 8 * self.state_slots * self.hopper
            return 2 * keys + 2 * all_values + states + max(pairs, sums) + pairs + 256 + own + barriers
        return 3 * keys + 2 * pairs + row + 8 * self.pairs_threads + max(2 * all_values, gradients)

    def run(self):
        B, T, H, K = self.q.shape
        V, group = self.v.shape[3], H // self.k.shape[2]
        vector = np.gcd.reduce((K, V, 8))  # elements that are aligned together in all rows
        buffers = {}

        def keep(name, array):
            buffers[name] = emulate.guarded(array)
            return buffers[name]

        def tensor(name, values, kind):
            return keep(name, store(values, kind))

        def output(name, size, kind):
            return tensor(name, np.full((B, T, H, size), np.nan), kind)

        def floats(name, *shape):
            return keep(name, np.full(shape, np.nan, np.float32))

        def saved(name):
            size = self.value_tiles * self.values * self.bytes // 2 * self.keys
            return keep(name, np.full((self.slots, H, size), 0x7FFF, np.uint16))

        def address(array):
            return None if array is None else array.ctypes.data

        def launch(kernel, values, grid, threads, parameters, **more):
            shared = self.shared_bytes(kernel)
            chunk = self.forward_chunk if "chunk_forward" in kernel else self.chunk
            cluster = (1, 2) if "cluster" in kernel else 1
            defines = {"TYPE": self.element, "GATE_TYPE": self.gate, "KEY_TILE": self.keys, "VALUE_TILE": values, "CHUNK": chunk,
                       "VECTOR": vector, "MIN_BLOCKS": 1, "SHARED": shared, **more}
            emulate.launch(GLA / f"{kernel}.cu", f"gla_{kernel}", defines, grid, threads, shared, parameters, seed=self.seed,
                           buffers=buffers, cluster=cluster)

        q, k, v, do = (tensor(n, x, self.element) for n, x in (("q", self.q), ("k", self.k), ("v", self.v), ("do", self.do)))
        g = tensor("g", self.g, self.gate)
        initial, final_gradient = (
            None if x is None else tensor(n, x, "float") for n, x in (("S0", self.initial), ("dST", self.final_gradient)))
        offsets = None if self.offsets is None else np.array(self.offsets, np.int32)
        sequences = emulate.Sequences(address(offsets), self.count, self.length, self.reverse)
        shape = Shape(sequences, H, group, K, V, self.segments, self.segment_chunks)
        lines, threads = self.count * H, 32 * (self.producers + self.consumers)
        roles = {"STAGES": self.stages, "PRODUCERS": self.producers, "CONSUMERS": self.consumers, "PRODUCER_REGISTERS": 0,
                 "CONSUMER_REGISTERS": 0}
        grid = (lines * self.segments, self.value_tiles)

        def launch_state(backward, initial=None, local=None, decay=None, final=None, states=None, plain=None):
            x, y, scale, heads = (q, do, self.scale, 1) if backward else (k, v, 1, group)
            launch("chunk_state", self.values, grid, threads, State(
                shape, *map(emulate.view, (x, y, g)), *map(address, (initial, local, decay, final, states, plain)), scale, heads,
                heads), BACKWARD=backward, **roles)

        def join_segments(backward, first):
            """The state that each segment begins with, or its gradient."""
            if self.segments == 1:
                return first
            local = floats(f"segments {backward}", self.count, H, self.segments, K, V)
            decay = floats(f"decays {backward}", self.count, H, self.segments, K)
            launch_state(backward, local=local, decay=decay)
            size = lines * K * V
            emulate.launch(GLA / "segment_scan.cu", "gla_segment_scan", None, -(-size // 256), 256, 0, Scan(
                *map(address, (local, decay, first)), size, self.segments, K, V, backward), seed=self.seed)
            return local

        def marks(name):
            return keep(name, np.full((self.slots, H), -1, np.int32))

        o, final, states, plain = output("o", V, self.element), floats("ST", self.count, H, K, V), saved("states"), marks("plain")
        first = join_segments(0, initial)
        shape.segment_chunks *= self.shorter
        forward = Forward(
            shape, *map(emulate.view, (q, k, v, g, o)), *map(address, (first, final, states, plain)), self.scale)
        if self.cluster:
            launch("chunk_forward_cluster", self.cluster, (lines * self.segments, self.value_tiles * self.values // self.cluster),
                   32 * (self.producers + self.cluster // 16), forward, **{**roles, "CONSUMERS": self.cluster // 16})
        else:
            consumers = self.values // 16 if self.hopper else self.consumers
            launch("chunk_forward", self.values, grid, 32 * (self.producers + consumers), forward,
                   **{**roles, "HOPPER": self.hopper, "CONSUMERS": consumers})
        shape.segment_chunks //= self.shorter

        d_initial, state_gradients, plain_gradients = floats("dS0", self.count, H, K, V), saved("state gradients"), marks("plain gradients")
        launch_state(1, join_segments(1, final_gradient), final=d_initial, states=state_gradients, plain=plain_gradients)

        gradients = [output(name, size, kind) for name, size, kind in (
            ("dq", K, self.element), ("dk", K, self.element), ("dv", V, self.element), ("dg", K, self.gate))]
        blocks = lines * self.chunks
        backward = Backward(
            Shape(sequences, H, group, K, V, self.chunks, 1), *map(emulate.view, (q, k, v, g, do, *gradients)),
            *map(address, (states, state_gradients, plain, plain_gradients)), self.value_tiles * self.values, self.scale, blocks)
        launch("chunk_backward", self.all_values, blocks, 32 * self.backward_warps, backward, BACKWARD_WARPS=self.backward_warps,
               HOPPER=self.hopper, STATE_SLOTS=self.state_slots if self.hopper else 2)
        launch("chunk_backward_pairs", self.all_values, min(blocks, MULTIPROCESSORS), self.pairs_threads, backward)

        dq, dk, dv, dg = gradients
        return {"o": fetch(o, self.element), "final": final, "d_initial": d_initial, "dq": fetch(dq, self.element),
                "dk": fetch(dk, self.element), "dv": fetch(dv, self.element), "dg": fetch(dg, self.gate)}


class _ChunkTests(unittest.TestCase):
    def check(self, case, without=()):
        expected, actual, limits = case.expected(), case.run(), FLOAT_LIMITS if case.element == "float" else LIMITS
        for name in (name for name in LIMITS if name not in without):
            error, size = (np.sqrt(np.mean(np.square(y))) for y in (actual[name] - expected[name], expected[name]))
            self.assertLessEqual(error, limits[name] * size, f"{name}, relative error {error / size if size else error:.1e}")


class GlaChunkTests(_ChunkTests):
    def test_plain(self):
        self.check(ChunkCase(32, 32, B=2, T=200))

    def test_gates(self):
        for gates in ("none", "weak", "-5", "resets", "wide", "half"):
            with self.subTest(gates):
                self.check(ChunkCase(32, 32, T=140, gates=gates))

    def test_strongest_gates(self):
        # Gradients of the gates are e^-20 of what they are sums of; the others are not.
        self.check(ChunkCase(32, 32, T=140, gates="-20"), without=("dg",))

    def test_packed(self):
        offsets = [0, 20, 20, 170, 171]
        self.check(ChunkCase(32, 32, T=171, offsets=offsets, reverse=True, segments=2, gates="half"))
        self.check(ChunkCase(32, 32, T=171, offsets=offsets, states=False))

    def test_segments(self):
        self.check(ChunkCase(32, 32, B=2, T=300, segments=3, gates="weak"))

    def test_grouped_heads(self):
        self.check(ChunkCase(32, 32, T=130, H=4, Hkv=2, segments=2))

    def test_odd_sizes(self):
        self.check(ChunkCase(21, 27, T=130, Hkv=2))

    def test_several_value_tiles(self):
        self.check(ChunkCase(16, 160, T=130, H=1))

    def test_three_stages(self):
        self.check(ChunkCase(32, 32, T=270, stages=3, gates="half"))

    def test_more_warps(self):
        self.check(ChunkCase(64, 64, T=150, H=1, producers=8, consumers=4, backward_warps=16, gates="half"))
        self.check(ChunkCase(32, 128, T=100, H=1, producers=8, consumers=8, backward_warps=16))

    def test_short_forward_chunks(self):
        for gates in ("none", "half", "-5", "resets"):
            with self.subTest(gates):
                self.check(ChunkCase(32, 32, T=270, H=1, segments=2, gates=gates, forward_chunk=32))

    def test_strong_halves(self):
        # Too strong before the middle of a chunk and not after it, and the other way round.
        for half in (0, 1):
            case = ChunkCase(32, 32, T=192, H=1, gates="weak", forward_chunk=32 if half else 64)
            case.g[:, np.arange(192) % 64 // 32 == half] = -4
            with self.subTest(half):
                self.check(case)

    def test_far_frames(self):
        # In range each, but their decays together are not.
        for decay, forward_chunk in ((-1.5, 64), (-2, 64), (-3, 32), (-4, 32)):
            case = ChunkCase(32, 32, T=200, H=1, gates="weak", forward_chunk=forward_chunk)
            case.g[:] = decay
            with self.subTest(decay=decay, forward_chunk=forward_chunk):
                self.check(case)

    def test_narrow_value_tiles(self):
        self.check(ChunkCase(32, 128, T=100, H=1, values=64))

    def test_more_values_in_backward(self):
        self.check(ChunkCase(32, 16, T=100, H=1, values=32, all_values=32, gates="half"))

    def test_schedules(self):
        for seed in range(1, 5):
            with self.subTest(seed=seed):
                self.check(ChunkCase(32, 32, T=270, H=1, gates="half", seed=seed))

    def test_hopper(self):
        for K, V, options in ((64, 64, {"stages": 3, "producers": 8}), (128, 128, {"H": 1}), (64, 128, {"H": 1}),
                              (128, 64, {"H": 1, "element": "fp16"}), (256, 64, {"H": 1})):
            with self.subTest(K=K, V=V):
                self.check(ChunkCase(K, V, T=200, hopper=True, **options))

    def test_hopper_gates(self):
        for gates in ("none", "weak", "-5", "resets", "wide", "half"):
            with self.subTest(gates):
                self.check(ChunkCase(64, 64, T=140, H=1, gates=gates, hopper=True, forward_chunk=32))

    def test_hopper_more_warps(self):
        self.check(ChunkCase(128, 64, T=100, H=1, hopper=True, backward_warps=16, state_slots=8))
        self.check(ChunkCase(256, 64, T=70, H=1, hopper=True, backward_warps=16, state_slots=5, all_values=256))

    def test_hopper_layouts(self):
        offsets = [0, 20, 20, 170, 171]
        self.check(ChunkCase(64, 64, T=171, H=1, offsets=offsets, reverse=True, segments=2, gates="half", hopper=True))
        self.check(ChunkCase(61, 107, T=150, H=2, Hkv=1, segments=2, hopper=True))
        self.check(ChunkCase(64, 160, T=100, H=1, hopper=True))

    def test_hopper_values_that_are_not_finite(self):
        # They reach no token before their own, as a product with the zeros of later pairs would let them.
        for K, V, forward_chunk, cluster in ((64, 64, 32, 0), (64, 128, 64, 0), (128, 128, 32, 64)):
            case = ChunkCase(K, V, T=200, H=1, hopper=True, forward_chunk=forward_chunk, cluster=cluster)
            case.v[0, 45, 0, 7], case.v[0, 100, 0, 20] = np.nan, np.inf
            expected, actual = case.expected()["o"], case.run()["o"]
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(np.isfinite(actual), finite)
            error = np.sqrt(np.mean(np.square(actual[finite] - expected[finite])) / np.mean(np.square(expected[finite])))
            self.assertLessEqual(error, LIMITS["o"])

    def test_hopper_schedules(self):
        for seed in range(1, 5):
            with self.subTest(seed=seed):
                self.check(ChunkCase(64, 64, T=270, H=1, stages=4, gates="half", seed=seed, hopper=True, forward_chunk=32))


    def test_clusters(self):
        for K, V, options in ((128, 128, {"cluster": 64, "gates": "weak"}), (256, 256, {"cluster": 128, "T": 70, "gates": "half"}),
                              (128, 128, {"cluster": 64, "producers": 8, "element": "fp16"}),
                              (100, 120, {"cluster": 64, "gates": "weak", "segments": 2, "H": 2, "Hkv": 1})):
            with self.subTest(K=K, V=V):
                self.check(ChunkCase(K, V, **{"T": 200, "H": 1, **options}))

    def test_clusters_gates(self):
        for gates in ("none", "-5", "resets", "wide", "half"):
            with self.subTest(gates):
                self.check(ChunkCase(128, 128, T=140, H=1, gates=gates, cluster=64))

    def test_clusters_schedules(self):
        offsets = [0, 20, 20, 170, 171]
        for seed in range(1, 4):
            with self.subTest(seed=seed):
                self.check(ChunkCase(128, 128, T=171, offsets=offsets, H=1, stages=3, gates="half", seed=seed, cluster=64))


class GlaFloatChunkTests(_ChunkTests):
    """float32: operands of two terms."""

    def case(self, K, V, **options):
        return ChunkCase(K, V, element="float", **options)

    def test_gates(self):
        for gates in ("none", "weak", "normal", "-5", "resets", "all resets", "wide", "half"):
            with self.subTest(gates):
                self.check(self.case(32, 32, T=100, gates=gates))

    def test_strongest_gates(self):
        self.check(self.case(32, 32, T=100, gates="-20"), without=("dg",))

    def test_packed(self):
        offsets = [0, 20, 20, 170, 171]
        self.check(self.case(32, 32, T=171, offsets=offsets, reverse=True, segments=2, gates="half"))
        self.check(self.case(32, 32, T=171, offsets=offsets, states=False))

    def test_segments_and_grouped_heads(self):
        self.check(self.case(32, 32, T=130, H=4, Hkv=2, segments=3))

    def test_odd_sizes(self):
        self.check(self.case(21, 27, T=70, Hkv=2, gates="half"))
        self.check(self.case(20, 28, T=70, Hkv=2, gates="half"))

    def test_large_sizes(self):
        for K, V in ((64, 64), (256, 40), (16, 160)):
            with self.subTest(K=K, V=V):
                self.check(self.case(K, V, T=70, H=1, gates="half"))

    def test_more_warps(self):
        self.check(self.case(128, 128, T=70, H=1, backward_warps=16, gates="half"))

    def test_short_forward_chunks(self):
        for gates in ("weak", "half", "-5", "resets"):
            with self.subTest(gates):
                self.check(self.case(32, 32, T=100, H=1, segments=2, gates=gates, forward_chunk=16))
        self.check(self.case(256, 64, T=70, H=1, gates="half", forward_chunk=16))

    def test_far_frames(self):
        for decay, forward_chunk in ((-3, 32), (-4, 32), (-6, 16)):
            case = self.case(32, 32, T=100, H=1, gates="weak", forward_chunk=forward_chunk)
            case.g[:] = decay
            with self.subTest(decay=decay, forward_chunk=forward_chunk):
                self.check(case)

    def test_schedules(self):
        for seed in range(1, 4):
            with self.subTest(seed=seed):
                self.check(self.case(32, 32, T=170, H=1, gates="half", stages=3, seed=seed))


if __name__ == "__main__":
    unittest.main()
