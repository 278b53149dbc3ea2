"""Tests of Rotary/rotary.cu. In this folder: /usr/bin/python3 -m unittest test_rotary."""

import ctypes
import unittest

import numpy as np

import emulate
from test_rms_norm import NUMPY, fetch, store

ROTARY = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "Rotary"
LIMITS = {"float": 1e-6, "bf16": 3e-3, "fp16": 4e-4}


class Rotary(ctypes.Structure):
    """fla::Rotary."""

    _fields_ = [("turns", ctypes.c_uint64 * 128), ("pairs", ctypes.c_int), ("direction", ctypes.c_float)]


class Turn(ctypes.Structure):
    """RotaryTurn."""

    _fields_ = [("x", emulate.TensorView), ("y", emulate.TensorView), ("positions", ctypes.c_void_p),
                *((name, ctypes.c_int64) for name in ("batch_step", "time_step", "offset")),
                *((name, ctypes.c_int) for name in ("is_long", "tokens", "time", "heads", "size", "block")), ("rotary", Rotary)]


def rotary(theta, pairs, inverse=False):
    """The parameters of a rotation."""
    turns = [theta ** (-i / pairs) / (2 * np.pi) for i in range(pairs)]
    return Rotary((ctypes.c_uint64 * 128)(*(int(turn % 1 * 2.0 ** 64) for turn in turns)), pairs, -1 if inverse else 1)


def reference(x, positions, theta, pairs, interleaved, inverse=False):
    """x [B, T, H, K] turned in float64; positions [B, T]."""
    angles = positions[..., None, None] * theta ** (-np.arange(pairs) / pairs) * (-1 if inverse else 1)
    y = x.astype(np.float64).copy()
    left, right = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(0, pairs), slice(pairs, 2 * pairs))
    y[..., left] = x[..., left] * np.cos(angles) - x[..., right] * np.sin(angles)
    y[..., right] = x[..., right] * np.cos(angles) + x[..., left] * np.sin(angles)
    return y


class RotaryTests(unittest.TestCase):
    def check(self, batch, time, heads, size, pairs, element="bf16", interleaved=False, positions=None, offset=0, gap=0,
              block=3, vector=1, inverse=False, seed=0):
        """positions: int32 or int64 [T] or [B, T], or None to count from the offset; gap: features between the heads of x."""
        x = fetch(store(np.random.default_rng(seed).standard_normal((batch, time, heads, size)), element), element)
        wide = emulate.guarded(store(np.concatenate([np.full((batch, time, heads, gap), np.nan), x], 3), element))
        y = emulate.guarded(store(np.full(x.shape, np.nan), element))
        at = None if positions is None else emulate.guarded(positions)
        steps = (0, 0) if at is None else (at.shape[-1] if at.ndim == 2 else 0, 1)
        emulate.launch(
            ROTARY / "rotary.cu", "rotary", {"ELEMENT": element, "VECTOR": vector, "INTERLEAVED": int(interleaved)},
            -(-batch * time // block), 256, 0,
            Turn(emulate.view(wide[..., gap:]), emulate.view(y), at.ctypes.data if at is not None else None, *steps, offset,
                 int(at is not None and at.dtype == np.int64), batch * time, time, heads, size, block,
                 rotary(10000.0, pairs, inverse)), seed=seed)
        there = offset + np.arange(time) if at is None else at
        expected = reference(x, np.broadcast_to(there, (batch, time)), 10000.0, pairs, interleaved, inverse)
        actual = fetch(y, element)
        error = np.sqrt(np.mean((actual - expected) ** 2)) / np.sqrt(np.mean(expected ** 2))
        self.assertLessEqual(error, LIMITS[element], f"relative error {error:.1e}")
        np.testing.assert_array_equal(actual[..., 2 * pairs:], x[..., 2 * pairs:])

    def test_sizes(self):
        for size, pairs, vector in ((2, 1, 1), (7, 3, 1), (64, 32, 8), (128, 64, 8), (256, 128, 8), (100, 17, 1), (80, 32, 8),
                                    (88, 32, 8)):
            for interleaved in (False, True):
                with self.subTest(size=size, pairs=pairs, interleaved=interleaved):
                    self.check(2, 5, 3, size, pairs, interleaved=interleaved, vector=vector)

    def test_elements_and_views(self):
        for element, vector in (("float", 4), ("float", 1), ("fp16", 8), ("bf16", 8)):
            with self.subTest(element=element, vector=vector):
                self.check(2, 5, 3, 32, 16, element, gap=vector * 2, vector=vector, inverse=True)

    def test_positions(self):
        for kind in (np.int32, np.int64):
            for positions in (np.arange(5) - 3, np.arange(5) + 1_000_003, np.random.default_rng(1).integers(0, 1 << 30, (2, 5))):
                with self.subTest(kind=kind, positions=positions):
                    self.check(2, 5, 2, 64, 32, "float", positions=positions.astype(kind), vector=4)
        self.check(2, 5, 2, 64, 32, "float", offset=123_456_789, vector=4)


if __name__ == "__main__":
    unittest.main()
