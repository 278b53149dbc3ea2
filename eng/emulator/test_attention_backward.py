"""Softmax attention, backward, against its definition in float64. Here: /usr/bin/python3 -m unittest test_attention_backward"""

import ctypes
import unittest

import numpy as np

import emulate
from test_attention_forward import ATTENTION, KINDS, Case, Shape, dropped

QUERY_BLOCK = 128
LIMITS = {"bf16": 1e-2, "fp16": 1.5e-3}  # RMS of errors by RMS of results


def _views(*names):
    return [(name, emulate.TensorView) for name in names]


def _pointers(*names):
    return [(name, ctypes.c_void_p) for name in names]


def _ints(*names):
    return [(name, ctypes.c_int) for name in names]


class Delta(ctypes.Structure):
    """AttentionDelta."""

    _fields_ = [("shape", Shape), *_views("o", "do"), *_pointers("log", "logs", "deltas", "sinks", "turns"),
                *_ints("time", "turn_count", "blocks")]


class Sinks(ctypes.Structure):
    """AttentionSinks."""

    _fields_ = [("shape", Shape), *_pointers("blocks", "sinks")]


class Queries(ctypes.Structure):
    """AttentionQueries."""

    _fields_ = [("shape", Shape), *_views("dq"), *_pointers("sums"), *_ints("blocks")]


class Backward(ctypes.Structure):
    """AttentionBackward."""

    _fields_ = [("shape", Shape), *_views("q", "k", "v", "do", "dk", "dv"), *_pointers("logs", "deltas", "sums", "turns"),
                *_ints("lines", "together", "key_tiles", "descending")]


class Hopper(ctypes.Structure):
    """AttentionHopperBackward."""

    _fields_ = [*((name, emulate.TensorMap) for name in ("q", "k", "v", "do")), ("call", Backward),
                ("unused", ctypes.c_uint64 * 3)]


