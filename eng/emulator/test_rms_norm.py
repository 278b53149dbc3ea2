"""Tests of Norm/rms_norm_*.cu. In this folder: /usr/bin/python3 -m unittest test_rms_norm."""

import ctypes
import unittest

import numpy as np

import emulate

NORM = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "Norm"
NUMPY = {"float": np.float32, "bf16": np.uint16, "fp16": np.float16}
LIMITS = {"float": 1e-6, "bf16": 3e-3, "fp16": 4e-4}  # relative RMS errors: of float32, and of rounding to the type
ALIGNED = [(8, 8, 128), (16, 8, 128), (32, 8, 128), (32, 16, 128), (32, 32, 128), (128, 16, 128), (256, 16, 256), (512, 16, 512),
           (512, 24, 512), (1024, 16, 1024)]
UNALIGNED = [(8, 8, 128), (32, 32, 128), (512, 16, 512), (512, 24, 512), (1024, 16, 1024)]


class Matrix(ctypes.Structure):
    """fla::NormMatrix."""

    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64)]


class Weight(ctypes.Structure):
    """fla::NormWeight."""

    _fields_ = [("data", ctypes.c_void_p), ("is_float", ctypes.c_int)]


_SIZES = [("rows", ctypes.c_int64), ("groups", ctypes.c_int), ("size", ctypes.c_int)]
_GATE = [("is_swish", ctypes.c_int), ("gate_first", ctypes.c_int)]


class Forward(ctypes.Structure):
    """RmsNormForward."""

    _fields_ = [*((name, Matrix) for name in ("x", "gate", "residual", "sum", "y")), ("weight", Weight),
                ("scales", ctypes.c_void_p), *_SIZES, ("eps", ctypes.c_float), *_GATE]


class Backward(ctypes.Structure):
    """RmsNormBackward."""

    _fields_ = [*((name, Matrix) for name in ("x", "gate", "dy", "dsum", "dx", "dgate", "dresidual")),
                ("weight", Weight),
                ("scales", ctypes.c_void_p), ("weight_parts", ctypes.c_void_p), *_SIZES, *_GATE]


def store(x, kind):
    return emulate.to_bf16(x) if kind == "bf16" else np.ascontiguousarray(x, NUMPY[kind])


def fetch(x, kind):
    return (emulate.from_bf16(x) if kind == "bf16" else x).astype(np.float64)


