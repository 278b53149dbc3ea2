// A matrix state that a block carries through time in registers, in true float32:
//     M <- diag(decay) M + write value^T  (or M diag(decay)),     output = read^T M
// M is [ROWS, COLUMNS]; the sum over its rows is taken within a warp. Of a step, a thread reads its rows of write and read and
// its columns of value from shared memory: 2 THREAD_ROWS + THREAD_COLUMNS floats for 2 THREAD_ROWS THREAD_COLUMNS multiply-adds.
//
// Decays cost no multiplication in most steps. Within a frame of up to 8 steps, with D_t the product of its decays up to step t,
// the state is kept as M_t / D_t: each value (or write) is divided by D_t, each output (or read) multiplied, and the state itself
// only once, by D at the end of the frame. A channel whose D leaves [2^-40, 2^40], as by a reset, decays step by step in that
// frame.
//
// Constants of a variant: ROWS (16 to 512, a power of two), THREAD_COLUMNS (2 or 4), WARPS, STEPS of a tile (4, 8 or 16).
#pragma once
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"

namespace fla {

constexpr int THREADS = 32 * WARPS;
constexpr int THREAD_ROWS = ROWS <= 16 ? 4 : ROWS <= 128 ? 8 : ROWS / 16;
constexpr int ROW_LANES = ROWS / THREAD_ROWS;
constexpr int COLUMN_LANES = 32 / ROW_LANES;
constexpr int WARP_COLUMNS = COLUMN_LANES * THREAD_COLUMNS;
constexpr int COLUMNS = WARPS * WARP_COLUMNS;
constexpr int FRAME = STEPS < 8 ? STEPS : 8;
constexpr int FRAMES = STEPS / FRAME;
constexpr float FRAME_RANGE = 40.f;  // log2 of the largest 1 / D of a frame

// Outputs are summed over the rows for BATCH steps at once. Of the BATCH x THREAD_COLUMNS sums of a warp's column lane, a thread
// gets VALUES; where there are more lanes than sums, several get the same.
constexpr int BATCH = 4;
constexpr int SUMS = BATCH * THREAD_COLUMNS;
constexpr int VALUES = SUMS > ROW_LANES ? SUMS / ROW_LANES : 1;

static_assert(STEPS % FRAME == 0 && FRAME % BATCH == 0, "a tile is made of frames, a frame of batches");
static_assert(COLUMNS % 8 == 0, "rows of a tile are copied in chunks of 16 bytes");

template <int N>
struct alignas(4 * N) Vector {
    float at[N];
};

template <int N>
__device__ __forceinline__ Vector<N> load(const float* p) {
    return *reinterpret_cast<const Vector<N>*>(p);
}

__device__ __forceinline__ void store(float* p, const Vector<4>& x) { *reinterpret_cast<Vector<4>*>(p) = x; }

// Four numbers of a tile.
template <class T>
__device__ __forceinline__ Vector<4> load_numbers(const T* tile) {
    struct alignas(4 * sizeof(T)) Four {
        T at[4];
    };
    Four x = *reinterpret_cast<const Four*>(tile);
    return {to_float(x.at[0]), to_float(x.at[1]), to_float(x.at[2]), to_float(x.at[3])};
}

// The sum over lanes that differ in the bits from FIRST on, the same in all of them.
template <int FIRST>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
    for (int mask = FIRST; mask < 32; mask *= 2) x += __shfl_xor_sync(~0u, x, mask);
    return x;
}

// Where the rows of a tensor come from. It is kept in shared memory: the registers are for the state.
struct alignas(16) RowSource {
    const char* first;
    i64 stride;  // in bytes

    template <class T>
    __device__ __forceinline__ void set(const Rows<T>& rows, int column) {
        first = reinterpret_cast<const char*>(rows.first + column);
        stride = rows.stride * sizeof(T);
    }
    // Whether rows of `size` bytes can be copied in chunks of 16.
    __device__ __forceinline__ bool aligned(int size) const { return ((reinterpret_cast<u64>(first) | stride | size) & 15) == 0; }
};

