// The gradients of q, k and g of the recurrence in recurrent_forward.cu, in two passes over time. A block has all of V (ROWS) and
// some of K (COLUMNS), so that no sum crosses blocks. With c_t = v_t . do_t, and states kept transposed:
//     forwards (LATE = 0):  S_t  = S_{t-1} diag(exp(g_t)) + v_t k_t^T             dq_t = scale (S'_t^T do_t + c_t k_t)
//     backwards (LATE = 1): dS_t = dS_{t+1} diag(exp(g_{t+1})) + scale do_t q_t^T     dk_t = dS'_t^T v_t + scale c_t q_t
// where S' and dS' are decayed but lack the term of their step. Backwards each decay comes one step late.
//
// dg_t is the sum over pairs of a later output and an earlier key, those that its decay lies between:
//     dg_t = dg_{t+1} + scale q_t (S'_t^T do_t) - k_t (dS'_t^T v_t)
// The terms c_t, of an output with its own key, would cancel; left out, they leave no rounding errors behind, and strong decays
// keep their accuracy. Nor do errors build up over time: a reset sets dg_t to 0, and at the last token, where the final state's
// gradient comes in, and every SAVED_STEPS tokens before it, dg_t is the sum over V of exp(g_t) S_{t-1} dS_t itself, with an S
// that the first pass has saved.
//
// Constants: those of recurrence.cuh, SHARED_BYTES, LATE, SAVED_STEPS, and GATE and ELEMENT as in recurrent_forward.cu.
#include "fla/recurrence.cuh"

using namespace fla;
using T = ELEMENT;
using G = GATE;

struct GlaRecurrentBackward {
    TensorView decay;            // [B, T, Hkv, K]: g
    TensorView write;            // [B, T, Hkv, V]: v; late [B, T, H, V]: do
    TensorView read;             // [B, T, H, V]: do; late [B, T, Hkv, V]: v
    TensorView value;            // [B, T, Hkv, K]: k; late [B, T, H, K]: q
    TensorView other;            // [B, T, H, K]: q; late [B, T, Hkv, K]: k
    TensorView output;           // [B, T, H, K]: dq; late dk. Float32 if `float_output`
    TensorView product;          // float32 [B, T, H, K]: the first pass's scale q_t (S'_t^T do_t)
    TensorView decay_gradient;   // [B, T, H, K]: late, dg. Float32 if `float_decay_gradient`, else of g's type
    const float* initial_state;  // [S, H, K, V], or null for zeros; late the final state's gradient
    float* saved_states;         // [tokens / SAVED_STEPS + S, H, slices of K, ROWS * COLUMNS]: from the first pass to the second
    Sequences sequences;         // late they are in the opposite order
    int heads;                   // H
    int group;                   // H / Hkv
    int key_size, value_size;    // K, V
    float value_scale, output_scale;
    int float_output, float_decay_gradient;
};

// A tile as it lies in memory.
struct Tile {
    T write[STEPS * ROWS], read[STEPS * ROWS];
    T value[STEPS * COLUMNS], other[STEPS * COLUMNS];
    G decay[STEPS * COLUMNS];
    float product[LATE ? STEPS * COLUMNS : 4];
};

// A tile as the steps need it.
struct Prepared {
    float write[STEPS * ROWS], read[STEPS * ROWS];
    float dot[STEPS];                     // c
    float value[STEPS * COLUMNS];         // divided by D, times its scale
    float factor[STEPS * COLUMNS];        // of outputs: D times their scale
    float other[STEPS * COLUMNS];         // times `factor`
    float step_decay[STEPS * COLUMNS];    // before a step, if any channel decays step by step
    float frame_decay[FRAMES * COLUMNS];  // after a frame
    float product[LATE ? STEPS * COLUMNS : 4];
};

struct Sources {
    RowSource decay, write, read, value, other, product;
};

