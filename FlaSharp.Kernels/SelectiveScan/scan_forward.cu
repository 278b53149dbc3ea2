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

constexpr int SPAN = 2 * LANES;  // steps of one pass through the loop: longer ones do not stay in the instruction cache
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

// A thread's next steps: what does not depend on the states is made AHEAD steps before, what that is made of is loaded LOADED
// steps earlier. A short way ahead spreads the exponentials evenly, where many at once would wait for each other; it is too short
// for the few states of narrow blocks.
struct Window {
    static constexpr int AHEAD = LANES == 4 ? 2 : 8, LOADED = 4;
    States decays[AHEAD], inputs[AHEAD];
    float2 steps[LOADED];
    States b[LOADED];

    __device__ __forceinline__ void load(int i, const float2* step, const float* b_tile, int row) {
        steps[i % LOADED] = step[row * PAIR_ROW];
        b[i % LOADED] = load_states(b_tile + row * SLICE);
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

// Sums over states, of C h for eight steps, as products of matrices: rows are channels, each with half of its states and then with
// the others, columns are steps, of which only the one counts whose states are at hand. Such a product takes ten digits of a
// fraction.
constexpr bool BY_PRODUCTS = same<Element, bf16>();
using ScanLane = LaneOf<BY_PRODUCTS ? 1 : 2>;

struct StepSums {
    static constexpr int COUNT = 8;
    float c[4], y[2];

    // `tile`: C of the first step, from a thread's states on.
    __device__ __forceinline__ void load(const float* tile, const ScanLane& lane) {
        const float* own = tile + threadIdx.x % 32 / 4 * SLICE;
        if constexpr (LANES == 4) {
            States four = load_states(own);
#pragma unroll
            for (int i = 0; i < 4; i++) c[i] = four.at[i % STATES];
        } else {
            own -= lane.state & 8;
            States low = load_states(own), high = load_states(own + 8);
            c[0] = low.at[0], c[1] = high.at[0], c[2] = low.at[1], c[3] = high.at[1];
        }
    }
    __device__ __forceinline__ void add(int step, const States& h) {
        if constexpr (LANES == 4) {
            float low[4] = {}, high[4] = {}, states[4] = {h.at[0], h.at[2 % STATES], h.at[1], h.at[3 % STATES]};
            mma_m16n8k8_tf32(low, states, c[0], c[1]);
            mma_m16n8k8_tf32(high, states, c[2], c[3]);
            float sum = low[step % 2] + high[2 + step % 2];
            y[step % 2] = step < 2 || threadIdx.x % 4 == step / 2 ? sum : y[step % 2];
        } else {  // channels are pairs of columns here, steps are rows, and again for the other half of the states
            float d[4] = {};
            mma_m16n8k8_tf32(d, c, h.at[0], h.at[1]);
            y[0] = step == 0 || threadIdx.x % 32 / 4 == step ? d[0] + d[3] : y[0];
        }
    }
    // To the sums from a step on; of more slices than the first, added to what is there.
    __device__ __forceinline__ void store(Sums& sums, int step, int position, bool more) const {
        int row = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
        if constexpr (LANES == 4) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float& to = sums.at(step + 2 * quad + i, position);
                to = (more ? to : 0.f) + y[i];
            }
        } else {
            float& to = sums.at(step + row, position - row / 2 + quad);
            to = (more ? to : 0.f) + y[0];
        }
    }
};

// Of a multiprocessor: more would leave no registers.
constexpr bool SHORT = LANES == 4 && STEPS == SAVED_STEPS && VECTOR > 1 && sizeof(Element) == 2;
constexpr int BLOCKS = SHARED_BYTES > 112 << 10 ? 1 : SHORT ? 3 : 2;