// Copies [STEPS, WIDTH] to shared memory, ALIGNED rows in the background: `size` numbers of each row that exists, zeros
// elsewhere.
template <int WIDTH, bool ALIGNED, class T>
__device__ __forceinline__ void copy_rows(T* tile, const RowSource& rows, int first_step, int length, int size) {
    const char* first = rows.first;
    i64 stride = rows.stride;
    if constexpr (ALIGNED) {
        constexpr int CHUNK = 16 / sizeof(T), CHUNKS = STEPS * WIDTH / CHUNK;
#pragma unroll
        for (int i = threadIdx.x; i - threadIdx.x < CHUNKS; i += THREADS) {
            int step = first_step + i / (WIDTH / CHUNK), column = i % (WIDTH / CHUNK) * CHUNK;
            bool valid = (u32)step < (u32)length && column < size;
            const char* chunk = first + (u32)step * stride + column * sizeof(T);
            if (CHUNKS % THREADS == 0 || i < CHUNKS)
                copy_async<16>(shared_address(tile + i * CHUNK), valid ? chunk : first, valid);
        }
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < STEPS * WIDTH; i += THREADS) {
            int step = first_step + i / WIDTH, column = i % WIDTH;
            bool valid = (u32)step < (u32)length && column < size;
            tile[i] = valid ? reinterpret_cast<const T*>(first + (u32)step * stride)[column] : T{};
        }
    }
}

// Rows to be written, of T or of float32.
template <class T>
struct OutputRows {
    char* first;
    i64 stride;  // in bytes
    bool is_float;

    __device__ __forceinline__ OutputRows(const Sequence& sequence, const TensorView& view, int head, int column, int is_float)
        : is_float(is_float) {
        Rows<char> elements = sequence.rows<char>({nullptr, view.batch, view.time, view.head}, head);
        int size = is_float ? sizeof(float) : sizeof(T);
        first = static_cast<char*>(view.data) + (reinterpret_cast<i64>(elements.first) + column) * size;
        stride = elements.stride * size;
    }

    __device__ __forceinline__ void put(int step, int column, float x) const {
        char* row = first + step * stride;
        if (is_float)
            reinterpret_cast<float*>(row)[column] = x;
        else
            reinterpret_cast<T*>(row)[column] = from_float<T>(x);
    }
};

// ---- Decays

// A channel's decays in a frame, step by step.
struct Frame {
    bool inside;             // whether the state is kept divided by D
    float logarithm = 0;     // log2 of D; 0 if not inside
    float step_decay = 1.f;  // what the state is multiplied by before the step, if not inside

    // The frame's gates are `stride` numbers apart.
    template <class G>
    __device__ __forceinline__ Frame(const G* gates, int stride) : inside(true) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < FRAME; i++) {
            sum += to_float(gates[i * stride]) * LOG2E;
            inside &= fabsf(sum) <= FRAME_RANGE;  // not so for NaN
        }
    }
    template <class G>
    __device__ __forceinline__ void step(G gate) {
        if (inside)
            logarithm += to_float(gate) * LOG2E;
        else
            step_decay = pow2(to_float(gate) * LOG2E);
    }
    __device__ __forceinline__ float decay() const { return pow2(logarithm); }    // D
    __device__ __forceinline__ float growth() const { return pow2(-logarithm); }  // 1 / D
};

// ---- The state

// Which part of a block's state, and after `sum_rows` which outputs, a thread has. Lanes of the same rows are neighbours: their
// reads of shared memory merge.
struct Place {
    int row;            // its rows are row + 4 ROW_LANES j + 0..3
    int column;         // the first of its THREAD_COLUMNS
    int step;           // of the batch,
    int output_column;  // and the first of its VALUES columns
    bool first;         // of the lanes with the same outputs

    __device__ __forceinline__ Place() {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int row_lane = lane / COLUMN_LANES;
        row = 4 * row_lane;
        column = warp * WARP_COLUMNS + lane % COLUMN_LANES * THREAD_COLUMNS;
        int sum = 0;  // each level of sum_rows halves the sums by one bit of the lane
        int lanes = 1;
        for (int half = SUMS / 2; half > 0 && lanes < ROW_LANES; half /= 2, lanes *= 2)
            if (row_lane & lanes) sum += half;
        step = sum / THREAD_COLUMNS;
        output_column = column + sum % THREAD_COLUMNS;
        first = row_lane < lanes;
    }

    // The lane whose outputs are of the same columns at another step of the batch.
    static __device__ __forceinline__ int lane_of_step(int step) {
        int row_lane = threadIdx.x % 32 / COLUMN_LANES;
        return ((row_lane & ~3) | step >> 1 | (step & 1) << 1) * COLUMN_LANES + threadIdx.x % COLUMN_LANES;
    }
};
static_assert(ROW_LANES >= BATCH, "each lane has the outputs of one step");

