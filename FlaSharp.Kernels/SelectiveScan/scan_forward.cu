// The selective scan (see fla/selective_scan.cuh): y, the final state, and states on the way for the backward pass.
//
// Half of the warps scan; the others prepare tiles of steps for them, delta and delta u of each step and channel, B and C, and
// make y of the sums over states. While one tile is scanned, y of the one before and what the one after needs are made. More
// states than a slice take turns, and wait in memory.
//
// Constants: those of fla/selective_scan.cuh, SHARED_BYTES, SAVED_STEPS between the states saved.
#include "fla/mbarrier.cuh"
#include "fla/selective_scan.cuh"

using namespace fla;

struct SelectiveScanForward {
    SelectiveScan scan;
    TensorView y;          // [B, T, 1, E]
    const float* initial;  // [S, segments, parts, E, N], or null for zeros: before the first part of each segment
    float* final;          // [S, E, N], or null; it may be `initial`
    float* running;        // [S, segments, E, N]: where states wait; needed where N is more than a slice
    float* saved;          // [tokens / SAVED_STEPS + S, E, N], or null: before every SAVED_STEPS-th step of a sequence
};

struct Shared {  // of two tiles, or turns of a slice
    float2 step[2][STEPS][PAIR_ROW];  // delta, delta u
    float matrices[2][2][STEPS][SLICE];  // B, C
    Sums sums[2];  // C h
    u64 barriers[4];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");

// Steps of one pass through the loop, as many as stay in the instruction cache.
constexpr int SPAN = LANES == 4 ? 8 : 32;
static_assert(SAVED_STEPS % SPAN == 0 && STEPS % SAVED_STEPS == 0, "states are saved between spans");

// What one kind of warps has done in a turn, for the other one: barriers of even and of odd turns. Each thread arrives for
// itself, as compute-sanitizer does not see what orders a warp's threads or named barriers that some only arrive at.
struct Turns {
    static constexpr int PREPARED = 0, SCANNED = 2;
    u32 barriers;

    __device__ __forceinline__ explicit Turns(const Shared& shared) : barriers(shared_address(shared.barriers)) {
        if (threadIdx.x < 4) Mbarrier{barriers + threadIdx.x * Mbarrier::BYTES}.init(THREADS);
        __syncthreads();
    }
    __device__ __forceinline__ void arrive(int what, int turn) const { at(what, turn).arrive(); }
    __device__ __forceinline__ void wait(int what, int turn) const { at(what, turn).wait(turn / 2); }

private:
    __device__ __forceinline__ Mbarrier at(int what, int turn) const { return {barriers + (what + turn % 2) * Mbarrier::BYTES}; }
};

// Of a multiprocessor: more would leave no registers.
constexpr bool SHORT = LANES == 4 && STEPS == SAVED_STEPS && VECTOR > 1 && sizeof(Element) == 2;
constexpr int BLOCKS = SHARED_BYTES > 112 << 10 ? 1 : SHORT ? 3 : 2;

// A thread's next steps: what does not depend on the states is made AHEAD steps before, what that is made of is loaded LOADED
// steps earlier, C SOON before its step. A short way ahead spreads the exponentials evenly, where many at once would wait for
// each other; it is too short for the few states of narrow blocks.
struct Window {
    static constexpr int AHEAD = LANES == 4 ? 2 : 8, LOADED = LANES == 4 ? 4 : 2, SOON = 2;
    static_assert(AHEAD + LOADED <= SPAN && SPAN % AHEAD == 0 && SPAN % LOADED == 0, "a span knows where the next one is");
    States decays[AHEAD], inputs[AHEAD];
    float2 steps[LOADED];
    States b[LOADED], c[SOON];