struct Shared {
    Sources sources;
    Tile tiles[2];
    Prepared prepared[2];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");
static_assert(SAVED_STEPS % STEPS == 0, "states are saved between tiles");

template <bool ALIGNED>
__device__ __forceinline__ void copy_tile(Tile& tile, const Sources& sources, int first, int length, int columns,
                                          const GlaRecurrentBackward& p) {
    copy_rows<ROWS, ALIGNED>(tile.write, sources.write, first, length, p.value_size);
    copy_rows<ROWS, ALIGNED>(tile.read, sources.read, first, length, p.value_size);
    copy_rows<COLUMNS, ALIGNED>(tile.value, sources.value, first, length, columns);
    copy_rows<COLUMNS, ALIGNED>(tile.other, sources.other, first, length, columns);
    copy_rows<COLUMNS, ALIGNED>(tile.decay, sources.decay, first - LATE, length, columns);
    if (LATE) copy_rows<COLUMNS, ALIGNED>(tile.product, sources.product, first, p.product.data ? length : 0, columns);
}

// Prepares the decays and columns of the first `steps` of a tile, with THREADS_USED threads, of which this one is the
// `thread`-th; whether a channel of this thread's decays step by step.
template <int THREADS_USED>
__device__ __forceinline__ bool prepare_columns(const Tile& tile, Prepared& prepared, int steps, int thread,
                                                const GlaRecurrentBackward& p) {
    bool stepwise = false;
#pragma unroll 1
    for (int i = thread; i < COLUMNS * FRAMES && i / COLUMNS * FRAME < steps; i += THREADS_USED) {
        int first = i / COLUMNS * FRAME * COLUMNS + i % COLUMNS;
        Frame frame(tile.decay + first, COLUMNS);
        stepwise |= !frame.inside;
#pragma unroll 4
        for (int at = first; at < first + FRAME * COLUMNS; at += COLUMNS) {
            frame.step(tile.decay[at]);
            float factor = frame.decay() * p.output_scale;
            prepared.value[at] = to_float(tile.value[at]) * p.value_scale * frame.growth();
            prepared.factor[at] = factor;
            prepared.other[at] = to_float(tile.other[at]) * factor;
            prepared.step_decay[at] = frame.step_decay;
            if (LATE) prepared.product[at] = tile.product[at];
        }
        prepared.frame_decay[i] = frame.decay();
    }
    return stepwise;
}

// Prepares the rows of the first `steps` of a tile, up to a whole batch, with WARPS_USED warps, of which this one is the
// `warp`-th.
template <int WARPS_USED>
__device__ __forceinline__ void prepare_rows(const Tile& tile, Prepared& prepared, int steps, int warp) {
    int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int step = warp; step < min(steps + BATCH - 1, STEPS); step += WARPS_USED) {
        float dot = 0;
#pragma unroll
        for (int row = 4 * lane; row - 4 * lane < ROWS; row += 128)
            if (ROWS % 128 == 0 || row < ROWS) {
                Vector<4> write = load_numbers(tile.write + step * ROWS + row),
                          read = load_numbers(tile.read + step * ROWS + row);
                store(prepared.write + step * ROWS + row, write);
                store(prepared.read + step * ROWS + row, read);
#pragma unroll
                for (int i = 0; i < 4; i++) dot = fmaf(write.at[i], read.at[i], dot);
            }
        dot = sum_lanes<1>(dot);
        if (lane == 0) prepared.dot[step] = dot;
    }
}

__device__ __forceinline__ bool prepare(const Tile& tile, Prepared& prepared, int steps, const GlaRecurrentBackward& p) {
    if constexpr (WARPS == 1) {
        prepare_rows<1>(tile, prepared, steps, 0);
        return prepare_columns<32>(tile, prepared, steps, threadIdx.x, p);
    } else {  // the two take about as long
        int warp = threadIdx.x / 32;
        if (warp < WARPS / 2) return prepare_columns<THREADS / 2>(tile, prepared, steps, threadIdx.x, p);
        prepare_rows<WARPS / 2>(tile, prepared, steps, warp - WARPS / 2);
        return false;
    }
}

// dg of this thread's columns, as the steps come by.
struct DecayGradient {
    float sum[VALUES] = {};

    // Before the first step of a tile, from the states on both sides of its decay.
    __device__ __forceinline__ void anchor(const State& state, const Place& place, const Prepared& prepared, const float* saved) {
        float sums[THREAD_COLUMNS];
        state.multiply_saved(saved, sums);
#pragma unroll
        for (int c = 0; c < THREAD_COLUMNS; c++) {
            float total = sum_lanes<COLUMN_LANES>(sums[c]);
            int column = place.column + c, i = column - place.output_column;
#pragma unroll
            for (int j = 0; j < VALUES; j++)
                if (i == j) sum[j] = total * prepared.step_decay[column] * prepared.factor[column];
        }
    }