// Sums over the row lanes of a warp. The sums of a thread's Place are left in the first VALUES.
template <int HALF = SUMS / 2, int MASK = COLUMN_LANES>
__device__ __forceinline__ void sum_rows(float (&sums)[SUMS]) {
    if constexpr (MASK < 32) {
        if constexpr (HALF > 0) {
            bool upper = threadIdx.x & MASK;
#pragma unroll
            for (int i = 0; i < HALF; i++) {
                float sent = upper ? sums[i] : sums[i + HALF];
                float kept = upper ? sums[i + HALF] : sums[i];
                sums[i] = kept + __shfl_xor_sync(~0u, sent, MASK);
            }
        } else {
            sums[0] += __shfl_xor_sync(~0u, sums[0], MASK);
        }
        sum_rows<HALF / 2, 2 * MASK>(sums);
    }
}

// Part of a matrix of float32 in memory, from a block's first row and column on: neighbours are `stride` apart in the other
// dimension.
struct Matrix {
    float* first;
    int rows, columns;
    i64 stride;
};

struct State {
    float m[THREAD_ROWS][THREAD_COLUMNS] = {};

    static __device__ __forceinline__ int row(const Place& place, int i) { return place.row + i / 4 * 4 * ROW_LANES + i % 4; }

    __device__ __forceinline__ void scale_rows(const Place& place, const float* factors) {
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i += 4) {
            Vector<4> factor = fla::load<4>(factors + row(place, i));
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int c = 0; c < THREAD_COLUMNS; c++) m[i + r][c] *= factor.at[r];
        }
    }

    __device__ __forceinline__ void scale_columns(const Place& place, const float* factors) {
        Vector<THREAD_COLUMNS> factor = fla::load<THREAD_COLUMNS>(factors + place.column);
#pragma unroll
        for (int r = 0; r < THREAD_ROWS; r++)
#pragma unroll
            for (int c = 0; c < THREAD_COLUMNS; c++) m[r][c] *= factor.at[c];
    }

    // One step. The output is read^T M, this thread's rows of it, of M after the step or BEFORE `write value^T` is added.
    template <bool BEFORE>
    __device__ __forceinline__ void step(const Place& place, const float* write, const float* read, const float* value,
                                         float* output) {
        Vector<THREAD_COLUMNS> v = fla::load<THREAD_COLUMNS>(value + place.column);
#pragma unroll
        for (int c = 0; c < THREAD_COLUMNS; c++) output[c] = 0;
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i += 4) {
            Vector<4> w = fla::load<4>(write + row(place, i)), r = fla::load<4>(read + row(place, i));
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int c = 0; c < THREAD_COLUMNS; c++) {
                    float before = m[i + j][c], after = fmaf(w.at[j], v.at[c], before);
                    output[c] = fmaf(r.at[j], BEFORE ? before : after, output[c]);
                    m[i + j][c] = after;
                }
        }
    }

    // From and to a matrix in memory whose columns, or ALONG_ROWS whose rows, are neighbours. Elements beyond it are zero.
    template <bool ALONG_ROWS>
    __device__ __forceinline__ void load(const Place& place, const Matrix& from) {
        runs<ALONG_ROWS>(place, from, [](auto& run, const float* source, int present, bool aligned) {
            constexpr int N = sizeof(run) / sizeof(float);
            if (aligned && present >= N) {
                run = fla::load<N>(source);
            } else {
#pragma unroll
                for (int i = 0; i < N; i++) run.at[i] = i < present ? source[i] : 0.f;
            }
        });
    }
    template <bool ALONG_ROWS>
    __device__ __forceinline__ void store(const Place& place, const Matrix& to) {
        runs<ALONG_ROWS>(place, to, [](auto& run, float* target, int present, bool aligned) {
            constexpr int N = sizeof(run) / sizeof(float);
            if (aligned && present >= N) {
                *reinterpret_cast<Vector<N>*>(target) = run;
            } else {
#pragma unroll
                for (int i = 0; i < N; i++)
                    if (i < present) target[i] = run.at[i];
            }
        });
    }

    // A block's state, ROWS x COLUMNS numbers, in the order of its threads.
    __device__ __forceinline__ void save(float* block) const {
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i += 4)
#pragma unroll
            for (int c = 0; c < THREAD_COLUMNS; c++)
                *reinterpret_cast<Vector<4>*>(block + saved_at(i, c)) = {m[i][c], m[i + 1][c], m[i + 2][c], m[i + 3][c]};
    }
    // The sums over this thread's rows of its state times a saved one.
    __device__ __forceinline__ void multiply_saved(const float* block, float (&sums)[THREAD_COLUMNS]) const {
#pragma unroll
        for (int c = 0; c < THREAD_COLUMNS; c++) {
            sums[c] = 0;
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; i += 4) {
                Vector<4> other = fla::load<4>(block + saved_at(i, c));
#pragma unroll
                for (int r = 0; r < 4; r++) sums[c] = fmaf(m[i + r][c], other.at[r], sums[c]);
            }
        }
    }

   private:
    // Calls f(run of neighbours, its place in memory, how many of it are inside the matrix, whether it is aligned).
    template <bool ALONG_ROWS, class F>
    __device__ __forceinline__ void runs(const Place& place, const Matrix& matrix, F f) {
        constexpr int N = ALONG_ROWS ? 4 : THREAD_COLUMNS;
        bool aligned = ((reinterpret_cast<u64>(matrix.first) | matrix.stride * sizeof(float)) & (N * sizeof(float) - 1)) == 0;
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i += ALONG_ROWS ? 4 : 1)
#pragma unroll
            for (int c = 0; c < (ALONG_ROWS ? THREAD_COLUMNS : 1); c++) {
                Vector<N> run;
#pragma unroll
                for (int j = 0; j < N; j++) run.at[j] = ALONG_ROWS ? m[i + j][c] : m[i][j];
                int r = row(place, i), column = place.column + c;
                if constexpr (ALONG_ROWS)
                    f(run, matrix.first + column * matrix.stride + r, column < matrix.columns ? matrix.rows - r : 0, aligned);
                else
                    f(run, matrix.first + r * matrix.stride + column, r < matrix.rows ? matrix.columns - column : 0, aligned);
#pragma unroll
                for (int j = 0; j < N; j++) (ALONG_ROWS ? m[i + j][c] : m[i][j]) = run.at[j];
            }
    }

    static __device__ __forceinline__ int saved_at(int i, int c) {
        return ((i / 4 * THREAD_COLUMNS + c) * THREADS + threadIdx.x) * 4;
    }
};