    __device__ __forceinline__ void load(int i, const float2* step, const float* b_tile, int row) {
        steps[i % LOADED] = step[row * PAIR_ROW];
        b[i % LOADED] = load_states(b_tile + row * SLICE);
    }
    __device__ __forceinline__ void load_c(int i, const float* b_tile, int row) {
        c[i % SOON] = load_states(b_tile + (STEPS + row) * SLICE);
    }
    __device__ __forceinline__ void prepare(int i, const States& rates) {
        float2 step = steps[i % LOADED];
#pragma unroll
        for (int n = 0; n < STATES; n++) {
            decays[i % AHEAD].at[n] = pow2(step.x * rates.at[n]);
            inputs[i % AHEAD].at[n] = step.y * b[i % LOADED].at[n];
        }
    }
};

extern "C" __global__ void __launch_bounds__(2 * THREADS, BLOCKS)
    selective_scan_forward(const __grid_constant__ SelectiveScanForward p) {
    follow_stream();
    Shared& shared = shared_memory_as<Shared>();
    Turns turns(shared);
    ScanBlock block(p.scan, blockIdx.x);
    int slices = SINGLE ? 1 : (p.scan.states + SLICE - 1) / SLICE, end = block.end;

    if (__shfl_sync(~0u, threadIdx.x, 0) < THREADS) {  // a whole warp, as the compiler now sees
        Column column(block);
        Cells cells;
        auto strand = [&](const TensorView& view) { return column.strand(view, block, block.first); };
        auto u_strand = strand(p.scan.u), delta_strand = strand(p.scan.delta), y_strand = strand(p.y);
        auto u_again = u_strand, z_strand = strand(p.scan.z);
        auto matrix_strand = cells.strand(p.scan, block, block.first);
        auto bias = column.load(p.scan.delta_bias, block), skip = column.load(p.scan.d, block);

        Pack u[Column::COUNT], delta[Column::COUNT], matrix[Cells::COUNT];
        auto load_inputs = [&](int first) {
            u_strand.load(u, column.left(first, end)), u_strand.move(1);
            delta_strand.load(delta, column.left(first, end)), delta_strand.move(1);
        };
        auto load_matrices = [&](int first, int slice) {
            matrix_strand.load(matrix, cells.left(first, end, slice, p.scan.states), slice * SLICE);
            if (slice + 1 == slices) matrix_strand.move(1);
        };
        // y of a tile whose last turn is `turn`.
        auto finish = [&](int first, int turn) {
            int left = column.left(first, end);
            Pack u[Column::COUNT], z[Column::COUNT];
            u_again.load(u, left), u_again.move(1);
            if (GATED) z_strand.load(z, left), z_strand.move(1);
            turns.wait(Turns::SCANNED, turn);
            Sums& sums = shared.sums[first / STEPS % 2];
#pragma unroll
            for (int i = 0; i < Column::COUNT; i++) {
                float y[VECTOR];
#pragma unroll
                for (int v = 0; v < VECTOR; v++) {
                    y[v] = fmaf(skip[v], u[i][v], sums.at(column.row + i * Column::DISTANCE, column.position(v)));
                    if (GATED) y[v] *= z[i][v] * sigmoid(z[i][v]);
                }
                Pack pack;
                pack.set(y);
                if (i * Column::DISTANCE < left) y_strand.store(pack, i);
            }
            y_strand.move(1);
        };
        if (block.first >= end) return;
        load_inputs(block.first);
        load_matrices(block.first, 0);

        int first = block.first, turn = 0;
#pragma unroll 1
        for (; first < end; first += STEPS) {
            int left = column.left(first, end);
#pragma unroll
            for (int i = 0; i < Column::COUNT; i++) {
                bool exists = i * Column::DISTANCE < left;
#pragma unroll
                for (int v = 0; v < VECTOR; v++) {
                    float size = StepSize(exists ? delta[i][v] + bias[v] : StepSize::NONE).value;
                    shared.step[first / STEPS % 2][column.row + i * Column::DISTANCE][column.position(v)] =
                        make_float2(size, size * u[i][v]);
                }
            }
#pragma unroll 1
            for (int slice = 0; slice < slices; slice++, turn++) {
                cells.store(shared.matrices[turn % 2], matrix);
                turns.arrive(Turns::PREPARED, turn);
                if (slice + 1 < slices) {
                    load_matrices(first, slice + 1);
                } else if (first + STEPS < end) {
                    load_matrices(first + STEPS, 0);
                    load_inputs(first + STEPS);
                }
                if (slice > 0)
                    turns.wait(Turns::SCANNED, turn - 1);
                else if (turn > 0)
                    finish(first - STEPS, turn - 1);
            }
        }
        finish(first - STEPS, turn - 1);
    } else {
        Lane lane(threadIdx.x - THREADS);
        bool last = block.segment + 1 == p.scan.segments;
        int slot = block.first_token(p.scan) / SAVED_STEPS + block.sequence.index;  // of `saved`: the sequence's first

        // Computed where it is needed: the scan needs the registers.
        auto place = [&](int slice, int index) {
            return StatePlace(p.scan, block, Lane(opaque(threadIdx.x) - THREADS), opaque(index), slice);
        };
        auto store_end = [&](int slice, const States& h, bool wait) {
            if (last && p.final && !wait)
                place(slice, block.sequence.index).store(p.final, h);
            else if (slices > 1)
                place(slice, block.part(p.scan)).store(p.running, h);
        };
        if (block.first >= end) {
            for (int slice = 0; slice < slices; slice++)
                store_end(slice, place(slice, block.part(p.scan) * p.scan.parts).load(p.initial), false);
            return;
        }

        States h, rates;
        Window window;
        int turn = 0;
#pragma unroll 1
        for (int first = block.first; first < end; first += STEPS) {
            int tile = first / STEPS % 2, steps = min(STEPS, end - first);
#pragma unroll 1
            for (int slice = 0; slice < slices; slice++, turn++) {
                bool more = slices == 1 && first + STEPS < end;  // steps of the same states: there is no stop before them
                // Where the next steps lie: numbers take half the registers of pointers.
                auto step_tile = [&](int i) { return i * STEPS * PAIR_ROW + lane.position; };
                auto b_tile = [&](int i) { return i % 2 * (2 * STEPS * SLICE) + lane.state; };
                int step = step_tile(tile), b = b_tile(turn);
                const float2* all_steps = shared.step[0][0];
                const float* all_b = shared.matrices[0][0][0];
                float* to = &shared.sums[tile].at(lane.index, lane.position);
                if (slices > 1 || first == block.first) {
                    bool begin = first == block.first;
                    h = place(slice, block.part(p.scan) * (begin ? p.scan.parts : 1)).load(begin ? p.initial : p.running);
                    rates = place(slice, 0).load_decays(p.scan);
                    turns.wait(Turns::PREPARED, turn);
#pragma unroll
                    for (int i = 0; i < Window::LOADED; i++) window.load(i, all_steps + step, all_b + b, i);
#pragma unroll
                    for (int i = 0; i < Window::AHEAD; i++) {
                        window.prepare(i, rates);
                        window.load(i, all_steps + step, all_b + b, i + Window::LOADED);
                    }
#pragma unroll
                    for (int i = 0; i < Window::SOON; i++) window.load_c(i, all_b + b, i);
                }
                // A span; those steps that come after it are loaded meanwhile.
                auto run = [&](int next_step, int next_b) {
                    float sums[LANES];
#pragma unroll
                    for (int i = 0; i < SPAN; i++) {
                        States c = window.c[i % Window::SOON];
                        int soon = i + Window::SOON;
                        window.load_c(soon, all_b + (soon < SPAN ? b : next_b), soon % SPAN);
                        float sum = 0;
#pragma unroll
                        for (int n = 0; n < STATES; n++) {
                            h.at[n] = fmaf(window.decays[i % Window::AHEAD].at[n], h.at[n],
                                           window.inputs[i % Window::AHEAD].at[n]);
                            sum = fmaf(c.at[n], h.at[n], sum);
                        }
                        sums[i % LANES] = sum;
                        window.prepare(i + Window::AHEAD, rates);
                        int row = i + Window::AHEAD + Window::LOADED;
                        if (row < SPAN)
                            window.load(row, all_steps + step, all_b + b, row);
                        else
                            window.load(row, all_steps + next_step, all_b + next_b, row - SPAN);
                        if (i % LANES == LANES - 1) {
                            float all = lane.sum(sums), &own = to[Sums::distance(i / LANES)];
                            own = slice > 0 ? own + all : all;
                        }
                    }
                    step = next_step, b = next_b, to += SPAN * Sums::ROW;
                };
#pragma unroll 1
                for (int at = 0; at < steps; at += SAVED_STEPS) {
                    if (p.saved) place(slice, slot + (first + at) / SAVED_STEPS).store(p.saved, h);
                    int last = at + (min(SAVED_STEPS, steps - at) - 1) / SPAN * SPAN;
#pragma unroll 1
                    for (int i = at; i < last; i += SPAN) run(step + SPAN * PAIR_ROW, b + SPAN * SLICE);
                    bool ends = at + SAVED_STEPS >= steps;
                    if (ends && more) turns.wait(Turns::PREPARED, turn + 1);
                    run(ends ? step_tile(more ? tile ^ 1 : tile) : step + SPAN * PAIR_ROW,
                        ends ? b_tile(more ? turn + 1 : turn) : b + SPAN * SLICE);
                }
                if (slices > 1 || first + STEPS >= end) store_end(slice, h, first + STEPS < end);
                turns.arrive(Turns::SCANNED, turn);
            }
        }
    }
}
