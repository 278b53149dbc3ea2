"""Tests of the building blocks in Include/fla, by the kernels that the GPU tests launch (FlaSharp.Tests/Gpu/Blocks) and with the
same inputs: numbers made from their indices, whose results are exact. In this folder: /usr/bin/python3 -m unittest test_blocks"""

import ctypes
import unittest

import numpy as np

import emulate

SOURCES = emulate.HERE.parents[1] / "FlaSharp.Tests" / "Kernels" / "Sources"
SHARED_BYTES = 97 << 10
SEEDS = range(3)
bf16, from_bf16 = emulate.to_bf16, emulate.from_bf16
KINDS = {
    "bf16": (bf16, from_bf16),
    "fp16": (lambda x: np.asarray(x, np.float16), lambda x: x.view(np.float16).astype(np.float32)),
}


class Parameters(ctypes.Structure):
    """BlockTest of Blocks/block_test.cuh."""

    _fields_ = [*((name, ctypes.c_void_p) for name in "xyzw"), ("stride", ctypes.c_int64), ("rows", ctypes.c_int),
                ("cols", ctypes.c_int)]


def run(source, entry, threads, defines=None, *, x=None, y=None, z=None, w=None, stride=0, rows=0, cols=0, first=0, seed=0):
    """Runs one block; what it writes comes back in z and w. x and w begin at their element `first`."""
    arrays = {name: array for name, array in (("x", x), ("y", y), ("z", z), ("w", w)) if array is not None}
    memory = {name: emulate.guarded(array) for name, array in arrays.items()}
    address = lambda name, offset=0: memory[name].ctypes.data + offset * memory[name].itemsize if name in memory else None
    parameters = Parameters(address("x", first), address("y"), address("z"), address("w", first), stride, rows, cols)
    emulate.launch(SOURCES / "Blocks" / f"{source}.cu", entry, defines, 1, threads, SHARED_BYTES, parameters,
                   extra_includes=[SOURCES], seed=seed, buffers=memory)
    for name in ("z", "w"):
        if name in memory:
            arrays[name][...] = memory[name]


