"""Tests of Attention/decode*.cu and append.cu. In this folder: /usr/bin/python3 -m unittest test_attention_decode."""

import ctypes
import unittest

import numpy as np

import emulate
from test_rms_norm import fetch, store
from test_rotary import Rotary, reference as rotated, rotary

ATTENTION = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "Attention"
LIMITS = {"bf16": 6e-3, "fp16": 1e-3}
WARPS = 4


class Shape(ctypes.Structure):
    """fla::DecodeShape."""

    _fields_ = [("queries", emulate.Sequences), ("lengths", ctypes.c_void_p),
                *((name, ctypes.c_int) for name in ("kv_heads", "group", "value_size", "window", "run", "splits", "tiles")),
                ("sinks", ctypes.c_void_p)]


class Decode(ctypes.Structure):
    """AttentionDecode."""

    _fields_ = [("shape", Shape), *((name, emulate.TensorView) for name in ("q", "o", "keys", "values")),
                ("capacity", ctypes.c_int), ("key_size", ctypes.c_int), ("scale", ctypes.c_float), ("softcap", ctypes.c_float),
                *((name, ctypes.c_void_p) for name in ("slopes", "parts", "weights"))]


class Join(ctypes.Structure):
    """AttentionDecodeJoin."""

    _fields_ = [("shape", Shape), ("o", emulate.TensorView), ("parts", ctypes.c_void_p), ("weights", ctypes.c_void_p)]


class Append(ctypes.Structure):
    """AttentionAppend."""

    _fields_ = [*((name, emulate.TensorView) for name in ("q", "turned", "k", "v", "keys", "values")),
                ("tokens", emulate.Sequences), *((name, ctypes.c_void_p) for name in ("lengths", "bases", "new_lengths")),
                *((name, ctypes.c_int) for name in ("capacity", "heads", "kv_heads", "key_size", "value_size")),
                ("rotary", Rotary)]


