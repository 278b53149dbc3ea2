"""Tests of Gla/recurrent_*.cu. In this folder: /usr/bin/python3 -m unittest test_gla_recurrent (the first time some minutes)."""

import unittest

import numpy as np

import emulate
import gla_recurrent as launcher

GLA = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "Gla"
SHARED_BYTES = 99 << 10
NUMPY = {"float": np.float32, "bf16": np.uint16, "fp16": np.float16}
LIMITS = {"float": 2e-6, "bf16": 3e-3, "fp16": 4e-4}  # relative RMS errors: of float32, and of rounding to the type


def store(x, element):
    return emulate.to_bf16(x) if element == "bf16" else np.ascontiguousarray(x, NUMPY[element])


def fetch(x, element):
    return (emulate.from_bf16(x) if element == "bf16" else x).astype(np.float64)


def laid_out(x, layout):
    """A copy [B, T, H, D] in guarded memory, and that memory."""
    if layout == "sliced":  # rows that are not aligned
        memory = emulate.guarded(np.full((*x.shape[:2], x.shape[2] + 1, x.shape[3] + 3), -1, x.dtype))
        part = memory[:, :, 1:, 1:-2]
    elif layout == "heads first":
        memory = emulate.guarded(np.zeros((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), x.dtype))
        part = np.swapaxes(memory, 1, 2)
    elif layout == "backwards":
        memory = emulate.guarded(x)
        part = memory[:, ::-1]
    else:
        memory = part = emulate.guarded(x)
    part[...] = x
    return part, memory