extern "C" __global__ void __launch_bounds__(2 * THREADS, BLOCKS)
    selective_scan_forward(const __grid_constant__ SelectiveScanForward p) {
    follow_stream();
    Shared& shared = shared_memory_as<Shared>();
    Turns turns(shared);
    ScanBlock block(p.scan, blockIdx.x);
    int slices = (p.scan.states + SLICE - 1) / SLICE, end = block.end;

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
        ScanLane lane(threadIdx.x - THREADS);
        bool last = block.segment + 1 == p.scan.segments;
        int slot = block.first_token(p.scan) / SAVED_STEPS + block.sequence.index;  // of `saved`: the sequence's first

        // Computed where it is needed: the scan needs the registers.
        auto place = [&](int slice, int index) {
            return StatePlace(p.scan, block, ScanLane(opaque(threadIdx.x) - THREADS), opaque(index), slice);
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
            Sums& all_sums = shared.sums[tile];
#pragma unroll 1
            for (int slice = 0; slice < slices; slice++, turn++) {
                bool more = slices == 1 && first + STEPS < end;  // steps of the same states: there is no stop before them
                auto step_tile = [&](int i) { return shared.step[i][0] + lane.position; };
                auto b_tile = [&](int i) { return shared.matrices[i % 2][0][0] + lane.state; };
                const float2* step = step_tile(tile);
                const float* b = b_tile(turn);
                if (slices > 1 || first == block.first) {
                    bool begin = first == block.first;
                    h = place(slice, block.part(p.scan) * (begin ? p.scan.parts : 1)).load(begin ? p.initial : p.running);
                    rates = place(slice, 0).load_decays(p.scan);
                    turns.wait(Turns::PREPARED, turn);
#pragma unroll
                    for (int i = 0; i < Window::LOADED; i++) window.load(i, step, b, i);
#pragma unroll
                    for (int i = 0; i < Window::AHEAD; i++) {
                        window.prepare(i, rates);
                        window.load(i, step, b, i + Window::LOADED);
                    }
                }
                // Steps from `at` on; those that come after them are loaded meanwhile.
                auto run = [&](int at, const float2* next_step, const float* next_b) {
                    float sums[LANES];
                    StepSums products;
#pragma unroll
                    for (int i = 0; i < SPAN; i++) {
#pragma unroll
                        for (int n = 0; n < STATES; n++)
                            h.at[n] = fmaf(window.decays[i % Window::AHEAD].at[n], h.at[n],
                                           window.inputs[i % Window::AHEAD].at[n]);
                        if constexpr (BY_PRODUCTS) {
                            if (i % StepSums::COUNT == 0) products.load(b + (STEPS + i) * SLICE, lane);
                            products.add(i % StepSums::COUNT, h);
                        } else {
                            States c = load_states(b + (STEPS + i) * SLICE);
                            float sum = 0;
#pragma unroll
                            for (int n = 0; n < STATES; n++) sum = fmaf(c.at[n], h.at[n], sum);
                            sums[i % LANES] = sum;
                        }
                        window.prepare(i + Window::AHEAD, rates);
                        int row = i + Window::AHEAD + Window::LOADED;
                        if (row < SPAN)
                            window.load(row, step, b, row);
                        else
                            window.load(row, next_step, next_b, row - SPAN);
                        if constexpr (BY_PRODUCTS) {
                            if (i % StepSums::COUNT == StepSums::COUNT - 1)
                                products.store(all_sums, at + i + 1 - StepSums::COUNT, lane.position, slice > 0);
                        } else if (i % LANES == LANES - 1) {
                            float all = lane.sum(sums), &to = all_sums.at(at + i + 1 - LANES + lane.index, lane.position);
                            to = slice > 0 ? to + all : all;
                        }
                    }
                    step = next_step, b = next_b;
                };
#pragma unroll 1
                for (int at = 0; at < steps; at += SAVED_STEPS) {
                    if (p.saved) place(slice, slot + (first + at) / SAVED_STEPS).store(p.saved, h);
                    int last = at + (min(SAVED_STEPS, steps - at) - 1) / SPAN * SPAN;
#pragma unroll 1
                    for (int i = at; i < last; i += SPAN) run(i, step + SPAN * PAIR_ROW, b + SPAN * SLICE);
                    bool ends = at + SAVED_STEPS >= steps;
                    if (ends && more) turns.wait(Turns::PREPARED, turn + 1);
                    run(last, ends ? step_tile(more ? tile ^ 1 : tile) : step + SPAN * PAIR_ROW,
                        ends ? b_tile(more ? turn + 1 : turn) : b + SPAN * SLICE);
                }
                if (slices > 1 || first + STEPS >= end) store_end(slice, h, first + STEPS < end);
                turns.arrive(Turns::SCANNED, turn);
            }
        }
    }
}