    // The gradient of the decay of this thread's step of a batch (that is, of the token one step before), and then on to the end
    // of the batch. `change` is what the thread's step adds.
    __device__ __forceinline__ float advance(int i, const Place& place, float change, float step_decay) {
        float gradient = 0;
#pragma unroll
        for (int step = 0; step < BATCH; step++) {
            int lane = Place::lane_of_step(step);
            float decay = __shfl_sync(~0u, step_decay, lane), added = __shfl_sync(~0u, change, lane);
            if (decay == 0) sum[i] = 0;
            if (step == place.step) gradient = sum[i];
            sum[i] += added;
        }
        return gradient;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) gla_recurrent_backward(const __grid_constant__ GlaRecurrentBackward p) {
    Shared& shared = shared_memory_as<Shared>();
    int slices = (p.key_size + COLUMNS - 1) / COLUMNS;
    int line = blockIdx.x / slices, slice = blockIdx.x % slices, first_column = slice * COLUMNS;
    int head = line % p.heads, kv_head = head / p.group;
    int columns = p.key_size - first_column;
    Sequence sequence(p.sequences, line / p.heads);
    int length = sequence.length;
    // Both passes have the last token in a tile without other tokens, so that their tiles meet. Steps before the first are empty.
    int start = LATE ? 1 - STEPS : -((STEPS - (length - 1) % STEPS) % STEPS), end = length + LATE;

    OutputRows<T> output(sequence, p.output, head, first_column, p.float_output);
    OutputRows<float> product(sequence, p.product, head, first_column, true);
    OutputRows<G> decay_gradient(sequence, p.decay_gradient, head, first_column, p.float_decay_gradient);
    auto saved = [&](int tokens_after) {  // the state before a token, by how many come after it
        i64 tokens_before = p.sequences.offsets ? p.sequences.offsets[sequence.index] : (i64)sequence.index * length;
        i64 slot = tokens_before / SAVED_STEPS + sequence.index + tokens_after / SAVED_STEPS;
        return p.saved_states + ((slot * p.heads + head) * slices + slice) * (ROWS * COLUMNS);
    };

    Sources& sources = shared.sources;
    if (threadIdx.x == 0) {
        sources.decay.set(sequence.rows<G>(p.decay, kv_head), first_column);
        sources.write.set(sequence.rows<T>(p.write, LATE ? head : kv_head), 0);
        sources.read.set(sequence.rows<T>(p.read, LATE ? kv_head : head), 0);
        sources.value.set(sequence.rows<T>(p.value, LATE ? head : kv_head), first_column);
        sources.other.set(sequence.rows<T>(p.other, LATE ? kv_head : head), first_column);
        sources.product.set(sequence.rows<float>(p.product, head), first_column);
    }
    __syncthreads();
    int row_bytes = p.value_size * sizeof(T), present = min(columns, COLUMNS);
    bool aligned = sources.decay.aligned(present * sizeof(G)) && sources.write.aligned(row_bytes) &&
                   sources.read.aligned(row_bytes) && sources.value.aligned(present * sizeof(T)) &&
                   sources.other.aligned(present * sizeof(T)) && (!LATE || sources.product.aligned(present * sizeof(float)));
    auto copy = [&](int first) {
        if (first < end) {
            Tile& tile = shared.tiles[(first - start) / STEPS % 2];
            if (aligned)
                copy_tile<true>(tile, sources, first, length, columns, p);
            else
                copy_tile<false>(tile, sources, first, length, columns, p);
        }
        copy_async_commit();
    };

    copy(start);
    Place place;
    State state;
    DecayGradient gradient;
    if (p.initial_state) {
        i64 state_at = (((i64)sequence.index * p.heads + head) * p.key_size + first_column) * p.value_size;
        state.load<true>(place, {const_cast<float*>(p.initial_state) + state_at, p.value_size, columns, p.value_size});
    }

    // While one tile runs, the next one is prepared and the one after that is on its way.
    bool stepwise = false;
    for (int first = start - STEPS; first < end; first += STEPS) {
        copy_async_wait<0>();
        bool run_stepwise = __syncthreads_or(stepwise);
        copy(first + 2 * STEPS);
        int next = first + STEPS, buffer = (next - start) / STEPS % 2;
        if (next < end) stepwise = prepare(shared.tiles[buffer], shared.prepared[buffer], end - next, p);
        if (first < start) continue;

        const Prepared& prepared = shared.prepared[buffer ^ 1];
        int tokens_after = LATE ? first - 1 : length - 1 - first;
        if (first >= 0 && tokens_after >= 0 && tokens_after < length && tokens_after % SAVED_STEPS == 0) {
            if (LATE && p.decay_gradient.data) gradient.anchor(state, place, prepared, saved(tokens_after));
            if (!LATE && p.saved_states) state.save(saved(tokens_after));
        }
        auto put = [&](int batch, const float(&sums)[SUMS]) {
            int step = first + batch + place.step;
            bool present = place.first && step >= 0 && step < length;
#pragma unroll
            for (int i = 0; i < VALUES; i++) {
                int column = place.output_column + i, at = (batch + place.step) * COLUMNS + column;
                float term = prepared.other[at] * sums[i];
                if (present && column < columns) {
                    output.put(step, column,
                               fmaf(prepared.value[at], prepared.dot[batch + place.step], sums[i]) * prepared.factor[at]);
                    if (!LATE && p.product.data) product.put(step, column, term);
                }
                if (LATE && p.decay_gradient.data) {
                    float dg = gradient.advance(i, place, prepared.product[at] - term, prepared.step_decay[at]);
                    if (place.first && column < columns && step > 0 && step <= length) decay_gradient.put(step - 1, column, dg);
                }
            }
        };
        run_tile<Decays::OfColumns>(state, place, prepared, min(STEPS, end - first), run_stepwise, put);
    }
}