class Case:
    """A call with random inputs; what it should give, in float64, and what the kernels give."""

    def __init__(self, K, V, B=1, T=17, H=2, Hkv=1, gates="normal", offsets=None, reverse=False, states=True,
                 element="float", gate=None, layout="dense", multiprocessors=132, seed=0):
        random = np.random.default_rng([K, V, T, seed])
        gate = gate or element
        self.element, self.gate, self.layout, self.seed, self.multiprocessors = element, gate, layout, seed, multiprocessors
        self.offsets, self.reverse, self.scale = offsets, reverse, float(np.float32(K**-0.5))
        self.count = B if offsets is None else len(offsets) - 1
        normal = lambda *shape: random.standard_normal(shape)
        self.q, self.k, self.v, self.do = (fetch(store(x, element), element) for x in (
            normal(B, T, H, K), normal(B, T, Hkv, K), normal(B, T, Hkv, V), normal(B, T, H, V)))
        z = normal(B, T, Hkv, K)
        logsigmoid = -np.log1p(np.exp(-z))
        g = {
            "normal": lambda: logsigmoid, "weak": lambda: logsigmoid / 16, "none": lambda: 0 * z, "strong": lambda: -20 + z,
            "resets": lambda: np.where(random.random(z.shape) < 0.05, -np.inf, logsigmoid),
            "all resets": lambda: np.full_like(z, -np.inf),
            "mixed": lambda: np.where(random.random(K) < 0.3, -20, logsigmoid / 16),
            "-5": lambda: np.full_like(z, -5), "-20": lambda: np.full_like(z, -20), "wide": lambda: -np.log1p(np.exp(-8 * z)),
            "half": lambda: np.where(np.arange(T)[:, None, None] // 64 % 2, -20, logsigmoid),
        }[gates]()
        self.g = fetch(store(g, gate), gate)
        state = lambda: normal(self.count, H, K, V).astype(np.float32).astype(np.float64) if states else None
        self.initial, self.final_gradient = state(), state()

    def expected(self):
        B, T, H, K = self.q.shape
        group = H // self.k.shape[2]
        k, v, g = (np.repeat(x, group, 2) for x in (self.k, self.v, self.g))
        q, do, scale = self.q, self.do, self.scale
        o, dq, dk, dv, dg = (np.zeros(x.shape) for x in (v, q, k, v, g))
        final, d_initial = (np.zeros((self.count, H, K, v.shape[3])) for _ in range(2))
        for s in range(self.count):
            b, first, end = (s, 0, T) if self.offsets is None else (0, self.offsets[s], self.offsets[s + 1])
            order = range(first, end)[:: -1 if self.reverse else 1]
            state = np.zeros_like(final[s]) if self.initial is None else self.initial[s]
            before = {}
            for t in order:
                before[t] = state
                state = np.exp(g[b, t])[:, :, None] * state + k[b, t][:, :, None] * v[b, t][:, None, :]
                o[b, t] = scale * np.einsum("hk,hkv->hv", q[b, t], state)
                dq[b, t] = scale * np.einsum("hkv,hv->hk", state, do[b, t])
            final[s] = state
            gradient = np.zeros_like(final[s]) if self.final_gradient is None else self.final_gradient[s]
            for t in reversed(order):
                gradient = gradient + scale * q[b, t][:, :, None] * do[b, t][:, None, :]
                dk[b, t] = np.einsum("hkv,hv->hk", gradient, v[b, t])
                dv[b, t] = np.einsum("hkv,hk->hv", gradient, k[b, t])
                decayed = np.exp(g[b, t])[:, :, None] * gradient
                dg[b, t] = np.einsum("hkv,hkv->hk", before[t], decayed)
                gradient = decayed
            d_initial[s] = gradient
        return {"o": o, "final": final, "dq": dq, "dk": dk, "dv": dv, "dg": dg, "d_initial": d_initial}

    def run(self, in_place=False):
        B, T, H, K = self.q.shape
        V, group, element, gate = self.v.shape[3], H // self.k.shape[2], self.element, self.gate
        per_head = "float" if group > 1 else element
        buffers = {}

        def tensor(name, values, kind):
            part, buffers[name] = laid_out(store(values, kind), self.layout)
            return part

        def output(name, size, kind):
            return tensor(name, np.full((B, T, H, size), np.nan), kind)

        def state(name, values):
            buffers[name] = emulate.guarded(np.asarray(values, np.float32))
            return buffers[name]

        q, k, v, do = (tensor(n, x, element) for n, x in (("q", self.q), ("k", self.k), ("v", self.v), ("do", self.do)))
        g = tensor("g", self.g, gate)
        unknown = np.full((self.count, H, K, V), np.nan)
        initial, final_gradient = (
            None if x is None else state(n, x) for n, x in (("S0", self.initial), ("dST", self.final_gradient)))
        final, d_initial = initial if in_place else state("ST", unknown), state("dS0", unknown)
        offsets = None if self.offsets is None else np.array(self.offsets, np.int32)
        o, dq, dk, dv = output("o", V, element), output("dq", K, element), output("dk", K, per_head), output("dv", V, per_head)
        dg = output("dg", K, "float" if group > 1 else gate)

        lines = self.count * H
        address = lambda x: None if x is None else x.ctypes.data
        view = lambda x: launcher.TensorView(x.ctypes.data, *(s // x.itemsize for s in x.strides[:3]))
        length = T if offsets is None else int(np.diff(offsets).max())
        sequences = lambda late: launcher.Sequences(address(offsets), self.count, length, self.reverse ^ late)
        sizes, floats = (H, group, K, V), int(group > 1)

        def launch(name, tile, columns, defines, parameters):
            emulate.launch(
                GLA / f"recurrent_{name}.cu", f"gla_recurrent_{name}", defines, lines * tile.blocks(columns), tile.threads,
                defines["SHARED_BYTES"], parameters, seed=self.seed, buffers=buffers)

        tile = launcher.tile_of(K, V, lines, self.multiprocessors).fit_forward(element, gate, SHARED_BYTES)
        for late in (1, 0):  # in place, the forward pass overwrites the initial state
            write, value, read, out = (q, do, k, dv) if late else (k, v, q, o)
            launch("forward", tile, V, tile.forward_defines(element, gate), launcher.Forward(
                view(g), view(write), view(value), view(read), view(out), address(final_gradient if late else initial),
                address(d_initial if late else final), sequences(late), *sizes, *((self.scale, 1) if late else (1, self.scale)),
                late, floats if late else 0))
            if in_place and not late:
                return {"o": fetch(o, element), "final": final}

        tile = launcher.tile_of(V, K, lines, self.multiprocessors).fit_backward(element, gate, SHARED_BYTES)
        product = state("product", np.full((B, T, H, K), np.nan))
        saved = state("saved", np.full(launcher.saved_floats(tile, B * T, self.count, H, K), np.nan))
        for late in (0, 1):
            write, read, value, other, out = (do, v, q, k, dk) if late else (v, do, k, q, dq)
            launch("backward", tile, K, tile.backward_defines(element, gate, late), launcher.Backward(
                view(g), view(write), view(read), view(value), view(other), view(out), view(product),
                view(dg) if late else launcher.TensorView(), address(final_gradient if late else initial), saved.ctypes.data,
                sequences(late), *sizes, *((self.scale, 1) if late else (1, self.scale)), floats if late else 0, floats))
        return {"o": fetch(o, element), "final": final, "d_initial": d_initial,
                "dq": fetch(dq, element), "dk": fetch(dk, per_head), "dv": fetch(dv, per_head),
                "dg": fetch(dg, "float" if group > 1 else gate)}


class GlaRecurrentTests(unittest.TestCase):
    def check(self, case, **options):
        expected, actual = case.expected(), case.run(**options)
        for name, x in actual.items():
            kind = "float" if name in ("final", "d_initial") else case.gate if name == "dg" else case.element
            error, size = (np.sqrt(np.mean(np.square(y))) if y.size else 0 for y in (x - expected[name], expected[name]))
            self.assertLessEqual(error, LIMITS[kind] * size, f"{name}, relative error {error / size if size else error:.1e}")
        if "dg" in actual:
            resets = np.repeat(np.isinf(case.g), case.q.shape[2] // case.g.shape[2], 2)
            self.assertFalse(np.any(actual["dg"][resets]))

    def test_sizes(self):
        for K, V in ((1, 1), (7, 16), (16, 33), (33, 7), (64, 100), (100, 64), (128, 128)):
            with self.subTest(K=K, V=V):
                self.check(Case(K, V, seed=K))

    def test_large_sizes(self):
        for K, V in ((256, 40), (40, 256), (512, 20), (20, 512)):
            with self.subTest(K=K, V=V):
                self.check(Case(K, V, T=9, H=1))

    def test_wide_blocks(self):
        for size in (16, 33, 64, 128):
            with self.subTest(size=size):
                self.check(Case(size, 48, T=19, multiprocessors=1))

    def test_lengths(self):
        for T in (1, 2, 15, 16, 17, 65, 128, 129, 130, 300):
            with self.subTest(T=T):
                self.check(Case(16, 16, T=T, gates="weak", seed=T))

    def test_gates(self):
        for gates in ("none", "strong", "resets", "all resets", "mixed"):
            with self.subTest(gates):
                self.check(Case(16, 33, T=150, gates=gates))

    def test_reverse_and_without_states(self):
        self.check(Case(16, 16, T=40, B=2, reverse=True, gates="resets"))
        self.check(Case(16, 16, T=40, B=2, states=False))

    def test_packed(self):
        self.check(Case(16, 16, T=300, offsets=[0, 129, 129, 140, 300], gates="resets"))
        self.check(Case(16, 16, T=300, offsets=[0, 0, 1, 299, 300], reverse=True, gates="weak"))

    def test_layouts(self):
        for layout in ("sliced", "heads first", "backwards"):
            with self.subTest(layout):
                self.check(Case(16, 32, B=2, T=35, layout=layout))

    def test_types(self):
        for element, gate in (("bf16", "bf16"), ("bf16", "float"), ("fp16", "fp16"), ("fp16", "float")):
            for heads in (1, 2):  # two heads of a group have float32 gradients
                with self.subTest(element=element, gate=gate, heads=heads):
                    self.check(Case(64, 32, T=33, H=heads, element=element, gate=gate))

    def test_state_in_place(self):
        self.check(Case(100, 72, B=2, T=1), in_place=True)
        self.check(Case(16, 16, B=2, T=20), in_place=True)

    def test_schedules(self):
        for seed in range(6):
            with self.subTest(seed=seed):
                self.check(Case(32, 16, T=50, seed=seed, gates="resets"))


if __name__ == "__main__":
    unittest.main()
