"""Tests of Activation/swiglu_*.cu. In this folder: /usr/bin/python3 -m unittest test_swiglu."""

import ctypes
import unittest

import numpy as np

import emulate
from test_rms_norm import fetch, store

ACTIVATION = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "Activation"
THREADS = 256
LIMITS = {"float": 1e-6, "bf16": 2 ** -8, "fp16": 2 ** -11}  # relative errors: of float32, and of rounding to the type
_REST = [("count", ctypes.c_int64), ("aligned", ctypes.c_int)]


class Forward(ctypes.Structure):
    """SwiGluForward."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("gate", "up", "y")), *_REST]


class Backward(ctypes.Structure):
    """SwiGluBackward."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("gate", "up", "dy", "dgate", "dup")), *_REST]


class SwiGluTests(unittest.TestCase):
    def run_kernels(self, gate, up, dy, element, offset=0, blocks=2):
        def memory(values):
            array = emulate.guarded(store(np.concatenate([np.zeros(offset), values]), element))
            return array[offset:]

        unknown = np.full(gate.size, np.nan)
        gate, up, dy, y, dgate, dup = map(memory, (gate, up, dy, unknown, unknown, unknown))
        defines = {"ELEMENT": element, "THREADS": THREADS}
        for name, kind, tensors in (("forward", Forward, (gate, up, y)), ("backward", Backward, (gate, up, dy, dgate, dup))):
            addresses = [tensor.ctypes.data for tensor in tensors]
            emulate.launch(ACTIVATION / f"swiglu_{name}.cu", f"swiglu_{name}", defines, blocks, THREADS, 0,
                           kind(*addresses, gate.size, int(all(address % 16 == 0 for address in addresses))))
        return [fetch(tensor, element) for tensor in (y, dgate, dup)]

    def test_numbers(self):
        for element in ("float", "bf16", "fp16"):
            for count, offset in ((1, 0), (7, 0), (8, 0), (1000, 0), (5003, 0), (5003, 8), (1000, 1)):
                with self.subTest(element=element, count=count, offset=offset):
                    random = np.random.default_rng(count)
                    gate, up, dy = (fetch(store(scale * random.standard_normal(count), element), element) for scale in (6, 1, 1))
                    sigmoid = 1 / (1 + np.exp(-gate))
                    silu, slope = gate * sigmoid, sigmoid * (1 + gate * (1 - sigmoid))
                    for value, expected in zip(self.run_kernels(gate, up, dy, element, offset), (silu * up, dy * up * slope, dy * silu)):
                        error, size = (np.sqrt(np.mean(np.square(m))) for m in (value - expected, expected))
                        self.assertLessEqual(error, LIMITS[element] * size)

    def test_ends(self):
        gate, one = np.array([-1000, -100, 0, 100, 1000, np.nan]), np.ones(6)
        y, dgate, dup = self.run_kernels(gate, one, one, "float")
        np.testing.assert_array_equal(y, [0, 0, 0, 100, 1000, np.nan])
        np.testing.assert_array_equal(dgate, [0, 0, 0.5, 1, 1, np.nan])
        np.testing.assert_array_equal(dup, y)


if __name__ == "__main__":
    unittest.main()
