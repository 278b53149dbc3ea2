"""Softmax attention, forward, against its definition in float64. In this folder: /usr/bin/python3 -m unittest test_attention_forward"""

import ctypes
import unittest

import numpy as np

import emulate

ATTENTION = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "Attention"
KINDS = {
    "bf16": (emulate.to_bf16, emulate.from_bf16, 0x7FFF),
    "fp16": (lambda x: np.asarray(x, np.float16).view(np.uint16), lambda x: x.view(np.float16).astype(np.float32), 0x7FFF),
}
LIMITS = {"bf16": 4e-3, "fp16": 5e-4}  # RMS of errors by RMS of results


class Shape(ctypes.Structure):
    """fla::AttentionShape."""

    _fields_ = [("queries", emulate.Sequences), ("keys", emulate.Sequences),
                *((name, ctypes.c_int) for name in ("heads", "group", "key_size", "value_size", "causal", "window")),
                ("scale", ctypes.c_float), ("softcap", ctypes.c_float), ("dropout", ctypes.c_uint32), ("kept", ctypes.c_float),
                ("seed", ctypes.c_uint64), ("offset", ctypes.c_uint64), ("sinks", ctypes.c_void_p), ("slopes", ctypes.c_void_p)]


class Call(ctypes.Structure):
    """fla::AttentionCall."""

    _fields_ = [("shape", Shape), ("o", emulate.TensorView), ("log", ctypes.c_void_p),
                *((name, ctypes.c_int) for name in ("time", "blocks", "section", "tiles", "turns_back"))]


class Hopper(ctypes.Structure):
    """AttentionForward of hopper_forward.cu."""

    _fields_ = [*((name, emulate.TensorMap) for name in "qkv"), ("call", Call), ("unused", ctypes.c_uint64)]


class Portable(ctypes.Structure):
    """AttentionForward of portable_forward.cu."""

    _fields_ = [*((name, emulate.TensorView) for name in "qkv"), ("call", Call)]


def philox(words, key):
    """Philox4x32-10 of arrays of uint64 that hold 32 bits each."""
    mask = np.uint64(0xFFFFFFFF)
    low, high = np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)
    a, b, c, d = words
    for _ in range(10):
        even, odd = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b, c, d = odd >> np.uint64(32) ^ b ^ low, odd & mask, even >> np.uint64(32) ^ d ^ high, even & mask
        low, high = low + np.uint64(0x9E3779B9) & mask, high + np.uint64(0xBB67AE85) & mask
    return a, b, c, d


def dropped(shape, seed, offset, line, threshold):
    """Which weights [queries, keys] of a head of a sequence are dropped."""
    query, key = np.meshgrid(*(np.arange(n, dtype=np.uint64) for n in shape), indexing="ij")
    eight = np.uint64(8)
    counter = (query & ~eight, key & ~eight, np.full(shape, line, np.uint64), np.full(shape, offset & 0xFFFFFFFF, np.uint64))
    words = philox(counter, seed ^ offset >> 32 << 32)
    return np.select([(query & eight) * 2 + (key & eight) == 8 * i for i in range(4)], words) < threshold