class RmsNormTests(unittest.TestCase):
    def check(self, size, groups=1, rows=11, element="float", weight="float", gated=True, swish=True, first=False, offset=0,
              gap=0, parts=2, seed=0, eps=1e-5, stream=None):
        """offset, gap: elements before a matrix and after each of its rows; stream: the type of a residual that x is added to."""
        random = np.random.default_rng([size, groups, rows, seed])
        columns = groups * size
        normal = lambda *shape, kind: fetch(store(random.standard_normal(shape), kind), kind)
        x, gate, dy = (normal(rows, columns, kind=element) for _ in range(3))
        w = normal(columns, kind=weight) if weight else np.ones(columns)

        # What it should be.
        normed, dsum = x, 0
        if stream:
            residual, dsum = (normal(rows, columns, kind=stream) for _ in range(2))
            normed = fetch(store(residual + x, stream), stream)
        sigmoid = 1 / (1 + np.exp(-gate))
        a = gate * sigmoid if swish else sigmoid
        slope = sigmoid * (1 + gate * (1 - sigmoid)) if swish else sigmoid * (1 - sigmoid)
        inner, outer = (a, 1) if gated and first else (1, a) if gated else (1, 1)
        lines = lambda m: m.reshape(rows, groups, size)
        u = normed * inner
        r = np.repeat(1 / np.sqrt(np.mean(lines(u) ** 2, 2) + eps), size, 1)
        n, dn = u * r, dy * w * outer
        du = r * (dn - n * np.repeat(np.mean(lines(dn * n), 2), size, 1))
        expected = {"y": n * w * outer, "dx": du * inner + dsum, "dw": np.sum(dy * outer * n, 0)}
        if gated:
            expected["dgate"] = slope * (du * x if first else dy * w * n)
        if stream:
            expected |= {"sum": residual + x, "dresidual": expected["dx"]}

        # What it is.
        bytes_ = np.dtype(NUMPY[element]).itemsize
        aligned = all(s * bytes_ % 16 == 0 for s in (size, offset, columns + gap))
        lanes, per_thread, threads = next(t for t in (ALIGNED if aligned else UNALIGNED) if size <= t[0] * t[1])
        defines = {"ELEMENT": element, "LANES": lanes, "PER_THREAD": per_thread, "THREADS": threads,
                   "VECTOR": 16 // bytes_ if aligned else 1, "STREAM": stream or element, "GATED": int(gated),
                   "ADDED": int(bool(stream))}
        arrays = {}
        kinds = {name: stream or element for name in ("residual", "sum", "dsum", "dresidual")}

        def matrix(name, values=None):
            memory = emulate.guarded(store(np.full(offset + rows * (columns + gap) - gap, np.nan), kinds.get(name, element)))
            arrays[name] = np.lib.stride_tricks.as_strided(
                memory[offset:], (rows, columns), ((columns + gap) * memory.itemsize, memory.itemsize), writeable=True)
            if values is not None:
                arrays[name][...] = store(values, kinds.get(name, element))
            return Matrix(arrays[name].ctypes.data, columns + gap)

        weights = emulate.guarded(store(w, weight or "float"))
        weight_of = Weight(weights.ctypes.data if weight else None, int(weight == "float"))
        scales = emulate.guarded(np.full((rows, groups), np.nan, np.float32))
        sums = emulate.guarded(np.full((parts, columns), np.nan, np.float32))
        sizes, options = (rows, groups, size), (int(swish), int(first))
        mx, mdy, none = matrix("x", x), matrix("dy", dy), Matrix()
        mgate, mdgate = (matrix("gate", gate), matrix("dgate")) if gated else (none, none)
        mresidual, msum, mdsum, mdresidual = (
            (matrix("residual", residual), matrix("sum"), matrix("dsum", dsum), matrix("dresidual")) if stream else (none,) * 4)
        launch = lambda name, parameters: emulate.launch(
            NORM / f"rms_norm_{name}.cu", f"rms_norm_{name}", defines, parts * groups, threads, 0, parameters, seed=seed)
        launch("forward", Forward(mx, mgate, mresidual, msum, matrix("y"), weight_of, scales.ctypes.data, *sizes, eps, *options))
        launch("backward", Backward(msum if stream else mx, mgate, mdy, mdsum, matrix("dx"), mdgate, mdresidual, weight_of,
                                    scales.ctypes.data, sums.ctypes.data, *sizes, *options))
        for name, value in expected.items():
            kind = "float" if name == "dw" else kinds.get(name, element)
            actual = sums.sum(0) if name == "dw" else fetch(arrays[name], kind)
            error, scale = (np.sqrt(np.mean(np.square(m))) for m in (actual - value, value))
            self.assertLessEqual(error, LIMITS[kind] * scale, f"{name}, relative error {error / scale:.1e}")

    def test_sizes(self):
        for size in (1, 2, 3, 4, 7, 8, 16, 33, 60, 64, 65, 100, 128, 200, 256, 500, 512, 1000, 1024):
            with self.subTest(size=size):
                self.check(size, eps=0.1 if size == 1 else 1e-5)

    def test_sizes_of_a_block(self):
        for size in (1025, 2048, 4096, 5000, 8192, 12288, 12300, 16384):
            with self.subTest(size=size):
                self.check(size, rows=5, element="bf16")

    def test_rows(self):
        for rows in (1, 15, 16, 17, 100):
            for parts in (1, 3):
                with self.subTest(rows=rows, parts=parts):
                    self.check(24, rows=rows, parts=parts)

    def test_options(self):
        for gated, swish, first in ((0, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 0), (1, 0, 1)):
            for element, weight in (("float", None), ("float", "float"), ("bf16", "float"), ("bf16", "bf16"), ("fp16", "fp16")):
                for size in (56, 63):
                    with self.subTest(gated=gated, swish=swish, first=first, element=element, weight=weight, size=size):
                        self.check(size, 3, 20, element, weight, bool(gated), bool(swish), bool(first))

    def test_residuals(self):
        for element, stream in (("float", "float"), ("bf16", "bf16"), ("bf16", "float"), ("fp16", "float")):
            for size in (56, 63):
                with self.subTest(element=element, stream=stream, size=size):
                    self.check(size, 1, 20, element, element, gated=False, stream=stream)
        self.check(4096, 1, 5, "bf16", gated=False, stream="float")
        self.check(40, 1, 5, "bf16", gated=False, stream="float", gap=4)

    def test_layouts(self):
        for offset, gap in ((0, 8), (8, 0), (1, 0), (0, 3)):
            with self.subTest(offset=offset, gap=gap):
                self.check(40, 2, element="bf16", offset=offset, gap=gap)

    def test_schedules(self):
        for seed in range(6):
            with self.subTest(seed=seed):
                self.check(1200, 2, rows=7, seed=seed)
                self.check(48, 2, rows=40, seed=seed, first=True)


if __name__ == "__main__":
    unittest.main()
