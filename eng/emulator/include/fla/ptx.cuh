// On the CPU: what FlaSharp.Kernels/Include/fla/ptx.cuh does with the machine's instructions.
#pragma once
#include "fla/types.cuh"

namespace fla {

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

inline float pow2(float x) {
    float y = ::exp2f(x);
    return y < 1.17549435e-38f ? 0.f : y;
}

inline float reciprocal(float x) {
    float y = 1.f / x;
    return fabsf(y) < 1.17549435e-38f ? copysignf(0.f, y) : y;
}

inline float max_nan(float a, float b) {
    if (isnan(a) || isnan(b)) return __uint_as_float(0x7fffffffu);
    return fmaxf(a, b);
}

template <class T> inline u32 max_nan_pair(u32 a, u32 b) {
    return Pair<T>::pack(max_nan(Pair<T>::low(a), Pair<T>::low(b)), max_nan(Pair<T>::high(a), Pair<T>::high(b)));
}

inline void prefetch(const void*) {}

template <class T> __forceinline__ T* opaque(T* p) { return p; }
template <class T> __forceinline__ T* opaque_global(T* p) { return p; }
__forceinline__ int opaque(int x) { return x; }

__forceinline__ u32 shared_address(const void* p) { return emulator::shared_address(p); }
template <class T> inline T& shared_memory_as() { return *reinterpret_cast<T*>(emulator::machine.shared_base); }
inline u32 shared_memory() { return emulator::shared_address(emulator::machine.shared_base); }
template <class T> __forceinline__ T shared_load(u32 address) {
    T x;
    memcpy(&x, emulator::shared_pointer("shared_load", address, sizeof x), sizeof x);
    return x;
}
template <class T> __forceinline__ void shared_store(u32 address, T x) {
    emulator::u8* to = emulator::shared_pointer("shared_store", address, sizeof x);
    memcpy(to, &x, sizeof x);
    emulator::note_write(to, sizeof x);
}

template <class T> inline void shared_store_whole(u32 address, const T& x) {
    for (u32 i = 0; i < sizeof(T); i += 16) shared_store(address + i, reinterpret_cast<const uint4*>(&x)[i / 16]);
}
template <class T> inline T shared_load_whole(u32 address) {
    uint4 parts[sizeof(T) / 16];
    for (u32 i = 0; i < sizeof(T); i += 16) parts[i / 16] = shared_load<uint4>(address + i);
    return reinterpret_cast<const T&>(parts);
}

inline void store_16_bytes(void* there, const u32 (&words)[4]) {
    *static_cast<uint4*>(there) = make_uint4(words[0], words[1], words[2], words[3]);
}

template <int BYTES> __forceinline__ void copy_async(u32 shared, const void* global, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    emulator::copy_async(emulator::shared_pointer("copy_async", shared, BYTES), global, BYTES, valid);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int PENDING> inline void copy_async_wait() { emulator::copy_async_wait(PENDING); }

// ---- Matrices of a warp

struct Registers4 { u32 r[4]; };

template <bool TRANSPOSED> inline void load_matrices(const void* const* in, void* const* out, u32 mask) {
    using namespace emulator;
    const u16* rows[WARP];
    if (mask != ~0u) fail("ldmatrix in a warp of fewer than 32 threads");
    for (int lane = 0; lane < WARP; lane++) {
        rows[lane] = input_of<const u16*>(in, lane);
        emulator::shared_address(rows[lane], 16);
        check_aligned("ldmatrix", rows[lane], 16);
    }
    for (int lane = 0; lane < WARP; lane++)
        for (int matrix = 0; matrix < 4; matrix++) {
            int major = lane / 4, minor = 2 * (lane % 4);
            const u16* const* row = rows + 8 * matrix;
            u32 low = TRANSPOSED ? row[minor][major] : row[major][minor];
            u32 high = TRANSPOSED ? row[minor + 1][major] : row[major][minor + 1];
            output_of<Registers4>(out, lane).r[matrix] = high << 16 | low;
        }
}

__forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 row) {
    const void* from = emulator::shared_pointer("ldmatrix_x4", row, 16);
    auto loaded = emulator::collective<const void*, Registers4>("ldmatrix_x4", 0, ~0u, from, load_matrices<false>);
    memcpy(r, loaded.r, sizeof r);
}
__forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 row) {
    const void* from = emulator::shared_pointer("ldmatrix_x4_trans", row, 16);
    auto loaded = emulator::collective<const void*, Registers4>("ldmatrix_x4_trans", 0, ~0u, from, load_matrices<true>);
    memcpy(r, loaded.r, sizeof r);
}