def codes(*shape, step=7, modulus=7):
    """Small whole numbers around 0, from indices."""
    return (np.arange(np.prod(shape)).reshape(shape) * step % modulus - modulus // 2).astype(np.float32)


def nans(*shape):
    return np.full(shape, np.nan, np.float32)


def natural(whole):
    """Natural log-decays whose float32 product with log2(e) is just 0, -1, -2, -4 or -8."""
    log2e, result = np.float32(1.4426950408889634), {0: np.float32(0)}
    for n in (1, 2, 4, 8):
        guess = np.float32(n * np.log(2))
        near = [guess, np.nextafter(guess, np.float32(0)), np.nextafter(guess, np.float32(9))]
        result[n] = next(-g for g in near if g * log2e == n)
    return np.vectorize(lambda n: result[-n], otypes=[np.float32])(whole)


def decays(C, K, period=5):
    """Whole log2 decays [C, K]."""
    i, k = np.arange(C)[:, None], np.arange(K)[None, :]
    return np.where((3 * i + k) % period == 0, -(1 << (i + k) % 3), 0)


class SharedTileTests(unittest.TestCase):
    def test_addresses(self):
        for rows, cols in ((16, 16), (32, 32), (64, 64), (64, 256)):
            z = np.zeros((2, rows, cols), np.int32)
            run("shared_tile", "tile_addresses", 128, {"TYPE": "bf16", "TILE_ROWS": rows, "TILE_COLS": cols, "VECTOR": 8}, z=z)
            i, j = np.arange(rows)[:, None], np.arange(cols)[None, :]
            panel = min(cols, 64)
            chunk = j % panel // 8 ^ i * panel // 64 % (panel // 8)  # of Hopper's swizzles: exchanged by the line of 128 bytes
            np.testing.assert_array_equal(z[0], (j // panel * rows + i) * panel * 2 + chunk * 16 + j % 8 * 2)
            np.testing.assert_array_equal(z[1], (i * cols + j) * 4)

    def test_copy(self):
        for cols in (16, 128):
            for vector, rows, count in ((8, 64, cols), (8, 41, cols - 8), (8, 1, 8), (8, 0, 8), (4, 33, cols - 4),
                                        (2, 64, cols - 6), (1, 64, cols), (1, 41, cols - 3), (1, 7, 1)):
                for direction in (1, -1):
                    with self.subTest(cols=cols, vector=vector, rows=rows, count=count, direction=direction):
                        self.check_copy(cols, vector, rows, count, direction)

    def check_copy(self, cols, vector, rows, count, direction):
        stride = count + 16
        x = np.arange(70 * stride, dtype=np.uint16).reshape(70, stride)
        z, w = np.full((64, cols), 9, np.uint16), np.full((70, stride), 65535, np.uint16)
        first = 0 if direction > 0 else 69
        defines = {"TYPE": "bf16", "TILE_ROWS": 64, "TILE_COLS": cols, "VECTOR": vector}
        run("shared_tile", "tile_copy", 128, defines, x=x, z=z, w=w, stride=direction * stride, rows=rows, cols=count,
            first=first * stride, seed=rows)
        copied = x[::direction][3:3 + rows, :count]
        tile, target = np.zeros_like(z), np.full_like(w, 65535)
        tile[:rows, :count] = copied
        target[::direction][3:3 + rows, 8:8 + count] = copied
        np.testing.assert_array_equal(z, tile)
        np.testing.assert_array_equal(w, target)

    def test_to_bf16(self):
        x, z = codes(64, 64, modulus=513) / 8, np.zeros((64, 64), np.uint16)
        defines = {"TYPE": "fp16", "TILE_ROWS": 64, "TILE_COLS": 64, "VECTOR": 8}
        run("shared_tile", "tile_to_bf16", 128, defines, x=np.float16(x), z=z)
        np.testing.assert_array_equal(z, bf16(x))


class MatrixTests(unittest.TestCase):
    def test_products(self):
        x, y = codes(64, 64, step=5, modulus=11), codes(64, 64, step=3, modulus=13)
        a, b = x[16:32, 32:48], y[16:32, 32:48]
        for kind, (store, _) in KINDS.items():
            z = nans(4, 16, 16)
            run("matrices", "matrix_products", 32, {"TYPE": kind}, x=store(x), y=store(y), z=z)
            np.testing.assert_array_equal(z, [a @ b, a.T @ b, a @ b.T, a.T @ b.T])

    def test_a_product_becomes_an_operand(self):
        x, y, z = codes(64, 64, step=5, modulus=3), codes(64, 64, step=2, modulus=3), nans(16, 16)
        a, b = x[16:32, 32:48], y[16:32, 32:48]
        run("matrices", "chained_products", 32, {"TYPE": "bf16"}, x=bf16(x), y=bf16(y), z=z)
        np.testing.assert_array_equal(z, a @ b @ b + a @ b)

    def test_transpose(self):
        x, y = np.arange(64, dtype=np.uint16).reshape(8, 8), np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
        z, w = np.zeros_like(x), np.zeros((4, 8, 8), np.uint16)
        run("matrices", "transposed_matrices", 32, {"TYPE": "bf16"}, x=x, y=y, z=z, w=w)
        np.testing.assert_array_equal(z, x.T)
        np.testing.assert_array_equal(w, [y[16 + i:24 + i, 32 + j:40 + j] for j in (0, 8) for i in (0, 8)])


class WarpgroupTests(unittest.TestCase):
    # Columns and depth, for every width of a panel; whether the left operand is in registers, and each operand transposed.
    FORMS = ((32, 64, 0, 0, 0), (256, 32, 0, 0, 0), (64, 16, 0, 0, 0), (32, 32, 0, 0, 1), (128, 64, 0, 0, 1), (64, 128, 0, 1, 0),
             (64, 64, 0, 1, 1), (256, 32, 0, 1, 1), (32, 128, 1, 0, 0), (128, 16, 1, 1, 0), (256, 64, 1, 0, 1))

    def test_products(self):
        for form in self.FORMS:
            cols, depth, registers, a_transposed, b_transposed = form
            a, b = codes(128, depth, step=5, modulus=11), codes(depth, cols, step=3, modulus=13)
            x, y = a.T if a_transposed else a, b if b_transposed else b.T
            defines = {"PRODUCT_COLS": cols, "PRODUCT_DEPTH": depth, "LEFT_REGISTERS": registers,
                       "LEFT_TRANSPOSED": a_transposed, "RIGHT_TRANSPOSED": b_transposed}
            for seed in SEEDS:
                with self.subTest(form=form, seed=seed):
                    z = nans(128, cols)
                    run("warpgroup_products", "warpgroup_products", 256, defines, x=bf16(x), y=bf16(y), z=z, seed=seed)
                    np.testing.assert_array_equal(z, 1 + 2 * a @ b)

    def test_stored_matrices(self):
        x, z = np.arange(256, dtype=np.uint16).reshape(16, 16), np.zeros((16, 16), np.uint16)
        defines = {"PRODUCT_COLS": 32, "PRODUCT_DEPTH": 16, "LEFT_REGISTERS": 0, "LEFT_TRANSPOSED": 0,
                   "RIGHT_TRANSPOSED": 0}
        run("warpgroup_products", "stored_matrices", 32, defines, x=x, z=z)
        np.testing.assert_array_equal(z, x.T)


class WarpTileTests(unittest.TestCase):
    def test_product(self):
        for rows, cols, depth in ((64, 16, 64), (64, 64, 32), (64, 256, 16), (16, 16, 16)):
            x, y = codes(rows, depth, step=5, modulus=11), codes(depth, cols, step=3, modulus=13)
            z, w = nans(rows, cols), np.zeros((rows, cols), np.int32)
            defines = {"PRODUCT_ROWS": rows, "PRODUCT_COLS": cols, "PRODUCT_DEPTH": depth, "BLOCK_WARPS": 8}
            run("warp_tile", "warp_tile_product", 256, defines, x=bf16(x), y=bf16(y), z=z, w=w)
            np.testing.assert_array_equal(z, 2 * x @ y)
            i, j = np.arange(rows)[:, None], np.arange(cols)[None, :]
            np.testing.assert_array_equal(w, i * cols * 4 + (j // 8 ^ i % min(8, cols // 8)) * 32 + j % 8 * 4)


class TransposedStateTests(unittest.TestCase):
    def test_update(self):
        for K, tiles, keys, values, given in ((16, 1, 16, 32, True), (32, 2, 29, 63, True), (64, 1, 64, 17, False)):
            V = 32 * tiles
            x, k, v = codes(keys, values, step=3, modulus=17) * 4, codes(32, K, step=5), codes(32, V, step=3)
            z, w = nans(keys, values), np.zeros((V // 8, K // 8, 8, 8), np.uint16)
            run("transposed_state", "state_update", 64, {"KEYS": K, "TILES": tiles}, x=x if given else None,
                y=np.concatenate((bf16(k).ravel(), bf16(v).ravel())), z=z, w=w, rows=keys, cols=values)
            state = np.zeros((K, V), np.float32)
            if given:
                state[:keys, :values] = x
            factors = 1 / (1 << np.arange(K) % 4)[:, None]
            state = state * factors + k.T @ v
            np.testing.assert_array_equal(z, state[:keys, :values])
            np.testing.assert_array_equal(w, bf16((state * factors).T).reshape(V // 8, 8, K // 8, 8).swapaxes(1, 2))


class ChunkGatesTests(unittest.TestCase):
    SHAPES = ((64, 16, 128), (64, 256, 128), (32, 128, 256))
    TYPED_SHAPES = (("fp16", SHAPES[0]), *(("bf16", shape) for shape in SHAPES))

    @staticmethod
    def launch(shape, entry, kind="bf16", **arrays):
        C, K, threads = shape
        run("chunk_gates", entry, threads, {"TYPE": kind, "CHUNK": C, "KEYS": K, "BLOCK_THREADS": threads}, **arrays)

    def test_sums(self):
        for C, K, threads in self.SHAPES:
            g = decays(C, K)
            x = natural(g)
            x[1, 0], g[1, 0] = -np.inf, -150  # a reset
            for strong in (True, False):
                if not strong:
                    x[1, 0], g[1, 0] = 0, 0
                z, w = nans(C + 2, K), np.zeros(threads, np.int32)
                self.launch((C, K, threads), "gate_sums", x=x, z=z, w=w)
                sums = g.cumsum(0)
                np.testing.assert_array_equal(z, [*sums, sums[C // 2 - 1], sums[-1]])
                np.testing.assert_array_equal(w, int(strong))

    def test_scale(self):
        for kind, (C, K, threads) in self.TYPED_SHAPES:
            g, y, z = decays(C, K), codes(C, K, step=5, modulus=11), np.zeros((2, C, K), np.uint16)
            self.launch((C, K, threads), "gate_scale", kind, x=natural(g), y=KINDS[kind][0](y), z=z)
            sums = g.cumsum(0)
            expected = [3 * y * 2.0 ** (sums - sums[C // 2 - 1]), y * 2.0 ** (sums[-1] - sums)]
            np.testing.assert_array_equal(from_bf16(z), expected)

    def test_levels(self):
        for kind, (C, K, threads) in self.TYPED_SHAPES:
            g, y = decays(C, K), codes(2, C, K, step=5, modulus=11)
            z = np.zeros((C.bit_length() - 1, C, K), np.uint16)
            self.launch((C, K, threads), "gate_levels", kind, x=natural(g), y=KINDS[kind][0](y), z=z)
            sums, i = g.cumsum(0), np.arange(C)
            for level, operand in enumerate(from_bf16(z)):
                half = C >> level + 1
                border = sums[i // (2 * half) * 2 * half + half - 1]
                query = (i % (2 * half) >= half)[:, None]
                expected = np.where(query, 2 * y[0] * 2.0 ** (sums - border), y[1] * 2.0 ** (border - sums))
                np.testing.assert_array_equal(operand, expected)

    def test_sums_to_end(self):
        for C, K, threads in self.SHAPES:
            y, z = codes(C, K, step=5, modulus=101), nans(C, K)
            self.launch((C, K, threads), "gate_sums_to_end", y=y, z=z)
            np.testing.assert_array_equal(z, y[::-1].cumsum(0)[::-1] + 100)


class PairRowsTests(unittest.TestCase):
    C = 64

    def pairs(self, entry, kind, K, x, y, w=None, threads=128):
        z = np.zeros((self.C, self.C), np.uint16)
        run("pair_rows", entry, threads, {"TYPE": kind, "KEYS": K, "BLOCK_THREADS": threads}, x=x, y=y, z=z, w=w)
        return z

    def test_products(self):
        i, j = np.arange(self.C)[:, None], np.arange(self.C)[None, :]
        for K in (16, 64):
            x, y = codes(self.C, K, step=5), codes(self.C, K, step=3, modulus=5)
            for threads in (128, 256, 512):
                w = nans(self.C)
                z = self.pairs("pair_products", "bf16", K, bf16(x), bf16(y), w, threads)
                np.testing.assert_array_equal(z, bf16(np.tril(x @ y.T)))
                np.testing.assert_array_equal(w, (x * y).sum(1))
            for kind, (store, _) in KINDS.items():
                expected = 1 + np.where((i // 16 >= j // 16) & ((i + j) % 2 == 1), 2 * x @ y.T, 0)
                np.testing.assert_array_equal(self.pairs("pair_sums", kind, K, store(x), store(y)), bf16(expected))

    def test_splitting(self):
        for K in (16, 128):
            g = np.where(decays(self.C, K, period=13) < 0, -1, 0)
            sums = g.cumsum(0)
            for kind, (store, _) in KINDS.items():
                q, k = y = codes(2, self.C, K, step=5)
                expected = np.einsum("ik,jk,ijk->ij", q, k, 2.0 ** np.minimum(sums[:, None] - sums[None], 0))
                for threads in (128, 256):
                    z = self.pairs("split_pairs", kind, K, natural(g), store(y), threads=threads)
                    np.testing.assert_array_equal(z, bf16(np.tril(expected)))


class PipelineTests(unittest.TestCase):
    def test_chunks_arrive_whole_and_in_order(self):
        for stages in (2, 3):
            for chunks in (1, 2, 3, 4, 9):
                for seed in SEEDS:
                    x = np.arange(chunks * 256, dtype=np.int32).reshape(chunks, 256)
                    z = np.zeros_like(x)
                    run("pipeline", "pipeline", 160, {"STAGES": stages}, x=x, z=z, rows=chunks, seed=seed)
                    np.testing.assert_array_equal(z, x + np.arange(chunks)[:, None] % 2 * 1000000)

    def test_shares_of_registers(self):
        def launch(producers, consumers, blocks=1):
            source = f"""
                #include "fla/chunk_pipeline.cuh"
                struct None {{ int none; }};
                extern "C" __global__ void __launch_bounds__(384, {blocks}) shares(const __grid_constant__ None p) {{
                    fla::ChunkPipeline<3, 128, 256, 0>::run<{producers}, {consumers}, {blocks}>([] {{}}, [] {{}});
                }}"""
            emulate.launch(source, "shares", None, 1, 384, 48, ctypes.c_int(0))

        for shares in ((88, 208), (200, 152), (0, 0), (0, 168), (0, 0, 2), (80, 80, 2)):  # 168 for each thread, 80 of two blocks
            launch(*shares)
        for shares in ((96, 208), (0, 176), (88, 208, 2), (88, 80, 2)):
            with self.assertRaisesRegex(emulate.EmulatorError, "more registers than the block has"):
                launch(*shares)
        for shares in ((87, 208), (16, 208)):
            with self.assertRaisesRegex(emulate.EmulatorError, "a multiple of 8"):
                launch(*shares)

    def test_named_barriers(self):
        for flag in (-1, 0, 63, 64, 159):
            for seed in SEEDS:
                z, w = np.zeros(96, np.int32), np.zeros(160, np.int32)
                run("pipeline", "named_barriers", 160, {"STAGES": 2}, z=z, w=w, rows=flag, seed=seed)
                np.testing.assert_array_equal(z, 64 * 65 // 2 + np.arange(64, 160))
                np.testing.assert_array_equal(w, [int(flag >= 0 and (i < 64) == (flag < 64)) for i in range(160)])


class MbarrierTests(unittest.TestCase):
    def test_phases(self):
        producers, consumers = np.arange(64), np.arange(96)
        for rounds in (1, 2, 9):
            for seed in SEEDS:
                z = np.zeros((rounds, 96), np.int32)
                run("mbarrier", "mbarrier_phases", 160, z=z, rows=rounds, seed=seed)
                n = np.arange(rounds)[:, None]
                np.testing.assert_array_equal(z, (1000 * n + producers).sum(1)[:, None] + consumers)


class TmaTests(unittest.TestCase):
    class Parameters(ctypes.Structure):
        """TmaTest of Blocks/tma.cu."""

        _fields_ = [("map", emulate.TensorMap), ("z", ctypes.c_void_p), *((name, ctypes.c_int) for name in ("head", "time", "batch")),
                    ("unused", ctypes.c_int * 11)]

    def test_tiles(self):
        for rows, cols, size in ((64, 64, 64), (128, 256, 200), (64, 32, 32), (8, 16, 16)):
            time = 3 * rows // 2 + 3
            whole = emulate.guarded(bf16(codes(2, time, 3, size + 8, modulus=251)))
            z = emulate.guarded(bf16(nans(2 * rows, cols)))
            part = whole[..., :size]
            parameters = self.Parameters(emulate.tensor_map(part, min(64, cols), rows), z.ctypes.data, 1, 3, 1)
            emulate.launch(SOURCES / "Blocks" / "tma.cu", "copied_tiles", {"TILE_ROWS": rows, "TILE_COLS": cols}, 1, 128, SHARED_BYTES,
                           parameters, extra_includes=[SOURCES])
            expected = np.zeros((2 * rows, cols), np.float32)
            expected[:time - 3, :size] = from_bf16(part[1, 3:, 1])[:2 * rows]
            np.testing.assert_array_equal(from_bf16(z), expected)


class NumberTests(unittest.TestCase):
    def test_functions(self):
        nan, inf = np.nan, np.inf
        x = np.array([0, -1, 3, -20, 0.5, -0.3, -126, -127, -150, -inf, inf, nan, 2, nan], np.float32)
        y = np.array([1, -2, 3, inf, -inf, 0, 0, 0, -149, 0, 0, 5, nan, nan], np.float32)
        z, w = nans(len(x)), nans(len(x))
        run("numbers", "functions", 256, {"TYPE": "bf16"}, x=x, y=y, z=z, w=w, rows=len(x))
        expected = np.where(x < -126, 0, 2.0 ** x.astype(np.float64))
        np.testing.assert_allclose(z, expected, rtol=2.0 ** -21, atol=0)
        np.testing.assert_array_equal(w, np.maximum(x, y))

    def test_conversions(self):
        bits = np.arange(1 << 16, dtype=np.uint16)
        for kind, (store, load) in KINDS.items():
            x = load(bits)
            usual = np.where(np.isfinite(x), x, 1)
            y = usual * np.float32(1 + 2.0 ** -9) + np.float32(1e-7)  # some between two neighbours
            z, w = nans(1 << 16), np.zeros(1 << 16, np.uint16)
            run("numbers", "conversions", 256, {"TYPE": kind}, x=bits, y=y, z=z, w=w, rows=1 << 16)
            np.testing.assert_array_equal(z, x)
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(w, store(y).view(np.uint16))


class SumTests(unittest.TestCase):
    def test_lines(self):
        for lanes, threads in ((1, 64), (4, 128), (32, 128), (256, 256)):
            x, z = codes(3, threads, step=5, modulus=101), nans(3, threads)
            run("line_sums", "line_sums", threads, {"LANES": lanes, "THREADS": threads}, x=x, z=z)
            np.testing.assert_array_equal(z, x.reshape(3, -1, lanes).sum(2).repeat(lanes, 1))

    def test_rows(self):
        for rows, thread_columns, warps in ((16, 2, 2), (64, 2, 4), (128, 4, 2), (512, 4, 2)):
            row_lanes = rows // (4 if rows <= 16 else 8 if rows <= 128 else rows // 16)
            columns = 32 // row_lanes * thread_columns * warps
            x, z, w = codes(row_lanes, 4, columns, step=5, modulus=101), nans(4, columns), nans(32 * warps)
            defines = {"ROWS": rows, "THREAD_COLUMNS": thread_columns, "WARPS": warps, "STEPS": 8}
            run("row_sums", "row_sums", 32 * warps, defines, x=x, z=z, w=w)
            np.testing.assert_array_equal(z, x.sum(0))
            lane, warp = np.arange(32 * warps) % 4, np.arange(32 * warps) // 32
            np.testing.assert_array_equal(w, 8 * (32 * warp + lane) + 4 * 28)


if __name__ == "__main__":
    unittest.main()