def reference(q, k, v, window, scale, softcap, sinks, slopes):
    """One row in float64: q [Tq, H, K], k [L, Hkv, K], v [L, Hkv, V]."""
    (queries, heads, _), length, group = q.shape, len(k), q.shape[1] // k.shape[1]
    o = np.zeros((queries, heads, v.shape[2]))
    for i in range(queries):
        last = length - queries + i
        first = max(0, last - window + 1) if window else 0
        for h in range(heads):
            score = k[first:last + 1, h // group] @ q[i, h] * scale
            score = softcap * np.tanh(score / softcap) if softcap else score
            score -= slopes[h] * (last - np.arange(first, last + 1))
            weight = np.exp(score)
            o[i, h] = weight @ v[first:last + 1, h // group] / (weight.sum() + np.exp(sinks[h]))
    return o


class DecodeTests(unittest.TestCase):
    def check(self, lengths, queries=1, heads=4, kv_heads=2, key_size=32, value_size=64, run=64, capacity=None, element="bf16",
              vector=8, rows=8, chunks=(1, 1), window=0, softcap=0.0, options=False, offsets=None, seed=0):
        """queries: of each row, or offsets of packed ones; capacity: of the cache, whose other places are NaN."""
        random = np.random.default_rng([heads, key_size, *lengths])
        normal = lambda *shape: fetch(store(random.standard_normal(shape), element), element)
        batch, group = len(lengths), heads // kv_heads
        counts = np.diff(offsets) if offsets else [queries] * batch
        capacity = capacity or max(lengths) + 3
        tokens = (1, offsets[-1]) if offsets else (batch, queries)
        q = normal(*tokens, heads, key_size)
        keys, values = (np.full((batch, capacity, kv_heads, size), np.nan) for size in (key_size, value_size))
        o = np.zeros((*tokens, heads, value_size))
        sinks, slopes = (random.standard_normal(heads).astype(np.float32) * options for _ in range(2))
        no_sinks, scale = np.full(heads, -np.inf), key_size ** -0.5
        for b, length in enumerate(lengths):
            k, v = normal(length, kv_heads, key_size), normal(length, kv_heads, value_size)
            kept = np.arange(max(0, length - capacity), length)
            keys[b, kept % capacity], values[b, kept % capacity] = k[kept], v[kept]
            at = (0, slice(offsets[b], offsets[b + 1])) if offsets else (b,)
            o[at] = reference(q[at], k, v, window, scale, softcap, sinks if options else no_sinks, slopes)

        memory = [emulate.guarded(store(x, element)) for x in (q, np.full(o.shape, np.nan), keys, values)]
        views = [emulate.view(x) for x in memory]
        guarded = lambda x: (emulate.guarded(x), memory.append(x))[0]
        cu = emulate.guarded(np.array(offsets, np.int32)) if offsets else None
        length_memory = emulate.guarded(np.array(lengths, np.int32))
        sink_memory, slope_memory = emulate.guarded(sinks), emulate.guarded(slopes)
        seen = [length - max(0, length - count - window + 1) if window else length for length, count in zip(lengths, counts)]
        splits, tiles = max(1, -(-max(seen) // run)), -(-int(max(counts)) * group // rows)
        shape = Shape(emulate.Sequences(cu.ctypes.data if offsets else None, batch, int(max(counts)), 0),
                      length_memory.ctypes.data, kv_heads, group, value_size, window, run, splits, tiles,
                      sink_memory.ctypes.data if options else None)
        parts = emulate.guarded(np.full((batch, kv_heads, tiles, splits, rows, value_size), np.nan, np.float32))
        weights = emulate.guarded(np.full((batch, kv_heads, tiles, splits, rows, 2), np.nan, np.float32))
        emulate.launch(
            ATTENTION / "decode.cu", "attention_decode",
            {"ELEMENT": element, "VECTOR": vector, "ROWS": rows, "KEY_CHUNKS": chunks[0], "VALUE_CHUNKS": chunks[1],
             "WARPS": WARPS, "MIN_BLOCKS": 1}, batch * splits * tiles * kv_heads, 32 * WARPS, 0,
            Decode(shape, *views, capacity, key_size, scale, softcap, slope_memory.ctypes.data if options else None,
                   parts.ctypes.data, weights.ctypes.data), seed=seed)
        if splits > 1:
            emulate.launch(ATTENTION / "decode_join.cu", "attention_decode_join",
                           {"ELEMENT": element, "ROWS": rows, "WARPS": WARPS}, batch * kv_heads * tiles * rows, 32 * WARPS, 0,
                           Join(shape, views[1], parts.ctypes.data, weights.ctypes.data), seed=seed)
        actual = fetch(memory[1], element)
        error = np.sqrt(np.mean((actual - o) ** 2)) / np.sqrt(np.mean(o ** 2))
        self.assertLessEqual(error, LIMITS[element], f"relative error {error:.1e}")
        return memory[1].copy()

    def test_lengths(self):
        for lengths in ([1], [16, 17], [63, 64, 65], [200, 3, 130]):
            for run in (64, 128, 256):
                with self.subTest(lengths=lengths, run=run):
                    self.check(lengths, run=run)

    def test_queries(self):
        for queries, heads, kv_heads in ((2, 2, 2), (3, 8, 2), (16, 4, 1), (5, 3, 3)):
            for window in (0, 1, 20):
                with self.subTest(queries=queries, heads=heads, kv_heads=kv_heads, window=window):
                    self.check([100, 16, 37], queries, heads, kv_heads, window=window)
        for offsets in ([0, 1, 4, 6], [0, 0, 7, 8], [0, 2, 2, 2]):
            with self.subTest(offsets=offsets):
                self.check([100, 16, 37], heads=8, offsets=offsets, window=30)

    def test_ring(self):
        for lengths, queries in (([1000, 41, 39, 5], 1), ([77, 80, 81, 160], 4)):
            for window in (1, 24, 37):
                with self.subTest(lengths=lengths, window=window):
                    self.check(lengths, queries, capacity=40, window=window)
        self.check([300, 299], 4, run=128, capacity=200, window=190)

    def test_options(self):
        for run in (64, 256):
            self.check([150, 20], 3, run=run, softcap=2.0, options=True)
            self.check([150, 20], 3, run=run, options=True, window=10)

    def test_sizes(self):
        for sizes in ((80, 96), (65, 70)):
            self.check([70, 20], key_size=sizes[0], value_size=sizes[1], chunks=(3, 2), vector=8 if sizes[0] == 80 else 1)
        for sizes in ((64, 40), (33, 1), (1, 64)):
            with self.subTest(sizes=sizes):
                self.check([70, 20], 5, 8, 2, *sizes, element="fp16", vector=1, rows=16, chunks=(2, 1))

    def test_schedules(self):
        first = self.check([200, 3, 130])
        for seed in range(1, 5):
            np.testing.assert_array_equal(self.check([200, 3, 130], seed=seed), first)


class AppendTests(unittest.TestCase):
    def check(self, lengths, tokens=1, heads=4, kv_heads=2, key_size=32, value_size=24, capacity=40, theta=100.0, bases=None,
              offsets=None, element="bf16", vector=8, parts=2, seed=0):
        random = np.random.default_rng(seed)
        normal = lambda *shape: fetch(store(random.standard_normal(shape), element), element)
        batch, pairs = len(lengths), key_size // 2 if theta else 0
        counts = [int(n) for n in np.diff(offsets)] if offsets else [tokens] * batch
        shape = (1, offsets[-1]) if offsets else (batch, tokens)
        q, k, v = normal(*shape, heads, key_size), normal(*shape, kv_heads, key_size), normal(*shape, kv_heads, value_size)
        keys, values = (np.full((batch, capacity, kv_heads, size), np.nan) for size in (key_size, value_size))
        turned = np.full(q.shape, np.nan)
        for b, (length, count) in enumerate(zip(lengths, counts)):
            at = (slice(0, 1), slice(offsets[b], offsets[b + 1])) if offsets else (slice(b, b + 1),)
            position = ((bases[b] if bases else 0) + length + np.arange(count))[None]
            turn = lambda x: rotated(x, position, theta, pairs, False)[0] if theta else x[0]
            place = (length + np.arange(count)) % capacity
            turned[at] = turn(q[at])
            keys[b, place], values[b, place] = turn(k[at]), v[at][0]

        memory = [emulate.guarded(store(x, element)) for x in (q, np.full(q.shape, np.nan), k, v, keys * np.nan, values * np.nan)]
        views = [emulate.view(x) for x in memory]
        integers = [emulate.guarded(np.array(x, np.int32)) for x in (lengths, bases or [0], [-1] * batch, offsets or [0])]
        address = [x.ctypes.data for x in integers]
        emulate.launch(
            ATTENTION / "append.cu", "attention_append", {"ELEMENT": element, "VECTOR": vector, "INTERLEAVED": 0},
            (batch * max(counts), parts), 128, 0,
            Append(*(views[:2] if theta else [emulate.TensorView()] * 2), *views[2:],
                   emulate.Sequences(address[3] if offsets else None, batch, max(counts), 0), address[0],
                   address[1] if bases else None, address[2], capacity, heads, kv_heads, key_size, value_size,
                   rotary(theta, pairs) if theta else Rotary()), seed=seed)
        np.testing.assert_array_equal(integers[2], np.add(lengths, counts))
        for name, actual, expected in (("q", memory[1], turned), ("keys", memory[4], keys), ("values", memory[5], values)):
            if name == "q" and not theta:
                continue
            actual = fetch(actual, element)
            np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), name)
            np.testing.assert_allclose(np.nan_to_num(actual), np.nan_to_num(expected), rtol=8e-3, atol=1e-4, err_msg=name)

    def test_rows(self):
        for tokens in (1, 3):
            for bases in (None, [7, 100_000, 3]):
                with self.subTest(tokens=tokens, bases=bases):
                    self.check([5, 38, 1000], tokens, bases=bases)
        self.check([5, 38, 1000], 16, capacity=17)
        self.check([5, 38, 1000], theta=None)

    def test_packed(self):
        for offsets in ([0, 1, 4, 6], [0, 0, 7, 8], [0, 2, 2, 2]):
            with self.subTest(offsets=offsets):
                self.check([5, 38, 1000], offsets=offsets)

    def test_sizes(self):
        for key_size, value_size in ((34, 7), (2, 1), (256, 200)):
            self.check([5, 38], 2, key_size=key_size, value_size=value_size, vector=1)


if __name__ == "__main__":
    unittest.main()
