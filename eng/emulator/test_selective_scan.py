"""Tests of SelectiveScan/*.cu. In this folder: /usr/bin/python3 -m unittest test_selective_scan (the first time some minutes)."""

import ctypes
import unittest

import numpy as np

import emulate
import selective_scan as launcher

SCAN = emulate.HERE.parents[1] / "FlaSharp.Kernels" / "SelectiveScan"
NUMPY = {"float": np.float32, "bf16": np.uint16, "fp16": np.float16}
LIMITS = {"float": 1e-5, "bf16": 4e-3, "fp16": 4e-4}  # relative RMS errors; of bf16 that of dB's and dC's operands too
SAVED_STEPS = 32


def store(x, element):
    return emulate.to_bf16(x) if element == "bf16" else np.ascontiguousarray(x, NUMPY[element])


def fetch(x, element):
    return (emulate.from_bf16(x) if element == "bf16" else x).astype(np.float64)


class Case:
    """A call with random inputs; what it should give, in float64, and what the kernels give."""

    def __init__(self, E=32, N=16, B=1, T=40, G=1, z=True, d=True, bias=True, softplus=True, states=True, offsets=None,
                 strength=1.0, shift=-1.0, element="float", gap=0, segments=1, backward_segments=1, parts=1, narrow=False,
                 long=False, log=False, seed=0):
        random = np.random.default_rng([E, N, T, seed])
        normal = lambda *shape: random.standard_normal(shape)
        wide = lambda x: fetch(store(x, element), element)
        single = lambda x: x.astype(np.float32).astype(np.float64)
        self.element, self.gap, self.seed, self.narrow, self.long = element, gap, seed, narrow, long
        self.log = log
        self.segments, self.backward_segments, self.parts = segments, backward_segments, parts
        self.offsets, self.softplus = offsets, softplus
        self.count = B if offsets is None else len(offsets) - 1
        self.u, self.dy = wide(normal(B, T, E)), wide(normal(B, T, E))
        self.delta = wide((normal(B, T, E) + shift) * strength if softplus else np.abs(normal(B, T, E)) * 0.2 * strength)
        self.z = wide(normal(B, T, E)) if z else None
        self.b, self.c = wide(normal(B, T, G, N)), wide(normal(B, T, G, N))
        self.given_a = single(normal(E, N))
        self.a = -np.exp(self.given_a)
        if not log:
            self.a = self.given_a = single(self.a)
        self.d, self.bias = (single(normal(E)) if d else None), (single(np.abs(normal(E)) * 0.1) if bias else None)
        state = lambda: single(normal(self.count, E, N)) if states else None
        self.initial, self.final_gradient = state(), state()

    def expected(self):
        B, T, E = self.u.shape
        G, N = self.b.shape[2:]
        raw = self.delta + (0 if self.bias is None else self.bias)
        delta = np.logaddexp(raw, 0) if self.softplus else raw
        slope = 1 / (1 + np.exp(-raw)) if self.softplus else np.ones_like(raw)
        sigmoid = None if self.z is None else 1 / (1 + np.exp(-self.z))
        gate = 1 if self.z is None else self.z * sigmoid
        d = 0 if self.d is None else self.d
        g = self.dy * gate
        spread = lambda x: np.repeat(x, E // G, 1)  # [T, G, N] -> [T, E, N]
        sums, du, ddelta = (np.zeros((B, T, E)) for _ in range(3))
        db, dc = np.zeros(self.b.shape), np.zeros(self.b.shape)
        da, final, d_initial = np.zeros((E, N)), np.zeros((self.count, E, N)), np.zeros((self.count, E, N))
        for s in range(self.count):
            row, first, end = (s, 0, T) if self.offsets is None else (0, self.offsets[s], self.offsets[s + 1])
            b, c = spread(self.b[row, first:end]), spread(self.c[row, first:end])
            decay = np.exp(delta[row, first:end, :, None] * self.a)
            x = (delta * self.u)[row, first:end, :, None]
            h = [np.zeros((E, N)) if self.initial is None else self.initial[s]]
            for t in range(end - first):
                h.append(decay[t] * h[-1] + x[t] * b[t])
            final[s] = h[-1]
            dh = np.zeros((E, N)) if self.final_gradient is None else self.final_gradient[s]
            for t in reversed(range(end - first)):
                at = (row, first + t)
                sums[at] = np.sum(c[t] * h[t + 1], 1)
                dh = dh + c[t] * g[at][:, None]
                p = dh * decay[t] * h[t]
                db[at] = np.sum((dh * x[t]).reshape(G, E // G, N), 1)
                dc[at] = np.sum((h[t + 1] * g[at][:, None]).reshape(G, E // G, N), 1)
                dx = np.sum(dh * b[t], 1)
                da += p * delta[at][:, None]
                ddelta[at] = np.sum(p * self.a, 1) + dx * self.u[at]
                du[at] = dx * delta[at]
                dh = dh * decay[t]
            d_initial[s] = dh
        ddelta *= slope
        sums += d * self.u
        results = {"y": sums * gate, "final": final, "du": du + d * g, "ddelta": ddelta, "da": da * (self.a if self.log else 1),
                   "db": db, "dc": dc,
                   "d_initial": d_initial, "dd": np.sum(g * self.u, (0, 1)), "dbias": np.sum(ddelta, (0, 1))}
        if self.z is not None:
            results["dz"] = self.dy * sums * sigmoid * (1 + self.z * (1 - sigmoid))
        return results

    def run(self, in_place=False):
        B, T, E = self.u.shape
        G, N = self.b.shape[2:]
        element, keep = self.element, []

        def tensor(values):
            shape = values.shape
            memory = emulate.guarded(store(np.full((*shape[:-1], shape[-1] + self.gap), np.nan), element))
            keep.append(memory)
            part = memory[..., self.gap:]
            part[...] = store(values, element)
            return part

        def floats(values):
            if values is None:
                return None
            keep.append(emulate.guarded(np.asarray(values, np.float32)))
            return keep[-1]

        view = lambda x: launcher.emulate.TensorView() if x is None else emulate.TensorView(
            x.ctypes.data, *(s // x.itemsize for s in x.strides[:2]), x.strides[2] // x.itemsize if x.ndim == 4 else 0)
        address = lambda x: None if x is None else x.ctypes.data
        unknown = lambda *shape: floats(np.full(shape, np.nan))
        result = lambda: tensor(np.full((B, T, E), np.nan))
        u, delta, dy, b, c = (tensor(x) for x in (self.u, self.delta, self.dy, self.b, self.c))
        z = None if self.z is None else tensor(self.z)
        a, d, bias, initial, final_gradient = (floats(x) for x in (self.given_a, self.d, self.bias, self.initial, self.final_gradient))
        final = initial if in_place else unknown(self.count, E, N)
        offsets = None if self.offsets is None else np.array(self.offsets, np.int32)
        length = T if offsets is None else int(np.diff(offsets).max())
        aligned = E // G % 8 == 0 and N % 8 == 0 and self.gap * (4 if element == "float" else 2) % 16 == 0
        states = (self.count, E, N)

        def scan(segments, of_parts=False):
            parts = self.parts if segments > 1 else 1
            unit = SAVED_STEPS * parts
            steps = max(1, -(-length // segments // unit)) * unit
            steps = steps if steps * segments >= length else steps + unit
            if of_parts:
                segments, steps = segments * parts, steps // parts
            return launcher.Scan(
                view(u), view(delta), view(z), view(b), view(c), address(a), address(d), address(bias),
                emulate.Sequences(address(offsets), self.count, length, 0), E, E // G, N, segments, steps, G, int(self.log),
                parts)

        tile = launcher.Tile(element, z is not None, self.softplus, 8 if aligned else 1)
        slices = -(-N // launcher.SLICE)

        def launch(name, tile, blocks, shared_bytes, parameters, **defines):
            emulate.launch(SCAN / f"{name}.cu", f"selective_{name}" if name.startswith("scan") else f"selective_scan_{name}",
                           tile.defines(shared_bytes, **defines), blocks, (1 + (name == "scan_forward")) * tile.threads,
                           shared_bytes, parameters, seed=self.seed)

        def join(segments, start, backward):
            """The state before each segment, or the gradient of that after it."""
            if segments == 1:
                return start
            parts = segments * self.parts
            joined, sums = unknown(self.count, parts, E, N), unknown(self.count, parts, E)
            launch("segment_state", tile, self.count * parts * tile.blocks(E, G) * slices, tile.state_bytes,
                   launcher.SegmentState(scan(segments, True), view(dy), joined.ctypes.data, sums.ctypes.data),
                   BACKWARD=int(backward))
            emulate.launch(SCAN / "segment_join.cu", "selective_scan_segment_join", None, -(-self.count * E * N // 256), 256, 0,
                           launcher.SegmentJoin(joined.ctypes.data, sums.ctypes.data, address(a), address(start), self.count,
                                                E, N, parts, self.parts, int(backward), int(self.log)), seed=self.seed)
            keep.append(joined)
            return joined.reshape(-1)[(self.parts - 1) * E * N if backward else 0:]

        running = lambda segments: address(unknown(self.count * segments, E, N)) if slices > 1 else None
        y, saved = result(), unknown(B * T // SAVED_STEPS + self.count, E, N)
        forward_tile = launcher.Tile(element, z is not None, self.softplus, tile.vector, self.narrow, self.long)
        launch("scan_forward", forward_tile, self.count * self.segments * forward_tile.blocks(E, G), forward_tile.forward_bytes,
               launcher.Forward(scan(self.segments), view(y), address(join(self.segments, initial, False)), address(final),
                                running(self.segments), None if in_place else address(saved)), SAVED_STEPS=SAVED_STEPS,
               SINGLE=int(slices == 1))
        results = {"y": fetch(y, element), "final": final}
        if in_place:
            return results

        du, ddelta, dz = result(), result(), None if z is None else result()
        parts = self.count * self.backward_segments
        d_initial, da, dd, dbias = unknown(*states), unknown(parts, E, N), unknown(parts, E), unknown(parts, E)
        kept = "bf16" if element == "bf16" else "float"
        matrices = emulate.guarded(store(np.full((2, tile.group_blocks(E, G), B, T, G, N), np.nan), kept))
        launch("scan_backward", tile, parts * tile.blocks(E, G), tile.backward_bytes, launcher.Backward(
            scan(self.backward_segments), view(dy), view(du), view(ddelta), view(dz), address(saved),
            address(join(self.backward_segments, final_gradient, True)), address(d_initial), running(self.backward_segments),
            address(da), address(dd), address(dbias), address(matrices), matrices[1].ctypes.data, B * T),
               SINGLE=int(slices == 1), BLOCKS=3)
        results |= {"du": fetch(du, element), "ddelta": fetch(ddelta, element), "d_initial": d_initial}

        vector = 8 if E % 8 == 0 and N % 8 == 0 else 1
        db, dc = (emulate.guarded(store(np.full((B, T, G, N), np.nan), element)) for _ in range(2))
        vectors = {"da": unknown(E, N), "dd": unknown(E), "dbias": unknown(E)}
        if d is None:
            del vectors["dd"]
        pointers = lambda *arrays: (ctypes.c_void_p * len(arrays))(*(address(x) for x in arrays))
        threads = 2 * B * T * G * N // vector + sum(x.size for x in vectors.values()) // (4 if vector == 8 else 1)
        emulate.launch(SCAN / "gradient_sums.cu", "selective_scan_gradient_sums", {"ELEMENT": element, "VECTOR": vector},
                       -(-threads // 256), 256, 0, launcher.GradientSums(
                           address(matrices), pointers(db, dc), pointers(da, dd, dbias),
                           pointers(*(vectors.get(name) for name in ("da", "dd", "dbias"))), address(a) if self.log else None,
                           B * T * G * N, (ctypes.c_int64 * 3)(E * N, E if d is not None else 0, E), tile.group_blocks(E, G),
                           parts), seed=self.seed)
        results |= {"db": fetch(db, element), "dc": fetch(dc, element), **vectors}
        if z is not None:
            results["dz"] = fetch(dz, element)
        return results


class SelectiveScanTests(unittest.TestCase):
    def check(self, case, **options):
        expected, actual = case.expected(), case.run(**options)
        for name, x in actual.items():
            rounded = name in ("y", "du", "ddelta", "dz", "db", "dc", "dbias")
            error, size = (np.sqrt(np.mean(np.square(y))) if y.size else 0 for y in (x - expected[name], expected[name]))
            limit = LIMITS[case.element if rounded else "float"]
            if name == "dbias": limit *= 2  # a sum of what cancels
            self.assertLessEqual(error, limit * size, f"{name}, relative error {error / size if size else error:.1e}")

    def test_lengths(self):
        for T in (1, 2, 7, 8, 9, 31, 32, 33, 64, 100):
            with self.subTest(T=T):
                self.check(Case(T=T, seed=T))

    def test_channels_and_states(self):
        for E, N in ((1, 1), (8, 8), (7, 3), (33, 16), (40, 16), (64, 17), (32, 24), (5, 40), (32, 64), (8, 256)):
            with self.subTest(E=E, N=N):
                self.check(Case(E, N, T=37))

    def test_groups(self):
        for E, G in ((48, 3), (6, 6), (80, 2), (66, 2)):
            with self.subTest(E=E, G=G):
                self.check(Case(E, B=2, G=G, T=35))

    def test_options(self):
        for z in (False, True):
            for softplus in (False, True):
                with self.subTest(z=z, softplus=softplus):
                    self.check(Case(z=z, softplus=softplus))
                    self.check(Case(z=z, softplus=softplus, d=False, bias=False, states=False, B=2))

    def test_elements(self):
        for element in ("bf16", "fp16"):
            for E, N in ((32, 16), (35, 5), (40, 40)):
                with self.subTest(element=element, E=E, N=N):
                    self.check(Case(E, N, element=element, T=70, B=2))

    def test_layouts(self):
        for gap in (8, 3):
            for element in ("float", "bf16"):
                with self.subTest(gap=gap, element=element):
                    self.check(Case(gap=gap, element=element, B=2))

    def test_rates_as_logarithms(self):
        self.check(Case(N=20, T=70, log=True))
        self.check(Case(T=200, segments=3, backward_segments=2, log=True))

    def test_strong_and_tiny_steps(self):
        for strength, shift in ((30.0, 0.0), (1000.0, 0.0), (1.0, -15.0)):
            with self.subTest(strength=strength, shift=shift):
                self.check(Case(strength=strength, shift=shift, T=70))

    def test_packed(self):
        self.check(Case(offsets=[0, 0, 1, 40, 40, 130, 190, 190], T=190, B=1))
        self.check(Case(N=20, offsets=[0, 0, 1, 40, 40, 130, 190, 190], T=190, B=1))

    def test_segments(self):
        for T, segments in ((100, 2), (200, 3), (256, 8), (40, 4)):
            for N in (16, 20):
                with self.subTest(T=T, segments=segments, N=N):
                    self.check(Case(N=N, T=T, B=2, segments=segments, backward_segments=segments, seed=segments))
        self.check(Case(offsets=[0, 0, 1, 70, 70, 190], T=190, segments=3, backward_segments=4, z=False))

    def test_parts_of_segments(self):
        for N, element in ((16, "bf16"), (20, "float")):
            with self.subTest(N=N, element=element):
                self.check(Case(N=N, T=200, B=2, segments=2, backward_segments=3, parts=2, element=element))
        self.check(Case(offsets=[0, 0, 1, 70, 70, 330], T=330, segments=2, backward_segments=2, parts=4, E=40))

    def test_narrow_blocks(self):
        for T in (1, 16, 40, 64, 130):
            with self.subTest(T=T):
                self.check(Case(T=T, narrow=True, E=40))
        self.check(Case(T=70, narrow=True, E=33, N=20))
        self.check(Case(T=200, narrow=True, E=32, segments=3, element="bf16"))
        self.check(Case(offsets=[0, 0, 1, 70, 70, 190], T=190, narrow=True))

    def test_long_tiles(self):
        for T in (1, 40, 64, 150):
            with self.subTest(T=T):
                self.check(Case(T=T, long=True, E=40, element="bf16"))
        self.check(Case(T=130, long=True, N=40, segments=2))
        self.check(Case(offsets=[0, 0, 1, 70, 70, 190], T=190, long=True, E=40))
        for T in (50, 192, 400):
            with self.subTest(T=T):
                self.check(Case(T=T, narrow=True, long=True, E=40, element="bf16"))

    def test_state_in_place(self):
        for T in (1, 3):
            for N in (16, 40):
                self.check(Case(T=T, N=N, B=3), in_place=True)

    def test_schedules(self):
        for seed in range(4):
            self.check(Case(E=48, N=20, T=70, seed=seed, backward_segments=2, segments=2))


if __name__ == "__main__":
    unittest.main()