__forceinline__ u32 transpose_8x8(u32 x) {
    return emulator::collective<u32, u32>("transpose_8x8", 0, ~0u, x, [](const void* const* in, void* const* out, u32 mask) {
        using namespace emulator;
        if (mask != ~0u) fail("movmatrix in a warp of fewer than 32 threads");
        auto element = [&](int row, int column) {
            return input_of<u32>(in, 4 * row + column / 2) >> 16 * (column % 2) & 0xffffu;
        };
        for (int lane = 0; lane < WARP; lane++) {
            int major = lane / 4, minor = 2 * (lane % 4);
            output_of<u32>(out, lane) = element(minor + 1, major) << 16 | element(minor, major);
        }
    });
}

struct MatrixRow { u16* row; u32 r[4]; };

template <bool TRANSPOSED> inline void store_matrices(const void* const* in, void* const*, u32 mask) {
    using namespace emulator;
    if (mask != ~0u) fail("stmatrix in a warp of fewer than 32 threads");
    for (int lane = 0; lane < WARP; lane++)
        for (int matrix = 0; matrix < 4; matrix++)
            for (int half = 0; half < 2; half++) {
                int major = lane / 4, minor = 2 * (lane % 4) + half;
                input_of<MatrixRow>(in, 8 * matrix + (TRANSPOSED ? minor : major)).row[TRANSPOSED ? major : minor] =
                    input_of<MatrixRow>(in, lane).r[matrix] >> 16 * half & 0xffffu;
            }
}

__forceinline__ void stmatrix_x4(u32 row, const u32 (&r)[4]) {
    MatrixRow input{(u16*)emulator::shared_pointer("stmatrix_x4", row, 16), {r[0], r[1], r[2], r[3]}};
    emulator::collective<MatrixRow, int>("stmatrix_x4", 0, ~0u, input, store_matrices<false>);
    emulator::note_write(input.row, 16);
}
__forceinline__ void stmatrix_x4_trans(u32 row, const u32 (&r)[4]) {
    MatrixRow input{(u16*)emulator::shared_pointer("stmatrix_x4_trans", row, 16), {r[0], r[1], r[2], r[3]}};
    emulator::collective<MatrixRow, int>("stmatrix_x4_trans", 0, ~0u, input, store_matrices<true>);
    emulator::note_write(input.row, 16);
}

struct MmaInput { float d[4]; u32 a[4], b[2]; };
struct MmaOutput { float d[4]; };

template <class T> inline void multiply(const void* const* in, void* const* out, u32 mask) {
    using namespace emulator;
    if (mask != ~0u) fail("mma in a warp of fewer than 32 threads");
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < WARP; lane++) {
        const MmaInput& x = input_of<MmaInput>(in, lane);
        int r = lane / 4, c = 2 * (lane % 4);
        for (int i = 0; i < 4; i++) {
            a[r + 8 * (i % 2)][c + 8 * (i / 2)] = Pair<T>::low(x.a[i]);
            a[r + 8 * (i % 2)][c + 8 * (i / 2) + 1] = Pair<T>::high(x.a[i]);
            d[r + 8 * (i / 2)][c + i % 2] = x.d[i];
        }
        for (int i = 0; i < 2; i++) {
            b[c + 8 * i][r] = Pair<T>::low(x.b[i]);
            b[c + 8 * i + 1][r] = Pair<T>::high(x.b[i]);
        }
    }
    for (int i = 0; i < 16; i++) {
        float sum[8] = {};
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) sum[j] += a[i][k] * b[k][j];
        for (int j = 0; j < 8; j++) d[i][j] += sum[j];
    }
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < 4; i++) output_of<MmaOutput>(out, lane).d[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
}

template <class T> __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    constexpr const char* name = std::is_same_v<T, bf16> ? "mma_m16n8k16<bf16>" : "mma_m16n8k16<fp16>";
    MmaInput input{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    auto result = emulator::collective<MmaInput, MmaOutput>(name, 0, ~0u, input, multiply<T>);
    memcpy(d, result.d, sizeof d);
}

template <class T> __forceinline__ void mma_m16n8k8(float (&d)[4], const u32 (&a)[2], u32 b) {
    MmaInput input{{d[0], d[1], d[2], d[3]}, {a[0], a[1]}, {b}};
    auto result = emulator::collective<MmaInput, MmaOutput>("mma_m16n8k8", 0, ~0u, input, multiply<T>);
    memcpy(d, result.d, sizeof d);
}

// ---- Named barriers

template <int COUNT, int SHARE> __forceinline__ void set_registers() {}
inline void follow_stream() {}

__forceinline__ void barrier_wait(int id, int threads) {
    emulator::barrier("barrier_wait", id, threads, emulator::Arrival::Wait);
}
__forceinline__ void barrier_arrive(int id, int threads) {
    emulator::barrier("barrier_arrive", id, threads, emulator::Arrival::Arrive);
}
__forceinline__ bool barrier_any(int id, int threads, bool flag) {
    return emulator::barrier("barrier_any", id, threads, emulator::Arrival::Reduce, flag) != 0;
}

} // namespace fla