class BackwardCase(Case):
    """As for forward, with the gradients of q, k, v and sinks."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        put, get, _ = KINDS[self.element]
        random = np.random.default_rng(self.seed + 100)
        self.do_bits = put(random.standard_normal((self.B, self.Tq, self.H, self.V)).astype(np.float32))
        self.do = get(self.do_bits).astype(np.float64)
        self.o, self.log = self.expected()

    def gradients(self):
        dq, dk, dv, dsinks = (np.zeros(x.shape) for x in (self.q, self.k, self.v, np.zeros(self.H)))
        self.sink_squares = 0.0  # of the terms of the gradients of sinks, of which little may be left
        group = self.H // self.Hkv
        for index, (b, queries, keys) in enumerate(self.sequences()):
            for h in range(self.H):
                q, do = self.q[b, queries, h], self.do[b, queries, h]
                k, v = self.k[b, keys, h // group], self.v[b, keys, h // group]
                s, derivative = q @ k.T * self.scale, 1
                if self.softcap:
                    derivative = 1 - np.tanh(s / self.softcap) ** 2
                    s = self.softcap * np.tanh(s / self.softcap)
                distance = np.arange(len(q))[:, None] + len(k) - len(q) - np.arange(len(k))
                if self.slopes is not None:
                    s = s - self.slopes[h] * np.abs(distance)
                hidden = (self.causal & (distance < 0)) | (bool(self.window) & (distance >= self.window))
                log = self.log[b, h, queries]
                log = np.where(np.isinf(log), np.inf, log)[:, None]
                weights = np.where(hidden, 0, np.exp(np.where(hidden, 0, s) - log))
                kept = np.ones(weights.shape)
                if self.threshold:
                    kept = ~dropped(weights.shape, *self.random, index * self.H + h, self.threshold) / (1 - self.dropout)
                delta = (do * self.o[b, queries, h]).sum(-1, keepdims=True)
                ds = weights * (do @ v.T * kept - delta) * derivative * self.scale
                dq[b, queries, h] = ds @ k
                dk[b, keys, h // group] += ds.T @ q
                dv[b, keys, h // group] += (weights * kept).T @ do
                if self.sinks is not None:
                    terms = np.exp(self.sinks[h] - log) * delta
                    dsinks[h] -= terms.sum()
                    self.sink_squares += np.square(terms).sum()
        return dq, dk, dv, dsinks

    def backward(self, launch, keys_tile, query_tile, parts, columns, descending, together):
        put, get, poison = KINDS[self.element]
        buffers = {}

        def keep(array):
            buffers[str(len(buffers))] = emulate.guarded(array)
            return buffers[str(len(buffers) - 1)]

        def lay(bits):
            if not self.sliced:
                return keep(bits)
            whole = keep(np.full((*bits.shape[:2], bits.shape[2] + 1, bits.shape[3] + 3), poison, np.uint16))
            part = whole[:, :, :-1, 3:]
            part[...] = bits
            return part

        floats = lambda *shape: keep(np.full(shape, np.nan, np.float32))
        shape = self.shape(keep)
        q, k, v, do, o = map(lay, (*self.bits, self.do_bits, put(self.o)))
        dq, dk, dv = (lay(np.full(x.shape, poison, np.uint16)) for x in self.bits)
        log = keep(self.log.astype(np.float32))
        length = shape.queries.length
        blocks = -(-length // QUERY_BLOCK)
        stored = (self.Tq // QUERY_BLOCK + shape.queries.count if self.offsets else blocks * self.B) * self.H
        keys = next(tile for tile in (16, 32, 64, 128, 256) if tile >= self.K)
        logs, deltas, sums = floats(stored, QUERY_BLOCK), floats(stored, QUERY_BLOCK), floats(stored, QUERY_BLOCK, keys)
        turn_count = QUERY_BLOCK // query_tile * parts
        turns = keep(np.full((stored, turn_count), -1, np.int32))
        sink_blocks, sinks = floats(stored), floats(self.H)
        vector = 1 if self.sliced else int(np.gcd.reduce((self.K, self.V, 8)))
        values = next(tile for tile in (16, 32, 64, 128, 256) if tile >= self.V)
        address = lambda array: array.ctypes.data
        grid = blocks * shape.queries.count * self.H

        def kernel(file, entry, defines, grid, threads, shared, parameters):
            emulate.launch(ATTENTION / file, entry, {"TYPE": self.element, "VECTOR": vector, **defines}, grid, threads, shared,
                           parameters, seed=self.seed, buffers=buffers, in_order=True)

        kernel("backward_delta.cu", "attention_backward_delta", {"VALUE_TILE": values}, grid, 256, 0, Delta(
            shape, emulate.view(o), emulate.view(do), address(log), address(logs), address(deltas),
            address(sink_blocks) if self.sinks is not None else None, address(turns), self.Tq, turn_count, blocks))
        if self.sinks is not None:
            kernel("backward_sinks.cu", "attention_backward_sinks", {}, self.H, 256, 0, Sinks(
                shape, address(sink_blocks), address(sinks)))
        lines, key_tiles = shape.keys.count * self.Hkv, -(-shape.keys.length // keys_tile)
        call = Backward(shape, *map(emulate.view, (q, k, v, do, dk, dv)), *map(address, (logs, deltas, sums, turns)),
                        lines, together, key_tiles, descending)
        launch(kernel, call, keys, values, (q, k, v, do))
        kernel("backward_queries.cu", "attention_backward_queries", {
            "KEY_TILE": keys, "SUM_COLUMNS": columns(keys), "QUERY_TILE": query_tile,
            "KEYS_TILE": keys_tile}, grid, 256, 0, Queries(shape, emulate.view(dq), address(sums), blocks))
        return [get(np.ascontiguousarray(x)).astype(np.float64) for x in (dq, dk, dv)] + [sinks.astype(np.float64)]


def portable(keys_tile=64, query_tile=64, stages=2, warps=8, options=0):
    def launch(kernel, call, keys, values, tensors):
        pairs, row = 4 * keys_tile * query_tile, 2 * (keys + values)
        shared = keys_tile * row + pairs + stages * query_tile * (row + 8)
        kernel("portable_backward.cu", "attention_portable_backward", {
            "KEY_TILE": keys, "VALUE_TILE": values, "KEYS_TILE": keys_tile, "QUERY_TILE": query_tile, "STAGES": stages,
            "BLOCK_WARPS": warps, "MIN_BLOCKS": 1, "OPTIONS": options, "SHARED": shared},
            call.lines * call.key_tiles, 32 * warps, shared, call)
    return launch, keys_tile, query_tile, 1, lambda keys: keys


def hopper(query_tile, stages=2, options=0, slots=2):
    columns = lambda keys: keys // (1 if query_tile == QUERY_BLOCK else 2)

    def launch(kernel, call, keys, values, tensors):
        shared = 256 * (keys + values) + stages * query_tile * 2 * (keys + values + 4) + 768 * query_tile
        shared += 512 * slots * columns(keys) + (2 * stages + 1 + 4 * slots) * 8
        q, k, v, do = tensors
        maps = [emulate.tensor_map(x, min(64, size), rows) for x, size, rows in (
            (q, keys, query_tile), (k, keys, 128), (v, values, 128), (do, values, query_tile))]
        kernel("hopper_backward.cu", "attention_hopper_backward", {
            "KEY_TILE": keys, "VALUE_TILE": values, "QUERY_TILE": query_tile, "STAGES": stages, "OPTIONS": options,
            "SUM_SLOTS": slots, "SHARED": shared},
            call.lines * call.key_tiles, 384, shared, Hopper(*maps, call))
    return launch, 128, query_tile, 2, columns


def hopper_wide():
    def launch(kernel, call, keys, values, tensors):
        shared = 128 * (3 * keys + 2 * values) + 3 * 8192 + 2 * 16384 + 3 * 256 + 17 * 8
        q, k, v, do = tensors
        maps = [emulate.tensor_map(x, 64, 64) for x in (q, k, v, do)]
        kernel("hopper_wide_backward.cu", "attention_hopper_backward", {"KEY_TILE": keys, "VALUE_TILE": values, "SHARED": shared},
               call.lines * call.key_tiles, 384, shared, Hopper(*maps, call))
    return launch, 64, 64, 2, lambda keys: 64


OPTIONS = ({"window": 1}, {"window": 70}, {"softcap": 2.0}, {"slopes": True}, {"sinks": True}, {"dropout": 0.3}, {"scale": -0.3},
           {"window": 33, "softcap": 5.0, "slopes": True, "sinks": True, "dropout": 0.1})
OFFSETS = ([0, 10, 10, 150, 151, 300], [0, 20, 25, 165, 170, 180])


class AttentionBackwardTests(unittest.TestCase):
    def check(self, case, kernel):
        expected = case.gradients()
        for descending, together in ((0, 3), (1, 1)):
            actual = case.backward(*kernel, descending, together)
            for name, x, y in zip(("dq", "dk", "dv", "dsinks"), actual, expected):
                if name == "dsinks" and case.sinks is None:
                    continue
                error, size = np.sqrt(np.mean(np.square(x - y))), np.sqrt(np.mean(np.square(y)))
                if name == "dsinks":
                    size = max(size, np.sqrt(case.sink_squares / case.H))
                self.assertLessEqual(error, LIMITS[case.element] * max(size, 1e-2), f"{name}, descending {descending}")

    def test_portable(self):
        self.check(BackwardCase(64, 64, 32, 32), portable())
        self.check(BackwardCase(200, 200, 64, 64, B=2, H=2, seed=1), portable())
        self.check(BackwardCase(70, 150, 16, 48, causal=False), portable(stages=1))
        self.check(BackwardCase(130, 50, 24, 40, sliced=True), portable())
        self.check(BackwardCase(1, 129, 64, 32, H=4, Hkv=2, seed=2), portable())
        self.check(BackwardCase(100, 100, 64, 64, element="fp16", H=4, Hkv=1, seed=3), portable())

    def test_portable_large(self):
        self.check(BackwardCase(70, 70, 256, 192), portable(64, 32, 1))
        self.check(BackwardCase(70, 70, 200, 256), portable(32, 32, 1))

    def test_portable_packed(self):
        self.check(BackwardCase(0, 0, 64, 32, H=2, offsets=OFFSETS), portable())
        self.check(BackwardCase(0, 0, 32, 64, H=2, offsets=OFFSETS, causal=False), portable())

    def test_portable_options(self):
        for options in OPTIONS:
            with self.subTest(options):
                self.check(BackwardCase(150, 170, 32, 32, H=2, **options), portable(options=1))
        self.check(BackwardCase(150, 40, 32, 32, H=2, sinks=True), portable(options=1))

    def test_hopper(self):
        for case in (BackwardCase(64, 64, 64, 64), BackwardCase(300, 300, 64, 64, B=2, H=2, seed=1),
                     BackwardCase(70, 300, 64, 64, causal=False), BackwardCase(130, 50, 64, 64),
                     BackwardCase(1, 129, 64, 64, H=4, Hkv=2, seed=2),
                     BackwardCase(150, 150, 56, 40, element="fp16", H=3, seed=3),
                     BackwardCase(300, 400, 64, 64, window=100)):
            with self.subTest(vars(case)["Tq"]):
                self.check(case, hopper(64))

    def test_hopper_sizes(self):
        self.check(BackwardCase(200, 200, 128, 128), hopper(64, slots=1))
        self.check(BackwardCase(200, 200, 128, 64, seed=1), hopper(64, stages=3, slots=1))
        self.check(BackwardCase(200, 200, 64, 128, seed=2), hopper(64, slots=1))
        self.check(BackwardCase(300, 300, 32, 32), hopper(128))

    def test_hopper_wide(self):
        self.check(BackwardCase(150, 150, 256, 256), hopper_wide())
        self.check(BackwardCase(200, 130, 128, 192, B=2, seed=1), hopper_wide())
        self.check(BackwardCase(100, 200, 136, 128, causal=False, element="fp16", H=2, Hkv=1, seed=2), hopper_wide())

    def test_hopper_packed(self):
        self.check(BackwardCase(0, 0, 64, 64, H=2, offsets=OFFSETS), hopper(64))
        self.check(BackwardCase(0, 0, 64, 64, H=2, offsets=OFFSETS, causal=False), hopper(64))

    def test_hopper_neighbours(self):
        """What is not finite in a sequence stays there."""
        offsets = [0, 20, 110, 150, 190, 210], [0, 10, 160, 170, 300, 310]
        queries, keys = ([slice(*ends) for ends in zip(x, x[1:])] for x in offsets)
        for K, V, kernel, options in ((64, 64, hopper(64), {}), (128, 128, hopper(64, slots=1), {"causal": False}),
                                      (32, 32, hopper(128), {"window": 30}),
                                      (64, 64, hopper(64, options=1), {"softcap": 5.0, "dropout": 0.1}),
                                      (256, 256, hopper_wide(), {"causal": False}), (128, 256, hopper_wide(), {})):
            with self.subTest(K=K, V=V, **options):
                case = BackwardCase(0, 0, K, V, H=2, Hkv=1, offsets=offsets, **options)
                expected = case.backward(*kernel, 0, 1)
                for bits, parts in zip((*case.bits, case.do_bits), (queries, keys, keys, queries)):
                    for part, x in zip(parts[::2], (0x7FFF, 0x7F80, 0x7FFF)):  # NaN, infinity
                        bits[:, part] = x
                for part in queries[::2]:
                    case.o[:, part], case.log[:, :, part] = np.nan, np.nan
                actual = case.backward(*kernel, 0, 1)
                for name, parts, x, y in zip(("dq", "dk", "dv"), (queries, keys, keys), actual, expected):
                    for part in parts[1::2]:
                        np.testing.assert_array_equal(x[:, part], y[:, part], name)

    def test_hopper_options(self):
        for options in OPTIONS:
            with self.subTest(options):
                self.check(BackwardCase(150, 170, 64, 64, H=2, **options), hopper(64, options=1))


if __name__ == "__main__":
    unittest.main()
