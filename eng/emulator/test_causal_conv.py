"""Tests of Conv/causal_conv_*.cu. In this folder: /usr/bin/python3 -m unittest test_causal_conv."""

import ctypes
import unittest

import numpy as np

import emulate
from test_rms_norm import LIMITS, NUMPY, fetch, store

CONV = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "Conv"
WARPS = 4


class Shape(ctypes.Structure):
    """fla::ConvShape."""

    _fields_ = [("sequences", emulate.Sequences), *((name, ctypes.c_int) for name in ("channels", "run", "pieces", "slots"))]


class Parameters(ctypes.Structure):
    """fla::ConvParameters."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("float_weight", ctypes.c_int),
                ("float_bias", ctypes.c_int)]


class Forward(ctypes.Structure):
    """CausalConvForward."""

    _fields_ = [("shape", Shape), ("x", emulate.TensorView), ("y", emulate.TensorView), ("parameters", Parameters),
                ("initial_state", ctypes.c_void_p), ("final_state", ctypes.c_void_p)]


class Backward(ctypes.Structure):
    """CausalConvBackward."""

    _fields_ = [("shape", Shape), *((name, emulate.TensorView) for name in ("x", "dy", "dx")), ("parameters", Parameters),
                *((name, ctypes.c_void_p) for name in ("initial_state", "final_gradient", "initial_gradient", "parts"))]


class Sum(ctypes.Structure):
    """CausalConvSum."""

    _fields_ = [("parts", ctypes.c_void_p), ("channels", ctypes.c_int), ("rows", ctypes.c_int), ("dweight", ctypes.c_void_p),
                ("dbias", ctypes.c_void_p), ("float_weight", ctypes.c_int), ("float_bias", ctypes.c_int)]


def reference(x, weight, bias, silu, state, dy, dstate):
    """One sequence in float64: x, dy [T, E], weight [E, W], bias [E], states [E, W - 1]."""
    (time, channels), width = x.shape, weight.shape[1]
    row = np.concatenate([state.T, x])  # [W - 1 + T, E]
    s = bias + sum((row[w:w + time] * weight[:, w] for w in range(width)), np.zeros((time, channels)))
    gate = 1 / (1 + np.exp(-s))
    g = dy * gate * (1 + s * (1 - gate)) if silu else dy
    drow = np.zeros_like(row)
    for w in range(width):
        drow[w:w + time] += g * weight[:, w]
    drow[time:] += dstate.T
    return {
        "y": s * gate if silu else s, "final": row[time:].T, "dx": drow[width - 1:], "dinitial": drow[:width - 1].T,
        "dweight": np.stack([(g * row[w:w + time]).sum(0) for w in range(width)], 1), "dbias": g.sum(0),
    }


class CausalConvTests(unittest.TestCase):
    def check(self, width, channels, batch=1, time=21, offsets=None, element="float", weight="float", bias="float", silu=True,
              states=True, vector=1, run=8, steps=4, gap=0, in_place=False, seed=0):
        """gap: elements between the tokens of x; offsets: of packed sequences."""
        random = np.random.default_rng([width, channels, time, seed])
        time = offsets[-1] if offsets else time
        count, longest = (len(offsets) - 1, max(np.diff(offsets))) if offsets else (batch, time)
        rounded = lambda *shape, kind: fetch(store(random.standard_normal(shape), kind), kind)
        x, dy = rounded(batch, time, channels, kind=element), rounded(batch, time, channels, kind=element)
        w = rounded(channels, width, kind=weight) / 2
        b = rounded(channels, kind=bias) if bias else np.zeros(channels)
        initial, dfinal = (rounded(count, channels, width - 1, kind="float") * states for _ in range(2))

        pieces = [(0, *bounds) for bounds in zip(offsets, offsets[1:])] if offsets else [(i, 0, time) for i in range(batch)]
        results = [reference(x[r, begin:end], w, b, silu, initial[i], dy[r, begin:end], dfinal[i])
                   for i, (r, begin, end) in enumerate(pieces)]
        expected = {name: np.concatenate([result[name] for result in results]).reshape(x.shape) for name in ("y", "dx")}
        expected |= {name: np.stack([result[name] for result in results]) for name in ("final", "dinitial")}
        expected |= {name: sum(result[name] for result in results) for name in ("dweight", "dbias")}

        memory = {}

        def place(name, values, kind, unknown=False):
            memory[name] = emulate.guarded(store(np.full(np.shape(values), np.nan) if unknown else values, kind))
            return memory[name].ctypes.data

        def tokens(name, values, space=0):
            values = np.full(x.shape, np.nan) if values is None else values
            place(name, np.concatenate([np.full((batch, time, space), np.nan), values], 2), element)
            view = memory[name] = memory[name][:, :, space:]
            return emulate.TensorView(view.ctypes.data, *(stride // view.itemsize for stride in view.strides[:2]), 0)

        per_sequence = max(1, -(-longest // run))
        slots = time // run + count if offsets else count * per_sequence
        cu = emulate.guarded(np.array(offsets, np.int32)) if offsets else None
        sequences = emulate.Sequences(cu.ctypes.data if offsets else None, count, longest, 0)
        shape = Shape(sequences, channels, run, per_sequence, slots)
        parameters = Parameters(place("weight", w, weight), place("bias", b, bias) if bias else None, int(weight == "float"),
                                int(bias == "float"))
        groups, rows = -(-channels // (32 * vector)), -(-slots // WARPS)
        defines = {"ELEMENT": element, "WIDTH": width, "VECTOR": vector, "STEPS": steps, "WARPS": WARPS, "SILU": int(silu),
                   "MIN_BLOCKS": 1}
        state = lambda name, values, unknown=False: place(name, values, "float", unknown) if unknown or states else None
        launch = lambda name, grid, call: emulate.launch(
            CONV / f"causal_conv_{name}.cu", f"causal_conv_{name}", defines, grid, 32 * WARPS, 0, call, seed=seed)

        x_view, initial_state = tokens("x", x, gap), state("initial", initial)
        parts = place("parts", np.zeros((rows, groups, width + 1, vector, 32)), "float", True)
        launch("backward", groups * rows,
               Backward(shape, x_view, tokens("dy", dy), tokens("dx", None), parameters, initial_state, state("dfinal", dfinal),
                        state("dinitial", initial, True), parts))
        dweight, dbias = place("dweight", w, weight, True), place("dbias", b, bias or "float", True)
        launch("sum", -(-groups * (width + 1) * vector // WARPS),
               Sum(parts, channels, rows, dweight, dbias, int(weight == "float"), int(bias != element)))
        final = initial_state if in_place else state("final", initial, True)
        launch("forward", groups * rows, Forward(shape, x_view, tokens("y", None), parameters, initial_state, final))
        if in_place:
            memory["final"] = memory["initial"]

        kinds = {"y": element, "dx": element, "dweight": weight, "dbias": bias or "float"}
        for name, value in expected.items():
            kind = kinds.get(name, "float")
            if value.size == 0:
                continue
            actual = fetch(memory[name], kind)
            error, scale = (np.sqrt(np.mean(np.square(m))) for m in (actual - value, value))
            self.assertLessEqual(error, LIMITS[kind] * scale, f"{name}, relative error {error / max(scale, 1e-30):.1e}")
        return {name: memory[name].copy() for name in expected}

    def test_widths(self):
        for width in range(1, 10):
            for vector, channels in ((1, 37), (4, 132)):
                if (vector == 4) != (width in (2, 4, 7, 8)):
                    continue
                with self.subTest(width=width, vector=vector):
                    self.check(width, channels, batch=2, vector=vector, silu=width % 2 == 0)
        self.check(32, 5, time=50, run=16)

    def test_lengths(self):
        for time in (1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 65):
            for run in (4, 16):
                for states in (True, False):
                    with self.subTest(time=time, run=run, states=states):
                        self.check(4, 70, 2, time, states=states, run=run)

    def test_packed(self):
        for offsets in ([0, 0, 1, 3, 20, 20, 41, 41], [0, 5], [0, 0, 0, 7], [0, 64, 128, 129], list(range(40))):
            for run in (1, 8, 16):
                for states in (True, False):
                    with self.subTest(offsets=offsets, run=run, states=states):
                        self.check(4, 33, offsets=offsets, states=states, run=run)
        self.check(7, 128, offsets=[0, 2, 2, 3, 40, 44], vector=4)
        self.check(1, 33, offsets=[0, 2, 2, 3, 40, 44])

    def test_elements(self):
        for element, vectors in (("float", (4,)), ("bf16", (1, 4, 8)), ("fp16", (8,))):
            for vector in vectors:
                for weight, bias in (("float", "float"), (element, element), (element, None), ("float", element)):
                    with self.subTest(element=element, vector=vector, weight=weight, bias=bias):
                        self.check(4, 96, 2, 30, None, element, weight, bias, vector == 8, vector=vector)
        self.check(5, 96, 1, 19, None, "bf16", "bf16", "bf16", vector=4, steps=2)

    def test_parts_of_wider_tensors(self):
        for element, vector, gap in (("bf16", 8, 8), ("bf16", 4, 4), ("bf16", 1, 3)):
            with self.subTest(element=element, vector=vector, gap=gap):
                self.check(4, 264, 2, 20, element=element, vector=vector, gap=gap)

    def test_state_in_place(self):
        for time in (1, 2, 3, 5, 8):
            with self.subTest(time=time):
                self.check(4, 40, 3, time, in_place=True)
        self.check(4, 40, offsets=[0, 1, 1, 4, 12], in_place=True)
        self.check(6, 40, 3, 2, element="bf16", in_place=True)

    def test_exact_states(self):
        """States are float32 throughout: what a call in bfloat16 hands on of them, it hands on exactly."""
        memory = self.check(4, 40, offsets=[0, 0, 1, 3], element="bf16", vector=8)
        random = np.random.default_rng([4, 40, 21, 0])
        x, _, _, _ = (random.standard_normal(shape) for shape in ((1, 3, 40), (1, 3, 40), (40, 4), 40))
        initial = random.standard_normal((3, 40, 3)).astype(np.float32)
        np.testing.assert_array_equal(memory["final"][0], initial[0])
        np.testing.assert_array_equal(memory["final"][1, :, :2], initial[1, :, 1:])

    def test_schedules(self):
        first = self.check(4, 70, 2, 40)
        for seed in range(1, 6):
            with self.subTest(seed=seed):
                self.check(4, 70, 2, 40, seed=seed)
                self.check(4, 33, offsets=[0, 0, 1, 3, 20, 20, 41, 41], seed=seed)
        for name, value in self.check(4, 70, 2, 40).items():
            np.testing.assert_array_equal(value, first[name], name)


if __name__ == "__main__":
    unittest.main()
