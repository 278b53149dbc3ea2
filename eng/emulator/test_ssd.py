"""Tests of Ssd/*.cu. In this folder: /usr/bin/python3 -m unittest test_ssd (the first time some minutes)."""

import ctypes
import unittest

import numpy as np

import emulate
from test_gla_chunks import Scan, Shape, _ints, _pointers, _views
from test_gla_recurrent import GLA, fetch, laid_out, store

SSD = GLA.parent / "Ssd"
STEP_CHUNK, SPAN, STEP_THREADS = 64, 128, 64
TILES = (16, 32, 64, 128, 256)
LIMITS = {"y": 4e-3, "final": 5e-3, "dx": 5e-3, "db": 5e-3, "dc": 5e-3, "ddt": 5e-3, "da": 1e-2, "dbias": 5e-3, "dd": 5e-3,
          "d_initial": 5e-3}  # relative RMS errors


class StepRule(ctypes.Structure):
    """fla::SsdStepRule."""

    _fields_ = [*_pointers("bias", "rates"), ("low", ctypes.c_float), ("high", ctypes.c_float), *_ints("softplus", "is_log")]


class Steps(ctypes.Structure):
    """SsdSteps."""

    _fields_ = [("sequences", emulate.Sequences), *_views("dt"), ("rule", StepRule), *_pointers("steps", "sums"), *_ints("heads", "chunks")]


class ChunkScan(ctypes.Structure):
    """SsdChunkScan."""

    _fields_ = [("shape", Shape), *_views("query", "key", "input", "output", "gate"),
                *_pointers("steps", "sums", "direct", "initial", "local", "decay", "final", "states"),
                *_ints("direct_head", "direct_channel")]


class ChunkBackward(ctypes.Structure):
    """SsdChunkBackward."""

    _fields_ = [("shape", Shape), *_views("b", "c", "x", "grad_output", "grad_b", "grad_c"),
                *_pointers("steps", "sums", "states", "state_grads", "tokens", "products"), ("slots", ctypes.c_int64),
                *_ints("state_values", "state_keys", "heads", "group", "set", "sets")]


class StepsBackward(ctypes.Structure):
    """SsdStepsBackward."""

    _fields_ = [("sequences", emulate.Sequences), *_views("dt", "grad_dt"), ("rule", StepRule), *_pointers("tokens", "products", "totals"),
                ("slots", ctypes.c_int64), *_ints("slices", "heads", "spans")]


class Recurrence(ctypes.Structure):
    """SsdRecurrence."""

    _fields_ = [("sequences", emulate.Sequences), *_views("x", "dt", "b", "c", "z", "y"), ("rule", StepRule),
                *_pointers("direct", "initial", "final"), *_ints("heads", "group", "head_size", "state_size", "direct_head", "direct_channel")]


