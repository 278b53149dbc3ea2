"""Tests of the emulator itself. In this folder: /usr/bin/python3 -m unittest test_emulator (needs g++, addr2line and numpy)."""

import ctypes
import time
import unittest

import numpy as np

import emulate
from emulate import EmulatorError


class Pointers(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("z", ctypes.c_void_p), ("n", ctypes.c_int)]


HEADER = """
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"
using namespace fla;
struct Params { void* x; void* y; void* z; int n; };
"""


def run(body, x=None, y=None, z=None, n=0, *, helpers="", grid=1, threads=32, shared=0, defines=None, **more):
    signature = f'extern "C" __global__ void __launch_bounds__({threads}) kernel(const __grid_constant__ Params p)'
    source = f"{HEADER}{helpers}\n{signature} {{\n{body}\n}}\n"
    address = lambda array: None if array is None else array.ctypes.data
    emulate.launch(source, "kernel", defines, grid, threads, shared, Pointers(address(x), address(y), address(z), n), **more)


class MatrixTests(unittest.TestCase):
    MMA = """
    int l = threadIdx.x, r = l / 4, c = 2 * (l % 4);
    using T = ELEMENT;
    const T* a = (const T*)p.x; const T* b = (const T*)p.y; float* d = (float*)p.z;
    auto pair = [](T low, T high) { return (u32)high.bits << 16 | low.bits; };
    auto of_a = [&](int i, int j) { return pair(a[16 * i + j], a[16 * i + j + 1]); };
    auto of_b = [&](int i, int j) { return pair(b[8 * i + j], b[8 * (i + 1) + j]); };
    float acc[4] = {d[8 * r + c], d[8 * r + c + 1], d[8 * (r + 8) + c], d[8 * (r + 8) + c + 1]};
    u32 fragment[4] = {of_a(r, c), of_a(r + 8, c), of_a(r, c + 8), of_a(r + 8, c + 8)};
    mma_m16n8k16<T>(acc, fragment, of_b(c, r), of_b(c + 8, r));
    d[8 * r + c] = acc[0]; d[8 * r + c + 1] = acc[1]; d[8 * (r + 8) + c] = acc[2]; d[8 * (r + 8) + c + 1] = acc[3];
    """

    def test_mma(self):
        generator = np.random.default_rng(1)
        a, b, d = (generator.standard_normal(shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
        for name, store, load in (("bf16", emulate.to_bf16, emulate.from_bf16),
                                  ("fp16", lambda x: x.astype(np.float16), lambda x: x.astype(np.float32))):
            with self.subTest(name):
                x, y, z = store(a), store(b), d.copy()
                run(self.MMA, x, y, z, defines={"ELEMENT": name})
                np.testing.assert_allclose(z, d + load(x).astype(np.float64) @ load(y), rtol=0, atol=2e-6)

    def test_short_mma(self):
        generator = np.random.default_rng(1)
        a, b = (generator.standard_normal(shape).astype(np.float32) for shape in ((16, 16), (16, 8)))
        x, y, z = emulate.to_bf16(a), emulate.to_bf16(b), np.zeros((16, 8), np.float32)
        whole = "mma_m16n8k16<T>(acc, fragment, of_b(c, r), of_b(c + 8, r));"
        assert whole in self.MMA
        run(self.MMA.replace(whole, "u32 half[2] = {fragment[0], fragment[1]}; mma_m16n8k8<bf16>(acc, half, of_b(c, r));"),
            x, y, z, defines={"ELEMENT": "bf16"})
        expected = emulate.from_bf16(x)[:, :8].astype(np.float64) @ emulate.from_bf16(y)[:8]
        np.testing.assert_allclose(z, expected, rtol=0, atol=2e-6)

    def check_ldmatrix(self, function, expected):
        x = np.arange(256, dtype=np.uint16)
        y = np.zeros((32, 4, 2), np.uint16)
        run(f"""
        u16* s = &shared_memory_as<u16>();
        for (int i = threadIdx.x; i < 256; i += 32) s[i] = ((u16*)p.x)[i];
        __syncwarp();
        u32 r[4];
        {function}(r, shared_address(s + 8 * threadIdx.x));
        for (int i = 0; i < 4; i++) ((u32*)p.y)[4 * threadIdx.x + i] = r[i];
        """, x, y, shared=512)
        for lane in range(32):
            for matrix in range(4):
                for i in range(2):
                    self.assertEqual(y[lane, matrix, i], 64 * matrix + expected(lane // 4, 2 * (lane % 4) + i))

    def test_ldmatrix(self):
        self.check_ldmatrix("ldmatrix_x4", lambda major, minor: 8 * major + minor)

    def test_ldmatrix_trans(self):
        self.check_ldmatrix("ldmatrix_x4_trans", lambda major, minor: 8 * minor + major)

    def test_transpose(self):
        x = np.arange(64, dtype=np.uint16).reshape(8, 8)
        y = np.zeros_like(x)
        run("((u32*)p.y)[threadIdx.x] = transpose_8x8(((u32*)p.x)[threadIdx.x]);", x, y)
        np.testing.assert_array_equal(y, x.T)

    def test_ldmatrix_misaligned(self):
        with self.assertRaisesRegex(EmulatorError, r"ldmatrix_x4 of 16 bytes at the shared address \d+ at .*\.cu:\d+"):
            run("u32 r[4]; ldmatrix_x4(r, shared_memory() + 8 * threadIdx.x);", shared=512)

    def test_ldmatrix_outside(self):
        with self.assertRaisesRegex(EmulatorError, r"ldmatrix_x4 of 16 bytes at 496, outside of the block's shared memory"):
            run("u32 r[4]; ldmatrix_x4(r, shared_memory() + 16 * threadIdx.x);", shared=496)


class ConversionTests(unittest.TestCase):
    VALUES = np.array([0.0, -0.0, 1.0, 1.00390625, 1.01171875, 65504, 65520, 1e-8, 6e-8, 3e38, 3.4e38, np.inf, -np.inf, np.nan],
                      np.float32)

    def test_16_bits(self):
        for name, store in (("bf16", emulate.to_bf16), ("fp16", lambda x: x.astype(np.float16).view(np.uint16))):
            with self.subTest(name), np.errstate(over="ignore"):
                y = np.zeros(len(self.VALUES), np.uint16)
                z = np.zeros(len(self.VALUES), np.float32)
                run("""
                using T = ELEMENT;
                for (int i = threadIdx.x; i < p.n; i += 32) {
                    T t = from_float<T>(((float*)p.x)[i]);
                    ((T*)p.y)[i] = t;
                    ((float*)p.z)[i] = to_float(t);
                }
                """, self.VALUES, y, z, len(y), defines={"ELEMENT": name})
                expected = store(self.VALUES)
                expected[np.isnan(self.VALUES)] = 0x7FFF
                np.testing.assert_array_equal(y, expected)
                back = emulate.from_bf16(y) if name == "bf16" else y.view(np.float16).astype(np.float32)
                np.testing.assert_array_equal(z, back)

    def test_pow2_and_max(self):
        x = np.array([0, 1, -1, 0.5, -np.inf, -126, -127, -1e30, np.nan, 200], np.float32)
        y, z = np.zeros_like(x), np.zeros_like(x)
        run("if (threadIdx.x < p.n) { float v = ((float*)p.x)[threadIdx.x]; ((float*)p.y)[threadIdx.x] = pow2(v);"
            "((float*)p.z)[threadIdx.x] = max_nan(v, 0.f); }", x, y, z, len(x))
        np.testing.assert_allclose(y, [1, 2, 0.5, np.sqrt(2), 0, 2.0**-126, 0, 0, np.nan, np.inf], rtol=1e-6)
        np.testing.assert_array_equal(z, [0, 1, 0, 0.5, 0, 0, 0, 0, np.nan, 200])


class SharedMemoryTests(unittest.TestCase):
    def test_load_and_store(self):
        for element, size in (("u16", 2), ("float", 4), ("float2", 8), ("uint4", 16)):
            with self.subTest(element):
                x = np.random.default_rng(size).integers(0, 256, (2, 32, size), np.uint8)
                y, z = np.zeros_like(x), np.zeros_like(x[0])
                run("""
                using T = ELEMENT;
                __shared__ T fixed[32];
                int t = threadIdx.x;
                shared_store(shared_memory() + (u32)sizeof(T) * t, ((T*)p.x)[t]);
                shared_store(shared_address(fixed + t), ((T*)p.x)[32 + t]);
                __syncwarp();
                ((T*)p.y)[t] = shared_load<T>(shared_memory() + (u32)sizeof(T) * (31 - t));
                ((T*)p.y)[32 + t] = shared_load<T>(shared_address(fixed) + (u32)sizeof(T) * (31 - t));
                ((T*)p.z)[t] = (&shared_memory_as<T>())[t];
                """, x, y, z, shared=512, defines={"ELEMENT": element})
                np.testing.assert_array_equal(y, x[:, ::-1])
                np.testing.assert_array_equal(z, x[0])

    def check_addresses(self, name, access):
        for element, offset, text in (("u16", 3, "2 bytes at the shared address 3 "),
                                      ("float", 6, "4 bytes at the shared address 6 "),
                                      ("float2", 4, "8 bytes at the shared address 4 "),
                                      ("uint4", 8, "16 bytes at the shared address 8 "),
                                      ("float", 1024, "4 bytes at 1024, outside .* shared memory: 1024 bytes from 0 on"),
                                      ("uint4", -16, "16 bytes at 4294967280, outside of the block's shared memory")):
            with self.subTest(element, offset=offset), self.assertRaisesRegex(EmulatorError, rf"{name} of {text}.*\.cu:\d+"):
                run(access, y=np.zeros(4, np.uint32), n=offset, shared=1024, defines={"ELEMENT": element})

    def test_load_addresses(self):
        self.check_addresses("shared_load", "*(ELEMENT*)p.y = shared_load<ELEMENT>(shared_memory() + p.n);")

    def test_store_addresses(self):
        self.check_addresses("shared_store", "shared_store(shared_memory() + p.n, ELEMENT());")

    def test_address_of_other_memory(self):
        with self.assertRaisesRegex(EmulatorError, r"not in the block's shared memory"):
            run("*(u32*)p.x = shared_address(p.x);", np.zeros(4, np.uint32), shared=1024)

    def test_opaque(self):
        x, y = np.arange(32, dtype=np.int32) - 7, np.zeros(32, np.int32)
        run("int t = opaque((int)threadIdx.x); opaque((int*)p.y)[t] = opaque(((int*)p.x)[t]);", x, y)
        np.testing.assert_array_equal(y, x)


class CopyTests(unittest.TestCase):
    COPY = """
    float* s = &shared_memory_as<float>();
    int t = threadIdx.x;
    copy_async<SIZE>(shared_memory() + SIZE * t, (float*)p.x + SIZE / 4 * t, t < p.n);
    copy_async_commit();
    copy_async<SIZE>(shared_memory() + SIZE * (64 + t), (float*)p.x + SIZE / 4 * t, true);
    copy_async_commit();
    copy_async_wait<WAIT>();
    __syncthreads();
    for (int i = 0; i < SIZE / 4; i++) ((float*)p.y)[SIZE / 4 * t + i] = s[SIZE / 4 * (63 - t) + i];
    """

    def test_zero_fill(self):
        for size in (4, 8, 16):
            for wait in (0, 1):
                for seed in range(6):
                    with self.subTest(size=size, wait=wait, seed=seed):
                        x = np.arange(1, 16 * size + 1, dtype=np.float32)
                        y = np.zeros_like(x)
                        run(self.COPY, x, y, n=50, threads=64, shared=128 * size, seed=seed, buffers={"x": x},
                            defines={"SIZE": size, "WAIT": wait})
                        expected = np.where(np.arange(64)[:, None] < 50, x.reshape(64, -1), 0)
                        np.testing.assert_array_equal(y.reshape(64, -1), expected[::-1])

    def test_missing_wait_shows(self):
        wrong = 0
        for seed in range(12):
            x = np.arange(256, dtype=np.float32)
            y = np.zeros_like(x)
            run(self.COPY, x, y, n=64, threads=64, shared=2048, seed=seed, defines={"SIZE": 16, "WAIT": 2})
            wrong += np.isnan(y).any()
        self.assertGreater(wrong, 3)

    def test_bad_addresses(self):
        x = np.zeros(64, np.float32)
        for arguments, text in (("shared_memory() + 8, p.x", "copy_async of 16 bytes at the shared address 8 "),
                                ("shared_memory(), (char*)p.x + 4", "from global memory: address .* not aligned to 16"),
                                ("shared_memory() + 1024, p.x", "copy_async of 16 bytes at 1024, outside of the block's shared"),
                                ("shared_memory(), (char*)p.x + 256", "outside of all buffers; nearest is values .*byte 256")):
            body = f"copy_async<16>({arguments}, true);"
            with self.subTest(body), self.assertRaisesRegex(EmulatorError, text):
                run(body, x, shared=1024, buffers={"values": x})


class ProductTests(unittest.TestCase):
    # z [64, 32] = the ones of a [64, 16] times those of b [32, 16]: 16 everywhere.
    BODY = """
    SharedTile<bf16, 64, 16> a(shared_memory());
    SharedTile<bf16, 32, 16> b(shared_memory() + 2048);
    for (int i = threadIdx.x; i < 96 * 16; i += 128) shared_store(a.base + 2 * i, bf16{0x3f80});
    if (FENCE) fence_for_products();
    __syncthreads();
    float d[4][4] = {};
    begin_products(d);
    product<0, 0>(d, operand(a, 0, 0), operand(b, 0, 0));
    commit_products();
    if (WAIT) wait_products<0>(d);
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
    for (int n = 0; n < 4; n++)
        for (int e = 0; e < 4; e++) ((float*)p.z)[(row + e / 2 * 8) * 32 + n * 8 + col + e % 2] = d[n][e];
    wait_products<0>(d);
    """

    def product(self, fence, wait, seed):
        z = np.zeros((64, 32), np.float32)
        run(self.BODY, z=z, helpers='#include "fla/wgmma.cuh"', threads=128, shared=4096, seed=seed,
            defines={"FENCE": fence, "WAIT": wait})
        return z

    def test_product(self):
        for seed in range(6):
            np.testing.assert_array_equal(self.product(1, 1, seed), 16)

    def test_missing_fence(self):
        with self.assertRaisesRegex(EmulatorError, "wgmma reads the shared address .* without a fence"):
            self.product(0, 1, 0)

    def test_missing_wait_shows(self):
        self.assertGreater(sum(np.isnan(self.product(1, 0, seed)).any() for seed in range(12)), 3)


class SynchronizationTests(unittest.TestCase):
    # Warp 0 fills a ring of two slots, warp 1 and 2 add up what they read.
    RING = """
    float* ring = &shared_memory_as<float>();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0;
    for (int step = 0; step < p.n; step++) {
        int slot = step % 2;
        if (warp == 0) {
            if (step >= 2) barrier_wait(3 + slot, 96);
            ring[32 * slot + lane] = ((float*)p.x)[32 * step + lane];
            barrier_arrive(1 + slot, 96);
        } else {
            barrier_wait(1 + slot, 96);
            sum += ring[32 * slot + 31 - lane] * warp;
            if (step + 2 < p.n) barrier_arrive(3 + slot, 96);
        }
    }
    if (warp > 0) ((float*)p.y)[threadIdx.x - 32] = sum;
    """

    def ring(self, body, seed):
        x = np.arange(32 * 20, dtype=np.float32)
        y = np.zeros(64, np.float32)
        run(body, x, y, n=20, threads=96, shared=256, seed=seed)
        sums = x.reshape(20, 32).sum(0)[::-1]
        return np.array_equal(y, np.concatenate([sums, 2 * sums]))

    def test_named_barriers(self):
        for seed in range(20):
            self.assertTrue(self.ring(self.RING, seed))

    def test_missing_barrier_shows(self):
        body = self.RING.replace("if (step >= 2) barrier_wait(3 + slot, 96);", "")
        body = body.replace("if (step + 2 < p.n) barrier_arrive(3 + slot, 96);", "")
        self.assertNotEqual(body, self.RING)
        failures = 0
        for seed in range(20):
            try:
                failures += not self.ring(body, seed)
            except EmulatorError as error:
                self.assertIn("arrives a second time", str(error))
                failures += 1
        self.assertGreater(failures, 10)

    def test_missing_syncthreads_shows(self):
        wrong = 0
        for seed in range(20):
            y = np.zeros(128, np.float32)
            run("__shared__ float s[128]; int t = threadIdx.x; s[t] = t; __syncwarp(); ((float*)p.y)[t] = s[127 - t];", y=y,
                threads=128, seed=seed)
            wrong += not np.array_equal(y, np.arange(128)[::-1])
        self.assertEqual(wrong, 20)

    def test_barrier_any(self):
        y = np.zeros((2, 64), np.int32)
        run("int t = threadIdx.x; for (int i = 0; i < 2; i++) ((int*)p.y)[64 * i + t] = barrier_any(1, 64, i == 1 && t == 40);",
            y=y, threads=64)
        np.testing.assert_array_equal(y, [[0] * 64, [1] * 64])

    def test_deadlock(self):
        text = r"(?s)deadlock.*warp 0 waits in barrier_wait at barrier 2: 32 of 64.*\.cu:\d+.*warp 1 has returned"
        with self.assertRaisesRegex(EmulatorError, text):
            run("if (threadIdx.x < 32) barrier_wait(2, 64);", threads=64)

    def test_different_barriers_deadlock(self):
        with self.assertRaisesRegex(EmulatorError, r"(?s)deadlock.*warp 0 waits.*barrier 1.*warp 1 waits.*barrier 2"):
            run("barrier_wait(1 + threadIdx.x / 32, 64);", threads=64)

    def test_divergence(self):
        operations = "(__syncwarp.*transpose_8x8|transpose_8x8.*__syncwarp)"
        with self.assertRaisesRegex(EmulatorError, rf"(?s)kernel, block \(0, 0, 0\), warp 1.*divergence.*{operations}"):
            run("if (threadIdx.x == 40) __syncwarp(); else transpose_8x8(1);", threads=64)

    def test_early_return(self):
        with self.assertRaisesRegex(EmulatorError, r"divergence.*returned from the kernel"):
            run("if (threadIdx.x == 7) return; __syncwarp();")

    def test_wrong_count(self):
        with self.assertRaisesRegex(EmulatorError, r"barrier 1 .*called for \d+ threads, by earlier warps"):
            run("barrier_wait(1, threadIdx.x < 32 ? 64 : 96);", threads=96)


class MbarrierTests(unittest.TestCase):
    HELPERS = '#include "fla/mbarrier.cuh"'
    # Warp 0 fills a ring of two slots, warp 1 and 2 read it backwards.
    RING = """
    float* ring = &shared_memory_as<float>();
    u32 memory = shared_memory() + 256;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x < 2) Mbarrier{memory + 8 * threadIdx.x}.init(32), Mbarrier{memory + 16 + 8 * threadIdx.x}.init(2);
    __syncthreads();
    for (int step = 0; step < p.n; step++) {
        Mbarrier full{memory + step % 2 * 8}, empty{memory + 16 + step % 2 * 8};
        if (warp == 0) {
            empty.wait(step / 2 - 1);
            ring[32 * (step % 2) + lane] = ((float*)p.x)[32 * step + lane];
            full.arrive();
        } else {
            full.wait(step / 2);
            ((float*)p.y)[64 * step + threadIdx.x - 32] = ring[32 * (step % 2) + 31 - lane];
            empty.arrive_warp();
        }
    }
    """

    def launch(self, body, **options):
        run(body, helpers=self.HELPERS, shared=320, **options)

    def ring(self, body, seed):
        x, y = np.arange(32 * 20, dtype=np.float32).reshape(20, 32), np.zeros((20, 64), np.float32)
        self.launch(body, x=x, y=y, n=20, threads=96, seed=seed)
        return np.array_equal(y, np.concatenate([x[:, ::-1]] * 2, 1))

    def test_ring(self):
        for seed in range(20):
            self.assertTrue(self.ring(self.RING, seed))

    def check_missing(self, *missing):
        body = self.RING
        for text in missing:
            self.assertIn(text, body)
            body = body.replace(text, "")
        failures = 0
        for seed in range(20):
            try:
                failures += not self.ring(body, seed)
            except EmulatorError as error:
                self.assertRegex(str(error), "deadlock|arrives a second time")
                failures += 1
        self.assertGreater(failures, 10)

    def test_missing_wait_shows(self):
        self.check_missing("full.wait(step / 2);")
        self.check_missing("empty.wait(step / 2 - 1);")

    def test_missing_arrival_shows(self):
        self.check_missing("full.arrive();")
        self.check_missing("empty.arrive_warp();")

    def test_single_threads(self):
        for seed in range(6):
            y = np.zeros(32, np.int32)
            self.launch("""
            Mbarrier barrier{shared_memory()};
            int t = threadIdx.x;
            if (t == 0) barrier.init(3);
            __syncthreads();
            if (t % 8 == 1) barrier.wait(0), ((int*)p.y)[t] = shared_load<int>(shared_memory() + 64);
            else if (t == 9 + 1) shared_store(shared_memory() + 64, 5), barrier.arrive();
            else if (t > 29) barrier.arrive();
            """, y=y, seed=seed)
            np.testing.assert_array_equal(y, np.where(np.arange(32) % 8 == 1, 5, 0))

    def check_error(self, text, body, threads=64):
        with self.assertRaisesRegex(EmulatorError, text):
            self.launch("Mbarrier barrier{shared_memory()};\n" + body, threads=threads)

    def test_deadlock(self):
        text = r"(?s)deadlock.*warp 0.* wait at the mbarrier at 0: 1 of 2 arrivals in phase 0 at .*\.cu:\d+.*warp 1 has returned"
        self.check_error(text, "if (threadIdx.x == 0) barrier.init(2); __syncthreads(); "
                               "if (threadIdx.x < 32) barrier.arrive_warp(), barrier.wait(0);")

    def test_arrival_beyond_the_count(self):
        self.check_error(r"mbarrier arrive at 0: the thread arrives a second time, with 1 of 64 .*\.cu:\d+",
                         "if (threadIdx.x == 0) barrier.init(64), barrier.arrive(), barrier.arrive();")

    def test_wrong_memory(self):
        for text, body in ((r"mbarrier arrive at 0, where no mbarrier has been made .*\.cu:\d+", "barrier.arrive();"),
                           ("mbarrier wait at 0, where no mbarrier has been made", "barrier.wait(0);"),
                           ("mbarrier init at 0, where there is one", "barrier.init(1);"),
                           ("mbarrier init at 0 for 0 arrivals", "barrier.init(0);"),
                           ("mbarrier wait at 0: something else was written there",
                            "if (threadIdx.x == 0) barrier.init(1), shared_store(shared_memory() + 4, 1), barrier.wait(-1);"),
                           ("mbarrier init of 8 bytes at the shared address 4", "Mbarrier{shared_memory() + 4}.init(1);")):
            with self.subTest(text):
                self.check_error(text, body)


class WarpTests(unittest.TestCase):
    def test_shuffles(self):
        y = np.zeros((8, 32), np.int32)
        run("""
        int l = threadIdx.x; int* y = (int*)p.y + l;
        y[0] = __shfl_sync(~0u, l, 5);
        y[32] = __shfl_sync(~0u, l, l + 1, 8);
        y[64] = __shfl_up_sync(~0u, l, 3);
        y[96] = __shfl_down_sync(~0u, l, 3, 16);
        y[128] = (int)__shfl_xor_sync(~0u, (float)l, 17);
        y[160] = l < 16 ? __ballot_sync(0xffffu, l % 2) : __ballot_sync(0xffff0000u, l % 4 == 0);
        y[192] = __any_sync(~0u, l == 9) + 2 * __all_sync(~0u, l < 32) + 4 * __all_sync(~0u, l < 31);
        y[224] = __reduce_add_sync(~0u, l);
        """, y=y)
        l = np.arange(32)
        np.testing.assert_array_equal(y[0], 5)
        np.testing.assert_array_equal(y[1], l // 8 * 8 + (l + 1) % 8)
        np.testing.assert_array_equal(y[2], np.where(l < 3, l, l - 3))
        np.testing.assert_array_equal(y[3], np.where(l % 16 > 12, l, l + 3))
        np.testing.assert_array_equal(y[4], l ^ 17)
        np.testing.assert_array_equal(y[5].view(np.uint32), np.where(l < 16, 0xAAAA, 0x11110000))
        np.testing.assert_array_equal(y[6], 3)
        np.testing.assert_array_equal(y[7], 496)


class LaunchTests(unittest.TestCase):
    def test_grid(self):
        y = np.zeros((2, 3, 4, 48), np.int32)
        run("((int*)p.y)[((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x]"
            " = blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z + 1000 * threadIdx.x;", y=y, grid=(4, 3, 2), threads=48)
        z, r, x, t = np.indices(y.shape)
        np.testing.assert_array_equal(y, x + 10 * r + 100 * z + 1000 * t)

    def test_shared_memory_is_poisoned_in_every_block(self):
        y = np.zeros((4, 3), np.float32)
        helpers = "template <class T> __device__ T* scratch() { __shared__ T s[4]; return s; }"
        run("""
        __shared__ float own[4];
        float* all[3] = {own, scratch<float>(), &shared_memory_as<float>()};
        if (threadIdx.x == 0) for (int i = 0; i < 3; i++) { ((float*)p.y)[3 * blockIdx.x + i] = all[i][0]; all[i][0] = 1; }
        """, y=y, grid=4, shared=64, helpers=helpers)
        self.assertTrue(np.isnan(y).all(), y)

    def test_overrun_is_caught(self):
        y = emulate.guarded(np.zeros(32, np.float32))
        run("((float*)p.y)[threadIdx.x] = threadIdx.x;", y=y)
        np.testing.assert_array_equal(y, np.arange(32))
        with self.assertRaisesRegex(EmulatorError, r"access to 0x.*no memory of ours.*\.cu:\d+"):
            run("((float*)p.y)[threadIdx.x + 1] = threadIdx.x;", y=y)
        with self.assertRaisesRegex(EmulatorError, r"byte 1024 of 1024 of dynamic shared memory"):
            run("(&shared_memory_as<char>())[1024] = 1;", shared=1024)

    def test_misaligned_vector_is_caught(self):
        x = np.zeros(64, np.float32)
        with self.assertRaisesRegex(EmulatorError, r"misaligned access.*\.cu:\d+"):
            run("float2 v = *(float2*)((float*)p.x + 1); ((float*)p.x)[0] = v.x + v.y;", x)

    def test_endless_loop_is_stopped(self):
        with self.assertRaisesRegex(EmulatorError, r"still running after 0.2 s"):
            run("while (*(volatile int*)p.x == 0);", np.zeros(1, np.int32), timeout=0.2)

    def test_wrong_parameter(self):
        with self.assertRaisesRegex(EmulatorError, "its parameter is of 32 bytes, the one given of 4"):
            emulate.launch(HEADER + "__global__ void kernel(const Params p) {}", "kernel", None, 1, 32, 0, ctypes.c_int(0))

    def test_templates_by_name(self):
        y = np.zeros(32, np.float32)
        source = HEADER + "template <class T> __global__ void kernel(const Params p) { ((T*)p.y)[threadIdx.x] = (T)sizeof(T); }"
        emulate.launch(source, "kernel<float>", None, 1, 32, 0, Pointers(None, y.ctypes.data, None, 0))
        np.testing.assert_array_equal(y, 4)

    def test_speed(self):
        body = """
        float d[4] = {}; u32 r[4];
        for (int i = 0; i < 1000; i++) {
            ldmatrix_x4(r, shared_memory() + 16 * (threadIdx.x % 32));
            mma_m16n8k16<bf16>(d, r, r[0], r[1]);
        }
        ((float*)p.y)[threadIdx.x] = d[0];
        """
        y = np.zeros(256, np.float32)
        run(body, y=y, threads=256, shared=512)
        start = time.perf_counter()
        run(body, y=y, threads=256, shared=512)
        elapsed = time.perf_counter() - start
        print(f"256 threads, 2,000 operations of each warp: {elapsed:.3f} s")
        self.assertLess(elapsed, 1.0)


if __name__ == "__main__":
    unittest.main()
