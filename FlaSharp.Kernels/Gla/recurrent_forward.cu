// The recurrence of gated linear attention, with true float32 states S [K, V] of each sequence and head:
//     S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,     o_t = scale S_t^T q_t
// A block has all of K (ROWS) and some of V (COLUMNS). It reads its part of the state once and writes it once, to the same memory
// if the caller wants so.
//
// The gradient of v is the same recurrence, run backwards:
//     dS_t = diag(exp(g_{t+1})) dS_{t+1} + scale q_t do_t^T,     dv_t = dS_t^T k_t
// with q, do, k instead of k, v, q, from the final state's gradient to the initial state's. Each decay comes one step `late`.
//
// Constants: those of recurrence.cuh, SHARED_BYTES, TILES on their way (2, or 1 where memory is short), and two of float, bf16
// and fp16: GATE of g, ELEMENT of the other tensors.
#include "fla/recurrence.cuh"

using namespace fla;
using T = ELEMENT;
using G = GATE;

struct GlaRecurrentForward {
    TensorView decay;            // [B, T, Hkv, K]: g
    TensorView write;            // [B, T, Hkv, K]: k; late [B, T, H, K]: q
    TensorView value;            // [B, T, Hkv, V]: v; late [B, T, H, V]: do
    TensorView read;             // [B, T, H, K]: q; late [B, T, Hkv, K]: k
    TensorView output;           // [B, T, H, V]: o; late dv. Float32 if `float_output`
    const float* initial_state;  // [S, H, K, V], or null for zeros; late the final state's gradient
    float* final_state;          // [S, H, K, V], or null; late the initial state's gradient
    Sequences sequences;         // late they are in the opposite order
    int heads;                   // H
    int group;                   // H / Hkv
    int key_size, value_size;    // K, V
    float value_scale, output_scale;
    int late;  // 0 or 1
    int float_output;
};

// On a multiprocessor: what registers must allow for.
constexpr int BLOCKS = WARPS == 8 && THREAD_ROWS * THREAD_COLUMNS <= 32 ? 2 : 1;

// A tile as it lies in memory.
struct Tile {
    T write[STEPS * ROWS], read[STEPS * ROWS];
    G decay[STEPS * ROWS];
    T value[STEPS * COLUMNS];
};

// A tile as the steps need it.
struct Prepared {
    float write[STEPS * ROWS];         // divided by D
    float read[STEPS * ROWS];          // times D
    float step_decay[STEPS * ROWS];    // before a step, if any channel decays step by step
    float frame_decay[FRAMES * ROWS];  // after a frame
    float value[STEPS * COLUMNS];      // times the scale
};

struct Sources {
    RowSource decay, write, read, value;
};