// ---- A tile's steps

// Which dimension of the state the decays are of, and so when an output is read: after the step, or before `write value^T` is
// added.
enum class Decays { OfRows, OfColumns };

template <Decays DECAYS, bool STEPWISE, class P, class F>
__device__ __forceinline__ void run_steps(State& state, const Place& place, const P& prepared, int steps, F output) {
    auto scale = [&](const float* factors) {
        if constexpr (DECAYS == Decays::OfRows)
            state.scale_rows(place, factors);
        else
            state.scale_columns(place, factors);
    };
    constexpr int DECAY_SIZE = DECAYS == Decays::OfRows ? ROWS : COLUMNS;
#pragma unroll 1
    for (int frame = 0; frame * FRAME < steps; frame++) {
#pragma unroll 1
        for (int first = frame * FRAME; first < min(steps, (frame + 1) * FRAME); first += BATCH) {
            float sums[SUMS];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int step = first + i;
                if (STEPWISE) scale(prepared.step_decay + step * DECAY_SIZE);
                state.step<DECAYS == Decays::OfColumns>(place, prepared.write + step * ROWS, prepared.read + step * ROWS,
                                                        prepared.value + step * COLUMNS, sums + i * THREAD_COLUMNS);
            }
            __syncwarp();  // or the compiler keeps a second copy of the state, for a warp that is not together here
            sum_rows(sums);
            output(first, sums);
        }
        scale(prepared.frame_decay + frame * DECAY_SIZE);
    }
}

// Runs the first `steps` of a prepared tile, up to a whole batch. For each batch calls output(first step of the tile, sums), with
// this thread's sums in front.
template <Decays DECAYS, class P, class F>
__device__ __forceinline__ void run_tile(State& state, const Place& place, const P& prepared, int steps, bool stepwise,
                                         F output) {
    if (stepwise)
        run_steps<DECAYS, true>(state, place, prepared, steps, output);
    else
        run_steps<DECAYS, false>(state, place, prepared, steps, output);
}

}  // namespace fla