class Case:
    """A call: inputs of random numbers, its result by definition and by a kernel."""

    def __init__(self, Tq, Tk, K, V, B=1, H=1, Hkv=1, causal=True, window=0, scale=None, softcap=0.0, dropout=0.0, slopes=False,
                 sinks=False, offsets=None, element="bf16", seed=0, sliced=False):
        vars(self).update({name: value for name, value in locals().items() if name != "self"})
        random = np.random.default_rng(seed)
        put, get, _ = KINDS[element]
        if offsets:
            self.Tq, self.Tk, self.B = offsets[0][-1], offsets[1][-1], 1
        self.bits = [put(random.standard_normal(s).astype(np.float32)) for s in (
            (self.B, self.Tq, H, K), (self.B, self.Tk, Hkv, K), (self.B, self.Tk, Hkv, V))]
        self.q, self.k, self.v = (get(x).astype(np.float64) for x in self.bits)
        self.scale = K ** -0.5 if scale is None else scale
        self.slopes = random.uniform(0.01, 0.3, H).astype(np.float32) if slopes else None
        self.sinks = random.standard_normal(H).astype(np.float32) if sinks else None
        self.threshold = min(round(dropout * 2**32), 2**32 - 1)
        self.random = (0x123456789ABCDEF0, 0x500000003)

    def sequences(self):
        """Batch row, and the tokens of queries and keys."""
        if self.offsets:
            return [(0, *(slice(o[i], o[i + 1]) for o in self.offsets)) for i in range(len(self.offsets[0]) - 1)]
        return [(b, slice(0, self.Tq), slice(0, self.Tk)) for b in range(self.B)]

    def expected(self):
        out, log = np.zeros((self.B, self.Tq, self.H, self.V)), np.zeros((self.B, self.H, self.Tq))
        for index, (b, queries, keys) in enumerate(self.sequences()):
            for h in range(self.H):
                q, k, v = self.q[b, queries, h], self.k[b, keys, h // (self.H // self.Hkv)], self.v[b, keys, h // (self.H // self.Hkv)]
                s = q @ k.T * self.scale
                if self.softcap:
                    s = self.softcap * np.tanh(s / self.softcap)
                distance = np.arange(len(q))[:, None] + len(k) - len(q) - np.arange(len(k))
                if self.slopes is not None:
                    s = s - self.slopes[h] * np.abs(distance)
                if self.causal:
                    s = np.where(distance < 0, -np.inf, s)
                if self.window:
                    s = np.where(distance >= self.window, -np.inf, s)
                sink = self.sinks[h] if self.sinks is not None else -np.inf
                with np.errstate(divide="ignore", invalid="ignore"):
                    top = np.maximum(s.max(-1, initial=-np.inf), sink)
                    safe = np.where(np.isinf(top), 0, top)
                    weights = np.exp(s - safe[:, None])
                    total = weights.sum(-1) + np.exp(sink - safe)
                    log[b, h, queries] = np.log(total) + safe
                    weights = np.where(total[:, None] > 0, weights / total[:, None], 0)
                if self.threshold:
                    weights = np.where(dropped(weights.shape, *self.random, index * self.H + h, self.threshold), 0,
                                       weights / (1 - self.dropout))
                out[b, queries, h] = weights @ v
        return out, log

    def shape(self, keep):
        if self.offsets:
            starts = [keep(np.array(o, np.int32)) for o in self.offsets]
            layouts = [emulate.Sequences(s.ctypes.data, len(s) - 1, int(np.diff(s).max()), 0) for s in starts]
        else:
            layouts = [emulate.Sequences(None, self.B, n, 0) for n in (self.Tq, self.Tk)]
        address = lambda values: None if values is None else keep(values).ctypes.data
        return Shape(*layouts, self.H, self.H // self.Hkv, self.K, self.V, int(self.causal), self.window, self.scale, self.softcap,
                     self.threshold, 1 / (1 - self.dropout), *self.random, address(self.sinks), address(self.slopes))

    def run(self, launch):
        kept = []

        def keep(array):
            kept.append(emulate.guarded(array))
            return kept[-1]

        def lay(bits):
            if not self.sliced:
                return keep(bits)
            whole = keep(np.full((*bits.shape[:2], bits.shape[2] + 1, bits.shape[3] + 3), KINDS[self.element][2], np.uint16))
            part = whole[:, :, :-1, 3:]
            part[...] = bits
            return part

        q, k, v = map(lay, self.bits)
        o = keep(np.full((self.B, self.Tq, self.H, self.V), 0x7FFF, np.uint16))
        log = keep(np.full((self.B, self.H, self.Tq), np.nan, np.float32))
        launch(self, self.shape(keep), q, k, v, o, log, {str(i): array for i, array in enumerate(kept)})
        return KINDS[self.element][1](o).astype(np.float64), log.astype(np.float64)


def call(case, shape, o, log, rows, section, turns_back=0):
    blocks = -(-shape.queries.length // rows)
    return Call(shape, emulate.view(o), log.ctypes.data, case.Tq, blocks, section, blocks * shape.queries.count * case.H, turns_back)


def hopper(keys, values, rows, groups=1, stages=2, query_stages=1, options=0, section=2, grid=2,
           turns_back=0, values_first=0):
    """Launches the kernel for Hopper with these tiles."""
    def launch(case, shape, q, k, v, o, log, buffers):
        shared = 128 * groups * keys * query_stages + stages * rows * (keys + values) * 2
        shared += (2 * query_stages + 4 * stages) * 8 + (query_stages + 1) * 104
        maps = [emulate.tensor_map(x, min(64, size), n) for x, size, n in ((q, keys, 64 * groups), (k, keys, rows), (v, values, rows))]
        parameters = Hopper(*maps, call(case, shape, o, log, 64 * groups, section, turns_back))
        emulate.launch(ATTENTION / "hopper_forward.cu", "attention_forward", {
            "TYPE": case.element, "KEY_TILE": keys, "VALUE_TILE": values, "KEY_ROWS": rows, "GROUPS": groups, "STAGES": stages,
            "QUERY_STAGES": query_stages, "PRODUCER_REGISTERS": 0, "CONSUMER_REGISTERS": 0, "MIN_BLOCKS": 1, "PINGPONG": int(groups > 1), "OPTIONS": options, "VALUES_FIRST": values_first,
            "SHARED": shared}, min(grid, parameters.call.tiles), 128 * (groups + 1), shared, parameters, seed=case.seed, buffers=buffers)
    return launch


def portable(keys, values, rows=32, warps=2, vector=8, options=0, section=2):
    """Launches the kernel for any GPU with these tiles."""
    def launch(case, shape, q, k, v, o, log, buffers):
        shared = 32 * warps * keys + 4 * rows * (keys + values)
        parameters = Portable(*map(emulate.view, (q, k, v)), call(case, shape, o, log, 16 * warps, section))
        emulate.launch(ATTENTION / "portable_forward.cu", "attention_forward", {
            "TYPE": case.element, "KEY_TILE": keys, "VALUE_TILE": values, "KEY_ROWS": rows, "WARPS": warps, "VECTOR": vector,
            "OPTIONS": options, "SHARED": shared}, parameters.call.tiles, 32 * warps, shared, parameters,
            seed=case.seed, buffers=buffers)
    return launch


OPTIONS = ({"window": 1}, {"window": 70}, {"softcap": 2.0}, {"slopes": True}, {"slopes": True, "causal": False}, {"sinks": True},
           {"dropout": 0.3}, {"scale": -0.3}, {"window": 33, "softcap": 5.0, "slopes": True, "sinks": True, "dropout": 0.1})
PACKED = ([0, 10, 10, 150, 151, 300], [0, 20, 25, 165, 170, 180])


class AttentionForwardTests(unittest.TestCase):
    def check(self, case, launch):
        (out, log), (actual, actual_log) = case.expected(), case.run(launch)
        size = np.sqrt(np.mean(np.square(out)))
        error = np.sqrt(np.mean(np.square(actual - out)))
        self.assertLessEqual(error, LIMITS[case.element] * max(size, 1e-30), "output")
        self.assertTrue(np.array_equal(np.isinf(log), np.isinf(actual_log)), "rows without keys")
        self.assertLessEqual(np.abs(np.where(np.isinf(log), 0, actual_log) - np.where(np.isinf(log), 0, log)).max(), 1e-4, "logarithms")

    def test_hopper(self):
        for case in (Case(64, 64, 32, 32), Case(200, 200, 64, 64, B=2, H=2), Case(70, 300, 64, 64, causal=False), Case(130, 50, 64, 64),
                     Case(1, 129, 64, 64, H=4, Hkv=2), Case(150, 150, 64, 64, element="fp16", H=3, seed=1)):
            with self.subTest(vars(case)["Tq"]):
                keys = 32 if case.K <= 32 else 64
                self.check(case, hopper(keys, keys, 64))

    def test_hopper_groups(self):
        for seed in range(3):
            self.check(Case(300, 300, 64, 64, H=2, seed=seed), hopper(64, 64, 128, groups=2, turns_back=seed % 2))
            self.check(Case(250, 250, 32, 32, H=4, seed=seed), hopper(32, 32, 64, groups=2, stages=4, query_stages=2, turns_back=1))
            self.check(Case(200, 250, 64, 64, H=2, seed=seed), hopper(64, 64, 64, query_stages=2, values_first=1))
        self.check(Case(300, 300, 40, 56, H=2), hopper(64, 64, 128, groups=3, query_stages=2))
        self.check(Case(200, 260, 128, 128), hopper(128, 128, 80, groups=2))

    def test_hopper_packed(self):
        self.check(Case(0, 0, 64, 64, H=2, offsets=PACKED), hopper(64, 64, 64, groups=2))
        self.check(Case(0, 0, 64, 64, H=2, offsets=PACKED, causal=False), hopper(64, 64, 64, query_stages=2, values_first=1))

    def test_hopper_next_sequence_is_not_finite(self):
        case = Case(0, 0, 64, 64, offsets=([0, 40, 200], [0, 70, 230]), causal=False)
        expected, _ = case.run(hopper(64, 64, 64, groups=2))
        case.bits[1][:, 70:], case.bits[2][:, 70:] = 0x7FFF, 0x7FFF
        actual, _ = case.run(hopper(64, 64, 64, groups=2))
        self.assertTrue(np.array_equal(actual[:, :40], expected[:, :40]))
        self.assertTrue(np.isnan(actual[:, 40:]).all())

    def test_hopper_options(self):
        for options in OPTIONS:
            with self.subTest(options):
                self.check(Case(150, 170, 64, 64, H=2, **options), hopper(64, 64, 64, options=1))
        self.check(Case(150, 40, 64, 64, H=2, sinks=True), hopper(64, 64, 64, options=1))

    def test_portable(self):
        for case in (Case(1, 1, 32, 32), Case(40, 40, 32, 32, B=2, H=2), Case(70, 100, 17, 30, causal=False), Case(130, 50, 3, 1),
                     Case(1, 129, 32, 32, H=4, Hkv=2), Case(50, 50, 32, 32, element="fp16", H=3, seed=1),
                     Case(33, 65, 30, 20, H=2, sliced=True)):
            with self.subTest(vars(case)["Tq"]):
                self.check(case, portable(32, 32, vector=1 if case.sliced else int(np.gcd.reduce((case.K, case.V, 8)))))

    def test_portable_sizes(self):
        self.check(Case(100, 100, 128, 64, H=2), portable(128, 64, rows=64, warps=4))
        self.check(Case(70, 100, 200, 256), portable(256, 256))
        for seed in range(3):
            self.check(Case(100, 100, 64, 60, H=2, seed=seed), portable(64, 64, vector=4))

    def test_portable_packed(self):
        self.check(Case(0, 0, 32, 32, H=2, offsets=PACKED), portable(32, 32))
        self.check(Case(0, 0, 32, 32, H=2, offsets=PACKED, causal=False), portable(32, 32))

    def test_portable_options(self):
        for options in OPTIONS:
            with self.subTest(options):
                self.check(Case(60, 75, 32, 32, H=2, **options), portable(32, 32, options=1))
        self.check(Case(60, 20, 32, 32, H=2, sinks=True), portable(32, 32, options=1))


if __name__ == "__main__":
    unittest.main()