struct Shared {
    Sources sources;
    Tile tiles[TILES];
    Prepared prepared[2];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");

template <bool ALIGNED>
__device__ __forceinline__ void copy_tile(Tile& tile, const Sources& sources, int first, int length, int columns,
                                          const GlaRecurrentForward& p) {
    copy_rows<ROWS, ALIGNED>(tile.decay, sources.decay, first - p.late, length, p.key_size);
    copy_rows<ROWS, ALIGNED>(tile.write, sources.write, first, length, p.key_size);
    copy_rows<ROWS, ALIGNED>(tile.read, sources.read, first, length, p.key_size);
    copy_rows<COLUMNS, ALIGNED>(tile.value, sources.value, first, length, columns);
}

// Prepares the first `steps` of a tile, up to whole frames; whether a channel of this thread's decays step by step.
__device__ __forceinline__ bool prepare(const Tile& tile, Prepared& prepared, int steps, float value_scale) {
    bool stepwise = false;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * FRAMES && i / ROWS * FRAME < steps; i += THREADS) {
        int first = i / ROWS * FRAME * ROWS + i % ROWS;
        Frame frame(tile.decay + first, ROWS);
        stepwise |= !frame.inside;
#pragma unroll 4
        for (int at = first; at < first + FRAME * ROWS; at += ROWS) {
            frame.step(tile.decay[at]);
            prepared.write[at] = to_float(tile.write[at]) * frame.growth();
            prepared.read[at] = to_float(tile.read[at]) * frame.decay();
            prepared.step_decay[at] = frame.step_decay;
        }
        prepared.frame_decay[i] = frame.decay();
    }
#pragma unroll
    for (int i = threadIdx.x; i - threadIdx.x < STEPS * COLUMNS; i += THREADS)
        if (STEPS * COLUMNS % THREADS == 0 || i < STEPS * COLUMNS) prepared.value[i] = to_float(tile.value[i]) * value_scale;
    return stepwise;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    gla_recurrent_forward(const __grid_constant__ GlaRecurrentForward p) {
    Shared& shared = shared_memory_as<Shared>();
    int slices = (p.value_size + COLUMNS - 1) / COLUMNS;
    int line = blockIdx.x / slices, first_column = blockIdx.x % slices * COLUMNS;
    int head = line % p.heads, kv_head = head / p.group;
    int columns = p.value_size - first_column;
    Sequence sequence(p.sequences, line / p.heads);
    int length = sequence.length, end = length + p.late;

    OutputRows<T> output(sequence, p.output, head, first_column, p.float_output);

    Sources& sources = shared.sources;
    if (threadIdx.x == 0) {
        sources.decay.set(sequence.rows<G>(p.decay, kv_head), 0);
        sources.write.set(sequence.rows<T>(p.write, p.late ? head : kv_head), 0);
        sources.read.set(sequence.rows<T>(p.read, p.late ? kv_head : head), 0);
        sources.value.set(sequence.rows<T>(p.value, p.late ? head : kv_head), first_column);
    }
    __syncthreads();
    int key_bytes = p.key_size * sizeof(T), value_bytes = min(columns, COLUMNS) * sizeof(T);
    bool aligned = sources.decay.aligned(p.key_size * sizeof(G)) && sources.write.aligned(key_bytes) &&
                   sources.read.aligned(key_bytes) && sources.value.aligned(value_bytes);
    auto copy = [&](int first) {
        if (first < end) {
            Tile& tile = shared.tiles[first / STEPS % TILES];
            if (aligned)
                copy_tile<true>(tile, sources, first, length, columns, p);
            else
                copy_tile<false>(tile, sources, first, length, columns, p);
        }
        copy_async_commit();
    };

    auto part_of = [&](const float* states) -> Matrix {
        i64 line = (i64)sequence.index * p.heads + head;
        return {const_cast<float*>(states) + line * p.key_size * p.value_size + first_column, p.key_size, columns, p.value_size};
    };

    copy(0);
    Place place;
    State state;
    if (p.initial_state) state.load<false>(place, part_of(p.initial_state));

    // While one tile runs, the next one is prepared and the one after that is on its way.
    bool stepwise = false;
    for (int first = -STEPS; first < end; first += STEPS) {
        copy_async_wait<0>();
        bool run_stepwise = __syncthreads_or(stepwise);
        int next = first + STEPS;
        if (TILES == 2) copy(next + STEPS);
        if (next < end)
            stepwise = prepare(shared.tiles[next / STEPS % TILES], shared.prepared[next / STEPS % 2], end - next, p.value_scale);
        if (TILES == 1) {
            __syncthreads();
            copy(next + STEPS);
        }
        if (first < 0) continue;
        auto put = [&](int batch, const float(&sums)[SUMS]) {
            int step = first + batch + place.step;
            if (!place.first || step >= length) return;
#pragma unroll
            for (int i = 0; i < VALUES; i++) {
                int column = place.output_column + i;
                if (column < columns) output.put(step, column, sums[i] * p.output_scale);
            }
        };
        run_tile<Decays::OfRows>(state, place, shared.prepared[first / STEPS % 2], min(STEPS, end - first), run_stepwise, put);
    }
    if (p.final_state) state.store<false>(place, part_of(p.final_state));
}