class SsdCase:
    """A call with random inputs; what it should give, in float64, and what the kernels give, launched as in SsdChunkKernels.cs."""

    def __init__(self, P, N, B=1, T=150, H=2, G=1, rate=1.0, offsets=None, states=True, element="bf16", step_type=None, softplus=True,
                 limit=(-np.inf, np.inf), direct="head", gate=False, layout="dense", seed=0, chunk=64, segments=1, set_heads=None,
                 values=None, keys=None, slice_values=None, stages=2, producers=4, consumers=4, warps=8, hopper=0, log=False):
        random = np.random.default_rng([P, N, T, H, seed])
        self.element, self.step_type, self.layout, self.seed = element, step_type or element, layout, seed
        self.offsets, self.softplus, self.limit = offsets, softplus, limit
        self.count = B if offsets is None else len(offsets) - 1
        normal = lambda *shape: random.standard_normal(shape)
        rounded = lambda x, kind: fetch(store(x, kind), kind)
        self.x, self.dy, self.z = (rounded(normal(B, T, H, P), element) for _ in range(3))
        self.b, self.c = (rounded(normal(B, T, G, N), element) for _ in range(2))
        self.dt = rounded(normal(B, T, H) if softplus else np.exp(normal(B, T, H) - 1), self.step_type)
        self.log, self.rates = log, rounded(-rate * np.exp(normal(H) / 2), "float")
        self.given_rates = rounded(np.log(-self.rates), "float") if log else self.rates
        self.bias = rounded(normal(H) / 2, "float") if softplus else None
        self.direct = None if direct is None else rounded(normal(H) if direct == "head" else normal(H, P), "float")
        self.gate = gate
        state = lambda: rounded(normal(self.count, H, P, N), "float") if states else None
        self.initial, self.final_gradient = state(), state()
        # The tiles of SsdTile.cs, and other ones.
        self.keys, self.values = (next(tile for tile in TILES if tile >= size) for size in (N, P))
        self.values = values or min(self.values, 64 if self.keys > 128 else 128)
        self.slice_keys, self.slice_values = keys or min(self.keys, 128), slice_values or min(self.values, 64)
        self.hopper = hopper
        self.chunk, self.stages, self.producers = chunk, stages, producers
        self.consumers = self.values // 16 if hopper else min(consumers, self.values // 16)
        self.registers = (88, 208) if hopper and self.values == 128 else (0, 0)
        self.segments, self.set_heads, self.warps = segments, set_heads or H // G, warps

    def steps(self):
        """The step sizes, and their derivatives by their inputs."""
        x = self.dt + (0 if self.bias is None else self.bias)
        value, slope = (np.log1p(np.exp(x)), 1 / (1 + np.exp(-x))) if self.softplus else (x, np.ones_like(x))
        return np.clip(value, *self.limit), np.where((value < self.limit[0]) | (value > self.limit[1]), 0, slope)

    def expected(self):
        B, T, H, P = self.x.shape
        G, N = self.b.shape[2:]
        step, slope = self.steps()
        decay = np.exp(np.maximum(step * self.rates, -1000))
        b, c = (np.repeat(v, H // G, 2) for v in (self.b, self.c))
        direct = np.zeros((H, P)) if self.direct is None else np.broadcast_to(self.direct.reshape(H, -1), (H, P))
        y, dx, db, dc, d_step, d_log = (np.zeros(v.shape) for v in (self.x, self.x, b, c, step, step))
        final, d_initial = (np.zeros((self.count, H, P, N)) for _ in range(2))
        outer = lambda u, v: u[..., :, None] * v[..., None, :]
        for s in range(self.count):
            row, first, end = (s, 0, T) if self.offsets is None else (0, self.offsets[s], self.offsets[s + 1])
            state = np.zeros((H, P, N)) if self.initial is None else self.initial[s]
            states = {}
            for t in range(first, end):
                states[t] = state
                state = decay[row, t][:, None, None] * state + outer(step[row, t][:, None] * self.x[row, t], b[row, t])
                y[row, t] = np.einsum("hpn,hn->hp", state, c[row, t]) + direct * self.x[row, t]
            final[s] = state
            gradient = np.zeros_like(state) if self.final_gradient is None else self.final_gradient[s]
            for t in reversed(range(first, end)):
                after = decay[row, t][:, None, None] * states[t] + outer(step[row, t][:, None] * self.x[row, t], b[row, t])
                dc[row, t] = np.einsum("hpn,hp->hn", after, self.dy[row, t])
                gradient = gradient + outer(self.dy[row, t], c[row, t])
                from_state = np.einsum("hpn,hn->hp", gradient, b[row, t])
                dx[row, t] = step[row, t][:, None] * from_state + direct * self.dy[row, t]
                db[row, t] = step[row, t][:, None] * np.einsum("hpn,hp->hn", gradient, self.x[row, t])
                d_step[row, t] = (self.x[row, t] * from_state).sum(-1)
                d_log[row, t] = decay[row, t] * (states[t] * gradient).sum((-1, -2))
                gradient = decay[row, t][:, None, None] * gradient
            d_initial[s] = gradient
        per_group = lambda v: v.reshape(B, T, G, H // G, N).sum(3)
        ddt = (d_step + self.rates * d_log) * slope
        if self.gate:
            y = y * self.z / (1 + np.exp(-self.z))
        shared = {"da": d_log * step * (self.rates if self.log else 1), "dbias": ddt, "dd": (self.x * self.dy).sum(3)}
        # These are sums over tokens, which may cancel: their errors are relative to the larger of the sum and its random part.
        self.sizes = {name: np.sqrt(np.square(v).sum((0, 1)).mean()) for name, v in shared.items()}
        return {"y": y, "final": final, "dx": dx, "db": per_group(db), "dc": per_group(dc), "ddt": ddt, "d_initial": d_initial,
                **{name: v.sum((0, 1)) for name, v in shared.items()}}

    def run(self):
        B, T, H, P = self.x.shape
        G, N = self.b.shape[2:]
        buffers = {}
        misaligned = self.layout in ("sliced",)
        vector = 1 if misaligned else np.gcd.reduce((P, N, 8)) if P * N > 1 else 1

        def keep(name, array):
            buffers[name] = emulate.guarded(array)
            return buffers[name]

        def tensor(name, values, kind):
            part, buffers[name] = laid_out(store(values, kind), self.layout)
            return part

        def empty(name, *shape, kind="float"):
            return keep(name, store(np.full(shape, np.nan), kind))

        def address(array):
            return None if array is None else array.ctypes.data

        def floats(name, values):
            return None if values is None else keep(name, store(values, "float"))

        x, dy, b, c = (tensor(n, v, self.element) for n, v in (("x", self.x), ("dy", self.dy), ("b", self.b), ("c", self.c)))
        z = tensor("z", self.z, self.element) if self.gate else None
        dt = tensor("dt", self.dt[..., None], self.step_type)
        initial, final_gradient, rates, bias, direct = (floats(n, v) for n, v in (
            ("S0", self.initial), ("dST", self.final_gradient), ("rates", self.given_rates), ("bias", self.bias), ("D", self.direct)))
        offsets = None if self.offsets is None else np.array(self.offsets, np.int32)
        length = T if offsets is None else int(np.diff(offsets).max())
        sequences = emulate.Sequences(address(offsets), self.count, length, 0)
        slots, spans = ((self.count * -(-length // size) if offsets is None else T // size + self.count) for size in (STEP_CHUNK, SPAN))
        chunks = -(-length // STEP_CHUNK)

        def shape(heads, group, segments, segment_chunks):
            return Shape(sequences, heads, group, N, P, segments, segment_chunks)

        def launch(kernel, grid, threads, shared, parameters, **defines):
            emulate.launch(SSD / f"{kernel}.cu", f"ssd_{kernel}", defines, grid, threads, shared, parameters, seed=self.seed, buffers=buffers)

        rule = StepRule(address(bias), address(rates), *self.limit, int(self.softplus), int(self.log))
        steps, sums = empty("steps", slots, H, STEP_CHUNK), empty("sums", slots, H, STEP_CHUNK)
        head_blocks = -(-H // (STEP_THREADS // 32))
        launch("steps", (self.count * chunks, head_blocks), STEP_THREADS, 0, Steps(
            sequences, emulate.view(dt), rule, address(steps), address(sums), H, chunks), TYPE=self.step_type, THREADS=STEP_THREADS)

        segment_chunks = -(-(-(-length // self.chunk)) // self.segments)
        segments = -(-(-(-length // self.chunk)) // segment_chunks)
        value_tiles = -(-P // self.values)
        none = emulate.TensorView()
        lines, state_values = self.count * H, value_tiles * self.values

        def scan(backward, query, key, given, output, first, final, states, states_only=0, local=None, decay=None):
            stage = 2 * self.chunk * (self.keys + self.values) + 1024 + 16
            if not states_only:
                stage += 2 * self.chunk * (self.keys + self.chunk + (self.values if self.values > self.keys else 0))
            launch("chunk_scan", (lines * segments, value_tiles), 32 * (self.producers + self.consumers), self.stages * stage, ChunkScan(
                shape(H, H // G, segments, segment_chunks), emulate.view(query), emulate.view(key), emulate.view(given),
                none if output is None else emulate.view(output), emulate.view(z) if self.gate and not backward else none,
                *map(address, (steps, sums, direct, first, local, decay, final, states)), 1 if direct is None or direct.ndim == 1 else P,
                0 if direct is None or direct.ndim == 1 else 1),
                TYPE=self.element, KEY_TILE=self.keys, VALUE_TILE=self.values, CHUNK=self.chunk, VECTOR=vector, STAGES=self.stages,
                MIN_BLOCKS=1, SHARED=self.stages * stage, PRODUCERS=self.producers, CONSUMERS=self.consumers,
                PRODUCER_REGISTERS=self.registers[0], CONSUMER_REGISTERS=self.registers[1], BACKWARD=backward, STATES_ONLY=states_only,
                HOPPER=self.hopper)

        def all_of_scan(backward, query, key, given, output, first, final, states):
            if segments > 1:
                local, decay = empty(f"local {backward}", self.count, H, segments, P, N), empty(f"decay {backward}", self.count, H, segments)
                scan(backward, query, key, given, None, None, None, None, 1, local, decay)
                size = lines * P * N
                emulate.launch(GLA / "segment_scan.cu", "gla_segment_scan", None, -(-size // 256), 256, 0, Scan(
                    *map(address, (local, decay, first)), size, segments, 1, P * N, backward), seed=self.seed)
                first = local
            scan(backward, query, key, given, output, first, final, states)

        saved = lambda name: keep(name, np.full((spans, H, state_values * self.keys), 0x7FFF, np.uint16))
        y, dx = (empty(name, B, T, H, P, kind=self.element) for name in ("y", "dx"))
        final, d_initial = (empty(name, self.count, H, P, N) for name in ("ST", "dS0"))
        states, state_grads = saved("states"), saved("state gradients")
        all_of_scan(0, c, b, x, y, initial, final, states)
        all_of_scan(1, b, c, dy, dx, final_gradient, d_initial, state_grads)

        sets = -(-(H // G) // self.set_heads)
        slices = -(-N // self.slice_keys)
        db, dc = (empty(name, B, T, G * sets, N) for name in ("db", "dc"))
        tokens, products = empty("tokens", slices, slots, H, STEP_CHUNK, 4), empty("products", slices, slots, H)
        col_warps = min(self.warps // (2 if self.slice_keys >= 8 * self.warps else 4), self.slice_keys // 16)
        stage = 384 * self.slice_values + 4 * self.slice_values * self.slice_keys + 1024
        shared = max(self.stages * stage, 128 * self.slice_keys + 16384) + 256 * self.slice_keys + 256 * (min(4, self.warps // 4) + 6 + 2 * col_warps) + 4 * self.warps
        launch("chunk_backward", (self.count * chunks * G * sets, slices), 32 * self.warps, shared, ChunkBackward(
            shape(G * sets, 1, chunks, 1), *map(emulate.view, (b, c, x, dy, db, dc)),
            *map(address, (steps, sums, states, state_grads, tokens, products)), slots * H, state_values, self.keys, H, H // G,
            self.set_heads, sets),
            TYPE=self.element, KEY_TILE=self.slice_keys, VALUE_TILE=self.slice_values, VECTOR=vector, STAGES=self.stages, MIN_BLOCKS=1,
            SHARED=shared, BACKWARD_WARPS=self.warps)

        ddt, totals = empty("ddt", B, T, H, 1, kind=self.step_type), keep("totals", np.zeros((spans, H, 3), np.float32))
        launch("steps_backward", (self.count * -(-length // SPAN), head_blocks), STEP_THREADS, 0, StepsBackward(
            sequences, emulate.view(dt), emulate.view(ddt), rule, *map(address, (tokens, products, totals)), slots * H, slices, H,
            -(-length // SPAN)), TYPE=self.step_type, THREADS=STEP_THREADS)
        per_group = lambda v: v.astype(np.float64).reshape(B, T, G, sets, N).sum(3)
        da, dbias, dd = totals.astype(np.float64).sum(0).T
        return {"y": fetch(y, self.element), "final": final, "dx": fetch(dx, self.element), "db": per_group(db), "dc": per_group(dc),
                "ddt": fetch(ddt, self.step_type)[..., 0], "da": da, "dbias": dbias, "dd": dd, "d_initial": d_initial}


    def run_step_by_step(self):
        """The output, and the final state, written over the initial one."""
        B, T, H, P = self.x.shape
        G, N = self.b.shape[2:]
        kept = {}

        def keep(name, array):
            kept[name] = emulate.guarded(array)
            return kept[name]

        def tensor(name, values, kind):
            part, kept[name] = laid_out(store(values, kind), self.layout)
            return emulate.view(part)

        def address(name, values):
            return None if values is None else keep(name, store(values, "float")).ctypes.data

        y = keep("y", store(np.full((B, T, H, P), np.nan), self.element))
        offsets = None if self.offsets is None else np.array(self.offsets, np.int32)
        length = T if offsets is None else int(np.diff(offsets).max())
        state = address("state", self.initial)
        tile = max(32, 1 << (N - 1).bit_length())
        threads, rows, per_channel = 64, 4, self.direct is not None and self.direct.ndim == 2
        emulate.launch(SSD / "recurrence.cu", "ssd_recurrence", {
            "TYPE": self.element, "STEP_TYPE": self.step_type, "STATE_TILE": tile, "VECTOR": 4 if tile >= 128 and N % 4 == 0 else 1,
            "ROWS": rows, "THREADS": threads}, (self.count * H, -(-P // (threads // 32 * rows))), threads, 0, Recurrence(
                emulate.Sequences(None if offsets is None else offsets.ctypes.data, self.count, length, 0),
                tensor("x", self.x, self.element), tensor("dt", self.dt[..., None], self.step_type), tensor("b", self.b, self.element),
                tensor("c", self.c, self.element), tensor("z", self.z, self.element) if self.gate else emulate.TensorView(),
                emulate.view(y), StepRule(address("bias", self.bias), address("rates", self.given_rates), *self.limit, int(self.softplus), int(self.log)),
                address("D", self.direct), state, state, H, H // G, P, N, P if per_channel else 1, 1 if per_channel else 0), seed=self.seed)
        return {"y": fetch(y, self.element), "final": kept["state"].astype(np.float64)}


class SsdTests(unittest.TestCase):
    def check(self, case, without=()):
        expected, actual = case.expected(), case.run()
        errors = {}
        for name in (name for name in LIMITS if name not in without):
            error, size = (np.sqrt(np.mean(np.square(v))) for v in (actual[name] - expected[name], expected[name]))
            size = max(size, case.sizes.get(name, 0))
            errors[name] = error / size if size else error
        self.assertFalse([name for name, error in errors.items() if not error <= LIMITS[name]],
                         " ".join(f"{name} {error:.1e}" for name, error in errors.items()))

    def test_plain(self):
        self.check(SsdCase(32, 32, B=2, T=200))

    def test_lengths(self):
        for T in (1, 2, 63, 64, 65, 128, 129, 300):
            with self.subTest(T):
                self.check(SsdCase(16, 32, T=T, H=1))

    def test_decays(self):
        for rate in (0.0, 0.01, 8.0, 300.0):
            with self.subTest(rate):
                self.check(SsdCase(32, 32, T=200, rate=rate), without=() if rate < 100 else ("d_initial",))

    def test_rates_as_logarithms(self):
        self.check(SsdCase(32, 32, T=200, rate=3.0, log=True))

    def test_packed(self):
        self.check(SsdCase(32, 32, T=371, offsets=[0, 20, 20, 170, 171, 371]))
        self.check(SsdCase(32, 32, T=371, offsets=[0, 20, 20, 170, 171, 371], segments=2, chunk=32, states=False))

    def test_segments(self):
        self.check(SsdCase(32, 32, B=2, T=300, segments=3))

    def test_groups_of_heads(self):
        self.check(SsdCase(16, 32, T=130, H=6, G=2))
        self.check(SsdCase(16, 32, T=130, H=6, G=2, set_heads=2))

    def test_odd_sizes(self):
        self.check(SsdCase(21, 27, T=130, H=3))
        self.check(SsdCase(24, 40, T=130, H=3, layout="sliced"))

    def test_several_tiles(self):
        self.check(SsdCase(80, 48, T=150, H=2, values=32, keys=32, slice_values=32))
        self.check(SsdCase(64, 64, T=150, H=2, slice_values=32, stages=3))

    def test_products_of_hopper(self):
        self.check(SsdCase(64, 64, T=200, H=2, hopper=1))
        self.check(SsdCase(100, 60, T=200, H=1, chunk=32, segments=2, hopper=1, gate=True, direct="channel"))
        self.check(SsdCase(128, 32, T=150, H=1, hopper=1, seed=1))
        self.check(SsdCase(128, 128, T=300, H=1, hopper=1, stages=3))

    def test_values_that_are_not_finite(self):
        # On Hopper they reach no token before theirs, nor other channels.
        case = SsdCase(64, 64, T=70, H=1, hopper=1, direct=None)
        expected = case.run()["y"]
        case.x[0, 40, 0, 5] = np.inf
        actual = case.run()["y"]
        self.assertFalse(np.isfinite(actual[0, 40:64, 0, 5]).any())
        before, others = np.s_[0, :40, 0, 5], np.s_[..., np.arange(64) != 5]
        self.assertTrue(np.allclose(actual[before], expected[before], rtol=1e-2, atol=1e-2))
        self.assertTrue(np.allclose(actual[others], expected[others], rtol=1e-2, atol=1e-2))

    def test_more_warps(self):
        self.check(SsdCase(64, 64, T=150, H=2, warps=16))

    def test_wide_values(self):
        self.check(SsdCase(64, 16, T=150, H=1))

    def test_short_chunks(self):
        self.check(SsdCase(32, 32, T=270, H=1, segments=2, chunk=32))

    def test_steps(self):
        self.check(SsdCase(32, 32, softplus=False, direct=None, step_type="float"))
        self.check(SsdCase(32, 32, limit=(0.3, 0.9)))

    def test_gate_and_direct_path(self):
        self.check(SsdCase(32, 32, T=100, gate=True, direct="channel"))

    def test_half(self):
        self.check(SsdCase(32, 32, T=150, element="fp16"))

    def test_large(self):
        self.check(SsdCase(128, 128, T=150, H=1, chunk=32))

    def test_recurrence(self):
        for case in (SsdCase(8, 128, B=2, T=1, H=4, G=2, gate=True), SsdCase(13, 21, T=4, element="float", direct="channel"),
                     SsdCase(5, 256, T=9, offsets=[0, 3, 3, 9], element="fp16", limit=(0.3, 0.9), layout="sliced")):
            expected, actual = case.expected(), case.run_step_by_step()
            for name, limit in (("y", 2e-6 if case.element == "float" else 3e-3), ("final", 2e-6)):
                error, size = (np.sqrt(np.mean(np.square(v))) for v in (actual[name] - expected[name], expected[name]))
                self.assertLessEqual(error, limit * size, name)

    def test_schedules(self):
        for seed in range(1, 5):
            with self.subTest(seed=seed):
                self.check(SsdCase(32, 32, T=270, H=2, seed=seed, chunk=32 if seed % 2 else 64))


if __name__ == "__main__":
    unittest.main()
