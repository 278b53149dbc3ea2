"""Tests of Gla/decay_gate_*.cu. In this folder: /usr/bin/python3 -m unittest test_decay_gate."""

import ctypes
import unittest

import numpy as np

import emulate
from test_rms_norm import LIMITS, fetch, store

GLA = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "Gla"
THREADS = 256
_REST = [("count", ctypes.c_int64), ("normalizer", ctypes.c_float), ("minimum", ctypes.c_float), ("aligned", ctypes.c_int)]


class Forward(ctypes.Structure):
    """DecayGateForward."""

    _fields_ = [("x", ctypes.c_void_p), ("g", ctypes.c_void_p), *_REST]


class Backward(ctypes.Structure):
    """DecayGateBackward."""

    _fields_ = [("x", ctypes.c_void_p), ("dg", ctypes.c_void_p), ("dx", ctypes.c_void_p), *_REST]


class DecayGateTests(unittest.TestCase):
    def run_kernels(self, x, dg, element, normalizer, minimum, offset=0, blocks=2):
        def memory(values, kind):
            array = emulate.guarded(store(np.concatenate([np.zeros(offset), values]), kind))
            return array[offset:]

        unknown = np.full(x.size, np.nan)
        x, g, dg, dx = memory(x, element), memory(unknown, "float"), memory(dg, "float"), memory(unknown, element)
        rest = (x.size, normalizer, minimum, int(all(m.ctypes.data % 16 == 0 for m in (x, g, dg, dx))))
        defines = {"ELEMENT": element, "THREADS": THREADS}
        emulate.launch(GLA / "decay_gate_forward.cu", "decay_gate_forward", defines, blocks, THREADS, 0,
                       Forward(x.ctypes.data, g.ctypes.data, *rest))
        emulate.launch(GLA / "decay_gate_backward.cu", "decay_gate_backward", defines, blocks, THREADS, 0,
                       Backward(x.ctypes.data, dg.ctypes.data, dx.ctypes.data, *rest))
        return fetch(g, "float"), fetch(dx, element)

    def test_numbers(self):
        for element in ("float", "bf16", "fp16"):
            for count, offset in ((1, 0), (7, 0), (8, 0), (1000, 0), (5003, 0), (5003, 8), (1000, 1)):
                for minimum in (-np.inf, -0.5):
                    with self.subTest(element=element, count=count, offset=offset, minimum=minimum):
                        random = np.random.default_rng(count)
                        x = fetch(store(6 * random.standard_normal(count), element), element)
                        dg = fetch(store(random.standard_normal(count), "float"), "float")
                        g = (np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))) / 16
                        dx = np.where(g < minimum, 0, dg / (1 + np.exp(x)) / 16)
                        actual = self.run_kernels(x, dg, element, 16, minimum, offset)
                        for value, expected, kind in zip(actual, (np.maximum(g, minimum), dx), ("float", element)):
                            error, size = (np.sqrt(np.mean(np.square(m))) for m in (value - expected, expected))
                            self.assertLessEqual(error, LIMITS[kind] * size)

    def test_ends(self):
        x = np.array([-np.inf, -1e30, -100, 0, 100, 1e30, np.inf, np.nan])
        g, dx = self.run_kernels(x, np.ones(8), "float", 2, -np.inf)
        np.testing.assert_array_equal(g[[0, 5, 6, 7]], [-np.inf, 0, 0, np.nan])
        np.testing.assert_allclose(g[1:4], [-5e29, -50, -np.log(2) / 2], rtol=1e-6)
        np.testing.assert_allclose(dx, [0.5, 0.5, 0.5, 0.25, 0, 0, 0, np.nan], rtol=1e-6, atol=1e-30)
        g, dx = self.run_kernels(x, np.ones(8), "float", 2, -4)
        np.testing.assert_array_equal(g[[0, 1, 2, 7]], [-4, -4, -4, np.nan])
        np.testing.assert_array_equal(dx[:3], 0)


if __name__ == "__main__":
    unittest.main()
